/**
 * A vhost-user backend in this process, at the other end of a socket pair: it answers as its script says, remembers every
 * message it was sent with the descriptors that came along, and at one chosen message does one chosen wrong thing.
 *
 * It moves no data: its rings are set up and never served. It reads a message as real backends do, first the header and
 * then the payload, each to its exact length, so that descriptors are known to have come with the header.
 */
import { Effect, type Scope } from "effect"
import * as Libc from "../../src/Native/Libc.ts"
import * as Poll from "../../src/Native/Poll.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"

const { FrontendRequest, ProtocolFeature } = Message

/** What may go wrong, instead of the reply that is due or beside it. */
export type Fault =
  /** The reply of another request. */
  | "wrong request"
  | "no reply flag"
  | "wrong version"
  /** A reply of half its payload, with a header that says so. */
  | "wrong size"
  /** A whole header, half of the payload, and the end of the stream. */
  | "short payload and close"
  /** A header that announces more than any message has. */
  | "payload above the limit"
  /** Descriptors beside the reply. */
  | "extra descriptors"
  /** The reply twice. */
  | "reply twice"
  | "acknowledge with 1"
  /** The reply, and then the end: qemu-storage-daemon acknowledges messages that it dies of. */
  | "reply and close"
  | "silence"
  | "close"
  /** These bytes instead of a reply. */
  | { readonly garbage: Uint8Array }

export interface Script {
  readonly features: bigint
  readonly protocolFeatures: bigint
  readonly queues: bigint
  readonly slots: bigint
  readonly config: Uint8Array
  /** Answers GET_CONFIG of this size with an empty payload. */
  readonly refusesConfig: (size: number) => boolean
  /** Whether FEATURES_OK reads back as it was written. */
  readonly acceptsFeatures: boolean
  /** Sends every byte by itself. */
  readonly byteByByte: boolean
  /** Goes wrong at the `occurrence`-th message (the first is 1) of this number. */
  readonly fault?: { readonly request: number; readonly occurrence?: number; readonly what: Fault } | undefined
}

/** A message as the backend received it. Its descriptors are the backend's, open until its Scope closes. */
export interface Received {
  readonly name: string
  readonly request: number
  readonly flags: number
  readonly payload: Uint8Array
  readonly fds: ReadonlyArray<number>
}

export interface FakeBackend {
  /** The front-end's end of the socket pair: whoever connects with it owns it. */
  readonly fd: number
  readonly received: ReadonlyArray<Received>
  /** The names of the messages so far, in order; `+1` where a descriptor came along, `!` where a reply was asked for. */
  readonly transcript: () => ReadonlyArray<string>
  readonly named: (name: string) => ReadonlyArray<Received>
  /** Sends a message nobody asked for. */
  readonly send: (bytes: Uint8Array) => void
  /** Sends a message on the channel of SET_BACKEND_REQ_FD; answers how many bytes were taken, 0 where it is full. */
  readonly request: (bytes: Uint8Array, fds?: ReadonlyArray<number>) => number
  /** Everything the front-end has answered there so far. */
  readonly answers: () => Uint8Array
  /** Ends the connection. */
  readonly hangUp: () => void
}

const { PROTOCOL_FEATURES } = FeatureBit

export const protocolFeatures = {
  all: featureMask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS
  ),
  /** Enough for a disk, and no more. */
  least: featureMask(ProtocolFeature.CONFIG)
}

export const defaults: Script = {
  features: featureMask(FeatureBit.VERSION_1, PROTOCOL_FEATURES),
  protocolFeatures: protocolFeatures.all,
  queues: 4n,
  slots: 32n,
  config: Uint8Array.from({ length: 256 }, (_, i) => i),
  refusesConfig: () => false,
  acceptsFeatures: true,
  byteByByte: false
}

