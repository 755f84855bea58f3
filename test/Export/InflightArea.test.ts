/**
 * Goal: wherever a backend is killed, the next one finds in the shared area exactly the requests that the driver has not
 * been answered, in the order they were begun; the area has the protocol's layout; and no content of it does any harm.
 * Method: the writes of one queue's life are cut off after each of them in turn, and what is recovered is held against a
 * model; layout and size are read back through a second mapping of the file; hostile content is random, with a seed.
 */
import { afterEach, describe, expect, it } from "@effect/vitest"
import { fstatSync, ftruncateSync, openSync } from "node:fs"
import { InflightArea, InflightQueue } from "../../src/Export/InflightArea.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { SyscallError } from "../../src/Native/SyscallError.ts"
import { make as randomNumbers } from "../../src/SeededRandom.ts"

const toClose: Array<number> = []
const toUnmap: Array<Libc.Mapping> = []
afterEach(() => {
  toClose.splice(0).forEach(Libc.close)
  toUnmap.splice(0).forEach(Libc.unmap)
})

const own = (fd: number): number => {
  toClose.push(fd)
  return fd
}

const file = (length: number) => own(Libc.createMemoryFile("effect-blkio-test", length))

const bytesOf = (fd: number): DataView => {
  const mapping = Libc.map(fd, 0, fstatSync(fd).size)
  toUnmap.push(mapping)
  return new DataView(mapping.buffer)
}

const opened = (inflight: Parameters<typeof InflightArea.open>[0], fd: number): InflightArea => {
  const area = InflightArea.open(inflight, fd)
  if (typeof area === "string") throw new Error(area)
  return area
}

const queueOf = (area: InflightArea, index = 0): InflightQueue => {
  const queue = area.queue(index)
  if (queue === undefined) throw new Error(`the area has no queue ${index}`)
  return queue
}

