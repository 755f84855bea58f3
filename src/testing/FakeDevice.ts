/**
 * A virtio-blk disk (virtio 1.2 §5.2.6) behind the device's side of a virtqueue, written from the specification and not from the
 * driver, so that the two check each other.
 *
 * It keeps what a driver must not rely on to itself, notes each rule the driver breaks in {@link FakeDevice.violations},
 * answers in an order of choice, and does wrong what its plan says ({@link RequestFault}). Where the plan says nothing it is a
 * disk in memory that does what it should.
 *
 * It does nothing by itself: whoever has it tells it to look at its ring ({@link FakeDevice.step}, {@link FakeDevice.work}), and
 * so decides when things happen. `FakeTransport` is a device that goes by the clock.
 *
 * @since 0.1.0
 */
import * as SeededRandom from "../SeededRandom.ts"
import { ID_BYTES, RequestType, SECTOR_BYTES, Status } from "../Wire/VirtioBlk.ts"
import { type Chain, DeviceMemory, type DeviceRing, type DeviceRingOptions, type Shared } from "./DeviceRing.ts"
import { FakeDisk } from "./FakeDisk.ts"
import * as FaultPlan from "./FaultPlan.ts"
import { PackedDeviceRing } from "./PackedDeviceRing.ts"
import { SplitDeviceRing } from "./SplitDeviceRing.ts"

export type { Shared } from "./DeviceRing.ts"

/**
 * A part of a request's data, by the device's address.
 *
 * @category models
 * @since 0.1.0
 */
export interface Segment {
  readonly address: number
  readonly length: number
}

/**
 * A request as the device found it.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceRequest {
  /** How the driver knows it: its head in a split ring, its buffer id in a packed one. */
  readonly head: number
  /** See virtio 1.2 §5.2.6: 0 is a read, 1 a write, 4 a flush. */
  readonly type: number
  readonly sector: number
  /** What lies between header and status. */
  readonly segments: ReadonlyArray<Segment>
  /** The range of a discard or a write-zeroes. */
  readonly range: { readonly sector: number; readonly sectors: number; readonly flags: number } | undefined
  readonly statusAddress: number
  /** How many ring descriptors it takes. */
  readonly descriptors: number
  /** What the plan has in store for it. */
  readonly fault: FaultPlan.Fault<RequestFault> | undefined
  /** The step in which it may be answered. */
  readonly due: number
}

/**
 * What can go wrong with a request. The first five break the protocol: the driver gives the device up (EPROTO). The next two
 * fail their own request with EPROTO, the two after them with EIO and ENOTSUP.
 *
 * - `torn`: a part of the data is transferred, and the request fails (EIO).
 * - `misdirected`: it is carried out at another place of the disk, and succeeds: a lie, which only the data shows.
 * - `lost`: a write that succeeds and is not carried out, and a read that leaves the buffer as it is: lies, too.
 * - `reordered`: overtakes requests that were there before it.
 * - `delayed`: is answered up to 16 steps later.
 * - `unanswered`: is never answered.
 * - `silent`: nothing is answered from then on.
 *
 * @category models
 * @since 0.1.0
 */
export type RequestFault = (typeof requestFaults)[number]

/**
 * All of {@link RequestFault}.
 *
 * @category constants
 * @since 0.1.0
 */
export const requestFaults = [
  "id out of range",
  "id not in flight",
  "repeated id",
  "more used than available",
  "length too long",
  "no status",
  "garbage status",
  "I/O error",
  "unsupported",
  "torn",
  "misdirected",
  "lost",
  "reordered",
  "delayed",
  "unanswered",
  "silent"
] as const

/**
 * What can happen to a device, at each request that it takes; what it means is up to whoever has the device
 * ({@link FakeDevice.events}). In `FakeTransport`:
 *
 * - `configuration changes`: the device says so, and nothing is different.
 * - `garbage configuration`: the device says so, and all of it is any bytes.
 * - `resized`: the disk is larger, by up to 64 blocks.
 * - `needs reset`: the device says that it met an error (NEEDS_RESET), which ends the connection.
 * - `connection lost`: the backend goes away, and is there again for whoever connects.
 * - `crash`: the same, and its write cache is gone.
 *
 * @category models
 * @since 0.1.0
 */
export type DeviceEvent = (typeof deviceEvents)[number]

/**
 * All of {@link DeviceEvent}.
 *
 * @category constants
 * @since 0.1.0
 */
