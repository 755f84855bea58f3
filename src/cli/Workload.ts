/**
 * What `blkio bench` does to a disk: requests of one kind, a fixed number of them in flight, until the time is over.
 *
 * Latencies are taken once per array of completions, which is as often as the ring is looked at; at high rates a clock call
 * per request would cost more than the request.
 */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Device } from "../BlockDevice.ts"
import type { StoreError } from "../BlockStore/BlockStore.ts"
import type * as Errno from "../Errno.ts"
import type { Completion, DeviceFailure, IoQueue, Read, Write } from "../Queue/IoQueue.ts"
import { LatencyHistogram } from "./LatencyHistogram.ts"

/** How requests follow one another, and for how long. */
export interface Plan {
  readonly blockBytes: number
  readonly capacity: number
  readonly depth: number
  readonly random: boolean
  /** The share of writes, 0 to 1. */
  readonly writes: number
  /** How long to run before measuring, and how long to measure. */
  readonly rampSeconds: number
  readonly seconds: number
}

/** A plan that has begun. */
interface Workload extends Plan {
  /** When to stop, by `performance.now()`. */
  readonly until: number
}

/** The ways to use a queue: completions as a Stream, a loop of functions, or an Effect for each request. */
export type QueueApi = "stream" | "loop" | "request"

/** What was done in the time that was measured. */
export interface Measured {
  readonly seconds: number
  readonly tally: Tally
}

const MS_PER_S = 1000

/** What was done since the last {@link Tally.reset}. */
export class Tally {
  requests = 0
  errors = 0
  histogram = new LatencyHistogram()

  count(error: unknown, latencyMs: number): void {
    this.requests++
    if (error !== undefined) this.errors++
    this.histogram.record(latencyMs)
  }

  /** Counts jobs that were found done together. Those that were submitted together, too, have one latency. */
  countJobs(completions: ReadonlyArray<Completion<(Read | Write) & Job>>, now: number): void {
    let submittedAt = 0
    let together = 0
    for (const { error, request } of completions) {
      if (error !== undefined) this.errors++
      if (request.submittedAt !== submittedAt) {
        if (together > 0) this.histogram.record(now - submittedAt, together)
        submittedAt = request.submittedAt
        together = 0
      }
      together++
    }
    this.histogram.record(now - submittedAt, together)
    this.requests += completions.length
  }

