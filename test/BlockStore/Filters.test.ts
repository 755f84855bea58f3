/**
 * Goal: each filter does what it says, no more and no less: waits to the millisecond, fails by plan and the same way again,
 * tells the log, the metrics and the tracer what happened.
 * Method: filters over memory under the TestClock; a logger, a tracer and a registry of the test's own. That filters keep
 * bytes as any store does is in Conformance.test.ts.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Clock, Effect, Exit, Fiber, Logger, Metric, pipe, References, Schema, Tracer } from "effect"
import { TestClock } from "effect/testing"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import { between } from "../Wire/arbitraries.ts"

const CAPACITY = 1 << 20
const memory = BlockStore.memory({ capacity: CAPACITY })
const block = new Uint8Array(512)
const bytes = (length: number) => [new Uint8Array(length)]

/** Starts an operation now, and answers the time at which it ended, in milliseconds. */
const timed = (effect: Effect.Effect<void, BlockStore.StoreError>) =>
  Effect.forkChild(Effect.andThen(effect, Clock.currentTimeMillis), { startImmediately: true })

const untilAll = (fibers: ReadonlyArray<Fiber.Fiber<number, BlockStore.StoreError>>) =>
  Effect.andThen(TestClock.adjust("1 hour"), Effect.forEach(fibers, Fiber.join))

const at = (millis: number) => TestClock.setTime(millis)

describe("delay", () => {
  it.effect("waits the same for everything, side by side", () =>
    Effect.gen(function*() {
      const store = pipe(yield* memory, BlockStore.delay("5 millis"))
      expect(store.id).toBe("delay(memory)")
      const fibers = yield* Effect.forEach(
        [
          store.read(0, [block]),
          store.write(0, [block]),
          store.writeZeroes(0, 512),
          store.discard(0, 512),
          store.flush
        ],
        timed
      )
      yield* TestClock.adjust("4 millis")
      expect(fibers.map((fiber) => fiber.pollUnsafe())).toStrictEqual(Array(5).fill(undefined))
      expect(yield* untilAll(fibers)).toStrictEqual([5, 5, 5, 5, 5])
    }))

  it.effect("waits by kind, and not at all for what is left out or wrong", () =>
    Effect.gen(function*() {
      const store = BlockStore.delay(yield* memory, { read: "1 millis", write: { seconds: 1 } })
      const fibers = yield* Effect.forEach(
        [
          store.read(0, [block]),
          store.write(0, [block]),
          store.writeZeroes(0, 512),
          store.discard(0, 512),
          store.flush
        ],
        timed
      )
      expect(yield* untilAll(fibers)).toStrictEqual([1, 1000, 1000, 1000, 0])
      expect((yield* Effect.flip(store.read(1, [block])))._tag).toBe("EINVAL")
      // A duration may be an object, too.
      const flush = yield* timed(BlockStore.delay(store, { seconds: 3 }).flush)
      const start = yield* Clock.currentTimeMillis
      expect((yield* untilAll([flush])).map((time) => time - start)).toStrictEqual([3000])
    }))

  it.effect("lets go at once when interrupted", () =>
    Effect.gen(function*() {
      const inner = yield* memory
      const store = BlockStore.delay(inner, "1 hour")
      const fiber = yield* timed(store.write(0, [block]))
      yield* Fiber.interrupt(fiber)
      expect(inner.allocatedBytes).toBe(0)
    }))
})

