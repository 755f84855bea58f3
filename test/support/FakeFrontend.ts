/**
 * A vhost-user front-end in this process, written from the protocol's text and not from `src/Transport`, to talk to an
 * export: it sends messages by name or as bytes, with any descriptors, waits for what comes back, shares memory, and drives
 * rings ({@link FakeRing}) that a test can break as it likes. {@link serve} puts an export there to talk to.
 *
 * It waits by looking again, a turn of the event loop at a time, and fails the test after some seconds. Everything it opens
 * is closed with its Scope.
 */
import { Effect, type Scope, Stream } from "effect"
import { mkdtempSync, readSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { expect } from "vitest"
import type { BlockStore } from "../../src/BlockStore/Interface.ts"
import * as Export from "../../src/Export/Export.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { SyscallError } from "../../src/Native/SyscallError.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { featureMask, RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { FakeRing, type Laid, layRequest, type MemoryOptions, type RequestOptions, SharedMemory } from "./FakeRing.ts"

const PATIENCE_MS = 10_000
/** Turns of the event loop before waiting takes real time. */
const QUICK_TURNS = 100

/** Lets the event loop go round `count` times. */
export const turns = (count: number): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const next = (left: number): NodeJS.Immediate =>
      setImmediate(() => left <= 1 ? resume(Effect.void) : void next(left - 1))
    next(count)
  })

/** Waits until `look` finds something, and fails the test where it does not. */
export const eventually = Effect.fnUntraced(function*<A>(what: string, look: () => A | undefined) {
  const began = performance.now()
  for (let round = 0;; round++) {
    const found = look()
    if (found !== undefined) return found
    if (performance.now() - began > PATIENCE_MS) return yield* Effect.die(new Error(`waited in vain for ${what}`))
    yield* round < QUICK_TURNS ? turns(1) : Effect.sleep(1)
  }
})

/** How often an event counter was signalled since it was last read. */
const takeCount = (fd: number): number => {
  const counter = new BigUint64Array(1)
  try {
    readSync(fd, counter)
    return Number(counter[0])
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EAGAIN") return 0
    throw error
  }
}

/** A message as it was received. Its descriptors are open until the front-end's Scope closes. */
export interface Received {
  readonly request: number
  readonly flags: number
  readonly payload: Uint8Array
  readonly fds: ReadonlyArray<number>
}

/** One end of a socket on which messages come. */
export class MessageStream {
  readonly fd: number
  readonly #kept: Array<number> = []
  #bytes: Uint8Array = new Uint8Array(0)
  #fds: Array<number> = []
  #header: Message.Header | undefined
  #isOpen = true
  #isAtEnd = false

  constructor(fd: number) {
    this.fd = fd
  }

  /** Sends bytes, as they are; answers how many were taken. */
  send(bytes: Uint8Array, fds: ReadonlyArray<number> = []): number {
    return Libc.send(this.fd, bytes, fds)
  }

  /** The next message that is there; "end" where the other side has closed the connection. */
  look(): Received | "end" | undefined {
    for (;;) {
      const wanted = this.#header === undefined ? Message.HEADER_BYTES : this.#header.size
      if (this.#bytes.length < wanted) {
        if (this.#isAtEnd) return "end"
        const found = this.#receive(wanted - this.#bytes.length)
        if (found === undefined) return undefined
        continue
      }
      const bytes = this.#bytes
      this.#bytes = new Uint8Array(0)
      if (this.#header === undefined) {
        this.#header = Message.decodeHeader(bytes)
        continue
      }
      const { flags, request } = this.#header
      const fds = this.#fds
      this.#header = undefined
      this.#fds = []
      return { request, flags, payload: Uint8Array.from(bytes), fds }
    }
  }

  #receive(limit: number): true | undefined {
    let found: Libc.Received
    try {
      found = Libc.receive(this.fd, limit)
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error
      // What was sent and not read makes the end a reset.
      this.#isAtEnd = true
      return true
    }
    if (found._tag === "Empty") return undefined
    if (found.bytes.length === 0) this.#isAtEnd = true
    this.#kept.push(...found.fds)
    this.#fds.push(...found.fds)
    this.#bytes = Buffer.concat([this.#bytes, found.bytes])
    return true
  }

