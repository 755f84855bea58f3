/**
 * What is compared with what, and what the ratios are to be.
 *
 * A comparison's figure is ours divided by the baseline's, of runs on the same server with the same load. Programs that
 * several comparisons need run once in a round.
 */
import type { Figures } from "./measure.ts"
import * as Programs from "./programs.ts"
import type { Target } from "./statistics.ts"

/** The disks that are served. */
export const SERVERS = {
  "null-co": "a disk that answers at once and moves no data (null-co)",
  "null-co, 2 queues": "the same with two queues",
  file: "a file in shared memory (aio=threads)"
} as const

export type Server = keyof typeof SERVERS

/** A server, and how its disk is read. */
export interface Workload {
  readonly name: string
  readonly server: Server
  readonly readwrite: "randread" | "read"
  readonly blockBytes: number
  /** What throughput is told in. */
  readonly unit: "kIOPS" | "GiB/s"
}

const random = { readwrite: "randread", blockBytes: 4096, unit: "kIOPS" } as const
export const NULL_RANDOM: Workload = { name: "null-co, 4 KiB random reads", server: "null-co", ...random }
export const FILE_RANDOM: Workload = { name: "file, 4 KiB random reads", server: "file", ...random }
export const QUEUES_RANDOM: Workload = {
  name: "null-co with two queues, 4 KiB random reads",
  server: "null-co, 2 queues",
  ...random
}
export const FILE_SEQUENTIAL: Workload = {
  name: "file, 128 KiB sequential reads",
  server: "file",
  readwrite: "read",
  blockBytes: 131_072,
  unit: "GiB/s"
}

/** A program and what is taken from its report. */
export interface Side {
  readonly program: Programs.Program
  readonly figure: "kiops" | "gibps" | "cpuUs" | "p50Us" | "meanUs"
}

/** One row of the targets: ours by a baseline, at some depths. */
export interface Comparison {
  /** What `--scenario` calls it. */
  readonly scenario: string
  readonly title: string
  readonly workload: Workload
  readonly ours: Side
  readonly baseline: Side
  /** The depths it is made at, each with what the ratio has to be, if it has to be anything. */
  readonly depths: ReadonlyMap<number, Target | undefined>
}

const ROUNDS = 5
/** Where the bound is so near to 1 that few rounds do not decide it. */
const CLOSE_BOUND = 0.95
const CLOSE_ROUNDS = 15

/** How many rounds a comparison takes at a depth. */
export const roundsOf = ({ depths }: Comparison, depth: number): number =>
  depths.get(depth)?.bound === CLOSE_BOUND ? CLOSE_ROUNDS : ROUNDS

const atLeast = (bounds: Readonly<Record<number, number>>, orEven = false) =>
  new Map(Object.entries(bounds).map(([depth, bound]) => [Number(depth), { kind: "at least", bound, orEven } as const]))

const atMost = (bounds: Readonly<Record<number, number>>) =>
  new Map(Object.entries(bounds).map(([depth, bound]) => [Number(depth), { kind: "at most", bound } as const]))

const untargeted = (...depths: ReadonlyArray<number>) => new Map(depths.map((depth) => [depth, undefined]))

const kiops = (program: Programs.Program): Side => ({ program, figure: "kiops" })
const gibps = (program: Programs.Program): Side => ({ program, figure: "gibps" })
const cpu = (program: Programs.Program): Side => ({ program, figure: "cpuUs" })

const { blkioBenchEvent, blkioBenchPoll, nodeFsPromises, streamAdaptive, streamEvent, streamPoll } = Programs

/** With as many in flight as blkio-bench has, at the depth where that is fewer than asked for. */
const limited = (
  scenario: string,
  title: string,
  program: Programs.Program,
  baseline: Programs.Program
): Comparison => ({
  scenario,
  title: `${title}, with ${Programs.LIBBLKIO_MOST_IN_FLIGHT} in flight on both sides`,
  workload: NULL_RANDOM,
  ours: kiops(program),
  baseline: kiops(baseline),
  depths: untargeted(128)
})

