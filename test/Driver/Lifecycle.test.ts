/**
 * Goal: a device goes from created to connected to started, and to its end, in the one order that is safe; whatever goes wrong
 * on the way is a typed error, and leaves the phase, the memory and the descriptors as they were.
 *
 * Method: the driver over a connection that is a plain object (FakeTransport), which notes the order of calls and fails where
 * it is told to. Time is the test's own wherever the driver waits.
 */
import { describe, expect, it } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import * as Errno from "../../src/Errno.ts"
import { FeatureBit, featureMask, hasFeature } from "../../src/Wire/VirtioBlk.ts"
import { BlockDevice, IoQueue, MemoryRegion, Properties, Transport, VirtioBlk } from "../../src/index.ts"
import { type FakeTransport, usualFeatures } from "../../src/testing/FakeTransport.ts"
import { count, leavesNothing } from "../support/resources.ts"
import { fakeConnection } from "./fakeConnection.ts"

const fields = { operation: "fake", detail: "as the test asked" }

const connect = (fake: FakeTransport) => VirtioBlk.create(fake.recipe).connect

const outcome = <E extends { readonly _tag: string }, R>(effect: Effect.Effect<unknown, E, R>) =>
  Effect.match(effect, { onFailure: ({ _tag }) => _tag, onSuccess: () => "success" as const })

/** Lets fibers and the queues' microtasks and immediates run. */
const settle = Effect.forEach(
  Array.from({ length: 5 }),
  () => Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void))),
  { discard: true }
)

/** A started device, memory that is mapped for it, and a read that is in flight. */
const inFlight = Effect.fnUntraced(function*(fake: FakeTransport, options?: VirtioBlk.Options) {
  const disk = yield* VirtioBlk.make(fake.recipe, options)
  const { bytes } = yield* disk.allocate(65536)
  const read = yield* Effect.forkChild(outcome(disk.queue(0).read(0, bytes.subarray(0, 4096))), {
    startImmediately: true
  })
  yield* settle
  return { disk, bytes, read }
})

describe("connecting", () => {
  it.effect("reads the configuration, negotiates what was offered and wanted, and disconnects with the scope", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      fake.features |= featureMask(24, 26, 30, FeatureBit.RING_PACKED)
      const { properties } = yield* Effect.scoped(connect(fake))
      expect(fake.calls).toStrictEqual(["connect", "readConfig", "negotiate", "disconnect"])
      expect([24, 26, 30, FeatureBit.RING_PACKED].map((bit) => hasFeature(fake.negotiated, bit))).toStrictEqual(
        [false, false, false, true]
      )
      expect(hasFeature(fake.negotiated, FeatureBit.VERSION_1)).toBe(true)
      expect((yield* properties.getAll).capacity).toBe(4194304)
    }))

  it.effect("can be done again with the same plan", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const created = VirtioBlk.create(fake.recipe)
      yield* created.properties.set({ readOnly: true })
      fake.failures.connect = new Errno.ECONNREFUSED(fields)
      expect(yield* outcome(Effect.scoped(created.connect))).toBe("ECONNREFUSED")
      delete fake.failures.connect
      for (let i = 0; i < 2; i++) {
        const { properties } = yield* Effect.scoped(created.connect)
        expect(yield* properties.getAll).toMatchObject({ readOnly: true, numQueues: 1 })
        yield* properties.set({ numQueues: 2 })
      }
    }))

  it.effect.each<[string, string, (fake: FakeTransport) => void]>([
    ["no VERSION_1", "ENOTSUP", (fake) => fake.features &= ~featureMask(FeatureBit.VERSION_1)],
    ["features refused", "ENOTSUP", (fake) => fake.failures.negotiate = new Errno.ENOTSUP(fields)],
    ["no configuration", "EIO", (fake) => fake.failures.readConfig = new Errno.EIO(fields)],
    ["no answer", "ETIMEDOUT", (fake) => fake.failures.readConfig = new Errno.ETIMEDOUT(fields)],
    ["configuration of zeroes", "ENODEV", (fake) => fake.config.fill(0)],
    ["block size of 3", "EPROTO", (fake) => fake.config.set([3, 0, 0, 0], 20)],
    ["capacity beyond 2^53-1 bytes", "EOVERFLOW", (fake) => fake.config.fill(0xff, 0, 8)],
    ["4 bytes of configuration", "EPROTO", (fake) => fake.config = fake.config.subarray(0, 4)]
  ])("%s: %s, and the connection is closed", ([, tag, spoil]) =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      spoil(fake)
      expect(yield* outcome(Effect.scoped(connect(fake)))).toBe(tag)
      expect(fake.calls.at(-1)).toBe("disconnect")
    }))

  it.effect.each<[string, number, { features?: ["VERSION_1"]; maxQueues?: number; config?: { numQueues: number } }]>([
    ["the device says less", 2, { config: { numQueues: 2 }, maxQueues: 8 }],
    ["the transport says less", 3, { config: { numQueues: 16 }, maxQueues: 3 }],
    ["no MQ", 1, { features: ["VERSION_1"], config: { numQueues: 4 } }]
  ])("max-queues is the least of all that is said: %s", ([, expected, options]) =>
    Effect.gen(function*() {
      const { properties } = yield* connect(fakeConnection(options))
      expect(yield* properties.get("max-queues")).toBe(expected)
    }))

  it.effect("max-mem-regions leaves one to the rings", () =>
    Effect.gen(function*() {
      const { properties } = yield* connect(fakeConnection({ maxRegions: 32 }))
      expect(yield* properties.get("max-mem-regions")).toBe(31)
    }))
})

