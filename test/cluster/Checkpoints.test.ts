/**
 * Goal: an extent is begun by the latest attempt only, and what any attempt has finished is known to those that come later.
 * Method: attempts side by side in one process, with SQLite in memory.
 */
import { expect, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { Checkpoints } from "../../examples/cluster/Checkpoints.ts"
import * as NodeSqlite from "../../examples/cluster/NodeSqlite.ts"

const layer = Layer.provide(Checkpoints.layer, NodeSqlite.layer({ filename: ":memory:" }))

it.effect("the latest attempt goes on where the others have ended", () =>
  Effect.gen(function*() {
    const { begin } = yield* Checkpoints
    const first = yield* begin({ request: "1", image: "/disk.raw", runner: "one" })
    expect(yield* first.start(0)).toBe(true)
    yield* first.finish(0, "zero")
    expect(yield* first.start(1)).toBe(true)

    const second = yield* begin({ request: "1", image: "/disk.raw", runner: "two" })
    expect(second.done).toStrictEqual(new Map([[0, "zero"]]))
    expect(yield* first.start(2)).toBe(false)
    // It had been begun, and is the same whoever has hashed it.
    yield* first.finish(1, "one")
    expect(yield* second.start(2)).toBe(true)

    const third = yield* begin({ request: "1", image: "/disk.raw", runner: "one" })
    expect(third.done).toStrictEqual(new Map([[0, "zero"], [1, "one"]]))
    expect(yield* second.start(3)).toBe(false)
  }).pipe(Effect.provide(layer)))

it.effect("attempts on other requests change nothing", () =>
  Effect.gen(function*() {
    const { begin } = yield* Checkpoints
    const one = yield* begin({ request: "1", image: "/disk.raw", runner: "one" })
    yield* one.start(0)
    yield* one.finish(0, "zero")
    const other = yield* begin({ request: "2", image: "/disk.raw", runner: "one" })
    expect(other.done).toStrictEqual(new Map())
    expect(yield* one.start(1)).toBe(true)
    expect(yield* other.start(0)).toBe(true)
  }).pipe(Effect.provide(layer)))
