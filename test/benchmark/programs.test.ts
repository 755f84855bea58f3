/**
 * Goal: what a program says becomes figures in our units, and what says nothing becomes an error that names the command.
 * Method: reports as the programs write them, whole and broken, and commands that fail.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { output, RunFailed } from "../../benchmark/measure.ts"
import {
  blkioBenchEvent,
  fioUring,
  type Load,
  nodeFsPromises,
  type Program,
  streamEvent,
  streamEvent85
} from "../../benchmark/programs.ts"

const load: Load = { readwrite: "randread", blockBytes: 4096, depth: 128, seconds: 1.5, rampSeconds: 0.5 }
const disk = { socketPath: "disk.sock", file: "disk.raw" }

const read = (program: Program, stdout: string, stderr = "") =>
  program.read(program.command(disk, load, "peer"), { stdout, stderr }, load)

/** The error's message, which begins with the command. */
const refusal = (program: Program, stdout: string, stderr = "") =>
  Effect.map(Effect.flip(read(program, stdout, stderr)), (error) => {
    expect(error).toBeInstanceOf(RunFailed)
    const command = program.command(disk, load, "peer")
    expect(error.command).toContain(command.at(-1))
    expect(error.message).toBe(`${error.command}: ${error.reason}`)
    return error.reason
  })

const ours = (changes: object) =>
  JSON.stringify({
    aggregate: {
      kiops: 250,
      gibps: 0.95,
      min_lat_us: 1,
      mean_lat_us: 4,
      p50_lat_us: 3,
      p99_lat_us: 9,
      p999_lat_us: 20,
      max_lat_us: 100,
      requests: 375_000,
      errors: 0,
      cpu_us_per_io: 1.25,
      ...changes
    },
    queues: []
  })

const libblkio = (kiops: string) =>
  `{ "aggregate": { "kiops": ${kiops}, "gips": 0.995, "min_lat_us": 4.618, "mean_lat_us": 30.560 }, "threads": [] }`

const fio = (changes: object) =>
  JSON.stringify({
    "fio version": "fio-3.33",
    jobs: [{
      error: 0,
      usr_cpu: 20,
      sys_cpu: 60,
      job_runtime: 1500,
      read: {
        iops: 240_000,
        bw_bytes: 2 ** 30,
        total_ios: 360_000,
        lat_ns: { mean: 31_000 },
        clat_ns: { percentile: { "50.000000": 28_000, "99.000000": 79_000, "99.900000": 246_000 } },
        ...changes
      }
    }]
  })

describe("reports", () => {
  it.effect("of ours and of node:fs are read alike", () =>
    Effect.gen(function*() {
      const figures = { kiops: 250, gibps: 0.95, cpuUs: 1.25, meanUs: 4, p50Us: 3, p99Us: 9, p999Us: 20 }
      expect(yield* read(streamEvent, ours({}))).toStrictEqual(figures)
      expect(yield* read(nodeFsPromises, ours({}))).toStrictEqual(figures)
    }))

  it.effect("of blkio-bench get their CPU time from the shell, over the whole seconds that it ran", () =>
    Effect.gen(function*() {
      const figures = yield* read(blkioBenchEvent, libblkio("250.0"), "a warning\ncpu 0.200 0.300\n")
      expect(figures).toStrictEqual({ kiops: 250, gibps: 0.995, cpuUs: 1, meanUs: 30.56 })
    }))

  it.effect("of fio get theirs from its shares of the time", () =>
    Effect.gen(function*() {
      const { cpuUs, ...figures } = yield* read(fioUring, fio({}))
      expect(figures).toStrictEqual({ kiops: 240, gibps: 1, meanUs: 31, p50Us: 28, p99Us: 79, p999Us: 246 })
      expect(cpuUs).toBeCloseTo(1200 * 1000 / 360_000)
    }))

  it.effect("without requests, or with errors, are refused", () =>
    Effect.gen(function*() {
      expect(yield* refusal(streamEvent, ours({ errors: 3 }))).toBe("375000 requests, 3 errors")
      expect(yield* refusal(nodeFsPromises, ours({ requests: 0 }))).toBe("0 requests, 0 errors")
      expect(yield* refusal(blkioBenchEvent, libblkio("0.000"), "cpu 0.000 0.001\n")).toBe("0 requests, 0 errors")
      expect(yield* refusal(fioUring, fio({ total_ios: 0 }))).toBe("0 requests, 0 errors")
    }))

  it.effect("that are none are refused", () =>
    Effect.gen(function*() {
      for (const program of [streamEvent, blkioBenchEvent, nodeFsPromises, fioUring]) {
        for (const stdout of ["", "{}", "Segmentation fault", "{\"aggregate\": 1}"]) {
          expect(yield* refusal(program, stdout, "cpu 1.000 1.000")).toContain("its report cannot be read")
        }
      }
      // What C prints where nothing was counted.
      expect(yield* refusal(blkioBenchEvent, libblkio("-nan"))).toContain("its report cannot be read")
      expect(yield* refusal(blkioBenchEvent, libblkio("1.0"), "bash: time: no")).toContain("its report cannot be read")
    }))
})

describe("commands", () => {
  it("say what is asked for", () => {
    const words = (program: Program) => program.command(disk, load, "peer").join(" ")
    expect(words(streamEvent)).toContain(" bench virtio-blk-vhost-user,path=disk.sock --readwrite=randread ")
    expect(words(streamEvent)).toContain(" --iodepth=128 --runtime=1.5 --ramptime=0.5 --wait=event --json")
    expect(words(streamEvent85)).toContain(" --iodepth=85 ")
    expect(words(blkioBenchEvent)).toContain(" --iodepth=128 --runtime=2 virtio-blk-vhost-user path=disk.sock")
    expect(words(fioUring)).toContain(" --runtime=1500000us --ramp_time=500000us ")
  })

  const run = (...args: ReadonlyArray<string>) => output(["bash", "-c", ...args], 0)

  it.live("give what they say on both outputs", () =>
    Effect.gen(function*() {
      expect(yield* run("echo figures; echo 'cpu 1 2' >&2")).toStrictEqual({ stdout: "figures\n", stderr: "cpu 1 2\n" })
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("that fail say how, and as what one could type", () =>
    Effect.gen(function*() {
      const failed = yield* Effect.flip(run("echo no such disk >&2; exit 3"))
      expect(failed.message).toBe("bash -c 'echo no such disk >&2; exit 3': exit code 3: no such disk")
      expect((yield* Effect.flip(run("kill -9 $$"))).reason).toBe("exit code 137: it says nothing")
      expect((yield* Effect.flip(output(["no-such-program"], 0))).message).toMatch(/^no-such-program: .*NotFound/u)
    }).pipe(Effect.provide(NodeServices.layer)))
})
