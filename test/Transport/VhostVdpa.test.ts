/**
 * Goal: the vhost-vdpa transport does with a device what the kernel wants, in the order in which every device takes it, on old
 * kernels and new ones; whatever fails, whenever, is a typed error in bounded time; and at the end the device is reset before
 * its memory is taken back, and nothing is left behind.
 * Method: a simulated kernel (test/support/SimulatedVdpa.ts) keeps the rules of the real one and notes what is done; each call
 * in turn is made to fail and to hang. Whole devices run on it with data compared. What a real kernel adds is tried in a guest
 * (test/guest).
 */
import { describe, expect, it } from "@effect/vitest"
import { Config, ConfigProvider, Deferred, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { closeSync, openSync, readFileSync } from "node:fs"
import { constants } from "node:os"
import { inspect } from "node:util"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import { Kernel } from "../../src/Native/Kernel.ts"
import { lockedMemory } from "../../src/Native/ProcessMemory.ts"
import { type Connection, Transport } from "../../src/Transport/Transport.ts"
import * as VhostVdpa from "../../src/Transport/VhostVdpa.ts"
import * as VirtioBlk from "../../src/VirtioBlk.ts"
import { encodeConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import { config } from "../Properties/facts.ts"
import { FEATURES, type Options, SimulatedVdpa } from "../support/SimulatedVdpa.ts"
import { live } from "../support/resources.ts"

const { errno } = constants
const path = "/dev/vhost-vdpa-0"
const MiB = 2 ** 20
const features = featureMask(FeatureBit.VERSION_1, FeatureBit.FLUSH)

const diskConfig = encodeConfig({ ...config, capacitySectors: 2048n, numQueues: 4 })

const simulate = (options: Options = {}) => new SimulatedVdpa({ config: diskConfig, ...options })

const on = (simulated: SimulatedVdpa) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Kernel, simulated.kernel)

const connectTo = (simulated: SimulatedVdpa, options: VhostVdpa.Options = { path }) =>
  Effect.flatMap(VhostVdpa.make(options), ({ connect }) => on(simulated)(connect))

const failure = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.flip(Effect.scoped(effect))

/** Where two rings of 16 lie in a region. */
const queuesAt = (base: number) =>
  [0, 1024].map((offset) => ({
    queueSize: 16,
    descriptors: base + offset,
    avail: base + offset + 256,
    used: base + offset + 512
  }))

/** All that a driver does with a connection before requests. */
const run = Effect.fnUntraced(function*(connection: Connection) {
  yield* connection.readConfig
  yield* connection.negotiate(features)
  const region = yield* MemoryRegion.allocate(4096)
  const base = yield* Effect.acquireRelease(connection.map(region), () => connection.unmap(region))
  yield* Effect.addFinalizer(() => connection.stop)
  return yield* connection.start(queuesAt(base))
})

const HANDSHAKE = [
  "open",
  "VHOST_VDPA_GET_DEVICE_ID",
  "VHOST_SET_OWNER",
  "VHOST_GET_BACKEND_FEATURES",
  "VHOST_SET_BACKEND_FEATURES",
  "VHOST_VDPA_SET_STATUS 0",
  "VHOST_VDPA_GET_STATUS",
  "VHOST_VDPA_SET_STATUS 1",
  "VHOST_VDPA_GET_STATUS",
  "VHOST_VDPA_SET_STATUS 3",
  "VHOST_VDPA_GET_STATUS",
  "VHOST_GET_FEATURES",
  "VHOST_VDPA_GET_IOVA_RANGE",
  "VHOST_VDPA_GET_CONFIG_SIZE",
  "VHOST_VDPA_GET_VRING_NUM",
  "VHOST_VDPA_GET_VQS_COUNT"
]
const NEGOTIATION = ["VHOST_SET_FEATURES", "VHOST_VDPA_SET_STATUS 11", "VHOST_VDPA_GET_STATUS"]
const START = [
  ...[0, 1].flatMap((index) =>
    ["NUM", "BASE", "ADDR", "CALL", "KICK"].map((what) => `VHOST_SET_VRING_${what} ${index}`)
  ),
  "VHOST_VDPA_SET_CONFIG_CALL",
  "VHOST_VDPA_SET_VRING_ENABLE 0",
  "VHOST_VDPA_SET_VRING_ENABLE 1",
  "VHOST_VDPA_SET_STATUS 15",
  "VHOST_VDPA_GET_STATUS"
]

describe("make", () => {
  const bad: ReadonlyArray<[name: string, options: unknown, says: string]> = [
    ["neither path nor fd", {}, "one of path and fd must be set"],
    ["an empty path", { path: "" }, "one of path and fd must be set"],
    ["both path and fd", { path, fd: 3 }, "one of path and fd must be set"],
    ["a key that is none", { path, pth: 1 }, "pth"],
    ["a path that is no string", { path: 7 }, "path"],
    ["a negative fd", { fd: -1 }, "fd"],
    ["an fd beyond 32 bits", { fd: 2 ** 32 }, "fd"],
    ["no options", undefined, "object"]
  ]
  it.effect.each(bad)("EINVAL for %s", ([, options, says]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(VhostVdpa.make(options as VhostVdpa.Options))
      expect(error).toMatchObject({ _tag: "EINVAL", operation: "vhost-vdpa" })
      expect(error.message).toContain(says)
    }))

  for (const replyTimeout of [0, -1, NaN, "soon", {}, null] as const) {
    it.effect(`EINVAL for the time limit ${inspect(replyTimeout)}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(VhostVdpa.make({ path, replyTimeout } as VhostVdpa.Options))
        expect(error.message).toMatch(/^vhost-vdpa: reply time limit .* must be a positive duration$/)
      }))
  }

  it.effect("says how the device is reached, and opens nothing", () =>
    Effect.gen(function*() {
      expect(yield* VhostVdpa.make({ path, replyTimeout: "1 second" })).toMatchObject({
        driver: "virtio-blk-vhost-vdpa",
        path,
        fd: -1
      })
      expect(yield* VhostVdpa.make({ fd: 7 })).toMatchObject({ path: "", fd: 7 })
    }))

  it.effect("comes as a layer, also from configuration", () =>
    Effect.gen(function*() {
      const pathOf = Effect.map(Transport, (transport) => transport.path)
      expect(yield* Effect.provide(pathOf, VhostVdpa.layer({ path }))).toBe(path)
      const fromConfig = VhostVdpa.layerConfig({ path: Config.String("DISK") })
      const provider = ConfigProvider.fromUnknown({ DISK: path })
      expect(
        yield* Effect.provideService(Effect.provide(pathOf, fromConfig), ConfigProvider.ConfigProvider, provider)
      ).toBe(path)
    }))
})

describe("a device", () => {
  live("is gone through in the one order that every device takes", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      yield* Effect.scoped(Effect.flatMap(connectTo(simulated), run))
      expect(simulated.violations).toStrictEqual([])
      expect(simulated.log).toStrictEqual([
        ...HANDSHAKE,
        "VHOST_VDPA_GET_CONFIG 60",
        ...NEGOTIATION,
        "UPDATE 0x10000+4096 v2",
        ...START,
        "VHOST_VDPA_SET_STATUS 0",
        "INVALIDATE 0x10000+4096 v2",
        "close"
      ])
    }))

  live("says what the transport can do", () =>
    Effect.gen(function*() {
      expect(yield* connectTo(simulate({ rings: 3, ringSize: 512 }))).toMatchObject({
        features: FEATURES,
        maxQueues: 3,
        maxQueueSize: 512,
        regionAlignment: 4096,
        needsRegionFd: false
      })
    }))

  live("can be connected again, one user at a time", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const { connect } = yield* VhostVdpa.make({ path })
      for (let i = 0; i < 2; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          yield* on(simulated)(connect)
          const error = yield* failure(on(simulated)(connect))
          expect(error).toMatchObject({ _tag: "EBUSY", path, syscall: "open" })
          expect(error.message).toContain("one user at a time")
        }))
      }
    }))

  live("that is open already is taken over once, and closed", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const { connect } = yield* VhostVdpa.make({ fd: simulated.open() })
      yield* Effect.scoped(Effect.flatMap(on(simulated)(connect), run))
      expect(simulated.isOpen).toBe(false)
      expect(yield* failure(on(simulated)(connect))).toMatchObject({ _tag: "EBADF" })
    }))

  live("that is open already must be open, unused and a device", () =>
    Effect.gen(function*() {
      expect(yield* failure(connectTo(simulate(), { fd: 2 ** 31 - 1 }))).toMatchObject({ _tag: "EBADF" })
      const owned = simulate()
      owned.faults.set("VHOST_SET_OWNER", errno.EBUSY)
      const error = yield* failure(connectTo(owned, { fd: owned.open() }))
      expect(error._tag).toBe("EBUSY")
      expect(error.message).toContain("must not have been used")
      // Against the real kernel: a file that is no device knows no ioctl of one.
      const none = openSync("/dev/null", "r+")
      const recipe = yield* VhostVdpa.make({ fd: none })
      expect(yield* failure(recipe.connect)).toMatchObject({ _tag: "ENODEV", detail: "this is no vhost-vdpa device" })
      expect(() => closeSync(none)).toThrow("EBADF")
    }))

  live("of another kind is refused before anything is changed", () =>
    Effect.gen(function*() {
      const simulated = simulate({ deviceId: 1 })
      const error = yield* failure(connectTo(simulated))
      expect(error._tag).toBe("ENODEV")
      expect(error.message).toContain("virtio device id 1: must be 2, a block device")
      expect(simulated.log).toStrictEqual(["open", "VHOST_VDPA_GET_DEVICE_ID", "close"])
    }))

  live("is told that memory is reached as the platform has it", () =>
    Effect.gen(function*() {
      const simulated = simulate({ features: FEATURES | featureMask(FeatureBit.ORDER_PLATFORM) })
      const connection = yield* connectTo(simulated)
      yield* connection.negotiate(features | featureMask(FeatureBit.RO))
      const { ACCESS_PLATFORM, ORDER_PLATFORM } = FeatureBit
      expect(simulated.driverFeatures).toBe(features | featureMask(ACCESS_PLATFORM, ORDER_PLATFORM))
    }))

  live("that keeps its status is not used", () =>
    Effect.gen(function*() {
      expect((yield* failure(connectTo(simulate({ status: 15, resets: false })))).message).toContain(
        "does not reset: its status stays 15"
      )
      expect((yield* failure(connectTo(simulate({ refusesStatus: 2 })))).message).toContain("its status is 1")
    }))

  live("that does not accept the features: ENOTSUP", () =>
    Effect.gen(function*() {
      const connection = yield* connectTo(simulate({ refusesStatus: 8 }))
      const unread = yield* Effect.flip(connection.negotiate(features))
      expect(unread).toMatchObject({ _tag: "ENOTSUP" })
      expect(unread.message).toContain("FEATURES_OK reads back as 0")
      const other = simulate()
      other.faults.set("VHOST_SET_FEATURES", errno.EINVAL)
      const refused = yield* Effect.flip((yield* connectTo(other)).negotiate(features))
      expect(refused).toMatchObject({ _tag: "ENOTSUP" })
      expect(refused.message).toContain("features 0x300000200")
    }))

  live("with nothing to give is refused", () =>
    Effect.gen(function*() {
      const low = { first: 0n, last: 4095n }
      expect(yield* failure(connectTo(simulate({ iovaRange: low })))).toMatchObject({ _tag: "ENOTSUP" })
      expect(yield* failure(connectTo(simulate({ rings: 0, missing: [] })))).toMatchObject({ _tag: "EPROTO" })
      expect(yield* failure(connectTo(simulate({ ringSize: 0 })))).toMatchObject({ _tag: "EPROTO" })
    }))
})

describe("an older kernel", () => {
  const missing = [
    "VHOST_GET_BACKEND_FEATURES",
    "VHOST_VDPA_GET_IOVA_RANGE",
    "VHOST_VDPA_GET_CONFIG_SIZE",
    "VHOST_VDPA_GET_VQS_COUNT",
    "VHOST_VDPA_SET_CONFIG_CALL"
  ] as const

  live("is made do with", () =>
    Effect.gen(function*() {
      const simulated = simulate({ missing, beyondConfig: "E2BIG" })
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* connectTo(simulated)
        expect(connection.maxQueues).toBe(4)
        yield* run(connection)
        expect(yield* connection.readConfig).toStrictEqual(diskConfig)
      }))
      expect(simulated.violations).toStrictEqual([])
      expect(simulated.log).toContain("UPDATE 0x10000+4096 v1")
      // The size that worked is asked for again, and no other.
      expect(simulated.log.filter((call) => /^VHOST_VDPA_GET_CONFIG \d/.test(call))).toStrictEqual(
        [96, 72, 60, 60, 60].map((size) => `VHOST_VDPA_GET_CONFIG ${size}`)
      )
    }))

  live("and a device without MQ has one queue", () =>
    Effect.gen(function*() {
      const withoutMq = FEATURES & ~featureMask(FeatureBit.MQ)
      expect((yield* connectTo(simulate({ missing, features: withoutMq }))).maxQueues).toBe(1)
    }))

  live("that takes messages of version 2 but no batches gets none", () =>
    Effect.gen(function*() {
      const simulated = simulate({ backendFeatures: 2n })
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* connectTo(simulated)
        yield* connection.map(yield* MemoryRegion.allocate(4096))
      }))
      expect(simulated.log.slice(-4)).toStrictEqual([
        "UPDATE 0x10000+4096 v2",
        "VHOST_VDPA_SET_STATUS 0",
        "INVALIDATE 0x10000+4096 v2",
        "close"
      ])
      expect(simulated.violations).toStrictEqual([])
    }))

  live("reads as much of a configuration as there is", () =>
    Effect.gen(function*() {
      for (const size of [8, 24, 60, 96, 4096]) {
        const connection = connectTo(simulate({ config: new Uint8Array(size).fill(1) }))
        const read = yield* Effect.scoped(Effect.flatMap(connection, ({ readConfig }) => readConfig))
        expect(read).toStrictEqual(new Uint8Array(Math.min(size, 96)).fill(1))
      }
      const none = connectTo(simulate({ config: new Uint8Array(0) }))
      expect(yield* Effect.scoped(Effect.flatMap(none, ({ readConfig }) => readConfig))).toHaveLength(0)
    }))
})

describe("opening", () => {
  const tags = [
    "ENOENT",
    "ENOTDIR",
    "ELOOP",
    "ENAMETOOLONG",
    "EACCES",
    "EPERM",
    "EISDIR",
    "EBUSY",
    "ENODEV",
    "ENXIO",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EIO"
  ] as const
  for (const tag of tags) {
    live(`that the system refuses with ${tag} says so`, () =>
      Effect.gen(function*() {
        const simulated = simulate()
        simulated.faults.set("open", errno[tag])
        expect(yield* failure(connectTo(simulated))).toMatchObject({ _tag: tag, path, syscall: "open" })
      }))
  }

  live("on the real system: ENOENT, EISDIR, ENODEV for a file, EINVAL for a zero byte", () =>
    Effect.gen(function*() {
      const tagOf = Effect.fnUntraced(function*(path: string) {
        return (yield* failure(Effect.flatMap(VhostVdpa.make({ path }), ({ connect }) => connect)))._tag
      })
      expect(yield* tagOf("/dev/no-such-device")).toBe("ENOENT")
      expect(yield* tagOf("/dev")).toBe("EISDIR")
      expect(yield* tagOf("/dev/null")).toBe("ENODEV")
      expect(yield* tagOf("/dev/null/x")).toBe("ENOTDIR")
      expect(yield* tagOf("/dev/\0")).toBe("EINVAL")
    }))

  live("that does not end: ETIMEDOUT, and what is opened in the end is closed", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      simulated.faults.set("open", "hang")
      const error = yield* failure(connectTo(simulated, { path, replyTimeout: "50 millis" }))
      expect(error).toMatchObject({ _tag: "ETIMEDOUT", path })
      simulated.resume()
      expect(simulated.log).toStrictEqual(["open", "close"])
    }))
})

describe("memory", () => {
  live("lies inside the range that the device reports", () =>
    Effect.gen(function*() {
      const simulated = simulate({ iovaRange: { first: 0x12345n, last: 0x4ffffn } })
      const connection = yield* connectTo(simulated)
      const map = Effect.flatMap(MemoryRegion.allocate(0x10000), connection.map)
      expect([yield* map, yield* map, yield* map]).toStrictEqual([0x20000, 0x30000, 0x40000])
      const error = yield* Effect.flip(map)
      expect(error).toMatchObject({ _tag: "ENOMEM", operation: "map region", length: 0x10000 })
    }))

  live("is taken back, and its addresses are used again", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const connection = yield* connectTo(simulated)
      const [one, two] = [yield* MemoryRegion.allocate(10), yield* MemoryRegion.allocate(5000)]
      expect([yield* connection.map(one), yield* connection.map(two)]).toStrictEqual([0x10000, 0x20000])
      yield* connection.unmap(one)
      yield* connection.unmap(one)
      expect(yield* connection.map(one)).toBe(0x10000)
      expect(simulated.log.slice(-4)).toStrictEqual([
        "UPDATE 0x10000+4096 v2",
        "UPDATE 0x20000+8192 v2",
        "INVALIDATE 0x10000+4096 v2",
        "UPDATE 0x10000+4096 v2"
      ])
      simulated.faults.set("INVALIDATE", errno.EFAULT)
      yield* connection.unmap(one)
      simulated.faults.clear()
      // What the kernel did not take back is not given away again.
      expect(yield* connection.map(one)).toBe(0x30000)
    }))

  live("that is left is taken back at the end, in one batch", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* connectTo(simulated)
        for (let i = 0; i < 2; i++) yield* connection.map(yield* MemoryRegion.allocate(4096))
      }))
      expect(simulated.log.slice(-6)).toStrictEqual([
        "VHOST_VDPA_SET_STATUS 0",
        "BATCH_BEGIN",
        "INVALIDATE 0x10000+4096 v2",
        "INVALIDATE 0x20000+4096 v2",
        "BATCH_END",
        "close"
      ])
      expect(simulated.violations).toStrictEqual([])
    }))

  live(
    "that is not shared and mapped from a file is refused before a device can hang on it",
    () =>
      Effect.gen(function*() {
        const simulated = simulate()
        const connection = yield* connectTo(simulated)
        const region = yield* MemoryRegion.allocate(4096)
        const maps = readFileSync("/proc/self/maps", "utf8")
        const places = [/^([0-9a-f]+).* rw-p .*\[heap\]$/mu, /^([0-9a-f]+).* r-xp .*\/node$/mu]
        const addresses = places.flatMap((place) => {
          const [, start] = place.exec(maps) ?? []
          return start === undefined ? [] : [Number.parseInt(start, 16)]
        })
        expect(addresses.length).toBeGreaterThan(0)
        for (const address of [...addresses, 4096]) {
          const error = yield* Effect.flip(connection.map({ ...region, address }))
          expect(error).toMatchObject({ _tag: "EINVAL", operation: "map region" })
          expect(error.message).toContain("must be shared and mapped from a file")
        }
        // As is what begins in shared memory and goes on behind it.
        const error = yield* Effect.flip(connection.map({ ...region, length: 2 ** 40 }))
        expect(error._tag).toBe("EINVAL")
        expect(simulated.log).toStrictEqual(HANDSHAKE)
      })
  )

  live(
    "that the kernel refuses: EIO, or ENOMEM where it says so, and its addresses stay free",
    () =>
      Effect.gen(function*() {
        const simulated = simulate()
        const connection = yield* connectTo(simulated)
        const region = yield* MemoryRegion.allocate(4096)
        for (const [number, tag] of [[errno.EFAULT, "EIO"], [errno.EEXIST, "EIO"], [errno.ENOMEM, "ENOMEM"]] as const) {
          simulated.faults.set("UPDATE", number)
          const error = yield* Effect.flip(connection.map(region))
          expect(error).toMatchObject({ _tag: tag, operation: "map region", length: 4096, syscall: "write" })
        }
        simulated.faults.clear()
        expect(yield* connection.map(region)).toBe(0x10000)
      })
  )

  const { limit } = lockedMemory()
  it.skipIf(limit > 2 ** 32)("has a limit to tell of", () => expect(limit).toBeGreaterThan(0))
  if (limit <= 2 ** 32) {
    live(
      "beyond the limit on locked memory: the limit is named, since the kernel does not",
      () =>
        Effect.gen(function*() {
          const simulated = simulate()
          const connection = yield* connectTo(simulated)
          simulated.faults.set("UPDATE", errno.EFAULT)
          const error = yield* Effect.flip(connection.map(yield* MemoryRegion.allocate(limit + 4096)))
          expect(error._tag).toBe("ENOMEM")
          expect(error.message).toContain(`RLIMIT_MEMLOCK), which is ${limit} bytes`)
        })
    )
  }
})

describe("every call", () => {
  /** By name, as each is made for the first time. */
  const names = [
    ...new Set(
      [...HANDSHAKE, "VHOST_VDPA_GET_CONFIG", ...NEGOTIATION, "UPDATE", ...START].map((call) =>
        call.split(" ")[0] ?? ""
      )
    )
  ].filter((name) => name !== "open")

  for (const name of names) {
    live(`that fails is a typed error: ${name}`, () =>
      Effect.gen(function*() {
        const simulated = simulate()
        simulated.faults.set(name, errno.EPROTONOSUPPORT)
        const error = yield* failure(Effect.flatMap(connectTo(simulated), run))
        expect(error._tag).toBe(name === "VHOST_VDPA_GET_DEVICE_ID" ? "ENODEV" : "EIO")
        if (name.startsWith("VHOST") && error._tag === "EIO") expect(error.message).toContain(name)
        expect(simulated.isOpen).toBe(false)
      }))

    live(`that says that there is no device ends the connection: ${name}`, () =>
      Effect.gen(function*() {
        const simulated = simulate()
        simulated.faults.set(name, errno.ENODEV)
        expect(yield* failure(Effect.flatMap(connectTo(simulated), run))).toMatchObject({ _tag: "ENODEV" })
        expect(simulated.isOpen).toBe(false)
      }))
  }

  live("that does not return is given up, and the device closed once it does", () =>
    Effect.gen(function*() {
      const ends = Effect.forEach(names, (name) =>
        Effect.gen(function*() {
          const simulated = simulate()
          simulated.faults.set(name, "hang")
          const error = yield* failure(Effect.flatMap(connectTo(simulated, { path, replyTimeout: "500 millis" }), run))
          expect(error.message).toContain("has not returned within 500 ms")
          // Its number must not stand for something else while the call may still come to be made.
          const isOpenBefore = simulated.isOpen
          simulated.resume()
          return [name, error._tag, isOpenBefore, simulated.isOpen]
        }), { concurrency: "unbounded" })
      expect(yield* ends).toStrictEqual(names.map((name) => [name, "ETIMEDOUT", true, false]))
    }))
})

describe("starting", () => {
  live("that fails can be tried again, with all that was agreed upon", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const connection = yield* connectTo(simulated)
      yield* connection.negotiate(features)
      const base = yield* connection.map(yield* MemoryRegion.allocate(4096))
      const start = Effect.andThen(
        Effect.addFinalizer(() => connection.stop),
        connection.start(queuesAt(base))
      )
      simulated.faults.set("VHOST_VDPA_SET_VRING_ENABLE", errno.EINVAL)
      expect(yield* failure(start)).toMatchObject({ _tag: "EIO" })
      expect(simulated.status).toBe(0)
      simulated.faults.clear()
      simulated.log.length = 0
      yield* start
      expect(simulated.log).toStrictEqual([
        "VHOST_VDPA_SET_STATUS 1",
        "VHOST_VDPA_GET_STATUS",
        "VHOST_VDPA_SET_STATUS 3",
        "VHOST_VDPA_GET_STATUS",
        ...NEGOTIATION,
        ...START
      ])
      expect(simulated.violations).toStrictEqual([])
    }))

  live("that the device does not take: EIO", () =>
    Effect.gen(function*() {
      const error = yield* failure(Effect.flatMap(connectTo(simulate({ refusesStatus: 4 })), run))
      expect(error._tag).toBe("EIO")
      expect(error.message).toContain("its status is 11 after DRIVER_OK")
    }))

  live("is not undone twice", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* connectTo(simulated)
        yield* run(connection)
        yield* connection.stop
        yield* connection.stop
      }))
      expect(simulated.log.filter((call) => call === "VHOST_VDPA_SET_STATUS 0")).toHaveLength(2)
    }))

  live("a device that does not let itself be reset is lost", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const connection = yield* connectTo(simulated)
      yield* Effect.scoped(run(connection))
      yield* connection.negotiate(features)
      simulated.faults.set("VHOST_VDPA_SET_STATUS", errno.EIO)
      yield* connection.stop
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENOTCONN" })
      simulated.faults.clear()
    }))
})

describe("a device that runs", () => {
  const started = Effect.fnUntraced(function*(simulated: SimulatedVdpa) {
    const connection = yield* connectTo(simulated)
    yield* run(connection)
    return connection
  })

  live("tells of a changed configuration", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const connection = yield* started(simulated)
      const change = yield* Effect.forkChild(Stream.runHead(connection.configChanged), { startImmediately: true })
      simulated.change(encodeConfig({ ...config, capacitySectors: 4096n }))
      yield* Fiber.join(change)
      expect(yield* connection.readConfig).toStrictEqual(simulated.config)
    }))

  live("that needs a reset is lost, and is reset at the end all the same", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* started(simulated)
        simulated.break()
        const reason = yield* Deferred.await(connection.lost)
        expect(reason).toMatchObject({ _tag: "ENOTCONN" })
        expect(reason.message).toContain("NEEDS_RESET")
        expect(yield* Effect.flip(connection.readConfig)).toBe(reason)
        expect(yield* Effect.flip(connection.map(yield* MemoryRegion.allocate(4096)))).toBe(reason)
      }))
      expect(simulated.log.slice(-3)).toStrictEqual([
        "VHOST_VDPA_SET_STATUS 0",
        "INVALIDATE 0x10000+4096 v2",
        "close"
      ])
    }))

  live("that is removed from the system is lost, so that its removal can go on", () =>
    Effect.gen(function*() {
      const simulated = simulate()
      const connection = yield* started(simulated)
      simulated.isRemoved = true
      const reason = yield* Deferred.await(connection.lost)
      expect(reason).toMatchObject({ _tag: "ENODEV" })
      expect(reason.message).toContain("removed from the system")
    }))

  live("is lost when its scope closes", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const connection = yield* Effect.provideService(started(simulate()), Scope.Scope, scope)
      yield* Scope.close(scope, Exit.void)
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENOTCONN" })
      expect(yield* Effect.flip(connection.readConfig)).toMatchObject({ _tag: "ENOTCONN" })
      yield* connection.stop
    }))
})

describe("a whole device", () => {
  const layouts: ReadonlyArray<[name: string, features: bigint]> = [
    ["split", FEATURES],
    ["packed", FEATURES | featureMask(FeatureBit.RING_PACKED)],
    // As the kernel's simulator: neither indirect descriptors nor EVENT_IDX.
    ["plain split", 0x308007646n]
  ]
  for (const [name, offered] of layouts) {
    live(`reads what it wrote on every queue (${name} rings)`, () =>
      Effect.gen(function*() {
        const disk = new Uint8Array(MiB)
        const simulated = simulate({ disk, features: offered })
        yield* Effect.scoped(Effect.gen(function*() {
          const transport = yield* VhostVdpa.make({ path })
          const device = yield* on(simulated)(
            VirtioBlk.make(transport, { numQueues: 3, numPollQueues: 1 })
          )
          const { bytes } = yield* device.allocate(4 * 65536)
          bytes.forEach((_, i) => bytes[i] = i * 7 + (i >> 8))
          const expected = bytes.slice()
          const queues = [...device.queues, ...device.pollQueues]
          expect(queues).toHaveLength(4)
          for (const [index, queue] of queues.entries()) {
            yield* queue.write(index * 65536, bytes.subarray(index * 65536, (index + 1) * 65536))
          }
          expect(disk.subarray(0, expected.length)).toStrictEqual(expected)
          bytes.fill(0)
          yield* Effect.forEach(queues, (queue, index) =>
            queue.read(index * 65536, bytes.subarray(index * 65536, (index + 1) * 65536)), { concurrency: "unbounded" })
          expect(bytes).toStrictEqual(expected)
          yield* device.queue(0).flush()
        }))
        expect(simulated.violations).toStrictEqual([])
        const [reset, close] = [simulated.log.lastIndexOf("VHOST_VDPA_SET_STATUS 0"), simulated.log.indexOf("close")]
        const invalidations = simulated.log.flatMap((call, i) =>
          call.startsWith("INVALIDATE") ? [i] : []
        )
        expect(invalidations.length).toBeGreaterThan(0)
        expect(invalidations.every((at) => reset < at && at < close)).toBe(true)
      }))
  }

  live("that breaks ends its requests with the reason", () =>
    Effect.gen(function*() {
      const simulated = simulate({ disk: new Uint8Array(MiB) })
      const device = yield* on(simulated)(VirtioBlk.make(yield* VhostVdpa.make({ path })))
      const { bytes } = yield* device.allocate(4096)
      simulated.devices.forEach((fake) => fake.mischief = "silent")
      const read = yield* Effect.forkChild(Effect.flip(device.queue(0).read(0, bytes)), { startImmediately: true })
      simulated.break()
      expect(yield* Fiber.join(read)).toMatchObject({ _tag: "ENOTCONN" })
    }))
})
