/** Checks of requests: each kind of them, their limits, and the mistakes that can be made. */
import { Effect, Stream } from "effect"
import assert from "node:assert/strict"
import { IoQueue } from "../../src/index.ts"
import { CAPACITY, type Check, errnoOf, fillPattern, KiB, MiB, open, type Target, work } from "./Target.ts"

const { FUA, NO_FALLBACK, NO_UNMAP } = IoQueue.RequestFlag

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0)

const readAndWrite = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const queue = disk.queue(0)
  const region = yield* disk.allocate(64 * KiB)
  const [source, read] = [region.bytes.subarray(0, 32 * KiB), region.bytes.subarray(32 * KiB)]
  fillPattern(source, work.offset, 1)
  yield* queue.write(work.offset, source)
  yield* queue.read(work.offset, read)
  assert.equal(Buffer.compare(source, read), 0, "read after write")

  // Parts of different lengths, out of order in memory, an empty one among them.
  const parts = [
    source.subarray(512, 4 * KiB),
    source.subarray(0, 512),
    source.subarray(0, 0),
    source.subarray(8 * KiB)
  ]
  const whole = Buffer.concat(parts)
  yield* queue.writev(work.offset + 64 * KiB, parts)
  yield* queue.read(work.offset + 64 * KiB, read.fill(0).subarray(0, whole.length))
  assert.equal(Buffer.compare(read.subarray(0, whole.length), whole), 0, "read after writev")
  const targets = [read.subarray(20 * KiB, 21 * KiB), read.subarray(0, 512), read.subarray(4 * KiB, 12 * KiB)]
  read.fill(0)
  yield* queue.readv(work.offset, targets)
  fillPattern(source, work.offset, 1)
  assert.equal(Buffer.compare(Buffer.concat(targets), source.subarray(0, 9728)), 0, "readv after write")
  assert.ok(isZero(read.subarray(512, 4 * KiB)), "readv leaves what is beside its buffers")
})

const zeroesAndDiscard = Effect.fnUntraced(function*(target: Target) {
  const { discard, writeZeroes } = target.facts.offers
  const disk = yield* open(target)
  const queue = disk.queue(0)
  const { bytes } = yield* disk.allocate(128 * KiB)
  fillPattern(bytes, work.offset, 2)
  yield* queue.write(work.offset, bytes)
  if (writeZeroes) {
    yield* queue.writeZeroes(work.offset + 4 * KiB, 8 * KiB)
    yield* queue.writeZeroes(work.offset + 32 * KiB, 512, NO_UNMAP | FUA)
    yield* queue.writeZeroes(work.offset + 40 * KiB, 4 * KiB, NO_FALLBACK)
    const expected = fillPattern(new Uint8Array(bytes.length), work.offset, 2)
      .fill(0, 4 * KiB, 12 * KiB).fill(0, 32 * KiB, 32 * KiB + 512).fill(0, 40 * KiB, 44 * KiB)
    yield* queue.read(work.offset, bytes)
    assert.equal(Buffer.compare(bytes, expected), 0)
  } else {
    assert.equal(yield* errnoOf(queue.writeZeroes(work.offset, 4 * KiB)), "ENOTSUP")
  }
  if (discard) yield* queue.discard(work.offset + 64 * KiB, 64 * KiB)
  else assert.equal(yield* errnoOf(queue.discard(work.offset, 4 * KiB)), "ENOTSUP")
  // What is discarded may be anything; what is beside it stays.
  const before = bytes.slice(0, 64 * KiB)
  yield* queue.read(work.offset, bytes)
  assert.equal(Buffer.compare(bytes.subarray(0, 64 * KiB), before), 0)
})

