/**
 * What the requests of a ring need beside the ring's own parts, in both layouts: for each slot a request header, a status
 * byte, a range and a table of descriptors in the shared memory, and the driver's own account of it outside.
 *
 * Each slot has its memory to itself for ever, so that a ring can format it ahead and write only what differs. The table of
 * a request with at most one data segment shares a cache line with its header:
 *
 * ```
 * compact, 64 bytes      | descriptor 0 | descriptor 1 | descriptor 2 | request header |
 * ```
 *
 * The account is what the device's answers are checked against: which slots are in flight, and how much may be written.
 *
 * @since 0.1.0
 */
import { alignUp, DESCRIPTOR_BYTES } from "../Wire/SplitRing.ts"
import { REQUEST_HEADER_BYTES, SEGMENT_BYTES, Status, STATUS_BYTES } from "../Wire/VirtioBlk.ts"
import { completionOf, type RingMemory, type RingOptions } from "./DriverRing.ts"

/** The descriptors of a request that are not data: its header and its status. */
export const HEADER_AND_STATUS = 2
/** The descriptors of a request with one data segment. */
export const COMPACT_DESCRIPTORS = 3

const HEADER_IN_COMPACT = COMPACT_DESCRIPTORS * DESCRIPTOR_BYTES
const COMPACT_BYTES = HEADER_IN_COMPACT + REQUEST_HEADER_BYTES

interface SlotsLayout {
  readonly statuses: number
  readonly segments: number
  readonly compacts: number
  readonly tables: number
  readonly tableBytes: number
  readonly bytes: number
}

/** Lays the slots out behind the `ringBytes` of the ring's own parts. */
const layoutOf = ({ indirect, maxSegments, queueSize }: RingOptions, ringBytes: number): SlotsLayout => {
  const statuses = ringBytes
  const segments = statuses + alignUp(queueSize * STATUS_BYTES)
  const compacts = segments + alignUp(queueSize * SEGMENT_BYTES)
  const tables = compacts + queueSize * COMPACT_BYTES
  const tableBytes = indirect && maxSegments > 1 ? alignUp((maxSegments + HEADER_AND_STATUS) * DESCRIPTOR_BYTES) : 0
  return { statuses, segments, compacts, tables, tableBytes, bytes: tables + queueSize * tableBytes }
}

/** How much memory a ring needs whose own parts take `ringBytes`, in bytes: a multiple of 64. */
export const bytesWithSlots = (options: RingOptions, ringBytes: number): number => layoutOf(options, ringBytes).bytes

/** Adds up the first `count` lengths. */
export const sumOf = (lengths: ReadonlyArray<number>, count: number): number => {
  let sum = 0
  for (let i = 0; i < count; i++) sum += lengths[i] ?? 0
  return sum
}

/** The requests of one ring. */
export class RequestSlots {
  /** Views of all the ring's memory: its own parts, then the slots. */
  readonly bytes: Uint8Array
  readonly halves: Uint16Array
  readonly words: Uint32Array
  /** The device's address of that memory's first byte. */
  readonly base: number

  readonly #queueSize: number
  readonly #layout: SlotsLayout
  readonly #compactAddress: number
  readonly #compactWord: number
  readonly #segmentWord: number
  readonly #statusByte: number

  // The private shadow: what the driver believes, whatever the shared memory says.
  readonly #inFlight: Uint8Array
  readonly #writable: Float64Array

  constructor(options: RingOptions, memory: RingMemory, ringBytes: number) {
    const layout = layoutOf(options, ringBytes)
    this.bytes = new Uint8Array(memory.buffer, memory.offset, layout.bytes)
    this.halves = new Uint16Array(memory.buffer, memory.offset, layout.bytes / 2)
    this.words = new Uint32Array(memory.buffer, memory.offset, layout.bytes / 4)
    this.base = memory.address + memory.offset
    this.#queueSize = options.queueSize
    this.#layout = layout
    this.#compactAddress = this.base + layout.compacts
    this.#compactWord = layout.compacts / 4
    this.#segmentWord = layout.segments / 4
    this.#statusByte = layout.statuses
    this.#inFlight = new Uint8Array(options.queueSize)
    this.#writable = new Float64Array(options.queueSize)
  }

  /** Fills a request's header, presets its status, and counts it as in flight. `writable`: the data the device may write. */
  begin(slot: number, type: number, sector: number, writable: number): void {
    const header = this.#compactWord + slot * (COMPACT_BYTES / 4) + HEADER_IN_COMPACT / 4
    this.words[header] = type
    this.words[header + 2] = sector
    this.words[header + 3] = sector / 2 ** 32
    this.bytes[this.#statusByte + slot] = Status.UNWRITTEN
    this.#writable[slot] = writable + STATUS_BYTES
    this.#inFlight[slot] = 1
  }

  /** Tells what is wrong with an answer to `id` that says to have written `length` bytes, if anything. */
  wrong(id: number, length: number): string | undefined {
    if (id >= this.#queueSize) return `used id ${id} is out of range (queue-size ${this.#queueSize})`
    if (this.#inFlight[id] !== 1) return `used id ${id} is not in flight`
    const writable = this.#writable[id] ?? 0
    if (length > writable) return `used length ${length} of id ${id} exceeds its ${writable} bytes`
    return undefined
  }

  /** Counts a request as answered, and gives its packed completion. */
  end(slot: number): number {
    this.#inFlight[slot] = 0
    return completionOf(slot, this.bytes[this.#statusByte + slot] ?? Status.UNWRITTEN)
  }

  /** Writes a slot's range (§5.2.6: `struct virtio_blk_discard_write_zeroes`), and answers its address. */
  range(slot: number, sector: number, sectors: number, flags: number): number {
    const segment = this.#segmentWord + slot * (SEGMENT_BYTES / 4)
    this.words[segment] = sector
    this.words[segment + 1] = sector / 2 ** 32
    this.words[segment + 2] = sectors
    this.words[segment + 3] = flags
    return this.base + this.#layout.segments + slot * SEGMENT_BYTES
  }

  /**
   * Writes a descriptor at an index of {@link words}. Its last word is of the layout: flags | next << 16 where it is split
   * (§2.7.5), id | flags << 16 where it is packed (§2.8.13).
   */
  describe(word: number, address: number, length: number, last: number): void {
    this.words[word] = address
    this.words[word + 1] = address / 2 ** 32
    this.words[word + 2] = length
    this.words[word + 3] = last
  }

  /** The device's address of a slot's request header. */
  headerAddress(slot: number): number {
    return this.#compactAddress + slot * COMPACT_BYTES + HEADER_IN_COMPACT
  }

  /** The device's address of a slot's status byte. */
  statusAddress(slot: number): number {
    return this.base + this.#layout.statuses + slot * STATUS_BYTES
  }

  /** Where the table of a request with at most one data segment lies in {@link words}. */
  compactWord(slot: number): number {
    return this.#compactWord + slot * (COMPACT_BYTES / 4)
  }

  /** The device's address of that table. */
  compactAddress(slot: number): number {
    return this.#compactAddress + slot * COMPACT_BYTES
  }

  /** Where the table of a request with more data segments lies in {@link words}; with INDIRECT_DESC only. */
  tableWord(slot: number): number {
    return (this.#layout.tables + slot * this.#layout.tableBytes) / 4
  }

  /** The device's address of that table. */
  tableAddress(slot: number): number {
    return this.base + this.#layout.tables + slot * this.#layout.tableBytes
  }
}
