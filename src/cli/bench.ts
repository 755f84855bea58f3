/**
 * `blkio bench DEVICE`: keeps a number of requests in flight on each queue for some seconds, and reports throughput, latency
 * and CPU time.
 *
 * Latencies are taken once per array of completions, which is as often as the ring is looked at; at high rates a clock call
 * per request would cost more than the request.
 */
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Argument, Command, Flag } from "effect/cli"
import * as Errno from "../Errno.ts"
import type { Values } from "../Properties/Properties.ts"
import type { DeviceFailure, IoQueue, Read, RequestFailure, Write } from "../Queue/IoQueue.ts"
import * as Device from "./Device.ts"
import { type Latencies, LatencyHistogram } from "./LatencyHistogram.ts"

const MS_PER_S = 1000
const GIB = 2 ** 30

/** The largest memory region, which the buffers of a queue share. */
const MAX_QUEUE_BYTES = 2 ** 33

const positive = (n: number) => Number.isInteger(n) && n > 0

/** How requests follow one another. */
interface Workload {
  readonly blockBytes: number
  readonly capacity: number
  readonly depth: number
  readonly random: boolean
  /** The share of writes, 0 to 1. */
  readonly writes: number
  readonly memory: Uint8Array
  /** When to stop, by `performance.now()`. */
  readonly until: number
}

/** What one queue did. */
interface Tally {
  requests: number
  errors: number
  readonly histogram: LatencyHistogram
}

/** A request that is used again and again. */
class Job {
  _tag: "read" | "write" = "read"
  offset = 0
  readonly buffer: Uint8Array
  submittedAt = 0
  constructor(buffer: Uint8Array) {
    this.buffer = buffer
  }
}

/** Gives each job its next place on the disk. */
const makeAim = ({ blockBytes, capacity, random, writes }: Workload): (job: Job) => void => {
  const blocks = Math.floor(capacity / blockBytes)
  let next = 0
  return (job) => {
    job._tag = writes > 0 && (writes === 1 || Math.random() < writes) ? "write" : "read"
    job.offset = (random ? Math.floor(Math.random() * blocks) : next++ % blocks) * blockBytes
  }
}

const jobsOf = ({ blockBytes, depth, memory }: Workload): Array<Job> =>
  Array.from({ length: depth }, (_, i) => new Job(memory.subarray(i * blockBytes, (i + 1) * blockBytes)))

/** Runs a queue through `IoQueue.process`: jobs whose completions were read are submitted again, in arrays. */
const runStream = (queue: IoQueue, workload: Workload, tally: Tally): Effect.Effect<void, DeviceFailure> => {
  const aim = makeAim(workload)
  let ready = jobsOf(workload)
  let source: (() => void) | undefined
  const wait = Effect.callback<void>((resume) => {
    // The fiber may have yielded since it looked.
    if (ready.length > 0) resume(Exit.void)
    else source = () => resume(Exit.void)
  })
  const pull: Effect.Effect<readonly [Job, ...Array<Job>], Cause.Done> = Effect.suspend(() => {
    const now = performance.now()
    if (now >= workload.until) return Cause.done()
    const [first, ...rest] = ready
    if (first === undefined) return Effect.andThen(wait, pull)
    for (const job of ready) {
      aim(job)
      job.submittedAt = now
    }
    ready = []
    return Exit.succeed([first, ...rest] as const)
  })
  // A job is a read or a write by its tag, which is set before it is submitted.
  const requests = Stream.fromPull(Effect.succeed(pull)) as Stream.Stream<(Read | Write) & Job>
  return queue.process(requests).pipe(
    Stream.runForEachArray((completions) =>
      Effect.sync(() => {
        const now = performance.now()
        for (const { error, request } of completions) {
          tally.requests++
          if (error !== undefined) tally.errors++
          tally.histogram.record(now - request.submittedAt)
          ready.push(request)
        }
        const resume = source
        source = undefined
        resume?.()
      })
    )
  )
}

