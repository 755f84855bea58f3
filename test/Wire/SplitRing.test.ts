/**
 * Goal: the parts of a ring never overlap and lie where virtio 1.2 §2.7 allows, and index arithmetic is right across the
 * wrap at 2^16.
 * Method: all sixteen queue sizes against the rules, some by hand; indices against counters that never wrap (bigints), drawn
 * close to multiples of 2^16 so that most cases cross one.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary } from "effect"
import {
  AVAIL_FLAGS,
  AVAIL_IDX,
  AVAIL_NO_INTERRUPT,
  AVAIL_RING,
  availUsedEvent,
  crossesEvent,
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  isPowerOfTwo,
  layout,
  MAX_QUEUE_SIZE,
  pending,
  USED_ELEMENT_BYTES,
  USED_FLAGS,
  USED_IDX,
  USED_NO_NOTIFY,
  USED_RING,
  usedAvailEvent,
  wrap16
} from "../../src/Wire/SplitRing.ts"
import { address, between, u16 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const queueSizes = Array.from({ length: 16 }, (_, exponent) => 2 ** exponent)

describe("constants", () => {
  it("are those of virtio 1.2 §2.7", () => {
    expect(DescriptorFlag).toStrictEqual({ NEXT: 1, WRITE: 2, INDIRECT: 4 })
    expect([DESCRIPTOR_BYTES, USED_ELEMENT_BYTES, MAX_QUEUE_SIZE]).toStrictEqual([16, 8, 32768])
    expect([AVAIL_FLAGS, AVAIL_IDX, AVAIL_RING, AVAIL_NO_INTERRUPT]).toStrictEqual([0, 2, 4, 1])
    expect([USED_FLAGS, USED_IDX, USED_RING, USED_NO_NOTIFY]).toStrictEqual([0, 2, 4, 1])
    expect([availUsedEvent(256), usedAvailEvent(256)]).toStrictEqual([516, 2052])
  })
})

describe("layout", () => {
  it.each([
    { queueSize: 1, descriptors: 0, avail: 64, used: 128, bytes: 192 },
    { queueSize: 4, descriptors: 0, avail: 64, used: 128, bytes: 192 },
    { queueSize: 256, descriptors: 0, avail: 4096, used: 4672, bytes: 6784 },
    { queueSize: 32768, descriptors: 0, avail: 524288, used: 589888, bytes: 852096 }
  ])("of $queueSize entries is what it is by hand", (expected) => {
    expect(layout(expected.queueSize)).toStrictEqual(expected)
  })

  it.each(queueSizes)("of %i entries keeps its parts apart, aligned and without waste", (queueSize) => {
    const { avail, bytes, descriptors, used } = layout(queueSize)
    const parts = [
      { at: descriptors, size: 16 * queueSize, next: avail },
      { at: avail, size: 6 + 2 * queueSize, next: used },
      { at: used, size: 6 + 8 * queueSize, next: bytes }
    ]
    for (const { at, next, size } of parts) {
      expect(at % 64).toBe(0)
      expect(next % 64).toBe(0)
      expect(at + size).toBeLessThanOrEqual(next)
      expect(next - (at + size)).toBeLessThan(64)
    }
    expect(avail + availUsedEvent(queueSize) + 2).toBe(avail + 6 + 2 * queueSize)
    expect(used + usedAvailEvent(queueSize) + 2).toBe(used + 6 + 8 * queueSize)
  })

  it("refuses every size that is not a power of two from 1 to 32768", () => {
    for (const size of [0, -1, -2, 3, 6, 255, 257, 32767, 32769, 65536, 2 ** 32, 2 ** 53, 0.5, 1.5, NaN, Infinity]) {
      expect(wireError(() => layout(size))).toBe(`queue size ${size}: must be a power of two from 1 to 32768`)
    }
    const accepted: Array<number> = []
    for (let size = 0; size <= 2 * MAX_QUEUE_SIZE; size++) {
      try {
        accepted.push(layout(size).queueSize)
      } catch {
        // what is refused is counted by its absence
      }
    }
    expect(accepted).toStrictEqual(queueSizes)
  })
})

describe("isPowerOfTwo", () => {
  it("knows all of them, and their neighbours", () => {
    for (let exponent = 0; exponent <= 52; exponent++) {
      const power = 2 ** exponent
      expect(isPowerOfTwo(power), `2^${exponent}`).toBe(true)
      if (exponent > 1) {
        expect(isPowerOfTwo(power - 1), `2^${exponent}-1`).toBe(false)
        expect(isPowerOfTwo(power + 1), `2^${exponent}+1`).toBe(false)
      }
      expect(isPowerOfTwo(-power)).toBe(false)
    }
    for (const n of [0, 0.5, 2.5, NaN, Infinity, 2 ** 53, 2 ** 32 + 2 ** 31, 2 ** 33 + 1]) {
      expect(isPowerOfTwo(n), `${n}`).toBe(false)
    }
  })

  it.prop("agrees with a model on bigints", [address], ([n]) => {
    expect(isPowerOfTwo(n)).toBe(n > 0 && (BigInt(n) & BigInt(n) - 1n) === 0n)
  })
})

describe("index arithmetic", () => {
  const mask = 0xffffn

  /** A counter that never wraps, at most 300 away from a multiple of 2^16. */
  const nearWrap = Arbitrary.map(
    Arbitrary.all([Arbitrary.schema(between(1, 5)), Arbitrary.schema(between(-300, 300))]),
    ([wraps, distance]) => BigInt(wraps * 0x1_0000 + distance)
  )
  const few = between(0, 600)

  /** `vring_need_event` on counters that never wrap: is there an entry called `event` from `old` up to before `next`? */
  const passes = (event: number, next: bigint, old: bigint): boolean => old + (BigInt(event) - old & mask) < next

  it("wraps to 16 bits", () => {
    expect([0, 1, 65535, 65536, 65537, 131071, -1, -65536, -65537].map(wrap16)).toStrictEqual(
      [0, 1, 65535, 0, 1, 65535, 65535, 0, 65535]
    )
  })

  it("counts pending entries across the wrap", () => {
    expect(pending(5, 5)).toBe(0)
    expect(pending(3, 65534)).toBe(5)
    expect(pending(0, 65535)).toBe(1)
    expect(pending(65535, 0)).toBe(65535)
  })

  it.prop("pending agrees with counters that never wrap", [nearWrap, few], ([last, count]) => {
    const idx = last + BigInt(count)
    expect(pending(Number(idx & mask), Number(last & mask))).toBe(count)
    expect(wrap16(Number(idx))).toBe(Number(idx & mask))
  })

  it.prop("pending is the distance for any two indices", [u16, u16], ([idx, last]) => {
    expect(pending(idx, last)).toBe(Number(BigInt.asUintN(16, BigInt(idx) - BigInt(last))))
    expect(wrap16(last + pending(idx, last))).toBe(idx)
  })

  it("crosses an event exactly when the index passes it", () => {
    expect(crossesEvent(4, 5, 4)).toBe(true)
    expect(crossesEvent(5, 5, 4)).toBe(false)
    expect(crossesEvent(3, 5, 4)).toBe(false)
    expect(crossesEvent(7, 7, 7)).toBe(false)
    expect(crossesEvent(65535, 0, 65535)).toBe(true)
    expect(crossesEvent(65535, 0, 65534)).toBe(true)
    expect(crossesEvent(0, 0, 65534)).toBe(false)
    expect(crossesEvent(0, 1, 65534)).toBe(true)
    expect(crossesEvent(65533, 1, 65534)).toBe(false)
    expect(crossesEvent(0, 65535, 0)).toBe(true)
  })

  it.prop(
    "crossesEvent agrees with counters that never wrap, near the wrap",
    [nearWrap, few, between(-700, 700)],
    ([old, count, distance]) => {
      const next = old + BigInt(count)
      const event = Number(old + BigInt(distance) & mask)
      expect(crossesEvent(event, Number(next & mask), Number(old & mask))).toBe(passes(event, next, old))
    }
  )

  it.prop("crossesEvent agrees with counters that never wrap, anywhere", [u16, u16, u16], ([event, start, count]) => {
    const old = BigInt(start)
    const next = old + BigInt(count)
    expect(crossesEvent(event, Number(next & mask), start)).toBe(passes(event, next, old))
  })

  it("signals once a round when the event follows the index, over three wraps", () => {
    let old = 0
    let signals = 0
    for (let entry = 1; entry <= 3 * 0x1_0000; entry++) {
      const next = wrap16(old + 1)
      if (crossesEvent(old, next, old)) signals++
      old = next
    }
    expect(signals).toBe(3 * 0x1_0000)
  })

  it("signals once in 2^16 entries when the event stays where it is", () => {
    let signals = 0
    for (let entry = 0; entry < 0x1_0000; entry++) if (crossesEvent(100, wrap16(entry + 1), entry)) signals++
    expect(signals).toBe(1)
  })
})
