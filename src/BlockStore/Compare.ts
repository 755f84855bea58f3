/**
 * The whole content of a store, in order, and the comparison of two.
 *
 * What both know to be a hole is neither read nor compared; a hole on one side is compared with zeroes.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import * as ByteAccess from "./ByteAccess.ts"
import { type Extent, extentsOf, type MayHaveHoles } from "./Extents.ts"
import type { BlockStore, StoreError } from "./Interface.ts"

/**
 * How much is read, and how much of it at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadThroughOptions {
  /** Bytes of each chunk. Default 1 MiB. */
  readonly chunkSize?: number
  /** Chunks in flight at once, of each store. Default 8. */
  readonly depth?: number
  /** How many bytes, from the start. Default: all there are. */
  readonly length?: number
}

/**
 * The first place where two stores differ.
 *
 * @category models
 * @since 0.1.0
 */
export interface Difference {
  /** In bytes, exact. Where one store is but longer, the shorter one's end. */
  readonly offset: number
  /** `content`: the bytes differ. `capacity`: all that both have is the same, and one ends earlier. */
  readonly reason: "content" | "capacity"
}

const DEFAULT_CHUNK_BYTES = 2 ** 20
const DEFAULT_DEPTH = 8

/**
 * Reads all of a store as a stream of chunks, in order, and what is known to be a hole as zeroes without reading it. Chunks
 * ahead are read while earlier ones are used. Chunks are only for reading: all holes share the same zeroes.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect, Stream } from "effect"
 * import { createHash } from "node:crypto"
 *
 * const program = Effect.gen(function*() {
 *   const hash = createHash("sha256")
 *   const store = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   yield* BlockStore.contents(store).pipe(Stream.runForEach((bytes) => Effect.sync(() => hash.update(bytes))))
 *   return hash.digest("hex")
 * })
 * console.log((await Effect.runPromise(program)).slice(0, 16)) // => "30e14955ebf13522"
 * ```
 *
 * @category reading
 * @since 0.1.0
 */
export const contents = (
  store: BlockStore,
  options: ReadThroughOptions = {}
): Stream.Stream<Uint8Array, StoreError> =>
  Stream.suspend(() => {
    const { chunkSize = DEFAULT_CHUNK_BYTES, depth = DEFAULT_DEPTH, length = store.capacity } = options
    const wrong = check("contents", { chunkSize, depth, length }, store.capacity)
    if (wrong !== undefined) return Stream.fail(wrong)
    return extentsOf(store, { chunkSize, length, maxHole: chunkSize }).pipe(
      Stream.mapEffect(readerOf(store, chunkSize), { concurrency: depth })
    )
  })

/**
 * Finds the first byte at which two stores differ; None where they are the same. Stores of different capacity are different,
 * at the shorter one's end if not before, unless `length` says how much of both is meant. `onProgress` is told how many
 * bytes from the start are known to be the same.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect, Option } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const one = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   const other = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   yield* other.write(4096, [new Uint8Array(512).fill(1, 7)])
 *   return Option.map(yield* BlockStore.compare(one, other), ({ offset }) => offset)
 * })
 * console.log(Option.getOrNull(await Effect.runPromise(program))) // => 4103
 * ```
 *
 * @category comparing
 * @since 0.1.0
 */
export const compare = (
  a: BlockStore,
  b: BlockStore,
  options: ReadThroughOptions & { readonly onProgress?: (same: number) => Effect.Effect<void> } = {}
): Effect.Effect<Option.Option<Difference>, StoreError> =>
  Effect.suspend(() => {
    const shorter = Math.min(a.capacity, b.capacity)
    const { chunkSize = DEFAULT_CHUNK_BYTES, depth = DEFAULT_DEPTH, length = shorter, onProgress } = options
    const wrong = check("compare", { chunkSize, depth, length }, shorter)
    if (wrong !== undefined) return Effect.fail(wrong)
    const isShorter = options.length === undefined && a.capacity !== b.capacity
    const plan = { chunkSize, length, maxHole: chunkSize }
    const readA = readerOf(a, chunkSize)
    const readB = readerOf(b, chunkSize)

    const differenceIn = Effect.fnUntraced(function*([extentA, extentB]: readonly [Extent, Extent]) {
      const end = extentA.offset + extentA.length
      if (extentA.isHole && extentB.isHole) return { end, difference: undefined }
      const [bytesA, bytesB] = yield* Effect.all([readA(extentA), readB(extentB)], { concurrency: 2 })
      const index = firstDifference(bytesA, bytesB)
      const difference: Difference | undefined = index === undefined
        ? undefined
        : { offset: extentA.offset + index, reason: "content" }
      return { end, difference }
    })
    return Stream.zip(extentsOf(a, plan), extentsOf(b, plan)).pipe(
      Stream.mapEffect(differenceIn, { concurrency: depth }),
      Stream.tap(({ difference, end }) =>
        difference === undefined && onProgress !== undefined ? onProgress(end) : Effect.void
      ),
      Stream.filter(({ difference }) => difference !== undefined),
      Stream.runHead,
      Effect.map((found) => {
        const difference = Option.getOrUndefined(found)?.difference
        if (difference !== undefined) return Option.some(difference)
        return isShorter ? Option.some<Difference>({ offset: shorter, reason: "capacity" }) : Option.none()
      })
    )
  })

/** Reads extents of up to `chunkSize` bytes. */
const readerOf = (store: MayHaveHoles, chunkSize: number) => {
  // Any length is read, whatever the block size: of two stores the shorter one may end within the other's block.
  const { readBytes } = ByteAccess.make(store)
  let zeroes: Uint8Array | undefined
  return ({ isHole, length, offset }: Extent): Effect.Effect<Uint8Array, StoreError> => {
    if (!isHole) return readBytes(offset, length)
    zeroes ??= new Uint8Array(chunkSize)
    return Exit.succeed(zeroes.subarray(0, length))
  }
}

/** Halves the range that differs until one byte is left. */
const firstDifference = (a: Uint8Array, b: Uint8Array): number | undefined => {
  if (Buffer.compare(a, b) === 0) return undefined
  let from = 0
  let to = a.length
  while (to - from > 1) {
    const middle = (from + to) >>> 1
    if (Buffer.compare(a.subarray(from, middle), b.subarray(from, middle)) === 0) from = middle
    else to = middle
  }
  return from
}

const check = (
  operation: string,
  { chunkSize, depth, length }: Required<ReadThroughOptions>,
  most: number
): Errno.EINVAL | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation, length, detail })
  const isCount = (count: number) => Number.isSafeInteger(count) && count > 0
  if (!isCount(chunkSize)) return refuse(`chunkSize ${chunkSize} must be a whole number, 1 or more`)
  if (!isCount(depth)) return refuse(`depth ${depth} must be a whole number, 1 or more`)
  if (!Number.isSafeInteger(length) || length < 0) return refuse("length must be a whole number, 0 or more")
  return length > most ? refuse(`length must not exceed the capacity ${most}`) : undefined
}
