/**
 * The devices that a guest's program drives, for both sides: the host makes them so, the guest expects them so.
 *
 * All have the suite's image behind them. A request of QEMU's disks has as many segments as their rings have descriptors,
 * less header and status.
 */
import type { Effect } from "effect"
import { type Errno, VfioPci, VhostVdpa } from "../../src/index.ts"
import { CAPACITY, type Check, type Extent, type Facts, type Recipe } from "../devices/Target.ts"
import { checksFor } from "../devices/suite.ts"
import { functionsOf, type PciDisk, QUEUES } from "./hardware.ts"
import * as VdpaChecks from "./vdpaChecks.ts"
import * as VfioChecks from "./vfioChecks.ts"

/** A device under test in a guest. */
export interface GuestTarget {
  readonly name: string
  /** Where the guest's program finds it. */
  readonly recipe: Effect.Effect<Recipe, Errno.Any>
  readonly facts: Facts
  /** The host's image behind it: a PCI function's name, or `vdpa`. */
  readonly image: string
  readonly checks: ReadonlyArray<Check>
}

/** A guest: the disks on its PCI bus, whether it serves one to itself, and what runs in it. */
export interface GuestPlan {
  readonly functions: { readonly [name: string]: PciDisk }
  readonly hasVdpa: boolean
  readonly targets: ReadonlyArray<GuestTarget>
}

const vfioFacts: Facts = {
  properties: {
    driver: "virtio-blk-vfio-pci",
    capacity: CAPACITY,
    maxQueues: QUEUES,
    maxQueueSize: 256,
    requestAlignment: 512,
    maxSegments: 254,
    deviceReadOnly: false,
    flushNeeded: true,
    needsMemRegions: true,
    needsMemRegionFd: false,
    mayPinMemRegions: true,
    memRegionAlignment: 4096
  },
  offers: { discard: true, writeZeroes: true },
  secondOpener: "EBUSY",
  largestRing: 256
}

/** Where in its guest a function is. */
const addressOf = (functions: GuestPlan["functions"], name: string): string =>
  functionsOf(Object.values(functions))[Object.keys(functions).indexOf(name)] ?? ""

const vfio = (
  name: string,
  functions: GuestPlan["functions"],
  image: string,
  extent: Extent,
  checks: ReadonlyArray<Check>
): GuestTarget => ({
  name,
  recipe: VfioPci.make({ path: addressOf(functions, image) }),
  facts: vfioFacts,
  image,
  checks: [...checksFor(vfioFacts, extent), ...checks]
})

/** The disk that the guest serves to itself. */
const vdpaFacts: Facts = {
  ...vfioFacts,
  properties: { ...vfioFacts.properties, driver: "virtio-blk-vhost-vdpa" }
}

/** A disk as a virtual machine usually has it. */
const usual = { usual: { placement: "port" } } as const

/** Disks that differ from the usual one in one respect each. */
const unusual = {
  packed: { placement: "port", properties: "packed=on" },
  intx: { placement: "port", properties: "vectors=0" },
  unresettable: { placement: "root" }
} as const

/** The guests, which run beside each other: the first waits for resets more than it works. */
export const guests: ReadonlyArray<GuestPlan> = [
  {
    functions: usual,
    hasVdpa: false,
    targets: [
      vfio("VFIO", usual, "usual", "everything", [
        VfioChecks.hasReset(true),
        VfioChecks.negotiates(false),
        VfioChecks.interruptsBy("vfio-msix"),
        VfioChecks.isIsolated,
        VfioChecks.outlivesItsOwner,
        VfioChecks.takenAway
      ])
    ]
  },
  {
    functions: unusual,
    hasVdpa: true,
    targets: [
      {
        name: "vhost-vdpa on VDUSE",
        recipe: VhostVdpa.make({ path: "/dev/vhost-vdpa-0" }),
        facts: vdpaFacts,
        image: "vdpa",
        checks: [...checksFor(vdpaFacts), ...VdpaChecks.checks]
      },
      vfio("VFIO, packed ring", unusual, "packed", "essential", [VfioChecks.negotiates(true)]),
      vfio("VFIO, one interrupt line for all", unusual, "intx", "essential", [VfioChecks.interruptsBy("vfio-intx")]),
      vfio("VFIO, a device without reset", unusual, "unresettable", "essential", [
        VfioChecks.hasReset(false),
        VfioChecks.outlivesItsOwner
      ])
    ]
  }
]

/** Everything that is run in guests. */
export const targets: ReadonlyArray<GuestTarget> = guests.flatMap(({ targets }) => targets)
