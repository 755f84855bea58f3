/**
 * Goal: a file is a store as a disk is one: what is written is in the file, holes are holes, a full disk says so, what the
 * system refuses has its own errno, and no descriptor stays open.
 * Method: real files in the temporary directory, looked at by `node:fs`; a tiny file system in memory (tmpfs), mounted where
 * that is allowed, for what a disk does when it is full; loop devices, where there are any, for block devices. What cannot
 * be had here is skipped, and said.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Path from "node:path"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { descriptors, leavesNothing, live } from "../support/resources.ts"
import { fileStore, hasDirectIo, temporaryDirectory } from "./stores.ts"

const openBelow = (directory: string) => [...descriptors().values()].filter((link) => link.startsWith(directory))

const inDirectory = <A, E>(body: (path: string) => Effect.Effect<A, E, Scope.Scope>) =>
  Effect.flatMap(temporaryDirectory, (directory) => body(Path.join(directory, "disk")))

const MiB = 1 << 20

/** A file system of 1 MiB, as a Scope; undefined where mounting is not allowed. */
const mounted = (options: string) =>
  Effect.acquireRelease(
    Effect.map(temporaryDirectory, (directory) => {
      execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory], { stdio: "ignore" })
      return directory
    }),
    (directory) => Effect.sync(() => execFileSync("umount", [directory]))
  )

const canMount = Exit.isSuccess(Effect.runSyncExit(Effect.scoped(mounted("size=1m"))))
if (!canMount) console.warn("SKIPPED: tests of a full disk: mounting a tmpfs is not allowed here")

const loopDevice = (image: string) =>
  Effect.acquireRelease(
    Effect.sync(() => execFileSync("losetup", ["--find", "--show", image], { stdio: "pipe" }).toString().trim()),
    (device) => Effect.sync(() => execFileSync("losetup", ["--detach", device]))
  )
const canLoop = Exit.isSuccess(Effect.runSyncExit(Effect.scoped(Effect.gen(function*() {
  const image = Path.join(yield* temporaryDirectory, "image")
  fs.writeFileSync(image, new Uint8Array(MiB))
  fs.accessSync(yield* loopDevice(image), fs.constants.R_OK)
}))))
if (!canLoop) console.warn("SKIPPED: tests of block devices: a loop device cannot be had here")

