/**
 * The messages of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst), without file descriptors and sockets.
 *
 * A message is a header of 12 bytes, a payload of the size that the header names, and up to eight file descriptors beside
 * it. The protocol is native-endian; this module reads and writes little-endian, which is the same on every machine that
 * Node supports for us (x86-64, arm64). A big-endian host would need its own byte order here.
 *
 * Every decoder checks the exact length of its payload before it reads. Addresses, sizes and offsets are numbers, and a
 * 64-bit field above 2^53-1 is refused (user addresses have at most 2^47 on Linux, unless a program asks for more); feature sets
 * and other plain 64-bit answers are bigints. Nothing here is called per request.
 *
 * Order, answers and timeouts belong to `src/Transport`.
 *
 * @since 0.1.0
 */
import {
  exactLength,
  getNumber64,
  MAX_U16,
  MAX_U32,
  MAX_U8,
  minimumLength,
  setNumber64,
  unsigned,
  unsigned64,
  viewOf
} from "./Bounds.ts"
import { WireError } from "./WireError.ts"

/**
 * Numbers the messages from front-end to backend (vhost-user: Front-end message types).
 *
 * `RESET_OWNER` is deprecated and never sent; it stands here so that a backend can name it. Messages that only networking,
 * crypto, postcopy migration or graphics use (19, 20, 26-30, 33) are left out.
 *
 * @since 0.1.0
 * @category messages
 */
export const FrontendRequest = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40
} as const

/**
 * Numbers the messages from backend to front-end, on the socket of SET_BACKEND_REQ_FD (vhost-user: Back-end message types).
 *
 * @since 0.1.0
 * @category messages
 */
export const BackendRequest = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  VRING_HOST_NOTIFIER_MSG: 3,
  VRING_CALL: 4,
  VRING_ERR: 5
} as const

const requestNameById: ReadonlyMap<number, string> = new Map(
  Object.entries(FrontendRequest).map(([name, id]) => [id, name])
)

/**
 * Names a message from front-end to backend for errors and logs; one without a name becomes `request n`.
 *
 * @since 0.1.0
 * @category messages
 */
export const requestName = (id: number): string => requestNameById.get(id) ?? `request ${id}`

/**
 * Numbers the protocol feature bits (vhost-user: Protocol features).
 *
 * Bits from 20 up are left out: published texts disagree on their meaning, so they are never negotiated.
 *
 * @since 0.1.0
 * @category features
 */
export const ProtocolFeature = {
  MQ: 0,
  LOG_SHMFD: 1,
  RARP: 2,
  REPLY_ACK: 3,
  MTU: 4,
  BACKEND_REQ: 5,
  CROSS_ENDIAN: 6,
  CRYPTO: 7,
  PAGEFAULT: 8,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  HOST_NOTIFIER: 11,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  INBAND_NOTIFICATIONS: 14,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
  XEN_MMAP: 17,
  SHARED_OBJECT: 18,
  DEVICE_STATE: 19
} as const

/**
 * Is the size of a message header in bytes: request u32 at 0, flags u32 at 4, size u32 at 8 (vhost-user: Header).
 *
 * @since 0.1.0
 * @category constants
 */
export const HEADER_BYTES = 12

/**
 * Is the protocol version, in the two lowest bits of a header's flags (vhost-user: Header).
 *
 * @since 0.1.0
 * @category constants
 */
export const VERSION = 1

/** The bits of a header's flags that hold the version. */
const VERSION_BITS = 3

/**
 * Is the header flag of a reply, bit 2 (vhost-user: Header).
 *
 * @since 0.1.0
 * @category constants
 */
export const FLAG_REPLY = 4

/**
 * Is the header flag that asks for an acknowledgement, bit 3; only after REPLY_ACK is negotiated (vhost-user: Header).
 *
 * @since 0.1.0
 * @category constants
 */
export const FLAG_NEED_REPLY = 8

