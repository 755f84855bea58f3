/**
 * A device by its own character device, `/dev/vfio/devices/vfioX`, with an address space of `/dev/iommu` (iommufd, Linux 6.6).
 *
 * One device is opened and not its group, and each connection has an address space of its own. Distributions do not all build
 * it (Debian 13 does not): so far it is proven against a simulated kernel only.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import * as MemoryRegion from "../Memory/MemoryRegion.ts"
import { Kernel } from "../Native/Kernel.ts"
import * as Iommufd from "../Wire/IommufdIoctl.ts"
import * as Vfio from "../Wire/VfioIoctl.ts"
import { acquire, call, callPooled, decoded, OPEN_TAGS, OPERATION } from "./VfioCall.ts"
import type { PciFunction } from "./VfioFunction.ts"
import {
  type Attached,
  type AttachError,
  DEFAULT_MAX_MAPPINGS,
  DEFAULT_RANGES,
  UNSAFE_INTERRUPTS,
  whyNotMapped
} from "./VfioIommu.ts"

const { IommufdRequest } = Iommufd
const { VfioRequest } = Vfio

const IOMMUFD = "/dev/iommu"

/** The descriptors of a device that can be reached this way. */
export interface Opened {
  readonly device: number
  readonly iommufd: number
}

/** Opens both files; undefined where one is not there or not for us, so that the device is reached by its group. */
export const open = (pci: PciFunction): Effect.Effect<Opened | undefined, never, Scope.Scope> => {
  const { cdev } = pci
  if (cdev === undefined) return Effect.undefined
  const openFile = (path: string) =>
    acquire((kernel) => kernel.open(path), { detail: "the device cannot be opened", path, tags: OPEN_TAGS })
  return Effect.gen(function*() {
    const iommufd = yield* openFile(IOMMUFD)
    return { iommufd, device: yield* openFile(`/dev/vfio/devices/${cdev}`) }
  }).pipe(Effect.orElseSucceed(() => undefined))
}

/** What is asked for first; there is seldom more than a handful. */
const RANGES_AT_FIRST = 64

/** Attaches a device to an address space of its own. */
export const attach = Effect.fnUntraced(
  function*({ device, iommufd }: Opened, pci: PciFunction): Effect.fn.Return<Attached, AttachError> {
    const kernel = yield* Kernel
    const meaning = (detail: string) => ({
      path: pci.path,
      tags: ["EPERM", "EBUSY", "ENODEV"] as const,
      detail: (errno: number) =>
        errno === Errno.EPERM.errno ?
          UNSAFE_INTERRUPTS
          : errno === Errno.EBUSY.errno
          ? "another process has the device, or its IOMMU group"
          : detail
    })
    const tell = (fd: number, request: number, argument: Uint8Array, detail: string) =>
      call(() => kernel.ioctl(fd, request, argument), meaning(detail))
    // The kernel resets the device before it gives it, which may take a second.
    yield* callPooled(
      kernel,
      device,
      VfioRequest.DEVICE_BIND_IOMMUFD,
      Vfio.encodeBindIommufd(iommufd),
      meaning("the device cannot be bound to the IOMMU")
    )
    const space = Iommufd.encodeIoasAlloc()
    yield* tell(iommufd, IommufdRequest.IOAS_ALLOC, space, "the IOMMU has no address space left")
    const ioas = yield* decoded(() => Iommufd.decodeIoasAlloc(space))
    yield* tell(
      device,
      VfioRequest.DEVICE_ATTACH_IOMMUFD_PT,
      Vfio.encodeAttach(ioas),
      "the device cannot be attached to its address space"
    )
    const { pageSize, ranges } = yield* Effect.scoped(readRanges(iommufd, ioas))
    return {
      device,
      iommu: {
        ranges: ranges.length === 0 ? DEFAULT_RANGES : ranges,
        pageSize,
        // iommufd counts memory and not mappings.
        maxMappings: DEFAULT_MAX_MAPPINGS,
        map: (mapping) =>
          Effect.asVoid(callPooled(kernel, iommufd, IommufdRequest.IOAS_MAP, Iommufd.encodeIoasMap(ioas, mapping), {
            operation: "map region",
            detail: whyNotMapped(mapping.length),
            tags: ["ENOMEM", "ENOSPC"]
          })),
        unmap: (iova, length) =>
          Effect.asVoid(
            callPooled(kernel, iommufd, IommufdRequest.IOAS_UNMAP, Iommufd.encodeIoasUnmap(ioas, iova, length), {
              detail: `${length} bytes at ${iova} stay mapped`,
              tags: []
            })
          )
      }
    }
  }
)

/** Has the ranges written into memory of our own, since their address is part of the question; asks again for more of them. */
const readRanges = Effect.fnUntraced(function*(iommufd: number, ioas: number) {
  const kernel = yield* Kernel
  let room = RANGES_AT_FIRST
  for (let attempt = 0; attempt < 2; attempt++) {
    const memory = yield* MemoryRegion.allocate(room * Vfio.IOVA_RANGE_SIZE).pipe(
      Effect.mapError((cause) =>
        new Errno.EIO({ operation: OPERATION, detail: "no memory for the IOVA ranges", cause })
      )
    )
    const argument = Iommufd.encodeIoasRanges(ioas, memory.address, room)
    const refused = yield* call(() => kernel.ioctl(iommufd, IommufdRequest.IOAS_IOVA_RANGES, argument), {
      detail: "the IOMMU does not tell which addresses it has",
      path: IOMMUFD,
      tags: []
    }).pipe(Effect.as(undefined), Effect.catch(Effect.succeed))
    const { count, pageSize } = yield* decoded(() => Iommufd.decodeIoasRanges(argument))
    // Too little room is the one refusal that tells how much there should be.
    if (refused !== undefined && count <= room) return yield* refused
    const isAnswered = refused === undefined
    if (isAnswered) {
      const bytes = memory.bytes.slice(0, Math.min(count, room) * Vfio.IOVA_RANGE_SIZE)
      return { pageSize, ranges: yield* decoded(() => Vfio.decodeIovaRanges(bytes)) }
    }
    room = Math.min(count, Vfio.MAX_INFO_BYTES / Vfio.IOVA_RANGE_SIZE)
  }
  return yield* new Errno.EIO({ operation: OPERATION, detail: "the IOMMU's addresses change while they are asked for" })
})
