/**
 * Goal: a copy that succeeds is a copy, flushed, with its holes; its progress only grows and ends with all of it; one that fails
 * says where, and never that it is done.
 * Method: stores that note what is asked of them; random contents (the seed is printed on failure); a raw image through two
 * daemons to qcow2 and back, compared by qemu-img.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Fiber, Schedule, Stream } from "effect"
import { execFile } from "node:child_process"
import { statSync } from "node:fs"
import { promisify } from "node:util"
import type { BlockStore, Operation } from "../../src/BlockStore/BlockStore.ts"
import { copy, type CopyProgress } from "../../src/BlockStore/Copy.ts"
import * as Errno from "../../src/Errno.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { imagePath, KiB, MiB, onBackend, open, serve, withSeed } from "../support/daemon.ts"
import { expectBytes, pattern, watched } from "./WatchedStore.ts"

const GRAIN = 64 * KiB
const now = { startImmediately: true } as const
const broken = ({ length, name, offset }: Operation) =>
  new Errno.EIO({ operation: name, offset, length, detail: "as the test asked" })

const expectGrowth = (progress: ReadonlyArray<CopyProgress>, total: number) => {
  for (const [i, at] of progress.entries()) {
    const before = progress[i - 1] ?? { copied: 0, zeroes: 0, total }
    expect(at.copied).toBeGreaterThanOrEqual(before.copied)
    expect(at.zeroes).toBeGreaterThanOrEqual(before.zeroes)
    expect(at.zeroes).toBeLessThanOrEqual(at.copied)
    expect(at.total).toBe(total)
    // Only the last one says that it is done.
    expect(at.copied === total).toBe(i === progress.length - 1)
  }
  expect(progress.at(-1)?.copied).toBe(total)
}

describe("a copy", () => {
  it.live("is one, whatever the content, the sizes and the depth; zeroes are counted and not written as data", () =>
    withSeed((random) =>
      Effect.gen(function*() {
        for (let round = 0; round < 25; round++) {
          const blockSizes = [512, 4 * KiB] as const
          const capacity = (1 + random(60)) * 16 * KiB
          const source = watched({ capacity, blockSize: blockSizes[random(2)]! })
          const target = watched({
            capacity: capacity + random(3) * 4 * KiB,
            blockSize: blockSizes[random(2)]!,
            limits: random(2) === 0 ? {} : { maxTransfer: 96 * KiB + 512, maxWriteZeroes: 128 * KiB }
          })
          source.turns = () => random(4)
          target.turns = () => random(4)
          target.content.fill(0xcc)
          let zeroes = 0
          for (let at = 0; at < capacity; at += GRAIN) {
            if (random(2) === 0) source.content.set(pattern(at, Math.min(GRAIN, capacity - at), round), at)
            else zeroes += Math.min(GRAIN, capacity - at)
          }
          const chunkSize = [undefined, 64 * KiB][random(2)]
          const depth = 1 + random(5)
          const progress = yield* Stream.runCollect(
            copy(source.store, target.store, { depth, ...(chunkSize === undefined ? {} : { chunkSize }) })
          )
          expectBytes(target.content.subarray(0, capacity), source.content, `round ${round}`)
          expect(target.content.subarray(capacity).every((byte) => byte === 0xcc)).toBe(true)
          expectGrowth(progress, capacity)
          // A chunk that does not begin at a grain finds other runs; whole grains are found by all.
          if (chunkSize !== undefined) expect(progress.at(-1)?.zeroes).toBe(zeroes)
          expect(source.mostInFlight).toBeLessThanOrEqual(depth)
          expect(target.log.at(-1)?.name).toBe("flush")
          expect(target.count("flush")).toBe(1)
          const data = target.log.filter(({ name }) => name === "write").reduce((sum, { length }) => sum + length, 0)
          expect(data).toBe(capacity - (progress.at(-1)?.zeroes ?? 0))
        }
      })
    ))

  it.effect("writes zeroes as data where it is asked to", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: MiB }), watched({ capacity: MiB })]
      target.content.fill(1)
      const progress = yield* Stream.runCollect(copy(source.store, target.store, { sparse: false }))
      expect(progress.at(-1)).toStrictEqual({ copied: MiB, zeroes: 0, total: MiB })
      expect(target.count("writeZeroes")).toBe(0)
      expectBytes(target.content, source.content)
    }))

  it.effect("of an empty store is done at once, flushed", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: 0 }), watched({ capacity: MiB })]
      expect(yield* Stream.runCollect(copy(source.store, target.store))).toStrictEqual([
        { copied: 0, zeroes: 0, total: 0 }
      ])
      expect(target.log.map(({ name }) => name)).toStrictEqual(["flush"])
    }))

  it.effect("of a part leaves the rest alone", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: MiB }), watched({ capacity: MiB })]
      source.content.fill(7)
      expectGrowth(yield* Stream.runCollect(copy(source.store, target.store, { length: 100 * KiB })), 100 * KiB)
      expect(target.content.indexOf(0)).toBe(100 * KiB)
    }))

  it.effect("is refused where it cannot be, before anything is read", () =>
    Effect.gen(function*() {
      const source = watched({ capacity: 8 * KiB })
      const refused = function*(target: BlockStore, options: Parameters<typeof copy>[2] = {}) {
        const error = yield* Effect.flip(Stream.runDrain(copy(source.store, target, options)))
        expect(error).toMatchObject({ _tag: "EINVAL", operation: "copy" })
      }
      const large = watched({ capacity: 16 * KiB, blockSize: 4 * KiB, limits: { maxTransfer: 4 * KiB } }).store
      yield* Effect.gen(() => refused(watched({ capacity: 4 * KiB }).store))
      for (const chunkSize of [0, -512, 512, 1000, 8 * KiB, NaN, Infinity]) {
        yield* Effect.gen(() => refused(large, { chunkSize }))
      }
      for (const depth of [0, -1, 0.5, NaN, Infinity]) yield* Effect.gen(() => refused(large, { depth }))
      for (const length of [-4096, 512, 16 * KiB, NaN, Infinity]) yield* Effect.gen(() => refused(large, { length }))
      expect(source.log).toStrictEqual([])
    }))

  it.effect("by chunks that no memory holds is a typed error", () =>
    Effect.gen(function*() {
      const { store } = watched({ capacity: 0 })
      const huge = { ...store, capacity: 2 ** 52 }
      const error = yield* Effect.flip(Stream.runDrain(copy(huge, huge, { chunkSize: 2 ** 51, sparse: false })))
      expect(error._tag).toBe("EINVAL")
    }))
})

describe("a copy that does not succeed", () => {
  for (const [end, name] of [["source", "read"], ["target", "write"], ["target", "writeZeroes"]] as const) {
    it.live(`fails with the place, and never says that it is done: ${name}`, () =>
      Effect.gen(function*() {
        for (const bad of [0, 5, 15]) {
          const stores = { source: watched({ capacity: MiB }), target: watched({ capacity: MiB }) }
          if (name !== "writeZeroes") stores.source.content.fill(9)
          stores[end].failure = (operation) =>
            operation.name === name && operation.offset === bad * GRAIN ? broken(operation) : undefined
          const told: Array<CopyProgress> = []
          const error = yield* copy(stores.source.store, stores.target.store, { chunkSize: GRAIN, depth: 3 }).pipe(
            Stream.runForEach((progress) => Effect.sync(() => told.push(progress))),
            Effect.flip
          )
          expect(error).toMatchObject({ _tag: "EIO", operation: name, offset: bad * GRAIN })
          expect(told.every(({ copied }) => copied < MiB)).toBe(true)
          expect(stores.target.count("flush")).toBe(0)
          expect([stores.source.inFlight, stores.target.inFlight]).toStrictEqual([0, 0])
        }
      }))
  }

  it.effect("fails where only the flush does", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: MiB }), watched({ capacity: MiB })]
      target.failure = (operation) => operation.name === "flush" ? broken(operation) : undefined
      const told: Array<CopyProgress> = []
      const error = yield* Effect.flip(
        Stream.runForEach(copy(source.store, target.store), (progress) => Effect.sync(() => told.push(progress)))
      )
      expect(error).toMatchObject({ _tag: "EIO", operation: "flush" })
      expect(told.some(({ copied }) => copied === MiB)).toBe(false)
    }))

  it.effect("is refused by a target that is read-only, and reaches no further than what it may read ahead", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: 8 * MiB }), watched({ capacity: 8 * MiB, readOnly: true })]
      const copying = copy(source.store, target.store, { chunkSize: GRAIN, depth: 2 })
      expect((yield* Effect.flip(Stream.runDrain(copying)))._tag).toBe("EBADF")
      expect(source.log.length).toBeLessThanOrEqual(4)
    }))

  it.live("leaves nothing in flight when it is left early, or interrupted", () =>
    Effect.gen(function*() {
      const [source, target] = [watched({ capacity: MiB }), watched({ capacity: MiB })]
      const chunks = copy(source.store, target.store, { chunkSize: GRAIN })
      expect(yield* Stream.runCollect(Stream.take(chunks, 2))).toHaveLength(2)
      target.turns = () => Infinity
      const fiber = yield* Effect.forkChild(Stream.runDrain(chunks), now)
      yield* Effect.repeat(Effect.sleep(1), { until: () => target.inFlight === 8 })
      yield* Fiber.interrupt(fiber)
      expect([source.inFlight, target.inFlight]).toStrictEqual([0, 0])
      expect(target.count("flush")).toBe(0)
    }))
})

const run = (program: string, ...args: ReadonlyArray<string>) =>
  Effect.promise(() => promisify(execFile)(program, args))

describe("a copy onto a target that loses what it had acknowledged", () => {
  const capacity = 160 * MiB
  const source = () => {
    const made = watched({ capacity })
    for (let at = 0; at < capacity; at += 16 * MiB) made.content.set(pattern(at, MiB, at), at)
    return made
  }

  it.live("writes it again since the last flush, and tells of it once", () =>
    Effect.gen(function*() {
      const from = source()
      const to = watched({ capacity })
      let flushes = 0
      to.failure = (operation) => {
        if (operation.name !== "flush") return undefined
        flushes++
        // The second and the third of the middle window, and the last of all.
        if (![2, 3, 6].includes(flushes)) return undefined
        if (flushes < 5) to.content.fill(0xcc, 64 * MiB, 128 * MiB)
        return broken(operation)
      }
      const progress = yield* Stream.runCollect(
        copy(from.store, to.store, { rewrite: Schedule.recurs(3), chunkSize: MiB })
      )
      expectGrowth(progress, capacity)
      expectBytes(to.content, from.content)
      expect(flushes).toBe(7)
      // 160 chunks, of which 64 twice more.
      expect(from.count("read")).toBe(160 + 2 * 64)
    }))

  it.live("fails when the schedule ends, and for another reason at once", () =>
    Effect.gen(function*() {
      const to = watched({ capacity })
      to.failure = (operation) => operation.name === "flush" ? broken(operation) : undefined
      const options = { rewrite: Schedule.recurs(2), chunkSize: MiB }
      expect(yield* Effect.flip(Stream.runDrain(copy(source().store, to.store, options)))).toMatchObject({
        _tag: "EIO"
      })
      expect(to.count("flush")).toBe(4)
      const gone = watched({ capacity })
      gone.failure = (operation) =>
        operation.name === "flush" ? new Errno.ENOTCONN({ operation: "flush", detail: "gone" }) : undefined
      expect(yield* Effect.flip(Stream.runDrain(copy(source().store, gone.store, options)))).toMatchObject({
        _tag: "ENOTCONN"
      })
      expect(gone.count("flush")).toBe(1)
    }))

  it.live("does as much for nothing", () =>
    Effect.gen(function*() {
      const to = watched({ capacity })
      const progress = yield* Stream.runCollect(
        copy(source().store, to.store, { length: 0, rewrite: Schedule.recurs(2) })
      )
      expect(progress).toStrictEqual([{ copied: 0, zeroes: 0, total: 0 }])
      expect(to.count("flush")).toBe(1)
    }))
})

describe.skipIf(!qsdIsHere)("an image", () => {
  onBackend(
    "goes from raw to qcow2 and back and is the same to qemu-img, holes included",
    () =>
      Effect.gen(function*() {
        const SIZE = 64 * MiB
        const [raw, qcow2, back] = [yield* imagePath("a.raw"), yield* imagePath("b.qcow2"), yield* imagePath("c.raw")]
        yield* DiskImage.createRaw(raw, SIZE)
        yield* DiskImage.createQcow2(qcow2, SIZE)
        yield* DiskImage.createRaw(back, SIZE)
        yield* DiskImage.qemuIo(raw, "raw", [
          "write -P 0x5a 0 1M",
          "write -P 0xc3 5M 3M",
          "write -P 0x11 12345344 512",
          "write -P 0x77 63M 1M"
        ])
        // A target that held something else before.
        yield* DiskImage.qemuIo(back, "raw", ["write -P 0xff 30M 4M"])
        yield* Effect.scoped(Effect.gen(function*() {
          const daemon = yield* serve({
            exports: [
              { image: { _tag: "raw", file: raw }, writable: false },
              { image: { _tag: "qcow2", file: qcow2 } },
              { image: { _tag: "raw", file: back } }
            ]
          })
          const [first, second, third] = daemon.exports
          const source = yield* open(first.socketPath, { readOnly: true })
          const middle = yield* open(second!.socketPath)
          const target = yield* open(third!.socketPath)
          expectGrowth(yield* Stream.runCollect(copy(source, middle)), SIZE)
          const progress = yield* Stream.runCollect(copy(middle, target))
          expectGrowth(progress, SIZE)
          expect(progress.at(-1)?.zeroes).toBe(SIZE - 5 * MiB - GRAIN)
        }))
        yield* run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow2)
        yield* run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, back)
        yield* run("cmp", raw, back)
        const used = (path: string) => statSync(path).blocks * 512
        expect(used(back)).toBeLessThanOrEqual((used(raw) + GRAIN) * 1.05)
        // Besides the data: its own tables.
        expect(used(qcow2)).toBeLessThanOrEqual((used(raw) + GRAIN) * 1.05 + 512 * KiB)
      })
  )
})
