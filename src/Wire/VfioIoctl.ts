/**
 * The interface of VFIO, as numbers and bytes (Linux, `include/uapi/linux/vfio.h`), without descriptors and system calls.
 *
 * Every request is an `_IO` of type `;`, so its number says nothing of the size of its argument: the argument's first field
 * does (`argsz`, `size`), and a kernel that knows more of a structure answers with the size that it needs. Capabilities are
 * appended to a structure as a chain of offsets into it. An offset or a count that the kernel gives is checked against the
 * bytes that are there before it is used.
 *
 * The fields are native-endian; this module reads and writes little-endian, which is the same on every machine that Node
 * supports for us (x86-64, arm64). Addresses and sizes are numbers, and one that a kernel gives above 2^53-1 is refused;
 * ranges of addresses are bigints, since most of them end at 2^64-1.
 *
 * @since 0.1.0
 */
import {
  exactLength,
  getNumber64,
  MAX_U32,
  minimumLength,
  setNumber64,
  unsigned,
  unsigned64,
  viewOf
} from "./Bounds.ts"
import { WireError } from "./WireError.ts"

/** `VFIO_TYPE` is `;`, and so is iommufd's; VFIO's requests begin at `VFIO_BASE`. */
const TYPE = 0x3b
const VFIO_BASE = 100

/**
 * Gives the number of a request: `_IO(';', number)` of `asm-generic/ioctl.h`, with no direction and size 0.
 *
 * @since 0.1.0
 * @category requests
 */
export const request = (number: number): number => TYPE << 8 | number

/**
 * Numbers the requests to a VFIO container, group or device. A number may mean one thing to one and another to the other.
 *
 * @since 0.1.0
 * @category requests
 */
export const VfioRequest = {
  GET_API_VERSION: request(VFIO_BASE),
  CHECK_EXTENSION: request(VFIO_BASE + 1),
  SET_IOMMU: request(VFIO_BASE + 2),
  GROUP_GET_STATUS: request(VFIO_BASE + 3),
  GROUP_SET_CONTAINER: request(VFIO_BASE + 4),
  GROUP_GET_DEVICE_FD: request(VFIO_BASE + 6),
  DEVICE_GET_INFO: request(VFIO_BASE + 7),
  DEVICE_GET_REGION_INFO: request(VFIO_BASE + 8),
  DEVICE_GET_IRQ_INFO: request(VFIO_BASE + 9),
  DEVICE_SET_IRQS: request(VFIO_BASE + 10),
  DEVICE_RESET: request(VFIO_BASE + 11),
  IOMMU_GET_INFO: request(VFIO_BASE + 12),
  IOMMU_MAP_DMA: request(VFIO_BASE + 13),
  IOMMU_UNMAP_DMA: request(VFIO_BASE + 14),
  DEVICE_BIND_IOMMUFD: request(VFIO_BASE + 18),
  DEVICE_ATTACH_IOMMUFD_PT: request(VFIO_BASE + 19)
} as const

/**
 * Is the version of the interface, the only one there ever was (`VFIO_API_VERSION`).
 *
 * @since 0.1.0
 * @category constants
 */
export const API_VERSION = 0

/**
 * Is the kind of IOMMU asked of a container: type 1, version 2, which takes mappings back only as they were made
 * (`VFIO_TYPE1v2_IOMMU`).
 *
 * @since 0.1.0
 * @category constants
 */
export const TYPE1V2_IOMMU = 3

/**
 * Numbers a PCI device's regions (`VFIO_PCI_*_REGION_INDEX`); BARs are 0 to 5.
 *
 * @since 0.1.0
 * @category constants
 */
export const CONFIG_REGION = 7

/**
 * Numbers a PCI device's interrupts (`VFIO_PCI_*_IRQ_INDEX`). ERR is an error of the PCI Express link or device (AER), REQ
 * the host's wish to have the device back.
 *
 * @since 0.1.0
 * @category constants
 */
export const IrqIndex = { INTX: 0, MSIX: 2, ERR: 3, REQ: 4 } as const

const GROUP_STATUS_BYTES = 8
const GROUP_VIABLE = 1

/**
 * Writes a `vfio_group_status` to be filled: argsz u32 at 0, flags u32 at 4.
 *
 * @since 0.1.0
 * @category group
 */
export const encodeGroupStatus = (): Uint8Array => sized(GROUP_STATUS_BYTES)

