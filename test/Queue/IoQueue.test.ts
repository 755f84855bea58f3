/**
 * Goal: whatever a queue is asked, it answers each request exactly once and never hangs: in every way of waiting, on both
 * layouts of rings, with and without INDIRECT and EVENT_IDX, when the ring is full, when the caller leaves, and when the
 * device is wrong, silent or gone.
 * Method: a queue in front of a fake device that works inside the notification, a turn later, or by hand, and signals through
 * a real eventfd. A lost wake-up shows as a test that never ends, so no test measures time. What is bounded is counted.
 */
import { describe, expect, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Option, Queue, Schema, Stream } from "effect"
import { setTimeout as sleep } from "node:timers/promises"
import * as Errno from "../../src/Errno.ts"
import * as Libc from "../../src/Native/Libc.ts"
import * as Poll from "../../src/Native/Poll.ts"
import * as IoQueue from "../../src/Queue/IoQueue.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { type FakeQueue, make, using } from "../support/FakeQueue.ts"
import { errorOf, fork, turns } from "../support/fibers.ts"

const { FUA, NO_UNMAP } = IoQueue.RequestFlag
const { FLUSH, IN, OUT } = { IN: 0, OUT: 1, FLUSH: 4 }

const tagOf = <E extends { readonly _tag: string }>(exit: Exit.Exit<unknown, E>): string =>
  Exit.isSuccess(exit) ? "success" : errorOf(exit)?._tag ?? "interruption or defect"

const typesOf = ({ device }: FakeQueue) => device.taken.map(({ type }) => type)
const sectorsOf = ({ device }: FakeQueue) => device.taken.map(({ sector }) => sector)

const read = (offset: number, buffer: Uint8Array): IoQueue.Read => ({ _tag: "read", offset, buffer })
const write = (offset: number, buffer: Uint8Array, flags = 0): IoQueue.Write => ({
  _tag: "write",
  offset,
  buffer,
  flags
})
const flush: IoQueue.Flush = { _tag: "flush" }
const gone = () => new Errno.ENOTCONN({ operation: "wait", detail: "the backend is gone" })

const waitings = ["event", "poll", "adaptive"] as const
const both = [true, false]
const rings = both.flatMap((packed) =>
  both.flatMap((indirect) => both.map((eventIdx) => ({ packed, indirect, eventIdx })))
)
const policies = waitings.flatMap((waiting) => rings.map((ring) => ({ ...ring, waiting })))
const matrix = policies.flatMap((policy) =>
  (["at once", "next turn"] as const).map((working) => ({ ...policy, working }))
)
const titled = (text: string) => `${text} ($waiting, packed: $packed, indirect: $indirect, eventIdx: $eventIdx)`

describe("request and answer", () => {
  it.live.each(matrix)(
    titled("all seven kinds reach the disk"),
    (options) =>
      using(options, (fake) =>
        Effect.gen(function*() {
          const { buffer, device, queue } = fake
          const pattern = buffer(4096)
          pattern.forEach((_, i) => {
            pattern[i] = i * 7 + (i >> 8)
          })
          yield* queue.write(512, pattern)
          expect(device.disk.subarray(512, 4608)).toStrictEqual(Uint8Array.from(pattern))
          const back = buffer(4096)
          yield* queue.read(512, back)
          expect(Uint8Array.from(back)).toStrictEqual(Uint8Array.from(pattern))
          yield* queue.writev(8192, [pattern.subarray(100, 612), pattern.subarray(0, 0), pattern.subarray(0, 1024)])
          expect(device.disk.subarray(8192, 8704)).toStrictEqual(Uint8Array.from(pattern.subarray(100, 612)))
          expect(device.disk.subarray(8704, 9728)).toStrictEqual(Uint8Array.from(pattern.subarray(0, 1024)))
          const [odd, even] = [buffer(100), buffer(1436)]
          yield* queue.readv(8192, [odd, even])
          expect([...odd, ...even]).toStrictEqual(Array.from(device.disk.subarray(8192, 9728)))
          yield* queue.writeZeroes(512, 1024)
          expect(device.disk.subarray(512, 1536).every((byte) => byte === 0)).toBe(true)
          expect(device.disk[1536]).toBe(pattern[1024])
          yield* queue.discard(8192, 512)
          yield* queue.flush()
          expect(typesOf(fake)).toStrictEqual([OUT, IN, OUT, IN, 13, 11, FLUSH])
          expect(device.taken[5]?.range).toStrictEqual({ sector: 16, sectors: 1, flags: 0 })
        }))
  )

  it.live.each(matrix)(
    titled("hundreds at a time, many more than fit"),
    (options) =>
      using(options, ({ buffer, queue, region }) =>
        Effect.gen(function*() {
          region.bytes.fill(0x5a)
          const buffers = Array.from({ length: 300 }, () => buffer(512))
          yield* Effect.forEach(buffers, (bytes, i) => queue.read(i * 512, bytes), {
            concurrency: "unbounded",
            discard: true
          })
          expect(buffers.every((bytes) => bytes.every((byte) => byte === 0))).toBe(true)
        }))
  )

  it.live("a request that is wrong in itself is answered without the device", () =>
    using({}, (fake) =>
      Effect.gen(function*() {
        const exit = yield* Effect.exit(fake.queue.read(1, fake.buffer(512)))
        expect(tagOf(exit)).toBe("EINVAL")
        expect(fake.notifications).toBe(0)
      })))

  it.live("a flush of a device that cannot flush succeeds at once", () =>
    using({ rules: { canFlush: false }, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        yield* fake.queue.flush()
        yield* fake.queue.submit([flush])
        expect(yield* fake.queue.completions()).toStrictEqual([{ request: flush, error: undefined }])
        expect(fake.notifications).toBe(0)
        expect(tagOf(yield* Effect.exit(fake.queue.flush(FUA)))).toBe("EINVAL")
      })))

  it.live("the unmap flag is set where the device may and the caller does not forbid it", () =>
    Effect.gen(function*() {
      for (
        const [mayUnmap, flags, expected] of [[true, 0, 1], [true, NO_UNMAP, 0], [false, 0, 0], [false, NO_UNMAP, 0]]
      ) {
        yield* using({ rules: { mayUnmap: mayUnmap === true } }, ({ device, queue }) =>
          Effect.gen(function*() {
            yield* queue.writeZeroes(0, 512, Number(flags))
            expect(device.taken[0]?.range?.flags).toBe(expected)
          }))
      }
    }))

  it.live.each([
    { status: 1, tag: "EIO", text: "the device reported an I/O error" },
    { status: 2, tag: "ENOTSUP", text: "the device does not support the request" },
    { status: 3, tag: "EPROTO", text: "the unknown status 3" },
    { status: 0x80, tag: "EPROTO", text: "the unknown status 128" },
    { status: 0xff, tag: "EPROTO", text: "without a status" }
  ])(
    "status $status is $tag, and the queue goes on",
    ({ status, tag, text }) =>
      using({}, (fake) =>
        Effect.gen(function*() {
          const { buffer, device, queue } = fake
          device.status = ({ sector }) => sector === 7 ? status : undefined
          const exit = yield* Effect.exit(queue.read(7 * 512, buffer(512)))
          expect(tagOf(exit)).toBe(tag)
          expect(errorOf(exit)).toMatchObject({ operation: "read", offset: 3584, length: 512, queue: 0 })
          expect(errorOf(exit)?.message).toContain(text)
          yield* queue.read(0, buffer(512))
          const bad = read(7 * 512, buffer(512))
          const all = yield* Stream.runCollect(queue.process(Stream.make(bad, read(0, buffer(512)))))
          expect(all.map(({ error, request }) => [request === bad, error?._tag])).toContainEqual([true, tag])
          expect(all).toHaveLength(2)
          expect(fake.faults).toStrictEqual([])
        }))
  )

  it.live("a notification that failed is made again with the next request", () =>
    using({ working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, engine, queue } = fake
        fake.notify = () => 11
        const first = yield* fork(queue.read(0, buffer(512)))
        yield* turns()
        expect([fake.notifications > 0, engine.notifyErrno]).toStrictEqual([true, 11])
        fake.notify = () => {
          device.work()
          return 0
        }
        yield* queue.read(512, buffer(512))
        yield* Fiber.join(first)
        expect(engine.notifyErrno).toBe(0)
      })))

  it.live("a batch is one notification", () =>
    using({}, (fake) =>
      Effect.gen(function*() {
        yield* fake.queue.submit(Array.from({ length: 16 }, (_, i) => read(i * 512, fake.buffer(512))))
        expect(yield* fake.queue.completions({ min: 16 })).toHaveLength(16)
        expect(fake.notifications).toBe(1)
      })))
})

