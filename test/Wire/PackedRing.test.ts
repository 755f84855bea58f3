/**
 * Goal: the parts of a packed ring lie where virtio 1.2 §2.8 allows, and places, laps and events are right for every size.
 * Method: all sixteen queue sizes against the rules, some by hand; the arithmetic of one index against a place and a wrap
 * counter that are counted as §2.8.1 tells, and events against each descriptor passed, one by one.
 */
import { describe, expect, it } from "@effect/vitest"
import {
  availableTurn,
  crossesEvent,
  DESCRIPTOR_FLAGS,
  DESCRIPTOR_ID,
  DESCRIPTOR_LENGTH,
  EVENT_BYTES,
  eventAt,
  EventFlag,
  layout,
  TurnFlag,
  turnOf,
  usedTurn
} from "../../src/Wire/PackedRing.ts"
import { wrap16 } from "../../src/Wire/SplitRing.ts"
import { between, u16 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const queueSizes = Array.from({ length: 16 }, (_, exponent) => 2 ** exponent)

describe("constants", () => {
  it("are those of virtio 1.2 §2.8", () => {
    expect(TurnFlag).toStrictEqual({ AVAIL: 0x80, USED: 0x8000 })
    expect(EventFlag).toStrictEqual({ ENABLE: 0, DISABLE: 1, DESC: 2 })
    expect([DESCRIPTOR_LENGTH, DESCRIPTOR_ID, DESCRIPTOR_FLAGS, EVENT_BYTES]).toStrictEqual([8, 12, 14, 4])
  })
})

describe("layout", () => {
  it.each([
    { queueSize: 1, descriptors: 0, driverEvent: 64, deviceEvent: 128, bytes: 192 },
    { queueSize: 4, descriptors: 0, driverEvent: 64, deviceEvent: 128, bytes: 192 },
    { queueSize: 256, descriptors: 0, driverEvent: 4096, deviceEvent: 4160, bytes: 4224 },
    { queueSize: 32768, descriptors: 0, driverEvent: 524288, deviceEvent: 524352, bytes: 524416 }
  ])("of $queueSize entries is what it is by hand", (expected) => {
    expect(layout(expected.queueSize)).toStrictEqual(expected)
  })

  it.each([0, -1, 3, 255, 32769, 65536, 0.5, NaN])("refuses %d entries", (size) => {
    expect(wireError(() => layout(size))).toBe(`queue size ${size}: must be a power of two from 1 to 32768`)
  })
})

/** A place and a wrap counter, counted as §2.8.1 tells. */
class Counted {
  place = 0
  wrap = 1
  readonly #queueSize: number

  constructor(queueSize: number) {
    this.#queueSize = queueSize
  }

  advance(): void {
    this.place++
    if (this.place < this.#queueSize) return
    this.place = 0
    this.wrap ^= 1
  }
}

describe("places and laps", () => {
  it.each(queueSizes)("of %i entries, over three wraps of the index", (queueSize) => {
    const counted = new Counted(queueSize)
    for (let entry = 0; entry < 3 * 0x1_0000; entry++) {
      const idx = wrap16(entry)
      const { place, wrap } = counted
      const isRight = availableTurn(idx, queueSize) === (wrap === 1 ? 0x80 : 0x8000)
        && usedTurn(idx, queueSize) === (wrap === 1 ? 0x8080 : 0)
        && eventAt(idx, queueSize) === (place | wrap << 15 | 2 << 16)
      if (!isRight) expect.fail(`entry ${entry} is at ${place} of the lap ${wrap}`)
      counted.advance()
    }
  })

  it("are told by two flags of sixteen", () => {
    expect([0, 0x7f7f, 0xffff, 0x8002, 0x0084].map(turnOf)).toStrictEqual([0, 0, 0x8080, 0x8000, 0x80])
  })
})

describe("events", () => {
  it.each([
    { event: 0x0000_0000, expected: true },
    { event: 0x0001_0000, expected: false },
    { event: 0x0003_0000, expected: true },
    { event: 0x8001_0000, expected: true },
    // 2 of the first lap, whose wrap counter is 1.
    { event: 0x0002_8002, expected: true },
    { event: 0x0002_8003, expected: false },
    { event: 0x0002_8000, expected: false },
    { event: 0x0002_0002, expected: false }
  ])("$event: entries 1 and 2 of 8 are worth a notification: $expected", ({ event, expected }) => {
    expect(crossesEvent(event, 3, 1, 8)).toBe(expected)
  })

  /** Whether one of the entries from `old` up to before `old + count` is the one asked for. */
  const passes = (place: number, wrap: number, old: number, count: number, queueSize: number): boolean => {
    for (let entry = old; entry < old + count; entry++) {
      const lap = Math.floor(entry / queueSize)
      if (entry % queueSize === place && (lap % 2 === 0 ? 1 : 0) === wrap) return true
    }
    return false
  }

  it.prop(
    "one descriptor is met as when each is compared, across laps and the wrap of the index",
    [between(0, 6), between(0, 2 ** 17), between(0, 64), u16],
    ([exponent, old, most, drawn]) => {
      const queueSize = 2 ** exponent
      const count = most % (queueSize + 1)
      const [place, wrap] = [drawn % queueSize, drawn >> 15]
      const event = 2 << 16 | wrap << 15 | place
      expect(crossesEvent(event, wrap16(old + count), wrap16(old), queueSize)).toBe(
        passes(place, wrap, old, count, queueSize)
      )
    },
    { arbitrary: { runs: 2000 } }
  )

  it.prop(
    "so in the largest ring",
    [between(0, 2 ** 17), between(0, 600), between(-700, 700)],
    ([old, count, distance]) => {
      const at = wrap16(old + distance)
      const event = eventAt(at, 32768)
      expect(crossesEvent(event, wrap16(old + count), wrap16(old), 32768)).toBe(0 <= distance && distance < count)
    }
  )

  it("follow the index: one for each entry, over three wraps", () => {
    for (const queueSize of [1, 2, 8, 32768]) {
      let events = 0
      for (let entry = 0; entry < 3 * 0x1_0000; entry++) {
        const old = wrap16(entry)
        if (crossesEvent(eventAt(old, queueSize), wrap16(old + 1), old, queueSize)) events++
      }
      expect(events).toBe(3 * 0x1_0000)
    }
  })
})
