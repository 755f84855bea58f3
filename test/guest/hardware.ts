/** Where the disks of a guest are on its PCI bus, for the host that puts them there and the guest that looks there. */

/** A virtio disk on the guest's PCI bus. */
export interface PciDisk {
  /** Behind a port of its own, with which it can be reset, or right on the root. */
  readonly placement: "port" | "root"
  /** Properties of QEMU's virtio-blk-pci. */
  readonly properties?: string
}

/** The queues of every disk. */
export const QUEUES = 4

/** The first slots are left to what every guest has; a port's bus is numbered by the port's slot. */
export const FIRST_SLOT = 0x10

/** The PCI functions of disks, in their order: a disk behind a port is alone on the port's bus. */
export const functionsOf = (disks: ReadonlyArray<Pick<PciDisk, "placement">>): ReadonlyArray<string> => {
  let bus = 0
  return disks.map(({ placement }, i) => {
    if (placement === "port") return `0000:${(++bus).toString(16).padStart(2, "0")}:00.0`
    return `0000:00:${(FIRST_SLOT + i).toString(16)}.0`
  })
}
