/**
 * The interface of iommufd, as numbers and bytes (Linux, `include/uapi/linux/iommufd.h`), without descriptors and system calls.
 *
 * It follows VFIO's conventions ({@link request}, {@link sized}) and gives ranges of addresses in VFIO's form.
 *
 * @since 0.1.0
 */
import { exactLength, MAX_U32, setNumber64, unsigned, unsigned64, viewOf } from "./Bounds.ts"
import { type DmaMapping, request, sized, smallestPage } from "./VfioIoctl.ts"

/** `IOMMUFD_CMD_BASE`, in VFIO's type. */
const IOMMUFD_BASE = 0x80

/**
 * Numbers the requests to `/dev/iommu`.
 *
 * @since 0.1.0
 * @category requests
 */
export const IommufdRequest = {
  IOAS_ALLOC: request(IOMMUFD_BASE + 1),
  IOAS_IOVA_RANGES: request(IOMMUFD_BASE + 4),
  IOAS_MAP: request(IOMMUFD_BASE + 5),
  IOAS_UNMAP: request(IOMMUFD_BASE + 6)
} as const

const IOAS_ALLOC_BYTES = 12
const IOAS_IOVA_RANGES_BYTES = 32
const IOAS_MAP_BYTES = 40
const IOAS_UNMAP_BYTES = 24
const IOAS_MAP_FIXED = 1
const IOAS_MAP_WRITEABLE = 2
const IOAS_MAP_READABLE = 4

/**
 * Writes an `iommu_ioas_alloc` to be filled: size u32 at 0, flags u32 at 4, id u32 at 8.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const encodeIoasAlloc = (): Uint8Array => sized(IOAS_ALLOC_BYTES)

/**
 * Reads the id of an address space that was made.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const decodeIoasAlloc = (bytes: Uint8Array): number => {
  exactLength("iommu_ioas_alloc", bytes, IOAS_ALLOC_BYTES)
  return viewOf(bytes).getUint32(8, true)
}

/**
 * Writes an `iommu_ioas_iova_ranges` to be filled, with room for `count` ranges at `address`: size u32 at 0, id u32 at 4,
 * count u32 at 8, address u64 at 16, alignment u64 at 24.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const encodeIoasRanges = (ioas: number, address: number | bigint, count: number): Uint8Array => {
  const bytes = sized(IOAS_IOVA_RANGES_BYTES)
  const view = viewOf(bytes)
  view.setUint32(4, unsigned("address space id", ioas, MAX_U32), true)
  view.setUint32(8, unsigned("count of ranges", count, MAX_U32), true)
  view.setBigUint64(16, unsigned64("address of the ranges", BigInt(address)), true)
  return bytes
}

/**
 * Reads how many ranges there are, whether or not there was room for them, and the unit of mappings.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const decodeIoasRanges = (bytes: Uint8Array): { readonly count: number; readonly pageSize: number } => {
  exactLength("iommu_ioas_iova_ranges", bytes, IOAS_IOVA_RANGES_BYTES)
  const view = viewOf(bytes)
  const alignment = view.getBigUint64(24, true)
  return {
    count: view.getUint32(8, true),
    pageSize: smallestPage(alignment)
  }
}

/**
 * Writes an `iommu_ioas_map` at a fixed IOVA, for reading and writing: size u32 at 0, flags u32 at 4, id u32 at 8, user
 * address u64 at 16, length u64 at 24, IOVA u64 at 32.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const encodeIoasMap = (ioas: number, { iova, length, userAddress }: DmaMapping): Uint8Array => {
  const bytes = sized(IOAS_MAP_BYTES)
  const view = viewOf(bytes)
  view.setUint32(4, IOAS_MAP_FIXED | IOAS_MAP_WRITEABLE | IOAS_MAP_READABLE, true)
  view.setUint32(8, unsigned("address space id", ioas, MAX_U32), true)
  view.setBigUint64(16, unsigned64("user address", BigInt(userAddress)), true)
  setNumber64(view, 24, "length", length)
  setNumber64(view, 32, "IOVA", iova)
  return bytes
}

/**
 * Writes an `iommu_ioas_unmap`: size u32 at 0, id u32 at 4, IOVA u64 at 8, length u64 at 16.
 *
 * @since 0.1.0
 * @category iommufd
 */
export const encodeIoasUnmap = (ioas: number, iova: number, length: number): Uint8Array => {
  const bytes = sized(IOAS_UNMAP_BYTES)
  const view = viewOf(bytes)
  view.setUint32(4, unsigned("address space id", ioas, MAX_U32), true)
  setNumber64(view, 8, "IOVA", iova)
  setNumber64(view, 16, "length", length)
  return bytes
}
