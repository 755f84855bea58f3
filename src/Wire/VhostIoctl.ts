/**
 * The ioctls and IOTLB messages by which the kernel's vhost-vdpa devices are driven (`include/uapi/linux/vhost.h`,
 * `vhost_types.h`), without file descriptors and system calls.
 *
 * An ioctl's number holds its direction, the size of its argument, the type of driver and a number of its own; here it is
 * computed from these parts, as the headers do it. The layout is that of x86-64, arm64 and RISC-V; PowerPC, MIPS and SPARC
 * have another. Structures are native-endian, and every machine that Node supports for us is little-endian.
 *
 * Addresses and sizes are numbers of at most 2^53-1; the range of addresses that a device reports may use all 64 bits and is
 * made of bigints. Nothing here is called per request. Order, answers and rules belong to `src/Transport`.
 *
 * @since 0.1.0
 */
import { exactLength, MAX_U32, MAX_U8, minimumLength, setNumber64, unsigned, viewOf } from "./Bounds.ts"
import { WireError } from "./WireError.ts"

// A u64, `struct vhost_vring_state` and `struct vhost_vring_addr`: vhost-user took them over from the kernel as they are.
export { decodeU64, encodeU64, encodeVringAddress, encodeVringState } from "./VhostUserMessage.ts"

/** The type of every vhost ioctl (`VHOST_VIRTIO`). */
const VHOST_VIRTIO = 0xaf

// include/uapi/asm-generic/ioctl.h: number in bits 0-7, type in 8-15, size in 16-29, direction in 30 and 31.
const WRITES = 1
const READS = 2
const ioctl = (direction: number, number: number, size: number): number =>
  (direction << 30 | size << 16 | VHOST_VIRTIO << 8 | number) >>> 0

/** `_IO`: no argument. */
const io = (number: number): number => ioctl(0, number, 0)
/** `_IOR`: the kernel fills `size` bytes. */
const ior = (number: number, size: number): number => ioctl(READS, number, size)
/** `_IOW`: the kernel reads `size` bytes. */
const iow = (number: number, size: number): number => ioctl(WRITES, number, size)
/** `_IOWR`: the kernel reads `size` bytes, and fills them. */
const iowr = (number: number, size: number): number => ioctl(READS | WRITES, number, size)

const U8 = 1
const U16 = 2
const U32 = 4
const U64 = 8
/** index u32, number u32. */
const VRING_STATE = 8
/** index u32, flags u32, and four addresses u64. */
const VRING_ADDRESS = 40
/** index u32, descriptor s32. */
const VRING_FILE = 8
/** offset u32, length u32; the bytes behind them do not count. */
const CONFIG = 8
/** first u64, last u64. */
const IOVA_RANGE = 16

/**
 * Numbers the ioctls of a vhost-vdpa device (`linux/vhost.h`). Those that only other vhost devices know are left out.
 *
 * @since 0.1.0
 * @category ioctls
 */
export const Ioctl = {
  VHOST_GET_FEATURES: ior(0x00, U64),
  VHOST_SET_FEATURES: iow(0x00, U64),
  VHOST_SET_OWNER: io(0x01),
  VHOST_SET_VRING_NUM: iow(0x10, VRING_STATE),
  VHOST_SET_VRING_ADDR: iow(0x11, VRING_ADDRESS),
  VHOST_SET_VRING_BASE: iow(0x12, VRING_STATE),
  VHOST_GET_VRING_BASE: iowr(0x12, VRING_STATE),
  VHOST_SET_VRING_KICK: iow(0x20, VRING_FILE),
  VHOST_SET_VRING_CALL: iow(0x21, VRING_FILE),
  VHOST_SET_VRING_ERR: iow(0x22, VRING_FILE),
  VHOST_SET_BACKEND_FEATURES: iow(0x25, U64),
  VHOST_GET_BACKEND_FEATURES: ior(0x26, U64),
  VHOST_VDPA_GET_DEVICE_ID: ior(0x70, U32),
  VHOST_VDPA_GET_STATUS: ior(0x71, U8),
  VHOST_VDPA_SET_STATUS: iow(0x72, U8),
  VHOST_VDPA_GET_CONFIG: ior(0x73, CONFIG),
  VHOST_VDPA_SET_CONFIG: iow(0x74, CONFIG),
  VHOST_VDPA_SET_VRING_ENABLE: iow(0x75, VRING_STATE),
  VHOST_VDPA_GET_VRING_NUM: ior(0x76, U16),
  VHOST_VDPA_SET_CONFIG_CALL: iow(0x77, U32),
  VHOST_VDPA_GET_IOVA_RANGE: ior(0x78, IOVA_RANGE),
  VHOST_VDPA_GET_CONFIG_SIZE: ior(0x79, U32),
  VHOST_VDPA_GET_AS_NUM: ior(0x7a, U32),
  VHOST_VDPA_GET_VRING_GROUP: iowr(0x7b, VRING_STATE),
  VHOST_VDPA_SET_GROUP_ASID: iow(0x7c, VRING_STATE),
  VHOST_VDPA_SUSPEND: io(0x7d),
  VHOST_VDPA_RESUME: io(0x7e),
  VHOST_VDPA_GET_VRING_DESC_GROUP: iowr(0x7f, VRING_STATE),
  VHOST_VDPA_GET_VQS_COUNT: ior(0x80, U32),
  VHOST_VDPA_GET_GROUP_NUM: ior(0x81, U32),
  VHOST_VDPA_GET_VRING_SIZE: iowr(0x82, VRING_STATE)
} as const

