/**
 * Goal: libblkio's own tests of its virtio-blk-vhost-user driver, by name: whoever looks for one finds it here, or where it is.
 * Method: their fixture (an image of 1 MiB, writable, two queues; qcow2, as theirs, on qemu-storage-daemon, and raw on our
 * export, which knows no formats), their assertions, our calls. What our types exclude is a type test under the same name
 * (types.test.ts); where we mean to differ, docs/differences.md says why.
 *
 * | libblkio's test | how it is covered |
 * |---|---|
 * | driver-not-found | types.test.ts: a driver is a module, a name that is none does not compile |
 * | driver-name | here: readable, EACCES to set, unchanged; types.test.ts |
 * | error-msg | here: each error carries its own message, that of another fiber is another |
 * | started | here: what runs twice; types.test.ts: what cannot be called too late |
 * | capacity | here: ENODEV by name before the device is connected; types.test.ts |
 * | block-limits | here |
 * | get-queue | here: a queue that is none answers ENODEV; types.test.ts: none before the start |
 * | poll-queues | here |
 * | add-remove-queues | here: none at all is EINVAL, can-add-queues is false; types.test.ts: nothing adds or removes one |
 * | read, write, readv, writev, polled | here, each on event and poll queues |
 * | read-only | here |
 * | read-invalid-flags | here |
 * | read-short, growing_file | skipped upstream too: can-grow is false, which is tested here |
 * | write-fua | here, and that the backend flushed |
 * | write-zeroes | here |
 * | discard | here |
 * | flush | here |
 * | user-data | here |
 * | queue-full | here |
 * | timeout | here |
 * | get-completion-fd, set-completion-fd | here |
 * | alloc-mem-region, auto-free-mem-regions | here |
 * | map-mem-region, map-mem-region-invalid | here; types.test.ts: none before the start |
 * | fd | here |
 * | do_io_interruptible (no test upstream) | here: a fiber is interrupted in place of a signal |
 * | blkio-info.sh, blkio-bench.sh | here: the command runs on the fixture; test/cli has the rest |
 * | blkio-copy.sh | test/cli/copy.test.ts; from image to image test/BlockStore/Copy.test.ts |
 * | report, open, close, finish, reset zones | skipped upstream too: nvme only |
 * | run-test-suites-in-vm.sh | the other transports' suites, with them |
 */
import { expect } from "@effect/vitest"
import { Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { execFile } from "node:child_process"
import { closeSync, fstatSync, readFileSync } from "node:fs"
import { promisify } from "node:util"
import * as Libc from "../../src/Native/Libc.ts"
import { IoQueue, MemoryRegion, VhostUser, VirtioBlk } from "../../src/index.ts"
import type { Backend } from "../support/Backend.ts"
import { forEachBackend, makeImage } from "../support/backends.ts"
import { at, KiB, MiB, onBackend, open } from "../support/daemon.ts"

const SIZE = MiB
const OFFSET = 0x10000
const { FUA, NO_FALLBACK, NO_UNMAP } = IoQueue.RequestFlag
const now = { startImmediately: true } as const

/** libblkio's fixture. */
const fixture = Effect.fnUntraced(function*(backend: Backend) {
  const image = yield* makeImage(backend.formats.at(-1) ?? "raw", SIZE)
  const { flushes, socketPath } = yield* backend.serve(image, { numQueues: 2 })
  return { image, flushes, socketPath, created: yield* at(socketPath) }
})

/** A started device with one mapped region, and what its test is about: an event queue or a poll queue. */
const started = Effect.fnUntraced(function*(backend: Backend, kind: "event" | "poll" = "event", queueSize = 256) {
  const { flushes, image, socketPath } = yield* fixture(backend)
  const disk = yield* open(socketPath, {
    queueSize,
    ...(kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : {})
  })
  const { bytes } = yield* disk.allocate(64 * KiB)
  return { image, flushes, disk, bytes, queue: kind === "poll" ? disk.pollQueue(0) : disk.queue(0) }
})

const tagOf = <E extends { readonly _tag: string }, R>(effect: Effect.Effect<unknown, E, R>) =>
  Effect.map(Effect.flip(effect), ({ _tag }) => _tag)

const fill = (bytes: Uint8Array, seed: number): Uint8Array => {
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i + seed, 0x9e3779b1) >>> 24
  return bytes
}

