/**
 * Goal: a queue that looks keeps a device awake that has few requests, by signals and by notifications ahead, where that can pay
 * and nowhere else; and a device that does not come by itself is notified in the end.
 * Method: a fake device that works a turn after it was notified, one that also finds requests while the driver glances at the ring,
 * as another thread would, and one that does so only when it was notified since its last answer. Notifications and signals are
 * counted.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Stream } from "effect"
import type * as IoQueue from "../../src/Queue/IoQueue.ts"
import { type FakeQueue, make, type QueueOptions } from "../support/FakeQueue.ts"

const READS = 10
const layouts = [{ packed: false }, { packed: true }]
const looking = (["poll", "adaptive"] as const).flatMap((waiting) => layouts.map((layout) => ({ ...layout, waiting })))

/** Has the device look for requests whenever the driver asks whether it still needs to be notified. */
const findsByItself = ({ device, ring }: FakeQueue): void => {
  const ask = ring.notificationStillDue.bind(ring)
  Object.defineProperty(ring, "notificationStillDue", {
    value: () => {
      device.work()
      return ask()
    }
  })
}

/** Has the device do so once for each notification; answers how often it was notified with the ring empty, and otherwise. */
const findsWhenNotified = (fake: FakeQueue) => {
  const { device, ring } = fake
  const counts = { ahead: 0, late: 0 }
  let isAwake = false
  const ask = ring.notificationStillDue.bind(ring)
  Object.defineProperty(ring, "notificationStillDue", {
    value: () => {
      if (isAwake && device.take() > 0) {
        isAwake = false
        device.answer()
      }
      return ask()
    }
  })
  fake.notify = () => {
    if (ring.outstanding === 0) {
      counts.ahead++
      isAwake = true
    } else {
      counts.late++
      setImmediate(() => device.work())
    }
    return 0
  }
  return counts
}

/** Reads one block after another; answers how often the device was notified. */
const readInTurn = Effect.fnUntraced(function*(options: QueueOptions, prepare: (fake: FakeQueue) => void = () => {}) {
  const fake = yield* make({ working: "next turn", ...options })
  prepare(fake)
  const buffer = fake.buffer(512)
  for (let i = 0; i < READS; i++) yield* fake.queue.read(i * 512, buffer)
  expect(fake.device.taken.length).toBe(READS)
  return fake.notifications
})

/** Keeps `depth` reads in flight until 100 have ended; answers how often the device signalled. */
const signalsAtDepth = Effect.fnUntraced(function*(options: QueueOptions, depth: number) {
  const fake = yield* make({ working: "next turn", ...options })
  const requests = Array.from({ length: 100 }, (_, i): IoQueue.Read => ({
    _tag: "read",
    offset: i * 512,
    buffer: fake.buffer(512)
  }))
  // As many in an array as may be in flight, and the next when these have ended.
  const batches = Array.from({ length: 100 / depth }, (_, i) => requests.slice(i * depth, (i + 1) * depth))
  for (const batch of batches) {
    yield* Stream.fromIterable(batch).pipe(fake.queue.process, Stream.runDrain)
  }
  expect(fake.device.taken.length).toBe(100)
  return fake.device.signals
})

describe("notifications ahead", () => {
  it.live.each(looking)(
    "are not made where the device finds the next request by itself ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        // Only the first two are asked for: with the second it shows that the ring is filled again.
        expect(yield* readInTurn(options, findsByItself)).toBe(2)
      }))
  )

  it.live.each(looking)(
    "spare the next one where it does not, and are left out less and less often ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        const fake = yield* make({ working: "by hand", ...options })
        const counts = findsWhenNotified(fake)
        const buffer = fake.buffer(512)
        const reads = 1000
        for (let i = 0; i < reads; i++) yield* fake.queue.read(i % 100 * 512, buffer)
        // Tried after the second one, and then after 2, 4, 8, … and 256 notifications ahead; and each end of the event loop's turn
        // has the device notified that was only about to come.
        expect(counts.late).toBeGreaterThanOrEqual(2 + 9)
        expect(counts.late).toBeLessThanOrEqual(100)
        expect(counts.ahead).toBeGreaterThanOrEqual(reads - 100)
      }))
  )

  it.live.each(looking)(
    "are followed by another where it does not ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        const count = yield* readInTurn(options)
        expect(count).toBeGreaterThanOrEqual(READS)
        expect(count).toBeLessThanOrEqual(2 * READS)
      }))
  )

  it.live.each(layouts)(
    "are not made by a queue that sleeps (packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        expect(yield* readInTurn({ ...options, waiting: "event" })).toBe(READS)
      }))
  )

  it.live.each(looking)(
    "are not made for hardware ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        expect(yield* readInTurn({ ...options, signalsInTurn: false })).toBe(READS)
      }))
  )

  it.live("are not made where nobody fills the ring again", () =>
    Effect.scoped(Effect.gen(function*() {
      const fake = yield* make({ working: "next turn", waiting: "poll" })
      const buffer = fake.buffer(512)
      for (let i = 0; i < READS; i++) {
        yield* fake.queue.read(0, buffer)
        // The loop has come to rest before the next one.
        yield* Effect.sleep(1)
      }
      expect(fake.notifications).toBe(READS)
    })))
})

describe("a notification put off for the completions that are there", () => {
  it.live.each(looking)(
    "is made before the next ones are taken ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        const inFlight = 8
        const fake = yield* make({ working: "by hand", ...options })
        const { device, ring } = fake
        // It takes requests when it is notified, and answers one whenever the driver looks.
        fake.notify = () => {
          device.take()
          return 0
        }
        let least = inFlight
        const drain = ring.drain.bind(ring)
        Object.defineProperty(ring, "drain", {
          value: (out: Uint32Array) => {
            if (left > 0 && device.held.length > 0) least = Math.min(least, device.held.length)
            device.answer(1)
            return drain(out)
          }
        })
        const buffer = fake.buffer(512)
        let left = 500
        let isFirst = true
        yield* fake.queue.loop((completed) => {
          const count = Math.min(isFirst ? inFlight : completed.length, left)
          isFirst = false
          left -= count
          return Array.from({ length: count }, (_, i) => ({ _tag: "read", offset: i * 512, buffer }) as const)
        })
        expect(device.taken.length).toBe(500)
        expect(least).toBeGreaterThanOrEqual(inFlight - 3)
      }))
  )
})

describe("signals while nobody sleeps", () => {
  it.live.each([1, 2, 4])("are asked for with %i in flight", (depth) =>
    Effect.scoped(Effect.gen(function*() {
      const signals = yield* signalsAtDepth({ waiting: "poll" }, depth)
      // One for each batch, but for one now and then that ends with the event loop's turn.
      expect(signals).toBeGreaterThanOrEqual(90 / depth)
      expect(signals).toBeLessThanOrEqual(100 / depth)
    })))

  it.live("are not asked for with more", () =>
    Effect.scoped(Effect.gen(function*() {
      expect(yield* signalsAtDepth({ waiting: "poll" }, 10)).toBe(0)
    })))

  it.live("are not asked for from hardware", () =>
    Effect.scoped(Effect.gen(function*() {
      expect(yield* signalsAtDepth({ waiting: "poll", signalsInTurn: false }, 1)).toBe(0)
    })))
})
