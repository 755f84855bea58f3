/**
 * Goal: what is written is what is read, by whichever way, queue, size and waiting policy.
 * Method: images written here are verified without the backend (by qemu-io, where the backend is QEMU's) and the other way
 * round; random reads, writes, zeroes and discards in
 * flight are checked against an array in memory (the seed is printed on failure); a matrix of jobs after SPDK's
 * bdev.fio, each of which writes and then verifies by checksum.
 */
import { expect } from "@effect/vitest"
import { Effect, Stream } from "effect"
import { createHash } from "node:crypto"
import { statSync } from "node:fs"
import { type BlockDevice, IoQueue } from "../../src/index.ts"
import { forEachBackend, makeImage, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open, withSeed } from "../support/daemon.ts"

type Disk = typeof BlockDevice.Service

const unlimited = { concurrency: "unbounded", discard: true } as const

/** Bytes that tell where on the disk they belong, and of which round they are. */
const fillPattern = (bytes: Uint8Array, offset: number, round: number): void => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  for (let at = 0; at < bytes.length; at += 8) {
    view.setUint32(at, Math.imul((offset + at) / 8 + 1, 0x9e3779b1) ^ round)
    view.setUint32(at + 4, Math.imul(offset + at, 0x85ebca6b) + round)
  }
}