/**
 * Tells whether a group may be used: each of its devices is bound to a driver of VFIO, or to none.
 *
 * @since 0.1.0
 * @category group
 */
export const decodeGroupViable = (bytes: Uint8Array): boolean => {
  exactLength("vfio_group_status", bytes, GROUP_STATUS_BYTES)
  return (viewOf(bytes).getUint32(4, true) & GROUP_VIABLE) !== 0
}

/** The structure before it had capabilities, which every kernel fills. */
const DEVICE_INFO_BYTES = 16
const DEVICE_RESET = 1
const DEVICE_PCI = 2

/**
 * Holds what a device is to VFIO.
 *
 * @since 0.1.0
 * @category device
 */
export interface DeviceInfo {
  readonly isPci: boolean
  /** Whether the function can be reset (`DEVICE_RESET`). */
  readonly canReset: boolean
  readonly regions: number
  readonly irqs: number
}

/**
 * Writes a `vfio_device_info` to be filled: argsz u32 at 0, flags u32 at 4, regions u32 at 8, interrupts u32 at 12.
 *
 * @since 0.1.0
 * @category device
 */
export const encodeDeviceInfo = (): Uint8Array => sized(DEVICE_INFO_BYTES)

/**
 * Reads a `vfio_device_info` that was filled.
 *
 * @since 0.1.0
 * @category device
 */
export const decodeDeviceInfo = (bytes: Uint8Array): DeviceInfo => {
  exactLength("vfio_device_info", bytes, DEVICE_INFO_BYTES)
  const view = viewOf(bytes)
  const flags = view.getUint32(4, true)
  return {
    isPci: (flags & DEVICE_PCI) !== 0,
    canReset: (flags & DEVICE_RESET) !== 0,
    regions: view.getUint32(8, true),
    irqs: view.getUint32(12, true)
  }
}

const REGION_INFO_BYTES = 32
const REGION_MMAP = 4
const REGION_CAPS = 8
const CAP_SPARSE_MMAP = 1
const SPARSE_AREA_BYTES = 16

/**
 * A piece of a region, in bytes from its beginning.
 *
 * @since 0.1.0
 * @category device
 */
export interface Area {
  readonly offset: number
  readonly length: number
}

/**
 * Holds where a region of a device lies in its descriptor.
 *
 * @since 0.1.0
 * @category device
 */
export interface RegionInfo {
  /** 0 where the device has no such region. */
  readonly size: number
  /** Where the region begins, for pread, pwrite and mmap. */
  readonly offset: number
  /** What of it may be mapped. */
  readonly mappable: ReadonlyArray<Area>
}

/**
 * Writes a `vfio_region_info` of `length` bytes to be filled: argsz u32 at 0, flags u32 at 4, index u32 at 8, offset of the
 * first capability u32 at 12, size u64 at 16, offset u64 at 24.
 *
 * @since 0.1.0
 * @category device
 */
export const encodeRegionInfo = (index: number, length: number = REGION_INFO_BYTES): Uint8Array => {
  const bytes = sized(length)
  viewOf(bytes).setUint32(8, unsigned("region index", index, MAX_U32), true)
  return bytes
}

/**
 * Reads a `vfio_region_info` that was filled. Without a list of areas (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`) a region that may
 * be mapped may be so as a whole.
 *
 * @since 0.1.0
 * @category device
 */
export const decodeRegionInfo = (bytes: Uint8Array): RegionInfo => {
  minimumLength("vfio_region_info", bytes, REGION_INFO_BYTES)
  const view = viewOf(bytes)
  const flags = view.getUint32(4, true)
  const size = getNumber64(view, 16, "region size")
  const offset = getNumber64(view, 24, "region offset")
  if ((flags & REGION_MMAP) === 0) return { size, offset, mappable: [] }
  const sparse = (flags & REGION_CAPS) === 0
    ? undefined
    : capabilities(bytes, view.getUint32(12, true)).find(({ id }) => id === CAP_SPARSE_MMAP)
  if (sparse === undefined) return { size, offset, mappable: [{ offset: 0, length: size }] }
  // Number of areas u32 at 8, then areas of 16 bytes from 16: offset u64, size u64.
  minimumLength("sparse mmap capability", sparse.bytes, 16)
  const areas = viewOf(sparse.bytes)
  const count = areas.getUint32(8, true)
  minimumLength(`${count} sparse mmap areas`, sparse.bytes, 16 + count * SPARSE_AREA_BYTES)
  const mappable = Array.from({ length: count }, (_, i) => ({
    offset: getNumber64(areas, 16 + i * SPARSE_AREA_BYTES, "area offset"),
    length: getNumber64(areas, 24 + i * SPARSE_AREA_BYTES, "area size")
  }))
  for (const area of mappable) {
    if (area.offset + area.length > size) {
      throw new WireError(
        `area of ${area.length} bytes at ${area.offset}: must lie within the region of ${size} bytes`
      )
    }
  }
  return { size, offset, mappable }
}

