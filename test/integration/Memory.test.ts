/**
 * Goal: memory that a device may access is mapped and taken back without harm to the device, whatever the order.
 * Method: regions on a device of each backend, up to its limit and beyond, released while requests use them; what the device must
 * not be asked (it would acknowledge it and die) is refused before.
 */
import { expect } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { closeSync, ftruncateSync, openSync, readFileSync, unlinkSync } from "node:fs"
import { MemoryRegion } from "../../src/index.ts"
import { slow } from "../support/Backend.ts"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"

/** A file in memory whose descriptor the application owns. */
const memoryFile = (length: number) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const path = `/dev/shm/blkio-test-${process.pid}-${Math.random().toString(36).slice(2)}`
      const fd = openSync(path, "wx+")
      unlinkSync(path)
      ftruncateSync(fd, length)
      return fd
    }),
    (fd) => Effect.sync(() => closeSync(fd))
  )

/** What /proc/meminfo says of huge pages, in pages and in bytes. */
const hugePages = (): { readonly free: number; readonly bytes: number } => {
  const text = readFileSync("/proc/meminfo", "utf8")
  const value = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0)
  return { free: value("HugePages_Free"), bytes: value("Hugepagesize") * KiB }
}

forEachBackend("memory regions", (backend) => {
  onBackend(
    "of huge pages serve like others where there are some, and are ENOMEM where there are none",
    () =>
      Effect.gen(function*() {
        const { bytes, free } = hugePages()
        const { socketPath } = yield* serveRaw(backend, 4 * MiB)
        const disk = yield* open(socketPath)
        const odd = yield* Effect.flip(Effect.scoped(disk.allocate(4 * KiB, { hugePages: true })))
        expect(odd).toMatchObject({ _tag: "EINVAL", detail: expect.stringContaining("4096 bytes of huge pages") })
        const many = yield* Effect.flip(Effect.scoped(disk.allocate((free + 1) * bytes, { hugePages: true })))
        expect(many).toMatchObject({ _tag: "ENOMEM", detail: expect.stringContaining("nr_hugepages") })
        if (free === 0) return console.error("no huge pages are free: only their absence was tested")
        const region = yield* disk.allocate(bytes, { hugePages: true })
        region.bytes.fill(0x5a)
        yield* disk.queue(0).write(0, region.bytes.subarray(0, MiB))
        region.bytes.fill(0)
        yield* disk.queue(0).read(0, region.bytes.subarray(bytes - MiB))
        expect(region.bytes.at(-1)).toBe(0x5a)
        yield* disk.unmap(region)
        expect(hugePages().free).toBe(free - 1)
      })
  )

  onBackend(
    "can be mapped up to max-mem-regions and no further, and the device stays well",
    () =>
      Effect.gen(function*() {
        const { facts, socketPath } = yield* serveRaw(backend, MiB)
        const disk = yield* open(socketPath)
        const most = yield* disk.properties.get("max-mem-regions")
        expect(most).toBe(facts.maxMemRegions)
        const scope = yield* Scope.make()
        const regions = yield* Effect.forEach(Array.from({ length: most }), () => disk.allocate(4 * KiB)).pipe(
          Scope.provide(scope)
        )
        for (let round = 0; round < 3; round++) {
          expect(yield* Effect.flip(Effect.scoped(disk.allocate(4 * KiB)))).toMatchObject({ _tag: "ENOSPC" })
        }
        for (const [i, region] of regions.entries()) {
          region.bytes.fill(i & 0xff)
          yield* disk.queue(0).write(0, region.bytes)
          const other = regions[(i + 1) % most]!
          yield* disk.queue(0).read(0, other.bytes)
          expect(other.bytes[4095]).toBe(i & 0xff)
        }
        // A request may use several.
        yield* disk.queue(0).writev(0, regions.slice(0, 31).map(({ bytes }) => bytes))
        const [first] = regions
        yield* disk.unmap(first!)
        yield* disk.map(first!)
        expect(yield* Effect.flip(Effect.scoped(disk.allocate(4 * KiB)))).toMatchObject({ _tag: "ENOSPC" })
        yield* Scope.close(scope, Exit.void)
        const again = yield* disk.allocate(4 * KiB)
        yield* disk.queue(0).read(0, again.bytes)
      })
  )

  onBackend(
    "are refused where they are mapped already or overlap, before the device is asked",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB)
        const disk = yield* open(socketPath)
        const fd = yield* memoryFile(64 * KiB)
        const at = (offset: number, length: number) => MemoryRegion.fromFd({ fd, offset, length })
        const region = yield* at(8 * KiB, 16 * KiB)
        yield* disk.map(region)
        expect(yield* Effect.flip(disk.map(region))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(disk.map(yield* at(8 * KiB, 16 * KiB)))).toMatchObject({ _tag: "EINVAL" })
        for (const [offset, length] of [[0, 12], [8, 8], [8, 20], [12, 4], [20, 20], [0, 64]] as const) {
          expect(yield* Effect.flip(disk.map(yield* at(offset * KiB, length * KiB)))).toMatchObject({ _tag: "EEXIST" })
        }
        for (const [offset, length] of [[0, 8], [24, 40]] as const) {
          yield* disk.map(yield* at(offset * KiB, length * KiB))
        }
        expect(yield* Effect.flip(at(100, KiB))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(at(0, 0))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(at(0, 65 * KiB))).toMatchObject({ _tag: "EINVAL" })
        expect(yield* Effect.flip(MemoryRegion.fromFd({ fd: 12345, offset: 0, length: KiB }))).toMatchObject({
          _tag: "EBADF"
        })
        const own = yield* disk.allocate(4 * KiB)
        expect(yield* Effect.flip(disk.map(own))).toMatchObject({ _tag: "EINVAL" })
        yield* disk.queue(0).read(0, region.bytes)
      })
  )

  onBackend("of the application's own file reach the device at their offset", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const fd = yield* memoryFile(64 * KiB)
      const whole = yield* MemoryRegion.fromFd({ fd, offset: 0, length: 64 * KiB })
      const part = yield* MemoryRegion.fromFd({ fd, offset: 12 * KiB, length: 4 * KiB + 512 })
      yield* disk.map(part)
      whole.bytes.fill(0xaa)
      part.bytes.fill(0x5b)
      yield* disk.queue(0).write(512, part.bytes)
      part.bytes.fill(0)
      yield* disk.queue(0).read(512, part.bytes.subarray(512))
      expect(whole.bytes.subarray(0, 12 * KiB + 512).every((byte, i) => byte === (i < 12 * KiB ? 0xaa : 0))).toBe(true)
      expect(whole.bytes.subarray(12 * KiB + 512, 16 * KiB + 512).every((byte) => byte === 0x5b)).toBe(true)
      expect(whole.bytes[16 * KiB + 512]).toBe(0xaa)
      // The other view is of the same file, and not mapped for the device.
      expect(yield* Effect.flip(disk.queue(0).read(0, whole.bytes))).toMatchObject({ _tag: "EFAULT" })
    }))

  onBackend(
    "are unknown to the queues once unmapped, and their stale views are empty once released",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB)
        const disk = yield* open(socketPath)
        const scope = yield* Scope.make()
        const region = yield* disk.allocate(8 * KiB).pipe(Scope.provide(scope))
        const stale = region.bytes.subarray(0, 4 * KiB)
        yield* disk.unmap(region)
        yield* disk.unmap(region)
        expect(yield* Effect.flip(disk.queue(0).read(0, stale))).toMatchObject({ _tag: "EFAULT" })
        yield* disk.map(region)
        yield* disk.queue(0).read(0, stale)
        yield* Scope.close(scope, Exit.void)
        expect([stale.length, region.bytes.length, region.length]).toStrictEqual([0, 0, 8 * KiB])
        expect(yield* Effect.flip(disk.queue(0).read(0, stale))).toMatchObject({ _tag: "EFAULT" })
        expect(yield* Effect.flip(disk.queue(0).readv(0, [stale, region.bytes]))).toMatchObject({ _tag: "EFAULT" })
        expect(yield* Effect.flip(disk.map(region))).toMatchObject({ _tag: "EINVAL" })
        yield* disk.unmap(region)
        yield* disk.queue(0).flush()
      })
  )

  onBackend("are waited for while requests use them; what waits in line is refused", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(200))
      const disk = yield* open(socketPath, { queueSize: 4 })
      const queue = disk.queue(0)
      const scope = yield* Scope.make()
      const region = yield* disk.allocate(8 * KiB).pipe(Scope.provide(scope))
      const ends: Array<string> = []
      const reading = yield* Effect.forEach(Array.from({ length: 8 }), (_, i) =>
        Effect.forkScoped(
          queue.read(0, region.bytes.subarray(0, 512)).pipe(
            Effect.match({
              onFailure: ({ _tag }) => ends.push(_tag),
              onSuccess: () => ends.push(i < 4 ? "success" : "late success")
            })
          ),
          { startImmediately: true }
        ))
      const closing = yield* Effect.forkScoped(
        Effect.andThen(Scope.close(scope, Exit.void), Effect.sync(() => ends.push("released"))),
        { startImmediately: true }
      )
      expect(yield* Effect.flip(queue.read(0, region.bytes.subarray(0, 512)))).toMatchObject({ _tag: "EFAULT" })
      expect(ends).toStrictEqual([])
      yield* Effect.forEach([...reading, closing], (fiber) => Fiber.await(fiber))
      expect(ends.filter((end) => end === "success").length).toBe(4)
      expect(ends.filter((end) => end === "EFAULT").length).toBe(4)
      expect(ends.lastIndexOf("success")).toBeLessThan(ends.indexOf("released"))
    }))

  onBackend("serve reads and writes of odd sizes at odd places", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const region = yield* disk.allocate(12_345)
      // Data need not be aligned in memory, and a region's length need not be a multiple of anything.
      for (let i = 0; i < region.bytes.length; i++) region.bytes[i] = i * 31
      const source = region.bytes.subarray(12_345 - 512)
      const expected = source.slice()
      yield* disk.queue(0).write(1024, source)
      const target = region.bytes.subarray(7, 7 + 512)
      yield* disk.queue(0).read(1024, target)
      expect(target).toStrictEqual(expected)
    }))
})
