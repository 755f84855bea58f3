/**
 * Goal: a block device takes any range of ordinary memory, splits what its device cannot take at once, uses no more memory
 * than it said, and whatever ends it (interruption, death, a missing feature) ends it with one typed error and leaves
 * nothing torn.
 * Method: each backend against a plain array (the seed is printed on failure); one that is slow, or killed, for what happens
 * meanwhile; and a device in memory that answers in an order of choice, for what no backend does on demand.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope, Stream } from "effect"
import { readFileSync } from "node:fs"
import type { StoreError } from "../src/BlockStore/BlockStore.ts"
import { copy } from "../src/BlockStore/Copy.ts"
import { RequestType, Status } from "../src/Wire/VirtioBlk.ts"
import { type BlockDevice, VirtioBlk } from "../src/index.ts"
import { FakeTransport } from "../src/testing/index.ts"
import { expectBytes, pattern } from "./BlockStore/WatchedStore.ts"
import { fakeConnection } from "./Driver/fakeConnection.ts"
import { slow } from "./support/Backend.ts"
import { forEachBackend, makeImage, serveRaw } from "./support/backends.ts"
import { KiB, MiB, onBackend, open, withSeed } from "./support/daemon.ts"
import { count, leavesNothing, live } from "./support/resources.ts"

type Disk = typeof BlockDevice.Service

const now = { startImmediately: true } as const
const together = { concurrency: "unbounded", discard: true } as const

/** Bytes of this process's memory that a device may reach. */
const mappedBytes = (): number =>
  readFileSync("/proc/self/maps", "utf8").split("\n").reduce((sum, line) => {
    const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) .*\/memfd:effect-blkio/.exec(line) ?? []
    return from === undefined || to === undefined ? sum : sum + Number.parseInt(to, 16) - Number.parseInt(from, 16)
  }, 0)