const IRQ_INFO_BYTES = 16
const IRQ_EVENTFD = 1

/**
 * Holds what can be had of one kind of interrupt.
 *
 * @since 0.1.0
 * @category device
 */
export interface IrqInfo {
  /** How many there are: 0 where the device has none of the kind, or none that an event counter can be told of. */
  readonly count: number
}

/**
 * Writes a `vfio_irq_info` to be filled: argsz u32 at 0, flags u32 at 4, index u32 at 8, count u32 at 12.
 *
 * @since 0.1.0
 * @category device
 */
export const encodeIrqInfo = (index: number): Uint8Array => {
  const bytes = sized(IRQ_INFO_BYTES)
  viewOf(bytes).setUint32(8, unsigned("interrupt index", index, MAX_U32), true)
  return bytes
}

/**
 * Reads a `vfio_irq_info` that was filled.
 *
 * @since 0.1.0
 * @category device
 */
export const decodeIrqInfo = (bytes: Uint8Array): IrqInfo => {
  exactLength("vfio_irq_info", bytes, IRQ_INFO_BYTES)
  const view = viewOf(bytes)
  return { count: (view.getUint32(4, true) & IRQ_EVENTFD) === 0 ? 0 : view.getUint32(12, true) }
}

const IRQ_SET_BYTES = 20
const DATA_NONE = 1
const DATA_EVENTFD = 4
const ACTION_UNMASK = 16
const ACTION_TRIGGER = 32

/** `vfio_irq_set`: argsz u32 at 0, flags u32 at 4, index u32 at 8, start u32 at 12, count u32 at 16, data from 20. */
const irqSet = (flags: number, index: number, count: number, data: ReadonlyArray<number>): Uint8Array => {
  const bytes = sized(IRQ_SET_BYTES + 4 * data.length)
  const view = viewOf(bytes)
  view.setUint32(4, flags, true)
  view.setUint32(8, unsigned("interrupt index", index, MAX_U32), true)
  view.setUint32(16, count, true)
  data.forEach((fd, i) => view.setInt32(IRQ_SET_BYTES + 4 * i, fd, true))
  return bytes
}

/**
 * Writes a `vfio_irq_set` that has interrupts signal event counters, the first interrupt the first of them.
 *
 * @since 0.1.0
 * @category interrupts
 */
export const encodeIrqEvents = (index: number, fds: ReadonlyArray<number>): Uint8Array =>
  irqSet(DATA_EVENTFD | ACTION_TRIGGER, index, fds.length, fds)

/**
 * Writes a `vfio_irq_set` that takes every interrupt of a kind back.
 *
 * @since 0.1.0
 * @category interrupts
 */
export const encodeIrqDisable = (index: number): Uint8Array => irqSet(DATA_NONE | ACTION_TRIGGER, index, 0, [])

/**
 * Writes a `vfio_irq_set` that lets an interrupt come again which the kernel masked when it came (INTx).
 *
 * @since 0.1.0
 * @category interrupts
 */
export const encodeIrqUnmask = (index: number): Uint8Array => irqSet(DATA_NONE | ACTION_UNMASK, index, 1, [])

/**
 * Holds a range of addresses, its end included.
 *
 * @since 0.1.0
 * @category iommu
 */
export interface IovaRange {
  readonly first: bigint
  readonly last: bigint
}

/**
 * Holds what a type 1 IOMMU can do.
 *
 * @since 0.1.0
 * @category iommu
 */
export interface IommuInfo {
  /** The unit of mappings in bytes: the smallest page (`iova_pgsizes`). */
  readonly pageSize: number
  /** Which addresses can be mapped; none where the kernel does not tell (before 5.4). */
  readonly ranges: ReadonlyArray<IovaRange>
  /** How many mappings can still be made; none where the kernel does not tell (before 5.10). */
  readonly available: number | undefined
}

