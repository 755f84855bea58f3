/**
 * Goal: every store, and every stack of combinators, is the same disk: the same bytes, the same errors, nothing left behind.
 * What is resized grows by zeroes, and whatever rests on it follows.
 * Method: the table of stores. Random operations are run on each and on a plain array, and compared; every rule of the
 * interface is broken on each, one at a time. Each combinator is put on stores that are then resized. Property tests print
 * their seed when they fail.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Effect, Fiber, Schema, type Scope, Stream } from "effect"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import { between } from "../Wire/arbitraries.ts"
import { leavesNothing, live } from "../support/resources.ts"
import { CAPACITY, fileStore, stores } from "./stores.ts"

/** Shares of the store, so that one operation means something for every block size. */
const operation = Schema.Struct({
  kind: Schema.Literals(["read", "write", "write", "writeZeroes", "discard", "flush"]),
  start: between(0, 999),
  length: between(1, 400),
  byte: between(1, 255),
  parts: between(1, 4),
  option: Schema.Boolean
})
type Operation = typeof operation.Type

const rangeOf = ({ length, start }: Operation, blockSize: number) => {
  const blocks = CAPACITY / blockSize
  const first = Math.floor(start / 1000 * blocks)
  const count = Math.min(blocks - first, Math.ceil(length / 1000 * blocks / 4))
  return { offset: first * blockSize, length: count * blockSize }
}

/** Cuts a buffer unevenly, an empty part included: the parts need not keep to blocks. */
const cut = (bytes: Uint8Array, parts: number): ReadonlyArray<Uint8Array> => {
  const cuts = [
    0,
    ...Array.from({ length: parts - 1 }, (_, i) => Math.min(bytes.length, (i + 1) * 700 + i)),
    bytes.length
  ]
  return [bytes.subarray(0, 0), ...cuts.slice(1).map((to, i) => bytes.subarray(cuts[i], to))]
}

const pattern = (length: number, byte: number) => Uint8Array.from({ length }, (_, i) => (byte + i * 7) & 0xff)

const runAll = (store: BlockStore.BlockStore, operations: ReadonlyArray<Operation>) =>
  Effect.gen(function*() {
    const content = new Uint8Array(CAPACITY)
    /** Discarded: undefined until it is written again. */
    const unknown = new Uint8Array(CAPACITY)
    const compare = (offset: number, found: Uint8Array) => {
      for (let i = 0; i < found.length; i++) {
        if (unknown[offset + i] === 0 && found[i] !== content[offset + i]) {
          throw new Error(`byte ${offset + i} is ${found[i]}, not ${content[offset + i]}`)
        }
      }
    }
    for (const drawn of operations) {
      const { length, offset } = rangeOf(drawn, store.blockSize)
      switch (drawn.kind) {
        case "read": {
          const found = new Uint8Array(length).fill(0xee)
          yield* store.read(offset, cut(found, drawn.parts))
          compare(offset, found)
          break
        }
        case "write": {
          const bytes = pattern(length, drawn.byte)
          yield* store.write(offset, cut(bytes, drawn.parts), { fua: drawn.option })
          content.set(bytes, offset)
          unknown.fill(0, offset, offset + length)
          break
        }
        case "writeZeroes":
          yield* store.writeZeroes(offset, length, { noUnmap: drawn.option })
          content.fill(0, offset, offset + length)
          unknown.fill(0, offset, offset + length)
          break
        case "discard":
          yield* store.discard(offset, length)
          unknown.fill(1, offset, offset + length)
          break
        case "flush":
          yield* store.flush
      }
    }
    const found = new Uint8Array(CAPACITY)
    yield* store.read(0, [found])
    compare(0, found)
  })

