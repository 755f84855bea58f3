/**
 * Any offset and any length on a block store, with ordinary memory: bytes, streams and sinks.
 *
 * What does not begin or end at a block's edge is done by reading the block, changing part of it, and writing it back.
 * Writers of one `ByteAccess` keep out of each other's blocks while they do, so that two of them in one block cannot tear
 * it. Whoever writes past it, through a queue or another `ByteAccess` of the same store, is not kept out.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Pull from "effect/Pull"
import * as Semaphore from "effect/Semaphore"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import type { BlockStore, StoreError, WriteOptions, WriteZeroesOptions } from "./Interface.ts"
import { RangeLock } from "./RangeLock.ts"
import { inParts } from "./Split.ts"

/**
 * A part of a store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Range {
  /** Where it begins, in bytes. Default 0. */
  readonly offset?: number
  /** How long it is, in bytes. Default: up to the store's end. */
  readonly length?: number
}

/**
 * How much is in flight.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /** Bytes of each chunk. Default 128 KiB. */
  readonly chunkSize?: number
  /** Chunks in flight at once. Default 8. */
  readonly depth?: number
}

/**
 * A store by bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface ByteAccess {
  /** Reads any range into new memory. Nothing is read for a length of 0. */
  readonly readBytes: (offset: number, length: number) => Effect.Effect<Uint8Array, StoreError>
  /** Writes bytes anywhere. Nothing is written where there are none. */
  readonly writeBytes: (offset: number, bytes: Uint8Array, options?: WriteOptions) => Effect.Effect<void, StoreError>
  /** Makes any range read as zeroes: whole blocks by the store's own means, the rest by writing. */
  readonly writeZeroes: (
    offset: number,
    length: number,
    options?: WriteZeroesOptions
  ) => Effect.Effect<void, StoreError>
  /** Gives up the whole blocks of any range; what is left of it at both ends keeps its content. */
  readonly discard: (offset: number, length: number) => Effect.Effect<void, StoreError>
  /** Reads a range as a stream of chunks, in order; chunks ahead are read while earlier ones are used. */
  readonly stream: (range?: Range, options?: StreamOptions) => Stream.Stream<Uint8Array, StoreError>
  /**
   * Writes a stream of bytes from `offset` on, and ends with how many they were. Chunks are written while later ones come,
   * `depth` at once. Nothing is flushed.
   */
  readonly sink: (
    offset?: number,
    options?: Pick<StreamOptions, "depth">
  ) => Sink.Sink<number, Uint8Array, never, StoreError>
}

const DEFAULT_CHUNK_BYTES = 131072
const DEFAULT_DEPTH = 8

