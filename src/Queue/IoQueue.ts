/**
 * A queue of a started device, as Effects and Streams.
 *
 * Three ways to use it, over one engine, freely mixed:
 *
 * - request and answer ({@link IoQueue.read} and its kin): an Effect that ends when the device has answered;
 * - streams ({@link IoQueue.process} and {@link IoQueue.processFrom}, or {@link IoQueue.submit} and
 *   {@link IoQueue.completions} by hand): requests in, completions out, in whatever order the device finishes them, with little
 *   cost per request;
 * - a loop ({@link IoQueue.loop}): a function hears of completions and answers requests, with no Effect in between.
 *
 * Backpressure stands in for a backlog: whoever submits while the ring is full suspends, first come first served, and
 * nothing inside grows without bound. A request that could never be queued is answered at once with its errno; it never
 * blocks the ones behind it.
 *
 * A request cannot be withdrawn from the device. Interrupting an Effect that reads into a caller's buffer therefore
 * waits until the device has let go of that buffer or is declared dead.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import { CompletionSession } from "./CompletionSession.ts"
import type { Completion, CompletionsOptions } from "./CompletionSession.ts"
import type { DeviceFailure, Owner, QueueEngine, RequestFailure, Waiter } from "./QueueEngine.ts"
import { type Request, RequestFlag } from "./Request.ts"

export type { Completion, CompletionsOptions } from "./CompletionSession.ts"
export type { DeviceFailure, RequestFailure, Waiting } from "./QueueEngine.ts"
export type { Discard, Flush, InvalidRequest, Read, Readv, Request, Write, Writev, WriteZeroes } from "./Request.ts"
export { RequestFlag }

/**
 * What a read may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type ReadError = Errno.EINVAL | Errno.EFAULT | Errno.ENOTSUP | Errno.EIO | Errno.ETIME | DeviceFailure

/**
 * What a write may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type WriteError = ReadError | Errno.EBADF

/**
 * What a discard or a write-zeroes may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type RangeError = Errno.EINVAL | Errno.ENOTSUP | Errno.EBADF | Errno.EIO | Errno.ETIME | DeviceFailure

/**
 * What a flush may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type FlushError = Errno.EINVAL | Errno.ENOTSUP | Errno.EIO | Errno.ETIME | DeviceFailure

/**
 * A queue of a started device.
 *
 * @category models
 * @since 0.1.0
 */
export interface IoQueue {
  /** Event queues sleep until the device signals; poll queues look at the ring on every turn of the event loop. */
  readonly kind: "event" | "poll"
  /** Position among the queues of its kind, from 0. */
  readonly index: number
  /** Number of descriptors in the ring: the most requests in flight (queue-size). */
  readonly size: number

  /** Reads from `offset` (bytes) until `buffer`, which lies in a mapped region, is full. */
  readonly read: (offset: number, buffer: Uint8Array, flags?: number) => Effect.Effect<void, ReadError>
  /** Writes `buffer`, which lies in a mapped region, to `offset` (bytes). Flags: `RequestFlag.FUA`. */
  readonly write: (offset: number, buffer: Uint8Array, flags?: number) => Effect.Effect<void, WriteError>
  /** Reads from `offset` (bytes) into several buffers, one after another. */
  readonly readv: (
    offset: number,
    buffers: ReadonlyArray<Uint8Array>,
    flags?: number
  ) => Effect.Effect<void, ReadError>
  /** Writes several buffers to `offset` (bytes), one after another. Flags: `RequestFlag.FUA`. */
  readonly writev: (
    offset: number,
    buffers: ReadonlyArray<Uint8Array>,
    flags?: number
  ) => Effect.Effect<void, WriteError>
  /** Makes `length` bytes from `offset` read as zeroes. Flags: `FUA`, `NO_UNMAP`, `NO_FALLBACK`. */
  readonly writeZeroes: (offset: number, length: number, flags?: number) => Effect.Effect<void, RangeError>
  /** Tells the device that `length` bytes from `offset` are no longer needed. */
  readonly discard: (offset: number, length: number, flags?: number) => Effect.Effect<void, RangeError>
  /** Makes every write that completed before this stable. Succeeds at once where the device has no cache to flush. */
  readonly flush: (flags?: number) => Effect.Effect<void, FlushError>

