/**
 * The device's side of a split virtqueue with a virtio-blk disk behind it, written from virtio 1.2 (§2.7, §5.2.6) and not
 * from `src/Queue`, so that the two check each other.
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
import * as IoQueue from "../../src/Queue/IoQueue.ts"
import { QueueEngine, type Waiting } from "../../src/Queue/QueueEngine.ts"
import type { DeviceRules } from "../../src/Queue/Request.ts"
import { ringBytes, type RingOptions, SplitRing } from "../../src/Queue/SplitRing.ts"
import {
  AVAIL_FLAGS,
  AVAIL_IDX,
  AVAIL_NO_INTERRUPT,
  AVAIL_RING,
  availUsedEvent,
  DescriptorFlag,
  USED_FLAGS,
  USED_IDX,
  USED_NO_NOTIFY,
  USED_RING,
  usedAvailEvent
} from "../../src/Wire/SplitRing.ts"
import { RequestType, SECTOR_BYTES, Status } from "../../src/Wire/VirtioBlk.ts"

/** Memory the device may access, and at which address. */
interface Shared {
  readonly buffer: ArrayBuffer
  readonly address: number
}

interface Segment {
  readonly address: number
  readonly length: number
}

/** A request as the device found it. */
export interface DeviceRequest {
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
  | "used.idx ahead"
  | "length too long"
  | "no status"
  | "garbage status"
  | "silent"

/** In which order requests that are held are answered. */
export type Order = "fifo" | "reversed" | { readonly seed: number }

export interface DeviceOptions {
  readonly ring: Pick<SplitRing, "descriptors" | "avail" | "used" | "queueSize">
  readonly memory: ReadonlyArray<Shared>
  readonly indirect: boolean
  readonly eventIdx: boolean
  readonly maxSegments: number
  readonly disk: Uint8Array
  /** Signals the driver that something was used. */
  readonly signal: () => void
  readonly order?: Order
}

/** Numbers from 0 up to before `limit`, the same for the same seed (mulberry32). */
export const random = (seed: number) => (limit: number): number => {
  seed = seed + 0x6d2b79f5 | 0
  let mixed = Math.imul(seed ^ seed >>> 15, 1 | seed)
  mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed
  return Math.floor(((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32 * limit)
}

const u16 = (n: number): number => n & 0xffff

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
  readonly #random: (limit: number) => number
  #takenIdx = 0
  #usedIdx = 0
  #descriptorsHeld = 0
  readonly #heads = new Set<number>()
  #asksNotifications = true

  constructor(options: DeviceOptions) {
    this.#options = options
    this.disk = options.disk
    this.order = options.order ?? "fifo"
    this.#random = random(typeof this.order === "object" ? this.order.seed : 1)
  }

  /** Asks the driver for notifications, as at the start, or asks for none. */
  askNotifications(asks: boolean): void {
    this.#asksNotifications = asks
    const { eventIdx, ring } = this.#options
    if (!eventIdx) this.#store(ring.used + USED_FLAGS, asks ? 0 : USED_NO_NOTIFY)
    else if (asks) this.#store(ring.used + usedAvailEvent(ring.queueSize), this.#takenIdx)
  }

  /** Takes what the driver made available (§2.7.14), and holds it. Answers how many requests that were. */
  take(): number {
    const { eventIdx, ring } = this.#options
    let count = 0
    for (;;) {
      const ahead = u16(this.#load(ring.avail + AVAIL_IDX) - this.#takenIdx)
      if (ahead > ring.queueSize) this.#violation(`avail.idx runs ${ahead} ahead`)
      for (let i = 0; i < ahead; i++) {
        const entry = ring.avail + AVAIL_RING + 2 * (this.#takenIdx % ring.queueSize)
        const request = this.#request(this.#view(entry, 2).getUint16(0, true))
        this.#takenIdx = u16(this.#takenIdx + 1)
        this.held.push(request)
        this.taken.push(request)
        this.#descriptorsHeld += request.descriptors
        if (this.#descriptorsHeld > ring.queueSize) {
          this.#violation(`${this.#descriptorsHeld} descriptors in flight in a ring of ${ring.queueSize}`)
        }
      }
      count += ahead
      if (!eventIdx || !this.#asksNotifications) return count
      // Ask first, then look again: what comes in between is not announced (§2.7.10).
      this.#store(ring.used + usedAvailEvent(ring.queueSize), this.#takenIdx)
      if (this.#load(ring.avail + AVAIL_IDX) === this.#takenIdx) return count
    }
  }

  /** Answers up to `limit` of the requests held, and signals the driver where it asked for that. */
  answer(limit = Infinity): number {
    if (this.mischief === "silent") return 0
    const before = this.#usedIdx
    let count = 0
    while (this.held.length > 0 && count < limit) {
      const request = this.#next()
      this.#descriptorsHeld -= request.descriptors
      this.#heads.delete(request.head)
      this.#end(request)
      count++
    }
    this.#publish(before)
    return count
  }

  /** Takes what is available and answers all that is held. */
  work(): void {
    while (this.take() > 0 || this.held.length > 0) if (this.answer() === 0) return
  }

  /** Writes an entry of the used ring (§2.7.8) that may be anything, and publishes it. */
  forge(id: number, length: number, advance = 1): void {
    const before = this.#usedIdx
    this.#use(id, length)
    this.#usedIdx = u16(before + advance)
    this.#publish(before)
  }

  #next(): DeviceRequest {
    const { held, order } = this
    const at = order === "fifo" ? 0 : order === "reversed" ? held.length - 1 : this.#random(held.length)
    return held.splice(at, 1)[0]!
  }

  /** Executes a request and puts it into the used ring, or does what {@link mischief} says. */
  #end(request: DeviceRequest): void {
    const { queueSize } = this.#options.ring
    const { mischief } = this
    this.mischief = undefined
    if (mischief !== "no status") {
      const status = mischief === "garbage status" ? 0x77 : this.status(request) ?? this.#execute(request)
      this.#view(request.statusAddress, 1).setUint8(0, status)
    }
    const read = request.type === RequestType.IN ? lengthOf(request) : 0
    switch (mischief) {
      case "id out of range":
        return this.#use(queueSize, 1)
      case "id not in flight": {
        const busy = new Set([request, ...this.held].map(({ head }) => head))
        const free = Array.from({ length: queueSize }, (_, id) => id).find((id) => !busy.has(id))
        return this.#use(free ?? queueSize, 1)
      }
      case "repeated id":
        this.#use(request.head, read + 1)
        return this.#use(request.head, read + 1)
      case "used.idx ahead":
        this.#use(request.head, read + 1)
        this.#usedIdx = u16(this.#usedIdx + queueSize)
        return
      case "length too long":
        return this.#use(request.head, read + 2)
      default:
        return this.#use(request.head, read + 1)
    }
  }

  #use(id: number, length: number): void {
    const { ring } = this.#options
    const entry = this.#view(ring.used + USED_RING + 8 * (this.#usedIdx % ring.queueSize), 8)
    entry.setUint32(0, id, true)
    entry.setUint32(4, length, true)
    this.#usedIdx = u16(this.#usedIdx + 1)
  }

  /** Shows the used entries since `before`, and signals where the driver asked for it (§2.7.7). */
  #publish(before: number): void {
    if (this.#usedIdx === before) return
    const { eventIdx, ring, signal } = this.#options
    this.#store(ring.used + USED_IDX, this.#usedIdx)
    const event = this.#load(ring.avail + availUsedEvent(ring.queueSize))
    const isAsked = eventIdx
      ? u16(event - before) < u16(this.#usedIdx - before)
      : (this.#load(ring.avail + AVAIL_FLAGS) & AVAIL_NO_INTERRUPT) === 0
    if (!isAsked) return
    this.signals++
    signal()
  }

  #execute(request: DeviceRequest): number {
    const { disk } = this
    const { range, sector, type } = request
    const data = request.segments.map(({ address, length }) => bytesOf(this.#view(address, length)))
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

  /** Follows a chain (§2.7.5) and checks what the driver promised of it. */
  #request(head: number): DeviceRequest {
    const { indirect, maxSegments, ring } = this.#options
    if (head >= ring.queueSize) throw new Error(`head ${head} of a ring of ${ring.queueSize}`)
    if (this.#heads.has(head)) this.#violation(`head ${head} is in flight already`)
    this.#heads.add(head)
    const first = this.#descriptor(ring.descriptors, head)
    const isIndirect = (first.flags & DescriptorFlag.INDIRECT) !== 0
    if (isIndirect && !indirect) this.#violation(`head ${head}: INDIRECT was not negotiated`)
    if (isIndirect && (first.flags & (DescriptorFlag.NEXT | DescriptorFlag.WRITE)) !== 0) {
      this.#violation(`head ${head}: INDIRECT beside flags ${first.flags}`)
    }
    if (isIndirect && (first.length === 0 || first.length % 16 !== 0)) {
      this.#violation(`head ${head}: a table of ${first.length} bytes`)
    }
    const chain = isIndirect
      ? this.#chain(first.address, 0, first.length / 16)
      : this.#chain(ring.descriptors, head, ring.queueSize)
    if (chain.length > maxSegments + 2) this.#violation(`head ${head}: ${chain.length - 2} segments`)
    let wasWritable = false
    for (const { address, flags, length } of chain) {
      const isWritable = (flags & DescriptorFlag.WRITE) !== 0
      if (length === 0) this.#violation(`head ${head}: a descriptor of length 0`)
      if (wasWritable && !isWritable) this.#violation(`head ${head}: readable after writable`)
      if ((flags & DescriptorFlag.INDIRECT) !== 0) this.#violation(`head ${head}: INDIRECT inside a chain`)
      if ((flags & ~3) !== 0) this.#violation(`head ${head}: unknown flags ${flags}`)
      wasWritable = isWritable
      this.#view(address, length)
    }
    const header = chain[0]
    const status = chain.at(-1)
    if (header === undefined || status === undefined || chain.length < 2) throw new Error(`head ${head}: too short`)
    if (header.length !== 16 || (header.flags & DescriptorFlag.WRITE) !== 0) this.#violation(`head ${head}: bad header`)
    if (status.length !== 1 || (status.flags & DescriptorFlag.WRITE) === 0) this.#violation(`head ${head}: bad status`)
    const { reserved, sector, type } = this.#header(header.address)
    if (reserved !== 0) this.#violation(`head ${head}: reserved word ${reserved}`)
    const segments = chain.slice(1, -1)
    const isRange = type === RequestType.DISCARD || type === RequestType.WRITE_ZEROES
    const isRead = type === RequestType.IN
    if ((isRange || type === RequestType.FLUSH) && sector !== 0) this.#violation(`head ${head}: sector ${sector}`)
    if (type === RequestType.FLUSH && segments.length > 0) this.#violation(`head ${head}: a flush with data`)
    if (isRange && (segments.length !== 1 || segments[0]?.length !== 16)) this.#violation(`head ${head}: bad range`)
    if (segments.some(({ flags }) => (flags & DescriptorFlag.WRITE) !== (isRead ? DescriptorFlag.WRITE : 0))) {
      this.#violation(`head ${head}: data of the wrong direction`)
    }
    if (this.#view(status.address, 1).getUint8(0) !== Status.UNWRITTEN) {
      this.#violation(`head ${head}: the status is preset to success or failure`)
    }
    return {
      head,
      type,
      sector,
      segments,
      range: isRange && segments[0] !== undefined ? this.#range(segments[0].address) : undefined,
      statusAddress: status.address,
      descriptors: isIndirect ? 1 : chain.length
    }
  }

  #chain(table: number, from: number, limit: number) {
    const chain = [this.#descriptor(table, from)]
    for (let last = chain[0]!; (last.flags & DescriptorFlag.NEXT) !== 0; chain.push(last)) {
      if (last.next >= limit || chain.length >= limit) throw new Error(`a chain leaves its table of ${limit}`)
      last = this.#descriptor(table, last.next)
    }
    return chain
  }

  #descriptor(table: number, at: number) {
    const view = this.#view(table + 16 * at, 16)
    return {
      address: Number(view.getBigUint64(0, true)),
      length: view.getUint32(8, true),
      flags: view.getUint16(12, true),
      next: view.getUint16(14, true)
    }
  }

  #header(address: number) {
    const view = this.#view(address, 16)
    return {
      type: view.getUint32(0, true),
      reserved: view.getUint32(4, true),
      sector: Number(view.getBigUint64(8, true))
    }
  }

  #range(address: number) {
    const view = this.#view(address, 16)
    return {
      sector: Number(view.getBigUint64(0, true)),
      sectors: view.getUint32(8, true),
      flags: view.getUint32(12, true)
    }
  }

  /** Finds the memory at a device address. */
  #view(address: number, length: number): DataView {
    for (const { address: base, buffer } of this.#options.memory) {
      const at = address - base
      if (at >= 0 && at + length <= buffer.byteLength) return new DataView(buffer, at, length)
    }
    throw new Error(`${length} bytes at device address ${address} are not mapped`)
  }

  #half(address: number): Uint16Array {
    const { buffer, byteOffset } = this.#view(address, 2)
    return new Uint16Array(buffer, byteOffset, 1)
  }

  #load(address: number): number {
    return Atomics.load(this.#half(address), 0)
  }

  #store(address: number, value: number): void {
    Atomics.store(this.#half(address), 0, value)
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
  readonly queueSize?: number
  readonly indirect?: boolean
  readonly eventIdx?: boolean
  readonly maxSegments?: number
  readonly waiting?: Waiting
  readonly rules?: Partial<DeviceRules>
  readonly working?: Working
  readonly order?: Order
}

/** A queue with a fake device behind it. */
export interface FakeQueue {
  readonly queue: IoQueue.IoQueue
  readonly engine: QueueEngine
  readonly ring: SplitRing
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
const RING_ADDRESS = 2 ** 44 + 2 ** 33
const REGION_ADDRESS = 2 ** 46 + 2 ** 32 * 5
const REGION_BYTES = 1 << 20
const DISK_BYTES = 1 << 20

/** Makes a ring over ordinary memory, and the device at its other end. */
export const makeRing = (
  options: RingOptions,
  others: {
    readonly memory?: ReadonlyArray<Shared>
    readonly disk?: Uint8Array
    readonly signal?: () => void
    readonly order?: Order
    /** Bytes before the ring in its memory. */
    readonly offset?: number
  } = {}
): { readonly ring: SplitRing; readonly device: FakeDevice; readonly memory: ArrayBuffer } => {
  const { disk = new Uint8Array(DISK_BYTES), offset = 128, order = "fifo", signal = () => {} } = others
  const buffer = new ArrayBuffer(offset + ringBytes(options))
  const ring = new SplitRing(options, { buffer, offset, address: RING_ADDRESS })
  const memory = [{ buffer, address: RING_ADDRESS }, ...others.memory ?? []]
  const { eventIdx, indirect, maxSegments } = options
  const device = new FakeDevice({ ring, memory, indirect, eventIdx, maxSegments, disk, signal, order })
  return { ring, device, memory: buffer }
}

/** Makes a queue with a fake device behind it. */
export const make = (options: QueueOptions = {}): Effect.Effect<FakeQueue, never, Scope.Scope> => {
  const { eventIdx = true, indirect = true, order = "fifo", queueSize = 16, waiting = "event" } = options
  const { maxSegments = indirect ? queueSize : queueSize - 2, working = "at once" } = options
  const open = Effect.sync((): FakeQueue & { readonly fd: number } => {
    const fd = Libc.createEventFd()
    const region = fakeRegion(REGION_BYTES)
    const { device, memory, ring } = makeRing({ queueSize, indirect, eventIdx, maxSegments }, {
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
