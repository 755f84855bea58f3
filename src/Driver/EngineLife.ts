/**
 * What ends the engines of a device, in whichever thread they run: the watchdog, and closing in good order.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Errno from "../Errno.ts"
import type { QueueEngine } from "../Queue/QueueEngine.ts"

/** How often within `deviceTimeout` the watchdog looks. */
const WATCHDOG_LOOKS = 4

/** Waits until `condition` holds for every engine; each looks again whenever requests of its queue have ended. */
export const until = (
  engines: ReadonlyArray<QueueEngine>,
  condition: (engine: QueueEngine) => boolean
): Effect.Effect<void> =>
  Effect.forEach(engines, (engine) =>
    Effect.callback<void>((resume) => {
      const stop = engine.when(() => condition(engine), () => resume(Exit.void))
      return Effect.sync(stop)
    }), { discard: true })

/** Why a device that closes takes nothing more. */
export const closed = (): Errno.ESHUTDOWN => new Errno.ESHUTDOWN({ operation: "close", detail: "the device is closed" })

/** Refuses new requests, and waits for what is in flight as long as the limit allows. */
export const drain = (engines: ReadonlyArray<QueueEngine>, limit: Duration.Duration): Effect.Effect<void> =>
  Effect.suspend(() => {
    const failure = closed()
    for (const engine of engines) engine.refuse(failure)
    return Effect.asVoid(
      Effect.timeoutOption(Effect.interruptible(until(engines, (engine) => engine.outstanding === 0)), limit)
    )
  })

/** Ends the engines; what is still in flight fails. */
export const end = (engines: ReadonlyArray<QueueEngine>): Effect.Effect<void> =>
  Effect.sync(() => {
    const failure = closed()
    for (const engine of engines) engine.fail(failure)
  })

/** How often within `requestTimeout` requests are looked at. */
const EXPIRY_LOOKS = 8

/** Reports each request that is not answered within `limit`, an eighth of it later at most. */
export const expire = (engines: ReadonlyArray<QueueEngine>, limit: Duration.Duration): Effect.Effect<void> =>
  Duration.isFinite(limit)
    ? Effect.forever(Effect.andThen(
      Effect.sleep(Duration.divideUnsafe(limit, EXPIRY_LOOKS)),
      Effect.sync(() => engines.forEach((engine) => engine.expire(EXPIRY_LOOKS + 1, limit)))
    ))
    : Effect.void

/** Declares the device dead once one of its queues has had requests in flight and no completion for `limit`. */
export const watch = (
  engines: ReadonlyArray<QueueEngine>,
  limit: Duration.Duration,
  fail: (failure: Errno.ETIMEDOUT) => void
): Effect.Effect<void> => {
  if (!Duration.isFinite(limit)) return Effect.void
  const seen = engines.map(() => ({ progress: -1, looks: 0 }))
  const look = Effect.sync(() => {
    for (const [i, engine] of engines.entries()) {
      const last = seen[i]
      if (last === undefined) continue
      const isSilent = engine.outstanding > 0 && !engine.isSuspended && engine.progress === last.progress
      last.looks = isSilent ? last.looks + 1 : 0
      last.progress = engine.progress
      if (last.looks < WATCHDOG_LOOKS) continue
      const notified = engine.notifyErrno === 0 ? "" : `; the last notification failed with errno ${engine.notifyErrno}`
      const detail = `no completion for ${
        Duration.format(limit)
      } with ${engine.outstanding} requests in flight${notified}`
      fail(new Errno.ETIMEDOUT({ operation: "wait", queue: engine.index, detail }))
    }
  })
  return Effect.forever(Effect.andThen(Effect.sleep(Duration.divideUnsafe(limit, WATCHDOG_LOOKS)), look))
}
