/**
 * A kernel with one virtio block device on PCI behind an IOMMU, for the VFIO transport to be tried on: it takes the place of
 * `src/Native/Kernel.ts`, and has a folder that looks like the device's in sysfs.
 *
 * It keeps the rules of Linux's VFIO: nothing is mapped before the container has a group, mappings are whole pages that do not
 * overlap and are taken back as they were made, a level interrupt is masked when it comes. The device behind it keeps
 * virtio's (1.2 §4.1): one access of exactly a field's width, features before queues. What a driver must not do though nothing
 * stops it is noted in {@link SimulatedVfio.violations}: DMA by a device that is no bus master, mappings that go while the
 * device runs. Memory is the driver's own, found by its address. Event counters that it is handed are duplicated, as the
 * kernel keeps what is behind them. Any call can be made to fail ({@link SimulatedVfio.faults}).
 */
import koffi from "koffi"
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { constants, tmpdir } from "node:os"
import * as Path from "node:path"
import type { KernelCalls } from "../../src/Native/Kernel.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { SyscallError } from "../../src/Native/SyscallError.ts"
import { IommufdRequest } from "../../src/Wire/IommufdIoctl.ts"
import { CommonField } from "../../src/Wire/PciCapability.ts"
import { IrqIndex, VfioRequest } from "../../src/Wire/VfioIoctl.ts"
import { CONFIG_WIDTHS, encodeConfig, FeatureBit, featureMask, hasFeature } from "../../src/Wire/VirtioBlk.ts"
import { FakeDevice } from "../../src/testing/FakeDevice.ts"
import { FakeDisk } from "../../src/testing/FakeDisk.ts"
import { usualFeatures } from "../../src/testing/FakeTransport.ts"
import { config } from "../Properties/facts.ts"

const { EBADF, EEXIST, EINVAL, EIO, EMSGSIZE, ENODEV, ENOENT, ENOTTY } = constants.errno

/** The ways in which devices and kernels differ. */
export interface Options {
  readonly vendor?: string
  readonly device?: string
  /** The driver it is bound to; null for none. */
  readonly driver?: string | null
  /** Its IOMMU group; null where there is no IOMMU. */
  readonly group?: string | null
  /** Whether the kernel makes a device file for it, and has `/dev/iommu`. */
  readonly cdev?: boolean
  readonly features?: bigint
  readonly queues?: number
  readonly queueSize?: number
  /** Vectors of MSI-X, and how many of them the kernel can give. */
  readonly msix?: number
  readonly msixGiven?: number
  readonly intx?: number
  readonly canReset?: boolean
  /** Whether the doorbells may be mapped: all of the BAR, an area of it, an area beside them, or none. */
  readonly mappable?: "all" | "doorbells" | "others" | "none"
  readonly capabilities?: "all" | "none" | "loop" | "no isr"
  /** What the kernel tells of its IOMMU. */
  readonly iommu?: "all" | "no ranges" | "no capabilities"
  readonly available?: number
  readonly configBytes?: number
  readonly notifyLength?: number
  readonly pciBar?: number
}

const BAR = 4
const BAR_BYTES = 0x4000
const AT = { common: 0, isr: 0x1000, device: 0x2000, notify: 0x3000 }
const REGION_UNIT = 2 ** 40
const CONFIG_REGION = 7
const FIRST_FD = 1_000_000

const DRIVER_OK = 4
const FEATURES_OK = 8
const NEEDS_RESET = 64
const BUS_MASTER = 4

type Kind = "container" | "group" | "device" | "iommufd"

interface VirtioQueue {
  size: number
  vector: number
  enabled: number
  readonly addresses: Map<number, number>
}

const nameOf = (request: number): string =>
  Object.entries({ ...VfioRequest, ...IommufdRequest }).find(([, number]) => number === request)?.[0] ??
    `ioctl ${request}`

