/**
 * Goal: slices and overlays put each operation where it belongs, know exactly what they changed, and follow the capacity of
 * what they rest on. That they keep bytes as any store does is in Conformance.test.ts.
 * Method: memory beneath, looked at from below.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Effect, Fiber, pipe, Schema, Stream } from "effect"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import { between } from "../Wire/arbitraries.ts"

const KiB = 1024

const filled = (options: { readonly capacity: number; readonly blockSize?: number }, byte: number) =>
  Effect.tap(BlockStore.memory(options), (store) => store.write(0, [new Uint8Array(options.capacity).fill(byte)]))

const contentOf = (store: BlockStore.BlockStore, offset = 0, length = store.capacity) =>
  Effect.gen(function*() {
    const found = new Uint8Array(length)
    yield* store.read(offset, [found])
    return found
  })

describe("slice", () => {
  it.effect("is the part it says, in either way of calling", () =>
    Effect.gen(function*() {
      const whole = yield* filled({ capacity: 64 * KiB }, 1)
      const first = yield* BlockStore.slice(whole, 4096, 8192)
      const last = yield* pipe(whole, BlockStore.slice(32 * KiB, 32 * KiB))
      expect(first).toMatchObject({ id: "slice(memory, 4096+8192)", capacity: 8192, blockSize: 512 })
      yield* first.write(0, [new Uint8Array(512).fill(2)])
      yield* first.writeZeroes(7680, 512)
      yield* last.write(32 * KiB - 512, [new Uint8Array(512).fill(3)])
      yield* last.discard(0, 512)
      const found = yield* contentOf(whole)
      const expected = new Uint8Array(64 * KiB).fill(1).fill(2, 4096, 4608).fill(0, 11_776, 12_288)
        .fill(0, 32 * KiB, 32 * KiB + 512).fill(3, 64 * KiB - 512)
      expect(Buffer.compare(found, expected)).toBe(0)
    }))

  it.effect("refuses what is no part", () =>
    Effect.gen(function*() {
      const whole = yield* BlockStore.memory({ capacity: 64 * KiB })
      const cases = [
        [1, 512, "slice at 1 of 512 bytes: offset must be a multiple of the block size 512"],
        [-512, 512, "slice at -512 of 512 bytes: offset must be a multiple of the block size 512"],
        [0, 100, "slice at 0 of 100 bytes: length must be a multiple of the block size 512"],
        [512, 64 * KiB, "slice at 512 of 65536 bytes: the slice must end within capacity 65536"],
        [NaN, 512, "slice at NaN of 512 bytes: offset must be a multiple of the block size 512"]
      ] as const
      for (const [offset, length, message] of cases) {
        const error = yield* Effect.flip(BlockStore.slice(whole, offset, length))
        expect([error._tag, error.message]).toStrictEqual(["EINVAL", message])
      }
    }))

  it.effect("shrinks with the store, grows back to its length, and tells", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 64 * KiB })
      const part = yield* BlockStore.slice(store, 16 * KiB, 32 * KiB)
      const changes = yield* Effect.forkChild(
        part.capacityChanges.pipe(Stream.take(3), Stream.runCollect),
        { startImmediately: true }
      )
      for (const capacity of [60 * KiB, 24 * KiB, 8 * KiB, 128 * KiB]) {
        yield* store.resize(capacity)
        yield* Effect.yieldNow
        yield* Effect.yieldNow
      }
      expect(yield* Fiber.join(changes)).toStrictEqual([8 * KiB, 0, 32 * KiB])
      yield* store.resize(20 * KiB)
      expect(part.capacity).toBe(4 * KiB)
      expect((yield* Effect.flip(part.read(4 * KiB, [new Uint8Array(512)]))).message).toMatch(/within capacity 4096/)
    }))
})

describe("overlay", () => {
  it.effect("reads the base until it is written to, and never changes it", () =>
    Effect.gen(function*() {
      const base = yield* filled({ capacity: 64 * KiB }, 1)
      const top = yield* filled({ capacity: 128 * KiB }, 9)
      const overlay = yield* pipe(base, BlockStore.overlay(top))
      expect(overlay).toMatchObject({ id: "overlay(memory, memory)", capacity: 64 * KiB, blockSize: 512 })
      expect((yield* contentOf(overlay)).every((byte) => byte === 1)).toBe(true)
      expect(overlay.changedBlocks).toStrictEqual([])
      yield* overlay.write(512, [new Uint8Array(1024).fill(2)])
      yield* overlay.writeZeroes(4096, 512)
      yield* overlay.discard(8192, 512)
      yield* overlay.write(1536, [new Uint8Array(512).fill(3)])
      expect(overlay.changedBlocks).toStrictEqual([
        { offset: 512, length: 1536 },
        { offset: 4096, length: 512 },
        { offset: 8192, length: 512 }
      ])
      const found = yield* contentOf(overlay)
      expect([found[0], found[512], found[1536], found[2048], found[4096], found[8704]]).toStrictEqual([
        1,
        2,
        3,
        1,
        0,
        1
      ])
      expect((yield* contentOf(base)).every((byte) => byte === 1)).toBe(true)
      // Beyond what was changed, the top is as it was: nothing is copied up.
      expect((yield* contentOf(top, 2048, 2048)).every((byte) => byte === 9)).toBe(true)
    }))

  it.effect("counts in the larger blocks, whichever store has them", () =>
    Effect.gen(function*() {
      const small = yield* BlockStore.memory({ capacity: 64 * KiB })
      const large = yield* BlockStore.memory({ capacity: 64 * KiB, blockSize: 4096 })
      for (const overlay of [yield* BlockStore.overlay(small, large), yield* BlockStore.overlay(large, small)]) {
        expect(overlay.blockSize).toBe(4096)
        expect((yield* Effect.flip(overlay.write(512, [new Uint8Array(4096)]))).message).toMatch(/block size 4096/)
        yield* overlay.write(4096, [new Uint8Array(4096)])
        expect(overlay.changedBlocks).toStrictEqual([{ offset: 4096, length: 4096 }])
      }
    }))

  it.effect("refuses stores that do not fit", () =>
    Effect.gen(function*() {
      const base = yield* BlockStore.memory({ capacity: 10 * KiB })
      const large = yield* BlockStore.memory({ capacity: 64 * KiB, blockSize: 4096 })
      const small = yield* BlockStore.memory({ capacity: 8 * KiB })
      const message = (top: BlockStore.BlockStore) =>
        Effect.map(Effect.flip(BlockStore.overlay(base, top)), (error) => `${error._tag} ${error.message}`)
      expect(yield* message(large)).toBe(
        "EINVAL overlay: the base's capacity 10240 must be a multiple of the block size 4096"
      )
      expect(yield* message(small)).toBe("EINVAL overlay: the top's capacity 8192 must not be below the base's 10240")
    }))

  it.effect("leaves a block as the base has it where the write fails", () =>
    Effect.gen(function*() {
      const base = yield* filled({ capacity: 64 * KiB }, 1)
      const top = yield* Effect.flatMap(
        BlockStore.memory({ capacity: 64 * KiB }),
        BlockStore.failing([{ errno: "ENOSPC", times: 3 }])
      )
      const overlay = yield* BlockStore.overlay(base, top)
      const bytes = new Uint8Array(512)
      for (const attempt of [overlay.write(0, [bytes]), overlay.writeZeroes(0, 512), overlay.discard(0, 512)]) {
        expect((yield* Effect.flip(attempt))._tag).toBe("ENOSPC")
      }
      expect(overlay.changedBlocks).toStrictEqual([])
      expect((yield* contentOf(overlay)).every((byte) => byte === 1)).toBe(true)
      yield* overlay.write(0, [bytes])
      expect(overlay.changedBlocks).toStrictEqual([{ offset: 0, length: 512 }])
    }))

  it.effect("is read-only where its top is, not where its base is, and flushes the top alone", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 64 * KiB })
      const noFlush = yield* BlockStore.failing(store, [{ operation: "flush", errno: "EIO" }])
      expect((yield* BlockStore.overlay(store, BlockStore.readOnly(store))).readOnly).toBe(true)
      const overlay = yield* BlockStore.overlay(BlockStore.readOnly(noFlush), store)
      expect(overlay.readOnly).toBe(false)
      yield* overlay.write(0, [new Uint8Array(512)])
      yield* overlay.flush
    }))

  it.effect("follows the capacity of its base", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: 64 * KiB })
      const top = yield* BlockStore.memory({ capacity: 80 * KiB, blockSize: 4096 })
      const overlay = yield* BlockStore.overlay(store, top)
      const changes = yield* Effect.forkChild(
        overlay.capacityChanges.pipe(Stream.take(2), Stream.runCollect),
        { startImmediately: true }
      )
      yield* Effect.yieldNow
      for (const capacity of [10 * KiB, 128 * KiB]) {
        yield* store.resize(capacity)
        for (let i = 0; i < 10; i++) yield* Effect.yieldNow
      }
      expect(yield* Fiber.join(changes)).toStrictEqual([8 * KiB, 80 * KiB])
    }))

  it.effect("tells no changed blocks beyond its end, and those again when it has grown back", () =>
    Effect.gen(function*() {
      const base = yield* filled({ capacity: 64 * KiB }, 1)
      const overlay = yield* BlockStore.overlay(base, yield* BlockStore.memory({ capacity: 64 * KiB }))
      const [early, late] = [{ offset: 0, length: 512 }, { offset: 30 * KiB, length: 4 * KiB }]
      for (const { length, offset } of [early, late]) yield* overlay.write(offset, [new Uint8Array(length).fill(2)])
      yield* base.resize(32 * KiB)
      expect(overlay.changedBlocks).toStrictEqual([early, { offset: 30 * KiB, length: 2 * KiB }])
      yield* base.resize(16 * KiB)
      expect(overlay.changedBlocks).toStrictEqual([early])
      yield* base.resize(64 * KiB)
      expect(overlay.changedBlocks).toStrictEqual([early, late])
      expect((yield* contentOf(overlay, 32 * KiB, 32 * KiB)).lastIndexOf(2)).toBe(2 * KiB - 1)
    }))

  const range = Schema.Struct({ first: between(0, 127), count: between(1, 40), kind: between(0, 2) })
  it.effect.prop(
    "knows exactly what was changed, however many change it at once",
    [Arbitrary.array(Arbitrary.schema(range), { maxLength: 20 })],
    ([ranges]) =>
      Effect.gen(function*() {
        const base = yield* BlockStore.memory({ capacity: 64 * KiB })
        const top = yield* BlockStore.memory({ capacity: 64 * KiB })
        const overlay = yield* BlockStore.overlay(base, top)
        const model = new Uint8Array(128)
        yield* Effect.forEach(ranges, ({ count, first, kind }) => {
          const blocks = Math.min(count, 128 - first)
          model.fill(1, first, first + blocks)
          const [offset, length] = [first * 512, blocks * 512]
          if (kind === 0) return overlay.write(offset, [new Uint8Array(length)])
          return kind === 1 ? overlay.discard(offset, length) : overlay.writeZeroes(offset, length)
        }, { concurrency: "unbounded" })
        const found = new Uint8Array(128)
        let end = -1
        for (const { length, offset } of overlay.changedBlocks) {
          expect(offset).toBeGreaterThan(end)
          end = offset + length
          found.fill(1, offset / 512, end / 512)
        }
        expect(found).toStrictEqual(model)
      })
  )
})
