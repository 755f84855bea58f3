/**
 * A store that cannot be changed through this view of it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { type BlockStore, checkOperation, lengthOf, type Operation, type StoreError } from "./Interface.ts"

/**
 * Makes a store read-only: a write, a write-zeroes or a discard fails with EBADF. Whoever has the store itself can still
 * write to it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const readOnly = (self: BlockStore): BlockStore => {
  // The check refuses whatever would write: the view is read-only.
  const refuse = (operation: Operation) =>
    Effect.suspend((): Effect.Effect<void, StoreError> => checkOperation(view, operation) ?? Effect.void)
  const view: BlockStore = {
    id: `readOnly(${self.id})`,
    get capacity() {
      return self.capacity
    },
    get blockSize() {
      return self.blockSize
    },
    readOnly: true,
    get limits() {
      return self.limits
    },
    read: self.read,
    write: (offset, buffers) => refuse({ name: "write", offset, length: lengthOf(buffers) }),
    writeZeroes: (offset, length) => refuse({ name: "writeZeroes", offset, length }),
    discard: (offset, length) => refuse({ name: "discard", offset, length }),
    flush: self.flush,
    capacityChanges: self.capacityChanges
  }
  return view
}
