/**
 * Goal: the driver's side of a packed ring writes its descriptors and its event area as virtio 1.2 §2.8 says, in each lap,
 * reads the device's as it says, and survives any bytes in them. What it shares with a split ring is in
 * `DriverRing.test.ts`.
 * Method: the bytes in the ring's memory by hand; flags of the wrong lap; any bytes in the whole ring.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { type RingOptions, slotOf, statusOf } from "../../src/Queue/DriverRing.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { layout } from "../../src/Wire/PackedRing.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import { makeRing } from "../support/FakeQueue.ts"

const DATA_ADDRESS = 2 ** 45
const data = new ArrayBuffer(1 << 16)

const [WRITE, INDIRECT, AVAIL, USED] = [2, 4, 0x80, 0x8000]

const open = (given: Partial<RingOptions> = {}) => {
  const options = { packed: true, queueSize: 16, maxSegments: 4, indirect: true, eventIdx: true, ...given }
  const made = makeRing(options, { memory: [{ buffer: data, address: DATA_ADDRESS }] })
  const base = made.ring.descriptors
  const view = new DataView(made.memory, 128)
  const { deviceEvent, driverEvent } = layout(made.ring.queueSize)
  return {
    ...made,
    base,
    view,
    out: new Uint32Array(made.ring.queueSize),
    descriptor: (at: number) => ({
      address: Number(view.getBigUint64(at, true)),
      length: view.getUint32(at + 8, true),
      id: view.getUint16(at + 12, true),
      flags: view.getUint16(at + 14, true)
    }),
    flags: (place: number) => view.getUint16(16 * place + 14, true),
    setFlags: (place: number, flags: number) => view.setUint16(16 * place + 14, flags, true),
    driverEvent: () => [view.getUint16(driverEvent, true), view.getUint16(driverEvent + 2, true)],
    setDeviceEvent: (desc: number, flags: number) => {
      view.setUint16(deviceEvent, desc, true)
      view.setUint16(deviceEvent + 2, flags, true)
    }
  }
}

const hex = (view: DataView, from: number, bytes: number) =>
  Buffer.from(view.buffer, view.byteOffset + from, bytes).toString("hex")

describe("what the device is shown", () => {
  it("is a table beside the header, for one data segment with INDIRECT", () => {
    const { base, descriptor, ring, view } = open()
    const slot = ring.put(RequestType.IN, 2 ** 33 + 5, DATA_ADDRESS + 8, 4096)
    ring.publish()
    const head = descriptor(0)
    expect(head).toStrictEqual({ address: head.address, length: 48, id: slot, flags: INDIRECT | AVAIL })
    const table = head.address - base
    expect(table % 64).toBe(0)
    expect(descriptor(table)).toStrictEqual({ address: base + table + 48, length: 16, id: 0, flags: 0 })
    expect(descriptor(table + 16)).toStrictEqual({ address: DATA_ADDRESS + 8, length: 4096, id: 0, flags: WRITE })
    const status = descriptor(table + 32)
    expect(status).toStrictEqual({ address: status.address, length: 1, id: 0, flags: WRITE })
    expect(view.getUint8(status.address - base)).toBe(0xff)
    expect(Number(view.getBigUint64(table + 56, true))).toBe(2 ** 33 + 5)
  })

  it("is a shorter table for a flush", () => {
    const { base, descriptor, ring } = open()
    ring.putFlush()
    ring.publish()
    const head = descriptor(0)
    expect(head).toMatchObject({ length: 32, flags: INDIRECT | AVAIL })
    expect(descriptor(head.address - base + 16)).toMatchObject({ length: 1, flags: WRITE })
  })

  it("is one descriptor after another without INDIRECT, to the byte", () => {
    const { base, device, out, ring, view } = open({ indirect: false, queueSize: 4 })
    const { bytes } = layout(4)
    // Behind the ring: a line of statuses, one of ranges, and 64 bytes for each slot that end in its header.
    const header = base + bytes + 128 + 48
    const status = base + bytes
    /** A descriptor's bytes: address, length, id 0, and the flags as they stand in memory. */
    const bytesOf = (address: number, length: number, flags: string) => {
      const buffer = Buffer.alloc(14)
      buffer.writeBigUInt64LE(BigInt(address))
      buffer.writeUInt32LE(length, 8)
      return buffer.toString("hex") + flags
    }
    ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    expect(hex(view, 0, 64)).toBe([
      bytesOf(header, 16, "8100"),
      bytesOf(DATA_ADDRESS, 512, "8300"),
      bytesOf(status, 1, "8200"),
      "00".repeat(16)
    ].join(""))
    device.work()
    expect(hex(view, 0, 16)).toBe(bytesOf(header, 513, "8280"))
    expect(ring.drain(out)).toBe(1)
    // The next one begins at the last place, and goes on in the second lap: AVAIL is 0 there, and USED 1.
    ring.put(RequestType.OUT, 0, DATA_ADDRESS, 1024)
    ring.publish()
    expect(hex(view, 0, 64)).toBe([
      bytesOf(DATA_ADDRESS, 1024, "0180"),
      bytesOf(status, 1, "0280"),
      bytesOf(status, 1, "8200"),
      bytesOf(header, 16, "8100")
    ].join(""))
    device.work()
    expect(hex(view, 48, 16)).toBe(bytesOf(header, 1, "8280"))
    expect(ring.drain(out)).toBe(1)
    // All of the third lies in the second lap, whose used descriptors have neither flag.
    ring.putFlush()
    ring.publish()
    expect(hex(view, 32, 32)).toBe(bytesOf(header, 16, "0180") + bytesOf(status, 1, "0280"))
    device.work()
    expect(hex(view, 32, 16)).toBe(bytesOf(header, 1, "0200"))
    expect(ring.drain(out)).toBe(1)
    expect(device.violations).toStrictEqual([])
  })

  it.each([true, false])("is nothing before it is published, in any lap (indirect: %o)", (indirect) => {
    const { device, out, ring } = open({ indirect, queueSize: 8 })
    for (let round = 0; round < 100; round++) {
      const count = 1 + round % (indirect ? 8 : 2)
      for (let i = 0; i < count; i++) ring.put(RequestType.OUT, i, DATA_ADDRESS, 512)
      expect(device.take()).toBe(0)
      ring.publish()
      expect(device.take()).toBe(count)
      // What is put while others are in flight is not seen either.
      const more = ring.fits(1) ? 1 : 0
      if (more === 1) ring.putFlush()
      expect(device.take()).toBe(0)
      ring.publish()
      device.work()
      expect(ring.drain(out)).toBe(count + more)
    }
    expect(device.violations).toStrictEqual([])
  })

  it("has the turn flags of its lap", () => {
    const { device, flags, out, ring } = open({ queueSize: 2 })
    const seen: Array<ReadonlyArray<number>> = []
    for (let i = 0; i < 8; i++) {
      ring.putFlush()
      ring.publish()
      const available = flags(i % 2)
      device.work()
      expect(ring.drain(out)).toBe(1)
      seen.push([available, flags(i % 2)])
    }
    const odd = [INDIRECT | AVAIL, WRITE | AVAIL | USED]
    const even = [INDIRECT | USED, WRITE]
    expect(seen).toStrictEqual([odd, odd, even, even, odd, odd, even, even])
  })
})

