/**
 * What a storage daemon tells of the things in it.
 *
 * Of structs with many fields (QEMU: qapi/block-core.json, BlockDeviceInfo) those are here that concern a block node of a
 * storage daemon; the others are left out when they are decoded.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { struct } from "./Struct.ts"

/**
 * An export as the daemon tells of it (QEMU: qapi/block-export.json, BlockExportInfo).
 *
 * @category models
 * @since 0.1.0
 */
export const BlockExport = struct({
  id: Schema.String,
  type: Schema.String,
  nodeName: Schema.String,
  shuttingDown: Schema.Boolean
})

/**
 * An export as the daemon tells of it.
 *
 * @category models
 * @since 0.1.0
 */
export type BlockExport = typeof BlockExport.Type

/**
 * A bitmap of the blocks that were written since it was added or cleared (QEMU: qapi/block-core.json, BlockDirtyInfo).
 *
 * @category models
 * @since 0.1.0
 */
export const DirtyBitmap = struct({
  /** Absent for one that a job keeps for itself. */
  name: Schema.optionalKey(Schema.String),
  /** How much is dirty, in bytes. */
  count: Schema.Finite,
  /** How much one bit stands for, in bytes. */
  granularity: Schema.Finite,
  /** Whether writes are noted. */
  recording: Schema.Boolean,
  /** Whether a job or an export uses it, so that it cannot be changed. */
  busy: Schema.Boolean,
  /** Whether it is kept in the image, which qcow2 can. */
  persistent: Schema.Boolean,
  /** Whether it was not saved when the daemon ended, so that it can only be removed. */
  inconsistent: Schema.optionalKey(Schema.Boolean)
})

/**
 * A bitmap of the blocks that were written since it was added or cleared.
 *
 * @category models
 * @since 0.1.0
 */
export type DirtyBitmap = typeof DirtyBitmap.Type

/**
 * A snapshot inside an image (QEMU: qapi/block-core.json, SnapshotInfo).
 *
 * @category models
 * @since 0.1.0
 */
export const Snapshot = struct({
  id: Schema.String,
  name: Schema.String,
  /** When it was made, in seconds and nanoseconds since 1970. */
  dateSec: Schema.Finite,
  dateNsec: Schema.Finite
})

/**
 * A snapshot inside an image.
 *
 * @category models
 * @since 0.1.0
 */
export type Snapshot = typeof Snapshot.Type

/**
 * A node of the daemon's block graph (QEMU: qapi/block-core.json, BlockDeviceInfo).
 *
 * @category models
 * @since 0.1.0
 */
export const BlockNode = struct({
  nodeName: Schema.optionalKey(Schema.String),
  /** Its driver: `qcow2`, `file`, … */
  drv: Schema.String,
  /** Whether it is read-only. */
  ro: Schema.Boolean,
  /** The file of the node below it in its chain, if there is one. */
  backing_file: Schema.optionalKey(Schema.String),
  image: struct({
    filename: Schema.String,
    format: Schema.String,
    /** The size of the disk in it, in bytes; beyond 2^53 the nearest number. */
    virtualSize: Schema.Finite,
    /** What it takes where it is stored, in bytes. */
    actualSize: Schema.optionalKey(Schema.Finite),
    clusterSize: Schema.optionalKey(Schema.Finite),
    encrypted: Schema.optionalKey(Schema.Boolean),
    backingFilename: Schema.optionalKey(Schema.String),
    snapshots: Schema.optionalKey(Schema.Array(Snapshot))
  }),
  dirtyBitmaps: Schema.optionalKey(Schema.Array(DirtyBitmap))
})

/**
 * A node of the daemon's block graph.
 *
 * @category models
 * @since 0.1.0
 */
export type BlockNode = typeof BlockNode.Type
