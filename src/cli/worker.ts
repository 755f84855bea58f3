/**
 * A thread of `blkio bench --workers`: drives one queue that was handed to it, and reports what it did.
 */
import * as Effect from "effect/Effect"
import { parentPort, workerData } from "node:worker_threads"
import * as WorkerQueue from "../Driver/WorkerQueue.ts"
import type { BenchOrder, BenchReport } from "./BenchWorkers.ts"
import { runMeasured } from "./Workload.ts"

const report = (what: BenchReport) => Effect.sync(() => parentPort?.postMessage(what))

const started = Effect.callback<void>((resume) => {
  parentPort?.once("message", () => resume(Effect.void))
})

const program = ({ api, handle, plan }: BenchOrder) =>
  Effect.gen(function*() {
    const { queue, regions: [region] } = yield* WorkerQueue.open(handle)
    yield* report({ _tag: "ready" })
    yield* started
    const { seconds, tally } = yield* runMeasured(queue, region?.bytes ?? new Uint8Array(0), plan, api)
    const { errors, histogram, requests } = tally
    yield* report({ _tag: "done", seconds, requests, errors, histogram: histogram.plain })
  }).pipe(
    Effect.scoped,
    Effect.catch(({ detail, errno, operation }) => report({ _tag: "failed", errno, operation, detail }))
  )

// Whoever started the thread has given it an order.
await Effect.runPromise(program(workerData as BenchOrder))