describe("rateLimit", () => {
  it.effect("lets bytes through as they come in, in order", () =>
    Effect.gen(function*() {
      // 1,024 bytes a millisecond, nothing saved up.
      const store = yield* BlockStore.rateLimit(yield* memory, { bytesPerSecond: 1_024_000, burst: 0 })
      const fibers = yield* Effect.forEach(
        [
          store.read(0, bytes(1024)),
          store.write(0, bytes(2048)),
          store.flush,
          store.discard(0, 4096),
          store.read(0, bytes(512))
        ],
        timed
      )
      // The last one's half millisecond is waited to its end.
      expect(yield* untilAll(fibers)).toStrictEqual([1, 3, 0, 0, 4])
    }))

  it.effect("lets a burst through at once, and then no more than the rate", () =>
    Effect.gen(function*() {
      const store = yield* pipe(yield* memory, BlockStore.rateLimit({ requestsPerSecond: 100, burst: "50 millis" }))
      const fibers = yield* Effect.forEach(Array.from({ length: 8 }, () => store.flush), timed)
      expect(yield* untilAll(fibers)).toStrictEqual([0, 0, 0, 0, 0, 10, 20, 30])
      // An idle store saves up its burst, and no more.
      const start = yield* Clock.currentTimeMillis
      const again = yield* Effect.forEach(Array.from({ length: 7 }, () => store.read(0, [block])), timed)
      expect((yield* untilAll(again)).map((time) => time - start)).toStrictEqual([0, 0, 0, 0, 0, 10, 20])
    }))

  it.effect("waits for the slower of two limits", () =>
    Effect.gen(function*() {
      const rates = { bytesPerSecond: 512_000, requestsPerSecond: 100, burst: 0 }
      const store = yield* BlockStore.rateLimit(yield* memory, rates)
      const fibers = yield* Effect.forEach([store.read(0, bytes(512)), store.read(0, bytes(51_200))], timed)
      expect(yield* untilAll(fibers)).toStrictEqual([10, 101])
    }))

  it.effect("takes a request larger than its burst, and charges all of it", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.rateLimit(yield* memory, { bytesPerSecond: 512_000, burst: "10 millis" })
      const fibers = yield* Effect.forEach([store.read(0, bytes(512 * 100)), store.read(0, bytes(512))], timed)
      expect(yield* untilAll(fibers)).toStrictEqual([90, 91])
    }))

  it.effect("gives an interrupted request its charge back, and charges none for a wrong one", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.rateLimit(yield* memory, { requestsPerSecond: 10, burst: 0 })
      const first = yield* timed(store.flush)
      const second = yield* timed(store.flush)
      yield* Fiber.interrupt(second)
      expect((yield* Effect.flip(store.read(1, [block])))._tag).toBe("EINVAL")
      const third = yield* timed(store.flush)
      expect(yield* untilAll([first, third])).toStrictEqual([100, 200])
    }))

  const request = Schema.Struct({ wait: between(0, 40), blocks: between(1, 64) })
  it.effect.prop(
    "lets through exactly what a token bucket does",
    {
      requests: Arbitrary.array(Arbitrary.schema(request), { maxLength: 20 }),
      burst: Arbitrary.schema(between(0, 50))
    },
    ({ burst, requests }) =>
      Effect.gen(function*() {
        // A block a millisecond: tokens are whole, and so are the times.
        const store = yield* BlockStore.rateLimit(yield* memory, { bytesPerSecond: 512_000, burst })
        const start = yield* Clock.currentTimeMillis
        let [now, tokens, filledAt] = [0, burst, 0]
        const expected: Array<number> = []
        const fibers: Array<Fiber.Fiber<number, BlockStore.StoreError>> = []
        for (const { blocks, wait } of requests) {
          now += wait
          yield* at(start + now)
          tokens = Math.min(burst, tokens + now - filledAt) - blocks
          filledAt = now
          expected.push(now + Math.max(0, -tokens))
          fibers.push(yield* timed(store.read(0, bytes(blocks * 512))))
        }
        expect((yield* untilAll(fibers)).map((time) => time - start)).toStrictEqual(expected)
      })
  )

  it.effect.each(
    [
      [{ bytesPerSecond: 0 }, "rateLimit: bytesPerSecond 0 must be a positive number"],
      [{ requestsPerSecond: -1 }, "rateLimit: requestsPerSecond -1 must be a positive number"],
      [{ requestsPerSecond: NaN }, "rateLimit: requestsPerSecond NaN must be a positive number"],
      [{ bytesPerSecond: Infinity }, "rateLimit: bytesPerSecond Infinity must be a positive number"]
    ] as const
  )("refuses %j", ([rates, message]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.flatMap(memory, BlockStore.rateLimit(rates)))
      expect([error._tag, error.message]).toStrictEqual(["EINVAL", message])
    }))
})

