/**
 * Goal: `blkio info` and `blkio bench` do on a real device what they promise: values, shapes, exit codes, and an end that
 * leaves the device to the next client.
 * Method: the command itself, run as a program against each backend. Figures depend on the machine and are only
 * checked for sense.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, layer } from "@effect/vitest"
import { Effect, FileSystem, Path, Schema } from "effect"
import { symlinkSync } from "node:fs"
import type { ServeOptions, Zeroes } from "../support/Backend.ts"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { MiB } from "../support/daemon.ts"
import { blkio, start } from "./blkio.ts"
import { deviceOn } from "./stores.ts"

const zeroes: Zeroes = { _tag: "zeroes", size: 64 * MiB }
const twoQueues: ServeOptions = { numQueues: 2 }

/** A bench that ends by itself only long after the test. */
const longBench = (path: string) => ["bench", deviceOn(path), "--runtime", "60", "--iodepth", "8"]

const temporaryFolder = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "blkio-cli-" }))

const Figures = Schema.Struct({
  kiops: Schema.Finite,
  gibps: Schema.Finite,
  min_lat_us: Schema.Finite,
  mean_lat_us: Schema.Finite,
  p50_lat_us: Schema.Finite,
  p99_lat_us: Schema.Finite,
  p999_lat_us: Schema.Finite,
  max_lat_us: Schema.Finite,
  requests: Schema.Natural,
  errors: Schema.Natural
})
const Report = Schema.Struct({
  aggregate: Figures.pipe(Schema.fieldsAssign({ cpu_us_per_io: Schema.Finite })),
  queues: Schema.Array(Figures)
})
/** Refuses what is missing and what is too much. */
const decodeReport = Schema.decodeUnknownSync(Schema.fromJsonString(Report), { onExcessProperty: "error" })