/**
 * Is the largest number of file descriptors beside a message, and so of regions in a memory table (vhost-user: Memory
 * regions description; `VHOST_MEMORY_BASELINE_NREGIONS` in QEMU, `VHOST_MAX_FDS` 8 in DPDK).
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_FDS = 8

/**
 * Is the size in bytes of what precedes the region in a configuration message: offset u32 at 0, size u32 at 4, flags u32 at
 * 8 (vhost-user: Virtio device config space).
 *
 * @since 0.1.0
 * @category constants
 */
export const CONFIG_HEADER_BYTES = 12

/** The largest configuration space of any device (`VHOST_USER_MAX_CONFIG_SIZE` in QEMU), in bytes. */
const MAX_CONFIG_BYTES = 256

/** guest address u64, size u64, user address u64, mmap offset u64 (vhost-user: Memory region). */
const REGION_BYTES = 32

/** Number of regions u32 and padding u32 before a memory table; padding u64 before a single region. Both are 8 bytes. */
const REGIONS_HEADER_BYTES = 8

/**
 * Is the largest payload that is accepted or sent, in bytes: a whole configuration space, 12 + 256 = 268.
 *
 * The next largest is a full memory table, 8 + 8 × 32 = 264; every other payload has 40 bytes or fewer. QEMU's own limit, the
 * size of its union of payloads, is the same 268.
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_PAYLOAD_BYTES = CONFIG_HEADER_BYTES + MAX_CONFIG_BYTES

/**
 * Holds a message header: request number, flags without the version bits, and payload size in bytes.
 *
 * @since 0.1.0
 * @category messages
 */
export interface Header {
  readonly request: number
  /** {@link FLAG_REPLY}, {@link FLAG_NEED_REPLY}, and whatever other bits the sender set; never the version. */
  readonly flags: number
  readonly size: number
}

/**
 * Writes a whole message, header and payload in one array, to be sent by one call; the version is put into the flags.
 *
 * Throws a `WireError` for a payload over {@link MAX_PAYLOAD_BYTES}.
 *
 * @since 0.1.0
 * @category messages
 */
export const encodeMessage = (request: number, flags: number, payload?: Uint8Array): Uint8Array => {
  const size = payload?.byteLength ?? 0
  if (size > MAX_PAYLOAD_BYTES) {
    throw new WireError(`${requestName(request)} with ${size} bytes of payload: must have at most ${MAX_PAYLOAD_BYTES}`)
  }
  const bytes = new Uint8Array(HEADER_BYTES + size)
  const view = viewOf(bytes)
  view.setUint32(0, unsigned("request", request, MAX_U32), true)
  view.setUint32(4, unsigned("flags", flags, MAX_U32) & ~VERSION_BITS | VERSION, true)
  view.setUint32(8, size, true)
  if (payload !== undefined) bytes.set(payload, HEADER_BYTES)
  return bytes
}

/**
 * Reads the header at the start of `bytes`; what follows it is not looked at.
 *
 * Throws a `WireError` for fewer than 12 bytes, another version than {@link VERSION}, or a payload size over
 * {@link MAX_PAYLOAD_BYTES}.
 *
 * @since 0.1.0
 * @category messages
 */
export const decodeHeader = (bytes: Uint8Array): Header => {
  minimumLength("message header", bytes, HEADER_BYTES)
  const view = viewOf(bytes)
  const request = view.getUint32(0, true)
  const flags = view.getUint32(4, true)
  const size = view.getUint32(8, true)
  const version = flags & VERSION_BITS
  if (version !== VERSION) {
    throw new WireError(`${requestName(request)} with protocol version ${version}: must be ${VERSION}`)
  }
  if (size > MAX_PAYLOAD_BYTES) {
    throw new WireError(`${requestName(request)} with ${size} bytes of payload: must have at most ${MAX_PAYLOAD_BYTES}`)
  }
  return { request, flags: (flags & ~VERSION_BITS) >>> 0, size }
}

