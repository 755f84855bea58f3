/**
 * Goal: whatever ranges a device reports and whatever is taken and given back, addresses lie inside the ranges, keep to the
 * alignment, do not overlap, are never in page 0 and are the lowest that fit; also where numbers end, at 2^53 and 2^64.
 * Method: edges by hand; then random histories against a model that tries every aligned address of a small space, shifted to
 * where it matters.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { IovaSpace } from "../../src/Transport/IovaSpace.ts"
import { between } from "../Wire/arbitraries.ts"

const PAGE = 4096
const ALL = { first: 0n, last: 2n ** 64n - 1n }
const END = 2 ** 53

describe("a space", () => {
  it("begins behind page 0, and goes on without gaps", () => {
    const space = new IovaSpace([ALL], PAGE)
    expect([1, PAGE, PAGE + 1, 2 ** 33, 1].map((length) => space.allocate(length))).toStrictEqual(
      [PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE, 5 * PAGE + 2 ** 33]
    )
  })

  it("begins where the device says, at the next multiple of the alignment", () => {
    expect(new IovaSpace([{ first: 5000n, last: 99999n }], PAGE).allocate(1)).toBe(2 * PAGE)
    expect(new IovaSpace([{ first: 2n ** 32n, last: 2n ** 33n }], 65536).allocate(1)).toBe(2 ** 32)
    expect(new IovaSpace([ALL], 65536).allocate(1)).toBe(65536)
  })

  it("gives away the last page of a range and no byte more", () => {
    const space = new IovaSpace([{ first: 4096n, last: 12287n }], PAGE)
    expect(space.allocate(2 * PAGE + 1)).toBe(-1)
    expect(space.allocate(2 * PAGE)).toBe(PAGE)
    expect(space.allocate(1)).toBe(-1)
    expect(new IovaSpace([{ first: 4096n, last: 12286n }], PAGE).allocate(2 * PAGE)).toBe(-1)
  })

  it("goes on in the next range", () => {
    // As an Intel IOMMU reports them, with the window of its interrupts between.
    const space = new IovaSpace([{ first: 0n, last: 0xfedfffffn }, { first: 0xfef00000n, last: 0x7fffffffffn }], PAGE)
    expect(space.allocate(0xfee00000)).toBe(0xfef00000)
    expect(space.allocate(0xfee00000 - PAGE)).toBe(PAGE)
  })

  it("joins ranges that touch or overlap, in any order", () => {
    const pages = (first: number, last: number) => ({ first: BigInt(first * PAGE), last: BigInt(last * PAGE) - 1n })
    const space = new IovaSpace([pages(5, 7), pages(1, 3), pages(2, 4), pages(4, 5)], PAGE)
    expect(space.allocate(6 * PAGE)).toBe(PAGE)
  })

  it("stays below 2^53", () => {
    const top = { first: BigInt(END - 2 * PAGE), last: ALL.last }
    const space = new IovaSpace([top], PAGE)
    expect(space.allocate(3 * PAGE)).toBe(-1)
    expect(space.allocate(2 * PAGE)).toBe(END - 2 * PAGE)
    expect(space.allocate(1)).toBe(-1)
    const all = new IovaSpace([ALL], PAGE)
    expect(all.allocate(END)).toBe(-1)
    expect(all.allocate(END - PAGE)).toBe(PAGE)
  })

  it("is empty where nothing can be given away", () => {
    const nothing = [
      [],
      [{ first: 0n, last: 4095n }],
      [{ first: 4097n, last: 12286n }],
      [{ first: 8192n, last: 4096n }],
      [{ first: BigInt(END), last: ALL.last }],
      [{ first: BigInt(END - 1), last: ALL.last }],
      [{ first: ALL.last, last: ALL.last }]
    ]
    for (const ranges of nothing) {
      const space = new IovaSpace(ranges, PAGE)
      expect(space.isEmpty).toBe(true)
      expect(space.allocate(1)).toBe(-1)
    }
    expect(new IovaSpace([ALL], PAGE).isEmpty).toBe(false)
  })

  it("takes back what it gave, and nothing else", () => {
    const space = new IovaSpace([ALL], PAGE)
    const [first, second] = [space.allocate(2 * PAGE), space.allocate(PAGE)]
    space.free(first + PAGE)
    space.free(-1)
    expect(space.allocate(PAGE)).toBe(second + PAGE)
    space.free(first)
    expect(space.allocate(3 * PAGE)).toBe(second + 2 * PAGE)
    expect(space.allocate(PAGE)).toBe(first)
    expect(space.allocate(PAGE)).toBe(first + PAGE)
  })
})

describe("any history", () => {
  /** Lengths in halves of a page; a negative step frees what that many allocations before was given. */
  const step = Schema.Union([between(1, 12), between(-6, -1)])
  const history = Arbitrary.schema(Schema.Struct({
    base: Schema.Literals([0, 2 ** 32 - 8 * PAGE, END - 40 * PAGE]),
    ranges: Schema.Array(Schema.Struct({ first: between(0, 60), halfPages: between(1, 40) })).check(
      Schema.isMaxLength(3)
    ),
    steps: Schema.Array(step).check(Schema.isMaxLength(24))
  }))

  it.prop("is first fit", [history], ([{ base, ranges, steps }]) => {
    const half = PAGE / 2
    const reported = ranges.map(({ first, halfPages }) => ({
      first: BigInt(base) + BigInt(first * half),
      last: BigInt(base) + BigInt((first + halfPages) * half) - 1n
    }))
    const space = new IovaSpace(reported, PAGE)
    /** The pages of the small space that lie in a range. */
    const isInside = (page: number) => {
      const at = BigInt(base) + BigInt(page * PAGE)
      return at >= BigInt(PAGE) && at + BigInt(PAGE) <= BigInt(END)
        && joined(reported).some(({ first, last }) => first <= at && at + BigInt(PAGE) - 1n <= last)
    }
    const used = new Set<number>()
    const given: Array<{ readonly address: number; readonly pages: ReadonlyArray<number> }> = []
    for (const value of steps) {
      if (value < 0) {
        const [back] = given.splice(value, 1)
        if (back === undefined) continue
        space.free(back.address)
        for (const page of back.pages) used.delete(page)
        continue
      }
      const count = Math.ceil(value / 2)
      const fits = (start: number) =>
        Array.from({ length: count }, (_, i) => start + i).every((page) => isInside(page) && !used.has(page))
      const lowest = Array.from({ length: 64 }, (_, page) => page).find(fits)
      const address = space.allocate(value * half)
      expect(address).toBe(lowest === undefined ? -1 : base + lowest * PAGE)
      if (lowest === undefined) continue
      const pages = Array.from({ length: count }, (_, i) => lowest + i)
      for (const page of pages) used.add(page)
      given.push({ address, pages })
    }
  })
})

/** Cuts each range to whole pages first, as a space does, so that halves of two ranges never make a page. */
const joined = (ranges: ReadonlyArray<{ readonly first: bigint; readonly last: bigint }>) =>
  ranges.map(({ first, last }) => ({
    first: (first + 4095n) / 4096n * 4096n,
    last: (last + 1n) / 4096n * 4096n - 1n
  }))