/** The structure without capabilities: argsz u32 at 0, flags u32 at 4, page sizes u64 at 8. */
const IOMMU_INFO_BYTES = 16
/** With the offset of the first capability, u32 at 16, and 4 bytes unused. */
const IOMMU_INFO_CAPS_BYTES = 24
const IOMMU_PGSIZES = 1
const IOMMU_CAPS = 2
const CAP_IOVA_RANGE = 1
const CAP_DMA_AVAIL = 3
const IOVA_RANGE_BYTES = 16

/**
 * Writes a `vfio_iommu_type1_info` of `length` bytes to be filled.
 *
 * @since 0.1.0
 * @category iommu
 */
export const encodeIommuInfo = (length: number = IOMMU_INFO_CAPS_BYTES): Uint8Array => sized(length)

/**
 * Reads a `vfio_iommu_type1_info` that was filled, by a kernel of any age: one that tells no page sizes has pages of 4096
 * bytes for all that is known.
 *
 * @since 0.1.0
 * @category iommu
 */
export const decodeIommuInfo = (bytes: Uint8Array): IommuInfo => {
  minimumLength("vfio_iommu_type1_info", bytes, IOMMU_INFO_BYTES)
  const view = viewOf(bytes)
  const flags = view.getUint32(4, true)
  const sizes = (flags & IOMMU_PGSIZES) === 0 ? 0n : view.getBigUint64(8, true)
  const chain = (flags & IOMMU_CAPS) === 0 || bytes.length < IOMMU_INFO_CAPS_BYTES
    ? []
    : capabilities(bytes, view.getUint32(16, true))
  const ranges = chain.find(({ id }) => id === CAP_IOVA_RANGE)
  const available = chain.find(({ id }) => id === CAP_DMA_AVAIL)
  return {
    pageSize: smallestPage(sizes),
    ranges: ranges === undefined ? [] : iovaRanges(ranges.bytes),
    available: available === undefined ? undefined : dmaAvailable(available.bytes)
  }
}

const SMALLEST_PAGE = 4096

/**
 * Gives the lowest bit of a set of page sizes, or 4096 of an empty one; below a page of the host nothing can be mapped.
 *
 * @since 0.1.0
 * @category iommu
 */
export const smallestPage = (sizes: bigint): number => {
  if (sizes === 0n) return SMALLEST_PAGE
  const lowest = sizes & -sizes
  if (lowest > BigInt(2 ** 30)) throw new WireError(`IOMMU page sizes ${sizes}: the smallest must be at most 2^30`)
  return Math.max(SMALLEST_PAGE, Number(lowest))
}

/** Number of ranges u32 at 8, then ranges of 16 bytes from 16: first u64, last u64. */
const iovaRanges = (bytes: Uint8Array): ReadonlyArray<IovaRange> => {
  minimumLength("IOVA range capability", bytes, 16)
  const count = viewOf(bytes).getUint32(8, true)
  minimumLength(`${count} IOVA ranges`, bytes, 16 + count * IOVA_RANGE_BYTES)
  return decodeIovaRanges(bytes.subarray(16, 16 + count * IOVA_RANGE_BYTES))
}

const dmaAvailable = (bytes: Uint8Array): number => {
  minimumLength("DMA available capability", bytes, 12)
  return viewOf(bytes).getUint32(8, true)
}

/**
 * Reads ranges of addresses that follow each other, 16 bytes each, as VFIO and iommufd both tell them.
 *
 * @since 0.1.0
 * @category iommu
 */
export const decodeIovaRanges = (bytes: Uint8Array): ReadonlyArray<IovaRange> => {
  const view = viewOf(bytes)
  const ranges: Array<IovaRange> = []
  for (let at = 0; at + IOVA_RANGE_BYTES <= bytes.length; at += IOVA_RANGE_BYTES) {
    const first = view.getBigUint64(at, true)
    const last = view.getBigUint64(at + 8, true)
    if (first > last) throw new WireError(`IOVA range from ${first} to ${last}: must end where it begins or later`)
    ranges.push({ first, last })
  }
  return ranges
}

/**
 * Is the room for one range, in bytes.
 *
 * @since 0.1.0
 * @category iommu
 */
export const IOVA_RANGE_SIZE = IOVA_RANGE_BYTES

/**
 * Holds a mapping to be made.
 *
 * @since 0.1.0
 * @category iommu
 */
export interface DmaMapping {
  /** Where the memory lies in this process. */
  readonly userAddress: number | bigint
  /** Where the device is to see it. */
  readonly iova: number
  readonly length: number
}