forEachBackend("libblkio, before the start", (backend) => {
  onBackend("driver-name", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      expect(yield* created.properties.getString("driver")).toBe("virtio-blk-vhost-user")
      expect(yield* tagOf(created.properties.setString("driver", "foo"))).toBe("EACCES")
      expect(yield* created.properties.getString("driver")).toBe("virtio-blk-vhost-user")
      const connected = yield* created.connect
      expect(yield* tagOf(connected.properties.setString("driver", "foo"))).toBe("EACCES")
      expect(yield* connected.properties.getString("driver")).toBe("virtio-blk-vhost-user")
    }))

  onBackend("error-msg", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      const [one, other] = yield* Effect.all([
        Effect.flip(created.properties.getString("foo")),
        Effect.flip(created.properties.setString("capacity", "1"))
      ], { concurrency: "unbounded" })
      expect(one.message).toContain("foo")
      expect(other.message).toContain("capacity")
      expect(one.message).not.toBe(other.message)
    }))

  onBackend("started: connecting and starting twice", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      // A plan may be carried out again and again; each connection is one of its own.
      yield* Effect.scoped(created.connect)
      const connected = yield* created.connect
      yield* connected.start()
      // libblkio: 0 and nothing done. Here it is a second start, and told so.
      expect(yield* tagOf(connected.start())).toBe("EBUSY")
    }))

  onBackend("started: a failed connect and a failed start can be tried again", () =>
    Effect.gen(function*() {
      const nowhere = VirtioBlk.create(yield* VhostUser.make({ path: "/nowhere/disk.sock" }))
      for (let i = 0; i < 2; i++) expect(yield* tagOf(Effect.scoped(nowhere.connect))).toBe("ENOENT")
      const { created } = yield* fixture(backend)
      const connected = yield* created.connect
      yield* connected.properties.set({ numQueues: 3 })
      expect(yield* tagOf(connected.start())).toBe("EINVAL")
      yield* connected.properties.set({ numQueues: 2 })
      yield* connected.start()
    }))

  onBackend("capacity", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      expect(yield* tagOf(created.properties.getUnknown("capacity"))).toBe("ENODEV")
      const connected = yield* created.connect
      expect(yield* connected.properties.get("capacity")).toBe(SIZE)
      expect(yield* tagOf(connected.properties.setUnknown("capacity", 1))).toBe("EACCES")
      const device = yield* connected.start()
      expect(yield* device.properties.get("capacity")).toBe(SIZE)
    }))

  onBackend("block-limits", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      const connected = yield* created.connect
      const limits = yield* connected.properties.getAll
      const isPowerOfTwo = (n: number) => n > 0 && Number.isInteger(Math.log2(n))
      expect(isPowerOfTwo(limits.requestAlignment) && limits.requestAlignment >= 512).toBe(true)
      expect(limits.optimalIoAlignment % limits.requestAlignment).toBe(0)
      expect(limits.optimalIoSize % limits.requestAlignment).toBe(0)
      expect(limits.discardAlignment % limits.requestAlignment).toBe(0)
      expect(limits.discardAlignmentOffset % limits.requestAlignment).toBe(0)
      expect(limits.discardAlignmentOffset).toBeLessThan(limits.discardAlignment)
      expect(isPowerOfTwo(limits.bufAlignment)).toBe(true)
      expect(limits.optimalBufAlignment % limits.bufAlignment).toBe(0)
      expect(limits.maxSegments).toBeGreaterThan(0)
      for (
        const name of [
          "request-alignment",
          "optimal-io-alignment",
          "optimal-io-size",
          "discard-alignment",
          "discard-alignment-offset",
          "max-segments",
          "max-segment-len",
          "max-transfer",
          "max-discard-len",
          "max-write-zeroes-len",
          "buf-alignment",
          "optimal-buf-alignment"
        ]
      ) {
        const value = Number(yield* connected.properties.getString(name))
        const errno = yield* tagOf(connected.properties.setString(name, "512"))
        expect([name, value >= 0, errno]).toStrictEqual([name, true, "EACCES"])
      }
    }))

  onBackend("fd", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      expect(yield* created.properties.get("fd")).toBe(-1)
      // It is chosen with the transport, as `path` is, and not set afterwards.
      expect(yield* tagOf(created.properties.setUnknown("fd", 3))).toBe("EACCES")
      expect(yield* tagOf(created.properties.setString("path", "/elsewhere"))).toBe("EACCES")
    }))

  onBackend("read-short, growing_file: skipped, since no virtio-blk device can-grow", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      expect(yield* created.properties.get("can-grow")).toBe(false)
    }))

  onBackend("poll-queues, add-remove-queues: how many there may be", () =>
    Effect.gen(function*() {
      const { created } = yield* fixture(backend)
      const connected = yield* created.connect
      const { properties } = connected
      expect(yield* properties.get("supports-poll-queues")).toBe(true)
      expect(yield* properties.get("can-add-queues")).toBe(false)
      expect(yield* properties.get("max-queues")).toBe(2)
      for (const [numQueues, numPollQueues] of [[0, 0], [3, 0], [0, 3], [2, 1]] as const) {
        yield* properties.set({ numQueues, numPollQueues })
        expect(yield* tagOf(connected.start())).toBe("EINVAL")
      }
      for (const name of ["num-queues", "num-poll-queues"]) {
        expect(yield* tagOf(properties.setUnknown(name, -1))).toBe("EINVAL")
      }
      yield* properties.set({ numQueues: 1, numPollQueues: 1 })
      const device = yield* connected.start()
      expect([device.queues.length, device.pollQueues.length]).toStrictEqual([1, 1])
      expect([device.queue(0).kind, device.pollQueue(0).kind]).toStrictEqual(["event", "poll"])
    }))
})

