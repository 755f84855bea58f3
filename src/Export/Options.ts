/**
 * What an export is made with: the options a user gives, checked, and the settings that follow from them and the store.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { type BlockStore, checkGeometry } from "../BlockStore/Interface.ts"
import * as Errno from "../Errno.ts"
import { MAX_SOCKET_PATH_BYTES } from "../Native/Libc.ts"
import { MAX_QUEUE_SIZE } from "../Wire/SplitRing.ts"
import { ID_BYTES } from "../Wire/VirtioBlk.ts"
import type { Waiting } from "./DeviceQueue.ts"

/**
 * How a store is served. Exactly one of `path` and `fd` must be given.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** Where to make the Unix socket, at most 107 bytes. */
  readonly path?: string
  /** A Unix socket that one front-end is connected to already; it is taken over, and closed in the end. */
  readonly fd?: number
  /** Refuse what changes the disk. Default: as the store. */
  readonly readOnly?: boolean
  /** What the device calls itself, at most 20 bytes. Default `effect-blkio`. */
  readonly serial?: string
  /** Request queues, 1 to 256. Default 1. */
  readonly numQueues?: number
  /** The logical block in bytes: a power of two, a multiple of the store's. Default: the store's. */
  readonly blockSize?: number
  /** The size of the disk in bytes, a multiple of the block size and at most the store's. Default: the store's. */
  readonly capacity?: number
  /**
   * Whether a write may be acknowledged before it is stable, as long as a flush makes it so. The front-end may change it.
   * Default true.
   */
  readonly writeCache?: boolean
  /** The most requests of a queue that are with the store at once, 1 to 32768. Default 128. */
  readonly maxInFlight?: number
  /** The most data segments of a request, 1 to 1022. Default 126. */
  readonly maxSegments?: number
  /** The longest discard and write-zeroes in bytes: a multiple of the block size, at most 2^41 - 512. Default 16 MiB. */
  readonly maxRangeLength?: number
  /** Look for requests for up to 20 µs before sleeping (`adaptive`), or sleep at once (`event`). Default `adaptive`. */
  readonly waiting?: Waiting
  /**
   * Take only memory that is sealed against shrinking. A front-end that shrinks memory it has shared ends the process that
   * touches it (`SIGBUS`), whatever that process does; QEMU's memory-backend-memfd and this library seal theirs, libblkio
   * and memory-backend-file do not. Default false.
   */
  readonly sealedMemory?: boolean
}

/** What follows from the options and the store. */
export interface Settings {
  readonly path: string | undefined
  readonly fd: number | undefined
  readonly readOnly: boolean
  readonly serial: string
  readonly numQueues: number
  readonly blockSize: number
  /** Undefined: what the store has, as it changes. */
  readonly capacity: number | undefined
  readonly writeCache: boolean
  readonly maxInFlight: number
  readonly maxSegments: number
  readonly maxRangeLength: number
  readonly waiting: Waiting
  readonly sealedMemory: boolean
}

const SECTOR_BYTES = 512
/** vhost-user names a queue by 8 bits (SET_VRING_KICK). */
export const MAX_QUEUES = 256
/** Longer chains are not followed: header, segments and status are at most 1024 descriptors. */
const MAX_SEGMENTS = 1022
/** A segment counts its sectors by 32 bits. */
const MAX_RANGE_BYTES = 0xffff_ffff * SECTOR_BYTES

const optional = Schema.optionalKey
const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const decode = Schema.decodeUnknownResult(
  Schema.Struct({
    path: optional(Schema.String),
    fd: optional(between(0, 2 ** 31 - 1)),
    readOnly: optional(Schema.Boolean),
    serial: optional(
      Schema.String.check(
        Schema.makeFilter((serial) =>
          new TextEncoder().encode(serial).length <= ID_BYTES || `must have at most ${ID_BYTES} bytes`
        )
      )
    ),
    numQueues: optional(between(1, MAX_QUEUES)),
    blockSize: optional(Schema.Int),
    capacity: optional(Schema.Int),
    writeCache: optional(Schema.Boolean),
    maxInFlight: optional(between(1, MAX_QUEUE_SIZE)),
    maxSegments: optional(between(1, MAX_SEGMENTS)),
    maxRangeLength: optional(between(SECTOR_BYTES, MAX_RANGE_BYTES)),
    waiting: optional(Schema.Literals(["adaptive", "event"])),
    sealedMemory: optional(Schema.Boolean)
  }),
  { errors: "all", onExcessProperty: "error" }
)

/** Checks options, alone and against the store that is to be served. */
export const check = (store: BlockStore, options: Options): Settings | Errno.EINVAL | Errno.ENAMETOOLONG => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "export", detail })
  const decoded = decode(options)
  if (Result.isFailure(decoded)) return refuse(decoded.failure.message)
  const { fd, path: given, ...rest } = decoded.success
  const path = given === "" ? undefined : given
  if ((path === undefined) === (fd === undefined)) return refuse("one of path and fd must be set")
  if (path !== undefined && Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
    const detail = `a socket's path has at most ${MAX_SOCKET_PATH_BYTES} bytes`
    return new Errno.ENAMETOOLONG({ operation: "export", path, detail })
  }
  if (path?.includes("\0") === true) return refuse("the path must not hold a zero byte")
  const { blockSize = store.blockSize, maxRangeLength = Math.max(DEFAULT_RANGE_BYTES, blockSize) } = rest
  const wrong = checkGeometry("export", { blockSize, capacity: rest.capacity ?? 0 })
  if (wrong !== undefined) return wrong
  if (blockSize % store.blockSize !== 0) {
    return refuse(`blockSize ${blockSize} must be a multiple of the store's, ${store.blockSize}`)
  }
  if (maxRangeLength % blockSize !== 0) {
    return refuse(`maxRangeLength ${maxRangeLength} must be a multiple of the block size ${blockSize}`)
  }
  if (rest.capacity !== undefined && rest.capacity > store.capacity) {
    return refuse(`capacity ${rest.capacity} must be at most the store's, ${store.capacity}`)
  }
  if (rest.readOnly === false && store.readOnly) return refuse("readOnly must be true, since the store is read-only")
  return {
    path,
    fd,
    readOnly: rest.readOnly ?? store.readOnly,
    serial: rest.serial ?? "effect-blkio",
    numQueues: rest.numQueues ?? 1,
    blockSize,
    capacity: rest.capacity,
    writeCache: rest.writeCache ?? true,
    maxInFlight: rest.maxInFlight ?? DEFAULT_IN_FLIGHT,
    maxSegments: rest.maxSegments ?? DEFAULT_SEGMENTS,
    maxRangeLength,
    waiting: rest.waiting ?? "adaptive",
    sealedMemory: rest.sealedMemory ?? false
  }
}

/** What qemu-storage-daemon offers: a ring of 128 descriptors, less header and status. */
const DEFAULT_SEGMENTS = 126
/** What qemu-storage-daemon offers: 32768 sectors. */
const DEFAULT_RANGE_BYTES = 16 * 2 ** 20
const DEFAULT_IN_FLIGHT = 128
