/** The stores behind our exports in tests, in this process and in `exportProgram.ts`. */
import { Effect, type Scope } from "effect"
import { BlockStore } from "../../src/index.ts"
import type { Disk, ServeOptions, Zeroes } from "./Backend.ts"

/** Opens what is to be served, and tells how its size is changed. */
export const openStore = (
  disk: Disk,
  { readOnly = false }: ServeOptions
): Effect.Effect<
  { readonly store: BlockStore.BlockStore; readonly resize: (capacity: number) => Effect.Effect<void> },
  never,
  Scope.Scope
> =>
  disk._tag === "zeroes"
    ? Effect.map(makeZeroes(disk), (store) => ({ store, resize: () => Effect.die("it keeps its size") }))
    : Effect.map(BlockStore.file({ path: disk.path, readOnly }), (store) => ({
      store,
      resize: (capacity: number) => Effect.orDie(store.resize(capacity))
    })).pipe(Effect.orDie)

const makeZeroes = Effect.fnUntraced(function*({ fault, latencyMs = 0, size }: Zeroes) {
  const forgetful = BlockStore.around(yield* BlockStore.memory({ capacity: size }), {
    name: "zeroes",
    run: ({ name }, effect) => name === "read" ? effect : Effect.void
  })
  const store = latencyMs === 0 ? forgetful : BlockStore.delay(forgetful, latencyMs)
  return fault === undefined ? store : yield* BlockStore.failing(store, [
    { operation: fault.operation, errno: "EIO", range: { offset: fault.offset, length: 1 } }
  ])
}, Effect.orDie)