/**
 * Writes a payload of one u64 (feature sets, acknowledgements, counts).
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeU64 = (value: bigint): Uint8Array => {
  const payload = new Uint8Array(8)
  viewOf(payload).setBigUint64(0, unsigned64("u64 payload", value), true)
  return payload
}

/**
 * Reads a payload of one u64; throws a `WireError` unless it has exactly 8 bytes.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeU64 = (payload: Uint8Array): bigint => {
  exactLength("u64 payload", payload, 8)
  return viewOf(payload).getBigUint64(0, true)
}

/**
 * Writes a vring state of 8 bytes: queue index u32 at 0, number u32 at 4 (vhost-user: Vring state description).
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeVringState = (index: number, num: number): Uint8Array => {
  const payload = new Uint8Array(8)
  const view = viewOf(payload)
  view.setUint32(0, unsigned("vring index", index, MAX_U32), true)
  view.setUint32(4, unsigned("vring number", num, MAX_U32), true)
  return payload
}

/**
 * Reads a vring state; throws a `WireError` unless it has exactly 8 bytes.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeVringState = (payload: Uint8Array): { readonly index: number; readonly num: number } => {
  exactLength("vring state", payload, 8)
  const view = viewOf(payload)
  return { index: view.getUint32(0, true), num: view.getUint32(4, true) }
}

/**
 * Holds where the parts of a queue lie in the front-end's address space (vhost-user: Vring descriptor addresses).
 *
 * @since 0.1.0
 * @category payloads
 */
export interface VringAddress {
  readonly index: number
  /** Bit 0 asks for logging of the used part at `log`. */
  readonly flags: number
  /** The user address of the descriptors. */
  readonly descriptors: number
  /** The user address of the used part. */
  readonly used: number
  /** The user address of the avail part. */
  readonly avail: number
  /** The guest address of the used part for logging, or 0. */
  readonly log: number
}

/** index u32, flags u32, and four addresses u64. */
const VRING_ADDRESS_BYTES = 40

/**
 * Writes vring addresses of 40 bytes: index u32 at 0, flags u32 at 4, then u64 each: descriptors at 8, **used** at 16, avail
 * at 24, log at 32 (vhost-user: Vring descriptor addresses).
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeVringAddress = (address: VringAddress): Uint8Array => {
  const payload = new Uint8Array(VRING_ADDRESS_BYTES)
  const view = viewOf(payload)
  view.setUint32(0, unsigned("vring index", address.index, MAX_U32), true)
  view.setUint32(4, unsigned("vring flags", address.flags, MAX_U32), true)
  setNumber64(view, 8, "descriptors address", address.descriptors)
  setNumber64(view, 16, "used address", address.used)
  setNumber64(view, 24, "avail address", address.avail)
  setNumber64(view, 32, "log address", address.log)
  return payload
}

/**
 * Reads vring addresses; throws a `WireError` unless there are exactly 40 bytes and every address is at most 2^53-1.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeVringAddress = (payload: Uint8Array): VringAddress => {
  exactLength("vring addresses", payload, VRING_ADDRESS_BYTES)
  const view = viewOf(payload)
  return {
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descriptors: getNumber64(view, 8, "descriptors address"),
    used: getNumber64(view, 16, "used address"),
    avail: getNumber64(view, 24, "avail address"),
    log: getNumber64(view, 32, "log address")
  }
}

/** Says, beside the queue index in bits 0-7, that no file descriptor comes with the message (vhost-user: SET_VRING_KICK). */
const VRING_NO_FD = 0x100

/**
 * Writes the payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR, one u64: the queue index (0 to 255) in bits 0-7,
 * and bit 8 when no file descriptor comes with it.
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeVringFd = (index: number, hasFd: boolean): Uint8Array => {
  const payload = new Uint8Array(8)
  setNumber64(viewOf(payload), 0, "vring", unsigned("vring index", index, MAX_U8) | (hasFd ? 0 : VRING_NO_FD))
  return payload
}

/**
 * Reads the payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR; throws a `WireError` unless it has exactly 8 bytes
 * and the bits from 9 up are 0.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeVringFd = (payload: Uint8Array): { readonly index: number; readonly hasFd: boolean } => {
  exactLength("vring file descriptor", payload, 8)
  const value = unsigned("vring", getNumber64(viewOf(payload), 0, "vring"), VRING_NO_FD | MAX_U8)
  return { index: value & MAX_U8, hasFd: (value & VRING_NO_FD) === 0 }
}

/**
 * Holds a memory region that the front-end shares (vhost-user: Memory region description); numbers in bytes.
 *
 * @since 0.1.0
 * @category payloads
 */