describe("settings are checked at start", () => {
  it.effect.each<[string, string, { numQueues?: number; numPollQueues?: number; queueSize?: number }]>([
    ["no queue at all", "EINVAL", { numQueues: 0 }],
    ["too many queues", "EINVAL", { numQueues: 5 }],
    ["too many of both kinds together", "EINVAL", { numQueues: 3, numPollQueues: 2 }],
    ["more than a number of 32 bits", "EINVAL", { numQueues: 2 ** 31 - 1, numPollQueues: 2 ** 31 - 1 }],
    ["a larger queue than the device has", "EINVAL", { queueSize: 2048 }],
    ["all is well", "success", { numQueues: 3, numPollQueues: 1, queueSize: 1024 }],
    ["poll queues alone", "success", { numQueues: 0, numPollQueues: 4 }]
  ])("%s: %s", ([, expected, settings]) =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const connected = yield* connect(fake)
      yield* connected.properties.set(settings)
      expect(yield* outcome(connected.start())).toBe(expected)
      if (expected !== "success") expect(fake.calls).not.toContain("map")
    }))

  it.effect("the count of queues before the device's being read-only", () =>
    Effect.gen(function*() {
      const fake = fakeConnection({ features: ["RO", "VERSION_1", "INDIRECT_DESC"] })
      const connected = yield* connect(fake)
      expect(yield* connected.properties.get("device-read-only")).toBe(true)
      yield* connected.properties.set({ numQueues: 2 })
      expect(yield* outcome(connected.start())).toBe("EINVAL")
      yield* connected.properties.set({ numQueues: 1 })
      expect(yield* outcome(connected.start())).toBe("EROFS")
      expect(yield* outcome(VirtioBlk.make(fake.recipe, { readOnly: true }))).toBe("success")
    }))

  it.effect("a queue without indirect descriptors has room for a request", () =>
    Effect.gen(function*() {
      const connected = yield* connect(fakeConnection({ features: ["VERSION_1"] }))
      yield* connected.properties.set({ queueSize: 2 })
      expect(yield* outcome(connected.start())).toBe("EINVAL")
      yield* connected.properties.set({ queueSize: 4 })
      expect(yield* outcome(connected.start())).toBe("success")
    }))

  it.effect.each<[string, VirtioBlk.StartOptions]>([
    ["0", { deviceTimeout: 0 }],
    ["0n", { deviceTimeout: 0n }],
    ["-1", { deviceTimeout: -1 }],
    ["'soon'", { deviceTimeout: "soon" as never }],
    ["0", { requestTimeout: 0 }],
    ["'soon'", { requestTimeout: "soon" as never }],
    ["-1", { closeTimeout: -1 }]
  ])("a time limit of %s is EINVAL and named", ([value, options]) =>
    Effect.gen(function*() {
      const connected = yield* connect(fakeConnection())
      const error = yield* Effect.flip(connected.start(options))
      expect(error._tag).toBe("EINVAL")
      expect(error.message).toContain(`Timeout ${value} must be`)
    }))

  it.effect("options that no type allows are EINVAL, before anything is opened", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      for (const options of [{ numQueue: 1 }, { numQueues: "2" }, { readOnly: 1 }, { waiting: "poll" }]) {
        expect(yield* outcome(VirtioBlk.make(fake.recipe, options as never))).toBe("EINVAL")
      }
      expect(fake.calls).toStrictEqual([])
    }))
})

