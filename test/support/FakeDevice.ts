/**
 * A virtio-blk disk (virtio 1.2 §5.2.6) behind the device's side of a virtqueue ({@link DeviceRing}), written from the
 * specification and not from `src/Queue`, so that the two check each other.
 *
 * It keeps what a driver must not rely on to itself, notes each rule the driver breaks in {@link FakeDevice.violations},
 * answers in an order of choice, and breaks the protocol on demand ({@link Mischief}). {@link make} puts a queue in front of
 * it; when the queue's scope closes, a driver that broke a rule fails the test.
 */
import { Effect, type Scope } from "effect"
import { deepStrictEqual } from "node:assert"
import * as Errno from "../../src/Errno.ts"
import { AddressSpace } from "../../src/Memory/AddressSpace.ts"
import type { MemoryRegion } from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import type { DriverRing, RingOptions } from "../../src/Queue/DriverRing.ts"
import * as IoQueue from "../../src/Queue/IoQueue.ts"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { QueueEngine, type Waiting } from "../../src/Queue/QueueEngine.ts"
import type { DeviceRules } from "../../src/Queue/Request.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import { RequestType, SECTOR_BYTES, Status } from "../../src/Wire/VirtioBlk.ts"
import { type Chain, DeviceMemory, type DeviceRing, type DeviceRingOptions, type Shared } from "./DeviceRing.ts"
import { PackedDeviceRing } from "./PackedDeviceRing.ts"
import { SplitDeviceRing } from "./SplitDeviceRing.ts"
import { random } from "./random.ts"

interface Segment {
  readonly address: number
  readonly length: number
}

/** A request as the device found it. */
export interface DeviceRequest {
  /** How the driver knows it: its head in a split ring, its buffer id in a packed one. */
  readonly head: number
  readonly type: number
  readonly sector: number
  /** What lies between header and status. */
  readonly segments: ReadonlyArray<Segment>
  /** The range of a discard or a write-zeroes. */
  readonly range: { readonly sector: number; readonly sectors: number; readonly flags: number } | undefined
  readonly statusAddress: number
  /** How many ring descriptors it takes. */
  readonly descriptors: number
}

/** Ways to break the protocol with the next completion; `silent` answers nothing from then on. */
export type Mischief =
  | "id out of range"
  | "id not in flight"
  | "repeated id"
  | "more used than available"
  | "length too long"
  | "no status"
  | "garbage status"
  | "silent"

/** In which order requests that are held are answered. */
export type Order = "fifo" | "reversed" | { readonly seed: number }

export interface DeviceOptions {
  readonly ring: DeviceRingOptions["ring"]
  /** RING_PACKED was negotiated. */
  readonly packed: boolean
  readonly memory: ReadonlyArray<Shared>
  readonly indirect: boolean
  readonly eventIdx: boolean
  readonly maxSegments: number
  readonly disk: Uint8Array
  /** Signals the driver that something was used. */
  readonly signal: () => void
  readonly order?: Order
}

export class FakeDevice {
  /** Rules the driver broke. */
  readonly violations: Array<string> = []
  /** Requests the device took, oldest first, and not yet answered. */
  readonly held: Array<DeviceRequest> = []
  /** Every request ever taken, in order. */
  readonly taken: Array<DeviceRequest> = []
  /** How often the driver was signalled. */
  signals = 0
  mischief: Mischief | undefined
  /** Overrides the status of a request. */
  status: (request: DeviceRequest) => number | undefined = () => undefined
  order: Order

  readonly disk: Uint8Array
  readonly #options: DeviceOptions
  readonly #memory: DeviceMemory
  readonly #ring: DeviceRing
  readonly #random: (limit: number) => number
  #descriptorsHeld = 0
  readonly #heads = new Set<number>()

