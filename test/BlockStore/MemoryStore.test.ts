/**
 * Goal: a store in memory takes the memory that its content needs, and no more.
 * Method: what it says it has allocated, after each way of using and freeing it.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"

const CHUNK = 65_536

describe("memory", () => {
  it.effect("is sparse", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 2 ** 50 })
      const block = new Uint8Array(512)
      yield* store.read(2 ** 49, [block])
      expect(store.allocatedBytes).toBe(0)
      yield* store.write(2 ** 49, [block.fill(1)])
      yield* store.write(2 ** 49 + 512, [block])
      expect(store.allocatedBytes).toBe(CHUNK)
      yield* store.write(CHUNK - 512, [new Uint8Array(1024)])
      expect(store.allocatedBytes).toBe(3 * CHUNK)
    }))

  it.effect("gives whole chunks back, and clears parts of them", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 8 * CHUNK })
      for (const free of [store.discard, store.writeZeroes]) {
        yield* store.write(0, [new Uint8Array(8 * CHUNK).fill(1)])
        expect(store.allocatedBytes).toBe(8 * CHUNK)
        yield* free(512, 3 * CHUNK)
        expect(store.allocatedBytes).toBe(6 * CHUNK)
        const found = new Uint8Array(8 * CHUNK)
        yield* store.read(0, [found])
        expect(found.findIndex((byte) => byte === 0)).toBe(512)
        expect(found.indexOf(1, 512)).toBe(512 + 3 * CHUNK)
        yield* free(0, 8 * CHUNK)
        expect(store.allocatedBytes).toBe(0)
      }
    }))

  it.effect("keeps the room where it is asked to, and takes it", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 8 * CHUNK })
      yield* store.write(0, [new Uint8Array(CHUNK).fill(1)])
      yield* store.writeZeroes(0, 2 * CHUNK, { noUnmap: true })
      expect(store.allocatedBytes).toBe(2 * CHUNK)
      const found = new Uint8Array(CHUNK)
      yield* store.read(0, [found])
      expect(found.every((byte) => byte === 0)).toBe(true)
    }))

  it.effect("discards terabytes at once", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 2 ** 50 })
      yield* store.write(2 ** 40, [new Uint8Array(1024).fill(1)])
      yield* store.discard(2 ** 40 + 512, 2 ** 49)
      expect(store.allocatedBytes).toBe(CHUNK)
      const found = new Uint8Array(1024)
      yield* store.read(2 ** 40, [found])
      expect([found[511], found[512]]).toStrictEqual([1, 0])
      yield* store.discard(0, 2 ** 50)
      expect(store.allocatedBytes).toBe(0)
    }))

  it.effect.each(
    [
      [{ capacity: 512, blockSize: 256 }, "blockSize 256 must be a power of two from 512 to 1073741824"],
      [{ capacity: 1536, blockSize: 1536 }, "blockSize 1536 must be a power of two from 512 to 1073741824"],
      [{ capacity: 1536, blockSize: NaN }, "blockSize NaN must be a power of two from 512 to 1073741824"],
      [{ capacity: 0, blockSize: 2 ** 31 }, "blockSize 2147483648 must be a power of two from 512 to 1073741824"],
      [{ capacity: 1000 }, "capacity 1000 must be a whole multiple of the block size 512"],
      [{ capacity: 1024, blockSize: 4096 }, "capacity 1024 must be a whole multiple of the block size 4096"],
      [{ capacity: -512 }, "capacity -512 must be a whole multiple of the block size 512"],
      [{ capacity: 2 ** 53 }, "capacity 9007199254740992 must be a whole multiple of the block size 512"]
    ] as const
  )("refuses %j", ([options, rule]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(BlockStore.memory(options))
      expect(error._tag).toBe("EINVAL")
      expect(error.message).toBe(`memory: ${rule}`)
    }))

  it.effect("frees what lies beyond its end when it shrinks", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 4 * CHUNK - 512 })
      yield* store.write(0, [new Uint8Array(4 * CHUNK - 512).fill(1)])
      yield* store.resize(3 * CHUNK)
      expect(store.allocatedBytes).toBe(3 * CHUNK)
      yield* store.resize(CHUNK + 512)
      expect(store.allocatedBytes).toBe(2 * CHUNK)
      yield* store.resize(2 ** 52)
      expect(store.allocatedBytes).toBe(2 * CHUNK)
      yield* store.write(2 ** 52 - 512, [new Uint8Array(512).fill(1)])
      yield* store.resize(0)
      expect(store.allocatedBytes).toBe(0)
    }))

  it.effect("may have nothing in it, or one block larger than a chunk", () =>
    Effect.gen(function*() {
      expect((yield* BlockStore.memory({ capacity: 0 })).capacity).toBe(0)
      const store = yield* BlockStore.memory({ capacity: 2 ** 20, blockSize: 2 ** 20 })
      yield* store.write(0, [new Uint8Array(2 ** 20)])
      expect(store.allocatedBytes).toBe(2 ** 20)
    }))
})