const nameByNumber: ReadonlyMap<number, string> = new Map(
  Object.entries(Ioctl).map(([name, number]) => [number, name])
)

/**
 * Names an ioctl for errors; one without a name becomes `ioctl 0x…`.
 *
 * @since 0.1.0
 * @category ioctls
 */
export const ioctlName = (number: number): string => nameByNumber.get(number) ?? `ioctl 0x${number.toString(16)}`

/**
 * Numbers the bits of what the kernel's side of vhost can do beside the device (`VHOST_BACKEND_F_*`). They are numbers of
 * bits: a set of them is made by `featureMask`.
 *
 * @since 0.1.0
 * @category features
 */
export const BackendFeature = {
  IOTLB_MSG_V2: 1,
  IOTLB_BATCH: 2,
  IOTLB_ASID: 3,
  SUSPEND: 4,
  RESUME: 5,
  ENABLE_AFTER_DRIVER_OK: 6,
  DESC_ASID: 7,
  IOTLB_PERSIST: 8
} as const

/**
 * Is the device id of a virtio block device (virtio 1.2 §5: Device Types), which VHOST_VDPA_GET_DEVICE_ID answers.
 *
 * @since 0.1.0
 * @category constants
 */
export const BLOCK_DEVICE_ID = 2

/**
 * Makes the argument of an ioctl that the kernel fills: `size` zeroes. An older kernel takes the first four bytes of an
 * argument whose ioctl it does not know for the index of a ring, and says so only where that ring exists; 0 does.
 *
 * @since 0.1.0
 * @category arguments
 */
export const emptyArgument = (number: number): Uint8Array => new Uint8Array(number >>> 16 & 0x3fff)

/**
 * Writes an argument of one byte: a device's status.
 *
 * @since 0.1.0
 * @category arguments
 */
export const encodeU8 = (value: number): Uint8Array => Uint8Array.of(unsigned("u8 argument", value, MAX_U8))

/**
 * Reads an argument of one unsigned number of 1, 2 or 4 bytes; throws a `WireError` for another length.
 *
 * @since 0.1.0
 * @category arguments
 */
export const decodeNumber = (bytes: Uint8Array): number => {
  const view = viewOf(bytes)
  if (bytes.length === U8) return view.getUint8(0)
  if (bytes.length === U16) return view.getUint16(0, true)
  exactLength("number", bytes, U32)
  return view.getUint32(0, true)
}

const setDescriptor = (view: DataView, at: number, fd: number): void => {
  if (fd !== (fd | 0) || fd < -1) throw new WireError(`descriptor ${fd}: must be one, or -1 for none`)
  view.setInt32(at, fd, true)
}

/**
 * Writes `struct vhost_vring_file`, 8 bytes: queue index u32 at 0, descriptor s32 at 4; -1 takes the descriptor away.
 *
 * @since 0.1.0
 * @category arguments
 */
export const encodeVringFile = (index: number, fd: number): Uint8Array => {
  const bytes = new Uint8Array(VRING_FILE)
  const view = viewOf(bytes)
  view.setUint32(0, unsigned("vring index", index, MAX_U32), true)
  setDescriptor(view, 4, fd)
  return bytes
}

