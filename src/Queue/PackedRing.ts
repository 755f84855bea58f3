/**
 * The driver's side of a packed virtqueue (virtio 1.2 §2.8).
 *
 * One ring of descriptors is written by both sides, so that a request and its answer touch one cache line of it, where a
 * split ring's touch three. A request is known by its buffer id, which is its slot. Its descriptors lie at the next places
 * of the ring: one with INDIRECT_DESC, that points to its table; otherwise header, data and status, one after another. The
 * device answers requests in an order of its own, but goes from place to place with its answers: one overwrites whatever the
 * driver wrote there, and both sides skip as many places as the answered request took (§2.8.6).
 *
 * The place that `#usedIdx` names was written by the driver in this lap or not at all, so its flags show one of two things:
 * available, or used. Anything else is the device's doing, and a fault.
 *
 * What is put is written at once, but for the flags of the first descriptor since the last {@link PackedRing.publish}: the
 * device goes from place to place and sees nothing behind that one until its flags are stored (§2.8.21.1).
 *
 * Publishing those flags and writing the driver's event area need a full barrier before the device's event area or its next
 * answer is read; `Atomics.store` followed by `Atomics.load` is one (§2.8.21.3.1).
 *
 * @since 0.1.0
 */
import * as Wire from "../Wire/PackedRing.ts"
import { DESCRIPTOR_BYTES, DescriptorFlag, wrap16 } from "../Wire/SplitRing.ts"
import { REQUEST_HEADER_BYTES as HEADER_BYTES, RequestType, SEGMENT_BYTES, STATUS_BYTES } from "../Wire/VirtioBlk.ts"
import type { DriverRing, RingMemory, RingOptions } from "./DriverRing.ts"
import { bytesWithSlots, COMPACT_DESCRIPTORS, HEADER_AND_STATUS, RequestSlots, sumOf } from "./RequestSlots.ts"

const NONE = 0xffff

const { INDIRECT, NEXT, WRITE } = DescriptorFlag

/** A table's descriptors have no flag but this one, in the upper half of their last word (§2.8.7). */
const WRITE_IN_TABLE = WRITE << 16

/** The driver's side of one packed virtqueue. */
export class PackedRing implements DriverRing {
  /** How much memory a ring needs, in bytes: a multiple of 64. */
  static bytes(options: RingOptions): number {
    return bytesWithSlots(options, Wire.layout(options.queueSize).bytes)
  }

  readonly descriptors: number
  readonly avail: number
  readonly used: number
  readonly queueSize: number
  fault: string | undefined
  outstanding = 0

  readonly #indirect: boolean
  readonly #eventIdx: boolean
  readonly #mask: number

  readonly #slots: RequestSlots
  readonly #halves: Uint16Array
  readonly #words: Uint32Array
  // Indices into `#words` (4 bytes each) and `#halves` (2 bytes each).
  readonly #descriptorWord: number
  readonly #idHalf: number
  readonly #flagsHalf: number
  readonly #lengthWord: number
  readonly #driverEventWord: number
  readonly #deviceEventWord: number

  // The private shadow: what the driver believes, whatever the shared memory says.
  readonly #nextFree: Uint16Array
  readonly #chainLength: Uint16Array
  #freeSlot = 0
  #freeCount: number
  #availIdx = 0
  #publishedIdx = 0
  #decidedIdx = 0
  #usedIdx = 0
  /** The flags of the descriptor at `#publishedIdx`, kept back where there is one. */
  #heldFlags = 0
  #kickDue = false
  /** Where the requests begin whose notification is due. */
  #dueSince = 0
  #isArmed = true

