/**
 * Hashes many images on many machines. Runners may be killed and started meanwhile; the hashes are the same.
 *
 * On one machine, with three runners and SQLite in a file:
 *
 *     export CLUSTER_DATABASE=hashes.sqlite
 *     npm run example examples/12_cluster_hash.ts hash --runners 3 disk1.raw disk2.qcow2 > HASHES
 *     npm run example examples/12_cluster_hash.ts verify --runners 3 HASHES
 *
 * On several, with PostgreSQL, and images by names that are the same on each of them:
 *
 *     export CLUSTER_DATABASE=postgres://user:password@database.example/hashes
 *     npm run example examples/12_cluster_hash.ts runner --host 192.0.2.1 --port 34431
 *     npm run example examples/12_cluster_hash.ts hash rbd:pool/image nbd:nbd://storage.example/disk /images/disk.vmdk
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Data, Effect, FileSystem, Layer, Option, References, Runtime } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { ChildProcess } from "effect/process"
import { Checkpoints } from "./cluster/Checkpoints.ts"
import * as Cluster from "./cluster/Cluster.ts"
import * as Image from "./cluster/Image.ts"
import * as ImageHash from "./cluster/ImageHash.ts"

const MiB = 2 ** 20

/** Some images have no hash, or another than expected; which ones, has been said. */
class SomeFailed extends Data.TaggedError("SomeFailed") {
  override readonly [Runtime.errorReported] = false
}

const positive = (name: string) => Flag.Int(name).pipe(Flag.filter((n) => n > 0, () => "a positive whole number"))

const runner = Command.make("runner", {
  host: Flag.String("host").pipe(
    Flag.withDefault("127.0.0.1"),
    Flag.withDescription("Where this machine is reached by the others")
  ),
  port: Flag.Int("port").pipe(Flag.withDefault(34_431)),
  imagesAtOnce: positive("images-at-once").pipe(
    Flag.withDefault(2),
    Flag.withDescription("How many images it reads at once")
  ),
  rate: positive("rate").pipe(
    Flag.optional,
    Flag.withMetavar("MIB"),
    Flag.withDescription("How much of an image it reads in a second at most")
  ),
  withStdin: Flag.Boolean("with-stdin").pipe(
    Flag.withDefault(false),
    Flag.withDescription("End when stdin does, and so with whoever has started it")
  )
}, ({ host, imagesAtOnce, port, rate, withStdin }) => {
  const Images = ImageHash.layer({ imagesAtOnce, bytesPerSecond: Option.map(rate, (mib) => mib * MiB) }).pipe(
    Layer.provide([Cluster.runner({ host, port }), Checkpoints.layer]),
    Layer.provide(Cluster.Database),
    Layer.tap(() => Console.error(`runner at ${host}:${port}`))
  )
  return Effect.raceFirst(Layer.launch(Images), withStdin ? stdinEnds : Effect.never)
}).pipe(Command.withDescription("Hash images for whoever asks, until it is ended"))

const stdinEnds = Effect.callback<void>((resume) => {
  process.stdin.once("end", () => resume(Effect.void)).resume()
})

/** Starts a runner on this machine, which ends with the Scope, and with this process. */
const startRunner = Effect.gen(function*() {
  const port = yield* Cluster.freePort
  const args = [...process.execArgv, process.argv[1] ?? "", "runner", "--port", String(port), "--with-stdin"]
  return yield* ChildProcess.make(process.execPath, args, { stdin: "pipe", stdout: "inherit", stderr: "inherit" })
})

/** Starts runners, and fails once none of them is left. */
const startRunners = Effect.fnUntraced(function*(count: number) {
  const runners = yield* Effect.replicateEffect(startRunner, count)
  if (count === 0) return Effect.never
  return Effect.forEach(runners, ({ exitCode }) => Effect.exit(exitCode), { concurrency: "unbounded" }).pipe(
    Effect.andThen(Console.error("none of the runners that were started here is left")),
    Effect.andThen(new SomeFailed())
  )
})

const asking = {
  runners: Flag.Int("runners").pipe(
    Flag.withDefault(0),
    Flag.withDescription("How many runners to start here, beside those that there are")
  ),
  extentMib: positive("extent-mib").pipe(
    Flag.withDefault(16),
    Flag.withDescription("The length of an extent in MiB; images that are compared need the same")
  ),
  run: Flag.String("run").pipe(
    Flag.optional,
    Flag.withDescription("A name by which to ask again for what was asked before, done or not")
  )
}

interface Asking {
  readonly runners: number
  readonly extentMib: number
  readonly run: Option.Option<string>
}

/** Asks for the hashes of images, and says what is to be said of each as it comes. */
const hashAll = Effect.fnUntraced(
  function*(
    images: ReadonlyArray<string>,
    { extentMib, run: name, runners }: Asking,
    say: (image: string, hash: string) => Effect.Effect<void, SomeFailed>
  ) {
    const noneLeft = yield* startRunners(runners)
    const run = Option.getOrElse(name, () => crypto.randomUUID())
    const clientFor = yield* ImageHash.ImageHash.client
    const done = yield* Effect.forEach(images, (given) =>
      // Runners have working directories of their own.
      Image.absolute(given).pipe(
        Effect.flatMap((image) =>
          clientFor(ImageHash.entityId(image)).Hash({ run, image, extentBytes: extentMib * MiB })
        ),
        Effect.flatMap((hash) => say(given, hash)),
        Effect.as(true),
        Effect.catch((error) =>
          error._tag === "SomeFailed"
            ? Effect.succeed(false)
            : Effect.as(Console.error(`${given}: ${error._tag}: ${error.message}`), false)
        )
      ), { concurrency: "unbounded" }).pipe(Effect.raceFirst(noneLeft))
    if (done.includes(false)) return yield* new SomeFailed()
  },
  Effect.scoped,
  Effect.provide(Layer.provide(Cluster.client, Cluster.Database))
)

const hash = Command.make(
  "hash",
  { ...asking, images: Argument.String("IMAGE").pipe(Argument.variadic({ min: 1 })) },
  ({ images, ...asking }) => hashAll(images, asking, (image, hash) => Console.log(`${hash}  ${image}`))
).pipe(Command.withDescription("Print the hash of each image, in the order in which they are known"))

const verify = Command.make(
  "verify",
  { ...asking, list: Argument.String("HASHES") },
  ({ list, ...asking }) =>
    Effect.gen(function*() {
      const lines = (yield* (yield* FileSystem.FileSystem).readFileString(list)).split("\n").filter((line) =>
        line !== ""
      )
      const expected = new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]))
      yield* hashAll([...expected.keys()], asking, (image, hash) =>
        hash === expected.get(image)
          ? Console.log(`${image}: OK`)
          : Effect.andThen(Console.log(`${image}: FAILED`), new SomeFailed()))
    })
).pipe(Command.withDescription("Compare images with the hashes that `hash` has printed"))

const command = Command.make("cluster_hash").pipe(Command.withSubcommands([runner, hash, verify]))

Command.run(command, { version: "0.1.0" }).pipe(
  // What the cluster does is logged; stdout is for results.
  Effect.provideService(References.MinimumLogLevel, "Warn"),
  Effect.provideService(References.LogToStderr, true),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
