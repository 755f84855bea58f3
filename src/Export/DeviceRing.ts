/**
 * The device's side of a split virtqueue (virtio 1.2 §2.7): takes chains of descriptors that a driver made available, and
 * hands them back as used.
 *
 * Plain data and views of the front-end's memory: no Effect, no system call. A ring can be made anew over the same state
 * (when the front-end's memory is mapped anew), since all that it has to remember is two indices.
 *
 * The driver is not trusted. Whatever is read from its memory is read once and checked: indices, table sizes, flags, the
 * length of a chain, and that each byte of it lies in a mapped region. A violation sets {@link DeviceRing.fault}, and the
 * ring is dead from then on. Whether the same descriptors are handed out twice is for the queue to say, which knows what is
 * in flight.
 *
 * Publishing `used.idx` and `avail_event` needs a full barrier before the other side's index is read: `Atomics.store`
 * followed by `Atomics.load`, as in the driver's ring.
 *
 * @since 0.1.0
 */
import * as Wire from "../Wire/SplitRing.ts"
import type { GuestMemory, Region } from "./GuestMemory.ts"

const { INDIRECT, NEXT, WRITE } = Wire.DescriptorFlag

/** The longest chain that is followed: libvhost-user's and QEMU's limit (VIRTQUEUE_MAX_SIZE), above which none is asked. */
const MAX_CHAIN = 1024

/** The most bytes of a chain (virtio 1.2 §2.7.5); what was written of it has 32 bits in the used ring. */
const MAX_CHAIN_BYTES = 2 ** 32

/** What a ring is made of, as the front-end says. */
export interface RingOptions {
  /** Number of descriptors: a power of two, at most 32768. */
  readonly queueSize: number
  /** User addresses of the three parts. */
  readonly descriptors: number
  readonly avail: number
  readonly used: number
  /** INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** EVENT_IDX was negotiated. */
  readonly eventIdx: boolean
  /** The next entry of the avail ring to take. */
  readonly availIdx: number
}

/**
 * A chain of descriptors as it was taken: those that the device reads come first, then those that it writes. Filled by
 * {@link DeviceRing.take}, which uses the same one again.
 */
export class Chain {
  /** The first descriptor, by which the chain is handed back. */
  head = 0
  /** How many descriptors there are. */
  count = 0
  /** How many of them the device reads. */
  readable = 0
  /** Where each lies: its region, the position of its first byte in `region.bytes`, and its length. */
  readonly regions: Array<Region> = []
  readonly positions: Array<number> = []
  readonly lengths: Array<number> = []
}

/** The device's side of one virtqueue. */
export class DeviceRing {
  /** What the driver did wrong; once set, the ring must not be used. */
  fault: string | undefined
  /** The regions that the ring itself lies in. */
  readonly regions: ReadonlyArray<Region>

  readonly #memory: GuestMemory
  readonly #size: number
  readonly #indirect: boolean
  readonly #eventIdx: boolean
  readonly #descriptors: DataView
  readonly #descriptorsAt: number
  readonly #avail: Uint16Array
  readonly #used: Uint16Array
  readonly #usedRing: Uint32Array
  readonly #usedEventHalf: number
  readonly #availEventHalf: number
  #availIdx: number
  #seenIdx: number
  #usedIdx: number
  #publishedIdx: number

  /** Lays a ring over the front-end's memory; answers what is wrong with where it lies, if anything. */
  static make(memory: GuestMemory, options: RingOptions): DeviceRing | string {
    const { avail, descriptors, queueSize, used } = options
    // virtio 1.2 §2.7: the descriptors' alignment is 16, avail's 2, used's 4.
    const first = partAt(memory, "descriptors", descriptors, queueSize * Wire.DESCRIPTOR_BYTES, 16)
    if (typeof first === "string") return first
    const second = partAt(memory, "avail ring", avail, Wire.availUsedEvent(queueSize) + 2, 2)
    if (typeof second === "string") return second
    const third = partAt(memory, "used ring", used, Wire.usedAvailEvent(queueSize) + 2, 4)
    return typeof third === "string" ? third : new DeviceRing(memory, options, first, second, third)
  }