  constructor(options: RingOptions, memory: RingMemory, position = 0) {
    const { queueSize } = options
    const layout = Wire.layout(queueSize)
    const slots = new RequestSlots(options, memory, layout.bytes)
    this.#slots = slots
    this.#halves = slots.halves
    this.#words = slots.words
    this.queueSize = queueSize
    this.descriptors = slots.base + layout.descriptors
    this.avail = slots.base + layout.driverEvent
    this.used = slots.base + layout.deviceEvent
    this.#indirect = options.indirect
    this.#eventIdx = options.eventIdx
    this.#mask = queueSize - 1
    this.#descriptorWord = layout.descriptors / 4
    this.#idHalf = (layout.descriptors + Wire.DESCRIPTOR_ID) / 2
    this.#flagsHalf = (layout.descriptors + Wire.DESCRIPTOR_FLAGS) / 2
    this.#lengthWord = (layout.descriptors + Wire.DESCRIPTOR_LENGTH) / 4
    this.#driverEventWord = layout.driverEvent / 4
    this.#deviceEventWord = layout.deviceEvent / 4

    this.#nextFree = Uint16Array.from({ length: queueSize }, (_, i) => i + 1 === queueSize ? NONE : i + 1)
    this.#chainLength = new Uint16Array(queueSize)
    this.#freeCount = queueSize
    this.#availIdx = position
    this.#publishedIdx = position
    this.#decidedIdx = position
    this.#usedIdx = position
    if (options.indirect) { for (let slot = 0; slot < queueSize; slot++) this.#formatCompact(slot) }
    this.disarm()
  }

  get position(): number {
    return this.#availIdx
  }

  get usedPosition(): number {
    return this.#usedIdx
  }

  fits(segments: number): boolean {
    return this.#freeCount >= (this.#indirect ? 1 : segments + HEADER_AND_STATUS)
  }

  put(type: number, sector: number, address: number, length: number): number {
    const isRead = type === RequestType.IN || type === RequestType.GET_ID
    const slot = this.#claim(type, sector, isRead ? length : 0, COMPACT_DESCRIPTORS)
    const slots = this.#slots
    if (this.#indirect) {
      slots.describe(slots.compactWord(slot) + 4, address, length, isRead ? WRITE_IN_TABLE : 0)
      this.#append(slot, slots.compactAddress(slot), COMPACT_DESCRIPTORS * DESCRIPTOR_BYTES, INDIRECT)
    } else {
      this.#append(slot, slots.headerAddress(slot), HEADER_BYTES, NEXT)
      this.#append(slot, address, length, isRead ? NEXT | WRITE : NEXT)
      this.#append(slot, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    }
    return slot
  }

  putSegments(
    type: number,
    sector: number,
    addresses: ReadonlyArray<number>,
    lengths: ReadonlyArray<number>,
    count: number
  ): number {
    // Also since there are no large tables where one segment is the most.
    if (count === 1) return this.put(type, sector, addresses[0] ?? 0, lengths[0] ?? 0)
    const isRead = type === RequestType.IN || type === RequestType.GET_ID
    const slot = this.#claim(type, sector, isRead ? sumOf(lengths, count) : 0, count + HEADER_AND_STATUS)
    const slots = this.#slots
    if (this.#indirect) {
      const table = slots.tableWord(slot)
      slots.describe(table, slots.headerAddress(slot), HEADER_BYTES, 0)
      for (let i = 0; i < count; i++) {
        slots.describe(table + (i + 1) * 4, addresses[i] ?? 0, lengths[i] ?? 0, isRead ? WRITE_IN_TABLE : 0)
      }
      slots.describe(table + (count + 1) * 4, slots.statusAddress(slot), STATUS_BYTES, WRITE_IN_TABLE)
      this.#append(slot, slots.tableAddress(slot), (count + HEADER_AND_STATUS) * DESCRIPTOR_BYTES, INDIRECT)
    } else {
      this.#append(slot, slots.headerAddress(slot), HEADER_BYTES, NEXT)
      for (let i = 0; i < count; i++) {
        this.#append(slot, addresses[i] ?? 0, lengths[i] ?? 0, isRead ? NEXT | WRITE : NEXT)
      }
      this.#append(slot, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    }
    return slot
  }

  putRange(type: number, sector: number, sectors: number, flags: number): number {
    const address = this.#slots.range(this.#freeSlot, sector, sectors, flags)
    // The request's own sector must be 0; the range is in the segment.
    return this.put(type, 0, address, SEGMENT_BYTES)
  }

  putFlush(): number {
    const slot = this.#claim(RequestType.FLUSH, 0, 0, HEADER_AND_STATUS)
    const slots = this.#slots
    if (this.#indirect) {
      // A table has no `next` to skip the data by: the status takes its place, and the table is shorter.
      slots.describe(slots.compactWord(slot) + 4, slots.statusAddress(slot), STATUS_BYTES, WRITE_IN_TABLE)
      this.#append(slot, slots.compactAddress(slot), HEADER_AND_STATUS * DESCRIPTOR_BYTES, INDIRECT)
    } else {
      this.#append(slot, slots.headerAddress(slot), HEADER_BYTES, NEXT)
      this.#append(slot, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    }
    return slot
  }

  publish(): void {
    if (this.#publishedIdx === this.#availIdx) return
    Atomics.store(this.#halves, this.#flagsHalf + (this.#publishedIdx & this.#mask) * 8, this.#heldFlags)
    this.#publishedIdx = this.#availIdx
  }

  notificationDue(): boolean {
    if (this.#decidedIdx !== this.#publishedIdx) {
      if (!this.#kickDue) {
        this.#dueSince = this.#decidedIdx
        this.#kickDue = this.#isAsked()
      }
      this.#decidedIdx = this.#publishedIdx
    }
    return this.#kickDue
  }

  notificationStillDue(): boolean {
    this.#kickDue &&= this.#isAsked()
    return this.#kickDue
  }

  /** Whether the device asks to be notified of what was published since `#dueSince` (§2.8.21.2). */
  #isAsked(): boolean {
    const event = Atomics.load(this.#words, this.#deviceEventWord)
    return Wire.crossesEvent(event, this.#publishedIdx, this.#dueSince, this.queueSize)
  }

  notified(): void {
    this.#kickDue = false
  }

  get pending(): boolean {
    return this.#turnAt(this.#usedIdx) === Wire.usedTurn(this.#usedIdx, this.queueSize)
  }

  drain(out: Uint32Array): number {
    let count = 0
    while (count < out.length) {
      const idx = this.#usedIdx
      const place = idx & this.#mask
      const flags = Atomics.load(this.#halves, this.#flagsHalf + place * 8)
      const turn = Wire.turnOf(flags)
      if (turn !== Wire.usedTurn(idx, this.queueSize)) {
        // Where all that was published is answered, the place has what the lap before left in it.
        if (idx === this.#publishedIdx || turn === Wire.availableTurn(idx, this.queueSize)) break
        return this.#broken(`descriptor ${place} has flags ${flags}, neither available nor used in this lap`)
      }
      if (idx === this.#publishedIdx) return this.#broken(`descriptor ${place} is used and was not available`)
      const slot = this.#halves[this.#idHalf + place * 8] ?? NONE
      // The length is only there where the device says that it wrote something (§2.8.4); QEMU never says so.
      const length = (flags & WRITE) === 0 ? 0 : this.#words[this.#lengthWord + place * 4] ?? 0
      const wrong = this.#slots.wrong(slot, length)
      if (wrong !== undefined) return this.#broken(wrong)
      out[count++] = this.#slots.end(slot)
      this.#release(slot)
    }
    return count
  }

  arm(): boolean {
    const event = this.#eventIdx ? Wire.eventAt(this.#usedIdx, this.queueSize) : Wire.EventFlag.ENABLE << 16
    Atomics.store(this.#words, this.#driverEventWord, event)
    this.#isArmed = true
    return this.pending
  }

  /** With EVENT_IDX too: an event left behind would come round every other lap. */
  disarm(): void {
    if (!this.#isArmed) return
    Atomics.store(this.#words, this.#driverEventWord, Wire.EventFlag.DISABLE << 16)
    this.#isArmed = false
  }

  #broken(fault: string): -1 {
    this.fault = fault
    return -1
  }

  #turnAt(idx: number): number {
    return Wire.turnOf(Atomics.load(this.#halves, this.#flagsHalf + (idx & this.#mask) * 8))
  }

  /** Takes a slot and room for its descriptors, and begins the request. */
  #claim(type: number, sector: number, dataWritable: number, descriptors: number): number {
    const slot = this.#freeSlot
    const places = this.#indirect ? 1 : descriptors
    this.#freeSlot = this.#nextFree[slot] ?? NONE
    this.#freeCount -= places
    this.#chainLength[slot] = places
    this.#slots.begin(slot, type, sector, dataWritable)
    this.outstanding++
    return slot
  }

  /** Gives a slot back, and goes on behind its request's descriptors. */
  #release(slot: number): void {
    const places = this.#chainLength[slot] ?? 0
    this.#usedIdx = wrap16(this.#usedIdx + places)
    this.#freeCount += places
    this.#nextFree[slot] = this.#freeSlot
    this.#freeSlot = slot
    this.outstanding--
  }

  /** Writes the next descriptor of the ring (§2.8.13). */
  #append(slot: number, address: number, length: number, flags: number): void {
    const idx = this.#availIdx
    let shown = flags | Wire.availableTurn(idx, this.queueSize)
    if (idx === this.#publishedIdx) {
      this.#heldFlags = shown
      // Until it is published, it looks as if it were of the lap before.
      shown = flags | Wire.availableTurn(idx ^ this.queueSize, this.queueSize)
    }
    this.#slots.describe(this.#descriptorWord + (idx & this.#mask) * 4, address, length, slot | shown << 16)
    this.#availIdx = wrap16(idx + 1)
  }

  /** Writes the parts of a slot's compact table that never change. */
  #formatCompact(slot: number): void {
    const slots = this.#slots
    const table = slots.compactWord(slot)
    slots.describe(table, slots.headerAddress(slot), HEADER_BYTES, 0)
    slots.describe(table + 8, slots.statusAddress(slot), STATUS_BYTES, WRITE_IN_TABLE)
  }
}