describe("a bad request never blocks those behind it", () => {
  it.live("15 segments on 16 descriptors without INDIRECT: EINVAL, and the next works (P-Q-1)", () =>
    using({ indirect: false }, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const buffers = Array.from({ length: 15 }, () => buffer(512))
        const exit = yield* Effect.exit(queue.readv(0, buffers))
        expect(errorOf(exit)?.message).toContain("15 segments exceed max-segments 14")
        yield* queue.readv(0, buffers.slice(1))
        yield* queue.flush()
      })))

  it.live.each([1, 2])(
    "%i descriptors without INDIRECT hold no data: EINVAL",
    (queueSize) =>
      using({ indirect: false, queueSize, maxSegments: 0 }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          for (const effect of [queue.read(0, buffer(512)), queue.discard(0, 512), queue.writev(0, [buffer(512)])]) {
            expect(tagOf(yield* Effect.exit(effect))).toBe("EINVAL")
          }
          expect(tagOf(yield* Effect.exit(queue.flush()))).toBe(queueSize === 1 ? "EINVAL" : "success")
        }))
  )

  it.live("a discard of 2^64-512 bytes, then a read (P-Q-1)", () =>
    using({}, ({ buffer, queue }) =>
      Effect.gen(function*() {
        expect(tagOf(yield* Effect.exit(queue.discard(512, 2 ** 64 - 512)))).toBe("EINVAL")
        yield* queue.read(0, buffer(512))
      })))

  it.live("six good ones and a bad one behind a full ring, min all (P-Q-2)", () =>
    using({ indirect: false, working: "next turn" }, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const requests = [...Array.from({ length: 6 }, (_, i) => read(i * 512, buffer(512))), read(1, buffer(512))]
        yield* fork(queue.submit(requests))
        const all = yield* queue.completions({ min: 7 })
        expect(all.map(({ error }) => error?._tag ?? "success").toSorted()).toStrictEqual([
          "EINVAL",
          ...Array(6).fill("success")
        ])
      })))

  it.live("memory that went while its request waited in line is EFAULT", () =>
    using({ queueSize: 2, working: "by hand" }, ({ buffer, device, queue, region, space }) =>
      Effect.gen(function*() {
        const busy = yield* Effect.forEach([0, 1], () => fork(Effect.exit(queue.flush())))
        const buffers = [buffer(512), buffer(512)] as const
        const line = yield* Effect.forEach(
          [queue.read(0, buffers[0]), queue.readv(0, buffers)],
          (effect) => fork(Effect.exit(effect))
        )
        yield* turns()
        space.remove(region)
        region.bytes.buffer.transfer()
        device.work()
        for (const fiber of busy) expect(tagOf(yield* Fiber.join(fiber))).toBe("success")
        for (const fiber of line) expect(tagOf(yield* Fiber.join(fiber))).toBe("EFAULT")
        expect(device.taken).toHaveLength(2)
      })))
})