/**
 * Opens a store by bytes. Blocks are kept from tearing among the writers of one `ByteAccess`, so a store needs but one.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (store: BlockStore): ByteAccess => {
  const lock = new RangeLock()

  const down = (offset: number) => offset - offset % store.blockSize
  const up = (offset: number) => down(offset + store.blockSize - 1)

  const check = (operation: string, offset: number, length: number): Errno.EINVAL | undefined => {
    const refuse = (detail: string) => new Errno.EINVAL({ operation, offset, length, detail })
    if (!Number.isSafeInteger(offset) || offset < 0) return refuse("offset must be a whole number, 0 or more")
    if (!Number.isSafeInteger(length) || length < 0) return refuse("length must be a whole number, 0 or more")
    if (length > store.capacity - offset) return refuse(`the range must end within capacity ${store.capacity}`)
    return undefined
  }

  /** Does something with a range after it was checked; nothing for an empty one. */
  const checked = <A>(
    operation: "read" | "write" | "writeZeroes" | "discard",
    offset: number,
    length: number,
    empty: A,
    use: () => Effect.Effect<A, StoreError>
  ): Effect.Effect<A, StoreError> =>
    Effect.suspend(() => {
      const wrong = check(operation, offset, length)
      if (wrong !== undefined) return Exit.fail(wrong)
      if (length === 0) return Exit.succeed(empty)
      if (operation !== "read" && store.readOnly) {
        return new Errno.EBADF({ operation, offset, length, detail: "the store is read-only" })
      }
      return use()
    })

  /** Splits whole blocks at the store's limit. */
  const split = (
    start: number,
    end: number,
    limit: number,
    each: (from: number, to: number) => Effect.Effect<void, StoreError>
  ): Effect.Effect<void, StoreError> =>
    inParts(start, end, limit === Infinity ? end - start : Math.max(store.blockSize, down(limit)), each)

  const readBlocks = (start: number, memory: Uint8Array) =>
    split(
      start,
      start + memory.length,
      store.limits.maxTransfer,
      (from, to) => store.read(from, [memory.subarray(from - start, to - start)])
    )

  const writeBlocks = (start: number, memory: Uint8Array, options: WriteOptions | undefined) =>
    split(
      start,
      start + memory.length,
      store.limits.maxTransfer,
      (from, to) => store.write(from, [memory.subarray(from - start, to - start)], options)
    )

  /** Changes part of a block. The caller holds it. */
  const modify = Effect.fnUntraced(function*(offset: number, bytes: Uint8Array, options: WriteOptions | undefined) {
    const start = down(offset)
    const block = new Uint8Array(store.blockSize)
    yield* store.read(start, [block])
    block.set(bytes, offset - start)
    yield* store.write(start, [block], options)
  })

  /** Handles the ends of a range that are parts of blocks, and the whole blocks between them. */
  const inBlocks = (
    offset: number,
    length: number,
    part: (from: number, to: number) => Effect.Effect<void, StoreError>,
    whole: (from: number, to: number) => Effect.Effect<void, StoreError>
  ): Effect.Effect<void, StoreError> => {
    const end = offset + length
    const first = up(offset)
    const last = down(end)
    if (first > last) return part(offset, end)
    const parts: Array<Effect.Effect<void, StoreError>> = []
    if (offset < first) parts.push(part(offset, first))
    if (first < last) parts.push(whole(first, last))
    if (last < end) parts.push(part(last, end))
    return Effect.all(parts, { concurrency: "unbounded", discard: true })
  }

  const holding = (offset: number, length: number) => lock.with(down(offset), up(offset + length))

  const readBytes: ByteAccess["readBytes"] = (offset, length) =>
    checked("read", offset, length, new Uint8Array(0), () => {
      const start = down(offset)
      const memory = allocate(offset, up(offset + length) - start)
      if (memory instanceof Errno.EINVAL) return memory
      return Effect.as(readBlocks(start, memory), memory.subarray(offset - start, offset - start + length))
    })

  const writeBytes: ByteAccess["writeBytes"] = (offset, bytes, options) =>
    checked("write", offset, bytes.length, undefined, () =>
      inBlocks(
        offset,
        bytes.length,
        (from, to) => modify(from, bytes.subarray(from - offset, to - offset), options),
        (from, to) => writeBlocks(from, bytes.subarray(from - offset, to - offset), options)
      ).pipe(holding(offset, bytes.length)))

  return {
    readBytes,
    writeBytes,
    writeZeroes: (offset, length, options) =>
      checked("writeZeroes", offset, length, undefined, () =>
        inBlocks(
          offset,
          length,
          (from, to) => modify(from, new Uint8Array(to - from), options),
          (from, to) =>
            split(from, to, store.limits.maxWriteZeroes, (start, end) => store.writeZeroes(start, end - start, options))
        ).pipe(holding(offset, length))),
    discard: (offset, length) =>
      checked("discard", offset, length, undefined, () => {
        const first = up(offset)
        const last = down(offset + length)
        if (first >= last) return Effect.void
        return split(first, last, store.limits.maxDiscard, (start, end) => store.discard(start, end - start)).pipe(
          holding(first, last - first)
        )
      }),
    stream: ({ length, offset = 0 } = {}, { chunkSize = DEFAULT_CHUNK_BYTES, depth = DEFAULT_DEPTH } = {}) =>
      Stream.suspend(() => {
        const total = length ?? store.capacity - offset
        const wrong = check("stream", offset, total) ?? checkCount("stream", "chunkSize", chunkSize)
          ?? checkCount("stream", "depth", depth)
        if (wrong !== undefined) return Stream.fail(wrong)
        if (total === 0) return Stream.empty
        return Stream.range(0, Math.ceil(total / chunkSize) - 1).pipe(
          Stream.mapEffect((i) => readBytes(offset + i * chunkSize, Math.min(chunkSize, total - i * chunkSize)), {
            concurrency: depth
          })
        )
      }),
    sink: (offset = 0, { depth = DEFAULT_DEPTH } = {}) =>
      Sink.fromTransform((upstream, scope) =>
        Effect.gen(function*() {
          const wrong = checkCount("sink", "depth", depth)
          if (wrong !== undefined) return yield* wrong
          const permits = yield* Semaphore.make(depth)
          let position = offset
          const failed = yield* Deferred.make<never, StoreError>()
          const writeOne = Effect.fnUntraced(function*(bytes: Uint8Array) {
            yield* permits.take(1)
            const at = position
            position += bytes.length
            yield* writeBytes(at, bytes).pipe(
              Effect.onExit((exit) => {
                // The permit of a write that failed stays out, so that no other begins.
                return Exit.isFailure(exit) ? Deferred.failCause(failed, exit.cause) : permits.release(1)
              }),
              Effect.forkIn(scope, { startImmediately: true })
            )
          })
          yield* upstream.pipe(
            Effect.flatMap(Effect.forEach(writeOne, { discard: true })),
            Effect.forever({ disableYield: true }),
            Pull.catchDone(() => Effect.void),
            // Every permit is back when every write has ended.
            Effect.andThen(permits.take(depth)),
            // The source may be silent when a write fails.
            Effect.raceFirst(Deferred.await(failed))
          )
          return [position - offset] as const
        })
      )
  }
}

/**
 * Takes memory for `length` bytes of a read, unless that is more than there can be. What it holds is left as it is, since a read
 * fills all of it: zeroed memory is new to the process, and the kernel gives that page by page.
 */
const allocate = (offset: number, length: number): Uint8Array<ArrayBuffer> | Errno.EINVAL => {
  try {
    return new Uint8Array(Buffer.allocUnsafeSlow(length).buffer)
  } catch (cause) {
    // What V8 throws where it cannot have the memory.
    if (!(cause instanceof RangeError)) throw cause
    const detail = "length must fit into memory; `stream` reads in chunks"
    return new Errno.EINVAL({ operation: "read", offset, length, detail, cause })
  }
}

const checkCount = (operation: string, name: string, count: number): Errno.EINVAL | undefined =>
  Number.isSafeInteger(count) && count > 0
    ? undefined
    : new Errno.EINVAL({ operation, detail: `${name} ${count} must be a whole number, 1 or more` })
