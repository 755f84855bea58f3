/**
 * Copying one store to another, with what is zero left out.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import { type Extent, extentsOf } from "./Extents.ts"
import type { BlockStore, StoreError } from "./Interface.ts"

/**
 * How to copy.
 *
 * @category models
 * @since 0.1.0
 */
export interface CopyOptions {
  /** Bytes of each chunk: a multiple of both stores' block sizes. Default 1 MiB. */
  readonly chunkSize?: number
  /** Chunks in flight at once. Default 8. */
  readonly depth?: number
  /** How many bytes to copy, from the start. Default: all of the source. */
  readonly length?: number
  /**
   * Write zeroes as zeroes, which a target may keep as a hole, and not as data; and do not read what the source knows to be a
   * hole. Default true.
   */
  readonly sparse?: boolean
  /**
   * What to do when a flush of the target fails with EIO, since what it had acknowledged may be lost: what was written since the
   * last flush is written again at once, and as the schedule says while that fails, too. The target is flushed every 64 MiB
   * then. Default: the copy fails.
   */
  readonly rewrite?: Schedule.Schedule<unknown, StoreError>
}

/**
 * How far a copy has come. The last one of a copy that succeeded has `copied` equal to `total`, after a flush.
 *
 * @category models
 * @since 0.1.0
 */
export interface CopyProgress {
  /** Bytes that have been dealt with. */
  readonly copied: number
  /** Bytes of these that were zero, and written as such. */
  readonly zeroes: number
  /** Bytes there are in all. */
  readonly total: number
}

const DEFAULT_CHUNK_BYTES = 2 ** 20
const DEFAULT_DEPTH = 8
/** The finest grain in which zeroes are told from data: smaller holes are no gain on any file system or image format. */
const GRAIN_BYTES = 65536
/** The longest hole that is written as one: progress is told after each. */
const MAX_HOLE_BYTES = 2 ** 28

/** What is written again at most where writes are lost: long enough that flushes cost little. */
const FLUSH_BYTES = 2 ** 26

const zeroGrain = new Uint8Array(GRAIN_BYTES)

/**
 * Copies a source to the start of a target at least as large, and tells how far it has come. What is zero is written by the
 * target's write-zeroes. Once everything is written the target is flushed, and a last element says so; a stream that failed,
 * or was left early, has left a part of the copy behind.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect, Stream } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const source = yield* BlockStore.memory({ capacity: 4 * 2 ** 20 })
 *   const target = yield* BlockStore.memory({ capacity: 4 * 2 ** 20 })
 *   yield* source.write(0, [new Uint8Array(512).fill(7)])
 *   return yield* BlockStore.copy(source, target).pipe(Stream.runLast)
 * })
 * const last = Effect.runSync(Effect.flatMap(program, Effect.fromOption))
 * console.log(last.copied, last.zeroes) // => 4194304 4128768
 * ```
 *
 * @category copying
 * @since 0.1.0
 */