describe("the line of those who wait", () => {
  const places = Array.from({ length: 60 }, (_, i) => i)

  it.live.each(policies)(
    titled("is first come, first served"),
    (options) =>
      using({ ...options, queueSize: 8, working: "next turn" }, (fake) =>
        Effect.gen(function*() {
          yield* Effect.forEach(places, (i) => fake.queue.write(i * 512, fake.buffer(512)), {
            concurrency: "unbounded",
            discard: true
          })
          expect(sectorsOf(fake)).toStrictEqual(places)
        }))
  )

  it.live("keeps its order when one of it leaves", () =>
    using({ queueSize: 4, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const fibers = yield* Effect.forEach(places, (i) => fork(fake.queue.write(i * 512, fake.buffer(512))))
        yield* turns()
        for (const i of [4, 5, 20, 59]) yield* Fiber.interrupt(fibers[i]!)
        fake.notify = () => {
          setImmediate(() => fake.device.work())
          return 0
        }
        fake.device.work()
        yield* Effect.forEach(fibers, Fiber.await)
        expect(sectorsOf(fake)).toStrictEqual(places.filter((i) => ![4, 5, 20, 59].includes(i)))
      })))

  it.live("does not let small requests pass a large one, nor leave them behind when it goes", () =>
    using({ indirect: false, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        const large = (sector: number, segments: number) =>
          fork(queue.writev(sector * 512, Array.from({ length: segments }, () => buffer(512))))
        const fibers = [yield* large(0, 6), yield* large(1, 10)]
        const blocking = fibers[1]!
        for (const sector of [2, 3]) fibers.push(yield* fork(queue.write(sector * 512, buffer(512))))
        yield* turns()
        device.take()
        expect(sectorsOf(fake)).toStrictEqual([0])
        yield* Fiber.interrupt(blocking)
        yield* turns()
        device.take()
        expect(sectorsOf(fake)).toStrictEqual([0, 2, 3])
        fibers.push(yield* large(4, 14), yield* fork(queue.write(5 * 512, buffer(512))))
        yield* turns()
        device.work()
        yield* turns()
        device.work()
        yield* turns()
        device.work()
        yield* Effect.forEach(fibers, Fiber.await)
        expect(sectorsOf(fake)).toStrictEqual([0, 2, 3, 4, 5])
      })))

  it.live("moves on when the one in front is interrupted by a completion's owner", () =>
    using({ indirect: false, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        const stays = yield* fork(queue.writev(0, Array.from({ length: 8 }, () => buffer(512))))
        const large = yield* Deferred.make<Fiber.Fiber<void, unknown>>()
        // Ends first, and with its last breath interrupts the large one, which does not fit beside `stays`.
        const owner = yield* fork(
          Effect.andThen(queue.flush(), Effect.flatMap(Deferred.await(large), (fiber) => Fiber.interrupt(fiber)))
        )
        yield* Deferred.succeed(large, yield* fork(queue.writev(512, Array.from({ length: 10 }, () => buffer(512)))))
        const small = yield* fork(queue.write(1024, buffer(512)))
        yield* turns()
        device.take()
        device.held.reverse()
        device.answer(1)
        yield* Fiber.join(owner)
        yield* turns()
        device.take()
        expect(device.held.map(({ sector }) => sector)).toStrictEqual([0, 2])
        device.work()
        yield* Fiber.join(small)
        yield* Fiber.join(stays)
      })))

  it.live.each(policies)(
    titled("is shared fairly by batches and single requests"),
    (options) =>
      using({ ...options, queueSize: 4, working: "next turn" }, (fake) =>
        Effect.gen(function*() {
          const { buffer, queue } = fake
          const batch = places.slice(0, 10).map((i) => write(i * 512, buffer(512)))
          const submitter = yield* fork(queue.submit(batch))
          const single = yield* fork(queue.write(100 * 512, buffer(512)))
          let seen = 0
          while (seen < 10) seen += (yield* queue.completions({ min: 1 })).length
          yield* Fiber.join(submitter)
          yield* Fiber.join(single)
          expect(sectorsOf(fake).filter((sector) => sector < 100)).toStrictEqual(places.slice(0, 10))
        }))
  )

  it.live("libblkio's queue-full: 16 descriptors, 2*16+8+1 flushes, min 1 max 8", () =>
    Effect.gen(function*() {
      for (const policy of matrix) {
        yield* using({ ...policy, queueSize: 16 }, ({ device, queue }) =>
          Effect.gen(function*() {
            const requests = Array.from({ length: 2 * 16 + 8 + 1 }, (_, user): IoQueue.Flush & { user: number } => ({
              _tag: "flush",
              user
            }))
            const submitter = yield* fork(queue.submit(requests))
            const seen = new Set<IoQueue.Request>()
            while (seen.size < requests.length) {
              const some = yield* queue.completions({ min: 1, max: 8 })
              expect(some.length).toBeGreaterThanOrEqual(1)
              expect(some.length).toBeLessThanOrEqual(8)
              for (const { error, request } of some) {
                expect([error, seen.has(request)]).toStrictEqual([undefined, false])
                seen.add(request)
              }
            }
            yield* Fiber.join(submitter)
            expect([...seen].every((request) => requests.includes(request as never))).toBe(true)
            expect(device.taken).toHaveLength(requests.length)
            expect(yield* queue.completions({ min: 0 })).toStrictEqual([])
          }))
      }
    }))
})

describe("completions", () => {
  it.live("refuses what can never be", () =>
    using({ working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, queue } = fake
        yield* queue.submit([read(0, buffer(512))])
        const message = (options: IoQueue.CompletionsOptions) =>
          Effect.map(Effect.exit(queue.completions(options)), (exit) => `${tagOf(exit)} ${errorOf(exit)?.message}`)
        expect(yield* message({ min: 2 })).toBe("EINVAL completions: min 2 must not exceed the 1 requests outstanding")
        expect(yield* message({ min: 2, max: 1 })).toBe("EINVAL completions: min 2 must not exceed max 1")
        for (const min of [-1, 0.5, NaN, Infinity]) {
          expect(yield* message({ min })).toContain(`EINVAL completions: min ${min} must`)
        }
        for (const max of [-1, 0.5, NaN]) {
          expect(yield* message({ min: 0, max })).toContain(`EINVAL completions: max ${max} must`)
        }
        yield* turns(1)
        fake.device.work()
        expect(yield* queue.completions({ min: 0, max: 0 })).toStrictEqual([])
        expect(yield* queue.completions()).toHaveLength(1)
        expect(yield* message({})).toContain("min 1 must not exceed the 0 requests outstanding")
      })))

  it.live.each(policies)(
    titled("ETIME loses nothing"),
    (options) =>
      using({ ...options, working: "by hand" }, ({ buffer, device, queue }) =>
        Effect.gen(function*() {
          const requests = Array.from({ length: 3 }, (_, i) => read(i * 512, buffer(512)))
          yield* queue.submit(requests)
          yield* turns(1)
          device.take()
          device.answer(2)
          const exit = yield* Effect.exit(queue.completions({ min: 3, timeout: "5 millis" }))
          expect(tagOf(exit)).toBe("ETIME")
          expect(errorOf(exit)?.message).toBe("completions: 2 of 3 came in time")
          device.answer()
          const all = yield* queue.completions({ min: 3, timeout: "1 minute" })
          expect(all.map(({ request }) => request)).toStrictEqual(requests)
        }))
  )

  it.live("interruption loses nothing either", () =>
    using({ working: "by hand" }, ({ buffer, device, queue }) =>
      Effect.gen(function*() {
        yield* queue.submit([read(0, buffer(512)), read(512, buffer(512))])
        const reader = yield* fork(queue.completions({ min: 2 }))
        yield* turns()
        device.take()
        device.answer(1)
        yield* turns()
        yield* Fiber.interrupt(reader)
        device.answer(1)
        expect(yield* queue.completions({ min: 2 })).toHaveLength(2)
      })))

  it.live("min that can no longer be reached ends the wait", () =>
    using({ queueSize: 2, working: "by hand" }, ({ buffer, device, queue }) =>
      Effect.gen(function*() {
        const submitter = yield* fork(queue.submit(Array.from({ length: 5 }, (_, i) => read(i * 512, buffer(512)))))
        const reader = yield* fork(Effect.exit(queue.completions({ min: 5 })))
        yield* turns()
        yield* Fiber.interrupt(submitter)
        device.work()
        expect(tagOf(yield* Fiber.join(reader))).toBe("EINVAL")
        expect(yield* queue.completions({ min: 2 })).toHaveLength(2)
      })))

  it.live("two who ask for the same completions: one gets them, the other is told", () =>
    using({ working: "by hand" }, ({ buffer, device, queue }) =>
      Effect.gen(function*() {
        yield* queue.submit([read(0, buffer(512)), read(512, buffer(512))])
        const readers = yield* Effect.forEach([0, 1], () => fork(Effect.exit(queue.completions({ min: 2 }))))
        yield* turns()
        device.work()
        const exits = yield* Effect.forEach(readers, Fiber.join)
        expect(exits.map(tagOf).toSorted()).toStrictEqual(["EINVAL", "success"])
      })))

  it.live("every request comes back once, the same object, with what its caller put in", () =>
    using({ order: { seed: 4 }, working: "next turn" }, ({ buffer, device, queue }) =>
      Effect.gen(function*() {
        device.status = ({ sector }) => sector % 5 === 0 ? 1 : undefined
        const space = buffer(512)
        const requests = Array.from({ length: 500 }, (_, user) => ({ ...read(user * 512 + user % 7 % 2, space), user }))
        const all = yield* Stream.runCollect(queue.process(Stream.fromIterable(requests)))
        expect(new Set(all.map(({ request }) => request))).toStrictEqual(new Set(requests))
        expect(all).toHaveLength(500)
        for (const { error, request } of all) {
          const { offset, user } = request
          expect(error?._tag, `${user}`).toBe(
            offset % 512 !== 0 ? "EINVAL" : offset / 512 % 5 === 0 ? "EIO" : undefined
          )
        }
      })))
})

