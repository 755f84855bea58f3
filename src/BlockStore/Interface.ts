/**
 * What every block store is: the interface, its errors, and the checks that all of them share. `BlockStore` is the module
 * that users see; this one exists so that stores and combinators can name the interface without importing it back.
 *
 * The interface is small on purpose: what a store has to do is what a disk does, on ranges that are multiples of its block
 * size. What callers want beyond that (any offset and length, streams, copies) is written once over this interface, in
 * `ByteAccess` and `Transfer`, and a filter is written once for whatever it is put on.
 *
 * Buffers belong to the caller, who leaves them alone until the Effect ends. Operations may overlap in time; the order of
 * two that overlap in space is not promised, except that a flush covers every write that ended before it began.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"

/**
 * What an operation on a store may fail with: a range or buffer that breaks a rule (EINVAL), a store that does not do it
 * (ENOTSUP), a write to a store that is read-only (EBADF), a fault of the medium (EIO), one that is full (ENOSPC), or one that
 * slow (ETIME) or gone (ENOTCONN, ETIMEDOUT, EPROTO, ENODEV, ESTALE, ESHUTDOWN).
 *
 * @category errors
 * @since 0.1.0
 */
export type StoreError =
  | Errno.EINVAL
  | Errno.ENOTSUP
  | Errno.EBADF
  | Errno.EIO
  | Errno.ENOSPC
  | Errno.ENOTCONN
  | Errno.ETIME
  | Errno.ETIMEDOUT
  | Errno.EPROTO
  | Errno.ENODEV
  | Errno.ESTALE
  | Errno.ESHUTDOWN

/**
 * The errnos of {@link StoreError}, for `Errno.fromNumber`.
 *
 * @category errors
 * @since 0.1.0
 */
export const storeErrors = [
  "EINVAL",
  "ENOTSUP",
  "EBADF",
  "EIO",
  "ENOSPC",
  "ENOTCONN",
  "ETIME",
  "ETIMEDOUT",
  "EPROTO",
  "ENODEV",
  "ESTALE",
  "ESHUTDOWN"
] as const satisfies ReadonlyArray<StoreError["_tag"]>

/**
 * The most that a store takes at once, in bytes; `Infinity` where there is no limit. A store refuses more with EINVAL;
 * `ByteAccess` splits.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limits {
  readonly maxTransfer: number
  readonly maxDiscard: number
  readonly maxWriteZeroes: number
}

/**
 * How a write or a write-zeroes is to be done.
 *
 * @category models
 * @since 0.1.0
 */
export interface WriteOptions {
  /** End only once the data is stable. Default false. */
  readonly fua?: boolean
}

/**
 * How a write-zeroes is to be done.
 *
 * @category models
 * @since 0.1.0
 */
export interface WriteZeroesOptions extends WriteOptions {
  /** Keep the blocks allocated. Default false: they may become a hole. */
  readonly noUnmap?: boolean
  /** Fail with ENOTSUP instead of writing zeroes the slow way. Default false. */
  readonly noFallback?: boolean
}

/**
 * Anything that can be read and written as blocks.
 *
 * @category models
 * @since 0.1.0
 */
export interface BlockStore {
  /** Names the store to people, in logs and errors. */
  readonly id: string
  /** Size in bytes: a multiple of the block size. May change; see {@link BlockStore.capacityChanges}. */
  readonly capacity: number
  /** What offset and length of every operation must be multiples of, in bytes: a power of two from 512 up. */
  readonly blockSize: number
  readonly readOnly: boolean
  readonly limits: Limits
  /** Reads from `offset` until the buffers are full, one after another. */
  readonly read: (offset: number, buffers: ReadonlyArray<Uint8Array>) => Effect.Effect<void, StoreError>
  /** Writes the buffers to `offset`, one after another. */
  readonly write: (
    offset: number,
    buffers: ReadonlyArray<Uint8Array>,
    options?: WriteOptions
  ) => Effect.Effect<void, StoreError>
  /** Makes a range read as zeroes. */
  readonly writeZeroes: (
    offset: number,
    length: number,
    options?: WriteZeroesOptions
  ) => Effect.Effect<void, StoreError>
  /** Tells that the content of a range is no longer needed; what it reads as afterwards is undefined. */
  readonly discard: (offset: number, length: number) => Effect.Effect<void, StoreError>
  /** Makes every write that has ended stable. */
  readonly flush: Effect.Effect<void, StoreError>
  /** Emits the new capacity when it changes. Ends at once where it cannot. */
  readonly capacityChanges: Stream.Stream<number>
}

