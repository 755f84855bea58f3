/**
 * Reads the partition table of a disk, and lists the root directory of a partition with an ext or FAT file system on it,
 * without root and without mounting. The file systems are balena-image-fs's work; this gives it the disk.
 *
 *     npm run example examples/06_list_directory.ts /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { interact } from "balena-image-fs"
import { Config, Console, Context, Effect, Layer } from "effect"
import { BlockDevice, VhostUser, VirtioBlk } from "effect-blkio"
import { Disk, type ReadResult, type WriteResult } from "file-disk"
import { promisify } from "node:util"
import { getPartitions } from "partitioninfo"

const path = process.argv[2] === undefined ? Config.String("BLKIO_SOCKET") : Config.succeed(process.argv[2])

const Source = VirtioBlk.layer({ readOnly: true }).pipe(Layer.provide(VhostUser.layerConfig({ path })))

/** A block device in the shape that file-disk asks for: any offset, any length, by promises. */
class BlockDisk extends Disk {
  readonly #device: BlockDevice["Service"]
  readonly #run: <A, E>(effect: Effect.Effect<A, E>) => Promise<A>
  constructor(device: BlockDevice["Service"], context: Context.Context<never>) {
    super(true)
    this.#device = device
    this.#run = Effect.runPromiseWith(context)
  }
  override async _getCapacity(): Promise<number> {
    return this.#device.capacity
  }
  override async _read(buffer: Buffer, bufferOffset: number, length: number, offset: number): Promise<ReadResult> {
    const bytesRead = Math.min(length, this.#device.capacity - offset)
    buffer.set(await this.#run(this.#device.readBytes(offset, bytesRead)), bufferOffset)
    return { bytesRead, buffer }
  }
  override async _write(): Promise<WriteResult> {
    throw new Error("the disk is read-only")
  }
  override async _flush(): Promise<void> {}
}

const program = Effect.gen(function*() {
  const disk = new BlockDisk(yield* BlockDevice, yield* Effect.context())
  const { partitions } = yield* Effect.promise(() => getPartitions(disk))
  for (const { index, offset, size } of partitions) {
    yield* Console.log(`partition ${index}: ${size} bytes from ${offset}`)
    const names = yield* Effect.promise(() => interact(disk, index, (fs) => promisify(fs.readdir)("/")))
    for (const name of names.toSorted()) yield* Console.log(`  ${name}`)
  }
})

program.pipe(Effect.provide(Source), NodeRuntime.runMain)