  constructor(options: DeviceOptions) {
    const { eventIdx, indirect, packed, ring } = options
    this.#options = options
    this.disk = options.disk
    this.order = options.order ?? "fifo"
    this.#random = random(typeof this.order === "object" ? this.order.seed : 1)
    this.#memory = new DeviceMemory(options.memory)
    const violation = (text: string) => this.#violation(text)
    const sideOptions = { ring, memory: this.#memory, indirect, eventIdx, violation }
    this.#ring = packed ? new PackedDeviceRing(sideOptions) : new SplitDeviceRing(sideOptions)
  }

  /** Asks the driver for notifications, as at the start, or asks for none. */
  askNotifications(asks: boolean): void {
    this.#ring.askNotifications(asks)
  }

  /** Takes what the driver made available (§2.7.14), and holds it. Answers how many requests that were. */
  take(): number {
    const { queueSize } = this.#options.ring
    let count = 0
    do {
      for (let chain = this.#ring.next(); chain !== undefined; chain = this.#ring.next()) {
        const request = this.#request(chain)
        this.held.push(request)
        this.taken.push(request)
        this.#descriptorsHeld += request.descriptors
        if (this.#descriptorsHeld > queueSize) {
          this.#violation(`${this.#descriptorsHeld} descriptors in flight in a ring of ${queueSize}`)
        }
        count++
      }
    } while (this.#ring.askForNext())
    return count
  }

  /** Answers up to `limit` of the requests held, and signals the driver where it asked for that. */
  answer(limit = Infinity): number {
    if (this.mischief === "silent") return 0
    let count = 0
    while (this.held.length > 0 && count < limit) {
      this.#end(this.#next())
      count++
    }
    this.#publish()
    return count
  }

  /** Takes what is available and answers all that is held. */
  work(): void {
    while (this.take() > 0 || this.held.length > 0) if (this.answer() === 0) return
  }

  /** Writes an answer that may be anything, and publishes it. */
  forge(id: number, length: number): void {
    this.#ring.use(id, length, 1)
    this.#publish()
  }

  #next(): DeviceRequest {
    const { held, order } = this
    const at = order === "fifo" ? 0 : order === "reversed" ? held.length - 1 : this.#random(held.length)
    const request = held.splice(at, 1)[0]!
    this.#descriptorsHeld -= request.descriptors
    this.#heads.delete(request.head)
    return request
  }

  /** Executes a request and answers it, or does what {@link mischief} says. */
  #end(request: DeviceRequest): void {
    const { queueSize } = this.#options.ring
    const { mischief } = this
    const { descriptors, head } = request
    this.mischief = undefined
    if (mischief !== "no status") {
      const status = mischief === "garbage status" ? 0x77 : this.status(request) ?? this.#execute(request)
      this.#memory.view(request.statusAddress, 1).setUint8(0, status)
    }
    const read = request.type === RequestType.IN ? lengthOf(request) : 0
    switch (mischief) {
      case "id out of range":
        return this.#ring.use(queueSize, 1, descriptors)
      case "id not in flight": {
        const busy = new Set([request, ...this.held].map(({ head }) => head))
        const free = Array.from({ length: queueSize }, (_, id) => id).find((id) => !busy.has(id))
        return this.#ring.use(free ?? queueSize, 1, descriptors)
      }
      case "repeated id":
        this.#ring.use(head, read + 1, descriptors)
        return this.#ring.use(head, read + 1, descriptors)
      case "more used than available":
        this.#ring.use(head, read + 1, descriptors)
        while (this.held.length > 0) this.#end(this.#next())
        return this.#ring.runAhead()
      case "length too long":
        return this.#ring.use(head, read + 2, descriptors)
      default:
        return this.#ring.use(head, read + 1, descriptors)
    }
  }

  #publish(): void {
    if (!this.#ring.publish()) return
    this.signals++
    this.#options.signal()
  }