describe("starting", () => {
  it.effect("maps the rings, starts, and undoes all of it in reverse", () =>
    leavesNothing(Effect.gen(function*() {
      const fake = fakeConnection()
      yield* Effect.scoped(VirtioBlk.make(fake.recipe, { numQueues: 2, numPollQueues: 1, queueSize: 64 }))
      expect(fake.calls).toStrictEqual(
        ["connect", "readConfig", "negotiate", "map", "start", "stop", "unmap", "disconnect"]
      )
      expect(fake.queues.map(({ queueSize }) => queueSize)).toStrictEqual([64, 64, 64])
      expect(new Set(fake.queues.map(({ descriptors }) => descriptors)).size).toBe(3)
      expect(fake.mapped.size).toBe(0)
    })).pipe(TestClock.withLive))

  it.effect.each<[string, "map" | "start", Errno.EIO | Errno.ENOTCONN]>([
    ["EIO of map", "map", new Errno.EIO(fields)],
    ["ENOTCONN of map", "map", new Errno.ENOTCONN(fields)],
    ["EIO of start", "start", new Errno.EIO(fields)],
    ["ENOTCONN of start", "start", new Errno.ENOTCONN(fields)]
  ])(
    "%s leaves a connected device, with nothing mapped and no memory, that can be started again",
    ([, call, error]) =>
      Effect.gen(function*() {
        const fake = fakeConnection()
        const connected = yield* connect(fake)
        const before = count()
        fake.failures[call] = error as never
        expect(yield* outcome(connected.start())).toBe(error._tag)
        expect(count()).toStrictEqual(before)
        expect(fake.mapped.size).toBe(0)
        expect(fake.calls.includes("stop")).toBe(call === "start")
        delete fake.failures[call]
        yield* connected.properties.set({ numQueues: 2 })
        const disk = yield* connected.start()
        expect(disk.queues.length).toBe(2)
      })
  )

  it.effect("twice is EBUSY, and so is setting what was for the connected device", () =>
    Effect.gen(function*() {
      const connected = yield* connect(fakeConnection())
      yield* connected.start()
      expect(yield* outcome(connected.start())).toBe("EBUSY")
      expect(yield* outcome(connected.properties.set({ numQueues: 2 }))).toBe("EBUSY")
    }))

  it.effect("interrupted, leaves the device as it was", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const connected = yield* connect(fake)
      const before = count()
      const scope = yield* Scope.make()
      const fiber = yield* Effect.forkChild(Scope.provide(connected.start(), scope))
      yield* Fiber.interrupt(fiber)
      yield* Scope.close(scope, Exit.void)
      expect(count()).toStrictEqual(before)
      expect(yield* outcome(connected.start())).toBe("success")
    }))

  it.effect("gives queues of both kinds, and answers ENODEV for one that is not there", () =>
    Effect.gen(function*() {
      const disk = yield* VirtioBlk.make(fakeConnection().recipe, { numQueues: 2, numPollQueues: 1 })
      expect(disk.queues.map(({ index, kind }) => [kind, index])).toStrictEqual([["event", 0], ["event", 1]])
      expect(disk.pollQueues.map(({ index, kind }) => [kind, index])).toStrictEqual([["poll", 0]])
      for (const queue of [disk.queue(2), disk.queue(-1), disk.queue(0.5), disk.pollQueue(1)]) {
        expect(yield* outcome(queue.flush())).toBe("ENODEV")
      }
    }))
})

