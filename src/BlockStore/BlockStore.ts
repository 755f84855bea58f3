/**
 * Block stores: anything that can be read and written as blocks. A block device, a file, memory, or a combinator over
 * another store.
 *
 * The interface is small on purpose, and a filter is written once for whatever it is put on. Stores are made by
 * {@link memory} and {@link file}, put together by {@link slice} and {@link overlay}, and dressed by the filters, each of
 * which gives a store again. Combinators that can be asked for nonsense, or remember something, are Effects.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const flakyPartition = BlockStore.memory({ capacity: 1 << 30 }).pipe(
 *   Effect.flatMap(BlockStore.slice(1 << 20, 1 << 24)),
 *   Effect.flatMap(BlockStore.failing({ seed: 7, rate: 0.01, errnos: ["EIO"] })),
 *   Effect.map(BlockStore.delay({ flush: "1 millis" })),
 *   Effect.map(BlockStore.metered({ name: "scratch" }))
 * )
 * console.log(Effect.runSync(flakyPartition).capacity) // => 16777216
 * ```
 *
 * @since 0.1.0
 */
export { around, type Filter } from "./Around.ts"
export { type ByteAccess, make as bytes, type Range, type StreamOptions } from "./ByteAccess.ts"
export { compare, contents, type Difference, type ReadThroughOptions } from "./Compare.ts"
export { copy, type CopyOptions, type CopyProgress } from "./Copy.ts"
export { delay, type Delays } from "./Delay.ts"
export { type Chance, failing, type Fault, type FaultPlan } from "./Failing.ts"
export { file, type FileError, type FileOptions, type FileStore, type ResizeError } from "./FileStore.ts"
export {
  type BlockStore,
  checkGeometry,
  checkOperation,
  checkRange,
  lengthOf,
  type Limits,
  type Operation,
  type StoreError,
  storeErrors,
  unlimited,
  type WriteOptions,
  type WriteZeroesOptions
} from "./Interface.ts"
export { logged } from "./Logged.ts"
export { memory, type MemoryStore } from "./MemoryStore.ts"
export { metered, type MeterOptions } from "./Metered.ts"
export { type Overlay, overlay } from "./Overlay.ts"
export { rateLimit, type Rates } from "./RateLimit.ts"
export { readOnly } from "./ReadOnly.ts"
export { slice } from "./Slice.ts"
export { traced } from "./Traced.ts"