const DMA_MAP_BYTES = 32
const DMA_UNMAP_BYTES = 24
const DMA_READ_WRITE = 3

/**
 * Writes a `vfio_iommu_type1_dma_map`, for reading and writing: argsz u32 at 0, flags u32 at 4, user address u64 at 8, IOVA
 * u64 at 16, size u64 at 24.
 *
 * @since 0.1.0
 * @category iommu
 */
export const encodeDmaMap = ({ iova, length, userAddress }: DmaMapping): Uint8Array => {
  const bytes = sized(DMA_MAP_BYTES)
  const view = viewOf(bytes)
  view.setUint32(4, DMA_READ_WRITE, true)
  view.setBigUint64(8, unsigned64("user address", BigInt(userAddress)), true)
  setNumber64(view, 16, "IOVA", iova)
  setNumber64(view, 24, "size", length)
  return bytes
}

/**
 * Writes a `vfio_iommu_type1_dma_unmap`: argsz u32 at 0, flags u32 at 4, IOVA u64 at 8, size u64 at 16.
 *
 * @since 0.1.0
 * @category iommu
 */
export const encodeDmaUnmap = (iova: number, length: number): Uint8Array => {
  const bytes = sized(DMA_UNMAP_BYTES)
  const view = viewOf(bytes)
  setNumber64(view, 8, "IOVA", iova)
  setNumber64(view, 16, "size", length)
  return bytes
}

const BIND_IOMMUFD_BYTES = 16
const ATTACH_PT_BYTES = 12

/**
 * Writes a `vfio_device_bind_iommufd`: argsz u32 at 0, flags u32 at 4, iommufd s32 at 8, device's id u32 at 12, filled.
 *
 * @since 0.1.0
 * @category device
 */
export const encodeBindIommufd = (iommufd: number): Uint8Array => {
  const bytes = sized(BIND_IOMMUFD_BYTES)
  viewOf(bytes).setInt32(8, iommufd, true)
  return bytes
}

/**
 * Writes a `vfio_device_attach_iommufd_pt`: argsz u32 at 0, flags u32 at 4, id of the address space u32 at 8.
 *
 * @since 0.1.0
 * @category device
 */
export const encodeAttach = (ioas: number): Uint8Array => {
  const bytes = sized(ATTACH_PT_BYTES)
  viewOf(bytes).setUint32(8, unsigned("address space id", ioas, MAX_U32), true)
  return bytes
}

/**
 * Is the most that a structure with its capabilities is let grow to, in bytes: 4000 ranges.
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_INFO_BYTES = 65536

/**
 * Tells how many bytes the kernel needs for a structure that it filled (`argsz`), at least those that it was given and at
 * most {@link MAX_INFO_BYTES}.
 *
 * @since 0.1.0
 * @category sizes
 */
export const neededBytes = (bytes: Uint8Array): number => {
  minimumLength("structure", bytes, 4)
  return Math.max(bytes.length, unsigned("argsz", viewOf(bytes).getUint32(0, true), MAX_INFO_BYTES))
}

/**
 * Makes a structure of zeroes whose first field, u32, is its length.
 *
 * @since 0.1.0
 * @category sizes
 */
export const sized = (length: number): Uint8Array => {
  const bytes = new Uint8Array(length)
  viewOf(bytes).setUint32(0, length, true)
  return bytes
}

const CAP_HEADER_BYTES = 8

interface Capability {
  readonly id: number
  /** From its header to the end of the structure: a capability does not tell its length. */
  readonly bytes: Uint8Array
}

/** Walks a chain (`vfio_info_cap_header`): id u16 at 0, version u16 at 2, offset of the next u32 at 4, which is 0 at its end. */
const capabilities = (bytes: Uint8Array, first: number): ReadonlyArray<Capability> => {
  const found: Array<Capability> = []
  const view = viewOf(bytes)
  for (let at = first; at !== 0; at = view.getUint32(at + 4, true)) {
    if (at + CAP_HEADER_BYTES > bytes.length) {
      throw new WireError(`capability at ${at}: must lie within the structure of ${bytes.length} bytes`)
    }
    if (found.length * CAP_HEADER_BYTES >= bytes.length) throw new WireError("the chain of capabilities has a loop")
    found.push({ id: view.getUint16(at, true), bytes: bytes.subarray(at) })
  }
  return found
}