describe("memory", () => {
  it.effect("max-mem-regions are mapped and no more: ENOSPC", () =>
    Effect.gen(function*() {
      const disk = yield* VirtioBlk.make(fakeConnection({ maxRegions: 3 }).recipe)
      const first = yield* Scope.make()
      yield* Scope.provide(disk.allocate(4096), first)
      yield* disk.allocate(4096)
      expect(yield* outcome(disk.allocate(4096))).toBe("ENOSPC")
      yield* Scope.close(first, Exit.void)
      expect(yield* outcome(disk.allocate(4096))).toBe("success")
    }))

  it.effect("a region twice is EINVAL, a misaligned one too, and unmapping what is not mapped is nothing", () =>
    Effect.gen(function*() {
      const disk = yield* VirtioBlk.make(fakeConnection({ regionAlignment: 4096 }).recipe)
      const region = yield* MemoryRegion.allocate(8192)
      yield* disk.unmap(region)
      yield* disk.map(region)
      expect(yield* outcome(disk.map(region))).toBe("EINVAL")
      expect(yield* outcome(disk.map(yield* MemoryRegion.allocate(100)))).toBe("EINVAL")
      yield* disk.unmap(region)
      yield* disk.unmap(region)
      yield* disk.map(region)
    }))

  it.effect("a backend that refuses a region is believed: the region is not mapped", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe)
      const region = yield* MemoryRegion.allocate(4096)
      fake.failures.map = new Errno.EIO(fields)
      expect(yield* outcome(disk.map(region))).toBe("EIO")
      expect(yield* outcome(disk.queue(0).read(0, region.bytes))).toBe("EFAULT")
      delete fake.failures.map
      yield* disk.map(region)
    }))

  it.effect("unmapping waits for the requests that use the region", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe)
      const region = yield* MemoryRegion.allocate(4096)
      yield* disk.map(region)
      const read = yield* Effect.forkChild(disk.queue(0).read(0, region.bytes), { startImmediately: true })
      yield* settle
      const unmap = yield* Effect.forkChild(disk.unmap(region), { startImmediately: true })
      yield* settle
      expect(fake.calls).not.toContain("unmap")
      expect(yield* outcome(disk.queue(0).read(0, region.bytes))).toBe("EFAULT")
      fake.devices[0]!.work()
      yield* Fiber.join(read)
      yield* Fiber.join(unmap)
      expect(fake.calls).toContain("unmap")
    }).pipe(TestClock.withLive))
})

describe("a device that offers RING_PACKED", () => {
  it.effect.each<[number, VirtioBlk.Options]>([
    [1, {}],
    [16, { queueSize: 16, numQueues: 2 }],
    [2, { queueSize: 2, numPollQueues: 1 }]
  ])("is driven by a packed ring (%i at a time)", ([at, settings]) =>
    Effect.gen(function*() {
      const fake = fakeConnection({ features: [...usualFeatures, "RING_PACKED"], config: { blkSize: 512 } })
      const disk = yield* VirtioBlk.make(fake.recipe, settings)
      const { bytes } = yield* disk.allocate(65536)
      const device = fake.devices[0]!
      device.disk.forEach((_, i) => {
        device.disk[i] = i >> 9
      })
      // Some laps of the ring; each queue's event areas lie in a line of their own behind its descriptors (§2.8.10.1).
      for (let round = 0; round < 40; round++) {
        const sectors = Array.from({ length: at }, (_, i) => round * at + i)
        const reads = yield* Effect.forEach(sectors, (sector, i) =>
          Effect.forkChild(disk.queue(0).read(sector * 512, bytes.subarray(i * 512, i * 512 + 512)), {
            startImmediately: true
          }))
        yield* settle
        device.work()
        yield* Effect.forEach(reads, Fiber.join)
        expect(sectors.map((_, i) =>
          bytes[i * 512]
        )).toStrictEqual(sectors.map((sector) => sector & 0xff))
      }
      expect(device.violations).toStrictEqual([])
      expect(fake.queues.map(({ avail, used }) => used - avail)).toStrictEqual(fake.queues.map(() => 64))
    }).pipe(TestClock.withLive))
})

