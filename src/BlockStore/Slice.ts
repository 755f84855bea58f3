/**
 * A part of a store as a store of its own: a partition, for instance.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Errno from "../Errno.ts"
import { follow } from "./CapacityChanges.ts"
import { type BlockStore, checkOperation, lengthOf, type Operation, type StoreError } from "./Interface.ts"

/**
 * Makes a store of the `length` bytes from `offset` on, both multiples of the block size and within the capacity, else
 * EINVAL. Where the store shrinks, so does the slice; it never exceeds `length`. An error of the store beneath names the
 * offset there.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const partition = BlockStore.memory({ capacity: 1 << 30 }).pipe(Effect.flatMap(BlockStore.slice(1 << 20, 1 << 29)))
 * console.log(Effect.runSync(partition).id) // => "slice(memory, 1048576+536870912)"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const slice: {
  (offset: number, length: number): (self: BlockStore) => Effect.Effect<BlockStore, Errno.EINVAL>
  (self: BlockStore, offset: number, length: number): Effect.Effect<BlockStore, Errno.EINVAL>
} = dual(
  3,
  (self: BlockStore, offset: number, length: number): Effect.Effect<BlockStore, Errno.EINVAL> =>
    Effect.suspend(() => {
      const wrong = checkPart(self, offset, length)
      return wrong === undefined
        ? Effect.succeed(make(self, offset, length))
        : new Errno.EINVAL({ operation: "slice", offset, length, detail: wrong })
    })
)

const checkPart = ({ blockSize, capacity }: BlockStore, offset: number, length: number): string | undefined => {
  if (offset % blockSize !== 0 || offset < 0) return `offset must be a multiple of the block size ${blockSize}`
  if (length % blockSize !== 0 || length < 0) return `length must be a multiple of the block size ${blockSize}`
  return length > capacity - offset ? `the slice must end within capacity ${capacity}` : undefined
}

const make = (self: BlockStore, start: number, length: number): BlockStore => {
  const checked = (operation: Operation, effect: () => Effect.Effect<void, StoreError>) =>
    Effect.suspend((): Effect.Effect<void, StoreError> => checkOperation(part, operation) ?? effect())
  const part: BlockStore = {
    id: `slice(${self.id}, ${start}+${length})`,
    get capacity() {
      return Math.max(0, Math.min(length, self.capacity - start))
    },
    get blockSize() {
      return self.blockSize
    },
    get readOnly() {
      return self.readOnly
    },
    get limits() {
      return self.limits
    },
    read: (offset, buffers) =>
      checked({ name: "read", offset, length: lengthOf(buffers) }, () => self.read(start + offset, buffers)),
    write: (offset, buffers, options) =>
      checked(
        { name: "write", offset, length: lengthOf(buffers) },
        () => self.write(start + offset, buffers, options)
      ),
    writeZeroes: (offset, length, options) =>
      checked({ name: "writeZeroes", offset, length }, () => self.writeZeroes(start + offset, length, options)),
    discard: (offset, length) =>
      checked({ name: "discard", offset, length }, () => self.discard(start + offset, length)),
    flush: self.flush,
    capacityChanges: follow(() => part.capacity, self.capacityChanges)
  }
  return part
}