describe("FUA", () => {
  it.live.each(matrix)(
    titled("flushes after the write and before the completion"),
    (options) =>
      using(options, (fake) =>
        Effect.gen(function*() {
          yield* fake.queue.write(0, fake.buffer(512), FUA)
          expect(typesOf(fake)).toStrictEqual([OUT, FLUSH])
          yield* fake.queue.writeZeroes(0, 512, FUA)
          yield* fake.queue.writev(0, [fake.buffer(512), fake.buffer(512)], FUA)
          expect(typesOf(fake)).toStrictEqual([OUT, FLUSH, 13, FLUSH, OUT, FLUSH])
        }))
  )

  it.live.each(rings)(
    "is not answered before its flush is (packed: $packed, indirect: $indirect, eventIdx: $eventIdx)",
    (ring) =>
      using({ ...ring, working: "by hand" }, (fake) =>
        Effect.gen(function*() {
          const { buffer, device, queue } = fake
          yield* queue.submit(Array.from({ length: 4 }, (_, i) => write(i * 512, buffer(512), i === 1 ? 0 : FUA)))
          yield* turns()
          // All four writes end in one look at the ring.
          device.take()
          device.answer()
          yield* turns()
          expect((yield* queue.completions({ min: 0 })).map(({ request }) => request)).toMatchObject([{ offset: 512 }])
          device.take()
          expect(typesOf(fake)).toStrictEqual([OUT, OUT, OUT, OUT, FLUSH, FLUSH, FLUSH])
          device.answer()
          const rest = yield* queue.completions({ min: 3 })
          expect(new Set(rest.map(({ request }) => request._tag === "write" && request.offset))).toStrictEqual(
            new Set([0, 1024, 1536])
          )
        }))
  )

  it.live.each(matrix)(
    titled("a full ring of them, over and over"),
    (options) =>
      using({ ...options, order: { seed: 9 } }, (fake) =>
        Effect.gen(function*() {
          const { buffer, queue } = fake
          const space = buffer(512)
          const requests = Array.from({ length: 200 }, (_, i) => write(i % 64 * 512, space, i % 3 === 0 ? 0 : FUA))
          const all = yield* Stream.runCollect(queue.process(Stream.fromIterable(requests)))
          expect(new Set(all.map(({ request }) => request)).size).toBe(200)
          expect(all).toHaveLength(200)
          expect(typesOf(fake).filter((type) => type === FLUSH)).toHaveLength(133)
        }))
  )

  it.live.each([{ writeCache: false }, { canFlush: false }])(
    "costs nothing where nothing is cached: %o",
    (rules) =>
      using({ rules }, (fake) =>
        Effect.gen(function*() {
          yield* fake.queue.write(0, fake.buffer(512), FUA)
          yield* fake.queue.writeZeroes(0, 512, FUA)
          expect(typesOf(fake)).toStrictEqual([OUT, 13])
        }))
  )

  it.live("a failed write is delivered without a flush, a failed flush as the write's failure", () =>
    using({}, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        device.status = ({ type }) => type === OUT ? 1 : undefined
        expect(tagOf(yield* Effect.exit(queue.write(0, buffer(512), FUA)))).toBe("EIO")
        expect(typesOf(fake)).toStrictEqual([OUT])
        device.status = ({ type }) => type === FLUSH ? 1 : undefined
        const exit = yield* Effect.exit(queue.write(512, buffer(512), FUA))
        expect(errorOf(exit)).toMatchObject({ _tag: "EIO", operation: "write", offset: 512, length: 512 })
      })))
})

describe("interruption", () => {
  it.live.each(policies)(
    titled("of a read waits until the device has let go"),
    (options) =>
      using({ ...options, working: "by hand" }, ({ buffer, device, engine, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const reader = yield* fork(queue.read(0, bytes))
          yield* turns()
          expect(engine.uses(bytes.buffer)).toBe(true)
          const interruption = yield* fork(Fiber.interrupt(reader))
          yield* turns()
          expect(interruption.pollUnsafe()).toBeUndefined()
          device.work()
          yield* Fiber.join(interruption)
          expect([engine.uses(bytes.buffer), engine.outstanding]).toStrictEqual([false, 0])
        }))
  )

  it.live("ends with the device, too", () =>
    using({ working: "by hand" }, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        const reader = yield* fork(queue.read(0, buffer(512)))
        yield* turns()
        const interruption = yield* fork(Fiber.interrupt(reader))
        yield* turns()
        engine.fail(gone())
        yield* Fiber.join(interruption)
      })))

  it.live("of who still waits in line takes effect at once", () =>
    using({ queueSize: 2, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        const fibers = yield* Effect.forEach([0, 1, 2, 3], (i) => fork(queue.read(i * 512, buffer(512))))
        yield* turns()
        yield* Fiber.interrupt(fibers[2]!)
        device.work()
        yield* turns()
        device.work()
        yield* Effect.forEach([0, 1, 3], (i) => Fiber.join(fibers[i]!))
        expect(sectorsOf(fake)).toStrictEqual([0, 1, 3])
      })))

  it.live("of a submission leaves those submitted that were", () =>
    using({ queueSize: 4, working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        const submitter = yield* fork(queue.submit(Array.from({ length: 9 }, (_, i) => read(i * 512, buffer(512)))))
        yield* turns()
        yield* Fiber.interrupt(submitter)
        device.work()
        expect(yield* queue.completions({ min: 4 })).toHaveLength(4)
        expect(tagOf(yield* Effect.exit(queue.completions()))).toBe("EINVAL")
      })))

  it.live.each(matrix)(
    titled("waits for the device also where its time is over"),
    (options) =>
      using({ ...options, working: "by hand" }, ({ buffer, device, engine, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const reading = yield* Effect.forkChild(queue.read(0, bytes), { startImmediately: true })
          yield* Effect.sleep(1)
          const interrupting = yield* Effect.forkChild(Fiber.interrupt(reading), { startImmediately: true })
          for (let look = 0; look < 10; look++) engine.expire(9, Duration.millis(1))
          yield* Effect.sleep(1)
          expect(interrupting.pollUnsafe()).toBe(undefined)
          device.work()
          yield* Fiber.join(interrupting)
        }))
  )
})

