/**
 * Goal: numbers by chance are those of mulberry32, whole, below the limit, spread evenly, and others for another seed.
 *
 * Method: known values, and counts of many.
 */
import { describe, expect, it } from "@effect/vitest"
import * as SeededRandom from "../src/SeededRandom.ts"

const some = (seed: number, limit = 2 ** 32) => {
  const next = SeededRandom.make(seed)
  return Array.from({ length: 3 }, () => next(limit))
}

describe("seeded numbers", () => {
  it("are mulberry32's", () => {
    expect(some(42).map((n) => n / 2 ** 32)).toStrictEqual([
      0.6011037519201636,
      0.44829055899754167,
      0.8524657934904099
    ])
    // The low 32 bits of a seed count.
    expect(some(2 ** 32 + 42)).toStrictEqual(some(42))
    expect(some(-1)).toStrictEqual(some(2 ** 32 - 1))
  })

  it("are whole, below the limit, and spread evenly", () => {
    const next = SeededRandom.make(1)
    const counts = new Array<number>(10).fill(0)
    for (let i = 0; i < 100_000; i++) counts[next(10)]!++
    expect(counts).toHaveLength(10)
    for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500)
    expect([next(1), next(0)]).toStrictEqual([0, 0])
  })

  it("have seeds of their own where a source is forked", () => {
    const forked = Array.from({ length: 1000 }, (_, index) => SeededRandom.fork(7, index))
    expect(new Set(forked).size).toBe(1000)
    expect(forked.every((seed) => Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32)).toBe(true)
    expect(SeededRandom.fork(7, 0)).not.toBe(SeededRandom.fork(8, 0))
  })
})
