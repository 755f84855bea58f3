/**
 * Measures this library beside its peers, in turn and round by round, on the same servers, and prints medians, ratios and
 * whether they are what they are to be. README.md in this folder says how to read it.
 *
 *     BLKIO_BENCH=path npm run bench:peers -- [--rounds N] [--seconds S] [--ramp S] [--scenario NAME]… [--depth N]…
 *       [--json FILE] [--html FILE]
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Option, Schema } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { Command, Flag } from "effect/cli"
import { type Cell, cellsOf, type Comparison, COMPARISONS, roundsOf, SCENARIOS, type Server } from "./comparisons.ts"
import { makeFullImage, sharedMemoryFolder } from "./disks.ts"
import { page } from "./html.ts"
import { findPeers, here, type Peers } from "./machine.ts"
import { type Disk, run } from "./programs.ts"
import { comparisonTables, programTables, type Results, type Run, runOf } from "./results.ts"
import { text } from "./tables.ts"

/** Starts a server and gives its disk; both go with the Scope. */
const serve = Effect.fnUntraced(function*(server: Server) {
  if (server !== "file") {
    const numQueues = server === "null-co" ? 1 : 2
    const daemon = yield* QemuStorageDaemon.start({
      exports: [{ image: { _tag: "null-co", size: 2 ** 30 }, numQueues }]
    })
    return { version: daemon.version, disk: { socketPath: daemon.socketPath, file: undefined } }
  }
  const file = `${yield* sharedMemoryFolder}/disk.raw`
  yield* makeFullImage(file)
  const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "raw", file: file } }], aio: "threads" })
  return { version: daemon.version, disk: { socketPath: daemon.socketPath, file } }
})

const reasonToLeaveOut = (peers: Peers, { program: { peer } }: Cell): string | undefined => {
  const found = peer === undefined ? undefined : peers[peer]
  return typeof found === "string" ? `${peer}: ${found}` : undefined
}

const pathOf = (peers: Peers, { program: { peer } }: Cell): string => {
  const found = peer === undefined ? undefined : peers[peer]
  return typeof found === "object" ? found.path : ""
}

/** Runs everything on one disk, round by round. */
const runAll = Effect.fnUntraced(function*(
  disk: Disk,
  cells: ReadonlyArray<Cell>,
  peers: Peers,
  times: Pick<Results, "seconds" | "rampSeconds">
) {
  const runs: Array<Run> = []
  const rounds = Math.max(...cells.map((cell) => cell.rounds))
  for (let round = 0; round < rounds; round++) {
    const due = cells.filter((cell) => round < cell.rounds)
    for (const [i, cell] of due.entries()) {
      const { depth, program, workload } = cell
      const load = { readwrite: workload.readwrite, blockBytes: workload.blockBytes, depth, ...times }
      const figures = yield* run(program, disk, load, pathOf(peers, cell))
      runs.push(runOf(cell, round, figures))
      yield* Console.error(
        `round ${round + 1} of ${rounds}, run ${
          i + 1
        } of ${due.length}: ${workload.name}, depth ${depth}, ${program.name}: `
          + `${figures.kiops.toFixed(1)} kIOPS, ${figures.gibps.toFixed(2)} GiB/s, ${figures.cpuUs.toFixed(2)} µs CPU`
      )
    }
  }
  return runs
})

/** Keeps the depths that were asked for, if any were. */
const atDepths = (wanted: ReadonlyArray<number>) => (comparison: Comparison): ReadonlyArray<Comparison> => {
  const depths = new Map([...comparison.depths].filter(([depth]) => wanted.length === 0 || wanted.includes(depth)))
  return depths.size === 0 ? [] : [{ ...comparison, depths }]
}

const positive = (name: string) =>
  Flag.String(name).pipe(Flag.withSchema(Schema.FiniteFromString.check(Schema.isGreaterThan(0))))