  close(): void {
    if (!this.#isOpen) return
    this.#isOpen = false
    this.#kept.forEach(Libc.close)
    Libc.close(this.fd)
  }
}

type RequestName = keyof typeof Message.FrontendRequest

/** What goes along with a message. */
export interface SendOptions {
  readonly fds?: ReadonlyArray<number>
  /** Asks for an acknowledgement. */
  readonly needReply?: boolean
  /** More bits of the header's flags. */
  readonly flags?: number
}

export interface RingOptions {
  readonly index?: number
  readonly queueSize?: number
  /** The first index of avail and used ring. */
  readonly base?: number
  /** Where the ring and its buffers lie. Default: the first region that is shared. */
  readonly memory?: SharedMemory
  /** Whether to send SET_VRING_ENABLE. Default true. */
  readonly enable?: boolean
}

/** A request that was made and answered. */
export interface Answer {
  readonly status: number
  /** What was read. */
  readonly data: Uint8Array
  /** The length in the used ring. */
  readonly length: number
}

/** A ring with the descriptors by which the two sides tell each other of it. */
export class FrontendQueue {
  readonly index: number
  readonly ring: FakeRing
  readonly kickFd: number
  readonly callFd: number
  readonly errorFd: number
  readonly #answers = new Map<number, number>()

  constructor(index: number, ring: FakeRing, open: () => number) {
    this.index = index
    this.ring = ring
    this.kickFd = open()
    this.callFd = open()
    this.errorFd = open()
  }

  get memory(): SharedMemory {
    return this.ring.memory
  }

  kick(): void {
    Libc.signalEventFd(this.kickFd)
  }

  /** How often the export signalled since the last time. */
  readonly signals = (): number => takeCount(this.callFd)

  /** How often the export said that the ring is broken, since the last time. */
  readonly errors = (): number => takeCount(this.errorFd)

  /** Waits for the used entry of a chain; answers the length in it. */
  used(head: number): Effect.Effect<number> {
    return eventually(`head ${head} to be used`, () => {
      for (const { id, length } of this.ring.collect()) this.#answers.set(id, length)
      const length = this.#answers.get(head)
      this.#answers.delete(head)
      return length
    })
  }

  /** Lays a request out and shows it to the export without a kick. */
  submit(options: RequestOptions): Laid & { readonly head: number } {
    const laid = layRequest(this.memory, options)
    return { ...laid, head: this.ring.put(laid.parts, options) }
  }

  /** Makes a request, and waits for its answer. Nothing around its parts may have changed. */
  do(options: RequestOptions): Effect.Effect<Answer> {
    return Effect.suspend(() => {
      const { allocated } = this.memory
      const laid = this.submit(options)
      this.kick()
      return Effect.map(this.used(laid.head), (length) => {
        expect(laid.isIntact(), "bytes around the request's parts").toBe(true)
        const answer = { status: laid.status(), data: laid.data(), length }
        this.memory.allocated = allocated
        return answer
      })
    })
  }
}

export interface Negotiation {
  /** Feature bits that are left out of what is offered. */
  readonly without?: ReadonlyArray<number>
  /** What is chosen of the rest. Default: all. */
  readonly choose?: (offered: bigint) => bigint
  readonly protocolFeatures?: (offered: bigint) => bigint
}

/** A front-end that is connected to an export. */
export class FakeFrontend extends MessageStream {
  readonly shared: Array<SharedMemory> = []
  readonly queues: Array<FrontendQueue> = []
  readonly #owned: Array<() => void> = []

  /** Sends a message and waits for nothing. */
  say(name: RequestName, payload: Uint8Array = new Uint8Array(0), options: SendOptions = {}): void {
    const { fds = [], flags = 0, needReply = false } = options
    const all = flags | (needReply ? Message.FLAG_NEED_REPLY : 0)
    this.send(Message.encodeMessage(Message.FrontendRequest[name], all, payload), fds)
  }

  /** The next message of the export, or "end". */
  readonly next: Effect.Effect<Received | "end"> = eventually("a message", () => this.look())

  /** Waits until the export has closed the connection, whatever it says before. */
  readonly ended: Effect.Effect<void> = Effect.asVoid(eventually("the end of the connection", () => {
    for (;;) {
      const found = this.look()
      if (found === undefined) return undefined
      if (found === "end") return true
    }
  }))

