/** A made-up result of every comparison, the same each time: figures from 10 to millions, and rounds that differ. */
import { cellsOf, COMPARISONS } from "../../benchmark/comparisons.ts"
import { type Results, runOf } from "../../benchmark/results.ts"
import { make as random } from "../../src/SeededRandom.ts"

export const ROUNDS = 3

const cells = cellsOf(COMPARISONS, () => ROUNDS)
const programs = [...new Set(cells.map(({ program }) => program))]

export const fixedResults = (): Results => {
  const next = random(1)
  const around = (value: number) => value * (0.8 + next(1000) / 2500)
  return {
    machine: {
      processor: "A Processor of Some Length @ 2.00GHz, x64",
      processors: 2,
      kernel: "Linux 6.1.0",
      node: "v26.0.0",
      storageDaemon: "7.2.0",
      peers: { libblkio: "1.5.0" }
    },
    date: "2026-01-02T03:04:05.678Z",
    seconds: 1,
    rampSeconds: 0.5,
    leftOut: ["fio: it is <not> here & cannot be"],
    comparisons: COMPARISONS,
    runs: Array.from(
      { length: ROUNDS },
      (_, round) =>
        cells.filter(({ program }) => program.peer !== "fio").map((cell) => {
          const kiops = around(12 * (1 + programs.indexOf(cell.program) % 7) * cell.depth ** 1.1)
          const meanUs = cell.depth / kiops * 1000
          const own = { kiops, gibps: kiops * cell.workload.blockBytes * 1000 / 2 ** 30, cpuUs: around(2), meanUs }
          const told = { p50Us: meanUs * 0.9, p99Us: around(meanUs * 3), p999Us: around(meanUs * 40) }
          return runOf(cell, round, cell.program.peer === undefined ? { ...own, ...told } : own)
        })
    ).flat()
  }
}