describe("opening", () => {
  live(
    "creates a file of the size asked for, a hole, and closes it with the Scope",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          yield* Effect.scoped(Effect.gen(function*() {
            const store = yield* BlockStore.file({ path, create: true, size: MiB })
            expect(store).toMatchObject({ id: `file:${path}`, capacity: MiB, blockSize: 512, readOnly: false })
            expect(openBelow(path)).toHaveLength(1)
          }))
          expect(openBelow(path)).toStrictEqual([])
          expect(fs.statSync(path)).toMatchObject({ size: MiB, blocks: 0 })
        })
      )
  )

  live(
    "keeps what is in a file, makes it longer or shorter, and rounds its end down",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          fs.writeFileSync(path, new Uint8Array(1000).fill(7))
          const asItIs = yield* BlockStore.file({ path })
          expect(asItIs.capacity).toBe(512)
          const created = yield* BlockStore.file({ path, create: true, size: 2048 })
          const found = new Uint8Array(1024)
          yield* created.read(0, [found])
          expect(found.lastIndexOf(7)).toBe(999)
          expect((yield* BlockStore.file({ path, size: 512 })).capacity).toBe(512)
          expect(fs.statSync(path).size).toBe(512)
          expect((yield* BlockStore.file({ path, blockSize: 4096 })).capacity).toBe(0)
        })
      )
  )

  const refused: ReadonlyArray<readonly [string, string, (path: string) => BlockStore.FileOptions, RegExp]> = [
    ["a file that is not there", "ENOENT", (path) => ({ path: `${path}-none` }), /the system refused \(open\)$/],
    ["an empty path", "ENOENT", () => ({ path: "" }), /^open : the system refused/],
    ["a directory", "EISDIR", (path) => ({ path: Path.dirname(path) }), /refused \(open\)/],
    ["a directory to read", "EISDIR", (path) => ({ path: Path.dirname(path), readOnly: true }), /not a directory/],
    ["a path through a file", "ENOTDIR", (path) => ({ path: `${path}/x` }), /refused/],
    ["a long name", "ENAMETOOLONG", (path) => ({ path: `${path}${"x".repeat(300)}` }), /refused/],
    ["a path with a zero byte", "EINVAL", (path) => ({ path: `${path}\0` }), /must not hold a zero byte/],
    ["a character device", "EINVAL", () => ({ path: "/dev/zero" }), /a regular file or a block device/],
    ["create without a size", "EINVAL", (path) => ({ path, create: true }), /create needs a size/],
    ["create to read", "EINVAL", (path) => ({ path, create: true, size: 512, readOnly: true }), /rules out/],
    ["half a block", "EINVAL", (path) => ({ path, size: 1000 }), /capacity 1000 must be a whole multiple/],
    ["odd blocks", "EINVAL", (path) => ({ path, blockSize: 1000 }), /blockSize 1000 must be a power of two/],
    ["more than a file may hold", "EFBIG", (path) => ({ path, size: 2 ** 52 }), /refused \(ftruncate\)/]
  ]
  for (const [what, errno, options, message] of refused) {
    live(`refuses ${what} with ${errno}`, () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          fs.writeFileSync(path, new Uint8Array(512))
          const error = yield* Effect.flip(BlockStore.file(options(path)))
          expect(error._tag).toBe(errno)
          expect(error.message).toMatch(message)
          expect(error).toHaveProperty("path", options(path).path)
          expect(openBelow(path)).toStrictEqual([])
          expect(fs.statSync(path).size).toBe(512)
        })
      ))
  }

  live("does not wait for the other end of a pipe", () =>
    inDirectory((path) =>
      Effect.gen(function*() {
        execFileSync("mkfifo", [path])
        expect((yield* Effect.flip(BlockStore.file({ path })))._tag).toBe("EINVAL")
        expect((yield* Effect.flip(BlockStore.file({ path, readOnly: true })))._tag).toBe("EINVAL")
      })
    ))

  live("refuses with ELOOP a link to itself", () =>
    inDirectory((path) =>
      Effect.gen(function*() {
        fs.symlinkSync(path, path)
        expect((yield* Effect.flip(BlockStore.file({ path })))._tag).toBe("ELOOP")
      })
    ))

  live("leaves no file behind where it cannot be made that large", () =>
    inDirectory((path) =>
      Effect.gen(function*() {
        expect((yield* Effect.flip(BlockStore.file({ path, create: true, size: 2 ** 52 })))._tag).toBe("EFBIG")
        expect(fs.existsSync(path)).toBe(false)
        expect(openBelow(path)).toStrictEqual([])
      })
    ))

  it.live.skipIf(!canMount)("refuses with EROFS a file system that is read-only", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* mounted("size=1m"), "disk")
      fs.writeFileSync(path, new Uint8Array(512))
      execFileSync("mount", ["-o", "remount,ro", Path.dirname(path)])
      expect((yield* Effect.flip(BlockStore.file({ path })))._tag).toBe("EROFS")
      expect((yield* BlockStore.file({ path, readOnly: true })).readOnly).toBe(true)
    }).pipe(Effect.scoped))

  live("leaves nothing open after 200 files, nor when interrupted", () =>
    inDirectory((path) =>
      Effect.gen(function*() {
        const open = Effect.scoped(BlockStore.file({ path, create: true, size: 4096 }))
        for (let i = 0; i < 100; i++) yield* open
        yield* Effect.all(Array.from({ length: 100 }, () => open), { concurrency: 20 })
        expect(openBelow(path)).toStrictEqual([])
        for (let i = 0; i < 40; i++) {
          const fiber = yield* Effect.forkChild(Effect.forever(open), { startImmediately: true })
          yield* Effect.sleep(i % 7)
          yield* Fiber.interrupt(fiber)
          expect(openBelow(path)).toStrictEqual([])
        }
      })
    ))
})

