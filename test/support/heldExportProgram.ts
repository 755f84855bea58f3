/**
 * Serves a disk from a process of its own, to be killed in mid-flight: what lies before a sector is done after a moment of
 * random length, and the rest is held for ever. Takes a socket's path and the sector. Says `serving` on stderr once it
 * listens.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Console, Effect } from "effect"
import { BlockStore, Export } from "../../src/index.ts"
import * as HeldStore from "./heldStore.ts"

const [path = "", from = "0"] = process.argv.slice(2)

Effect.scoped(Effect.gen(function*() {
  const { store } = yield* HeldStore.make(Number(from))
  const uneven = BlockStore.around(store, {
    name: "uneven",
    run: (_, effect) => Effect.suspend(() => Effect.delay(effect, Math.random() * 4))
  })
  yield* Export.serve(uneven, { path })
  yield* Console.error("serving")
  return yield* Effect.never
})).pipe(NodeRuntime.runMain)