forEachBackend("any range of a device", (backend) => {
  for (const blockSize of [512, 4 * KiB]) {
    for (const kind of ["event", "poll"] as const) {
      onBackend(
        `is what an array holds: blocks of ${blockSize}, ${kind} queues`,
        () =>
          withSeed((random) =>
            Effect.gen(function*() {
              const CAPACITY = 2 * MiB
              const { image: { path }, socketPath } = yield* serveRaw(backend, CAPACITY, { blockSize, numQueues: 2 })
              const disk = yield* open(
                socketPath,
                kind === "poll" ? { numQueues: 0, numPollQueues: 2 } : {
                  numQueues: 2
                }
              )
              const region = yield* disk.allocate(256 * KiB)
              const model = new Uint8Array(CAPACITY)
              for (let round = 0; round < 150; round++) {
                const offset = random(CAPACITY + 1)
                const most = [100, 5000, 300 * KiB, CAPACITY][random(4)]!
                const length = Math.min(random(most + 1), CAPACITY - offset)
                const bytes = pattern(offset, length, round)
                switch (random(8)) {
                  case 0:
                  case 1:
                    yield* disk.writeBytes(offset, bytes, { fua: random(2) === 0 })
                    model.set(bytes, offset)
                    break
                  case 2:
                    yield* disk.writeZeroes(offset, length, { noUnmap: random(2) === 0 })
                    model.fill(0, offset, offset + length)
                    break
                  case 3: {
                    const chunkSize = 1 + random(100 * KiB)
                    const chunks = yield* Stream.runCollect(disk.stream({ offset, length }, { chunkSize, depth: 3 }))
                    expectBytes(Buffer.concat(chunks), model.subarray(offset, offset + length), `round ${round}`)
                    break
                  }
                  case 4: {
                    const cut = 1 + random(100 * KiB)
                    const chunks = Array.from(
                      { length: Math.ceil(length / cut) },
                      (_, i) => bytes.subarray(i * cut, (i + 1) * cut)
                    )
                    expect(yield* Stream.run(Stream.fromIterable(chunks), disk.sink(offset))).toBe(length)
                    model.set(bytes, offset)
                    break
                  }
                  case 5: {
                    // Blocks, from and to several buffers: some the device reaches, some it does not, none aligned with the other.
                    const block = blockSize
                    const from = offset - offset % block
                    const blocks = Math.min(Math.floor((CAPACITY - from) / block), 1 + random(60))
                    if (blocks === 0) break
                    const first = random(blocks * block)
                    const source = pattern(from, blocks * block, round)
                    const mapped = region.bytes.subarray(0, blocks * block)
                    mapped.set(source)
                    yield* disk.write(
                      from,
                      random(2) === 0 ? [mapped] : [source.subarray(0, first), mapped.subarray(first)]
                    )
                    model.set(source, from)
                    const target = new Uint8Array(blocks * block)
                    yield* disk.read(from, [
                      target.subarray(0, first),
                      target.subarray(first, first),
                      target.subarray(first)
                    ])
                    expectBytes(target, source, `round ${round}`)
                    break
                  }
                  case 6:
                    yield* disk.flush
                    break
                  default:
                    expectBytes(
                      yield* disk.readBytes(offset, length),
                      model.subarray(offset, offset + length),
                      `round ${round}`
                    )
                }
              }
              expectBytes(yield* disk.readBytes(0, CAPACITY), model)
              yield* disk.flush
              // The backend is done with what was flushed; the file says the same.
              expectBytes(readFileSync(path), model)
            })
          )
      )

      onBackend(
        `is not torn by writers of the same block: blocks of ${blockSize}, ${kind} queues`,
        () =>
          Effect.gen(function*() {
            const { socketPath } = yield* serveRaw(backend, MiB, { blockSize, numQueues: 4 })
            const disk = yield* open(socketPath, {
              queueSize: 32,
              ...(kind === "poll" ? { numQueues: 0, numPollQueues: 4 } : { numQueues: 4 })
            })
            const writers = Array.from({ length: 40 }, (_, i) => i + 1)
            for (let round = 0; round < 5; round++) {
              // 12 bytes of each writer's own, and 100 across a block's edge that all write.
              yield* Effect.forEach(writers, (name) =>
                Effect.all([
                  disk.writeBytes(name * 12, new Uint8Array(12).fill(name + round)),
                  disk.writeBytes(2 * blockSize - 50, new Uint8Array(100).fill(name + round))
                ], together), together)
              const found = yield* disk.readBytes(0, 3 * blockSize)
              for (const name of writers) {
                expectBytes(
                  found.subarray(name * 12, (name + 1) * 12),
                  new Uint8Array(12).fill(name + round),
                  `${name}`
                )
              }
              const shared = found.subarray(2 * blockSize - 50, 2 * blockSize + 50)
              expect(new Set(shared).size).toBe(1)
              expect(writers).toContain(shared[0]! - round)
            }
          })
      )
    }
  }

  onBackend(
    "succeeds where it is empty, is EINVAL outside the disk, and EBADF to write where that is refused",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB)
        const errnoOf = (effect: Effect.Effect<unknown, StoreError>) =>
          Effect.map(Effect.flip(effect), ({ _tag }) => _tag)
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* open(socketPath)
          const bytes = new Uint8Array(512)
          for (const offset of [0, 13, MiB]) {
            yield* disk.writeBytes(offset, new Uint8Array(0))
            expect((yield* disk.readBytes(offset, 0)).length).toBe(0)
            yield* disk.writeZeroes(offset, 0)
            yield* disk.discard(offset, 0)
          }
          for (const offset of [MiB, MiB - 511, -1, 2 ** 53, NaN]) {
            expect(yield* errnoOf(disk.readBytes(offset, 512))).toBe("EINVAL")
            expect(yield* errnoOf(disk.writeBytes(offset, bytes))).toBe("EINVAL")
            expect(yield* errnoOf(disk.writeZeroes(offset, 512))).toBe("EINVAL")
            expect(yield* errnoOf(disk.discard(offset, 512))).toBe("EINVAL")
            expect(yield* errnoOf(disk.read(offset, [bytes]))).toBe("EINVAL")
            expect(yield* errnoOf(disk.write(offset, [bytes]))).toBe("EINVAL")
          }
          expect(yield* errnoOf(disk.read(0, []))).toBe("EINVAL")
        }))
        const disk = yield* open(socketPath, { readOnly: true })
        expect(disk.readOnly).toBe(true)
        expect((yield* disk.readBytes(1, 5)).length).toBe(5)
        yield* disk.flush
        for (const [offset, length] of [[0, 512], [5, 10]] as const) {
          expect(yield* errnoOf(disk.writeBytes(offset, new Uint8Array(length)))).toBe("EBADF")
          expect(yield* errnoOf(disk.writeZeroes(offset, length))).toBe("EBADF")
          expect(yield* errnoOf(disk.discard(offset, length))).toBe("EBADF")
          expect(yield* errnoOf(Stream.run(Stream.make(new Uint8Array(length)), disk.sink(offset)))).toBe("EBADF")
        }
      })
  )

  onBackend(
    "is split at what the device takes: 40 MiB at once, 17 and 33 MiB of discards and zeroes",
    () =>
      Effect.gen(function*() {
        const { image, socketPath } = yield* serveRaw(backend, 64 * MiB, { numQueues: 2 })
        const disk = yield* open(socketPath, { numQueues: 2 })
        const bytes = pattern(0, 40 * MiB)
        yield* disk.writeBytes(100, bytes)
        expectBytes(yield* disk.readBytes(100, 40 * MiB), bytes)
        const region = yield* disk.allocate(40 * MiB)
        region.bytes.set(bytes)
        yield* disk.write(MiB, [region.bytes], { fua: true })
        region.bytes.fill(0)
        yield* disk.read(MiB, [region.bytes])
        expectBytes(region.bytes, bytes)
        yield* disk.discard(MiB, 17 * MiB)
        yield* disk.writeZeroes(20 * MiB, 33 * MiB)
        yield* disk.flush
        yield* backend.verify(image, [[20 * MiB, 33 * MiB, 0], [MiB, 17 * MiB, 0]])
        expectBytes(yield* disk.readBytes(18 * MiB, MiB), bytes.subarray(17 * MiB, 18 * MiB))
      })
  )

  onBackend("is copied to another one, with its progress", () =>
    Effect.gen(function*() {
      const from = yield* makeImage("raw", 8 * MiB)
      const to = yield* makeImage(backend.formats.at(-1) ?? "raw", 8 * MiB)
      yield* backend.fill(from, [[MiB, 2 * MiB, 7]])
      const [source, target] = [
        yield* open((yield* backend.serve(from, { readOnly: true })).socketPath, { readOnly: true }),
        yield* open((yield* backend.serve(to)).socketPath)
      ]
      const progress = yield* Stream.runCollect(copy(source, target))
      expect(progress.at(-1)).toStrictEqual({ copied: 8 * MiB, total: 8 * MiB, zeroes: 6 * MiB })
      expectBytes(yield* target.readBytes(0, 8 * MiB), yield* source.readBytes(0, 8 * MiB))
    }))
})