/** Messages whose reply has a meaning of its own, whether or not NEED_REPLY is set. */
const questions: ReadonlySet<number> = new Set([
  FrontendRequest.GET_FEATURES,
  FrontendRequest.GET_PROTOCOL_FEATURES,
  FrontendRequest.GET_QUEUE_NUM,
  FrontendRequest.GET_VRING_BASE,
  FrontendRequest.GET_CONFIG,
  FrontendRequest.GET_MAX_MEM_SLOTS,
  FrontendRequest.GET_STATUS
])

/** Starts a backend that ends with the Scope. */
export const make = (changes: Partial<Script> = {}): Effect.Effect<FakeBackend, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(Effect.sync(() => new Backend({ ...defaults, ...changes })), (backend) =>
      Effect.sync(() => backend.close())),
    (backend) => ({
      fd: backend.frontend,
      received: backend.received,
      transcript: () =>
        backend.received.map(({ fds, flags, name }) =>
          name + (flags === Message.FLAG_NEED_REPLY ? "!" : "") + (fds.length > 0 ? `+${fds.length}` : "")
        ),
      named: (name) =>
        backend.received.filter((message) => message.name === name),
      send: (bytes) => backend.send(bytes),
      request: (bytes, fds = []) => Libc.send(backend.channel, bytes, fds),
      answers: () => backend.answers(),
      hangUp: () => backend.hangUp()
    })
  )

class Backend {
  readonly frontend: number
  readonly received: Array<Received> = []
  readonly #socket: number
  readonly #script: Script
  readonly #watch: Poll.Watch
  readonly #seen = new Map<number, number>()
  #header: Message.Header | undefined
  #bytes: Uint8Array = new Uint8Array(0)
  #fds: Array<number> = []
  #status = 0n
  #answers: Uint8Array = new Uint8Array(0)
  #isSilent = false
  #isUp = true

