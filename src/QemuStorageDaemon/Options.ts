/**
 * What can be chosen of a storage daemon, of what it serves, and of the image that it makes.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import type * as ByteSize from "effect/ByteSize"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Errno from "../Errno.ts"
import type { ReconnectOptions } from "../Transport/ReconnectPolicy.ts"
import { isTooDeep, Size, Source } from "./Image.ts"

/**
 * How a daemon is run, and how it opens its images.
 *
 * @category models
 * @since 0.1.0
 */
export interface DaemonOptions {
  /** The program. Default: what the environment names in EFFECT_BLKIO_QSD, else `qemu-storage-daemon` on PATH. */
  readonly binary?: string
  /** How files are read and written. Default: QEMU's, `threads`. `native` needs `cache.direct`. */
  readonly aio?: "threads" | "native" | "io_uring"
  /** Default: in the page cache, and a flush is a flush. */
  readonly cache?: {
    /** Past the page cache (O_DIRECT), and past librbd's cache. Default false. */
    readonly direct?: boolean
    /** Flushes are ignored. Default false. */
    readonly noFlush?: boolean
  }
  /** Whether discarded blocks are given back to the file system, or the server. Default: `unmap`, they are. */
  readonly discard?: "ignore" | "unmap"
  /** A thread for each export. Default: one for all, the monitor's. */
  readonly iothread?: boolean
  /** How long starting may take, opening the images included. Default 10 s. */
  readonly startTimeout?: Duration.Input
  /** How long the daemon may take to put its images in order when it is to end; then it is killed. Default 5 s. */
  readonly stopTimeout?: Duration.Input
}

/**
 * One disk of several that a daemon serves.
 *
 * @category models
 * @since 0.1.0
 */
export interface Export {
  readonly image: Source
  /** Default: true, where the image can be written. */
  readonly writable?: boolean
  /** Default 1. */
  readonly numQueues?: number
  /** A power of two from 512 to 2 MiB. Default 512. */
  readonly logicalBlockSize?: number
  /** Names the export, its block node and its socket. Default `disk0`, `disk1`, … */
  readonly id?: string
}

/**
 * What {@link start} starts.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartOptions extends DaemonOptions {
  /** The disks to serve, one at least. */
  readonly exports: Arr.NonEmptyReadonlyArray<Export>
}

/**
 * What a transport to an image is made with.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransportOptions extends DaemonOptions {
  /** Default: false, where the image can be written. */
  readonly readOnly?: boolean
  /** How many queues the daemon offers. Default 1. */
  readonly queues?: number
  /** The disk's block size: a power of two from 512 to 2 MiB. Default 512. */
  readonly blockSize?: number
  /**
   * When to start a daemon that went away again, and for how long; a Schedule alone says when. `never`: the device is lost with
   * the daemon. Default: after 50 ms, then after twice that each time up to 2 s, for a minute.
   */
  readonly restart?: "never" | Omit<ReconnectOptions, "keepsCache"> | ReconnectOptions["schedule"]
}

/**
 * What an image is made with.
 *
 * @category models
 * @since 0.1.0
 */
export interface CreateOptions extends Pick<DaemonOptions, "binary" | "startTimeout" | "stopTimeout"> {
  /** In bytes, a multiple of 512. */
  readonly size: number | ByteSize.ByteSize
  /**
   * What the format can be told beside the size (QEMU: qapi/block-core.json, BlockdevCreateOptions), such as
   * `{ "cluster-size": 2097152, "preallocation": "metadata" }` of a qcow2 image.
   */
  readonly layout?: Schema.JsonObject
}

const optional = Schema.optionalKey
const Queues = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65535 }))
const BlockSize = Schema.Int.check(
  // QEMU: util/block-helpers.c, check_block_size.
  Schema.isBetween({ minimum: 512, maximum: 2 ** 21 }),
  Schema.makeFilter((size) => Number.isInteger(Math.log2(size)) || "must be a power of two")
)
const Timeout = Schema.Union([Schema.Duration, Schema.DurationFromString, Schema.DurationFromMillis])

const daemonFields = {
  binary: optional(Schema.NonEmptyString),
  aio: optional(Schema.Literals(["threads", "native", "io_uring"])),
  cache: optional(Schema.Struct({ direct: optional(Schema.Boolean), noFlush: optional(Schema.Boolean) })),
  discard: optional(Schema.Literals(["ignore", "unmap"])),
  iothread: optional(Schema.Boolean),
  startTimeout: optional(Timeout),
  stopTimeout: optional(Timeout)
}

const nativeNeedsDirect = Schema.makeFilter(
  (options: { readonly aio?: string; readonly cache?: { readonly direct?: boolean } }) =>
    options.aio !== "native" || options.cache?.direct === true ||
    { path: ["aio"], issue: "native needs cache.direct" }
)

const StartSchema = Schema.Struct({
  ...daemonFields,
  exports: Schema.NonEmptyArray(Schema.Struct({
    image: Source,
    writable: optional(Schema.Boolean),
    numQueues: optional(Queues),
    logicalBlockSize: optional(BlockSize),
    id: optional(Schema.String.check(Schema.isPattern(
      /^[A-Za-z][A-Za-z0-9._-]{0,30}$/,
      { message: "must be a letter, then at most 30 letters, digits, dots, dashes and underscores" }
    )))
  }))
}).check(nativeNeedsDirect)

const TransportSchema = Schema.Struct({
  ...daemonFields,
  image: Source,
  readOnly: optional(Schema.Boolean),
  queues: optional(Queues),
  blockSize: optional(BlockSize),
  // Checked where reconnecting is.
  restart: optional(Schema.Unknown)
}).check(nativeNeedsDirect)

const CreateSchema = Schema.Struct({
  image: Source,
  size: Size.check(
    Schema.makeFilter((size) => Number(size) % 512 === 0 || "must be a multiple of 512")
  ),
  layout: optional(Schema.JsonObject),
  binary: daemonFields.binary,
  startTimeout: daemonFields.startTimeout,
  stopTimeout: daemonFields.stopTimeout
})

/** Decodes what is given, all of which is told of where it is wrong. */
const decoding = <S extends Schema.ConstraintDecoder<unknown>>(operation: string, schema: S) => {
  const decode = Schema.decodeUnknownEffect(schema, { errors: "all", onExcessProperty: "error" })
  return (given: unknown): Effect.Effect<S["Type"], Errno.EINVAL> =>
    // Decoding follows a description as deep as it goes.
    isTooDeep(given)
      ? new Errno.EINVAL({ operation, detail: "image: too many descriptions, one in another" })
      : Effect.mapError(
        decode(given),
        (error) => new Errno.EINVAL({ operation, detail: error.message, cause: error })
      )
}

/** Checks what {@link StartOptions} says. */
export const decodeStart = decoding("start", StartSchema)

/** Checks what {@link TransportOptions} says, and the image. */
export const decodeTransport = decoding("qemu-storage-daemon", TransportSchema)

/** Checks what {@link CreateOptions} says, and the image. */
export const decodeCreate = decoding("create", CreateSchema)

/** What decoding has left of {@link DaemonOptions}. */
export type DecodedDaemonOptions = Pick<typeof TransportSchema.Type, keyof typeof daemonFields>
