/**
 * Goal: the VFIO transport drives a virtio device on PCI by the rules of VFIO, PCI and virtio, whichever interrupts and whichever
 * interface of the kernel there are; whatever is refused, broken or taken away is a typed error that says what to do; and the
 * device has let go of everything before memory goes.
 * Method: a simulated kernel and device (test/support/SimulatedVfio.ts) in place of the system calls, which note the order of
 * what is asked and every broken rule, and fail each call in turn. Every test must leave the process as it was. The real kernel
 * is in test/guest.
 */
import { describe, expect, it } from "@effect/vitest"
import { Config, ConfigProvider, Deferred, Effect, Fiber, Layer, Stream } from "effect"
import { constants } from "node:os"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import { Kernel } from "../../src/Native/Kernel.ts"
import { Transport } from "../../src/Transport/Transport.ts"
import * as VfioPci from "../../src/Transport/VfioPci.ts"
import * as VirtioBlk from "../../src/VirtioBlk.ts"
import { IrqIndex } from "../../src/Wire/VfioIoctl.ts"
import { encodeConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import { config } from "../Properties/facts.ts"
import { deviceFeatures, type Options, SimulatedVfio } from "../support/SimulatedVfio.ts"
import { live } from "../support/resources.ts"

const { EACCES, EBUSY, EINVAL, EIO, EMFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, EPERM } = constants.errno

/** A simulated kernel that must be left without a descriptor, a mapping or a broken rule. */
const simulated = (options: Options = {}) =>
  Effect.acquireRelease(
    Effect.sync(() => new SimulatedVfio(options)),
    (kernel) =>
      Effect.sync(() => {
        kernel.dispose()
        expect(kernel.open).toStrictEqual([])
        expect(kernel.violations).toStrictEqual([])
      })
  )

const recipe = (kernel: SimulatedVfio, options: Partial<VfioPci.Options> = {}) =>
  Effect.map(
    VfioPci.make({ path: kernel.path, ...options }),
    (made) => ({ ...made, connect: Effect.provideService(made.connect, Kernel, kernel.kernel) })
  )

const connected = Effect.fnUntraced(
  function*(options: Options = {}, prepare: (kernel: SimulatedVfio) => void = () => {}) {
    const kernel = yield* simulated(options)
    prepare(kernel)
    const { connect } = yield* recipe(kernel, { resetTimeout: "50 millis" })
    return { kernel, connection: yield* connect }
  }
)

/** What connecting fails with. */
const refused = (options: Options = {}, prepare: (kernel: SimulatedVfio) => void = () => {}) =>
  Effect.flip(Effect.scoped(connected(options, prepare)))

/** A device as applications see it, with all its queues started. */
const started = Effect.fnUntraced(
  function*(options: Options = {}, prepare: (kernel: SimulatedVfio) => void = () => {}) {
    const kernel = yield* simulated(options)
    prepare(kernel)
    const device = yield* VirtioBlk.create(yield* recipe(kernel)).connect
    yield* device.properties.set({ numQueues: options.queues ?? 4, queueSize: 16 })
    return { kernel, device: yield* device.start({ waiting: "event" }) }
  }
)

/** The block of the device. */
const BLOCK = 4096

const queueAt = (address: number) => ({
  queueSize: 16,
  descriptors: address,
  avail: address + 256,
  used: address + 512
})

const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => condition() ? Effect.void : Effect.andThen(Effect.sleep(1), until(condition)))

