/**
 * The driver's side of a split virtqueue in memory that is shared with an export, written from virtio 1.2 (§2.7, §5.2.6)
 * and not from `src/Queue`, so that the two check each other.
 *
 * Every field of a ring can be written by itself, with any value, so that a test can break each rule. On top of that,
 * {@link FakeRing.put} lays honest chains out in a framing of choice, and {@link layRequest} makes virtio-blk requests.
 */
import * as Libc from "../../src/Native/Libc.ts"
import type { MemoryRegion } from "../../src/Wire/VhostUserMessage.ts"
import { Status } from "../../src/Wire/VirtioBlk.ts"

export const NEXT = 1
export const WRITE = 2
export const INDIRECT = 4

/** Where a region lies unless a test says otherwise: high, and not at one address for both who look at it. */
const GUEST_ADDRESS = 2 ** 33 + 2 ** 20
const USER_ADDRESS = 2 ** 46 + 2 ** 32 * 5

export interface MemoryOptions {
  /** Bytes of the region. Default 1 MiB. */
  readonly length?: number
  readonly guestAddress?: number
  readonly userAddress?: number
  /** Bytes of the file before and after the region, which nobody but the test may touch. */
  readonly before?: number
  readonly after?: number
}

/** Memory in a file, mapped here and handed to the export. */
export class SharedMemory {
  readonly fd: number
  readonly region: MemoryRegion
  /** The region. */
  readonly bytes: Uint8Array
  readonly view: DataView
  /** The whole file. */
  readonly file: Uint8Array
  /** How much {@link allocate} has given away. Set it back to use that once more. */
  allocated = 0
  readonly #mapping: Libc.Mapping