describe("reading and writing", () => {
  live(
    "puts bytes where they belong in the file, also beyond 4 GiB",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          const store = yield* BlockStore.file({ path, create: true, size: 2 ** 33 })
          yield* store.write(2 ** 32 + 512, [new Uint8Array(300).fill(1), new Uint8Array(724).fill(2)], { fua: true })
          yield* store.flush
          const found = new Uint8Array(2048)
          const fd = fs.openSync(path, "r")
          fs.readSync(fd, found, 0, 2048, 2 ** 32)
          fs.closeSync(fd)
          expect([found[511], found[512], found[811], found[812], found[1535], found[1536]]).toStrictEqual([
            0,
            1,
            1,
            2,
            2,
            0
          ])
        })
      )
  )

  live("takes more buffers than one call does", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: 4 * MiB })
      const buffers = Array.from({ length: 3000 }, (_, i) => new Uint8Array(512).fill(i % 251))
      yield* store.write(1024, buffers)
      const found = buffers.map(() => new Uint8Array(512))
      yield* store.read(1024, found)
      expect(found).toStrictEqual(buffers)
    }))

  live("reads and writes memory regions in place", () =>
    Effect.gen(function*() {
      const store = yield* fileStore()
      const region = yield* MemoryRegion.allocate(8192)
      region.bytes.fill(9, 0, 4096)
      yield* store.write(4096, [region.bytes.subarray(0, 4096)])
      yield* store.read(4096, [region.bytes.subarray(4096)])
      expect(region.bytes.every((byte) => byte === 9)).toBe(true)
    }))

  live(
    "tells EIO where the file was shrunk, and where it ends now",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          const store = yield* BlockStore.file({ path, create: true, size: 8192 })
          fs.truncateSync(path, 4196)
          const error = yield* Effect.flip(store.read(0, [new Uint8Array(8192)]))
          expect(error).toMatchObject({ _tag: "EIO", offset: 0, length: 8192 })
          expect(error.message).toBe("read at 0 of 8192 bytes: the file ends at 4196: it was shrunk (preadv)")
          yield* store.read(0, [new Uint8Array(4096)])
        })
      )
  )

  live("does not hold up the event loop", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: 256 * MiB })
      let turns = 0
      const timer = setInterval(() => turns++, 1)
      yield* store.write(0, [new Uint8Array(128 * MiB).fill(1)], { fua: true })
      yield* store.read(0, [new Uint8Array(128 * MiB)])
      clearInterval(timer)
      expect(turns).toBeGreaterThan(5)
    }))

  live(
    "closes only when the last call is done, and answers ESHUTDOWN from then on",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          for (let round = 0; round < 20; round++) {
            const scope = yield* Scope.make()
            const store = yield* BlockStore.file({ path, create: true, size: 8 * MiB }).pipe(Scope.provide(scope))
            const bytes = new Uint8Array(4 * MiB).fill(round)
            const fibers = yield* Effect.forEach(
              [0, 4 * MiB],
              (offset) => Effect.forkDetach(Effect.exit(store.write(offset, [bytes])), { startImmediately: true })
            )
            yield* Scope.close(scope, Exit.void)
            expect(openBelow(path)).toStrictEqual([])
            for (const fiber of fibers) expect(yield* Fiber.join(fiber)).toStrictEqual(Exit.void)
            expect(fs.readFileSync(path).every((byte) => byte === round)).toBe(true)
            for (const late of [store.read(0, [bytes]), store.flush, store.discard(0, 512)]) {
              expect((yield* Effect.flip(late))._tag).toBe("ESHUTDOWN")
            }
          }
        })
      )
  )

  live("keeps order in line when there are more calls than koffi takes", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: MiB })
      yield* store.write(0, [new Uint8Array(MiB).fill(1)])
      yield* Effect.forEach(
        Array.from({ length: 1000 }, (_, i) => i),
        (i) => store.writeZeroes(i * 1024, 512, { noUnmap: i % 2 === 0 }),
        { concurrency: "unbounded" }
      )
      const found = new Uint8Array(MiB)
      yield* store.read(0, [found])
      expect(found.reduce((sum, byte) => sum + byte, 0)).toBe(MiB - 1000 * 512)
    }))
})

