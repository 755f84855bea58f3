/**
 * A DEVICE that a storage daemon of the command's own serves: `image:PATH`, `nbd:URI` or `rbd:POOL/IMAGE[@CONF]`, with options
 * behind it as behind a driver (`image:disk.img,format=qcow2,num-queues=4`).
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Redacted from "effect/Redacted"
import * as Errno from "../Errno.ts"
import * as QemuStorageDaemon from "../QemuStorageDaemon/QemuStorageDaemon.ts"
import type { Recipe } from "../Transport/Transport.ts"

/** What is given of an image beside the properties of a device. */
export type ImageOptions = ReadonlyMap<string, string>

/** What making a transport may fail with. */
export type ImageError = Errno.EINVAL | Errno.ENOENT | Errno.EACCES | Errno.EIO

/** A queue costs the daemon nothing until it is used, and this is more than any command needs unasked. */
const QUEUES = 16

type Describe = (
  rest: string,
  options: ImageOptions
) => Effect.Effect<QemuStorageDaemon.Source, ImageError, FileSystem.FileSystem>

interface Scheme {
  /** The options that belong to the image. */
  readonly options: ReadonlyArray<string>
  readonly describe: Describe
}

const refuse = (detail: string) => new Errno.EINVAL({ operation: "device", detail })

const schemes: ReadonlyMap<string, Scheme> = new Map<string, Scheme>([
  ["image", {
    options: ["format", "passphrase-file"],
    describe: Effect.fnUntraced(function*(file, options) {
      if (file === "") return yield* refuse("image: needs a path")
      const format = options.get("format")
      const passphraseFile = options.get("passphrase-file")
      const passphrase = passphraseFile === undefined ? undefined : yield* readSecret(passphraseFile)
      switch (format) {
        case undefined:
          if (passphrase === undefined) return file
          return yield* refuse("passphrase-file needs format=luks or format=qcow2")
        case "luks":
          return passphrase === undefined
            ? yield* refuse("format=luks needs passphrase-file=PATH")
            : { _tag: format, file, passphrase }
        case "qcow2":
          return { _tag: format, file, ...(passphrase === undefined ? {} : { passphrase }) }
        case "raw":
        case "vmdk":
        case "vhdx":
        case "vdi":
          if (passphrase === undefined) return { _tag: format, file }
          return yield* refuse(`passphrase-file is of no use with format=${format}`)
        default:
          return yield* refuse(`format=${format}: must be raw, qcow2, vmdk, vhdx, vdi or luks`)
      }
    })
  }],
  ["nbd", {
    options: ["reconnect-delay"],
    describe: (uri, options) => {
      const delay = options.get("reconnect-delay")
      if (delay !== undefined && !/^\d{1,6}$/u.test(delay)) {
        return refuse(`reconnect-delay=${delay}: must be a number of seconds`)
      }
      return Effect.succeed({ _tag: "nbd", uri, ...(delay === undefined ? {} : { reconnectDelay: Number(delay) }) })
    }
  }],
  ["rbd", {
    options: ["namespace", "snapshot", "user"],
    describe: (rest, options) => {
      const named = /^(?<pool>[^/@]+)\/(?<image>[^/@]+)(?:@(?<conf>.+))?$/su.exec(rest)?.groups
      if (named === undefined) return refuse(`rbd:${rest}: must be rbd:POOL/IMAGE[@CONF]`)
      const { conf, image = "", pool = "" } = named
      return Effect.succeed({
        _tag: "rbd",
        pool,
        image,
        ...(conf === undefined ? {} : { conf }),
        ...Object.fromEntries(options)
      })
    }
  }]
])

/** A secret is a file's content, without the newline that an editor puts at its end. */
const readSecret = (path: string) =>
  FileSystem.FileSystem.use((fs) => fs.readFileString(path)).pipe(
    Effect.map((text) => Redacted.make(text.replace(/\r?\n$/u, ""))),
    Effect.mapError((error) => {
      const fields = { operation: "passphrase-file", path, detail: error.message, cause: error }
      switch (error.reason._tag) {
        case "NotFound":
          return new Errno.ENOENT(fields)
        case "PermissionDenied":
          return new Errno.EACCES(fields)
        default:
          return new Errno.EIO(fields)
      }
    })
  )

/** A transport, which may say that its disk can only be read. */
export type DeviceRecipe = Recipe & Partial<Pick<QemuStorageDaemon.ImageTransport, "readOnly">>

/** A DEVICE, taken apart: what its first word stands for. */
export interface DeviceArgument {
  /** The options that belong to the transport; all others are properties of the device. */
  readonly options: ReadonlyArray<string>
  /** Makes the transport. Nothing is opened. */
  readonly transport: (
    options: ImageOptions,
    settings: ReadonlyMap<string, string>
  ) => Effect.Effect<
    DeviceRecipe,
    ImageError,
    QemuStorageDaemon.Requirements
  >
  /** Makes an image of so many bytes; of what is a file. */
  readonly create?: (
    options: ImageOptions,
    size: number
  ) => Effect.Effect<void, ImageError | QemuStorageDaemon.CreateError, QemuStorageDaemon.Requirements>
}

const creating = ({ describe }: Scheme, rest: string): NonNullable<DeviceArgument["create"]> => (options, size) =>
  Effect.flatMap(describe(rest, options), (image) => QemuStorageDaemon.create(image, { size }))

/** Reads what stands before the first comma; none of ours is undefined. */
export const read = (text: string): DeviceArgument | undefined => {
  // Of an NBD URI the scheme may stand once.
  const { name = "", rest = "" } = /^(?<name>image|rbd|nbd):(?!\/\/)(?<rest>.*)$/su.exec(text)?.groups
    ?? /^(?<rest>(?<name>nbd)(?:\+unix)?:\/\/.*)$/su.exec(text)?.groups ?? {}
  const scheme = schemes.get(name)
  if (scheme === undefined) return undefined
  return {
    options: scheme.options,
    ...(name === "image" ? { create: creating(scheme, rest) } : {}),
    transport: (options, settings) =>
      Effect.flatMap(scheme.describe(rest, options), (image) =>
        QemuStorageDaemon.transport(image, {
          queues: QUEUES,
          ...(settings.get("read-only") === "true" ? { readOnly: true } : {})
        }))
  }
}
