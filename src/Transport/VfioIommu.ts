/**
 * The IOMMU before a device, whichever interface it is reached by: which addresses it has, and memory that it lets the device
 * access at them.
 *
 * Mapping pins the memory, which takes time and counts against a limit; it goes on the thread pool. An IOMMU ends with the
 * Scope that it was opened in, and then nothing is mapped any more.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Errno from "../Errno.ts"
import { lockedMemory } from "../Native/ProcessMemory.ts"
import type { DmaMapping, IovaRange } from "../Wire/VfioIoctl.ts"
import type { FindError } from "./VfioFunction.ts"

/** An IOMMU. */
export interface Iommu {
  /** Which addresses can be mapped. */
  readonly ranges: ReadonlyArray<IovaRange>
  /** What addresses and lengths must be a multiple of, in bytes; at least 4096. */
  readonly pageSize: number
  /** How many mappings can be made. */
  readonly maxMappings: number
  readonly map: (mapping: DmaMapping) => Effect.Effect<void, Errno.ENOMEM | Errno.ENOSPC | Errno.EIO>
  /** Takes a mapping back, as it was made. */
  readonly unmap: (iova: number, length: number) => Effect.Effect<void, Errno.EIO>
}

/** A device, and the IOMMU before it. */
export interface Attached {
  /** The device's descriptor, closed with the Scope. */
  readonly device: number
  readonly iommu: Iommu
}

/** What attaching a device may fail with. */
export type AttachError =
  | FindError
  | Errno.EPERM
  | Errno.EBUSY
  | Errno.EMFILE
  | Errno.ENFILE
  | Errno.ENOTSUP
  | Errno.EPROTO

/** How many mappings there may be where the kernel does not tell: VFIO's default (module parameter `dma_entry_limit`). */
export const DEFAULT_MAX_MAPPINGS = 65535

/**
 * Which addresses are used where the kernel does not tell: from 4 GiB, above the windows for interrupt messages of x86 and
 * arm64, up to the 39 bits that every IOMMU in use has.
 */
export const DEFAULT_RANGES: ReadonlyArray<IovaRange> = [{ first: 2n ** 32n, last: 2n ** 39n - 1n }]

const ENOMEM = 12
const ENOSPC = 28

/** Says why memory could not be mapped. */
export const whyNotMapped = (length: number) => (errno: number): string => {
  if (errno === ENOSPC) return `there is no room for another mapping of ${length} bytes`
  if (errno !== ENOMEM) return `the system refused to map ${length} bytes for the device`
  const { limit } = lockedMemory()
  return `${length} bytes could not be pinned: memory that a device accesses counts against the limit on locked memory, `
    + `which is ${
      limit === Infinity ? "unlimited" : `${limit} bytes`
    } for this process; raise it (ulimit -l, LimitMEMLOCK, CAP_IPC_LOCK), or map less`
}

/** Says why the IOMMU could not be had, where the answer is EPERM. */
export const UNSAFE_INTERRUPTS =
  "the platform cannot keep the device's interrupts apart (no interrupt remapping); where that "
  + "is acceptable: echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts (or iommufd's, for iommufd)"
