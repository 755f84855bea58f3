/**
 * The commands of a storage daemon, each declared once: its name, its arguments, what it returns.
 *
 * Those of `qemu-storage-daemon` 7.2 and 10.0 that build and watch a graph of block nodes. What is not here is asked for by
 * `execute`. How the arguments are to be understood is told by the file of QEMU's that each names, in its folder `qapi`.
 * Options of block nodes are JSON, with QEMU's own names (block-core.json, BlockdevOptions), for there is a kind for each
 * driver.
 *
 * A job that is started here stays until it is dismissed (`auto-dismiss` is false), so that its outcome is not lost.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { type Call, command, jobCommand, query } from "./Command.ts"
import { Job } from "./Job.ts"
import { BlockExport, BlockNode, Snapshot } from "./Models.ts"
import { struct } from "./Struct.ts"

const Text = Schema.String
const optionalText = Schema.optional(Schema.String)
const optionalNumber = Schema.optional(Schema.Finite)
const optionalBoolean = Schema.optional(Schema.Boolean)

const Id = struct({ id: Text })

/** QEMU: qapi/block-core.json, BlockdevOnError. */
const onError = Schema.optional(Schema.Literals(["report", "ignore", "enospc", "stop", "auto"]))

/** What every job but `create` is told. */
const job = {
  jobId: Text,
  autoDismiss: Schema.Literal(false),
  /** False: the job waits for `jobFinalize` before it takes effect. */
  autoFinalize: optionalBoolean,
  /** In bytes a second; 0 is as fast as it goes. */
  speed: optionalNumber,
  filterNodeName: optionalText
}

/** QEMU: qapi/qom.json, ObjectOptions, of it what block nodes need. */
const ObjectOptions = Schema.Union([
  struct({
    qomType: Schema.Literal("secret"),
    id: Text,
    /** Revealed only in what is written to the monitor. */
    data: Schema.optional(Schema.RedactedFromValue(Schema.String)),
    file: optionalText,
    format: Schema.optional(Schema.Literals(["raw", "base64"])),
    keyid: optionalText,
    iv: optionalText
  }),
  struct({
    qomType: Schema.Literal("iothread"),
    id: Text,
    /** How long it looks before it sleeps, in nanoseconds. */
    pollMaxNs: optionalNumber,
    pollGrow: optionalNumber,
    pollShrink: optionalNumber,
    aioMaxBatch: optionalNumber
  }),
  struct({
    qomType: Schema.Literal("throttle-group"),
    id: Text,
    /** block-core.json, ThrottleLimits: `{ "bps-total": 1e6 }`. */
    limits: Schema.optional(Schema.JsonObject)
  }),
  struct({
    qomType: Schema.Literals(["tls-creds-x509", "tls-creds-psk", "tls-creds-anon"]),
    id: Text,
    dir: optionalText,
    endpoint: Schema.optional(Schema.Literals(["client", "server"])),
    verifyPeer: optionalBoolean,
    priority: optionalText,
    username: optionalText,
    /** The id of the secret with which the key is encrypted. */
    passwordid: optionalText
  })
])

const Bitmap = struct({ node: Text, name: Text })

/** QEMU: qapi/block-export.json, BlockExportOptions. */
const exportOf = <Type extends string>(type: Type) => ({
  type: Schema.Literal(type),
  id: Text,
  nodeName: Text,
  writable: optionalBoolean,
  /** Whether each write is stable before it is answered. */
  writethrough: optionalBoolean,
  iothread: optionalText,
  fixedIothread: optionalBoolean
})

const ExportOptions = Schema.Union([
  struct({
    ...exportOf("vhost-user-blk"),
    addr: Schema.Struct({ type: Schema.Literal("unix"), path: Text }),
    numQueues: optionalNumber,
    logicalBlockSize: optionalNumber
  }),
  struct({
    ...exportOf("nbd"),
    name: optionalText,
    description: optionalText,
    bitmaps: Schema.optional(Schema.Array(Schema.Union([Text, Bitmap]))),
    allocationDepth: optionalBoolean
  }),
  struct({
    ...exportOf("fuse"),
    /** A file, over which it is mounted. */
    mountpoint: Text,
    growable: optionalBoolean,
    allowOther: Schema.optional(Schema.Literals(["off", "on", "auto"]))
  }),
  struct({
    ...exportOf("vduse-blk"),
    name: Text,
    numQueues: optionalNumber,
    queueSize: optionalNumber,
    logicalBlockSize: optionalNumber,
    serial: optionalText
  })
])

const BitmapAdd = struct({
  node: Text,
  name: Text,
  /** How much one bit stands for, in bytes: a power of two. Default: the image's cluster, at least 4 KiB, at most 64 KiB. */
  granularity: optionalNumber,
  /** Kept in the image, which qcow2 can. */
  persistent: optionalBoolean,
  disabled: optionalBoolean
})

