/** Checks of queues: completions by hand, streams, and foreign event loops, in each of the ways a queue waits. */
import { Effect, Fiber, Option, Stream } from "effect"
import assert from "node:assert/strict"
import { readSync } from "node:fs"
import type { IoQueue } from "../../src/index.ts"
import { type Check, errnoOf, KiB, kinds, open, type Target, waits, work } from "./Target.ts"

const QUEUE_SIZE = 16

const openQueue = (target: Target, kind: (typeof kinds)[number], queueSize = QUEUE_SIZE) =>
  Effect.map(open(target, { queueSize, ...waits[kind] }), (disk) => ({
    disk,
    queue: kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
  }))

const byHand = (kind: (typeof kinds)[number]): Check => ({
  name: `completions taken by hand come each once though the ring overflows: ${kind}`,
  body: Effect.fnUntraced(function*(target) {
    const { disk, queue } = yield* openQueue(target, kind)
    const region = yield* disk.allocate(4 * KiB)
    const tagged = Array.from({ length: 2 * QUEUE_SIZE + 9 }, (_, id) =>
      id % 3 === 0
        ? { _tag: "flush" as const, id }
        : { _tag: "read" as const, offset: work.offset + 512 * (id % 8), buffer: region.bytes, id })
    for (let round = 0; round < 3; round++) {
      const submitting = yield* Effect.forkChild(queue.submit(tagged), { startImmediately: true })
      const seen = new Set<IoQueue.Request>()
      while (seen.size < tagged.length) {
        const completions = yield* queue.completions({ min: 1, max: 8 })
        assert.ok(completions.length <= 8)
        for (const { error, request } of completions) {
          assert.equal(error, undefined)
          assert.ok(!seen.has(request), "a completion came twice")
          seen.add(request)
        }
      }
      yield* Fiber.join(submitting)
    }
    assert.deepEqual(yield* queue.completions({ min: 0 }), [])
    assert.equal(yield* errnoOf(queue.completions({ min: 1 })), "EINVAL")
  })
})

const streams = (kind: (typeof kinds)[number]): Check => ({
  name: `streams and calls share a queue with many in flight: ${kind}`,
  isEssential: true,
  body: Effect.fnUntraced(function*(target) {
    const { disk, queue } = yield* openQueue(target, kind, 128)
    const region = yield* disk.allocate(64 * KiB)
    const stream = (owner: number, count: number) =>
      queue.process(Stream.fromIterable(
        Array.from({ length: count }, (_, id) =>
          ({
            _tag: "read",
            offset: work.offset + id * 512,
            buffer: region.bytes.subarray(id % 128 * 512, (id % 128 + 1) * 512),
            owner,
            id
          }) as const)
      )).pipe(
        Stream.runCollect,
        Effect.map((completions) => ({
          mine: completions.every(({ error, request }) => error === undefined && request.owner === owner),
          distinct: new Set(completions.map(({ request }) => request.id)).size
        }))
      )
    const results = yield* Effect.all([
      stream(1, 200),
      stream(2, 150),
      stream(3, 0),
      Effect.forEach(Array.from({ length: 100 }), () => queue.read(work.offset, region.bytes), {
        concurrency: "unbounded",
        discard: true
      }),
      // A stream that is left early takes nothing of the others with it.
      queue.process(Stream.forever(Stream.make({ _tag: "flush" } as const))).pipe(Stream.take(50), Stream.runCount)
    ], { concurrency: "unbounded" })
    assert.deepEqual(results, [
      { mine: true, distinct: 200 },
      { mine: true, distinct: 150 },
      { mine: true, distinct: 0 },
      undefined,
      50
    ])
  })
})

/** Requests that functions give, in a stream and in a loop at once, more than fit, the next when one has ended. */
const functions = (kind: (typeof kinds)[number]): Check => ({
  name: `functions give requests, and others share the queue: ${kind}`,
  body: Effect.fnUntraced(function*(target) {
    const { disk, queue } = yield* openQueue(target, kind)
    const region = yield* disk.allocate(4 * KiB)
    const cycle = (count: number) => {
      let [given, ended] = [0, 0]
      const next = (places: number): ReadonlyArray<IoQueue.Read> =>
        Array.from({ length: Math.min(places, count - given) }, () => ({
          _tag: "read",
          offset: work.offset + 512 * (given++ % 8),
          buffer: region.bytes
        }))
      const hear = (completions: ReadonlyArray<IoQueue.Completion<IoQueue.Read>>) => {
        assert.ok(completions.every(({ error }) => error === undefined))
        ended += completions.length
      }
      return { next: () => next(2 * QUEUE_SIZE - (given - ended)), hear, ended: () => ended }
    }
    const [inStream, inLoop] = [cycle(500), cycle(700)]
    yield* Effect.all([
      queue.processFrom(inStream.next).pipe(
        Stream.runForEachArray((completions) => Effect.sync(() => inStream.hear(completions)))
      ),
      queue.loop<IoQueue.Read>((completions) => {
        inLoop.hear(completions)
        return inLoop.next()
      }),
      Effect.repeat(queue.read(work.offset, region.bytes), { times: 50 })
    ], { concurrency: "unbounded" })
    assert.deepEqual([inStream.ended(), inLoop.ended()], [500, 700])
  })
})

const foreignLoop = Effect.fnUntraced(function*(target: Target) {
  const { disk, queue } = yield* openQueue(target, "event")
  const fd = Option.getOrThrow(queue.completionFd)
  const region = yield* disk.allocate(4 * KiB)
  const read = { _tag: "read", offset: work.offset, buffer: region.bytes } as const
  const counter = new Uint8Array(8)
  const drain = Effect.try({ try: () => readSync(fd, counter), catch: () => 0 }).pipe(Effect.ignore)
  yield* queue.setCompletionFdEnabled(true)
  let taken = 0
  for (let wanted = 1; wanted <= 16; wanted++) {
    yield* queue.submit([read])
    while (taken < wanted) {
      yield* drain
      taken += (yield* queue.completions({ min: 0 })).length
      yield* Effect.sleep(1)
    }
  }
  // Those who await an answer here are served all the same.
  yield* queue.read(work.offset, region.bytes)
  yield* queue.setCompletionFdEnabled(false)
  yield* queue.submit([read])
  assert.equal((yield* queue.completions()).length, 1)
})

export const checks: ReadonlyArray<Check> = [
  ...kinds.map(byHand),
  ...kinds.map(streams),
  ...kinds.map(functions),
  { name: "signals a foreign event loop, which misses nothing", body: foreignLoop }
]
