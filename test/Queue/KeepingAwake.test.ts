/**
 * Goal: a queue that looks keeps a device awake that has few requests, by signals and by notifications ahead, where that can pay
 * and nowhere else; and a device that does not come by itself is notified in the end.
 * Method: a fake device that works a turn after it was notified, and one that also finds requests while the driver glances at the
 * ring, as another thread would. Notifications and signals are counted.
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
    "spare the next one where the device then finds it ($waiting, packed: $packed)",
    (options) =>
      Effect.scoped(Effect.gen(function*() {
        // The first two are asked for, and after each from the second on there is one ahead.
        expect(yield* readInTurn(options, findsByItself)).toBe(READS + 1)
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
