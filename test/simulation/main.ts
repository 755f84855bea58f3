/**
 * `npm run simulate`: runs simulations of one seed after another, some of them twice so that a run that cannot be repeated is
 * noticed, and counts what went wrong on purpose and what came of it. The first run that shows something that must not be is
 * printed with its log, and how to repeat it; the exit code is 1 then.
 *
 * ```
 * npm run simulate                            until 60 seconds have passed, from a seed of chance
 * npm run simulate -- --seed 7 --runs 20000   20,000 seeds from 7 on
 * npm run simulate -- --seed 7 --runs 1       one seed again
 * ```
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import { randomInt } from "node:crypto"
import { fromSeed } from "./Plan.ts"
import { type Result, run } from "./Simulation.ts"

const MS_PER_S = 1000
const DEFAULT_SECONDS = 60
/** One in so many runs is done twice. */
const REPEATED_EVERY = 10
/** Seeds have 32 bits; from here on there is room for as many runs. */
const SEEDS = 2 ** 31

const isPositive = (n: number) => Number.isSafeInteger(n) && n > 0

/** Counts by name, the most frequent first. */
class Counts {
  readonly #counts = new Map<string, number>()

  add(names: ReadonlyArray<string>): void {
    for (const name of names) this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1)
  }

  toString(): string {
    const rows = [...this.#counts].toSorted(([, a], [, b]) => b - a)
    return rows.length === 0
      ? "  none"
      : rows.map(([name, count]) => `  ${String(count).padStart(9)} ${name}`).join("\n")
  }
}

const explain = ({ complaints, log, seed, wrongs }: Result, why: ReadonlyArray<string>): string =>
  [
    ...log,
    "",
    `seed ${seed}: ${[...why, ...complaints, ...wrongs].join("\n")}`,
    `again: npm run simulate -- --seed ${seed} --runs 1`
  ].join("\n")

const simulate = Command.make(
  "simulate",
  {
    seed: Flag.Int("seed").pipe(
      Flag.withDefault(-1),
      Flag.withDescription("The first seed; each run takes the next one. Default: by chance")
    ),
    runs: Flag.Int("runs").pipe(
      Flag.withDefault(Number.MAX_SAFE_INTEGER),
      Flag.filter(isPositive, () => "a positive whole number"),
      Flag.withDescription("How many runs at most. Default: as many as there is time for")
    ),
    seconds: Flag.Int("seconds").pipe(
      Flag.withDefault(0),
      Flag.filter((n) => n === 0 || isPositive(n), () => "a positive whole number"),
      Flag.withDescription(`How long at most. Default: ${DEFAULT_SECONDS}, or as long as --runs takes`)
    )
  },
  Effect.fnUntraced(function*({ runs, seconds, seed }) {
    const first = seed >= 0 ? seed : randomInt(SEEDS)
    const limit = seconds > 0 ? seconds : runs === Number.MAX_SAFE_INTEGER ? DEFAULT_SECONDS : Infinity
    const began = performance.now()
    const elapsed = () => (performance.now() - began) / MS_PER_S
    const faults = new Counts()
    const failures = new Counts()
    let count = 0
    let cells = 0
    let simulatedMs = 0
    yield* Console.log(`seeds from ${first}`)
    while (count < runs && elapsed() < limit) {
      const plan = fromSeed(first + count)
      const result = run(plan)
      const again = count % REPEATED_EVERY === 0 ? run(plan) : result
      count++
      cells += result.cellsChecked
      simulatedMs += result.simulatedMs
      faults.add(result.faults)
      failures.add(result.failures)
      const why = again.hash === result.hash ? [] : ["two runs of it differ"]
      if (why.length + result.complaints.length + result.wrongs.length > 0) {
        yield* Console.error(explain(result, why))
        process.exitCode = 1
        break
      }
    }
    yield* Console.log(
      [
        `${count} simulations in ${elapsed().toFixed(1)} s, of ${(simulatedMs / MS_PER_S).toFixed(0)} s simulated`,
        `${cells} cells read and checked`,
        "faults:",
        faults,
        "failures that came of them:",
        failures
      ].join("\n")
    )
  })
).pipe(Command.withDescription("Run the whole driver in simulated time, with faults, and check every read"))

Command.run(simulate, { version: "0" }).pipe(Effect.provide(NodeServices.layer), NodeRuntime.runMain)