  private constructor(memory: GuestMemory, options: RingOptions, descriptors: Part, avail: Part, used: Part) {
    const { queueSize } = options
    this.#memory = memory
    this.#size = queueSize
    this.#indirect = options.indirect
    this.#eventIdx = options.eventIdx
    this.regions = [descriptors.region, avail.region, used.region]
    this.#descriptors = descriptors.region.view
    this.#descriptorsAt = descriptors.position
    this.#avail = new Uint16Array(avail.region.bytes.buffer, avail.position, queueSize + 3)
    this.#used = new Uint16Array(used.region.bytes.buffer, used.position, queueSize * 4 + 3)
    this.#usedRing = new Uint32Array(used.region.bytes.buffer, used.position + Wire.USED_RING, queueSize * 2)
    this.#usedEventHalf = Wire.availUsedEvent(queueSize) / 2
    this.#availEventHalf = Wire.usedAvailEvent(queueSize) / 2
    this.#availIdx = options.availIdx
    this.#seenIdx = options.availIdx
    this.#usedIdx = Atomics.load(this.#used, USED_IDX)
    this.#publishedIdx = this.#usedIdx
  }

  /** The next entry of the avail ring to take. */
  get availIdx(): number {
    return this.#availIdx
  }

  /** The next entry of the used ring to fill. */
  get usedIdx(): number {
    return this.#usedIdx
  }

