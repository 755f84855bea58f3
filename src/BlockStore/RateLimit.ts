/**
 * A store that takes only so many requests, or bytes, a second.
 *
 * A token bucket for each limit, kept as one number: the time at which the bucket is empty but for what will have come in
 * by then (the generic cell rate algorithm, ITU-T I.371). A request is charged when it comes and waits until what it owes
 * has come in, so that requests are let through in the order they came, without a line to stand in. One that is larger than
 * the bucket waits for the rest, and goes through whole. One that is interrupted while it waits gets its charge back.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Errno from "../Errno.ts"
import { before } from "./Around.ts"
import type { BlockStore, Operation } from "./Interface.ts"

/**
 * What a store takes at most. What is left out is not limited.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rates {
  /** What reads and writes move, in bytes a second. */
  readonly bytesPerSecond?: number
  /** Operations of every kind, a second. */
  readonly requestsPerSecond?: number
  /** For how long an idle store saves up, and so how much it takes at once. Default 1 second. */
  readonly burst?: Duration.Input
}

/**
 * Limits the rate at which a store is used, by Effect's Clock. Fails with EINVAL for a rate that is not a positive number.
 * An operation whose range is wrong fails at once and is not charged.
 *
 * @category combinators
 * @since 0.1.0
 */
export const rateLimit: {
  (rates: Rates): (self: BlockStore) => Effect.Effect<BlockStore, Errno.EINVAL>
  (self: BlockStore, rates: Rates): Effect.Effect<BlockStore, Errno.EINVAL>
} = dual(2, (self: BlockStore, rates: Rates): Effect.Effect<BlockStore, Errno.EINVAL> =>
  Effect.suspend(() => {
    for (const name of ["bytesPerSecond", "requestsPerSecond"] as const) {
      const rate = rates[name]
      if (rate !== undefined && !(rate > 0 && rate < Infinity)) {
        return new Errno.EINVAL({ operation: "rateLimit", detail: `${name} ${rate} must be a positive number` })
      }
    }
    return Effect.succeed(make(self, rates))
  }))

const NANOS_A_SECOND = 1e9
const NANOS_A_MILLI = 1e6

const make = (self: BlockStore, { burst, bytesPerSecond, requestsPerSecond }: Rates): BlockStore => {
  const burstNanos = Duration.toMillis(Duration.fromInputUnsafe(burst ?? "1 second")) * NANOS_A_MILLI
  const nanosOf = ({ length, name }: Operation) => ({
    bytes: bytesPerSecond !== undefined && (name === "read" || name === "write")
      ? length * NANOS_A_SECOND / bytesPerSecond
      : 0,
    requests: requestsPerSecond === undefined ? 0 : NANOS_A_SECOND / requestsPerSecond
  })
  // When each bucket is paid up, in nanoseconds since the first request.
  const paidUp = { bytes: -Infinity, requests: -Infinity }
  let origin: bigint | undefined

  /** Takes the charge, and answers how long to wait for it, in nanoseconds. */
  const charge = (bucket: "bytes" | "requests", nanos: number, now: number): number => {
    if (nanos === 0) return 0
    paidUp[bucket] = Math.max(paidUp[bucket], now - burstNanos) + nanos
    return paidUp[bucket] - now
  }

  return before(self, "rateLimit", (operation) =>
    Effect.clockWith((clock) => {
      const time = clock.monotonicTimeNanosUnsafe()
      origin ??= time
      const now = Number(time - origin)
      const { bytes, requests } = nanosOf(operation)
      const wait = Math.max(charge("bytes", bytes, now), charge("requests", requests, now))
      if (wait <= 0) return Effect.void
      return Effect.onInterrupt(
        // Timers count in milliseconds: what is waited too long is saved up.
        Effect.sleep(Math.ceil(wait / NANOS_A_MILLI)),
        () =>
          Effect.sync(() => {
            paidUp.bytes -= bytes
            paidUp.requests -= requests
          })
      )
    }))
}
