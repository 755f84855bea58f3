/** A store in memory that keeps some requests until they are let go, and remembers what reached it. */
import { Deferred, Effect, type Scope } from "effect"
import { BlockStore } from "../../src/index.ts"

export interface HeldStore {
  readonly store: BlockStore.BlockStore
  readonly memory: BlockStore.MemoryStore
  /** What reached the store, in order: name and sector. */
  readonly began: ReadonlyArray<string>
  /** What was done, and what was interrupted while it was held. */
  readonly done: ReadonlyArray<string>
  readonly interrupted: ReadonlyArray<string>
  /** Lets go of all that is held and will be. */
  readonly release: Effect.Effect<void>
}

/** Holds requests from sector `from` on, flushes too where it is 0. */
export const make = Effect.fnUntraced(function*(
  from = 0,
  capacity = 1 << 20
): Effect.fn.Return<HeldStore, never, Scope.Scope> {
  const gate = yield* Deferred.make<void>()
  const memory = yield* Effect.orDie(BlockStore.memory({ capacity }))
  const began: Array<string> = []
  const done: Array<string> = []
  const interrupted: Array<string> = []
  const store = BlockStore.around(memory, {
    name: "held",
    run: ({ name, offset }, effect) =>
      Effect.suspend(() => {
        const label = `${name} ${offset / 512}`
        began.push(label)
        return Effect.andThen(offset / 512 < from ? Effect.void : Deferred.await(gate), effect).pipe(
          Effect.tap(() => Effect.sync(() => done.push(label))),
          Effect.onInterrupt(() => Effect.sync(() => interrupted.push(label)))
        )
      })
  })
  return { store, memory, began, done, interrupted, release: Effect.asVoid(Deferred.succeed(gate, undefined)) }
})
