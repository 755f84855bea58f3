/**
 * The engine of one queue: requests go into its ring, what the device answered goes to whoever asked, and one loop decides
 * how to wait for it. No Effect inside; `IoQueue` is its surface.
 *
 * ```
 * submit ──► ring ──► publish, notify (once per batch)
 *   │ full                                    ▲
 *   ▼                                         │ run: an immediate, or the microtask that follows a submission
 * waiting line (FIFO) ◄── slots freed ── reap ┘──► owners
 * ```
 *
 * Re-entrancy is the rule: an owner that hears of a completion submits its next request on the same stack. So a look at
 * the ring first takes all completions and frees their slots, then serves the waiting line, and calls owners last.
 *
 * Whoever wants completions may also look at the ring on its own stack ({@link QueueEngine.search}), within the event loop's
 * turn. A fiber that finds what it came for never waits, and waiting is what costs most.
 *
 * The three ways to wait differ in one place, {@link QueueEngine.#wait}: an event queue asks for a signal and sleeps, a poll
 * queue comes back on the next turn of the event loop, and an adaptive one looks for a bounded time and sleeps then.
 *
 * A device that is a program goes to sleep soon after it has answered its last request. With few requests in flight a queue
 * that looks keeps it awake: it is asked to signal although nobody sleeps, since its signal is a system call, and when that is over,
 * the next request may be there; and where it is not, the device is notified ahead ({@link Notifier}).
 *
 * Where the device comes back after its connection was lost, the queue goes on with another ring: what was in flight is kept
 * in the order of its submission ({@link QueueEngine.suspend}) and goes first into the new one ({@link QueueEngine.resume}).
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Errno from "../Errno.ts"
import { type AddressSpace, overlaps } from "../Memory/AddressSpace.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { Status } from "../Wire/VirtioBlk.ts"
import { type DriverRing, slotOf, statusOf } from "./DriverRing.ts"
import { look, LookAgain } from "./LookAgain.ts"
import { Notifier } from "./Notifier.ts"
import * as Request from "./Request.ts"
import { RequestWriter, segmentsOf } from "./RequestWriter.ts"
import type { UnflushedWrites } from "./UnflushedWrites.ts"

/**
 * How a queue waits for completions: asleep until the device signals, looking at the ring all the time, or looking for a
 * bounded time before it sleeps.
 *
 * @category models
 * @since 0.1.0
 */
export type Waiting = "event" | "poll" | "adaptive"

/**
 * Why a queue answers no request any more, and each one in flight failed: the backend is gone (ENOTCONN), silent
 * (ETIMEDOUT) or broken (EPROTO), the disk behind it was removed or there is no such queue (ENODEV), what came back after a
 * loss is not the same device (ESTALE), or the device was closed (ESHUTDOWN).
 *
 * @category errors
 * @since 0.1.0
 */
export type DeviceFailure =
  | Errno.ENOTCONN
  | Errno.ETIMEDOUT
  | Errno.EPROTO
  | Errno.ENODEV
  | Errno.ESTALE
  | Errno.ESHUTDOWN

/**
 * Why a single request failed. ETIME: the device did not answer it in time, and still holds its memory.
 *
 * @category errors
 * @since 0.1.0
 */
export type RequestFailure = Request.InvalidRequest | Errno.EIO | Errno.ETIME | DeviceFailure

/** Whoever submitted a request hears of its end here, once. May submit again at once; must not throw. */
export interface Owner {
  readonly completed: (request: Request.Request, failure: RequestFailure | undefined) => void
  /** Whether nobody waits for the requests any more, other than for the device to let go of their memory. */
  readonly isAbandoned: boolean
}

/** A place in the line of those who wait for room in the ring. Must not throw. */
export interface Waiter {
  /** Submits what fits; answers whether everything did, and the place is given up. */
  readonly place: () => boolean
  /** Called after `place` answered true, when others may be resumed. */
  readonly placed: () => void
  /** Called instead when the device is gone or closing. */
  readonly refused: (failure: DeviceFailure) => void
}

