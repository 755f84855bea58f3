/**
 * Goal: a device goes through its phases as documented, says of itself what libblkio says of it, and a step that fails
 * leaves it where it was.
 * Method: real exports; each backend; golden values from libblkio 1.5 on qemu-storage-daemon, less what this library counts differently.
 */
import { expect } from "@effect/vitest"
import { Config, ConfigProvider, Effect, Layer, Option } from "effect"
import { BlockDevice, Properties, VhostUser, VirtioBlk } from "../../src/index.ts"
import { forEachBackend, makeImage, serveRaw } from "../support/backends.ts"
import { at, KiB, MiB, onBackend, open } from "../support/daemon.ts"

forEachBackend("the life of a device", (backend) => {
  onBackend(
    "a 4 MiB raw file with 4 queues has the golden properties, connected and started",
    () =>
      Effect.gen(function*() {
        const { facts, socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 4 })
        const golden = {
          driver: "virtio-blk-vhost-user",
          path: socketPath,
          fd: -1,
          readOnly: false,
          deviceReadOnly: false,
          numQueues: 1,
          numPollQueues: 0,
          queueSize: 256,
          maxQueues: 4,
          maxQueueSize: 32768,
          canAddQueues: false,
          supportsPollQueues: true,
          capacity: 4194304,
          canGrow: false,
          requestAlignment: 512,
          optimalIoAlignment: 512,
          optimalIoSize: 512,
          discardAlignment: 512,
          discardAlignmentOffset: 0,
          maxDiscardLen: facts.maxDiscardLength,
          maxWriteZeroesLen: facts.maxWriteZeroesLength,
          maxSegmentLen: 0,
          maxSegments: facts.maxSegments,
          maxTransfer: 0,
          bufAlignment: 1,
          optimalBufAlignment: 1,
          supportsFuaNatively: false,
          flushNeeded: facts.writeCache,
          needsMemRegions: true,
          needsMemRegionFd: true,
          mayPinMemRegions: true,
          memRegionAlignment: 1,
          maxMemRegions: facts.maxMemRegions
        }
        const device = yield* at(socketPath)
        const connected = yield* device.connect
        expect(yield* connected.properties.getAll).toMatchObject(golden)
        yield* connected.properties.set({ numQueues: 3, numPollQueues: 1, queueSize: 64 })
        const started = yield* connected.start()
        expect(yield* started.properties.getAll).toMatchObject({
          ...golden,
          numQueues: 3,
          numPollQueues: 1,
          queueSize: 64
        })
        expect(started.capacity).toBe(4 * MiB)
      })
  )

  onBackend("a larger block size becomes the alignment of requests", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 4 * MiB, { blockSize: 4 * KiB })
      const disk = yield* open(socketPath)
      expect(yield* disk.properties.get("request-alignment")).toBe(4 * KiB)
      const region = yield* disk.allocate(8 * KiB)
      expect(yield* Effect.flip(disk.queue(0).read(512, region.bytes))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* Effect.flip(disk.queue(0).read(0, region.bytes.subarray(512)))).toMatchObject({ _tag: "EINVAL" })
      yield* disk.queue(0).read(4 * KiB, region.bytes)
    }))

  onBackend(
    "names and values from outside answer with errnos, the state before the value",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
        const device = yield* at(socketPath)
        const errnoOf = <E extends { readonly _tag: string }>(effect: Effect.Effect<unknown, E>) =>
          Effect.map(Effect.flip(effect), ({ _tag }) => _tag)
        const ask = (properties: typeof device.properties | VirtioBlk.ConnectedDevice["properties"]) =>
          Effect.all([
            errnoOf(properties.getUnknown("nothing")),
            errnoOf(properties.setUnknown("nothing", 1)),
            errnoOf(properties.setUnknown("capacity", 1)),
            errnoOf(properties.setUnknown("num-queues", "1"))
          ])
        expect(yield* ask(device.properties)).toStrictEqual(["ENOENT", "ENOENT", "EACCES", "ENOTTY"])
        for (const name of ["capacity", "max-queues", "max-mem-regions"]) {
          expect(yield* errnoOf(device.properties.getUnknown(name))).toBe("ENODEV")
        }
        expect(yield* errnoOf(device.properties.setUnknown("num_queues", -1))).toBe("ENODEV")
        const connected = yield* device.connect
        expect(yield* ask(connected.properties)).toStrictEqual(["ENOENT", "ENOENT", "EACCES", "ENOTTY"])
        expect(yield* errnoOf(connected.properties.setUnknown("read-only", true))).toBe("EBUSY")
        for (const size of ["0", "-1", "100", "65536", "x"]) {
          expect(yield* errnoOf(connected.properties.setString("queue-size", size))).toBe("EINVAL")
        }
        yield* connected.properties.setString("num_queues", "2")
        const started = yield* connected.start()
        expect(yield* errnoOf(started.properties.setUnknown("num-queues", -1))).toBe("EBUSY")
        expect(yield* errnoOf(connected.properties.set({ numQueues: 1 }))).toBe("EBUSY")
        expect(yield* started.properties.getString("num-queues")).toBe("2")
      })
  )

  onBackend(
    "a start that fails leaves the device connected, to be set right and started",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
        const connected = yield* Effect.flatMap(at(socketPath), ({ connect }) => connect)
        const { properties } = connected
        const refused = function*(settings: Parameters<typeof properties.set>[0]) {
          yield* properties.set(settings)
          expect(yield* Effect.flip(connected.start())).toMatchObject({ _tag: "EINVAL", operation: "start" })
          yield* properties.set({ numQueues: 1, numPollQueues: 0, queueSize: 256 })
        }
        yield* Effect.gen(() => refused({ numQueues: 3 }))
        yield* Effect.gen(() => refused({ numQueues: 2, numPollQueues: 1 }))
        yield* Effect.gen(() => refused({ numQueues: 0 }))
        expect(yield* Effect.flip(properties.set({ queueSize: 65536 }))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(connected.start({ deviceTimeout: -1 }))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(connected.start({ closeTimeout: "-1 seconds" }))).toMatchObject({ _tag: "EINVAL" })
        yield* properties.set({ numQueues: 2 })
        const started = yield* connected.start()
        expect(yield* Effect.flip(connected.start())).toMatchObject({ _tag: "EBUSY" })
        const region = yield* started.allocate(4 * KiB)
        yield* started.queue(1).read(0, region.bytes)
      })
  )

  onBackend("the largest and the smallest ring work", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      // QEMU's limit for a ring is 1024 descriptors.
      for (const queueSize of [1, 2, 4, 1024]) {
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* open(socketPath, { queueSize })
          const region = yield* disk.allocate(64 * KiB)
          region.bytes.fill(queueSize & 0xff)
          const blocks = Array.from({ length: 126 }, (_, i) => region.bytes.subarray(i * 512, (i + 1) * 512))
          yield* disk.queue(0).writev(0, blocks)
          yield* Effect.forEach(blocks, (block, i) => disk.queue(0).read(i * 512, block), {
            concurrency: "unbounded",
            discard: true
          })
          expect(region.bytes[126 * 512 - 1]).toBe(queueSize & 0xff)
        }))
      }
    }))

  onBackend("event and poll queues each have their indices from 0", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 4 })
      const disk = yield* open(socketPath, { numQueues: 1, numPollQueues: 3, queueSize: 32 })
      expect([...disk.queues, ...disk.pollQueues].map(({ index, kind, size }) => [kind, index, size])).toStrictEqual([
        ["event", 0, 32],
        ["poll", 0, 32],
        ["poll", 1, 32],
        ["poll", 2, 32]
      ])
      expect(disk.queue(0)).toBe(disk.queues[0])
      expect(disk.pollQueue(2)).toBe(disk.pollQueues[2])
      expect(Option.isSome(disk.queue(0).completionFd)).toBe(true)
      expect(Option.isNone(disk.pollQueue(0).completionFd)).toBe(true)
      expect(yield* Effect.flip(disk.pollQueue(0).setCompletionFdEnabled(true))).toMatchObject({ _tag: "ENOTSUP" })
      for (const absent of [disk.queue(1), disk.queue(-1), disk.queue(0.5), disk.pollQueue(3)]) {
        expect(yield* Effect.flip(absent.flush())).toMatchObject({ _tag: "ENODEV" })
      }
      const region = yield* disk.allocate(4 * KiB)
      for (const [i, queue] of [...disk.queues, ...disk.pollQueues].entries()) {
        region.bytes.fill(i + 1)
        yield* queue.write(0, region.bytes)
        yield* queue.flush()
        region.bytes.fill(0)
        yield* queue.read(0, region.bytes)
        expect(region.bytes[0]).toBe(i + 1)
      }
    }))

  onBackend("a created device can be connected again and again", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const device = yield* at(socketPath)
      yield* device.properties.set({ readOnly: true })
      for (let i = 0; i < 3; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const connected = yield* device.connect
          expect(yield* connected.properties.get("read-only")).toBe(true)
          yield* connected.start()
        }))
      }
    }))
})