export class SimulatedVfio {
  /** The device's folder in sysfs. */
  readonly path: string
  /** What was asked, in order: `open /dev/vfio/8`, `GROUP_GET_STATUS`, `status 15`, `reset`, `mmap`. */
  readonly calls: Array<string> = []
  /** The errno that a call of a name fails with: one of {@link calls}, `pread` or `pwrite`. */
  readonly faults = new Map<string, number>()
  readonly violations: Array<string> = []
  readonly mappings = new Map<number, { readonly length: number; readonly buffer: ArrayBuffer }>()
  readonly devices: Array<FakeDevice> = []
  readonly disk = new Uint8Array(2 ** 20)
  config: Uint8Array
  generation = 0
  /** How often the generation moves while the configuration is read. */
  unsteady = 0
  status = 0
  /** How often the status is read before a reset is done. */
  resetReads = 0
  /** Status bits and vectors that the device does not take. */
  refuses: { status?: number; vector?: number; enable?: boolean } = {}
  viable = true
  /** Whether the function answers no more: it reads as ones. */
  isGone = false
  driverFeatures = 0n
  command = 0
  /** The doorbells where they are mapped, by queue. */
  mapped: Uint16Array = new Uint16Array(0)
  /** How often a doorbell was rung by a write. */
  rings = 0
  readonly #options: Options
  readonly #root: string
  readonly #fds = new Map<number, Kind>()
  readonly #irqs = new Map<number, Array<number>>()
  readonly #memory: Array<{ buffer: ArrayBuffer; address: number }> = []
  #queues: Array<VirtioQueue> = []
  #selected = { queue: 0, deviceFeature: 0, driverFeature: 0 }
  #configVector = 0xffff
  #isr = 0
  #isMasked = false
  #hasGroup = false
  #hasIommu = false
  #nextFd = FIRST_FD
  #mapFd = new Set<ArrayBuffer>()