/**
 * Writes the argument of VHOST_VDPA_SET_CONFIG_CALL, a descriptor s32; -1 takes it away.
 *
 * @since 0.1.0
 * @category arguments
 */
export const encodeDescriptor = (fd: number): Uint8Array => {
  const bytes = new Uint8Array(U32)
  setDescriptor(viewOf(bytes), 0, fd)
  return bytes
}

/**
 * Writes `struct vhost_vdpa_config` that asks for the first `size` bytes of a configuration space: offset u32 at 0, length
 * u32 at 4, and room for the bytes from 8 on.
 *
 * @since 0.1.0
 * @category arguments
 */
export const encodeConfigQuestion = (size: number): Uint8Array => {
  const bytes = new Uint8Array(CONFIG + size)
  viewOf(bytes).setUint32(4, unsigned("configuration size", size, MAX_U32), true)
  return bytes
}

/**
 * Gives the bytes of the configuration space in a `struct vhost_vdpa_config` that the kernel filled, as a copy.
 *
 * @since 0.1.0
 * @category arguments
 */
export const decodeConfigAnswer = (bytes: Uint8Array): Uint8Array => {
  minimumLength("configuration", bytes, CONFIG)
  return bytes.slice(CONFIG)
}

/**
 * Holds the addresses that a device can be given, both ends included.
 *
 * @since 0.1.0
 * @category arguments
 */
export interface IovaRange {
  readonly first: bigint
  readonly last: bigint
}

/**
 * Reads `struct vhost_vdpa_iova_range`, 16 bytes: first u64 at 0, last u64 at 8.
 *
 * @since 0.1.0
 * @category arguments
 */
export const decodeIovaRange = (bytes: Uint8Array): IovaRange => {
  exactLength("IOVA range", bytes, IOVA_RANGE)
  const view = viewOf(bytes)
  return { first: view.getBigUint64(0, true), last: view.getBigUint64(8, true) }
}

/**
 * Numbers the kinds of IOTLB message (`VHOST_IOTLB_*`) that a driver sends.
 *
 * @since 0.1.0
 * @category IOTLB
 */
export const IotlbType = {
  UPDATE: 2,
  INVALIDATE: 3,
  BATCH_BEGIN: 5,
  BATCH_END: 6
} as const

/** The device may read and write (`VHOST_ACCESS_RW`). */
const ACCESS_READ_WRITE = 3

/**
 * Is the size of an IOTLB message of either version, in bytes: 8 of head, and a union that is padded to 64
 * (`struct vhost_msg`, `struct vhost_msg_v2`).
 *
 * @since 0.1.0
 * @category IOTLB
 */
export const IOTLB_MESSAGE_BYTES = 72

/**
 * Holds what an IOTLB message says: which addresses of the device (`iova`) lead to which of this process. Only an UPDATE
 * needs `userAddress`; the two of a batch need nothing.
 *
 * @since 0.1.0
 * @category IOTLB
 */
export interface IotlbMessage {
  readonly type: typeof IotlbType[keyof typeof IotlbType]
  readonly iova?: number
  readonly size?: number
  readonly userAddress?: number
}

/**
 * Writes an IOTLB message: version u32 at 0 (in version 2 the address space u32 at 4, always 0 here), then `struct
 * vhost_iotlb_msg`: iova u64 at 8, size u64 at 16, user address u64 at 24, permission u8 at 32, type u8 at 33.
 *
 * Throws a `WireError` for a number that does not fit.
 *
 * @since 0.1.0
 * @category IOTLB
 */
export const encodeIotlbMessage = (version: 1 | 2, message: IotlbMessage): Uint8Array => {
  const bytes = new Uint8Array(IOTLB_MESSAGE_BYTES)
  const view = viewOf(bytes)
  view.setUint32(0, version, true)
  setNumber64(view, 8, "iova", message.iova ?? 0)
  setNumber64(view, 16, "mapping size", message.size ?? 0)
  setNumber64(view, 24, "user address", message.userAddress ?? 0)
  view.setUint8(32, message.type === IotlbType.UPDATE ? ACCESS_READ_WRITE : 0)
  view.setUint8(33, message.type)
  return bytes
}
