/**
 * The main job from nothing: makes a disk image, serves it from a thread of this process, connects to it, copies a file onto
 * it, verifies the copy by its hash, and measures random reads. No root, no daemon.
 *
 *     npm run demo
 *     npm run demo -- FILE
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Layer, Path, Stream } from "effect"
import { BlockDevice, Embedded, type IoQueue } from "effect-blkio"
import { describe } from "effect-blkio/Properties"
import { createHash } from "node:crypto"

const MiB = 2 ** 20
const BLOCK_BYTES = 4096
const DEPTH = 32
const SECONDS = 2
const BAR_CHARACTERS = 40
const BUCKETS = 32

/** What is copied: any file will do, and this one is everywhere. */
const source = process.argv[2] ?? process.execPath

/** An image as large as the file, served by a thread of this process; both are gone with the program. */
const Disk = Layer.unwrap(Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const { join } = yield* Path.Path
  const { size } = yield* fs.stat(source)
  const path = join(yield* fs.makeTempDirectoryScoped({ prefix: "blkio-demo-" }), "disk.img")
  const capacity = (Math.floor(Number(size) / MiB) + 1) * MiB
  yield* Console.log(`serving ${path}, ${capacity / MiB} MiB`)
  return Embedded.layerFile({ path, create: true, size: capacity, numQueues: 2 })
}))

/** A line that is written over and over again where it can be, and once where it cannot. */
const progress = (part: number, text: string) =>
  Effect.sync(() => {
    if (!process.stdout.isTTY && part < 1) return
    const filled = "█".repeat(Math.round(part * BAR_CHARACTERS)).padEnd(BAR_CHARACTERS, "░")
    process.stdout.write(
      `${process.stdout.isTTY ? "\r" : ""}${text} ${filled} ${Math.floor(part * 100)}%${part < 1 ? "" : "\n"}`
    )
  })

const hashOf = <E, R>(bytes: Stream.Stream<Uint8Array, E, R>) =>
  Stream.runFold(bytes, () => createHash("sha256"), (hash, chunk) => hash.update(chunk)).pipe(
    Effect.map((hash) => hash.digest("hex"))
  )

const copy = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const disk = yield* BlockDevice
  const size = Number((yield* fs.stat(source)).size)
  let copied = 0
  const began = performance.now()
  yield* fs.stream(source, { chunkSize: MiB }).pipe(
    Stream.tap((chunk) => progress((copied += chunk.length) / size, "copying  ")),
    Stream.run(disk.sink(0))
  )
  yield* disk.flush
  const seconds = (performance.now() - began) / 1000
  yield* Console.log(`copied   ${source}: ${(size / MiB).toFixed(0)} MiB in ${seconds.toFixed(1)} s`)
  const [there, here] = yield* Effect.all([
    hashOf(disk.stream({ offset: 0, length: size })),
    hashOf(fs.stream(source, { chunkSize: MiB }))
  ])
  yield* Console.log(
    `verified sha256 ${there.slice(0, 16)}… ${there === here ? "is the file's" : "DIFFERS from the file's"}`
  )
})

/** A read that is used again and again. */
class RandomRead implements IoQueue.Read {
  readonly _tag = "read"
  readonly buffer: Uint8Array
  offset = 0
  submittedAt = 0
  constructor(buffer: Uint8Array) {
    this.buffer = buffer
  }
}

/** Reads blocks here and there for some seconds, always as many in flight as there are buffers. */
const bench = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const blocks = Math.floor(disk.capacity / BLOCK_BYTES)
  const { bytes } = yield* disk.allocate(DEPTH * BLOCK_BYTES)
  /** How many requests took up to 1, 2, 4, … µs. */
  const counts = Array.from({ length: BUCKETS }, () => 0)
  const until = performance.now() + SECONDS * 1000
  const reader = (slot: number) => {
    const read = new RandomRead(bytes.subarray(slot * BLOCK_BYTES, (slot + 1) * BLOCK_BYTES))
    return Effect.whileLoop({
      while: () => performance.now() < until,
      body: () => {
        read.offset = Math.floor(Math.random() * blocks) * BLOCK_BYTES
        read.submittedAt = performance.now()
        return disk.queue(slot % 2).read(read.offset, read.buffer)
      },
      step: () => {
        const power = Math.ceil(Math.log2((performance.now() - read.submittedAt) * 1000))
        const bucket = Math.min(Math.max(power, 0), BUCKETS - 1)
        counts[bucket] = (counts[bucket] ?? 0) + 1
      }
    })
  }
  yield* Effect.forEach(Array.from({ length: DEPTH }, (_, slot) => slot), reader, {
    concurrency: "unbounded",
    discard: true
  })
  const total = counts.reduce((sum, count) => sum + count, 0)
  yield* Console.log(`measured ${(total / SECONDS / 1000).toFixed(0)} k random reads a second, ${DEPTH} in flight`)
  for (const [bucket, count] of counts.entries()) {
    if (count === 0) continue
    const bar = "█".repeat(Math.ceil(count / Math.max(...counts) * BAR_CHARACTERS))
    yield* Console.log(`  up to ${String(2 ** bucket).padStart(6)} µs ${String(count).padStart(8)} ${bar}`)
  }
})

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  yield* Console.log("connected; its properties:")
  for (const { name } of describe) yield* Console.log(`  ${name.padEnd(25)} ${yield* disk.properties.getString(name)}`)
  yield* copy
  const mistake = yield* Effect.flip(disk.queue(0).read(1, new Uint8Array(512)))
  yield* Console.log(`refused  ${mistake._tag}: ${mistake.message}`)
  yield* bench
})

program.pipe(
  Effect.scoped,
  Effect.provide(Disk.pipe(Layer.provideMerge(NodeServices.layer))),
  NodeRuntime.runMain
)