forEachBackend("libblkio, queues and memory", (backend) => {
  onBackend("get-queue", () =>
    Effect.gen(function*() {
      const { disk } = yield* started(backend)
      for (const index of [-1, 1, 2, 2 ** 31, NaN]) {
        expect(yield* tagOf(disk.queue(index).flush()), `${index}`).toBe("ENODEV")
        expect(yield* tagOf(disk.pollQueue(index).flush()), `${index}`).toBe("ENODEV")
      }
      yield* disk.queue(0).flush()
    }))

  onBackend("poll-queues: no completion fd, and requests of every kind work", () =>
    Effect.gen(function*() {
      const { bytes, queue } = yield* started(backend, "poll")
      expect(queue.completionFd).toStrictEqual(Option.none())
      expect(yield* tagOf(queue.setCompletionFdEnabled(true))).toBe("ENOTSUP")
      yield* queue.flush()
      yield* queue.read(0, bytes)
    }))

  onBackend("alloc-mem-region", () =>
    Effect.gen(function*() {
      const { disk } = yield* started(backend)
      const scope = yield* Scope.make()
      const region = yield* disk.allocate(4 * KiB).pipe(Scope.provide(scope))
      expect([region.length, region.bytes.length]).toStrictEqual([4 * KiB, 4 * KiB])
      const { fd } = region
      expect(fstatSync(fd).size).toBe(4 * KiB)
      yield* Scope.close(scope, Exit.void)
      expect(() => fstatSync(fd)).toThrow("EBADF")
      for (const length of [0, -1, 0.5, NaN, Infinity]) {
        expect(yield* tagOf(Effect.scoped(disk.allocate(length))), `${length}`).toBe("EINVAL")
      }
    }))

  onBackend("auto-free-mem-regions", () =>
    Effect.gen(function*() {
      const fds = yield* Effect.scoped(Effect.gen(function*() {
        const { disk } = yield* started(backend)
        const regions = yield* Effect.forEach([1, 2, 3], () => disk.allocate(4 * KiB))
        return regions.map(({ fd }) => fd)
      }))
      for (const fd of fds) expect(() => fstatSync(fd)).toThrow("EBADF")
    }))

  onBackend("map-mem-region", () =>
    Effect.gen(function*() {
      const { disk, queue } = yield* started(backend)
      const fd = yield* Effect.acquireRelease(
        Effect.sync(() => Libc.createMemoryFile("test", 64 * KiB)),
        (opened) => Effect.sync(() => closeSync(opened))
      )
      const region = yield* MemoryRegion.fromFd({ fd, offset: 0, length: 64 * KiB })
      expect(yield* tagOf(queue.read(0, region.bytes))).toBe("EFAULT")
      yield* disk.map(region)
      expect(yield* tagOf(disk.map(region))).toBe("EINVAL")
      yield* queue.read(0, region.bytes)
      yield* disk.unmap(region)
      yield* disk.unmap(region)
      expect(yield* tagOf(queue.read(0, region.bytes))).toBe("EFAULT")
      yield* disk.map(region)
      yield* queue.read(0, region.bytes)
      yield* disk.unmap(region)
    }))

  onBackend("map-mem-region-invalid", () =>
    Effect.gen(function*() {
      const { disk } = yield* started(backend)
      expect(yield* disk.properties.get("mem-region-alignment")).toBe(1)
      const fd = yield* Effect.acquireRelease(
        Effect.sync(() => Libc.createMemoryFile("test", 64 * KiB)),
        (opened) => Effect.sync(() => closeSync(opened))
      )
      const at = (offset: number, length: number) => MemoryRegion.fromFd({ fd, offset, length })
      for (const offset of [1, 512, -4096]) expect(yield* tagOf(at(offset, 4 * KiB)), `${offset}`).toBe("EINVAL")
      expect(yield* tagOf(MemoryRegion.fromFd({ fd: -1, offset: 0, length: 4 * KiB }))).toBe("EBADF")
      yield* disk.map(yield* at(0, 8 * KiB))
      expect(yield* tagOf(Effect.flatMap(at(4 * KiB, 8 * KiB), (region) => disk.map(region)))).toBe("EEXIST")
      expect(yield* tagOf(Effect.flatMap(at(0, 8 * KiB), (region) => disk.map(region)))).toBe("EINVAL")
    }))
})