export const deviceEvents = [
  "configuration changes",
  "garbage configuration",
  "resized",
  "needs reset",
  "connection lost",
  "crash"
] as const

/**
 * What can go wrong with a device. Beside what befalls requests and the device itself: `dropped kick`, a notification that the
 * device does not hear, `dropped signal`, one that the driver does not hear, and `refused`, an attempt to connect that fails
 * (ECONNREFUSED).
 *
 * @category models
 * @since 0.1.0
 */
export type DeviceFault = RequestFault | DeviceEvent | "dropped kick" | "dropped signal" | "refused"

/**
 * The kinds of {@link DeviceFault}, by the sort of occasion at which they can happen.
 *
 * @category models
 * @since 0.1.0
 */
export const sorts = {
  request: requestFaults,
  event: deviceEvents,
  kick: ["dropped kick"],
  signal: ["dropped signal"],
  connect: ["refused"]
} as const satisfies FaultPlan.Sorts<DeviceFault>

/**
 * A plan that is being acted out by a device.
 *
 * @category models
 * @since 0.1.0
 */
export type Acting = FaultPlan.Acting<typeof sorts>

/**
 * In which order requests that are held are answered.
 *
 * @category models
 * @since 0.1.0
 */
export type Order = "fifo" | "reversed" | { readonly seed: number }

/**
 * What a device is made of.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceOptions {
  /** Where the parts of the ring lie, by the device's addresses. */
  readonly ring: DeviceRingOptions["ring"]
  /** RING_PACKED was negotiated. */
  readonly packed: boolean
  /** The memory that the device may access; may grow and shrink later. */
  readonly memory: ReadonlyArray<Shared>
  /** INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** EVENT_IDX was negotiated. */
  readonly eventIdx: boolean
  /** The most data segments that a request may have. */
  readonly maxSegments: number
  /** What is stored. Several devices may have one disk in common. */
  readonly disk: FakeDisk
  /** Signals the driver that something was used. */
  readonly signal: () => void
  /** Default: `fifo`. */
  readonly order?: Order
  /** What GET_ID answers with. Default: nothing. */
  readonly serial?: string
  /** What goes wrong. Default: nothing. */
  readonly faults?: Acting
}

/** A delayed request waits for at least one step and at most so many. */
const MOST_STEPS = 16
/** The first status that has no meaning, and how many there are before 0xff, which is no status. */
const FIRST_BAD_STATUS = 3
const BAD_STATUSES = 0xff - FIRST_BAD_STATUS
/** Some bad status, for a fault without a value. */
const SOME_BAD_STATUS = 0x77

/**
 * A device behind one ring.
 *
 * @category models
 * @since 0.1.0
 */
export class FakeDevice {
  /** Rules the driver broke. */
  readonly violations: Array<string> = []
  /** Requests the device took, oldest first, and not yet answered. */
  readonly held: Array<DeviceRequest> = []
  /** Every request ever taken, in order. */
  readonly taken: Array<DeviceRequest> = []
  /** What the plan had happen to the device and nobody has seen to yet, oldest first. */
  readonly events: Array<FaultPlan.Fault<DeviceEvent>> = []
  /** How often the driver was signalled. */
  signals = 0
  /** What goes wrong with the next answer, whatever the plan says; `silent` stays until it is taken back. */
  mischief: RequestFault | undefined
  /** Overrides the status of a request. */
  status: (request: DeviceRequest) => number | undefined = () => undefined
  order: Order

  readonly #options: DeviceOptions
  readonly #memory: DeviceMemory
  readonly #ring: DeviceRing
  readonly #random: SeededRandom.SeededRandom
  #descriptorsHeld = 0
  #step = 0
  #isSilent = false
  readonly #heads = new Set<number>()

