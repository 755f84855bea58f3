/**
 * Requests in, completions out: the common part of `IoQueue.process` and of `submit` and `completions` by hand.
 *
 * A fiber may yield before any operation, so also between looking for something and waiting for it. Whatever waits here
 * therefore looks once more when it begins to wait.
 *
 * What is in flight is bounded by the ring; what is answered but not yet taken is bounded too, since no more than a ring's
 * worth may be unread before further submissions wait. So at most twice the ring's size exists at any time.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Errno from "../Errno.ts"
import type { DeviceFailure, Owner, QueueEngine, RequestFailure, Waiter } from "./QueueEngine.ts"
import type { Request } from "./Request.ts"

/**
 * How a request ended: `error` is undefined where it succeeded.
 *
 * @category models
 * @since 0.1.0
 */
export interface Completion<out R extends Request> {
  /** The request, the very object that was submitted. */
  readonly request: R
  readonly error: RequestFailure | undefined
}

/**
 * How many completions to take, and how long to wait for them.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompletionsOptions {
  /** Wait until there are this many. Default 1; 0 takes what is there. */
  readonly min?: number
  /** Take no more than this many. Default: all there are. */
  readonly max?: number
  /** Fail with ETIME where `min` are not there in time. Default: wait as long as the device lives. */
  readonly timeout?: Duration.Input
}

type NonEmpty<A> = readonly [A, ...Array<A>]
type Resume = (exit: Exit.Exit<void, DeviceFailure>) => void

/** Requests of one submitter or of several, and their completions until they are taken. @internal */
export class CompletionSession<R extends Request> implements Owner {
  isAbandoned = false
  readonly #engine: QueueEngine
  #ready: Array<Completion<R>> = []
  #inFlight = 0
  #waitingRequests = 0
  /** Those who wait for completions to be taken before they submit more. */
  readonly #unread = new Set<() => void>()
  /** Those who wait for completions by hand. */
  readonly #readers = new Set<() => void>()
  /** The stream's consumer, while it waits. */
  #consumer: (() => void) | undefined
  #wakeIsDue = false
  /** Whether a reader is looking at the ring and takes what is found. */
  #isTaking = false
  #end: Exit.Exit<never, unknown> | undefined
  /** Why the device took requests with it. */
  #lost: DeviceFailure | undefined

  constructor(engine: QueueEngine) {
    this.#engine = engine
  }

  /** Whether completions wait to be taken. */
  get hasCompletions(): boolean {
    return this.#ready.length > 0
  }

  submit(requests: ReadonlyArray<R>): Effect.Effect<void, DeviceFailure> {
    return Effect.suspend(() => {
      if (this.#engine.failure !== undefined) return Exit.fail(this.#engine.failure)
      const rest = this.#begin(requests)
      return rest === undefined ? Exit.void : this.#submitRest(rest)
    })
  }

  /** Submits whatever `upstream` gives, as there is room for it, until one of the two ends. */
  feed<E, R2>(
    upstream: Effect.Effect<ReadonlyArray<R>, E, R2>
  ): Effect.Effect<never, E | DeviceFailure, R2> {
    let rest: Batch<R> | undefined
    return Effect.whileLoop<ReadonlyArray<R> | void, E | DeviceFailure, R2>({
      while: () => true,
      body: () => rest === undefined ? upstream : this.#submitRest(rest),
      step: (requests) => {
        rest = requests === undefined ? undefined : this.#begin(requests)
      }
      // It has no end but a failure.
    }) as Effect.Effect<never, E | DeviceFailure, R2>
  }

  /** Submits what may be submitted at once; answers the batch where something is left. */
  #begin(requests: ReadonlyArray<R>): Batch<R> | undefined {
    const batch = new Batch(this, requests)
    batch.advance()
    return batch.isDone ? undefined : batch
  }

