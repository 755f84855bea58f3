/**
 * Goal: every request ends when one queue of several finds its device broken, also one whose answer came just before what was wrong.
 *
 * Method: whoever hears of the failure on the first queue submits to the second at once, in the middle of its end: its ring has
 * places that are free by then and owners that have not heard yet.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { VirtioBlk } from "../../src/index.ts"
import * as FakeTransport from "../../src/testing/FakeTransport.ts"

describe("a queue that finds the device broken", () => {
  it.live.each([["split", []], ["packed", ["RING_PACKED"]]] as const)(
    "loses no request (%s ring)",
    ([, features]) =>
      Effect.gen(function*() {
        const fake = FakeTransport.make({
          features: [...FakeTransport.usualFeatures, ...features],
          plan: {
            faults: [{ kind: "unanswered", at: 0, value: 0 }, { kind: "id out of range", at: 2, value: 0 }]
          }
        })
        const disk = yield* VirtioBlk.make(fake.recipe, {
          numQueues: 2,
          queueSize: 8,
          waiting: "event",
          closeTimeout: 0
        })
        const { bytes } = yield* disk.allocate(4096)
        const read = (queue: number) =>
          Effect.match(disk.queue(queue).read(0, bytes.subarray(0, 512)), {
            onFailure: ({ _tag }) => _tag,
            onSuccess: () => "success"
          })
        const now = { startImmediately: true } as const
        const first = yield* Effect.forkChild(Effect.andThen(read(0), read(1)), now)
        const second = yield* Effect.forkChild(read(1), now)
        const third = yield* Effect.forkChild(read(1), now)
        const ends = Effect.all([first, second, third].map((fiber) => Fiber.join(fiber)))
        expect(yield* Effect.timeout(ends, 2000)).toStrictEqual(["EPROTO", "EPROTO", "EPROTO"])
      })
  )
})