const peers = Command.make(
  "bench:peers",
  {
    rounds: Flag.Int("rounds").pipe(
      Flag.filter((n) => n > 0, () => "a positive whole number"),
      Flag.withDescription("Rounds of every run. Default: 5, and 15 where a target is 0.95"),
      Flag.optional
    ),
    seconds: positive("seconds").pipe(
      Flag.withDescription("Seconds of each run. Default: 1; blkio-bench takes whole seconds only"),
      Flag.optional
    ),
    ramp: positive("ramp").pipe(
      Flag.withDescription("Seconds that each run takes before it measures. Default: 0.5"),
      Flag.optional
    ),
    scenario: Flag.Literals("scenario", SCENARIOS).pipe(
      Flag.withDescription("What to compare, may be repeated. Default: everything"),
      Flag.atLeast(0)
    ),
    depth: Flag.Int("depth").pipe(
      Flag.withDescription("Of the depths of a scenario only these, may be repeated. Default: all"),
      Flag.atLeast(0)
    ),
    html: Flag.String("html").pipe(
      Flag.withMetavar("FILE"),
      Flag.withDescription("Also writes a report with plots to a file, as HTML"),
      Flag.optional
    ),
    json: Flag.String("json").pipe(
      Flag.withMetavar("FILE"),
      Flag.withDescription("Also writes every run and every table to a file, as JSON"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function*(options) {
    const fs = yield* FileSystem.FileSystem
    const times = {
      seconds: Option.getOrElse(options.seconds, () => 1),
      rampSeconds: Option.getOrElse(options.ramp, () => 0.5)
    }
    const comparisons = COMPARISONS
      .filter(({ scenario }) => options.scenario.length === 0 || options.scenario.includes(scenario))
      .flatMap(atDepths(options.depth))
    const cells = cellsOf(
      comparisons,
      (comparison, depth) => Option.getOrElse(options.rounds, () => roundsOf(comparison, depth))
    )
    const found = yield* findPeers
    const date = new Date().toISOString()
    const present = cells.filter((cell) => reasonToLeaveOut(found, cell) === undefined)
    const leftOut = [...new Set(cells.flatMap((cell) => reasonToLeaveOut(found, cell) ?? []))]
    yield* Effect.forEach(leftOut, (reason) => Console.error(`\n*** LEFT OUT: ${reason}. ***\n`), { discard: true })

    const runs: Array<Run> = []
    let storageDaemon = ""
    for (const [server, its] of Map.groupBy(present, ({ workload }) => workload.server)) {
      yield* Effect.gen(function*() {
        const { disk, version } = yield* serve(server)
        storageDaemon = version
        runs.push(...yield* runAll(disk, its, found, times))
      }).pipe(Effect.scoped)
    }
    const versions = Object.entries(found).flatMap(([name, peer]) =>
      typeof peer === "string" ? [] : [[name === "fio" ? name : "libblkio", peer.version] as const]
    )
    const results: Results = {
      machine: { ...here(), storageDaemon, peers: Object.fromEntries(versions) },
      date,
      ...times,
      leftOut,
      comparisons,
      runs
    }
    yield* Console.log(text(results))
    if (Option.isSome(options.html)) yield* fs.writeFileString(options.html.value, page(results))
    if (Option.isSome(options.json)) yield* fs.writeFileString(options.json.value, json(results))
  })
).pipe(Command.withDescription("Measure this library beside its peers"))

/** Everything as JSON; comparisons name their programs. */
const json = (results: Results): string => {
  const { comparisons: _, ...others } = results
  const comparisons = comparisonTables(results).map((
    { comparison: { baseline, ours, scenario, title, workload }, rows }
  ) => ({
    scenario,
    title,
    workload: workload.name,
    ours: { program: ours.program.name, figure: ours.figure },
    baseline: { program: baseline.program.name, figure: baseline.figure },
    rows
  }))
  return `${JSON.stringify({ ...others, comparisons, programs: programTables(results) }, undefined, 2)}\n`
}

Command.run(peers, { version: "0" }).pipe(Effect.provide(NodeServices.layer), NodeRuntime.runMain)
