/**
 * Goal: completions taken by hand come each once, in time or not, also where the ring is full or a foreign loop waits.
 * Method: libblkio's tests of these (user-data, queue-full, timeout, completion-fd) on each backend.
 */
import { expect } from "@effect/vitest"
import { Effect, Fiber, Option, Stream } from "effect"
import * as Libc from "../../src/Native/Libc.ts"
import type { IoQueue } from "../../src/index.ts"
import { slow } from "../support/Backend.ts"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"
import { descriptors, isCloseOnExec } from "../support/resources.ts"

const QUEUE_SIZE = 16

forEachBackend("completions by hand", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(`come each once though the ring overflows: ${kind}`, () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB)
        const disk = yield* open(socketPath, {
          queueSize: QUEUE_SIZE,
          ...(kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : { waiting: kind })
        })
        const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
        const region = yield* disk.allocate(4 * KiB)
        const tagged = Array.from({ length: 2 * QUEUE_SIZE + 8 + 1 }, (_, id) =>
          id % 3 === 0
            ? { _tag: "flush" as const, id }
            : { _tag: "read" as const, offset: 512 * (id % 8), buffer: region.bytes, id })
        for (let round = 0; round < 10; round++) {
          const submitting = yield* Effect.forkChild(queue.submit(tagged), { startImmediately: true })
          const seen = new Set<IoQueue.Request>()
          while (seen.size < tagged.length) {
            const completions = yield* queue.completions({ min: 1, max: 8 })
            expect(completions.length).toBeLessThanOrEqual(8)
            for (const { error, request } of completions) {
              expect(error).toBeUndefined()
              expect(seen.has(request)).toBe(false)
              seen.add(request)
            }
          }
          yield* Fiber.join(submitting)
          expect([...seen].every((request) => tagged.includes(request as (typeof tagged)[number]))).toBe(true)
        }
      }))
  }

  onBackend("not there in time stay to be taken, and too many asked for are refused", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(2000))
      const disk = yield* open(socketPath)
      const queue = disk.queue(0)
      const region = yield* disk.allocate(4 * KiB)
      const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
      const bad = { _tag: "read", offset: 1, buffer: region.bytes } as const
      yield* queue.submit([read, read, bad])
      expect(yield* Effect.flip(queue.completions({ min: 4 }))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* Effect.flip(queue.completions({ min: 2, max: 1 }))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* Effect.flip(queue.completions({ min: -1 }))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* Effect.flip(queue.completions({ min: 3, timeout: "20 millis" }))).toMatchObject({ _tag: "ETIME" })
      expect(yield* Effect.flip(queue.completions({ min: 2, timeout: 0 }))).toMatchObject({ _tag: "ETIME" })
      const interrupted = yield* Effect.forkChild(queue.completions({ min: 3 }), { startImmediately: true })
      yield* Fiber.interrupt(interrupted)
      const completions = yield* queue.completions({ min: 3, timeout: "1 hour" })
      expect(completions.map(({ error, request }) => [request, error?._tag])).toStrictEqual([
        [bad, "EINVAL"],
        [read, undefined],
        [read, undefined]
      ])
      expect(yield* queue.completions({ min: 0 })).toStrictEqual([])
    }))

  onBackend("are signalled to a foreign event loop, that does not miss any", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const queue = disk.queue(0)
      const fd = Option.getOrThrow(queue.completionFd)
      expect(descriptors().get(fd)).toBe("anon_inode:[eventfd]")
      expect(isCloseOnExec(fd)).toBe(true)
      const region = yield* disk.allocate(4 * KiB)
      const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
      yield* queue.setCompletionFdEnabled(true)
      let taken = 0
      for (let round = 0; round < 64; round++) {
        yield* queue.submit(round % 7 === 0 ? [read, { _tag: "flush", flags: 1 }] : [read])
        const wanted = taken + (round % 7 === 0 ? 2 : 1)
        while (taken < wanted) {
          // What a loop does that was told that the descriptor is readable, or looks by itself.
          Libc.drainEventFd(fd)
          for (;;) {
            const completions = yield* queue.completions({ min: 0 })
            if (completions.length === 0) break
            taken += completions.length
          }
          yield* Effect.sleep(1)
        }
      }
      // Those who await an answer here are served all the same.
      yield* queue.read(0, region.bytes)
      yield* queue.setCompletionFdEnabled(false)
      yield* queue.submit([read])
      expect((yield* queue.completions()).length).toBe(1)
    }))

  onBackend("of several streams and calls on one queue do not get mixed up", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath, { queueSize: QUEUE_SIZE })
      const queue = disk.queue(0)
      const region = yield* disk.allocate(4 * KiB)
      const stream = (owner: number, count: number) =>
        queue.process(Stream.fromIterable(
          Array.from({ length: count }, (_, id) =>
            ({ _tag: "read", offset: 0, buffer: region.bytes, owner, id }) as const)
        )).pipe(
          Stream.runCollect,
          Effect.map((completions) => ({
            mine: completions.every(({ error, request }) =>
              error === undefined && request.owner === owner
            ),
            distinct: new Set(completions.map(({ request }) => request.id)).size
          }))
        )
      const results = yield* Effect.all([
        stream(1, 500),
        stream(2, 300),
        stream(3, 1),
        stream(4, 0),
        Effect.forEach(Array.from({ length: 200 }), () => queue.read(0, region.bytes), {
          concurrency: "unbounded",
          discard: true
        }),
        // A stream that is left early takes nothing of the others with it.
        queue.process(Stream.forever(Stream.make({ _tag: "flush" } as const))).pipe(Stream.take(100), Stream.runCount)
      ], { concurrency: "unbounded" })
      expect(results).toStrictEqual([
        { mine: true, distinct: 500 },
        { mine: true, distinct: 300 },
        { mine: true, distinct: 1 },
        { mine: true, distinct: 0 },
        undefined,
        100
      ])
    }))

  onBackend("of a stream whose source fails come before its error", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const region = yield* disk.allocate(4 * KiB)
      const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
      let completed = 0
      const source = Stream.concat(Stream.make(read, read, read), Stream.fail("no more" as const))
      const error = yield* Effect.flip(
        Stream.runForEach(disk.queue(0).process(source), () => Effect.sync(() => completed++))
      )
      expect([completed, error]).toStrictEqual([3, "no more"])
    }))
})
