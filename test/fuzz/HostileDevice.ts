/**
 * Devices that do anything. Both count the answers they write, by kind.
 *
 * A {@link Liar} takes requests from the ring as it should and knows what it answers. A {@link Scribbler} writes over the ring's
 * memory without looking.
 */
import type { SeededRandom } from "../../src/SeededRandom.ts"
import { USED_IDX, USED_RING } from "../../src/Wire/SplitRing.ts"
import { RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import type { Chain } from "../../src/testing/DeviceRing.ts"
import type { Tally } from "./Check.ts"
import type { Ledger, Tracked } from "./Ledger.ts"
import type { RingAt } from "./ringAt.ts"

/** Of so many answers, one breaks the protocol. */
const GOOD_ANSWERS = 100
const MAX_U32 = 2 ** 32 - 1

/** What both have in common: the last thing that they do. */
class HostileDevice {
  answers = 0
  /** Whether the device has broken the protocol, so that nothing it does is of interest any more. */
  isDone = false
  protected readonly next: SeededRandom
  protected readonly at: RingAt
  protected readonly ledger: Ledger
  readonly #tally: Tally

  constructor(next: SeededRandom, at: RingAt, ledger: Ledger, tally: Tally) {
    this.next = next
    this.at = at
    this.ledger = ledger
    this.#tally = tally
  }

  protected count(kind: string): void {
    this.answers++
    this.#tally.count(`- ${kind}`)
  }

  /** Answers, whatever the driver has read or put by now, in a way that it cannot take for right. */
  breakForGood(): void {
    this.ledger.isBroken = true
    const { memory, packed, ring } = this.at
    if (packed) {
      // Used in one kind of lap, with an id that is none; and neither used nor available in the other.
      for (let place = 0; place < ring.queueSize; place++) {
        memory.store16(ring.descriptors + 16 * place + 12, 0xffff)
        memory.store16(ring.descriptors + 16 * place + 14, 0x8080)
      }
    } else {
      for (let place = 0; place < ring.queueSize; place++) {
        memory.view(ring.used + USED_RING + 8 * place, 4).setUint32(0, MAX_U32, true)
      }
      memory.store16(ring.used + USED_IDX, memory.load16(ring.used + USED_IDX) + 1 & 0xffff)
    }
  }
}

interface Held {
  readonly chain: Chain
  readonly tracked: Tracked
  /** How much of it the device may write. */
  readonly writable: number
}

/** A device that knows what it answers. */
export class Liar extends HostileDevice {
  readonly #held: Array<Held> = []
  /** Ids that were answered before. */
  readonly #old: Array<Chain> = []

  /** Takes what there is, and answers some of it. */
  answer(): void {
    if (this.isDone) return
    const { device, memory, options, ring } = this.at
    do {
      for (let chain = device.next(); chain !== undefined; chain = device.next()) this.#take(chain)
    } while (this.next(2) === 0 && device.askForNext())
    for (let most = 1 + this.next(options.queueSize); most > 0 && this.#held.length > 0 && !this.isDone; most--) {
      this.#answerOne()
    }
    // What it says of notifications is not to be relied on, nor what it writes where only the driver writes.
    if (this.next(4) === 0) memory.store16(ring.used, this.next(2 ** 16))
    device.publish()
  }

  #take(chain: Chain): void {
    const { memory } = this.at
    const [header, data] = chain.elements
    const view = memory.view(header?.address ?? 0, 16)
    const type = view.getUint32(0, true)
    const isRange = type === RequestType.DISCARD || type === RequestType.WRITE_ZEROES
    const sector = isRange
      ? memory.view(data?.address ?? 0, 8).getBigUint64(0, true)
      : view.getBigUint64(8, true)
    const writable = chain.elements.reduce((sum, { isWritable, length }) => sum + (isWritable ? length : 0), 0)
    this.#held.push({ chain, tracked: this.ledger.at(Number(sector)), writable })
  }

  #answerOne(): void {
    const { device, options } = this.at
    const at = this.next(this.#held.length)
    const held = this.#held[at]
    if (held === undefined) return
    const { chain, tracked, writable } = held
    if (this.next(GOOD_ANSWERS) === 0) return this.#lie(held)
    this.#held.splice(at, 1)
    this.#old.push(chain)
    if (this.#old.length > options.queueSize) this.#old.shift()
    const status = this.#status()
    if (status !== Status.UNWRITTEN) this.#writeStatus(chain, status)
    tracked.status = status
    device.use(chain.id, this.next(2) === 0 ? writable : this.next(writable + 1), chain.descriptors)
  }

  #status(): number {
    switch (this.next(6)) {
      case 0:
        this.count("I/O error")
        return Status.IOERR
      case 1:
        this.count("unsupported")
        return Status.UNSUPP
      case 2:
        this.count("garbage status")
        return 3 + this.next(252)
      case 3:
        this.count("no status")
        return Status.UNWRITTEN
      default:
        this.count("success, any length")
        return Status.OK
    }
  }

  #writeStatus(chain: Chain, status: number): void {
    this.at.memory.view(chain.elements.at(-1)?.address ?? 0, 1).setUint8(0, status)
  }

  /** Breaks the protocol. The request stays unanswered, and without a status. */
  #lie({ chain, writable }: Held): void {
    const { device, memory, packed, ring } = this.at
    const { descriptors, id } = chain
    const { next } = this
    this.ledger.isBroken = true
    this.isDone = true
    switch (next(7)) {
      case 0: {
        this.count("id out of range")
        const { queueSize } = ring
        return device.use(queueSize + next((packed ? 2 ** 16 : 2 ** 32) - queueSize), next(2), descriptors)
      }
      case 1: {
        this.count("id not in flight")
        return device.use(next(ring.queueSize), next(2), descriptors)
      }
      case 2: {
        this.count("id answered before")
        const old = this.#old[next(this.#old.length)] ?? chain
        return device.use(old.id, next(2), old.descriptors)
      }
      case 3: {
        this.count("id twice")
        device.use(id, 1, descriptors)
        return device.use(id, 1, descriptors)
      }
      case 4: {
        this.count("length too long")
        return device.use(id, writable + 1 + next(MAX_U32 - writable), descriptors)
      }
      case 5: {
        this.count("index that jumps")
        return device.runAhead(1 + next(2 ** 16 - 1))
      }
      default: {
        this.count("any bytes where the device writes")
        device.publish()
        const start = packed ? ring.descriptors : ring.used
        const length = packed ? 16 * ring.queueSize : 6 + 8 * ring.queueSize
        for (let writes = 1 + next(2 * ring.queueSize); writes > 0; writes--) {
          memory.view(start + next(length), 1).setUint8(0, next(256))
        }
      }
    }
  }
}

