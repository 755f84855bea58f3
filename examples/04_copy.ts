/**
 * Copies one disk to another, tells how far it is, and starts again where a backend was away for a moment.
 *
 * What may be tried again is told from what may not by the error itself: `isRetryable`, or its tag.
 *
 *     npm run example examples/04_copy.ts SOURCE.sock TARGET.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Console, Effect, Layer, Schedule, Stream } from "effect"
import { BlockDevice, BlockStore, VhostUser, VirtioBlk } from "effect-blkio"

class Source extends BlockDevice.Tag<Source>()("Source") {}
class Target extends BlockDevice.Tag<Target>()("Target") {}

const [, , sourcePath, targetPath] = process.argv
const argument = (value: string | undefined, name: string) =>
  value === undefined ? Config.String(name) : Config.succeed(value)

const connect = (path: string, readOnly: boolean) =>
  Effect.flatMap(VhostUser.make({ path }), (transport) => VirtioBlk.make(transport, { readOnly }))

const Disks = Layer.merge(
  Layer.effect(Source, Effect.flatMap(argument(sourcePath, "SOURCE"), (path) => connect(path, true))),
  Layer.effect(Target, Effect.flatMap(argument(targetPath, "TARGET"), (path) => connect(path, false)))
)

const copy = Effect.gen(function*() {
  const progress = BlockStore.copy(yield* Source, yield* Target)
  yield* progress.pipe(
    Stream.runForEach(({ copied, total, zeroes }) =>
      Console.log(`${Math.floor(copied / total * 100)}%, ${zeroes} bytes of zeroes`)
    )
  )
})

copy.pipe(
  // Each attempt connects anew: a lost connection stays lost.
  (once) => Effect.provide(once, Disks, { local: true }),
  Effect.tapError((error) => Console.error(`${error._tag}: ${error.message}`)),
  Effect.retry({
    while: (error) => "isRetryable" in error && error.isRetryable,
    schedule: Schedule.exponential("100 millis"),
    times: 5
  }),
  Effect.andThen(Console.log("copied")),
  NodeRuntime.runMain
)