describe("failing", () => {
  const outcomes = (store: BlockStore.BlockStore, count: number) =>
    Effect.forEach(
      Array.from({ length: count }, (_, i) => i),
      (i) =>
        Effect.match(i % 2 === 0 ? store.read(0, [block]) : store.write(512 * i, [block]), {
          onFailure: (error) => error._tag,
          onSuccess: () => "ok"
        })
    )

  it.effect("follows its rules: kind, range, times, and the first that fits", () =>
    Effect.gen(function*() {
      const store = yield* pipe(
        yield* memory,
        BlockStore.failing([
          { operation: "write", range: { offset: 4096, length: 1024 }, errno: "ENOSPC", times: 2 },
          { operation: "flush", errno: "ENOTCONN" },
          { range: { offset: 4608, length: 512 }, errno: "EIO" }
        ])
      )
      const tag = (effect: Effect.Effect<void, BlockStore.StoreError>) =>
        Effect.match(effect, { onFailure: (error) => error.message, onSuccess: () => "ok" })
      expect(yield* tag(store.write(0, bytes(4096)))).toBe("ok")
      expect(yield* tag(store.write(0, bytes(4608)))).toBe("write at 0 of 4608 bytes: a fault on purpose, by rule 0")
      expect(yield* tag(store.read(4096, bytes(512)))).toBe("ok")
      expect(yield* tag(store.write(4608, bytes(512)))).toBe(
        "write at 4608 of 512 bytes: a fault on purpose, by rule 0"
      )
      expect(yield* tag(store.write(4608, bytes(512)))).toBe(
        "write at 4608 of 512 bytes: a fault on purpose, by rule 2"
      )
      expect(yield* tag(store.discard(4608, 512))).toBe("discard at 4608 of 512 bytes: a fault on purpose, by rule 2")
      expect(yield* tag(store.write(5120, bytes(512)))).toBe("ok")
      expect(yield* tag(store.flush)).toBe("flush: a fault on purpose, by rule 1")
    }))

  it.effect("can give every errno of a store, and its number", () =>
    Effect.gen(function*() {
      for (const errno of BlockStore.storeErrors) {
        const store = yield* BlockStore.failing(yield* memory, [{ errno }])
        const error = yield* Effect.flip(store.writeZeroes(0, 512))
        expect(error).toMatchObject({ _tag: errno, operation: "writeZeroes", offset: 0, length: 512 })
        expect(error.errno).toBeGreaterThan(0)
      }
    }))

  it.effect("asks a function, and never reaches the store", () =>
    Effect.gen(function*() {
      const inner = yield* memory
      const store = yield* BlockStore.failing(
        inner,
        ({ length, name }) => name === "write" && length > 512 ? "EIO" : undefined
      )
      expect((yield* Effect.flip(store.write(0, bytes(1024)))).message).toMatch(/by a function$/)
      expect(inner.allocatedBytes).toBe(0)
      yield* store.write(0, [block])
      expect(inner.allocatedBytes).toBeGreaterThan(0)
    }))

  it.effect.prop(
    "fails the same way from the same seed",
    { seed: between(-(2 ** 40), 2 ** 40) },
    ({ seed }) =>
      Effect.gen(function*() {
        const plan = { seed, rate: 0.3, errnos: ["EIO", "ENOTCONN"] } as const
        const run = Effect.flatMap(Effect.flatMap(memory, BlockStore.failing(plan)), (store) => outcomes(store, 60))
        expect(yield* run).toStrictEqual(yield* run)
      })
  )

  it.effect("fails at the rate asked for, with each errno alike, differently from another seed", () =>
    Effect.gen(function*() {
      const run = (seed: number, rate: number) =>
        Effect.flatMap(
          Effect.flatMap(memory, BlockStore.failing({ seed, rate, errnos: ["EIO", "ENOTCONN"] })),
          (store) => outcomes(store, 2000)
        )
      const found = yield* run(1, 0.25)
      const those = (tag: string) => found.filter((outcome) => outcome === tag).length
      // Four standard deviations: 78 of 2,000 at 0.25, 66 at 0.125.
      expect(Math.abs(those("ok") - 1500)).toBeLessThan(78)
      expect(Math.abs(those("EIO") - 250)).toBeLessThan(66)
      expect(found).not.toStrictEqual(yield* run(2, 0.25))
      expect(new Set(yield* run(1, 0))).toStrictEqual(new Set(["ok"]))
      expect(new Set(yield* run(1, 1))).toStrictEqual(new Set(["EIO", "ENOTCONN"]))
    }))

  it.effect.each(
    [
      [{ seed: 0.5, rate: 0, errnos: ["EIO"] }, "failing: seed 0.5 must be a whole number"],
      [{ seed: 1, rate: 1.5, errnos: ["EIO"] }, "failing: rate 1.5 must be from 0 to 1"],
      [{ seed: 1, rate: NaN, errnos: ["EIO"] }, "failing: rate NaN must be from 0 to 1"],
      [{ seed: 1, rate: 0, errnos: [] }, "failing: errnos must name one at least"],
      [[{ errno: "EIO", times: -1 }], "failing: times -1 must be a whole number from 0 up"],
      [JSON.parse(`[{ "errno": "toString" }]`), "failing: errno toString is none that a store has"]
    ] as ReadonlyArray<readonly [BlockStore.FaultPlan, string]>
  )("refuses %j", ([plan, message]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.flatMap(memory, BlockStore.failing(plan)))
      expect([error._tag, error.message]).toStrictEqual(["EINVAL", message])
    }))
})