const stable = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const queue = disk.queue(0)
  const { bytes } = yield* disk.allocate(8 * KiB)
  fillPattern(bytes, work.offset, 3)
  yield* queue.write(work.offset, bytes.subarray(0, 4 * KiB), FUA)
  yield* queue.writev(work.offset + 4 * KiB, [bytes.subarray(4 * KiB, 6 * KiB), bytes.subarray(6 * KiB)], FUA)
  yield* queue.flush()
  const expected = bytes.slice()
  yield* queue.read(work.offset, bytes.fill(0))
  assert.equal(Buffer.compare(bytes, expected), 0)
})

const limits = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target, { queueSize: 16 })
  const queue = disk.queue(0)
  const regions = [yield* disk.allocate(4 * MiB), yield* disk.allocate(MiB)]
  const most = yield* disk.properties.get("max-segments")
  const segments = Array.from({ length: most }, (_, i) => {
    const { bytes } = regions[i % 2]!
    const at = (most - i) * 4 * KiB % MiB
    return bytes.subarray(at, at + 512 * (1 + i % 4))
  })
  let offset = work.offset
  for (const segment of segments) {
    fillPattern(segment, offset, 4)
    offset += segment.length
  }
  const whole = Buffer.concat(segments)
  yield* queue.writev(work.offset, segments)
  for (const segment of segments) segment.fill(0)
  yield* queue.readv(work.offset, segments)
  assert.equal(Buffer.compare(Buffer.concat(segments), whole), 0, `${most} segments`)
  const tooMany = Array.from({ length: most + 1 }, () => regions[1]!.bytes.subarray(0, 512))
  assert.equal(yield* errnoOf(queue.readv(work.offset, tooMany)), "EINVAL")

  const length = 2 * MiB
  const [source, read] = [regions[0]!.bytes.subarray(0, length), regions[0]!.bytes.subarray(length)]
  fillPattern(source, work.offset + 8 * MiB, 5)
  yield* queue.write(work.offset + 8 * MiB, source)
  yield* queue.read(work.offset + 8 * MiB, read)
  assert.equal(Buffer.compare(source, read), 0, `${length} bytes in one request`)
})

/** Each mistake by name: the request, and the errno it must answer. */
const mistakes = (
  buffer: Uint8Array,
  unmapped: Uint8Array
): ReadonlyArray<readonly [string, IoQueue.Request, "EINVAL" | "EFAULT"]> => [
  ["a buffer of the heap", { _tag: "read", offset: 0, buffer: new Uint8Array(512) }, "EFAULT"],
  ["a region that is not mapped", { _tag: "read", offset: 0, buffer: unmapped }, "EFAULT"],
  [
    "one buffer of the heap among mapped ones",
    { _tag: "readv", offset: 0, buffers: [buffer.subarray(0, 512), new Uint8Array(512)] },
    "EFAULT"
  ],
  ["no bytes", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 0) }, "EINVAL"],
  ["no buffers", { _tag: "readv", offset: 0, buffers: [] }, "EINVAL"],
  ["an offset inside a block", { _tag: "write", offset: work.offset + 100, buffer: buffer.subarray(0, 512) }, "EINVAL"],
  ["a length inside a block", { _tag: "write", offset: work.offset, buffer: buffer.subarray(0, 100) }, "EINVAL"],
  ["a negative offset", { _tag: "read", offset: -512, buffer: buffer.subarray(0, 512) }, "EINVAL"],
  ["an offset that is no number", { _tag: "read", offset: NaN, buffer: buffer.subarray(0, 512) }, "EINVAL"],
  ["an offset past 2^63", { _tag: "read", offset: 2 ** 63, buffer: buffer.subarray(0, 512) }, "EINVAL"],
  ["a start at the capacity", { _tag: "read", offset: CAPACITY, buffer: buffer.subarray(0, 512) }, "EINVAL"],
  ["an end past the capacity", { _tag: "write", offset: CAPACITY - 512, buffer: buffer.subarray(0, KiB) }, "EINVAL"],
  ["FUA on a read", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512), flags: FUA }, "EINVAL"],
  ["NO_UNMAP on a write", { _tag: "write", offset: 0, buffer: buffer.subarray(0, 512), flags: NO_UNMAP }, "EINVAL"],
  ["NO_FALLBACK on a flush", { _tag: "flush", flags: NO_FALLBACK }, "EINVAL"],
  ["unknown flags", { _tag: "read", offset: 0, buffer: buffer.subarray(0, 512), flags: 8 }, "EINVAL"]
]

