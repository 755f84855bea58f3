/**
 * Copy-on-write: a store that reads as its base until it is written to, and keeps what is written in its top.
 *
 * The unit is a block of the overlay: the larger of the two block sizes. Every write covers whole ones, so that nothing is
 * ever copied up, a write costs what it costs on the top, and concurrent writes have no block in common but the one they
 * both write. A block counts as changed once a write to it has ended well: until then it reads as before, and one that
 * fails or is interrupted on a block unchanged so far leaves it as the base has it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import { section } from "./Buffers.ts"
import { follow } from "./CapacityChanges.ts"
import { ChangedBlocks } from "./ChangedBlocks.ts"
import { type BlockStore, checkOperation, lengthOf, type Operation, type StoreError } from "./Interface.ts"

/**
 * A store over another, and what it has changed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Overlay extends BlockStore {
  /** What lies in the top, up to the capacity: in order, in bytes, each range as long as it can be. */
  readonly changedBlocks: ReadonlyArray<{ readonly offset: number; readonly length: number }>
}

/** Keeps a read of scattered blocks from waiting for one after another, and from flooding the store. */
const MAX_CONCURRENT_RUNS = 16

/**
 * Lays `top` over `base`. Reads of blocks never written go to the base, all else goes to the top, at the same offset; the
 * base is never written to. Discarded and zeroed blocks count as changed. What lay in the top before does not show.
 *
 * The capacity is the base's, the block size the larger of the two. Fails with EINVAL where the base's capacity is not a
 * multiple of that block size, or the top is smaller than the base. Where either is resized afterwards, the overlay is as
 * large as the smaller one; what was changed beyond the end of a base that shrinks shows again when it grows.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const base = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   const top = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   const overlay = yield* BlockStore.overlay(base, top)
 *   yield* overlay.write(4096, [new Uint8Array(1024)])
 *   return [overlay.changedBlocks, base.allocatedBytes]
 * })
 * console.log(Effect.runSync(program)) // => [ [ { offset: 4096, length: 1024 } ], 0 ]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const overlay: {
  (top: BlockStore): (base: BlockStore) => Effect.Effect<Overlay, Errno.EINVAL>
  (base: BlockStore, top: BlockStore): Effect.Effect<Overlay, Errno.EINVAL>
} = dual(2, (base: BlockStore, top: BlockStore): Effect.Effect<Overlay, Errno.EINVAL> =>
  Effect.suspend(() => {
    const blockSize = Math.max(base.blockSize, top.blockSize)
    const refuse = (detail: string) => new Errno.EINVAL({ operation: "overlay", detail })
    if (base.capacity % blockSize !== 0) {
      return refuse(`the base's capacity ${base.capacity} must be a multiple of the block size ${blockSize}`)
    }
    if (top.capacity < base.capacity) {
      return refuse(`the top's capacity ${top.capacity} must not be below the base's ${base.capacity}`)
    }
    return Effect.succeed(make(base, top, blockSize))
  }))

const make = (base: BlockStore, top: BlockStore, blockSize: number): Overlay => {
  const changed = new ChangedBlocks()

  const checked = (operation: Operation, effect: () => Effect.Effect<void, StoreError>) =>
    Effect.suspend((): Effect.Effect<void, StoreError> => checkOperation(self, operation) ?? effect())

  /** Does to the top what changes blocks. */
  const change = (operation: Operation, effect: () => Effect.Effect<void, StoreError>) =>
    checked(
      operation,
      () =>
        Effect.tap(effect(), () =>
          Effect.sync(() => changed.mark(operation.offset / blockSize, operation.length / blockSize)))
    )

  const read = (offset: number, length: number, buffers: ReadonlyArray<Uint8Array>) => {
    const runs = changed.runs(offset / blockSize, length / blockSize)
    const [first] = runs
    const storeOf = (isMarked: boolean) => isMarked ? top : base
    if (first !== undefined && runs.length === 1) return storeOf(first.isMarked).read(offset, buffers)
    return Effect.forEach(
      runs,
      ({ count, isMarked, start }) =>
        storeOf(isMarked).read(
          start * blockSize,
          section(buffers, start * blockSize - offset, count * blockSize)
        ),
      { concurrency: MAX_CONCURRENT_RUNS, discard: true }
    )
  }

  const self: Overlay = {
    id: `overlay(${base.id}, ${top.id})`,
    get capacity() {
      const capacity = Math.min(base.capacity, top.capacity)
      return capacity - capacity % blockSize
    },
    blockSize,
    get readOnly() {
      return top.readOnly
    },
    get limits() {
      return {
        maxTransfer: Math.min(base.limits.maxTransfer, top.limits.maxTransfer),
        maxDiscard: top.limits.maxDiscard,
        maxWriteZeroes: top.limits.maxWriteZeroes
      }
    },
    get changedBlocks() {
      const { capacity } = self
      return changed.marked().flatMap(({ count, start }) => {
        const offset = start * blockSize
        return offset < capacity ? [{ offset, length: Math.min(count * blockSize, capacity - offset) }] : []
      })
    },
    read: (offset, buffers) => {
      const length = lengthOf(buffers)
      return checked({ name: "read", offset, length }, () => read(offset, length, buffers))
    },
    write: (offset, buffers, options) =>
      change({ name: "write", offset, length: lengthOf(buffers) }, () => top.write(offset, buffers, options)),
    writeZeroes: (offset, length, options) =>
      change({ name: "writeZeroes", offset, length }, () => top.writeZeroes(offset, length, options)),
    discard: (offset, length) => change({ name: "discard", offset, length }, () => top.discard(offset, length)),
    flush: top.flush,
    capacityChanges: follow(() => self.capacity, Stream.merge(base.capacityChanges, top.capacityChanges))
  }
  return self
}