describe("answers", () => {
  it("in another order lie where the device stands, and skip as many places as their own request took", () => {
    const { descriptor, device, out, ring } = open({ indirect: false })
    const first = ring.putSegments(RequestType.IN, 1, [DATA_ADDRESS, DATA_ADDRESS + 512], [512, 512], 2)
    const second = ring.putFlush()
    const third = ring.put(RequestType.OUT, 3, DATA_ADDRESS, 512)
    ring.publish()
    device.order = "reversed"
    device.work()
    expect([0, 3, 5].map((place) => descriptor(16 * place).id)).toStrictEqual([third, second, first])
    expect(ring.drain(out)).toBe(3)
    expect(Array.from(out.subarray(0, 3), slotOf)).toStrictEqual([third, second, first])
    expect([ring.outstanding, ring.fits(14), ring.pending]).toStrictEqual([0, true, false])
  })

  it("are not searched where the device does not stand", () => {
    const { flags, out, ring, setFlags } = open()
    for (let i = 0; i < 3; i++) ring.putFlush()
    ring.publish()
    setFlags(1, flags(1) | USED)
    expect([ring.pending, ring.drain(out)]).toStrictEqual([false, 0])
  })

  it("have a length only where the device says that it wrote (§2.8.4)", () => {
    const { device, flags, out, ring, setFlags, view } = open()
    ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
    ring.publish()
    device.work()
    setFlags(0, flags(0) & ~WRITE)
    view.setUint32(8, 0xffff_ffff, true)
    expect(ring.drain(out)).toBe(1)
    expect(statusOf(out[0] ?? 0xff)).toBe(0)
  })

  it("may keep flags of the request (§2.8.6), and have reserved ones", () => {
    const { device, flags, out, ring, setFlags } = open()
    ring.putFlush()
    ring.publish()
    device.work()
    setFlags(0, flags(0) | 0x7f7d)
    expect(ring.drain(out)).toBe(1)
  })
})