export interface MemoryRegion {
  /** What descriptors call the region's first byte. */
  readonly guestAddress: number
  readonly size: number
  /** What SET_VRING_ADDR calls the region's first byte: an address in the front-end's process. */
  readonly userAddress: number
  /** Where the region begins in the file that comes with it. */
  readonly mmapOffset: number
}

/** Throws unless the ends of the region are addresses too, so that later sums stay exact. */
const checkRegionEnds = (region: MemoryRegion): MemoryRegion => {
  for (const start of [region.guestAddress, region.userAddress, region.mmapOffset]) {
    if (start > Number.MAX_SAFE_INTEGER - region.size) {
      throw new WireError(`memory region of ${region.size} bytes at ${start}: must end at or before 2^53-1`)
    }
  }
  return region
}

const setRegion = (view: DataView, at: number, region: MemoryRegion): void => {
  setNumber64(view, at, "region guest address", region.guestAddress)
  setNumber64(view, at + 8, "region size", region.size)
  setNumber64(view, at + 16, "region user address", region.userAddress)
  setNumber64(view, at + 24, "region mmap offset", region.mmapOffset)
  checkRegionEnds(region)
}

const getRegion = (view: DataView, at: number): MemoryRegion =>
  checkRegionEnds({
    guestAddress: getNumber64(view, at, "region guest address"),
    size: getNumber64(view, at + 8, "region size"),
    userAddress: getNumber64(view, at + 16, "region user address"),
    mmapOffset: getNumber64(view, at + 24, "region mmap offset")
  })

/**
 * Writes the payload of ADD_MEM_REG and REM_MEM_REG, 40 bytes: padding u64, then u64 each: guest address, size, user
 * address, mmap offset (vhost-user: Single memory region description).
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeMemoryRegion = (region: MemoryRegion): Uint8Array => {
  const payload = new Uint8Array(REGIONS_HEADER_BYTES + REGION_BYTES)
  setRegion(viewOf(payload), REGIONS_HEADER_BYTES, region)
  return payload
}

/**
 * Reads the payload of ADD_MEM_REG and REM_MEM_REG; throws a `WireError` unless it has exactly 40 bytes and every end is at
 * most 2^53-1.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeMemoryRegion = (payload: Uint8Array): MemoryRegion => {
  exactLength("memory region", payload, REGIONS_HEADER_BYTES + REGION_BYTES)
  return getRegion(viewOf(payload), REGIONS_HEADER_BYTES)
}

/**
 * Writes the payload of SET_MEM_TABLE: number of regions u32, padding u32, then 32 bytes a region (vhost-user: Multiple
 * memory regions description); throws a `WireError` for more than {@link MAX_FDS} regions.
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeMemoryTable = (regions: ReadonlyArray<MemoryRegion>): Uint8Array => {
  const count = unsigned("memory table regions", regions.length, MAX_FDS)
  const payload = new Uint8Array(REGIONS_HEADER_BYTES + REGION_BYTES * count)
  const view = viewOf(payload)
  view.setUint32(0, count, true)
  regions.forEach((region, i) => setRegion(view, REGIONS_HEADER_BYTES + REGION_BYTES * i, region))
  return payload
}

/**
 * Reads the payload of SET_MEM_TABLE; throws a `WireError` for more than {@link MAX_FDS} regions, or unless the payload has
 * exactly the bytes of the regions it counts.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeMemoryTable = (payload: Uint8Array): ReadonlyArray<MemoryRegion> => {
  minimumLength("memory table", payload, REGIONS_HEADER_BYTES)
  const view = viewOf(payload)
  const count = unsigned("memory table regions", view.getUint32(0, true), MAX_FDS)
  exactLength(`memory table of ${count} regions`, payload, REGIONS_HEADER_BYTES + REGION_BYTES * count)
  return Array.from({ length: count }, (_, i) => getRegion(view, REGIONS_HEADER_BYTES + REGION_BYTES * i))
}

/**
 * Writes the payload of GET_CONFIG and SET_CONFIG: offset u32, size u32, flags u32, then `size` bytes (vhost-user: Virtio
 * device config space); without a region the bytes are 0, as a question has them.
 *
 * Throws a `WireError` when `size` is over 256, or the region has another length than `size`.
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeConfig = (config: {
  readonly offset: number
  readonly size: number
  readonly flags: number
  readonly region?: Uint8Array
}): Uint8Array => {
  const size = unsigned("configuration size", config.size, MAX_CONFIG_BYTES)
  const payload = new Uint8Array(CONFIG_HEADER_BYTES + size)
  const view = viewOf(payload)
  view.setUint32(0, unsigned("configuration offset", config.offset, MAX_U32), true)
  view.setUint32(4, size, true)
  view.setUint32(8, unsigned("configuration flags", config.flags, MAX_U32), true)
  if (config.region !== undefined) {
    exactLength("configuration region", config.region, size)
    payload.set(config.region, CONFIG_HEADER_BYTES)
  }
  return payload
}

/**
 * Reads the payload of GET_CONFIG and SET_CONFIG, the region as a copy; throws a `WireError` unless the payload has exactly
 * the bytes that it names, at most 256 of them.
 *
 * A backend that refuses GET_CONFIG answers with an empty payload: ask the header's size first.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeConfig = (payload: Uint8Array): {
  readonly offset: number
  readonly size: number
  readonly flags: number
  readonly region: Uint8Array
} => {
  minimumLength("configuration", payload, CONFIG_HEADER_BYTES)
  const view = viewOf(payload)
  const size = unsigned("configuration size", view.getUint32(4, true), MAX_CONFIG_BYTES)
  exactLength(`configuration of size ${size}`, payload, CONFIG_HEADER_BYTES + size)
  return {
    offset: view.getUint32(0, true),
    size,
    flags: view.getUint32(8, true),
    region: payload.slice(CONFIG_HEADER_BYTES)
  }
}

/**
 * Holds the shape of the shared area in which a backend notes the requests in flight (vhost-user: Inflight description).
 *
 * @since 0.1.0
 * @category payloads
 */
