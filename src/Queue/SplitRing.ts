/**
 * The driver's side of a split virtqueue (virtio 1.2 §2.7), carrying virtio-blk requests (§5.2.6).
 *
 * Plain data and one view of memory, no Effect and no system call, so that it runs on ordinary memory in tests and can
 * live in any thread. One ring belongs to one thread.
 *
 * Per request nothing is allocated and nothing is called: a slot (the number of a request's head descriptor) has its
 * request header, status byte and descriptor table preformatted in the ring's memory, and only what differs is written.
 * With INDIRECT_DESC a request takes one descriptor and its table shares a cache line with its header; without, it is a
 * chain of ring descriptors. The first descriptor is always the 16-byte header and the last the 1-byte status, because
 * some devices insist (SPDK).
 *
 * The device is not trusted. What the driver needs to know of its own requests it keeps outside the shared memory, and
 * each value read from it is checked: a violation sets {@link SplitRing.fault} and the ring is dead from then on.
 *
 * Publishing `avail.idx` and `used_event` needs a full barrier before the other side's index is read; `Atomics.store`
 * followed by `Atomics.load` is one (a plain store loses wake-ups, and the ring hangs).
 *
 * @since 0.1.0
 */
import * as Wire from "../Wire/SplitRing.ts"
import {
  REQUEST_HEADER_BYTES as HEADER_BYTES,
  RequestType,
  SEGMENT_BYTES,
  Status,
  STATUS_BYTES
} from "../Wire/VirtioBlk.ts"

/** What a ring is made of. */
export interface RingOptions {
  /** Number of descriptors: a power of two, at most 32768. */
  readonly queueSize: number
  /** The most data segments a request may have, at least 1. */
  readonly maxSegments: number
  /** INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** EVENT_IDX was negotiated. */
  readonly eventIdx: boolean
}

/** Where a ring lies. */
export interface RingMemory {
  /** Zeroed memory that the device shares. */
  readonly buffer: ArrayBuffer
  /** Where the ring begins in it: a multiple of 64. */
  readonly offset: number
  /** The device's address of `buffer`'s first byte. */
  readonly address: number
}

const CACHE_LINE_BYTES = 64
const HEADER_AND_STATUS = 2
/** A table of header, one data segment and status (48 bytes) and the request header (16): one cache line. */
const COMPACT_BYTES = 64
const COMPACT_DESCRIPTORS = 3
const HEADER_IN_COMPACT = 48
const NONE = 0xffff

const { INDIRECT, NEXT, WRITE } = Wire.DescriptorFlag

const cacheLines = (bytes: number): number => Math.ceil(bytes / CACHE_LINE_BYTES) * CACHE_LINE_BYTES

interface RingLayout extends Wire.Layout {
  readonly statuses: number
  readonly segments: number
  readonly compacts: number
  readonly tables: number
  readonly tableBytes: number
}

const layoutOf = (options: RingOptions): RingLayout => {
  const ring = Wire.layout(options.queueSize)
  const statuses = ring.bytes
  const segments = statuses + cacheLines(options.queueSize * STATUS_BYTES)
  const compacts = segments + cacheLines(options.queueSize * SEGMENT_BYTES)
  const tables = compacts + options.queueSize * COMPACT_BYTES
  const tableBytes = options.indirect && options.maxSegments > 1
    ? cacheLines((options.maxSegments + HEADER_AND_STATUS) * Wire.DESCRIPTOR_BYTES)
    : 0
  return { ...ring, statuses, segments, compacts, tables, tableBytes, bytes: tables + options.queueSize * tableBytes }
}

/** How much memory a ring needs, in bytes: a multiple of 64. */
export const ringBytes = (options: RingOptions): number => layoutOf(options).bytes

/** The driver's side of one virtqueue. */
export class SplitRing {
  /** Device addresses of the three parts, for the transport. */
  readonly descriptors: number
  readonly avail: number
  readonly used: number
  readonly queueSize: number

  /** What the device did wrong; once set, the ring must not be used. */
  fault: string | undefined
  /** Requests the device has not answered. */
  outstanding = 0

  readonly #indirect: boolean
  readonly #eventIdx: boolean
  readonly #mask: number

  readonly #bytes: Uint8Array
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
  readonly #compactWord: number
  readonly #segmentWord: number
  readonly #tableWord: number
  readonly #tableWords: number
  readonly #statusByte: number
  readonly #base: number
  readonly #layout: RingLayout