forEachBackend("the memory of a device", (backend) => {
  onBackend(
    "is bounded, however much is in flight, and none is taken by buffers that the device reaches",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, 64 * MiB, { numQueues: 2 })
        const disk = yield* open(socketPath, { numQueues: 2 })
        const region = yield* disk.allocate(MiB)
        const before = { ...count(), bytes: mappedBytes() }
        yield* disk.write(0, [region.bytes])
        yield* disk.read(MiB, [region.bytes.subarray(512, 4096), region.bytes.subarray(8192, 8704)])
        yield* disk.writeZeroes(0, MiB)
        expect({ ...count(), bytes: mappedBytes() }).toStrictEqual(before)
        yield* disk.readBytes(0, 1)
        const pooled = mappedBytes() - before.bytes
        expect(pooled).toBeLessThanOrEqual(16 * MiB)
        const watching = yield* Effect.forkChild(
          Effect.forever(Effect.andThen(
            Effect.sync(() => expect(mappedBytes() - before.bytes).toBe(pooled)),
            Effect.sleep(1)
          )),
          now
        )
        yield* Effect.forEach(Array.from({ length: 300 }, (_, i) => i), (i) =>
          Effect.andThen(
            disk.writeBytes(i * 100_000, pattern(0, 200 * KiB)),
            disk.readBytes(i * 50_000, 2 * MiB)
          ), { concurrency: 40, discard: true })
        expect(watching.pollUnsafe()).toBeUndefined()
        yield* Fiber.interrupt(watching)
        expect(count().memfds).toBe(before.memfds + 1)
      })
  )

  onBackend("is asked for again where it could not be had the first time", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const most = yield* disk.properties.get("max-mem-regions")
      const scope = yield* Scope.make()
      yield* Effect.forEach(Array.from({ length: most }), () => disk.allocate(4 * KiB)).pipe(Scope.provide(scope))
      for (let i = 0; i < 2; i++) expect((yield* Effect.flip(disk.readBytes(0, 1)))._tag).toBe("ENOSPC")
      yield* Scope.close(scope, Exit.void)
      expect((yield* disk.readBytes(0, 1)).length).toBe(1)
    }))

  onBackend(
    "comes back from every call that was interrupted, wherever it was",
    () =>
      withSeed((random) =>
        Effect.gen(function*() {
          const { socketPath } = yield* serveRaw(backend, 16 * MiB, { numQueues: 2 })
          const disk = yield* open(socketPath, { numQueues: 2, queueSize: 8 })
          for (let round = 0; round < 60; round++) {
            const fibers = yield* Effect.forEach(Array.from({ length: 12 }), () =>
              Effect.forkChild(
                random(2) === 0
                  ? disk.readBytes(random(MiB), 2 * MiB)
                  : disk.writeBytes(random(MiB), new Uint8Array(MiB)),
                now
              ))
            for (let turns = random(6); turns > 0; turns--) yield* Effect.yieldNow
            yield* Effect.forEach(fibers, (fiber) => Fiber.interrupt(fiber), together)
          }
          // All 64 buffers at once: one that got lost would let this wait for ever.
          const bytes = pattern(0, 16 * MiB)
          yield* Effect.forEach(
            Array.from({ length: 16 }, (_, i) => i),
            (i) => disk.writeBytes(i * MiB, bytes.subarray(i * MiB, (i + 1) * MiB)),
            together
          )
          expectBytes(yield* disk.readBytes(0, 16 * MiB), bytes)
        })
      )
  )
})

