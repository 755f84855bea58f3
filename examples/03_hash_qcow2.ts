/**
 * Hashes a qcow2 image without mounting or converting it: qemu-storage-daemon decodes the format, and the disk comes here
 * over vhost-user. The hash is that of the image's raw form.
 *
 *     npm run example examples/03_hash_qcow2.ts IMAGE.qcow2
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Config, Console, Effect, Layer, Stream } from "effect"
import { BlockDevice } from "effect-blkio"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { createHash } from "node:crypto"

const path = process.argv[2] === undefined ? Config.String("IMAGE") : Config.succeed(process.argv[2])

const Disk = Layer.unwrap(Effect.map(path, (image) => QemuStorageDaemon.layer(image, { readOnly: true })))

const program = Effect.gen(function*() {
  const disk = yield* BlockDevice
  const hash = yield* disk.stream({}, { chunkSize: 2 ** 20, depth: 8 }).pipe(
    Stream.runFold(() => createHash("sha256"), (state, chunk) => state.update(chunk))
  )
  yield* Console.log(`${hash.digest("hex")}  ${disk.capacity} bytes`)
})

program.pipe(Effect.provide(Layer.provide(Disk, NodeServices.layer)), NodeRuntime.runMain)