const ask = (queue: IoQueue.IoQueue, request: IoQueue.Request) => {
  const { flags } = request
  switch (request._tag) {
    case "read":
    case "write":
      return queue[request._tag](request.offset, request.buffer, flags)
    case "readv":
    case "writev":
      return queue[request._tag](request.offset, request.buffers, flags)
    case "discard":
    case "writeZeroes":
      return queue[request._tag](request.offset, request.length, flags)
    case "flush":
      return queue.flush(flags)
  }
}

const wrongRequests = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target, { queueSize: 16 })
  const queue = disk.queue(0)
  const region = yield* disk.allocate(64 * KiB)
  const other = yield* disk.allocate(4 * KiB)
  yield* disk.unmap(other)
  const wrong = mistakes(region.bytes, other.bytes)
  const good = { _tag: "read", offset: 0, buffer: region.bytes.subarray(0, 512) } as const
  for (const [name, request, errno] of wrong) {
    const error = yield* Effect.flip(ask(queue, request))
    assert.deepEqual([name, error._tag, error.operation], [name, errno, request._tag])
    yield* ask(queue, good)
  }
  const requests = wrong.flatMap(([, request]) => [good, request])
  const completions = yield* queue.process(Stream.fromIterable(requests)).pipe(Stream.runCollect)
  const expected = new Map<IoQueue.Request, string>(wrong.map(([, request, errno]) => [request, errno]))
  assert.equal(completions.length, requests.length)
  for (const { error, request } of completions) assert.equal(error?._tag, expected.get(request))
})

const readOnly = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target, { readOnly: true })
  const queue = disk.queue(0)
  const { bytes } = yield* disk.allocate(4 * KiB)
  assert.equal(yield* errnoOf(queue.write(work.offset, bytes)), "EBADF")
  assert.equal(yield* errnoOf(queue.writev(work.offset, [bytes])), "EBADF")
  if (target.facts.offers.writeZeroes) assert.equal(yield* errnoOf(queue.writeZeroes(work.offset, 4 * KiB)), "EBADF")
  if (target.facts.offers.discard) assert.equal(yield* errnoOf(queue.discard(work.offset, 4 * KiB)), "EBADF")
  yield* queue.read(work.offset, bytes)
  yield* queue.flush()
})

/** The store takes memory that the device cannot reach, and any range. */
const byBytes = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const offset = work.offset + 16 * MiB + 100
  const source = fillPattern(new Uint8Array(300_000), 0, 6).subarray(1, 290_000)
  yield* disk.writeBytes(offset, source)
  yield* disk.flush
  assert.equal(Buffer.compare(yield* disk.readBytes(offset, source.length), source), 0)
  yield* disk.writeBytes(offset + 1000, Uint8Array.of(1, 2, 3))
  assert.deepEqual([...yield* disk.readBytes(offset + 999, 5)], [source[999], 1, 2, 3, source[1003]])
})

export const checks: ReadonlyArray<Check> = [
  { name: "read, write, readv and writev find what was written", isEssential: true, body: readAndWrite },
  { name: "writes zeroes and discards, or says that it cannot", body: zeroesAndDiscard },
  { name: "flushes, and takes FUA", isEssential: true, body: stable },
  { name: "takes requests of all segments it allows, and of MiBs", isEssential: true, body: limits },
  { name: "answers a wrong request with its errno, and the next one works", body: wrongRequests },
  { name: "refuses to be written where it was opened so", body: readOnly },
  { name: "takes any bytes at any place as a store", body: byBytes }
]
