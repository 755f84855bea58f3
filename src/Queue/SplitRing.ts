/**
 * The driver's side of a split virtqueue (virtio 1.2 §2.7).
 *
 * Per request nothing is allocated: a slot (the number of a request's head descriptor) has its
 * request header, status byte and descriptor table preformatted in the ring's memory ({@link RequestSlots}), and only what
 * differs is written. With INDIRECT_DESC a request takes one descriptor and its table shares a cache line with its header;
 * without, it is a chain of ring descriptors. The first descriptor is always the 16-byte header and the last the 1-byte
 * status, because some devices insist (SPDK).
 *
 * Publishing `avail.idx` and `used_event` needs a full barrier before the other side's index is read; `Atomics.store`
 * followed by `Atomics.load` is one (a plain store loses wake-ups, and the ring hangs).
 *
 * @since 0.1.0
 */
import * as Wire from "../Wire/SplitRing.ts"
import { REQUEST_HEADER_BYTES as HEADER_BYTES, RequestType, SEGMENT_BYTES, STATUS_BYTES } from "../Wire/VirtioBlk.ts"
import type { DriverRing, RingMemory, RingOptions } from "./DriverRing.ts"
import { bytesWithSlots, COMPACT_DESCRIPTORS, HEADER_AND_STATUS, RequestSlots, sumOf } from "./RequestSlots.ts"

const NONE = 0xffff

const { INDIRECT, NEXT, WRITE } = Wire.DescriptorFlag

/** The driver's side of one split virtqueue. */
export class SplitRing implements DriverRing {
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
  readonly #availRingHalf: number
  readonly #availFlagsHalf: number
  readonly #availIdxHalf: number
  readonly #usedEventHalf: number
  readonly #usedIdxHalf: number
  readonly #usedFlagsHalf: number
  readonly #availEventHalf: number
  readonly #usedRingWord: number

  // The private shadow: what the driver believes, whatever the shared memory says.
  readonly #next: Uint16Array
  readonly #chainLength: Uint16Array
  readonly #spread: Uint8Array
  #freeHead = 0
  #freeCount: number
  #availIdx = 0
  #publishedIdx = 0
  #decidedIdx = 0
  #kickDue = false
  /** Where the requests begin whose notification is due. */
  #dueSince = 0
  #usedIdx = 0