  constructor(options: Options = {}) {
    this.#options = options
    this.config = encodeConfig({ ...config, numQueues: options.queues ?? 4 }).slice(0, options.configBytes ?? 60)
    this.#root = mkdtempSync(Path.join(tmpdir(), "vfio-"))
    const { cdev = false, device = "0x1042", driver = "vfio-pci", group = "8", vendor = "0x1af4" } = options
    this.path = Path.join(this.#root, "0000:01:00.0")
    mkdirSync(this.path)
    writeFileSync(Path.join(this.path, "vendor"), `${vendor}\n`)
    writeFileSync(Path.join(this.path, "device"), `${device}\n`)
    if (driver !== null) symlinkSync(`../drivers/${driver}`, Path.join(this.path, "driver"))
    if (group !== null) symlinkSync(`../iommu_groups/${group}`, Path.join(this.path, "iommu_group"))
    if (cdev) mkdirSync(Path.join(this.path, "vfio-dev", "vfio3"), { recursive: true })
    this.#resetDevice()
  }

  /** What the driver still holds. */
  get open(): ReadonlyArray<Kind> {
    return [...this.#fds.values()]
  }

  dispose(): void {
    rmSync(this.#root, { recursive: true })
  }

  readonly kernel: KernelCalls = {
    open: (path) => {
      this.#note(`open ${path}`)
      const kind = ({
        "/dev/vfio/vfio": "container",
        [`/dev/vfio/${this.#options.group ?? "8"}`]: "group",
        ...(this.#options.cdev === true ? { "/dev/iommu": "iommufd", "/dev/vfio/devices/vfio3": "device" } : {})
      } as Record<string, Kind>)[path]
      if (kind === undefined) throw new SyscallError("open", ENOENT)
      return this.#openFd(kind)
    },
    closePooled: (fd, done) => {
      setImmediate(() => {
        this.kernel.close(fd)
        done()
      })
    },
    close: (fd) => {
      const kind = this.#fds.get(fd)
      if (kind === undefined) throw new SyscallError("close", EBADF)
      this.#fds.delete(fd)
      this.calls.push(`close ${kind}`)
      if (kind === "device") this.#closeDevice()
      if (kind === "container" || kind === "iommufd") this.mappings.clear()
    },
    ioctl: (fd, request, argument) => {
      const name = nameOf(request)
      this.#note(name)
      return this.#ioctl(this.#kindOf(fd), name, typeof argument === "number" ? new Uint8Array(0) : argument)
    },
    openPooled: () => {
      throw new SyscallError("open", EINVAL)
    },
    writePooled: () => {
      throw new SyscallError("write", EINVAL)
    },
    isDeviceRemoved: () => false,
    ioctlPooled: (fd, request, argument, done) => {
      let result = -1
      let errno = 0
      try {
        result = this.kernel.ioctl(fd, request, argument)
      } catch (error) {
        if (!(error instanceof SyscallError)) throw error
        errno = error.errno
      }
      setImmediate(done, result, errno)
    },
    readAt: (_, bytes, position) => {
      this.#fault("pread")
      const [region, at] = place(position)
      const view = viewOf(bytes)
      if (region === CONFIG_REGION) {
        if (bytes.length > 2) bytes.set(this.#configSpace().subarray(at, at + bytes.length))
        else view.setUint16(0, this.command, true)
        return bytes.length
      }
      const value = this.#read(at, bytes.length)
      if (bytes.length === 1) view.setUint8(0, value & 0xff)
      else if (bytes.length === 2) view.setUint16(0, value & 0xffff, true)
      else view.setUint32(0, value, true)
      return bytes.length
    },
    writeAt: (_, bytes, position) => {
      this.#fault("pwrite")
      const [region, at] = place(position)
      const view = viewOf(bytes)
      const value = bytes.length === 1
        ? view.getUint8(0)
        : bytes.length === 2
        ? view.getUint16(0, true)
        : view.getUint32(0, true)
      if (region === CONFIG_REGION) {
        this.command = value
        this.calls.push(`command ${value}`)
      } else this.#write(at, bytes.length, value)
      return bytes.length
    },
    map: (_, offset, length) => {
      this.#note("mmap")
      const [region, at] = place(offset)
      if (region !== BAR) throw new SyscallError("mmap", EINVAL)
      const buffer = new ArrayBuffer(length)
      this.#mapFd.add(buffer)
      this.mapped = new Uint16Array(buffer, AT.notify - at).fill(0xffff)
      return { buffer, length, address: 0 }
    },
    unmap: ({ buffer }) => {
      this.calls.push("munmap")
      this.#mapFd.delete(buffer)
      buffer.transfer()
    }
  }

  /** Has the device take what its mapped doorbells announce, which nothing tells it of. */
  poll(): void {
    for (const device of this.devices) device.work()
  }

  /** The device's configuration is another one, and it says so. */
  change(config: Uint8Array): void {
    this.config = config
    this.generation++
    this.#interrupt(this.#configVector, 2)
  }

  /** The device gives up. */
  fail(): void {
    this.status |= NEEDS_RESET
    this.#interrupt(this.#configVector, 2)
  }

  /** The kernel signals an interrupt of its own. */
  signal(index: typeof IrqIndex.REQ | typeof IrqIndex.ERR): void {
    for (const fd of this.#irqs.get(index) ?? []) Libc.signalEventFd(fd)
  }

  /** How many event counters are behind the interrupts of a kind. */
  listening(index: number): number {
    return this.#irqs.get(index)?.length ?? 0
  }

  #fault(name: string): void {
    const errno = this.faults.get(name)
    if (errno !== undefined) throw new SyscallError(name.replace(/ .*/, ""), errno)
  }

  #note(name: string): void {
    this.calls.push(name)
    this.#fault(name)
  }

  #openFd(kind: Kind): number {
    this.#fds.set(this.#nextFd, kind)
    return this.#nextFd++
  }

  #kindOf(fd: number): Kind {
    const kind = this.#fds.get(fd)
    if (kind === undefined) throw new SyscallError("ioctl", EBADF)
    return kind
  }

  #closeDevice(): void {
    this.#resetDevice()
    this.command = 0
    for (const fds of this.#irqs.values()) fds.forEach(Libc.close)
    this.#irqs.clear()
    if (this.#mapFd.size > 0) this.violations.push("the doorbells are still mapped")
  }

  #ioctl(kind: Kind, name: string, bytes: Uint8Array): number {
    const view = viewOf(bytes)
    const { available = 65535, canReset = true, group = "8", intx = 1, iommu = "all", mappable = "none" } =
      this.#options
    switch (`${kind} ${name}`) {
      case "container GET_API_VERSION":
        return 0
      case "container CHECK_EXTENSION":
        return 1
      case "group GROUP_GET_STATUS":
        view.setUint32(4, this.viable ? 1 : 0, true)
        return 0
      case "group GROUP_SET_CONTAINER":
        if (this.#fds.get(view.getInt32(0, true)) !== "container") throw new SyscallError("ioctl", EBADF)
        this.#hasGroup = true
        return 0
      case "container SET_IOMMU":
        if (!this.#hasGroup) throw new SyscallError("ioctl", EINVAL)
        this.#hasIommu = true
        return 0
      case "container IOMMU_GET_INFO":
        return fillIommuInfo(bytes, iommu, available)
      case "container IOMMU_MAP_DMA":
        if (!this.#hasIommu) throw new SyscallError("ioctl", EINVAL)
        return this.#map(
          view.getBigUint64(8, true),
          Number(view.getBigUint64(16, true)),
          Number(view.getBigUint64(24, true))
        )
      case "container IOMMU_UNMAP_DMA":
        return this.#unmap(Number(view.getBigUint64(8, true)), Number(view.getBigUint64(16, true)))
      case "group GROUP_GET_DEVICE_FD":
        if (Buffer.from(bytes).toString() !== "0000:01:00.0\0") throw new SyscallError("ioctl", ENODEV)
        return this.#openFd("device")
      case "device DEVICE_BIND_IOMMUFD":
        if (this.#fds.get(view.getInt32(8, true)) !== "iommufd") throw new SyscallError("ioctl", EBADF)
        return 0
      case "iommufd IOAS_ALLOC":
        view.setUint32(8, 5, true)
        return 0
      case "device DEVICE_ATTACH_IOMMUFD_PT":
        this.#hasIommu = view.getUint32(8, true) === 5
        return 0
      case "iommufd IOAS_IOVA_RANGES": {
        const room = view.getUint32(8, true)
        const ranges = Array.from({ length: this.#options.available ?? 2 }, (_, i) => BigInt(i) * 2n ** 32n)
        view.setUint32(8, ranges.length, true)
        view.setBigUint64(24, 4096n, true)
        if (ranges.length > room) throw new SyscallError("ioctl", EMSGSIZE)
        const list = new BigUint64Array(koffi.view(view.getBigUint64(16, true), 16 * ranges.length))
        list.set(ranges.flatMap((first) => [first, first + 0xfedf_ffffn]))
        return 0
      }
      case "iommufd IOAS_MAP":
        return this.#map(
          view.getBigUint64(16, true),
          Number(view.getBigUint64(32, true)),
          Number(view.getBigUint64(24, true))
        )
      case "iommufd IOAS_UNMAP":
        return this.#unmap(Number(view.getBigUint64(8, true)), Number(view.getBigUint64(16, true)))
      case "device DEVICE_GET_INFO":
        view.setUint32(4, canReset ? 3 : 2, true)
        view.setUint32(8, 9, true)
        view.setUint32(12, 5, true)
        return 0
      case "device DEVICE_GET_REGION_INFO":
        return fillRegionInfo(bytes, mappable)
      case "device DEVICE_GET_IRQ_INFO": {
        const index = view.getUint32(8, true)
        const counts: Record<number, number> = {
          [IrqIndex.INTX]: intx,
          [IrqIndex.MSIX]: this.#options.msix ?? 5,
          [IrqIndex.REQ]: 1
        }
        const count = index === IrqIndex.ERR && group === "8" ? 1 : counts[index]
        if (count === undefined) throw new SyscallError("ioctl", EINVAL)
        view.setUint32(4, 1, true)
        view.setUint32(12, count, true)
        return 0
      }
      case "device DEVICE_SET_IRQS":
        return this.#setIrqs(view)
      case "device DEVICE_RESET":
        if (!canReset) throw new SyscallError("ioctl", EINVAL)
        this.resetReads = 0
        this.#resetDevice()
        return 0
      default:
        throw new SyscallError("ioctl", ENOTTY)
    }
  }

  #map(address: bigint, iova: number, length: number): number {
    if (iova % 4096 !== 0 || length % 4096 !== 0 || length === 0 || address % 4096n !== 0n || iova === 0) {
      throw new SyscallError("ioctl", EINVAL)
    }
    for (const [other, mapping] of this.mappings) {
      if (other < iova + length && iova < other + mapping.length) throw new SyscallError("ioctl", EEXIST)
    }
    const buffer = koffi.view(address, length)
    this.mappings.set(iova, { length, buffer })
    this.#memory.push({ buffer, address: iova })
    return 0
  }

  #unmap(iova: number, length: number): number {
    if (this.mappings.get(iova)?.length !== length) throw new SyscallError("ioctl", ENOENT)
    this.mappings.delete(iova)
    this.#memory.splice(this.#memory.findIndex(({ address }) => address === iova), 1)
    return 0
  }

  #setIrqs(view: DataView): number {
    const flags = view.getUint32(4, true)
    const index = view.getUint32(8, true)
    const count = view.getUint32(16, true)
    if ((flags & 16) !== 0) {
      this.#isMasked = false
      this.#raise()
      return 0
    }
    const given = this.#options.msixGiven
    if (index === IrqIndex.MSIX && given !== undefined && count > given) return given
    for (const fd of this.#irqs.get(index) ?? []) Libc.close(fd)
    this.#irqs.set(index, Array.from({ length: count }, (_, i) => Libc.duplicate(view.getInt32(20 + 4 * i, true))))
    this.calls.push(`irqs ${index} ${count}`)
    return 0
  }

  /** The line is up for as long as the interrupt status is not 0, and comes once until it is unmasked. */
  #raise(): void {
    const [fd] = this.#irqs.get(IrqIndex.INTX) ?? []
    if (this.#isr === 0 || this.#isMasked || fd === undefined) return
    this.#isMasked = true
    Libc.signalEventFd(fd)
  }

  #interrupt(vector: number, isr: number): void {
    if ((this.command & BUS_MASTER) === 0) this.violations.push("an interrupt of a device that is no bus master")
    const vectors = this.#irqs.get(IrqIndex.MSIX) ?? []
    if (vectors.length === 0) {
      this.#isr |= isr
      return this.#raise()
    }
    const fd = vectors[vector]
    if (fd !== undefined) Libc.signalEventFd(fd)
  }

  #resetDevice(): void {
    const { queueSize = 256, queues = 4 } = this.#options
    this.status = 0
    this.driverFeatures = 0n
    this.#configVector = 0xffff
    this.#isr = 0
    this.#queues = Array.from(
      { length: queues },
      () => ({ size: queueSize, vector: 0xffff, enabled: 0, addresses: new Map<number, number>() })
    )
    this.devices.splice(0).forEach((device) => this.violations.push(...device.violations))
  }

  #read(at: number, width: number): number {
    if (this.isGone) return 0xffff_ffff
    if (at === AT.isr) {
      const isr = this.#isr
      this.#isr = 0
      return isr
    }
    if (at >= AT.device) {
      this.#checkConfigAccess(at - AT.device, width)
      const bytes = new Uint8Array(4)
      bytes.set(this.config.subarray(at - AT.device, at - AT.device + width))
      if (at === AT.device && this.unsteady > 0) {
        this.unsteady--
        this.generation++
      }
      return viewOf(bytes).getUint32(0, true)
    }
    const { queues = 4 } = this.#options
    const queue = this.#queues[this.#selected.queue]
    const half = (features: bigint, index: number) => Number(features >> BigInt(32 * index) & 0xffff_ffffn)
    switch (this.#field(at, width)) {
      case "DEVICE_FEATURE":
        return half(this.#features, this.#selected.deviceFeature)
      case "CONFIG_MSIX_VECTOR":
        return this.#configVector
      case "NUM_QUEUES":
        return queues
      case "DEVICE_STATUS":
        if (this.resetReads > 0) {
          this.resetReads--
          return DRIVER_OK
        }
        return this.status
      case "CONFIG_GENERATION":
        return this.generation & 0xff
      case "QUEUE_SIZE":
        return queue?.size ?? 0
      case "QUEUE_MSIX_VECTOR":
        return queue?.vector ?? 0xffff
      case "QUEUE_ENABLE":
        return queue?.enabled ?? 0
      case "QUEUE_NOTIFY_OFF":
        return this.#selected.queue
      default:
        this.violations.push(`a read at ${at} of the common configuration`)
        return 0
    }
  }

  get #features(): bigint {
    return this.#options.features ?? deviceFeatures
  }

