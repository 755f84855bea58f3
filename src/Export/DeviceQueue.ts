/**
 * One request queue of an export: takes requests from its ring, has them executed, and hands them back.
 *
 * ```
 * kick ──► run: an immediate ──► take ──► execute ──► (fiber of the store's Effect) ──► use, status
 *              ▲                                                  │ publish, signal once per batch
 *              └── what ended, and what the store has room for ◄──┘
 * ```
 *
 * At most `maxInFlight` requests are with the store at once; what is more stays in the ring, where it takes nobody's memory.
 * While none is with the store, the queue looks at the ring for a moment before it sleeps; otherwise it leaves the event loop
 * to the store.
 *
 * A queue is started by its kick descriptor and stopped by GET_VRING_BASE (vhost-user: Ring states); between the two it may
 * be disabled, and paused while memory is mapped anew. Whoever stops or pauses it waits until it is idle
 * ({@link DeviceQueue.isIdle}).
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { StoreError } from "../BlockStore/Interface.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { LookAgain } from "../Queue/LookAgain.ts"
import { isPowerOfTwo, MAX_QUEUE_SIZE, wrap16 } from "../Wire/SplitRing.ts"
import { Status, STATUS_BYTES } from "../Wire/VirtioBlk.ts"
import { type BlkRequest, decode, uses } from "./BlkRequest.ts"
import { Chain, DeviceRing } from "./DeviceRing.ts"
import type { GuestMemory, Region } from "./GuestMemory.ts"
import type { InflightQueue } from "./InflightArea.ts"

/** How a queue waits for requests: asleep until it is kicked, or looking for a bounded time before it sleeps. */
export type Waiting = "event" | "adaptive"

/** What was asked of a request, done at once or an Effect to do it. */
export type Execution = number | Effect.Effect<void, StoreError>

/** What a queue works with. */
export interface QueueOptions {
  readonly index: number
  readonly memory: GuestMemory
  readonly maxInFlight: number
  readonly waiting: Waiting
  /** Does what a request asks for, or answers its status. */
  readonly execute: (request: BlkRequest) => Execution
  /** Starts an Effect of the store. */
  readonly run: (effect: Effect.Effect<void, StoreError>) => Fiber.Fiber<void, StoreError>
  /** Hears of each request that ended. */
  readonly onEnd: (request: BlkRequest, status: number, cause: Cause.Cause<StoreError> | undefined) => void
  /** Hears that the driver broke the protocol on this queue, which does nothing from then on. */
  readonly onFault: (fault: string) => void
}

/** A request that is with the store. */
interface InFlight {
  readonly request: BlkRequest
  readonly fiber: Fiber.Fiber<void, StoreError> | undefined
}

/** How long a busy queue keeps the event loop to itself. */
const BUSY_SLICE_MS = 0.5
/**
 * The most requests that are taken before those that ended are shown to the driver, which goes on with them meanwhile. With a
 * memory store and 32 in flight, 64 gave a third of the throughput of 8 or 16.
 */
const MAX_BATCH = 8

/** One request queue. */
export class DeviceQueue {
  readonly index: number
  /** INDIRECT_DESC and EVENT_IDX, as they were negotiated; they count from the next start. */
  indirect = false
  eventIdx = false

  readonly #options: QueueOptions
  readonly #inFlight = new Map<number, InFlight>()
  readonly #chain = new Chain()
  readonly #lookAgain = new LookAgain()
  readonly #idle = new Map<() => void, () => boolean>()
  #size = 0
  #base = 0
  #addresses: { readonly descriptors: number; readonly avail: number; readonly used: number } | undefined
  #ring: DeviceRing | undefined
  #inflight: InflightQueue | undefined
  #resubmit: Array<number> = []
  #isStarted = false
  #isEnabled = false
  #isPaused = false
  #isClosed = false
  #kick: { readonly fd: number; readonly watch: Poll.Watch } | undefined
  #call: number | undefined
  #error: number | undefined
  #immediate: NodeJS.Immediate | undefined
  #running = false
  #hasEnded = false
  #isDeaf = false

