/**
 * Goal: the driver's side of a split ring writes what virtio 1.2 §2.7 and §5.2.6 say, keeps its own account of descriptors,
 * notifies and asks for signals exactly when it must, and survives whatever the device writes.
 * Method: the bytes in the ring's memory by hand; a fake device that is written from the specification and checks the
 * driver's promises; a plain model against random orders of putting and answering, in both modes; every kind of broken
 * completion.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { ringBytes, type RingOptions, slotOf, SplitRing, statusOf } from "../../src/Queue/SplitRing.ts"
import { availUsedEvent, layout, usedAvailEvent } from "../../src/Wire/SplitRing.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import { type FakeDevice, makeRing, type Mischief, random } from "../support/FakeDevice.ts"

const DATA_ADDRESS = 2 ** 45
const data = new ArrayBuffer(1 << 16)

const options = (given: Partial<RingOptions> = {}): RingOptions => ({
  queueSize: 16,
  maxSegments: 4,
  indirect: true,
  eventIdx: true,
  ...given
})

const open = (given: Partial<RingOptions> = {}) => {
  const made = makeRing(options(given), { memory: [{ buffer: data, address: DATA_ADDRESS }] })
  const base = made.ring.descriptors
  const view = new DataView(made.memory, 128)
  const { avail, used } = layout(made.ring.queueSize)
  const descriptor = (at: number) => ({
    address: Number(view.getBigUint64(at, true)),
    length: view.getUint32(at + 8, true),
    flags: view.getUint16(at + 12, true),
    next: view.getUint16(at + 14, true)
  })
  return {
    ...made,
    base,
    view,
    out: new Uint32Array(made.ring.queueSize),
    descriptor,
    header: (at: number) => [
      view.getUint32(at, true),
      view.getUint32(at + 4, true),
      Number(view.getBigUint64(at + 8, true))
    ],
    availIdx: () => view.getUint16(avail + 2, true),
    availFlags: () => view.getUint16(avail, true),
    usedEvent: () => view.getUint16(avail + availUsedEvent(made.ring.queueSize), true),
    setAvailEvent: (event: number) => view.setUint16(used + usedAvailEvent(made.ring.queueSize), event, true),
    setUsedFlags: (flags: number) => view.setUint16(used, flags, true)
  }
}

const modes = [{ indirect: true }, { indirect: false }]
const every = [true, false].flatMap((indirect) => [true, false].map((eventIdx) => ({ indirect, eventIdx })))

const tidy = (device: FakeDevice) => expect(device.violations).toStrictEqual([])

describe("layout", () => {
  it.each([1, 2, 4, 16, 128, 1024, 32768])("of %i entries has room for all and keeps its alignment", (queueSize) => {
    for (const { indirect } of modes) {
      const given = options({ queueSize, indirect })
      const bytes = ringBytes(given)
      expect(bytes % 64).toBe(0)
      const ring = new SplitRing(given, { buffer: new ArrayBuffer(bytes + 64), offset: 64, address: 2 ** 40 })
      expect(ring.descriptors).toBe(2 ** 40 + 64)
      expect([ring.descriptors % 16, ring.avail % 2, ring.used % 4]).toStrictEqual([0, 0, 0])
      expect(ring.avail - ring.descriptors).toBeGreaterThanOrEqual(16 * queueSize)
      expect(ring.used - ring.avail).toBeGreaterThanOrEqual(6 + 2 * queueSize)
      expect(bytes - (ring.used - ring.descriptors)).toBeGreaterThanOrEqual(6 + 8 * queueSize)
    }
  })

  it.each([0, 3, 65536])("refuses %i entries", (queueSize) => {
    expect(() => ringBytes(options({ queueSize }))).toThrow("must be a power of two from 1 to 32768")
  })

  it("leaves what lies around it alone", () => {
    for (const { indirect } of modes) {
      for (const maxSegments of [1, 2, 4]) {
        const given = options({ indirect, maxSegments })
        const bytes = ringBytes(given)
        const buffer = new ArrayBuffer(bytes + 128)
        const ring = new SplitRing(given, { buffer, offset: 64, address: DATA_ADDRESS })
        const many = Array.from({ length: maxSegments }, () => 512)
        while (ring.fits(maxSegments)) ring.putSegments(RequestType.IN, 2 ** 40, many, many, maxSegments)
        ring.publish()
        ring.arm()
        expect(new Uint8Array(buffer, 0, 64)).toStrictEqual(new Uint8Array(64))
        expect(new Uint8Array(buffer, bytes + 64)).toStrictEqual(new Uint8Array(64))
      }
    }
  })
})

describe("what the device is shown", () => {
  it("is a table beside the header, for one data segment with INDIRECT", () => {
    const { availIdx, base, descriptor, header, ring } = open()
    const slot = ring.put(RequestType.OUT, 2 ** 33 + 5, DATA_ADDRESS + 2 ** 34 + 8, 4096)
    const head = descriptor(16 * slot)
    expect(head).toStrictEqual({ address: head.address, length: 48, flags: 4, next: 0 })
    const table = head.address - base
    expect(table % 64).toBe(0)
    expect(descriptor(table)).toStrictEqual({ address: base + table + 48, length: 16, flags: 1, next: 1 })
    expect(descriptor(table + 16)).toStrictEqual({
      address: DATA_ADDRESS + 2 ** 34 + 8,
      length: 4096,
      flags: 1,
      next: 2
    })
    expect(descriptor(table + 32)).toMatchObject({ length: 1, flags: 2, next: 0 })
    expect(header(table + 48)).toStrictEqual([1, 0, 2 ** 33 + 5])
    expect(availIdx()).toBe(0)
    ring.publish()
    expect(availIdx()).toBe(1)
  })

  it("marks the data of a read as writable, and its status as unwritten", () => {
    const { base, descriptor, ring, view } = open()
    const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    const table = descriptor(16 * slot).address - base
    expect(descriptor(table + 16)).toMatchObject({ flags: 3, next: 2 })
    expect(view.getUint8(descriptor(table + 32).address - base)).toBe(0xff)
  })

  it("is a chain of ring descriptors without INDIRECT", () => {
    const { base, descriptor, header, ring } = open({ indirect: false })
    const addresses = [DATA_ADDRESS, DATA_ADDRESS + 4096, DATA_ADDRESS + 512]
    const slot = ring.putSegments(RequestType.IN, 77, addresses, [512, 1024, 512], 3)
    const first = descriptor(16 * slot)
    expect(first).toMatchObject({ length: 16, flags: 1 })
    expect(header(first.address - base)).toStrictEqual([0, 0, 77])
    const chain = [first]
    for (let last = first; (last.flags & 1) !== 0; chain.push(last)) last = descriptor(16 * last.next)
    expect(chain.slice(1, 4).map(({ address, flags, length }) => [address, length, flags])).toStrictEqual([
      [DATA_ADDRESS, 512, 3],
      [DATA_ADDRESS + 4096, 1024, 3],
      [DATA_ADDRESS + 512, 512, 3]
    ])
    expect(chain).toHaveLength(5)
    expect(chain[4]).toMatchObject({ length: 1, flags: 2 })
  })

  it.each(every)("is a flush, a discard and a write of zeroes as §5.2.6 wants them ($indirect, $eventIdx)", (given) => {
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
    for (const { indirect } of modes) {
      const { device, out, ring } = open({ indirect, maxSegments })
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

  it.each(modes)("restores a slot's table after requests of other shapes (indirect: $indirect)", ({ indirect }) => {
    const { device, out, ring } = open({ indirect, queueSize: 8, maxSegments: 4 })
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
  it.each([
    { queueSize: 1, batch: 1, indirect: true },
    { queueSize: 2, batch: 2, indirect: true },
    { queueSize: 4, batch: 1, indirect: false },
    { queueSize: 16, batch: 13, indirect: true },
    { queueSize: 32768, batch: 32768, indirect: true },
    { queueSize: 32768, batch: 10922, indirect: false }
  ])(
    "wrap at 2^16 with $queueSize entries, $batch at a time (indirect: $indirect)",
    ({ batch, indirect, queueSize }) => {
      const { device, out, ring } = open({ queueSize, indirect })
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
    60_000
  )
})

describe("notifications", () => {
  it("with EVENT_IDX, are due when the device's event is passed, and only then", () => {
    const { ring, setAvailEvent } = open()
    const put = () => {
      ring.putFlush()
      ring.publish()
      const due = ring.notificationDue()
      if (due) ring.notified()
      return due
    }
    expect(ring.notificationDue()).toBe(false)
    setAvailEvent(2)
    expect([put(), put(), put(), put()]).toStrictEqual([false, false, true, false])
    setAvailEvent(4)
    expect([put(), put()]).toStrictEqual([true, false])
  })

  it("with EVENT_IDX, look at all of a batch", () => {
    const { ring, setAvailEvent } = open()
    setAvailEvent(3)
    for (let i = 0; i < 6; i++) ring.putFlush()
    ring.publish()
    expect(ring.notificationDue()).toBe(true)
    ring.notified()
    expect(ring.notificationDue()).toBe(false)
  })

  it("with EVENT_IDX, ignore used.flags", () => {
    const { ring, setUsedFlags } = open()
    setUsedFlags(1)
    ring.putFlush()
    ring.publish()
    expect(ring.notificationDue()).toBe(true)
  })

  it("without EVENT_IDX, follow used.flags", () => {
    const { ring, setUsedFlags } = open({ eventIdx: false })
    const put = () => {
      ring.putFlush()
      ring.publish()
      const due = ring.notificationDue()
      if (due) ring.notified()
      return due
    }
    expect([put(), put()]).toStrictEqual([true, true])
    setUsedFlags(1)
    expect([put(), put()]).toStrictEqual([false, false])
    setUsedFlags(0)
    expect(put()).toBe(true)
  })

  it.each(every)("stay due until one succeeded ($indirect, $eventIdx)", (given) => {
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

  it("are not due for what is not published", () => {
    const { ring } = open()
    ring.putFlush()
    expect(ring.notificationDue()).toBe(false)
  })
})

describe("signals", () => {
  const putMany = (ring: SplitRing, count: number) => {
    for (let i = 0; i < count; i++) ring.putFlush()
    ring.publish()
  }

  it("with EVENT_IDX: an armed ring is signalled once until it is armed again", () => {
    const { device, out, ring } = open()
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

  it("with EVENT_IDX: used_event = 2 gives one signal for two batches, the third completion's", () => {
    // The golden case of QEMU's "idx" tests in tests/qtest/virtio-blk-test.c.
    const { device, out, ring, usedEvent } = open()
    putMany(ring, 2)
    device.take()
    device.answer()
    expect([ring.drain(out), ring.arm(), usedEvent(), device.signals]).toStrictEqual([2, false, 2, 0])
    putMany(ring, 2)
    device.take()
    device.answer(1)
    device.answer(1)
    expect(device.signals).toBe(1)
  })

  it("with EVENT_IDX: a ring that was never armed is not signalled", () => {
    const { availFlags, device, ring } = open()
    ring.disarm()
    putMany(ring, 4)
    device.work()
    expect([device.signals, availFlags()]).toStrictEqual([0, 0])
  })

  it("without EVENT_IDX: follow arm and disarm", () => {
    const { availFlags, device, out, ring } = open({ eventIdx: false })
    putMany(ring, 6)
    device.take()
    device.answer(1)
    expect([device.signals, availFlags()]).toStrictEqual([0, 1])
    expect([ring.arm(), availFlags()]).toStrictEqual([true, 0])
    expect(ring.drain(out)).toBe(1)
    device.answer(1)
    device.answer(1)
    expect(device.signals).toBe(2)
    ring.disarm()
    device.answer(1)
    expect([device.signals, ring.drain(out), ring.arm()]).toStrictEqual([2, 3, false])
  })

  it.each(every)("arm tells what came before it ($indirect, $eventIdx)", (given) => {
    const { device, out, ring } = open(given)
    putMany(ring, 2)
    device.work()
    expect([ring.pending, ring.arm()]).toStrictEqual([true, true])
    expect(ring.drain(out)).toBe(2)
    expect([ring.pending, ring.arm()]).toStrictEqual([false, false])
  })
})

describe("a full ring", () => {
  it.each([1, 2, 16, 32768])("of %i entries is drained whole", (queueSize) => {
    const { device, out, ring } = open({ queueSize })
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
  }, 60_000)

  it("takes as many chains as there are descriptors for", () => {
    const { device, out, ring } = open({ indirect: false })
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

  it("is drained in pieces where the caller has less room", () => {
    const { device, ring } = open()
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
    [between(0, 2 ** 31), between(0, 5), Schema.Boolean, Schema.Boolean, between(1, 6)],
    ([seed, exponent, indirect, eventIdx, maxSegments]) => {
      const queueSize = 4 << exponent
      const limit = indirect ? maxSegments : Math.min(maxSegments, queueSize - 2)
      const { device, out, ring } = open({ queueSize, indirect, eventIdx, maxSegments: limit })
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
    { arbitrary: { runs: 150 } }
  )
})

describe("a device that breaks the protocol", () => {
  const mischiefs: ReadonlyArray<{ readonly mischief: Mischief; readonly fault: RegExp }> = [
    { mischief: "id out of range", fault: /used id 16 is out of range \(queue-size 16\)/ },
    { mischief: "id not in flight", fault: /used id \d+ is not in flight/ },
    { mischief: "repeated id", fault: /used id \d+ is not in flight/ },
    { mischief: "used.idx ahead", fault: /used.idx runs \d+ ahead with 3 requests in flight/ },
    { mischief: "length too long", fault: /used length 514 of id \d+ exceeds its 513 bytes/ }
  ]
  const cases = mischiefs.flatMap((each) => every.map((mode) => ({ ...each, ...mode })))

  it.each(cases)("$mischief (indirect: $indirect, eventIdx: $eventIdx)", ({ fault, mischief, ...given }) => {
    const { device, out, ring } = open(given)
    for (let i = 0; i < 3; i++) ring.put(RequestType.IN, i, DATA_ADDRESS, 512)
    ring.publish()
    device.take()
    device.mischief = mischief
    device.answer(1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toMatch(fault)
  })

  it.each(every)("a chain's inner descriptor is no request ($indirect, $eventIdx)", (given) => {
    const { device, out, ring } = open(given)
    const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.take()
    device.forge((slot + 1) % 16, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toBe(`used id ${(slot + 1) % 16} is not in flight`)
  })

  it.each([0xffff_ffff, 0x1_0000, 0x8000_0000, 16])("id %i is out of range", (id) => {
    const { device, out, ring } = open()
    ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.forge(id, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toContain(`used id ${id} is out of range`)
  })

  it.each([0, 1, 512, 513])("a used length of %i for a read of 512 bytes is none of that", (length) => {
    const { device, out, ring } = open()
    const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.forge(slot, length)
    expect(ring.drain(out)).toBe(1)
    expect(statusOf(out[0] ?? 0)).toBe(0xff)
  })

  it("answers nothing that was not asked", () => {
    const { device, out, ring } = open()
    device.forge(0, 0)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toBe("used.idx runs 1 ahead with 0 requests in flight")
  })

  it("overwrites the descriptors: the driver's own account does not care", () => {
    for (const given of every) {
      const { device, memory, out, ring, view } = open(given)
      const used = layout(16).used
      for (let round = 0; round < 20; round++) {
        const count = given.indirect ? 16 : 5
        for (let i = 0; i < count; i++) ring.put(RequestType.IN, i, DATA_ADDRESS, 512)
        expect(ring.fits(1)).toBe(false)
        ring.publish()
        device.take()
        const before = new Uint8Array(memory.slice(128, 128 + used))
        new Uint8Array(memory, 128, layout(16).avail).fill(0xa5)
        device.answer()
        expect(ring.drain(out)).toBe(count)
        expect([ring.outstanding, ring.fits(1)]).toStrictEqual([0, true])
        // The next round would trip over the garbage where the driver need not write it again.
        new Uint8Array(memory, 128, layout(16).avail).set(before.subarray(0, layout(16).avail))
      }
      expect(view.byteLength).toBeGreaterThan(0)
      tidy(device)
    }
  })

  it.prop(
    "any bytes in the used ring give a fault or a completion, each slot at most once, and never an exception",
    [Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 })), Schema.Boolean],
    ([seed, indirect]) => {
      const { memory, out, ring } = open({ indirect })
      const next = random(seed)
      const inFlight = new Set<number>()
      while (ring.fits(1)) inFlight.add(ring.put(RequestType.IN, 0, DATA_ADDRESS, 512))
      ring.publish()
      const used = new DataView(memory, 128 + layout(16).used)
      for (let step = 0; step < 40 && ring.fault === undefined; step++) {
        for (let i = 0; i < 16; i++) {
          used.setUint32(4 + 8 * i, next(3) === 0 ? next(2 ** 32) : next(18), true)
          used.setUint32(8 + 8 * i, next(5) === 0 ? next(2 ** 32) : next(513), true)
        }
        used.setUint16(2, next(3) === 0 ? next(2 ** 16) : used.getUint16(2, true) + next(2), true)
        const count = ring.drain(out)
        if (count < 0) break
        for (const completion of out.subarray(0, count)) expect(inFlight.delete(slotOf(completion))).toBe(true)
        expect(ring.outstanding).toBe(inFlight.size)
      }
      expect(ring.outstanding).toBeGreaterThanOrEqual(0)
    },
    { arbitrary: { runs: 300 } }
  )
})
