/**
 * Goal: requests that a function gives are treated as those of a stream are: each ends once, none is lost where the ring is full or
 * others wait for it, and whoever leaves waits for the device. By `processFrom` and by `loop`.
 * Method: both as one way to run a cycle of requests, in front of a fake device that works inside the notification, a turn later,
 * or by hand. A lost wake-up shows as a test that never ends.
 */
import { describe, expect, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, References, Stream } from "effect"
import * as Errno from "../../src/Errno.ts"
import type * as IoQueue from "../../src/Queue/IoQueue.ts"
import { using } from "../support/FakeQueue.ts"
import { errorOf, fork, turns } from "../support/fibers.ts"

type Completions = ReadonlyArray<IoQueue.Completion<IoQueue.Read>>
type Cycle = (
  queue: IoQueue.IoQueue,
  next: () => ReadonlyArray<IoQueue.Read>,
  heard?: (completions: Completions) => void
) => Effect.Effect<void, IoQueue.DeviceFailure>

const ways: ReadonlyArray<{ readonly way: string; readonly run: Cycle }> = [
  {
    way: "processFrom",
    run: (queue, next, heard = () => {}) =>
      queue.processFrom(next).pipe(Stream.runForEachArray((completions) => Effect.sync(() => heard(completions))))
  },
  {
    way: "loop",
    run: (queue, next, heard = () => {}) =>
      queue.loop<IoQueue.Read>((completions) => {
        if (completions.length > 0) heard(completions)
        return next()
      })
  }
]

const waitings = ["event", "poll", "adaptive"] as const
const rings = [true, false].flatMap((packed) => [true, false].map((indirect) => ({ packed, indirect })))
const policies = ways.flatMap((way) =>
  waitings.flatMap((waiting) => rings.map((ring) => ({ ...way, ...ring, waiting })))
)
const matrix = policies.flatMap((policy) =>
  (["at once", "next turn"] as const).map((working) => ({ ...policy, working }))
)
const titled = (text: string) => `$way: ${text} ($waiting, packed: $packed, indirect: $indirect)`

const gone = () => new Errno.ENOTCONN({ operation: "wait", detail: "the backend is gone" })

const read = (offset: number, buffer: Uint8Array): IoQueue.Read => ({ _tag: "read", offset, buffer })

/** Gives `count` reads in arrays of `size`, whatever is in flight. */
const inArrays = (bytes: Uint8Array, count: number, size: number) => {
  let next = 0
  return () => {
    const length = Math.min(size, count - next)
    return Array.from({ length }, () => read(next++ % 1000 * 512, bytes))
  }
}

