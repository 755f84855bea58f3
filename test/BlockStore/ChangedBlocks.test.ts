/**
 * Goal: the map of changed blocks is exact, across words and pages, and costs nothing where nothing is marked.
 * Method: random marks, near the edges of words and pages, compared with a plain set of block numbers.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { ChangedBlocks } from "../../src/BlockStore/ChangedBlocks.ts"
import { between } from "../Wire/arbitraries.ts"

const PAGE = 32_768
const edges = [0, 31, 32, 33, 64, PAGE - 32, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 5, 3 * PAGE]
const mark = Arbitrary.map(
  Arbitrary.schema(
    Schema.Struct({ edge: between(0, edges.length - 1), shift: between(0, 70), count: between(1, 150) })
  ),
  ({ count, edge, shift }) => ({ start: (edges[edge] ?? 0) + shift, count })
)

describe("ChangedBlocks", () => {
  it.prop("holds what a set holds", [Arbitrary.array(mark, { maxLength: 12 })], ([marks]) => {
    const changed = new ChangedBlocks()
    const model = new Set<number>()
    for (const { count, start } of marks) {
      changed.mark(start, count)
      for (let block = start; block < start + count; block++) model.add(block)
    }
    const runs = changed.runs(0, 4 * PAGE)
    expect(runs.reduce((sum, { count }) => sum + count, 0)).toBe(4 * PAGE)
    let next = 0
    for (const [index, { count, isMarked, start }] of runs.entries()) {
      expect(start).toBe(next)
      next += count
      if (index > 0) expect(isMarked).toBe(!(runs[index - 1]?.isMarked ?? true))
      for (let block = start; block < next; block++) {
        if (model.has(block) !== isMarked) throw new Error(`block ${block} is ${isMarked}`)
      }
    }
    expect(changed.marked()).toStrictEqual(runs.filter(({ isMarked }) => isMarked))
  })

  it("begins and ends a run where it is asked to", () => {
    const changed = new ChangedBlocks()
    changed.mark(10, PAGE)
    expect(changed.runs(12, 3)).toStrictEqual([{ start: 12, count: 3, isMarked: true }])
    expect(changed.runs(5, 10)).toStrictEqual([
      { start: 5, count: 5, isMarked: false },
      { start: 10, count: 5, isMarked: true }
    ])
    expect(changed.runs(PAGE, 20)).toStrictEqual([
      { start: PAGE, count: 10, isMarked: true },
      { start: PAGE + 10, count: 10, isMarked: false }
    ])
  })

  it("marks and counts the blocks of 16 TiB at once", () => {
    const changed = new ChangedBlocks()
    const blocks = 2 ** 32
    changed.mark(1, blocks - 1)
    expect(changed.marked()).toStrictEqual([{ start: 1, count: blocks - 1, isMarked: true }])
    expect(changed.runs(0, blocks)).toHaveLength(2)
  })
})
