/**
 * Goal: the driver's side of a split ring lays out its parts as virtio 1.2 §2.7 and §5.2.6 say, follows and sets the event
 * fields of that layout, and survives any bytes in it. What it shares with a packed ring is in `DriverRing.test.ts`.
 * Method: the bytes in the ring's memory by hand; any bytes in the part that the device writes.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { type RingOptions, slotOf } from "../../src/Queue/DriverRing.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { availUsedEvent, layout, usedAvailEvent } from "../../src/Wire/SplitRing.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import type { FakeDevice } from "../../src/testing/FakeDevice.ts"
import { makeRing } from "../support/FakeQueue.ts"

const DATA_ADDRESS = 2 ** 45
const data = new ArrayBuffer(1 << 16)

const open = (given: Partial<RingOptions> = {}) => {
  const options = { packed: false, queueSize: 16, maxSegments: 4, indirect: true, eventIdx: true, ...given }
  const made = makeRing(options, { memory: [{ buffer: data, address: DATA_ADDRESS }] })
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

const every = [true, false].flatMap((indirect) => [true, false].map((eventIdx) => ({ indirect, eventIdx })))

const tidy = (device: FakeDevice) => expect(device.violations).toStrictEqual([])

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
})

describe("signals", () => {
  it("with EVENT_IDX: used_event = 2 gives one signal for two batches, the third completion's", () => {
    // The golden case of QEMU's "idx" tests in tests/qtest/virtio-blk-test.c.
    const { device, out, ring, usedEvent } = open()
    for (let i = 0; i < 2; i++) ring.putFlush()
    ring.publish()
    device.take()
    device.answer()
    expect([ring.drain(out), ring.arm(), usedEvent(), device.signals]).toStrictEqual([2, false, 2, 0])
    for (let i = 0; i < 2; i++) ring.putFlush()
    ring.publish()
    device.take()
    device.answer(1)
    device.answer(1)
    expect(device.signals).toBe(1)
  })

  it("with EVENT_IDX: avail.flags stay 0, whatever is asked for (§2.7.7.1)", () => {
    const { availFlags, ring } = open()
    ring.disarm()
    expect(availFlags()).toBe(0)
    ring.arm()
    expect(availFlags()).toBe(0)
  })

  it("without EVENT_IDX: are asked for by avail.flags", () => {
    const { availFlags, ring } = open({ eventIdx: false })
    const flags = [availFlags()]
    ring.arm()
    flags.push(availFlags())
    ring.disarm()
    expect([...flags, availFlags()]).toStrictEqual([1, 0, 1])
  })
})

describe("a device that breaks the protocol", () => {
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
