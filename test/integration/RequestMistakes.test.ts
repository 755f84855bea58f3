/**
 * Goal: a request that is wrong in itself answers with its errno, harms nobody, and the next one works.
 * Method: each mistake on a device of each backend, through each of the three surfaces of a queue, with a good request behind it.
 */
import { expect } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import { IoQueue } from "../../src/index.ts"
import type { Backend, Facts } from "../support/Backend.ts"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"

const CAPACITY = 64 * MiB
const QUEUE_SIZE = 16
const { FUA, NO_FALLBACK, NO_UNMAP } = IoQueue.RequestFlag

/** Each mistake by name: the request, and the errno it must answer. */
const mistakes = (
  buffer: Uint8Array,
  unmapped: Uint8Array,
  { maxDiscardLength, maxSegments, maxWriteZeroesLength }: Facts
): ReadonlyArray<readonly [string, IoQueue.Request, "EINVAL" | "EFAULT" | "ENOTSUP"]> => {
  const segments = (count: number) => Array.from({ length: count }, (_, i) => buffer.subarray(i * 512, (i + 1) * 512))
  return [
    [
      "more segments than max-segments (readv)",
      { _tag: "readv", offset: 0, buffers: segments(maxSegments + 1) },
      "EINVAL"
    ],
    [
      "more segments than max-segments (writev)",
      { _tag: "writev", offset: 0, buffers: segments(maxSegments + 1) },
      "EINVAL"
    ],
    ["a buffer of the heap (read)", { _tag: "read", offset: 0, buffer: new Uint8Array(512) }, "EFAULT"],
    ["a buffer of the heap (write)", { _tag: "write", offset: 0, buffer: Buffer.alloc(512) }, "EFAULT"],
    ["a region that is not mapped", { _tag: "write", offset: 0, buffer: unmapped }, "EFAULT"],
    [
      "one buffer of the heap among mapped ones",
      { _tag: "readv", offset: 0, buffers: [buffer.subarray(0, 512), new Uint8Array(512)] },
      "EFAULT"
    ],
    ["no bytes (read)", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 0) }, "EINVAL"],
    ["no bytes (write)", { _tag: "write", offset: 0, buffer: buffer.subarray(0, 0) }, "EINVAL"],
    ["no buffers", { _tag: "readv", offset: 0, buffers: [] }, "EINVAL"],
    ["only empty buffers", { _tag: "writev", offset: 0, buffers: [buffer.subarray(0, 0)] }, "EINVAL"],
    ["no bytes (discard)", { _tag: "discard", offset: 0, length: 0 }, "EINVAL"],
    ["no bytes (write zeroes)", { _tag: "writeZeroes", offset: 0, length: 0 }, "EINVAL"],
    ["an offset inside a block (read)", { _tag: "read", offset: 100, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["an offset inside a block (write)", { _tag: "write", offset: 511, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["an offset inside a block (discard)", { _tag: "discard", offset: 1, length: 512 }, "EINVAL"],
    ["a length inside a block (read)", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 100) }, "EINVAL"],
    ["a length inside a block (writev)", { _tag: "writev", offset: 0, buffers: [buffer.subarray(0, 513)] }, "EINVAL"],
    ["a length inside a block (write zeroes)", { _tag: "writeZeroes", offset: 0, length: 100 }, "EINVAL"],
    ["a negative offset", { _tag: "read", offset: -512, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["a negative length", { _tag: "discard", offset: 512, length: -512 }, "EINVAL"],
    ["an offset that is no number", { _tag: "read", offset: NaN, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["an infinite offset", { _tag: "read", offset: Infinity, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["a length that is no number", { _tag: "discard", offset: 0, length: NaN }, "EINVAL"],
    ["an infinite length", { _tag: "writeZeroes", offset: 0, length: Infinity }, "EINVAL"],
    ["an end past 2^64", { _tag: "discard", offset: 512, length: 2 ** 64 - 512 }, "EINVAL"],
    ["an end past 2^53", { _tag: "writeZeroes", offset: 2 ** 53 - 512, length: 512 }, "EINVAL"],
    ["an offset past 2^63", { _tag: "read", offset: 2 ** 63, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["more than 2^32 sectors", { _tag: "discard", offset: 0, length: 2 ** 41 + 512 }, "EINVAL"],
    ["more than max-discard-len", { _tag: "discard", offset: 0, length: maxDiscardLength + 512 }, "EINVAL"],
    [
      "more than max-write-zeroes-len",
      { _tag: "writeZeroes", offset: 0, length: maxWriteZeroesLength + 512 },
      "EINVAL"
    ],
    ["a start at the capacity", { _tag: "read", offset: CAPACITY, buffer: buffer.subarray(0, 512) }, "EINVAL"],
    ["an end past the capacity", { _tag: "write", offset: CAPACITY - 512, buffer: buffer.subarray(0, KiB) }, "EINVAL"],
    ["an end past the capacity (discard)", { _tag: "discard", offset: CAPACITY - 512, length: KiB }, "EINVAL"],
    ["FUA on a read", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512), flags: FUA }, "EINVAL"],
    ["NO_UNMAP on a write", { _tag: "write", offset: 0, buffer: buffer.subarray(0, 512), flags: NO_UNMAP }, "EINVAL"],
    ["FUA on a discard", { _tag: "discard", offset: 0, length: 512, flags: FUA }, "EINVAL"],
    ["NO_FALLBACK on a flush", { _tag: "flush", flags: NO_FALLBACK }, "EINVAL"],
    ["unknown flags", { _tag: "writeZeroes", offset: 0, length: 512, flags: 8 }, "EINVAL"],
    ["all flags", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512), flags: -1 }, "EINVAL"],
    ["flags that are no whole number", { _tag: "flush", flags: 0.5 }, "EINVAL"]
  ]
}

const ask = (queue: IoQueue.IoQueue, request: IoQueue.Request) => {
  const { flags } = request
  switch (request._tag) {
    case "read":
    case "write":
      return queue[request._tag](request.offset, request.buffer, flags)
    case "readv":
    case "writev":
      return queue[request._tag](request.offset, request.buffers, flags)
    case "discard":
    case "writeZeroes":
      return queue[request._tag](request.offset, request.length, flags)
    case "flush":
      return queue.flush(flags)
  }
}

const prepare = Effect.fnUntraced(function*(backend: Backend) {
  const { facts, socketPath } = yield* serveRaw(backend, CAPACITY)
  const disk = yield* open(socketPath, { queueSize: QUEUE_SIZE })
  const region = yield* disk.allocate(MiB)
  const other = yield* disk.allocate(4 * KiB)
  yield* disk.unmap(other)
  return { disk, queue: disk.queue(0), buffer: region.bytes, wrong: mistakes(region.bytes, other.bytes, facts) }
})

forEachBackend("requests that are wrong", (backend) => {
  onBackend("answer with their errno, and the next one works: request and answer", () =>
    Effect.gen(function*() {
      const { buffer, queue, wrong } = yield* prepare(backend)
      for (const [name, request, errno] of wrong) {
        const error = yield* Effect.flip(ask(queue, request))
        expect([name, error._tag]).toStrictEqual([name, errno])
        expect([name, error.operation]).toStrictEqual([name, request._tag])
        expect(error.message).toContain(request._tag)
        expect(error.detail.length).toBeGreaterThan(10)
        yield* queue.read(0, buffer.subarray(0, 512))
        yield* queue.flush()
      }
    }))

  onBackend("become completions of their own in a stream, and do not hold up the others", () =>
    Effect.gen(function*() {
      const { buffer, queue, wrong } = yield* prepare(backend)
      const good = { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512) } as const
      const requests = wrong.flatMap(([, request]) => [good, request, { _tag: "flush" } as const])
      const completions = yield* queue.process(Stream.fromIterable(requests)).pipe(Stream.runCollect)
      expect(completions.length).toBe(requests.length)
      const errnoOf = new Map(wrong.map(([, request, errno]) => [request, errno]))
      for (const { error, request } of completions) expect(error?._tag).toBe(errnoOf.get(request))
    }))

  onBackend("are counted among the completions that were asked for, by hand", () =>
    Effect.gen(function*() {
      const { buffer, queue, wrong } = yield* prepare(backend)
      const good = { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512) } as const
      const bad = wrong.map(([, request]) => request)
      // More than the ring holds, a wrong one last, and all of them wanted.
      for (const request of bad) {
        const requests = [...Array.from({ length: 2 * QUEUE_SIZE }, () => good), request]
        const submitting = yield* Effect.forkChild(queue.submit(requests), { startImmediately: true })
        const completions: Array<IoQueue.Completion<IoQueue.Request>> = []
        while (completions.length < requests.length) {
          completions.push(
            ...(yield* queue.completions({ min: Math.min(QUEUE_SIZE, requests.length - completions.length) }))
          )
        }
        yield* Fiber.join(submitting)
        expect(completions.filter(({ error }) => error !== undefined).map(({ request }) => request)).toStrictEqual([
          request
        ])
      }
      expect(yield* Effect.flip(queue.completions({ min: 1 }))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* queue.completions({ min: 0 })).toStrictEqual([])
    }))

  onBackend("on a started device leave it in working order for the other queues", () =>
    Effect.gen(function*() {
      const { disk } = yield* prepare(backend)
      const region = yield* disk.allocate(4 * KiB)
      expect(yield* Effect.flip(disk.queue(1).read(0, region.bytes))).toMatchObject({ _tag: "ENODEV" })
      expect(yield* Effect.flip(disk.queue(-1).flush())).toMatchObject({ _tag: "ENODEV" })
      expect(yield* Effect.flip(disk.pollQueue(0).flush())).toMatchObject({ _tag: "ENODEV" })
      yield* disk.queue(0).read(0, region.bytes)
    }))
})

forEachBackend("a read-only export", (backend) => {
  onBackend("starts only where that is wanted, and refuses to be written", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { readOnly: true, numQueues: 2 })
      const error = yield* Effect.flip(Effect.scoped(open(socketPath)))
      expect(error).toMatchObject({ _tag: "EROFS", errno: 30 })
      // What is wrong with the queues comes first.
      expect(yield* Effect.flip(Effect.scoped(open(socketPath, { numQueues: 3 })))).toMatchObject({
        _tag: "EINVAL"
      })

      const disk = yield* open(socketPath, { readOnly: true })
      expect(yield* disk.properties.get("device-read-only")).toBe(true)
      const region = yield* disk.allocate(4 * KiB)
      region.bytes.fill(1)
      const queue = disk.queue(0)
      const refused = [
        queue.write(0, region.bytes),
        queue.writev(0, [region.bytes]),
        queue.writeZeroes(0, 4 * KiB),
        queue.discard(0, 4 * KiB)
      ]
      for (const request of refused) {
        expect(yield* Effect.flip(request as Effect.Effect<void, unknown>)).toMatchObject({ _tag: "EBADF", errno: 9 })
        yield* queue.read(0, region.bytes)
        yield* queue.flush()
      }
      expect(region.bytes.every((byte) => byte === 0)).toBe(true)
      // An unaligned start is noticed before.
      expect(yield* Effect.flip(queue.write(100, region.bytes))).toMatchObject({ _tag: "EINVAL" })
    }))

  onBackend("refuses to be written where only the user wants it so", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath, { readOnly: true })
      expect(yield* disk.properties.get("device-read-only")).toBe(false)
      const region = yield* disk.allocate(4 * KiB)
      expect(yield* Effect.flip(disk.queue(0).write(0, region.bytes))).toMatchObject({ _tag: "EBADF" })
      yield* disk.queue(0).read(0, region.bytes)
    }))
})