describe("options", () => {
  const bad: ReadonlyArray<readonly [name: string, options: unknown, says: string]> = [
    ["no path", {}, "path"],
    ["an empty path", { path: "" }, "path must be set"],
    ["a path with a zero byte", { path: "a\0b" }, "zero byte"],
    ["a path that is no string", { path: 7 }, "path"],
    ["a key that is none", { path: "0000:01:00.0", pth: 1 }, "pth"],
    ["a time limit of 0", { path: "0000:01:00.0", resetTimeout: 0 }, "reset time limit 0 must be a positive duration"],
    ["a time limit that is none", { path: "0000:01:00.0", resetTimeout: "soon" }, "must be a positive duration"],
    ["no options", undefined, "object"]
  ]
  for (const [name, options, says] of bad) {
    it.effect(`EINVAL for ${name}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(VfioPci.make(options as VfioPci.Options))
        expect(error).toMatchObject({ _tag: "EINVAL", operation: "vfio-pci" })
        expect(error.message).toContain(says)
      }))
  }

  it.effect("ENOENT for fd, which this transport has not", () =>
    Effect.gen(function*() {
      const options = { path: "0000:01:00.0", fd: 3 }
      expect(yield* Effect.flip(VfioPci.make(options))).toMatchObject({ _tag: "ENOENT" })
    }))

  it.effect("an address stands for its directory in sysfs", () =>
    Effect.map(VfioPci.make({ path: "0000:0A:00.1" }), (transport) =>
      expect(transport).toMatchObject({
        driver: "virtio-blk-vfio-pci",
        path: "/sys/bus/pci/devices/0000:0a:00.1",
        fd: -1
      })))

  it.effect("is provided by layers, from options and from configuration", () =>
    Effect.gen(function*() {
      const pathOf = Effect.map(Transport, ({ path }) => path)
      expect(yield* Effect.provide(pathOf, VfioPci.layer({ path: "/a" }))).toBe("/a")
      const configured = VfioPci.layerConfig({ path: Config.String("DISK") }).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ DISK: "/b" })))
      )
      expect(yield* Effect.provide(pathOf, configured)).toBe("/b")
    }))
})

describe("I/O", () => {
  const ways: ReadonlyArray<readonly [name: string, options: Options]> = [
    ["a vector for each queue", {}],
    ["a vector for each of many", { queues: 8, msix: 64 }],
    ["vectors that queues share", { msix: 3 }],
    ["one vector for all", { msix: 1 }],
    ["fewer vectors than the device has", { msixGiven: 2 }],
    ["INTx", { msix: 0 }],
    ["iommufd", { cdev: true }],
    ["a kernel that tells no ranges", { iommu: "no ranges" }],
    ["a kernel that tells nothing", { iommu: "no capabilities" }],
    ["doorbells beside what can be mapped", { mappable: "others" }],
    ["a packed ring", { features: deviceFeatures | featureMask(FeatureBit.RING_PACKED) }],
    ["a transitional device", { device: "0x1001" }]
  ]
  for (const [name, options] of ways) {
    live(`works with ${name}`, () =>
      Effect.gen(function*() {
        const { device, kernel } = yield* started(options)
        const { bytes } = yield* device.allocate(65536)
        for (const [i, queue] of device.queues.entries()) {
          const [written, read] = [bytes.subarray(0, BLOCK), bytes.subarray(BLOCK, 2 * BLOCK)]
          written.fill(i + 1)
          yield* queue.write(i * BLOCK, written)
          expect(kernel.disk[i * BLOCK]).toBe(i + 1)
          yield* queue.read(i * BLOCK, read)
          expect(read).toStrictEqual(written)
        }
        // All at once, so that shared interrupts come for more than one.
        yield* Effect.forEach(device.queues, (queue, i) => queue.read(0, bytes.subarray(i * BLOCK, (i + 1) * BLOCK)), {
          concurrency: "unbounded"
        })
        expect(kernel.devices.map(({ taken }) => taken.length)).toStrictEqual(device.queues.map(() => 3))
      }))
  }

  for (const mappable of ["all", "doorbells"] as const) {
    live(`rings doorbells by a store where ${mappable} can be mapped`, () =>
      Effect.gen(function*() {
        const { device, kernel } = yield* started({ mappable })
        const { bytes } = yield* device.allocate(4096)
        const reading = yield* Effect.forkChild(device.queue(2).read(0, bytes.subarray(0, BLOCK)))
        yield* until(() => kernel.mapped[4] !== 0xffff)
        // The number of the queue, at its own doorbell and at no other; and no system call.
        expect([...kernel.mapped.subarray(0, 8)].filter((value) => value !== 0xffff)).toStrictEqual([2])
        expect(kernel.rings).toBe(0)
        kernel.poll()
        yield* Fiber.join(reading)
      }))
  }

  live("rings by a write where mapping fails, and tells the errno of one that fails", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected({ mappable: "all" }, ({ faults }) => faults.set("mmap", ENOMEM))
      yield* connection.negotiate(connection.features)
      const [channel] = yield* connection.start([queueAt(2 ** 32)])
      kernel.faults.set("pwrite", EIO)
      expect(channel?.notify()).toBe(EIO)
      kernel.faults.delete("pwrite")
    }))
})

describe("connecting", () => {
  live("tells what the device and the IOMMU have", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ queues: 3, queueSize: 200, available: 1000 })
      expect(connection).toMatchObject({
        features: deviceFeatures,
        maxQueues: 3,
        maxQueueSize: 128,
        maxRegions: 1000,
        regionAlignment: 4096,
        needsRegionFd: false
      })
    }))

  live("takes the platform's features beside those that the driver wants", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected()
      yield* connection.negotiate(featureMask(FeatureBit.VERSION_1))
      expect(kernel.driverFeatures)
        .toBe(featureMask(FeatureBit.VERSION_1, FeatureBit.ACCESS_PLATFORM, FeatureBit.ORDER_PLATFORM))
      expect(kernel.status).toBe(11)
    }))

  live("goes by the group where /dev/iommu does not open", () =>
    Effect.gen(function*() {
      const { kernel } = yield* connected({ cdev: true }, ({ faults }) => faults.set("open /dev/iommu", EACCES))
      expect(kernel.calls).toContain("open /dev/vfio/8")
    }))

  live("asks iommufd again where it has more ranges than there was room for", () =>
    Effect.gen(function*() {
      const { kernel } = yield* connected({ cdev: true, available: 100 })
      expect(kernel.calls.filter((call) => call === "IOAS_IOVA_RANGES")).toHaveLength(2)
    }))

  const wrong: ReadonlyArray<
    readonly [
      name: string,
      tag: string,
      says: string,
      options: Options,
      faults?: ReadonlyArray<readonly [string, number]>
    ]
  > = [
    ["what is no virtio device", "ENODEV", "8086:100e is no virtio device", { vendor: "0x8086", device: "0x100e" }],
    ["a virtio device of another type", "ENODEV", "no block device", { device: "0x1041" }],
    ["a device without driver", "ENODEV", "bound to no driver; bind it to vfio-pci", { driver: null }],
    ["a device of its usual driver", "ENODEV", "bound to virtio-pci; bind it to vfio-pci", { driver: "virtio-pci" }],
    ["a device without IOMMU", "ENODEV", "behind no IOMMU", { group: null }],
    ["a legacy device", "ENOTSUP", "only the legacy interface", { capabilities: "none" }],
    ["capabilities that go round in circles", "EPROTO", "has a loop", { capabilities: "loop" }],
    ["a device without interrupt status", "EPROTO", "for isr", { capabilities: "no isr" }],
    ["a structure in a BAR that is not there", "EPROTO", "must lie within the 0 bytes of BAR 2", { pciBar: 2 }],
    ["doorbells beyond the BAR", "EPROTO", "must lie within the 16384 bytes", { notifyLength: 0x1001 }],
    ["a device without VERSION_1", "ENOTSUP", "VERSION_1", {
      features: deviceFeatures & ~featureMask(FeatureBit.VERSION_1)
    }],
    ["a device past the IOMMU", "ENOTSUP", "ACCESS_PLATFORM", {
      features: deviceFeatures & ~featureMask(FeatureBit.ACCESS_PLATFORM)
    }],
    ["a device without interrupts", "ENOTSUP", "no interrupts", { msix: 0, intx: 0 }],
    ["a device without queues", "EPROTO", "no queue", { queues: 0 }],
    ["queues of size 0", "EPROTO", "no queue", { queueSize: 0 }],
    ["a kernel without VFIO", "ENOENT", "modprobe", {}, [["open /dev/vfio/vfio", ENOENT]]],
    ["a group without file", "ENOENT", "device file", {}, [["open /dev/vfio/8", ENOENT]]],
    ["a group that is another user's", "EACCES", "chown", {}, [["open /dev/vfio/8", EACCES]]],
    ["a group that another process has", "EBUSY", "another process has", {}, [["open /dev/vfio/8", EBUSY]]],
    ["too many open files", "EMFILE", "", {}, [["open /dev/vfio/8", EMFILE]]],
    ["a group that does not join", "EIO", "does not join", {}, [["GROUP_SET_CONTAINER", EINVAL]]],
    ["interrupts that cannot be kept apart", "EPERM", "allow_unsafe_interrupts", {}, [["SET_IOMMU", EPERM]]],
    ["the same by iommufd", "EPERM", "allow_unsafe_interrupts", { cdev: true }, [["DEVICE_ATTACH_IOMMUFD_PT", EPERM]]],
    ["a device bound by another process", "EBUSY", "another process", { cdev: true }, [["DEVICE_BIND_IOMMUFD", EBUSY]]],
    ["iommufd that does not tell its ranges", "EIO", "which addresses", { cdev: true }, [["IOAS_IOVA_RANGES", EINVAL]]],
    ["an IOMMU that does not tell", "EIO", "what it can do", {}, [["IOMMU_GET_INFO", EINVAL]]],
    ["a device that VFIO does not give", "ENODEV", "still bound", {}, [["GROUP_GET_DEVICE_FD", ENODEV]]],
    ["a device that tells nothing", "EIO", "what it is", {}, [["DEVICE_GET_INFO", EINVAL]]],
    ["a device without regions", "EIO", "region", {}, [["DEVICE_GET_REGION_INFO", EINVAL]]],
    ["registers that cannot be read", "EIO", "cannot be read", {}, [["pread", EIO]]],
    ["registers that cannot be written", "EIO", "command register", {}, [["pwrite", EIO]]]
  ]
  for (const [name, tag, says, options, faults = []] of wrong) {
    live(`${tag} for ${name}`, () =>
      Effect.gen(function*() {
        const error = yield* refused(options, (kernel) => {
          for (const [call, errno] of faults) kernel.faults.set(call, errno)
        })
        expect(error._tag).toBe(tag)
        expect(error.message).toContain(says)
      }))
  }

  live("EBUSY for a group with a device of another driver", () =>
    Effect.gen(function*() {
      const error = yield* refused({}, (kernel) => {
        kernel.viable = false
      })
      expect(error._tag).toBe("EBUSY")
      expect(error.message).toContain("another device of the IOMMU group")
    }))

  it.effect("ENOENT for a device that is not there, ENODEV for a folder that is none", () =>
    Effect.gen(function*() {
      const connect = (path: string) =>
        Effect.flatMap(VfioPci.make({ path }), ({ connect }) => Effect.flip(Effect.scoped(connect)))
      expect(yield* connect("/nowhere/0000:01:00.0")).toMatchObject({ _tag: "ENOENT", path: "/nowhere/0000:01:00.0" })
      expect(yield* connect(import.meta.filename)).toMatchObject({ _tag: "ENOTDIR" })
      expect(yield* connect(import.meta.dirname)).toMatchObject({ _tag: "ENODEV" })
    }))
})

describe("configuration", () => {
  for (const configBytes of [96, 60, 59, 36, 24, 10, 8]) {
    live(`is read as far as it goes, ${configBytes} bytes`, () =>
      Effect.gen(function*() {
        const { connection, kernel } = yield* connected({ configBytes: Math.min(configBytes, 60) })
        const read = yield* connection.readConfig
        expect(read).toStrictEqual(kernel.config.subarray(0, read.length))
        expect(read.length).toBe(Math.min(configBytes === 10 ? 8 : configBytes, 60))
      }))
  }

  live("is read again while it changes, and given up in the end", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected()
      kernel.unsteady = 15
      expect(yield* connection.readConfig).toStrictEqual(kernel.config)
      kernel.unsteady = 16
      expect(yield* Effect.flip(connection.readConfig)).toMatchObject({ _tag: "EIO" })
    }))

  for (
    const [name, options] of [["its own vector", {}], ["a shared vector", { msix: 1 }], ["INTx", { msix: 0 }]] as const
  ) {
    live(`changes are told by ${name}`, () =>
      Effect.gen(function*() {
        const { device, kernel } = yield* started(options)
        const changes = yield* device.configChanges.pipe(
          Stream.take(2),
          Stream.runCollect,
          Effect.forkChild({ startImmediately: true })
        )
        for (const sectors of [100n, 200n]) {
          kernel.change(encodeConfig({ ...config, capacitySectors: sectors }))
          yield* until(() => device.capacity === Number(sectors) * 512)
        }
        expect((yield* Fiber.join(changes)).map(({ capacity }) => capacity)).toStrictEqual([51200, 102400])
      }))
  }
})

describe("memory", () => {
  live(
    "is mapped in whole pages, above what may be hit by mistake, and unmapped as it was",
    () =>
      Effect.gen(function*() {
        const { connection, kernel } = yield* connected()
        const small = yield* MemoryRegion.allocate(100)
        const large = yield* MemoryRegion.allocate(8193)
        expect(yield* connection.map(small)).toBe(2 ** 20)
        expect(yield* connection.map(large)).toBe(2 ** 20 + 4096)
        expect([...kernel.mappings].map(([iova, { length }]) => [iova, length]))
          .toStrictEqual([[2 ** 20, 4096], [2 ** 20 + 4096, 12288]])
        yield* connection.unmap(small)
        yield* connection.unmap(small)
        yield* connection.unmap(large)
        expect(kernel.mappings.size).toBe(0)
        expect(yield* connection.map(large)).toBe(2 ** 20)
        yield* connection.unmap(large)
      })
  )

  for (const cdev of [false, true]) {
    live(`ENOMEM explains the limit, ${cdev ? "iommufd" : "container"}`, () =>
      Effect.gen(function*() {
        const { connection, kernel } = yield* connected({ cdev })
        const region = yield* MemoryRegion.allocate(8192)
        const name = cdev ? "IOAS_MAP" : "IOMMU_MAP_DMA"
        kernel.faults.set(name, ENOMEM)
        const error = yield* Effect.flip(connection.map(region))
        expect(error).toMatchObject({ _tag: "ENOMEM", operation: "map region" })
        expect(error.message).toMatch(
          /8192 bytes could not be pinned: .* limit on locked memory, which is (\d+ bytes|unlimited) /
        )
        kernel.faults.set(name, ENOSPC)
        expect(yield* Effect.flip(connection.map(region))).toMatchObject({ _tag: "ENOSPC" })
        kernel.faults.set(name, EINVAL)
        expect(yield* Effect.flip(connection.map(region))).toMatchObject({ _tag: "EIO" })
        kernel.faults.delete(name)
        // The address of the failed attempts was given back.
        expect(yield* connection.map(region)).toBe(2 ** 20)
        yield* connection.unmap(region)
      }))
  }

  live("ENOSPC beyond the mappings that the IOMMU takes", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ available: 1 })
      const first = yield* MemoryRegion.allocate(4096)
      yield* connection.map(first)
      const second = yield* MemoryRegion.allocate(4096)
      expect(yield* Effect.flip(connection.map(second))).toMatchObject({ _tag: "ENOSPC" })
      yield* connection.unmap(first)
    }))

  live("an address that cannot be taken back is not given away again", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected()
      const region = yield* MemoryRegion.allocate(4096)
      yield* connection.map(region)
      kernel.faults.set("IOMMU_UNMAP_DMA", EIO)
      yield* connection.unmap(region)
      expect(yield* connection.map(region)).toBe(2 ** 20 + 4096)
    }))
})

describe("starting and stopping", () => {
  live("has the device let go in the order that leaves no access behind", () =>
    Effect.gen(function*() {
      const kernel = yield* simulated({ mappable: "all" })
      yield* Effect.scoped(Effect.gen(function*() {
        const device = yield* VirtioBlk.create(yield* recipe(kernel)).connect
        yield* device.start()
      }))
      expect(kernel.calls.slice(kernel.calls.indexOf("IOMMU_MAP_DMA")).filter((call) => call !== "DEVICE_SET_IRQS"))
        .toStrictEqual([
          "IOMMU_MAP_DMA",
          "mmap",
          "command 6",
          "irqs 2 2",
          "status 15",
          "munmap",
          "status 0",
          "command 2",
          "irqs 2 0",
          "IOMMU_UNMAP_DMA",
          "close device",
          "close group",
          "close container"
        ])
    }))

  live("is reset as a whole where the status does not go", () =>
    Effect.gen(function*() {
      const { kernel } = yield* connected({}, (kernel) => {
        kernel.resetReads = Infinity
      })
      expect(kernel.calls).toContain("DEVICE_RESET")
    }))

  live("ETIMEDOUT for a reset that never ends", () =>
    Effect.gen(function*() {
      const error = yield* refused({ canReset: false }, (kernel) => {
        kernel.resetReads = Infinity
      })
      expect(error._tag).toBe("ETIMEDOUT")
      expect(error.message).toContain("does not finish its reset: its status reads 4")
    }))

  live("ENODEV for a device that does not answer", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected()
      kernel.isGone = true
      expect(yield* Effect.flip(connection.negotiate(0n))).toMatchObject({ _tag: "ENODEV" })
    }))

  live(
    "ENOTSUP for features that the device does not take, which is told that it failed",
    () =>
      Effect.gen(function*() {
        const { connection, kernel } = yield* connected({}, (kernel) => {
          kernel.refuses = { status: 8 }
        })
        expect(yield* Effect.flip(connection.negotiate(0n))).toMatchObject({ _tag: "ENOTSUP" })
        expect(kernel.calls.at(-1)).toBe("status 128")
      })
  )

  const failures: ReadonlyArray<readonly [name: string, says: string, prepare: (kernel: SimulatedVfio) => void]> = [
    ["a vector for a queue", "no room for its vector", (kernel) => (kernel.refuses = { vector: 1 })],
    ["a vector for the configuration", "configuration's vector", (kernel) => (kernel.refuses = { vector: 0 })],
    ["a queue", "does not enable it", (kernel) => (kernel.refuses = { enable: true })],
    ["to start", "its status reads 11", (kernel) => (kernel.refuses = { status: 4 })],
    ["interrupts", "cannot be had", (kernel) => kernel.faults.set("DEVICE_SET_IRQS", EINVAL)]
  ]
  for (const [name, says, prepare] of failures) {
    live(`EIO where the device refuses ${name}, and it can be started again`, () =>
      Effect.gen(function*() {
        const { connection, kernel } = yield* connected()
        yield* connection.negotiate(connection.features)
        const start = Effect.andThen(Effect.addFinalizer(() => connection.stop), connection.start([queueAt(2 ** 32)]))
        prepare(kernel)
        const error = yield* Effect.flip(Effect.scoped(start))
        expect(error._tag).toBe("EIO")
        expect(error.message).toContain(says)
        kernel.refuses = {}
        kernel.faults.clear()
        yield* Effect.scoped(start)
        expect(kernel.listening(IrqIndex.MSIX)).toBe(0)
      }))
  }

  live("EPROTO for a doorbell beyond the doorbells", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ notifyLength: 4 })
      yield* connection.negotiate(connection.features)
      const queues = [queueAt(2 ** 32), queueAt(2 ** 33)]
      expect(yield* Effect.flip(connection.start(queues))).toMatchObject({ _tag: "EPROTO", queue: 1 })
    }))
})

describe("losing the device", () => {
  const ways: ReadonlyArray<readonly [name: string, tag: string, says: string, (kernel: SimulatedVfio) => void]> = [
    ["the host wants it back", "ENODEV", "wants the device back", (kernel) => kernel.signal(IrqIndex.REQ)],
    ["of an error of the bus", "ENOTCONN", "AER", (kernel) => kernel.signal(IrqIndex.ERR)],
    ["it wants to be reset", "ENOTCONN", "NEEDS_RESET", (kernel) => kernel.fail()],
    ["it is gone", "ENODEV", "taken away", (kernel) => {
      kernel.change(kernel.config)
      kernel.isGone = true
    }],
    ["its registers fail", "ENOTCONN", "does not answer", (kernel) => {
      kernel.faults.set("pread", EIO)
      kernel.change(kernel.config)
    }]
  ]
  for (const [name, tag, says, lose] of ways) {
    for (const msix of [5, 0]) {
      live(`${tag} because ${name}, with ${msix === 0 ? "INTx" : "MSI-X"}`, () =>
        Effect.gen(function*() {
          const { device, kernel } = yield* started({ msix })
          const { bytes } = yield* device.allocate(4096)
          lose(kernel)
          const error = yield* until(() => kernel.status === -1).pipe(
            Effect.raceFirst(Effect.flip(Effect.forever(device.queue(0).read(0, bytes.subarray(0, BLOCK)))))
          )
          expect(error).toMatchObject({ _tag: tag })
          expect(String(error)).toContain(says)
          kernel.faults.clear()
        }))
    }
  }

  live("is told once, and the connection can still be closed", () =>
    Effect.gen(function*() {
      const { connection, kernel } = yield* connected()
      kernel.signal(IrqIndex.REQ)
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENODEV" })
      kernel.signal(IrqIndex.ERR)
      yield* Effect.sleep(5)
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENODEV" })
    }))
})
