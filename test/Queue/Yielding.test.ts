/**
 * Goal: no wake-up is lost where a fiber yields between looking for something and waiting for it, which Effect's scheduler may
 * have it do before any operation.
 * Method: fibers that yield before every operation, or every few, in front of a device that answers in the meantime. A lost
 * wake-up shows as a test that never ends.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, References, Stream } from "effect"
import type * as IoQueue from "../../src/Queue/IoQueue.ts"
import { type FakeQueue, make, type QueueOptions } from "../support/FakeQueue.ts"

const REQUESTS = 40
const cases = (["event", "poll", "adaptive"] as const).flatMap((waiting) =>
  (["at once", "next turn"] as const).flatMap((working) =>
    [3, 4, 5, 7, 11].map((operations) => ({ waiting, working, operations }))
  )
)
const named = "($waiting, $working, yielding before every $operations)"

const using = (
  { operations, waiting, working }: (typeof cases)[number],
  options: QueueOptions,
  use: (fake: FakeQueue) => Effect.Effect<void, unknown>
) =>
  Effect.scoped(Effect.flatMap(make({ waiting, working, ...options }), use)).pipe(
    Effect.provideService(References.MaxOpsBeforeYield, operations)
  )

const readsOf = (fake: FakeQueue): ReadonlyArray<IoQueue.Read> =>
  Array.from({ length: REQUESTS }, (_, i) => ({ _tag: "read", offset: i * 512, buffer: fake.buffer(512) }))

describe("a fiber that yields", () => {
  it.live.each(cases)(
    "gets every completion of a stream, one at a time " + named,
    (given) =>
      using(given, {}, (fake) =>
        Effect.gen(function*() {
          const requests = Stream.fromIterable(readsOf(fake)).pipe(Stream.rechunk(1))
          // The next request waits for the completion before, so that nothing else comes to wake anybody.
          for (const read of readsOf(fake).slice(0, 5)) {
            expect(yield* fake.queue.process(Stream.make(read)).pipe(Stream.runCount)).toBe(1)
          }
          expect(yield* fake.queue.process(requests).pipe(Stream.runCount)).toBe(REQUESTS)
        }))
  )

  it.live.each(cases)(
    "waits for room in a ring of two and finds it " + named,
    (given) =>
      using(given, { queueSize: 2 }, (fake) =>
        Effect.gen(function*() {
          expect(yield* fake.queue.process(Stream.fromIterable(readsOf(fake))).pipe(Stream.runCount)).toBe(REQUESTS)
        }))
  )

  it.live.each(cases)(
    "takes by hand what it has submitted " + named,
    (given) =>
      using(given, { queueSize: 4 }, (fake) =>
        Effect.gen(function*() {
          for (const read of readsOf(fake)) {
            yield* fake.queue.submit([read])
            expect((yield* fake.queue.completions()).length).toBe(1)
          }
        }))
  )

  it.live.each(cases)(
    "has its requests answered " + named,
    (given) =>
      using(given, { queueSize: 4 }, (fake) =>
        Effect.gen(function*() {
          const exits = yield* Effect.forEach(
            readsOf(fake),
            ({ buffer, offset }) => Effect.exit(fake.queue.read(offset, buffer)),
            { concurrency: "unbounded" }
          )
          expect(exits.every(Exit.isSuccess)).toBe(true)
        }))
  )

  it.live.each(cases)(
    "ends when it is interrupted while it is answered " + named,
    (given) =>
      using(given, {}, (fake) =>
        Effect.gen(function*() {
          // The answer comes before, within and after what the interruption does.
          for (const [turns, { buffer, offset }] of readsOf(fake).entries()) {
            const fiber = yield* Effect.forkChild(fake.queue.read(offset, buffer), { startImmediately: true })
            for (let i = 0; i < turns % 8; i++) yield* Effect.yieldNow
            yield* Fiber.interrupt(fiber)
          }
          expect(fake.engine.outstanding).toBe(0)
        }))
  )
})
