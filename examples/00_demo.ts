/**
 * The main job from nothing: makes a disk image, has qemu-storage-daemon serve it, writes and reads it from here.
 *
 *     npm run demo
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Layer, Path, Stream } from "effect"
import { BlockDevice, type IoQueue, VhostUser, VirtioBlk } from "effect-blkio"
import { DiskImage, QemuStorageDaemon } from "effect-blkio/testing"

const IMAGE_BYTES = 64 * 2 ** 20
const BLOCK_BYTES = 4096
const BLOCKS = IMAGE_BYTES / BLOCK_BYTES

/** A file of our own, served by a daemon of our own, as a block device; all of it is gone with the program. */
const Disk = Layer.unwrap(Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const image = path.join(yield* fs.makeTempDirectoryScoped({ prefix: "blkio-demo-" }), "disk.raw")
  yield* DiskImage.createRaw(image, IMAGE_BYTES)
  const daemon = yield* QemuStorageDaemon.make({ exports: [{ image: { _tag: "raw", path: image }, numQueues: 2 }] })
  yield* Console.log(
    `qemu-storage-daemon ${daemon.version} serves ${IMAGE_BYTES / 2 ** 20} MiB on ${daemon.socketPath}`
  )
  return VirtioBlk.layer({ numQueues: 2 }).pipe(Layer.provide(VhostUser.layer({ path: daemon.socketPath })))
}))

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const { maxQueues, queueSize, requestAlignment } = yield* disk.properties.getAll
  yield* Console.log(
    `connected: ${disk.capacity} bytes in blocks of ${requestAlignment}, ${maxQueues} queues, ${queueSize} descriptors each`
  )

  const { bytes } = yield* disk.allocate(2 * BLOCK_BYTES)
  const written = bytes.subarray(0, BLOCK_BYTES).fill(0xa5)
  const read = bytes.subarray(BLOCK_BYTES)
  const queue = disk.queue(0)
  yield* queue.write(BLOCK_BYTES, written)
  yield* queue.flush()
  yield* queue.read(BLOCK_BYTES, read)
  yield* Console.log(`wrote a block, read it back: ${Buffer.compare(written, read) === 0 ? "the same" : "DIFFERENT"}`)

  const mistake = yield* Effect.flip(queue.read(1, read))
  yield* Console.log(`a mistake is a typed error: ${mistake._tag}: ${mistake.message}`)

  const requests = Stream.range(0, BLOCKS - 1).pipe(
    Stream.map((block): IoQueue.Read => ({ _tag: "read", offset: block * BLOCK_BYTES, buffer: read }))
  )
  const began = performance.now()
  const completed = yield* disk.queue(1).process(requests).pipe(Stream.runCount)
  const seconds = (performance.now() - began) / 1000
  yield* Console.log(`read ${completed} blocks as a stream in ${seconds.toFixed(2)} s`)
})

program.pipe(
  Effect.scoped,
  Effect.provide(Layer.provide(Disk, NodeServices.layer)),
  NodeRuntime.runMain
)