forEachBackend("data", (backend) => {
  for (const format of backend.formats) {
    onBackend(
      `written here is found in the image, and what is in the image is read here: ${format}`,
      () =>
        Effect.gen(function*() {
          const image = yield* makeImage(format, 16 * MiB)
          yield* backend.fill(image, [[0, MiB, 0x5a], [5 * MiB, 3 * MiB, 0xc3], [15 * MiB, MiB, 0x77]])
          yield* Effect.scoped(Effect.gen(function*() {
            const { socketPath } = yield* backend.serve(image, { numQueues: 4 })
            const disk = yield* open(socketPath, { numQueues: 4 })
            const region = yield* disk.allocate(4 * MiB)
            const expectAt = function*(offset: number, length: number, byte: number) {
              const buffer = region.bytes.subarray(0, length).fill(0xee)
              yield* disk.queue(0).read(offset, buffer)
              expect(buffer.every((found) => found === byte), `${offset}`).toBe(true)
            }
            yield* Effect.gen(() => expectAt(0, MiB, 0x5a))
            yield* Effect.gen(() => expectAt(MiB, 4 * MiB, 0))
            yield* Effect.gen(() => expectAt(5 * MiB, 3 * MiB, 0xc3))
            yield* Effect.gen(() => expectAt(15 * MiB, MiB, 0x77))

            // Four queues in parallel, each its own byte, then a vector, zeroes, and a flush.
            yield* Effect.forEach(disk.queues, (queue, i) => {
              const buffer = region.bytes.subarray(i * MiB, (i + 1) * MiB).fill(0x10 + i)
              return queue.write((8 + i) * MiB, buffer, IoQueue.RequestFlag.FUA)
            }, unlimited)
            const block = region.bytes.subarray(0, 512).fill(0x99)
            const other = region.bytes.subarray(KiB, 3 * KiB).fill(0x88)
            yield* disk.queue(1).writev(12 * MiB, [block, other, block.subarray(0, 0), block])
            yield* disk.queue(2).writeZeroes(6 * MiB, MiB)
            yield* disk.queue(2).writeZeroes(8 * MiB, 64 * KiB, IoQueue.RequestFlag.NO_UNMAP | IoQueue.RequestFlag.FUA)
            yield* disk.queue(3).discard(15 * MiB, MiB)
            yield* disk.queue(3).flush()
            yield* Effect.gen(() => expectAt(6 * MiB, MiB, 0))
          }))
          yield* backend.verify(image, [
            [0, MiB, 0x5a],
            [5 * MiB, MiB, 0xc3],
            [6 * MiB, MiB, 0],
            [7 * MiB, MiB, 0xc3],
            [8 * MiB, 64 * KiB, 0],
            [8 * MiB + 64 * KiB, 960 * KiB, 0x10],
            [9 * MiB, MiB, 0x11],
            [10 * MiB, MiB, 0x12],
            [11 * MiB, MiB, 0x13],
            [12 * MiB, 512, 0x99],
            [12 * MiB + 512, 2 * KiB, 0x88],
            [12 * MiB + 512 + 2 * KiB, 512, 0x99],
            [15 * MiB, MiB, 0]
          ])
          if (format === "raw") expect(statSync(image.path).blocks * 512).toBeLessThan(10 * MiB)
        })
    )
  }

  onBackend("travels in requests of many segments and of many MiB", () =>
    Effect.gen(function*() {
      const { facts, socketPath } = yield* serveRaw(backend, 128 * MiB)
      const disk = yield* open(socketPath, { queueSize: 16 })
      const region = yield* disk.allocate(64 * MiB)
      const segments = yield* disk.properties.get("max-segments")
      expect(segments).toBe(facts.maxSegments)
      // Segments of different lengths, out of order in memory, over three regions.
      const more = [region, yield* disk.allocate(MiB), yield* disk.allocate(MiB)]
      const buffers = Array.from({ length: segments }, (_, i) => {
        const at = (segments - i) * 4 * KiB
        return more[i % 3]!.bytes.subarray(at, at + 512 * (1 + i % 8))
      })
      let offset = 0
      for (const buffer of buffers) {
        fillPattern(buffer, offset, 1)
        offset += buffer.length
      }
      const whole = Buffer.concat(buffers)
      yield* disk.queue(0).writev(MiB, buffers)
      for (const buffer of buffers) buffer.fill(0)
      yield* disk.queue(0).readv(MiB, buffers)
      expect(Buffer.concat(buffers).equals(whole)).toBe(true)

      for (const size of [MiB, 4 * MiB, 32 * MiB]) {
        const [source, target] = [region.bytes.subarray(0, size), region.bytes.subarray(size, 2 * size)]
        fillPattern(source, 64 * MiB, size)
        yield* disk.queue(0).write(64 * MiB, source)
        target.fill(0)
        yield* disk.queue(0).read(64 * MiB, target)
        expect(Buffer.compare(source, target)).toBe(0)
      }
    }))

  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(
      `is what an array would hold after many random requests in flight: ${kind}`,
      () =>
        withSeed((random) =>
          Effect.gen(function*() {
            const CAPACITY = 2 * MiB
            const ROUNDS = 25
            const { socketPath } = yield* serveRaw(backend, CAPACITY, { numQueues: 4 })
            const disk = yield* open(socketPath, {
              queueSize: 32,
              ...(kind === "poll" ? { numQueues: 0, numPollQueues: 4 } : { numQueues: 4, waiting: kind })
            })
            const queues = kind === "poll" ? disk.pollQueues : disk.queues
            const region = yield* disk.allocate(4 * MiB)
            const model = new Uint8Array(CAPACITY)
            for (let round = 0; round < ROUNDS; round++) {
              // The requests of a round do not overlap, so that their order does not matter.
              const requests: Array<Effect.Effect<void, unknown>> = []
              let at = 0
              while (at < CAPACITY) {
                const offset = at + random(8) * 512
                const length = Math.min((1 + random(random(8) === 0 ? 256 : 24)) * 512, CAPACITY - offset)
                at = offset + length
                if (length <= 0) break
                const buffer = region.bytes.subarray(offset, offset + length)
                const queue = queues[random(queues.length)]!
                const expected = model.subarray(offset, offset + length)
                const half = (length >> 10) << 9
                const parts = [buffer.subarray(0, half), buffer.subarray(half)]
                const flags = random(4) === 0 ? IoQueue.RequestFlag.FUA : 0
                switch (random(6)) {
                  case 0:
                  case 1:
                    fillPattern(buffer, offset, random(2 ** 32))
                    expected.set(buffer)
                    requests.push(
                      random(2) === 0 ? queue.write(offset, buffer, flags) : queue.writev(offset, parts, flags)
                    )
                    break
                  case 2:
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
                      () => Effect.sync(() => expect(Buffer.compare(buffer, then), `round ${round}, ${offset}`).toBe(0))
                    ))
                  }
                }
              }
              yield* Effect.forEach(requests, (request) => request, unlimited)
            }
            const whole = region.bytes.subarray(2 * MiB)
            yield* queues[0]!.read(0, whole)
            expect(Buffer.compare(whole, model)).toBe(0)
          })
        )
    )
  }
})