describe("process", () => {
  it.live.each(matrix)(
    titled("streams thousands through"),
    (options) =>
      using({ ...options, order: { seed: 3 } }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const count = yield* Stream.range(0, 2999).pipe(
            Stream.map((i) => read(i % 2000 * 512, bytes)),
            queue.process,
            Stream.runFold(() => 0, (count, { error }) => error === undefined ? count + 1 : count)
          )
          expect(count).toBe(3000)
        }))
  )

  it.live("gives chunks of what one look at the ring found", () =>
    using({}, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const chunks = yield* Stream.fromIterable(Array.from({ length: 64 }, (_, i) => read(i * 512, buffer(512))))
          .pipe(
            queue.process,
            Stream.chunks,
            Stream.runCollect
          )
        expect(chunks.map(({ length }) => length).reduce((a, b) => a + b)).toBe(64)
        expect(Math.max(...chunks.map(({ length }) => length))).toBe(16)
      })))

  it.live.each(matrix)(
    titled("holds no more than twice the ring when its consumer is slow"),
    (options) =>
      using(options, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          let pulled = 0
          let seen = 0
          let most = 0
          yield* Stream.fromEffectRepeat(Effect.sync(() => read(pulled++ % 64 * 512, bytes))).pipe(
            Stream.take(400),
            queue.process,
            Stream.chunks,
            Stream.runForEach((chunk) =>
              Effect.gen(function*() {
                seen += chunk.length
                yield* turns(4)
                most = Math.max(most, pulled - seen)
              })
            )
          )
          expect(seen).toBe(400)
          expect(most).toBeGreaterThanOrEqual(16)
          // Unread, in flight, and the one request that waits.
          expect(most).toBeLessThanOrEqual(2 * 16 + 1)
        }))
  )

  it.live("is bounded also where every request is wrong", () =>
    using({}, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const bytes = buffer(512)
        let pulled = 0
        const some = yield* Stream.fromEffectRepeat(Effect.sync(() => read(++pulled, bytes))).pipe(
          queue.process,
          Stream.take(100),
          Stream.runCollect
        )
        expect(some.every(({ error }) => error?._tag === "EINVAL")).toBe(true)
        expect(pulled).toBeLessThanOrEqual(100 + 2 * 16 + 1)
      })))

  it.live("passes a failure of its requests on, after what was in flight", () =>
    using({ working: "next turn" }, ({ buffer, queue }) =>
      Effect.gen(function*() {
        const seen: Array<IoQueue.Request> = []
        const requests = [read(0, buffer(512)), read(512, buffer(512))]
        const exit = yield* Stream.fromIterable(requests).pipe(
          Stream.concat(Stream.fail("broken" as const)),
          queue.process,
          Stream.runForEach(({ request }) => Effect.sync(() => seen.push(request))),
          Effect.exit
        )
        expect(exit).toStrictEqual(Exit.fail("broken"))
        expect(seen).toStrictEqual(requests)
      })))

  it.live.each(policies)(
    titled("waits for what is in flight when it is left early"),
    (options) =>
      using({ ...options, working: "by hand" }, ({ buffer, device, engine, queue }) =>
        Effect.gen(function*() {
          const one = yield* Stream.fromIterable(Array.from({ length: 40 }, (_, i) => read(i * 512, buffer(512)))).pipe(
            queue.process,
            Stream.take(1),
            Stream.runCollect,
            fork
          )
          yield* turns()
          device.take()
          device.answer(1)
          yield* turns()
          expect(one.pollUnsafe()).toBeUndefined()
          device.answer()
          yield* turns()
          device.work()
          expect(yield* Fiber.join(one)).toHaveLength(1)
          expect(engine.outstanding).toBe(0)
        }))
  )

  it.live("waits for what is in flight when it is interrupted", () =>
    using({ working: "by hand" }, ({ buffer, device, engine, queue }) =>
      Effect.gen(function*() {
        const endless = yield* Stream.forever(Stream.make(read(0, buffer(512)))).pipe(
          queue.process,
          Stream.runDrain,
          fork
        )
        yield* turns()
        const interruption = yield* fork(Fiber.interrupt(endless))
        yield* turns()
        expect(interruption.pollUnsafe()).toBeUndefined()
        device.work()
        yield* Fiber.join(interruption)
        expect(engine.outstanding).toBe(0)
      })))

  it.live.each(policies)(
    titled("does not hold completions back while its requests are silent"),
    (options) =>
      using({ ...options, working: "next turn" }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const first = yield* Stream.fromIterable([read(0, buffer(512)), read(512, buffer(512))]).pipe(
            Stream.concat(Stream.never),
            queue.process,
            Stream.take(2),
            Stream.runCollect
          )
          expect(first).toHaveLength(2)
        }))
  )

  it.live("fails once when the device dies, after what it had answered", () =>
    using({ working: "by hand" }, ({ buffer, device, engine, queue }) =>
      Effect.gen(function*() {
        const seen: Array<IoQueue.Completion<IoQueue.Request>> = []
        const failure = gone()
        const stream = yield* Stream.fromIterable(Array.from({ length: 40 }, (_, i) => read(i * 512, buffer(512))))
          .pipe(
            queue.process,
            Stream.runForEach((completion) => Effect.sync(() => seen.push(completion))),
            Effect.exit,
            fork
          )
        yield* turns()
        device.take()
        device.answer(5)
        yield* turns()
        engine.fail(failure)
        const exit = yield* Fiber.join(stream)
        expect(errorOf(exit)).toBe(failure)
        expect(seen).toHaveLength(5)
        expect(seen.every(({ error }) => error === undefined)).toBe(true)
      })))

  it.live("fails when the device dies while nothing is in flight and its requests are silent", () =>
    using({}, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        const stream = yield* Stream.make(read(0, buffer(512))).pipe(
          Stream.concat(Stream.never),
          queue.process,
          Stream.runDrain,
          Effect.exit,
          fork
        )
        yield* turns(10)
        engine.fail(gone())
        expect(tagOf(yield* Fiber.join(stream))).toBe("ENOTCONN")
      })))

  it.live("fails a submitter by hand who waits for completions to be taken, without anybody taking them", () =>
    using({}, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        const bytes = buffer(512)
        const submitter = yield* queue.submit(Array.from({ length: 100 }, () => read(0, bytes))).pipe(Effect.exit, fork)
        yield* turns(10)
        engine.fail(gone())
        expect(tagOf(yield* Fiber.join(submitter))).toBe("ENOTCONN")
      })))

  it.live("fails when the device dies while its consumer holds it up", () =>
    using({}, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const bytes = buffer(512)
        const stream = yield* Stream.forever(Stream.make(read(0, bytes))).pipe(
          queue.process,
          Stream.runForEachArray(() => Deferred.await(gate)),
          Effect.exit,
          fork
        )
        yield* turns(10)
        engine.fail(gone())
        yield* Deferred.succeed(gate, undefined)
        expect(tagOf(yield* Fiber.join(stream))).toBe("ENOTCONN")
        expect(engine.outstanding).toBe(0)
      })))

  it.live("succeeds when the device dies after all was answered", () =>
    using({}, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        const all = yield* Stream.make(read(0, buffer(512))).pipe(
          queue.process,
          Stream.tap(() => Effect.sync(() => engine.fail(gone()))),
          Stream.runCollect
        )
        expect(all).toHaveLength(1)
      })))

  it.live("of a dead device fails at once", () =>
    using({}, ({ buffer, engine, queue }) =>
      Effect.gen(function*() {
        engine.fail(gone())
        const requests = [Stream.make(read(0, buffer(512))), Stream.never, Stream.make(read(1, buffer(512)))]
        for (const upstream of requests) {
          expect(tagOf(yield* Effect.exit(Stream.runDrain(queue.process(upstream))))).toBe("ENOTCONN")
        }
      })))

  it.live.each(matrix)(
    titled("into process: what one gives, the other takes, also where it is all wrong"),
    (options) =>
      using({ ...options, rules: { readOnly: true } }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const all = yield* Stream.range(0, 99).pipe(
            Stream.map((i) => read(i * 512, bytes)),
            queue.process,
            Stream.map(({ request }) => write(request.offset, bytes)),
            queue.process,
            Stream.runCollect
          )
          expect(all.map(({ error }) => error?._tag)).toStrictEqual(Array(100).fill("EBADF"))
        }))
  )

  it.live.each(policies)(
    titled("a wrong request made in answer to a completion elsewhere is answered"),
    (options) =>
      using({ ...options, working: "next turn" }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const requests = yield* Queue.make<IoQueue.Request>()
          const second = yield* Stream.fromQueue(requests).pipe(queue.process, Stream.take(1), Stream.runCollect, fork)
          yield* turns()
          yield* queue.submit([read(0, bytes)])
          yield* queue.completions()
          // Still on the stack of the look that found the completion; nothing is in flight after it.
          yield* Queue.offer(requests, read(1, bytes))
          expect(yield* Fiber.join(second)).toMatchObject([{ error: { _tag: "EINVAL" } }])
        }))
  )
})