  /**
   * Waits until the device has let go of a buffer: until no request in flight uses memory of it, also none that failed with
   * ETIME.
   */
  readonly released: (buffer: Uint8Array) => Effect.Effect<void>

  /**
   * Sends a stream of requests through the queue and gives their completions, in arrays of what one look at the ring
   * found. A request that fails is a completion with its error; a device that dies fails the stream, once. Requests are
   * pulled only while there is room for them and their completions are being read; when the stream is left early, what is
   * in flight is waited for.
   */
  readonly process: <R extends Request, E, R2>(
    requests: Stream.Stream<R, E, R2>
  ) => Stream.Stream<Completion<R>, E | DeviceFailure, R2>

  /**
   * The same, of requests that a function gives, which spares a fiber. It is asked whenever completions are, as long as there is
   * room, and may give none; the stream ends when it gives none while none is outstanding. What it throws is a defect.
   *
   * @example
   * ```ts
   * import { Effect, Stream } from "effect"
   * import type { IoQueue } from "effect-blkio"
   *
   * // Reads the first `end` bytes of a disk, as many at a time as there are buffers.
   * const scan = (queue: IoQueue.IoQueue, buffers: Array<Uint8Array>, end: number, use: (bytes: Uint8Array) => void) => {
   *   let next = 0
   *   const requests = () => {
   *     const reads: Array<IoQueue.Read> = []
   *     while (next < end && buffers.length > 0) {
   *       const buffer = buffers.pop()!
   *       reads.push({ _tag: "read", offset: next, buffer })
   *       next += buffer.length
   *     }
   *     return reads
   *   }
   *   return queue.processFrom(requests).pipe(Stream.runForEach(({ error, request }) => {
   *     if (error !== undefined) return Effect.fail(error)
   *     use(request.buffer)
   *     buffers.push(request.buffer)
   *     return Effect.void
   *   }))
   * }
   * ```
   */
  readonly processFrom: <R extends Request>(
    next: () => ReadonlyArray<R>
  ) => Stream.Stream<Completion<R>, DeviceFailure>

  /**
   * Calls `step` with completions, in arrays of what one look at the ring found, and submits what it answers, at first with none;
   * succeeds when it answers nothing while none of its requests is outstanding. The fastest way: as long as the event loop's turn
   * allows, nothing lies between a completion and the next request but this function. It hears of every completion at once, also
   * while requests that it answered before wait for room: these are kept, so it bounds them itself. What it throws is a defect.
   * Interrupted, the loop waits for what is in flight.
   *
   * @example
   * ```ts
   * import type { IoQueue } from "effect-blkio"
   *
   * // Reads the same block a thousand times.
   * const again = (queue: IoQueue.IoQueue, buffer: Uint8Array) => {
   *   let left = 1000
   *   const read = { _tag: "read", offset: 0, buffer } as const
   *   return queue.loop(() => left-- > 0 ? [read] : [])
   * }
   * ```
   */
  readonly loop: <R extends Request>(
    step: (completed: ReadonlyArray<Completion<R>>) => ReadonlyArray<R>
  ) => Effect.Effect<void, DeviceFailure>

  /**
   * Submits requests whose completions are taken by {@link IoQueue.completions}; suspends while there is no room.
   * Interrupted, it leaves those submitted that were. A request that is wrong in itself becomes a completion with its
   * error.
   */
  readonly submit: (requests: ReadonlyArray<Request>) => Effect.Effect<void, DeviceFailure>

  /**
   * Takes completions of what was submitted by {@link IoQueue.submit}. EINVAL: `min` exceeds `max` or what is
   * outstanding. ETIME: too few in time; they stay to be taken.
   */
  readonly completions: (
    options?: CompletionsOptions
  ) => Effect.Effect<ReadonlyArray<Completion<Request>>, Errno.EINVAL | Errno.ETIME | DeviceFailure>

  /** The event counter the device signals (`man 2 eventfd`, non-blocking), for foreign event loops; none on poll queues. */
  readonly completionFd: Option.Option<number>

