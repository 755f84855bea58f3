/**
 * The disk in an image, for reading: `nbd:URI` and `rbd:POOL/IMAGE`, which are the same on every machine, or the path of a file. A
 * raw file is read as it is, anything else by way of qemu-storage-daemon.
 */
import { Effect, FileSystem, Path, type Scope } from "effect"
import { BlockStore, Errno } from "effect-blkio"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"

const BLOCK_BYTES = 512

const parse = (image: string): QemuStorageDaemon.Source => {
  const { kind, rest = "" } = /^(?<kind>nbd|rbd):(?<rest>.*)$/su.exec(image)?.groups ?? {}
  const [pool = "", name = ""] = rest.split("/")
  switch (kind) {
    case "nbd":
      return { _tag: "nbd", uri: rest }
    case "rbd":
      return { _tag: "rbd", pool, image: name }
    default:
      return image
  }
}

/** Names an image so that it does not depend on the working directory. */
export const absolute = (image: string): Effect.Effect<string, never, Path.Path> =>
  typeof parse(image) === "string" ? Path.Path.useSync((path) => path.resolve(image)) : Effect.succeed(image)

/** Opens an image until the Scope closes. A file whose name does not tell another format is raw. */
export const open = (
  image: string
): Effect.Effect<
  BlockStore.BlockStore,
  Errno.Any,
  QemuStorageDaemon.Requirements | FileSystem.FileSystem | Scope.Scope
> => {
  const source = parse(image)
  return typeof source === "string" && !/\.(?:qcow2|vmdk|vhdx|vdi)$/u.test(source)
    ? openRaw(source)
    : QemuStorageDaemon.make(source, { readOnly: true })
}

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