  constructor(options: DeviceOptions) {
    const { eventIdx, indirect, packed, ring } = options
    this.#options = options
    this.order = options.order ?? "fifo"
    this.#random = SeededRandom.make(typeof this.order === "object" ? this.order.seed : 1)
    this.#memory = new DeviceMemory(options.memory)
    const violation = (text: string) => this.#violation(text)
    const sideOptions = { ring, memory: this.#memory, indirect, eventIdx, violation }
    this.#ring = packed ? new PackedDeviceRing(sideOptions) : new SplitDeviceRing(sideOptions)
  }

  /** The content of the disk. */
  get disk(): Uint8Array {
    return this.#options.disk.bytes
  }

  /** Whether there are requests that the device is going to answer, without being notified again. */
  get isBusy(): boolean {
    return this.held.length > 0 && !this.#isSilent && this.mischief !== "silent"
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
        this.#hold(request)
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

  /** Answers up to `limit` of the requests held that are due, and signals the driver where it asked for that. */
  answer(limit = Infinity): number {
    this.#step++
    let count = 0
    while (count < limit && this.isBusy) {
      const at = this.#choose()
      const request = this.held[at]
      if (request === undefined) break
      this.held.splice(at, 1)
      this.#end(request)
      count++
    }
    this.#publish()
    return count
  }

  /** Takes what is available and answers what is due of all that is held. Answers whether it is to come back. */
  step(): boolean {
    this.take()
    this.answer()
    return this.isBusy
  }

  /** Takes what is available and answers what is held, until nothing more is due. */
  work(): void {
    while (this.take() > 0 || this.held.length > 0) if (this.answer() === 0) return
  }

  /** Lets go of what is held without an answer; each request has been carried out or not, by chance. */
  abandon(random: SeededRandom.SeededRandom): void {
    for (const request of this.held.splice(0)) {
      if (random(2) === 0) this.#execute(request)
      this.#forget(request)
    }
  }

  /** Writes an answer that may be anything, and publishes it. */
  forge(id: number, length: number): void {
    this.#ring.use(id, length, 1)
    this.#publish()
  }

  #hold(request: DeviceRequest): void {
    const { fault } = request
    if (fault?.kind === "reordered") this.held.splice(fault.value % (this.held.length + 1), 0, request)
    else this.held.push(request)
    const event = this.#options.faults?.next("event")
    if (event !== undefined) this.events.push(event)
  }

  /** Where the request is held that is answered next; -1 where none is due. */
  #choose(): number {
    const { held, order } = this
    const isDue = ({ due }: DeviceRequest) => due <= this.#step
    if (order === "fifo") return held.findIndex(isDue)
    if (order === "reversed") return held.findLastIndex(isDue)
    const due = held.flatMap((request, at) => isDue(request) ? [at] : [])
    return due[this.#random(due.length)] ?? -1
  }

  #forget(request: DeviceRequest): void {
    this.#descriptorsHeld -= request.descriptors
    this.#heads.delete(request.head)
  }

