/** Checks of memory: what is mapped for the device and taken back, whose it is, and how much of it there may be. */
import { Effect, Exit, Scope } from "effect"
import assert from "node:assert/strict"
import { closeSync, ftruncateSync, openSync, unlinkSync } from "node:fs"
import { MemoryRegion } from "../../src/index.ts"
import { type Check, errnoOf, fillPattern, KiB, open, type Target, work } from "./Target.ts"

/** More regions than this are not worth the time. */
const REACHABLE = 600

/** A file in memory whose descriptor the application owns. */
const memoryFile = (length: number) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const path = `/dev/shm/blkio-test-${process.pid}-${Math.random().toString(36).slice(2)}`
      const fd = openSync(path, "wx+")
      unlinkSync(path)
      ftruncateSync(fd, length)
      return fd
    }),
    (fd) => Effect.sync(() => closeSync(fd))
  )

const mapAndUnmap = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const scope = yield* Scope.make()
  const region = yield* disk.allocate(8 * KiB).pipe(Scope.provide(scope))
  const stale = region.bytes.subarray(0, 4 * KiB)
  for (let round = 0; round < 8; round++) {
    fillPattern(stale, work.offset, round)
    const expected = stale.slice()
    yield* disk.queue(0).write(work.offset, stale)
    yield* disk.unmap(region)
    yield* disk.unmap(region)
    assert.equal(disk.reaches(stale), false)
    assert.equal(yield* errnoOf(disk.queue(0).read(work.offset, stale)), "EFAULT")
    yield* disk.map(region)
    yield* disk.queue(0).read(work.offset, stale.fill(0))
    assert.equal(Buffer.compare(stale, expected), 0)
  }
  yield* Scope.close(scope, Exit.void)
  assert.deepEqual([stale.length, region.bytes.length, region.length], [0, 0, 8 * KiB])
  assert.equal(yield* errnoOf(disk.queue(0).read(work.offset, stale)), "EFAULT")
  assert.equal(yield* errnoOf(disk.map(region)), "EINVAL")
  yield* disk.queue(0).flush()
})

const ownFile = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const alignment = yield* disk.properties.get("mem-region-alignment")
  const fd = yield* memoryFile(64 * KiB)
  const whole = yield* MemoryRegion.fromFd({ fd, offset: 0, length: 64 * KiB })
  const part = yield* MemoryRegion.fromFd({ fd, offset: 12 * KiB, length: 8 * KiB })
  yield* disk.map(part)
  whole.bytes.fill(0xaa)
  part.bytes.fill(0x5b)
  yield* disk.queue(0).write(work.offset, part.bytes)
  part.bytes.fill(0)
  yield* disk.queue(0).read(work.offset, part.bytes.subarray(512))
  const expected = new Uint8Array(64 * KiB).fill(0xaa).fill(0, 12 * KiB, 12 * KiB + 512)
    .fill(0x5b, 12 * KiB + 512, 20 * KiB)
  assert.equal(Buffer.compare(whole.bytes, expected), 0)
  // The other view is of the same file, and not mapped for the device.
  assert.equal(yield* errnoOf(disk.queue(0).read(work.offset, whole.bytes)), "EFAULT")
  assert.equal(yield* errnoOf(disk.map(part)), "EINVAL")
  assert.equal(yield* errnoOf(disk.map(whole)), "EEXIST")
  const odd = yield* MemoryRegion.fromFd({ fd, offset: 32 * KiB, length: 4 * KiB + 512 })
  if (alignment > 1) assert.equal(yield* errnoOf(disk.map(odd)), "EINVAL")
  else yield* disk.map(odd)
})

const upToTheLimit = Effect.fnUntraced(function*(target: Target) {
  const disk = yield* open(target)
  const most = yield* disk.properties.get("max-mem-regions")
  const isReachable = most <= REACHABLE
  const scope = yield* Scope.make()
  const count = isReachable ? most : 64
  const regions = yield* Effect.forEach(Array.from({ length: count }), () => disk.allocate(4 * KiB)).pipe(
    Scope.provide(scope)
  )
  const oneMore = Effect.scoped(disk.allocate(4 * KiB))
  if (isReachable) assert.equal(yield* errnoOf(oneMore), "ENOSPC")
  for (const [i, region] of regions.entries()) {
    if (i % 8 !== 0) continue
    yield* disk.queue(0).write(work.offset, region.bytes.fill(i))
    const { bytes } = regions[(i + 1) % count]!
    yield* disk.queue(0).read(work.offset, bytes)
    assert.equal(bytes[4095], i & 0xff)
  }
  // A request may use several.
  yield* disk.queue(0).writev(work.offset, regions.slice(0, 16).map(({ bytes }) => bytes))
  yield* disk.unmap(regions[0]!)
  yield* oneMore
  yield* disk.map(regions[0]!)
  if (isReachable) assert.equal(yield* errnoOf(oneMore), "ENOSPC")
  yield* Scope.close(scope, Exit.void)
  const again = yield* disk.allocate(4 * KiB)
  yield* disk.queue(0).read(work.offset, again.bytes)
})

export const checks: ReadonlyArray<Check> = [
  { name: "memory is mapped and taken back, and unknown to the queues in between", body: mapAndUnmap },
  { name: "memory of the application's own file works, overlaps and misalignment do not", body: ownFile },
  { name: "memory may be had in as many regions as it says", body: upToTheLimit }
]
