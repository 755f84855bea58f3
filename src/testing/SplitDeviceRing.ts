/** The device's side of a split virtqueue, from virtio 1.2 §2.7. */
import {
  AVAIL_FLAGS,
  AVAIL_IDX,
  AVAIL_NO_INTERRUPT,
  AVAIL_RING,
  availUsedEvent,
  USED_FLAGS,
  USED_IDX,
  USED_NO_NOTIFY,
  USED_RING,
  usedAvailEvent
} from "../Wire/SplitRing.ts"
import { type Chain, type DeviceRing, type DeviceRingOptions, INDIRECT, NEXT, WRITE } from "./DeviceRing.ts"

const u16 = (n: number): number => n & 0xffff

export class SplitDeviceRing implements DeviceRing {
  readonly #options: DeviceRingOptions
  #takenIdx: number
  #usedIdx: number
  #publishedIdx: number
  #asksNotifications = true

  constructor(options: DeviceRingOptions) {
    const { position = 0 } = options
    this.#options = options
    this.#takenIdx = position
    this.#usedIdx = position
    this.#publishedIdx = position
  }

  /** Follows a chain (§2.7.5) and checks what the driver promised of it. */
  next(): Chain | undefined {
    const { indirect, memory, ring, violation } = this.#options
    const ahead = u16(memory.load16(ring.avail + AVAIL_IDX) - this.#takenIdx)
    if (ahead > ring.queueSize) violation(`avail.idx runs ${ahead} ahead`)
    if (ahead === 0) return undefined
    const head = memory.view(ring.avail + AVAIL_RING + 2 * (this.#takenIdx % ring.queueSize), 2).getUint16(0, true)
    this.#takenIdx = u16(this.#takenIdx + 1)
    if (head >= ring.queueSize) throw new Error(`head ${head} of a ring of ${ring.queueSize}`)
    const first = this.#descriptor(ring.descriptors, head)
    const isIndirect = (first.flags & INDIRECT) !== 0
    if (isIndirect && !indirect) violation(`head ${head}: INDIRECT was not negotiated`)
    if (isIndirect && (first.flags & (NEXT | WRITE)) !== 0) violation(`head ${head}: INDIRECT and flags ${first.flags}`)
    if (isIndirect && (first.length === 0 || first.length % 16 !== 0)) {
      violation(`head ${head}: a table of ${first.length} bytes`)
    }
    const chain = isIndirect
      ? this.#chain(first.address, 0, first.length / 16)
      : this.#chain(ring.descriptors, head, ring.queueSize)
    for (const { flags } of chain) {
      if ((flags & INDIRECT) !== 0) violation(`head ${head}: INDIRECT inside a chain`)
      if ((flags & ~(NEXT | WRITE)) !== 0) violation(`head ${head}: unknown flags ${flags}`)
    }
    return {
      id: head,
      elements: chain.map(({ address, flags, length }) => ({ address, length, isWritable: (flags & WRITE) !== 0 })),
      descriptors: isIndirect ? 1 : chain.length
    }
  }

  /** Asks first, then looks again: what comes in between is not announced (§2.7.10). */
  askForNext(): boolean {
    const { eventIdx, memory, ring } = this.#options
    if (!eventIdx || !this.#asksNotifications) return false
    memory.store16(ring.used + usedAvailEvent(ring.queueSize), this.#takenIdx)
    return memory.load16(ring.avail + AVAIL_IDX) !== this.#takenIdx
  }

  askNotifications(asks: boolean): void {
    this.#asksNotifications = asks
    const { eventIdx, memory, ring } = this.#options
    if (!eventIdx) memory.store16(ring.used + USED_FLAGS, asks ? 0 : USED_NO_NOTIFY)
    else if (asks) memory.store16(ring.used + usedAvailEvent(ring.queueSize), this.#takenIdx)
  }

  use(id: number, length: number): void {
    const { memory, ring } = this.#options
    const entry = memory.view(ring.used + USED_RING + 8 * (this.#usedIdx % ring.queueSize), 8)
    entry.setUint32(0, id, true)
    entry.setUint32(4, length, true)
    this.#usedIdx = u16(this.#usedIdx + 1)
  }

  runAhead(by: number): void {
    this.#usedIdx = u16(this.#usedIdx + by)
  }

  /** §2.7.7. */
  publish(): boolean {
    const { eventIdx, memory, ring } = this.#options
    const before = this.#publishedIdx
    if (this.#usedIdx === before) return false
    this.#publishedIdx = this.#usedIdx
    memory.store16(ring.used + USED_IDX, this.#usedIdx)
    const event = memory.load16(ring.avail + availUsedEvent(ring.queueSize))
    return eventIdx
      ? u16(event - before) < u16(this.#usedIdx - before)
      : (memory.load16(ring.avail + AVAIL_FLAGS) & AVAIL_NO_INTERRUPT) === 0
  }

  #chain(table: number, from: number, limit: number) {
    let last = this.#descriptor(table, from)
    const chain = [last]
    while ((last.flags & NEXT) !== 0) {
      if (last.next >= limit || chain.length >= limit) throw new Error(`a chain leaves its table of ${limit}`)
      last = this.#descriptor(table, last.next)
      chain.push(last)
    }
    return chain
  }

  #descriptor(table: number, at: number) {
    const view = this.#options.memory.view(table + 16 * at, 16)
    return {
      address: Number(view.getBigUint64(0, true)),
      length: view.getUint32(8, true),
      flags: view.getUint16(12, true),
      next: view.getUint16(14, true)
    }
  }
}
