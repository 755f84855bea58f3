/**
 * Goal: whatever goes wrong, the driver gives no read what it must not give, ends everything it began, once and with a declared
 * failure, and leaves nothing behind; and a seed repeats a run.
 * Method: the whole driver in simulated time, in front of a device whose faults a seed chooses, checked by a model of the disk
 * ({@link run}); each seed twice. That the checker would notice is shown with devices that lie.
 */
import { describe, expect, it } from "@effect/vitest"
import { fromSeed, liar, lies } from "./Plan.ts"
import { run } from "./Simulation.ts"

const SEEDS = 200
const SEEDS_A_TEST = 25
/** Simulations are many steps, and other tests run beside them. */
const PATIENCE_MS = 120_000

const starts = Array.from({ length: SEEDS / SEEDS_A_TEST }, (_, i) => 1 + i * SEEDS_A_TEST)

describe("a simulation", () => {
  it.each(starts)(`goes well, and again the same: ${SEEDS_A_TEST} seeds from %i`, (start) => {
    for (let seed = start; seed < start + SEEDS_A_TEST; seed++) {
      const result = run(fromSeed(seed))
      const failed = [...result.complaints, ...result.wrongs]
      expect(failed, `again: npm run simulate -- --seed ${seed} --runs 1`).toStrictEqual([])
      expect(run(fromSeed(seed)).hash, `seed ${seed}`).toBe(result.hash)
    }
  }, PATIENCE_MS)

  it("has every fault come about, and every failure of a device", () => {
    const faults = new Set<string>()
    const failures = new Set<string>()
    for (let seed = 1; seed <= SEEDS; seed++) {
      const result = run(fromSeed(seed))
      for (const fault of result.faults) faults.add(fault)
      for (const failure of result.failures) failures.add(failure)
    }
    expect([...faults].toSorted()).toStrictEqual([
      "EIO burst",
      "bad config",
      "config change",
      "delay",
      "disconnect",
      "dropped kick",
      "dropped signal",
      "failed connect",
      "failed kick",
      "needs reset",
      "protocol violation",
      "resize",
      "spurious signal",
      "stall",
      "unsupported"
    ])
    expect([...failures]).toEqual(expect.arrayContaining([
      "EFAULT",
      "EINVAL",
      "EIO",
      "ENODEV",
      "ENOTCONN",
      "ENOTSUP",
      "EPROTO",
      "ESHUTDOWN",
      "ETIME",
      "ETIMEDOUT"
    ]))
  }, PATIENCE_MS)

  it("takes another course with another seed", () => {
    expect(new Set(starts.map((seed) => run(fromSeed(seed)).hash)).size).toBe(starts.length)
  })

  it.each(lies)("notices a %s", (how) => {
    let told = 0
    for (let seed = 1; seed <= 20; seed++) {
      const { complaints, hasLied, wrongs } = run(liar(seed, how))
      expect(complaints, `seed ${seed}`).toStrictEqual([])
      if (hasLied) told++
      expect(wrongs.length > 0, `seed ${seed}`).toBe(hasLied)
    }
    expect(told).toBeGreaterThan(5)
  }, PATIENCE_MS)
})
