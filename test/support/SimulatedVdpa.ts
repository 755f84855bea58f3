/**
 * A kernel with one vhost-vdpa device, for the transport to be tried on: it takes the place of `src/Native/Kernel.ts`.
 *
 * It keeps the rules that Linux 6.12 was read to have and seen to keep (`drivers/vhost/vdpa.c`, `vhost.c`), also the odd ones: a
 * ring's index is looked at before an ioctl it does not know, which without an owner is EPERM; every IOTLB message that fails
 * is EFAULT, whatever was wrong; a reset takes all away but the mappings. What the kernel lets pass and a driver should not do
 * is noted in {@link SimulatedVdpa.violations}.
 *
 * As the kernel does, it finds the file behind an address, and maps it for itself, so that the device behind it works on the
 * same memory. Descriptors are real ones (event counters), so that none can be lost unseen. Any call can be made to fail, or to
 * hang ({@link SimulatedVdpa.faults}).
 */
import { fstatSync, readdirSync, readFileSync } from "node:fs"
import { constants } from "node:os"
import type { KernelCalls } from "../../src/Native/Kernel.ts"
import * as Libc from "../../src/Native/Libc.ts"
import * as Poll from "../../src/Native/Poll.ts"
import { SyscallError } from "../../src/Native/SyscallError.ts"
import { Ioctl, ioctlName } from "../../src/Wire/VhostIoctl.ts"
import { FakeDevice } from "../../src/testing/FakeDevice.ts"
import { FakeDisk } from "../../src/testing/FakeDisk.ts"

const { E2BIG, EBUSY, EFAULT, EINVAL, ENOBUFS, ENOENT, ENOTTY, EPERM } = constants.errno

/** The ways in which devices and kernels differ. */
export interface Options {
  readonly path?: string
  readonly deviceId?: number
  readonly features?: bigint
  readonly backendFeatures?: bigint
  readonly config?: Uint8Array
  readonly rings?: number
  readonly ringSize?: number
  readonly iovaRange?: { readonly first: bigint; readonly last: bigint }
  /** ioctls that the kernel is too old for. */
  readonly missing?: ReadonlyArray<keyof typeof Ioctl>
  /** What a read beyond the configuration gives: E2BIG as the kernel's code has it, or EINVAL as it then comes out. */
  readonly beyondConfig?: "E2BIG" | "EINVAL"
  /** Status bits that the device does not take. */
  readonly refusesStatus?: number
  /** What the device has for a status before it is used, and whether a reset changes that. */
  readonly status?: number
  readonly resets?: boolean
  readonly disk?: Uint8Array
}

/** What a call comes to: an errno, or nothing ever, until {@link SimulatedVdpa.resume}. */
export type Fault = number | "hang"

interface Ring {
  size: number
  base: number
  addresses: { readonly descriptors: number; readonly used: number; readonly avail: number } | undefined
  kickFd: number
  callFd: number
  isEnabled: boolean
}

const ACKNOWLEDGE = 1
const DRIVER = 2
const DRIVER_OK = 4
const FEATURES_OK = 8
const NEEDS_RESET = 64

const bit = (number: number) => 1n << BigInt(number)
const RING_INDIRECT_DESC = bit(28)
const RING_EVENT_IDX = bit(29)
const VERSION_1 = bit(32)
const ACCESS_PLATFORM = bit(33)
const RING_PACKED = bit(34)

