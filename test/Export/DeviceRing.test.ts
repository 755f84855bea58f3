/**
 * Goal: the device's side of a split ring takes exactly the chains that virtio 1.2 §2.7 allows, in every framing; notices
 * whatever breaks its rules; never leaves the regions it was given; signals and asks for notifications exactly when it must;
 * and its indices wrap.
 * Method: a driver's ring written from the specification (test/support/FakeRing.ts) in memory that is mapped twice. Tables of
 * broken rings, golden cases for both ways of suppression, more than 65,536 chains in a row, and random garbage in all of the
 * shared memory between guard bytes.
 */
import { afterAll, beforeAll, describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { Chain, DeviceRing } from "../../src/Export/DeviceRing.ts"
import { GuestMemory } from "../../src/Export/GuestMemory.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { NEXT, type Part, SharedMemory, WRITE } from "../support/FakeRing.ts"
import { count, type Resources } from "../support/resources.ts"
import { brokenRings, garbage, QUEUE_SIZE } from "./brokenRings.ts"
import { bytesOf, type ExportRing, partsOf, withRing } from "./exportRing.ts"

let before: Resources
beforeAll(() => {
  before = count()
})
afterAll(() => {
  expect(count()).toStrictEqual(before)
})

const seeds = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 }))

const GUEST = 2 ** 40
const modes = [true, false].flatMap((indirect) => [true, false].map((eventIdx) => ({ indirect, eventIdx })))

describe("a ring", () => {
  it("lies in mapped memory, aligned as virtio 1.2 §2.7 says", () =>
    withRing({ queueSize: 64, length: 8192 }, ({ driver, guest }) => {
      const { region } = driver.memory
      const place = { ...driver.addresses, queueSize: 64, indirect: true, eventIdx: true, availIdx: 0 }
      const last = region.userAddress + region.size
      const wrong = [
        { descriptors: place.descriptors + 8 },
        { avail: place.avail + 1 },
        { used: place.used + 2 },
        { descriptors: last - 64 * 16 + 16 },
        { avail: last - (6 + 2 * 64) + 2 },
        { used: last - (6 + 8 * 64) + 2 },
        { descriptors: region.userAddress - 16 },
        { used: 0 },
        // Descriptors name guest addresses, SET_VRING_ADDR user addresses.
        { used: region.guestAddress }
      ]
      const answers = wrong.map((change) => {
        const made = DeviceRing.make(guest, { ...place, ...change })
        return typeof made === "string" ? made.replaceAll(/\d{6,}/g, "#") : "made"
      })
      expect(answers).toStrictEqual([
        "the descriptors at # must lie at a multiple of 16",
        "the avail ring at # must lie at a multiple of 2",
        "the used ring at # must lie at a multiple of 4",
        "the 1024 bytes of the descriptors at # are not in a mapped region",
        "the 134 bytes of the avail ring at # are not in a mapped region",
        "the 518 bytes of the used ring at # are not in a mapped region",
        "the 1024 bytes of the descriptors at # are not in a mapped region",
        "the 518 bytes of the used ring at 0 are not in a mapped region",
        "the 518 bytes of the used ring at # are not in a mapped region"
      ])
      // What ends with the region's last byte is in it.
      expect(DeviceRing.make(guest, { ...place, descriptors: last - 64 * 16 })).toBeInstanceOf(DeviceRing)
    }))

  it.each([1, 2, 64, 32768])(
    "of %i descriptors works",
    (queueSize) =>
      withRing({ queueSize, length: 1 << 20 }, ({ device, driver, memory }) => {
        const chain = new Chain()
        const address = memory.allocate(64)
        for (let i = 0; i < 3 * Math.min(queueSize, 100); i++) {
          const head = driver.put([{ address, length: 1 + i % 64 }])
          expect([device.take(chain), device.take(new Chain()), chain.head]).toStrictEqual([true, false, head])
          expect(partsOf(chain)).toStrictEqual([{ address, length: 1 + i % 64, write: false }])
          device.use(head, i)
          device.publish()
          expect(driver.collect()).toStrictEqual([{ id: head, length: i }])
        }
        expect(device.fault).toBeUndefined()
      })
  )
})