forEachBackend("a call that is interrupted", (backend) => {
  onBackend(
    "lets go at once, of a read and of a write; the device's answer harms nobody",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* backend.serve(slow(2000))
        const disk = yield* open(socketPath)
        const memory = new Uint8Array(4 * KiB).fill(0xee)
        const began = performance.now()
        for (const effect of [disk.read(0, [memory]), disk.write(0, [memory]), disk.writeBytes(512, memory)]) {
          const fiber = yield* Effect.forkChild(effect, now)
          yield* Effect.sleep(20)
          expect(fiber.pollUnsafe()).toBeUndefined()
          yield* Fiber.interrupt(fiber)
        }
        expect(performance.now() - began).toBeLessThan(1900)
        yield* Effect.sleep(2100)
        // The read's data came too late to be wanted.
        expectBytes(memory, new Uint8Array(4 * KiB).fill(0xee))
        yield* disk.flush
      })
  )

  onBackend("waits where the device has the caller's own buffer", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(300))
      const disk = yield* open(socketPath)
      const region = yield* disk.allocate(4 * KiB)
      const began = performance.now()
      const fiber = yield* Effect.forkChild(disk.read(0, [region.bytes]), now)
      yield* Fiber.interrupt(fiber)
      expect(performance.now() - began).toBeGreaterThan(200)
    }))

  onBackend("gives its place in line up", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(300))
      const disk = yield* open(socketPath, { queueSize: 2 })
      const fibers = yield* Effect.forEach(Array.from({ length: 400 }), () =>
        Effect.forkChild(disk.readBytes(0, 512), now))
      yield* Effect.sleep(50)
      yield* Effect.forEach(fibers, (fiber) =>
        Fiber.interrupt(fiber), together)
      const began = performance.now()
      yield* disk.readBytes(0, 512)
      // Behind the two in flight, and not behind four hundred, which take a minute.
      expect(performance.now() - began).toBeLessThan(15_000)
    }))
})