describe("resizing", () => {
  const nextTurn = Effect.callback<void>((resume) => {
    setImmediate(() => resume(Exit.void))
  })

  live(
    "makes the file exactly so long, by a hole, and without what it had beyond its capacity",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          fs.writeFileSync(path, new Uint8Array(1000).fill(7))
          const store = yield* BlockStore.file({ path })
          yield* store.resize(MiB)
          expect(fs.statSync(path).size).toBe(MiB)
          expect(fs.readFileSync(path).lastIndexOf(7)).toBe(511)
          expect(fs.statSync(path).blocks).toBeLessThanOrEqual(8)
          yield* store.write(MiB - 512, [new Uint8Array(512).fill(1)])
          expect(yield* store.nextData(4096)).toMatchObject({ value: { length: expect.any(Number) } })
          fs.appendFileSync(path, new Uint8Array(512).fill(9))
          yield* store.resize(MiB)
          expect(fs.statSync(path).size).toBe(MiB)
          yield* store.resize(512)
          expect(fs.statSync(path).size).toBe(512)
          expect(yield* Effect.flip(store.nextData(512))).toMatchObject({ _tag: "EINVAL", operation: "nextData" })
          yield* store.resize(0)
          expect(fs.statSync(path).size).toBe(0)
        })
      )
  )

  live(
    "fails where the store is read-only, closed, or the file may not be so long, which leaves it as it was",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          fs.writeFileSync(path, new Uint8Array(1000))
          const refused = Effect.fnUntraced(function*(store: BlockStore.FileStore, capacity: number) {
            const error = yield* Effect.flip(store.resize(capacity))
            expect(store.capacity).toBe(512)
            expect(fs.statSync(path).size).toBe(1000)
            return `${error._tag} ${error.message}`
          })
          const view = yield* BlockStore.file({ path, readOnly: true })
          expect(yield* refused(view, 512)).toBe("EBADF resize: the store is read-only")
          expect(yield* refused(view, 100)).toMatch(/^EINVAL/)
          expect(yield* Stream.runCollect(view.capacityChanges)).toStrictEqual([])
          const scope = yield* Scope.make()
          const store = yield* BlockStore.file({ path }).pipe(Scope.provide(scope))
          expect(yield* refused(store, 2 ** 52)).toBe(
            "EFBIG resize: the system refused a size of 4503599627370496 bytes (ftruncate)"
          )
          yield* Scope.close(scope, Exit.void)
          for (const capacity of [0, 512, 1024]) {
            expect(yield* refused(store, capacity)).toBe("ESHUTDOWN resize: the file is closed")
          }
        })
      )
  )

  live(
    "ends the news of its capacity when it is closed, of those who come late too",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const store = yield* BlockStore.file({ path, create: true, size: 512 }).pipe(Scope.provide(scope))
          const news = yield* Effect.forkChild(Stream.runCollect(store.capacityChanges), { startImmediately: true })
          yield* Effect.yieldNow
          yield* store.resize(1024)
          yield* Scope.close(scope, Exit.void)
          expect(yield* Fiber.join(news)).toStrictEqual([1024])
          expect(yield* Stream.runCollect(store.capacityChanges)).toStrictEqual([])
        })
      )
  )

  // Whatever was under way beyond the new end, it does not make the file longer again.
  const race = (direct: boolean) =>
    inDirectory((path) =>
      Effect.gen(function*() {
        const store = yield* BlockStore.file({ path, create: true, size: 8 * MiB, direct })
        const bytes = new Uint8Array(4 * MiB + 1).subarray(1).fill(1)
        const outcomes = new Set<string>()
        for (let round = 0; round < 40; round++) {
          yield* store.resize(8 * MiB)
          const fibers = yield* Effect.forEach(
            [store.write(4 * MiB, [bytes]), store.writeZeroes(0, 8 * MiB, { noUnmap: true }), store.write(0, [bytes])]
              .concat(Array.from({ length: 8 }, (_, i) => store.read(i * MiB, [new Uint8Array(MiB)]))),
            (effect) => Effect.forkChild(Effect.exit(effect), { startImmediately: true })
          )
          for (let i = 0; i < round % 10; i++) yield* Effect.sleep(0)
          yield* store.resize(2 * MiB)
          expect(fs.statSync(path).size).toBe(2 * MiB)
          for (const fiber of fibers) {
            const exit = yield* Fiber.join(fiber)
            outcomes.add(Exit.isSuccess(exit) ? "ok" : Option.getOrThrow(Exit.findErrorOption(exit))._tag)
          }
          expect([store.capacity, fs.statSync(path).size]).toStrictEqual([2 * MiB, 2 * MiB])
        }
        expect([...outcomes].filter((outcome) => outcome !== "ok" && outcome !== "EIO")).toStrictEqual([])
      })
    )
  live("waits for what is under way beyond the new end", () => race(false))
  it.live.skipIf(!hasDirectIo)("waits for what is under way in pieces", () => leavesNothing(race(true)))

  live(
    "is done one at a time, and while the store is written to all the time",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          const store = yield* BlockStore.file({ path, create: true, size: MiB })
          const writers = yield* Effect.forEach(
            [0, 512, 1024],
            (offset) => Effect.forkChild(Effect.forever(store.write(offset, [new Uint8Array(512).fill(1)])))
          )
          for (let round = 0; round < 40; round++) {
            yield* Effect.forEach(
              [5, 2, 4, 1, 3, 5, 1, 4, 2],
              // One begins while another is anywhere between its calls.
              (pages, i) =>
                nextTurn.pipe(
                  Effect.repeat({ times: i * round % 7 }),
                  Effect.andThen(store.resize(((pages + round) % 5 + 1) * 4096))
                ),
              { concurrency: "unbounded" }
            )
            expect(fs.statSync(path).size).toBe(store.capacity)
          }
          for (const writer of writers) expect(writer.pollUnsafe()).toBe(undefined)
          yield* Effect.forEach(writers, (writer) => Fiber.interrupt(writer))
          expect(fs.readFileSync(path).lastIndexOf(1)).toBeLessThan(1536)
        })
      )
  )
})

