/**
 * Goal: a device that breaks the protocol is given up once, whoever it is that finds out.
 *
 * Method: the fault is found by a search on the caller's stack, which may look at the ring more than once.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { make } from "../support/FakeQueue.ts"

describe("a search that finds the ring broken", () => {
  it.live.each([true, false])("says so once (packed: %s)", (packed) =>
    Effect.gen(function*() {
      const fake = yield* make({ packed, waiting: "poll", working: "by hand" })
      const ends: Array<string | undefined> = []
      const owner = {
        completed: (_: unknown, failure: { readonly _tag: string } | undefined) => void ends.push(failure?._tag),
        isAbandoned: false
      }
      for (let i = 0; i < 3; i++) fake.engine.submit({ _tag: "read", offset: 512 * i, buffer: fake.buffer(512) }, owner)
      yield* Effect.promise(() => Promise.resolve())
      fake.device.take()
      fake.device.mischief = "id out of range"
      fake.device.answer(1)
      expect(fake.engine.search()).toBe(false)
      expect(fake.faults).toHaveLength(1)
      expect(ends).toStrictEqual(["EPROTO", "EPROTO", "EPROTO"])
    }))
})
