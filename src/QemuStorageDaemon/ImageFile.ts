/**
 * In which format an image file is, told without trusting what is in it.
 *
 * Whoever can write to a raw disk can make it begin as a qcow2 image does, one that names any file of the host as its backing
 * file. So what a file begins with decides nothing: its name does, and the header must agree. A name that stands for no format
 * is raw, unless it begins as another format does: then nobody can know, and it is refused until somebody says.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type * as PlatformError from "effect/PlatformError"
import * as Errno from "../Errno.ts"

/** What a file's name can say, and its header show. */
export type Format = "raw" | "qcow2" | "vmdk" | "vhdx" | "vdi" | "luks"

/** What looking at a file may fail with. */
export type FileError =
  | Errno.EINVAL
  | Errno.ENOENT
  | Errno.EACCES
  | Errno.EISDIR
  | Errno.ENOTDIR
  | Errno.ELOOP
  | Errno.EIO

const formatsByEnding: ReadonlyMap<string, Format> = new Map<string, Format>([
  ["raw", "raw"],
  ["iso", "raw"],
  ["dd", "raw"],
  ["qcow2", "qcow2"],
  ["vmdk", "vmdk"],
  ["vhdx", "vhdx"],
  ["vdi", "vdi"],
  ["luks", "luks"]
])

/** Tells the format that a file's name stands for, if it stands for one. */
export const formatOfName = (path: string): Format | undefined =>
  formatsByEnding.get(/\.(?<ending>[^./]+)$/u.exec(path)?.groups?.["ending"]?.toLowerCase() ?? "")

/** What the headers of disk images hold, and where (QEMU: the `probe` functions in block). */
const signatures: ReadonlyArray<
  readonly [format: Format | "qcow" | "qed" | "parallels" | "vpc", offset: number, text: string]
> = [
  ["qcow2", 0, "QFI\xfb\0\0\0\x02"],
  ["qcow2", 0, "QFI\xfb\0\0\0\x03"],
  ["qcow", 0, "QFI\xfb"],
  ["vmdk", 0, "KDMV"],
  ["vmdk", 0, "COWD"],
  ["vmdk", 0, "# Disk DescriptorFile"],
  ["vhdx", 0, "vhdxfile"],
  ["vdi", 64, "\x7f\x10\xda\xbe"],
  ["luks", 0, "LUKS\xba\xbe"],
  ["qed", 0, "QED\0"],
  ["parallels", 0, "WithoutFreeSpace"],
  ["parallels", 0, "WithouFreSpacExt"],
  ["vpc", 0, "conectix"]
]

const HEADER_BYTES = 512

/** A file that can be opened as a part of an image. */
export interface ImageFile {
  readonly isDevice: boolean
}

/** Tells whether a file is a device, which QEMU must know; refuses what is neither. */
export const look: (path: string) => Effect.Effect<ImageFile, FileError, FileSystem.FileSystem> = Effect.fnUntraced(
  function*(path) {
    const fs = yield* FileSystem.FileSystem
    const { type } = yield* Effect.mapError(fs.stat(path), refused(path))
    if (type === "Directory") return yield* new Errno.EISDIR({ operation: "open", path, detail: "must be a file" })
    if (type !== "File" && type !== "BlockDevice") {
      return yield* new Errno.EINVAL({ operation: "open", path, detail: `a ${type}: must be a file or a block device` })
    }
    return { isDevice: type === "BlockDevice" }
  }
)

/** Tells the format of an image by its name, and checks that its header agrees. A block device is raw. */
export const formatOf: (path: string) => Effect.Effect<Format, FileError, FileSystem.FileSystem> = Effect.fnUntraced(
  function*(path) {
    const { isDevice } = yield* look(path)
    if (isDevice) return "raw"
    const named = formatOfName(path)
    if (named === "raw") return named
    const found = yield* signatureOf(path)
    if (named === undefined && found === undefined) return "raw"
    if (named !== undefined && named === found) return named
    const describe = `describe it by { _tag, file } instead of its path`
    return yield* new Errno.EINVAL({
      operation: "open",
      path,
      detail: named === undefined
        ? `it begins as a ${found} image, and its name does not say that it is one: ${describe}`
        : `its name says that it is a ${named} image, and it begins as ${
          found === undefined ? "none" : `a ${found} image`
        }: ${describe}`
    })
  }
)

const signatureOf = (path: string) =>
  Effect.map(
    readHeader(path),
    (header) =>
      signatures.find(([, offset, text]) => header.toString("latin1", offset, offset + text.length) === text)?.[0]
  )

/** The first bytes, zeroes beyond the end. */
const readHeader = Effect.fnUntraced(function*(path: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* fs.open(path).pipe(
    Effect.flatMap((file) => file.readAlloc(HEADER_BYTES)),
    Effect.mapError(refused(path)),
    Effect.map((read) => Buffer.concat([Option.getOrElse(read, () => new Uint8Array()), Buffer.alloc(HEADER_BYTES)]))
  )
}, Effect.scoped)

const refused = (path: string) => (error: PlatformError.PlatformError): FileError => {
  const fields = { operation: "open", path, detail: whatIs(error), cause: error }
  return Errno.fromNumber(
    Errno.numberOf(error.reason.cause),
    ["ENOENT", "EACCES", "EISDIR", "ENOTDIR", "ELOOP"],
    fields
  )
}

const whatIs = (error: PlatformError.PlatformError): string => {
  switch (error.reason._tag) {
    case "NotFound":
      return "there is no such file"
    case "PermissionDenied":
      return "it may not be read"
    default:
      return error.message
  }
}
