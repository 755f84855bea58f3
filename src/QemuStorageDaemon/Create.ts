/**
 * New images, in any format that a storage daemon can make.
 *
 * The file is made first, and only where there is none: an image that is there is never overwritten. If making the image
 * fails, the file goes again.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Redacted from "effect/Redacted"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import { nameOf } from "./BlockNodes.ts"
import type { Source } from "./Image.ts"
import * as ImageFile from "./ImageFile.ts"
import * as Program from "./Program.ts"
import type * as Refusal from "./Refusal.ts"

/**
 * Why an image cannot be made: EEXIST where there is a file, and as opening one.
 *
 * @category errors
 * @since 0.1.0
 */
export type CreateError =
  | Program.LaunchError
  | Refusal.Refusal
  | ImageFile.FileError
  | Errno.EEXIST

const operation = "create"

/** The driver and options of what is to be made, and the file for it. */
interface Plan {
  readonly format: ImageFile.Format
  readonly file: string
  readonly passphrase?: Redacted.Redacted | undefined
}

/** Finds out what is to be made of a path or a description. */
const planOf = (image: Source): Plan | Errno.EINVAL => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation, path: nameOf(image), detail })
  if (typeof image === "string") {
    const format = ImageFile.formatOfName(image) ?? "raw"
    return format === "luks"
      ? refuse(`needs a passphrase: describe it by { _tag: "luks", file, passphrase }`)
      : { format, file: image }
  }
  if (!("file" in image) || typeof image.file !== "string") return refuse("only images that are files are made here")
  const { file } = image
  switch (image._tag) {
    case "raw":
    case "vmdk":
    case "vhdx":
    case "vdi":
      return { format: image._tag, file }
    case "qcow2":
    case "luks":
      return { format: image._tag, file, passphrase: image.passphrase }
    default:
      return refuse(`${image._tag} is no format of images`)
  }
}

/** Makes an image of so many bytes, a multiple of 512. `layout` is QEMU's own of the format, beside the file and the size. */
export const create: (
  image: Source,
  size: number,
  layout: Readonly<Record<string, Schema.Json>>,
  launch: Program.LaunchOptions
) => Effect.Effect<void, CreateError, Program.Requirements> = Effect.fnUntraced(
  function*(image, size, layout, launchOptions) {
    const plan = planOf(image)
    if (plan instanceof Errno.EINVAL) return yield* plan
    const { file, format, passphrase } = plan
    const fs = yield* FileSystem.FileSystem
    const path = (yield* Path.Path).resolve(file)

    const make = Effect.gen(function*() {
      if (format === "raw") return yield* Effect.mapError(fs.truncate(path, size), refused(file))
      const program = yield* Program.launch(launchOptions)
      const { qmp } = program
      const attempt = Program.attempt(program, file)
      if (passphrase !== undefined) {
        yield* attempt(qmp.objectAdd({
          qomType: "secret",
          id: "passphrase",
          format: "base64",
          data: Redacted.make(Buffer.from(Redacted.value(passphrase)).toString("base64"))
        }))
      }
      yield* attempt(qmp.blockdevAdd({ "node-name": "file", "driver": "file", "filename": path }))
      const key = { "key-secret": "passphrase" }
      const secret = passphrase === undefined ? {} : format === "luks" ? key : { encrypt: { format: "luks", ...key } }
      yield* attempt(Stream.runDrain(
        qmp.blockdevCreate({ options: { ...layout, driver: format, file: "file", size, ...secret } })
      ))
    }).pipe(Effect.scoped)

    yield* Effect.acquireUseRelease(
      Effect.mapError(Effect.scoped(fs.open(path, { flag: "wx" })), refused(file)),
      () => make,
      (_, exit) => exit._tag === "Success" ? Effect.void : Effect.ignore(fs.remove(path))
    )
  }
)

const refused = (path: string) => (error: PlatformError.PlatformError): CreateError => {
  const tags = ["EEXIST", "ENOENT", "EACCES", "EISDIR", "ENOTDIR", "ELOOP"] as const
  const what = error.reason._tag === "AlreadyExists" ? "there is a file, which is not overwritten" : error.message
  return Errno.fromNumber(Errno.numberOf(error.reason.cause), tags, { operation, path, detail: what, cause: error })
}
