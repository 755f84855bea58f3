/**
 * Goal: the fuzzing checks hold on a small slice, do the same again from the same seed, and notice what they are for.
 *
 * Method: each check for a moment; one seed twice, with equal counts; and rings that are broken on purpose, each in one respect,
 * which the checks have to find within a few hundred episodes.
 */
import { describe, expect, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import { type Check, run } from "./Check.ts"
import { checks } from "./checks.ts"
import { completionsCheck } from "./completions.ts"
import { type Rings, rings } from "./ringAt.ts"
import { ringsCheck } from "./rings.ts"

const SECONDS = 20

describe("a slice of each check", () => {
  it.each(checks)("$name", async (check) => {
    const { episodes, failure } = await run(check, { seed: 1, units: 2000 * check.share, seconds: SECONDS })
    expect(failure).toBe(undefined)
    expect(episodes).toBeGreaterThan(0)
  })
})

describe("a seed", () => {
  it.each(checks.filter(({ name }) => ["rings", "completions", "messages"].includes(name)))(
    "does the same again: $name",
    async (check) => {
      const limits = { seed: 4711, units: 3000 * check.share, seconds: SECONDS }
      const first = await run(check, limits)
      expect(await run(check, limits)).toStrictEqual(first)
      const other = await run(check, { ...limits, seed: 815 })
      expect(other.tally).not.toStrictEqual(first.tally)
    }
  )
})

/** Rings whose drain is another one, made from the right one. */
const broken = (drain: (count: number, out: Uint32Array) => number): Rings => ({
  split: class extends SplitRing {
    override drain(out: Uint32Array): number {
      return drain(super.drain(out), out)
    }
  },
  packed: class extends PackedRing {
    override drain(out: Uint32Array): number {
      return drain(super.drain(out), out)
    }
  }
})

/** Exchanges the statuses of the first two completions. */
const exchanging = broken((count, out) => {
  if (count < 2) return count
  const [first = 0, second = 0] = out
  out[0] = first & 0xffff | second & 0xffff0000
  out[1] = second & 0xffff | first & 0xffff0000
  return count
})

/** Loses one of every eight completions or so. */
const losing = broken((count) => count > 7 ? count - 1 : count)

/** Gives a completion twice. */
const repeating = broken((count, out) => {
  if (count < 1 || count >= out.length) return count
  out[count] = out[0] ?? 0
  return count + 1
})

/** Takes whatever the device answers for success. */
const trusting = broken((count, out) => {
  for (let i = 0; i < count; i++) out[i] = (out[i] ?? 0) & 0xffff
  return count
})

/** Does not say that the device broke the protocol. */
const silent = broken((count) => Math.max(0, count))

/** Takes an id for another one. */
const modulo = broken((count, out) => {
  for (let i = 0; i < count; i++) out[i] = (out[i] ?? 0) ^ 1
  return count
})

describe("a broken ring", () => {
  const cases: ReadonlyArray<[name: string, check: (under: Rings) => Check, under: Rings, found: RegExp]> = [
    ["statuses exchanged", ringsCheck, exchanging, /completion of slot/],
    ["a completion lost", ringsCheck, losing, /drained/],
    ["a completion twice", ringsCheck, repeating, /drained/],
    ["success without a status", ringsCheck, trusting, /completion of slot/],
    ["the wrong slot", ringsCheck, modulo, /completion of slot/],
    ["statuses exchanged", completionsCheck, exchanging, /the device gave it status/],
    ["a completion lost", completionsCheck, losing, /do not end|the device gave it status/],
    ["success without a status", completionsCheck, trusting, /the device gave it status/],
    ["no fault", completionsCheck, silent, /do not end|the queue's failure/],
    ["the wrong slot", completionsCheck, modulo, /the device gave it status|do not end/]
  ]
  it.each(cases)("with %s is found", async (_, check, under, found) => {
    const { failure } = await run(check(under), { seed: 1, units: 100_000, seconds: SECONDS })
    expect(String(failure?.cause)).toMatch(found)
    // By its seed alone, and not without the fault.
    const limits = { seed: failure?.seed ?? 0, units: 1, seconds: SECONDS }
    expect(String((await run(check(under), limits)).failure?.cause)).toMatch(found)
    expect((await run(check(rings), limits)).failure).toBe(undefined)
  })
})

describe("the command", () => {
  const main = fileURLToPath(new URL("main.ts", import.meta.url))

  it("prints its seed, and what it counted", async () => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      main,
      "--only",
      "rings",
      "--seed",
      "5",
      "--runs",
      "300"
    ])
    expect(stdout).toMatch(/^seed 5\nrings: \d+ steps in \d+ episodes/)
    expect(stdout).toContain("0 failures")
  })
})