/** What VDUSE and qemu-storage-daemon offer. */
export const FEATURES = 0x331007644n
/** IOTLB_MSG_V2, IOTLB_BATCH, IOTLB_ASID. */
const BACKEND_FEATURES = 0xen

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export class SimulatedVdpa {
  /** Every call, in order: its name, and what matters of its argument. */
  readonly log: Array<string> = []
  /** Rules that a driver should keep, and did not. */
  readonly violations: Array<string> = []
  /** What calls come to, by name: that of the ioctl, `open`, or the kind of IOTLB message. */
  readonly faults = new Map<string, Fault>()
  /** What is mapped, by device address. */
  readonly mappings = new Map<number, { readonly size: number; readonly memory: Libc.Mapping }>()
  readonly devices: Array<FakeDevice> = []
  config: Uint8Array
  status: number
  driverFeatures = 0n
  isOpen = false
  isRemoved = false
  readonly #options: Options
  readonly #memory: Array<{ readonly buffer: ArrayBuffer; readonly address: number }> = []
  readonly #watches: Array<Poll.Watch> = []
  readonly #hanging: Array<() => void> = []
  #rings: ReadonlyArray<Ring> = []
  #configFd = -1
  #backendFeatures = 0n
  #hasOwner = false
  #isInBatch = false

  constructor(options: Options = {}) {
    this.#options = options
    this.config = options.config ?? new Uint8Array(60)
    this.status = options.status ?? 0
    this.#rings = this.#newRings()
  }

  /** Opens the device, as `open(2)` does; answers the descriptor. */
  open(path = this.#path): number {
    if (path !== this.#path) throw new SyscallError("open", ENOENT)
    if (this.isOpen) throw new SyscallError("open", EBUSY)
    this.isOpen = true
    this.#reset()
    this.log.push("open")
    return Libc.createEventFd()
  }

  /** The device's configuration changes, and it says so. */
  change(config: Uint8Array): void {
    this.config = config
    this.#signal(this.#configFd)
  }

  /** The device wants to be reset, and says so. */
  break(): void {
    this.status |= NEEDS_RESET
    this.#signal(this.#configFd)
  }

  /** Lets the calls that hang end. */
  resume(): void {
    this.faults.clear()
    for (const run of this.#hanging.splice(0)) run()
  }

  readonly kernel: KernelCalls = {
    open: (path) => this.open(path),
    openPooled: (path, done) => this.#pooled("open", () => this.open(path), done),
    closePooled: (fd, done) => {
      setImmediate(() => {
        this.kernel.close(fd)
        done()
      })
    },
    close: (fd) => {
      this.log.push("close")
      Libc.close(fd)
      this.isOpen = false
      this.#reset()
      this.#unmap(0, Number.MAX_SAFE_INTEGER)
      this.#letGo()
      this.#hasOwner = false
      this.#backendFeatures = 0n
    },
    ioctl: () => this.#unexpected("ioctl"),
    ioctlPooled: (_, request, argument, done) => {
      const name = ioctlName(request)
      this.#pooled(name, () => this.#ioctl(name, typeof argument === "number" ? new Uint8Array(0) : argument), done)
    },
    writePooled: (_, bytes, done) => this.#pooled(messageName(bytes), () => this.#message(bytes), done),
    readAt: () => this.#unexpected("readAt"),
    writeAt: () => this.#unexpected("writeAt"),
    map: () => this.#unexpected("map"),
    unmap: () => this.#unexpected("unmap"),
    isDeviceRemoved: () => this.isRemoved
  }

  get #path(): string {
    return this.#options.path ?? "/dev/vhost-vdpa-0"
  }

  #unexpected(name: string): never {
    throw new Error(`${name} is not for vhost-vdpa`)
  }

  #newRings(): ReadonlyArray<Ring> {
    return Array.from({ length: this.#options.rings ?? 4 }, () => ({
      size: 0,
      base: 0,
      addresses: undefined,
      kickFd: -1,
      callFd: -1,
      isEnabled: false
    }))
  }

  /** Runs a call some time later, as a thread of the pool does. */
  #pooled(name: string, run: () => number, done: (result: number, errno: number) => void): void {
    const work = () => {
      const fault = this.faults.get(name)
      if (fault === "hang") return void this.#hanging.push(work)
      try {
        if (fault !== undefined) throw new SyscallError(name, fault)
        done(run(), 0)
      } catch (error) {
        if (!(error instanceof SyscallError)) throw error
        this.log.push(`${name} failed`)
        done(-1, error.errno)
      }
    }
    setImmediate(work)
  }

  #ioctl(name: string, argument: Uint8Array): number {
    const fail = (errno: number): never => {
      throw new SyscallError("ioctl", errno)
    }
    const data = argument.length === 0 ? new DataView(new ArrayBuffer(8)) : view(argument)
    const known = !(this.#options.missing ?? []).some((missing) => missing === name)
    const isFree = ["VHOST_VDPA_GET", "VHOST_VDPA_SET_STATUS", "VHOST_VDPA_SET_CONFIG", "_FEATURES", "_SET_OWNER"]
    if (!known || !isFree.some((part) => name.includes(part))) {
      if (!this.#hasOwner) return fail(EPERM)
      if (data.getUint32(0, true) >= this.#rings.length) return fail(ENOBUFS)
      if (!known) return fail(ENOTTY)
    }
    this.log.push(name + this.#detail(name, argument))
    const { ringSize = 256 } = this.#options
    switch (name) {
      case "VHOST_SET_OWNER":
        if (this.#hasOwner) return fail(EBUSY)
        this.#hasOwner = true
        return 0
      case "VHOST_GET_FEATURES":
        data.setBigUint64(0, this.#options.features ?? FEATURES, true)
        return 0
      case "VHOST_SET_FEATURES": {
        const features = data.getBigUint64(0, true)
        const offered = this.#options.features ?? FEATURES
        if ((this.status & FEATURES_OK) !== 0) return fail(EBUSY)
        if ((features & ~offered) !== 0n) return fail(EINVAL)
        // As vdpa_sim and mlx5 have it.
        if ((offered & ~features & ACCESS_PLATFORM) !== 0n) return fail(EINVAL)
        if ((features & VERSION_1) === 0n) this.#violation("no VERSION_1")
        if ((this.status & (ACKNOWLEDGE | DRIVER)) !== (ACKNOWLEDGE | DRIVER)) this.#violation("features too early")
        this.driverFeatures = features
        return 0
      }
      case "VHOST_GET_BACKEND_FEATURES":
        data.setBigUint64(0, this.#options.backendFeatures ?? BACKEND_FEATURES, true)
        return 0
      case "VHOST_SET_BACKEND_FEATURES": {
        const features = data.getBigUint64(0, true)
        if ((features & ~(this.#options.backendFeatures ?? BACKEND_FEATURES)) !== 0n) {
          return fail(constants.errno.EOPNOTSUPP)
        }
        this.#backendFeatures = features
        return 0
      }
      case "VHOST_VDPA_GET_DEVICE_ID":
        data.setUint32(0, this.#options.deviceId ?? 2, true)
        return 0
      case "VHOST_VDPA_GET_STATUS":
        data.setUint8(0, this.status)
        return 0
      case "VHOST_VDPA_SET_STATUS":
        return this.#setStatus(data.getUint8(0))
      case "VHOST_VDPA_GET_CONFIG": {
        const [offset, length] = [data.getUint32(0, true), data.getUint32(4, true)]
        if (length === 0 || offset > this.config.length) return fail(EINVAL)
        if (length > this.config.length - offset) return fail(this.#options.beyondConfig === "E2BIG" ? E2BIG : EINVAL)
        argument.set(this.config.subarray(offset, offset + length), 8)
        return 0
      }
      case "VHOST_VDPA_GET_CONFIG_SIZE":
        data.setUint32(0, this.config.length, true)
        return 0
      case "VHOST_VDPA_SET_CONFIG_CALL":
        this.#closeFd(this.#configFd)
        this.#configFd = this.#take(data.getInt32(0, true))
        return 0
      case "VHOST_VDPA_GET_VRING_NUM":
        data.setUint16(0, ringSize, true)
        return 0
      case "VHOST_VDPA_GET_VQS_COUNT":
        data.setUint32(0, this.#rings.length, true)
        return 0
      case "VHOST_VDPA_GET_IOVA_RANGE": {
        const { first, last } = this.#range
        data.setBigUint64(0, first, true)
        data.setBigUint64(8, last, true)
        return 0
      }
      default:
        return this.#vring(name, data)
    }
  }

  #vring(name: string, data: DataView): number {
    const ring = this.#rings[data.getUint32(0, true)]
    if (ring === undefined) throw new SyscallError("ioctl", ENOBUFS)
    if ((this.status & FEATURES_OK) === 0) this.#violation(`${name} before FEATURES_OK`)
    if ((this.status & DRIVER_OK) !== 0) this.#violation(`${name} after DRIVER_OK`)
    switch (name) {
      case "VHOST_SET_VRING_NUM": {
        const size = data.getUint32(4, true)
        if (size === 0 || size > 0xffff || (size & (size - 1)) !== 0) throw new SyscallError("ioctl", EINVAL)
        if (size > (this.#options.ringSize ?? 256)) this.#violation(`a ring of ${size}`)
        ring.size = size
        return 0
      }
      case "VHOST_SET_VRING_BASE":
        ring.base = data.getUint32(4, true)
        return 0
      case "VHOST_SET_VRING_ADDR": {
        const [descriptors = 0, used = 0, avail = 0] = [8, 16, 24].map((at) => Number(data.getBigUint64(at, true)))
        if (avail % 2 !== 0 || used % 4 !== 0) throw new SyscallError("ioctl", EINVAL)
        ring.addresses = { descriptors, used, avail }
        return 0
      }
      case "VHOST_SET_VRING_KICK":
        this.#closeFd(ring.kickFd)
        ring.kickFd = this.#take(data.getInt32(4, true))
        return 0
      case "VHOST_SET_VRING_CALL":
        this.#closeFd(ring.callFd)
        ring.callFd = this.#take(data.getInt32(4, true))
        return 0
      case "VHOST_VDPA_SET_VRING_ENABLE":
        ring.isEnabled = data.getUint32(4, true) === 1
        return 0
      default:
        throw new SyscallError("ioctl", ENOTTY)
    }
  }

  #setStatus(status: number): number {
    if (status === 0) {
      this.#reset()
      return 0
    }
    if ((this.status & ~status) !== 0) throw new SyscallError("ioctl", EINVAL)
    const taken = status & ~(this.#options.refusesStatus ?? 0)
    const isStart = (taken & DRIVER_OK) !== 0 && (this.status & DRIVER_OK) === 0
    this.status |= taken
    if (isStart) this.#start()
    return 0
  }

  #reset(): void {
    if (this.#options.resets !== false) this.status = 0
    this.driverFeatures = 0n
    for (const watch of this.#watches.splice(0)) watch.close()
    this.devices.length = 0
    for (const ring of this.#rings) ring.isEnabled = false
    this.#closeFd(this.#configFd)
    this.#configFd = -1
  }

  #letGo(): void {
    for (const { callFd, kickFd } of this.#rings) [callFd, kickFd].forEach((fd) => this.#closeFd(fd))
    this.#rings = this.#newRings()
  }

  #start(): void {
    const has = (feature: bigint) => (this.driverFeatures & feature) !== 0n
    for (const [index, ring] of this.#rings.entries()) {
      if (!ring.isEnabled) continue
      if (ring.addresses === undefined || ring.kickFd < 0 || ring.callFd < 0) {
        this.#violation(`ring ${index} is not complete`)
        continue
      }
      if (ring.base !== (has(RING_PACKED) ? 0x8000_8000 : 0)) this.#violation(`ring ${index} begins at ${ring.base}`)
      const device = new FakeDevice({
        ring: { ...ring.addresses, queueSize: ring.size },
        packed: has(RING_PACKED),
        memory: this.#memory,
        indirect: has(RING_INDIRECT_DESC),
        eventIdx: has(RING_EVENT_IDX),
        maxSegments: 254,
        disk: new FakeDisk(this.#options.disk ?? new Uint8Array(0)),
        signal: () => this.#signal(ring.callFd)
      })
      device.askNotifications(true)
      this.devices.push(device)
      this.#watches.push(Poll.watch(ring.kickFd, { readable: true }, () => {
        Libc.drainEventFd(ring.kickFd)
        setImmediate(() => {
          if (this.devices.includes(device)) device.work()
        })
      }))
    }
  }

  get #range(): { readonly first: bigint; readonly last: bigint } {
    return this.#options.iovaRange ?? { first: 0n, last: 2n ** 64n - 1n }
  }

  /** An IOTLB message. */
  #message(bytes: Uint8Array): number {
    const data = view(bytes)
    const version = data.getUint32(0, true)
    const [iova, size, userAddress] = [8, 16, 24].map((at) => data.getBigUint64(at, true))
    const name = messageName(bytes)
    // What is not a message is told apart from what is wrong with one.
    const refuse = (errno: number): never => {
      throw new SyscallError("write", errno)
    }
    if (bytes.length !== 72 || (version !== 1 && version !== 2)) return refuse(EINVAL)
    if (iova === undefined || size === undefined || userAddress === undefined) return refuse(EINVAL)
    if (version === 2 && (this.#backendFeatures & bit(1)) === 0n) this.#violation("a message of version 2")
    if (name.startsWith("BATCH") && (this.#backendFeatures & bit(2)) === 0n) this.#violation("a batch")
    if (!this.#hasOwner) return refuse(EFAULT)
    this.log.push(name.startsWith("BATCH") ? name : `${name} 0x${iova.toString(16)}+${size} v${version}`)
    if (name === "BATCH_BEGIN" || name === "BATCH_END") {
      if (this.#isInBatch === (name === "BATCH_BEGIN")) this.#violation(`${name} out of order`)
      this.#isInBatch = name === "BATCH_BEGIN"
      return bytes.length
    }
    if (name === "INVALIDATE") {
      if ((this.status & DRIVER_OK) !== 0 && this.#isInBatch) this.#violation("all taken back while it runs")
      this.#unmap(Number(iova), Number(size))
      return bytes.length
    }
    if (this.#isInBatch) this.#violation("an update whose failure nobody hears of")
    if (size === 0n) return refuse(EINVAL)
    const { first, last } = this.#range
    if (iova < first || iova + size - 1n > last) return refuse(EFAULT)
    if (iova === 0n) this.#violation("page 0")
    if (iova % 4096n !== 0n || size % 4096n !== 0n || userAddress % 4096n !== 0n) this.#violation("a part of a page")
    if (data.getUint8(32) !== 3) this.#violation("not for reading and writing")
    const end = Number(iova + size)
    if ([...this.mappings].some(([at, other]) => at < end && Number(iova) < at + other.size)) {
      return refuse(EFAULT)
    }
    const memory = share(Number(userAddress), Number(size))
    if (memory === undefined) {
      // Passed over without an error, as by a device that finds memory by its file.
      this.#violation("memory that is no shared file")
      return bytes.length
    }
    this.mappings.set(Number(iova), { size: Number(size), memory })
    this.#memory.push({ buffer: memory.buffer, address: Number(iova) })
    return bytes.length
  }

  #unmap(iova: number, size: number): void {
    for (const [at, mapping] of this.mappings) {
      if (at + mapping.size <= iova || at >= iova + size) continue
      this.mappings.delete(at)
      this.#memory.splice(this.#memory.findIndex(({ address }) => address === at), 1)
      Libc.unmap(mapping.memory)
    }
  }

  #detail(name: string, argument: Uint8Array): string {
    if (name === "VHOST_VDPA_SET_STATUS") return ` ${argument[0]}`
    if (name.includes("SET_VRING")) return ` ${view(argument).getUint32(0, true)}`
    return name === "VHOST_VDPA_GET_CONFIG" ? ` ${view(argument).getUint32(4, true)}` : ""
  }

  #violation(text: string): void {
    this.violations.push(text)
  }

  #take(fd: number): number {
    return fd < 0 ? -1 : Libc.duplicate(fd)
  }

  #closeFd(fd: number): void {
    if (fd >= 0) Libc.close(fd)
  }

  #signal(fd: number): void {
    if (fd >= 0) Libc.signalEventFd(fd)
  }
}

const messageNames = new Map([[2, "UPDATE"], [3, "INVALIDATE"], [5, "BATCH_BEGIN"], [6, "BATCH_END"]])

const messageName = (bytes: Uint8Array): string => messageNames.get(bytes[33] ?? 0) ?? "unknown"

/** Maps what this process has at an address once more, by the file that lies behind it. */
const share = (address: number, length: number): Libc.Mapping | undefined => {
  for (const line of readFileSync("/proc/self/maps", "utf8").split("\n")) {
    const [, from = "", to = "", mode = "", offset = "", inode = ""] =
      /^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+)/.exec(line) ?? []
    const start = Number.parseInt(from, 16)
    if (!(start <= address && address < Number.parseInt(to, 16))) continue
    const fd = mode.endsWith("s") ? descriptorOf(Number(inode)) : undefined
    return fd === undefined ? undefined : Libc.map(fd, Number.parseInt(offset, 16) + address - start, length)
  }
  return undefined
}

const descriptorOf = (inode: number): number | undefined =>
  readdirSync("/proc/self/fd").map(Number).find((fd) => {
    try {
      return fstatSync(fd).ino === inode
    } catch {
      // The descriptor by which the directory was read is closed by now.
      return false
    }
  })
