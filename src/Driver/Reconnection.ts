/**
 * Gets a device back whose connection was lost: waits until the backend has let go, then tries as its policy says.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Errno from "../Errno.ts"
import type { DeviceFailure } from "../Queue/QueueEngine.ts"
import type { ReconnectPolicy } from "../Transport/ReconnectPolicy.ts"
import type { ConnectionError } from "../Transport/Transport.ts"
import type { LinkError } from "./Link.ts"
import type { StartDeviceError } from "./Rings.ts"

/**
 * What has become of a device's connection: it is there; it was lost; an attempt is made to get it back (the first is 1); or the
 * device was given up, which is the last.
 *
 * @category models
 * @since 0.1.0
 */
export type ConnectionState =
  | { readonly _tag: "connected" }
  | { readonly _tag: "lost"; readonly reason: ConnectionError }
  | { readonly _tag: "reconnecting"; readonly attempt: number }
  | { readonly _tag: "failed"; readonly failure: DeviceFailure }

/** What an attempt may fail with. */
export type AttemptError = LinkError | StartDeviceError | Errno.ESTALE

/** Tells whether a connection was lost because the backend went away, so that it may come back. */
export const isAway = (reason: ConnectionError): boolean => reason._tag === "ENOTCONN" || reason._tag === "ETIMEDOUT"

/**
 * Makes attempts until one succeeds, the schedule ends, the time is over, or one fails in a way that another would, too.
 * `released` ends when the backend that was lost has let go of all memory.
 */
export const reconnect = <A>(
  policy: ReconnectPolicy,
  reason: ConnectionError,
  released: Effect.Effect<void>,
  attempt: Effect.Effect<A, AttemptError>
): Effect.Effect<A, DeviceFailure> => {
  let last: AttemptError = reason
  const tries = attempt.pipe(
    Effect.tapError((error) =>
      Effect.sync(() => {
        last = error
      })
    ),
    Effect.retry({ schedule: policy.schedule, while: mayPass })
  )
  const giveUp = (why: string, cause: AttemptError) =>
    new Errno.ENOTCONN({ operation: "reconnect", detail: `${why}: ${cause.message}`, cause })
  return Effect.andThen(released, tries).pipe(
    Effect.timeoutOption(policy.within),
    Effect.matchEffect({
      onSuccess: (got): Effect.Effect<A, DeviceFailure> =>
        got._tag === "Some"
          ? Exit.succeed(got.value)
          : giveUp(`the device did not come back within ${Duration.format(policy.within)}`, last),
      onFailure: (error): Effect.Effect<A, DeviceFailure> => {
        switch (error._tag) {
          case "ESTALE":
          case "EPROTO":
          case "ENODEV":
            return error
          default:
            return giveUp("the device did not come back", error)
        }
      }
    })
  )
}

/** Whether the next attempt may succeed although this one failed: the backend is not back yet, or means are short. */
const mayPass = (error: AttemptError): boolean => {
  switch (error._tag) {
    case "ENOENT":
    case "ECONNREFUSED":
    case "ENOTCONN":
    case "ETIMEDOUT":
    case "EIO":
    case "EBUSY":
    case "EMFILE":
    case "ENFILE":
    case "ENOMEM":
      return true
    default:
      return false
  }
}
