/**
 * The virtio block device on the wire (virtio 1.2 §5.2): feature bits, configuration space, request header, segment, status.
 *
 * Everything is little-endian, as virtio 1 demands of every device (§1.4). A sector is 512 bytes whatever the device's block
 * size is. The configuration space grew with the specification, so a device may know less of it than this module does: what
 * is missing at its end reads as zero, which every field defines as "not given".
 *
 * Request headers and segments are written once per request, on the hot path: their encoders take a view and an offset,
 * allocate nothing and split sectors in two 32-bit halves instead of making a bigint.
 *
 * Which features to ask for, and whether a configuration makes sense, is the driver's business and not decided here.
 *
 * @since 0.1.0
 */
import { MAX_U16, MAX_U32, MAX_U8, minimumLength, unsigned, unsigned64, viewOf } from "./Bounds.ts"
import { WireError } from "./WireError.ts"

/**
 * Numbers the feature bits that a virtio-blk device, its ring or its transport may offer.
 *
 * Up to 23 they belong to the block device (virtio 1.2 §5.2.3), from 24 on to ring and transport (§6). 26 and 30 are vhost's
 * own (`VHOST_F_LOG_ALL`, `VHOST_USER_F_PROTOCOL_FEATURES`); 24 and 27 are of the legacy interface (§6.3).
 *
 * @since 0.1.0
 * @category features
 */
export const FeatureBit = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  GEOMETRY: 4,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  LIFETIME: 15,
  SECURE_ERASE: 16,
  ZONED: 17,
  NOTIFY_ON_EMPTY: 24,
  LOG_ALL: 26,
  ANY_LAYOUT: 27,
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  PROTOCOL_FEATURES: 30,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36
} as const

/**
 * Numbers the bits of the device status (virtio 1.2 §2.1).
 *
 * @since 0.1.0
 * @category features
 */
export const DeviceStatus = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 64,
  FAILED: 128
} as const

/**
 * Combines feature bits (0 to 63) into a feature set.
 *
 * @since 0.1.0
 * @category features
 */
export const featureMask = (...bits: ReadonlyArray<number>): bigint => {
  let mask = 0n
  for (const bit of bits) mask |= 1n << BigInt(unsigned("feature bit", bit, 63))
  return mask
}

/**
 * Tells whether a feature set holds a bit.
 *
 * @since 0.1.0
 * @category features
 */
export const hasFeature = (features: bigint, bit: number): boolean => (features & featureMask(bit)) !== 0n

const featureNameByBit: ReadonlyMap<number, string> = new Map(
  Object.entries(FeatureBit).map(([name, bit]) => [bit, name])
)

/**
 * Names the bits of a feature set, lowest first; a bit without a name in {@link FeatureBit} becomes `BIT_n`.
 *
 * @since 0.1.0
 * @category features
 */
export const featureNames = (features: bigint): ReadonlyArray<string> => {
  const names: Array<string> = []
  for (let bit = 0; bit < 64; bit++) {
    if (hasFeature(features, bit)) names.push(featureNameByBit.get(bit) ?? `BIT_${bit}`)
  }
  return names
}

/**
 * Numbers the request types (virtio 1.2 §5.2.6).
 *
 * @since 0.1.0
 * @category requests
 */
export const RequestType = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13
} as const

/**
 * Numbers the status bytes with which a device ends a request (virtio 1.2 §5.2.6), and the one it never gives.
 *
 * `UNWRITTEN` is the driver's preset: a request that comes back with it was never answered, which a preset of 0 would show
 * as success.
 *
 * @since 0.1.0
 * @category requests
 */
export const Status = {
  OK: 0,
  IOERR: 1,
  UNSUPP: 2,
  UNWRITTEN: 0xff
} as const

/**
 * Is the unit of every sector number, in bytes (virtio 1.2 §5.2.4: "512-byte sectors", whatever `blk_size` is).
 *
 * @since 0.1.0
 * @category constants
 */