describe("a device that breaks the protocol", () => {
  const mischiefs = [
    "id out of range",
    "id not in flight",
    "repeated id",
    "more used than available",
    "length too long"
  ] as const
  const cases = mischiefs.flatMap((mischief) => policies.map((policy) => ({ ...policy, mischief })))

  it.live.each(cases)(
    titled("$mischief: everything fails with one EPROTO, and nothing hangs"),
    ({ mischief, ...options }) =>
      using({ ...options, queueSize: 8, working: "by hand" }, (fake) =>
        Effect.gen(function*() {
          const { buffer, device, engine, faults, queue } = fake
          const bytes = buffer(512)
          const singles = yield* Effect.forEach(
            Array.from({ length: 4 }),
            () => fork(Effect.exit(queue.read(0, bytes)))
          )
          const stream = yield* Stream.forever(Stream.make(read(512, bytes))).pipe(
            queue.process,
            Stream.runDrain,
            Effect.exit,
            fork
          )
          const submitter = yield* fork(Effect.exit(queue.submit(Array.from({ length: 20 }, () => read(1024, bytes)))))
          yield* turns()
          device.take()
          device.mischief = mischief
          device.answer(1)
          const exits = yield* Effect.forEach([...singles, stream, submitter], (fiber) => Fiber.join(fiber))
          expect(faults).toHaveLength(1)
          for (const exit of exits) expect(errorOf(exit)).toBe(faults[0])
          expect([engine.outstanding, engine.failure]).toStrictEqual([0, faults[0]])
          expect(errorOf(yield* Effect.exit(queue.read(0, bytes)))).toBe(faults[0])
          expect(errorOf(yield* Effect.exit(queue.submit([flush])))).toBe(faults[0])
          expect(errorOf(yield* Effect.exit(queue.completions({ min: 1 })))).toBe(faults[0])
          // A dead ring is not touched again.
          const { notifications } = fake
          device.answer()
          yield* turns()
          expect(fake.notifications).toBe(notifications)
        }))
  )

  it.live.each(["no status", "garbage status"] as const)(
    "%s: fails its own request",
    (mischief) =>
      using({ working: "by hand" }, ({ buffer, device, faults, queue }) =>
        Effect.gen(function*() {
          const fibers = yield* Effect.forEach([0, 1], (i) => fork(Effect.exit(queue.read(i * 512, buffer(512)))))
          yield* turns()
          device.take()
          device.mischief = mischief
          device.answer()
          const exits = yield* Effect.forEach(fibers, Fiber.join)
          expect(exits.map(tagOf)).toStrictEqual(["EPROTO", "success"])
          expect(faults).toStrictEqual([])
        }))
  )

  it.live("unasked completions of an idle queue are found with the next request", () =>
    using({ working: "by hand" }, ({ buffer, device, queue }) =>
      Effect.gen(function*() {
        device.forge(3, 1)
        const exit = yield* Effect.exit(queue.read(0, buffer(512)))
        expect(tagOf(exit)).toBe("EPROTO")
      })))
})

