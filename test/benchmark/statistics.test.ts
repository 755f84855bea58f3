/**
 * Goal: medians, quartiles and ratios are what a reader takes them for, and a verdict follows from them alone.
 * Method: by hand on small numbers, and by properties of any.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { judge, ratios, summarize } from "../../benchmark/statistics.ts"

const Numbers = Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1000 })))

const all = (value: number) => ({ min: value, lower: value, median: value, upper: value, max: value })

describe("summarize", () => {
  it("sums up nothing as nothing, and one number as itself", () => {
    expect(summarize([])).toBeUndefined()
    expect(summarize([7])).toStrictEqual(all(7))
  })

  it("takes the number in the middle, or between the two there", () => {
    expect(summarize([9, 1, 5])).toStrictEqual({ min: 1, lower: 3, median: 5, upper: 7, max: 9 })
    expect(summarize([4, 1, 3, 2])).toStrictEqual({ min: 1, lower: 1.75, median: 2.5, upper: 3.25, max: 4 })
    expect(summarize([10, 9, 100])?.median).toBe(10)
  })

  it.prop("is in order, in whichever order the numbers are", [Numbers], ([numbers]) => {
    const { lower = 0, max = 0, median = 0, min = 0, upper = 0 } = summarize(numbers) ?? {}
    expect([min, lower, median, upper, max]).toStrictEqual([min, lower, median, upper, max].toSorted((a, b) => a - b))
    expect([min, max]).toStrictEqual([Math.min(...numbers), Math.max(...numbers)])
    expect(summarize(numbers.toReversed())).toStrictEqual(summarize(numbers))
  })
})

describe("ratios", () => {
  it("divides what belongs to the same round, whatever the order", () => {
    const ours = new Map([[0, 10], [2, 30], [1, 20]])
    const theirs = new Map([[2, 10], [1, 5], [0, 40], [3, 1]])
    expect(ratios(ours, theirs)).toStrictEqual([0.25, 3, 4])
  })

  it("leaves out rounds that one side has not, or in which there is nothing to divide by", () => {
    expect(ratios(new Map([[0, 1], [1, 1]]), new Map([[1, 0], [2, 5]]))).toStrictEqual([])
  })

  it("is a median of ratios, not a ratio of medians", () => {
    const ours = new Map([[0, 1], [1, 20], [2, 300]])
    const theirs = new Map([[0, 1], [1, 10], [2, 100]])
    expect(summarize(ratios(ours, theirs))?.median).toBe(2)
  })
})

describe("judge", () => {
  it("holds the median against the bound, which is included", () => {
    const atLeast = { kind: "at least", bound: 0.8 } as const
    const atMost = { kind: "at most", bound: 1.1 } as const
    expect([0.79, 0.8, 0.81].map((ratio) => judge(all(ratio), atLeast))).toStrictEqual(["missed", "met", "met"])
    expect([1.09, 1.1, 1.11].map((ratio) => judge(all(ratio), atMost))).toStrictEqual(["met", "met", "missed"])
    expect(judge({ min: 0.1, lower: 0.2, median: 0.8, upper: 0.81, max: 9 }, atLeast)).toBe("met")
  })

  it("takes quartiles around 1 for even, where that is the rule", () => {
    const spread = { min: 0.5, lower: 0.8, median: 0.9, upper: 1, max: 1.3 }
    const target = { kind: "at least", bound: 0.95 } as const
    expect(judge(spread, target)).toBe("missed")
    expect(judge(spread, { ...target, orEven: true })).toBe("met")
    expect(judge({ ...spread, upper: 0.99 }, { ...target, orEven: true })).toBe("missed")
  })

  it("says so where there is no target, or nothing to judge", () => {
    expect(judge(all(1), undefined)).toBe("no target")
    expect(judge(undefined, { kind: "at least", bound: 1 })).toBe("not measured")
  })
})