  #write(at: number, width: number, value: number): void {
    if (this.isGone) return
    if (at >= AT.notify) {
      if (width !== 2 || at !== AT.notify + 4 * value) {
        this.violations.push(`doorbell ${value} of ${width} bytes at ${at}`)
      }
      this.rings++
      if ((this.command & BUS_MASTER) === 0) this.violations.push("a doorbell of a device that is no bus master")
      setImmediate(() => this.devices[value]?.work())
      return
    }
    const queue = this.#queues[this.#selected.queue]
    const name = this.#field(at, width)
    switch (name) {
      case "DEVICE_FEATURE_SELECT":
        this.#selected.deviceFeature = value
        return
      case "DRIVER_FEATURE_SELECT":
        this.#selected.driverFeature = value
        return
      case "DRIVER_FEATURE": {
        const shift = BigInt(32 * this.#selected.driverFeature)
        this.driverFeatures = this.driverFeatures & ~(0xffff_ffffn << shift) | BigInt(value) << shift
        return
      }
      case "CONFIG_MSIX_VECTOR":
        this.#configVector = value === this.refuses.vector ? 0xffff : value
        return
      case "DEVICE_STATUS":
        return this.#setStatus(value)
      case "QUEUE_SELECT":
        this.#selected.queue = value
        return
      default:
        if (queue === undefined) this.violations.push(`${name} of queue ${this.#selected.queue}, which is none`)
        else if (name === "QUEUE_SIZE") queue.size = value
        else if (name === "QUEUE_MSIX_VECTOR") queue.vector = value === this.refuses.vector ? 0xffff : value
        else if (name === "QUEUE_ENABLE") queue.enabled = this.refuses.enable === true ? 0 : value
        else if (at >= 0x20) queue.addresses.set(at, value)
        else this.violations.push(`a write to ${name}`)
    }
  }

