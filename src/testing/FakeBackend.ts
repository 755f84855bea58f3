/**
 * A vhost-user backend in this process, at the other end of a socket pair: it answers as its script says, remembers every
 * message it was sent with the descriptors that came along, and does wrong things with its messages, by a plan or at one of them.
 *
 * It moves no data: its rings are set up and never served (`FakeTransport` is what answers requests). It reads a message as real
 * backends do, first the header and then the payload, each to its exact length, so that descriptors are known to have come with
 * the header.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import * as SeededRandom from "../SeededRandom.ts"
import * as Message from "../Wire/VhostUserMessage.ts"
import { FeatureBit, featureMask } from "../Wire/VirtioBlk.ts"
import * as FaultPlan from "./FaultPlan.ts"

const { FrontendRequest, ProtocolFeature } = Message

/**
 * What may go wrong at a message, instead of the reply that is due or beside it:
 *
 * - `wrong request`: the reply of another request. `no reply flag`, `wrong version`, `wrong flags` (any others).
 * - `wrong size`: a reply of half its payload, with a header that says so. `any size`: one of up to 267 bytes.
 * - `short payload and close`: a whole header, half of the payload, and the end of the stream.
 * - `payload above the limit`: a header that announces more than any message has.
 * - `flipped bit`: in header or payload. `garbage`: up to 64 bytes of anything.
 * - `extra descriptors`: two beside the reply. `missing descriptors`: none, where some are due.
 * - `reply twice`, `unasked message`: one that nobody asked for, before the reply.
 * - `acknowledge with 1`: the backend refuses what it was told.
 * - `reply and close`: the reply, and then the end: qemu-storage-daemon acknowledges messages that it dies of.
 * - `close`: the end, without a reply. `silence`: no reply from then on.
 *
 * @category models
 * @since 0.1.0
 */
export type MessageFault = (typeof messageFaults)[number]

const messageFaults = [
  "wrong request",
  "no reply flag",
  "wrong version",
  "wrong flags",
  "wrong size",
  "any size",
  "short payload and close",
  "payload above the limit",
  "flipped bit",
  "garbage",
  "extra descriptors",
  "missing descriptors",
  "reply twice",
  "unasked message",
  "acknowledge with 1",
  "reply and close",
  "silence",
  "close"
] as const

/**
 * The kinds of {@link MessageFault}, all of which can happen at each message that the backend receives.
 *
 * @category models
 * @since 0.1.0
 */
export const sorts = { message: messageFaults } as const satisfies FaultPlan.Sorts<MessageFault>

/**
 * What goes wrong at a message that a test chooses: a fault, or these bytes instead of a reply.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = MessageFault | { readonly garbage: Uint8Array }

/**
 * What a backend answers.
 *
 * @category models
 * @since 0.1.0
 */
export interface Script {
  /** Feature bits. */
  readonly features: bigint
  /** Protocol feature bits. */
  readonly protocolFeatures: bigint
  readonly queues: bigint
  /** How many memory regions it takes. */
  readonly slots: bigint
  /** The configuration space. More of it is refused, as by qemu-storage-daemon. */
  readonly config: Uint8Array
  /** Answers GET_CONFIG of this size with an empty payload. */
  readonly refusesConfig: (size: number) => boolean
  /** Whether FEATURES_OK reads back as it was written. */
  readonly acceptsFeatures: boolean
  /** Sends every byte by itself. */
  readonly byteByByte: boolean
  /** Goes wrong at the `occurrence`-th message (the first is 1) of this number. */
  readonly fault?: { readonly request: number; readonly occurrence?: number; readonly what: Fault } | undefined
  /** Goes wrong by a plan, too. Default: not. */
  readonly plan?: FaultPlan.FaultPlan<MessageFault>
}