/**
 * One use of a store, as filters see it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Operation {
  readonly name: "read" | "write" | "writeZeroes" | "discard" | "flush"
  /** Where it begins, in bytes; 0 for a flush. */
  readonly offset: number
  /** How long it is, in bytes; 0 for a flush. */
  readonly length: number
}

/**
 * Tells what is wrong with a range of a store, if anything: what every store checks, in the order of a queue's checks
 * (start, read-only, length, capacity, limit).
 *
 * @category validation
 * @since 0.1.0
 */
export const checkRange = (
  store: Pick<BlockStore, "blockSize" | "capacity" | "readOnly">,
  operation: string,
  offset: number,
  length: number,
  options: { readonly writes: boolean; readonly limit: number }
): Errno.EINVAL | Errno.EBADF | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation, offset, length, detail })
  const { blockSize, capacity, readOnly } = store
  if (offset % blockSize !== 0 || offset < 0) return refuse(`offset must be a multiple of the block size ${blockSize}`)
  if (options.writes && readOnly) {
    return new Errno.EBADF({ operation, offset, length, detail: "the store is read-only" })
  }
  if (length <= 0) return refuse("length must be positive")
  if (length % blockSize !== 0) return refuse(`length must be a multiple of the block size ${blockSize}`)
  if (length > capacity - offset) return refuse(`the range must end within capacity ${capacity}`)
  if (length > options.limit) return refuse(`length exceeds the store's limit of ${options.limit}`)
  return undefined
}

/**
 * The length of several buffers together, in bytes.
 *
 * @category validation
 * @since 0.1.0
 */
export const lengthOf = (buffers: ReadonlyArray<Uint8Array>): number =>
  buffers.reduce((sum, buffer) => sum + buffer.length, 0)

/**
 * Tells what is wrong with an operation on a store, if anything: {@link checkRange} with what the operation implies.
 *
 * @category validation
 * @since 0.1.0
 */
export const checkOperation = (
  store: Pick<BlockStore, "blockSize" | "capacity" | "readOnly" | "limits">,
  { length, name, offset }: Operation
): Errno.EINVAL | Errno.EBADF | undefined => {
  const { maxDiscard, maxTransfer, maxWriteZeroes } = store.limits
  switch (name) {
    case "read":
      return checkRange(store, "read", offset, length, { writes: false, limit: maxTransfer })
    case "write":
      return checkRange(store, "write", offset, length, { writes: true, limit: maxTransfer })
    case "writeZeroes":
      return checkRange(store, "writeZeroes", offset, length, { writes: true, limit: maxWriteZeroes })
    case "discard":
      return checkRange(store, "discard", offset, length, { writes: true, limit: maxDiscard })
    case "flush":
      return undefined
  }
}

/**
 * The limits of a store that has none.
 *
 * @category constants
 * @since 0.1.0
 */
export const unlimited: Limits = { maxTransfer: Infinity, maxDiscard: Infinity, maxWriteZeroes: Infinity }

const MIN_BLOCK_BYTES = 512
/** Far above what any disk has; it keeps the arithmetic on block sizes within 32 bits. */
const MAX_BLOCK_BYTES = 2 ** 30

/**
 * Tells what is wrong with the size of a store that is being made, if anything.
 *
 * @category validation
 * @since 0.1.0
 */
export const checkGeometry = (
  operation: string,
  { blockSize, capacity }: { readonly blockSize: number; readonly capacity: number }
): Errno.EINVAL | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation, detail })
  if (
    !Number.isInteger(blockSize) || blockSize < MIN_BLOCK_BYTES || blockSize > MAX_BLOCK_BYTES
    || (blockSize & (blockSize - 1)) !== 0
  ) {
    return refuse(`blockSize ${blockSize} must be a power of two from ${MIN_BLOCK_BYTES} to ${MAX_BLOCK_BYTES}`)
  }
  if (!Number.isSafeInteger(capacity) || capacity < 0 || capacity % blockSize !== 0) {
    return refuse(`capacity ${capacity} must be a whole multiple of the block size ${blockSize}`)
  }
  return undefined
}
