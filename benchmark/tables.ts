/**
 * The tables of a result as rows of words, and as text for a terminal. `html.ts` shows the same words.
 */
import { type Comparison, type Side, type Workload } from "./comparisons.ts"
import type { Machine } from "./machine.ts"
import { type ComparisonTable, comparisonTables, type ProgramTable, programTables, type Results } from "./results.ts"
import type { Target } from "./statistics.ts"

/** A table's title, its columns and its cells. */
export interface Table {
  readonly title: string
  readonly columns: ReadonlyArray<string>
  readonly rows: ReadonlyArray<ReadonlyArray<string>>
}

const ABSENT = "–"

/** Three significant digits, or all that are before the point. */
export const digits = (value: number | undefined): string => {
  if (value === undefined) return ABSENT
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

export const ratioDigits = (ratio: number | undefined): string => ratio === undefined ? ABSENT : ratio.toFixed(2)

const UNITS: Readonly<Record<Side["figure"], string>> = {
  kiops: "kIOPS",
  gibps: "GiB/s",
  cpuUs: "µs CPU",
  p50Us: "µs p50",
  meanUs: "µs mean"
}

export const targetText = (target: Target | undefined): string => {
  if (target === undefined) return ABSENT
  const { bound, kind, orEven = false } = target
  return `${kind === "at least" ? "≥" : "≤"} ${bound}${orEven ? " or even" : ""}`
}

export const headingOf = ({ scenario, title, workload }: Comparison): string =>
  `${scenario}: ${title} (${workload.name})`

export const comparisonTable = ({ comparison, rows }: ComparisonTable): Table => {
  const { baseline, ours } = comparison
  return {
    title: headingOf(comparison),
    columns: [
      "depth",
      `${ours.program.name}, ${UNITS[ours.figure]}`,
      `${baseline.program.name}, ${UNITS[baseline.figure]}`,
      "ratio",
      "min … max",
      "quartiles",
      "rounds",
      "CPU µs a request",
      "target",
      "verdict"
    ],
    rows: rows.map((row) => [
      String(row.depth),
      digits(row.ours),
      digits(row.baseline),
      ratioDigits(row.ratio?.median),
      `${ratioDigits(row.ratio?.min)} … ${ratioDigits(row.ratio?.max)}`,
      `${ratioDigits(row.ratio?.lower)} … ${ratioDigits(row.ratio?.upper)}`,
      String(row.rounds),
      `${digits(row.oursCpuUs)} : ${digits(row.baselineCpuUs)}`,
      targetText(row.target),
      row.verdict
    ])
  }
}

/** How much a program did, in the unit of the load. */
export const throughputOf = ({ unit }: Workload, figures: { readonly kiops?: number; readonly gibps?: number }) =>
  unit === "kIOPS" ? figures.kiops : figures.gibps

export const programTable = ({ rows, workload }: ProgramTable): Table => ({
  title: `Medians: ${workload.name}`,
  columns: ["depth", "program", workload.unit, "CPU µs a request", "mean µs", "p50 µs", "p99 µs", "p99.9 µs", "rounds"],
  rows: rows.map(({ depth, median, program, rounds }) => [
    String(depth),
    program,
    digits(throughputOf(workload, median)),
    digits(median.cpuUs),
    digits(median.meanUs),
    digits(median.p50Us),
    digits(median.p99Us),
    digits(median.p999Us),
    String(rounds)
  ])
})

/** What a result is of, as names and values. */
export const facts = ({ date, machine, rampSeconds, seconds }: Results): ReadonlyArray<readonly [string, string]> => [
  ["date", date],
  ["machine", describe(machine)],
  ["kernel", machine.kernel],
  ["Node", machine.node],
  ["qemu-storage-daemon", machine.storageDaemon],
  ...Object.entries(machine.peers),
  ["each run", `${seconds} s, after ${rampSeconds} s that are not counted where the program can`]
]

const describe = ({ processor, processors }: Machine) =>
  `${processors} ${processors === 1 ? "processor" : "processors"}, ${processor}`

/** Every table of a result: first what was compared, then what each program did. */
export const tablesOf = (results: Results): ReadonlyArray<Table> => [
  ...comparisonTables(results).map(comparisonTable),
  ...programTables(results).map(programTable)
]

const NUMBERS = /^[\d.–…:≥≤ ]+(?:or even)?$/u

/** Whether all cells of a column are numbers, which are set to the right. */
export const isNumeric = ({ rows }: Table, column: number): boolean =>
  rows.every((row) => NUMBERS.test(row[column] ?? ""))

/** A table for a terminal. */
const tableText = (table: Table): string => {
  const { columns, rows, title } = table
  const widths = columns.map((column, i) => Math.max(column.length, ...rows.map((row) => row[i]?.length ?? 0)))
  const numeric = columns.map((_, i) => isNumeric(table, i))
  const pad = (cell: string, i: number) =>
    numeric[i] === true ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)
  return [title, ...[columns, ...rows].map((cells) => cells.map(pad).join("  ").trimEnd())].join("\n")
}

/** The whole result for a terminal. */
export const text = (results: Results): string =>
  [
    facts(results).map(([name, value]) => `${name.padEnd(20)} ${value}`).join("\n"),
    ...results.leftOut.map((reason) => `LEFT OUT: ${reason}`),
    ...tablesOf(results).map(tableText)
  ].join("\n\n")
