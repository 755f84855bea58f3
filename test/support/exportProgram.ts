/**
 * Serves one disk over vhost-user from a process of its own, which a test can stop and kill: one that `blkio serve` does
 * not have, such as a slow one. Takes a socket's path and, as JSON, a {@link Disk} and its {@link ServeOptions}. Says
 * `serving` on stderr once it listens.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Console, Effect } from "effect"
import { Export } from "../../src/index.ts"
import type { Disk, ServeOptions } from "./Backend.ts"
import { openStore } from "./exportedStore.ts"

const [path = "", disk = "", options = "{}"] = process.argv.slice(2)

/** Both come from a test of this folder. */
const parsed: { readonly disk: Disk; readonly options: ServeOptions } = JSON.parse(
  `{ "disk": ${disk}, "options": ${options} }`
)

Effect.scoped(Effect.gen(function*() {
  const { store } = yield* openStore(parsed.disk, parsed.options)
  yield* Export.serve(store, { path, ...parsed.options })
  yield* Console.error("serving")
  return yield* Effect.never
})).pipe(NodeRuntime.runMain)