describe("a full disk", () => {
  const full = <A, E>(name: string, body: (path: string) => Effect.Effect<A, E, Scope.Scope>) =>
    it.live.skipIf(!canMount)(
      name,
      () => Effect.scoped(Effect.flatMap(mounted("size=1m"), (directory) => body(Path.join(directory, "disk"))))
    )

  full("is ENOSPC, naming the range, and the store goes on", (path) =>
    Effect.gen(function*() {
      const store = yield* BlockStore.file({ path, create: true, size: 4 * MiB })
      const error = yield* Effect.flip(store.write(0, [new Uint8Array(2 * MiB)]))
      expect(error).toMatchObject({ _tag: "ENOSPC", operation: "write", offset: 0, length: 2 * MiB })
      expect(error.message).toMatch(/^write at 0 of 2097152 bytes: .* \(pwritev\)$/)
      yield* store.writeZeroes(0, 4 * MiB)
      expect(fs.statSync(path).blocks).toBe(0)
      yield* store.write(3 * MiB, [new Uint8Array(MiB / 2)])
    }))

  full(
    "has no way to zero a range and keep its room: zeroes are written, or ENOTSUP",
    (path) =>
      Effect.gen(function*() {
        const store = yield* BlockStore.file({ path, create: true, size: 3 * MiB })
        yield* store.write(0, [new Uint8Array(8192).fill(1)])
        const error = yield* Effect.flip(store.writeZeroes(0, 4096, { noUnmap: true, noFallback: true }))
        expect(error).toMatchObject({ _tag: "ENOTSUP", operation: "writeZeroes", length: 4096, syscall: "fallocate" })
        yield* store.writeZeroes(0, 4096, { noUnmap: true })
        const found = new Uint8Array(8192)
        yield* store.read(0, [found])
        expect([found.indexOf(1), fs.statSync(path).blocks]).toStrictEqual([4096, 16])
        // Longer than one piece of zeroes, and then too long for the disk.
        yield* store.discard(0, 3 * MiB)
        expect((yield* Effect.flip(store.writeZeroes(0, 3 * MiB, { noUnmap: true })))._tag).toBe("ENOSPC")
      })
  )
})

describe("holes", () => {
  const blocksOf = (path: string) => fs.statSync(path).blocks

  live(
    "are punched by a discard and by zeroes, and not where the room is to be kept",
    () =>
      inDirectory((path) =>
        Effect.gen(function*() {
          const store = yield* BlockStore.file({ path, create: true, size: MiB })
          const fill = store.write(0, [new Uint8Array(MiB).fill(1)], { fua: true })
          for (const free of [store.discard(0, MiB / 2), store.writeZeroes(0, MiB / 2)]) {
            yield* fill
            const before = blocksOf(path)
            expect(before).toBeGreaterThanOrEqual(MiB / 512)
            yield* free
            expect(blocksOf(path)).toBe(before - MiB / 1024)
          }
          yield* fill
          const before = blocksOf(path)
          yield* store.writeZeroes(0, MiB / 2, { noUnmap: true })
          expect(blocksOf(path)).toBeGreaterThanOrEqual(before)
          expect(fs.readFileSync(path).indexOf(1)).toBe(MiB / 2)
          expect(fs.statSync(path).size).toBe(MiB)
        })
      )
  )

  live("are found", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: 16 * MiB })
      expect(yield* store.nextData(0)).toStrictEqual(Option.none())
      yield* store.write(2 * MiB, [new Uint8Array(MiB).fill(1)])
      yield* store.write(8 * MiB + 512, [new Uint8Array(512).fill(1)])
      yield* store.flush
      expect(yield* store.nextData(0)).toStrictEqual(Option.some({ offset: 2 * MiB, length: MiB }))
      expect(yield* store.nextData(2 * MiB + 512)).toStrictEqual(
        Option.some({ offset: 2 * MiB + 512, length: MiB - 512 })
      )
      const second = Option.getOrThrow(yield* store.nextData(3 * MiB))
      expect(second.offset).toBeLessThanOrEqual(8 * MiB + 512)
      expect(second.offset + second.length).toBeGreaterThanOrEqual(8 * MiB + 1024)
      expect(second.length).toBeLessThanOrEqual(65_536)
      expect(yield* store.nextData(second.offset + second.length)).toStrictEqual(Option.none())
      for (const offset of [-512, 1, 16 * MiB, NaN]) {
        expect(yield* Effect.flip(store.nextData(offset))).toMatchObject({ _tag: "EINVAL", operation: "nextData" })
      }
    }))

  live("are found in whole blocks, however large those are", () =>
    inDirectory((path) =>
      Effect.gen(function*() {
        fs.writeFileSync(path, "")
        fs.truncateSync(path, MiB)
        const fd = fs.openSync(path, "r+")
        fs.writeSync(fd, new Uint8Array(4096).fill(1), 0, 4096, 65_536 + 8192)
        fs.closeSync(fd)
        const store = yield* BlockStore.file({ path, blockSize: 65_536 })
        expect(yield* store.nextData(0)).toStrictEqual(Option.some({ offset: 65_536, length: 65_536 }))
      })
    ))
})

