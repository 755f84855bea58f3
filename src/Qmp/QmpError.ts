/**
 * How a monitor's connection, its commands and its jobs can fail.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type { EACCES, ECONNREFUSED, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOTCONN, EPROTO, ETIMEDOUT } from "../Errno.ts"

/**
 * The monitor refused a command.
 *
 * @category errors
 * @since 0.1.0
 */
export class QmpError extends Schema.TaggedError<QmpError>()("QmpError", {
  /** The command refused: `block_resize`. */
  command: Schema.String,
  /** QEMU's class of the error: `GenericError`, `CommandNotFound`, `DeviceNotFound`, … */
  class: Schema.String,
  /** QEMU's own words. */
  desc: Schema.String
}) {
  override get message(): string {
    return `${this.command}: ${this.desc} (${this.class})`
  }
}

/**
 * A job was started and did not do what it was to do: it met an error, was cancelled by somebody else, or is gone.
 *
 * @category errors
 * @since 0.1.0
 */
export class JobError extends Schema.TaggedError<JobError>()("JobError", {
  /** The job's id. */
  id: Schema.String,
  /** What kind of job it was: `backup`, `mirror`, `create`, …; empty for one that was never seen. */
  type: Schema.String,
  /** QEMU's own words: `No space left on device`. */
  desc: Schema.String
}) {
  override get message(): string {
    return `${this.type === "" ? "" : `${this.type} `}job ${this.id}: ${this.desc}`
  }
}

/**
 * How a connection can end: the daemon closed it or is gone (ENOTCONN), or it sent what is not QMP (EPROTO).
 *
 * @category errors
 * @since 0.1.0
 */
export type ConnectionError = ENOTCONN | EPROTO

/**
 * How a command can fail: refused (QmpError), its arguments are not JSON or not the command's (EINVAL), not answered in
 * time (ETIMEDOUT), answered with something else than it returns (EPROTO), or the connection ended.
 *
 * @category errors
 * @since 0.1.0
 */
export type CommandError = QmpError | EINVAL | ETIMEDOUT | ConnectionError

/**
 * How connecting can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export type ConnectError = ENOENT | ECONNREFUSED | EACCES | ENAMETOOLONG | EIO | ETIMEDOUT | ConnectionError