for (const kind of ["event", "poll"] as const) {
  forEachBackend(`libblkio, requests on ${kind} queues`, (backend) => {
    onBackend("read, write, polled", () =>
      Effect.gen(function*() {
        const { bytes, image, queue } = yield* started(backend, kind)
        const [source, target] = [fill(bytes.subarray(0, 4 * KiB), 1), bytes.subarray(4 * KiB, 8 * KiB)]
        yield* queue.write(OFFSET, source)
        yield* queue.read(OFFSET, target)
        expect(target).toStrictEqual(source)
        source.fill(0xa5)
        yield* queue.write(OFFSET, source)
        yield* queue.flush()
        yield* backend.verify(image, [[OFFSET, 4 * KiB, 0xa5]])
      }))

    onBackend("readv, writev", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const source = fill(bytes.subarray(0, 4 * KiB), 2)
        yield* queue.writev(OFFSET, [source.subarray(0, 1024), source.subarray(1024, 1536), source.subarray(1536)])
        const target = bytes.subarray(8 * KiB, 12 * KiB)
        yield* queue.readv(OFFSET, [target.subarray(0, 512), target.subarray(512, 3072), target.subarray(3072)])
        expect(target).toStrictEqual(source)
      }))

    onBackend("write-fua", () =>
      Effect.gen(function*() {
        const { bytes, flushes, image, queue } = yield* started(backend, kind)
        const source = bytes.subarray(0, 4 * KiB).fill(0x3c)
        yield* queue.write(OFFSET, source, FUA)
        // Of a qcow2 image another process sees what was flushed, and no more; our export counts.
        yield* backend.verify(image, [[OFFSET, 4 * KiB, 0x3c]])
        yield* queue.writev(2 * OFFSET, [source], FUA)
        yield* queue.writeZeroes(OFFSET, 4 * KiB, FUA)
        if (flushes !== undefined) expect(flushes()).toBe(3)
        yield* queue.read(OFFSET, source)
        expect(source.every((byte) => byte === 0)).toBe(true)
      }))

    onBackend("write-zeroes", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const buffer = bytes.subarray(0, 4 * KiB)
        for (const flags of [0, NO_UNMAP, NO_FALLBACK, NO_UNMAP | NO_FALLBACK | FUA]) {
          yield* queue.write(OFFSET, fill(buffer, 3))
          yield* queue.writeZeroes(OFFSET, 4 * KiB, flags)
          yield* queue.read(OFFSET, buffer)
          expect(buffer.every((byte) => byte === 0)).toBe(true)
        }
      }))

    onBackend("discard", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        yield* queue.write(OFFSET, bytes)
        yield* queue.discard(OFFSET, 64 * KiB)
      }))

    onBackend("flush", () => Effect.flatMap(started(backend, kind), ({ queue }) => queue.flush()))

    onBackend("read-invalid-flags", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const buffer = bytes.subarray(0, 512)
        const unknown = yield* Effect.flip(queue.read(0, buffer, 0xffff_ffff))
        expect(unknown).toMatchObject({ _tag: "EINVAL" })
        expect(unknown.message).toContain("unsupported bits")
        const disallowed = yield* Effect.flip(queue.read(0, buffer, FUA))
        expect(disallowed).toMatchObject({ _tag: "EINVAL" })
        expect(disallowed.message).toContain("FUA is not valid for read")
        yield* queue.read(0, buffer)
      }))

    onBackend("read-only", () =>
      Effect.gen(function*() {
        const { socketPath } = yield* fixture(backend)
        const disk = yield* open(socketPath, {
          readOnly: true,
          ...(kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : {})
        })
        const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
        const { bytes } = yield* disk.allocate(4 * KiB)
        expect(yield* tagOf(queue.write(0, bytes))).toBe("EBADF")
        expect(yield* tagOf(queue.writev(0, [bytes]))).toBe("EBADF")
        expect(yield* tagOf(queue.writeZeroes(0, 4 * KiB))).toBe("EBADF")
        expect(yield* tagOf(queue.discard(0, 4 * KiB))).toBe("EBADF")
        yield* queue.read(0, bytes)
        yield* queue.flush()
      }))

    onBackend("user-data: every request comes back once", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const requests = Array.from(
          { length: 1000 },
          (_, id) => ({ _tag: "read", offset: 0, buffer: bytes.subarray(0, 512), id }) as const
        )
        const completions = yield* Stream.runCollect(queue.process(Stream.fromIterable(requests)))
        expect(completions.every(({ error }) => error === undefined)).toBe(true)
        expect(completions.map(({ request }) => request.id).toSorted((a, b) => a - b)).toStrictEqual(
          requests.map(({ id }) => id)
        )
      }))

    onBackend("queue-full", () =>
      Effect.gen(function*() {
        const QUEUE_SIZE = 16
        const MAX = 8
        const { queue } = yield* started(backend, kind, QUEUE_SIZE)
        const total = 2 * QUEUE_SIZE + MAX + 1
        const submitting = yield* Effect.forkChild(
          queue.submit(Array.from({ length: total }, () => ({ _tag: "flush" }) as const)),
          now
        )
        let taken = 0
        while (taken < total) {
          const completions = yield* queue.completions({ min: 1, max: MAX })
          expect(completions.length).toBeLessThanOrEqual(MAX)
          taken += completions.length
        }
        yield* Fiber.join(submitting)
        expect(taken).toBe(total)
        expect(yield* tagOf(queue.completions({ min: 1 }))).toBe("EINVAL")
      }))

    onBackend("timeout", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const read = { _tag: "read", offset: 0, buffer: bytes } as const
        for (const timeout of [0, "1 nanos", "1 micros", "1 millis", "1 hour"] as const) {
          yield* queue.submit([read])
          const first = yield* Effect.exit(queue.completions({ min: 1, timeout }))
          if (Exit.isFailure(first)) {
            expect(first).toMatchObject(Exit.fail({ _tag: "ETIME" }))
            // What came too late comes all the same.
            expect((yield* queue.completions({ min: 1, timeout: "1 hour" })).length).toBe(1)
          } else expect(first.value.length).toBe(1)
          expect(yield* queue.completions({ min: 0, timeout: 0 })).toStrictEqual([])
        }
      }))

    onBackend("do_io_interruptible: what is interrupted loses nothing", () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend, kind)
        const read = { _tag: "read", offset: 0, buffer: bytes } as const
        for (let round = 0; round < 20; round++) {
          yield* queue.submit([read, read])
          const waiting = yield* Effect.forkChild(queue.completions({ min: 2 }), now)
          if (round % 2 === 0) yield* Effect.yieldNow
          yield* Fiber.interrupt(waiting)
          const exit = yield* Fiber.await(waiting)
          const taken = Exit.isSuccess(exit) ? exit.value.length : 0
          if (taken === 0) expect((yield* queue.completions({ min: 2 })).length).toBe(2)
          else expect(taken).toBe(2)
        }
      }))
  })
}