  #submitRest(batch: Batch<R>): Effect.Effect<void, DeviceFailure> {
    return Effect.whileLoop({
      while: () => !batch.isDone,
      body: () => this.#waitForRoom(batch),
      step: () => batch.advance()
    }).pipe(Effect.onExit(() => Effect.sync(() => batch.abandon())))
  }

  #waitForRoom(batch: Batch<R>): Effect.Effect<void, DeviceFailure> {
    return Effect.callback((resume: Resume) => {
      if (this.#engine.failure !== undefined) return resume(Exit.fail(this.#engine.failure))
      // There may be room since the fiber looked, and nothing in flight that would tell.
      batch.advance()
      if (batch.isDone) return resume(Exit.void)
      if (this.isFull) {
        const leave = () => {
          this.#unread.delete(proceed)
          forget()
        }
        const proceed = () => {
          leave()
          resume(Exit.void)
        }
        const forget = this.#engine.onFailure(proceed)
        this.#unread.add(proceed)
        return Effect.sync(leave)
      }
      const waiter: Waiter = {
        place: () => batch.place(),
        placed: () => resume(Exit.void),
        refused: (failure) => resume(Exit.fail(failure))
      }
      this.#engine.join(waiter)
      return Effect.sync(() => this.#engine.leave(waiter))
    })
  }

  /** Submits one request; answers whether there was room. */
  offer(request: R): boolean {
    const wrong = this.#engine.check(request)
    if (wrong !== undefined || (request._tag === "flush" && !this.#engine.rules.canFlush)) {
      this.#add(request, wrong)
      return true
    }
    this.#inFlight++
    const isTaken = this.#engine.submit(request, this)
    if (!isTaken) this.#inFlight--
    return isTaken
  }

  /** Shows the device what was offered. */
  show(): void {
    this.#engine.show()
  }

  /** Whether as many completions wait to be taken as the ring has places. */
  get isFull(): boolean {
    return this.#ready.length >= this.#engine.size
  }

  /** Whether submitters must join the engine's line. */
  get isContended(): boolean {
    return this.#engine.isContended
  }

  /** Whether the device takes no requests any more. */
  get isEnded(): boolean {
    return this.#engine.failure !== undefined
  }

  /** Counts requests whose submitter waits. */
  countWaiting(difference: number): void {
    this.#waitingRequests += difference
  }

  completed(request: Request, failure: RequestFailure | undefined): void {
    this.#inFlight--
    if (failure !== undefined && failure === this.#engine.failure) {
      this.#lost = this.#engine.failure
      this.#wakeReaders()
    } else {
      // The engine gives back the object it was given, which was an R.
      this.#add(request as R, failure)
    }
  }

  #add(request: R, error: RequestFailure | undefined): void {
    this.#ready.push({ request, error })
    this.#wakeReaders()
  }

  /** Wakes those who wait for completions, once per batch. */
  #wakeReaders(): void {
    if (this.#wakeIsDue) return
    this.#wakeIsDue = true
    this.#engine.afterBatch(this.#wake)
  }

  readonly #wake = (): void => {
    this.#wakeIsDue = false
    this.#consumer?.()
    if (this.#readers.size > 0) { for (const reader of Array.from(this.#readers)) reader() }
    // The device does not signal what the engine found by itself.
    if (this.#ready.length > 0 && !this.#isTaking) this.#engine.signalForeign()
  }

  /** Has readers look again, since what they wait for may never come. */
  reconsider(): void {
    if (this.#readers.size > 0 || this.#consumer !== undefined) this.#wakeReaders()
  }

  /** Records how the requests ended: no more will come. */
  end(exit: Exit.Exit<never, unknown>): void {
    this.#end = exit
    this.#wakeReaders()
  }

  #take(max: number): ReadonlyArray<Completion<R>> {
    const taken = max >= this.#ready.length ? this.#ready : this.#ready.splice(0, max)
    if (taken === this.#ready) this.#ready = []
    if (this.#unread.size > 0) {
      const proceed = [...this.#unread]
      this.#unread.clear()
      for (const resume of proceed) resume()
    }
    if (this.#readers.size > 0) this.reconsider()
    return taken
  }

  /** The pull of a stream of completions; `E` is what {@link end} may carry. One fiber at a time may use it. */
  pull<E>(): Effect.Effect<NonEmpty<Completion<R>>, E | DeviceFailure> {
    type Outcome = Exit.Exit<NonEmpty<Completion<R>>, E | DeviceFailure>
    const look = (): Outcome | undefined => {
      // Not empty, as its length was looked at.
      if (this.#ready.length > 0) return Exit.succeed(this.#take(Infinity) as NonEmpty<Completion<R>>)
      if (this.#inFlight > 0) return undefined
      if (this.#lost !== undefined) return Exit.fail(this.#lost)
      if (this.#end !== undefined) return this.#end as Exit.Exit<never, E>
      return this.#engine.failure === undefined ? undefined : Exit.fail(this.#engine.failure)
    }
    const forget = Effect.sync(() => {
      this.#consumer = undefined
    })
    // The consumer is resumed with what it waits for, not to look for it: a fiber that waits twice costs twice.
    const wait = Effect.callback((resume: (outcome: Outcome) => void) => {
      const outcome = look()
      if (outcome !== undefined) return resume(outcome)
      this.#awaitWith(() => {
        const outcome = look()
        if (outcome === undefined) return
        this.#consumer = undefined
        resume(outcome)
      })
      return forget
    })
    return Effect.suspend(() => {
      const engine = this.#engine
      let outcome = look()
      // Only for a device that may fall asleep meanwhile; others are looked at by the engine's loop.
      while (outcome === undefined && engine.signalsInTurn && !engine.isTurnOver() && engine.search()) outcome = look()
      return outcome ?? wait
    })
  }

  /** V8 puts a closure that is assigned to a property into the old generation, and with it what it refers to; not so this. */
  #awaitWith(consumer: () => void): void {
    this.#consumer = consumer
  }

  /** Waits as long as a condition holds, which is looked at whenever something has happened that a reader may want to see. */
  #waitWhile(condition: () => boolean): Effect.Effect<void> {
    const once = Effect.callback<void>((resume) => {
      if (!condition()) return resume(Exit.void)
      const reader = () => {
        this.#readers.delete(reader)
        resume(Exit.void)
      }
      this.#readers.add(reader)
      return Effect.sync(() => this.#readers.delete(reader))
    })
    return Effect.whileLoop({ while: condition, body: () => once, step: () => {} })
  }

  /** Waits until the device has let go of every request; for those who want no completion any more. */
  readonly drained: Effect.Effect<void> = Effect.suspend(() => {
    this.isAbandoned = true
    this.#engine.abandon(this)
    return this.#waitWhile(() => this.#inFlight > 0)
  })

  completions(
    options: CompletionsOptions
  ): Effect.Effect<ReadonlyArray<Completion<R>>, Errno.EINVAL | Errno.ETIME | DeviceFailure> {
    const { max = Infinity, min = Math.min(1, max), timeout } = options
    const refuse = (detail: string) => Exit.fail(new Errno.EINVAL({ operation: "completions", detail }))
    const take = (): Exit.Exit<ReadonlyArray<Completion<R>>, Errno.EINVAL | Errno.ETIME | DeviceFailure> => {
      // Also where nothing is asked for: whoever takes what there is would otherwise never hear that no more will come.
      const isShort = this.#ready.length < Math.max(min, 1)
      if (isShort && this.#engine.failure !== undefined && this.#inFlight === 0) return Exit.fail(this.#engine.failure)
      if (this.#ready.length >= min) return Exit.succeed(this.#take(max))
      if (min > this.#outstanding) {
        return refuse(`min ${min} must not exceed the ${this.#outstanding} requests outstanding`)
      }
      if (this.#ready.length > 0) this.#engine.signalForeign()
      const detail = `${this.#ready.length} of ${min} came in time`
      return Exit.fail(new Errno.ETIME({ operation: "completions", detail }))
    }
    return Effect.suspend((): Effect.Effect<
      ReadonlyArray<Completion<R>>,
      Errno.EINVAL | Errno.ETIME | DeviceFailure
    > => {
      if (!Number.isInteger(min) || min < 0) return refuse(`min ${min} must be a whole number, 0 or more`)
      if (max !== Infinity && (!Number.isInteger(max) || max < 0)) {
        return refuse(`max ${max} must be a whole number, 0 or more`)
      }
      if (min > max) return refuse(`min ${min} must not exceed max ${max}`)
      if (min > this.#outstanding) return take()
      this.#isTaking = true
      while (this.#engine.search() && this.#isWanting(min));
      this.#isTaking = false
      if (!this.#isWanting(min)) return take()
      const wait = this.#waitFor(min)
      return Effect.andThen(timeout === undefined ? wait : Effect.timeoutOption(wait, timeout), Effect.suspend(take))
    })
  }

  /** Requests whose completions were not taken. */
  get #outstanding(): number {
    return this.#inFlight + this.#ready.length + this.#waitingRequests
  }

  /** Whether fewer than `min` completions are there, and so many may still come. */
  #isWanting(min: number): boolean {
    return this.#ready.length < min && min <= this.#outstanding
      && (this.#engine.failure === undefined || this.#inFlight > 0)
  }

  /** Waits until `min` completions are there, or no more will come. */
  #waitFor(min: number): Effect.Effect<void> {
    return Effect.acquireUseRelease(
      Effect.sync(() => this.#engine.retain()),
      () => this.#waitWhile(() => this.#isWanting(min)),
      () => Effect.sync(() => this.#engine.release())
    )
  }
}

/** The requests of one call, and how far they have been submitted. */
class Batch<R extends Request> {
  readonly #session: CompletionSession<R>
  readonly #requests: ReadonlyArray<R>
  #at = 0

  constructor(session: CompletionSession<R>, requests: ReadonlyArray<R>) {
    this.#session = session
    this.#requests = requests
    session.countWaiting(requests.length)
  }

  get isDone(): boolean {
    return this.#at >= this.#requests.length
  }

  /** Submits what may be submitted without waiting in line. */
  advance(): void {
    // Where the device is gone the ring has room, and nobody who would answer.
    if (!this.#session.isContended && !this.#session.isEnded) this.place()
  }

  /** Submits what fits; answers false where it is the ring that has no room. */
  place(): boolean {
    const from = this.#at
    let hasRoom = true
    while (hasRoom && this.#at < this.#requests.length && !this.#session.isFull) {
      const request = this.#requests[this.#at]
      hasRoom = request === undefined || this.#session.offer(request)
      if (hasRoom) this.#at++
    }
    this.#session.countWaiting(from - this.#at)
    if (this.#at > from) this.#session.show()
    return hasRoom
  }

  /** Gives up what was not submitted. */
  abandon(): void {
    this.#session.countWaiting(this.#at - this.#requests.length)
    this.#at = this.#requests.length
    this.#session.reconsider()
  }
}
