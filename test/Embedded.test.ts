/**
 * Goal: an embedded disk is a disk like any other, made with nothing around it, and gone with its Scope.
 * Method: memory and file disks through the whole stack, thread and all; what cannot be made is a typed error; descriptors,
 * mappings and threads are counted before and after; Node tells of every thread it starts, so that one can be killed.
 */
import { expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import type { Worker } from "node:worker_threads"
import { BlockDevice, Embedded, type IoQueue } from "../src/index.ts"
import { mayLeave } from "./support/leakGate.ts"
import { descriptors, leavesNothing, live } from "./support/resources.ts"

const KiB = 1024
const MiB = 1024 * KiB

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(`${tmpdir()}/blkio-embedded-`)),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

const roundTrip = (disk: typeof BlockDevice.Service) =>
  Effect.gen(function*() {
    const region = yield* disk.allocate(64 * KiB)
    const [written, read] = [region.bytes.subarray(0, 32 * KiB), region.bytes.subarray(32 * KiB)]
    written.forEach((_, i) => written[i] = i * 7)
    const queues = [...disk.queues, ...disk.pollQueues]
    for (const [i, queue] of queues.entries()) {
      yield* queue.write(i * MiB, written, 1)
      yield* queue.flush()
      yield* queue.read(i * MiB, read.fill(0))
      expect(Buffer.compare(written, read)).toBe(0)
    }
    return queues.length
  })

live("a disk in memory works on every queue, and is gone with its scope", () =>
  Effect.gen(function*() {
    const disk = yield* Embedded.memory({ capacity: 8 * MiB, numQueues: 2, numPollQueues: 1, blockSize: 4096 })
    expect(yield* roundTrip(disk)).toBe(3)
    expect(disk.capacity).toBe(8 * MiB)
    expect(yield* disk.properties.get("request-alignment")).toBe(4096)
    expect(yield* disk.properties.get("max-queues")).toBe(3)
    expect(Buffer.from(yield* disk.readBytes(7 * MiB, 3))).toStrictEqual(Buffer.alloc(3))
  }))

live("a disk in a file keeps what was written, and can be read-only", () =>
  Effect.gen(function*() {
    const path = `${yield* folder}/disk.img`
    yield* Effect.scoped(Effect.gen(function*() {
      const disk = yield* Embedded.file({ path, create: true, size: 4 * MiB })
      yield* disk.writeBytes(5000, new TextEncoder().encode("kept"))
      yield* disk.flush
    }))
    expect(readFileSync(path).subarray(5000, 5004).toString()).toBe("kept")
    const disk = yield* Embedded.file({ path, readOnly: true })
    expect(new TextDecoder().decode(yield* disk.readBytes(5000, 4))).toBe("kept")
    expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(1)))).toMatchObject({ _tag: "EBADF" })
  }))

live("layers provide the device", () =>
  Effect.gen(function*() {
    const path = `${yield* folder}/disk.img`
    const layers: ReadonlyArray<Layer.Layer<BlockDevice, Embedded.EmbeddedError>> = [
      Embedded.layerMemory({ capacity: 3 * MiB }),
      Embedded.layerFile({ path, create: true, size: 3 * MiB })
    ]
    for (const layer of layers) {
      expect(yield* BlockDevice.useSync(({ capacity }) => capacity).pipe(Effect.provide(layer))).toBe(3 * MiB)
    }
  }))

it.live("what cannot be made is a typed error, and leaves nothing", () =>
  Effect.gen(function*() {
    const before = descriptors().size
    const errors = [
      [Embedded.memory({ capacity: 1000 }), "EINVAL", "capacity 1000"],
      [Embedded.memory({ capacity: MiB, blockSize: 100 }), "EINVAL", "blockSize 100"],
      [Embedded.file({ path: "/nowhere/disk.img" }), "ENOENT", "/nowhere/disk.img"],
      [Embedded.file({ path: tmpdir() }), "EISDIR", ""],
      [Embedded.memory({ capacity: MiB, numQueues: 257 }), "EINVAL", "256"],
      [Embedded.memory({ capacity: MiB, queueSize: 100 }), "EINVAL", "100"],
      [Embedded.memory({ capacity: MiB, export: { serial: "more than twenty bytes" } }), "EINVAL", "20 bytes"]
    ] as const
    for (const [embed, tag, detail] of errors) {
      const error = yield* Effect.flip(leavesNothing(embed))
      expect([error._tag, error.message]).toStrictEqual([tag, expect.stringContaining(detail)])
    }
    expect(descriptors().size).toBe(before)
  }))

