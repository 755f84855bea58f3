/**
 * `npm run chaos`: checked random I/O while the backend is killed and started again, and, as `npm run chaos -- power-loss`, what
 * a disk holds after a loss of power at any time. Exit code 1 where anything is wrong, with the seed that repeats the run as
 * far as processes of their own allow.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Option, Schema } from "effect"
import { Command, Flag } from "effect/cli"
import { endAfter } from "../support/watchdog.ts"
import type { Findings } from "./Findings.ts"
import * as PowerLoss from "./PowerLoss.ts"
import { limitOf, run } from "./Run.ts"

const positive = (name: string) =>
  Flag.String(name).pipe(Flag.withSchema(Schema.FiniteFromString.check(Schema.isGreaterThan(0))))

/** Seeds are 32 bits, and stand in each block. */
const SEEDS = 2 ** 32

const seed = Flag.Int("seed").pipe(
  Flag.filter((n) => n >= 0 && n < SEEDS, () => `0 to ${SEEDS - 1}`),
  Flag.optional,
  Flag.withDescription("Repeats a run, as far as real processes allow. Default: any")
)

const seedOr = (given: Option.Option<number>): number =>
  Option.getOrElse(given, () => Math.floor(Math.random() * SEEDS))

/** Says what was wrong, and how to see it again. */
const conclude = (findings: Findings, repeat: string) =>
  Effect.gen(function*() {
    for (const { fault, text } of findings.faults) yield* Console.error(`${fault.toUpperCase()}: ${text}`)
    if (findings.isClean) return
    yield* Console.error(`again: npm run chaos -- ${repeat}`)
    process.exitCode = 1
  })

const describeAll = (names: Iterable<readonly [string, number]>): string =>
  [...names].filter(([, count]) => count > 0).map(([name, count]) => `${name} ${count}`).join(", ") || "none"

const kills = Command.make(
  "chaos",
  {
    backend: Flag.Literals("backend", ["qsd", "export"]).pipe(
      Flag.withDefault("qsd"),
      Flag.withDescription("qemu-storage-daemon, or our export in a process of its own")
    ),
    reconnect: Flag.Boolean("reconnect").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Have the device come back by itself; else it fails, and is opened anew")
    ),
    kills: Flag.Int("kills").pipe(
      Flag.withDefault(20),
      Flag.filter((n) => n >= 0, () => "0 or more"),
      Flag.withDescription("How often the backend is killed; stops, restarts and growth of the disk come on top")
    ),
    seconds: positive("seconds").pipe(
      Flag.withDefault(20),
      Flag.withDescription("How long all of that takes, without starting processes")
    ),
    runs: Flag.Int("runs").pipe(
      Flag.withDefault(1),
      Flag.filter((n) => n > 0, () => "a positive whole number"),
      Flag.withDescription("Runs, each with the seed after that of the one before")
    ),
    seed
  },
  Effect.fnUntraced(function*({ backend, kills, reconnect, runs, seconds, seed }) {
    const first = seedOr(seed)
    for (let i = 0; i < runs; i++) {
      const options = { backend, kills, reconnect, seconds, seed: (first + i) % SEEDS }
      const how = `--backend ${backend} --kills ${kills} --seconds ${seconds}${reconnect ? " --reconnect" : ""}`
      yield* Console.log(`--seed ${options.seed} ${how}`)
      const { blocks, done, findings, seconds: took } = yield* Effect.scoped(
        Effect.andThen(endAfter(limitOf(options)), run(options))
      )
      const { connections, failures, flushes, reads, writes } = findings
      yield* Console.log(
        [
          `  done      ${describeAll(Object.entries(done))}; ${connections} connections, ${took.toFixed(0)} s`,
          `  requests  ${reads} reads checked, of ${findings.blocks} blocks; ${writes} writes, ${flushes} flushes; `
          + `${blocks} blocks in the end`,
          `  failures  ${describeAll(failures)}`,
          `  faults    ${findings.faults.length}`
        ].join("\n")
      )
      yield* conclude(findings, `--seed ${options.seed} ${how}`)
      if (!findings.isClean) return
    }
  })
).pipe(Command.withDescription("Kills a storage backend under checked random I/O"))

const POWER_LOSS_LIMIT_MS = 600_000

const powerLoss = Command.make(
  "power-loss",
  {
    writes: Flag.Int("writes").pipe(
      Flag.withDefault(2000),
      Flag.filter((n) => n > 0, () => "a positive whole number"),
      Flag.withDescription("How many writes to log")
    ),
    seed
  },
  Effect.fnUntraced(function*({ seed, writes }) {
    const chosen = seedOr(seed)
    yield* Console.log(`seed ${chosen}: ${writes} writes`)
    const { findings, outcome: { flushes, images, prefixes } } = yield* Effect.scoped(
      Effect.andThen(endAfter(POWER_LOSS_LIMIT_MS), PowerLoss.run(chosen, writes))
    )
    yield* Console.log(
      [
        `  requests  ${findings.reads} reads checked; ${findings.writes} writes, ${findings.flushes} flushes`,
        `  power     lost after each of ${prefixes} entries of the log, of which ${flushes} are flushes`,
        `  disks     ${images} checked`,
        `  faults    ${findings.faults.length}`
      ].join("\n")
    )
    yield* conclude(findings, `power-loss --seed ${chosen} --writes ${writes}`)
  })
).pipe(Command.withDescription("Loses power after each write of a disk, and checks what it then holds"))

Command.run(kills.pipe(Command.withSubcommands([powerLoss])), { version: "0" }).pipe(
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