describe("a device that is silent", () => {
  it.effect("is dead after deviceTimeout: ETIMEDOUT for what is in flight and for all that comes", () =>
    Effect.gen(function*() {
      const { disk, bytes, read } = yield* inFlight(fakeConnection(), { deviceTimeout: "8 seconds" })
      yield* TestClock.adjust("7 seconds")
      expect(read.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("3 seconds")
      expect(yield* Fiber.join(read)).toBe("ETIMEDOUT")
      expect(yield* outcome(disk.queue(0).write(0, bytes))).toBe("ETIMEDOUT")
      expect(yield* outcome(disk.allocate(4096))).toBe("ETIMEDOUT")
    }))

  it.effect("is given 30 s where nothing is said", () =>
    Effect.gen(function*() {
      expect(Duration.toSeconds(VirtioBlk.DEFAULT_DEVICE_TIMEOUT)).toBe(30)
      const { read } = yield* inFlight(fakeConnection())
      yield* TestClock.adjust("29 seconds")
      expect(read.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("10 seconds")
      expect(yield* Fiber.join(read)).toBe("ETIMEDOUT")
    }))

  it.effect("is given for ever with Infinity", () =>
    Effect.gen(function*() {
      const { read } = yield* inFlight(fakeConnection(), { deviceTimeout: Infinity, closeTimeout: 0 })
      yield* TestClock.adjust("1 day")
      expect(read.pollUnsafe()).toBeUndefined()
    }))

  it.effect("with nothing in flight is only idle", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe, { deviceTimeout: "1 second", closeTimeout: 0 })
      const { bytes } = yield* disk.allocate(4096)
      yield* TestClock.adjust("1 hour")
      yield* Effect.forkChild(disk.queue(0).read(0, bytes), { startImmediately: true })
      yield* settle
      expect(fake.notifications).toBe(1)
    }))
})

describe("closing", () => {
  it.effect("waits closeTimeout for what is in flight, refuses what comes, and fails with ESHUTDOWN then", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const scope = yield* Scope.make()
      const { disk, bytes, read } = yield* Scope.provide(inFlight(fake, { closeTimeout: "3 seconds" }), scope)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* settle
      expect(yield* outcome(disk.queue(0).read(0, bytes))).toBe("ESHUTDOWN")
      yield* TestClock.adjust("2900 millis")
      expect(read.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("100 millis")
      yield* Fiber.join(closing)
      expect(yield* Fiber.join(read)).toBe("ESHUTDOWN")
      expect(fake.calls.slice(-3)).toStrictEqual(["stop", "unmap", "disconnect"])
      expect(bytes.length).toBe(0)
    }))

  it.effect("ends at once when nothing is in flight", () =>
    leavesNothing(Effect.gen(function*() {
      const { recipe } = fakeConnection()
      const disk = VirtioBlk.make(recipe, { closeTimeout: Infinity })
      yield* Effect.scoped(Effect.flatMap(disk, ({ allocate }) => allocate(4096)))
    })).pipe(TestClock.withLive))
})

