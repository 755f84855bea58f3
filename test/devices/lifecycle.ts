/** Checks of a device's life: its phases, its properties in each, opening and closing, and who else may have it. */
import { Effect, Exit, Fiber, Layer, Option, Scope, Stream } from "effect"
import assert from "node:assert/strict"
import { BlockDevice, type IoQueue, Transport, VirtioBlk } from "../../src/index.ts"
import { type Check, errnoOf, fillPattern, KiB, open, type Target, work } from "./Target.ts"

const ROUNDS = 20

/** Writes a block through every queue of a disk, and reads it back. */
export const roundTrip = Effect.fnUntraced(function*(disk: typeof BlockDevice.Service, round: number) {
  const region = yield* disk.allocate(8 * KiB)
  const [source, target] = [region.bytes.subarray(0, 4 * KiB), region.bytes.subarray(4 * KiB)]
  for (const [i, queue] of [...disk.queues, ...disk.pollQueues].entries()) {
    const offset = work.offset + i * 4 * KiB
    fillPattern(source, offset, round)
    yield* queue.write(offset, source)
    yield* queue.read(offset, target.fill(0))
    assert.equal(Buffer.compare(source, target), 0, `queue ${i}, round ${round}`)
  }
}, Effect.scoped)

const phases = Effect.fnUntraced(function*({ facts, recipe }: Target) {
  const device = VirtioBlk.create(recipe)
  assert.equal(yield* device.properties.get("driver"), recipe.driver)
  assert.equal(yield* device.properties.get("path"), recipe.path)
  assert.equal(yield* errnoOf(device.properties.getUnknown("capacity")), "ENODEV")
  assert.equal(yield* errnoOf(device.properties.setUnknown("num-queues", 1)), "ENODEV")
  const connected = yield* device.connect
  assert.equal(yield* connected.properties.get("capacity"), facts.properties.capacity)
  assert.equal(yield* errnoOf(connected.properties.setUnknown("read-only", true)), "EBUSY")
  assert.equal(yield* errnoOf(connected.properties.setUnknown("capacity", 1)), "EACCES")
  yield* connected.properties.setString("queue-size", "64")
  const started = yield* connected.start()
  assert.equal(yield* errnoOf(connected.start()), "EBUSY")
  assert.equal(yield* errnoOf(started.properties.setUnknown("num-queues", 2)), "EBUSY")
  assert.equal(yield* started.properties.getString("queue-size"), "64")
  assert.equal(started.capacity, facts.properties.capacity)
  assert.deepEqual(started.queues.map(({ index, kind, size }) => [kind, index, size]), [["event", 0, 64]])
})

const properties = Effect.fnUntraced(function*({ facts, recipe }: Target) {
  const connected = yield* VirtioBlk.create(recipe).connect
  const expected = { driver: recipe.driver, path: recipe.path, numQueues: 1, numPollQueues: 0, ...facts.properties }
  const found = yield* connected.properties.getAll
  assert.deepEqual(Object.fromEntries(Object.entries(found).filter(([name]) => name in expected)), expected)
  const started = yield* connected.start()
  assert.deepEqual(yield* started.properties.getAll, found)
})

const refusedStart = Effect.fnUntraced(function*({ facts, recipe }: Target) {
  const connected = yield* VirtioBlk.create(recipe).connect
  const most = facts.properties.maxQueues
  const wrong = [{ numQueues: most + 1 }, { numQueues: most, numPollQueues: 1 }, { numQueues: 0 }]
  for (const settings of wrong) {
    yield* connected.properties.set({ numPollQueues: 0, ...settings })
    assert.equal(yield* errnoOf(connected.start()), "EINVAL", JSON.stringify(settings))
  }
  yield* connected.properties.set({ numQueues: 1, numPollQueues: 0 })
  const largest = yield* connected.properties.get("max-queue-size")
  if (largest < 32768) {
    yield* connected.properties.set({ queueSize: 2 * largest })
    assert.equal(yield* errnoOf(connected.start()), "EINVAL")
    yield* connected.properties.set({ queueSize: largest })
  }
  assert.equal(yield* errnoOf(connected.start({ deviceTimeout: -1 })), "EINVAL")
  const started = yield* connected.start()
  yield* started.queue(0).flush()
})

const startedAgain = Effect.fnUntraced(function*({ recipe }: Target) {
  const device = VirtioBlk.create(recipe)
  for (let round = 0; round < 3; round++) {
    yield* Effect.scoped(Effect.gen(function*() {
      const connected = yield* device.connect
      if (round !== 1) yield* (yield* connected.start()).queue(0).flush()
    }))
  }
})

const everyQueue = Effect.fnUntraced(function*(target: Target) {
  const { maxQueues } = target.facts.properties
  yield* Effect.scoped(Effect.flatMap(open(target, { numQueues: maxQueues }), (disk) => roundTrip(disk, 1)))
  const disk = yield* open(target, { numQueues: Math.ceil(maxQueues / 2), numPollQueues: Math.floor(maxQueues / 2) })
  yield* roundTrip(disk, 2)
  assert.equal(Option.isSome(disk.queue(0).completionFd), true)
  for (const absent of [disk.queue(maxQueues), disk.queue(-1), disk.queue(0.5), disk.pollQueue(maxQueues)]) {
    assert.equal(yield* errnoOf(absent.flush()), "ENODEV")
  }
})

