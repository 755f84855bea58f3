/**
 * Goal: a fake device is a disk where its plan says nothing, does what its plan says where it says something, and does the same
 * again for the same plan.
 *
 * Method: the whole driver over it, on the test clock, with every layout of ring. Each kind of fault is provoked by name, and the
 * driver's answer is what the kind promises.
 */
import { describe, expect, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Stream } from "effect"
import { TestClock } from "effect/testing"
import { VirtioBlk } from "../../src/index.ts"
import type { DeviceFault, RequestFault } from "../../src/testing/FakeDevice.ts"
import * as FakeTransport from "../../src/testing/FakeTransport.ts"
import type { Fault } from "../../src/testing/FaultPlan.ts"
import { leavesNothing } from "../support/resources.ts"

/** Lets the event loop turn until an effect ends, on the test clock. */
const soon = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  for (let turn = 0; turn < 2000 && fiber.pollUnsafe() === undefined; turn++) {
    yield* turnOfTheLoop
    yield* TestClock.adjust(1)
  }
  if (fiber.pollUnsafe() === undefined) throw new Error("it did not end")
  return yield* Fiber.join(fiber)
})

const turnOfTheLoop = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const tagOf = <A, E extends { readonly _tag: string }, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.match(effect, { onFailure: ({ _tag }) => _tag, onSuccess: () => "success" })

const layouts = [true, false].flatMap((packed) =>
  [true, false].flatMap((indirect) => [true, false].map((eventIdx) => ({ packed, indirect, eventIdx })))
)

const featuresOf = ({ eventIdx, indirect, packed }: (typeof layouts)[number]): ReadonlyArray<FakeTransport.Feature> => [
  ...FakeTransport.usualFeatures.filter((name) =>
    (indirect || name !== "INDIRECT_DESC") && (eventIdx || name !== "EVENT_IDX")
  ),
  ...packed ? ["RING_PACKED"] as const : []
]

/** Starts the driver, and reads as often as there are faults and once more. */
const outcomes = Effect.fnUntraced(function*(options: FakeTransport.Options, operation: "read" | "write", count = 2) {
  const fake = FakeTransport.make({ latency: 1, ...options })
  const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event", queueSize: 16, deviceTimeout: "1 second" })
  const { bytes } = yield* disk.allocate(65536)
  const tags: Array<string> = []
  for (let i = 0; i < count; i++) {
    tags.push(yield* soon(tagOf(disk.queue(0)[operation](8 * 512, bytes.subarray(0, 4096).fill(0x5a)))))
  }
  return { fake, disk, tags, bytes }
})

const one = (
  kind: DeviceFault,
  value = 0,
  at = 0
): { readonly plan: { readonly faults: ReadonlyArray<Fault<DeviceFault>> } } => ({
  plan: { faults: [{ kind, value, at }] }
})

describe("a device without faults", () => {
  it.effect.each(layouts)("is a disk: %o", (layout) =>
    leavesNothing(Effect.gen(function*() {
      const fake = FakeTransport.make({ features: featuresOf(layout), latency: 2 })
      const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event", queueSize: 16, numQueues: 2 })
      const pattern = Uint8Array.from({ length: 70_000 }, (_, i) => i * 7 + (i >> 9))
      yield* soon(disk.writeBytes(1000, pattern))
      yield* soon(disk.flush)
      yield* soon(disk.discard(4096, 4096))
      const found = yield* soon(disk.readBytes(1000, pattern.length))
      const wanted = pattern.slice()
      wanted.fill(0, 3096, 3096 + 4096)
      expect(Buffer.compare(found, wanted)).toBe(0)
      expect(Buffer.compare(fake.disk.bytes.subarray(1000, 1000 + pattern.length), wanted)).toBe(0)
      expect([fake.violations, fake.acted]).toStrictEqual([[], []])
    })))

  it.live("answers on the real clock, too", () =>
    leavesNothing(Effect.gen(function*() {
      const fake = FakeTransport.make()
      const disk = yield* VirtioBlk.make(fake.recipe)
      yield* disk.writeBytes(0, Uint8Array.of(1, 2, 3))
      expect(yield* disk.readBytes(0, 4)).toStrictEqual(Uint8Array.of(1, 2, 3, 0))
    })))
})

