/**
 * The block device as a service: what applications ask for.
 *
 * A block device is a started device with its queues and regions, and a {@link BlockStore} on top of it, by blocks and by
 * bytes. A queue takes one request as it is, with a buffer that the device can reach. The store's calls take ordinary memory,
 * split at the device's limits, and spread over the queues; what the device cannot reach goes through a pool of bounce
 * buffers that is bounded and is allocated when it is first needed.
 *
 * Interrupting a call that uses a bounce buffer lets go of the caller's memory at once; the bounce buffer is used again when
 * the device has let go of it. The device may still carry such a write out: a later one to the same place waits for it, so
 * that it never undoes what came after.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { type BlockStore, checkRange, lengthOf, type StoreError } from "./BlockStore/BlockStore.ts"
import * as ByteAccess from "./BlockStore/ByteAccess.ts"
import { inParts } from "./BlockStore/Split.ts"
import type { StartedDevice } from "./Driver/StartedDevice.ts"
import * as Errno from "./Errno.ts"
import { type IoQueue, type RangeError, type ReadError, RequestFlag, type WriteError } from "./Queue/IoQueue.ts"

export type { ConfigChange, ConfigError, ConnectionState, MapError, StartedDevice } from "./Driver/StartedDevice.ts"

/**
 * A block device: queues and regions, and a store by blocks and by bytes over them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Device
  extends StartedDevice, Omit<BlockStore, "writeZeroes" | "discard" | "capacity">, ByteAccess.ByteAccess
{}

/**
 * The block device of a program. A program with several keeps their values (`VirtioBlk.make`), or makes a key for each:
 *
 * @example
 * ```ts
 * import { BlockDevice } from "effect-blkio"
 *
 * class Source extends BlockDevice.Tag<Source>()("Source") {}
 * class Target extends BlockDevice.Tag<Target>()("Target") {}
 * console.log(Source.key, Target.key) // => "effect-blkio/BlockDevice/Source" "effect-blkio/BlockDevice/Target"
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class BlockDevice extends Context.Service<BlockDevice, Device>()("effect-blkio/BlockDevice") {
  /** Makes a further key for a block device. */
  static readonly Tag =
    <Self>() =>
    <const Id extends string>(id: Id): Context.ServiceClass<Self, `effect-blkio/BlockDevice/${Id}`, Device> =>
      Context.Service<Self, Device>()(`effect-blkio/BlockDevice/${id}`)
}

/** Bytes of one bounce buffer, and how many there are: 8 MiB in all. */
const BOUNCE_BYTES = 131072
const BOUNCE_BUFFERS = 64
/** Buffers of one call that are in flight at once. */
const BUFFERS_IN_FLIGHT = 8
/** The longest part that needs no bounce buffer: keeps one call from holding a queue for long. */
const DIRECT_BYTES = 2 ** 20
/** A range's sectors travel in 32 bits, and a range's end should be aligned as its start is. */
const MAX_RANGE_BYTES = 2 ** 31

