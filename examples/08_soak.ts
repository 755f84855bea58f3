/**
 * Soaks a storage daemon: random reads and writes for some seconds, every read checked against what was written, every fault
 * counted by its tag. Overwrites the disk.
 *
 *     npm run example examples/08_soak.ts /run/disk.sock 10
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Clock, Config, Console, Effect, Layer, Random } from "effect"
import { BlockDevice, type IoQueue, VhostUser, VirtioBlk } from "effect-blkio"

const BLOCK_BYTES = 4096
const FIBERS = 16

const [, , socket, seconds = "5"] = process.argv
const path = socket === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(socket)

const Disk = VirtioBlk.layer({ deviceTimeout: "5 seconds" }).pipe(Layer.provide(VhostUser.layerConfig({ path })))

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const queue = disk.queue(0)
  const until = (yield* Clock.currentTimeMillis) + Number(seconds) * 1000
  const counts = new Map<string, number>()
  const count = (what: string) => Effect.sync(() => counts.set(what, (counts.get(what) ?? 0) + 1))

  // Each fiber has blocks of its own, and knows what it wrote last to each.
  const soak = Effect.fnUntraced(function*(fiber: number) {
    const { bytes } = yield* disk.allocate(BLOCK_BYTES)
    const blocks = Math.floor(disk.capacity / BLOCK_BYTES / FIBERS)
    const written = new Map<number, number>()
    const step = Effect.gen(function*() {
      const block = fiber * blocks + (yield* Random.nextIntBetween(0, blocks - 1))
      const expected = written.get(block)
      if (expected === undefined || (yield* Random.nextBoolean)) {
        const value = yield* Random.nextIntBetween(0, 255)
        written.delete(block)
        yield* queue.write(block * BLOCK_BYTES, bytes.fill(value))
        written.set(block, value)
        yield* count("written")
      } else {
        yield* queue.read(block * BLOCK_BYTES, bytes)
        yield* count(bytes.every((byte) => byte === expected) ? "read and right" : "READ AND WRONG")
      }
    })
    const isDue = Effect.map(Clock.currentTimeMillis, (now) => now < until)
    const survive = (error: IoQueue.RequestFailure) => error._tag === "EIO" ? count(error._tag) : Effect.fail(error)
    while (yield* isDue) yield* Effect.catch(step, survive)
  })
  yield* Effect.forEach(Array.from({ length: FIBERS }, (_, i) => i), soak, { concurrency: "unbounded" }).pipe(
    Effect.catch((error) => count(`ended by ${error._tag}`))
  )
  for (const [what, times] of counts) yield* Console.log(`${what}: ${times}`)
})

program.pipe(Effect.scoped, Effect.provide(Disk), NodeRuntime.runMain)
