/** The disk in an image, for reading: a raw file is read as it is, any other by way of qemu-storage-daemon. */
import { Effect, FileSystem, type Scope } from "effect"
import { BlockStore, Errno, VhostUser, VirtioBlk } from "effect-blkio"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"

const BLOCK_BYTES = 512

/** Opens an image until the Scope closes. What is not called `.qcow2` is raw. */
export const open = (
  path: string
): Effect.Effect<BlockStore.BlockStore, Errno.Any, QemuStorageDaemon.Requirements | Scope.Scope> =>
  path.endsWith(".qcow2") ? openQcow2(path) : openRaw(path)

const openRaw = Effect.fnUntraced(function*(path: string) {
  const store = yield* BlockStore.file({ path, readOnly: true })
  const { size } = yield* (yield* FileSystem.FileSystem).stat(path).pipe(
    Effect.mapError((cause) => new Errno.EIO({ operation: "open", path, detail: cause.message, cause }))
  )
  // A store is whole blocks: what a file has beyond them would be left out without a word.
  if (Number(size) % BLOCK_BYTES === 0) return store
  const detail = `${size} bytes: the size of a disk image is a multiple of ${BLOCK_BYTES}`
  return yield* new Errno.EINVAL({ operation: "open", path, detail })
})

const openQcow2 = Effect.fnUntraced(function*(path: string) {
  const daemon = yield* QemuStorageDaemon.make({ exports: [{ image: { _tag: "qcow2", path }, writable: false }] })
  const transport = yield* VhostUser.make({ path: daemon.socketPath })
  return yield* VirtioBlk.make(transport, { readOnly: true })
})