/**
 * Makes a block device of a started device. The pool of bounce buffers belongs to the Scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromStarted = Effect.fnUntraced(function*(
  device: StartedDevice
): Effect.fn.Return<Device, never, Scope.Scope> {
  const { discardAlignment, driver, path } = yield* device.properties.getAll
  const { rules } = device
  // The pool is made late and goes early: not before what was made after the device, and may still use it.
  const scope = yield* Scope.fork(yield* Effect.scope)
  let turn = 0
  /** The queues take turns. */
  const queue = (): IoQueue => device.ownQueues[turn++ % device.ownQueues.length] ?? device.queue(0)

  const limit = (most: number, stated: number): number => {
    const smaller = stated === 0 ? most : Math.min(most, stated)
    return Math.max(rules.requestAlignment, smaller - smaller % rules.requestAlignment)
  }
  const parts = (
    offset: number,
    length: number,
    most: number,
    each: (at: number, length: number) => Effect.Effect<void, StoreError>,
    grain = 1
  ): Effect.Effect<void, StoreError> =>
    inParts(offset, offset + length, most, (from, to) => each(from, to - from), grain)

  let made: Queue.Queue<Uint8Array> | undefined
  const making = yield* Semaphore.make(1)
  /** Where the pool cannot be had it is tried again by the next call. */
  const pool = Effect.suspend(() =>
    made === undefined ? making.withPermit(Effect.uninterruptible(makePool)) : Effect.succeed(made)
  )
  const makePool = Effect.gen(function*() {
    if (made !== undefined) return made
    const bounceBytes = limit(BOUNCE_BYTES, rules.maxSegmentLength)
    const { bytes } = yield* device.allocate(bounceBytes * BOUNCE_BUFFERS)
    const free = yield* Queue.unbounded<Uint8Array>()
    for (let i = 0; i < BOUNCE_BUFFERS; i++) {
      Queue.offerUnsafe(free, bytes.subarray(i * bounceBytes, (i + 1) * bounceBytes))
    }
    made = free
    return free
  }).pipe(
    Effect.mapError((cause) => asStoreError(cause, "bounce buffers cannot be had")),
    Scope.provide(scope)
  )

  /** Writes that nobody waits for any more, and that the device may still carry out. */
  const abandoned = new Set<AbandonedWrite>()
  /** Waits for the abandoned writes to a range, which would otherwise undo what is about to be done to it. */
  const settle = (offset: number, length: number): Effect.Effect<void> =>
    Effect.suspend(() => {
      const inTheWay = [...abandoned].filter(({ end, start }) => start < offset + length && offset < end)
      return Effect.forEach(inTheWay, ({ fiber }) => Fiber.await(fiber), { discard: true })
    })

  /** Runs a request with a bounce buffer, which is free again when the request has ended, whoever still waits for it. */
  const bounced = (
    request: (bounce: Uint8Array) => Effect.Effect<void, StoreError>,
    finish: (bounce: Uint8Array) => void,
    abandon: (fiber: Fiber.Fiber<void, StoreError>) => void = () => {}
  ): Effect.Effect<void, StoreError> =>
    Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
      const free = yield* restore(pool)
      const bounce = yield* restore(Queue.take(free))
      if (isGone(bounce)) return yield* closed()
      // Detached, since a request ends on its own: with the device at the latest.
      const fiber = yield* Effect.forkDetach(request(bounce), { startImmediately: true })
      const release = () => {
        Queue.offerUnsafe(free, bounce)
      }
      const exit = yield* Effect.onInterrupt(
        restore(Fiber.await(fiber)),
        () =>
          Effect.sync(() => {
            fiber.addObserver(release)
            abandon(fiber)
            // Gives up its place in line; once the device has it, it ends when the device lets go.
            fiber.interruptUnsafe()
          })
      )
      if (exit._tag === "Success" && isGone(bounce)) return yield* closed()
      if (exit._tag === "Success") finish(bounce)
      if (isLate(exit)) {
        const letGo = yield* Effect.forkDetach(
          Effect.forEach(device.ownQueues, ({ released }) => released(bounce), { discard: true }),
          { startImmediately: true }
        )
        abandon(letGo)
        letGo.addObserver(release)
      } else {
        release()
      }
      return yield* exit
    }))
  /** Writes a part of at most a bounce buffer's length. */
  const bouncedWrite = (
    at: number,
    length: number,
    fill: (bounce: Uint8Array) => void,
    write: (at: number, buffer: Uint8Array) => Effect.Effect<void, StoreError>
  ): Effect.Effect<void, StoreError> =>
    bounced(
      (bounce) => {
        const part = bounce.subarray(0, length)
        fill(part)
        return write(at, part)
      },
      () => {},
      (fiber) => {
        const entry = { start: at, end: at + length, fiber }
        abandoned.add(entry)
        fiber.addObserver(() => abandoned.delete(entry))
      }
    )

  const isDirect = (buffers: ReadonlyArray<Uint8Array>) =>
    buffers.every((buffer) => buffer.length % rules.requestAlignment === 0 && device.reaches(buffer))

  /** Sends buffers that the device reaches, one after another. */
  const direct = (
    offset: number,
    buffers: ReadonlyArray<Uint8Array>,
    request: (at: number, buffer: Uint8Array) => Effect.Effect<void, StoreError>
  ): Effect.Effect<void, StoreError> => {
    let at = offset
    const placed = buffers.filter(({ length }) => length > 0).map((buffer) => {
      const start = at
      at += buffer.length
      return { start, buffer }
    })
    const most = limit(limit(DIRECT_BYTES, rules.maxSegmentLength), rules.maxTransfer)
    return Effect.forEach(
      placed,
      ({ buffer, start }) =>
        parts(
          start,
          buffer.length,
          most,
          (from, length) => request(from, buffer.subarray(from - start, from - start + length))
        ),
      {
        concurrency: BUFFERS_IN_FLIGHT,
        discard: true
      }
    )
  }

  const readAt = (at: number, buffer: Uint8Array) => storeErrors(queue().read(at, buffer))
  const writeAt = (flags: number) => (at: number, buffer: Uint8Array) => storeErrors(queue().write(at, buffer, flags))
  const mostBounced = () => limit(limit(BOUNCE_BYTES, rules.maxSegmentLength), rules.maxTransfer)

  const store: BlockStore = {
    id: `${driver},path=${path}`,
    get capacity() {
      return rules.capacity
    },
    blockSize: rules.requestAlignment,
    readOnly: rules.readOnly,
    limits: { maxTransfer: Infinity, maxDiscard: Infinity, maxWriteZeroes: Infinity },
    read: (offset, buffers) =>
      Effect.suspend(() => {
        const length = lengthOf(buffers)
        const wrong = checkRange(store, "read", offset, length, { writes: false, limit: Infinity })
        if (wrong !== undefined) return Effect.fail(wrong)
        if (isDirect(buffers)) return direct(offset, buffers, readAt)
        return parts(offset, length, mostBounced(), (at, partLength) =>
          bounced(
            (bounce) => readAt(at, bounce.subarray(0, partLength)),
            (bounce) => scatter(bounce.subarray(0, partLength), buffers, at - offset)
          ))
      }),
    write: (offset, buffers, { fua = false } = {}) =>
      Effect.suspend(() => {
        const length = lengthOf(buffers)
        const wrong = checkRange(store, "write", offset, length, { writes: true, limit: Infinity })
        if (wrong !== undefined) return Effect.fail(wrong)
        const write = writeAt(fua ? RequestFlag.FUA : 0)
        return Effect.andThen(
          settle(offset, length),
          Effect.suspend(() =>
            isDirect(buffers) ?
              direct(offset, buffers, write) :
              parts(offset, length, mostBounced(), (at, partLength) =>
                bouncedWrite(at, partLength, (part) => gather(part, buffers, at - offset), write))
          )
        )
      }),
    writeZeroes: (offset, length, { fua = false, noFallback = false, noUnmap = false } = {}) =>
      Effect.suspend(() => {
        const wrong = checkRange(store, "writeZeroes", offset, length, { writes: true, limit: Infinity })
        if (wrong !== undefined) return Effect.fail(wrong)
        const fuaFlag = fua ? RequestFlag.FUA : 0
        const flags = fuaFlag | (noFallback ? RequestFlag.NO_FALLBACK : 0)
        const zeroes = (unmapFlag: number) =>
          parts(offset, length, limit(MAX_RANGE_BYTES, rules.maxWriteZeroesLength), (at, partLength) =>
            storeErrors(queue().writeZeroes(at, partLength, flags | unmapFlag)))
        // Some devices write zeroes, but refuse to be asked to unmap.
        const either = noUnmap
          ? zeroes(RequestFlag.NO_UNMAP)
          : Effect.catchTag(zeroes(0), "ENOTSUP", () =>
            zeroes(RequestFlag.NO_UNMAP))
        const settled = Effect.andThen(settle(offset, length), either)
        if (noFallback) {
          return settled
        }
        const write = writeAt(fuaFlag)
        return Effect.catchTag(settled, "ENOTSUP", () =>
          parts(offset, length, mostBounced(), (at, partLength) =>
            bouncedWrite(at, partLength, (part) =>
              part.fill(0), write)))
      }),
    discard: (offset, length) =>
      Effect.suspend(() => {
        const wrong = checkRange(store, "discard", offset, length, { writes: true, limit: Infinity })
        if (wrong !== undefined) return Effect.fail(wrong)
        const most = limit(MAX_RANGE_BYTES, rules.maxDiscardLength)
        return Effect.andThen(
          settle(offset, length),
          parts(
            offset,
            length,
            most,
            (at, partLength) => storeErrors(queue().discard(at, partLength)),
            discardAlignment
          )
        )
      }),
    flush: Effect.suspend(() => storeErrors(queue().flush())),
    capacityChanges: Stream.map(device.configChanges, ({ capacity }) => capacity)
  }

  return {
    ...device,
    ...store,
    ...ByteAccess.make(store),
    // Spreading has read them once; they change.
    get capacity() {
      return rules.capacity
    },
    get ownQueues() {
      return device.ownQueues
    }
  }
})

