/**
 * One queue for each thread: every thread has a ring and a processor of its own, and hashes a share of the disk.
 *
 *     npm run example examples/10_queue_per_thread.ts /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Console, Effect, Layer, Stream } from "effect"
import { type IoQueue, Properties, VhostUser, VirtioBlk, WorkerQueue } from "effect-blkio"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"

const BLOCK_BYTES = 131_072
const BLOCKS_AT_ONCE = 8

/** What a thread is started with: its queue, and its share of the disk in bytes. */
interface Share {
  readonly handle: WorkerQueue.QueueHandle
  readonly from: number
  readonly to: number
}

/** In a thread: reads several blocks at once, and hashes them in their order. */
const hashShare = Effect.fn(function*({ from, handle, to }: Share) {
  const { queue, regions: [region] } = yield* WorkerQueue.open(handle)
  if (region === undefined) return yield* Effect.die("no memory came with the queue")
  const hash = createHash("sha256")
  for (let at = from; at < to; at += region.length) {
    const part = region.bytes.subarray(0, Math.min(region.length, to - at))
    const reads = Array.from({ length: Math.ceil(part.length / BLOCK_BYTES) }, (_, block): IoQueue.Read => ({
      _tag: "read",
      offset: at + block * BLOCK_BYTES,
      buffer: part.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
    }))
    yield* queue.process(Stream.fromIterable(reads)).pipe(
      Stream.runForEach(({ error }) => error === undefined ? Effect.void : Effect.fail(error))
    )
    hash.update(part)
  }
  return hash.digest("hex")
}, Effect.scoped)

/** In the thread of the device: has a thread hash a share, and waits for its answer. A thread that fails ends with an error. */
const inThread = (share: Share) =>
  Effect.tryPromise(async () => {
    const worker = new Worker(new URL(import.meta.url), { workerData: share, transferList: [share.handle.port] })
    const [hash]: Array<string> = await once(worker, "message")
    return hash
  })

const program = Effect.gen(function*() {
  // As many queues as the backend has, which is known once it is connected.
  const properties = yield* Properties
  const numQueues = Math.min(4, yield* properties.get("max-queues"))
  yield* properties.set({ numQueues })
  const disk = yield* (yield* VirtioBlk.Connected).start()

  const length = Math.ceil(disk.capacity / BLOCK_BYTES / numQueues) * BLOCK_BYTES
  const shares = yield* Effect.forEach(
    disk.queues,
    Effect.fnUntraced(function*({ index }) {
      const region = yield* disk.allocate(BLOCKS_AT_ONCE * BLOCK_BYTES)
      const handle = yield* disk.handOver({ queue: index, regions: [region] })
      const from = Math.min(index * length, disk.capacity)
      return { handle, from, to: Math.min(from + length, disk.capacity) }
    })
  )
  const hashes = yield* Effect.forEach(shares, inThread, { concurrency: "unbounded" })
  for (const [index, { from, to }] of shares.entries()) {
    yield* Console.log(`${hashes[index]}  bytes ${from} to ${to}`)
  }
})

if (isMainThread) {
  const path = process.argv[2] === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(process.argv[2])
  const Connected = VirtioBlk.layerConnected({ readOnly: true }).pipe(Layer.provide(VhostUser.layerConfig({ path })))
  program.pipe(Effect.scoped, Effect.provide(Connected), NodeRuntime.runMain)
} else {
  parentPort?.postMessage(await Effect.runPromise(hashShare(workerData)))
}
