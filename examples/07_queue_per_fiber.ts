/**
 * One queue for each fiber: every fiber has a ring of its own, and a share of the disk, so that none waits for another.
 *
 *     npm run example examples/07_queue_per_fiber.ts /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Console, Effect, Layer } from "effect"
import { Properties, VhostUser, VirtioBlk } from "effect-blkio"

const BLOCK_BYTES = 65536

const path = process.argv[2] === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(process.argv[2])
const Connected = VirtioBlk.layerConnected({ readOnly: true }).pipe(Layer.provide(VhostUser.layerConfig({ path })))

const program = Effect.gen(function*() {
  // As many queues as the backend has, which is known once it is connected.
  const properties = yield* Properties
  const numQueues = Math.min(4, yield* properties.get("max-queues"))
  yield* properties.set({ numQueues })
  const disk = yield* (yield* VirtioBlk.Connected).start()

  const share = Math.ceil(disk.capacity / BLOCK_BYTES / numQueues) * BLOCK_BYTES
  const sums = yield* Effect.forEach(
    disk.queues,
    Effect.fnUntraced(function*(queue, index) {
      const { bytes } = yield* disk.allocate(BLOCK_BYTES)
      const end = Math.min((index + 1) * share, disk.capacity)
      let sum = 0
      for (let offset = index * share; offset < end; offset += BLOCK_BYTES) {
        const block = bytes.subarray(0, Math.min(BLOCK_BYTES, end - offset))
        yield* queue.read(offset, block)
        for (const byte of block) sum += byte
      }
      return sum
    }),
    { concurrency: "unbounded" }
  )
  for (const [index, sum] of sums.entries()) {
    yield* Console.log(`queue ${index}: the bytes of its share add up to ${sum}`)
  }
})

program.pipe(Effect.scoped, Effect.provide(Connected), NodeRuntime.runMain)
