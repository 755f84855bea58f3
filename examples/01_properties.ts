/**
 * Opens a disk and prints what it is. The device is connected, not started, so the disk is only looked at.
 *
 *     npm run example examples/01_properties.ts /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Console, Effect, Layer } from "effect"
import { Properties, VhostUser, VirtioBlk } from "effect-blkio"

const path = process.argv[2] === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(process.argv[2])

const Disk = VirtioBlk.layerConnected().pipe(Layer.provide(VhostUser.layerConfig({ path })))

const program = Effect.gen(function*() {
  const properties = yield* Properties
  const { capacity, maxQueues, maxSegments, requestAlignment } = yield* properties.getAll
  yield* Console.log(`${capacity} bytes in blocks of ${requestAlignment}`)
  yield* Console.log(`up to ${maxQueues} queues, ${maxSegments} segments a request`)
})

const quit = (message: string) => Effect.andThen(Console.error(message), Effect.sync(() => (process.exitCode = 1)))

program.pipe(
  Effect.provide(Disk),
  Effect.catchTag("ENOENT", (error) => quit(`no backend listens on ${error.path}`)),
  NodeRuntime.runMain
)
