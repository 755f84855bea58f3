/**
 * `npm run fuzz`: rings, completions and messages with anything in them.
 *
 * Prints what it did and saw, check by check. Where something is not as it must be, it prints the command that does the same
 * again, and exits with 1.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Data, Effect, Option, Runtime } from "effect"
import { Command, Flag } from "effect/cli"
import { type Check, type Result, run } from "./Check.ts"
import { checks } from "./checks.ts"

/** Ends the process with 1, after everything was said. */
class Failed extends Data.TaggedError("Failed")<{ readonly checks: ReadonlyArray<string> }> {
  override readonly [Runtime.errorExitCode] = 1
  override readonly [Runtime.errorReported] = false
}

const isPositive = (n: number) => n > 0

const flags = {
  seed: Flag.Int("seed").pipe(
    Flag.optional,
    Flag.withDescription("The seed of the first episode. Default: a new one, which is printed")
  ),
  runs: Flag.Int("runs").pipe(
    Flag.withDefault(50_000),
    Flag.filter(isPositive, () => "a positive number"),
    Flag.withDescription("Hostile completions and steps of a ring; of what costs more, a share of that")
  ),
  seconds: Flag.Int("seconds").pipe(
    Flag.withDefault(3600),
    Flag.filter(isPositive, () => "a positive number"),
    Flag.withDescription("The most time that all checks together take")
  ),
  only: Flag.Literals("only", checks.map(({ name }) => name)).pipe(
    Flag.optional,
    Flag.withDescription("Only this check")
  )
}

/** What was thrown where nobody could catch it. */
const uncaught: Array<unknown> = []
process.on("uncaughtException", (error) => uncaught.push(error))
process.on("unhandledRejection", (error) => uncaught.push(error))

const report = ({ name, unit }: Check, { episodes, tally, units }: Result, seconds: number): string => {
  const counts = [...tally.counts].toSorted(([a], [b]) => a < b ? -1 : 1)
  const part = (isKind: boolean) =>
    counts.filter(([name]) => name.startsWith("- ") === isKind)
      .map(([name, count]) => `${name.replace(/^- /, "")} ${count.toLocaleString("en")}`).join(", ")
  const lines = [
    `${name}: ${units.toLocaleString("en")} ${unit} in ${episodes.toLocaleString("en")} episodes, ${
      seconds.toFixed(0)
    } s`,
    `  seen: ${part(false)}`
  ]
  if (part(true) !== "") lines.push(`  done by the other side: ${part(true)}`)
  return lines.join("\n")
}

const fuzz = Command.make("fuzz", flags, ({ only, runs, seconds, seed }) =>
  Effect.gen(function*() {
    const chosen = checks.filter(({ name }) => Option.isNone(only) || only.value === name)
    const first = Option.getOrElse(seed, () => Date.now() % 2 ** 32) >>> 0
    const ends = Date.now() + seconds * 1000
    const failed: Array<string> = []
    yield* Console.log(`seed ${first}`)
    for (const check of chosen) {
      const began = Date.now()
      const result = yield* Effect.promise(() =>
        run(check, { seed: first, units: runs * check.share, seconds: (ends - began) / 1000, uncaught })
      )
      yield* Console.log(report(check, result, (Date.now() - began) / 1000))
      const { failure } = result
      if (failure === undefined) {
        yield* Console.log("  0 failures: nothing uncaught, nothing hung, nothing twice, nothing wrong")
        continue
      }
      failed.push(check.name)
      yield* Console.log(`  FAILED at seed ${failure.seed}: ${String(failure.cause)}`)
      yield* Console.log(`  again: npm run fuzz -- --only ${check.name} --seed ${failure.seed} --runs 1`)
    }
    if (failed.length > 0) return yield* new Failed({ checks: failed })
  })).pipe(Command.withDescription("Rings, completions and messages with anything in them"))

Command.runWith(fuzz, { version: "0.0.0" })(process.argv.slice(2)).pipe(
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain({
    // Fibers of an episode that failed may still be waiting.
    teardown: (exit) => Runtime.defaultTeardown(exit, (code) => process.exit(code))
  })
)