  #setStatus(value: number): void {
    this.calls.push(`status ${value}`)
    if (value === 0) {
      if (this.resetReads === 0) this.#resetDevice()
      return
    }
    this.status = value & ~(this.refuses.status ?? 0)
    if ((this.status & FEATURES_OK) !== 0 && (this.driverFeatures & ~this.#features) !== 0n) this.status &= ~FEATURES_OK
    if ((this.status & DRIVER_OK) === 0) return
    if ((this.command & BUS_MASTER) === 0) this.violations.push("started while it is no bus master")
    this.devices.splice(0)
    for (const { addresses, enabled, size, vector } of this.#queues) {
      if (enabled === 0) continue
      const address = (low: number) => (addresses.get(low) ?? 0) + (addresses.get(low + 4) ?? 0) * 2 ** 32
      this.devices.push(
        new FakeDevice({
          ring: { queueSize: size, descriptors: address(0x20), avail: address(0x28), used: address(0x30) },
          packed: hasFeature(this.driverFeatures, FeatureBit.RING_PACKED),
          memory: this.#memory,
          indirect: hasFeature(this.driverFeatures, FeatureBit.INDIRECT_DESC),
          eventIdx: hasFeature(this.driverFeatures, FeatureBit.EVENT_IDX),
          maxSegments: 256,
          disk: new FakeDisk(this.disk),
          signal: () => this.#interrupt(vector, 1)
        })
      )
    }
  }

  #field(at: number, width: number): string {
    const [name, field] = Object.entries(CommonField).find(([, field]) => field.at === at) ?? []
    if (field?.width !== width) this.violations.push(`${width} bytes at ${at} of the common configuration`)
    return name ?? ""
  }