describe("a function that gives requests", () => {
  it.live.each(matrix)(
    titled("has thousands answered, some of them wrong"),
    ({ run, ...options }) =>
      using({ ...options, order: { seed: 5 } }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const free = Array.from({ length: 12 }, (_, i) => i)
          const asked = new Set<IoQueue.Read>()
          let left = 3000
          const errors = { none: 0, EINVAL: 0 }
          yield* run(
            queue,
            () => {
              const requests: Array<IoQueue.Read> = []
              for (let slot = free.pop(); slot !== undefined && left > 0; slot = free.pop()) {
                left--
                requests.push(read(left % 10 === 0 ? 1 : slot * 512, bytes))
              }
              for (const request of requests) asked.add(request)
              return requests
            },
            (completions) => {
              for (const { error, request } of completions) {
                expect(asked.delete(request)).toBe(true)
                errors[error?._tag === "EINVAL" ? "EINVAL" : "none"]++
                free.push(free.length)
              }
            }
          )
          expect(asked.size).toBe(0)
          expect(errors).toStrictEqual({ none: 2700, EINVAL: 300 })
        }))
  )

  it.live.each(matrix)(
    titled("may give more than the ring has room for"),
    ({ run, ...options }) =>
      using({ ...options, queueSize: 4 }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const requests = Array.from({ length: 150 }, (_, i) => read(i * 512, buffer(512)))
          const seen = new Set<IoQueue.Request>()
          let given = 0
          yield* run(queue, () => given++ === 0 ? requests : [], (completions) => {
            for (const { request } of completions) seen.add(request)
          })
          expect(seen).toStrictEqual(new Set(requests))
        }))
  )

  it.live.each(ways)(
    "$way: ends at once where it gives none",
    ({ run }) =>
      using({}, ({ engine, queue }) =>
        Effect.gen(function*() {
          yield* run(queue, () => [])
          expect(engine.outstanding).toBe(0)
        }))
  )

  it.live.each(ways)(
    "$way: is asked again when some have ended, though it gave none before",
    ({ run }) =>
      using({ working: "by hand" }, ({ buffer, device, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const answers = [[read(0, bytes), read(512, bytes)], [], [read(1024, bytes)]]
          const running = yield* fork(run(queue, () => answers.shift() ?? []))
          yield* turns()
          device.take()
          device.answer(1)
          yield* turns()
          device.work()
          yield* turns()
          device.work()
          yield* Fiber.join(running)
          expect(device.taken.map(({ sector }) => sector)).toStrictEqual([0, 1, 2])
        }))
  )

  it.live.each(policies)(
    titled("waits in line with others, and they with it"),
    ({ run, ...options }) =>
      using({ ...options, queueSize: 4, working: "next turn" }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const others = yield* fork(Effect.forEach(
            Array.from({ length: 8 }, (_, i) => i),
            (i) => Effect.repeat(queue.read(i * 512, bytes), { times: 30 }),
            { concurrency: "unbounded", discard: true }
          ))
          let count = 0
          yield* run(queue, inArrays(bytes, 200, 3), (completions) => {
            count += completions.length
          })
          yield* Fiber.join(others)
          expect(count).toBe(200)
        }))
  )

  it.live.each(policies)(
    titled("is left when the device has let go of what is in flight"),
    ({ run, ...options }) =>
      using(
        { ...options, queueSize: 8, working: "by hand" },
        ({ buffer, device, engine, queue }) =>
          Effect.gen(function*() {
            // Some in flight, and some that wait in line.
            const running = yield* fork(run(queue, inArrays(buffer(512), 40, 40)))
            yield* turns()
            device.take()
            const taken = device.taken.length
            const interrupting = yield* fork(Fiber.interrupt(running))
            yield* turns()
            expect(interrupting.pollUnsafe()).toBe(undefined)
            device.work()
            yield* Fiber.join(interrupting)
            expect(engine.outstanding).toBe(0)
            expect(engine.isContended).toBe(false)
            expect(device.taken.length).toBe(taken)
          })
      )
  )

  it.live.each(ways)(
    "$way: hears of what was answered before the device died, and then fails",
    ({ run }) =>
      using({ working: "by hand" }, ({ buffer, device, engine, queue }) =>
        Effect.gen(function*() {
          const failure = gone()
          let count = 0
          const running = yield* run(queue, inArrays(buffer(512), 40, 40), (completions) => {
            count += completions.length
          }).pipe(Effect.exit, fork)
          yield* turns()
          device.take()
          device.answer(5)
          yield* turns()
          engine.fail(failure)
          expect(errorOf(yield* Fiber.join(running))).toBe(failure)
          expect(count).toBe(5)
        }))
  )

  it.live.each(ways)(
    "$way: fails at once on a dead device, without being asked",
    ({ run }) =>
      using({}, ({ engine, queue }) =>
        Effect.gen(function*() {
          engine.fail(gone())
          const exit = yield* Effect.exit(run(queue, () => expect.unreachable()))
          expect(errorOf(exit)?._tag).toBe("ENOTCONN")
        }))
  )

  it.live.each(ways)(
    "$way: fails where the device is away and too many wait for it",
    ({ run }) =>
      using({}, ({ buffer, engine, queue }) =>
        Effect.gen(function*() {
          engine.suspend(0)
          const exit = yield* Effect.exit(run(queue, inArrays(buffer(512), 1, 1)))
          expect(errorOf(exit)?._tag).toBe("ENOTCONN")
        }))
  )

  it.live.each(ways)(
    "$way: that throws is a defect, once the device has let go",
    ({ run }) =>
      using({ working: "by hand" }, ({ buffer, device, engine, queue }) =>
        Effect.gen(function*() {
          const answers = [[read(0, buffer(512)), read(512, buffer(512))]]
          const next = () => {
            const requests = answers.shift()
            if (requests === undefined) throw new Error("broken")
            return requests
          }
          const running = yield* run(queue, next).pipe(Effect.exit, fork)
          yield* turns()
          device.take()
          device.answer(1)
          yield* turns()
          expect(running.pollUnsafe()).toBe(undefined)
          device.work()
          const exit = yield* Fiber.join(running)
          expect(Exit.isFailure(exit) && Cause.squash(exit.cause)).toStrictEqual(new Error("broken"))
          expect(engine.outstanding).toBe(0)
        }))
  )

  it.live.each(policies)(
    titled("leaves the event loop its turns"),
    ({ run, ...options }) =>
      using(options, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          let isOver = false
          const running = yield* fork(run(queue, () => isOver ? [] : [read(0, bytes)]))
          yield* turns(20)
          isOver = true
          yield* Fiber.join(running)
        }))
  )

  it.live.each(policies.flatMap((policy) => [3, 4, 5, 7].map((operations) => ({ ...policy, operations }))))(
    titled("loses no wake-up where the fiber yields before every $operations operations"),
    ({ operations, run, ...options }) =>
      using({ ...options, queueSize: 8, working: "next turn" }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          let count = 0
          yield* run(queue, inArrays(buffer(512), 60, 1), (completions) => {
            count += completions.length
          })
          expect(count).toBe(60)
        })).pipe(Effect.provideService(References.MaxOpsBeforeYield, operations))
  )

  it.live("may be asked anew by the same Effect", () =>
    using({}, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const bytes = buffer(512)
        let left = 3
        const again = queue.loop(() => left-- > 0 ? [read(0, bytes)] : [])
        yield* again
        left = 2
        yield* again
      })))
})