forEachBackend("a backend that dies", (backend) => {
  // No discard and no flush: this disk answers them at once, having nothing to give back and nothing written.
  const uses: ReadonlyArray<readonly [string, (disk: Disk) => Effect.Effect<unknown, StoreError>]> = [
    ["readBytes", (disk) => disk.readBytes(1, 3 * MiB)],
    ["writeBytes", (disk) => disk.writeBytes(1, new Uint8Array(3 * MiB))],
    ["writeZeroes", (disk) => disk.writeZeroes(1, 40 * MiB)],
    ["stream", (disk) => Stream.runDrain(disk.stream())],
    ["sink", (disk) => Stream.run(Stream.forever(Stream.make(new Uint8Array(4000))), disk.sink())],
    [
      "sink of a silent source",
      (disk) => Stream.run(Stream.concat(Stream.make(new Uint8Array(9)), Stream.never), disk.sink())
    ],
    ["read", (disk) => disk.read(0, [new Uint8Array(MiB)])],
    ["write", (disk) => disk.write(0, [new Uint8Array(MiB)])],
    ["copy", (disk) => Stream.runDrain(copy(disk, disk))]
  ]
  onBackend("ends every call with ENOTCONN, and those that come after", () =>
    Effect.gen(function*() {
      const served = yield* backend.serveApart(slow(60_000))
      const disk = yield* open(served.socketPath, { queueSize: 16 })
      const fibers = yield* Effect.forEach(uses, ([name, use]) =>
        Effect.forkChild(Effect.map(Effect.flip(use(disk)), ({ _tag }) => [name, _tag] as const), now))
      // More than the pool holds.
      const crowd = yield* Effect.forEach(Array.from({ length: 200 }), () =>
        Effect.forkChild(Effect.flip(disk.readBytes(5, 5)), now))
      yield* Effect.sleep(100)
      expect(uses.flatMap(([name], i) =>
        fibers[i]?.pollUnsafe() === undefined ? [] : [name]
      )).toStrictEqual([])
      expect(crowd.every((fiber) =>
        fiber.pollUnsafe() === undefined
      )).toBe(true)
      yield* served.kill("SIGKILL")
      const wanted = uses.map(([name]) => [name, "ENOTCONN"])
      expect(
        yield* Effect.forEach(fibers, (fiber) => Fiber.join(fiber))
      ).toStrictEqual(wanted)
      for (const fiber of crowd) expect((yield* Fiber.join(fiber))._tag).toBe("ENOTCONN")
      for (const [name, use] of uses) {
        expect([name, (yield* Effect.flip(use(disk)))._tag]).toStrictEqual([name, "ENOTCONN"])
      }
    }))
})

/** A device in memory behind a device's first queue, which answers by itself from then on unless it is told not to. */
const onFake = Effect.fnUntraced(function*(
  options: Parameters<typeof fakeConnection>[0] = {},
  start: VirtioBlk.Options = {}
) {
  const connection = fakeConnection({
    ...options,
    config: { capacitySectors: 2048n, blkSize: 512, ...options.config }
  })
  const disk = yield* VirtioBlk.make(connection.recipe, { closeTimeout: 0, ...start })
  // So that the pool is there when the device looks at memory.
  const first = yield* Effect.forkChild(disk.readBytes(0, 1), now)
  while (connection.mapped.size < 2) yield* Effect.yieldNow
  yield* Effect.yieldNow
  const device = connection.devices[0]!
  device.work()
  yield* Fiber.join(first)
  const state = { isWorking: true }
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.sync(() => {
      if (state.isWorking) device.work()
      else device.take()
    }),
    Effect.sleep(1)
  )))
  return { connection, device, disk, state }
})

