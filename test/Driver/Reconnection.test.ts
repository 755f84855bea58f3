/**
 * Goal: the driver makes of a device that comes back what it was, and tells what comes back as another.
 * Method: a fake device in this process is lost and found, holds what it is asked, and tells in which order it was asked.
 */
import { describe, expect, it } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, Option, Schedule, Scope, Stream } from "effect"
import type { ConnectionState, Device } from "../../src/BlockDevice.ts"
import type { ReconnectPolicy } from "../../src/Transport/Transport.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import { Errno, IoQueue, VirtioBlk } from "../../src/index.ts"
import { FakeTransport } from "../../src/testing/index.ts"
import { leavesNothing } from "../support/resources.ts"

const policy: ReconnectPolicy = {
  schedule: Schedule.spaced(1),
  within: Duration.seconds(20),
  maxWaiting: 4096,
  keepsCache: false
}

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkScoped(effect, { startImmediately: true })

const live = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>) =>
  it.live(name, () => leavesNothing(Effect.suspend(body)))

/** A started device over a fake one that comes back. */
const open = (
  fake: FakeTransport.FakeTransport,
  changes: Partial<ReconnectPolicy> = {},
  options: VirtioBlk.Options = {}
) => VirtioBlk.make({ ...fake.recipe, reconnect: { ...policy, ...changes } }, { queueSize: 16, ...options })

const until = (disk: Device, tag: ConnectionState["_tag"]) =>
  Effect.map(Stream.runHead(Stream.filter(disk.connectionStates, ({ _tag }) => _tag === tag)), Option.getOrThrow)

/** Has the device answer nothing from now on. */
const silence = (fake: FakeTransport.FakeTransport) => {
  for (const device of fake.devices) device.mischief = "silent"
}

/** What the device was asked since it came back, without the question for its identity. */
const asked = (fake: FakeTransport.FakeTransport) =>
  fake.devices.flatMap(({ taken }) => taken).filter(({ type }) => type !== RequestType.GET_ID)

/** Requests that nobody answers, on a queue of 16. */
const inFlight = Effect.fnUntraced(function*(disk: Device, count: number) {
  const { bytes } = yield* disk.allocate(count * 512)
  return yield* Effect.forEach(
    Array.from({ length: count }, (_, i) => i),
    (i) => fork(Effect.exit(disk.queue(0).read(i * 512, bytes.subarray(i * 512, (i + 1) * 512))))
  )
})