  constructor(options: QueueOptions) {
    this.index = options.index
    this.#options = options
  }

  /** Requests that are with the store. */
  get inFlight(): number {
    return this.#inFlight.size
  }

  /** Whether nothing is with the store, and the driver was shown all that was. */
  get isIdle(): boolean {
    return this.#inFlight.size === 0 && !this.#hasEnded
  }

  /** Sets the number of descriptors; answers what is wrong with it, if anything. */
  setSize(size: number): string | undefined {
    if (this.#isStarted) return "the ring has started"
    if (!isPowerOfTwo(size) || size > MAX_QUEUE_SIZE) {
      return `${size}: must be a power of two from 1 to ${MAX_QUEUE_SIZE}`
    }
    this.#size = size
    return undefined
  }

  /** Sets the next entry of the avail ring to take. */
  setBase(base: number): string | undefined {
    if (this.#isStarted) return "the ring has started"
    if (base > 0xffff) return `${base}: must be from 0 to 65535`
    this.#base = base
    return undefined
  }

  /** Sets where the ring lies, by user addresses. A ring that has started goes on there. */
  setAddresses(addresses: { readonly descriptors: number; readonly avail: number; readonly used: number }) {
    this.#addresses = addresses
    return this.#ring === undefined ? this.#check() : this.#relocate()
  }

  /** Gives the area in which requests in flight are noted, and those to be executed once more. */
  setInflight(inflight: InflightQueue | undefined): void {
    this.#inflight = inflight
  }

  /**
   * Takes the descriptor by which the driver notifies, and starts the ring; without one the ring is looked at all the time.
   * Answers what is wrong with the ring, if anything. Throws a SyscallError where the descriptor cannot be watched.
   */
  start(fd: number | undefined): string | undefined {
    this.#closeKick()
    if (fd !== undefined) {
      try {
        this.#kick = { fd, watch: Poll.watch(fd, { readable: true }, this.#onKick) }
      } catch (error) {
        Libc.close(fd)
        throw error
      }
    }
    this.#isStarted = true
    if (this.#ring === undefined) {
      const wrong = this.#lay()
      if (wrong !== undefined) {
        this.#isStarted = false
        this.#closeKick()
        return wrong
      }
    }
    this.wake()
    return undefined
  }

  /** Takes the descriptor by which the driver is notified. */
  setCall(fd: number | undefined): void {
    if (this.#call !== undefined) Libc.close(this.#call)
    this.#call = fd
    // What was used while there was none must not stay unnoticed.
    this.#signal()
  }

  /** Takes the descriptor by which the driver is told that the ring is broken. */
  setError(fd: number | undefined): void {
    if (this.#error !== undefined) Libc.close(this.#error)
    this.#error = fd
  }

  enable(isEnabled: boolean): void {
    this.#isEnabled = isEnabled
    this.wake()
  }

  /** Takes no more requests until {@link resume}. */
  pause(): void {
    this.#isPaused = true
  }

  /** Goes on where {@link pause} left off, in memory that may have been mapped anew; answers what is wrong there. */
  resume(): string | undefined {
    this.#isPaused = false
    const wrong = this.#isStarted ? this.#relocate() : undefined
    this.wake()
    return wrong
  }

  /** Ends the ring, which must be idle. Answers the next entry of the avail ring. */
  stop(): number {
    this.#base = this.#ring?.availIdx ?? this.#base
    this.#ring = undefined
    this.#isStarted = false
    this.#isPaused = false
    this.#isDeaf = false
    this.#closeKick()
    return this.#base
  }

  /** Whether a region is needed: the ring lies in it, or a request that is with the store uses it. */
  uses(region: Region): boolean {
    for (const { request } of this.#inFlight.values()) if (uses(request, region)) return true
    return false
  }

  /** Whether the ring lies in a region. */
  liesIn(region: Region): boolean {
    return this.#ring?.regions.includes(region) === true
  }

  /** Calls `callback` once `condition` holds, which is looked at whenever a request has ended; answers how to stop waiting. */
  when(condition: () => boolean, callback: () => void): () => void {
    if (condition()) callback()
    else this.#idle.set(callback, condition)
    return () => this.#idle.delete(callback)
  }

  /** Gives the ring up: no request is taken or answered any more. Answers the fibers that are to be waited for. */
  close(): ReadonlyArray<Fiber.Fiber<void, StoreError>> {
    if (this.#isClosed) return []
    this.#isClosed = true
    this.#ring = undefined
    clearImmediate(this.#immediate)
    this.#closeKick()
    this.setError(undefined)
    if (this.#call !== undefined) Libc.close(this.#call)
    this.#call = undefined
    return [...this.#inFlight.values()].flatMap(({ fiber }) => fiber === undefined ? [] : [fiber])
  }

  /** Has the ring looked at soon. */
  wake(): void {
    if (this.#running || this.#isClosed) return
    this.#immediate ??= setImmediate(this.#onImmediate)
  }

  readonly #onKick = (): void => {
    if (this.#kick === undefined) return
    if (!Libc.drainEventFd(this.#kick.fd)) {
      // It would wake us for ever. What follows happens on a turn of the event loop of its own.
      this.#kick.watch.change({})
      this.#isDeaf = true
    }
    this.wake()
  }

  readonly #onImmediate = (): void => {
    this.#immediate = undefined
    this.#run()
  }

  #closeKick(): void {
    this.#kick?.watch.close()
    if (this.#kick !== undefined) Libc.close(this.#kick.fd)
    this.#kick = undefined
  }

  /** What is wrong with where the ring lies, as far as that is known. */
  #check(): string | undefined {
    if (this.#size === 0) return undefined
    const ring = this.#make(this.#base)
    return typeof ring === "string" ? ring : undefined
  }

  #make(availIdx: number): DeviceRing | string {
    if (this.#size === 0) return "the ring has no size"
    if (this.#addresses === undefined) return "the ring has no addresses"
    const { eventIdx, indirect } = this
    return DeviceRing.make(this.#options.memory, {
      ...this.#addresses,
      queueSize: this.#size,
      indirect,
      eventIdx,
      availIdx
    })
  }

  #lay(): string | undefined {
    const ring = this.#make(this.#base)
    if (typeof ring === "string") return ring
    this.#ring = ring
    const left = this.#inflight?.recover(this.#size, ring.usedIdx) ?? []
    this.#resubmit = [...left]
    if (left.length === 0) return undefined
    // What is to be done again was taken before; the rest begins after it.
    this.#base = wrap16(ring.usedIdx + left.length)
    return this.#relocate(this.#base)
  }

  /** Lays the ring anew where its memory is now. */
  #relocate(availIdx = this.#ring?.availIdx ?? this.#base): string | undefined {
    // The new one begins with what the driver was shown.
    if (this.#ring !== undefined) this.#publish(this.#ring)
    const ring = this.#make(availIdx)
    if (typeof ring === "string") return ring
    this.#ring = ring
    return undefined
  }

  /** Shows the driver what was handed back. */
  #publish(ring: DeviceRing): void {
    if (ring.publish()) this.#signal()
    this.#inflight?.published(ring.usedIdx)
  }

  #signal(): void {
    // A descriptor that cannot be written is the driver's own loss.
    if (this.#call !== undefined) Libc.signalEventFd(this.#call)
  }

  #fault(fault: string): void {
    this.#ring = undefined
    this.#closeKick()
    if (this.#error !== undefined) Libc.signalEventFd(this.#error)
    this.#options.onFault(`queue ${this.index}: ${fault}`)
  }

  get #mayTake(): boolean {
    return this.#isEnabled && !this.#isPaused && this.#inFlight.size < this.#options.maxInFlight
  }

  #run(): void {
    this.#running = true
    const began = performance.now()
    for (;;) {
      const ring = this.#ring
      if (ring === undefined) break
      if (this.#isDeaf) ring.fault = "its kick descriptor cannot be read"
      if (this.#isEnabled && !this.#isPaused) ring.disarm()
      const taken = ring.fault === undefined ? this.#take(ring) : 0
      if (ring.fault !== undefined) {
        this.#fault(ring.fault)
        break
      }
      if (ring !== this.#ring) break
      this.#publish(ring)
      // Whatever ends next, or changes the ring's state, has it looked at again.
      if (!this.#mayTake) break
      const isBusy = taken === MAX_BATCH || this.#find(ring)
      if (!isBusy && this.#kick !== undefined && !ring.arm()) break
      if (performance.now() - began < BUSY_SLICE_MS && isBusy) continue
      this.#immediate ??= setImmediate(this.#onImmediate)
      break
    }
    this.#running = false
    this.#checkIdle()
  }

  #find(ring: DeviceRing): boolean {
    if (this.#options.waiting === "event" || this.#inFlight.size > 0) return ring.pending
    return this.#lookAgain.find(ring)
  }

  /** Takes what there is room for; answers how much that was. */
  #take(ring: DeviceRing): number {
    let taken = 0
    while (taken < MAX_BATCH && this.#mayTake && this.#ring === ring) {
      const again = this.#resubmit.shift()
      if (again === undefined ? !ring.take(this.#chain) : !ring.follow(again, this.#chain)) break
      if (this.#inFlight.has(this.#chain.head)) {
        ring.fault = `head ${this.#chain.head} is in flight already`
        break
      }
      taken++
      const request = decode(this.#chain)
      if (again === undefined) this.#inflight?.begin(request.head)
      this.#start(request)
    }
    return taken
  }

  #start(request: BlkRequest): void {
    const { run } = this.#options
    const execution = this.#execute(request)
    if (typeof execution === "number") return this.#end(request, execution, undefined)
    const fiber = run(execution)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) return this.#ended(request, exit)
    this.#inFlight.set(request.head, { request, fiber })
    fiber.addObserver((late) => {
      this.#inFlight.delete(request.head)
      this.#ended(request, late)
      this.#hasEnded = true
      this.wake()
    })
  }

  /** A store that throws, where it should have failed, is no reason to leave the ring in the middle of it. */
  #execute(request: BlkRequest): Execution {
    try {
      return this.#options.execute(request)
    } catch (defect) {
      return Effect.die(defect)
    }
  }

  #ended(request: BlkRequest, exit: Exit.Exit<void, StoreError>): void {
    if (exit._tag === "Success") return this.#end(request, Status.OK, undefined)
    const isUnsupported = exit.cause.reasons.some((reason) => reason._tag === "Fail" && reason.error._tag === "ENOTSUP")
    this.#end(request, isUnsupported ? Status.UNSUPP : Status.IOERR, exit.cause)
  }

  /** Writes a request's status and hands it back. */
  #end(request: BlkRequest, status: number, cause: Cause.Cause<StoreError> | undefined): void {
    const ring = this.#ring
    // Given up meanwhile: nobody is answered, and nothing counts as answered.
    if (ring === undefined) return
    this.#options.onEnd(request, status, cause)
    const { head, statusPosition, statusRegion, wantedLength } = request
    if (statusRegion === undefined) ring.use(head, 0)
    else {
      statusRegion.bytes[statusPosition] = status
      ring.use(head, status === Status.OK ? wantedLength + STATUS_BYTES : STATUS_BYTES)
    }
    this.#inflight?.used(head)
  }

  #checkIdle(): void {
    if (!this.#hasEnded) return
    this.#hasEnded = false
    for (const [callback, condition] of Array.from(this.#idle)) {
      if (condition() && this.#idle.delete(callback)) callback()
    }
  }
}