  #execute(request: DeviceRequest): number {
    const { disk } = this
    const { range, sector, type } = request
    const data = request.segments.map(({ address, length }) => bytesOf(this.#memory.view(address, length)))
    let at = sector * SECTOR_BYTES
    const end = range === undefined
      ? at + (type === RequestType.FLUSH ? 0 : lengthOf(request))
      : (range.sector + range.sectors) * SECTOR_BYTES
    if (end > disk.length) return Status.IOERR
    switch (type) {
      case RequestType.IN:
        for (const bytes of data) {
          bytes.set(disk.subarray(at, at + bytes.length))
          at += bytes.length
        }
        return Status.OK
      case RequestType.OUT:
        for (const bytes of data) {
          disk.set(bytes, at)
          at += bytes.length
        }
        return Status.OK
      case RequestType.DISCARD:
      case RequestType.WRITE_ZEROES:
        if (range !== undefined) disk.fill(0, range.sector * SECTOR_BYTES, end)
        return Status.OK
      case RequestType.FLUSH:
        return Status.OK
      default:
        return Status.UNSUPP
    }
  }

  /** Checks what the driver promised of a request. */
  #request({ descriptors, elements: chain, id: head }: Chain): DeviceRequest {
    if (this.#heads.has(head)) this.#violation(`head ${head} is in flight already`)
    this.#heads.add(head)
    if (chain.length > this.#options.maxSegments + 2) this.#violation(`head ${head}: ${chain.length - 2} segments`)
    let wasWritable = false
    for (const { address, isWritable, length } of chain) {
      if (length === 0) this.#violation(`head ${head}: a descriptor of length 0`)
      if (wasWritable && !isWritable) this.#violation(`head ${head}: readable after writable`)
      wasWritable = isWritable
      this.#memory.view(address, length)
    }
    const header = chain[0]
    const status = chain.at(-1)
    if (header === undefined || status === undefined || chain.length < 2) throw new Error(`head ${head}: too short`)
    if (header.length !== 16 || header.isWritable) this.#violation(`head ${head}: bad header`)
    if (status.length !== 1 || !status.isWritable) this.#violation(`head ${head}: bad status`)
    const { reserved, sector, type } = this.#header(header.address)
    if (reserved !== 0) this.#violation(`head ${head}: reserved word ${reserved}`)
    const segments = chain.slice(1, -1)
    const isRange = type === RequestType.DISCARD || type === RequestType.WRITE_ZEROES
    const isRead = type === RequestType.IN
    if ((isRange || type === RequestType.FLUSH) && sector !== 0) this.#violation(`head ${head}: sector ${sector}`)
    if (type === RequestType.FLUSH && segments.length > 0) this.#violation(`head ${head}: a flush with data`)
    if (isRange && (segments.length !== 1 || segments[0]?.length !== 16)) this.#violation(`head ${head}: bad range`)
    if (segments.some(({ isWritable }) => isWritable !== isRead)) {
      this.#violation(`head ${head}: data of the wrong direction`)
    }
    if (this.#memory.view(status.address, 1).getUint8(0) !== Status.UNWRITTEN) {
      this.#violation(`head ${head}: the status is preset to success or failure`)
    }
    return {
      head,
      type,
      sector,
      segments,
      range: isRange && segments[0] !== undefined ? this.#range(segments[0].address) : undefined,
      statusAddress: status.address,
      descriptors
    }
  }

  #header(address: number) {
    const view = this.#memory.view(address, 16)
    return {
      type: view.getUint32(0, true),
      reserved: view.getUint32(4, true),
      sector: Number(view.getBigUint64(8, true))
    }
  }

  #range(address: number) {
    const view = this.#memory.view(address, 16)
    return {
      sector: Number(view.getBigUint64(0, true)),
      sectors: view.getUint32(8, true),
      flags: view.getUint32(12, true)
    }
  }

  #violation(text: string): void {
    this.violations.push(text)
  }
}

const bytesOf = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength)

const lengthOf = ({ segments }: DeviceRequest): number => segments.reduce((sum, { length }) => sum + length, 0)

/** A device that allows everything, with a disk of `capacity` bytes. */
export const rulesOf = (capacity: number, maxSegments: number): DeviceRules => ({
  capacity,
  requestAlignment: SECTOR_BYTES,
  readOnly: false,
  canFlush: true,
  canDiscard: true,
  canWriteZeroes: true,
  mayUnmap: true,
  writeCache: true,
  maxTransfer: 0,
  maxSegmentLength: 0,
  maxSegments,
  maxDiscardLength: 0,
  maxWriteZeroesLength: 0
})

/** A region that is only memory: nothing here asks the kernel for it. */
export const fakeRegion = (length: number): MemoryRegion => ({
  bytes: new Uint8Array(new ArrayBuffer(length)),
  length,
  fd: -1,
  fdOffset: 0,
  file: "memory",
  address: 0
})

/** When a device looks at its ring: inside the notification, a turn of the event loop later, or when told to. */
export type Working = "at once" | "next turn" | "by hand"

export interface QueueOptions {
  readonly packed?: boolean
  readonly queueSize?: number
  readonly indirect?: boolean
  readonly eventIdx?: boolean
  readonly maxSegments?: number
  readonly waiting?: Waiting
  readonly rules?: Partial<DeviceRules>
  readonly signalsInTurn?: boolean
  readonly working?: Working
  readonly order?: Order
}