  /**
   * Leaves the completion descriptor's signals to a foreign event loop (true), or has this queue consume them (false, as
   * at the start). The loop reads the 8 bytes when the descriptor is readable, then takes what is there with
   * `completions({ min: 0 })`, until that gives nothing. A poll queue has no descriptor: ENOTSUP.
   */
  readonly setCompletionFdEnabled: (enabled: boolean) => Effect.Effect<void, Errno.ENOTSUP | Errno.ENODEV>
}

/** Makes the surface of an engine. @internal */
export const fromEngine = (engine: QueueEngine, index: number): IoQueue => {
  const byHand = new CompletionSession<Request>(engine)
  const isPoll = engine.waiting === "poll"
  // Each request's set of errors is what `Request.check` and the device's status can give for its kind.
  const answer = answerFor(engine)
  const request = <E extends RequestFailure>(value: Request) => answer(value) as Effect.Effect<void, E>
  return {
    kind: isPoll ? "poll" : "event",
    index,
    size: engine.size,
    read: (offset, buffer, flags = 0) => request({ _tag: "read", offset, buffer, flags }),
    write: (offset, buffer, flags = 0) => request({ _tag: "write", offset, buffer, flags }),
    readv: (offset, buffers, flags = 0) => request({ _tag: "readv", offset, buffers, flags }),
    writev: (offset, buffers, flags = 0) => request({ _tag: "writev", offset, buffers, flags }),
    writeZeroes: (offset, length, flags = 0) => request({ _tag: "writeZeroes", offset, length, flags }),
    discard: (offset, length, flags = 0) => request({ _tag: "discard", offset, length, flags }),
    flush: (flags = 0) => request({ _tag: "flush", flags }),
    released: (buffer) =>
      Effect.callback((resume) => {
        const stop = engine.whenReleased(buffer, () => resume(Exit.void))
        return Effect.sync(stop)
      }),
    process: (requests) => process(engine, requests),
    processFrom: (next) => processFrom(engine, next),
    loop: (step) => loop(engine, step),
    submit: (requests) => byHand.submit(requests),
    completions: (options = {}) => byHand.completions(options),
    completionFd: isPoll ? Option.none() : Option.some(engine.completionFd),
    setCompletionFdEnabled: (enabled) =>
      isPoll
        ? Effect.fail(
          new Errno.ENOTSUP({ operation: "set completion fd", queue: index, detail: "a poll queue has none" })
        )
        : Effect.sync(() => {
          engine.setForeign(enabled)
          if (enabled && byHand.hasCompletions) engine.signalForeign()
        })
  }
}

/** Makes the queue that does not exist: whatever is asked of it fails with ENODEV. @internal */
export const absent = (kind: "event" | "poll", index: number, count: number): IoQueue => {
  const failure = Effect.fail(
    new Errno.ENODEV({ operation: "use", queue: index, detail: `there are ${count} ${kind} queues, counted from 0` })
  )
  return {
    kind,
    index,
    size: 0,
    read: () => failure,
    write: () => failure,
    readv: () => failure,
    writev: () => failure,
    writeZeroes: () => failure,
    discard: () => failure,
    flush: () => failure,
    released: () => Effect.void,
    process: () => Stream.fromEffect(failure),
    processFrom: () => Stream.fromEffect(failure),
    loop: () => failure,
    submit: () => failure,
    completions: () => failure,
    completionFd: Option.none(),
    setCompletionFdEnabled: () => failure
  }
}

/** Makes the Effect that ends when the device has answered a request. */
const answerFor = (engine: QueueEngine) => {
  // One for all requests, which finds out whose it is when it is needed: making one for each costs as much as the ring does.
  const interrupted: Effect.Effect<void> = Effect.withFiber((fiber) =>
    engine.find((one): one is PendingAnswer => one instanceof PendingAnswer && one.fiber === fiber)?.interrupted
      ?? Effect.void
  )
  return (request: Request): Effect.Effect<void, RequestFailure> =>
    Effect.callback((resume) => {
      const failure = engine.failure ?? engine.check(request)
      if (failure !== undefined) return resume(Exit.fail(failure))
      if (request._tag === "flush" && !engine.rules.canFlush) return resume(Exit.void)
      const pending = new PendingAnswer(engine, request, resume)
      if (engine.isContended || !engine.submit(request, pending)) engine.join(pending)
      return interrupted
    })
}