const rings = Effect.fnUntraced(function*(target: Target) {
  for (const queueSize of [1, 2, 4, target.facts.largestRing]) {
    const exit = yield* Effect.exit(Effect.scoped(Effect.gen(function*() {
      const disk = yield* open(target, { queueSize })
      const region = yield* disk.allocate(16 * KiB)
      fillPattern(region.bytes, work.offset, queueSize)
      const blocks = Array.from({ length: 32 }, (_, i) => region.bytes.subarray(i * 512, (i + 1) * 512))
      const expected = region.bytes.slice()
      yield* Effect.forEach(blocks, (block, i) => disk.queue(0).write(work.offset + i * 512, block), {
        concurrency: "unbounded"
      })
      region.bytes.fill(0)
      yield* Effect.forEach(blocks, (block, i) => disk.queue(0).read(work.offset + i * 512, block), {
        concurrency: "unbounded"
      })
      assert.equal(Buffer.compare(region.bytes, expected), 0)
    })))
    if (Exit.isFailure(exit)) return yield* Effect.die(new Error(`a ring of ${queueSize}`, { cause: exit.cause }))
  }
})

/** That nothing is left behind is checked of every check. */
const cycles = Effect.fnUntraced(function*(target: Target) {
  for (let round = 0; round < ROUNDS; round++) {
    yield* Effect.scoped(Effect.flatMap(open(target), (disk) => roundTrip(disk, round)))
  }
})

const secondOpener = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  for (let round = 0; round < 3; round++) {
    assert.equal(yield* errnoOf(Effect.scoped(VirtioBlk.create(target.recipe).connect)), target.facts.secondOpener)
  }
  yield* roundTrip(disk, 3)
})

/** Closing waits for what is in flight, and ends what goes on for ever. */
const closing = Effect.fnUntraced(function*(target: Target) {
  for (const options of [{ waiting: "event" }, { numQueues: 0, numPollQueues: 1 }] as const) {
    for (let round = 0; round < 2; round++) {
      const scope = yield* Scope.make()
      const disk = yield* Scope.provide(open(target, options), scope)
      const [queue = disk.queue(0)] = [...disk.queues, ...disk.pollQueues]
      const region = yield* Scope.provide(disk.allocate(16 * KiB), scope)
      const read: IoQueue.Read = { _tag: "read", offset: work.offset, buffer: region.bytes }
      const reading = yield* Effect.forkScoped(
        queue.process(Stream.forever(Stream.make(read))).pipe(Stream.runDrain),
        { startImmediately: true }
      )
      const answers = yield* Effect.forEach(
        Array.from({ length: 32 }),
        () => Effect.forkScoped(queue.write(work.offset, region.bytes), { startImmediately: true })
      )
      yield* Effect.sleep(1 + 10 * round)
      yield* Scope.close(scope, Exit.void)
      assert.equal(yield* errnoOf(Fiber.join(reading)), "ESHUTDOWN")
      for (const fiber of answers) {
        const exit = yield* Effect.exit(errnoOf(Fiber.join(fiber)))
        // A write that the device had before has ended well.
        if (Exit.isSuccess(exit)) assert.equal(exit.value, "ESHUTDOWN")
      }
      assert.equal(yield* errnoOf(queue.flush()), "ESHUTDOWN")
      assert.equal(region.bytes.length, 0)
    }
  }
  yield* Effect.scoped(Effect.flatMap(open(target), (disk) => roundTrip(disk, 4)))
})

const layers = Effect.fnUntraced(function*({ facts, recipe }: Target) {
  const transport = Layer.succeed(Transport, recipe)
  const capacity = BlockDevice.useSync((disk) => disk.capacity)
  const connected = VirtioBlk.layerConnected().pipe(Layer.provide(transport))
  for (
    const layer of [
      VirtioBlk.layer({ queueSize: 32 }).pipe(Layer.provide(transport)),
      VirtioBlk.layerStarted().pipe(Layer.provide(connected))
    ]
  ) {
    assert.equal(yield* capacity.pipe(Effect.provide(layer)), facts.properties.capacity)
  }
})

export const checks: ReadonlyArray<Check> = [
  { name: "goes through its phases, and refuses what is too early or too late", body: phases },
  { name: "says of itself what is true for it, connected and started", isEssential: true, body: properties },
  { name: "a start that fails leaves it connected, to be set right and started", body: refusedStart },
  { name: "connects again and again, started or not", body: startedAgain },
  {
    name: "every queue works, event and poll, and those that are not there say so",
    isEssential: true,
    body: everyQueue
  },
  { name: "the smallest and the largest ring work", isEssential: true, body: rings },
  { name: "is provided by layers, in one step and in two", body: layers },
  { name: "closes in the midst of reading and writing, and opens again", isEssential: true, body: closing },
  { name: `opens and closes ${ROUNDS} times and leaves nothing`, body: cycles },
  {
    name: "is refused to a second opener, and the first does not notice",
    applies: ({ secondOpener }) => secondOpener !== undefined,
    body: secondOpener
  }
]