  constructor(script: Script) {
    const [frontend, socket] = Libc.createSocketPair()
    this.frontend = frontend
    this.#socket = socket
    this.#script = script
    this.#watch = Poll.watch(socket, { readable: true }, () => {
      setImmediate(() => this.#read())
    })
  }

  /** The backend's end of the channel on which it asks the front-end. */
  get channel(): number {
    const fd = this.received.findLast(({ name }) => name === "SET_BACKEND_REQ_FD")?.fds[0]
    if (fd === undefined) throw new Error("the front-end opened no channel for the backend")
    return fd
  }

  answers(): Uint8Array {
    for (;;) {
      const found = Libc.receive(this.channel, 65_536)
      if (found._tag === "Empty" || found.bytes.length === 0) return this.#answers
      this.#answers = Buffer.concat([this.#answers, found.bytes])
    }
  }

  send(bytes: Uint8Array, fds: ReadonlyArray<number> = []): void {
    try {
      if (!this.#script.byteByByte) Libc.send(this.#socket, bytes, fds)
      else for (const byte of bytes) Libc.send(this.#socket, Uint8Array.of(byte), [])
    } catch {
      // The front-end is gone; the next read says so too.
    }
  }

  hangUp(): void {
    if (!this.#isUp) return
    this.#isUp = false
    this.#watch.close()
    Libc.close(this.#socket)
  }

  close(): void {
    this.hangUp()
    this.#fds.forEach(Libc.close)
    for (const { fds } of this.received) fds.forEach(Libc.close)
  }

  #read(): void {
    while (this.#isUp) {
      const wanted = this.#header === undefined ? Message.HEADER_BYTES : this.#header.size
      if (this.#bytes.length < wanted) {
        let found: Libc.Received
        try {
          found = Libc.receive(this.#socket, wanted - this.#bytes.length)
        } catch {
          return this.hangUp()
        }
        if (found._tag === "Empty") return
        if (found.bytes.length === 0) return this.hangUp()
        this.#fds.push(...found.fds)
        this.#bytes = Buffer.concat([this.#bytes, found.bytes])
      } else if (this.#header === undefined) {
        this.#header = Message.decodeHeader(this.#bytes)
        this.#bytes = new Uint8Array(0)
      } else {
        const { flags, request } = this.#header
        const message = {
          name: Message.requestName(request),
          request,
          flags,
          payload: Uint8Array.from(this.#bytes),
          fds: this.#fds
        }
        this.#header = undefined
        this.#bytes = new Uint8Array(0)
        this.#fds = []
        this.received.push(message)
        this.#answer(message)
      }
    }
  }

  #answer(message: Received): void {
    if (this.#isSilent) return
    const occurrence = (this.#seen.get(message.request) ?? 0) + 1
    this.#seen.set(message.request, occurrence)
    const { fault } = this.#script
    const isDue = fault?.request === message.request && (fault.occurrence ?? 1) === occurrence
    const payload = this.#reply(message)
    if (isDue) this.#misbehave(fault.what, message, payload ?? Message.encodeU64(0n))
    else if (payload !== undefined) {
      this.send(Message.encodeMessage(message.request, Message.FLAG_REPLY, payload))
    }
  }

  #reply({ flags, payload, request }: Received): Uint8Array | undefined {
    const script = this.#script
    switch (request) {
      case FrontendRequest.GET_FEATURES:
        return Message.encodeU64(script.features)
      case FrontendRequest.GET_PROTOCOL_FEATURES:
        return Message.encodeU64(script.protocolFeatures)
      case FrontendRequest.GET_QUEUE_NUM:
        return Message.encodeU64(script.queues)
      case FrontendRequest.GET_MAX_MEM_SLOTS:
        return Message.encodeU64(script.slots)
      case FrontendRequest.GET_STATUS:
        return Message.encodeU64(script.acceptsFeatures ? this.#status : this.#status & ~8n)
      case FrontendRequest.GET_VRING_BASE:
        return payload
      case FrontendRequest.GET_CONFIG: {
        const { size } = Message.decodeConfig(payload)
        if (script.refusesConfig(size)) return new Uint8Array(0)
        return Message.encodeConfig({ offset: 0, size, flags: 0, region: script.config.subarray(0, size) })
      }
      case FrontendRequest.SET_STATUS:
        this.#status = Message.decodeU64(payload)
    }
    if (questions.has(request)) throw new Error(`no reply to ${Message.requestName(request)} is written here`)
    return flags === Message.FLAG_NEED_REPLY ? Message.encodeU64(0n) : undefined
  }

  #misbehave(what: Fault, { request }: Received, payload: Uint8Array): void {
    const reply = Message.encodeMessage(request, Message.FLAG_REPLY, payload)
    if (typeof what === "object") return this.send(what.garbage)
    switch (what) {
      case "wrong request":
        return this.send(Message.encodeMessage(request + 1, Message.FLAG_REPLY, payload))
      case "no reply flag":
        return this.send(Message.encodeMessage(request, 0, payload))
      case "wrong version":
        reply[4] = Message.FLAG_REPLY | 2
        return this.send(reply)
      case "wrong size":
        return this.send(Message.encodeMessage(request, Message.FLAG_REPLY, payload.subarray(payload.length / 2)))
      case "short payload and close":
        this.send(reply.subarray(0, Message.HEADER_BYTES + payload.length / 2))
        return this.hangUp()
      case "payload above the limit":
        new DataView(reply.buffer).setUint32(8, Message.MAX_PAYLOAD_BYTES + 1, true)
        return this.send(reply)
      case "extra descriptors":
        return this.send(reply, [this.#socket, this.#socket])
      case "reply twice":
        this.send(reply)
        return this.send(reply)
      case "acknowledge with 1":
        return this.send(Message.encodeMessage(request, Message.FLAG_REPLY, Message.encodeU64(1n)))
      case "reply and close":
        this.send(reply)
        return this.hangUp()
      case "silence":
        this.#isSilent = true
        return
      case "close":
        return this.hangUp()
    }
  }
}