describe.each(stores)("%s", (_, make) => {
  const test = (name: string, body: (store: BlockStore.BlockStore) => Effect.Effect<void, unknown, Scope.Scope>) =>
    live(name, () => Effect.flatMap(make, body))

  it.live.prop(
    "keeps what a plain array keeps",
    [Arbitrary.array(Arbitrary.schema(operation), { maxLength: 40 })],
    ([operations]) => leavesNothing(Effect.flatMap(make, (store) => runAll(store, operations))),
    { arbitrary: { runs: 25 } }
  )

  test("reads as zeroes at first", (store) =>
    Effect.gen(function*() {
      expect(store.capacity).toBe(CAPACITY)
      const found = new Uint8Array(CAPACITY).fill(1)
      yield* store.read(0, [found])
      expect(found.every((byte) => byte === 0)).toBe(true)
    }))

  test("takes many writes at once", (store) =>
    Effect.gen(function*() {
      const { blockSize } = store
      const count = Math.min(64, CAPACITY / blockSize)
      yield* Effect.forEach(
        Array.from({ length: count }, (_, i) => i),
        (i) => store.write(i * blockSize, [pattern(blockSize, i)]),
        { concurrency: "unbounded" }
      )
      const found = new Uint8Array(count * blockSize)
      yield* store.read(0, [found])
      for (let i = 0; i < count; i++) {
        expect(found.subarray(i * blockSize, (i + 1) * blockSize)).toStrictEqual(pattern(blockSize, i))
      }
    }))

  test("tells EINVAL, and says why", (store) =>
    Effect.gen(function*() {
      const { blockSize } = store
      const aligned = `must be a multiple of the block size ${blockSize}`
      const cases = [
        [1, blockSize, `offset ${aligned}`],
        [-blockSize, blockSize, `offset ${aligned}`],
        [NaN, blockSize, `offset ${aligned}`],
        [Infinity, blockSize, `offset ${aligned}`],
        [0, 0, "length must be positive"],
        [0, blockSize - 1, `length ${aligned}`],
        [0, CAPACITY + blockSize, `the range must end within capacity ${CAPACITY}`],
        [CAPACITY, blockSize, `the range must end within capacity ${CAPACITY}`],
        [2 ** 52, blockSize, `the range must end within capacity ${CAPACITY}`]
      ] as const
      for (const [offset, length, rule] of cases) {
        const bytes = new Uint8Array(length)
        const operations = {
          read: store.read(offset, [bytes]),
          write: store.write(offset, [bytes]),
          writeZeroes: store.writeZeroes(offset, length),
          discard: store.discard(offset, length)
        }
        for (const [name, effect] of Object.entries(operations)) {
          const error = yield* Effect.flip(effect)
          expect(error).toMatchObject({ _tag: "EINVAL", operation: name, offset, length })
          expect(error.message).toBe(`${name} at ${offset} of ${length} bytes: ${rule}`)
        }
      }
      for (const length of [NaN, -blockSize, 0.5]) {
        expect((yield* Effect.flip(store.discard(0, length)))._tag).toBe("EINVAL")
        expect((yield* Effect.flip(store.writeZeroes(0, length)))._tag).toBe("EINVAL")
      }
      expect((yield* Effect.flip(store.read(0, [])))._tag).toBe("EINVAL")
    }))

  test("tells EBADF once it is read-only, and can be read", (store) =>
    Effect.gen(function*() {
      const { blockSize } = store
      yield* store.write(0, [pattern(blockSize, 3)])
      const view = BlockStore.readOnly(store)
      expect(view).toMatchObject({ readOnly: true, capacity: CAPACITY, blockSize, id: `readOnly(${store.id})` })
      const found = new Uint8Array(blockSize)
      yield* view.read(0, [found])
      yield* view.flush
      expect(found).toStrictEqual(pattern(blockSize, 3))
      for (const refused of [view.write(0, [found]), view.writeZeroes(0, blockSize), view.discard(0, blockSize)]) {
        const error = yield* Effect.flip(refused)
        expect(error._tag).toBe("EBADF")
        expect(error.message).toMatch(/^\w+ at 0 of \d+ bytes: the store is read-only$/)
      }
      // The order of the checks: the start comes first.
      expect((yield* Effect.flip(view.write(1, [found])))._tag).toBe("EINVAL")
    }))

  test("is done with its buffers when an interruption returns", (store) =>
    Effect.gen(function*() {
      yield* store.write(0, [pattern(CAPACITY, 1)])
      for (let round = 0; round < 30; round++) {
        const found = new Uint8Array(CAPACITY)
        const fiber = yield* Effect.forkChild(store.read(0, [found]), { startImmediately: true })
        for (let i = 0; i < round % 5; i++) yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
        found.fill(0xee)
        yield* Effect.sleep(0)
        expect(found.every((byte) => byte === 0xee)).toBe(true)
      }
    }))

  test("has no news of a capacity that does not change", (store) =>
    Effect.gen(function*() {
      const { news } = yield* newsOf(store)
      yield* store.write(0, [new Uint8Array(CAPACITY)])
      yield* store.flush
      yield* turns
      expect(news).toStrictEqual([])
    }))
})

/** Lets whoever is told of something hear it. */
const turns = Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow, { discard: true })

/** What a subscriber hears from now on, until its fiber ends. */
const newsOf = Effect.fnUntraced(function*(store: BlockStore.BlockStore) {
  const news: Array<number> = []
  const subscriber = yield* Effect.forkScoped(
    Stream.runForEach(store.capacityChanges, (capacity) => Effect.sync(() => news.push(capacity)))
  )
  yield* turns
  return { news, subscriber }
})

const memory = BlockStore.memory({ capacity: CAPACITY })

/** Each rests on one store, and is as large as it up to {@link CAPACITY}. */
const dresses: ReadonlyArray<
  readonly [
    name: string,
    dress: (store: BlockStore.BlockStore) => Effect.Effect<BlockStore.BlockStore, unknown, Scope.Scope>
  ]