forEachBackend("layers", (backend) => {
  const roundTrip = Effect.gen(function*() {
    const disk = yield* BlockDevice
    const region = yield* disk.allocate(4 * KiB)
    region.bytes.fill(7)
    yield* disk.queue(disk.queues.length - 1).write(4 * KiB, region.bytes)
    region.bytes.fill(0)
    yield* disk.queue(0).read(4 * KiB, region.bytes)
    expect(region.bytes[4095]).toBe(7)
    return disk.queues.length
  }).pipe(Effect.scoped)

  onBackend("build a device from options and from configuration, in one step and in two", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const transport = VhostUser.layer({ path: socketPath })
      const configured = VirtioBlk.layerConfig({ numQueues: Config.Int("DISK_QUEUES") }).pipe(
        Layer.provide(VhostUser.layerConfig({ path: Config.String("DISK_PATH") })),
        Layer.provide(ConfigProvider.layer(
          ConfigProvider.fromEnvRecord({ DISK_QUEUES: "2", DISK_PATH: socketPath })
        ))
      )
      const connected = VirtioBlk.layerConnected().pipe(Layer.provide(transport))
      expect(yield* roundTrip.pipe(Effect.provide(VirtioBlk.layer({ numQueues: 2 }).pipe(Layer.provide(transport)))))
        .toBe(2)
      expect(yield* roundTrip.pipe(Effect.provide(configured))).toBe(2)
      expect(
        yield* roundTrip.pipe(
          Effect.provide(VirtioBlk.layerStarted({ numQueues: 1 }).pipe(Layer.provide(connected)))
        )
      ).toBe(1)
      // A program that only looks never starts the device.
      const capacity = Properties.use((properties) => properties.get("capacity"))
      expect(yield* capacity.pipe(Effect.provide(connected))).toBe(MiB)
    }))

  onBackend("fail with the typed error of what is wrong", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const transport = VhostUser.layer({ path: socketPath })
      for (const options of [{ numQueues: 2 }, { queueSize: 3 }, { numQueues: 0 }, { numQueues: 0.5 }]) {
        const disk = VirtioBlk.layer(options).pipe(Layer.provide(transport))
        expect(yield* Effect.flip(roundTrip.pipe(Effect.provide(disk)))).toMatchObject({ _tag: "EINVAL" })
      }
      const unknown = VirtioBlk.layer({ queues: 2 } as VirtioBlk.Options).pipe(Layer.provide(transport))
      expect(yield* Effect.flip(roundTrip.pipe(Effect.provide(unknown)))).toMatchObject({ _tag: "EINVAL" })
      yield* roundTrip.pipe(Effect.provide(VirtioBlk.layer().pipe(Layer.provide(transport))))
    }))

  onBackend("two devices are two services: one export is copied to another", () =>
    Effect.gen(function*() {
      class Source extends BlockDevice.Tag<Source>()("Source") {}
      class Target extends BlockDevice.Tag<Target>()("Target") {}
      const from = yield* makeImage("raw", 3 * MiB)
      const to = yield* makeImage(backend.formats.at(-1) ?? "raw", 3 * MiB)
      const content = [[0, MiB, 0x11], [MiB, MiB, 0x22], [2 * MiB, MiB, 0x33]] as const
      yield* backend.fill(from, content)
      yield* Effect.scoped(Effect.gen(function*() {
        const source = yield* backend.serve(from, { readOnly: true })
        const target = yield* backend.serve(to)
        const diskAt = (path: string, options: VirtioBlk.Options) =>
          Effect.flatMap(VhostUser.make({ path }), (transport) => VirtioBlk.make(transport, options))
        const disks = Layer.merge(
          Layer.effect(Source, diskAt(source.socketPath, { readOnly: true })),
          Layer.effect(Target, diskAt(target.socketPath, {}))
        )
        const copy = Effect.scoped(Effect.gen(function*() {
          const source = yield* Source
          const target = yield* Target
          const region = yield* source.allocate(256 * KiB)
          // One region, mapped for both devices.
          yield* target.map(region)
          yield* Effect.addFinalizer(() => target.unmap(region))
          for (let offset = 0; offset < source.capacity; offset += region.length) {
            yield* source.queue(0).read(offset, region.bytes)
            yield* target.queue(0).write(offset, region.bytes)
          }
          yield* target.queue(0).flush()
        }))
        yield* copy.pipe(Effect.provide(disks))
      }))
      yield* backend.verify(to, content)
    }))
})