  #checkConfigAccess(at: number, width: number): void {
    let start = 0
    for (const wanted of CONFIG_WIDTHS) {
      if (start === at && width === wanted) return
      start += wanted
    }
    this.violations.push(`${width} bytes at ${at} of the configuration`)
  }

  #configSpace(): Uint8Array {
    const { capabilities = "all", configBytes = 60, notifyLength = 64, pciBar = BAR } = this.#options
    const space = new Uint8Array(256)
    const view = viewOf(space)
    view.setUint16(6, capabilities === "none" ? 0 : 0x10, true)
    space[0x34] = 0x40
    const caps = [
      [1, AT.common, 0x38],
      [capabilities === "no isr" ? 5 : 3, AT.isr, 1],
      [4, AT.device, configBytes],
      [2, AT.notify, notifyLength]
    ] as const
    for (const [i, [type, offset, length]] of caps.entries()) {
      const at = 0x40 + i * 0x14
      const next = i < caps.length - 1 ? at + 0x14 : capabilities === "loop" ? 0x40 : 0
      space.set([9, next, 20, type, pciBar], at)
      view.setUint32(at + 8, offset, true)
      view.setUint32(at + 12, length, true)
      view.setUint32(at + 16, 4, true)
    }
    return space
  }
}

/** What the device offers unless a test says otherwise. */
export const deviceFeatures = featureMask(
  ...usualFeatures.map((name) => FeatureBit[name]),
  FeatureBit.VERSION_1,
  FeatureBit.ACCESS_PLATFORM,
  FeatureBit.ORDER_PLATFORM
)

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const place = (position: number): readonly [region: number, at: number] => {
  const region = Math.floor(position / REGION_UNIT)
  if (region !== BAR && region !== CONFIG_REGION) throw new SyscallError("pread", EIO)
  return [region, position % REGION_UNIT]
}