/** A device that writes over whatever there is. */
export class Scribbler extends HostileDevice {
  constructor(next: SeededRandom, at: RingAt, ledger: Ledger, tally: Tally) {
    super(next, at, ledger, tally)
    ledger.isScribbling = true
  }

  answer(): void {
    const { bytes, memory, packed, ring } = this.at
    const { next } = this
    const view = new DataView(bytes.buffer)
    for (let writes = next(8); writes > 0; writes--) {
      const at = next(bytes.length)
      switch (next(3)) {
        case 0:
          view.setUint8(at, next(256))
          break
        case 1:
          view.setUint16(at & ~1, next(2 ** 16), true)
          break
        default:
          view.setUint32(at & ~3, next(2 ** 32), true)
      }
    }
    this.count("any bytes anywhere")
    // Answers that may well be right, so that it goes on for a while.
    for (let more = next(4); more > 0; more--) {
      const id = next(ring.queueSize + (next(16) === 0 ? 1 : 0))
      if (packed) {
        const place = next(ring.queueSize)
        memory.view(ring.descriptors + 16 * place + 12, 2).setUint16(0, id, true)
        memory.store16(ring.descriptors + 16 * place + 14, [0x8080, 0, 0x8082, 2][next(4)] ?? 0)
      } else {
        const idx = memory.load16(ring.used + USED_IDX)
        const element = memory.view(ring.used + USED_RING + 8 * (idx % ring.queueSize), 8)
        element.setUint32(0, id, true)
        element.setUint32(4, next(2), true)
        memory.store16(ring.used + USED_IDX, idx + 1 & 0xffff)
      }
      this.count("any id")
    }
  }
}