describe("a device that is gone", () => {
  it.live.each(policies)(
    titled("fails what is in flight and who waits in line"),
    (options) =>
      using(
        { ...options, queueSize: 8, working: "by hand" },
        ({ buffer, device, engine, queue }) =>
          Effect.gen(function*() {
            const failure = gone()
            device.mischief = "silent"
            const bytes = buffer(512)
            const fibers = yield* Effect.forEach(
              Array.from({ length: 30 }),
              () => fork(Effect.exit(queue.read(0, bytes)))
            )
            yield* turns()
            engine.fail(failure)
            for (const fiber of fibers) {
              expect(errorOf(yield* Fiber.join(fiber))).toBe(failure)
            }
            expect([engine.outstanding, engine.isContended]).toStrictEqual([0, false])
          })
      )
  )

  it.live("refuses new requests while it finishes the old, and gives up then", () =>
    using({ queueSize: 2, working: "by hand" }, ({ buffer, device, engine, queue }) =>
      Effect.gen(function*() {
        const closed = new Errno.ESHUTDOWN({ operation: "close", detail: "the device is closed" })
        const fibers = yield* Effect.forEach([0, 1, 2], (i) => fork(Effect.exit(queue.read(i * 512, buffer(512)))))
        yield* turns()
        engine.refuse(closed)
        expect(errorOf(yield* Fiber.join(fibers[2]!))).toBe(closed)
        expect(errorOf(yield* Effect.exit(queue.flush()))).toBe(closed)
        device.take()
        device.answer(1)
        expect(tagOf(yield* Fiber.join(fibers[0]!))).toBe("success")
        engine.fail(closed)
        expect(errorOf(yield* Fiber.join(fibers[1]!))).toBe(closed)
      })))

  it.live("lets a submitter take nothing more after the queue refused", () =>
    using({ queueSize: 4 }, (fake) =>
      Effect.gen(function*() {
        const { buffer, engine, queue } = fake
        const closed = new Errno.ESHUTDOWN({ operation: "close", detail: "the device is closed" })
        // More than may be unread: the submitter waits for the reader.
        const submitter = yield* fork(
          Effect.exit(queue.submit(Array.from({ length: 30 }, (_, i) => read(i * 512, buffer(512)))))
        )
        yield* turns()
        engine.refuse(closed)
        const before = fake.device.taken.length
        yield* queue.completions({ min: 0 })
        expect(errorOf(yield* Fiber.join(submitter))).toBe(closed)
        expect(fake.device.taken).toHaveLength(before)
      })))

  it.live("an owner that gives the device up in the middle of a look at the ring", () =>
    Effect.gen(function*() {
      for (const policy of policies) {
        yield* using({ ...policy, queueSize: 8, working: "by hand" }, ({ buffer, device, engine, memory, queue }) =>
          Effect.gen(function*() {
            const bytes = buffer(512)
            const killer = yield* fork(Effect.andThen(
              queue.flush(),
              Effect.sync(() => {
                engine.fail(gone())
                // As when the program ends here, and its scope takes the ring away.
                memory.transfer()
              })
            ))
            const fibers = yield* Effect.forEach(
              Array.from({ length: 20 }),
              () =>
                fork(Effect.exit(queue.read(0, bytes)))
            )
            yield* turns()
            device.take()
            device.answer(2)
            yield* Fiber.join(killer)
            const tags = (yield* Effect.forEach(fibers, Fiber.join)).map(tagOf)
            // What had ended in the same look ended well.
            expect(tags).toContain("ENOTCONN")
            expect(tags.filter((tag) => tag === "success").length).toBeGreaterThanOrEqual(1)
            yield* turns()
          }))
      }
    }))
})

describe("a queue that does not exist", () => {
  it.live("answers everything with ENODEV", () =>
    Effect.gen(function*() {
      const queue = IoQueue.absent("poll", 3, 2)
      const bytes = new Uint8Array(512)
      const all = [
        queue.read(0, bytes),
        queue.write(0, bytes),
        queue.readv(0, [bytes]),
        queue.writev(0, [bytes]),
        queue.writeZeroes(0, 512),
        queue.discard(0, 512),
        queue.flush(),
        queue.submit([]),
        queue.completions(),
        queue.setCompletionFdEnabled(true),
        Stream.runDrain(queue.process(Stream.make(flush)))
      ]
      for (const effect of all) {
        const exit = yield* Effect.exit<unknown, { readonly _tag: string; readonly message: string }, never>(effect)
        expect(errorOf(exit)?.message).toBe("use on queue 3: there are 2 poll queues, counted from 0")
        expect(tagOf(exit)).toBe("ENODEV")
      }
      expect([queue.kind, queue.index, queue.size, queue.completionFd]).toStrictEqual(["poll", 3, 0, Option.none()])
    }))
})

describe("more completions than a ring and its like hold", () => {
  it.live.each(matrix)(
    titled("are had by whoever asks for them"),
    (options) =>
      using({ ...options, queueSize: 8 }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const bytes = buffer(512)
          const reads = Array.from({ length: 50 }, (_, i) => read(i * 512, bytes))
          const submitting = yield* Effect.forkChild(queue.submit(reads), { startImmediately: true })
          expect(yield* queue.completions({ min: 50 })).toHaveLength(50)
          yield* Fiber.join(submitting)
          // Nobody waits for so many any more.
          const again = yield* Effect.forkChild(queue.submit(reads), { startImmediately: true })
          yield* Effect.sleep(10)
          expect(again.pollUnsafe()).toBe(undefined)
          for (let left = 50; left > 0;) left -= (yield* queue.completions()).length
          yield* Fiber.join(again)
        }))
  )
})

describe("a foreign event loop", () => {
  /** Waits until a descriptor is readable, as another loop would, and reads the 8 bytes. */
  const signalled = (fd: number) =>
    Effect.callback<void>((resume) => {
      const own = Libc.duplicate(fd)
      const close = () => {
        watch.close()
        Libc.close(own)
      }
      const watch = Poll.watch(own, { readable: true }, () => {
        Libc.drainEventFd(own)
        close()
        setImmediate(() => resume(Exit.void))
      })
      return Effect.sync(close)
    })

  const cases = matrix.filter(({ waiting }) => waiting !== "poll")

  it.live.each(cases)(
    titled("is told of every completion by the descriptor alone"),
    (options) =>
      using(options, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const fd = Option.getOrThrow(queue.completionFd)
          yield* queue.setCompletionFdEnabled(true)
          const bytes = buffer(512)
          for (let round = 0; round < 50; round++) {
            const count = 1 + round % 16
            yield* queue.submit(Array.from({ length: count }, (_, i) => read(i * 512, bytes)))
            let seen = 0
            while (seen < count) {
              yield* signalled(fd)
              for (;;) {
                const some = yield* queue.completions({ min: 0 })
                seen += some.length
                if (some.length === 0) break
              }
            }
            expect(seen).toBe(count)
          }
          yield* queue.setCompletionFdEnabled(false)
          yield* queue.read(0, bytes)
        }))
  )

  it.live.each(cases)(
    titled("is told of a device that is gone, whatever it asks for"),
    (options) =>
      using(options, ({ buffer, engine, queue }) =>
        Effect.gen(function*() {
          const fd = Option.getOrThrow(queue.completionFd)
          yield* queue.setCompletionFdEnabled(true)
          const bytes = buffer(512)
          yield* queue.submit([read(0, bytes)])
          yield* signalled(fd)
          expect(yield* queue.completions({ min: 0 })).toHaveLength(1)
          engine.fail(new Errno.ENOTCONN({ operation: "test", detail: "gone" }))
          yield* signalled(fd)
          for (const min of [0, 1]) {
            expect(yield* Effect.flip(queue.completions({ min }))).toMatchObject({ _tag: "ENOTCONN" })
          }
        }))
  )

  it.live.each(cases)(
    titled("is told of a request that never reached the device"),
    (options) =>
      using(options, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const fd = Option.getOrThrow(queue.completionFd)
          yield* queue.setCompletionFdEnabled(true)
          yield* queue.submit([read(1, buffer(512))])
          yield* signalled(fd)
          expect(yield* queue.completions({ min: 0 })).toMatchObject([{ error: { _tag: "EINVAL" } }])
        }))
  )

  it.live.each(cases)(
    titled("is told of what came before it was enabled"),
    (options) =>
      using(options, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const fd = Option.getOrThrow(queue.completionFd)
          yield* queue.submit([read(0, buffer(512))])
          yield* turns(6)
          yield* queue.setCompletionFdEnabled(true)
          yield* signalled(fd)
          expect(yield* queue.completions({ min: 0 })).toHaveLength(1)
        }))
  )

  it.live.each(cases)(
    titled("may go on beside answers that are awaited here"),
    (options) =>
      using({ ...options, working: "next turn" }, ({ buffer, queue }) =>
        Effect.gen(function*() {
          const fd = Option.getOrThrow(queue.completionFd)
          yield* queue.setCompletionFdEnabled(true)
          const bytes = buffer(512)
          for (let round = 0; round < 50; round++) {
            yield* queue.submit([read(0, bytes)])
            yield* queue.read(512, bytes)
            let seen = 0
            while (seen < 1) {
              yield* signalled(fd)
              seen += (yield* queue.completions({ min: 0 })).length
            }
          }
        }))
  )

  it.live("has its signals to itself once nothing is awaited here: they are not consumed", () =>
    using({ working: "by hand" }, (fake) =>
      Effect.gen(function*() {
        const { buffer, device, queue } = fake
        const fd = Option.getOrThrow(queue.completionFd)
        yield* queue.setCompletionFdEnabled(true)
        fake.notify = () => {
          setImmediate(() => device.work())
          return 0
        }
        // Each of these awaits here for a while, in its own way, and must leave nothing behind.
        yield* queue.read(0, buffer(512))
        yield* Effect.exit(queue.read(1, buffer(512)))
        yield* Stream.runDrain(queue.process(Stream.make(read(0, buffer(512)), read(1, buffer(512)))))
        yield* queue.submit([read(0, buffer(512))])
        yield* queue.completions()
        yield* Effect.exit(queue.completions({ min: 0, timeout: 1 }))
        const left = yield* fork(queue.read(512, buffer(512)))
        yield* Fiber.interrupt(left)
        yield* turns()
        Libc.drainEventFd(fd)
        Libc.signalEventFd(fd)
        yield* turns(10)
        yield* signalled(fd)
      })))

  it.live("cannot have a poll queue", () =>
    using({ waiting: "poll" }, ({ queue }) =>
      Effect.gen(function*() {
        expect([queue.kind, queue.completionFd]).toStrictEqual(["poll", Option.none()])
        expect(tagOf(yield* Effect.exit(queue.setCompletionFdEnabled(true)))).toBe("ENOTSUP")
      })))
})