describe("a fault of a request", () => {
  const cases: ReadonlyArray<[kind: RequestFault, tags: ReadonlyArray<string>]> = [
    ["id out of range", ["EPROTO", "EPROTO"]],
    ["id not in flight", ["EPROTO", "EPROTO"]],
    // The one it belongs to has its answer, and the next finds the device broken.
    ["repeated id", ["EPROTO", "EPROTO"]],
    ["more used than available", ["EPROTO", "EPROTO"]],
    ["length too long", ["EPROTO", "EPROTO"]],
    ["no status", ["EPROTO", "success"]],
    ["garbage status", ["EPROTO", "success"]],
    ["I/O error", ["EIO", "success"]],
    ["unsupported", ["ENOTSUP", "success"]],
    ["torn", ["EIO", "success"]],
    ["misdirected", ["success", "success"]],
    ["lost", ["success", "success"]],
    ["reordered", ["success", "success"]],
    ["delayed", ["success", "success"]],
    ["unanswered", ["ETIMEDOUT", "ETIMEDOUT"]],
    ["silent", ["ETIMEDOUT", "ETIMEDOUT"]]
  ]
  for (const value of [0, 4_000_000_000]) {
    it.effect.each(layouts.flatMap((layout) => cases.map(([kind, tags]) => ({ kind, tags, ...layout }))))(
      `${value}: %o`,
      ({ kind, tags, ...layout }) =>
        leavesNothing(Effect.gen(function*() {
          const done = yield* outcomes({ features: featuresOf(layout), ...one(kind, value) }, "read")
          // A packed ring shows a repeated id only once there is a place for it.
          if (kind === "repeated id" && layout.packed) expect(["success", "EPROTO"]).toContain(done.tags[0])
          else expect(done.tags).toStrictEqual(tags)
          expect(done.fake.acted).toStrictEqual([{ kind, value, at: 0 }])
          expect(done.fake.violations).toStrictEqual([])
        }))
    )
  }

  it.effect("of a write leaves the disk as its kind says", () =>
    Effect.gen(function*() {
      const written = (bytes: Uint8Array) => bytes.reduce((sum, byte) => sum + (byte === 0x5a ? 1 : 0), 0)
      const torn = yield* outcomes(one("torn", 1000), "write", 1)
      expect([torn.tags, written(torn.fake.disk.bytes)]).toStrictEqual([["EIO"], 1000])
      const lost = yield* outcomes(one("lost"), "write", 1)
      expect([lost.tags, written(lost.fake.disk.bytes)]).toStrictEqual([["success"], 0])
      const astray = yield* outcomes(one("misdirected", 100), "write", 1)
      const { bytes } = astray.fake.disk
      expect([astray.tags, written(bytes), bytes[100 * 512]]).toStrictEqual([["success"], 4096, 0x5a])
    }))
})

describe("a fault of the device", () => {
  it.effect("refuses a connection", () =>
    Effect.gen(function*() {
      const fake = FakeTransport.make(one("refused"))
      expect(yield* tagOf(VirtioBlk.make(fake.recipe))).toBe("ECONNREFUSED")
      expect(yield* tagOf(VirtioBlk.make(fake.recipe))).toBe("success")
    }))

  it.effect("drops a notification, or a signal", () =>
    Effect.gen(function*() {
      for (const kind of ["dropped kick", "dropped signal"] as const) {
        const { fake, tags } = yield* outcomes(one(kind), "read", 1)
        expect([kind, tags, fake.acted.length]).toStrictEqual([kind, ["ETIMEDOUT"], 1])
      }
    }))

  it.effect.each(["needs reset", "connection lost", "crash"] as const)(
    "%s: the connection is lost",
    (kind) =>
      Effect.gen(function*() {
        const { fake, tags } = yield* outcomes(one(kind, 0, 1), "read", 3)
        expect(tags.slice(1)).toStrictEqual(["ENOTCONN", "ENOTCONN"].slice(0, 2))
        expect([fake.devices, fake.mapped.size]).toStrictEqual([[], 0])
      })
  )

  it.effect("tells of another capacity, and of a configuration that makes no sense", () =>
    Effect.gen(function*() {
      const { disk, fake } = yield* outcomes(one("resized", 3), "read", 1)
      const [change] = yield* soon(
        Stream.runCollect(Stream.take(disk.configChanges, 1)).pipe(
          Effect.tap(Effect.void),
          (wait) => Effect.andThen(Effect.sync(() => fake.resize(2 ** 21)), wait)
        )
      )
      expect([change?.capacity, disk.capacity]).toStrictEqual([2 ** 21, 2 ** 21])
      const broken = yield* outcomes(one("garbage configuration", 1), "read", 3)
      expect(["EPROTO", "ENODEV"]).toContain(broken.tags.at(-1))
    }))
})