/** What a queue engine works with. */
export interface EngineOptions {
  readonly index: number
  readonly waiting: Waiting
  readonly ring: DriverRing
  readonly rules: Request.DeviceRules
  readonly memory: AddressSpace
  /** Notifies the device; answers 0 or an errno. */
  readonly notify: () => number
  /** The event counter that the device signals. */
  readonly completionFd: number
  /** Whether the device signals by a system call of the thread that looks for requests next. */
  readonly signalsInTurn: boolean
  /** Where writes are counted that a crash of the device may lose; undefined where it is not to come back. */
  readonly unflushed?: UnflushedWrites | undefined
  /** Hears that the device broke the protocol on this queue. */
  readonly onFault: (failure: Errno.EPROTO) => void
}

/** A request that was in flight when the connection was lost. */
interface Kept {
  readonly request: Request.Request
  readonly owner: Owner
  /** The slot that it has in the ring of the lost connection. */
  readonly slot: number
}

/** How long a poll queue looks at the ring before it gives the event loop a turn. */
const POLL_SLICE_MS = 0.05
/** How long a busy queue keeps the event loop to itself. */
const BUSY_SLICE_MS = 0.5
/** How many looks at a busy ring go by before the clock is looked at, which costs as much as several. */
const LOOKS_PER_CLOCK = 8
/** With more requests in flight than this, the device finds the next one without help, and signals would only delay it. */
const FEW_IN_FLIGHT = 4
/** Looks at the ring before the first look at the clock. */
const GLANCES = 32
/** Looks at the ring for as long as a device that was notified ahead may need to come to it: some system calls. */
const PUT_OFF_GLANCES = 200

/** The engine of one queue. */
export class QueueEngine {
  readonly index: number
  readonly waiting: Waiting
  readonly rules: Request.DeviceRules
  readonly size: number
  readonly completionFd: number
  readonly signalsInTurn: boolean
  /** Why the queue takes no requests; set once. */
  failure: DeviceFailure | undefined
  /** Counts every submission to an idle ring and every completion: stands still only while the device is silent. */
  progress = 0

  readonly #memory: AddressSpace
  readonly #notify: () => number
  readonly #unflushed: UnflushedWrites | undefined
  #ring: DriverRing
  #writer: RequestWriter
  #notifier: Notifier
  readonly #onFault: (failure: Errno.EPROTO) => void
  readonly #requests: Array<Request.Request | undefined>
  readonly #owners: Array<Owner | undefined>
  readonly #flushAfter: Uint8Array
  /** Counts the calls of {@link expire}. */
  #epoch = 0
  /** In which epoch a slot's request was submitted. */
  readonly #epochs: Float64Array
  /** When a slot's request was submitted, among all of this queue. */
  readonly #order: Float64Array
  /** What a slot's flush makes stable ({@link UnflushedWrites.mark}); -1 where it is no flush. */
  readonly #marks: Float64Array
  readonly #reaped: Uint32Array
  // The requests that ended in the current look, kept while their slots are in use again.
  readonly #endedRequests: Array<Request.Request | undefined>
  readonly #endedOwners: Array<Owner | undefined>
  readonly #line = new Set<Waiter>()
  /** Whether the connection is lost, and the device expected back. */
  #isAway = false
  #hasLetGo = false
  #isRingWhole = false
  /** What was in flight when the connection was lost, until it is in a ring again. */
  #kept: Array<Kept> = []
  #maxWaiting = Infinity
  /** Whether the next flush must say that acknowledged writes may be lost. */
  #hasLostWrites = false
  readonly #failureListeners = new Set<() => void>()
  readonly #conditions = new Map<() => void, () => boolean>()
  #after: Array<() => void> = []
  #watch: Poll.Watch | undefined
  /** Whether the ring is being taken from, with owners on the stack. */
  #reaping = false
  /** Whether the loop runs, and so comes to whatever is asked of it. */
  #running = false
  #microtask = false
  #immediate: NodeJS.Immediate | undefined
  #submitted = 0
  /** What `#submitted` was when requests ended last: still that, if those who heard of it gave nothing back. */
  #submittedAtReap = -1
  /** Whether somebody has looked for completions in vain since the last one. */
  #searched = false
  /** Whether somebody has found completions at once, so that the notification of what was submitted before was left for later. */
  #isNotifyingLater = false
  #turnEnds = 0
  #looksInTurn = 0
  readonly #lookAgain = new LookAgain()
  #foreign = false
  #awaited = 0
  #hasFailed = false