  /** Forgets what was done so far. */
  reset(): void {
    this.requests = 0
    this.errors = 0
    this.histogram = new LatencyHistogram()
  }
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

const jobsOf = ({ blockBytes, depth }: Workload, memory: Uint8Array): Array<Job> =>
  Array.from({ length: depth }, (_, i) => new Job(memory.subarray(i * blockBytes, (i + 1) * blockBytes)))

/** Runs a plan, and measures once its ramp time is over. */
const measured = (
  plan: Plan,
  tally: Tally,
  run: (workload: Workload) => Effect.Effect<void, DeviceFailure>
): Effect.Effect<Measured, DeviceFailure> =>
  Effect.suspend(() => {
    let began = performance.now()
    const ramp = Effect.andThen(
      Effect.sleep(plan.rampSeconds * MS_PER_S),
      Effect.sync(() => {
        tally.reset()
        began = performance.now()
      })
    )
    const workload = { ...plan, until: began + (plan.rampSeconds + plan.seconds) * MS_PER_S }
    return Effect.map(
      Effect.all(plan.rampSeconds > 0 ? [run(workload), ramp] : [run(workload)], {
        concurrency: "unbounded",
        discard: true
      }),
      () => ({ seconds: (performance.now() - began) / MS_PER_S, tally })
    )
  })

/** Runs a plan on a queue, with buffers in `memory`. */
export const runMeasured = (
  queue: IoQueue,
  memory: Uint8Array,
  plan: Plan,
  api: QueueApi,
  tally: Tally = new Tally()
): Effect.Effect<Measured, DeviceFailure> =>
  measured(plan, tally, (workload) => RUNS[api](queue, memory, workload, tally))

/** Runs a plan on a disk by `readBytes` and `writeBytes`, which take ordinary memory. */
export const runBytesMeasured = (disk: Device, plan: Plan, tally: Tally): Effect.Effect<Measured, DeviceFailure> =>
  measured(plan, tally, (workload) => runBytes(disk, workload, tally))

/** Runs a plan that has begun through one of a queue's APIs. */
type Run = (
  queue: IoQueue,
  memory: Uint8Array,
  workload: Workload,
  tally: Tally
) => Effect.Effect<void, DeviceFailure>

/** Jobs that are submitted again whenever their completions were heard of, until the time is over. */
const makeCycle = (memory: Uint8Array, workload: Workload, tally: Tally) => {
  const aim = makeAim(workload)
  let ready = jobsOf(workload, memory)
  let now = performance.now()
  return {
    requests: (): ReadonlyArray<(Read | Write) & Job> => {
      if (now >= workload.until) return []
      const jobs = ready
      ready = []
      for (const job of jobs) {
        aim(job)
        job.submittedAt = now
      }
      return jobs
    },
    completed: (completions: ReadonlyArray<Completion<(Read | Write) & Job>>): void => {
      now = performance.now()
      tally.countJobs(completions, now)
      for (const { request } of completions) ready.push(request)
    }
  }
}

/** Runs a queue through `IoQueue.processFrom`. */
const runStream: Run = (queue, memory, workload, tally) => {
  const { completed, requests } = makeCycle(memory, workload, tally)
  return queue.processFrom(requests).pipe(
    Stream.runForEachArray((completions) => {
      completed(completions)
      return Effect.void
    })
  )
}

/** Runs a queue through `IoQueue.loop`. */
const runLoop: Run = (queue, memory, workload, tally) => {
  const { completed, requests } = makeCycle(memory, workload, tally)
  return queue.loop<(Read | Write) & Job>((completions) => {
    if (completions.length > 0) completed(completions)
    return requests()
  })
}

/** Runs a fiber for each request in flight, until the time is over. */
const runFibers = (
  jobs: ReadonlyArray<Job>,
  workload: Workload,
  tally: Tally,
  perform: (job: Job) => Effect.Effect<unknown, StoreError | Errno.EFAULT>
): Effect.Effect<void, DeviceFailure> => {
  const aim = makeAim(workload)
  const repeat = (job: Job): Effect.Effect<void, DeviceFailure> => {
    const ended = (error: unknown) => {
      const now = performance.now()
      tally.count(error, now - job.submittedAt)
      job.submittedAt = now
    }
    const loop = Effect.whileLoop({
      while: () => job.submittedAt < workload.until,
      body: () => {
        aim(job)
        return perform(job)
      },
      step: () => ended(undefined)
    })
    // Around the loop and not in it, since most requests succeed.
    const untilDone: Effect.Effect<void, DeviceFailure> = Effect.catch(loop, (error) => {
      if (isDeviceFailure(error)) return Effect.fail(error)
      ended(error)
      return untilDone
    })
    job.submittedAt = performance.now()
    return untilDone
  }
  return Effect.forEach(jobs, repeat, { concurrency: "unbounded", discard: true })
}

/** Runs a queue by one Effect for each request. */
const runRequests: Run = (queue, memory, workload, tally) =>
  runFibers(
    jobsOf(workload, memory),
    workload,
    tally,
    (job) => job._tag === "read" ? queue.read(job.offset, job.buffer) : queue.write(job.offset, job.buffer)
  )

const RUNS: Readonly<Record<QueueApi, Run>> = { stream: runStream, loop: runLoop, request: runRequests }

const runBytes = (disk: Device, workload: Workload, tally: Tally): Effect.Effect<void, DeviceFailure> =>
  runFibers(
    jobsOf(workload, new Uint8Array(workload.depth * workload.blockBytes)),
    workload,
    tally,
    (job) =>
      job._tag === "read" ? disk.readBytes(job.offset, job.buffer.length) : disk.writeBytes(job.offset, job.buffer)
  )

const isDeviceFailure = (error: StoreError | Errno.EFAULT): error is DeviceFailure =>
  error._tag === "ENOTCONN" || error._tag === "ETIMEDOUT" || error._tag === "ESHUTDOWN" || error._tag === "ENODEV"
