/**
 * The shared area in which an export notes the requests that it has taken and not answered (vhost-user: Inflight I/O
 * tracking), so that whoever serves the front-end after it does them once more.
 *
 * The front-end keeps the area and hands it to the next backend. For each queue it has, in the split ring's form,
 *
 * ```
 * features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16
 * desc_num × {inflight u8, padding 5, next u16, counter u64}
 * ```
 *
 * and its size is a multiple of 64 bytes. The order of the writes is what makes it hold in every moment: a request is noted
 * before it is executed; a batch that is handed back is linked from `last_batch_head` before `used.idx` shows it to the
 * driver, and its marks are taken away afterwards. Where `used.idx` was written and the area's `used_idx` was not, the last
 * batch is known to be done.
 *
 * @since 0.1.0
 */
import { fstatSync } from "node:fs"
import * as Libc from "../Native/Libc.ts"
import type { Inflight } from "../Wire/VhostUserMessage.ts"

const HEADER_BYTES = 16
const ENTRY_BYTES = 16
const ALIGNMENT = 64
const VERSION = 1

// struct QueueRegionSplit
const VERSION_AT = 8
const SIZE_AT = 10
const LAST_BATCH_HEAD_AT = 12
const USED_IDX_AT = 14
// struct DescStateSplit
const NEXT_AT = 6
const COUNTER_AT = 8

const bytesOf = (queueSize: number): number =>
  Math.ceil((HEADER_BYTES + queueSize * ENTRY_BYTES) / ALIGNMENT) * ALIGNMENT

/** The area of one front-end. */
export class InflightArea {
  readonly #mapping: Libc.Mapping
  readonly #inflight: Inflight
  readonly #start: number

  private constructor(mapping: Libc.Mapping, start: number, inflight: Inflight) {
    this.#mapping = mapping
    this.#start = start
    this.#inflight = inflight
  }

  /** Makes an area; answers it and the descriptor of its file, which is the caller's. Throws a SyscallError. */
  static create(numQueues: number, queueSize: number): { readonly inflight: Inflight; readonly fd: number } {
    const mmapSize = numQueues * bytesOf(queueSize)
    return {
      inflight: { mmapSize, mmapOffset: 0, numQueues, queueSize },
      fd: Libc.createMemoryFile("effect-blkio-inflight", mmapSize)
    }
  }

  /** Maps the area that a front-end hands over; answers what is wrong with it, if anything. Throws a SyscallError. */
  static open(inflight: Inflight, fd: number): InflightArea | string {
    const { mmapOffset, mmapSize, numQueues, queueSize } = inflight
    if (queueSize === 0 || numQueues === 0) return "an area has queues with descriptors"
    if (mmapSize < numQueues * bytesOf(queueSize)) {
      return `${mmapSize} bytes: ${numQueues} queues of ${queueSize} need ${numQueues * bytesOf(queueSize)}`
    }
    const stat = fstatSync(fd)
    if (!stat.isFile()) return "its descriptor is no file"
    if (mmapOffset + mmapSize > stat.size) {
      return `${mmapSize} bytes from ${mmapOffset} end beyond the file's ${stat.size}`
    }
    const start = mmapOffset % stat.blksize
    try {
      return new InflightArea(Libc.map(fd, mmapOffset - start, start + mmapSize), start, inflight)
    } catch (error) {
      // koffi throws an error of its own where V8 cannot have a view of that size.
      if (error instanceof RangeError) return `it cannot be mapped: ${error.message}`
      throw error
    }
  }

  /** The part of a queue, or undefined for one that the area does not have. */
  queue(index: number): InflightQueue | undefined {
    const { numQueues, queueSize } = this.#inflight
    if (index >= numQueues) return undefined
    const bytes = bytesOf(queueSize)
    return new InflightQueue(new DataView(this.#mapping.buffer, this.#start + index * bytes, bytes), queueSize)
  }

  /** Unmaps the area. The front-end keeps its file. */
  close(): void {
    Libc.unmap(this.#mapping)
  }
}

/** The part of one queue. */
export class InflightQueue {
  readonly #view: DataView
  readonly #size: number
  #batch: Array<number> = []
  #counter = 0

  constructor(view: DataView, size: number) {
    this.#view = view
    this.#size = size
  }

  /**
   * Takes up what a backend before has left: the requests to be executed again, oldest first. `usedIdx` is the ring's. An
   * area that nobody used yet, or in a form that is not known here, has none and is made ready.
   */
  recover(queueSize: number, usedIdx: number): ReadonlyArray<number> {
    const view = this.#view
    const size = Math.min(queueSize, this.#size)
    if (view.getUint16(VERSION_AT, true) !== VERSION) {
      for (let head = 0; head < this.#size; head++) view.setUint8(entryAt(head), 0)
      view.setUint16(SIZE_AT, this.#size, true)
      view.setUint16(USED_IDX_AT, usedIdx, true)
      // Last, so that whoever finds it finds the rest made ready.
      view.setUint16(VERSION_AT, VERSION, true)
      return []
    }
    if (view.getUint16(USED_IDX_AT, true) !== usedIdx) {
      // The driver has seen the last batch, whose marks were about to go.
      const count = (usedIdx - view.getUint16(USED_IDX_AT, true)) & 0xffff
      let head = view.getUint16(LAST_BATCH_HEAD_AT, true)
      for (let i = 0; i < Math.min(count, size) && head < size; i++) {
        view.setUint8(entryAt(head), 0)
        head = view.getUint16(entryAt(head) + NEXT_AT, true)
      }
      view.setUint16(USED_IDX_AT, usedIdx, true)
    }
    const left: Array<{ readonly head: number; readonly counter: number }> = []
    for (let head = 0; head < size; head++) {
      if (view.getUint8(entryAt(head)) !== 1) continue
      const at = entryAt(head) + COUNTER_AT
      const counter = view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true)
      left.push({ head, counter })
      this.#counter = Math.max(this.#counter, counter + 1)
    }
    return left.toSorted((a, b) => a.counter - b.counter).map(({ head }) => head)
  }

  /** Notes a request that is about to be executed. */
  begin(head: number): void {
    if (head >= this.#size) return
    const at = entryAt(head)
    const counter = this.#counter++
    this.#view.setUint32(at + COUNTER_AT, counter >>> 0, true)
    this.#view.setUint32(at + COUNTER_AT + 4, Math.floor(counter / 0x1_0000_0000), true)
    this.#view.setUint8(at, 1)
  }

  /** Links a request that is about to be handed back. */
  used(head: number): void {
    if (head >= this.#size) return
    const last = this.#batch.at(-1) ?? head
    this.#view.setUint16(entryAt(head) + NEXT_AT, last, true)
    this.#view.setUint16(LAST_BATCH_HEAD_AT, head, true)
    this.#batch.push(head)
  }

  /** Takes away the marks of what the driver was shown, up to `usedIdx`. */
  published(usedIdx: number): void {
    if (this.#batch.length === 0) return
    for (const head of this.#batch) this.#view.setUint8(entryAt(head), 0)
    this.#batch = []
    this.#view.setUint16(USED_IDX_AT, usedIdx, true)
  }
}

const entryAt = (head: number): number => HEADER_BYTES + head * ENTRY_BYTES
