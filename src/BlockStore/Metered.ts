/**
 * A store that counts what is done to it, as Effect's metrics.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import * as Metric from "effect/Metric"
import { around } from "./Around.ts"
import type { BlockStore, Operation } from "./Interface.ts"

/**
 * How the metrics of a store are told from others.
 *
 * @category models
 * @since 0.1.0
 */
export interface MeterOptions {
  /** The attribute `store`. Default: the store's id. */
  readonly name?: string
  /** Further attributes, such as a queue's index. */
  readonly attributes?: Readonly<Record<string, string>>
}

/** From a microsecond to 17 seconds, doubling: a write to a page cache and a disk that spins up both fall inside. */
const boundaries = Metric.exponentialBoundaries({ start: 1, factor: 2, count: 25 })

/**
 * Counts what is done to a store. Every metric has the attributes `store` and `operation`:
 * - `blkio_store_requests`: operations that ended, however they did;
 * - `blkio_store_bytes`: what those that succeeded read, wrote, zeroed or discarded;
 * - `blkio_store_errors`: those that failed, with the attribute `errno`; an interrupted one has not;
 * - `blkio_store_latency_us`: a histogram of how long they took, in microseconds.
 *
 * @category combinators
 * @since 0.1.0
 */
export const metered: {
  (options?: MeterOptions): (self: BlockStore) => BlockStore
  (self: BlockStore, options?: MeterOptions): BlockStore
} = dual((args) => args.length > 0 && isStore(args[0]), (self: BlockStore, options?: MeterOptions): BlockStore => {
  const common = { ...options?.attributes, store: options?.name ?? self.id }
  const metricsOf = (operation: Operation["name"]) => {
    const attributes = { ...common, operation }
    return {
      requests: Metric.counter("blkio_store_requests", { incremental: true, attributes }),
      bytes: Metric.counter("blkio_store_bytes", { incremental: true, attributes }),
      errors: Metric.counter("blkio_store_errors", { incremental: true, attributes }),
      latency: Metric.histogram("blkio_store_latency_us", { boundaries, attributes })
    }
  }
  const metrics = {
    read: metricsOf("read"),
    write: metricsOf("write"),
    writeZeroes: metricsOf("writeZeroes"),
    discard: metricsOf("discard"),
    flush: metricsOf("flush")
  }
  return around(self, {
    name: "metered",
    run: ({ length, name }, effect) =>
      Effect.clockWith((clock) => {
        const { bytes, errors, latency, requests } = metrics[name]
        const start = clock.monotonicTimeNanosUnsafe()
        return Effect.onExit(effect, (exit) => {
          const microseconds = Number(clock.monotonicTimeNanosUnsafe() - start) / 1e3
          const ended = Effect.andThen(Metric.update(requests, 1), Metric.update(latency, microseconds))
          if (Exit.isSuccess(exit)) return Effect.andThen(ended, Metric.update(bytes, length))
          const failure = exit.cause.reasons.find(Cause.isFailReason)
          if (failure === undefined) return ended
          const errno = failure.error._tag
          return Effect.andThen(ended, Metric.update(Metric.withAttributes(errors, { errno }), 1))
        })
      })
  })
})

const isStore = (value: unknown): value is BlockStore =>
  typeof value === "object" && value !== null && "capacityChanges" in value