> = [
  ["nothing", Effect.succeed],
  ["readOnly", (store) => Effect.succeed(BlockStore.readOnly(store))],
  ["delay", (store) => Effect.succeed(BlockStore.delay(store, 0))],
  ["rateLimit", BlockStore.rateLimit({ bytesPerSecond: 1e12 })],
  ["logged", (store) => Effect.succeed(BlockStore.logged(store))],
  ["metered", (store) => Effect.succeed(BlockStore.metered(store, { name: "resized" }))],
  ["traced", BlockStore.traced({ sample: 1 })],
  ["failing", BlockStore.failing([])],
  ["around", (store) => Effect.succeed(BlockStore.around(store, { name: "same", run: (_, effect) => effect }))],
  ["slice", BlockStore.slice(0, CAPACITY)],
  ["the base of an overlay", (base) => Effect.flatMap(memory, BlockStore.overlay(base))],
  ["the top of an overlay", (top) => Effect.flatMap(memory, (base) => BlockStore.overlay(base, top))],
  [
    "all of it",
    (store) =>
      Effect.succeed(BlockStore.readOnly(store)).pipe(
        Effect.flatMap(BlockStore.slice(0, CAPACITY)),
        Effect.flatMap((base) => Effect.flatMap(memory, BlockStore.overlay(base))),
        Effect.map(BlockStore.delay(0)),
        Effect.map(BlockStore.logged),
        Effect.flatMap(BlockStore.traced({ sample: 1 }))
      )
  ]
]

describe.each([["memory", memory], ["file", fileStore()]] as const)("resizing %s", (_, make) => {
  for (const [name, dress] of dresses) {
    live(`is followed by ${name}`, () =>
      Effect.gen(function*() {
        const beneath = yield* make
        const store = yield* dress(beneath)
        const { news } = yield* newsOf(store)
        for (const capacity of [CAPACITY / 2, 512, 0, CAPACITY / 4, CAPACITY]) {
          yield* beneath.resize(capacity)
          yield* turns
          expect(store.capacity).toBe(capacity)
          expect(news.at(-1)).toBe(capacity)
          const error = yield* Effect.flip(store.read(capacity, [new Uint8Array(512)]))
          expect(error).toMatchObject({ _tag: "EINVAL", operation: "read" })
          expect(error.message).toMatch(new RegExp(`the range must end within capacity ${capacity}$`))
          if (capacity > 0) yield* store.read(capacity - 512, [new Uint8Array(512)])
        }
        expect(news).toStrictEqual([CAPACITY / 2, 512, 0, CAPACITY / 4, CAPACITY])
      }))
  }

  live("tells every subscriber what changes after it came, and nothing of what does not", () =>
    Effect.gen(function*() {
      const store = yield* make
      const early = yield* newsOf(store)
      yield* store.resize(512)
      yield* store.resize(512)
      yield* turns
      const late = yield* newsOf(store)
      yield* Fiber.interrupt((yield* newsOf(store)).subscriber)
      yield* store.resize(1024)
      yield* Effect.ignore(store.resize(1000))
      yield* turns
      expect([early.news, late.news]).toStrictEqual([[512, 1024], [1024]])
    }))

  live("shows zeroes where it grows, whatever was there before", () =>
    Effect.gen(function*() {
      const store = yield* make
      for (
        const [kept, grown] of [[CAPACITY / 2, CAPACITY], [512, CAPACITY * 2], [0, 1024], [66_048, 131_072]] as const
      ) {
        yield* store.resize(CAPACITY)
        yield* store.write(0, [new Uint8Array(CAPACITY).fill(1)])
        yield* store.resize(kept)
        yield* store.resize(grown)
        const found = new Uint8Array(grown).fill(0xee)
        yield* store.read(0, [found])
        expect([found.lastIndexOf(1) + 1, found.lastIndexOf(0xee)]).toStrictEqual([kept, -1])
        expect(found.subarray(0, kept).every((byte) => byte === 1)).toBe(true)
        yield* store.write(grown - 512, [new Uint8Array(512).fill(2)])
      }
    }))

  live("refuses what is no capacity, and stays as it is", () =>
    Effect.gen(function*() {
      const store = yield* make
      for (const capacity of [1000, -512, NaN, Infinity, 0.5, 2 ** 53]) {
        const error = yield* Effect.flip(store.resize(capacity))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toBe(`resize: capacity ${capacity} must be a whole multiple of the block size 512`)
        expect(store.capacity).toBe(CAPACITY)
      }
    }))
})

it.live.prop(
  "two stacks that differ in their blocks keep the same",
  [Arbitrary.array(Arbitrary.schema(operation), { maxLength: 30 })],
  ([operations]) =>
    Effect.gen(function*() {
      const base = yield* fileStore()
      const top = yield* fileStore({ blockSize: 2048 })
      yield* runAll(yield* BlockStore.overlay(base, top), operations)
      // Whatever was done, the base is as it was.
      const found = new Uint8Array(CAPACITY)
      yield* base.read(0, [found])
      expect(found.every((byte) => byte === 0)).toBe(true)
    }).pipe(Effect.scoped),
  { arbitrary: { runs: 25 } }
)