describe("the driver's event area", () => {
  it("with EVENT_IDX, names the place where the next answer will be, and its lap", () => {
    const { device, driverEvent, out, ring } = open({ queueSize: 4, indirect: false })
    const seen = [driverEvent()]
    for (let i = 0; i < 5; i++) {
      ring.arm()
      seen.push(driverEvent())
      ring.disarm()
      seen.push(driverEvent())
      ring.put(RequestType.OUT, 0, DATA_ADDRESS, 512)
      ring.publish()
      device.work()
      expect(ring.drain(out)).toBe(1)
    }
    const none = [0, 1]
    const at = (place: number, wrap: number) => [place | wrap << 15, 2]
    expect(seen).toStrictEqual(
      [none, at(0, 1), none, at(3, 1), none, at(2, 0), none, at(1, 1), none, at(0, 0), none]
    )
  })

  it("without EVENT_IDX, asks for all or for none", () => {
    const { driverEvent, ring } = open({ eventIdx: false })
    const seen = [driverEvent()]
    ring.arm()
    seen.push(driverEvent())
    ring.disarm()
    expect([...seen, driverEvent()]).toStrictEqual([[0, 1], [0, 0], [0, 1]])
  })
})

describe("the device's event area", () => {
  const opened = (given: Partial<RingOptions> = {}) => {
    const made = open(given)
    return {
      ...made,
      put: (count = 1) => {
        for (let i = 0; i < count; i++) made.ring.putFlush()
        made.ring.publish()
        const isDue = made.ring.notificationDue()
        if (isDue) made.ring.notified()
        return isDue
      }
    }
  }

  it.each([true, false])("asks for all or for none (EVENT_IDX: %o)", (eventIdx) => {
    const { put, setDeviceEvent } = opened({ eventIdx })
    expect([put(), put()]).toStrictEqual([true, true])
    setDeviceEvent(0, 1)
    expect([put(), put(3)]).toStrictEqual([false, false])
    setDeviceEvent(0, 0)
    expect(put()).toBe(true)
  })

  it("asks for one descriptor, which a batch may have passed", () => {
    const { put, setDeviceEvent } = opened()
    setDeviceEvent(2 | 0x8000, 2)
    expect([put(), put(), put(), put()]).toStrictEqual([false, false, true, false])
    setDeviceEvent(7 | 0x8000, 2)
    expect([put(3), put(1), put(1)]).toStrictEqual([false, true, false])
    setDeviceEvent(10 | 0x8000, 2)
    expect(put(5)).toBe(true)
  })

  it("asks for one descriptor of one lap", () => {
    const { device, out, put, ring, setDeviceEvent } = opened({ queueSize: 4 })
    const lap = () => {
      const due = [put(), put(), put(), put()]
      device.askNotifications(false)
      device.work()
      expect(ring.drain(out)).toBe(4)
      return due
    }
    const wishes: ReadonlyArray<readonly [number, ReadonlyArray<boolean>]> = [
      [1 | 0x8000, [false, true, false, false]],
      [1 | 0x8000, [false, false, false, false]],
      [3 | 0x8000, [false, false, false, true]],
      [0, [true, false, false, false]],
      [2, [false, false, false, false]]
    ]
    for (const [desc, expected] of wishes) {
      setDeviceEvent(desc, 2)
      expect(lap()).toStrictEqual(expected)
    }
  })

  it("that makes no sense gets a notification", () => {
    const { put, setDeviceEvent } = opened()
    setDeviceEvent(0, 3)
    expect(put()).toBe(true)
    setDeviceEvent(0, 0x8001)
    expect(put()).toBe(true)
  })
})