  constructor(options: EngineOptions) {
    const { queueSize } = options.ring
    this.index = options.index
    this.waiting = options.waiting
    this.rules = options.rules
    this.size = queueSize
    this.completionFd = options.completionFd
    this.#ring = options.ring
    this.#memory = options.memory
    this.#notify = options.notify
    this.#unflushed = options.unflushed
    this.#writer = new RequestWriter(options.ring, options.memory, options.rules)
    this.#notifier = new Notifier(options.ring, options.notify)
    this.#onFault = options.onFault
    this.signalsInTurn = options.signalsInTurn
    this.#requests = new Array<undefined>(queueSize).fill(undefined)
    this.#owners = new Array<undefined>(queueSize).fill(undefined)
    this.#flushAfter = new Uint8Array(queueSize)
    this.#epochs = new Float64Array(queueSize)
    this.#order = new Float64Array(queueSize)
    this.#marks = new Float64Array(queueSize)
    this.#reaped = new Uint32Array(queueSize)
    this.#endedRequests = new Array<undefined>(queueSize).fill(undefined)
    this.#endedOwners = new Array<undefined>(queueSize).fill(undefined)
    if (options.waiting !== "poll") this.#watch = Poll.watch(options.completionFd, { readable: true }, this.#onSignal)
  }

  /** Requests the device has not answered. */
  get outstanding(): number {
    return this.#kept.length + (this.#ring.fault === undefined ? this.#ring.outstanding : 0)
  }

  /** Whether the connection is lost, and the device expected back. */
  get isSuspended(): boolean {
    return this.#isAway
  }

  /** The errno of the last notification if it failed, else 0. */
  get notifyErrno(): number {
    return this.#notifier.errno
  }