  /** Executes a request and answers it, or does what {@link mischief} or the plan says. */
  #end(request: DeviceRequest): void {
    const { queueSize } = this.#options.ring
    const kind = this.mischief ?? request.fault?.kind
    const value = this.mischief === undefined ? request.fault?.value ?? 0 : 0
    const { descriptors, head } = request
    this.mischief = undefined
    if (kind === "silent") {
      this.#isSilent = true
      return
    }
    if (kind === "unanswered") return
    this.#forget(request)
    if (kind !== "no status") {
      this.#memory.view(request.statusAddress, 1).setUint8(0, this.#statusOf(request, kind, value))
    }
    const written = isRead(request) ? lengthOf(request) : 0
    switch (kind) {
      case "id out of range":
        // A packed ring's ids have 16 bits, and a split one's as many as are of use here.
        return this.#ring.use(queueSize + value % (2 ** 16 - queueSize), 1, descriptors)
      case "id not in flight": {
        const busy = new Set([request, ...this.held].map(({ head }) => head))
        const free = Array.from({ length: queueSize }, (_, id) => id).filter((id) => !busy.has(id))
        return this.#ring.use(free[value % free.length] ?? queueSize, 1, descriptors)
      }
      case "repeated id":
        this.#ring.use(head, written + 1, descriptors)
        return this.#ring.use(head, written + 1, descriptors)
      case "more used than available":
        this.#ring.use(head, written + 1, descriptors)
        for (const other of this.held.splice(0)) this.#end({ ...other, fault: undefined })
        return this.#ring.runAhead(queueSize + value % Math.max(1, 2 ** 16 - 2 * queueSize))
      case "length too long":
        return this.#ring.use(head, Math.min(2 ** 32 - 1, written + 2 + value), descriptors)
      default:
        return this.#ring.use(head, written + 1, descriptors)
    }
  }

  /** Executes a request as far as its fault allows, and gives the status that it is answered with. */
  #statusOf(request: DeviceRequest, kind: RequestFault | undefined, value: number): number {
    switch (kind) {
      case "garbage status":
        return FIRST_BAD_STATUS + (SOME_BAD_STATUS - FIRST_BAD_STATUS + value) % BAD_STATUSES
      case "I/O error":
        return Status.IOERR
      case "unsupported":
        return Status.UNSUPP
      case "lost":
        return Status.OK
      case "torn":
        this.#execute(request, { limit: value % Math.max(1, extentOf(request).length) })
        return Status.IOERR
      case "misdirected": {
        const { length, sector } = extentOf(request)
        const other = value % Math.max(1, Math.floor((this.disk.length - length) / SECTOR_BYTES))
        return this.status(request) ?? this.#execute(request, { sector: other === sector ? other + 1 : other })
      }
      default:
        return this.status(request) ?? this.#execute(request)
    }
  }

  #publish(): void {
    if (!this.#ring.publish() || this.#options.faults?.next("signal") !== undefined) return
    this.signals++
    this.#options.signal()
  }

  /** Carries a request out, at another sector or up to a `limit` in bytes where that is asked for, and gives its status. */
  #execute(request: DeviceRequest, { limit = Infinity, sector = extentOf(request).sector } = {}): number {
    const { disk: store, serial = "" } = this.#options
    const { type } = request
    if (type === RequestType.FLUSH) {
      store.flush()
      return Status.OK
    }
    const at = sector * SECTOR_BYTES
    const { length } = extentOf(request)
    switch (type) {
      case RequestType.IN:
        if (at + length > this.disk.length) return Status.IOERR
        this.#fill(request, this.disk.subarray(at, at + Math.min(length, limit)))
        return Status.OK
      case RequestType.OUT: {
        if (at + length > this.disk.length) return Status.IOERR
        let done = 0
        for (const segment of request.segments) {
          const bytes = this.#bytes(segment).subarray(0, Math.max(0, limit - done))
          store.write(at + done, bytes)
          done += bytes.length
        }
        return Status.OK
      }
      case RequestType.DISCARD:
      case RequestType.WRITE_ZEROES:
        if (at + length > this.disk.length) return Status.IOERR
        store.write(at, new Uint8Array(Math.min(length, limit)))
        return Status.OK
      case RequestType.GET_ID:
        this.#fill(request, new TextEncoder().encode(serial.padEnd(ID_BYTES, "\0")).subarray(0, ID_BYTES))
        return Status.OK
      default:
        return Status.UNSUPP
    }
  }

  /** Writes bytes into the segments of a request, as many as there are. */
  #fill({ segments }: DeviceRequest, bytes: Uint8Array): void {
    let done = 0
    for (const segment of segments) {
      const part = bytes.subarray(done, done + segment.length)
      this.#bytes(segment).set(part)
      done += part.length
    }
  }

  #bytes({ address, length }: Segment): Uint8Array {
    const { buffer, byteLength, byteOffset } = this.#memory.view(address, length)
    return new Uint8Array(buffer, byteOffset, byteLength)
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
    const isRead = type === RequestType.IN || type === RequestType.GET_ID
    if ((isRange || type === RequestType.FLUSH) && sector !== 0) this.#violation(`head ${head}: sector ${sector}`)
    if (type === RequestType.FLUSH && segments.length > 0) this.#violation(`head ${head}: a flush with data`)
    if (isRange && (segments.length !== 1 || segments[0]?.length !== 16)) this.#violation(`head ${head}: bad range`)
    if (segments.some(({ isWritable }) => isWritable !== isRead)) {
      this.#violation(`head ${head}: data of the wrong direction`)
    }
    if (this.#memory.view(status.address, 1).getUint8(0) !== Status.UNWRITTEN) {
      this.#violation(`head ${head}: the status is preset to success or failure`)
    }
    const fault = this.#options.faults?.next("request")
    return {
      head,
      type,
      sector,
      segments,
      range: isRange && segments[0] !== undefined ? this.#range(segments[0].address) : undefined,
      statusAddress: status.address,
      descriptors,
      fault,
      due: fault?.kind === "delayed" ? this.#step + 2 + fault.value % MOST_STEPS : 0
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

const isRead = ({ type }: DeviceRequest): boolean => type === RequestType.IN || type === RequestType.GET_ID

const lengthOf = ({ segments }: DeviceRequest): number => segments.reduce((sum, { length }) => sum + length, 0)

/** Where on the disk a request is to be carried out, and on how many bytes. */
const extentOf = (request: DeviceRequest): { readonly sector: number; readonly length: number } =>
  request.range === undefined
    ? { sector: request.sector, length: lengthOf(request) }
    : { sector: request.range.sector, length: request.range.sectors * SECTOR_BYTES }
