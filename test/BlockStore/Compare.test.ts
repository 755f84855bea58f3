/**
 * Goal: `compare` finds the first byte at which two stores differ and no other, `contents` gives every byte in order, and
 * neither of them, nor `copy`, reads what is known to be a hole.
 * Method: stores in memory with a map of their holes, made by chance from a seed, against plain arrays; reads are counted.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Option, Stream } from "effect"
import { BlockStore } from "../../src/index.ts"
import { withSeed } from "../support/daemon.ts"

const BLOCK = 512

type Holey = BlockStore.BlockStore & Pick<BlockStore.FileStore, "nextData">

/** A store of which every block is data or a hole, and the ranges that were read of it. */
const holey = Effect.fnUntraced(function*(bytes: Uint8Array, isData: (block: number) => boolean) {
  const memory = yield* BlockStore.memory({ capacity: bytes.length })
  if (bytes.length > 0) yield* memory.write(0, [bytes])
  const reads: Array<{ readonly offset: number; readonly length: number }> = []
  const blocks = bytes.length / BLOCK
  const store: Holey = {
    ...BlockStore.around(memory, {
      name: "holey",
      run: (operation, effect) =>
        Effect.andThen(Effect.sync(() => operation.name === "read" && reads.push(operation)), effect)
    }),
    nextData: (offset) =>
      Effect.sync(() => {
        let from = offset / BLOCK
        while (from < blocks && !isData(from)) from++
        if (from >= blocks) return Option.none()
        let to = from
        while (to < blocks && isData(to)) to++
        return Option.some({ offset: from * BLOCK, length: (to - from) * BLOCK })
      })
  }
  return { store, reads }
})

/** Bytes by chance, and which of their blocks are data; the others are zero. */
const makeContent = (random: (below: number) => number, blocks: number) => {
  const bytes = new Uint8Array(blocks * BLOCK)
  const data = new Set<number>()
  for (let block = 0; block < blocks;) {
    const end = Math.min(blocks, block + 1 + random(20))
    if (random(2) === 0) {
      for (; block < end; block++) {
        data.add(block)
        bytes.fill(1 + random(255), block * BLOCK, (block + 1) * BLOCK)
      }
    }
    block = end
  }
  return { bytes, isData: (block: number) => data.has(block) }
}

/** Where two arrays differ first, found the slow way. */
const firstDifference = (a: Uint8Array, b: Uint8Array): number | undefined => {
  const index = a.findIndex((byte, i) => i < b.length && byte !== b[i])
  return index === -1 ? undefined : index
}

describe("contents", () => {
  it.effect("gives all bytes in order, whatever chunk, depth and holes", () =>
    withSeed(Effect.fnUntraced(function*(random) {
      for (let round = 0; round < 50; round++) {
        const { bytes, isData } = makeContent(random, random(200))
        const { store } = yield* holey(bytes, isData)
        const length = random(bytes.length + 1)
        const options = { chunkSize: 1 + random(10 * BLOCK), depth: 1 + random(5), length }
        const chunks = yield* Stream.runCollect(BlockStore.contents(store, options))
        expect(Buffer.concat(chunks).equals(bytes.subarray(0, length))).toBe(true)
        expect(chunks.every((chunk) => chunk.length > 0 && chunk.length <= options.chunkSize)).toBe(true)
      }
    })))

  it.effect("reads no hole: only chunks that hold data", () =>
    Effect.gen(function*() {
      const bytes = new Uint8Array(64 * BLOCK)
      bytes.fill(1, 9 * BLOCK, 10 * BLOCK)
      bytes.fill(2, 33 * BLOCK, 41 * BLOCK)
      const { reads, store } = yield* holey(bytes, (block) => block === 9 || (block >= 33 && block < 41))
      yield* Stream.runDrain(BlockStore.contents(store, { chunkSize: 8 * BLOCK }))
      expect(reads.map(({ offset, length }) => [offset / BLOCK, length / BLOCK])).toStrictEqual([
        [8, 8],
        [32, 8],
        [40, 8]
      ])
    }))

  it.effect("fails as the store does, with what came before", () =>
    Effect.gen(function*() {
      const memory = yield* BlockStore.memory({ capacity: 8 * BLOCK })
      const range = { offset: 5 * BLOCK, length: 1 }
      const store = yield* BlockStore.failing(memory, [{ operation: "read", errno: "EIO", range }])
      const seen: Array<number> = []
      const failure = yield* BlockStore.contents(store, { chunkSize: BLOCK, depth: 1 }).pipe(
        Stream.runForEach((chunk) => Effect.sync(() => seen.push(chunk.length))),
        Effect.flip
      )
      expect(failure).toMatchObject({ _tag: "EIO", offset: 5 * BLOCK })
      expect(seen).toHaveLength(5)
    }))
})

