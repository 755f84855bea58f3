/**
 * The options that transports have in common: a path or a descriptor that stands for it, and a time limit.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import * as Errno from "../Errno.ts"

/** Node's timers take 31 bits; a longer limit is none in practice. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1

const fields = {
  path: Schema.optionalKey(Schema.String),
  fd: Schema.optionalKey(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 - 1 }))),
  replyTimeout: Schema.optionalKey(Schema.Unknown)
}

/** Options that were checked. */
export interface PathOrFd {
  /** Undefined where the descriptor stands for it. */
  readonly path: string | undefined
  readonly fd: number | undefined
  readonly replyTimeoutMs: number
}

/**
 * Checks the options of a transport that has a path or a descriptor, of which exactly one must be given. Those named in
 * `others` are the caller's to check.
 */
export const checkPathOrFd = (
  operation: string,
  options: { readonly path?: string; readonly fd?: number; readonly replyTimeout?: Duration.Input },
  defaultTimeout: Duration.Duration,
  others: ReadonlyArray<string> = []
): PathOrFd | Errno.EINVAL => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation, detail })
  const unchecked = Object.fromEntries(others.map((name) => [name, Schema.optionalKey(Schema.Unknown)]))
  const decoded = Schema.decodeUnknownResult(Schema.Struct({ ...unchecked, ...fields }), {
    errors: "all",
    onExcessProperty: "error"
  })(options)
  if (Result.isFailure(decoded)) return refuse(decoded.failure.message)
  const { fd, path } = decoded.success
  if ((path === undefined || path === "") === (fd === undefined)) return refuse("one of path and fd must be set")
  const { replyTimeout = defaultTimeout } = options
  const replyTimeoutMs = checkTimeout(operation, "reply", replyTimeout)
  if (typeof replyTimeoutMs !== "number") return replyTimeoutMs
  return { path: fd === undefined ? path : undefined, fd, replyTimeoutMs }
}

/** Checks a time limit, and gives it in ms. */
export const checkTimeout = (operation: string, name: string, limit: Duration.Input): number | Errno.EINVAL => {
  const timeout = Duration.fromInput(limit)
  if (Option.isSome(timeout) && Duration.isGreaterThan(timeout.value, Duration.zero)) {
    return Math.min(Duration.toMillis(timeout.value), MAX_TIMEOUT_MS)
  }
  return new Errno.EINVAL({ operation, detail: `${name} time limit ${inspect(limit)} must be a positive duration` })
}
