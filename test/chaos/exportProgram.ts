/**
 * Serves an image file from a process of its own, until it is killed. Takes the paths of the image and of the socket, the
 * number of queues, and by how many bytes SIGUSR2 makes the disk longer. Says `serving` and the size on stderr, at first and
 * after each growth.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
// By themselves, since it is started very often.
import { file } from "../../src/BlockStore/FileStore.ts"
import * as Export from "../../src/Export/Export.ts"

const [image = "", path = "", queues = "1", growth = "0"] = process.argv.slice(2)

Effect.scoped(Effect.gen(function*() {
  const asked = yield* Queue.unbounded<void>()
  process.on("SIGUSR2", () => Queue.offerUnsafe(asked, undefined))
  const store = yield* file({ path: image })
  yield* Export.serve(store, { path, numQueues: Number(queues) })
  const say = Effect.suspend(() => Console.error(`serving ${store.capacity}`))
  yield* say
  return yield* Effect.forever(
    Queue.take(asked).pipe(
      Effect.andThen(Effect.suspend(() => store.resize(store.capacity + Number(growth)))),
      Effect.andThen(say)
    )
  )
})).pipe(NodeRuntime.runMain)