interface AbandonedWrite {
  readonly start: number
  readonly end: number
  readonly fiber: Fiber.Fiber<void, StoreError>
}

/** Copies from one piece of memory to the part of several buffers that begins at `position`. */
const scatter = (from: Uint8Array, buffers: ReadonlyArray<Uint8Array>, position: number): void =>
  overlapping(
    buffers,
    position,
    from.length,
    (buffer, start, at, length) => buffer.set(from.subarray(at, at + length), start)
  )

/** Copies the part of several buffers that begins at `position` to one piece of memory. */
const gather = (to: Uint8Array, buffers: ReadonlyArray<Uint8Array>, position: number): void =>
  overlapping(
    buffers,
    position,
    to.length,
    (buffer, start, at, length) => to.set(buffer.subarray(start, start + length), at)
  )

/** Calls `each` for every buffer that has a share in `length` bytes from `position` of all of them together. */
const overlapping = (
  buffers: ReadonlyArray<Uint8Array>,
  position: number,
  length: number,
  each: (buffer: Uint8Array, start: number, at: number, length: number) => void
): void => {
  let begin = 0
  for (const buffer of buffers) {
    const from = Math.max(begin, position)
    const to = Math.min(begin + buffer.length, position + length)
    if (from < to) each(buffer, from - begin, from - position, to - from)
    begin += buffer.length
  }
}

/** Whether the pool went with the device, and its memory with it. */
const isGone = (bounce: Uint8Array): boolean => bounce.length === 0

const closed = (): Errno.ESHUTDOWN => new Errno.ESHUTDOWN({ operation: "block device", detail: "the device is closed" })

/** Tells whether the device did not answer in time, and still has the buffer. */
const isLate = (exit: Exit.Exit<void, StoreError>): boolean =>
  Exit.isFailure(exit) &&
  exit.cause.reasons.some((reason) => Cause.isFailReason(reason) && reason.error._tag === "ETIME")

const storeErrors = (
  effect: Effect.Effect<void, ReadError | WriteError | RangeError>
): Effect.Effect<void, StoreError> =>
  Effect.catchTag(effect, "EFAULT", (cause) => Effect.fail(asStoreError(cause, "a buffer was unmapped meanwhile")))

const asStoreError = (cause: Errno.Any, detail: string): StoreError => {
  switch (cause._tag) {
    case "ENOSPC":
    case "ENOTCONN":
    case "ETIMEDOUT":
    case "EPROTO":
    case "ENODEV":
    case "ESTALE":
    case "ESHUTDOWN":
      return cause
    default:
      return new Errno.EIO({ operation: "block device", detail, cause })
  }
}
