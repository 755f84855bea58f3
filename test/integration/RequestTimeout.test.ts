/**
 * Goal: a request that the device does not answer in time is reported, and its memory is nobody else's before the device has
 * let go of it.
 * Method: a backend that takes longer for each request than the time limit, and answers in the end.
 */
import { expect } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { slow } from "../support/Backend.ts"
import { forEachBackend } from "../support/backends.ts"
import { KiB, onBackend, open } from "../support/daemon.ts"

const LATENCY_MS = 1200
const late = { requestTimeout: "100 millis", queueSize: 16 } as const

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkScoped(effect, { startImmediately: true })

forEachBackend("a request that takes too long", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(
      `is ETIME, and its buffer comes back when the device lets go: ${kind} queue`,
      () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(slow(LATENCY_MS))
          const disk = yield* open(socketPath, {
            ...late,
            ...kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : { waiting: kind }
          })
          const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
          const { bytes } = yield* disk.allocate(16 * KiB)
          const buffer = bytes.subarray(0, 4 * KiB)
          const error = yield* Effect.flip(queue.read(512, buffer))
          expect(error).toMatchObject({ _tag: "ETIME", operation: "read", offset: 512, length: 4 * KiB, queue: 0 })
          expect(error.message).toContain("100ms")
          for (const part of [buffer, bytes.subarray(512, 1024), bytes, new Uint8Array(bytes.buffer, 0, 512)]) {
            expect(yield* Effect.flip(queue.write(0, part))).toMatchObject({ _tag: "EFAULT" })
            expect(yield* Effect.flip(queue.readv(0, [bytes.subarray(8 * KiB, 9 * KiB), part]))).toMatchObject({
              _tag: "EFAULT"
            })
          }
          const [duration] = yield* Effect.timed(queue.released(buffer))
          expect(Duration.toMillis(duration)).toBeGreaterThan(LATENCY_MS / 3)
          expect(yield* Effect.flip(queue.read(0, buffer))).toMatchObject({ _tag: "ETIME" })
        })
    )
  }

  onBackend("is a completion like others, and the stream goes on", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(LATENCY_MS))
      const disk = yield* open(socketPath, late)
      const { bytes } = yield* disk.allocate(64 * KiB)
      const requests = Array.from(
        { length: 40 },
        (_, i) => ({ _tag: "read", offset: 0, buffer: bytes.subarray((i % 16) * 512, (i % 16 + 1) * 512) }) as const
      )
      const ends = yield* Stream.runCollect(disk.queue(0).process(Stream.fromIterable(requests)))
      expect(ends).toHaveLength(40)
      // What found a place in the ring was late; what used its memory again meanwhile was refused.
      expect(new Set(ends.map(({ error }) => error?._tag))).toStrictEqual(new Set(["ETIME", "EFAULT"]))
    }))

  onBackend("is ETIME by bytes, too, and what was written in between is not undone", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(LATENCY_MS))
      const disk = yield* open(socketPath, late)
      expect(yield* Effect.flip(disk.readBytes(0, 100))).toMatchObject({ _tag: "ETIME" })
      expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(512)))).toMatchObject({ _tag: "ETIME" })
      // Waits for the write that the device may still carry out.
      const second = yield* fork(Effect.exit(disk.writeBytes(0, new Uint8Array(512))))
      yield* Effect.sleep(LATENCY_MS / 6)
      expect(second.pollUnsafe()).toBe(undefined)
      expect(yield* Effect.flip(disk.writeBytes(4 * KiB, new Uint8Array(512)))).toMatchObject({ _tag: "ETIME" })
      yield* Fiber.join(second)
    }))

  onBackend("keeps its region until the device has let go", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(LATENCY_MS))
      const disk = yield* open(socketPath, late)
      const scope = yield* Scope.fork(yield* Effect.scope)
      const { bytes } = yield* Scope.provide(disk.allocate(4 * KiB), scope)
      expect(yield* Effect.flip(disk.queue(0).read(0, bytes))).toMatchObject({ _tag: "ETIME" })
      const closing = yield* fork(Scope.close(scope, Exit.void))
      yield* Effect.sleep(LATENCY_MS / 6)
      expect(closing.pollUnsafe()).toBe(undefined)
      yield* Fiber.join(closing)
      expect(bytes.length).toBe(0)
    }))

  onBackend("may take as long as it is allowed to", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(100))
      const disk = yield* open(socketPath, { requestTimeout: "20 seconds" })
      expect(yield* disk.readBytes(0, 512)).toHaveLength(512)
    }))
})
