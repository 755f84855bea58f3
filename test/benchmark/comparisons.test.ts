/**
 * Goal: the schedule runs what the comparisons need and nothing twice, side by side, and the tables hold what it found.
 * Method: the real list of comparisons, a made-up result, and small results made by hand.
 */
import { describe, expect, it } from "@effect/vitest"
import { cellsOf, COMPARISONS, NULL_RANDOM, roundsOf, SCENARIOS } from "../../benchmark/comparisons.ts"
import { isLimited } from "../../benchmark/programs.ts"
import { comparisonTables, programTables, type Results, runOf } from "../../benchmark/results.ts"
import { fixedResults, ROUNDS } from "./fixedResults.ts"

const of = (scenario: string) => COMPARISONS.filter((comparison) => comparison.scenario === scenario)
const cells = cellsOf(COMPARISONS, roundsOf)
const keys = cells.map(({ depth, program, workload }) => `${workload.name}|${depth}|${program.name}`)

describe("the schedule", () => {
  it("has each run once, whichever comparisons need it", () => {
    expect(new Set(keys).size).toBe(keys.length)
    for (const { baseline, depths, ours, workload } of COMPARISONS) {
      for (const depth of depths.keys()) {
        expect(keys).toContain(`${workload.name}|${depth}|${ours.program.name}`)
        expect(keys).toContain(`${workload.name}|${depth}|${baseline.program.name}`)
      }
    }
  })

  it("goes load by load and depth by depth, the baseline beside what is held against it", () => {
    const order = cells.map(({ depth, workload }) => `${workload.name}|${depth}`)
    expect(order.filter((group, i) => group !== order[i - 1])).toHaveLength(new Set(order).size)
    const atNull = cells.filter(({ depth, workload }) => depth === 1 && workload === NULL_RANDOM)
    expect(atNull.map(({ program }) => program.name).slice(0, 3)).toStrictEqual([
      "blkio-bench",
      "stream, event",
      "stream, adaptive"
    ])
  })

  it("takes 15 rounds where a bound is 0.95, for both sides, and 5 elsewhere", () => {
    const rounds = (workload: string, depth: number, program: string) =>
      cells[keys.indexOf(`${workload}|${depth}|${program}`)]?.rounds
    expect(rounds(NULL_RANDOM.name, 8, "stream, event")).toBe(15)
    expect(rounds(NULL_RANDOM.name, 8, "blkio-bench")).toBe(15)
    expect(rounds(NULL_RANDOM.name, 8, "stream, adaptive")).toBe(5)
    expect(rounds(NULL_RANDOM.name, 1, "stream, event")).toBe(5)
    expect(cellsOf(of("event"), () => 2).map((cell) => cell.rounds)).toStrictEqual(Array.from({ length: 9 }, () => 2))
  })

  it("gives programs that are drawn together different names and the others their limit", () => {
    expect(SCENARIOS).toContain("busy-server")
    expect(cells.filter(({ program }) => isLimited(program.name)).map(({ depth }) => depth)).toStrictEqual([
      128,
      128,
      128
    ])
  })
})

describe("the tables", () => {
  const [comparison] = of("event")
  if (comparison === undefined) throw new Error("there is no such scenario")
  const { baseline, ours } = comparison
  const cell = (side: typeof ours, depth: number) => ({
    workload: NULL_RANDOM,
    depth,
    program: side.program,
    rounds: 3
  })
  const figures = (kiops: number, cpuUs: number) => ({ kiops, gibps: 0, cpuUs, meanUs: 1 })
  const results: Results = {
    ...fixedResults(),
    comparisons: [comparison],
    runs: [
      runOf(cell(baseline, 1), 0, figures(10, 2)),
      runOf(cell(ours, 1), 0, figures(5, 4)),
      runOf(cell(baseline, 1), 1, figures(100, 2)),
      runOf(cell(ours, 1), 1, figures(90, 4)),
      runOf(cell(baseline, 1), 2, figures(40, 2)),
      runOf(cell(ours, 1), 2, figures(34, 4)),
      runOf(cell(ours, 8), 0, figures(34, 4))
    ]
  }

  it("hold the medians of each side and those of the rounds' ratios", () => {
    const [table] = comparisonTables(results)
    const row = table?.rows[0]
    expect(row).toMatchObject({ depth: 1, rounds: 3, ours: 34, baseline: 40, oursCpuUs: 4, baselineCpuUs: 2 })
    expect(row?.ratio).toMatchObject({ min: 0.5, median: 0.85, max: 0.9 })
    expect(row?.verdict).toBe("met")
  })

  it("say what was not measured", () => {
    const rows = comparisonTables(results)[0]?.rows ?? []
    expect(rows.map(({ depth, verdict }) => [depth, verdict])).toStrictEqual([
      [1, "met"],
      [8, "not measured"],
      [32, "not measured"],
      [128, "not measured"]
    ])
    expect(rows[1]).toMatchObject({ ours: 34, baseline: undefined, ratio: undefined, rounds: 0 })
  })

  it("list each program at each depth once, without figures that it does not tell", () => {
    const [table] = programTables(results)
    expect(table?.rows.map(({ depth, program, rounds }) => [depth, program, rounds])).toStrictEqual([
      [1, "blkio-bench", 3],
      [1, "stream, event", 3],
      [8, "stream, event", 1]
    ])
    expect(table?.rows[0]?.median).toStrictEqual({ kiops: 40, gibps: 0, cpuUs: 2, meanUs: 1 })
  })

  it("of everything have a row for each depth of each comparison", () => {
    const all = fixedResults()
    const rows = comparisonTables(all).flatMap((table) => table.rows)
    expect(rows).toHaveLength(COMPARISONS.reduce((sum, { depths }) => sum + depths.size, 0))
    expect(
      rows.every((row) => row.rounds === (row.verdict === "not measured" ? 0 : ROUNDS) || row.target === undefined)
    )
      .toBe(true)
    expect(programTables(all).flatMap((table) => table.rows)).toHaveLength(all.runs.length / ROUNDS)
  })
})