forEachBackend("libblkio, completion descriptors", (backend) => {
  onBackend("get-completion-fd", () =>
    Effect.gen(function*() {
      const { bytes, queue } = yield* started(backend)
      const fd = Option.getOrThrow(queue.completionFd)
      const [, flags = ""] = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8")) ?? []
      const O_NONBLOCK = 0o4000
      expect(Number.parseInt(flags, 8) & O_NONBLOCK).toBe(O_NONBLOCK)
      yield* queue.setCompletionFdEnabled(true)
      Libc.drainEventFd(fd)
      yield* queue.submit([{ _tag: "read", offset: 0, buffer: bytes }])
      const eventCount = () =>
        /^eventfd-count:\s+([0-9a-f]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1]
      while (Number.parseInt(eventCount() ?? "", 16) === 0) yield* Effect.sleep(1)
      Libc.drainEventFd(fd)
      expect(Number.parseInt(eventCount() ?? "", 16)).toBe(0)
      expect((yield* queue.completions({ min: 0 })).length).toBe(1)
    }))

  onBackend("set-completion-fd", () =>
    Effect.gen(function*() {
      const { bytes, queue } = yield* started(backend)
      const fd = Option.getOrThrow(queue.completionFd)
      const read = { _tag: "read", offset: 0, buffer: bytes.subarray(0, 512) } as const
      const isSignalled = () =>
        Number.parseInt(
          /^eventfd-count:\s+([0-9a-f]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1] ?? "",
          16
        ) > 0
      const count = { submitted: 0, taken: 0 }
      const take = Effect.map(queue.completions({ min: 0 }), ({ length }) => {
        count.taken += length
        return length
      })
      while (count.taken < 128) {
        // The protocol of the manual: disabled while there is work, enabled and looked at once more before sleeping.
        yield* queue.setCompletionFdEnabled(false)
        while (count.submitted < 128 && count.submitted - count.taken < 8) {
          yield* queue.submit([read])
          count.submitted++
        }
        while ((yield* take) > 0);
        yield* queue.setCompletionFdEnabled(true)
        if ((yield* take) > 0 || count.taken === count.submitted) continue
        while (!isSignalled()) yield* Effect.sleep(1)
        Libc.drainEventFd(fd)
      }
      expect(count).toStrictEqual({ submitted: 128, taken: 128 })
    }))
})

