/**
 * Filters: what runs around every operation of a store, written once for whatever store it is put on.
 *
 * A filter is given each operation as a value and its Effect, and answers with the Effect that takes its place. It is asked
 * while that Effect is being built, and for `flush` once, when the filter is put on: what it counts or remembers belongs
 * inside the Effect it answers with.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { type BlockStore, checkOperation, lengthOf, type Operation, type StoreError } from "./Interface.ts"

/**
 * Something that runs around every operation of a store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Filter {
  /** Goes into the id of the resulting store: `name(id)`. */
  readonly name: string
  /** Answers with what takes the operation's place. */
  readonly run: (operation: Operation, effect: Effect.Effect<void, StoreError>) => Effect.Effect<void, StoreError>
}

/**
 * Puts a filter on a store. All but the operations stays what it is, the current capacity included.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const retried = BlockStore.around({
 *   name: "retried",
 *   run: (_, effect) => Effect.retry(effect, { times: 3, while: (error) => error._tag === "EIO" })
 * })
 * const program = Effect.map(BlockStore.memory({ capacity: 1 << 20 }), retried)
 * console.log(Effect.runSync(program).id) // => "retried(memory)"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const around: {
  (filter: Filter): (self: BlockStore) => BlockStore
  (self: BlockStore, filter: Filter): BlockStore
} = dual(2, (self: BlockStore, { name, run }: Filter): BlockStore => ({
  id: `${name}(${self.id})`,
  get capacity() {
    return self.capacity
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
  read: (offset, buffers) => run({ name: "read", offset, length: lengthOf(buffers) }, self.read(offset, buffers)),
  write: (offset, buffers, options) =>
    run({ name: "write", offset, length: lengthOf(buffers) }, self.write(offset, buffers, options)),
  writeZeroes: (offset, length, options) =>
    run({ name: "writeZeroes", offset, length }, self.writeZeroes(offset, length, options)),
  discard: (offset, length) => run({ name: "discard", offset, length }, self.discard(offset, length)),
  flush: run({ name: "flush", offset: 0, length: 0 }, self.flush),
  capacityChanges: self.capacityChanges
}))

/**
 * Puts a filter on a store that does something before each operation: waits, or fails in its stead. An operation whose
 * range is wrong fails first, and never gets that far.
 */
export const before = (
  self: BlockStore,
  name: string,
  admit: (operation: Operation) => Effect.Effect<void, StoreError>
): BlockStore =>
  around(self, {
    name,
    run: (operation, effect) =>
      Effect.suspend((): Effect.Effect<void, StoreError> =>
        checkOperation(self, operation) ?? Effect.andThen(admit(operation), effect)
      )
  })