/** The ranges of an Intel IOMMU with its window for interrupt messages, as Linux 6.12 tells them. */
const fillIommuInfo = (bytes: Uint8Array, iommu: Options["iommu"], available: number): number => {
  const view = viewOf(bytes)
  view.setBigUint64(8, 0x40201000n, true)
  view.setUint32(4, iommu === "no capabilities" ? 1 : 3, true)
  if (iommu === "no capabilities") return 0
  const needed = iommu === "no ranges" ? 36 : 88
  if (bytes.length < needed) {
    view.setUint32(0, needed, true)
    return 0
  }
  view.setUint32(16, 24, true)
  view.setUint16(24, 3, true)
  view.setUint32(32, available, true)
  if (iommu === "no ranges") return 0
  view.setUint32(28, 40, true)
  view.setUint16(40, 1, true)
  view.setUint32(48, 2, true)
  const ranges = [0n, 0xfedf_ffffn, 0xfef0_0000n, 0x7f_ffff_ffffn]
  for (const [i, bound] of ranges.entries()) view.setBigUint64(56 + 8 * i, bound, true)
  return 0
}

const fillRegionInfo = (bytes: Uint8Array, mappable: Options["mappable"]): number => {
  const view = viewOf(bytes)
  const index = view.getUint32(8, true)
  const size = index === BAR ? BAR_BYTES : index === CONFIG_REGION ? 4096 : 0
  view.setBigUint64(16, BigInt(size), true)
  view.setBigUint64(24, BigInt(index * REGION_UNIT), true)
  if (index !== BAR || mappable === "none") return 0
  view.setUint32(4, mappable === "all" ? 7 : 15, true)
  if (mappable === "all") return 0
  const needed = 64
  if (bytes.length < needed) {
    view.setUint32(0, needed, true)
    return 0
  }
  view.setUint32(12, 32, true)
  view.setUint16(32, 1, true)
  view.setUint32(40, 1, true)
  view.setBigUint64(48, BigInt(mappable === "doorbells" ? AT.notify : 0), true)
  view.setBigUint64(56, 0x1000n, true)
  return 0
}
