/**
 * A device by its IOMMU group, in a container of its own: `/dev/vfio/N` and `/dev/vfio/vfio`, with an IOMMU of type 1,
 * version 2.
 *
 * A group is what the IOMMU cannot tell apart: every device of it must be bound to VFIO (or to nothing), and one process has
 * all of it. The container exists before the group joins it, and the group before its device, so that they are closed in the
 * order device, group, container; the last close takes all mappings back.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import { Kernel } from "../Native/Kernel.ts"
import * as Vfio from "../Wire/VfioIoctl.ts"
import { acquire, call, callPooled, close, CONNECT, decoded, OPEN_TAGS, OPERATION } from "./VfioCall.ts"
import type { PciFunction } from "./VfioFunction.ts"
import {
  type Attached,
  type AttachError,
  DEFAULT_MAX_MAPPINGS,
  DEFAULT_RANGES,
  UNSAFE_INTERRUPTS,
  whyNotMapped
} from "./VfioIommu.ts"

const { VfioRequest } = Vfio

const CONTAINER = "/dev/vfio/vfio"

/** Opens the group of a function, and the function in it. */
export const attach = Effect.fnUntraced(
  function*(pci: PciFunction): Effect.fn.Return<Attached, AttachError, Scope.Scope> {
    const kernel = yield* Kernel
    const container = yield* acquire((kernel) => kernel.open(CONTAINER), {
      detail: "the container of VFIO cannot be opened; is the module loaded (modprobe vfio_iommu_type1), and may you?",
      path: CONTAINER,
      tags: OPEN_TAGS
    })
    const unsupported = (detail: string) => new Errno.ENOTSUP({ operation: OPERATION, path: CONTAINER, detail })
    const ask = (request: number, argument: number) =>
      call(() => kernel.ioctl(container, request, argument), {
        detail: "the container does not answer",
        path: CONTAINER,
        tags: []
      })
    const version = yield* ask(VfioRequest.GET_API_VERSION, 0)
    if (version !== Vfio.API_VERSION) {
      return yield* unsupported(`VFIO has version ${version}: must be ${Vfio.API_VERSION}`)
    }
    if ((yield* ask(VfioRequest.CHECK_EXTENSION, Vfio.TYPE1V2_IOMMU)) !== 1) {
      return yield* unsupported(
        "the kernel has no IOMMU of type 1, version 2; is its module loaded (vfio_iommu_type1)?"
      )
    }

    const groupPath = `/dev/vfio/${pci.group}`
    const group = yield* acquire((kernel) => kernel.open(groupPath), {
      detail: (errno) => whyNotOpened[errno] ?? "the IOMMU group cannot be opened",
      path: groupPath,
      tags: OPEN_TAGS
    })
    const status = Vfio.encodeGroupStatus()
    const described = { path: groupPath, tags: ["EPERM", "EBUSY", "ENODEV"] } as const
    yield* call(() => kernel.ioctl(group, VfioRequest.GROUP_GET_STATUS, status), {
      ...described,
      detail: "the IOMMU group does not tell its status"
    })
    if (!(yield* decoded(() => Vfio.decodeGroupViable(status)))) {
      const detail =
        "another device of the IOMMU group is in use by its usual driver: all of them must be bound to vfio-pci "
        + `(ls ${pci.path}/iommu_group/devices)`
      return yield* new Errno.EBUSY({ operation: CONNECT, path: groupPath, detail })
    }
    const membership = new Uint8Array(new Int32Array([container]).buffer)
    yield* call(() => kernel.ioctl(group, VfioRequest.GROUP_SET_CONTAINER, membership), {
      ...described,
      detail: "the IOMMU group does not join the container"
    })
    // From here on the container has a group; before, it takes neither an IOMMU nor a mapping.
    yield* call(() => kernel.ioctl(container, VfioRequest.SET_IOMMU, Vfio.TYPE1V2_IOMMU), {
      path: groupPath,
      tags: ["EPERM", "EBUSY", "ENODEV"],
      detail: (errno) => errno === Errno.EPERM.errno ? UNSAFE_INTERRUPTS : "the IOMMU cannot be had"
    })
    const info = yield* readInfo(container)

    const name = new TextEncoder().encode(`${pci.name}\0`)
    // The kernel resets the device before it gives it, which may take a second.
    const device = yield* Effect.acquireRelease(
      callPooled(kernel, group, VfioRequest.GROUP_GET_DEVICE_FD, name, {
        path: pci.path,
        tags: ["ENODEV", "EPERM", "EBUSY", "EMFILE", "ENFILE"],
        detail: "VFIO does not give the device; is it still bound to vfio-pci?"
      }),
      (fd) => close(kernel, fd)
    )
    return {
      device,
      iommu: {
        ranges: info.ranges.length === 0 ? DEFAULT_RANGES : info.ranges,
        pageSize: info.pageSize,
        maxMappings: info.available ?? DEFAULT_MAX_MAPPINGS,
        map: (mapping) =>
          Effect.asVoid(callPooled(kernel, container, VfioRequest.IOMMU_MAP_DMA, Vfio.encodeDmaMap(mapping), {
            operation: "map region",
            detail: whyNotMapped(mapping.length),
            tags: ["ENOMEM", "ENOSPC"]
          })),
        unmap: (iova, length) =>
          Effect.asVoid(callPooled(kernel, container, VfioRequest.IOMMU_UNMAP_DMA, Vfio.encodeDmaUnmap(iova, length), {
            detail: `${length} bytes at ${iova} stay mapped`,
            tags: []
          }))
      }
    }
  }
)

const whyNotOpened: Record<number, string> = {
  [Errno.ENOENT.errno]:
    "the IOMMU group has no device file; is the device bound to vfio-pci, and is this the host's /dev?",
  [Errno.EACCES.errno]: "you may not use the IOMMU group; have its device file given to you (chown)",
  [Errno.EPERM.errno]:
    "you may not use the IOMMU group; without an IOMMU this takes CAP_SYS_RAWIO and is not supported",
  [Errno.EBUSY.errno]: "another process has the IOMMU group"
}

/** Asks twice where the kernel has more to tell than fits the first time. */
const readInfo = Effect.fnUntraced(function*(container: number) {
  const kernel = yield* Kernel
  const ask = (bytes: Uint8Array) =>
    Effect.as(
      call(() => kernel.ioctl(container, VfioRequest.IOMMU_GET_INFO, bytes), {
        detail: "the IOMMU does not tell what it can do",
        path: CONTAINER,
        tags: []
      }),
      bytes
    )
  const first = yield* ask(Vfio.encodeIommuInfo())
  const needed = yield* decoded(() => Vfio.neededBytes(first))
  const bytes = needed === first.length ? first : yield* ask(Vfio.encodeIommuInfo(needed))
  return yield* decoded(() => Vfio.decodeIommuInfo(bytes))
})