export const COMPARISONS: ReadonlyArray<Comparison> = [
  {
    scenario: "event",
    title: "stream API, event queue ÷ blkio-bench",
    workload: NULL_RANDOM,
    ours: kiops(streamEvent),
    baseline: kiops(blkioBenchEvent),
    depths: atLeast({ 1: 0.8, 8: 0.95, 32: 0.95, 128: 1.1 })
  },
  limited("event", "stream API, event queue ÷ blkio-bench", Programs.streamEvent85, blkioBenchEvent),
  {
    scenario: "adaptive",
    title: "stream API, adaptive queue ÷ blkio-bench",
    workload: NULL_RANDOM,
    ours: kiops(streamAdaptive),
    baseline: kiops(blkioBenchEvent),
    depths: atLeast({ 1: 1.5, 8: 5, 32: 2.5, 128: 1.3 })
  },
  limited("adaptive", "stream API, adaptive queue ÷ blkio-bench", Programs.streamAdaptive85, blkioBenchEvent),
  {
    scenario: "request",
    title: "request API, adaptive queue ÷ stream API, adaptive queue",
    workload: NULL_RANDOM,
    ours: kiops(Programs.requestAdaptive),
    baseline: kiops(streamAdaptive),
    depths: atLeast({ 1: 0.9, 8: 0.8, 32: 0.75, 128: 0.7 })
  },
  {
    scenario: "poll",
    title: "stream API, poll queue ÷ blkio-bench --poll",
    workload: NULL_RANDOM,
    ours: kiops(streamPoll),
    baseline: kiops(blkioBenchPoll),
    depths: atLeast({ 1: 1, 8: 1.05, 32: 1.05, 128: 1.1 })
  },
  limited("poll", "stream API, poll queue ÷ blkio-bench --poll", Programs.streamPoll85, blkioBenchPoll),
  {
    scenario: "adaptive",
    title: "stream API, adaptive queue ÷ blkio-bench --poll",
    workload: NULL_RANDOM,
    ours: kiops(streamAdaptive),
    baseline: kiops(blkioBenchPoll),
    depths: untargeted(1, 8, 32, 128)
  },
  {
    scenario: "loop",
    title: "loop of functions, poll queue ÷ blkio-bench --poll",
    workload: NULL_RANDOM,
    ours: kiops(Programs.loopPoll),
    baseline: kiops(blkioBenchPoll),
    depths: untargeted(1, 8, 32, 128)
  },
  {
    scenario: "loop",
    title: "loop of functions, adaptive queue ÷ blkio-bench",
    workload: NULL_RANDOM,
    ours: kiops(Programs.loopAdaptive),
    baseline: kiops(blkioBenchEvent),
    depths: untargeted(1, 8, 32, 128)
  },
  {
    scenario: "latency",
    title: "p50 latency of stream API, poll queue ÷ mean latency of blkio-bench --poll",
    workload: NULL_RANDOM,
    ours: { program: streamPoll, figure: "p50Us" },
    baseline: { program: blkioBenchPoll, figure: "meanUs" },
    depths: atMost({ 1: 1.1 })
  },
  {
    scenario: "cpu",
    title: "client CPU per request: stream API, event queue ÷ blkio-bench",
    workload: NULL_RANDOM,
    ours: cpu(streamEvent),
    baseline: cpu(blkioBenchEvent),
    depths: atMost({ 1: 1.35, 8: 1.25, 32: 1.1, 128: 0.95 })
  },
  {
    scenario: "busy-server",
    title: "stream API, adaptive queue ÷ our event queue, on a server that needs the CPU itself",
    workload: FILE_RANDOM,
    ours: kiops(streamAdaptive),
    baseline: kiops(streamEvent),
    depths: atLeast({ 1: 0.95, 8: 0.95, 32: 0.95, 128: 0.95 }, true)
  },
  {
    scenario: "file",
    title: "stream API, event queue ÷ blkio-bench, both through a server",
    workload: FILE_RANDOM,
    ours: kiops(streamEvent),
    baseline: kiops(blkioBenchEvent),
    depths: untargeted(1, 8, 32, 128)
  },
  {
    scenario: "sequential",
    title: "stream API, adaptive queue ÷ blkio-bench",
    workload: FILE_SEQUENTIAL,
    ours: gibps(streamAdaptive),
    baseline: gibps(blkioBenchEvent),
    depths: atLeast({ 1: 0.95, 8: 0.95, 32: 0.95 })
  },
  {
    scenario: "sequential",
    title: "stream API, event queue ÷ blkio-bench",
    workload: FILE_SEQUENTIAL,
    ours: gibps(streamEvent),
    baseline: gibps(blkioBenchEvent),
    depths: atLeast({ 1: 0.95, 8: 0.95, 32: 0.95 })
  },
  {
    scenario: "bytes",
    title: "readBytes, which copies ÷ stream API, which does not; adaptive queue",
    workload: FILE_SEQUENTIAL,
    ours: gibps(Programs.readBytes),
    baseline: gibps(streamAdaptive),
    depths: atLeast({ 1: 0.8, 8: 0.8, 32: 0.8 })
  },
  {
    scenario: "node-fs",
    title: "client CPU per request: stream API, event queue ÷ node:fs promises, which have no server in between",
    workload: FILE_RANDOM,
    ours: cpu(streamEvent),
    baseline: cpu(nodeFsPromises),
    depths: atMost({ 32: 0.25 })
  },
  {
    scenario: "node-fs",
    title: "client CPU per request: stream API, adaptive queue ÷ node:fs promises, which have no server in between",
    workload: FILE_RANDOM,
    ours: cpu(streamAdaptive),
    baseline: cpu(nodeFsPromises),
    depths: untargeted(32)
  },
  ...[nodeFsPromises, Programs.nodeFsCallbacks].map((program): Comparison => ({
    scenario: "node-fs",
    title: `stream API, adaptive queue ÷ ${program.name}, which have no server in between`,
    workload: FILE_RANDOM,
    ours: kiops(streamAdaptive),
    baseline: kiops(program),
    depths: untargeted(1, 8, 32, 128)
  })),
  {
    scenario: "limit",
    title: "stream API, adaptive queue ÷ fio by io_uring, which has no server in between: the machine's own limit",
    workload: FILE_RANDOM,
    ours: kiops(streamAdaptive),
    baseline: kiops(Programs.fioUring),
    depths: untargeted(1, 8, 32, 128)
  },
  {
    scenario: "workers",
    title: "two workers, each with a queue of its own ÷ one; adaptive queues",
    workload: QUEUES_RANDOM,
    ours: kiops(Programs.twoWorkers),
    baseline: kiops(Programs.oneWorker),
    depths: atLeast({ 32: 1.2 })
  },
  {
    scenario: "workers",
    title: "two workers, each with a queue of its own ÷ one; event queues",
    workload: QUEUES_RANDOM,
    ours: kiops(Programs.twoWorkersEvent),
    baseline: kiops(Programs.oneWorkerEvent),
    depths: untargeted(32)
  }
]