export const copy = (
  source: BlockStore,
  target: BlockStore,
  options: CopyOptions = {}
): Stream.Stream<CopyProgress, StoreError> =>
  Stream.suspend(() => {
    const { depth = DEFAULT_DEPTH, length = source.capacity, rewrite, sparse = true } = options
    const limit = Math.min(source.limits.maxTransfer, target.limits.maxTransfer, target.limits.maxWriteZeroes)
    const blockSize = Math.max(source.blockSize, target.blockSize)
    const most = Math.min(DEFAULT_CHUNK_BYTES, limit)
    const { chunkSize = Math.max(blockSize, most - most % blockSize) } = options
    const wrong = check(source, target, { chunkSize, depth, length, limit, blockSize })
    if (wrong !== undefined) return Stream.fail(wrong)
    let copied = 0
    let zeroes = 0
    const progress = (): CopyProgress => ({ copied, zeroes, total: length })

    /** Copies an extent, and answers how much of it is zero. */
    const put = Effect.fnUntraced(function*({ isHole, length: extentLength, offset }: Extent) {
      if (isHole) {
        yield* target.writeZeroes(offset, extentLength)
        return extentLength
      }
      const memory = allocate(offset, extentLength)
      if (memory instanceof Errno.EINVAL) return yield* memory
      yield* source.read(offset, [memory])
      let zeroesHere = 0
      for (const { from, isZero, to } of sparse ? runsOf(memory) : [{ from: 0, to: extentLength, isZero: false }]) {
        if (isZero) {
          yield* target.writeZeroes(offset + from, to - from)
          zeroesHere += to - from
        } else {
          yield* target.write(offset + from, [memory.subarray(from, to)])
        }
      }
      return zeroesHere
    })
    const putAll = (extents: Stream.Stream<Extent, StoreError>) =>
      extents.pipe(
        Stream.mapEffect(
          (extent) =>
            Effect.map(put(extent), (zeroesHere) => {
              // Both at once: others are under way, and tell how far all of it has come.
              copied += extent.length
              zeroes += zeroesHere
              // The end is told after the flush, not before.
              return copied < length ? [progress()] : []
            }),
          { concurrency: depth, unordered: true }
        ),
        Stream.flattenIterable
      )
    const maxHole = Math.max(chunkSize, Math.min(MAX_HOLE_BYTES, target.limits.maxWriteZeroes))
    const extents = extentsOf(source, { chunkSize, length, maxHole: maxHole - maxHole % chunkSize, holes: sparse })
    if (rewrite === undefined) {
      return Stream.concat(putAll(extents), Stream.fromEffect(Effect.map(target.flush, progress)))
    }

    /** Has the target keep what was written since the last flush, if need be by writing it again. */
    const keep = (written: ReadonlyArray<Extent>) =>
      Effect.catchTag(target.flush, "EIO", () =>
        Effect.forEach(written, put, { concurrency: depth, discard: true }).pipe(
          Effect.andThen(target.flush),
          Effect.retry({ schedule: rewrite, while: ({ _tag }) => _tag === "EIO" })
        ))
    return extents.pipe(
      Stream.groupAdjacentBy(({ offset }) => Math.floor(offset / FLUSH_BYTES)),
      Stream.flatMap(([, group]) =>
        Stream.concat(putAll(Stream.fromIterable(group)), Stream.drain(Stream.fromEffect(keep(group))))
      ),
      // Each queue of a device tells of a loss: one more may, though all was written again.
      Stream.concat(Stream.fromEffect(Effect.map(keep([]), progress)))
    )
  })

/** Takes memory for a chunk, unless that is more than there can be. */
const allocate = (offset: number, length: number): Uint8Array | Errno.EINVAL => {
  try {
    return new Uint8Array(length)
  } catch (cause) {
    // What V8 throws where it cannot have the memory.
    if (!(cause instanceof RangeError)) throw cause
    return new Errno.EINVAL({ operation: "copy", offset, length, detail: "a chunk must fit into memory", cause })
  }
}

/** Tells runs of zeroes from runs of data, in whole grains. */
const runsOf = (
  memory: Uint8Array
): ReadonlyArray<{ readonly from: number; readonly to: number; readonly isZero: boolean }> => {
  const runs: Array<{ from: number; to: number; isZero: boolean }> = []
  for (let from = 0; from < memory.length; from += GRAIN_BYTES) {
    const to = Math.min(from + GRAIN_BYTES, memory.length)
    const isZero = Buffer.compare(memory.subarray(from, to), zeroGrain.subarray(0, to - from)) === 0
    const last = runs.at(-1)
    if (last?.isZero === isZero) last.to = to
    else runs.push({ from, to, isZero })
  }
  return runs
}

const check = (
  source: BlockStore,
  target: BlockStore,
  plan: {
    readonly chunkSize: number
    readonly depth: number
    readonly length: number
    readonly limit: number
    readonly blockSize: number
  }
): Errno.EINVAL | undefined => {
  const { blockSize, chunkSize, depth, length, limit } = plan
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "copy", length, detail })
  if (!(chunkSize > 0) || chunkSize % blockSize !== 0) {
    return refuse(`chunkSize ${chunkSize} must be a multiple of the block size ${blockSize}`)
  }
  if (chunkSize > limit) return refuse(`chunkSize ${chunkSize} must not exceed the stores' limit of ${limit}`)
  if (!Number.isSafeInteger(depth) || depth <= 0) return refuse(`depth ${depth} must be a whole number, 1 or more`)
  if (!(length >= 0) || length % blockSize !== 0) {
    return refuse(`length must be a multiple of the block size ${blockSize}`)
  }
  if (length > source.capacity) return refuse(`length must not exceed the source's capacity ${source.capacity}`)
  if (length > target.capacity) return refuse(`length must not exceed the target's capacity ${target.capacity}`)
  return undefined
}
