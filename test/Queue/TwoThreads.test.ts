/**
 * Goal: driver and device that run at the same time lose no request, no byte of it and no wake-up: what one writes before it
 * publishes, the other sees, and whoever asks to be woken and then sleeps is woken.
 * Method: the device in a thread of its own, small rings that run full and empty all the time, both sides asleep whenever they
 * may be, in every mode. A wake-up that is lost leaves both asleep, which a sleep of many seconds tells. Seeds are printed.
 */
import { describe, expect, it } from "@effect/vitest"
import { Worker } from "node:worker_threads"
import { slotOf, statusOf } from "../../src/Queue/DriverRing.ts"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import { Counter, type DeviceThreadOptions, patternOf } from "../support/DeviceThread.ts"

const ADDRESS = 2 ** 40
/** A plain store where the packed ring has a barrier lost a wake-up within two million requests: one run may miss it. */
const REQUESTS = 150_000
const LOST_MS = 15_000

const both = [true, false]
const every = both.flatMap((packed) =>
  both.flatMap((indirect) => both.map((eventIdx) => ({ packed, indirect, eventIdx })))
)

describe("a device in a thread of its own", () => {
  it.each(every)("packed: $packed, indirect: $indirect, eventIdx: $eventIdx", async ({ packed, ...mode }) => {
    const seed = Math.floor(Math.random() * 2 ** 31)
    const next = random(seed)
    const queueSize = 8
    const options = { queueSize, maxSegments: 1, ...mode }
    const Ring = packed ? PackedRing : SplitRing
    const dataAt = Ring.bytes(options)
    const shared = new SharedArrayBuffer(dataAt + queueSize * 512)
    // The ring works on either kind of buffer; its type names the one that regions are made of.
    const buffer = shared as unknown as ArrayBuffer
    const ring = new Ring(options, { buffer, offset: 0, address: ADDRESS })
    const { avail, descriptors, used } = ring
    const counters = new Int32Array(new SharedArrayBuffer(12))
    const deviceThread: DeviceThreadOptions = {
      ring: { avail, descriptors, used, queueSize },
      ...mode,
      packed,
      buffer: shared,
      address: ADDRESS,
      counters,
      seed
    }
    const worker = new Worker(new URL("../support/DeviceThread.ts", import.meta.url), { workerData: { deviceThread } })
    const ended = new Promise<number>((resolve) => worker.once("exit", resolve))
    let failure: unknown
    worker.once("error", (error) => {
      failure = error
    })
    const data = new Uint8Array(shared, dataAt)
    const areas = Array.from({ length: queueSize }, (_, i) => i)
    const sectors = new Int32Array(queueSize)
    const areaOf = new Int32Array(queueSize)
    const out = new Uint32Array(queueSize)
    let [submitted, answered, sleeps] = [0, 0, 0]
    let wrong: string | undefined
    while (answered < REQUESTS && wrong === undefined) {
      ring.disarm()
      for (let count = next(2 * queueSize); count > 0 && submitted < REQUESTS && ring.fits(1); count--) {
        const area = areas.pop() ?? 0
        data.fill(0xee, area * 512, area * 512 + 512)
        const slot = ring.put(RequestType.IN, submitted, ADDRESS + dataAt + area * 512, 512)
        sectors[slot] = submitted++
        areaOf[slot] = area
      }
      ring.publish()
      if (ring.notificationDue()) {
        Atomics.add(counters, Counter.BELL, 1)
        Atomics.notify(counters, Counter.BELL)
        ring.notified()
      }
      const signals = Atomics.load(counters, Counter.SIGNAL)
      const count = ring.drain(out)
      if (count < 0) wrong = ring.fault
      for (const completion of out.subarray(0, Math.max(0, count))) {
        const slot = slotOf(completion)
        const area = areaOf[slot] ?? 0
        const expected = patternOf(sectors[slot] ?? 0)
        const bytes = data.subarray(area * 512, area * 512 + 512)
        if (statusOf(completion) !== 0 || bytes.some((byte) => byte !== expected)) wrong = `request ${sectors[slot]}`
        areas.push(area)
        answered++
      }
      if (count !== 0 || ring.outstanding === 0 || ring.arm()) continue
      sleeps++
      if (Atomics.wait(counters, Counter.SIGNAL, signals, LOST_MS) === "timed-out") wrong = "a wake-up was lost"
    }
    Atomics.store(counters, Counter.END, 1)
    Atomics.add(counters, Counter.BELL, 1)
    Atomics.notify(counters, Counter.BELL)
    await ended
    expect([wrong, failure], `seed ${seed}`).toStrictEqual([undefined, undefined])
    expect([answered, ring.outstanding]).toStrictEqual([REQUESTS, 0])
    expect(sleeps).toBeGreaterThan(0)
  }, 300_000)
})
