/**
 * Backs up a qcow2 image while it is in use: the first time all of it, from then on what was written since the last time.
 *
 * What was written is noted in a bitmap that the image itself keeps. Each backup but the first has the one before as its
 * backing file, so each of them is the whole disk as it was then: `qemu-img convert FOLDER/2.qcow2 disk.raw`. As its own part
 * this program writes 64 KiB to the disk before it backs it up.
 *
 *     npm run example examples/11_incremental_backup.ts IMAGE.qcow2 FOLDER
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Config, Console, Effect, FileSystem, Path, Stream } from "effect"
import { Errno, VhostUser, VirtioBlk } from "effect-blkio"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import type * as Qmp from "effect-blkio/Qmp"

const [, , imagePath, folderPath] = process.argv
const argument = (value: string | undefined, name: string) =>
  value === undefined ? Config.String(name) : Config.succeed(value)

/** The block node of the image, the bitmap in it, and how much a bit of that stands for. */
const node = "disk0"
const bitmap = "backup"
const granularity = 65_536

/** Makes an image for a backup by the daemon itself, and a block node of it. */
const addTarget = Effect.fnUntraced(
  function*(qmp: Qmp.Qmp, filename: string, size: number, backing: string | undefined) {
    yield* Stream.runDrain(qmp.blockdevCreate({ options: { driver: "file", filename, size: 0 } }))
    yield* qmp.blockdevAdd({ "node-name": "target-file", driver: "file", filename })
    // By its name alone, so that the folder can be moved.
    const chain = backing === undefined ? {} : { "backing-file": backing, "backing-fmt": "qcow2" }
    yield* Stream.runDrain(qmp.blockdevCreate({ options: { driver: "qcow2", file: "target-file", size, ...chain } }))
    // What is below it is not needed to write to it.
    yield* qmp.blockdevAdd({ "node-name": "target", driver: "qcow2", file: "target-file", backing: null })
  }
)

/** Starts the bitmap and copies the disk, both at the same moment: no write is missed, none is in both. */
const full = (qmp: Qmp.Qmp) =>
  qmp.job(
    "full",
    qmp.transaction({
      actions: [
        { type: "block-dirty-bitmap-add", data: { node, name: bitmap, granularity, persistent: true } },
        {
          type: "blockdev-backup",
          data: { jobId: "full", autoDismiss: false, device: node, target: "target", sync: "full" }
        }
      ]
    })
  ).pipe(
    // Without the backup, nothing can build on the bitmap.
    Stream.onError(() => Effect.ignore(qmp.blockDirtyBitmapRemove({ node, name: bitmap })))
  )

/** Copies what the bitmap says. It is emptied only if all was copied. */
const incremental = (qmp: Qmp.Qmp) =>
  qmp.blockdevBackup({ device: node, target: "target", sync: "incremental", bitmap })

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const image = path.resolve(yield* argument(imagePath, "IMAGE"))
  const folder = path.resolve(yield* argument(folderPath, "FOLDER"))
  yield* fs.makeDirectory(folder, { recursive: true })
  const names = yield* fs.readDirectory(folder)
  const count = names.filter((name) => /^\d+\.qcow2$/u.test(name)).length
  const backup = `${count}.qcow2`
  // Only what is finished gets a name of the chain.
  const part = path.join(folder, "unfinished")

  const { qmp, socketPath } = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "qcow2", file: image } }] })
  const nodes = yield* qmp.queryNamedBlockNodes({ flat: true })
  const bitmaps = nodes.find(({ nodeName }) => nodeName === node)?.dirtyBitmaps ?? []
  const found = bitmaps.find(({ name }) => name === bitmap)
  // A bitmap is inconsistent after a crash.
  if ((found !== undefined) !== (count > 0) || found?.inconsistent === true || names.includes("unfinished")) {
    return yield* new Errno.EINVAL({
      operation: "back up",
      path: image,
      detail: `it does not know what was written since ${folder}: begin a new one, and remove the bitmap`
    })
  }

  const disk = yield* Effect.flatMap(VhostUser.make({ path: socketPath }), (transport) => VirtioBlk.make(transport))
  yield* disk.writeBytes(count * granularity, new Uint8Array(granularity).fill(count + 1))
  yield* disk.flush

  yield* addTarget(qmp, part, disk.capacity, count === 0 ? undefined : `${count - 1}.qcow2`)
  const progress = count === 0 ? full(qmp) : incremental(qmp)
  yield* progress.pipe(
    Stream.runForEach(({ currentProgress, status, totalProgress, type }) =>
      Console.log(`${type} ${status}: ${currentProgress} of ${totalProgress} bytes`)
    ),
    Effect.onError(() => Effect.ignore(fs.remove(part)))
  )
  yield* qmp.blockdevDel({ nodeName: "target" })
  yield* qmp.blockdevDel({ nodeName: "target-file" })
  yield* fs.rename(part, path.join(folder, backup))
  yield* Console.log(`${backup} is the disk as it was`)
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
