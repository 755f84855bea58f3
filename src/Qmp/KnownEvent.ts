/**
 * The events of a storage daemon that have a Schema: those of exports, jobs and what goes wrong with a disk.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type { Event } from "./Connection.ts"
import { JobStatus } from "./Job.ts"
import { struct } from "./Struct.ts"

/** QEMU: qapi/block-core.json, BLOCK_JOB_COMPLETED and others: a job told of by the id it was given. */
const blockJob = {
  type: Schema.String,
  /** The job's id. */
  device: Schema.String,
  len: Schema.Finite,
  offset: Schema.Finite,
  speed: Schema.Finite
}

/**
 * What each known event tells.
 *
 * @category models
 * @since 0.1.0
 */
export const eventData = {
  /** An export is gone, and its id is free (QEMU: qapi/block-export.json). */
  BLOCK_EXPORT_DELETED: struct({ id: Schema.String }),
  /** A job has another status (QEMU: qapi/job.json). */
  JOB_STATUS_CHANGE: struct({ id: Schema.String, status: JobStatus }),
  /** A mirror or commit has caught up, and can be completed (QEMU: qapi/block-core.json). */
  BLOCK_JOB_READY: struct(blockJob),
  /** A job of blocks ended, well or with an error (QEMU: qapi/block-core.json). */
  BLOCK_JOB_COMPLETED: struct({ ...blockJob, error: Schema.optionalKey(Schema.String) }),
  /** A job of blocks was cancelled (QEMU: qapi/block-core.json). */
  BLOCK_JOB_CANCELLED: struct(blockJob),
  /** A job of blocks waits to be finalized (QEMU: qapi/block-core.json). */
  BLOCK_JOB_PENDING: struct({ type: Schema.String, id: Schema.String }),
  /** A job of blocks met an error, and does what `action` says (QEMU: qapi/block-core.json). */
  BLOCK_JOB_ERROR: struct({
    device: Schema.String,
    operation: Schema.Literals(["read", "write"]),
    action: Schema.Literals(["ignore", "report", "stop"])
  }),
  /** A disk met an error (QEMU: qapi/block-core.json). */
  BLOCK_IO_ERROR: struct({
    device: Schema.String,
    nodeName: Schema.optionalKey(Schema.String),
    operation: Schema.Literals(["read", "write"]),
    action: Schema.Literals(["ignore", "report", "stop"]),
    nospace: Schema.optionalKey(Schema.Boolean),
    reason: Schema.String
  }),
  /** An image was found to be damaged; if `fatal`, it is used no further (QEMU: qapi/block-core.json). */
  BLOCK_IMAGE_CORRUPTED: struct({
    device: Schema.String,
    nodeName: Schema.optionalKey(Schema.String),
    msg: Schema.String,
    offset: Schema.optionalKey(Schema.Finite),
    size: Schema.optionalKey(Schema.Finite),
    fatal: Schema.Boolean
  }),
  /** More of a node is in use than a threshold says (QEMU: qapi/block-core.json). */
  BLOCK_WRITE_THRESHOLD: struct({
    nodeName: Schema.String,
    amountExceeded: Schema.Finite,
    writeThreshold: Schema.Finite
  })
}

/**
 * The name of an event that has a Schema.
 *
 * @category models
 * @since 0.1.0
 */
export type KnownEventName = keyof typeof eventData

/**
 * An event whose particulars were decoded.
 *
 * @category models
 * @since 0.1.0
 */
export interface KnownEvent<Name extends KnownEventName> {
  readonly event: Name
  readonly data: (typeof eventData)[Name]["Type"]
  readonly timestamp: Event["timestamp"]
}
