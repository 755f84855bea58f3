/**
 * Goal: holders never overlap, whoever came first goes first, nobody is passed by for ever, and whoever goes, goes without
 * a trace.
 * Method: holders that note their start and end; random claims against a check of every pair, with some interrupted
 * (the seed is printed on failure); a crowd, against the clock.
 */
import { describe, expect, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, References } from "effect"
import { RangeLock } from "../../src/BlockStore/RangeLock.ts"
import { withSeed } from "../support/daemon.ts"

const now = { startImmediately: true } as const

/** Holds a range until it is let go. */
const holder = Effect.fnUntraced(function*(lock: RangeLock, start: number, end: number) {
  const gate = yield* Deferred.make<void>()
  const state = { isHeld: false }
  const body = Effect.andThen(
    Effect.sync(() => {
      state.isHeld = true
    }),
    Deferred.await(gate)
  )
  const fiber = yield* Effect.forkChild(lock.with(start, end)(body), now)
  return { fiber, state, letGo: Effect.andThen(Deferred.succeed(gate, undefined), Fiber.await(fiber)) }
})

describe("RangeLock", () => {
  it.live("lets ranges be held together that only touch", () =>
    Effect.gen(function*() {
      const lock = new RangeLock()
      const held = yield* Effect.forEach([[0, 512], [512, 1024], [4096, 8192], [1024, 4096]] as const, ([from, to]) =>
        holder(lock, from, to))
      expect(held.map(({ state }) =>
        state.isHeld
      )).toStrictEqual([true, true, true, true])
      yield* Effect.forEach(held, ({ letGo }) => letGo)
    }))

  it.live("serves in the order of arrival, a small range behind a large one that waits too", () =>
    Effect.gen(function*() {
      const lock = new RangeLock()
      const first = yield* holder(lock, 0, 512)
      const large = yield* holder(lock, 0, 4096)
      const behind = yield* holder(lock, 1024, 1536)
      const apart = yield* holder(lock, 4096, 4608)
      const states = () => [first, large, behind, apart].map(({ state }) => state.isHeld)
      expect(states()).toStrictEqual([true, false, false, true])
      yield* first.letGo
      expect(states()).toStrictEqual([true, true, false, true])
      yield* large.letGo
      expect(states()).toStrictEqual([true, true, true, true])
      yield* behind.letGo
      yield* apart.letGo
    }))

  it.live("lets go of a range whose claimant is interrupted, wherever it yields", () =>
    Effect.gen(function*() {
      for (let operations = 3; operations < 12; operations++) {
        for (let turns = 0; turns < 12; turns++) {
          const lock = new RangeLock()
          const yielding = lock.with(0, 512)(Effect.yieldNow).pipe(
            Effect.provideService(References.MaxOpsBeforeYield, operations)
          )
          const first = yield* Effect.forkChild(yielding, now)
          const second = yield* Effect.forkChild(yielding, now)
          for (let i = 0; i < turns; i++) yield* Effect.yieldNow
          yield* Fiber.interruptAll([first, second])
          expect(yield* Effect.timeoutOption(lock.with(0, 512)(Effect.succeed("free")), "1 second")).toStrictEqual(
            Option.some("free")
          )
        }
      }
    }))

  it.live("lets go of a range however its use ends", () =>
    Effect.gen(function*() {
      const lock = new RangeLock()
      for (const body of [Effect.void, Effect.fail("no"), Effect.die("worse"), Effect.interrupt]) {
        yield* Effect.exit(lock.with(0, 512)(body))
      }
      const held = yield* holder(lock, 0, 512)
      expect(held.state.isHeld).toBe(true)
      yield* Fiber.interrupt(held.fiber)
      const next = yield* holder(lock, 0, 512)
      expect(next.state.isHeld).toBe(true)
      yield* next.letGo
    }))

  it.live("lets whoever stopped waiting hold nobody up", () =>
    Effect.gen(function*() {
      const lock = new RangeLock()
      const first = yield* holder(lock, 0, 512)
      const second = yield* holder(lock, 0, 1024)
      const third = yield* holder(lock, 512, 1024)
      expect(third.state.isHeld).toBe(false)
      yield* Fiber.interrupt(second.fiber)
      expect(second.state.isHeld).toBe(false)
      // The third waited for the second only.
      expect(third.state.isHeld).toBe(true)
      yield* first.letGo
      yield* third.letGo
    }))

  it.live("keeps every pair apart, whatever is claimed, ended and interrupted", () =>
    withSeed((random) =>
      Effect.gen(function*() {
        for (let round = 0; round < 20; round++) {
          const lock = new RangeLock()
          const holding = new Set<{ readonly start: number; readonly end: number }>()
          let served = 0
          const use = Effect.fnUntraced(function*(start: number, end: number, turns: number) {
            yield* lock.with(start, end)(Effect.gen(function*() {
              for (const other of holding) {
                expect(start < other.end && other.start < end, `${start}..${end} ${other.start}..${other.end}`)
                  .toBe(false)
              }
              const mine = { start, end }
              holding.add(mine)
              yield* Effect.ensuring(
                Effect.forEach(Array.from({ length: turns }), () => Effect.yieldNow),
                Effect.sync(() => holding.delete(mine))
              )
              served++
            }))
          })
          const fibers = yield* Effect.forEach(Array.from({ length: 60 }), () => {
            const start = random(64)
            return Effect.forkChild(use(start, start + 1 + random(16), random(5)), now)
          })
          const doomed = new Set(fibers.filter(() => random(5) === 0))
          yield* Effect.forEach(doomed, (fiber) => Effect.andThen(Effect.yieldNow, Fiber.interrupt(fiber)))
          const exits = yield* Effect.forEach(fibers, (fiber) => Fiber.await(fiber))
          const succeeded = exits.filter((exit) => Exit.isSuccess(exit)).length
          expect(exits.every((exit) => Exit.isSuccess(exit) || Exit.hasInterrupts(exit))).toBe(true)
          expect(succeeded).toBeGreaterThanOrEqual(fibers.length - doomed.size)
          expect(served).toBe(succeeded)
          expect(holding.size).toBe(0)
        }
      })
    ))

  it.live("serves a crowd of thousands without looking at all of it for each", () =>
    Effect.gen(function*() {
      // A line in which each looks at all others would take minutes, which the time limit of the test does not give it.
      const CROWD = 40_000
      for (const apart of [true, false]) {
        const lock = new RangeLock()
        const order: Array<number> = []
        yield* Effect.forEach(
          Array.from({ length: CROWD }, (_, i) => i),
          (i) =>
            lock.with(apart ? i * 512 : 0, apart ? (i + 1) * 512 : 512)(
              Effect.andThen(Effect.yieldNow, Effect.sync(() => order.push(i)))
            ),
          { concurrency: "unbounded", discard: true }
        )
        expect(order).toStrictEqual(Array.from({ length: CROWD }, (_, i) => i))
      }
    }))
})