  // The private shadow: what the driver believes, whatever the shared memory says.
  readonly #next: Uint16Array
  readonly #inFlight: Uint8Array
  readonly #chainLength: Uint16Array
  readonly #writable: Float64Array
  readonly #spread: Uint8Array
  #freeHead = 0
  #freeCount: number
  #availIdx = 0
  #publishedIdx = 0
  #decidedIdx = 0
  #kickDue = false
  #usedIdx = 0

  constructor(options: RingOptions, memory: RingMemory) {
    const layout = layoutOf(options)
    const { queueSize } = options
    const base = memory.address + memory.offset
    this.#layout = layout
    this.#base = base
    this.queueSize = queueSize
    this.descriptors = base + layout.descriptors
    this.avail = base + layout.avail
    this.used = base + layout.used
    this.#indirect = options.indirect
    this.#eventIdx = options.eventIdx
    this.#mask = queueSize - 1
    this.#bytes = new Uint8Array(memory.buffer, memory.offset, layout.bytes)
    this.#halves = new Uint16Array(memory.buffer, memory.offset, layout.bytes / 2)
    this.#words = new Uint32Array(memory.buffer, memory.offset, layout.bytes / 4)
    this.#descriptorWord = layout.descriptors / 4
    this.#availFlagsHalf = (layout.avail + Wire.AVAIL_FLAGS) / 2
    this.#availIdxHalf = (layout.avail + Wire.AVAIL_IDX) / 2
    this.#availRingHalf = (layout.avail + Wire.AVAIL_RING) / 2
    this.#usedEventHalf = (layout.avail + Wire.availUsedEvent(queueSize)) / 2
    this.#usedFlagsHalf = (layout.used + Wire.USED_FLAGS) / 2
    this.#usedIdxHalf = (layout.used + Wire.USED_IDX) / 2
    this.#usedRingWord = (layout.used + Wire.USED_RING) / 4
    this.#availEventHalf = (layout.used + Wire.usedAvailEvent(queueSize)) / 2
    this.#compactWord = layout.compacts / 4
    this.#segmentWord = layout.segments / 4
    this.#tableWord = layout.tables / 4
    this.#tableWords = layout.tableBytes / 4
    this.#statusByte = layout.statuses

    this.#next = Uint16Array.from({ length: queueSize }, (_, i) => i + 1 === queueSize ? NONE : i + 1)
    this.#inFlight = new Uint8Array(queueSize)
    this.#chainLength = new Uint16Array(queueSize)
    this.#writable = new Float64Array(queueSize)
    this.#spread = new Uint8Array(queueSize)
    this.#freeCount = queueSize
    if (options.indirect) { for (let slot = 0; slot < queueSize; slot++) this.#formatCompact(slot) }
    if (options.eventIdx) Atomics.store(this.#halves, this.#usedEventHalf, NONE)
    else this.disarm()
  }

  /** Whether a request with this many data segments fits now. */
  fits(segments: number): boolean {
    return this.#freeCount >= (this.#indirect ? 1 : segments + HEADER_AND_STATUS)
  }

  /**
   * Puts a request with one data segment into the ring and answers its slot. The caller has seen that it {@link fits}.
   * The device does not see it before {@link publish}.
   */
  put(type: number, sector: number, address: number, length: number): number {
    const isRead = type === RequestType.IN
    const slot = this.#claim(type, sector, isRead ? length : 0, COMPACT_DESCRIPTORS)
    const flags = isRead ? NEXT | WRITE : NEXT
    if (this.#indirect) {
      const table = this.#compactWord + slot * (COMPACT_BYTES / 4)
      this.#words[table + 3] = NEXT | 1 << 16
      this.#describe(table + 4, address, length, flags | 2 << 16)
    } else {
      const data = this.#formatChainEnds(slot)
      this.#describe(this.#descriptorWord + data * 4, address, length, flags | this.#nextOf(data) << 16)
    }
    return slot
  }

  /** Puts a request with `count` data segments into the ring, otherwise as {@link put}. */
  putSegments(
    type: number,
    sector: number,
    addresses: ReadonlyArray<number>,
    lengths: ReadonlyArray<number>,
    count: number
  ): number {
    // Also since there are no large tables where one segment is the most.
    if (count === 1) return this.put(type, sector, addresses[0] ?? 0, lengths[0] ?? 0)
    const isRead = type === RequestType.IN
    let writable = 0
    if (isRead) { for (let i = 0; i < count; i++) writable += lengths[i] ?? 0 }
    const slot = this.#claim(type, sector, writable, count + HEADER_AND_STATUS)
    const flags = isRead ? NEXT | WRITE : NEXT
    if (this.#indirect) {
      const table = this.#formatTable(slot, count)
      for (let i = 0; i < count; i++) {
        this.#describe(table + (i + 1) * 4, addresses[i] ?? 0, lengths[i] ?? 0, flags | (i + 2) << 16)
      }
    } else {
      let data = this.#formatChainEnds(slot)
      for (let i = 0; i < count; i++) {
        const next = this.#nextOf(data)
        this.#describe(this.#descriptorWord + data * 4, addresses[i] ?? 0, lengths[i] ?? 0, flags | next << 16)
        data = next
      }
    }
    return slot
  }

  /**
   * Puts a discard or a write-zeroes of one range (§5.2.6: `struct virtio_blk_discard_write_zeroes`) into the ring,
   * otherwise as {@link put}.
   */
  putRange(type: number, sector: number, sectors: number, flags: number): number {
    const slot = this.#freeHead
    const segment = this.#segmentWord + slot * (SEGMENT_BYTES / 4)
    this.#words[segment] = sector
    this.#words[segment + 1] = sector / 2 ** 32
    this.#words[segment + 2] = sectors
    this.#words[segment + 3] = flags
    // The request's own sector must be 0; the range is in the segment.
    return this.put(type, 0, this.#base + this.#layout.segments + slot * SEGMENT_BYTES, SEGMENT_BYTES)
  }

  /** Puts a flush into the ring, otherwise as {@link put}. It has no data segment. */
  putFlush(): number {
    const slot = this.#claim(RequestType.FLUSH, 0, 0, HEADER_AND_STATUS)
    if (this.#indirect) this.#words[this.#compactWord + slot * (COMPACT_BYTES / 4) + 3] = NEXT | 2 << 16
    else this.#formatChainEnds(slot)
    return slot
  }

  /** Shows the device all that was put since the last time. */
  publish(): void {
    if (this.#publishedIdx === this.#availIdx) return
    this.#publishedIdx = this.#availIdx
    Atomics.store(this.#halves, this.#availIdxHalf, this.#availIdx)
  }

  /**
   * Tells whether the device must be notified of what was published (§2.7.10): true until {@link notified} is called, so
   * that a notification that failed stays due.
   */
  notificationDue(): boolean {
    if (this.#kickDue) return true
    if (this.#decidedIdx === this.#publishedIdx) return false
    this.#kickDue = this.#eventIdx
      ? Wire.crossesEvent(Atomics.load(this.#halves, this.#availEventHalf), this.#publishedIdx, this.#decidedIdx)
      : (Atomics.load(this.#halves, this.#usedFlagsHalf) & Wire.USED_NO_NOTIFY) === 0
    this.#decidedIdx = this.#publishedIdx
    return this.#kickDue
  }

  /** Records that the device was notified. */
  notified(): void {
    this.#kickDue = false
  }

  /** Whether the device has answered something that was not drained. */
  get pending(): boolean {
    return Atomics.load(this.#halves, this.#usedIdxHalf) !== this.#usedIdx
  }

  /**
   * Takes what the device has answered: writes a packed completion ({@link slotOf}, {@link statusOf}) into `out` for each,
   * frees its slot, and answers how many there were (at most `out.length`), or -1 where the device broke the protocol.
   */
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
      if (slot >= this.queueSize) return this.#broken(`used id ${slot} is out of range (queue-size ${this.queueSize})`)
      if (this.#inFlight[slot] !== 1) return this.#broken(`used id ${slot} is not in flight`)
      const writable = this.#writable[slot] ?? 0
      if (length > writable) return this.#broken(`used length ${length} of id ${slot} exceeds its ${writable} bytes`)
      out[i] = slot | (this.#bytes[this.#statusByte + slot] ?? Status.UNWRITTEN) << 16
      this.#release(slot)
      this.#usedIdx = Wire.wrap16(this.#usedIdx + 1)
    }
    return count
  }

  /**
   * Asks the device to signal the next completion, and tells whether one is there already: then nobody may sleep, since
   * that one may go unsignalled.
   */
  arm(): boolean {
    if (this.#eventIdx) Atomics.store(this.#halves, this.#usedEventHalf, this.#usedIdx)
    else Atomics.store(this.#halves, this.#availFlagsHalf, 0)
    return this.pending
  }

  /**
   * Asks the device not to signal completions. With EVENT_IDX there is nothing to do: `used_event` stays behind, and the
   * device signals again only when its index comes round to it, once in 65536 completions.
   */
  disarm(): void {
    if (!this.#eventIdx) Atomics.store(this.#halves, this.#availFlagsHalf, Wire.AVAIL_NO_INTERRUPT)
  }

  #broken(fault: string): -1 {
    this.fault = fault
    return -1
  }

  /** Takes descriptors for a request, fills its header and presets its status. */
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
    const header = this.#compactWord + slot * (COMPACT_BYTES / 4) + HEADER_IN_COMPACT / 4
    this.#words[header] = type
    this.#words[header + 2] = sector
    this.#words[header + 3] = sector / 2 ** 32
    this.#bytes[this.#statusByte + slot] = Status.UNWRITTEN
    this.#writable[slot] = dataWritable + STATUS_BYTES
    this.#inFlight[slot] = 1
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
    this.#inFlight[slot] = 0
    this.outstanding--
  }

  #nextOf(descriptor: number): number {
    return this.#next[descriptor] ?? NONE
  }

  /** Writes a descriptor (§2.7.5): `flagsAndNext` is flags | next << 16. */
  #describe(word: number, address: number, length: number, flagsAndNext: number): void {
    this.#words[word] = address
    this.#words[word + 1] = address / 2 ** 32
    this.#words[word + 2] = length
    this.#words[word + 3] = flagsAndNext
  }

  /** Points a slot's ring descriptor at its compact table, and writes the parts of the table that never change. */
  #formatCompact(slot: number): void {
    const compact = this.#base + this.#layout.compacts + slot * COMPACT_BYTES
    const table = this.#compactWord + slot * (COMPACT_BYTES / 4)
    this.#describe(table, compact + HEADER_IN_COMPACT, HEADER_BYTES, NEXT | 1 << 16)
    this.#describe(table + 8, this.#statusAddress(slot), STATUS_BYTES, WRITE)
    this.#describe(this.#descriptorWord + slot * 4, compact, COMPACT_DESCRIPTORS * Wire.DESCRIPTOR_BYTES, INDIRECT)
    this.#spread[slot] = 0
  }

  /** Points a slot's ring descriptor at its large table, writes that table's ends, and answers where it lies. */
  #formatTable(slot: number, count: number): number {
    const table = this.#tableWord + slot * this.#tableWords
    const address = this.#base + this.#layout.tables + slot * this.#layout.tableBytes
    const bytes = (count + HEADER_AND_STATUS) * Wire.DESCRIPTOR_BYTES
    this.#describe(table, this.#headerAddress(slot), HEADER_BYTES, NEXT | 1 << 16)
    this.#describe(table + (count + 1) * 4, this.#statusAddress(slot), STATUS_BYTES, WRITE)
    this.#describe(this.#descriptorWord + slot * 4, address, bytes, INDIRECT)
    this.#spread[slot] = 1
    return table
  }

  /** Writes the header and status descriptors of a chain, and answers its second descriptor. */
  #formatChainEnds(slot: number): number {
    const second = this.#nextOf(slot)
    let last = second
    for (let i = 2; i < (this.#chainLength[slot] ?? 0); i++) last = this.#nextOf(last)
    this.#describe(this.#descriptorWord + slot * 4, this.#headerAddress(slot), HEADER_BYTES, NEXT | second << 16)
    this.#describe(this.#descriptorWord + last * 4, this.#statusAddress(slot), STATUS_BYTES, WRITE)
    return second
  }

  #headerAddress(slot: number): number {
    return this.#base + this.#layout.compacts + slot * COMPACT_BYTES + HEADER_IN_COMPACT
  }

  #statusAddress(slot: number): number {
    return this.#base + this.#layout.statuses + slot * STATUS_BYTES
  }
}

/** The slot of a packed completion. */
export const slotOf = (completion: number): number => completion & 0xffff

/** The status byte of a packed completion. */
export const statusOf = (completion: number): number => completion >>> 16