  constructor(options: RingOptions, memory: RingMemory, position = 0) {
    const { queueSize } = options
    const layout = Wire.layout(queueSize)
    const slots = new RequestSlots(options, memory, layout.bytes)
    this.#slots = slots
    this.#halves = slots.halves
    this.#words = slots.words
    this.queueSize = queueSize
    this.descriptors = slots.base + layout.descriptors
    this.avail = slots.base + layout.avail
    this.used = slots.base + layout.used
    this.#indirect = options.indirect
    this.#eventIdx = options.eventIdx
    this.#mask = queueSize - 1
    this.#descriptorWord = layout.descriptors / 4
    this.#availFlagsHalf = (layout.avail + Wire.AVAIL_FLAGS) / 2
    this.#availIdxHalf = (layout.avail + Wire.AVAIL_IDX) / 2
    this.#availRingHalf = (layout.avail + Wire.AVAIL_RING) / 2
    this.#usedEventHalf = (layout.avail + Wire.availUsedEvent(queueSize)) / 2
    this.#usedFlagsHalf = (layout.used + Wire.USED_FLAGS) / 2
    this.#usedIdxHalf = (layout.used + Wire.USED_IDX) / 2
    this.#usedRingWord = (layout.used + Wire.USED_RING) / 4
    this.#availEventHalf = (layout.used + Wire.usedAvailEvent(queueSize)) / 2

    this.#next = Uint16Array.from({ length: queueSize }, (_, i) => i + 1 === queueSize ? NONE : i + 1)
    this.#chainLength = new Uint16Array(queueSize)
    this.#spread = new Uint8Array(queueSize)
    this.#freeCount = queueSize
    this.#availIdx = position
    this.#publishedIdx = position
    this.#decidedIdx = position
    this.#usedIdx = position
    if (options.indirect) { for (let slot = 0; slot < queueSize; slot++) this.#formatCompact(slot) }
    if (options.eventIdx) Atomics.store(this.#halves, this.#usedEventHalf, Wire.wrap16(position - 1))
    else this.disarm()
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
    const flags = isRead ? NEXT | WRITE : NEXT
    if (this.#indirect) {
      const table = this.#slots.compactWord(slot)
      this.#words[table + 3] = NEXT | 1 << 16
      this.#slots.describe(table + 4, address, length, flags | 2 << 16)
    } else {
      const data = this.#formatChainEnds(slot)
      this.#slots.describe(this.#descriptorWord + data * 4, address, length, flags | this.#nextOf(data) << 16)
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
    const flags = isRead ? NEXT | WRITE : NEXT
    if (this.#indirect) {
      const table = this.#formatTable(slot, count)
      for (let i = 0; i < count; i++) {
        this.#slots.describe(table + (i + 1) * 4, addresses[i] ?? 0, lengths[i] ?? 0, flags | (i + 2) << 16)
      }
    } else {
      let data = this.#formatChainEnds(slot)
      for (let i = 0; i < count; i++) {
        const next = this.#nextOf(data)
        this.#slots.describe(this.#descriptorWord + data * 4, addresses[i] ?? 0, lengths[i] ?? 0, flags | next << 16)
        data = next
      }
    }
    return slot
  }

  putRange(type: number, sector: number, sectors: number, flags: number): number {
    const address = this.#slots.range(this.#freeHead, sector, sectors, flags)
    // The request's own sector must be 0; the range is in the segment.
    return this.put(type, 0, address, SEGMENT_BYTES)
  }

  putFlush(): number {
    const slot = this.#claim(RequestType.FLUSH, 0, 0, HEADER_AND_STATUS)
    if (this.#indirect) this.#words[this.#slots.compactWord(slot) + 3] = NEXT | 2 << 16
    else this.#formatChainEnds(slot)
    return slot
  }

  publish(): void {
    if (this.#publishedIdx === this.#availIdx) return
    this.#publishedIdx = this.#availIdx
    Atomics.store(this.#halves, this.#availIdxHalf, this.#availIdx)
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

  /** Whether the device asks to be notified of what was published since `#dueSince` (§2.7.10). */
  #isAsked(): boolean {
    return this.#eventIdx
      ? Wire.crossesEvent(Atomics.load(this.#halves, this.#availEventHalf), this.#publishedIdx, this.#dueSince)
      : (Atomics.load(this.#halves, this.#usedFlagsHalf) & Wire.USED_NO_NOTIFY) === 0
  }

  notified(): void {
    this.#kickDue = false
  }

  get pending(): boolean {
    return Atomics.load(this.#halves, this.#usedIdxHalf) !== this.#usedIdx
  }

  drain(out: Uint32Array): number {
    const pending = Wire.pending(Atomics.load(this.#halves, this.#usedIdxHalf), this.#usedIdx)
    if (pending > this.outstanding) {
      return this.#broken(`used.idx runs ${pending} ahead with ${this.outstanding} requests in flight`)
    }
    const count = Math.min(pending, out.length)
    for (let i = 0; i < count; i++) {
      const element = this.#usedRingWord + (this.#usedIdx & this.#mask) * (Wire.USED_ELEMENT_BYTES / 4)
      const slot = this.#words[element] ?? NONE
      const length = this.#words[element + 1] ?? 0
      const wrong = this.#slots.wrong(slot, length)
      if (wrong !== undefined) return this.#broken(wrong)
      out[i] = this.#slots.end(slot)
      this.#release(slot)
      this.#usedIdx = Wire.wrap16(this.#usedIdx + 1)
    }
    return count
  }

  arm(): boolean {
    if (this.#eventIdx) Atomics.store(this.#halves, this.#usedEventHalf, this.#usedIdx)
    else Atomics.store(this.#halves, this.#availFlagsHalf, 0)
    return this.pending
  }

  /**
   * With EVENT_IDX there is nothing to do: `used_event` stays behind, and the device signals again only when its index comes
   * round to it, once in 65536 completions.
   */
  disarm(): void {
    if (!this.#eventIdx) Atomics.store(this.#halves, this.#availFlagsHalf, Wire.AVAIL_NO_INTERRUPT)
  }

  #broken(fault: string): -1 {
    this.fault = fault
    return -1
  }

  /** Takes descriptors for a request, and begins it. */
  #claim(type: number, sector: number, dataWritable: number, descriptors: number): number {
    const slot = this.#freeHead
    if (this.#indirect) {
      this.#freeHead = this.#next[slot] ?? NONE
      this.#freeCount--
      if (this.#spread[slot] === 1) this.#formatCompact(slot)
    } else {
      let last = slot
      for (let i = 1; i < descriptors; i++) last = this.#nextOf(last)
      this.#freeHead = this.#nextOf(last)
      this.#freeCount -= descriptors
      this.#chainLength[slot] = descriptors
    }
    this.#slots.begin(slot, type, sector, dataWritable)
    this.outstanding++
    this.#halves[this.#availRingHalf + (this.#availIdx & this.#mask)] = slot
    this.#availIdx = Wire.wrap16(this.#availIdx + 1)
    return slot
  }

  /** Gives a request's descriptors back. */
  #release(slot: number): void {
    let last = slot
    if (this.#indirect) this.#freeCount++
    else {
      const length = this.#chainLength[slot] ?? 0
      for (let i = 1; i < length; i++) last = this.#nextOf(last)
      this.#freeCount += length
    }
    this.#next[last] = this.#freeHead
    this.#freeHead = slot
    this.outstanding--
  }

  #nextOf(descriptor: number): number {
    return this.#next[descriptor] ?? NONE
  }

  /** Points a slot's ring descriptor at its compact table, and writes the parts of the table that never change. */
  #formatCompact(slot: number): void {
    const slots = this.#slots
    const table = slots.compactWord(slot)
    const bytes = COMPACT_DESCRIPTORS * Wire.DESCRIPTOR_BYTES
    slots.describe(table, slots.headerAddress(slot), HEADER_BYTES, NEXT | 1 << 16)
    slots.describe(table + 8, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    slots.describe(this.#descriptorWord + slot * 4, slots.compactAddress(slot), bytes, INDIRECT)
    this.#spread[slot] = 0
  }

  /** Points a slot's ring descriptor at its large table, writes that table's ends, and answers where it lies. */
  #formatTable(slot: number, count: number): number {
    const slots = this.#slots
    const table = slots.tableWord(slot)
    const bytes = (count + HEADER_AND_STATUS) * Wire.DESCRIPTOR_BYTES
    slots.describe(table, slots.headerAddress(slot), HEADER_BYTES, NEXT | 1 << 16)
    slots.describe(table + (count + 1) * 4, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    slots.describe(this.#descriptorWord + slot * 4, slots.tableAddress(slot), bytes, INDIRECT)
    this.#spread[slot] = 1
    return table
  }

  /** Writes the header and status descriptors of a chain, and answers its second descriptor. */
  #formatChainEnds(slot: number): number {
    const slots = this.#slots
    const second = this.#nextOf(slot)
    let last = second
    for (let i = 2; i < (this.#chainLength[slot] ?? 0); i++) last = this.#nextOf(last)
    slots.describe(this.#descriptorWord + slot * 4, slots.headerAddress(slot), HEADER_BYTES, NEXT | second << 16)
    slots.describe(this.#descriptorWord + last * 4, slots.statusAddress(slot), STATUS_BYTES, WRITE)
    return second
  }
}
