/**
 * Counts what a request costs in memory: bytes allocated, and bytes that a small garbage collection had to copy, by the ring
 * alone, by the engine, and through each API; then how much memory a process takes with a started device.
 *
 *     npm run bench:memory [-- REQUESTS]
 *
 * README.md in this folder says how to read it.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Schema } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { type Command, decode, output } from "./measure.ts"

const [, , requests = "1000000"] = process.argv

const WAYS = ["ring", "engine", "loop", "stream", "request"]
/** How long a process may take beside what `output` allows, in seconds. */
const PATIENCE_S = 60
const MIB = 2 ** 20

const Allocated = Schema.fromJsonString(Schema.Struct({ allocated: Schema.Finite }))

/** A line of V8's trace, of which there is one for each collection. */
const Collection = Schema.fromJsonString(
  Schema.Struct({
    /** `s` is a scavenge. */
    gc: Schema.String,
    reason: Schema.String,
    promoted: Schema.Finite,
    new_space_survived: Schema.Finite
  })
)

const countWay = Effect.fnUntraced(function*(way: string) {
  const command: Command = [
    process.execPath,
    "--expose-gc",
    "--trace-gc-nvp",
    "benchmark/memoryRun.ts",
    way,
    requests
  ]
  const { stderr, stdout } = yield* output(command, PATIENCE_S)
  const { allocated } = yield* decode(Allocated, command, stderr)
  const collections = yield* Effect.forEach(
    stdout.match(/(?<= GC: )\{"pause".*\}$/gmu) ?? [],
    (line) => decode(Collection, command, line)
  )
  // Those that were asked for mark the begin and the end; the last two are around twice as many requests.
  const marks = collections.flatMap(({ reason }, i) => reason === "testing" ? [i] : [])
  const [begin = 0, end = 0] = marks.slice(-2)
  const between = collections.slice(begin + 1, end)
  const scavenges = between.filter(({ gc }) => gc === "s")
  const survived = scavenges.reduce((sum, collection) => sum + collection.new_space_survived + collection.promoted, 0)
  const promoted = scavenges.reduce((sum, collection) => sum + collection.promoted, 0)
  const perRequest = (bytes: number, count: number) => (bytes / count).toFixed(2)
  const twice = 2 * Number(requests)
  const copied = scavenges.length === 0
    ? "no scavenge was due"
    : `${perRequest(survived, twice)} copied and ${
      perRequest(promoted, twice)
    } promoted by ${scavenges.length} scavenges`
  yield* Console.log(
    `${way.padEnd(8)} ${perRequest(allocated, Number(requests)).padStart(8)} bytes a request allocated; ${copied}; `
      + `${between.length - scavenges.length} other collections`
  )
})

const residentBytes = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const command: Command = [
    process.execPath,
    "--expose-gc",
    "--conditions=@effect-blkio/source",
    "benchmark/residentRun.ts",
    ...args
  ]
  const { stdout } = yield* output(command, PATIENCE_S)
  return yield* decode(Schema.FiniteFromString, command, stdout)
})

const program = Effect.gen(function*() {
  yield* Console.log(`${requests} requests, 128 at a time, split ring, Node ${process.version}`)
  yield* Effect.forEach(WAYS, countWay, { discard: true })
  const { socketPath } = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "null-co", size: 2 ** 30 } }] })
  const bare = yield* residentBytes()
  const withPackage = yield* residentBytes("package")
  const withDevice = yield* residentBytes("device", socketPath)
  const mib = (bytes: number) => `${(bytes / MIB).toFixed(1)} MiB`
  yield* Console.log(
    `resident: ${mib(bare)} Node, ${mib(withPackage)} with effect and the package imported, `
      + `${mib(withDevice)} with a device that had 128 requests in flight`
  )
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
