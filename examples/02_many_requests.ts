/**
 * Reads a whole disk with many requests in flight, and tells a bad block from a lost disk by the error's tag.
 *
 * Requests go in as a Stream and completions come out as one, in whatever order the disk finishes them. A request carries a
 * buffer of its own; the completion gives the same object back, and with it the buffer for the next request.
 *
 *     npm run example examples/02_many_requests.ts /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Console, Effect, Layer, Queue, Stream } from "effect"
import { BlockDevice, type IoQueue, VhostUser, VirtioBlk } from "effect-blkio"

const BLOCK_BYTES = 65536
const DEPTH = 32

const path = process.argv[2] === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(process.argv[2])

// A disk that cannot be written is opened as what it is.
const Disk = VirtioBlk.layer({ queueSize: 64 }).pipe(
  Layer.catchTag("EROFS", () => VirtioBlk.layer({ queueSize: 64, readOnly: true })),
  Layer.provide(VhostUser.layerConfig({ path }))
)

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const memory = yield* disk.allocate(DEPTH * BLOCK_BYTES)

  // As many buffers as requests may be in flight: a request waits for a free one.
  const buffers = yield* Queue.bounded<Uint8Array>(DEPTH)
  for (let i = 0; i < DEPTH; i++) {
    yield* Queue.offer(buffers, memory.bytes.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES))
  }

  const requests = Stream.range(0, Math.ceil(disk.capacity / BLOCK_BYTES) - 1).pipe(
    Stream.mapEffect((block) =>
      Effect.map(Queue.take(buffers), (buffer): IoQueue.Read => {
        const offset = block * BLOCK_BYTES
        return { _tag: "read", offset, buffer: buffer.subarray(0, Math.min(BLOCK_BYTES, disk.capacity - offset)) }
      })
    )
  )

  let bytes = 0
  let unreadable = 0
  yield* disk.queue(0).process(requests).pipe(
    Stream.mapEffect(({ error, request }) => {
      const { length, byteOffset } = request.buffer
      if (error === undefined) bytes += length
      // A block that the disk cannot read is counted; that the disk is gone, or that we asked wrongly, ends the program.
      else if (error._tag === "EIO") unreadable += length
      else return Effect.fail(error)
      return Queue.offer(buffers, memory.bytes.subarray(byteOffset, byteOffset + BLOCK_BYTES))
    }),
    Stream.runDrain
  )
  yield* Console.log(`${bytes} bytes read, ${unreadable} bytes unreadable`)
})

const quit = (message: string) => Effect.andThen(Console.error(message), Effect.sync(() => (process.exitCode = 1)))

program.pipe(
  Effect.scoped,
  Effect.provide(Disk),
  Effect.catchTags({
    ECONNREFUSED: (error) => quit(`nobody serves ${error.path}`),
    ENOTCONN: (error) => quit(`the backend went away: ${error.message}`)
  }),
  NodeRuntime.runMain
)