forEachBackend("blkio", (backend) => {
  layer(NodeServices.layer, { excludeTestServices: true })((it) => {
    describe("info", () => {
      it.effect("gives every property of a raw image with four queues", () =>
        Effect.gen(function*() {
          const { facts, socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 4 })
          const golden = {
            "driver": "virtio-blk-vhost-user",
            "path": socketPath,
            "fd": -1,
            "read-only": false,
            "device-read-only": false,
            "num-queues": 1,
            "num-poll-queues": 0,
            "queue-size": 256,
            "max-queues": 4,
            "max-queue-size": 32768,
            "can-add-queues": false,
            "supports-poll-queues": true,
            "capacity": 4194304,
            "can-grow": false,
            "request-alignment": 512,
            "optimal-io-alignment": 512,
            "optimal-io-size": 512,
            "min-io-size": 512,
            "topology-alignment-offset": 0,
            "discard-alignment": 512,
            "discard-alignment-offset": 0,
            "max-discard-len": facts.maxDiscardLength,
            "max-write-zeroes-len": facts.maxWriteZeroesLength,
            "max-segment-len": 0,
            "max-segments": facts.maxSegments,
            "max-transfer": 0,
            "buf-alignment": 1,
            "optimal-buf-alignment": 1,
            "supports-fua-natively": false,
            "flush-needed": facts.writeCache,
            "needs-mem-regions": true,
            "needs-mem-region-fd": true,
            "may-pin-mem-regions": true,
            "mem-region-alignment": 1,
            "max-mem-regions": facts.maxMemRegions
          }
          const json = yield* blkio("info", deviceOn(socketPath), "--json")
          expect(json).toMatchObject({ exit: 0, stderr: "" })
          expect(JSON.parse(json.stdout)).toStrictEqual(golden)

          const text = yield* blkio("info", deviceOn(socketPath))
          expect(text).toMatchObject({ exit: 0, stderr: "" })
          const lines = text.stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/u))
          expect(lines.map(([name]) => name)).toStrictEqual(Object.keys(golden))
          expect(lines.map(([, value]) => value?.replace(/ bytes$/u, ""))).toStrictEqual(
            Object.values(golden).map(String)
          )
        }))

      it.effect("shows what the DEVICE sets, in either spelling", () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const device = `${deviceOn(socketPath)},read-only=true,num-queues=0,num_poll_queues=2,queue-size=64`
          const { exit, stdout } = yield* blkio("info", device, "--json")
          expect(exit).toBe(0)
          expect(JSON.parse(stdout)).toMatchObject({
            "read-only": true,
            "num-queues": 0,
            "num-poll-queues": 2,
            "queue-size": 64
          })
        }))

      it.effect("finds paths with commas", () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const folder = yield* temporaryFolder
          for (const name of ["a,b.sock", ",", ",,", "a,", "a,num-queues=7"]) {
            const path = (yield* Path.Path).join(folder, name)
            symlinkSync(socketPath, path)
            const { stdout } = yield* blkio("info", `${deviceOn(path)},num-queues=2`, "--json")
            expect(JSON.parse(stdout)).toMatchObject({ path, "num-queues": 2 })
          }
        }))

      it.effect("has nothing to say where its reader has gone", () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const { child, outcome } = yield* start("info", deviceOn(socketPath))
          child.stdout.destroy()
          expect(yield* outcome).toMatchObject({ exit: 0, stderr: "" })
        }))

      it.effect("a backend that has gone is ECONNREFUSED", () =>
        Effect.gen(function*() {
          const { ended, kill, socketPath } = yield* backend.serveApart(zeroes)
          yield* kill("SIGKILL")
          yield* ended
          const { exit, stderr } = yield* blkio("info", deviceOn(socketPath))
          expect(stderr).toMatch(/^ECONNREFUSED: connect .*\n$/u)
          expect(exit).toBe(1)
        }))
    })

    describe("bench", () => {
      it.effect.each<readonly [string, string, string, string]>([
        ["read", "event", "stream", "1"],
        ["write", "event", "request", "2"],
        ["randread", "event", "stream", "2"],
        ["randwrite", "event", "request", "1"],
        ["randrw", "poll", "stream", "1"],
        ["read", "poll", "request", "2"],
        ["write", "poll", "stream", "2"],
        ["randread", "poll", "request", "1"],
        ["randwrite", "adaptive", "stream", "1"],
        ["randrw", "adaptive", "request", "2"],
        ["read", "adaptive", "stream", "2"],
        ["write", "adaptive", "request", "1"]
      ])("--readwrite %s --wait %s --api %s --queues %s", ([readwrite, wait, api, queues]) =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const options = { readwrite, wait, api, queues, runtime: "0.2", iodepth: "4", blocksize: "8192" }
          const flags = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])
          const { exit, stderr, stdout } = yield* blkio("bench", deviceOn(socketPath), ...flags, "--json")
          expect([exit, stderr]).toStrictEqual([0, ""])
          const report = decodeReport(stdout)
          expect(report.queues.length).toBe(Number(queues))
          const { aggregate } = report
          expect(aggregate.requests).toBe(report.queues.reduce((sum, { requests }) => sum + requests, 0))
          for (const figures of [aggregate, ...report.queues]) {
            expect(figures.errors).toBe(0)
            expect(figures.requests).toBeGreaterThan(0)
            expect(figures.gibps).toBeCloseTo(figures.kiops * 1000 * 8192 / 2 ** 30, 6)
            expect(figures.min_lat_us).toBeGreaterThan(0)
            expect(figures.min_lat_us).toBeLessThanOrEqual(figures.mean_lat_us)
            expect(figures.mean_lat_us).toBeLessThanOrEqual(figures.max_lat_us)
            expect(figures.p50_lat_us).toBeLessThanOrEqual(figures.p99_lat_us)
            expect(figures.p99_lat_us).toBeLessThanOrEqual(figures.p999_lat_us)
          }
          expect(aggregate.cpu_us_per_io).toBeGreaterThan(0)
        }))

      it.effect.each<readonly [string, string, string]>([
        ["adaptive", "stream", "2"],
        ["event", "request", "1"],
        ["poll", "stream", "2"]
      ])("--wait %s --api %s, with a thread for each of %s queues", ([wait, api, queues]) =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const flags = ["--wait", wait, "--api", api, "--queues", queues, "--workers", queues, "--iodepth", "4"]
          const times = ["--ramptime", "0.1", "--runtime", "0.2"]
          const { exit, stderr, stdout } = yield* blkio("bench", deviceOn(socketPath), ...flags, ...times, "--json")
          expect([exit, stderr]).toStrictEqual([0, ""])
          const report = decodeReport(stdout)
          expect(report.queues.length).toBe(Number(queues))
          for (const figures of [report.aggregate, ...report.queues]) {
            expect(figures.errors).toBe(0)
            expect(figures.requests).toBeGreaterThan(0)
            expect(figures.p50_lat_us).toBeGreaterThan(0)
          }
          expect(report.aggregate.requests).toBe(report.queues.reduce((sum, { requests }) => sum + requests, 0))
        }))

      it.effect.each(["read", "write"])("--api bytes, --readwrite %s", (readwrite) =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const flags = ["--api", "bytes", "--readwrite", readwrite, "--iodepth", "2", "--runtime", "0.2", "--json"]
          const { exit, stderr, stdout } = yield* blkio("bench", deviceOn(socketPath), ...flags)
          expect([exit, stderr]).toStrictEqual([0, ""])
          const { aggregate } = decodeReport(stdout)
          expect([aggregate.errors, aggregate.requests > 0]).toStrictEqual([0, true])
        }))

      it.effect("says its figures in words on stdout, and how far it is on stderr", () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const { exit, stderr, stdout } = yield* blkio("bench", deviceOn(socketPath), "--runtime", "1.5")
          expect(exit).toBe(0)
          expect(stdout).toMatch(/^throughput .*kIOPS.*GiB\/s\nlatency µs .*p99\.9.*\nrequests .*errors 0\nCPU .*\n$/u)
          expect(stderr).toMatch(/^1 s .*kIOPS\n$/u)
        }))

      it.effect.each<readonly [string, ReadonlyArray<string>]>([
        ["block size 100: must be a multiple of request-alignment 512", ["--blocksize", "100"]],
        ["block size 134217728: must be at most the capacity of 67108864 bytes", ["--blocksize", "134217728"]],
        ["3 queues: must be at most max-queues 2", ["--queues", "3"]],
        ["1 workers: must be as many as the 2 queues, or 0", ["--queues", "2", "--workers", "1"]],
        ["--api bytes needs --workers 0", ["--api", "bytes", "--workers", "1"]],
        ["block size 67108864 at depth 1000: must be at most", ["--blocksize", "67108864", "--iodepth", "1000"]]
      ])("wrong usage on this device: %s", ([expected, flags]) =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, twoQueues)
          const { exit, stderr, stdout } = yield* blkio("bench", deviceOn(socketPath), "--runtime", "0.2", ...flags)
          expect(stderr).toContain(`EINVAL: bench: ${expected}`)
          expect([exit, stdout]).toStrictEqual([2, ""])
        }))

      it.effect("a device that is read-only is EROFS, and can be read with read-only=true", () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(zeroes, { readOnly: true })
          const device = deviceOn(socketPath)
          const refused = yield* blkio("bench", device, "--runtime", "0.2", "--json")
          expect(refused.stderr).toMatch(/^EROFS: start: [^\n]+\n$/u)
          expect(refused).toMatchObject({ exit: 1, stdout: "" })
          const wrong = yield* blkio("bench", `${device},read-only=true`, "--readwrite", "randrw", "--runtime", "0.2")
          expect(wrong.stderr).toMatch(/^EBADF: bench: [^\n]+\n$/u)
          expect(wrong).toMatchObject({ exit: 2, stdout: "" })
          const read = yield* blkio("bench", `${device},read-only=true`, "--runtime", "0.2", "--json")
          expect(read.exit).toBe(0)
          expect(decodeReport(read.stdout).aggregate.errors).toBe(0)
        }))

      it.effect.each(["stream", "request"])(
        "counts the I/O errors of a failing disk, with --api %s",
        (api) =>
          Effect.gen(function*() {
            // Four blocks, of which the second holds a sector that cannot be read.
            const fault = { operation: "read", offset: 10 * 512 } as const
            const { socketPath } = yield* backend.serve({ _tag: "zeroes", size: 4 * 4096, fault })
            const { exit, stderr, stdout } = yield* blkio(
              "bench",
              deviceOn(socketPath),
              "--readwrite",
              "read",
              "--api",
              api,
              "--runtime",
              "0.3",
              "--json"
            )
            expect([exit, stderr]).toStrictEqual([0, ""])
            const { errors, requests } = decodeReport(stdout).aggregate
            expect(errors).toBeGreaterThan(0)
            expect(Math.abs(errors / requests - 1 / 4)).toBeLessThan(0.1)
          })
      )

      it.effect.each(["stream", "request"])(
        "a device that dies ends it: ENOTCONN, with --api %s",
        (api) =>
          Effect.gen(function*() {
            const { kill, socketPath } = yield* backend.serveApart(zeroes, twoQueues)
            const { outcome, stderr } = yield* start(...longBench(socketPath), "--queues", "2", "--api", api)
            yield* stderr
            yield* kill("SIGKILL")
            const said = yield* outcome
            expect(said.stderr.trimEnd().split("\n").at(-1)).toMatch(/^ENOTCONN: /u)
            expect(said).toMatchObject({ exit: 1, stdout: "" })
          })
      )

      it.effect.each(["SIGINT", "SIGTERM"] as const)(
        "%s ends it, and the next client is served",
        (signal) =>
          Effect.gen(function*() {
            const { socketPath } = yield* backend.serve(zeroes, twoQueues)
            const { child, outcome, stderr } = yield* start(...longBench(socketPath))
            yield* stderr
            child.kill(signal)
            const said = yield* outcome
            expect(said).toMatchObject({ exit: 130, stdout: "" })
            expect(said.stderr).toMatch(/^(?:\d+ s .*kIOPS\n)+$/u)
            expect((yield* blkio("info", deviceOn(socketPath))).exit).toBe(0)
          })
      )
    })
  })
})
