/**
 * The device's side of a packed virtqueue, from virtio 1.2 §2.8: places and wrap counters as the specification has them, and
 * events compared with each descriptor one by one.
 */
import {
  type Chain,
  type DeviceRing,
  type DeviceRingOptions,
  type Element,
  INDIRECT,
  NEXT,
  WRITE
} from "./DeviceRing.ts"

const AVAIL = 0x80
const USED = 0x8000

const EVENTS_ENABLE = 0
const EVENTS_DISABLE = 1
const EVENTS_DESC = 2

/** A place in the ring and the wrap counter there (§2.8.1). */
interface Position {
  readonly place: number
  readonly wrap: boolean
}

export class PackedDeviceRing implements DeviceRing {
  readonly #options: DeviceRingOptions
  #taken: Position
  #used: Position
  #published: Position
  /** The flags of the first descriptor used since the last publication, which are written last. */
  #firstFlags: number | undefined
  #asksNotifications = true

  constructor(options: DeviceRingOptions) {
    const { position = 0, ring } = options
    const start = { place: position % ring.queueSize, wrap: (position & ring.queueSize) === 0 }
    this.#options = options
    this.#taken = start
    this.#used = start
    this.#published = start
  }

  /** Reads a list (§2.8.6) or a table (§2.8.7) and checks what the driver promised of it. */
  next(): Chain | undefined {
    if (!this.#isAvailable(this.#taken)) return undefined
    const { indirect, memory, ring, violation } = this.#options
    const elements: Array<Element> = []
    const start = this.#taken.place
    for (let descriptors = 1; descriptors <= ring.queueSize; descriptors++) {
      const view = memory.view(ring.descriptors + 16 * this.#taken.place, 16)
      const flags = view.getUint16(14, true)
      const id = view.getUint16(12, true)
      const address = Number(view.getBigUint64(0, true))
      const length = view.getUint32(8, true)
      if (!this.#isAvailable(this.#taken)) violation(`list at ${start}: its descriptor ${descriptors} is not available`)
      if ((flags & ~(NEXT | WRITE | INDIRECT | AVAIL | USED)) !== 0) {
        violation(`list at ${start}: unknown flags ${flags}`)
      }
      this.#taken = this.#after(this.#taken, 1)
      if ((flags & INDIRECT) === 0) elements.push({ address, length, isWritable: (flags & WRITE) !== 0 })
      else {
        if (!indirect) violation(`list at ${start}: INDIRECT was not negotiated`)
        if (descriptors > 1 || (flags & NEXT) !== 0) violation(`list at ${start}: INDIRECT inside a list`)
        if ((flags & WRITE) !== 0) violation(`list at ${start}: INDIRECT and the reserved flag WRITE`)
        elements.push(...this.#table(address, length))
      }
      // The id is that of the last descriptor (§2.8.6).
      if ((flags & NEXT) === 0) return { id, elements, descriptors }
    }
    throw new Error(`the list at ${start} has more descriptors than the ring of ${ring.queueSize}`)
  }

  askForNext(): boolean {
    const { eventIdx, memory, ring } = this.#options
    if (!eventIdx || !this.#asksNotifications) return false
    // First where, then that it is asked for: the driver may look in between.
    memory.store16(ring.used, this.#taken.place | (this.#taken.wrap ? 0x8000 : 0))
    memory.store16(ring.used + 2, EVENTS_DESC)
    return this.#isAvailable(this.#taken)
  }

  askNotifications(asks: boolean): void {
    this.#asksNotifications = asks
    const { eventIdx, memory, ring } = this.#options
    if (!asks) memory.store16(ring.used + 2, EVENTS_DISABLE)
    else if (eventIdx) this.askForNext()
    else memory.store16(ring.used + 2, EVENTS_ENABLE)
  }

  use(id: number, length: number, descriptors: number): void {
    const { memory, ring } = this.#options
    const at = ring.descriptors + 16 * this.#used.place
    const view = memory.view(at, 16)
    view.setUint32(8, length, true)
    view.setUint16(12, id, true)
    const flags = (length > 0 ? WRITE : 0) | (this.#used.wrap ? AVAIL | USED : 0)
    if (this.#used.place === this.#published.place) this.#firstFlags = flags
    else view.setUint16(14, flags, true)
    this.#used = this.#after(this.#used, descriptors)
  }

  runAhead(): void {
    this.use(0, 1, 1)
  }

  publish(): boolean {
    if (this.#firstFlags === undefined) return false
    const { eventIdx, memory, ring, violation } = this.#options
    memory.store16(ring.descriptors + 16 * this.#published.place + 14, this.#firstFlags)
    this.#firstFlags = undefined
    const before = this.#published
    this.#published = this.#used
    const wish = memory.load16(ring.avail + 2)
    const event = memory.load16(ring.avail)
    if (wish === EVENTS_DISABLE) return false
    if (wish === EVENTS_ENABLE) return true
    if (wish !== EVENTS_DESC) violation(`the driver's event area has flags ${wish}`)
    if (!eventIdx) violation("the driver asks for the event of a descriptor without EVENT_IDX")
    if ((event & 0x7fff) >= ring.queueSize) violation(`the driver asks for the event of descriptor ${event & 0x7fff}`)
    for (let at = before; !isSame(at, this.#used); at = this.#after(at, 1)) {
      if (isSame(at, { place: event & 0x7fff, wrap: (event & 0x8000) !== 0 })) return true
    }
    return false
  }

  /** The wrap counter turns when the last descriptor of the ring is left behind (§2.8.1). */
  #after({ place, wrap }: Position, descriptors: number): Position {
    const { queueSize } = this.#options.ring
    const next = place + descriptors
    return next >= queueSize ? { place: next - queueSize, wrap: !wrap } : { place: next, wrap }
  }

  #isAvailable({ place, wrap }: Position): boolean {
    const { memory, ring } = this.#options
    const flags = memory.load16(ring.descriptors + 16 * place + 14)
    return ((flags & AVAIL) !== 0) === wrap && ((flags & USED) !== 0) !== wrap
  }

  /** A table's descriptors follow one another and have no flag but WRITE (§2.8.7, §2.8.19). */
  #table(address: number, bytes: number): ReadonlyArray<Element> {
    const { memory, violation } = this.#options
    if (bytes === 0 || bytes % 16 !== 0) violation(`a table of ${bytes} bytes`)
    return Array.from({ length: bytes / 16 }, (_, i) => {
      const view = memory.view(address + 16 * i, 16)
      const flags = view.getUint16(14, true)
      if ((flags & ~WRITE) !== 0) violation(`a table's descriptor has flags ${flags}`)
      return {
        address: Number(view.getBigUint64(0, true)),
        length: view.getUint32(8, true),
        isWritable: flags === WRITE
      }
    })
  }
}

const isSame = (a: Position, b: Position): boolean => a.place === b.place && a.wrap === b.wrap
