/**
 * `blkio bench DEVICE`: keeps a number of requests in flight on each queue for some seconds, and reports throughput, latency
 * and CPU time.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Argument, Command, Flag } from "effect/cli"
import * as BlockDevice from "../BlockDevice.ts"
import * as Errno from "../Errno.ts"
import type { Values } from "../Properties/Properties.ts"
import * as BenchWorkers from "./BenchWorkers.ts"
import * as Device from "./Device.ts"
import type { Latencies } from "./LatencyHistogram.ts"
import { type Plan, runBytesMeasured, runMeasured, Tally } from "./Workload.ts"

const MS_PER_S = 1000
const GIB = 2 ** 30

/** The largest memory region, which the buffers of a queue share. */
const MAX_QUEUE_BYTES = 2 ** 33

const positive = (n: number) => Number.isInteger(n) && n > 0

/** Tells whether the device can do what is asked: requests that it refuses, each and all, measure nothing. */
const checkSizes = (
  { api, blocksize, iodepth, queues, workers }: {
    readonly api: string
    readonly blocksize: number
    readonly iodepth: number
    readonly queues: number
    readonly workers: number
  },
  device: Values<"connected">
): Errno.EINVAL | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "bench", detail })
  const block = `block size ${blocksize}`
  if (workers > 0 && workers !== queues) {
    return refuse(`${workers} workers: must be as many as the ${queues} queues, or 0`)
  }
  if (workers > 0 && api === "bytes") {
    return refuse("--api bytes needs --workers 0: only the device's own thread has it")
  }
  if (queues > device.maxQueues) return refuse(`${queues} queues: must be at most max-queues ${device.maxQueues}`)
  if (blocksize % device.requestAlignment !== 0) {
    return refuse(`${block}: must be a multiple of request-alignment ${device.requestAlignment}`)
  }
  if (blocksize > device.capacity) return refuse(`${block}: must be at most the capacity of ${device.capacity} bytes`)
  if (device.maxTransfer > 0 && blocksize > device.maxTransfer) {
    return refuse(`${block}: must be at most max-transfer ${device.maxTransfer}`)
  }
  if (device.maxSegmentLen > 0 && blocksize > device.maxSegmentLen) {
    return refuse(`${block}: must be at most max-segment-len ${device.maxSegmentLen}`)
  }
  if (blocksize * iodepth > MAX_QUEUE_BYTES) {
    return refuse(`${block} at depth ${iodepth}: must be at most ${MAX_QUEUE_BYTES} bytes for each queue`)
  }
  return undefined
}

interface Figures extends Latencies {
  readonly kiops: number
  readonly gibps: number
  readonly requests: number
  readonly errors: number
  readonly cpu_us_per_io?: number
}

const figuresOf = (tally: Tally, blockBytes: number, seconds: number): Figures => ({
  kiops: tally.requests / seconds / 1000,
  gibps: tally.requests * blockBytes / seconds / GIB,
  ...tally.histogram.latencies,
  requests: tally.requests,
  errors: tally.errors
})

const describeFigures = (figures: Figures): string =>
  [
    `throughput  ${figures.kiops.toFixed(1)} kIOPS, ${figures.gibps.toFixed(3)} GiB/s`,
    `latency µs  min ${figures.min_lat_us.toFixed(1)}, mean ${figures.mean_lat_us.toFixed(1)}, `
    + `p50 ${figures.p50_lat_us.toFixed(1)}, p99 ${figures.p99_lat_us.toFixed(1)}, `
    + `p99.9 ${figures.p999_lat_us.toFixed(1)}, max ${figures.max_lat_us.toFixed(1)}`,
    `requests    ${figures.requests}, errors ${figures.errors}`,
    `CPU         ${(figures.cpu_us_per_io ?? 0).toFixed(2)} µs per request`
  ].join("\n")