export const SECTOR_BYTES = 512

/**
 * Is the size of a request header in bytes: type u32 at 0, reserved u32 at 4, sector u64 at 8 (virtio 1.2 §5.2.6,
 * `struct virtio_blk_req`).
 *
 * @since 0.1.0
 * @category constants
 */
export const REQUEST_HEADER_BYTES = 16

/**
 * Is the size of a discard or write-zeroes segment in bytes: sector u64 at 0, number of sectors u32 at 8, flags u32 at 12
 * (virtio 1.2 §5.2.6, `struct virtio_blk_discard_write_zeroes`).
 *
 * @since 0.1.0
 * @category constants
 */
export const SEGMENT_BYTES = 16

/**
 * Is the size of the status in bytes, the last byte the device writes (virtio 1.2 §5.2.6).
 *
 * @since 0.1.0
 * @category constants
 */
export const STATUS_BYTES = 1

/**
 * Is the size of what GET_ID answers with, in bytes (virtio 1.2 §5.2.6).
 *
 * @since 0.1.0
 * @category constants
 */
export const ID_BYTES = 20

/**
 * Is the segment flag that lets a write-zeroes request unmap its sectors (virtio 1.2 §5.2.6, bit 0 of `flags`).
 *
 * @since 0.1.0
 * @category constants
 */
export const WRITE_ZEROES_UNMAP = 1

/**
 * Lists the sizes of configuration space worth asking a device for, in bytes, largest first.
 *
 * A backend refuses a read beyond the structure it was built with, so a driver asks for less until one is answered. Each
 * size is the end of the structure (`struct virtio_blk_config`, packed) at one stage of its growth:
 *
 * - 96: zoned (u32 × 5, u8, 3 bytes unused, from 72)
 * - 72: secure erase (u32 × 3, from 60); virtio 1.2
 * - 60: write zeroes (u32 × 2, u8, 3 bytes unused, from 48) and discard before it (u32 × 3, from 36); virtio 1.1
 * - 36: number of queues (u8 unused, u16, from 33)
 * - 33: write cache (u8, from 32)
 * - 32: topology (u8, u8, u16, u32, from 24)
 * - 24: block size (u32, from 20), with geometry and limits before it
 * - 8: capacity (u64, from 0), without which there is no disk
 *
 * @since 0.1.0
 * @category configuration
 */
export const CONFIG_SIZES = [96, 72, 60, 36, 33, 32, 24, 8] as const

/**
 * Lists the widths of the accesses by which the configuration space is read from its beginning where it lies in registers, in
 * bytes: each field by one of its own width, 64 bits by two of 32 (virtio 1.2 §4.1.3.1, §5.2.4). Narrow are the geometry
 * from 16, the topology from 24, write cache and number of queues from 32, and the flags from 56 and 92.
 *
 * @since 0.1.0
 * @category configuration
 */
// dprint-ignore
export const CONFIG_WIDTHS: ReadonlyArray<1 | 2 | 4> = [
  4, 4, 4, 4,
  2, 1, 1, 4,
  1, 1, 2, 4,
  1, 1, 2, 4, 4, 4, 4, 4,
  1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4,
  1, 1, 1, 1
]

/** The end of the write-zeroes fields, which are the last ones that {@link BlkConfig} holds. */
const ENCODED_CONFIG_BYTES = 60

/**
 * Holds the fields of the configuration space that a driver uses (virtio 1.2 §5.2.4), as the device gave them.
 *
 * Sectors count 512 bytes; `blkSize` and `sizeMax` are bytes; `alignmentOffset`, `minIoSize` and `optIoSize` are logical
 * blocks of `blkSize`. A field means nothing unless the feature it belongs to was negotiated. Geometry, secure erase and
 * zones are left out.
 *
 * @since 0.1.0
 * @category configuration
 */
