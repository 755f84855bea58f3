/**
 * The thread that serves an embedded disk. It ends when it is sent anything.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { parentPort, workerData } from "node:worker_threads"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as Export from "../Export/Export.ts"
import type { Disk, Order, Report } from "./protocol.ts"

const report = (what: Report) => Effect.sync(() => parentPort?.postMessage(what))

const open = (disk: Disk): Effect.Effect<BlockStore.BlockStore, BlockStore.FileError, Scope.Scope> =>
  disk._tag === "memory" ? BlockStore.memory(disk) : BlockStore.file(disk)

const told = Effect.callback<void>((resume) => {
  parentPort?.once("message", () => resume(Effect.void))
})

const program = (order: Order) =>
  Effect.gen(function*() {
    yield* Export.serve(yield* open(order.disk), order.export)
    yield* report({ _tag: "serving" })
    yield* told
  }).pipe(
    Effect.scoped,
    Effect.catch(({ detail, errno, operation, path }) =>
      report({ _tag: "failed", errno, operation, detail, ...path === undefined ? {} : { path } })
    ),
    Effect.andThen(report({ _tag: "closed" }))
  )

// Whoever started the thread has given it an order.
await Effect.runPromise(program(workerData as Order))