live("many at once do not get mixed up", () =>
  Effect.gen(function*() {
    const disks = yield* Effect.forEach([1, 2, 3, 4], () => Embedded.memory({ capacity: MiB }), {
      concurrency: "unbounded"
    })
    yield* Effect.forEach(disks, (disk, i) => disk.writeBytes(0, Uint8Array.of(i)), { concurrency: "unbounded" })
    const found = yield* Effect.forEach(disks, (disk) => disk.readBytes(0, 1), { concurrency: "unbounded" })
    expect(found.map(([byte]) => byte)).toStrictEqual([0, 1, 2, 3])
  }))

live("its scope may close in the middle of everything, or its making be interrupted", () =>
  Effect.gen(function*() {
    for (let round = 0; round < 5; round++) {
      const scope = yield* Scope.make()
      const disk = yield* Scope.provide(Embedded.memory({ capacity: MiB }), scope)
      const region = yield* Scope.provide(disk.allocate(4 * KiB), scope)
      const read: IoQueue.Read = { _tag: "read", offset: 0, buffer: region.bytes }
      const reading = yield* Effect.forkChild(
        disk.queue(0).process(Stream.forever(Stream.make(read))).pipe(Stream.runDrain),
        { startImmediately: true }
      )
      yield* Effect.sleep(10)
      yield* Scope.close(scope, Exit.void)
      expect(yield* Effect.flip(Fiber.join(reading))).toMatchObject({ _tag: "ESHUTDOWN" })
    }
    const making = yield* Effect.forkChild(Effect.scoped(Embedded.memory({ capacity: MiB })), {
      startImmediately: true
    })
    yield* Effect.sleep(1)
    yield* Fiber.interrupt(making)
  }))

live("what was made after the disk may use it until its scope closes", () =>
  Effect.gen(function*() {
    let flushed: Exit.Exit<void, unknown> | undefined
    yield* Effect.scoped(Effect.gen(function*() {
      const disk = yield* Embedded.memory({ capacity: MiB })
      yield* Effect.addFinalizer(() =>
        Effect.map(Effect.exit(disk.flush), (exit) => {
          flushed = exit
        })
      )
      // Ordinary memory goes through buffers that the disk makes now.
      yield* disk.writeBytes(0, Uint8Array.of(1))
    }))
    expect(flushed).toStrictEqual(Exit.void)
  }))

live("twenty times in turn leave no thread, no descriptor and no mapping", () =>
  Effect.gen(function*() {
    const tasks = () => readdirSync("/proc/self/task").length
    const once = Effect.scoped(Effect.flatMap(Embedded.memory({ capacity: MiB }), roundTrip))
    yield* once
    const [before, open] = [tasks(), descriptors().size]
    for (let i = 0; i < 20; i++) yield* once
    expect(tasks()).toBeLessThanOrEqual(before + 1)
    expect(descriptors().size).toBe(open)
  }))

it.live("a thread that dies is a backend that dies", () =>
  Effect.gen(function*() {
    // Nobody is there any more to close what the thread had opened: the process keeps it.
    mayLeave(/^(?:descriptor \d+: (?:socket:|anon_inode:\[eventfd\])|mapping .*\/memfd:effect-blkio)/u)
    let thread: Worker | undefined
    process.once("worker", (worker) => {
      thread = worker
    })
    const disk = yield* Embedded.memory({ capacity: MiB })
    yield* disk.flush
    yield* Effect.promise(() => thread?.terminate() ?? Promise.reject(new Error("no thread was started")))
    for (let i = 0; i < 2; i++) expect(yield* Effect.flip(disk.flush)).toMatchObject({ _tag: "ENOTCONN" })
  }).pipe(Effect.scoped))