export const SCENARIOS: ReadonlyArray<string> = [...new Set(COMPARISONS.map(({ scenario }) => scenario))]

/** Something to run: a program, with a load at a depth. */
export interface Cell {
  readonly workload: Workload
  readonly depth: number
  readonly program: Programs.Program
  /** In how many rounds. */
  readonly rounds: number
}

/** All that some comparisons need, each once: load by load, depth by depth, and what is compared side by side. */
export const cellsOf = (
  comparisons: ReadonlyArray<Comparison>,
  rounds: (comparison: Comparison, depth: number) => number
): ReadonlyArray<Cell> => {
  const cells = new Map<string, Cell>()
  const workloads = [...new Set(comparisons.map(({ workload }) => workload))]
  for (const comparison of comparisons) {
    for (const depth of comparison.depths.keys()) {
      for (const { program } of [comparison.baseline, comparison.ours]) {
        const { workload } = comparison
        const key = `${workload.name}|${depth}|${program.name}`
        const before = cells.get(key)?.rounds ?? 0
        cells.set(key, { workload, depth, program, rounds: Math.max(before, rounds(comparison, depth)) })
      }
    }
  }
  return workloads.flatMap((workload) =>
    [...cells.values()].filter((cell) => cell.workload === workload).toSorted((a, b) => a.depth - b.depth)
  )
}

/** What of a report a side looks at. */
export const figureOf = ({ figure }: Side, figures: Figures): number | undefined => figures[figure]