  /** Sends a message and answers the reply to it. */
  ask(name: RequestName, payload?: Uint8Array, options: SendOptions = {}): Effect.Effect<Received> {
    return Effect.suspend(() => {
      this.say(name, payload, options)
      return Effect.flatMap(this.next, (reply) => {
        if (reply === "end") return Effect.die(new Error(`${name}: the export closed the connection`))
        expect({ request: Message.requestName(reply.request), flags: reply.flags }).toStrictEqual({
          request: name,
          flags: Message.FLAG_REPLY
        })
        return Effect.succeed(reply)
      })
    })
  }

  /** Asks for a number. */
  askU64(name: RequestName, payload?: Uint8Array): Effect.Effect<bigint> {
    return Effect.map(this.ask(name, payload), (reply) => Message.decodeU64(reply.payload))
  }

  /** Sends a message and answers its acknowledgement, 0 for success. Needs REPLY_ACK. */
  acknowledged(name: RequestName, payload?: Uint8Array, options: SendOptions = {}): Effect.Effect<bigint> {
    return Effect.map(
      this.ask(name, payload, { ...options, needReply: true }),
      (reply) => Message.decodeU64(reply.payload)
    )
  }

  /** Sends a message that must be acknowledged with success. Needs REPLY_ACK. */
  tell(name: RequestName, payload?: Uint8Array, options: SendOptions = {}): Effect.Effect<void> {
    return Effect.map(this.acknowledged(name, payload, options), (acknowledgement) => {
      expect(acknowledgement, `the acknowledgement of ${name}`).toBe(0n)
    })
  }

  /** Chooses features; answers them. */
  negotiate(
    { choose = (offered) => offered, protocolFeatures = (offered) => offered, without = [] }: Negotiation = {}
  ) {
    return Effect.gen({ self: this }, function*() {
      const offered = yield* this.askU64("GET_FEATURES")
      const features = choose(offered & ~featureMask(...without))
      const chosen = protocolFeatures(yield* this.askU64("GET_PROTOCOL_FEATURES"))
      this.say("SET_PROTOCOL_FEATURES", Message.encodeU64(chosen))
      this.say("SET_OWNER")
      this.say("SET_FEATURES", Message.encodeU64(features))
      return features
    })
  }

  /** Makes memory without sharing it. */
  makeMemory(options: MemoryOptions = {}): SharedMemory {
    const memory = new SharedMemory(options)
    this.#owned.push(() => memory.close())
    return memory
  }

  /** Makes memory and shares it by ADD_MEM_REG. */
  share(options: MemoryOptions = {}): Effect.Effect<SharedMemory> {
    return Effect.suspend(() => {
      const memory = this.makeMemory(options)
      this.shared.push(memory)
      return Effect.as(
        this.tell("ADD_MEM_REG", Message.encodeMemoryRegion(memory.region), { fds: [memory.fd] }),
        memory
      )
    })
  }

  /** An event counter that is closed with the front-end. */
  eventFd(): number {
    const fd = Libc.createEventFd()
    this.#owned.push(() => Libc.close(fd))
    return fd
  }

  /** Lays a ring out in memory that is shared, without telling the export of it. */
  makeQueue(options: RingOptions = {}): FrontendQueue {
    const { base = 0, index = this.queues.length, memory = this.shared[0], queueSize = 64 } = options
    if (memory === undefined) throw new Error("no memory is shared")
    const queue = new FrontendQueue(index, new FakeRing(memory, queueSize, base), () => this.eventFd())
    this.queues.push(queue)
    return queue
  }

  /** Makes a ring and starts it: size, base, addresses, descriptors, SET_VRING_ENABLE. Needs REPLY_ACK. */
  startQueue(options: RingOptions = {}): Effect.Effect<FrontendQueue> {
    return Effect.gen({ self: this }, function*() {
      const queue = this.makeQueue(options)
      const { callFd, errorFd, index, kickFd, ring } = queue
      const named = Message.encodeVringFd(index, true)
      yield* this.tell("SET_VRING_NUM", Message.encodeVringState(index, ring.queueSize))
      yield* this.tell("SET_VRING_BASE", Message.encodeVringState(index, options.base ?? 0))
      yield* this.tell("SET_VRING_ADDR", Message.encodeVringAddress({ index, flags: 0, log: 0, ...ring.addresses }))
      yield* this.tell("SET_VRING_CALL", named, { fds: [callFd] })
      yield* this.tell("SET_VRING_ERR", named, { fds: [errorFd] })
      yield* this.tell("SET_VRING_KICK", named, { fds: [kickFd] })
      if (options.enable !== false) yield* this.tell("SET_VRING_ENABLE", Message.encodeVringState(index, 1))
      // The export signals when it gets the descriptor.
      queue.signals()
      return queue
    })
  }

