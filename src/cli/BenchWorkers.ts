/**
 * The threads of `blkio bench --workers`, one for each queue: started together, so that they measure the same time.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { Worker } from "node:worker_threads"
import type { QueueHandle } from "../Driver/WorkerQueue.ts"
import * as Errno from "../Errno.ts"
import type { DeviceFailure } from "../Queue/IoQueue.ts"
import type { PlainHistogram } from "./LatencyHistogram.ts"
import { type Measured, type Plan, type QueueApi, Tally } from "./Workload.ts"

/** What a thread is started with. */
export interface BenchOrder {
  readonly handle: QueueHandle
  readonly plan: Plan
  readonly api: QueueApi
}

/** What a thread reports: that it may begin, and what it did or why it could not. */
export type BenchReport =
  | { readonly _tag: "ready" }
  | {
    readonly _tag: "done"
    readonly seconds: number
    readonly requests: number
    readonly errors: number
    readonly histogram: PlainHistogram
  }
  | { readonly _tag: "failed"; readonly errno: number; readonly operation: string; readonly detail: string }

const failures = ["ENOTCONN", "ETIMEDOUT", "EPROTO", "ENODEV", "ESHUTDOWN"] as const satisfies ReadonlyArray<
  DeviceFailure["_tag"]
>

interface Thread {
  readonly worker: Worker
  readonly ready: Deferred.Deferred<void, DeviceFailure | Errno.EIO>
  readonly done: Deferred.Deferred<Measured, DeviceFailure | Errno.EIO>
}

/** Runs an order in a thread of its own each; answers what each measured. `onBegin` is called when all begin. */
export const run = Effect.fnUntraced(function*(
  orders: ReadonlyArray<BenchOrder>,
  onBegin: Effect.Effect<void>
): Effect.fn.Return<ReadonlyArray<Measured>, DeviceFailure | Errno.EIO, Scope.Scope> {
  const threads = yield* Effect.forEach(orders, start)
  yield* Effect.forEach(threads, ({ ready }) => Deferred.await(ready), { discard: true })
  for (const { worker } of threads) worker.postMessage("begin")
  yield* Effect.forkScoped(onBegin)
  return yield* Effect.forEach(threads, ({ done }) => Deferred.await(done))
})

const start = (order: BenchOrder): Effect.Effect<Thread, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.gen(function*() {
      const ready = yield* Deferred.make<void, DeviceFailure | Errno.EIO>()
      const done = yield* Deferred.make<Measured, DeviceFailure | Errno.EIO>()
      // Sources are run as they are, and built ones as what they were built to.
      const ending = import.meta.url.slice(import.meta.url.lastIndexOf("."))
      const worker = new Worker(new URL(`./worker${ending}`, import.meta.url), {
        workerData: order,
        transferList: [order.handle.port],
        execArgv: []
      })
      const fail = (failure: DeviceFailure | Errno.EIO) => {
        Deferred.doneUnsafe(ready, Exit.fail(failure))
        Deferred.doneUnsafe(done, Exit.fail(failure))
      }
      const ended = (cause?: unknown) =>
        fail(
          new Errno.EIO({
            operation: "bench",
            detail: "a worker thread ended",
            ...cause === undefined ? {} : { cause }
          })
        )
      worker.on("error", ended)
      worker.once("exit", () => ended())
      worker.on("message", (report: BenchReport) => {
        switch (report._tag) {
          case "ready":
            return Deferred.doneUnsafe(ready, Exit.void)
          case "failed": {
            const { _tag, errno, ...fields } = report
            return fail(Errno.fromNumber(errno, failures, fields))
          }
          case "done": {
            const tally = new Tally()
            tally.requests = report.requests
            tally.errors = report.errors
            tally.histogram.addPlain(report.histogram)
            return Deferred.doneUnsafe(done, Exit.succeed({ seconds: report.seconds, tally }))
          }
        }
      })
      return { worker, ready, done }
    }),
    // It ends with its queue, which goes next. Terminating it would end the process, where it is watching a descriptor.
    ({ worker }) =>
      Effect.sync(() => {
        worker.postMessage("begin")
        worker.unref()
      })
  )
