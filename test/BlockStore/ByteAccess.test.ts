/**
 * Goal: any range of any store by bytes is what a plain array would hold, also where many write to one block at once; limits
 * are kept; a stream reads no further ahead than it was told, and a sink writes no more at once; what fails, fails, and
 * says where.
 * Method: a store that takes its time and notes what is asked of it, against a plain array (the seed is printed on
 * failure); writers whose bytes are their names.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Deferred, Effect, Exit, Fiber, Schema, Stream } from "effect"
import type { Operation, StoreError } from "../../src/BlockStore/BlockStore.ts"
import * as ByteAccess from "../../src/BlockStore/ByteAccess.ts"
import * as Errno from "../../src/Errno.ts"
import { withSeed } from "../support/daemon.ts"
import { expectBytes, pattern, watched } from "./WatchedStore.ts"

const CAPACITY = 65_536
const BLOCK = 4096
const now = { startImmediately: true } as const
const broken = ({ length, name, offset }: Operation) =>
  new Errno.EIO({ operation: name, offset, length, detail: "as the test asked" })

const open = (options: Partial<Parameters<typeof watched>[0]> = {}) => {
  const made = watched({ capacity: CAPACITY, ...options })
  return { made, access: ByteAccess.make(made.store) }
}

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const step = Schema.Struct({
  kind: Schema.Literals(["read", "write", "writeZeroes", "discard", "stream", "sink"]),
  offset: between(0, CAPACITY),
  length: between(0, CAPACITY),
  chunk: between(1, 3 * BLOCK),
  depth: between(1, 4)
})

describe("any range", () => {
  for (const blockSize of [512, BLOCK]) {
    for (const limit of [Infinity, 3 * BLOCK]) {
      it.live.prop(
        `is what an array holds: blocks of ${blockSize}, at most ${limit} bytes at once`,
        [Arbitrary.array(Arbitrary.schema(step), { maxLength: 12 })],
        ([steps]) =>
          Effect.gen(function*() {
            const limits = { maxTransfer: limit, maxDiscard: limit, maxWriteZeroes: limit }
            const { access, made } = open({ blockSize, limits })
            made.content.fill(0xaa)
            const model = new Uint8Array(CAPACITY).fill(0xaa)
            for (const [round, { chunk, depth, kind, offset, ...drawn }] of steps.entries()) {
              const length = Math.min(drawn.length, CAPACITY - offset)
              const bytes = pattern(offset, length, round)
              switch (kind) {
                case "read":
                  expectBytes(yield* access.readBytes(offset, length), model.subarray(offset, offset + length))
                  break
                case "write":
                  yield* access.writeBytes(offset, bytes)
                  model.set(bytes, offset)
                  break
                case "writeZeroes":
                  yield* access.writeZeroes(offset, length)
                  model.fill(0, offset, offset + length)
                  break
                case "discard": {
                  yield* access.discard(offset, length)
                  const from = Math.ceil(offset / blockSize) * blockSize
                  const to = Math.floor((offset + length) / blockSize) * blockSize
                  if (from < to) model.fill(0xdd, from, to)
                  break
                }
                case "stream": {
                  const chunks = yield* Stream.runCollect(
                    access.stream({ offset, length }, { chunkSize: chunk, depth })
                  )
                  expect(chunks.slice(0, -1).every((each) => each.length === chunk)).toBe(true)
                  expectBytes(Buffer.concat(chunks), model.subarray(offset, offset + length))
                  break
                }
                case "sink": {
                  const cuts = Array.from(
                    { length: Math.ceil(length / chunk) },
                    (_, i) => bytes.subarray(i * chunk, (i + 1) * chunk)
                  )
                  expect(yield* Stream.run(Stream.fromIterable(cuts), access.sink(offset, { depth }))).toBe(length)
                  model.set(bytes, offset)
                }
              }
            }
            expectBytes(made.content, model)
            expect(made.inFlight).toBe(0)
          }),
        { arbitrary: { runs: 30 } }
      )
    }
  }

  it.effect("of no bytes succeeds and asks nothing of the store, at the end of it too", () =>
    Effect.gen(function*() {
      const { access, made } = open({ readOnly: true })
      for (const offset of [0, 100, CAPACITY]) {
        expect(yield* access.readBytes(offset, 0)).toStrictEqual(new Uint8Array(0))
        yield* access.writeBytes(offset, new Uint8Array(0))
        yield* access.writeZeroes(offset, 0)
        yield* access.discard(offset, 0)
        expect(yield* Stream.runCollect(access.stream({ offset, length: 0 }))).toStrictEqual([])
        expect(yield* Stream.run(Stream.empty, access.sink(offset))).toBe(0)
      }
      expect(made.log).toStrictEqual([])
    }))

  it.effect("outside the store is EINVAL, and nothing is asked", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      const ranges = [
        [-1, 1],
        [0.5, 1],
        [NaN, 1],
        [Infinity, 1],
        [0, CAPACITY + 1],
        [CAPACITY, 1],
        [CAPACITY + 1, 0],
        [2 ** 53, 1],
        [0, -1],
        [0, NaN],
        [0, 0.5],
        [0, 2 ** 53]
      ] as const
      for (const [offset, length] of ranges) {
        const asked = [
          access.readBytes(offset, length),
          access.writeZeroes(offset, length),
          access.discard(offset, length),
          Stream.runDrain(access.stream({ offset, length }))
        ]
        for (const effect of asked as ReadonlyArray<Effect.Effect<unknown, StoreError>>) {
          expect((yield* Effect.flip(effect))._tag, `${offset} ${length}`).toBe("EINVAL")
        }
        if (!(length > 0 && length <= CAPACITY + 1) || !Number.isInteger(length)) continue
        const bytes = new Uint8Array(length)
        expect((yield* Effect.flip(access.writeBytes(offset, bytes)))._tag).toBe("EINVAL")
        expect((yield* Effect.flip(Stream.run(Stream.make(bytes), access.sink(offset))))._tag).toBe("EINVAL")
      }
      for (const count of [0, -1, 0.5, NaN, Infinity]) {
        expect((yield* Effect.flip(Stream.runDrain(access.stream({}, { depth: count }))))._tag).toBe("EINVAL")
        expect((yield* Effect.flip(Stream.runDrain(access.stream({}, { chunkSize: count }))))._tag).toBe("EINVAL")
        expect((yield* Effect.flip(Stream.run(Stream.empty, access.sink(0, { depth: count }))))._tag).toBe("EINVAL")
      }
      expect(made.log).toStrictEqual([])
    }))

  it.effect("larger than memory is a typed error, and no defect", () =>
    Effect.gen(function*() {
      const { store } = watched({ capacity: 0 })
      const access = ByteAccess.make({ ...store, capacity: 2 ** 52 })
      expect((yield* Effect.flip(access.readBytes(0, 2 ** 51)))._tag).toBe("EINVAL")
      expect((yield* Effect.flip(Stream.runDrain(access.stream({}, { chunkSize: 2 ** 51 }))))._tag).toBe("EINVAL")
    }))

  it.live("of petabytes is split as it goes, and not in advance", () =>
    Effect.gen(function*() {
      const { store } = watched({ capacity: 0 })
      let asked = 0
      const limits = { maxTransfer: 2 ** 20, maxDiscard: 2 ** 20, maxWriteZeroes: 2 ** 20 }
      const failing = (offset: number, length: number) =>
        Effect.suspend(() => ++asked > 100 ? Effect.fail(broken({ name: "discard", offset, length })) : Effect.yieldNow)
      const access = ByteAccess.make({ ...store, capacity: 2 ** 52, limits, discard: failing, writeZeroes: failing })
      expect((yield* Effect.flip(access.discard(0, 2 ** 52)))._tag).toBe("EIO")
      asked = 0
      expect((yield* Effect.flip(access.writeZeroes(0, 2 ** 52)))._tag).toBe("EIO")
      expect(asked).toBeLessThan(120)
    }))

  it.effect("on a read-only store is EBADF to write, also where it is less than a block", () =>
    Effect.gen(function*() {
      const { access, made } = open({ readOnly: true, blockSize: BLOCK })
      for (const [offset, length] of [[0, BLOCK], [1, 10], [100, 3 * BLOCK]] as const) {
        expect((yield* Effect.flip(access.writeBytes(offset, new Uint8Array(length))))._tag).toBe("EBADF")
        expect((yield* Effect.flip(access.writeZeroes(offset, length)))._tag).toBe("EBADF")
        expect((yield* Effect.flip(access.discard(offset, length)))._tag).toBe("EBADF")
        expect((yield* Effect.flip(Stream.run(Stream.make(new Uint8Array(length)), access.sink(offset))))._tag)
          .toBe("EBADF")
        yield* access.readBytes(offset, length)
      }
      expect(made.count("write") + made.count("discard")).toBe(0)
    }))

  it.effect("is split at the store's limits, each part as large as they allow", () =>
    Effect.gen(function*() {
      const { access, made } = open({
        blockSize: BLOCK,
        limits: { maxTransfer: 2 * BLOCK + 512, maxDiscard: 3 * BLOCK, maxWriteZeroes: 4 * BLOCK }
      })
      const lengths = (name: Operation["name"]) =>
        made.log.filter((operation) => operation.name === name).map(({ length }) => length / BLOCK)
      yield* access.readBytes(0, 7 * BLOCK)
      yield* access.writeBytes(0, new Uint8Array(7 * BLOCK))
      yield* access.discard(0, 7 * BLOCK)
      yield* access.writeZeroes(0, 7 * BLOCK)
      expect(lengths("read")).toStrictEqual([2, 2, 2, 1])
      expect(lengths("write")).toStrictEqual([2, 2, 2, 1])
      expect(lengths("discard")).toStrictEqual([3, 3, 1])
      expect(lengths("writeZeroes")).toStrictEqual([4, 3])
      expect(made.mostInFlight).toBeLessThanOrEqual(8)
    }))

  it.effect("passes on how it is to be written", () =>
    Effect.gen(function*() {
      const { access, made } = open({ blockSize: BLOCK })
      yield* access.writeBytes(100, new Uint8Array(2 * BLOCK), { fua: true })
      yield* access.writeZeroes(0, BLOCK, { fua: true, noUnmap: true, noFallback: true })
      const writes = made.log.filter(({ name }) => name !== "read")
      expect(writes.slice(0, -1).every(({ fua }) => fua === true)).toBe(true)
      expect(writes.at(-1)).toMatchObject({ fua: true, noUnmap: true, noFallback: true })
    }))
})

describe("writers of one block", () => {
  it.live("do not tear it: it ends as some order of them would leave it", () =>
    withSeed((random) =>
      Effect.gen(function*() {
        for (let round = 0; round < 20; round++) {
          const { access, made } = open({ blockSize: BLOCK, capacity: 2 * BLOCK })
          made.turns = () => 1 + random(4)
          // Each writer has a place of its own and one that all of them share.
          const writers = Array.from({ length: 24 }, (_, i) => i + 1)
          yield* Effect.forEach(writers, (name) =>
            Effect.all([
              access.writeBytes(name * 64, new Uint8Array(64).fill(name)),
              access.writeBytes(BLOCK - 32, new Uint8Array(64).fill(name))
            ], { concurrency: "unbounded", discard: true }), { concurrency: "unbounded", discard: true })
          for (const name of writers) {
            expectBytes(made.content.subarray(name * 64, (name + 1) * 64), new Uint8Array(64).fill(name), `${name}`)
          }
          const shared = made.content.subarray(BLOCK - 32, BLOCK + 32)
          expect(new Set(shared).size).toBe(1)
          expect(writers).toContain(shared[0])
        }
      })
    ))

  it.live("are served in their order, zeroes and sinks among them", () =>
    Effect.gen(function*() {
      const { access, made } = open({ blockSize: BLOCK })
      made.turns = ({ length }) => length % 3
      yield* Effect.all([
        access.writeBytes(0, new Uint8Array(3 * BLOCK).fill(1)),
        access.writeBytes(10, new Uint8Array(BLOCK).fill(2)),
        access.writeZeroes(20, BLOCK),
        Stream.run(Stream.make(new Uint8Array(10).fill(3), new Uint8Array(5).fill(4)), access.sink(BLOCK)),
        access.discard(0, BLOCK - 1),
        access.writeBytes(0, new Uint8Array(1).fill(5))
      ], { concurrency: "unbounded" })
      const wanted = new Uint8Array(3 * BLOCK).fill(1)
      wanted.fill(2, 10, BLOCK + 10).fill(0, 20, BLOCK + 20).fill(3, BLOCK, BLOCK + 10).fill(4, BLOCK + 10, BLOCK + 15)
      wanted[0] = 5
      expectBytes(made.content.subarray(0, 3 * BLOCK), wanted)
    }))

  it.live("let go when they are interrupted, holding or waiting", () =>
    Effect.gen(function*() {
      const { access, made } = open({ blockSize: BLOCK })
      made.turns = ({ name }) => name === "write" ? Infinity : 1
      const first = yield* Effect.forkChild(access.writeBytes(1, new Uint8Array(10)), now)
      const second = yield* Effect.forkChild(access.writeBytes(2, new Uint8Array(10)), now)
      yield* Effect.sleep(5)
      expect(made.count("read")).toBe(1)
      yield* Fiber.interrupt(second)
      yield* Fiber.interrupt(first)
      made.turns = () => 1
      yield* access.writeBytes(3, new Uint8Array(10).fill(7))
      expect([...made.content.subarray(2, 5)]).toStrictEqual([0, 7, 7])
    }))

  it.effect("that fail leave the block to the next", () =>
    Effect.gen(function*() {
      const { access, made } = open({ blockSize: BLOCK })
      for (const name of ["read", "write"] as const) {
        made.failure = (operation) => operation.name === name ? broken(operation) : undefined
        expect(yield* Effect.flip(access.writeBytes(100, new Uint8Array(10)))).toMatchObject({
          _tag: "EIO",
          operation: name,
          offset: 0
        })
      }
      made.failure = () => undefined
      yield* access.writeBytes(100, new Uint8Array(10).fill(9))
      expect(made.content[100]).toBe(9)
    }))
})

describe("a stream", () => {
  it.live("reads nothing before it runs, and no more than `depth` chunks ahead", () =>
    Effect.gen(function*() {
      for (const depth of [1, 2, 5]) {
        const { access, made } = open()
        made.turns = () => 0
        const stream = access.stream({}, { chunkSize: 512, depth })
        expect(made.log).toStrictEqual([])
        let taken = 0
        yield* stream.pipe(
          Stream.take(20),
          Stream.runForEach(() =>
            Effect.gen(function*() {
              taken++
              yield* Effect.sleep(1)
              // The one at hand, and those ahead.
              expect(made.count("read"), `${depth}`).toBeLessThanOrEqual(taken + depth)
            })
          )
        )
        expect(made.mostInFlight).toBeLessThanOrEqual(depth)
        expect(made.count("read")).toBeLessThanOrEqual(20 + depth)
      }
    }))

  it.live("keeps `depth` reads in flight, and the order, whichever ends first", () =>
    withSeed((random) =>
      Effect.gen(function*() {
        const { access, made } = open()
        made.content.set(pattern(0, CAPACITY))
        made.turns = () => random(6)
        const chunks = yield* Stream.runCollect(access.stream({ offset: 100 }, { chunkSize: 1000, depth: 4 }))
        expectBytes(Buffer.concat(chunks), made.content.subarray(100))
        expect(made.mostInFlight).toBe(4)
      })
    ))

  it.live("fails where a read fails, after the chunks before it", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      made.failure = (operation) => operation.offset === 20 * 512 ? broken(operation) : undefined
      const got: Array<Uint8Array> = []
      const exit = yield* Effect.exit(
        Stream.runForEach(access.stream({}, { chunkSize: 512 }), (chunk) => Effect.sync(() => got.push(chunk)))
      )
      expect(exit).toMatchObject(Exit.fail({ _tag: "EIO", offset: 20 * 512 }))
      expect(got.length).toBeLessThanOrEqual(20)
      expect(made.inFlight).toBe(0)
    }))

  it.live("that is left early, or interrupted, leaves nothing in flight", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      yield* Stream.runDrain(Stream.take(access.stream({}, { chunkSize: 512 }), 3))
      expect(made.inFlight).toBe(0)
      made.turns = () => Infinity
      const fiber = yield* Effect.forkChild(Stream.runDrain(access.stream()), now)
      yield* Effect.sleep(5)
      expect(made.inFlight).toBe(1)
      yield* Fiber.interrupt(fiber)
      expect(made.inFlight).toBe(0)
    }))

  it.effect("follows the capacity there is when it runs", () =>
    Effect.gen(function*() {
      const { made } = open()
      let capacity = 1024
      const access = ByteAccess.make({
        ...made.store,
        get capacity() {
          return capacity
        }
      })
      const stream = access.stream({ offset: 512 })
      capacity = 4096
      expect(Buffer.concat(yield* Stream.runCollect(stream)).length).toBe(4096 - 512)
    }))
})

describe("a sink", () => {
  it.live("writes at most `depth` chunks at once, and pulls no more than it can write", () =>
    Effect.gen(function*() {
      for (const depth of [1, 3]) {
        const { access, made } = open()
        made.turns = () => 3
        let pulled = 0
        let mostAhead = 0
        const source = Stream.range(1, 40).pipe(
          Stream.rechunk(1),
          Stream.mapEffect((i) =>
            Effect.sync(() => {
              pulled++
              mostAhead = Math.max(mostAhead, pulled - made.count("write") + made.inFlight)
              return pattern(i * 512, 512)
            })
          )
        )
        expect(yield* Stream.run(source, access.sink(0, { depth }))).toBe(40 * 512)
        expect(made.mostInFlight).toBe(depth)
        expect(mostAhead).toBeLessThanOrEqual(depth + 2)
        expectBytes(made.content.subarray(0, 512), pattern(512, 512))
      }
    }))

  it.live("does not succeed where a write failed, the last one included", () =>
    Effect.gen(function*() {
      for (const bad of [0, 7, 19]) {
        const { access, made } = open()
        made.failure = (operation) => operation.offset === bad * 512 ? broken(operation) : undefined
        const chunks = Stream.fromIterable(Array.from({ length: 20 }, () => new Uint8Array(512)))
        const exit = yield* Effect.exit(Stream.run(chunks, access.sink()))
        expect(exit).toMatchObject(Exit.fail({ _tag: "EIO", operation: "write", offset: bad * 512 }))
        expect(made.inFlight).toBe(0)
      }
    }))

  it.live("stops pulling from its source soon after a write failed", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      made.failure = (operation) => broken(operation)
      let pulled = 0
      const endless = Stream.forever(Stream.make(new Uint8Array(1))).pipe(
        Stream.tap(() => Effect.sync(() => pulled++)),
        Stream.rechunk(1)
      )
      expect((yield* Effect.flip(Stream.run(endless, access.sink(0, { depth: 2 }))))._tag).toBe("EIO")
      expect(pulled).toBeLessThan(10)
    }))

  it.live("fails at once where a write failed, though its source is silent", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      made.failure = (operation) => broken(operation)
      const silent = Stream.concat(Stream.make(new Uint8Array(512)), Stream.never)
      const error = yield* Stream.run(silent, access.sink()).pipe(Effect.flip, Effect.timeout("1 second"))
      expect(error._tag).toBe("EIO")
    }))

  it.live("past the end of the store is EINVAL, with the place", () =>
    Effect.gen(function*() {
      const { access } = open()
      const chunks = Stream.make(pattern(0, 512), pattern(512, 1024))
      expect(yield* Effect.flip(Stream.run(chunks, access.sink(CAPACITY - 1024)))).toMatchObject({
        _tag: "EINVAL",
        offset: CAPACITY - 512
      })
    }))

  it.live("passes the source's error on, and is interrupted with its writes", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      const source = Stream.concat(Stream.make(new Uint8Array(512)), Stream.fail("no more" as const))
      expect(yield* Effect.flip(Stream.run(source, access.sink()))).toBe("no more")
      made.turns = () => Infinity
      const fiber = yield* Effect.forkChild(Stream.run(Stream.make(new Uint8Array(512)), access.sink()), now)
      yield* Effect.sleep(5)
      expect(made.inFlight).toBe(1)
      yield* Fiber.interrupt(fiber)
      expect(made.inFlight).toBe(0)
    }))

  it.live("ends only when all is written", () =>
    Effect.gen(function*() {
      const { access, made } = open()
      const gate = yield* Deferred.make<void>()
      const store = { ...made.store, write: () => Deferred.await(gate) }
      const slow = ByteAccess.make(store)
      const fiber = yield* Effect.forkChild(Stream.run(Stream.make(new Uint8Array(512)), slow.sink()), now)
      yield* Effect.sleep(5)
      expect(fiber.pollUnsafe()).toBeUndefined()
      yield* Deferred.succeed(gate, undefined)
      expect(yield* Fiber.join(fiber)).toBe(512)
      expect(yield* access.readBytes(0, 1)).toStrictEqual(new Uint8Array(1))
    }))
})
