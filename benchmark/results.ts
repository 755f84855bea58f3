/**
 * What a whole benchmark has found: its runs, and the tables that are made of them.
 */
import { type Cell, type Comparison, COMPARISONS, type Workload } from "./comparisons.ts"
import type { Machine } from "./machine.ts"
import type { Figures } from "./measure.ts"
import { judge, ratios, summarize, type Summary, type Target, type Verdict } from "./statistics.ts"

/** One run of one program. */
export interface Run {
  readonly workload: string
  readonly depth: number
  readonly program: string
  readonly round: number
  readonly figures: Figures
}

export interface Results {
  readonly machine: Machine
  /** When it began, as ISO 8601 has it. */
  readonly date: string
  readonly seconds: number
  readonly rampSeconds: number
  /** Why some programs were left out. */
  readonly leftOut: ReadonlyArray<string>
  readonly comparisons: ReadonlyArray<Comparison>
  readonly runs: ReadonlyArray<Run>
}

/** A program at a depth: medians of its rounds. */
export interface ProgramRow {
  readonly program: string
  readonly depth: number
  readonly rounds: number
  readonly median: Partial<Figures>
}

/** What the programs did with one load. */
export interface ProgramTable {
  readonly workload: Workload
  readonly rows: ReadonlyArray<ProgramRow>
}

/** A comparison at a depth. */
export interface ComparisonRow {
  readonly depth: number
  readonly rounds: number
  /** Medians of what is compared; `undefined` where it was left out. */
  readonly ours: number | undefined
  readonly baseline: number | undefined
  readonly oursCpuUs: number | undefined
  readonly baselineCpuUs: number | undefined
  readonly ratio: Summary | undefined
  readonly target: Target | undefined
  readonly verdict: Verdict
}

export interface ComparisonTable {
  readonly comparison: Comparison
  readonly rows: ReadonlyArray<ComparisonRow>
}

const FIGURES = ["kiops", "gibps", "cpuUs", "meanUs", "p50Us", "p99Us", "p999Us"] as const

/** A figure of each round of a program. */
const byRound = (runs: ReadonlyArray<Run>, figure: keyof Figures): ReadonlyMap<number, number> =>
  new Map(runs.flatMap(({ figures, round }) => {
    const value = figures[figure]
    return value === undefined ? [] : [[round, value] as const]
  }))

const medianOf = (figures: ReadonlyMap<number, number>) => summarize([...figures.values()])?.median

export const programTables = ({ runs }: Results): ReadonlyArray<ProgramTable> => {
  const workloads = new Map(COMPARISONS.map(({ workload }) => [workload.name, workload]))
  return [...workloads.values()].flatMap((workload) => {
    const groups = Map.groupBy(
      runs.filter((run) => run.workload === workload.name),
      ({ depth, program }) => `${depth}|${program}`
    )
    const rows = [...groups.values()].flatMap((group): ReadonlyArray<ProgramRow> => {
      const [first] = group
      if (first === undefined) return []
      const medians = FIGURES.map((figure) => [figure, medianOf(byRound(group, figure))] as const)
      const median = Object.fromEntries(medians.filter(([, value]) => value !== undefined))
      return [{ program: first.program, depth: first.depth, rounds: group.length, median }]
    })
    return rows.length === 0 ? [] : [{ workload, rows: rows.toSorted((a, b) => a.depth - b.depth) }]
  })
}

export const comparisonTables = ({ comparisons, runs }: Results): ReadonlyArray<ComparisonTable> =>
  comparisons.map((comparison) => {
    const { baseline, depths, ours, workload } = comparison
    return {
      comparison,
      rows: [...depths].map(([depth, target]) => {
        const of = (program: string) =>
          runs.filter((run) => run.workload === workload.name && run.depth === depth && run.program === program)
        const [oursRuns, baselineRuns] = [of(ours.program.name), of(baseline.program.name)]
        const oursFigures = byRound(oursRuns, ours.figure)
        const baselineFigures = byRound(baselineRuns, baseline.figure)
        const found = ratios(oursFigures, baselineFigures)
        const ratio = summarize(found)
        return {
          depth,
          rounds: found.length,
          ours: medianOf(oursFigures),
          baseline: medianOf(baselineFigures),
          oursCpuUs: medianOf(byRound(oursRuns, "cpuUs")),
          baselineCpuUs: medianOf(byRound(baselineRuns, "cpuUs")),
          ratio,
          target,
          verdict: judge(ratio, target)
        }
      })
    }
  })

/** What a cell of the schedule found in one round. */
export const runOf = ({ depth, program, workload }: Cell, round: number, figures: Figures): Run => ({
  workload: workload.name,
  depth,
  program: program.name,
  round,
  figures
})