describe("a device that changes", () => {
  it.effect("tells its new capacity, and requests are checked against it", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe, { closeTimeout: 0 })
      const { bytes } = yield* disk.allocate(4096)
      const changes = yield* Effect.forkChild(Stream.runCollect(Stream.take(disk.configChanges, 2)), {
        startImmediately: true
      })
      yield* settle
      expect(yield* outcome(disk.queue(0).read(4194304, bytes))).toBe("EINVAL")
      fake.change({ capacitySectors: 16384n })
      yield* settle
      expect(disk.capacity).toBe(8388608)
      expect(yield* disk.properties.get("capacity")).toBe(8388608)
      const read = yield* Effect.forkChild(disk.queue(0).read(4194304, bytes), { startImmediately: true })
      yield* settle
      expect(read.pollUnsafe()).toBeUndefined()
      fake.change({ capacitySectors: 8n, writeback: 0 })
      yield* settle
      expect(yield* outcome(disk.queue(0).read(4096, bytes))).toBe("EINVAL")
      expect(yield* Fiber.join(changes)).toStrictEqual([
        { capacity: 8388608, flushNeeded: true },
        { capacity: 4096, flushNeeded: false }
      ])
    }))

  it.effect("is asked by refresh, too", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe)
      fake.config[0] = 8
      fake.config[1] = 0
      expect(yield* disk.refresh).toStrictEqual({ capacity: 4096, flushNeeded: true })
      fake.failures.readConfig = new Errno.EIO(fields)
      expect(yield* outcome(disk.refresh)).toBe("EIO")
      expect(disk.capacity).toBe(4096)
    }))

  it.effect("into one of zeroes is gone: ENODEV for what is in flight and for all that comes", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const { disk, bytes, read } = yield* inFlight(fake)
      fake.change({ capacitySectors: 0n, blkSize: 0 })
      expect(yield* Fiber.join(read)).toBe("ENODEV")
      expect(yield* outcome(disk.queue(0).read(0, bytes))).toBe("ENODEV")
      expect(yield* outcome(disk.refresh)).toBe("ENODEV")
    }))

  it.effect("into one that makes no sense is broken: EPROTO", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const { read } = yield* inFlight(fake)
      fake.change({ blkSize: 3 })
      expect(yield* Fiber.join(read)).toBe("EPROTO")
    }))

  it.effect("into one too large to count keeps the capacity it had", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const { disk, read } = yield* inFlight(fake, { closeTimeout: 0 })
      fake.change({ capacitySectors: 2n ** 60n })
      yield* settle
      expect(read.pollUnsafe()).toBeUndefined()
      expect(disk.capacity).toBe(4194304)
      expect(yield* outcome(disk.refresh)).toBe("EOVERFLOW")
    }))
})

describe("a connection that is lost", () => {
  it.effect.each<[string, Errno.ENOTCONN | Errno.EPROTO | Errno.ETIMEDOUT]>([
    ["ENOTCONN", new Errno.ENOTCONN(fields)],
    ["EPROTO", new Errno.EPROTO(fields)],
    ["ETIMEDOUT", new Errno.ETIMEDOUT(fields)]
  ])("fails what is in flight on every queue with its %s", ([tag, reason]) =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const { disk, bytes, read } = yield* inFlight(fake, { numQueues: 2, numPollQueues: 1 })
      const others = yield* Effect.forEach(
        [disk.queue(1), disk.pollQueue(0)],
        (queue) => Effect.forkChild(outcome(queue.write(0, bytes)), { startImmediately: true })
      )
      yield* settle
      fake.lose(reason)
      expect(yield* Fiber.join(read)).toBe(tag)
      expect(yield* Effect.forEach(others, Fiber.join)).toStrictEqual([tag, tag])
      expect(yield* outcome(disk.queue(0).flush())).toBe(tag)
      expect(yield* outcome(disk.allocate(4096))).toBe(tag)
    }))

  it.effect("ends a stream of completions once, with the same error", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const disk = yield* VirtioBlk.make(fake.recipe)
      const { bytes } = yield* disk.allocate(4096)
      const requests = Stream.make<ReadonlyArray<IoQueue.Read>>({ _tag: "read", offset: 0, buffer: bytes })
      const run = yield* Effect.forkChild(outcome(Stream.runDrain(disk.queue(0).process(requests))), {
        startImmediately: true
      })
      yield* settle
      fake.lose()
      expect(yield* Fiber.join(run)).toBe("ENOTCONN")
    }))
})

describe("layers", () => {
  it.effect("connected alone does not start; started on top of it does; both release with their scope", () =>
    Effect.gen(function*() {
      const fake = fakeConnection()
      const connected = VirtioBlk.layerConnected({ readOnly: true }).pipe(
        Layer.provide(Layer.succeed(Transport, fake.recipe))
      )
      const facts = yield* Properties.use(({ getAll }) => getAll).pipe(Effect.provide(connected))
      expect(facts).toMatchObject({ readOnly: true, capacity: 4194304 })
      expect(fake.calls).toStrictEqual(["connect", "readConfig", "negotiate", "disconnect"])
      const started = VirtioBlk.layerStarted({ numQueues: 2 }).pipe(Layer.provide(connected))
      const queues = yield* BlockDevice.useSync((disk) => disk.queues.length).pipe(Effect.provide(started))
      expect(queues).toBe(2)
      expect(fake.calls.at(-1)).toBe("disconnect")
    }))
})