export interface BlkConfig {
  /** The size of the disk; u64 at 0. */
  readonly capacitySectors: bigint
  /** The longest segment in bytes (SIZE_MAX); u32 at 8. */
  readonly sizeMax: number
  /** The largest number of segments in a request (SEG_MAX); u32 at 12. */
  readonly segMax: number
  /** The logical block in bytes (BLK_SIZE); u32 at 20. */
  readonly blkSize: number
  /** log2 of the logical blocks in a physical one (TOPOLOGY); u8 at 24. */
  readonly physicalBlockExp: number
  /** The first aligned logical block (TOPOLOGY); u8 at 25. */
  readonly alignmentOffset: number
  /** The smallest recommended request in logical blocks (TOPOLOGY); u16 at 26. */
  readonly minIoSize: number
  /** The optimal request in logical blocks (TOPOLOGY); u32 at 28. */
  readonly optIoSize: number
  /** 0 for write-through, 1 for write-back (CONFIG_WCE); u8 at 32. */
  readonly writeback: number
  /** The number of request queues (MQ); u16 at 34. */
  readonly numQueues: number
  /** The longest discard segment in sectors (DISCARD); u32 at 36. */
  readonly maxDiscardSectors: number
  /** The largest number of segments in a discard (DISCARD); u32 at 40. */
  readonly maxDiscardSeg: number
  /** The alignment that a discard should have, in sectors (DISCARD); u32 at 44. */
  readonly discardSectorAlignment: number
  /** The longest write-zeroes segment in sectors (WRITE_ZEROES); u32 at 48. */
  readonly maxWriteZeroesSectors: number
  /** The largest number of segments in a write-zeroes request (WRITE_ZEROES); u32 at 52. */
  readonly maxWriteZeroesSeg: number
  /** Not 0 when a write-zeroes request may unmap (WRITE_ZEROES); u8 at 56. */
  readonly writeZeroesMayUnmap: number
}

/**
 * Reads a configuration space of 8 bytes or more; a field beyond its end is 0, and bytes beyond the known fields are
 * ignored.
 *
 * Throws a `WireError` for fewer than 8 bytes, which hold no capacity.
 *
 * @since 0.1.0
 * @category configuration
 */
export const decodeConfig = (bytes: Uint8Array): BlkConfig => {
  minimumLength("configuration space", bytes, 8)
  const known = new Uint8Array(ENCODED_CONFIG_BYTES)
  known.set(bytes.subarray(0, ENCODED_CONFIG_BYTES))
  const view = viewOf(known)
  return {
    capacitySectors: view.getBigUint64(0, true),
    sizeMax: view.getUint32(8, true),
    segMax: view.getUint32(12, true),
    blkSize: view.getUint32(20, true),
    physicalBlockExp: view.getUint8(24),
    alignmentOffset: view.getUint8(25),
    minIoSize: view.getUint16(26, true),
    optIoSize: view.getUint32(28, true),
    writeback: view.getUint8(32),
    numQueues: view.getUint16(34, true),
    maxDiscardSectors: view.getUint32(36, true),
    maxDiscardSeg: view.getUint32(40, true),
    discardSectorAlignment: view.getUint32(44, true),
    maxWriteZeroesSectors: view.getUint32(48, true),
    maxWriteZeroesSeg: view.getUint32(52, true),
    writeZeroesMayUnmap: view.getUint8(56)
  }
}

/**
 * Writes a configuration space of 60 bytes, with geometry and unused bytes 0.
 *
 * Throws a `WireError` for a value that does not fit its field.
 *
 * @since 0.1.0
 * @category configuration
 */