describe("framing", () => {
  const parts = (ring: ExportRing): ReadonlyArray<Part> => {
    const lengths = [16, 512, 0, 1, 4096, 7]
    return lengths.map((length, i) => {
      const address = ring.memory.allocate(length)
      ring.memory.at(address, length).fill(i + 1)
      return { address, length, write: i >= 3 }
    })
  }
  const cases = [0, 1, 2, 5, 6].flatMap((indirectFrom) =>
    [0, 1, 7, 8].flatMap((tableOffset) => [0, WRITE].map((tableFlags) => ({ indirectFrom, tableOffset, tableFlags })))
  )
  it.each(cases)(
    "is the same chain with the first $indirectFrom descriptors in the ring, the table at 16 n + $tableOffset, flags $tableFlags",
    (framing) =>
      withRing({}, (ring) => {
        const { device, driver } = ring
        const laid = parts(ring)
        const head = driver.put(laid, framing)
        const chain = new Chain()
        expect(device.take(chain)).toBe(true)
        expect([chain.head, chain.count, chain.readable]).toStrictEqual([head, 6, 3])
        expect(partsOf(chain)).toStrictEqual(laid)
        laid.forEach(({ length }, i) => expect(bytesOf(chain, i)).toStrictEqual(new Uint8Array(length).fill(i + 1)))
      })
  )

  it("follows next wherever it leads, and ignores it after the last", () =>
    withRing({ guestAddress: GUEST }, ({ device, driver }) => {
      const order = [9, 3, 15, 0]
      order.forEach((index, i) =>
        driver.setDescriptor(index, {
          address: GUEST + i,
          length: 1,
          flags: i < 3 ? NEXT : 0,
          next: order[i + 1] ?? 0xffff
        })
      )
      driver.offer(9)
      const chain = new Chain()
      expect(device.take(chain)).toBe(true)
      expect(partsOf(chain).map(({ address }) => address - GUEST)).toStrictEqual([0, 1, 2, 3])
    }))

  it("takes a chain of 1024 descriptors, as many as are allowed", () =>
    withRing({ guestAddress: GUEST }, ({ device, driver }) => {
      driver.put(Array.from({ length: 1024 }, (_, i) => ({ address: GUEST + i, length: 1 })), { indirectFrom: 0 })
      const chain = new Chain()
      expect([device.take(chain), chain.count]).toStrictEqual([true, 1024])
      // And a chain of all descriptors of a ring.
      driver.put(Array.from({ length: 15 }, (_, i) => ({ address: GUEST + i, length: 1, write: true })))
      expect([device.take(chain), chain.count, chain.readable]).toStrictEqual([true, 15, 0])
      expect(device.fault).toBeUndefined()
    }))

  it("takes a chain of 2^32 bytes, and none that is longer", () =>
    withRing({ guestAddress: GUEST, length: 2 ** 24 }, ({ device, driver }) => {
      const parts = (count: number) => Array.from({ length: count }, () => ({ address: GUEST, length: 2 ** 24 }))
      driver.put(parts(256), { indirectFrom: 0 })
      const chain = new Chain()
      expect([device.take(chain), chain.count]).toStrictEqual([true, 256])
      const head = driver.put([...parts(256), { address: GUEST, length: 1 }], { indirectFrom: 0 })
      expect([device.take(chain), device.fault]).toStrictEqual([false, `head ${head}: more than 4294967296 bytes`])
    }))

  it("reads every byte of the region, and one that begins between two pages of its file", () =>
    withRing(
      { guestAddress: GUEST, length: 8192 + 3, before: 4096 + 512, after: 4096 },
      ({ device, driver, memory }) => {
        memory.bytes.fill(0x11, 4096)
        const end = GUEST + memory.region.size
        for (const [address, length] of [[end - 1, 1], [end - 16, 16], [GUEST, 8195], [end, 0]] as const) {
          driver.put([{ address, length }])
          const chain = new Chain()
          expect(device.take(chain)).toBe(true)
          expect(Buffer.compare(bytesOf(chain, 0), memory.at(address, length))).toBe(0)
        }
      }
    ))

  it("finds a part in any region, and none in two that touch", () => {
    const others = [
      { guestAddress: GUEST + (1 << 20), userAddress: 2 ** 45, length: 4096 },
      { guestAddress: GUEST - 4096, userAddress: 2 ** 45 + 4096, length: 4096 }
    ]
    withRing({ guestAddress: GUEST, others }, ({ device, driver }) => {
      const laid = [
        { address: GUEST - 1, length: 1, write: false },
        { address: GUEST, length: 1, write: false },
        { address: GUEST + (1 << 20) - 1, length: 1, write: false },
        { address: GUEST + (1 << 20), length: 4096, write: true }
      ]
      driver.put(laid)
      const chain = new Chain()
      expect(device.take(chain)).toBe(true)
      expect(partsOf(chain)).toStrictEqual(laid)
      driver.put([{ address: GUEST + (1 << 20) - 1, length: 2 }])
      expect(device.take(chain)).toBe(false)
      expect(device.fault).toMatch(/2 bytes at \d+ are not mapped/)
    })
    withRing({ guestAddress: GUEST, others }, ({ device, driver }) => {
      driver.put([{ address: GUEST - 1, length: 2 }])
      expect([device.take(new Chain()), device.fault]).toStrictEqual([
        false,
        `descriptor 0 of head 0: 2 bytes at ${GUEST - 1} are not mapped`
      ])
    })
  })
})