  /** Tells what is wrong with a request, if anything. */
  check(request: Request.Request): Request.InvalidRequest | undefined {
    return Request.check(request, this.rules, this.#memory)
  }

  /** Whether somebody waits in line, so that whoever comes now must {@link join} it. */
  get isContended(): boolean {
    return this.#line.size > 0 || this.#kept.length > 0
  }

  /**
   * Takes a request that was checked, for a caller who may go first: while the queue is not {@link isContended}, or a
   * {@link Waiter} in its turn. Answers false where the ring is full. The device is notified when the batch is over.
   */
  submit(request: Request.Request, owner: Owner): boolean {
    if (this.#isAway) return false
    if (request._tag === "flush" && this.#hasLostWrites) {
      this.#hasLostWrites = false
      return this.#refuseRequest(request, owner, this.#lostWrites())
    }
    if (!this.#ring.fits(segmentsOf(request))) {
      if (this.#ring.outstanding > 0) return false
      return this.#refuseRequest(request, owner, this.#tooLarge(request))
    }
    if (this.#ring.outstanding === 0) {
      this.progress++
      this.#notifier.filling()
    }
    const slot = this.#writer.put(request)
    if (slot < 0) return this.#refuseRequest(request, owner, Request.unmapped(request))
    const { canFlush, writeCache } = this.rules
    const fua = ((request.flags ?? 0) & Request.RequestFlag.FUA) !== 0
    this.#flushAfter[slot] = fua && canFlush && writeCache ? 1 : 0
    this.#requests[slot] = request
    this.#owners[slot] = owner
    this.#epochs[slot] = this.#epoch
    this.#order[slot] = this.#submitted++
    this.#marks[slot] = request._tag === "flush" ? this.#mark : -1
    this.#searched = false
    this.wake()
    return true
  }

  /**
   * Shows the device at once what was submitted by those who hear of completions right now: it may then go on while others
   * hear of theirs. Whether it must be notified is seen to when the batch is over.
   */
  show(): void {
    if (this.#ring.fault === undefined) this.#ring.publish()
  }

  /** Joins the line of those who wait for room; refused where the device is away and enough wait for it. */
  join(waiter: Waiter): void {
    if (this.#isAway && this.#line.size >= this.#maxWaiting) {
      const detail = `the device is away, and ${this.#line.size} requests wait for it already`
      return waiter.refused(new Errno.ENOTCONN({ operation: "submit", queue: this.index, detail }))
    }
    this.#line.add(waiter)
    if (this.#foreign) this.wake()
  }

  /** Leaves that line, since whoever is next may fit where the leaver did not; answers false for who is not in it. */
  leave(waiter: Waiter): boolean {
    const wasWaiting = this.#line.delete(waiter)
    if (wasWaiting) {
      // The look that is being taken may have served the line already.
      if (this.#reaping) this.#runNextTurn()
      else this.wake()
    }
    return wasWaiting
  }

  /** Has the loop run soon: after the current batch of submissions, or in its turn where it is running or has had its time. */
  wake(): void {
    if (this.#running || this.#microtask || this.#immediate !== undefined) return
    this.#microtask = true
    queueMicrotask(this.#onMicrotask)
  }

  /**
   * Whether the event loop has waited long enough; if so, this queue goes on in its next turn. Whoever goes on looking for
   * completions without ever waiting must ask.
   */
  isTurnOver(): boolean {
    if (this.#immediate !== undefined) return true
    if (++this.#looksInTurn % LOOKS_PER_CLOCK !== 0 || performance.now() < this.#turnEnds) return false
    this.#runNextTurn()
    return true
  }

  /**
   * Takes what the device has answered on the caller's stack, and looks for more if that is nothing, as long as the queue's way of
   * waiting and the event loop's turn allow. Answers whether requests ended; if none, the loop goes on looking.
   */
  search(): boolean {
    if (this.#reaping || this.#ring.fault !== undefined) return false
    let ended = this.#reap()
    // Whoever takes completions comes back with more requests, and one notification does for all. But not twice in a row: the
    // device may sleep on what was submitted before. And not where this queue may sleep next.
    this.#isNotifyingLater = ended > 0 && this.#looks && !this.#isNotifyingLater
    if (!this.#isNotifyingLater) {
      this.#publish()
      if (ended === 0 && this.#mayLook && !this.isTurnOver()) {
        this.#searched = !this.#find()
        if (!this.#searched) ended = this.#reap()
      }
    }
    this.wake()
    return ended > 0
  }

  /** Calls `callback` once after the current batch of completions, or soon. */
  afterBatch(callback: () => void): void {
    this.#after.push(callback)
    this.wake()
  }

  /**
   * Calls `callback` once `condition` holds, which is looked at whenever requests have ended; answers how to stop waiting.
   */
  when(condition: () => boolean, callback: () => void): () => void {
    if (condition()) callback()
    else this.#conditions.set(callback, condition)
    return () => this.#conditions.delete(callback)
  }

  /** Calls `listener` when the device is given up; answers how to stop listening. */
  onFailure(listener: () => void): () => void {
    this.#failureListeners.add(listener)
    return () => this.#failureListeners.delete(listener)
  }

  /** The owner of a request in flight, or whoever waits in line, for whom `test` holds. */
  find<A extends Owner | Waiter>(test: (one: Owner | Waiter) => one is A): A | undefined {
    return [...this.#owners, ...this.#line, ...this.#kept.map(({ owner }) => owner)].find((one) =>
      one !== undefined && test(one)
    )
  }

  /** Tells whether a request in flight uses memory of `buffer`. */
  uses(buffer: ArrayBufferLike): boolean {
    return this.#holds((held) => held.buffer === buffer)
  }

  /** Whether a request in flight has a buffer for which `test` holds. */
  #holds(test: (buffer: Uint8Array) => boolean): boolean {
    return this.#requests.some((request) => request !== undefined && Request.buffersOf(request).some(test))
      || this.#kept.some(({ request }) => Request.buffersOf(request).some(test))
  }

  /**
   * Leaves the completion descriptor's signals to a foreign event loop, or takes them back. While they are left to it, the
   * engine looks at the ring when it is told to, and on every turn of the event loop as long as somebody awaits something
   * here.
   */
  setForeign(foreign: boolean): void {
    this.#foreign = foreign
    this.#watch?.change({ readable: !foreign })
    this.wake()
  }

  /** Tells that somebody awaits a completion here and not in a foreign loop, until {@link release}. */
  retain(): void {
    if (this.#awaited++ === 0 && this.#foreign) this.wake()
  }

  /** Ends a {@link retain}. */
  release(): void {
    this.#awaited--
  }

  /** Signals the foreign event loop that something is to be had, where the device does not. */
  signalForeign(): void {
    if (this.#foreign) Libc.signalEventFd(this.completionFd)
  }

  /** Refuses new requests and whoever waits in line; what is in flight goes on. */
  refuse(failure: DeviceFailure): void {
    this.failure ??= failure
    const waiters = [...this.#line]
    this.#line.clear()
    for (const waiter of waiters) waiter.refused(failure)
  }

  /** Gives up waiting for the requests that were submitted `age` or more calls ago, which is after `limit`. */
  expire(age: number, limit: Duration.Duration): void {
    // While the device is away, no time passes for what is kept.
    if (this.#ring.fault !== undefined) return
    this.#epoch++
    for (let slot = 0; slot < this.size; slot++) {
      const request = this.#requests[slot]
      const owner = this.#owners[slot]
      // Whoever has given up already waits for the memory alone.
      if (request === undefined || owner === undefined || owner.isAbandoned) continue
      if (this.#epoch - (this.#epochs[slot] ?? 0) < age) continue
      this.#owners[slot] = this.#nobody
      Request.buffersOf(request).forEach((buffer) => this.#memory.hold(buffer))
      const detail = `the device has not answered within ${Duration.format(limit)}`
      owner.completed(request, new Errno.ETIME({ ...Request.describe(request), queue: this.index, detail }))
    }
  }

  /** Whoever waited for a request has given up; the device has let go of its memory. */
  readonly #nobody: Owner = {
    isAbandoned: true,
    completed: (request) => Request.buffersOf(request).forEach((buffer) => this.#memory.release(buffer))
  }

  /** Calls `callback` once no request in flight uses memory of `buffer`; answers how to stop waiting. */
  whenReleased(buffer: Uint8Array, callback: () => void): () => void {
    return this.when(() => !this.#holds((held) => overlaps(held, buffer)), callback)
  }

  /**
   * Leaves the ring of a device whose connection is lost. What is in flight is kept, what comes waits in line, of which more
   * than `maxWaiting` are refused (ENOTCONN).
   */
  suspend(maxWaiting: number): void {
    if (this.#hasFailed) return
    // What it answered before it went counts.
    if (this.#ring.fault === undefined) this.#reap()
    if (this.#hasFailed) return
    this.#ring.fault = "the connection is lost"
    this.#isAway = true
    this.#maxWaiting = maxWaiting
    const kept: Array<Kept> = []
    for (let slot = 0; slot < this.size; slot++) {
      const request = this.#requests[slot]
      const owner = this.#owners[slot]
      if (request !== undefined && owner !== undefined) kept.push({ request, owner, slot })
    }
    // A request that did not find its place after the last loss is older than all of them.
    this.#kept.push(...kept.toSorted((a, b) => (this.#order[a.slot] ?? 0) - (this.#order[b.slot] ?? 0)))
    // A write whose flush is in the ring is written again.
    this.#isRingWhole = kept.length === this.#kept.length
      && kept.every(({ request, slot }) => request._tag === "flush" || this.#marks[slot] === -1)
    this.#requests.fill(undefined)
    this.#owners.fill(undefined)
  }

  /**
   * Hears that the device which is away has let go of all memory: what nobody waits for any more ends, and what it is not to have
   * again.
   */
  letGo(): void {
    this.#hasLetGo = true
    this.#endKept(({ owner }) => owner.isAbandoned ? null : undefined)
    this.dropUnreachable()
  }

  /** Answers those of the kept requests whose memory the device is not to have any more, once it has let go of it. */
  dropUnreachable(): void {
    if (this.#hasLetGo) this.#endKept(({ request }) => this.check(request))
  }

  /** Hears that nobody waits for the requests of an owner any more: what the device has let go of ends at once. */
  abandon(owner: Owner): void {
    if (this.#hasLetGo) this.#endKept((one) => one.owner === owner ? null : undefined)
  }

  /** Ends the kept requests for which `endOf` gives a failure, or null where nobody wants to know. */
  #endKept(endOf: (one: Kept) => RequestFailure | null | undefined): void {
    const before = this.#kept
    this.#kept = []
    for (const one of before) {
      const end = endOf(one)
      if (end === undefined) this.#kept.push(one)
      else if (end === null) one.owner.completed(one.request, undefined)
      else this.#refuseRequest(one.request, one.owner, end)
    }
    // What is not kept must not be done by a device that finds it in the ring.
    if (this.#kept.length < before.length) this.#isRingWhole = false
    this.#checkConditions()
  }

  /** Hears that the device is about to have the ring that was left again, and the memory of what is in it. */
  handBack(): void {
    this.#hasLetGo = false
  }

  /** Whether the ring that was left holds what is kept, and nothing else. */
  get isRingWhole(): boolean {
    return this.#isAway && this.#isRingWhole
  }

  /**
   * Goes on with a device that has come back: on `ring`, which is empty, or on the ring that was left, where the device has a
   * record of what it has taken. `hasLostWrites` says that it has acknowledged writes which it may have lost: the flushes that
   * were in flight fail, or else the next one.
   */
  resume(ring: DriverRing | undefined, hasLostWrites: boolean): void {
    if (!this.#isAway || this.#hasFailed) return
    this.#isAway = false
    this.#hasLetGo = false
    this.progress++
    if (ring === undefined) this.#ring.fault = undefined
    else {
      this.#ring = ring
      this.#writer = new RequestWriter(ring, this.#memory, this.rules)
    }
    this.#notifier = new Notifier(this.#ring, this.#notify)
    const lying = hasLostWrites ? this.#kept.filter(({ request }) => request._tag === "flush") : []
    this.#hasLostWrites ||= hasLostWrites && lying.length === 0
    for (const { owner, request } of lying) this.#refuseRequest(request, owner, this.#lostWrites())
    if (ring === undefined) {
      for (const one of this.#kept) {
        this.#requests[one.slot] = one.request
        this.#owners[one.slot] = lying.includes(one) ? this.#nobody : one.owner
      }
      this.#kept = []
      this.#notify()
    } else {
      this.#kept = this.#kept.filter((one) => !lying.includes(one))
    }
    this.wake()
  }

  /** Submits what was kept, as far as there is room. */
  #placeKept(): boolean {
    for (let first = this.#kept[0]; first !== undefined; first = this.#kept[0]) {
      const wrong = this.check(first.request)
      if (wrong !== undefined) this.#refuseRequest(first.request, first.owner, wrong)
      else if (!this.submit(first.request, first.owner)) return false
      this.#kept.shift()
    }
    return true
  }

  /** Gives the device up: everything in flight fails with `failure`, and the ring is not looked at again. */
  fail(failure: DeviceFailure): void {
    if (this.#hasFailed) return
    this.#hasFailed = true
    this.#ring.fault ??= failure.message
    this.failure = failure
    this.refuse(failure)
    this.#isAway = false
    const kept = this.#kept.splice(0)
    for (const { owner, request } of kept) owner.completed(request, failure)
    const requests = this.#requests.splice(0)
    const owners = this.#owners.splice(0)
    for (const [slot, owner] of owners.entries()) {
      const request = requests[slot]
      if (owner !== undefined && request !== undefined) owner.completed(request, failure)
    }
    for (const listener of Array.from(this.#failureListeners)) listener()
    this.#callAfter()
    this.#checkConditions()
    this.signalForeign()
    this.stop()
  }

  /** Ends the engine's share of the event loop. */
  stop(): void {
    clearImmediate(this.#immediate)
    this.#immediate = undefined
    this.#watch?.close()
    this.#watch = undefined
  }

  readonly #onSignal = (): void => {
    Libc.drainEventFd(this.completionFd)
    this.#runNextTurn()
  }

  readonly #onMicrotask = (): void => {
    this.#microtask = false
    this.#run()
  }

  readonly #onImmediate = (): void => {
    this.#immediate = undefined
    this.#run()
  }

  #runNextTurn(): void {
    this.#immediate ??= setImmediate(this.#onImmediate)
  }

  /** Looks at the ring and tells whoever waits for it, until there is nothing left to do in this turn. */
  #run(): void {
    this.#running = true
    this.#turnEnds = performance.now() + BUSY_SLICE_MS
    this.#searched = false
    if (this.#ring.fault === undefined) this.#ring.disarm()
    let goesOn: boolean
    do {
      this.#callAfter()
      // Once the device was given up, the ring's memory may be gone.
      goesOn = this.#ring.fault === undefined && this.#step()
    } while (goesOn || this.#after.length > 0)
    this.#running = false
  }

  /** Reaps, notifies, and waits in the queue's way. Answers whether to go on at once. */
  #step(): boolean {
    if (this.isTurnOver()) {
      this.#publish()
      this.#notifier.insist()
      return false
    }
    this.#reap()
    if (this.#ring.fault !== undefined) return false
    this.#publish()
    // They may have more to submit.
    if (this.#after.length > 0) return true
    if (this.#ring.outstanding > 0) return this.#wait()
    this.#notifier.rested()
    return false
  }

  /** Waits for completions; answers whether some are there, or the event loop has to turn first. */
  #wait(): boolean {
    const ring = this.#ring
    if (!this.#searched && this.#mayLook && this.#find()) return true
    this.#notifier.insist()
    if (this.waiting === "poll" && !this.#foreign) {
      this.#runNextTurn()
      return false
    }
    if (ring.arm() && !this.#foreign) return true
    if (ring.pending || (this.#foreign && (this.#awaited > 0 || this.isContended))) this.#runNextTurn()
    return false
  }

  /** Whether this queue looks at the ring instead of sleeping. */
  get #looks(): boolean {
    return this.waiting !== "event" && !this.#foreign
  }

  /** Whether looking may pay: those who took completions and gave nothing back need the event loop for it. */
  get #mayLook(): boolean {
    return this.#looks && this.outstanding > 0 && this.#submitted !== this.#submittedAtReap
  }

  /** Looks at the ring for as long as the way of waiting allows; answers whether something is there. */
  #find(): boolean {
    const ring = this.#ring
    const notifier = this.#notifier
    if (this.signalsInTurn && ring.outstanding <= FEW_IN_FLIGHT && ring.arm()) return true
    const glances = notifier.isPutOff ? PUT_OFF_GLANCES : GLANCES
    for (let i = 0; i < glances; i++) {
      if (ring.pending) return true
      notifier.reconsider()
    }
    notifier.insist()
    return this.waiting === "adaptive" ? this.#lookAgain.find(ring) : look(ring, performance.now(), POLL_SLICE_MS)
  }

  /** Takes what the device answered, serves the line, tells the owners. Answers how many requests ended. */
  #reap(): number {
    const count = this.#ring.drain(this.#reaped)
    if (count < 0) {
      const detail = this.#ring.fault ?? "the ring is broken"
      const failure = new Errno.EPROTO({ operation: "reap", queue: this.index, detail })
      // Before others hear of it, who may submit here: the ring has free slots whose owners have not heard.
      this.failure ??= failure
      this.#onFault(failure)
      return 0
    }
    if (count === 0 && !this.isContended) return 0
    this.#reaping = true
    if (count > 0) {
      this.progress++
      this.#submittedAtReap = this.#submitted
      this.#searched = false
      if (this.#ring.outstanding === 0) this.#notifier.ranEmpty(this.signalsInTurn && this.#looks)
    }
    // Those that wait for their flush are kept from the end down: putting it now could take a slot of this very look.
    let ended = 0
    let unstable = this.size
    for (let i = 0; i < count; i++) {
      const completion = this.#reaped[i] ?? 0
      const slot = slotOf(completion)
      const request = this.#requests[slot]
      const owner = this.#owners[slot]
      if (request === undefined || owner === undefined) continue
      this.#requests[slot] = undefined
      this.#owners[slot] = undefined
      if (this.#flushAfter[slot] === 1 && statusOf(completion) === Status.OK) {
        this.#endedRequests[--unstable] = request
        this.#endedOwners[unstable] = owner
        continue
      }
      if (this.#unflushed !== undefined && statusOf(completion) === Status.OK) {
        this.#count(this.#unflushed, slot, request)
      }
      this.#reaped[ended] = completion
      this.#endedRequests[ended] = request
      this.#endedOwners[ended++] = owner
    }
    for (let i = this.size - 1; i >= unstable; i--) this.#flushForFua(i)
    this.#serveLine()
    for (let i = 0; i < ended; i++) {
      const request = this.#endedRequests[i]
      const owner = this.#endedOwners[i]
      if (request === undefined || owner === undefined) continue
      this.#endedRequests[i] = undefined
      this.#endedOwners[i] = undefined
      const status = statusOf(this.#reaped[i] ?? 0)
      owner.completed(request, status === Status.OK ? undefined : Request.failureOf(request, status, this.index))
    }
    this.#reaping = false
    if (count > 0 && this.#conditions.size > 0) this.#checkConditions()
    return ended
  }

  /** Follows a write by the flush that makes it stable; the completed write has left room for it. */
  #flushForFua(ended: number): void {
    const slot = this.#ring.putFlush()
    this.#flushAfter[slot] = 0
    this.#epochs[slot] = this.#epoch
    this.#order[slot] = this.#submitted++
    this.#marks[slot] = this.#mark
    this.#requests[slot] = this.#endedRequests[ended]
    this.#owners[slot] = this.#endedOwners[ended]
    this.#endedRequests[ended] = undefined
    this.#endedOwners[ended] = undefined
  }

  get #mark(): number {
    return this.#unflushed?.mark ?? 0
  }

  /** Counts a write that the device has acknowledged, or a flush that has made such writes stable. */
  #count(unflushed: UnflushedWrites, slot: number, request: Request.Request): void {
    const mark = this.#marks[slot] ?? -1
    if (mark >= 0) unflushed.flushed(mark)
    else if (request._tag !== "read" && request._tag !== "readv") unflushed.acknowledge()
  }

  #serveLine(): void {
    if (this.#kept.length > 0 && !this.#placeKept()) return
    while (this.#line.size > 0) {
      const [first] = this.#line
      if (first === undefined || !first.place()) return
      this.#line.delete(first)
      first.placed()
    }
  }

  #publish(): void {
    if (this.#ring.fault !== undefined) return
    this.#notifier.publish()
    // It is made in the loop, at the latest.
    if (this.#notifier.isPutOff) this.wake()
  }

  #callAfter(): void {
    if (this.#after.length === 0) return
    const callbacks = this.#after
    this.#after = []
    for (const callback of callbacks) callback()
  }

  #checkConditions(): void {
    for (const [callback, condition] of Array.from(this.#conditions)) {
      if (condition() && this.#conditions.delete(callback)) callback()
    }
  }

  /** Answers a request that cannot be queued; not on the stack of whoever is being served in line. */
  #refuseRequest(request: Request.Request, owner: Owner, failure: RequestFailure): true {
    this.afterBatch(() => owner.completed(request, failure))
    return true
  }

  /** The error of a flush that cannot make stable what the device may have lost. */
  #lostWrites(): Errno.EIO {
    const detail = "the backend went away and may have lost writes that it had acknowledged and not flushed"
    return new Errno.EIO({ operation: "flush", queue: this.index, detail })
  }

  /** The error of a request that does not even fit an empty ring. */
  #tooLarge(request: Request.Request): Errno.EINVAL {
    const detail = `the request needs more descriptors than queue-size ${this.size}`
    return new Errno.EINVAL({ ...Request.describe(request), queue: this.index, detail })
  }
}