  /** Opens the channel on which the export asks; answers the front-end's end of it. */
  openChannel(): Effect.Effect<MessageStream> {
    return Effect.suspend(() => {
      const [own, other] = Libc.createSocketPair()
      const channel = new MessageStream(own)
      this.#owned.push(() => channel.close(), () => Libc.close(other))
      return Effect.as(this.tell("SET_BACKEND_REQ_FD", undefined, { fds: [other] }), channel)
    })
  }

  override close(): void {
    super.close()
    for (const release of this.#owned.splice(0)) release()
  }
}

/** Connects to an export's socket, or takes one that is connected. */
export const connect = (where: { readonly path: string } | { readonly fd: number }) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      if ("fd" in where) return new FakeFrontend(where.fd)
      const fd = Libc.createUnixSocket()
      const errno = Libc.connectUnixSocket(fd, where.path)
      if (errno === 0) return new FakeFrontend(fd)
      Libc.close(fd)
      throw new SyscallError("connect", errno)
    }),
    (frontend) => Effect.sync(() => frontend.close())
  )

/** What a started front-end is made with. */
export interface StartOptions extends Negotiation, RingOptions, MemoryOptions {}

/** Does with a connection what is needed until its first ring runs. */
export const start = Effect.fnUntraced(function*(frontend: FakeFrontend, options: StartOptions = {}) {
  const features = yield* frontend.negotiate(options)
  const memory = yield* frontend.share(options)
  const queue = yield* frontend.startQueue(options)
  return { frontend, features, memory, queue }
})

/** An export under test. */
export interface Served {
  readonly exported: Export.Export
  /** What has happened so far, in short: "connected", or the tag of the reason of a disconnection. */
  readonly log: ReadonlyArray<string>
  /** The reasons of the disconnections. */
  readonly reasons: ReadonlyArray<string>
  /** Waits until so many front-ends have gone. */
  readonly gone: (count: number) => Effect.Effect<void>
  /** Connects a front-end to it. */
  readonly connect: Effect.Effect<FakeFrontend, never, Scope.Scope>
  /** Connects a front-end and starts its first ring. */
  readonly start: (
    options?: StartOptions
  ) => Effect.Effect<Effect.Success<ReturnType<typeof start>>, never, Scope.Scope>
  /** Connects a new front-end that writes to the disk and reads it back: whatever came before, the export serves. */
  readonly serves: Effect.Effect<void>
}

/** Serves a store at a socket in a folder of its own. */
export const serve = Effect.fnUntraced(
  function*(store: BlockStore, options: Omit<Export.Options, "path" | "fd"> = {}) {
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "blkio-export-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
    )
    const exported = yield* Export.serve(store, { ...options, path: Path.join(folder, "disk.sock") })
    const log: Array<string> = []
    const reasons: Array<string> = []
    yield* exported.events.pipe(
      Stream.runForEach((event) =>
        Effect.sync(() => {
          log.push(event._tag === "connected" ? event._tag : event.reason._tag)
          if (event._tag === "disconnected") reasons.push(event.reason.message)
        })
      ),
      Effect.forkScoped({ startImmediately: true })
    )
    const connected = Effect.suspend(() => connect({ path: exported.path }))
    const started = (options?: StartOptions) => Effect.flatMap(connected, (frontend) => start(frontend, options))
    const served: Served = {
      exported,
      log,
      reasons,
      gone: (count) =>
        Effect.asVoid(eventually(`${count} front-ends to go`, () => reasons.length >= count ? true : undefined)),
      connect: connected,
      start: started,
      serves: Effect.scoped(Effect.gen(function*() {
        const { queue } = yield* started()
        const given = Uint8Array.from({ length: 512 }, (_, i) => i * 7 + reasons.length & 0xff)
        expect((yield* queue.do({ type: RequestType.OUT, sector: 1, given })).status).toBe(Status.OK)
        const { data, status } = yield* queue.do({ type: RequestType.IN, sector: 1, wanted: 512 })
        expect({ status, data }).toStrictEqual({ status: Status.OK, data: given })
      }))
    }
    return served
  },
  Effect.orDie
)