describe("a device that comes back", () => {
  live(
    "gets what was in flight in the order in which it was submitted, then what waited",
    () =>
      Effect.gen(function*() {
        const fake = new FakeTransport.FakeTransport()
        const disk = yield* open(fake)
        const { bytes } = yield* disk.allocate(4096)
        // The slots of the ring are in use in another order than they were made in.
        for (const device of fake.devices) device.order = { seed: 3 }
        yield* Effect.forEach([0, 1, 2, 3], () => disk.queue(0).read(0, bytes), { concurrency: "unbounded" })
        silence(fake)
        const fibers = yield* inFlight(disk, 24)
        yield* Effect.sleep(1)
        fake.lose()
        yield* Effect.forEach(fibers, Fiber.join)
        expect(asked(fake).map(({ sector }) => sector)).toStrictEqual(Array.from({ length: 24 }, (_, i) => i))
      })
  )

  live(
    "has its regions at the addresses where they were, and its queues their completion descriptors",
    () =>
      Effect.gen(function*() {
        const fake = new FakeTransport.FakeTransport()
        const disk = yield* open(fake)
        const regions = [yield* disk.allocate(4096), yield* disk.allocate(8192)]
        const before = regions.map((region) => fake.mapped.get(region))
        const fd = disk.queue(0).completionFd
        for (let round = 0; round < 3; round++) {
          fake.lose()
          yield* disk.readBytes(0, 512)
          expect(regions.map((region) => fake.mapped.get(region))).toStrictEqual(before)
          expect(disk.queue(0).completionFd).toStrictEqual(fd)
          // The rings, the regions, and the bounce buffers.
          expect(fake.mapped.size).toBe(4)
        }
        expect(fake.violations).toStrictEqual([])
      })
  )

  live("tells what becomes of its connection, to those who come late, too", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const disk = yield* open(fake)
      const seen = yield* fork(Stream.runCollect(Stream.take(disk.connectionStates, 6)))
      fake.failures.connect = new Errno.ECONNREFUSED({ operation: "test", detail: "not yet" })
      fake.lose(new Errno.ENOTCONN({ operation: "test", detail: "went away" }))
      yield* Effect.repeat(Effect.sleep(1), {
        until: () => fake.calls.filter((call) => call === "connect").length >= 3
      })
      delete fake.failures.connect
      const states = yield* Fiber.join(seen)
      expect(states.slice(0, 4)).toMatchObject([
        { _tag: "connected" },
        { _tag: "lost", reason: { detail: "went away" } },
        { _tag: "reconnecting", attempt: 1 },
        { _tag: "reconnecting", attempt: 2 }
      ])
      yield* until(disk, "connected")
    }))

  for (const step of ["connect", "readConfig", "negotiate", "map", "start"] as const) {
    live(`is tried again where ${step} fails at first`, () =>
      Effect.gen(function*() {
        const fake = new FakeTransport.FakeTransport()
        const disk = yield* open(fake)
        const { bytes } = yield* disk.allocate(4096)
        const fields = { operation: "test", detail: "not yet" }
        if (step === "connect") fake.failures.connect = new Errno.ECONNREFUSED(fields)
        else fake.failures[step] = new Errno.EIO(fields)
        fake.lose()
        const reading = yield* fork(disk.queue(0).read(0, bytes))
        yield* Effect.repeat(Effect.sleep(1), {
          until: () => fake.calls.filter((call) => call === "connect").length >= 3
        })
        expect(reading.pollUnsafe()).toBe(undefined)
        delete fake.failures[step]
        yield* Fiber.join(reading)
        expect(fake.mapped.size).toBe(2)
      }))
  }

  live(
    "gives a flush that was in flight EIO where writes may be lost, and not the next one as well",
    () =>
      Effect.gen(function*() {
        const fake = new FakeTransport.FakeTransport()
        const disk = yield* open(fake)
        const { bytes } = yield* disk.allocate(4096)
        yield* disk.queue(0).write(0, bytes)
        silence(fake)
        const flushes = yield* Effect.forEach([0, 1], () => fork(Effect.flip(disk.queue(0).flush())))
        const stable = yield* fork(disk.queue(0).write(4096, bytes, IoQueue.RequestFlag.FUA))
        yield* Effect.sleep(1)
        fake.crash()
        for (const flush of flushes) expect(yield* Fiber.join(flush)).toMatchObject({ _tag: "EIO" })
        yield* Fiber.join(stable)
        yield* disk.queue(0).flush()
        expect(asked(fake).map(({ type }) => type)).toStrictEqual([
          RequestType.OUT,
          RequestType.FLUSH,
          RequestType.FLUSH
        ])
      })
  )

  live("writes once more what FUA had written, and not made stable", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const disk = yield* open(fake)
      const { bytes } = yield* disk.allocate(4096)
      bytes.fill(7)
      // The write is done, and its flush is not.
      const [device] = fake.devices
      device!.status = ({ type }) => {
        if (type === RequestType.OUT) device!.mischief = "silent"
        return undefined
      }
      const writing = yield* fork(disk.queue(0).write(0, bytes, IoQueue.RequestFlag.FUA))
      yield* Effect.repeat(Effect.sleep(1), {
        until: () => device!.held.some(({ type }) => type === RequestType.FLUSH)
      })
      fake.crash()
      yield* Fiber.join(writing)
      expect(asked(fake).map(({ type }) => type)).toStrictEqual([RequestType.OUT, RequestType.FLUSH])
      fake.crash()
      expect((yield* disk.readBytes(0, 4096)).every((byte) => byte === 7)).toBe(true)
      yield* disk.flush
    }))

  live(
    "is refused where it calls itself otherwise, and where features are missing: ESTALE",
    () =>
      Effect.gen(function*() {
        for (
          const [change, says] of [
            [(options: { serial?: string }) => {
              options.serial = "other"
            }, "it calls itself \"other\", and was \"fake\""],
            [(_: unknown, fake: FakeTransport.FakeTransport) => {
              fake.features &= ~(1n << 13n)
            }, "DISCARD"]
          ] as const
        ) {
          yield* Effect.scoped(Effect.gen(function*() {
            const options = {}
            const fake = new FakeTransport.FakeTransport(options)
            const disk = yield* open(fake)
            silence(fake)
            const fibers = yield* inFlight(disk, 20)
            change(options, fake)
            fake.lose()
            for (const exit of yield* Effect.forEach(fibers, Fiber.join)) {
              expect(exit).toMatchObject(Exit.fail({ _tag: "ESTALE" }))
            }
            const { message } = yield* Effect.flip(disk.refresh)
            expect(message).toContain(says)
            expect(yield* until(disk, "failed")).toMatchObject({ failure: { message } })
          }))
        }
      })
  )

  live("is not gone back to where it broke the protocol, or its disk is gone", () =>
    Effect.gen(function*() {
      const fields = { operation: "test", detail: "as the test asked" }
      for (const reason of [new Errno.EPROTO(fields), new Errno.ENODEV(fields)]) {
        yield* Effect.scoped(Effect.gen(function*() {
          const fake = new FakeTransport.FakeTransport()
          const disk = yield* open(fake)
          silence(fake)
          const [reading] = yield* inFlight(disk, 1)
          fake.lose(reason)
          expect(yield* Fiber.join(reading!)).toMatchObject(Exit.fail({ _tag: reason._tag }))
          expect(fake.connections).toBe(1)
        }))
      }
    }))

  live("lets go of whoever waits for it, whatever they want", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const disk = yield* open(fake, { within: Duration.infinity })
      fake.failures.connect = new Errno.ECONNREFUSED({ operation: "test", detail: "not yet" })
      // The configuration is being read when the connection goes.
      fake.change({ capacitySectors: 4096n })
      fake.lose()
      const waiting: ReadonlyArray<Fiber.Fiber<unknown, unknown>> = [
        yield* fork(disk.refresh),
        yield* fork(Effect.scoped(disk.allocate(4096))),
        yield* fork(disk.readBytes(0, 512)),
        yield* fork(disk.flush)
      ]
      yield* Effect.repeat(Effect.sleep(1), {
        until: () => fake.calls.filter((call) => call === "connect").length >= 4
      })
      for (const fiber of waiting) {
        expect(fiber.pollUnsafe()).toBe(undefined)
        yield* Fiber.interrupt(fiber)
      }
      delete fake.failures.connect
      yield* until(disk, "connected")
      expect(disk.capacity).toBe(4096 * 512)
    }))

  live("is closed while it is away: ESHUTDOWN for whoever waits", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const scope = yield* Scope.fork(yield* Effect.scope)
      const disk = yield* Scope.provide(open(fake, { within: Duration.infinity }), scope)
      const { bytes } = yield* Scope.provide(disk.allocate(4096), scope)
      silence(fake)
      const inTheRing = yield* fork(Effect.exit(disk.queue(0).read(0, bytes)))
      yield* Effect.sleep(1)
      fake.failures.connect = new Errno.ECONNREFUSED({ operation: "test", detail: "not yet" })
      fake.lose()
      yield* until(disk, "reconnecting")
      const waiting = [
        inTheRing,
        yield* fork(Effect.exit(disk.refresh)),
        yield* fork(Effect.exit(Effect.scoped(disk.allocate(4096)))),
        yield* fork(Effect.exit(disk.readBytes(0, 512))),
        yield* fork(Effect.exit(disk.flush))
      ]
      yield* Effect.sleep(5)
      yield* Scope.close(scope, Exit.void)
      const attempts = fake.calls.length
      for (const fiber of waiting) {
        const exit: Exit.Exit<unknown, unknown> = yield* Fiber.join<Exit.Exit<unknown, unknown>, never>(fiber)
        expect(exit).toMatchObject(Exit.fail({ _tag: "ESHUTDOWN" }))
      }
      yield* Effect.sleep(10)
      expect(fake.calls.length).toBe(attempts)
    }))

  live("is the same device although it cannot tell who it is at once", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const disk = yield* open(fake)
      const { bytes } = yield* disk.allocate(4096)
      let isSick = true
      const reading = yield* fork(
        Effect.repeat(
          Effect.sync(() => {
            for (const device of fake.devices) {
              device.status = ({ type }) => type === RequestType.GET_ID && isSick ? 1 : undefined
            }
          }).pipe(Effect.andThen(Effect.yieldNow)),
          { until: () => !isSick }
        )
      )
      fake.lose()
      const answer = yield* fork(disk.queue(0).read(0, bytes))
      yield* Effect.sleep(20)
      isSick = false
      yield* Fiber.join(reading)
      yield* Fiber.join(answer)
    }))

  live("is waited for when it is closed, as it would have been before", () =>
    Effect.gen(function*() {
      const fake = new FakeTransport.FakeTransport()
      const scope = yield* Scope.fork(yield* Effect.scope)
      const disk = yield* Scope.provide(open(fake), scope)
      // A region of the device would have it waited for by itself.
      const { bytes } = yield* disk.allocate(4096)
      fake.lose()
      yield* disk.queue(0).read(0, bytes)
      silence(fake)
      const reading = yield* fork(Effect.exit(disk.queue(0).read(0, bytes)))
      yield* Effect.sleep(1)
      const closing = yield* fork(Scope.close(scope, Exit.void))
      yield* Effect.sleep(10)
      expect(closing.pollUnsafe()).toBe(undefined)
      for (const device of fake.devices) {
        device.mischief = undefined
        device.work()
      }
      yield* Fiber.join(closing)
      expect(yield* Fiber.join(reading)).toStrictEqual(Exit.void)
    }))
})
