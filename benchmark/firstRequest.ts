/**
 * The program whose start `startup.ts` measures: connects to the disk at a socket, reads its first block, and says so.
 *
 *     node --conditions=@effect-blkio/source benchmark/firstRequest.ts SOCKET
 */
import { Effect, Layer } from "effect"
import { BlockDevice, VhostUser, VirtioBlk } from "effect-blkio"

const [, , path = ""] = process.argv

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const { bytes } = yield* disk.allocate(4096)
  yield* disk.queue(0).read(0, bytes)
  process.stdout.write("read\n")
})

const Disk = VirtioBlk.layer().pipe(Layer.provide(VhostUser.layer({ path })))

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Disk)))