/**
 * A message as the backend received it. Its descriptors are the backend's, open until its Scope closes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Received {
  readonly name: string
  readonly request: number
  readonly flags: number
  readonly payload: Uint8Array
  readonly fds: ReadonlyArray<number>
}

/**
 * A backend.
 *
 * @category models
 * @since 0.1.0
 */
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
  /** The faults of the plan so far: by itself a plan that does the same again. */
  readonly acted: () => ReadonlyArray<FaultPlan.Fault<MessageFault>>
}

const { PROTOCOL_FEATURES } = FeatureBit

/**
 * Sets of protocol features.
 *
 * @category constants
 * @since 0.1.0
 */
export const protocolFeatures = {
  /** All that this library makes use of. */
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

/**
 * What a backend answers unless it is told otherwise.
 *
 * @category constants
 * @since 0.1.0
 */
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

/** The area of requests in flight (vhost-user: Inflight I/O tracking, split virtqueue): a header for each queue, and its entries. */
const INFLIGHT_HEADER_BYTES = 16
const INFLIGHT_ENTRY_BYTES = 16

/** The most bytes of a reply that has any size, and of garbage. */
const MOST_BYTES = Message.MAX_PAYLOAD_BYTES
const MOST_GARBAGE = 64

/** Messages whose reply has a meaning of its own, whether or not NEED_REPLY is set. */
const questions: ReadonlySet<number> = new Set([
  FrontendRequest.GET_FEATURES,
  FrontendRequest.GET_PROTOCOL_FEATURES,
  FrontendRequest.GET_QUEUE_NUM,
  FrontendRequest.GET_VRING_BASE,
  FrontendRequest.GET_CONFIG,
  FrontendRequest.GET_MAX_MEM_SLOTS,
  FrontendRequest.GET_STATUS,
  FrontendRequest.GET_INFLIGHT_FD
])

/**
 * Starts a backend that ends with the Scope.
 *
 * @example
 * ```ts
 * import { VhostUser, VirtioBlk } from "effect-blkio"
 * import { FakeBackend } from "effect-blkio/testing"
 * import { Effect } from "effect"
 *
 * // At the third message the backend gets, GET_PROTOCOL_FEATURES, it answers with half of what is due.
 * const program = Effect.gen(function*() {
 *   const backend = yield* FakeBackend.make({ plan: { faults: [{ kind: "wrong size", at: 2, value: 0 }] } })
 *   const recipe = yield* VhostUser.make({ fd: backend.fd })
 *   const error = yield* Effect.flip(VirtioBlk.make(recipe))
 *   return [error._tag, ...backend.transcript()]
 * })
 * console.log((await Effect.runPromise(Effect.scoped(program))).join(" ")) // => "EPROTO SET_OWNER GET_FEATURES GET_PROTOCOL_FEATURES"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
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
      hangUp: () => backend.hangUp(),
      acted: () => backend.faults.acted
    })
  )

class Backend {
  readonly frontend: number
  readonly received: Array<Received> = []
  readonly faults: FaultPlan.Acting<typeof sorts>
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
    this.faults = FaultPlan.begin(script.plan ?? FaultPlan.none, sorts)
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
    const { request } = message
    const planned = this.faults.next("message")
    if (this.#isSilent) return
    const occurrence = (this.#seen.get(request) ?? 0) + 1
    this.#seen.set(request, occurrence)
    const { fault } = this.#script
    const isDue = fault?.request === request && (fault.occurrence ?? 1) === occurrence
    const payload = this.#reply(message)
    const fds = request === FrontendRequest.GET_INFLIGHT_FD ? [this.#inflightFd(payload)] : []
    if (isDue) this.#misbehave(fault.what, 0, message, payload, fds)
    else if (planned !== undefined) this.#misbehave(planned.kind, planned.value, message, payload, fds)
    else if (payload !== undefined) this.send(Message.encodeMessage(request, Message.FLAG_REPLY, payload), fds)
    fds.forEach(Libc.close)
  }

  /** Makes the area in which requests in flight are noted, as large as the reply says. */
  #inflightFd(payload: Uint8Array | undefined): number {
    const size = payload === undefined ? 0 : Message.decodeInflight(payload).mmapSize
    return Libc.createMemoryFile("effect-blkio-inflight", size)
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
        if (script.refusesConfig(size) || size > script.config.length) return new Uint8Array(0)
        return Message.encodeConfig({ offset: 0, size, flags: 0, region: script.config.subarray(0, size) })
      }
      case FrontendRequest.GET_INFLIGHT_FD: {
        const { numQueues, queueSize } = Message.decodeInflight(payload)
        const mmapSize = Math.max(1, numQueues) * (INFLIGHT_HEADER_BYTES + INFLIGHT_ENTRY_BYTES * queueSize)
        return Message.encodeInflight({ mmapSize, mmapOffset: 0, numQueues, queueSize })
      }
      case FrontendRequest.SET_STATUS:
        this.#status = Message.decodeU64(payload)
    }
    if (questions.has(request)) throw new Error(`no reply to ${Message.requestName(request)} is written here`)
    return flags === Message.FLAG_NEED_REPLY ? Message.encodeU64(0n) : undefined
  }

  #misbehave(
    what: Fault,
    value: number,
    { request }: Received,
    due: Uint8Array | undefined,
    fds: ReadonlyArray<number>
  ): void {
    // Where no reply is due, a wrong one is one that nobody asked for.
    const payload = due ?? Message.encodeU64(0n)
    const reply = Message.encodeMessage(request, Message.FLAG_REPLY, payload)
    if (typeof what === "object") return this.send(what.garbage)
    const next = SeededRandom.make(value)
    switch (what) {
      case "wrong request":
        return this.send(Message.encodeMessage(request + 1, Message.FLAG_REPLY, payload))
      case "no reply flag":
        return this.send(Message.encodeMessage(request, 0, payload))
      case "wrong version":
        reply[4] = Message.FLAG_REPLY | 2
        return this.send(reply)
      case "wrong flags":
        new DataView(reply.buffer).setUint32(4, next(2 ** 32), true)
        return this.send(reply)
      case "wrong size":
        return this.send(Message.encodeMessage(request, Message.FLAG_REPLY, payload.subarray(payload.length / 2)))
      case "any size":
        return this.send(Message.encodeMessage(request, Message.FLAG_REPLY, bytesOf(next, next(MOST_BYTES))))
      case "short payload and close":
        this.send(reply.subarray(0, Message.HEADER_BYTES + payload.length / 2))
        return this.hangUp()
      case "payload above the limit":
        new DataView(reply.buffer).setUint32(8, Message.MAX_PAYLOAD_BYTES + 1, true)
        return this.send(reply)
      case "flipped bit": {
        const at = next(reply.length)
        reply[at] = (reply[at] ?? 0) ^ 1 << next(8)
        return this.send(reply, fds)
      }
      case "garbage":
        return this.send(bytesOf(next, next(MOST_GARBAGE)))
      case "extra descriptors":
        return this.send(reply, [...fds, this.#socket, this.#socket])
      case "missing descriptors":
        if (due !== undefined) this.send(reply)
        return
      case "reply twice":
        this.send(reply, fds)
        return this.send(reply)
      case "unasked message":
        this.send(Message.encodeMessage(next(64), Message.FLAG_REPLY, Message.encodeU64(0n)))
        if (due !== undefined) this.send(reply, fds)
        return
      case "acknowledge with 1":
        return this.send(Message.encodeMessage(request, Message.FLAG_REPLY, Message.encodeU64(1n)))
      case "reply and close":
        if (due !== undefined) this.send(reply, fds)
        return this.hangUp()
      case "silence":
        this.#isSilent = true
        return
      case "close":
        return this.hangUp()
    }
  }
}

const bytesOf = (next: SeededRandom.SeededRandom, length: number): Uint8Array =>
  Uint8Array.from({ length }, () => next(256))