describe("a connection", () => {
  it.effect("is lost and made again, with the same disk", () =>
    leavesNothing(Effect.gen(function*() {
      const fake = FakeTransport.make({ latency: 1 })
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event" })
        yield* soon(disk.writeBytes(0, Uint8Array.of(1, 2, 3)))
        fake.lose()
        expect(yield* soon(tagOf(disk.readBytes(0, 3)))).toBe("ENOTCONN")
      }))
      const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event" })
      expect(yield* soon(disk.readBytes(0, 3))).toStrictEqual(Uint8Array.of(1, 2, 3))
      expect(fake.connections).toBe(2)
    })))

  it.effect("takes known channels and addresses over", () =>
    Effect.gen(function*() {
      const fake = FakeTransport.make()
      const first = yield* fake.recipe.connect
      const rings = [{ queueSize: 4, descriptors: 0, avail: 64, used: 128 }]
      const channels = yield* first.start(rings)
      fake.lose()
      expect((yield* Deferred.await(first.lost))._tag).toBe("ENOTCONN")
      expect((yield* Effect.flip(first.readConfig))._tag).toBe("ENOTCONN")
      // What a transport's connection will take once connections are made again.
      const second: {
        readonly start: (
          queues: typeof rings,
          channels: Effect.Success<ReturnType<typeof first.start>>
        ) => ReturnType<typeof first.start>
      } = yield* fake.recipe.connect
      expect(yield* second.start(rings, channels)).toStrictEqual(channels)
    }).pipe(Effect.scoped))

  it.effect("forgets writes that were not flushed when it crashes, some of them", () =>
    Effect.gen(function*() {
      const kept = new Set<number>()
      for (let seed = 0; seed < 40; seed++) {
        const fake = FakeTransport.make({ latency: 1, plan: { seed, rates: {} } })
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event" })
          const { bytes } = yield* disk.allocate(4096)
          yield* soon(disk.queue(0).write(0, bytes.subarray(0, 512).fill(1)))
          yield* soon(disk.queue(0).flush())
          yield* soon(disk.queue(0).write(512, bytes.subarray(0, 512).fill(2)))
          fake.crash()
        }))
        expect(fake.disk.bytes[0]).toBe(1)
        kept.add(fake.disk.bytes[512]!)
      }
      expect([...kept].toSorted((a, b) => a - b)).toStrictEqual([0, 2])
    }))
})

describe("a plan", () => {
  const rates = {
    "reordered": 0.2,
    "delayed": 0.2,
    "I/O error": 0.1,
    "torn": 0.05,
    "no status": 0.05,
    "configuration changes": 0.1
  }

  const run = Effect.fnUntraced(function*(plan: FakeTransport.Options["plan"] & {}) {
    const fake = FakeTransport.make({ latency: 1, plan, order: { seed: 3 } })
    const disk = yield* VirtioBlk.make(fake.recipe, { waiting: "event", queueSize: 16 })
    const { bytes } = yield* disk.allocate(65536)
    const order: Array<string> = []
    yield* soon(Effect.forEach(
      Array.from({ length: 60 }, (_, i) => i),
      (i) =>
        Effect.map(
          tagOf(disk.queue(0).write(i * 512, bytes.subarray(i * 512, i * 512 + 512).fill(i))),
          (tag) => order.push(`${i} ${tag}`)
        ),
      { concurrency: 12, discard: true }
    ))
    return { order, acted: fake.acted, disk: Buffer.from(fake.disk.bytes).toString("base64") }
  })

  it.effect("does the same again, from its seed and from what was acted out", () =>
    Effect.gen(function*() {
      const plan = { seed: 11, rates }
      const first = yield* run(plan)
      expect(new Set(first.acted.map(({ kind }) => kind)).size).toBe(Object.keys(rates).length)
      expect(yield* run(plan)).toStrictEqual(first)
      expect(yield* run(JSON.parse(JSON.stringify({ faults: first.acted })))).toStrictEqual(first)
      expect((yield* run({ ...plan, seed: 12 })).acted).not.toStrictEqual(first.acted)
    }))
})