  /** Whether the driver has made something available that was not taken. */
  get pending(): boolean {
    return Atomics.load(this.#avail, AVAIL_IDX) !== this.#availIdx
  }

  /** Takes the next chain; false where there is none, or the driver broke the protocol. */
  take(chain: Chain): boolean {
    if (this.#seenIdx === this.#availIdx && !this.#look()) return false
    const head = this.#avail[AVAIL_RING + (this.#availIdx & (this.#size - 1))] ?? 0
    if (!this.follow(head, chain)) return false
    this.#availIdx = Wire.wrap16(this.#availIdx + 1)
    return true
  }

  /** Looks at `avail.idx`; true where there is more than was taken. */
  #look(): boolean {
    const idx = Atomics.load(this.#avail, AVAIL_IDX)
    const ahead = Wire.pending(idx, this.#availIdx)
    if (ahead > this.#size) return this.#broken(`avail.idx runs ${ahead} ahead in a ring of ${this.#size}`)
    this.#seenIdx = idx
    return ahead > 0
  }

  /** Fills `chain` with the descriptors from `head` on (§2.7.5); false where they break the protocol. */
  follow(head: number, chain: Chain): boolean {
    if (head >= this.#size) return this.#broken(`head ${head} in a ring of ${this.#size}`)
    chain.head = head
    chain.count = 0
    chain.readable = 0
    let view = this.#descriptors
    let table = this.#descriptorsAt
    let limit = this.#size
    let isIndirect = false
    let index = head
    let total = 0
    // A descriptor may be part of a chain once, so a longer chain than its table goes in circles.
    for (let left = limit; left > 0; left--) {
      const at = table + index * Wire.DESCRIPTOR_BYTES
      const high = view.getUint32(at + 4, true)
      const address = high * 0x1_0000_0000 + view.getUint32(at, true)
      const length = view.getUint32(at + 8, true)
      const flags = view.getUint16(at + 12, true)
      const next = view.getUint16(at + 14, true)
      const region = this.#memory.atGuest(address, length)
      if (region === undefined) {
        return this.#broken(`descriptor ${index} of head ${head}: ${length} bytes at ${address} are not mapped`)
      }
      const position = region.start + address - region.guestAddress
      if ((flags & INDIRECT) !== 0) {
        if (isIndirect) return this.#broken(`head ${head}: an indirect table inside an indirect table`)
        if (!this.#indirect) return this.#broken(`head ${head}: an indirect table, which was not negotiated`)
        if ((flags & NEXT) !== 0) return this.#broken(`head ${head}: an indirect table that has a next descriptor`)
        if (length === 0 || length % Wire.DESCRIPTOR_BYTES !== 0) {
          return this.#broken(`head ${head}: an indirect table of ${length} bytes, no multiple of 16`)
        }
        isIndirect = true
        view = region.view
        table = position
        limit = length / Wire.DESCRIPTOR_BYTES
        left = limit + 1
        index = 0
        continue
      }
      if (chain.count === MAX_CHAIN) return this.#broken(`head ${head}: more than ${MAX_CHAIN} descriptors`)
      total += length
      if (total > MAX_CHAIN_BYTES) return this.#broken(`head ${head}: more than ${MAX_CHAIN_BYTES} bytes`)
      if ((flags & WRITE) === 0) {
        if (chain.readable !== chain.count) {
          return this.#broken(`head ${head}: a descriptor to read after one to write`)
        }
        chain.readable++
      }
      chain.regions[chain.count] = region
      chain.positions[chain.count] = position
      chain.lengths[chain.count++] = length
      if ((flags & NEXT) === 0) return true
      if (next >= limit) return this.#broken(`head ${head}: next ${next} in a table of ${limit}`)
      index = next
    }
    return this.#broken(`head ${head}: a chain that goes in circles`)
  }

  /** Hands a chain back, `written` bytes of which were written. The driver does not see it before {@link publish}. */
  use(head: number, written: number): void {
    const element = (this.#usedIdx & (this.#size - 1)) * 2
    this.#usedRing[element] = head
    this.#usedRing[element + 1] = written
    this.#usedIdx = Wire.wrap16(this.#usedIdx + 1)
  }

  /** Shows the driver all that was handed back since the last time, and tells whether it asked to be notified (§2.7.7.2). */
  publish(): boolean {
    const before = this.#publishedIdx
    if (before === this.#usedIdx) return false
    this.#publishedIdx = this.#usedIdx
    Atomics.store(this.#used, USED_IDX, this.#usedIdx)
    return this.#eventIdx
      ? Wire.crossesEvent(Atomics.load(this.#avail, this.#usedEventHalf), this.#usedIdx, before)
      : (Atomics.load(this.#avail, AVAIL_FLAGS) & Wire.AVAIL_NO_INTERRUPT) === 0
  }

  /**
   * Asks the driver to notify of the next chain (§2.7.10), and tells whether one is there already: then nobody may sleep,
   * since that one may go unnotified.
   */
  arm(): boolean {
    if (this.#eventIdx) Atomics.store(this.#used, this.#availEventHalf, this.#availIdx)
    else Atomics.store(this.#used, USED_FLAGS, 0)
    return this.pending
  }

  /**
   * Asks the driver not to notify. With EVENT_IDX there is nothing to do: `avail_event` stays behind, and the driver
   * notifies again only when its index comes round to it.
   */
  disarm(): void {
    if (!this.#eventIdx) Atomics.store(this.#used, USED_FLAGS, Wire.USED_NO_NOTIFY)
  }

  #broken(fault: string): false {
    this.fault = fault
    return false
  }
}

/** Where a part of the ring lies. */
interface Part {
  readonly region: Region
  readonly position: number
}

/** Finds a part of the ring, or says what is wrong with where it lies. */
const partAt = (
  memory: GuestMemory,
  name: string,
  address: number,
  bytes: number,
  alignment: number
): Part | string => {
  const region = memory.atUser(address, bytes)
  if (region === undefined) return `the ${bytes} bytes of the ${name} at ${address} are not in a mapped region`
  const position = region.start + address - region.userAddress
  if (position % alignment !== 0) return `the ${name} at ${address} must lie at a multiple of ${alignment}`
  return { region, position }
}

// The parts' fields as indices into their 16-bit views.
const AVAIL_FLAGS = Wire.AVAIL_FLAGS / 2
const AVAIL_IDX = Wire.AVAIL_IDX / 2
const AVAIL_RING = Wire.AVAIL_RING / 2
const USED_FLAGS = Wire.USED_FLAGS / 2
const USED_IDX = Wire.USED_IDX / 2