describe("no wake-up is lost (P-EVT-1)", () => {
  const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

  it.live.prop(
    "a device that takes and answers at random moments is always heard",
    [between(0, 2 ** 31), between(0, policies.length - 1), between(0, 4), Schema.Boolean],
    ([seed, policy, exponent, wantsKicks]) =>
      using(
        { ...policies[policy]!, queueSize: 4 << exponent, order: { seed }, working: "by hand" },
        (fake) =>
          Effect.gen(function*() {
            const { buffer, device, queue } = fake
            const next = random(seed)
            const later = (job: () => void) => {
              switch (next(5)) {
                case 0:
                  return job()
                case 1:
                  return queueMicrotask(job)
                case 2:
                  return void setTimeout(job, next(2))
                default:
                  return void setImmediate(job)
              }
            }
            const answerSome = (): void => {
              if (device.held.length === 0) return
              device.answer(1 + next(4))
              if (device.held.length > 0) later(answerSome)
            }
            const takeSome = () => {
              device.askNotifications(wantsKicks || next(2) === 0)
              device.take()
              later(answerSome)
            }
            fake.notify = () => {
              later(takeSome)
              return 0
            }
            // A device that asks for no notifications looks for itself.
            const own = { isOpen: true }
            const looking = (async () => {
              while (own.isOpen) {
                await sleep(1)
                takeSome()
              }
            })()
            const bytes = buffer(512)
            for (let round = 0; round < 12; round++) {
              const pick = next(4)
              const count = 1 + next(24)
              const requests = Array.from({ length: count }, (_, i) => write(i * 512, bytes, next(4) === 0 ? FUA : 0))
              if (pick === 0) {
                yield* Effect.forEach(requests, ({ flags, offset }) => queue.write(offset, bytes, flags), {
                  concurrency: 1 + next(20),
                  discard: true
                })
              } else if (pick === 1) {
                expect(yield* Stream.runCollect(queue.process(Stream.fromIterable(requests)))).toHaveLength(count)
              } else if (pick === 2) {
                const submitter = yield* fork(queue.submit(requests))
                for (let left = count; left > 0;) {
                  left -= (yield* queue.completions({ min: 1, max: 1 + next(8) })).length
                }
                yield* Fiber.join(submitter)
              } else {
                const reader = yield* fork(queue.read(0, bytes))
                yield* Fiber.interrupt(reader)
              }
            }
            own.isOpen = false
            yield* Effect.promise(() => looking)
          })
      ),
    { arbitrary: { runs: 60 }, timeout: 300_000 }
  )

  it.live("in a thousand rounds of one request, each answered at another moment", () =>
    Effect.gen(function*() {
      for (const policy of policies) {
        yield* using({ ...policy, queueSize: 4, working: "by hand" }, (fake) =>
          Effect.gen(function*() {
            const { buffer, device, queue } = fake
            const bytes = buffer(512)
            const moments: ReadonlyArray<(job: () => void) => void> = [
              (job) => job(),
              (job) => queueMicrotask(job),
              (job) => void setImmediate(job),
              (job) => void setImmediate(() => queueMicrotask(job)),
              (job) => void setImmediate(() => setImmediate(job))
            ]
            let at = 0
            fake.notify = () => {
              moments[at++ % moments.length]?.(() => device.work())
              return 0
            }
            for (let round = 0; round < 250; round++) yield* queue.read(0, bytes)
          }))
      }
    }))
})

describe("two queues of one process", () => {
  it.live("feed each other", () =>
    using(
      { working: "next turn" },
      (left) =>
        using({ waiting: "adaptive", working: "next turn" }, (right) =>
          Effect.gen(function*() {
            const all = yield* Stream.range(0, 199).pipe(
              Stream.map((i) => read(i * 512, left.buffer(512))),
              left.queue.process,
              Stream.map(({ request }) => write(request.offset, right.region.bytes.subarray(0, 512))),
              right.queue.process,
              Stream.runCollect
            )
            expect(all).toHaveLength(200)
          }))
    ))
})

describe("an engine that is done", () => {
  it.live("lets the process end: no watch, no immediate, no touch of its ring", () =>
    Effect.gen(function*() {
      for (const policy of policies) {
        const fake = yield* Effect.scoped(Effect.gen(function*() {
          const fake = yield* make({ ...policy, working: "by hand" })
          yield* fork(Effect.exit(fake.queue.read(0, fake.buffer(512))))
          yield* turns()
          return fake
        }))
        const { notifications } = fake
        fake.device.work()
        yield* turns()
        expect([fake.notifications, fake.engine.outstanding]).toStrictEqual([notifications, 0])
      }
      expect(process.getActiveResourcesInfo().filter((name) => name === "Immediate")).toStrictEqual([])
    }))
})