/** A queue with a fake device behind it. */
export interface FakeQueue {
  readonly queue: IoQueue.IoQueue
  readonly engine: QueueEngine
  readonly ring: DriverRing
  readonly space: AddressSpace
  readonly device: FakeDevice
  readonly region: MemoryRegion
  /** The memory the ring lies in. */
  readonly memory: ArrayBuffer
  readonly rules: DeviceRules
  /** `length` bytes of mapped memory that nothing else uses. */
  readonly buffer: (length: number) => Uint8Array
  /** What happens at a notification; answers 0 or an errno. */
  notify: () => number
  notifications: number
  /** What the engine said of the device. */
  readonly faults: Array<Errno.EPROTO>
}

/** High addresses, so that all 64 bits of an address are seen to arrive. */
export const RING_ADDRESS = 2 ** 44 + 2 ** 33
/** Bytes before the ring in its memory, unless told otherwise. */
export const RING_OFFSET = 128
const REGION_ADDRESS = 2 ** 46 + 2 ** 32 * 5
const REGION_BYTES = 1 << 20
const DISK_BYTES = 1 << 20

/** Makes a ring over ordinary memory, and the device at its other end. */
export const makeRing = (
  options: RingOptions & { readonly packed: boolean },
  others: {
    readonly memory?: ReadonlyArray<Shared>
    readonly disk?: Uint8Array
    readonly signal?: () => void
    readonly order?: Order
    /** Bytes before the ring in its memory. */
    readonly offset?: number
  } = {}
): { readonly ring: DriverRing; readonly device: FakeDevice; readonly memory: ArrayBuffer } => {
  const { disk = new Uint8Array(DISK_BYTES), offset = RING_OFFSET, order = "fifo", signal = () => {} } = others
  const Ring = options.packed ? PackedRing : SplitRing
  const buffer = new ArrayBuffer(offset + Ring.bytes(options))
  const ring = new Ring(options, { buffer, offset, address: RING_ADDRESS })
  const memory = [{ buffer, address: RING_ADDRESS }, ...others.memory ?? []]
  const { eventIdx, indirect, maxSegments, packed } = options
  const device = new FakeDevice({ ring, packed, memory, indirect, eventIdx, maxSegments, disk, signal, order })
  return { ring, device, memory: buffer }
}

/** Makes a queue with a fake device behind it. */
export const make = (options: QueueOptions = {}): Effect.Effect<FakeQueue, never, Scope.Scope> => {
  const { eventIdx = true, indirect = true, order = "fifo", packed = false, queueSize = 16, waiting = "event" } =
    options
  const { maxSegments = indirect ? queueSize : queueSize - 2, working = "at once" } = options
  const open = Effect.sync((): FakeQueue & { readonly fd: number } => {
    const fd = Libc.createEventFd()
    const region = fakeRegion(REGION_BYTES)
    const { device, memory, ring } = makeRing({ packed, queueSize, indirect, eventIdx, maxSegments }, {
      memory: [{ buffer: region.bytes.buffer, address: REGION_ADDRESS }],
      signal: () => Libc.signalEventFd(fd),
      order
    })
    const space = new AddressSpace({ maxRegions: 8, alignment: 1 })
    space.add(region, REGION_ADDRESS)
    const rules = { ...rulesOf(device.disk.length, maxSegments), ...options.rules }
    const faults: Array<Errno.EPROTO> = []
    let allocated = 0
    const made = {
      fd,
      region,
      memory,
      device,
      ring,
      space,
      rules,
      faults,
      notifications: 0,
      notify: () => {
        if (working === "at once") device.work()
        if (working === "next turn") setImmediate(() => device.work())
        return 0
      },
      buffer: (length: number) => {
        const at = allocated
        allocated += length
        return region.bytes.subarray(at, at + length)
      }
    }
    const engine: QueueEngine = new QueueEngine({
      index: 0,
      waiting,
      ring,
      rules,
      memory: space,
      notify: () => {
        made.notifications++
        return made.notify()
      },
      completionFd: fd,
      signalsInTurn: options.signalsInTurn ?? true,
      onFault: (failure) => {
        faults.push(failure)
        engine.fail(failure)
      }
    })
    return Object.assign(made, { engine, queue: IoQueue.fromEngine(engine, 0) })
  })
  return Effect.acquireRelease(open, ({ device, engine, fd }) =>
    Effect.sync(() => {
      engine.fail(new Errno.ESHUTDOWN({ operation: "close", detail: "the test is over" }))
      Libc.close(fd)
      deepStrictEqual(device.violations, [], "the driver broke rules")
    }))
}