/** One request whose answer a fiber awaits. */
class PendingAnswer implements Owner, Waiter {
  readonly fiber = Fiber.getCurrent()
  readonly #engine: QueueEngine
  readonly #request: Request
  readonly #resume: (exit: Exit.Exit<void, RequestFailure>) => void
  #onRelease: (() => void) | undefined
  #isOver = false

  constructor(engine: QueueEngine, request: Request, resume: (exit: Exit.Exit<void, RequestFailure>) => void) {
    this.#engine = engine
    this.#request = request
    this.#resume = resume
    engine.retain()
  }

  place(): boolean {
    return this.#engine.submit(this.#request, this)
  }

  placed(): void {}

  refused(failure: DeviceFailure): void {
    this.completed(this.#request, failure)
  }

  completed(_request: Request, failure: RequestFailure | undefined): void {
    this.#engine.release()
    this.#isOver = true
    if (this.#onRelease === undefined) this.#resume(failure === undefined ? Exit.void : Exit.fail(failure))
    else this.#onRelease()
  }

  get isAbandoned(): boolean {
    return this.#onRelease !== undefined
  }

  /** Gives the place in line up, or waits until the device has let go of the buffer. */
  get interrupted(): Effect.Effect<void> {
    return Effect.callback((resume) => {
      // The fiber may have yielded on its way here, and the request may have ended meanwhile.
      if (this.#isOver) return resume(Exit.void)
      if (this.#engine.leave(this)) {
        this.#engine.release()
        resume(Exit.void)
      } else {
        this.#onRelease = () => resume(Exit.void)
        this.#engine.abandon(this)
      }
    })
  }
}

/** Begins a session, which ends in its time with {@link close}. */
const open = <R extends Request>(engine: QueueEngine) =>
  Effect.sync(() => {
    const session = new CompletionSession<R>(engine)
    engine.retain()
    // Requests may be silent, and nothing in flight, when the device dies.
    return { session, forget: engine.onFailure(() => session.reconsider()) }
  })

/** Ends a session when the device has let go of its requests. */
const close =
  (engine: QueueEngine) => <R extends Request>({ forget, session }: Effect.Success<ReturnType<typeof open<R>>>) =>
    Effect.andThen(
      session.drained,
      Effect.sync(() => {
        forget()
        engine.release()
      })
    )

/** A session that ends with a scope. */
const openIn = <R extends Request>(engine: QueueEngine, scope: Scope.Scope) =>
  Scope.provide(Effect.acquireRelease(open<R>(engine), close(engine)), scope)

const process = <R extends Request, E, R2>(
  engine: QueueEngine,
  requests: Stream.Stream<R, E, R2>
): Stream.Stream<Completion<R>, E | DeviceFailure, R2> =>
  Stream.transformPull(
    requests,
    Effect.fnUntraced(function*(upstream, scope) {
      const { session } = yield* openIn<R>(engine, scope)
      yield* session.feed(upstream).pipe(
        Effect.onExit((exit) => Effect.sync(() => session.end(exit))),
        Effect.forkIn(scope, { startImmediately: true })
      )
      return session.pull<E | Cause.Done>()
    })
  )

const processFrom = <R extends Request>(
  engine: QueueEngine,
  next: () => ReadonlyArray<R>
): Stream.Stream<Completion<R>, DeviceFailure> =>
  Stream.transformPull(
    Stream.empty,
    (_, scope) => Effect.map(openIn<R>(engine, scope), ({ session }) => session.pullFrom(next))
  )

const loop = <R extends Request>(
  engine: QueueEngine,
  step: (completed: ReadonlyArray<Completion<R>>) => ReadonlyArray<R>
): Effect.Effect<void, DeviceFailure> =>
  Effect.acquireUseRelease(
    open<R>(engine),
    ({ session }) => Pull.catchDone(session.loop(step), () => Effect.void),
    close(engine)
  )
