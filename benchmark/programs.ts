/**
 * The programs that are compared: how each is run, and how its report is read.
 */
import { Effect, Schema } from "effect"
import {
  blkioBench,
  type Command,
  decode,
  type Figures,
  type Output,
  output,
  readOurs,
  type RunFailed,
  sound
} from "./measure.ts"

/** The disk that a program reads. */
export interface Disk {
  readonly socketPath: string
  /** The file that lies behind it, if one does. */
  readonly file: string | undefined
}

/** How a program is to read. */
export interface Load {
  readonly readwrite: "randread" | "read"
  readonly blockBytes: number
  readonly depth: number
  readonly seconds: number
  /** How long it runs before it measures, where it can. */
  readonly rampSeconds: number
}

/** Programs that may be missing. */
export type Peer = "blkio-bench" | "fio"

/** Something that can be measured. */
export interface Program {
  readonly name: string
  readonly peer?: Peer
  /** `peer` is the path of the program's peer. */
  readonly command: (disk: Disk, load: Load, peer: string) => Command
  readonly read: (command: Command, output: Output, load: Load) => Effect.Effect<Figures, RunFailed>
}

/** What `blkio-bench` has in flight at most: 256 descriptors, and three for each request. */
export const LIBBLKIO_MOST_IN_FLIGHT = 85

const GIB = 2 ** 30
const US_PER_S = 1e6

/** This library, by its own command. */
const ours = (name: string, options: ReadonlyArray<string>, mostInFlight = Infinity): Program => ({
  name,
  command: ({ socketPath }, { blockBytes, depth, rampSeconds, readwrite, seconds }) =>
    blkioBench(socketPath, [
      `--readwrite=${readwrite}`,
      `--blocksize=${blockBytes}`,
      `--iodepth=${Math.min(depth, mostInFlight)}`,
      `--runtime=${seconds}`,
      `--ramptime=${rampSeconds}`,
      ...options
    ]),
  read: readOurs
})

const LIMITED = `, at most ${LIBBLKIO_MOST_IN_FLIGHT}`

const in85 = (name: string, options: ReadonlyArray<string>) => ours(name + LIMITED, options, LIBBLKIO_MOST_IN_FLIGHT)

/** Whether a program of this name has fewer in flight than its depth says. */
export const isLimited = (name: string): boolean => name.endsWith(LIMITED)

const EVENT = "--wait=event"
const POLL = "--wait=poll"
const ADAPTIVE = "--wait=adaptive"

export const streamEvent = ours("stream, event", [EVENT])
export const streamEvent85 = in85("stream, event", [EVENT])
export const streamPoll = ours("stream, poll", [POLL])
export const streamPoll85 = in85("stream, poll", [POLL])
export const streamAdaptive = ours("stream, adaptive", [ADAPTIVE])
export const streamAdaptive85 = in85("stream, adaptive", [ADAPTIVE])
export const loopPoll = ours("loop, poll", [POLL, "--api=loop"])
export const loopAdaptive = ours("loop, adaptive", [ADAPTIVE, "--api=loop"])
export const requestAdaptive = ours("request, adaptive", [ADAPTIVE, "--api=request"])
export const readBytes = ours("readBytes, adaptive", [ADAPTIVE, "--api=bytes"])
const workers = (count: number, wait: string) => [wait, `--queues=${count}`, `--workers=${count}`]
export const oneWorkerEvent = ours("1 worker, event", workers(1, EVENT))
export const twoWorkersEvent = ours("2 workers, event", workers(2, EVENT))
export const oneWorker = ours("1 worker, adaptive", workers(1, ADAPTIVE))
export const twoWorkers = ours("2 workers, adaptive", workers(2, ADAPTIVE))

const LibblkioReport = Schema.fromJsonString(
  Schema.Struct({
    aggregate: Schema.Struct({ kiops: Schema.Finite, gips: Schema.Finite, mean_lat_us: Schema.Finite })
  })
)

/** What bash's `time` writes, by the format below. */
const CpuTime = Schema.TemplateLiteralParser(["cpu ", Schema.FiniteFromString, " ", Schema.FiniteFromString])

const TIMED = "LC_ALL=C TIMEFORMAT='cpu %U %S'; time \"$@\""

/** It takes whole seconds only. */
const wholeSeconds = ({ seconds }: Load) => Math.ceil(seconds)

/**
 * libblkio, by `blkio-bench` from its examples. It ends with an error where a request fails. It does not tell its CPU time, so
 * that is the process's, with its start.
 */