/** Runs a queue by one fiber for each request in flight. */
const runRequests = (queue: IoQueue, workload: Workload, tally: Tally): Effect.Effect<void, DeviceFailure> => {
  const aim = makeAim(workload)
  const repeat = (job: Job) =>
    Effect.whileLoop({
      while: () => performance.now() < workload.until,
      body: () => {
        aim(job)
        job.submittedAt = performance.now()
        const answer: Effect.Effect<void, RequestFailure> = job._tag === "read"
          ? queue.read(job.offset, job.buffer)
          : queue.write(job.offset, job.buffer)
        return Effect.catch(answer, countError)
      },
      step: () => {
        tally.requests++
        tally.histogram.record(performance.now() - job.submittedAt)
      }
    })
  const countError = (error: RequestFailure): Effect.Effect<void, DeviceFailure> => {
    if (isDeviceFailure(error)) return Effect.fail(error)
    tally.errors++
    return Effect.void
  }
  return Effect.forEach(jobsOf(workload), repeat, { concurrency: "unbounded", discard: true })
}

const isDeviceFailure = (error: RequestFailure): error is DeviceFailure =>
  error._tag === "ENOTCONN" || error._tag === "ETIMEDOUT" || error._tag === "ESHUTDOWN" || error._tag === "ENODEV"

/** Tells whether the device can do what is asked: requests that it refuses, each and all, measure nothing. */
const checkSizes = (
  { blocksize, iodepth, queues }: { readonly blocksize: number; readonly iodepth: number; readonly queues: number },
  device: Values<"connected">
): Errno.EINVAL | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "bench", detail })
  const block = `block size ${blocksize}`
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
    device: Argument.String("DEVICE").pipe(Argument.withDescription("driver[,property=value…]")),
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
    wait: Flag.Literals("wait", ["event", "poll", "adaptive"]).pipe(
      Flag.withDefault("adaptive"),
      Flag.withDescription("How to wait for completions")
    ),
    queues: Flag.Int("queues").pipe(
      Flag.withDefault(1),
      Flag.filter(positive, () => "a positive whole number"),
      Flag.withDescription("Queues to drive")
    ),
    api: Flag.Literals("api", ["stream", "request"]).pipe(
      Flag.withDefault("stream"),
      Flag.withDescription("Streams of requests, or one Effect for each")
    ),
    json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("One JSON object"))
  },
  Effect.fnUntraced(function*(options) {
    const { blocksize, iodepth, queues, readwrite, runtime } = options
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
    const disk = yield* connected.properties.set({
      numQueues: isPoll ? 0 : queues,
      numPollQueues: isPoll ? queues : 0
    }).pipe(Effect.andThen(connected.start({ waiting: options.wait === "event" ? "event" : "adaptive" })))
    const regions = yield* Effect.forEach(
      Array.from({ length: queues }, (_, i) => i),
      () => disk.allocate(iodepth * blocksize)
    )
    const tallies: ReadonlyArray<Tally> = regions.map(() => ({
      requests: 0,
      errors: 0,
      histogram: new LatencyHistogram()
    }))
    const total = () => tallies.reduce((sum, { requests }) => sum + requests, 0)
    const began = performance.now()
    const cpu = process.cpuUsage()
    const progress = Effect.forever(Effect.andThen(
      Effect.sleep(MS_PER_S),
      Effect.suspend(() => {
        const seconds = (performance.now() - began) / MS_PER_S
        return Console.error(`${seconds.toFixed(0)} s  ${(total() / seconds / 1000).toFixed(1)} kIOPS`)
      })
    ))
    const runs = regions.map(({ bytes }, i) => {
      const workload: Workload = {
        blockBytes: blocksize,
        capacity: disk.capacity,
        depth: iodepth,
        random: readwrite.startsWith("rand"),
        writes,
        memory: bytes,
        until: began + runtime * MS_PER_S
      }
      const queue = isPoll ? disk.pollQueue(i) : disk.queue(i)
      const tally = tallies[i]
      return tally === undefined
        ? Effect.void
        : (options.api === "stream" ? runStream : runRequests)(queue, workload, tally)
    })
    const all = Effect.all(runs, { concurrency: "unbounded", discard: true })
    yield* options.json ? all : Effect.raceFirst(all, progress)
    const seconds = (performance.now() - began) / MS_PER_S
    const { system, user } = process.cpuUsage(cpu)

    const merged: Tally = {
      requests: total(),
      errors: tallies.reduce((sum, { errors }) => sum + errors, 0),
      histogram: new LatencyHistogram()
    }
    for (const { histogram } of tallies) merged.histogram.add(histogram)
    const aggregate: Figures = {
      ...figuresOf(merged, blocksize, seconds),
      cpu_us_per_io: merged.requests === 0 ? 0 : (system + user) / merged.requests
    }
    yield* Console.log(
      options.json
        ? JSON.stringify(
          { aggregate, queues: tallies.map((tally) => figuresOf(tally, blocksize, seconds)) },
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