describe("the area", () => {
  it.each([
    // What libvhost-user answers for a queue of 128.
    [1, 128, 2112],
    [1, 1, 64],
    [1, 3, 64],
    [1, 4, 128],
    [4, 256, 4 * 4160],
    [1, 32_768, 524_352]
  ])("for %i queues of %i has %i bytes, and its file cannot shrink", (numQueues, queueSize, mmapSize) => {
    const { fd, inflight } = InflightArea.create(numQueues, queueSize)
    own(fd)
    expect(inflight).toStrictEqual({ mmapSize, mmapOffset: 0, numQueues, queueSize })
    expect(fstatSync(fd).size).toBe(mmapSize)
    expect(Libc.isSealedAgainstShrinking(fd)).toBe(true)
  })

  it("has the protocol's fields at the protocol's places", () => {
    const { fd, inflight } = InflightArea.create(2, 4)
    const view = bytesOf(own(fd))
    const area = opened(inflight, fd)
    const queue = queueOf(area, 1)
    expect(queue.recover(4, 7)).toStrictEqual([])
    const at = 128
    // features, version, desc_num, last_batch_head, used_idx
    expect([view.getUint16(at + 8, true), view.getUint16(at + 10, true), view.getUint16(at + 14, true)])
      .toStrictEqual([1, 4, 7])
    queue.begin(2)
    queue.begin(0)
    const entry = (head: number) => at + 16 + head * 16
    expect([0, 1, 2, 3].map((head) => view.getUint8(entry(head)))).toStrictEqual([1, 0, 1, 0])
    expect(view.getBigUint64(entry(0) + 8, true)).toBeGreaterThan(view.getBigUint64(entry(2) + 8, true))
    queue.used(0)
    queue.used(2)
    expect(view.getUint16(at + 12, true)).toBe(2)
    expect(view.getUint16(entry(2) + 6, true)).toBe(0)
    queue.published(9)
    expect([0, 1, 2, 3].map((head) => view.getUint8(entry(head)))).toStrictEqual([0, 0, 0, 0])
    expect(view.getUint16(at + 14, true)).toBe(9)
    // Nothing of it touched the queue before.
    expect(new Uint8Array(view.buffer, 0, at).every((byte) => byte === 0)).toBe(true)
    area.close()
  })

  it("may begin anywhere in its file", () => {
    const fd = file(16_384)
    const view = bytesOf(fd)
    const area = opened({ mmapSize: 128, mmapOffset: 5000, numQueues: 1, queueSize: 4 }, fd)
    queueOf(area).recover(4, 3)
    expect([view.getUint16(5008, true), view.getUint16(5010, true), view.getUint16(5014, true)]).toStrictEqual([
      1,
      4,
      3
    ])
    area.close()
  })

  it("has no part for a queue beyond those it was made for, and takes no note of a head beyond its size", () => {
    const { fd, inflight } = InflightArea.create(1, 4)
    const area = opened(inflight, own(fd))
    expect(area.queue(1)).toBeUndefined()
    const queue = queueOf(area)
    queue.recover(256, 0)
    for (const head of [4, 255]) {
      queue.begin(head)
      queue.used(head)
    }
    queue.published(2)
    expect(queueOf(area).recover(256, 2)).toStrictEqual([])
    area.close()
  })

  it.each<[string, Parameters<typeof InflightArea.open>[0], RegExp]>([
    ["no queues", { mmapSize: 64, mmapOffset: 0, numQueues: 0, queueSize: 1 }, /queues with descriptors/],
    ["no descriptors", { mmapSize: 64, mmapOffset: 0, numQueues: 1, queueSize: 0 }, /queues with descriptors/],
    ["too few bytes", { mmapSize: 2111, mmapOffset: 0, numQueues: 1, queueSize: 128 }, /2111 bytes: .* need 2112/],
    ["no bytes", { mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 1 }, /need 64/],
    ["all that fits in u16", { mmapSize: 64, mmapOffset: 0, numQueues: 65_535, queueSize: 65_535 }, /need/],
    ["more than its file", { mmapSize: 8192, mmapOffset: 0, numQueues: 1, queueSize: 128 }, /beyond the file's 4096/],
    ["an end beyond it", { mmapSize: 2112, mmapOffset: 2048, numQueues: 1, queueSize: 128 }, /beyond the file's 4096/],
    [
      "the largest numbers",
      { mmapSize: 2 ** 53 - 1, mmapOffset: 2 ** 53 - 1, numQueues: 1, queueSize: 1 },
      /beyond the file's 4096/
    ]
  ])("of %s is refused", (_, inflight, says) => {
    expect(InflightArea.open(inflight, file(4096))).toMatch(says)
  })

  it("in what is no file is refused", () => {
    const inflight = { mmapSize: 64, mmapOffset: 0, numQueues: 1, queueSize: 1 }
    for (const fd of [own(Libc.createEventFd()), own(openSync("/dev/zero", "r+")), own(openSync("/tmp", "r"))]) {
      expect(InflightArea.open(inflight, fd)).toMatch(/no file/)
    }
    const readOnly = own(openSync(import.meta.filename, "r"))
    expect(() => InflightArea.open(inflight, readOnly)).toThrow(SyscallError)
  })

  it("that is larger than a process can have is refused", () => {
    const fd = file(64)
    const mmapSize = 2 ** 51
    ftruncateSync(fd, mmapSize)
    expect(() => InflightArea.open({ mmapSize, mmapOffset: 0, numQueues: 1, queueSize: 1 }, fd)).toThrow(SyscallError)
  })
})

/** Ends the life of a backend. */
class Killed extends Error {}

/** Memory whose writer is killed after a number of writes. */
class Mortal extends DataView<ArrayBuffer> {
  writesLeft = Infinity
  #live(): void {
    if (this.writesLeft-- <= 0) throw new Killed()
  }
  override setUint8(at: number, value: number): void {
    this.#live()
    super.setUint8(at, value)
  }
  override setUint16(at: number, value: number, little?: boolean): void {
    this.#live()
    super.setUint16(at, value, little)
  }
  override setUint32(at: number, value: number, little?: boolean): void {
    this.#live()
    super.setUint32(at, value, little)
  }
}

const SIZE = 8

/**
 * What a backend does: the driver makes heads available, which it takes; ends some of those it has, in another order; and
 * shows them. `used` is the driver's `used.idx`, which is written between the links and the marks.
 */
class Life {
  readonly order: Array<number> = []
  used: number
  #ended: Array<number> = []
  readonly #queue: InflightQueue

  constructor(queue: InflightQueue, used: number) {
    this.#queue = queue
    this.used = used
  }

  begin(head: number): void {
    this.#queue.begin(head)
    this.order.push(head)
  }

  end(head: number): void {
    this.#queue.used(head)
    this.#ended.push(head)
  }

  publish(): void {
    // Seen by the driver from here on.
    this.used = (this.used + this.#ended.length) & 0xffff
    for (const head of this.#ended) this.order.splice(this.order.indexOf(head), 1)
    this.#ended = []
    this.#queue.published(this.used)
  }
}

/** Lives until it is killed or done. Two batches, requests that overlap them, and a head that comes again. */
const live = (life: Life): void => {
  for (const head of [3, 1, 6, 0]) life.begin(head)
  for (const head of [6, 3]) life.end(head)
  life.publish()
  for (const head of [6, 2]) life.begin(head)
  for (const head of [2, 0, 6]) life.end(head)
  life.publish()
  life.begin(5)
  life.end(1)
  life.publish()
  life.begin(1)
}

const area = (bytes: ArrayBuffer) => new InflightQueue(new DataView(bytes), SIZE)

describe("recovery", () => {
  const writesOfALife = (() => {
    const memory = new Mortal(new ArrayBuffer(16 + SIZE * 16))
    const life = new Life(new InflightQueue(memory, SIZE), 0)
    memory.writesLeft = 1e6
    live(life)
    return 1e6 - memory.writesLeft
  })()

  it.each([0, 0xfffd])(
    "finds what was begun and not shown, wherever the backend is killed (used.idx from %i)",
    (from) => {
      expect(writesOfALife).toBeGreaterThan(40)
      for (let writes = 0; writes <= writesOfALife; writes++) {
        const bytes = new ArrayBuffer(16 + SIZE * 16)
        area(bytes).recover(SIZE, from)
        const memory = new Mortal(bytes)
        const queue = new InflightQueue(memory, SIZE)
        expect(queue.recover(SIZE, from)).toStrictEqual([])
        const life = new Life(queue, from)
        memory.writesLeft = writes
        try {
          live(life)
        } catch (error) {
          if (!(error instanceof Killed)) throw error
        }
        expect(area(bytes).recover(SIZE, life.used), `killed after ${writes} writes`).toStrictEqual(life.order)
        // The one after the next finds the same, and so does it when killed in the middle of recovering.
        for (let second = 0; second < 4; second++) {
          const copy = new Mortal(bytes.slice(0))
          copy.writesLeft = second
          try {
            new InflightQueue(copy, SIZE).recover(SIZE, life.used)
          } catch (error) {
            if (!(error instanceof Killed)) throw error
          }
          expect(area(copy.buffer).recover(SIZE, life.used)).toStrictEqual(life.order)
        }
      }
    }
  )

  it("goes on counting after those that it found, so that their order stays", () => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    const first = area(bytes)
    first.recover(SIZE, 0)
    for (const head of [4, 2, 7]) first.begin(head)
    const second = area(bytes)
    expect(second.recover(SIZE, 0)).toStrictEqual([4, 2, 7])
    for (const head of [0, 1]) second.begin(head)
    second.used(2)
    second.published(1)
    expect(area(bytes).recover(SIZE, 1)).toStrictEqual([4, 7, 0, 1])
  })

  it("counts beyond 32 bits", () => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    area(bytes).recover(SIZE, 0)
    const view = new DataView(bytes)
    view.setUint8(16 + 16 * 3, 1)
    view.setBigUint64(16 + 16 * 3 + 8, 2n ** 32n - 1n, true)
    const queue = area(bytes)
    expect(queue.recover(SIZE, 0)).toStrictEqual([3])
    queue.begin(0)
    expect(view.getBigUint64(16 + 8, true)).toBe(2n ** 32n)
    expect(area(bytes).recover(SIZE, 0)).toStrictEqual([3, 0])
  })

  it("follows the smaller of the area's and the ring's size", () => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    area(bytes).recover(SIZE, 0)
    const view = new DataView(bytes)
    for (let head = 0; head < SIZE; head++) view.setUint8(16 + 16 * head, 1)
    expect(area(bytes).recover(4, 0)).toStrictEqual([0, 1, 2, 3])
    expect(area(bytes).recover(1024, 0)).toHaveLength(SIZE)
  })

  it("of an area of another version begins anew, and finds nothing that it did not begin", () => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    new Uint8Array(bytes).fill(1)
    const view = new DataView(bytes)
    view.setUint16(8, 2, true)
    expect(area(bytes).recover(SIZE, 5)).toStrictEqual([])
    expect([view.getUint16(8, true), view.getUint16(10, true), view.getUint16(14, true)]).toStrictEqual([1, SIZE, 5])
    const queue = area(bytes)
    expect(queue.recover(SIZE, 5)).toStrictEqual([])
    queue.begin(3)
    expect(area(bytes).recover(SIZE, 5)).toStrictEqual([3])
  })
})