const BitmapMerge = struct({
  node: Text,
  target: Text,
  bitmaps: Schema.Array(Schema.Union([Schema.String, Bitmap]))
})

const sync = Schema.Literals(["top", "full", "none", "incremental", "bitmap"])

const Backup = struct({
  ...job,
  device: Text,
  target: Text,
  /** `incremental`: what `bitmap` says, which is cleared when the backup succeeds. `bitmap`: as `bitmapMode` says. */
  sync,
  bitmap: optionalText,
  bitmapMode: Schema.optional(Schema.Literals(["on-success", "never", "always"])),
  compress: optionalBoolean,
  onSourceError: onError,
  onTargetError: onError
})

const Mirror = struct({
  ...job,
  device: Text,
  target: Text,
  sync,
  replaces: optionalText,
  granularity: optionalNumber,
  bufSize: optionalNumber,
  onSourceError: onError,
  onTargetError: onError,
  /** `write-blocking`: a write is done when it is on both sides, so that a busy source cannot run away. */
  copyMode: Schema.optional(Schema.Literals(["background", "write-blocking"]))
})

const OverlaySnapshot = struct({ node: Text, overlay: Text })

const FileSnapshot = struct({
  nodeName: Text,
  snapshotFile: Text,
  snapshotNodeName: optionalText,
  format: optionalText,
  mode: Schema.optional(Schema.Literals(["existing", "absolute-paths"]))
})

const InternalSnapshot = struct({
  /** The name of a node. */
  device: Text,
  name: Text
})

const action = <Type extends string, Data>(type: Type, data: Schema.Codec<Data, unknown>) =>
  Schema.Struct({ type: Schema.Literal(type), data })

/** QEMU: qapi/transaction.json, TransactionAction, of it what a storage daemon has and is not outdated. */
const Action = Schema.Union([
  action("abort", Schema.Struct({})),
  action("block-dirty-bitmap-add", BitmapAdd),
  action("block-dirty-bitmap-remove", Bitmap),
  action("block-dirty-bitmap-clear", Bitmap),
  action("block-dirty-bitmap-enable", Bitmap),
  action("block-dirty-bitmap-disable", Bitmap),
  action("block-dirty-bitmap-merge", BitmapMerge),
  action("blockdev-backup", Backup),
  action("blockdev-snapshot", OverlaySnapshot),
  action("blockdev-snapshot-sync", FileSnapshot),
  action("blockdev-snapshot-internal-sync", InternalSnapshot)
])