/** Over memory that waits 2 ms to read, and has one fault. */
const observed = Effect.map(
  Effect.flatMap(memory, BlockStore.failing([{ operation: "write", errno: "EIO", times: 1 }])),
  BlockStore.delay({ read: "2 millis" })
)

const exercise = (store: BlockStore.BlockStore) =>
  Effect.gen(function*() {
    const reads = yield* Effect.forEach([512, 1024], (length) => timed(store.read(0, bytes(length))))
    yield* untilAll(reads)
    yield* Effect.exit(store.write(0, [block]))
    yield* store.write(0, [block])
    yield* Effect.exit(store.discard(1, 512))
    yield* store.flush
    const late = yield* timed(store.read(512, [block]))
    yield* Fiber.interrupt(late)
  })

it.effect("logged tells each operation, how long it took and how it ended", () =>
  Effect.gen(function*() {
    const lines: Array<unknown> = []
    const logger = Logger.make((options) => {
      lines.push([
        options.logLevel,
        String(options.message),
        options.fiber.getRef(References.CurrentLogAnnotations)
      ])
    })
    const inner = yield* observed
    yield* exercise(BlockStore.logged(inner)).pipe(
      Effect.provide(Logger.layer([logger])),
      Effect.provideService(References.MinimumLogLevel, "Debug")
    )
    const line = (message: string, offset: number, length: number, durationMs: number, outcome: string) => [
      "Debug",
      message,
      { store: "delay(failing(memory))", offset, length, durationMs, outcome }
    ]
    expect(lines).toStrictEqual([
      line("read", 0, 512, 2, "ok"),
      line("read", 0, 1024, 2, "ok"),
      line("write", 0, 512, 0, "EIO"),
      line("write", 0, 512, 0, "ok"),
      line("discard", 1, 512, 0, "EINVAL"),
      line("flush", 0, 0, 0, "ok"),
      line("read", 512, 512, 0, "interrupted")
    ])
  }))