describe("compare", () => {
  it.effect("finds the first byte that differs, whatever chunk, depth and holes", () =>
    withSeed(Effect.fnUntraced(function*(random) {
      for (let round = 0; round < 100; round++) {
        const { bytes, isData } = makeContent(random, 1 + random(100))
        const other = bytes.slice()
        // Known holes may be told on one side and not on the other, and more than one byte may differ.
        for (let changes = random(3); changes > 0; changes--) other[random(other.length)]! ^= 1 + random(255)
        const a = yield* holey(bytes, isData)
        const b = yield* holey(other, () => true)
        const options = { chunkSize: 1 + random(10 * BLOCK), depth: 1 + random(5) }
        const expected = firstDifference(bytes, other)
        const found = expected === undefined ? undefined : { offset: expected, reason: "content" }
        expect(Option.getOrUndefined(yield* BlockStore.compare(a.store, b.store, options))).toStrictEqual(found)
        expect(Option.getOrUndefined(yield* BlockStore.compare(b.store, a.store, options))).toStrictEqual(found)
      }
    })))

  it.effect("does not read where both have holes, and says how far it is", () =>
    Effect.gen(function*() {
      const bytes = new Uint8Array(32 * BLOCK)
      const a = yield* holey(bytes, (block) => block < 8)
      const b = yield* holey(bytes, (block) => block >= 4 && block < 12)
      const told: Array<number> = []
      const difference = yield* BlockStore.compare(a.store, b.store, {
        chunkSize: 4 * BLOCK,
        onProgress: (same) => Effect.sync(() => told.push(same / BLOCK))
      })
      expect(Option.isNone(difference)).toBe(true)
      const chunks = (reads: ReadonlyArray<{ readonly offset: number }>) => reads.map(({ offset }) => offset / BLOCK)
      expect(chunks(a.reads)).toStrictEqual([0, 4])
      expect(chunks(b.reads)).toStrictEqual([4, 8])
      expect(told).toStrictEqual([4, 8, 12, 16, 20, 24, 28, 32])
    }))

  it.effect("stores of another capacity differ, unless a length is given", () =>
    Effect.gen(function*() {
      const short = yield* BlockStore.memory({ capacity: 3 * BLOCK })
      const long = yield* BlockStore.memory({ capacity: 16 * BLOCK, blockSize: 8 * BLOCK })
      const none = yield* BlockStore.memory({ capacity: 0 })
      expect(yield* BlockStore.compare(short, long)).toStrictEqual(
        Option.some({ offset: 3 * BLOCK, reason: "capacity" })
      )
      expect(yield* BlockStore.compare(long, none)).toStrictEqual(Option.some({ offset: 0, reason: "capacity" }))
      expect(Option.isNone(yield* BlockStore.compare(none, none))).toBe(true)
      expect(Option.isNone(yield* BlockStore.compare(long, short, { length: 3 * BLOCK }))).toBe(true)
      yield* long.write(0, [new Uint8Array(8 * BLOCK).fill(1, 3 * BLOCK - 1)])
      expect(yield* BlockStore.compare(short, long)).toStrictEqual(
        Option.some({ offset: 3 * BLOCK - 1, reason: "content" })
      )
      expect(Option.isNone(yield* BlockStore.compare(long, short, { length: 3 * BLOCK - 1 }))).toBe(true)
    }))

  it.effect.each(
    [
      ["chunkSize 0", { chunkSize: 0 }],
      ["chunkSize 1.5", { chunkSize: 1.5 }],
      ["depth 0", { depth: 0 }],
      ["length must be a whole number", { length: -1 }],
      ["length must not exceed the capacity 1024", { length: 1025 }]
    ] as const
  )("EINVAL: %s", ([detail, options]) =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 1024 })
      const failures = [
        yield* Effect.flip(BlockStore.compare(store, store, options)),
        yield* Effect.flip(Stream.runDrain(BlockStore.contents(store, options)))
      ]
      for (const failure of failures) {
        expect(failure._tag).toBe("EINVAL")
        expect(failure.detail).toContain(detail)
      }
    }))
})

describe("copy", () => {
  it.effect("copies any content, and reads no hole", () =>
    withSeed(Effect.fnUntraced(function*(random) {
      for (let round = 0; round < 50; round++) {
        const { bytes, isData } = makeContent(random, 1 + random(300))
        const { reads, store } = yield* holey(bytes, isData)
        const target = yield* BlockStore.memory({ capacity: bytes.length + BLOCK * random(3) })
        yield* target.write(0, [new Uint8Array(target.capacity).fill(0xff)])
        const chunkSize = BLOCK * (1 + random(16))
        const last = yield* Stream.runLast(BlockStore.copy(store, target, { chunkSize, depth: 1 + random(5) }))
        expect(Option.getOrUndefined(last)?.copied).toBe(bytes.length)
        const copied = new Uint8Array(target.capacity)
        yield* target.read(0, [copied])
        expect(Buffer.compare(copied.subarray(0, bytes.length), bytes)).toBe(0)
        expect(copied.subarray(bytes.length).every((byte) => byte === 0xff)).toBe(true)
        for (const { length, offset } of reads) {
          const blocks = Array.from({ length: length / BLOCK }, (_, i) => offset / BLOCK + i)
          expect(blocks.some(isData)).toBe(true)
        }
      }
    })))

  it.effect("reads holes, too, where zeroes are to be written as data", () =>
    Effect.gen(function*() {
      const { reads, store } = yield* holey(new Uint8Array(8 * BLOCK), () => false)
      const target = yield* BlockStore.memory({ capacity: 8 * BLOCK })
      const copy = BlockStore.copy(store, target, { chunkSize: 4 * BLOCK, sparse: false })
      expect(Option.getOrUndefined(yield* Stream.runLast(copy))).toStrictEqual({
        copied: 8 * BLOCK,
        zeroes: 0,
        total: 8 * BLOCK
      })
      expect(reads).toHaveLength(2)
      expect(target.allocatedBytes).toBeGreaterThan(0)
    }))
})