/** The commands, by the names of the methods that run them. */
export const commands = {
  /** Adds an object that block nodes refer to: a secret, an iothread, limits, keys (qom.json). */
  objectAdd: command("object-add", ObjectOptions),
  /** Removes an object that nothing refers to (qom.json). */
  objectDel: command("object-del", Id),

  /** Adds a block node (block-core.json). */
  blockdevAdd: command("blockdev-add", Schema.JsonObject),
  /** Removes a block node that nothing uses (block-core.json). */
  blockdevDel: command("blockdev-del", struct({ nodeName: Text })),
  /** Gives block nodes other options than they have (block-core.json). */
  blockdevReopen: command("blockdev-reopen", struct({ options: Schema.Array(Schema.JsonObject) })),
  /** Lists the block nodes; with `flat` without those below each, which are in the list themselves (block-core.json). */
  queryNamedBlockNodes: command(
    "query-named-block-nodes",
    struct({ flat: optionalBoolean }),
    Schema.Array(BlockNode)
  ),

  /** Exports a block node (block-export.json). One over NBD needs the server first. */
  blockExportAdd: command("block-export-add", ExportOptions),
  /**
   * Has an export end, which BLOCK_EXPORT_DELETED then tells; `safe`, the default, is refused while a client is connected
   * (block-export.json).
   */
  blockExportDel: command(
    "block-export-del",
    struct({ id: Text, mode: Schema.optional(Schema.Literals(["safe", "hard"])) })
  ),
  /** Lists the exports (block-export.json). */
  queryBlockExports: query("query-block-exports", Schema.Array(BlockExport)),

  /** Starts the NBD server of the daemon: `{ addr: { type: "unix", data: { path } } }` (block-export.json). */
  nbdServerStart: command(
    "nbd-server-start",
    struct({ addr: Schema.JsonObject, tlsCreds: optionalText, tlsAuthz: optionalText, maxConnections: optionalNumber })
  ),
  /** Ends the NBD server and its exports (block-export.json). */
  nbdServerStop: command("nbd-server-stop", Schema.Undefined),

  /** Adds a bitmap that notes which blocks are written from now on (block-core.json). */
  blockDirtyBitmapAdd: command("block-dirty-bitmap-add", BitmapAdd),
  /** Removes a bitmap, also from the image that keeps it (block-core.json). */
  blockDirtyBitmapRemove: command("block-dirty-bitmap-remove", Bitmap),
  /** Empties a bitmap (block-core.json). */
  blockDirtyBitmapClear: command("block-dirty-bitmap-clear", Bitmap),
  /** Has a bitmap note writes again (block-core.json). */
  blockDirtyBitmapEnable: command("block-dirty-bitmap-enable", Bitmap),
  /** Has a bitmap stay as it is (block-core.json). */
  blockDirtyBitmapDisable: command("block-dirty-bitmap-disable", Bitmap),
  /** Adds to a bitmap what others have noted (block-core.json). */
  blockDirtyBitmapMerge: command("block-dirty-bitmap-merge", BitmapMerge),

  /** Puts a node that was added, with no backing file yet, over another one: a snapshot of that (block-core.json). */
  blockdevSnapshot: command("blockdev-snapshot", OverlaySnapshot),
  /** Makes a new image and puts it over a node (block-core.json). */
  blockdevSnapshotSync: command("blockdev-snapshot-sync", FileSnapshot),
  /** Makes a snapshot inside the image of a node (block-core.json). */
  blockdevSnapshotInternalSync: command("blockdev-snapshot-internal-sync", InternalSnapshot),
  /** Removes a snapshot from inside an image, by its name, its id or both, and tells what it was (block-core.json). */
  blockdevSnapshotDeleteInternalSync: command(
    "blockdev-snapshot-delete-internal-sync",
    struct({ device: Text, id: optionalText, name: optionalText }),
    Snapshot
  ),
  /**
   * Does all of several things at one moment, or none (transaction.json). Jobs among them are watched with `job`; where
   * they are `grouped`, they succeed together or not at all.
   */
  transaction: command(
    "transaction",
    Schema.Struct({
      actions: Schema.Array(Action),
      properties: Schema.optional(struct({
        completionMode: Schema.optional(Schema.Literals(["individual", "grouped"]))
      }))
    })
  ),

  /** Creates an image (block-core.json, BlockdevCreateOptions). A file for it is created first, and added as a node. */
  blockdevCreate: jobCommand("blockdev-create", struct({ jobId: Text, options: Schema.JsonObject })),
  /** Copies a node as it is at this moment to another (block-core.json, BackupCommon). */
  blockdevBackup: jobCommand("blockdev-backup", Backup),
  /** Copies a node to another and keeps the copy up to date until it is completed (block-core.json). */
  blockdevMirror: jobCommand("blockdev-mirror", Mirror),
  /** Copies what overlays hold down into a backing file, and takes them out of the chain (block-core.json). */
  blockCommit: jobCommand(
    "block-commit",
    struct({ ...job, device: Text, baseNode: optionalText, topNode: optionalText, backingFile: optionalText, onError })
  ),
  /** Copies what backing files hold up into a node, and takes them out of the chain (block-core.json). */
  blockStream: jobCommand(
    "block-stream",
    struct({ ...job, device: Text, baseNode: optionalText, bottom: optionalText, backingFile: optionalText, onError })
  ),

  /** Lists the jobs (job.json). */
  queryJobs: query("query-jobs", Schema.Array(Job)),
  /** Has a job end as soon as it can, without its result (job.json). */
  jobCancel: command("job-cancel", Id),
  /** Completes a job that is ready (job.json). */
  jobComplete: command("job-complete", Id),
  /** Forgets a job that has concluded (job.json). */
  jobDismiss: command("job-dismiss", Id),
  /** Lets a job take effect that waits for it (job.json). */
  jobFinalize: command("job-finalize", Id),
  /** Has a job rest (job.json). */
  jobPause: command("job-pause", Id),
  /** Has a job go on that rests, or that stopped at an error (job.json). */
  jobResume: command("job-resume", Id),
  /** Ends a mirror or commit that is ready, with its copy as of then and its source still in use (block-core.json). */
  blockJobCancel: command(
    "block-job-cancel",
    struct({
      /** The job's id. */
      device: Text,
      force: optionalBoolean
    })
  ),
  /** Limits the speed of a job, in bytes a second (block-core.json). */
  blockJobSetSpeed: command("block-job-set-speed", struct({ device: Text, speed: Schema.Finite }))
}

/** Gives a block node another size (block-core.json). */
export const blockResize = command("block_resize", struct({ nodeName: Text, size: Schema.Finite }))

/**
 * The methods that run commands.
 *
 * @category models
 * @since 0.1.0
 */
export type Calls = { readonly [Name in keyof typeof commands]: Call<(typeof commands)[Name]> }