it.effect("metered counts requests, bytes and errors, and measures latency, by operation", () =>
  Effect.gen(function*() {
    const options = { name: "scratch", attributes: { queue: "3" } }
    yield* exercise(BlockStore.metered(yield* observed, options))
    const found = new Map((yield* Metric.snapshot).flatMap(({ attributes, id, state }) => {
      if (attributes?.["store"] !== "scratch") return []
      const { errno, operation, queue } = attributes
      expect(queue).toBe("3")
      const value = "buckets" in state
        ? [state.count, state.min, state.max]
        : "count" in state
        ? state.count
        : undefined
      return [[[id, operation, errno].filter((part) => part !== undefined).join(" "), value] as const]
    }))
    expect(Object.fromEntries(found)).toStrictEqual({
      "blkio_store_requests read": 3,
      "blkio_store_requests write": 2,
      "blkio_store_requests discard": 1,
      "blkio_store_requests flush": 1,
      "blkio_store_bytes read": 1536,
      "blkio_store_bytes write": 512,
      "blkio_store_bytes flush": 0,
      "blkio_store_errors write EIO": 1,
      "blkio_store_errors discard EINVAL": 1,
      "blkio_store_latency_us read": [3, 0, 2000],
      "blkio_store_latency_us write": [2, 0, 0],
      "blkio_store_latency_us discard": [1, 0, 0],
      "blkio_store_latency_us flush": [1, 0, 0]
    })
    // Either way of calling, with options or without.
    const store = yield* memory
    expect([BlockStore.metered(store), BlockStore.metered()(store), BlockStore.metered({ name: "x" })(store)].map(
      ({ id }) => id
    )).toStrictEqual(Array(3).fill("metered(memory)"))
  }))

it.effect("traced makes spans of a share of the operations, evenly", () =>
  Effect.gen(function*() {
    for (const [sample, expected] of [[0, 0], [0.01, 10], [0.25, 250], [1 / 3, 333], [1, 1000]] as const) {
      const spans: Array<Tracer.Span> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const store = yield* BlockStore.traced(yield* memory, { sample })
      yield* Effect.forEach(Array.from({ length: 1000 }), () => store.read(4096, [block]), { discard: true }).pipe(
        Effect.withTracer(tracer)
      )
      expect(spans).toHaveLength(expected)
      if (sample < 1) continue
      expect(spans[0]?.name).toBe("BlockStore.read")
      expect(Object.fromEntries(spans[0]?.attributes ?? [])).toMatchObject({
        store: "memory",
        offset: 4096,
        length: 512
      })
    }
    for (const sample of [-0.1, 1.1, NaN]) {
      const error = yield* Effect.flip(Effect.flatMap(memory, BlockStore.traced({ sample })))
      expect([error._tag, error.message]).toStrictEqual(["EINVAL", `traced: sample ${sample} must be from 0 to 1`])
    }
  }))

it.effect("around is enough for a filter of one's own", () =>
  Effect.gen(function*() {
    const seen: Array<BlockStore.Operation> = []
    const store = pipe(
      yield* memory,
      BlockStore.around({
        name: "seen",
        run: (operation, effect) => Effect.andThen(Effect.sync(() => seen.push(operation)), effect)
      })
    )
    yield* store.write(512, [block, block], { fua: true })
    yield* store.flush
    yield* store.flush
    expect(Exit.isFailure(yield* Effect.exit(store.read(1, [block])))).toBe(true)
    expect(seen).toStrictEqual([
      { name: "write", offset: 512, length: 1024 },
      { name: "flush", offset: 0, length: 0 },
      { name: "flush", offset: 0, length: 0 },
      { name: "read", offset: 1, length: 512 }
    ])
  }))