describe("a device in memory", () => {
  live("has zeroes written where it cannot do that itself, unless that is refused", () =>
    Effect.gen(function*() {
      const { device, disk } = yield* onFake({
        features: ["VERSION_1", "FLUSH", "INDIRECT_DESC", "SEG_MAX", "EVENT_IDX"]
      })
      device.disk.fill(0xaa)
      for (const [offset, length] of [[0, 512], [700, 300 * KiB], [5, 5]] as const) {
        expect((yield* Effect.flip(disk.writeZeroes(offset, 512 * KiB, { noFallback: true })))._tag).toBe("ENOTSUP")
        yield* disk.writeZeroes(offset, length, { fua: true })
        const wanted = new Uint8Array(MiB).fill(0xaa)
        wanted.fill(0, offset, offset + length)
        expectBytes(device.disk, wanted)
        device.disk.fill(0xaa)
      }
      expect(device.taken.some(({ type }) => type === RequestType.WRITE_ZEROES)).toBe(false)
      expect(device.taken.at(-1)?.type).toBe(RequestType.FLUSH)
      expect((yield* Effect.flip(disk.discard(0, 512)))._tag).toBe("ENOTSUP")
    }))

  live("has zeroes written where it offers the feature and refuses the request", () =>
    Effect.gen(function*() {
      const { device, disk } = yield* onFake()
      device.disk.fill(0xaa)
      device.status = ({ type }) => type === RequestType.WRITE_ZEROES ? Status.UNSUPP : undefined
      expect((yield* Effect.flip(disk.writeZeroes(0, 4 * KiB, { noFallback: true })))._tag).toBe("ENOTSUP")
      yield* disk.writeZeroes(0, 4 * KiB)
      expect(device.disk.findIndex((byte) => byte !== 0)).toBe(4 * KiB)
      // What failed for another reason is not papered over.
      device.status = ({ type }) => type === RequestType.WRITE_ZEROES ? Status.IOERR : undefined
      expect((yield* Effect.flip(disk.writeZeroes(0, 4 * KiB)))._tag).toBe("EIO")
    }))

  live("that refuses to unmap is asked to write zeroes without that", () =>
    Effect.gen(function*() {
      const { device, disk } = yield* onFake()
      device.disk.fill(0xaa)
      device.status = ({ range, type }) =>
        type === RequestType.WRITE_ZEROES && range?.flags === 1 ? Status.UNSUPP : undefined
      yield* disk.writeZeroes(0, 4 * KiB, { noFallback: true })
      expect(device.disk.findIndex((byte) => byte !== 0)).toBe(4 * KiB)
      expect(device.taken.filter(({ type }) => type === RequestType.OUT)).toStrictEqual([])
    }))

  live(
    "is asked for no more at once than it says it takes, and is asked in its own grain",
    () =>
      Effect.gen(function*() {
        const { device, disk } = yield* onFake({
          config: {
            sizeMax: 8192,
            segMax: 2,
            maxDiscardSectors: 100,
            discardSectorAlignment: 16,
            maxWriteZeroesSectors: 7,
            numQueues: 1
          }
        })
        const lengths = (type: number) =>
          device.taken.filter((request) => request.type === type).map(({ range, segments }) =>
            range === undefined ? segments.reduce((sum, { length }) => sum + length, 0) : range.sectors * 512
          )
        yield* disk.writeBytes(0, pattern(0, 100 * KiB))
        expectBytes(yield* disk.readBytes(0, 100 * KiB), pattern(0, 100 * KiB))
        expect(Math.max(...lengths(RequestType.OUT))).toBe(8192)
        expect(Math.max(...lengths(RequestType.IN))).toBe(8192)
        yield* disk.writeZeroes(0, 10 * KiB)
        expect(lengths(RequestType.WRITE_ZEROES)).toStrictEqual([3584, 3584, 3072])
        yield* disk.discard(4 * KiB, 200 * KiB)
        const discards = device.taken.filter(({ type }) => type === RequestType.DISCARD).map(({ range }) => range!)
        expect(discards.reduce((sum, { sectors }) => sum + sectors, 0)).toBe(400)
        expect(discards.every(({ sectors }) => sectors <= 100)).toBe(true)
        // All but the ends lie on multiples of discard-alignment.
        expect(discards.slice(1).every(({ sector }) => sector % 16 === 0)).toBe(true)
        expect(device.violations).toStrictEqual([])
      })
  )

  live("does not let a write that was given up overtake a later one", () =>
    Effect.gen(function*() {
      for (const part of [0, 1]) {
        const { device, disk, state } = yield* onFake()
        state.isWorking = false
        const givenUp = yield* Effect.forkChild(disk.writeBytes(part * 100, new Uint8Array(512).fill(1)), now)
        while (device.held.every(({ type }) => type !== RequestType.OUT)) {
          // What it reads to modify is answered; what it writes is not.
          if (device.held.some(({ type }) => type === RequestType.IN)) device.answer()
          yield* Effect.sleep(1)
        }
        yield* Fiber.interrupt(givenUp)
        const later = yield* Effect.forkChild(disk.writeBytes(part * 50, new Uint8Array(512).fill(2)), now)
        yield* Effect.sleep(10)
        // A device may take its requests in any order: whatever came last first.
        device.order = "reversed"
        state.isWorking = true
        yield* Fiber.join(later)
        yield* disk.flush
        yield* Effect.sleep(10)
        expectBytes(device.disk.subarray(part * 50, part * 50 + 512), new Uint8Array(512).fill(2))
      }
    }))

  live("has no bounce buffer used again that it still works on", () =>
    Effect.gen(function*() {
      const { device, disk, state } = yield* onFake({}, { queueSize: 256 })
      state.isWorking = false
      const givenUp = yield* Effect.forEach(Array.from({ length: 40 }, (_, i) => i), (i) =>
        Effect.forkChild(disk.write(i * 512, [new Uint8Array(512).fill(i + 1)]), now))
      while (device.held.length < 40) {
        yield* Effect.sleep(1)
      }
      yield* Effect.forEach(givenUp, (fiber) =>
        Fiber.interrupt(fiber), together)
      // More than there are buffers left; none of it may land in those that the device still reads from.
      const others = yield* Effect.forEach(
        Array.from({ length: 60 }, (_, i) => i),
        (i) => Effect.forkChild(disk.write((100 + i) * 512, [new Uint8Array(512).fill(0xbb)]), now)
      )
      while (device.held.length < 64) yield* Effect.sleep(1)
      yield* Effect.sleep(20)
      expect(device.held.length).toBe(64)
      state.isWorking = true
      yield* Effect.forEach(others, (fiber) => Fiber.join(fiber))
      for (let i = 0; i < 40; i++) expect(device.disk[i * 512]).toBe(i + 1)
      for (let i = 100; i < 160; i++) expect(device.disk[i * 512]).toBe(0xbb)
    }))

  live(
    "fails calls that come after its end, also where there are bounce buffers already",
    () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const disk = yield* Scope.provide(VirtioBlk.make(FakeTransport.make().recipe), scope)
        yield* disk.readBytes(0, 512)
        yield* Scope.close(scope, Exit.void)
        for (const call of [disk.readBytes(0, 512), disk.writeBytes(0, new Uint8Array(512)), disk.flush]) {
          expect((yield* Effect.flip(call))._tag).toBe("ESHUTDOWN")
        }
      })
  )

  live("spreads calls over its queues, in turn", () =>
    Effect.gen(function*() {
      const connection = fakeConnection({ config: { capacitySectors: 2048n, blkSize: 512 } })
      const disk = yield* VirtioBlk.make(connection.recipe, { numQueues: 3, numPollQueues: 1, closeTimeout: 0 })
      const fibers = yield* Effect.forEach(Array.from({ length: 8 }), () => Effect.forkChild(disk.flush, now))
      yield* Effect.sleep(10)
      expect(connection.queues.length).toBe(4)
      yield* Effect.forEach(fibers, (fiber) => Effect.sync(() => fiber.interruptUnsafe()))
    }))
})

forEachBackend("what a device leaves behind", (backend) => {
  onBackend("is nothing, also where calls were given up", () =>
    leavesNothing(Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(50))
      const disk = yield* open(socketPath, { queueSize: 8 })
      const fibers = yield* Effect.forEach(Array.from({ length: 30 }), () =>
        Effect.forkChild(disk.readBytes(5, 300 * KiB), now))
      yield* Effect.sleep(20)
      yield* Effect.forEach(fibers, (fiber) =>
        Fiber.interrupt(fiber), together)
      yield* disk.queue(0).flush(0)
    })))
})