/** Writes all of `bytes` in blocks as a stream with `depth` in flight, then reads and verifies each by its checksum. */
const writeAndVerify = Effect.fnUntraced(function*(
  disk: Disk,
  queue: IoQueue.IoQueue,
  job: { readonly blockSize: number; readonly depth: number; readonly random: boolean; readonly round: number },
  shuffle: <A>(items: Array<A>) => Array<A>
) {
  const { blockSize, depth, round } = job
  const blocks = Math.min(512, Math.max(depth, Math.floor(8 * MiB / blockSize)), Math.floor(disk.capacity / blockSize))
  const region = yield* disk.allocate(blockSize * Math.min(depth, blocks))
  const free = Array.from(
    { length: Math.min(depth, blocks) },
    (_, i) => region.bytes.subarray(i * blockSize, (i + 1) * blockSize)
  )
  const offsets = Array.from({ length: blocks }, (_, i) => i * blockSize)
  const sums = new Map<number, string>()
  const sumOf = (bytes: Uint8Array) => createHash("md5").update(bytes).digest("hex")
  let verified = 0
  for (const kind of ["write", "read"] as const) {
    const order = job.random ? shuffle([...offsets]) : offsets
    // As many at a time as there are buffers, which come back with their completions.
    for (let start = 0; start < order.length; start += free.length) {
      const requests = order.slice(start, start + free.length).map((offset, i) => {
        const buffer = free[i]!
        if (kind === "write") {
          fillPattern(buffer, offset, round)
          sums.set(offset, sumOf(buffer))
        } else buffer.fill(0)
        return { _tag: kind, offset, buffer }
      })
      yield* queue.process(Stream.fromIterable(requests)).pipe(
        Stream.runForEach(({ error, request }) =>
          Effect.sync(() => {
            expect(error).toBeUndefined()
            if (request._tag === "write") return
            expect(sumOf(request.buffer)).toBe(sums.get(request.offset))
            verified++
          })
        )
      )
    }
    yield* queue.flush()
  }
  expect(verified).toBe(blocks)
}, Effect.scoped)

forEachBackend("jobs that write and verify", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(
      `of all block sizes and depths, random and sequential: ${kind}`,
      () =>
        withSeed((random) =>
          Effect.gen(function*() {
            const { socketPath } = yield* serveRaw(backend, 128 * MiB)
            const disk = yield* open(socketPath, {
              queueSize: 128,
              ...(kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : { waiting: kind })
            })
            const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
            const shuffle = <A>(items: Array<A>): Array<A> => {
              for (let i = items.length - 1; i > 0; i--) {
                const j = random(i + 1)
                const item = items[i]!
                items[i] = items[j]!
                items[j] = item
              }
              return items
            }
            let round = 0
            for (const blockSize of [512, 4 * KiB, 64 * KiB, 256 * KiB, MiB]) {
              for (const depth of [1, 8, 32, 128]) {
                if (blockSize * depth > 64 * MiB) continue
                for (const isRandom of [false, true]) {
                  yield* writeAndVerify(disk, queue, { blockSize, depth, random: isRandom, round: ++round }, shuffle)
                }
              }
            }
          })
        ),
      300_000
    )
  }
})
