/**
 * A PCI function as sysfs tells of it: whether it is a virtio block device, whether VFIO has it, and by which devices of the
 * kernel it is reached.
 *
 * All of this is read before anything is opened, so that a mistake (another function, one that is still bound to its usual
 * driver, a machine without an IOMMU) is told in the words of its remedy. Nothing is bound or unbound here: that takes root,
 * and takes the device from whoever uses it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs"
import * as Path from "node:path"
import * as Errno from "../Errno.ts"
import { DeviceId, VIRTIO_VENDOR } from "../Wire/PciCapability.ts"
import { CONNECT } from "./VfioCall.ts"

/** A function that VFIO has. */
export interface PciFunction {
  /** Its directory in sysfs. */
  readonly path: string
  /** Domain, bus, device and function: `0000:01:00.0`. */
  readonly name: string
  /** The number of its IOMMU group. */
  readonly group: string
  /** The name of its own character device, where the kernel makes one (Linux 6.6, `CONFIG_VFIO_DEVICE_CDEV`). */
  readonly cdev: string | undefined
}

/** What finding a function may fail with. */
export type FindError =
  | Errno.ENOENT
  | Errno.ENOTDIR
  | Errno.ELOOP
  | Errno.ENAMETOOLONG
  | Errno.EACCES
  | Errno.ENODEV
  | Errno.EIO

const BDF = /^[\da-f]{4,8}:[\da-f]{2}:[\da-f]{2}\.[0-7]$/iu

/** The directory that an option `path` stands for: itself, or where sysfs keeps the function of that address. */
export const directoryOf = (path: string): string =>
  BDF.test(path) ? `/sys/bus/pci/devices/${path.toLowerCase()}` : path

/** Looks a function up. ENODEV says what is wrong with it, and what to do. */
export const find = (directory: string): Effect.Effect<PciFunction, FindError> =>
  Effect.try({
    try: () => {
      // A function has more than one path in sysfs; VFIO knows it by the last part of the real one.
      const path = realpathSync(directory)
      const name = Path.basename(path)
      checkIdentity(path)
      checkDriver(path, name)
      const group = optional(() => Path.basename(readlinkSync(Path.join(path, "iommu_group"))))
      if (group === undefined) {
        const detail = "the device is behind no IOMMU; is it enabled in the firmware and the kernel (intel_iommu=on)?"
        throw new Errno.ENODEV({ operation: CONNECT, path, detail })
      }
      const cdev = optional(() => readdirSync(Path.join(path, "vfio-dev")))?.find((entry) => entry.startsWith("vfio"))
      return { path, name, group, cdev }
    },
    catch: (error) => {
      if (error instanceof Errno.ENODEV) return error
      return Errno.fromNumber(Errno.numberOf(error), ["ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EACCES"], {
        operation: CONNECT,
        path: directory,
        detail: "there is no such PCI device",
        cause: error
      })
    }
  })

const ENOENT = 2

/** What is read, where it is there. */
const optional = <A>(read: () => A): A | undefined => {
  try {
    return read()
  } catch (error) {
    if (Errno.numberOf(error) === ENOENT) return undefined
    throw error
  }
}

const checkIdentity = (path: string): void => {
  const read = (file: string) => Number(optional(() => readFileSync(Path.join(path, file), "utf8").trim()) ?? NaN)
  const vendor = read("vendor")
  const device = read("device")
  if (Number.isNaN(vendor) || Number.isNaN(device)) {
    throw new Errno.ENODEV({ operation: CONNECT, path, detail: "this is no directory of a PCI device" })
  }
  const id = `${hex(vendor)}:${hex(device)}`
  if (vendor !== VIRTIO_VENDOR || device < DeviceId.FIRST || device > DeviceId.LAST) {
    throw new Errno.ENODEV({ operation: CONNECT, path, detail: `${id} is no virtio device` })
  }
  if (device !== DeviceId.BLOCK && device !== DeviceId.TRANSITIONAL_BLOCK) {
    throw new Errno.ENODEV({ operation: CONNECT, path, detail: `${id} is a virtio device, but no block device` })
  }
}

const hex = (id: number): string => id.toString(16).padStart(4, "0")

/** Drivers for one kind of device that offer VFIO for it have it in their names, as vfio-pci has. */
const checkDriver = (path: string, name: string): void => {
  const driver = optional(() => Path.basename(readlinkSync(Path.join(path, "driver"))))
  if (driver?.includes("vfio") === true) return
  const is = driver === undefined ? "bound to no driver" : `bound to ${driver}`
  const unbind = driver === undefined ? "" : `echo ${name} > ${path}/driver/unbind; `
  throw new Errno.ENODEV({
    operation: CONNECT,
    path,
    detail: `the device is ${is}; bind it to vfio-pci (as root: modprobe vfio-pci; `
      + `echo vfio-pci > ${path}/driver_override; ${unbind}echo ${name} > /sys/bus/pci/drivers_probe)`
  })
}