describe("a device that breaks the protocol", () => {
  it.each([
    { lap: 0, turn: 0 },
    { lap: 0, turn: USED },
    { lap: 1, turn: AVAIL | USED },
    { lap: 1, turn: AVAIL },
    { lap: 2, turn: 0 },
    { lap: 2, turn: USED }
  ])("writes turn flags $turn in lap $lap", ({ lap, turn }) => {
    const { device, out, ring, setFlags } = open({ queueSize: 4 })
    for (let i = 0; i < 4 * lap; i++) {
      ring.putFlush()
      ring.publish()
      device.work()
      expect(ring.drain(out)).toBe(1)
    }
    ring.putFlush()
    ring.publish()
    setFlags(0, turn)
    expect([ring.pending, ring.drain(out)]).toStrictEqual([false, -1])
    expect(ring.fault).toBe(`descriptor 0 has flags ${turn}, neither available nor used in this lap`)
  })

  it("answers what was put and not published", () => {
    const { device, out, ring } = open()
    const slot = ring.putFlush()
    device.forge(slot, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toBe("descriptor 0 is used and was not available")
  })

  it("answers the same request in the next lap", () => {
    const { device, out, ring } = open({ queueSize: 2 })
    const slots = [ring.putFlush(), ring.putFlush()]
    ring.publish()
    device.work()
    expect(ring.drain(out)).toBe(2)
    const again = ring.putFlush()
    ring.publish()
    device.forge(slots.find((slot) => slot !== again) ?? -1, 1)
    expect(ring.drain(out)).toBe(-1)
    expect(ring.fault).toMatch(/used id \d is not in flight/)
  })

  it.each([true, false])("overwrites the descriptors: the driver's own account does not care (%o)", (indirect) => {
    const { device, out, ring, view } = open({ indirect, queueSize: 8 })
    for (let round = 0; round < 40; round++) {
      const count = indirect ? 8 : 2
      for (let i = 0; i < count; i++) ring.put(RequestType.IN, i, DATA_ADDRESS, 512)
      expect(ring.fits(1)).toBe(false)
      ring.publish()
      device.take()
      for (let place = 0; place < 8; place++) view.setBigUint64(16 * place, 0xa5a5_a5a5_a5a5_a5a5n, true)
      device.answer()
      expect(ring.drain(out)).toBe(count)
      expect([ring.outstanding, ring.fits(1)]).toStrictEqual([0, true])
    }
    expect(device.violations).toStrictEqual([])
  })

  it.prop(
    "any bytes in the ring give a fault or a completion, each request at most once, and never an exception",
    [Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 })), Schema.Boolean, Schema.Boolean],
    ([seed, indirect, eventIdx]) => {
      const queueSize = 8
      const { out, ring, setDeviceEvent, setFlags, view } = open({ indirect, eventIdx, queueSize })
      const next = random(seed)
      const inFlight = new Set<number>()
      const places = indirect ? 1 : 3
      let used = 0
      for (let step = 0; step < 200; step++) {
        while (ring.fits(1) && next(4) > 0) {
          const slot = ring.put(RequestType.IN, 0, DATA_ADDRESS, 512)
          expect(inFlight.has(slot)).toBe(false)
          inFlight.add(slot)
        }
        if (next(4) > 0) ring.publish()
        if (next(2) === 0) setDeviceEvent(next(2 ** 16), next(5))
        if (ring.notificationDue()) ring.notified()
        if (next(3) === 0) ring.arm()
        const answer = (place: number, flags: number, id: number, length: number) => {
          setFlags(place, flags)
          view.setUint16(16 * place + 12, id, true)
          view.setUint32(16 * place + 8, length, true)
        }
        const turn = Math.floor(used / queueSize) % 2 === 0 ? AVAIL | USED : 0
        const [first = 0] = inFlight
        if (next(2) === 0) answer(used % queueSize, turn | WRITE, first, next(514))
        // Nonsense ends the ring at once, so it is rare.
        if (next(30) === 0) answer(next(queueSize), next(2 ** 16), next(2 ** 16), next(2 ** 32))
        if (next(30) === 0) answer(next(queueSize), turn | WRITE, next(queueSize), next(520))
        const count = ring.drain(out)
        if (count < 0) return expect(ring.fault).toBeDefined()
        for (const completion of out.subarray(0, count)) expect(inFlight.delete(slotOf(completion))).toBe(true)
        used += count * places
        expect(ring.outstanding).toBe(inFlight.size)
        expect(ring.fits(1)).toBe((inFlight.size + 1) * places <= queueSize)
      }
    },
    { arbitrary: { runs: 500 } }
  )
})