/** The command. */
export const bench = Command.make(
  "bench",
  {
    device: Argument.String("DEVICE").pipe(Argument.withDescription(Device.FORMS)),
    readwrite: Flag.Literals("readwrite", ["read", "write", "randread", "randwrite", "randrw"]).pipe(
      Flag.withDefault("randread"),
      Flag.withDescription("Sequential or random, reads or writes; randrw is half of each")
    ),
    blocksize: Flag.Int("blocksize").pipe(
      Flag.withDefault(4096),
      Flag.filter(positive, () => "a positive number of bytes"),
      Flag.withMetavar("BYTES"),
      Flag.withDescription("Bytes of each request")
    ),
    iodepth: Flag.Int("iodepth").pipe(
      Flag.withDefault(1),
      Flag.filter(positive, () => "a positive whole number"),
      Flag.withDescription("Requests in flight on each queue")
    ),
    runtime: Flag.String("runtime").pipe(
      Flag.withDefault("10"),
      Flag.withSchema(Schema.FiniteFromString.check(Schema.isGreaterThan(0))),
      Flag.withMetavar("SECONDS"),
      Flag.withDescription("How long to measure")
    ),
    ramptime: Flag.String("ramptime").pipe(
      Flag.withDefault("0"),
      Flag.withSchema(Schema.FiniteFromString.check(Schema.isGreaterThanOrEqualTo(0))),
      Flag.withMetavar("SECONDS"),
      Flag.withDescription("How long to run before measuring")
    ),
    wait: Flag.Literals("wait", ["event", "poll", "adaptive"]).pipe(
      Flag.withDefault("adaptive"),
      Flag.withDescription("How to wait for completions")
    ),
    queues: Flag.Int("queues").pipe(
      Flag.withDefault(1),
      Flag.filter(positive, () => "a positive whole number"),
      Flag.withDescription("Queues to drive")
    ),
    workers: Flag.Int("workers").pipe(
      Flag.withDefault(0),
      Flag.filter((n) => Number.isInteger(n) && n >= 0, () => "a whole number"),
      Flag.withDescription("Threads to drive them, one for each; 0 drives all from one thread")
    ),
    api: Flag.Literals("api", ["stream", "loop", "request", "bytes"]).pipe(
      Flag.withDefault("stream"),
      Flag.withDescription(
        "Completions as a Stream, a loop of functions, one Effect for each request, or one that takes ordinary memory"
      )
    ),
    json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("One JSON object"))
  },
  Effect.fnUntraced(function*(options) {
    const { blocksize, iodepth, queues, readwrite, runtime, workers } = options
    const device = yield* Device.parse(options.device)
    const writes = readwrite === "randrw" ? 0.5 : readwrite.endsWith("write") ? 1 : 0
    const isPoll = options.wait === "poll"
    const connected = yield* Device.connect(device)
    const facts = yield* connected.properties.getAll
    const wrong = writes > 0 && facts.readOnly
      ? new Errno.EBADF({
        operation: "bench",
        detail: `--readwrite ${readwrite} needs a device that is not read-only=true`
      })
      : checkSizes(options, facts)
    if (wrong !== undefined) return yield* new Device.UsageError({ reason: wrong })
    yield* connected.properties.set({
      numQueues: isPoll ? 0 : queues,
      numPollQueues: isPoll ? queues : 0
    })
    const disk = yield* BlockDevice.fromStarted(
      yield* connected.start({ waiting: options.wait === "event" ? "event" : "adaptive" })
    )
    const regions = yield* Effect.forEach(
      Array.from({ length: queues }, (_, i) => i),
      () => disk.allocate(iodepth * blocksize)
    )
    const plan: Plan = {
      blockBytes: blocksize,
      capacity: disk.capacity,
      depth: iodepth,
      random: readwrite.startsWith("rand"),
      writes,
      rampSeconds: options.ramptime,
      seconds: runtime
    }
    let cpu = process.cpuUsage()
    const measureCpu = Effect.andThen(
      Effect.sleep(options.ramptime * MS_PER_S),
      Effect.sync(() => {
        cpu = process.cpuUsage()
      })
    )
    const { api } = options
    const tallies = regions.map(() => new Tally())
    const runHere = Effect.forEach(tallies, (tally, i) => {
      if (api === "bytes") return runBytesMeasured(disk, plan, tally)
      const queue = isPoll ? disk.pollQueue(i) : disk.queue(i)
      return runMeasured(queue, regions[i]?.bytes ?? new Uint8Array(0), plan, api, tally)
    }, { concurrency: "unbounded" })
    const runInThreads = Effect.forEach(
      regions,
      (region, queue) => disk.handOver({ queue, kind: isPoll ? "poll" : "event", regions: [region] })
    ).pipe(Effect.flatMap((handles) =>
      BenchWorkers.run(
        handles.map((handle) => ({ handle, plan, api: api === "bytes" ? "stream" : api })),
        measureCpu
      )
    ))
    const began = performance.now()
    const progress = Effect.forever(Effect.andThen(
      Effect.sleep(MS_PER_S),
      Effect.suspend(() => {
        const seconds = (performance.now() - began) / MS_PER_S
        const requests = tallies.reduce((sum, tally) => sum + tally.requests, 0)
        return Console.error(`${seconds.toFixed(0)} s  ${(requests / seconds / 1000).toFixed(1)} kIOPS`)
      })
    ))
    // What other threads do is not seen from here, and what is done before the measuring does not count.
    const isQuiet = options.json || workers > 0 || options.ramptime > 0
    if (workers === 0) yield* Effect.forkScoped(measureCpu)
    const run = workers > 0 ? runInThreads : runHere
    const results = yield* isQuiet ? run : Effect.raceFirst(run, progress)
    const { system, user } = process.cpuUsage(cpu)
    const seconds = Math.max(...results.map((result) => result.seconds))

    const merged = new Tally()
    for (const { tally: { errors, histogram, requests } } of results) {
      merged.requests += requests
      merged.errors += errors
      merged.histogram.add(histogram)
    }
    const aggregate: Figures = {
      ...figuresOf(merged, blocksize, seconds),
      cpu_us_per_io: merged.requests === 0 ? 0 : (system + user) / merged.requests
    }
    yield* Console.log(
      options.json
        ? JSON.stringify(
          { aggregate, queues: results.map((result) => figuresOf(result.tally, blocksize, result.seconds)) },
          undefined,
          2
        )
        : describeFigures(aggregate)
    )
  }, Effect.scoped)
).pipe(
  Command.withDescription("Measure throughput and latency"),
  Command.withExamples([{
    command: "blkio bench virtio-blk-vhost-user,path=/run/disk.sock --readwrite randread --iodepth 32 --runtime 5"
  }])
)