describe("direct I/O", () => {
  const direct = (name: string, body: () => Effect.Effect<void, unknown, Scope.Scope>) =>
    it.live.skipIf(!hasDirectIo)(name, () => leavesNothing(Effect.suspend(body)))

  direct("takes buffers wherever they lie, and more than one piece of them", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: 4 * MiB, direct: true })
      expect(store.blockSize).toBe(4096)
      const memory = new Uint8Array(3 * MiB + 100).map((_, i) => (i * 31) & 0xff)
      const unaligned = memory.subarray(1, 1 + 2 * MiB + 8192)
      yield* store.write(4096, [unaligned.subarray(0, 777), unaligned.subarray(777)])
      const found = new Uint8Array(unaligned.length + 3).subarray(3)
      yield* store.read(4096, [found.subarray(0, 5000), found.subarray(5000)])
      expect(Buffer.compare(found, unaligned)).toBe(0)
      const aligned = Libc.alignedMemory(8192, 4096)
      yield* store.read(4096, [aligned.subarray(0, 4096), aligned.subarray(4096)])
      expect(Buffer.compare(aligned, unaligned.subarray(0, 8192))).toBe(0)
    }))

  direct("zeroes and punches as the page cache does", () =>
    Effect.gen(function*() {
      const store = yield* fileStore({ size: MiB, direct: true })
      yield* store.write(0, [new Uint8Array(MiB).fill(1)])
      yield* store.writeZeroes(0, 8192, { noUnmap: true })
      yield* store.writeZeroes(8192, 8192, { fua: true })
      yield* store.discard(16_384, 4096)
      const found = new Uint8Array(MiB)
      yield* store.read(0, [found])
      expect(found.indexOf(1)).toBe(20_480)
    }))
})

describe("a block device", () => {
  it.live.skipIf(!canLoop)(
    "has the device's size, and keeps what is written",
    () =>
      inDirectory((image) =>
        Effect.gen(function*() {
          fs.writeFileSync(image, new Uint8Array(MiB))
          const path = yield* loopDevice(image)
          yield* Effect.scoped(Effect.gen(function*() {
            const store = yield* BlockStore.file({ path, size: MiB })
            expect(store.capacity).toBe(MiB)
            yield* store.write(4096, [new Uint8Array(8192).fill(5)], { fua: true })
            yield* store.writeZeroes(4096, 4096)
            yield* store.writeZeroes(8192, 512, { noUnmap: true })
            yield* store.flush
            expect(yield* store.nextData(8192)).toStrictEqual(Option.some({ offset: 8192, length: MiB - 8192 }))
            const found = new Uint8Array(MiB)
            yield* store.read(0, [found])
            expect([found.indexOf(5), found.lastIndexOf(5)]).toStrictEqual([8704, 12_287])
            expect((yield* Effect.flip(BlockStore.file({ path, size: 2 * MiB }))).message).toMatch(
              /the device has 1048576 bytes and needs 2097152/
            )
            expect(yield* Effect.flip(store.resize(512))).toMatchObject({ _tag: "ENOTSUP", operation: "resize" })
            expect(yield* Stream.runCollect(store.capacityChanges)).toStrictEqual([])
          }))
        })
      ).pipe(Effect.scoped)
  )
})