describe("a driver that breaks the protocol", () => {
  const cases = brokenRings.flatMap((broken) => [0, 0xfff8].map((base) => ({ ...broken, base })))
  it.each(cases)("$name (indices from $base)", ({ base, breakRing, fault, indirect = true }) => {
    for (const eventIdx of [true, false]) {
      withRing(
        { queueSize: QUEUE_SIZE, indirect, eventIdx, base, guestAddress: GUEST },
        ({ device, driver, memory }) => {
          const chain = new Chain()
          // A good one before it.
          const good = driver.put([{ address: memory.allocate(16), length: 16 }])
          expect([device.take(chain), chain.head]).toStrictEqual([true, good])
          device.use(good, 0)
          device.publish()
          const usedIdx = driver.usedIdx
          breakRing(driver)
          expect(device.pending).toBe(true)
          expect(device.take(chain)).toBe(false)
          expect(device.fault).toMatch(fault)
          expect(driver.usedIdx).toBe(usedIdx)
        }
      )
    }
  })
})

describe("memory that changes", () => {
  it("is read once: what the driver changes after a chain was taken is not seen", () =>
    withRing({ guestAddress: GUEST }, ({ device, driver }) => {
      const laid = [{ address: GUEST + 1, length: 16, write: false }, {
        address: GUEST + 100,
        length: 513,
        write: true
      }]
      for (const indirectFrom of [0, 2]) {
        const head = driver.put(laid, { indirectFrom })
        const chain = new Chain()
        expect(device.take(chain)).toBe(true)
        driver.memory.bytes.fill(0xff, driver.descriptorsAt, driver.descriptorsAt + 256)
        driver.setAvail(driver.availIdx - 1, 0xffff)
        expect([chain.head, partsOf(chain)]).toStrictEqual([head, laid])
      }
    }))
})

/** Takes all there is, and hands it back in order. */
const serve = (device: DeviceRing, chain = new Chain()): number => {
  let taken = 0
  for (; device.take(chain); taken++) device.use(chain.head, 1)
  return taken
}