  constructor(options: MemoryOptions = {}) {
    const { after = 0, before = 0, guestAddress = GUEST_ADDRESS, length = 1 << 20, userAddress = USER_ADDRESS } =
      options
    this.fd = Libc.createMemoryFile("effect-blkio-frontend", before + length + after)
    this.region = { guestAddress, userAddress, size: length, mmapOffset: before }
    this.#mapping = Libc.map(this.fd, 0, before + length + after)
    this.file = new Uint8Array(this.#mapping.buffer)
    this.bytes = this.file.subarray(before, before + length)
    this.view = new DataView(this.bytes.buffer, before, length)
  }

  /** The guest address of `length` bytes that nothing else uses. */
  allocate(length: number, alignment = 1): number {
    const at = Math.ceil(this.allocated / alignment) * alignment
    if (at + length > this.bytes.length) throw new Error(`${length} bytes at ${at} of ${this.bytes.length}`)
    this.allocated = at + length
    return this.region.guestAddress + at
  }

  /** What lies at a guest address. */
  at(address: number, length: number): Uint8Array {
    const at = address - this.region.guestAddress
    if (at < 0 || at + length > this.bytes.length) {
      throw new Error(`${length} bytes at ${address} are not in the region`)
    }
    return this.bytes.subarray(at, at + length)
  }

  close(): void {
    Libc.unmap(this.#mapping)
    Libc.close(this.fd)
  }
}

export interface Descriptor {
  readonly address: number | bigint
  readonly length: number
  readonly flags?: number
  readonly next?: number
}

/** A piece of a chain. */
export interface Part {
  readonly address: number | bigint
  readonly length: number
  /** The device writes it. */
  readonly write?: boolean
}

/** How a chain lies in the ring. */
export interface Framing {
  /** The first part that lies in an indirect table; those before it lie in the ring. Default: all lie in the ring. */
  readonly indirectFrom?: number
  /** How far the table lies from a multiple of 16. */
  readonly tableOffset?: number
  /** More flags of the descriptor of the table. */
  readonly tableFlags?: number
}

export interface Used {
  readonly id: number
  readonly length: number
}

/** The driver's side of a ring. */
export class FakeRing {
  readonly memory: SharedMemory
  readonly queueSize: number
  /** Where the parts begin in the region. */
  readonly descriptorsAt: number
  readonly availAt: number
  readonly usedAt: number
  readonly #half: Uint16Array
  #free: Array<number>
  readonly #held = new Map<number, ReadonlyArray<number>>()
  #collected = 0

  /** Lays a ring of zeroes out, whose indices begin at `base`. */
  constructor(memory: SharedMemory, queueSize: number, base = 0) {
    this.memory = memory
    this.queueSize = queueSize
    const take = (length: number) => memory.allocate(length, 64) - memory.region.guestAddress
    this.descriptorsAt = take(16 * queueSize)
    this.availAt = take(6 + 2 * queueSize)
    this.usedAt = take(6 + 8 * queueSize)
    this.#half = new Uint16Array(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.length >> 1)
    this.#free = Array.from({ length: queueSize }, (_, i) => i)
    this.availIdx = base
    this.#store(this.usedAt + 2, base)
    this.#collected = base
  }

  /** What SET_VRING_ADDR and DeviceRing want. */
  get addresses(): { readonly descriptors: number; readonly avail: number; readonly used: number } {
    const { userAddress } = this.memory.region
    return {
      descriptors: userAddress + this.descriptorsAt,
      avail: userAddress + this.availAt,
      used: userAddress + this.usedAt
    }
  }

  /** Writes a descriptor of the ring. */
  setDescriptor(index: number, descriptor: Descriptor): void {
    this.setTable(this.memory.region.guestAddress + this.descriptorsAt + 16 * index, [descriptor])
  }

  /** Writes a table of descriptors at a guest address, which may be odd. */
  setTable(address: number, descriptors: ReadonlyArray<Descriptor>): void {
    const { region, view } = this.memory
    descriptors.forEach(({ address: to, flags = 0, length, next = 0 }, i) => {
      const at = address - region.guestAddress + 16 * i
      view.setBigUint64(at, BigInt(to), true)
      view.setUint32(at + 8, length, true)
      view.setUint16(at + 12, flags, true)
      view.setUint16(at + 14, next, true)
    })
  }

  get availFlags(): number {
    return this.#load(this.availAt)
  }

  set availFlags(flags: number) {
    this.#store(this.availAt, flags)
  }

  get availIdx(): number {
    return this.#load(this.availAt + 2)
  }

  set availIdx(idx: number) {
    this.#store(this.availAt + 2, idx)
  }

  /** Writes an entry of the avail ring. */
  setAvail(position: number, head: number): void {
    this.memory.view.setUint16(this.availAt + 4 + 2 * (position % this.queueSize), head, true)
  }

  get usedEvent(): number {
    return this.#load(this.availAt + 4 + 2 * this.queueSize)
  }

  set usedEvent(idx: number) {
    this.#store(this.availAt + 4 + 2 * this.queueSize, idx)
  }

  get usedFlags(): number {
    return this.#load(this.usedAt)
  }

  get usedIdx(): number {
    return this.#load(this.usedAt + 2)
  }

  get availEvent(): number {
    return this.#load(this.usedAt + 4 + 8 * this.queueSize)
  }

  /** Reads an entry of the used ring. */
  used(position: number): Used {
    const at = this.usedAt + 4 + 8 * (position % this.queueSize)
    return { id: this.memory.view.getUint32(at, true), length: this.memory.view.getUint32(at + 4, true) }
  }

  /** Shows the device a chain. */
  offer(...heads: ReadonlyArray<number>): void {
    const idx = this.availIdx
    heads.forEach((head, i) => this.setAvail(idx + i & 0xffff, head))
    this.availIdx = idx + heads.length & 0xffff
  }

  /** Lays a chain out without showing it; answers its head. */
  lay(
    parts: ReadonlyArray<Part>,
    { indirectFrom = parts.length, tableFlags = 0, tableOffset = 0 }: Framing = {}
  ): number {
    const direct = Math.min(indirectFrom, parts.length)
    const hasTable = direct < parts.length
    const indices = this.#free.splice(0, direct + (hasTable ? 1 : 0))
    if (indices.length < direct + (hasTable ? 1 : 0)) throw new Error("the ring is full")
    const flagsOf = ({ write = false }: Part, isLast: boolean) => (write ? WRITE : 0) | (isLast ? 0 : NEXT)
    parts.slice(0, direct).forEach((part, i) => {
      this.setDescriptor(indices[i]!, {
        ...part,
        flags: flagsOf(part, i === parts.length - 1),
        next: indices[i + 1] ?? 0
      })
    })
    if (hasTable) {
      const table = parts.slice(direct)
      const address = this.memory.allocate(16 * table.length + tableOffset, 16) + tableOffset
      this.setTable(
        address,
        table.map((part, i) => ({ ...part, flags: flagsOf(part, i === table.length - 1), next: i + 1 }))
      )
      this.setDescriptor(indices[direct]!, { address, length: 16 * table.length, flags: INDIRECT | tableFlags })
    }
    const head = indices[0]!
    this.#held.set(head, indices)
    return head
  }

  /** Lays a chain out and shows it; answers its head. */
  put(parts: ReadonlyArray<Part>, framing: Framing = {}): number {
    const head = this.lay(parts, framing)
    this.offer(head)
    return head
  }

  /** What was used since the last time; the descriptors of its chains are free again. */
  collect(): ReadonlyArray<Used> {
    const found: Array<Used> = []
    const idx = this.usedIdx
    while (this.#collected !== idx) {
      const used = this.used(this.#collected)
      found.push(used)
      this.#free.push(...this.#held.get(used.id) ?? [])
      this.#held.delete(used.id)
      this.#collected = this.#collected + 1 & 0xffff
    }
    return found
  }

  #load(at: number): number {
    return Atomics.load(this.#half, at / 2)
  }

  #store(at: number, value: number): void {
    Atomics.store(this.#half, at / 2, value)
  }
}

/** A virtio-blk request, and how it lies in memory. */
export interface RequestOptions extends Framing {
  readonly type: number
  readonly sector?: number | bigint
  readonly reserved?: number
  /** What follows the header. */
  readonly given?: Uint8Array
  /** How many bytes come before the status. */
  readonly wanted?: number
  /** The lengths of the descriptors to read, of header and data together. Default: 16 and the rest. */
  readonly out?: ReadonlyArray<number>
  /** The lengths of the descriptors to write, of data and status together. Default: the data and 1. */
  readonly in?: ReadonlyArray<number>
}

/** A request that lies in memory. */
export interface Laid {
  readonly parts: ReadonlyArray<Part>
  /** What the device has written. */
  readonly status: () => number
  readonly data: () => Uint8Array
  /** Whether the bytes around each part are as they were. */
  readonly isIntact: () => boolean
}

const GUARD_BYTES = 7
const GUARD = 0xa7

/** Puts a request into memory, each part between guard bytes and at an odd address. The status is preset to 0xff. */
export const layRequest = (memory: SharedMemory, options: RequestOptions): Laid => {
  const { given = new Uint8Array(0), reserved = 0, sector = 0, type, wanted = 0 } = options
  const { in: writable = [...wanted > 0 ? [wanted] : [], 1] } = options
  const { out: readable = [16, ...given.length > 0 ? [given.length] : []] } = options
  const out = new Uint8Array(16 + given.length)
  const header = new DataView(out.buffer)
  header.setUint32(0, type, true)
  header.setUint32(4, reserved, true)
  header.setBigUint64(8, BigInt(sector), true)
  out.set(given, 16)
  const guards: Array<Uint8Array> = []
  const guard = () => {
    const bytes = memory.at(memory.allocate(GUARD_BYTES), GUARD_BYTES)
    guards.push(bytes.fill(GUARD))
  }
  const place = (length: number) => {
    guard()
    const address = memory.allocate(length)
    guard()
    return { address, length }
  }
  let at = 0
  const readables = readable.map((length) => {
    const part = place(length)
    const bytes = memory.at(part.address, length)
    bytes.fill(0)
    bytes.set(out.subarray(at, at + length))
    at += length
    return part
  })
  const writables = writable.map((length) => {
    const part = { ...place(length), write: true }
    memory.at(part.address, length).fill(Status.UNWRITTEN)
    return part
  })
  const last = writables.findLast(({ length }) => length > 0)
  const statusAddress = last === undefined ? -1 : last.address + last.length - 1
  const written = () => Buffer.concat(writables.map(({ address, length }) => memory.at(address, length)))
  return {
    parts: [...readables, ...writables],
    status: () => statusAddress < 0 ? -1 : memory.at(statusAddress, 1)[0]!,
    data: () => Uint8Array.from(written().subarray(0, -1)),
    isIntact: () => guards.every((bytes) => bytes.every((byte) => byte === GUARD))
  }
}