const blkio = (...args: ReadonlyArray<string>) =>
  Effect.promise(() => promisify(execFile)(process.execPath, ["src/cli/main.ts", ...args]))

forEachBackend("libblkio's tools", (backend) => {
  onBackend("blkio-info.sh", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* fixture(backend)
      expect((yield* blkio("info", `virtio-blk-vhost-user,path=${socketPath}`)).stdout).toContain(String(SIZE))
    }))

  onBackend("blkio-bench.sh", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* fixture(backend)
      const { stdout } = yield* blkio(
        "bench",
        `virtio-blk-vhost-user,path=${socketPath}`,
        "--runtime",
        "1",
        "--json"
      )
      expect(JSON.parse(stdout)).toBeTypeOf("object")
    }))
})

forEachBackend("what libblkio gets wrong", (backend) => {
  onBackend(
    "start + length that wraps, and lengths past 2^32 sectors, are EINVAL and do not reach the device",
    () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend)
        for (
          const [offset, length] of [[2 ** 53 - 512, 512], [512, 2 ** 64 - 512], [0, 2 ** 41 + 512], [
            0,
            2 ** 42
          ]] as const
        ) {
          expect(yield* tagOf(queue.discard(offset, length))).toBe("EINVAL")
          expect(yield* tagOf(queue.writeZeroes(offset, length))).toBe("EINVAL")
        }
        yield* queue.read(0, bytes)
      })
  )

  onBackend(
    "toggling the write cache (flush-needed) is noticed by a refresh, and FUA then takes a flush",
    () =>
      Effect.gen(function*() {
        const { disk, queue, bytes } = yield* started(backend)
        const change = yield* disk.refresh
        expect(change).toStrictEqual({ capacity: SIZE, flushNeeded: yield* disk.properties.get("flush-needed") })
        yield* queue.write(0, bytes, FUA)
      })
  )

  onBackend(
    "completions come with the wrong one first, and asking for more than there are notifies nobody",
    () =>
      Effect.gen(function*() {
        const { bytes, queue } = yield* started(backend)
        const good = { _tag: "read", offset: 0, buffer: bytes.subarray(0, 512) } as const
        const bad = { _tag: "read", offset: 1, buffer: bytes.subarray(0, 512) } as const
        yield* queue.submit([good, bad, good])
        expect(yield* tagOf(queue.completions({ min: 4 }))).toBe("EINVAL")
        const completions = yield* queue.completions({ min: 3 })
        expect(completions.filter(({ error }) => error !== undefined).map(({ request }) => request)).toStrictEqual([
          bad
        ])
        expect(completions.length).toBe(3)
      })
  )
})
