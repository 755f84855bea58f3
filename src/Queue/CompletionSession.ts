/**
 * Requests in, completions out: the common part of `IoQueue.process` and `loop`, and of `submit` and `completions` by hand.
 *
 * A fiber may yield before any operation, so also between looking for something and waiting for it. Whatever waits here
 * therefore looks once more when it begins to wait.
 *
 * What is in flight is bounded by the ring; what is answered but not yet taken is bounded too, since no more than a ring's
 * worth may be unread before further submissions wait, unless somebody waits for more at once. So at most twice the ring's size
 * exists at any time, or a ring's size more than was asked for, and besides what a function gave beyond the room there was.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
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
type Outcome<R extends Request, E> = Exit.Exit<NonEmpty<Completion<R>>, E | DeviceFailure>
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
  /** How many completions those who wait by hand want, each, and the most of these. */
  readonly #wants: Array<number> = []
  #wanted = 0
  /** Those who wait for completions by hand. */
  readonly #readers = new Set<() => void>()
  /** The stream's consumer, while it waits. */
  #consumer: (() => void) | undefined
  #wakeIsDue = false
  /** Whether a reader is looking at the ring and takes what is found. */
  #isTaking = false
  #end: Exit.Exit<never, unknown> | undefined
  /** What a function gives, where one does. */
  #source: Source<R> | undefined
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

  /** Joins the line of those who wait for room in the ring; answers how to leave it. */
  join(waiter: Waiter): () => void {
    this.#engine.join(waiter)
    return () => void this.#engine.leave(waiter)
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

  /** Whether as many completions wait to be taken as the ring has places, or as somebody waits for, if those are more. */
  get isFull(): boolean {
    return this.#ready.length >= this.#engine.size && this.#ready.length >= this.#wanted
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
    this.#proceed()
    if (this.#readers.size > 0) this.reconsider()
    return taken
  }

  /** Completions if there are some, or how it ends if no more will come. */
  #look<E>(): Outcome<R, E> | undefined {
    // Not empty, as its length was looked at.
    if (this.#ready.length > 0) return Exit.succeed(this.#take(Infinity) as NonEmpty<Completion<R>>)
    if (this.#inFlight > 0) return undefined
    if (this.#lost !== undefined) return Exit.fail(this.#lost)
    if (this.#end !== undefined) return this.#end as Exit.Exit<never, E>
    return this.#engine.failure === undefined ? undefined : Exit.fail(this.#engine.failure)
  }

  /** The same, and looks at the ring for as long as that may pay. */
  #search<E>(): Outcome<R, E> | undefined {
    const engine = this.#engine
    let outcome = this.#look<E>()
    // Only for a device that may fall asleep meanwhile; others are looked at by the engine's loop.
    while (outcome === undefined && engine.signalsInTurn && !engine.isTurnOver() && engine.search()) {
      outcome = this.#look()
    }
    return outcome
  }

  /** Waits for what {@link #look} answers. */
  #waitForOutcome<E>(): Effect.Effect<NonEmpty<Completion<R>>, E | DeviceFailure> {
    const forget = Effect.sync(() => {
      this.#consumer = undefined
    })
    // The consumer is resumed with what it waits for, not to look for it: a fiber that waits twice costs twice.
    return Effect.callback((resume: (outcome: Outcome<R, E>) => void) => {
      const outcome = this.#look<E>()
      if (outcome !== undefined) return resume(outcome)
      this.#awaitWith(() => {
        const outcome = this.#look<E>()
        if (outcome === undefined) return
        this.#consumer = undefined
        resume(outcome)
      })
      return forget
    })
  }

  /** The pull of a stream of completions; `E` is what {@link end} may carry. One fiber at a time may use it. */
  pull<E>(): Effect.Effect<NonEmpty<Completion<R>>, E | DeviceFailure> {
    const wait = this.#waitForOutcome<E>()
    return Effect.suspend(() => this.#search<E>() ?? wait)
  }

  /** The same, of requests that `next` gives; done when it gives none while none is outstanding. */
  pullFrom(next: () => ReadonlyArray<R>): Effect.Effect<NonEmpty<Completion<R>>, DeviceFailure | Cause.Done> {
    if (this.#engine.failure !== undefined) return Effect.fail(this.#engine.failure)
    const source = this.#open()
    const wait = this.#waitForOutcome<Cause.Done>()
    return Effect.suspend(() => {
      source.submit(source.isWaiting || this.isFull ? [] : next())
      return this.#search<Cause.Done>() ?? wait
    })
  }

  /** Gives completions to `step`, and submits what it answers, until it answers none while none is outstanding. */
  loop(
    step: (completed: ReadonlyArray<Completion<R>>) => ReadonlyArray<R>
  ): Effect.Effect<never, DeviceFailure | Cause.Done> {
    if (this.#engine.failure !== undefined) return Effect.fail(this.#engine.failure)
    let completed: ReadonlyArray<Completion<R>> = []
    const source = this.#open()
    const wait = this.#waitForOutcome<Cause.Done>()
    return Effect.whileLoop<ReadonlyArray<Completion<R>>, DeviceFailure | Cause.Done, never>({
      while: () => true,
      body: () => {
        // Within the event loop's turn it goes round without an Effect.
        for (;;) {
          source.submit(step(completed))
          const outcome = this.#search<Cause.Done>()
          if (outcome === undefined || Exit.isFailure(outcome)) return outcome ?? wait
          completed = outcome.value
        }
      },
      step: (found) => {
        completed = found
      }
      // It has no end but a failure.
    }) as Effect.Effect<never, DeviceFailure | Cause.Done>
  }

  #open(): Source<R> {
    this.#source = new Source(this)
    return this.#source
  }

  /** Ends it with success where nothing is outstanding. */
  endIfIdle(): void {
    if (this.#outstanding === 0) this.#end = Exit.fail(Cause.Done())
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
    this.#source?.close()
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
      Effect.sync(() => {
        this.#engine.retain()
        this.#wants.push(min)
        this.#wanted = Math.max(...this.#wants)
        this.#proceed()
      }),
      () => this.#waitWhile(() => this.#isWanting(min)),
      () =>
        Effect.sync(() => {
          this.#engine.release()
          this.#wants.splice(this.#wants.indexOf(min), 1)
          this.#wanted = Math.max(0, ...this.#wants)
        })
    )
  }

  /** Has those go on who wait for completions to be taken. */
  #proceed(): void {
    if (this.#unread.size === 0) return
    const proceed = [...this.#unread]
    this.#unread.clear()
    for (const resume of proceed) resume()
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

/** Requests that a function gives, submitted as there is room for them. */
class Source<R extends Request> implements Waiter {
  readonly #session: CompletionSession<R>
  /** What did not fit, and what was given after it. */
  #rest: Batch<R> | undefined
  #later: Array<Batch<R>> = []
  /** How to leave the line, while it waits there. */
  #leave: (() => void) | undefined

  constructor(session: CompletionSession<R>) {
    this.#session = session
  }

  /** Whether requests wait for room. */
  get isWaiting(): boolean {
    return this.#rest !== undefined
  }

  /** Submits requests after those that wait; what does not fit waits in line. */
  submit(requests: ReadonlyArray<R>): void {
    const session = this.#session
    if (requests.length > 0) {
      const batch = new Batch(session, requests)
      if (this.#rest === undefined) this.#rest = batch
      else this.#later.push(batch)
    }
    if (!this.isWaiting) return session.endIfIdle()
    // Where the device is gone nobody would answer.
    if (this.#leave !== undefined || session.isEnded) return
    if (!session.isContended) this.place()
    if (this.isWaiting && !session.isFull) this.#leave = session.join(this)
  }

  place(): boolean {
    for (; this.#rest !== undefined; this.#rest = this.#later.shift()) {
      const hasRoom = this.#rest.place()
      if (!this.#rest.isDone) return hasRoom
    }
    return true
  }

  placed(): void {
    this.#leave = undefined
  }

  refused(failure: DeviceFailure): void {
    this.#leave = undefined
    this.#session.end(Exit.fail(failure))
  }

  /** Gives up what was not submitted. */
  close(): void {
    this.#leave?.()
    this.#leave = undefined
    this.#rest?.abandon()
    this.#rest = undefined
    for (const batch of this.#later.splice(0)) batch.abandon()
  }
}