describe("suppression", () => {
  const ask = ({ driver }: ExportRing, times = 1) => {
    for (let i = 0; i < times; i++) driver.put([{ address: driver.memory.region.guestAddress, length: 1 }])
  }
  /** Serves `times` chains, each shown by itself; tells for each whether the driver is to be signalled. */
  const signals = (ring: ExportRing, times: number) =>
    Array.from({ length: times }, () => {
      ask(ring)
      serve(ring.device)
      const signal = ring.device.publish()
      ring.driver.collect()
      return signal
    })

  it("with EVENT_IDX, signals once for two requests where the second is asked for (the qtest `idx` of QEMU)", () =>
    withRing({ eventIdx: true }, (ring) => {
      ring.driver.usedEvent = 1
      expect(signals(ring, 2)).toStrictEqual([false, true])
    }))

  it("with EVENT_IDX, signals where the index passes the event and nowhere else", () => {
    for (const base of [0, 100, 0xfffa]) {
      withRing({ eventIdx: true, base }, (ring) => {
        ring.driver.usedEvent = base + 3 & 0xffff
        expect(signals(ring, 10)).toStrictEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map((i) => i === 3))
      })
    }
  })

  it("with EVENT_IDX, signals once for a batch that the event lies in, and not for one that it does not", () => {
    for (const base of [0, 0xfffd]) {
      for (const [event, expected] of [[0, true], [3, true], [4, false], [-1, false], [100, false]] as const) {
        withRing({ eventIdx: true, base }, (ring) => {
          ring.driver.usedEvent = base + event & 0xffff
          ask(ring, 4)
          expect(serve(ring.device)).toBe(4)
          expect([ring.device.publish(), ring.device.publish()]).toStrictEqual([expected, false])
        })
      }
    }
  })

  it("with EVENT_IDX, takes no notice of the flags, and sets none", () =>
    withRing({ eventIdx: true }, (ring) => {
      ring.driver.availFlags = 1
      ring.device.disarm()
      expect([signals(ring, 1), ring.driver.usedFlags]).toStrictEqual([[true], 0])
    }))

  it("without EVENT_IDX, signals each batch unless AVAIL_NO_INTERRUPT is set, whatever the event says", () =>
    withRing({ eventIdx: false }, (ring) => {
      ring.driver.usedEvent = 1000
      expect(signals(ring, 2)).toStrictEqual([true, true])
      ring.driver.availFlags = 1
      expect(signals(ring, 2)).toStrictEqual([false, false])
      ring.driver.availFlags = 0
      expect(signals(ring, 1)).toStrictEqual([true])
      // Nothing was handed back: there is nothing to signal.
      expect(ring.device.publish()).toBe(false)
    }))

  it("without EVENT_IDX, asks for notifications by the flags, and looks once more", () =>
    withRing({ eventIdx: false }, (ring) => {
      ring.device.disarm()
      expect(ring.driver.usedFlags).toBe(1)
      expect([ring.device.arm(), ring.driver.usedFlags]).toStrictEqual([false, 0])
      ask(ring)
      expect(ring.device.arm()).toBe(true)
      expect(ring.driver.availEvent).toBe(0)
    }))

  it("with EVENT_IDX, asks for a notification of the very next chain", () =>
    withRing({ eventIdx: true, base: 0xfffe }, (ring) => {
      for (const event of [0xfffe, 0xffff, 0, 1]) {
        expect([ring.device.arm(), ring.driver.availEvent]).toStrictEqual([false, event])
        ask(ring)
        expect(ring.device.arm()).toBe(true)
        serve(ring.device)
        ring.device.publish()
        ring.driver.collect()
      }
    }))
})

describe("indices", () => {
  it.each(modes)(
    "wrap at 2^16 (indirect: $indirect, eventIdx: $eventIdx)",
    ({ eventIdx, indirect }) =>
      withRing({ base: 65_530, eventIdx, indirect }, ({ device, driver, memory }) => {
        const chain = new Chain()
        const laid = [
          { address: memory.allocate(16), length: 16, write: false },
          { address: memory.allocate(1), length: 1, write: true }
        ]
        const { allocated } = memory
        const framing = indirect ? { indirectFrom: 0 } : {}
        let done = 0
        let signals = 0
        let batches = 0
        while (done < 70_000) {
          const batch = 1 + done % 7
          const heads = Array.from({ length: batch }, () => driver.put(laid, framing))
          for (const head of heads) {
            if (!device.take(chain) || chain.head !== head || chain.count !== 2) {
              throw new Error(`at ${done}: ${device.fault}`)
            }
            device.use(head, done++ & 0xff)
          }
          // The driver wants to hear of the last of each batch.
          driver.usedEvent = device.usedIdx - 1 & 0xffff
          if (device.publish()) signals++
          batches++
          if (driver.collect().length !== batch) throw new Error(`at ${done}: not all came back`)
          memory.allocated = allocated
          if (device.pending || device.arm()) throw new Error(`at ${done}: something is left`)
        }
        expect([device.availIdx, device.usedIdx]).toStrictEqual([driver.availIdx, driver.usedIdx])
        expect(device.availIdx).toBe((65_530 + done) % 65_536)
        expect(signals).toBe(batches)
      })
  )

  it("go on where a ring that is laid anew left off", () =>
    withRing({ base: 0xffff }, ({ device, driver, guest, memory }) => {
      const put = () => driver.put([{ address: memory.region.guestAddress, length: 1 }])
      put()
      put()
      expect(serve(device)).toBe(2)
      device.publish()
      put()
      const again = DeviceRing.make(guest, {
        ...driver.addresses,
        queueSize: 16,
        indirect: true,
        eventIdx: true,
        availIdx: device.availIdx
      })
      if (typeof again === "string") throw new Error(again)
      expect([again.availIdx, again.usedIdx, serve(again)]).toStrictEqual([1, 1, 1])
      again.publish()
      expect(driver.collect().map(({ id }) => id)).toStrictEqual([0, 1, 2])
    }))
})

