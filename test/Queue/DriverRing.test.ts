/**
 * Goal: the driver's side of a ring, of either layout, writes what virtio 1.2 §2.7, §2.8 and §5.2.6 say, keeps its own account
 * of descriptors, notifies and asks for signals exactly when it must, and survives whatever the device writes.
 * Method: a fake device that is written from the specification and checks the driver's promises; a plain model against random
 * orders of putting and answering, in every mode; every kind of broken completion. The bytes of each layout are in
 * `SplitRing.test.ts` and `PackedRing.test.ts`.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { type DriverRing, type RingOptions, slotOf, statusOf } from "../../src/Queue/DriverRing.ts"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import type { FakeDevice, RequestFault } from "../../src/testing/FakeDevice.ts"
import { makeRing, RING_ADDRESS, RING_OFFSET } from "../support/FakeQueue.ts"

const DATA_ADDRESS = 2 ** 45
const data = new ArrayBuffer(1 << 16)

interface Given extends Partial<RingOptions> {
  readonly packed: boolean
}

const options = (given: Given) => ({ queueSize: 16, maxSegments: 4, indirect: true, eventIdx: true, ...given })

const open = (given: Given) => {
  const made = makeRing(options(given), { memory: [{ buffer: data, address: DATA_ADDRESS }] })
  return { ...made, out: new Uint32Array(made.ring.queueSize) }
}

const both = [true, false]
const layouts = both.map((packed) => ({ packed }))
const modes = layouts.flatMap((given) => both.map((indirect) => ({ ...given, indirect })))
const every = modes.flatMap((given) => both.map((eventIdx) => ({ ...given, eventIdx })))
const kindOf = ({ packed }: Given) => packed ? PackedRing : SplitRing

const inMode = "(packed: $packed, indirect: $indirect)"
const inEvery = "(packed: $packed, indirect: $indirect, eventIdx: $eventIdx)"

const tidy = (device: FakeDevice) => expect(device.violations).toStrictEqual([])

describe("layout", () => {
  const sizes = [1, 2, 4, 16, 128, 1024, 32768]
  const cases = modes.flatMap((given) => sizes.map((queueSize) => ({ ...given, queueSize })))

  it.each(cases)("of $queueSize entries has room for all and keeps its alignment " + inMode, (given) => {
    const { packed, queueSize } = given
    const Ring = kindOf(given)
    const bytes = Ring.bytes(options(given))
    expect(bytes % 64).toBe(0)
    const ring = new Ring(options(given), { buffer: new ArrayBuffer(bytes + 64), offset: 64, address: 2 ** 40 })
    expect(ring.descriptors).toBe(2 ** 40 + 64)
    // §2.7, §2.8.10.1.
    expect([ring.descriptors % 16, ring.avail % (packed ? 4 : 2), ring.used % 4]).toStrictEqual([0, 0, 0])
    expect(ring.avail - ring.descriptors).toBeGreaterThanOrEqual(16 * queueSize)
    expect(ring.used - ring.avail).toBeGreaterThanOrEqual(packed ? 4 : 6 + 2 * queueSize)
    expect(bytes - (ring.used - ring.descriptors)).toBeGreaterThanOrEqual(packed ? 4 : 6 + 8 * queueSize)
  })

  it.each([0, 3, 65536])("refuses %i entries", (queueSize) => {
    for (const given of layouts) {
      expect(() => kindOf(given).bytes(options({ ...given, queueSize }))).toThrow(
        "must be a power of two from 1 to 32768"
      )
    }
  })

  it.each(modes)("leaves what lies around it alone " + inMode, (mode) => {
    for (const maxSegments of [1, 2, 4]) {
      const given = options({ ...mode, maxSegments })
      const Ring = kindOf(mode)
      const bytes = Ring.bytes(given)
      const buffer = new ArrayBuffer(bytes + 128)
      const ring = new Ring(given, { buffer, offset: 64, address: DATA_ADDRESS })
      const many = Array.from({ length: maxSegments }, () => 512)
      while (ring.fits(maxSegments)) ring.putSegments(RequestType.IN, 2 ** 40, many, many, maxSegments)
      ring.publish()
      ring.arm()
      expect(new Uint8Array(buffer, 0, 64)).toStrictEqual(new Uint8Array(64))
      expect(new Uint8Array(buffer, bytes + 64)).toStrictEqual(new Uint8Array(64))
    }
  })
})

describe("what the device is shown", () => {
  it.each(every)("is a flush, a discard and a write of zeroes as §5.2.6 wants them " + inEvery, (given) => {
    const { device, ring } = open(given)
    ring.putFlush()
    ring.putRange(RequestType.DISCARD, 2 ** 35 + 1, 2 ** 32 - 1, 0)
    ring.putRange(RequestType.WRITE_ZEROES, 3, 4, 1)
    ring.publish()
    expect(device.take()).toBe(3)
    expect(device.taken.map(({ range, sector, segments, type }) => [type, sector, segments.length, range]))
      .toStrictEqual([
        [4, 0, 0, undefined],
        [11, 0, 1, { sector: 2 ** 35 + 1, sectors: 2 ** 32 - 1, flags: 0 }],
        [13, 0, 1, { sector: 3, sectors: 4, flags: 1 }]
      ])
    tidy(device)
  })

  it.each([1, 2, 4])("is right for one segment in a vector, where %i are allowed", (maxSegments) => {
    for (const mode of modes) {
      const { device, out, ring } = open({ ...mode, maxSegments })
      for (let round = 0; round < 40; round++) {
        ring.putSegments(RequestType.OUT, round, [DATA_ADDRESS + 512], [1024], 1)
        ring.publish()
        device.work()
        expect(ring.drain(out)).toBe(1)
        expect(device.taken.at(-1)).toMatchObject({
          sector: round,
          segments: [{ address: DATA_ADDRESS + 512, length: 1024 }]
        })
      }
      tidy(device)
    }
  })

  it.each(modes)("restores a slot's table after requests of other shapes " + inMode, (mode) => {
    const { device, out, ring } = open({ ...mode, queueSize: 8, maxSegments: 4 })
    const shapes = [
      () => ring.put(RequestType.IN, 1, DATA_ADDRESS, 512),
      () => ring.putSegments(RequestType.OUT, 2, [DATA_ADDRESS, DATA_ADDRESS + 512], [512, 512], 2),
      () => ring.putFlush(),
      () => {
        const lengths = [512, 1024, 1536, 2048]
        return ring.putSegments(RequestType.IN, 3, lengths.map((n) => DATA_ADDRESS + n), lengths, 4)
      },
      () => ring.putRange(RequestType.DISCARD, 4, 8, 0)
    ]
    const expected = [[0, 1, [512]], [1, 2, [512, 512]], [4, 0, []], [0, 3, [512, 1024, 1536, 2048]], [11, 0, [16]]]
    for (let from = 0; from < 100; from++) {
      const pick = (from * 7 + Math.floor(from / 5)) % 5
      shapes[pick]?.()
      ring.publish()
      device.work()
      expect(ring.drain(out)).toBe(1)
      const { sector, segments, type } = device.taken.at(-1)!
      expect([type, sector, segments.map(({ length }) => length)]).toStrictEqual(expected[pick])
    }
    tidy(device)
  })
})

describe("indices", () => {
  const shapes = [
    { queueSize: 1, batch: 1, indirect: true },
    { queueSize: 2, batch: 1, indirect: true },
    { queueSize: 2, batch: 2, indirect: true },
    { queueSize: 4, batch: 1, indirect: false },
    { queueSize: 8, batch: 2, indirect: false },
    { queueSize: 8, batch: 7, indirect: true },
    { queueSize: 16, batch: 13, indirect: true },
    { queueSize: 32768, batch: 32768, indirect: true },
    { queueSize: 32768, batch: 10922, indirect: false }
  ]

  it.each(layouts.flatMap((given) => shapes.map((shape) => ({ ...given, ...shape }))))(
    "wrap at 2^16 with $queueSize entries, $batch at a time " + inMode,
    ({ batch, ...given }) => {
      const { device, out, ring } = open(given)
      device.order = "reversed"
      let ended = 0
      while (ended < 140_000) {
        for (let i = 0; i < batch; i++) ring.put(RequestType.OUT, i % 64, DATA_ADDRESS, 512)
        ring.publish()
        if (device.take() !== batch) expect.fail(`the device did not find all of a batch after ${ended} requests`)
        // The fake keeps them all, which nobody looks at here.
        device.taken.length = 0
        device.answer()
        if (ring.drain(out) !== batch) expect.fail(`a batch was lost after ${ended} requests: ${ring.fault}`)
        ended += batch
      }
      expect([ring.outstanding, ring.pending, ring.fault]).toStrictEqual([0, false, undefined])
      tidy(device)
    },
    300_000
  )
})

describe("a position", () => {
  it.each(every)("is where another driver goes on, after more than a lap of indices " + inEvery, (given) => {
    const { device, memory, out, ring: first } = open(given)
    let ring = first
    for (let round = 0; round < 70_000; round++) {
      if (round % 9973 === 0) {
        const place = { buffer: memory, offset: RING_OFFSET, address: RING_ADDRESS }
        ring = new (kindOf(given))(options(given), place, ring.position)
      }
      ring.putFlush()
      ring.publish()
      device.work()
      device.taken.length = 0
      if (ring.drain(out) !== 1) expect.fail(`round ${round}: ${ring.fault}`)
    }
    tidy(device)
  })
})

describe("notifications", () => {
  it.each(every)("stay due until one succeeded " + inEvery, (given) => {
    const { device, ring } = open(given)
    ring.putFlush()
    ring.publish()
    expect(ring.notificationDue()).toBe(true)
    device.take()
    device.askNotifications(false)
    expect(ring.notificationDue()).toBe(true)
    ring.notified()
    expect(ring.notificationDue()).toBe(false)
  })

  it.each(every)("are not due any more for a device that says it has found the requests " + inEvery, (given) => {
    const { device, out, ring } = open(given)
    for (let round = 0; round < 100; round++) {
      ring.putFlush()
      ring.publish()
      expect([ring.notificationDue(), ring.notificationStillDue()]).toStrictEqual([true, true])
      device.work()
      // Without EVENT_IDX it tells of its wish for any, and not of how far it has come.
      if (!given.eventIdx) device.askNotifications(false)
      expect([ring.notificationStillDue(), ring.notificationDue()]).toStrictEqual([false, false])
      if (!given.eventIdx) device.askNotifications(true)
      expect(ring.drain(out)).toBe(1)
    }
    tidy(device)
  })

  it.each(every)("are not due for what is not published " + inEvery, (given) => {
    const { ring } = open(given)
    ring.putFlush()
    expect(ring.notificationDue()).toBe(false)
  })

  it.each(every)("are due once for each batch that finds the device waiting, whatever its size " + inEvery, (given) => {
    const { device, out, ring } = open(given)
    for (let round = 0; round < 200; round++) {
      // Some laps go by in which the device looks for itself.
      const asks = round % 7 < 4
      device.askNotifications(asks)
      const sizes = [1, 1 + round % 3]
      const due = sizes.map((size) => {
        for (let i = 0; i < size; i++) ring.putFlush()
        ring.publish()
        const isDue = ring.notificationDue()
        if (isDue) ring.notified()
        return isDue
      })
      // Without EVENT_IDX there is no wish for the next one alone.
      if (asks) expect(due).toStrictEqual([true, !given.eventIdx])
      else if (given.packed || !given.eventIdx) expect(due).toStrictEqual([false, false])
      device.work()
      expect(ring.drain(out)).toBe(sizes[0]! + sizes[1]!)
    }
    tidy(device)
  })

  it("look at all that was published while one was due", () => {
    for (const given of layouts) {
      const { device, out, ring } = open({ ...given, queueSize: 2 })
      // The device finds the requests itself, and no notification succeeds, for many laps.
      for (let round = 0; round < 70_000; round++) {
        ring.putFlush()
        ring.publish()
        const isDue = ring.notificationDue()
        device.work()
        device.taken.length = 0
        if (!isDue || ring.drain(out) !== 1) expect.fail(`round ${round}: due ${isDue}, fault ${ring.fault}`)
      }
      ring.notified()
      expect(ring.notificationDue()).toBe(false)
      ring.putFlush()
      ring.publish()
      expect(ring.notificationDue()).toBe(true)
    }
  })
})

describe("signals", () => {
  const putMany = (ring: DriverRing, count: number) => {
    for (let i = 0; i < count; i++) ring.putFlush()
    ring.publish()
  }

  it.each(layouts)("with EVENT_IDX: an armed ring is signalled once until it is armed again (%o)", (given) => {
    const { device, out, ring } = open(given)
    putMany(ring, 4)
    device.take()
    expect(ring.arm()).toBe(false)
    device.answer(1)
    device.answer(1)
    expect(device.signals).toBe(1)
    expect(ring.arm()).toBe(true)
    expect(ring.drain(out)).toBe(2)
    expect(ring.arm()).toBe(false)
    device.answer(2)
    expect(device.signals).toBe(2)
  })

  it.each(every)("a ring that was never armed is not signalled " + inEvery, (given) => {
    const { device, ring } = open(given)
    ring.disarm()
    putMany(ring, 4)
    device.work()
    expect(device.signals).toBe(0)
  })

  it.each(layouts)("without EVENT_IDX: follow arm and disarm (%o)", (given) => {
    const { device, out, ring } = open({ ...given, eventIdx: false })
    putMany(ring, 6)
    device.take()
    device.answer(1)
    expect(device.signals).toBe(0)
    expect(ring.arm()).toBe(true)
    expect(ring.drain(out)).toBe(1)
    device.answer(1)
    device.answer(1)
    expect(device.signals).toBe(2)
    ring.disarm()
    device.answer(1)
    expect([device.signals, ring.drain(out), ring.arm()]).toStrictEqual([2, 3, false])
  })

  it.each(every)("arm tells what came before it " + inEvery, (given) => {
    const { device, out, ring } = open(given)
    putMany(ring, 2)
    device.work()
    expect([ring.pending, ring.arm()]).toStrictEqual([true, true])
    expect(ring.drain(out)).toBe(2)
    expect([ring.pending, ring.arm()]).toStrictEqual([false, false])
  })

  it.each(every)("come for each batch while the ring is armed anew, for many laps " + inEvery, (given) => {
    const { device, out, ring } = open({ ...given, queueSize: 4 })
    for (let round = 0; round < 300; round++) {
      putMany(ring, given.indirect ? 1 + round % 4 : 1 + round % 2)
      device.take()
      if (round % 5 === 0) ring.disarm()
      expect(ring.arm()).toBe(false)
      const before = device.signals
      device.answer()
      expect(device.signals).toBe(before + 1)
      expect(ring.drain(out)).toBeGreaterThan(0)
    }
    tidy(device)
  })
})

describe("a full ring", () => {
  const sizes = [1, 2, 16, 32768]
  const cases = layouts.flatMap((given) => sizes.map((queueSize) => ({ ...given, queueSize })))

  it.each(cases)("of $queueSize entries is drained whole (packed: $packed)", (given) => {
    const { queueSize } = given
    const { device, out, ring } = open(given)
    let count = 0
    while (ring.fits(1)) {
      ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
      count++
    }
    ring.publish()
    expect(count).toBe(queueSize)
    device.order = "reversed"
    expect(device.take()).toBe(count)
    device.answer()
    expect(ring.pending).toBe(true)
    expect(ring.drain(out)).toBe(count)
    expect(new Set(Array.from(out, slotOf)).size).toBe(count)
    expect(out.every((completion) => statusOf(completion) === 0)).toBe(true)
    tidy(device)
  }, 300_000)

  it.each(layouts)("takes as many chains as there are descriptors for (%o)", (given) => {
    const { device, out, ring } = open({ ...given, indirect: false })
    const segments = [3, 4, 0, 1]
    for (const count of segments) {
      expect(ring.fits(count)).toBe(true)
      const list = Array.from({ length: count }, () => 512)
      if (count === 0) ring.putFlush()
      else ring.putSegments(RequestType.OUT, 0, list.map(() => DATA_ADDRESS), list, count)
    }
    expect([ring.fits(0), ring.fits(1)]).toStrictEqual([false, false])
    ring.publish()
    device.work()
    expect(ring.drain(out)).toBe(4)
    expect([ring.fits(14), ring.fits(15)]).toStrictEqual([true, false])
    tidy(device)
  })

  it.each(layouts)("is drained in pieces where the caller has less room (%o)", (given) => {
    const { device, ring } = open(given)
    for (let i = 0; i < 7; i++) ring.putFlush()
    ring.publish()
    device.work()
    const out = new Uint32Array(3)
    expect([ring.drain(out), ring.drain(out), ring.drain(out), ring.drain(out)]).toStrictEqual([3, 3, 1, 0])
  })
})

describe("against a model", () => {
  const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

  it.prop(
    "any order of putting and answering loses nothing and uses nothing twice",
    [between(0, 2 ** 31), between(0, 5), Schema.Boolean, Schema.Boolean, between(1, 6), Schema.Boolean],
    ([seed, exponent, indirect, eventIdx, maxSegments, packed]) => {
      const queueSize = 4 << exponent
      const limit = indirect ? maxSegments : Math.min(maxSegments, queueSize - 2)
      const { device, out, ring } = open({ packed, queueSize, indirect, eventIdx, maxSegments: limit })
      const next = random(seed)
      device.order = { seed }
      const model = new Map<number, { readonly cost: number; readonly status: number }>()
      const awaited = new Map<number, number>()
      device.status = ({ head }) => awaited.get(head) ?? 0
      let free = queueSize
      for (let step = 0; step < 300; step++) {
        const dice = next(4)
        if (dice < 2) {
          const count = next(limit + 1)
          const cost = indirect ? 1 : count + 2
          expect(ring.fits(count)).toBe(free >= cost)
          if (free < cost) continue
          const list = Array.from({ length: count }, () => 512)
          const slot = count === 0
            ? ring.putFlush()
            : count === 1
            ? ring.put(next(2), next(1000), DATA_ADDRESS, 512)
            : ring.putSegments(next(2), next(1000), list.map((n) => DATA_ADDRESS + n), list, count)
          expect(model.has(slot)).toBe(false)
          const status = next(3)
          model.set(slot, { cost, status })
          awaited.set(slot, status)
          free -= cost
        } else if (dice === 2) {
          ring.publish()
          device.take()
          device.answer(next(queueSize))
        } else {
          const count = ring.drain(out)
          expect(count).toBeGreaterThanOrEqual(0)
          for (const completion of out.subarray(0, count)) {
            const expected = model.get(slotOf(completion))
            expect(expected?.status).toBe(statusOf(completion))
            free += expected?.cost ?? 0
            model.delete(slotOf(completion))
          }
        }
        expect(ring.outstanding).toBe(model.size)
      }
      ring.publish()
      device.work()
      expect(ring.drain(out)).toBe(model.size)
      expect([ring.outstanding, ring.fits(indirect ? 1 : queueSize - 2), ring.fault]).toStrictEqual([
        0,
        true,
        undefined
      ])
      tidy(device)
    },
    { arbitrary: { runs: 300 } }
  )
})

describe("a device that breaks the protocol", () => {
  const ahead = /used.idx runs \d+ ahead with 3 requests in flight|descriptor \d+ is used and was not available/
  const mischiefs: ReadonlyArray<{ readonly mischief: RequestFault; readonly fault: RegExp }> = [
    { mischief: "id out of range", fault: /used id 16 is out of range \(queue-size 16\)/ },
    { mischief: "id not in flight", fault: /used id \d+ is not in flight/ },
    { mischief: "repeated id", fault: /used id \d+ is not in flight/ },
    { mischief: "more used than available", fault: ahead },
    { mischief: "length too long", fault: /used length 514 of id \d+ exceeds its 513 bytes/ }
  ]
  const cases = mischiefs.flatMap((each) => every.map((mode) => ({ ...each, ...mode })))

  it.each(cases)("$mischief " + inEvery, ({ fault, mischief, ...given }) => {
    const { device, out, ring } = open(given)
    for (let i = 0; i < 3; i++) ring.put(RequestType.IN, i, DATA_ADDRESS, 512)
    ring.publish()
    device.take()
    device.mischief = mischief
    device.answer(1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toMatch(fault)
  })

  it.each(every)("a chain's inner descriptor is no request " + inEvery, (given) => {
    const { device, out, ring } = open(given)
    const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.take()
    device.forge((slot + 1) % 16, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toBe(`used id ${(slot + 1) % 16} is not in flight`)
  })

  const ids = [
    ...[0xffff_ffff, 0x1_0000, 0x8000_0000, 16].map((id) => ({ packed: false, id })),
    ...[0xffff, 0x8000, 16].map((id) => ({ packed: true, id }))
  ]

  it.each(ids)("id $id is out of range (packed: $packed)", ({ id, packed }) => {
    const { device, out, ring } = open({ packed })
    ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.forge(id, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toContain(`used id ${id} is out of range`)
  })

  it.each([0, 1, 512, 513])("a used length of %i for a read of 512 bytes is none of that", (length) => {
    for (const given of layouts) {
      const { device, out, ring } = open(given)
      const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
      ring.publish()
      device.forge(slot, length)
      expect(ring.drain(out)).toBe(1)
      expect(statusOf(out[0] ?? 0)).toBe(0xff)
    }
  })

  it.each(layouts)("answers what was not asked (%o)", (given) => {
    const { device, out, ring } = open(given)
    device.forge(0, 0)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toBe(
      given.packed
        ? "descriptor 0 is used and was not available"
        : "used.idx runs 1 ahead with 0 requests in flight"
    )
  })
})