const libblkio = (name: string, options: ReadonlyArray<string>): Program => ({
  name,
  peer: "blkio-bench",
  command: ({ socketPath }, load, peer) => [
    "bash",
    "-c",
    TIMED,
    "bash",
    peer,
    `--readwrite=${load.readwrite}`,
    `--blocksize=${load.blockBytes}`,
    `--iodepth=${load.depth}`,
    `--runtime=${wholeSeconds(load)}`,
    ...options,
    "virtio-blk-vhost-user",
    `path=${socketPath}`
  ],
  read: Effect.fnUntraced(function*(command, { stderr, stdout }, load) {
    const { aggregate: { gips, kiops, mean_lat_us } } = yield* decode(LibblkioReport, command, stdout)
    const [, user, , system] = yield* decode(CpuTime, command, stderr.trim().split("\n").at(-1) ?? "")
    const requests = kiops * 1000 * wholeSeconds(load)
    const cpuUs = requests === 0 ? 0 : (user + system) * US_PER_S / requests
    return yield* sound({ kiops, gibps: gips, cpuUs, meanUs: mean_lat_us }, command, { requests, errors: 0 })
  })
})

export const blkioBenchEvent = libblkio("blkio-bench", [])
export const blkioBenchPoll = libblkio("blkio-bench --poll", ["--poll"])

const fileOf = ({ file }: Disk): string => {
  if (file === undefined) throw new Error("there is no file behind this disk")
  return file
}

/** `node:fs` on the file itself. */
const nodeFs = (api: "promises" | "callbacks"): Program => ({
  name: `node:fs ${api}`,
  command: (disk, { blockBytes, depth, rampSeconds, readwrite, seconds }) => [
    process.execPath,
    "benchmark/nodeFs.ts",
    fileOf(disk),
    `--api=${api}`,
    `--readwrite=${readwrite}`,
    `--blocksize=${blockBytes}`,
    `--iodepth=${depth}`,
    `--runtime=${seconds}`,
    `--ramptime=${rampSeconds}`
  ],
  read: readOurs
})

export const nodeFsPromises = nodeFs("promises")
export const nodeFsCallbacks = nodeFs("callbacks")

const FioReport = Schema.fromJsonString(
  Schema.Struct({
    jobs: Schema.NonEmptyArray(
      Schema.Struct({
        error: Schema.Int,
        usr_cpu: Schema.Finite,
        sys_cpu: Schema.Finite,
        job_runtime: Schema.Finite,
        read: Schema.Struct({
          iops: Schema.Finite,
          bw_bytes: Schema.Finite,
          total_ios: Schema.Int,
          lat_ns: Schema.Struct({ mean: Schema.Finite }),
          clat_ns: Schema.Struct({
            percentile: Schema.Struct({
              "50.000000": Schema.Finite,
              "99.000000": Schema.Finite,
              "99.900000": Schema.Finite
            })
          })
        })
      })
    )
  })
)

/** fio's arguments. */
export const fioJob = (file: string, load: Load): ReadonlyArray<string> => [
  "--name=peer",
  `--filename=${file}`,
  "--ioengine=io_uring",
  `--rw=${load.readwrite}`,
  `--bs=${load.blockBytes}`,
  `--iodepth=${load.depth}`,
  // A file in shared memory has no other way.
  "--direct=0",
  // fio would keep a map of blocks already read, which nobody else here does.
  "--norandommap",
  "--randrepeat=0",
  "--time_based",
  // In µs, since fractions of a second are cut off.
  `--runtime=${load.seconds * US_PER_S}us`,
  `--ramp_time=${load.rampSeconds * US_PER_S}us`,
  "--output-format=json"
]

/** fio, which goes to the kernel by io_uring: what this machine can do with that file. */
export const fioUring: Program = {
  name: "fio io_uring",
  peer: "fio",
  command: (disk, load, peer) => [peer, ...fioJob(fileOf(disk), load)],
  read: Effect.fnUntraced(function*(command, { stdout }) {
    const { jobs: [{ error, job_runtime, read, sys_cpu, usr_cpu }] } = yield* decode(FioReport, command, stdout)
    const { bw_bytes, clat_ns: { percentile }, iops, lat_ns, total_ios } = read
    const cpuMs = (usr_cpu + sys_cpu) / 100 * job_runtime
    const figures: Figures = {
      kiops: iops / 1000,
      gibps: bw_bytes / GIB,
      cpuUs: total_ios === 0 ? 0 : cpuMs * 1000 / total_ios,
      meanUs: lat_ns.mean / 1000,
      p50Us: percentile["50.000000"] / 1000,
      p99Us: percentile["99.000000"] / 1000,
      p999Us: percentile["99.900000"] / 1000
    }
    return yield* sound(figures, command, { requests: total_ios, errors: error })
  })
}

/** Runs a program once. */
export const run = Effect.fnUntraced(function*(program: Program, disk: Disk, load: Load, peer: string) {
  const command = program.command(disk, load, peer)
  return yield* program.read(command, yield* output(command, wholeSeconds(load) + load.rampSeconds), load)
})
