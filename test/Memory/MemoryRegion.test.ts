/**
 * Goal: a memory region is exactly the bytes that were asked for, and is gone with its Scope, view and all; what cannot be
 * a region is a typed error that leaves nothing behind.
 * Method: real memory. What is mapped and open is read from /proc before and after every test.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { closeSync, fstatSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { count, isCloseOnExec, live } from "../support/resources.ts"

const memoryFile = (length: number) =>
  Effect.acquireRelease(
    Effect.sync(() => Libc.createMemoryFile("effect-blkio", length)),
    (fd) => Effect.sync(() => Libc.close(fd))
  )

const opened = (path: string, flags: string) =>
  Effect.acquireRelease(Effect.sync(() => openSync(path, flags)), (fd) => Effect.sync(() => closeSync(fd)))

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "memory-region-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

const badLengths = [0, -1, -4096, 0.5, 4096.5, NaN, Infinity, -Infinity, 2 ** 33 + 1, Number.MAX_SAFE_INTEGER]
const badOffsets = [-4096, -1, 1, 512, 4095, 4097, 0.5, NaN, Infinity, Number.MAX_SAFE_INTEGER, 2 ** 53]

describe("allocate", () => {
  for (const length of [1, 511, 4096, 65_536, 1_000_000]) {
    live(`${length} bytes of zeroes, with a descriptor of their own`, () =>
      Effect.gen(function*() {
        const region = yield* MemoryRegion.allocate(length)
        expect(region.length).toBe(length)
        expect(region.bytes.length).toBe(length)
        expect(region.bytes.byteOffset).toBe(0)
        expect(region.bytes.buffer.byteLength).toBe(length)
        expect(region.bytes.every((byte) => byte === 0)).toBe(true)
        expect(region.fdOffset).toBe(0)
        expect(fstatSync(region.fd).size).toBe(length)
        expect(isCloseOnExec(region.fd)).toBe(true)
        region.bytes[length - 1] = 0xa5
        const last = new Uint8Array(1)
        readSync(region.fd, last, 0, 1, length - 1)
        expect(last[0]).toBe(0xa5)
      }))
  }

  live("2^33 bytes", () =>
    Effect.gen(function*() {
      const region = yield* MemoryRegion.allocate(2 ** 33)
      expect(region.bytes.length).toBe(2 ** 33)
      region.bytes[2 ** 33 - 1] = 1
    }))

  for (const length of badLengths) {
    live(`refuses ${length} bytes`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(MemoryRegion.allocate(length))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toBe(`allocate: length ${length} must be a whole number from 1 to 2^33`)
      }))
  }

  live("gives regions identities of their own", () =>
    Effect.gen(function*() {
      const first = yield* MemoryRegion.allocate(4096)
      const second = yield* MemoryRegion.allocate(4096)
      expect(first.file).not.toBe(second.file)
      expect(first.address).not.toBe(second.address)
      expect(first.bytes.buffer).not.toBe(second.bytes.buffer)
    }))

  live("takes the memory, the descriptor and every view away with the Scope", () =>
    Effect.gen(function*() {
      const before = count()
      const scope = yield* Scope.make()
      const region = yield* Scope.provide(MemoryRegion.allocate(8192), scope)
      const part = region.bytes.subarray(4096)
      part.fill(7)
      expect(count()).toStrictEqual({ ...before, memfds: before.memfds + 1, mappings: before.mappings + 1 })
      yield* Scope.close(scope, Exit.void)
      expect(count()).toStrictEqual(before)
      expect([region.bytes.length, part.length, region.bytes.buffer.byteLength]).toStrictEqual([0, 0, 0])
      expect(part[0]).toBeUndefined()
      expect(region.length).toBe(8192)
      expect(() => fstatSync(region.fd)).toThrow(/EBADF/)
    }))

  live(
    "closes its descriptor, and does not die, where the application moved the buffer away",
    () =>
      Effect.gen(function*() {
        const before = count()
        const moved = yield* Effect.scoped(Effect.map(MemoryRegion.allocate(4096), (region) => ({
          buffer: region.bytes.buffer.transfer(),
          address: region.address
        })))
        expect(count()).toStrictEqual({ ...before, mappings: before.mappings + 1 })
        expect(new Uint8Array(moved.buffer)[0]).toBe(0)
        Libc.unmap({ buffer: moved.buffer, length: 4096, address: moved.address })
      })
  )

  live("leaves nothing behind after 1,000 regions", () =>
    Effect.gen(function*() {
      const before = count()
      for (let round = 0; round < 1000; round++) {
        yield* Effect.scoped(Effect.map(MemoryRegion.allocate(4096 + round), ({ bytes }) => bytes.fill(round)))
      }
      expect(count()).toStrictEqual(before)
      // Also where they live side by side.
      yield* Effect.scoped(Effect.forEach(Array.from({ length: 200 }), () => MemoryRegion.allocate(4096)))
      expect(count()).toStrictEqual(before)
    }))

  live("leaves nothing behind when interrupted, wherever that happens", () =>
    Effect.gen(function*() {
      const before = count()
      for (let delay = 0; delay < 50; delay++) {
        const fiber = yield* Effect.forkChild(
          Effect.forever(Effect.scoped(Effect.andThen(MemoryRegion.allocate(4096), Effect.yieldNow)))
        )
        yield* Effect.forEach(Array.from({ length: delay }), () => Effect.yieldNow, { discard: true })
        yield* Fiber.interrupt(fiber)
        expect(count()).toStrictEqual(before)
      }
    }))
})

describe("fromFd", () => {
  live("opens a part of a file, and shares it", () =>
    Effect.gen(function*() {
      const fd = yield* memoryFile(16_384)
      const region = yield* MemoryRegion.fromFd({ fd, offset: 4096, length: 6000 })
      expect(region).toMatchObject({ length: 6000, fdOffset: 4096 })
      expect(region.fd).not.toBe(fd)
      expect(isCloseOnExec(region.fd)).toBe(true)
      writeSync(fd, Uint8Array.of(1, 2, 3), 0, 3, 4096)
      expect([...region.bytes.subarray(0, 3)]).toStrictEqual([1, 2, 3])
      const second = yield* MemoryRegion.fromFd({ fd, offset: 0, length: 16_384 })
      expect(second.file).toBe(region.file)
      expect([...second.bytes.subarray(4096, 4099)]).toStrictEqual([1, 2, 3])
    }))

  live("leaves the caller's descriptor open", () =>
    Effect.gen(function*() {
      const fd = yield* memoryFile(4096)
      yield* Effect.scoped(MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }))
      expect(fstatSync(fd).size).toBe(4096)
    }))

  live("does not need the caller's descriptor any more", () =>
    Effect.gen(function*() {
      const region = yield* Effect.flatMap(Effect.sync(() => Libc.createMemoryFile("effect-blkio", 4096)), (fd) =>
        Effect.ensuring(
          MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }),
          Effect.sync(() =>
            Libc.close(fd)
          )
        ))
      region.bytes.fill(1)
      expect(fstatSync(region.fd).size).toBe(4096)
    }))

  for (const length of badLengths) {
    live(`refuses ${length} bytes`, () =>
      Effect.gen(function*() {
        const fd = yield* memoryFile(8192)
        const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset: 0, length }))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toContain(`length ${length} must be`)
      }))
  }

  for (const offset of badOffsets) {
    live(`refuses offset ${offset}`, () =>
      Effect.gen(function*() {
        const fd = yield* memoryFile(8192)
        const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset, length: 1 }))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toContain(`offset ${offset} must be`)
      }))
  }

  for (const [offset, length] of [[0, 8193], [4096, 4097], [8192, 1], [2 ** 40, 4096]] as const) {
    live(`refuses ${length} bytes from ${offset} of 8192`, () =>
      Effect.gen(function*() {
        const fd = yield* memoryFile(8192)
        const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset, length }))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toContain("must lie within the file's 8192 bytes")
      }))
  }

  for (const fd of [-1, 1_000_000, 1.5, NaN, 2 ** 32 + 1, Infinity]) {
    live(`answers EBADF for descriptor ${fd}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }))
        expect(error).toMatchObject({ _tag: "EBADF", operation: "open region", syscall: "fcntl" })
      }))
  }

  live("answers EACCES for a descriptor that can only be read, or only be written", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* temporaryDirectory, "memory")
      const made = yield* opened(path, "w")
      writeSync(made, new Uint8Array(4096))
      const readOnly = yield* opened(path, "r")
      for (const fd of [readOnly, made]) {
        const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }))
        expect(error).toMatchObject({ _tag: "EACCES", syscall: "mmap" })
      }
      const both = yield* opened(path, "r+")
      expect((yield* MemoryRegion.fromFd({ fd: both, offset: 0, length: 4096 })).bytes.length).toBe(4096)
    }))

  live(
    "answers EINVAL for what has no length: a pipe's end, a socket, an event counter, a device",
    () =>
      Effect.gen(function*() {
        const eventFd = yield* Effect.acquireRelease(
          Effect.sync(Libc.createEventFd),
          (fd) => Effect.sync(() => Libc.close(fd))
        )
        for (const fd of [eventFd, yield* opened("/dev/null", "r+")]) {
          const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }))
          expect(error._tag).toBe("EINVAL")
        }
      })
  )

  live("answers with a typed error for a directory", () =>
    Effect.gen(function*() {
      const fd = yield* opened(yield* temporaryDirectory, "r")
      const error = yield* Effect.flip(MemoryRegion.fromFd({ fd, offset: 0, length: 1 }))
      expect(["ENODEV", "EACCES", "EINVAL"]).toContain(error._tag)
    }))
})

it.effect("describes itself as the architecture does: one page size for offsets", () =>
  Effect.sync(() => expect(MemoryRegion.PAGE_BYTES).toBe(4096)))