describe("any bytes in shared memory", () => {
  const GUARD_BYTES = 4096 + 16
  const guards = ({ memory }: ExportRing) => [memory.file.subarray(0, GUARD_BYTES), memory.file.subarray(-GUARD_BYTES)]
  let chains = 0
  let faults = 0

  it.prop("are a chain inside the regions or a fault, and nothing outside is touched", [seeds], ([seed]) => {
    const next = random(seed)
    const queueSize = 1 << next(6)
    const options = {
      queueSize,
      length: 4096 + 16 * next(100),
      before: GUARD_BYTES,
      after: GUARD_BYTES,
      guestAddress: next(2) === 0 ? 0 : GUEST,
      indirect: next(4) > 0,
      eventIdx: next(2) === 0,
      base: next(2 ** 16)
    }
    withRing(options, (ring) => {
      const { device, memory } = ring
      for (const guard of guards(ring)) guard.fill(0xa5)
      const { start } = ring.guest.regions[0]!
      const chain = new Chain()
      for (let round = 0; round < 4 && device.fault === undefined; round++) {
        garbage(ring.driver, next)
        ring.driver.availIdx = next(20) === 0 ? next(2 ** 16) : device.availIdx + next(queueSize + 1) & 0xffff
        device.disarm()
        for (let taken = 0; taken < 64 && device.take(chain); taken++) {
          chains++
          if (chain.count > 1024 || chain.readable > chain.count) throw new Error("a chain that is too long")
          for (let i = 0; i < chain.count; i++) {
            const at = chain.positions[i]! - start
            const length = chain.lengths[i]!
            if (at < 0 || at + length > memory.region.size) throw new Error(`${length} bytes at ${at} are outside`)
            // What the device is told to write may be the ring itself.
            if (i >= chain.readable) bytesOf(chain, i).fill(next(256))
          }
          device.use(chain.head, next(2 ** 32))
          if (next(4) === 0) device.publish()
        }
        device.publish()
        device.arm()
      }
      if (device.fault !== undefined) faults++
      for (const guard of guards(ring)) if (!guard.every((byte) => byte === 0xa5)) throw new Error("a guard is broken")
    })
  }, { arbitrary: { runs: 4000 } })

  it("were chains often enough, and faults too", () => {
    expect(chains).toBeGreaterThan(2000)
    expect(faults).toBeGreaterThan(1000)
  })
})

describe("memory that is gone", () => {
  it("is not found, though it was the last that was", () => {
    const memory = new SharedMemory({ length: 4096 })
    const guest = new GuestMemory(false)
    try {
      expect(guest.add(memory.region, memory.fd)).toBeUndefined()
      const region = guest.atGuest(memory.region.guestAddress, 16)
      expect(region).toBeDefined()
      guest.forget(region!)
      expect(guest.atGuest(memory.region.guestAddress, 16)).toBeUndefined()
      expect(guest.atUser(memory.region.userAddress, 16)).toBeUndefined()
      guest.release(region!)
      expect([region!.bytes.length, guest.regions]).toStrictEqual([0, []])
    } finally {
      memory.close()
    }
  })
})
