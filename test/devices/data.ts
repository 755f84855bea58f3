/** Checks of data: against a model, and against what the other side writes and reads. */
import { Effect } from "effect"
import assert from "node:assert/strict"
import { make as randomNumbers } from "../../src/SeededRandom.ts"
import { IoQueue } from "../../src/index.ts"
import {
  type Check,
  fillPattern,
  foreign,
  foreignBytes,
  KiB,
  kinds,
  lasting,
  lastingBytes,
  open,
  type Target,
  unlimited,
  waits,
  work
} from "./Target.ts"

const { FUA, NO_UNMAP } = IoQueue.RequestFlag

const ROUNDS = 6
const MODEL_BYTES = 512 * KiB

const againstModel = (kind: (typeof kinds)[number]): Check => ({
  name: `is what an array would hold after random requests in flight: ${kind}`,
  isEssential: true,
  body: Effect.fnUntraced(function*(target) {
    const seed = Number(process.env["TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 32))
    yield* compareWithModel(target, kind, randomNumbers(seed)).pipe(
      Effect.catchCause((cause) => Effect.die(new Error(`failed with TEST_SEED=${seed}`, { cause })))
    )
  })
})

const compareWithModel = Effect.fnUntraced(function*(
  target: Target,
  kind: (typeof kinds)[number],
  random: (below: number) => number
) {
  const { maxQueues } = target.facts.properties
  const disk = yield* open(target, {
    queueSize: 32,
    ...kind === "poll" ? { numQueues: 0, numPollQueues: maxQueues } : { ...waits[kind], numQueues: maxQueues }
  })
  const queues = kind === "poll" ? disk.pollQueues : disk.queues
  const { bytes } = yield* disk.allocate(MODEL_BYTES)
  const model = fillPattern(new Uint8Array(MODEL_BYTES), 0, 0)
  bytes.set(model)
  yield* queues[0]!.write(work.offset, bytes)
  for (let round = 0; round < ROUNDS; round++) {
    // The requests of a round do not overlap, so that their order does not matter.
    const requests: Array<Effect.Effect<void, unknown>> = []
    let at = 0
    while (at < MODEL_BYTES) {
      const start = at + random(8) * 512
      const length = Math.min((1 + random(random(8) === 0 ? 256 : 24)) * 512, MODEL_BYTES - start)
      at = start + length
      if (length <= 0) break
      const offset = work.offset + start
      const buffer = bytes.subarray(start, at)
      const queue = queues[random(queues.length)]!
      const expected = model.subarray(start, at)
      const half = (length >> 10) << 9
      const parts = [buffer.subarray(0, half), buffer.subarray(half)]
      const flags = random(4) === 0 ? FUA : 0
      switch (random(6)) {
        case 0:
        case 1:
          fillPattern(buffer, start, random(2 ** 32))
          expected.set(buffer)
          requests.push(random(2) === 0 ? queue.write(offset, buffer, flags) : queue.writev(offset, parts, flags))
          break
        case 2:
          if (!target.facts.offers.writeZeroes) break
          expected.fill(0)
          requests.push(queue.writeZeroes(offset, length, flags))
          break
        case 3:
          requests.push(queue.flush())
          break
        default: {
          const then = expected.slice()
          requests.push(Effect.tap(
            random(2) === 0 ? queue.read(offset, buffer) : queue.readv(offset, parts),
            () => Effect.sync(() => assert.equal(Buffer.compare(buffer, then), 0, `round ${round}, ${offset}`))
          ))
        }
      }
    }
    yield* Effect.forEach(requests, (request) => request, unlimited)
  }
  yield* queues[0]!.read(work.offset, bytes)
  assert.equal(Buffer.compare(bytes, model), 0)
})

const readForeign = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const { bytes } = yield* disk.allocate(foreign.length)
  yield* disk.queue(0).read(foreign.offset, bytes)
  assert.equal(Buffer.compare(bytes, foreignBytes()), 0)
})

/** That the other side finds it is for the other side to say: {@link lastingBytes}. */
const writeLasting = Effect.fnUntraced(function*(target: Target) {
  const { maxQueues } = target.facts.properties
  const disk = yield* open(target, { numQueues: maxQueues })
  const { bytes } = yield* disk.allocate(lasting.length)
  fillPattern(bytes, lasting.offset, lasting.round)
  const step = 64 * KiB
  yield* Effect.forEach(
    Array.from({ length: lasting.length / step }, (_, i) => i * step),
    (at, i) =>
      disk.queue(i % maxQueues).write(
        lasting.offset + at,
        bytes.subarray(at, at + step),
        i % 2 * FUA
      ),
    unlimited
  )
  const hole = lasting.offset + lasting.hole
  if (target.facts.offers.writeZeroes) yield* disk.queue(0).writeZeroes(hole, lasting.holeLength, NO_UNMAP)
  else yield* disk.queue(0).write(hole, bytes.subarray(0, lasting.holeLength).fill(0))
  yield* disk.queue(0).flush()
  yield* disk.queue(0).read(lasting.offset, bytes)
  assert.equal(Buffer.compare(bytes, lastingBytes()), 0)
})

export const checks: ReadonlyArray<Check> = [
  ...kinds.map(againstModel),
  { name: "holds what the other side has written", isEssential: true, body: readForeign },
  { name: "takes what the other side is to find", isEssential: true, body: writeLasting }
]
