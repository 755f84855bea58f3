/**
 * What to do when the backend of a device goes away: when to try again, and for how long, how many may wait meanwhile, and
 * what is left of what it had acknowledged.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import * as Errno from "../Errno.ts"

/**
 * How to reconnect.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReconnectOptions {
  /** When to try again. It is given why the last attempt failed; once it ends, the device is given up. */
  readonly schedule: Schedule.Schedule<unknown, Errno.Any>
  /** How long the device may stay away before it is given up. Default 1 minute; may be infinite. */
  readonly within?: Duration.Input
  /** How many callers may wait on each queue for the device to come back; further ones get ENOTCONN. Default 4096. */
  readonly maxWaiting?: number
  /**
   * Whether what the backend has acknowledged survives its crash: its cache is not its own, but the host's, say. Otherwise
   * (the default) the next flush of each queue fails with EIO if writes were acknowledged and not flushed.
   */
  readonly keepsCache?: boolean
}

/**
 * A policy of which every part is known.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReconnectPolicy {
  readonly schedule: Schedule.Schedule<unknown, Errno.Any>
  readonly within: Duration.Duration
  readonly maxWaiting: number
  readonly keepsCache: boolean
}

const DEFAULT_WITHIN = Duration.minutes(1)
const DEFAULT_MAX_WAITING = 4096

const decode = Schema.decodeUnknownResult(
  Schema.Struct({
    schedule: Schema.declare(Schedule.isSchedule, { expected: "a Schedule" }),
    within: Schema.optionalKey(Schema.Unknown),
    maxWaiting: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))),
    keepsCache: Schema.optionalKey(Schema.Boolean)
  }),
  { errors: "all", onExcessProperty: "error" }
)

/** Checks how to reconnect; a schedule alone is a policy of defaults. */
export const check = (
  operation: string,
  options: ReconnectOptions | ReconnectOptions["schedule"]
): ReconnectPolicy | Errno.EINVAL => {
  const given = Schedule.isSchedule(options) ? { schedule: options } : options
  const decoded = decode(given)
  if (Result.isFailure(decoded)) {
    return new Errno.EINVAL({ operation, detail: `reconnect: ${decoded.failure.message}` })
  }
  const { keepsCache = false, maxWaiting = DEFAULT_MAX_WAITING, schedule } = given
  const within = Duration.fromInput(given.within ?? DEFAULT_WITHIN)
  if (Option.isNone(within) || !Duration.isGreaterThan(within.value, Duration.zero)) {
    return new Errno.EINVAL({
      operation,
      detail: `reconnect within ${inspect(given.within)} must be a positive duration`
    })
  }
  return { schedule, within: within.value, maxWaiting, keepsCache }
}