describe("hostile content", () => {
  const hostile = (change: (view: DataView) => void, usedIdx = 0): ReadonlyArray<number> => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    area(bytes).recover(SIZE, 0)
    change(new DataView(bytes))
    return area(bytes).recover(SIZE, usedIdx)
  }
  const mark = (view: DataView, head: number, counter: bigint, next = 0) => {
    view.setUint8(16 + 16 * head, 1)
    view.setUint16(16 + 16 * head + 6, next, true)
    view.setBigUint64(16 + 16 * head + 8, counter, true)
  }

  it("with equal counters names each head once", () => {
    expect(hostile((view) => [5, 1, 3].forEach((head) => mark(view, head, 9n)))).toStrictEqual([1, 3, 5])
  })

  it("with the largest counters goes on", () => {
    const bytes = new ArrayBuffer(16 + SIZE * 16)
    area(bytes).recover(SIZE, 0)
    const view = new DataView(bytes)
    mark(view, 2, 2n ** 64n - 1n)
    const queue = area(bytes)
    expect(queue.recover(SIZE, 0)).toStrictEqual([2])
    for (let head = 0; head < SIZE; head++) queue.begin(head)
    expect(area(bytes).recover(SIZE, 0)).toHaveLength(SIZE)
  })

  it("with a batch that goes in circles, or out of the ring, ends", () => {
    expect(hostile((view) => {
      mark(view, 0, 1n, 1)
      mark(view, 1, 2n, 0)
      mark(view, 2, 3n)
    }, 40_000)).toStrictEqual([2])
    expect(hostile((view) => {
      mark(view, 0, 1n, 65_535)
      mark(view, 1, 2n)
    }, 2)).toStrictEqual([1])
    expect(hostile((view) => {
      mark(view, 0, 1n)
      view.setUint16(12, 65_535, true)
    }, 2)).toStrictEqual([0])
  })

  it("of any kind names heads of the ring, each at most once", () => {
    const seed = Math.floor(Math.random() * 2 ** 32)
    const random = randomNumbers(seed)
    for (let round = 0; round < 2000; round++) {
      const left = hostile((view) => {
        for (let at = 0; at < view.byteLength; at++) if (random(3) > 0) view.setUint8(at, random(2) * random(256))
        view.setUint16(8, 1, true)
        for (let head = 0; head < SIZE; head++) view.setUint8(16 + 16 * head, random(3))
      }, random(65_536))
      expect(new Set(left).size, `seed ${seed}`).toBe(left.length)
      expect(left.every((head) => head >= 0 && head < SIZE), `seed ${seed}`).toBe(true)
    }
  })
})