export const encodeConfig = (config: BlkConfig): Uint8Array => {
  const bytes = new Uint8Array(ENCODED_CONFIG_BYTES)
  const view = viewOf(bytes)
  view.setBigUint64(0, unsigned64("capacitySectors", config.capacitySectors), true)
  view.setUint32(8, unsigned("sizeMax", config.sizeMax, MAX_U32), true)
  view.setUint32(12, unsigned("segMax", config.segMax, MAX_U32), true)
  view.setUint32(20, unsigned("blkSize", config.blkSize, MAX_U32), true)
  view.setUint8(24, unsigned("physicalBlockExp", config.physicalBlockExp, MAX_U8))
  view.setUint8(25, unsigned("alignmentOffset", config.alignmentOffset, MAX_U8))
  view.setUint16(26, unsigned("minIoSize", config.minIoSize, MAX_U16), true)
  view.setUint32(28, unsigned("optIoSize", config.optIoSize, MAX_U32), true)
  view.setUint8(32, unsigned("writeback", config.writeback, MAX_U8))
  view.setUint16(34, unsigned("numQueues", config.numQueues, MAX_U16), true)
  view.setUint32(36, unsigned("maxDiscardSectors", config.maxDiscardSectors, MAX_U32), true)
  view.setUint32(40, unsigned("maxDiscardSeg", config.maxDiscardSeg, MAX_U32), true)
  view.setUint32(44, unsigned("discardSectorAlignment", config.discardSectorAlignment, MAX_U32), true)
  view.setUint32(48, unsigned("maxWriteZeroesSectors", config.maxWriteZeroesSectors, MAX_U32), true)
  view.setUint32(52, unsigned("maxWriteZeroesSeg", config.maxWriteZeroesSeg, MAX_U32), true)
  view.setUint8(56, unsigned("writeZeroesMayUnmap", config.writeZeroesMayUnmap, MAX_U8))
  return bytes
}

/** The largest sector number written: a disk of 2^53-1 bytes, the largest we accept, has fewer than 2^53 / 512 sectors. */
const MAX_SECTOR = 2 ** 44

/** Writes a sector number (0 to 2^44) as two 32-bit halves. */
const setSector = (view: DataView, at: number, sector: number): void => {
  unsigned("sector", sector, MAX_SECTOR)
  view.setUint32(at, sector >>> 0, true)
  view.setUint32(at + 4, Math.floor(sector / 0x1_0000_0000), true)
}

/**
 * Writes the 16 bytes of a request header at byte `at`; `sector` is from 0 to 2^44, and 0 for requests without a position.
 *
 * The word after the type is reserved and written as 0 (virtio 1.2 §5.2.6).
 *
 * @since 0.1.0
 * @category requests
 */
export const encodeRequestHeader = (view: DataView, at: number, type: number, sector: number): void => {
  view.setUint32(at, type, true)
  view.setUint32(at + 4, 0, true)
  setSector(view, at + 8, sector)
}

/**
 * Reads the 16 bytes of a request header at byte `at`; the reserved word is ignored, and nothing is said about whether type
 * and sector make sense.
 *
 * Throws a `WireError` when the view ends before the header does.
 *
 * @since 0.1.0
 * @category requests
 */
export const decodeRequestHeader = (
  view: DataView,
  at: number
): { readonly type: number; readonly sector: bigint } => {
  unsigned("request header offset", at, Number.MAX_SAFE_INTEGER)
  if (view.byteLength - at < REQUEST_HEADER_BYTES) {
    throw new WireError(
      `request header at ${at} of ${view.byteLength} bytes: must have ${REQUEST_HEADER_BYTES} bytes after it`
    )
  }
  return { type: view.getUint32(at, true), sector: view.getBigUint64(at + 8, true) }
}

/**
 * Writes the 16 bytes of a discard or write-zeroes segment at byte `at`: the first sector (0 to 2^44), the number of
 * sectors (0 to 2^32-1) and the flags (0 or {@link WRITE_ZEROES_UNMAP}).
 *
 * @since 0.1.0
 * @category requests
 */
export const encodeSegment = (view: DataView, at: number, sector: number, sectors: number, flags: number): void => {
  setSector(view, at, sector)
  view.setUint32(at + 8, unsigned("segment sectors", sectors, MAX_U32), true)
  view.setUint32(at + 12, flags, true)
}
