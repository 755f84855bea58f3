/**
 * The least a device can do: takes every read that is available, and answers each at once with success and no data. It
 * allocates nothing and trusts the driver in everything, so that what is measured is the driver.
 *
 * Requests must have a table of three descriptors (INDIRECT_DESC, one segment). Both layouts are as in virtio 1.2, §2.7 and
 * §2.8; the fakes of the tests check the driver, and this one does not.
 */
import type { DriverRing } from "../src/Queue/DriverRing.ts"
import { AVAIL_IDX, AVAIL_RING, layout, USED_IDX, USED_RING, usedAvailEvent } from "../src/Wire/SplitRing.ts"

/** In a table: header, data, status. */
const STATUS_IN_TABLE = 2
const WORDS_PER_DESCRIPTOR = 4
const OK = 0
/** Nothing but the status is written. */
const USED_LENGTH = 1

/** A packed descriptor's flags (virtio 1.2 §2.8.1). */
const AVAIL = 0x80
const USED = 0x8000

/** What answers a ring. */
export interface EchoDevice {
  /** Answers all that is available. */
  readonly answer: () => void
}

/** The memory of a ring, from the ring's first byte on. */
class RingView {
  readonly halves: Uint16Array
  readonly words: Uint32Array
  readonly bytes: Uint8Array
  readonly base: number

  constructor(ring: DriverRing, memory: ArrayBuffer, offset: number) {
    const length = memory.byteLength - offset
    this.bytes = new Uint8Array(memory, offset, length)
    this.halves = new Uint16Array(memory, offset, length / 2)
    this.words = new Uint32Array(memory, offset, length / 4)
    // In both layouts the descriptors come first.
    this.base = ring.descriptors
  }

  /** Writes success where the descriptor at an index of {@link words} has its request's status. */
  succeed(descriptor: number): void {
    const table = this.#offset(descriptor) / 4
    this.bytes[this.#offset(table + STATUS_IN_TABLE * WORDS_PER_DESCRIPTOR)] = OK
  }

  #offset(word: number): number {
    return (this.words[word] ?? 0) + (this.words[word + 1] ?? 0) * 2 ** 32 - this.base
  }
}

/** Answers a split ring; notifications are asked for always, signals never given. */
export const splitEcho = (ring: DriverRing, memory: ArrayBuffer, offset: number): EchoDevice => {
  const view = new RingView(ring, memory, offset)
  const { halves, words } = view
  const { avail, used } = layout(ring.queueSize)
  const [availIdx, availRing] = [(avail + AVAIL_IDX) / 2, (avail + AVAIL_RING) / 2]
  const [usedIdx, usedRing] = [(used + USED_IDX) / 2, (used + USED_RING) / 4]
  const availEvent = (used + usedAvailEvent(ring.queueSize)) / 2
  const mask = ring.queueSize - 1
  let done = 0
  return {
    answer: () => {
      const available = Atomics.load(halves, availIdx)
      while (done !== available) {
        const head = halves[availRing + (done & mask)] ?? 0
        view.succeed(head * WORDS_PER_DESCRIPTOR)
        const entry = usedRing + (done & mask) * 2
        words[entry] = head
        words[entry + 1] = USED_LENGTH
        done = done + 1 & 0xffff
      }
      Atomics.store(halves, availEvent, done)
      Atomics.store(halves, usedIdx, done)
    }
  }
}

/** Answers a packed ring; notifications are asked for always, since its event area is zero. */
export const packedEcho = (ring: DriverRing, memory: ArrayBuffer, offset: number): EchoDevice => {
  const view = new RingView(ring, memory, offset)
  const { halves, words } = view
  let place = 0
  let wrapped = true
  return {
    answer: () => {
      for (;;) {
        const descriptor = place * WORDS_PER_DESCRIPTOR
        const flags = Atomics.load(halves, descriptor * 2 + 7)
        if (((flags & AVAIL) !== 0) !== wrapped || ((flags & USED) !== 0) === wrapped) return
        view.succeed(descriptor)
        words[descriptor + 2] = USED_LENGTH
        // The id stays what it was.
        Atomics.store(halves, descriptor * 2 + 7, wrapped ? AVAIL | USED : 0)
        place++
        if (place === ring.queueSize) {
          place = 0
          wrapped = !wrapped
        }
      }
    }
  }
}