export interface Inflight {
  /** The size of the area in bytes; 0 in the question. */
  readonly mmapSize: number
  /** Where the area begins in the file that comes with it. */
  readonly mmapOffset: number
  readonly numQueues: number
  readonly queueSize: number
}

/**
 * Two u64 and two u16 are 20 bytes, but backends compare the payload with the size of the C structure, which padding makes
 * 24, and break the connection on 20.
 */
const INFLIGHT_BYTES = 24

/**
 * Writes the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, 24 bytes: size u64 at 0, offset u64 at 8, queues u16 at 16,
 * queue size u16 at 18, 4 bytes of padding (vhost-user: Inflight description).
 *
 * @since 0.1.0
 * @category payloads
 */
export const encodeInflight = (inflight: Inflight): Uint8Array => {
  const payload = new Uint8Array(INFLIGHT_BYTES)
  const view = viewOf(payload)
  setNumber64(view, 0, "inflight size", inflight.mmapSize)
  setNumber64(view, 8, "inflight offset", inflight.mmapOffset)
  view.setUint16(16, unsigned("inflight queues", inflight.numQueues, MAX_U16), true)
  view.setUint16(18, unsigned("inflight queue size", inflight.queueSize, MAX_U16), true)
  return payload
}

/**
 * Reads the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD; throws a `WireError` unless it has exactly 24 bytes and size and
 * offset are at most 2^53-1.
 *
 * @since 0.1.0
 * @category payloads
 */
export const decodeInflight = (payload: Uint8Array): Inflight => {
  exactLength("inflight description", payload, INFLIGHT_BYTES)
  const view = viewOf(payload)
  return {
    mmapSize: getNumber64(view, 0, "inflight size"),
    mmapOffset: getNumber64(view, 8, "inflight offset"),
    numQueues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true)
  }
}
