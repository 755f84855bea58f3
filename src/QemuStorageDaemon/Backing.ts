/**
 * What lies behind an image that has not all of its content itself (a backing file), made a part of the graph, so that the
 * daemon never guesses.
 *
 * An image names the file behind it, and may say in which format that is. Where it does not, QEMU would tell by what the file
 * begins with, which whoever writes to it decides; so it is refused here. And it may name anything: only files are followed.
 *
 * An image may also name where its own content is, any file of the host: a qcow2 image the file of its data, a VMDK descriptor
 * its extents. The first is refused, and of the second all that is not in the image's folder.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"
import { dirname } from "node:path"
import * as Errno from "../Errno.ts"
import type { Node } from "./BlockNodes.ts"
import * as ImageFile from "./ImageFile.ts"
import type * as Refusal from "./Refusal.ts"

/** What resolving may fail with. */
export type BackingError = Refusal.Refusal | ImageFile.FileError

/** Runs a command of the daemon's monitor. */
export type Execute = (command: string, args: Schema.JsonObject) => Effect.Effect<unknown, Refusal.Refusal>

/** The formats that can name a file behind them. */
const backedFormats: ReadonlySet<unknown> = new Set(["qcow2", "vmdk"])

/** The formats that such a file may have. */
const formats: ReadonlySet<string> = new Set(["raw", "qcow2", "vmdk", "vhdx", "vdi"])

/** A longer chain is a mistake, or a ring by other names. */
const longestChain = 256

const probe = "probe"
const probeFile = "probe-file"

/** How the daemon refuses a file for the data of an image that has them itself (QEMU: block/qcow2.c, qcow2_do_open). */
const hasItsOwnData = /'data-file' can only be set/u

/** Asks the daemon what each image in a graph names, and has the graph say so itself. */
export const resolve = (
  graph: Node,
  execute: Execute,
  name: string
): Effect.Effect<Node, BackingError, FileSystem.FileSystem> => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "open", path: name, detail })

  /** `before` is what this one lies behind, from the top on. */
  const resolveNode = Effect.fnUntraced(function*(
    node: Node,
    before: ReadonlyArray<string>
  ): Effect.fn.Return<Node, BackingError, FileSystem.FileSystem> {
    const { file, image, backing } = node
    const resolved = {
      ...node,
      ...(isNode(file) ? { file: yield* resolveNode(file, before) } : {}),
      ...(isNode(image) ? { image: yield* resolveNode(image, before) } : {}),
      ...(isNode(backing) ? { backing: yield* resolveNode(backing, before) } : {})
    }
    const { driver } = node
    if (driver === "qcow2") yield* refuseExternalData(resolved)
    const isNamed = backing !== undefined
    if (!backedFormats.has(driver) || (isNamed && driver !== "vmdk")) return resolved
    if (before.length === longestChain) return yield* refuse(`there are more than ${longestChain} files behind it`)
    const told = yield* ask(resolved)
    if (driver === "vmdk") yield* refuseFarExtents(told.image, told.own)
    if (isNamed) return resolved
    const behind = yield* backingOf(resolved, told.image)
    if (behind === null) return { ...resolved, backing: null }
    const chain = [...before, told.own]
    const path = behind.file.filename
    if (chain.includes(path)) return yield* refuse(`${path} lies behind itself`)
    return { ...resolved, backing: yield* resolveNode(behind, chain) }
  })

  /**
   * Opens an image alone, only to be read. Its file, too: closing a qcow2 image that a crash has left dirty would mark it as
   * clean, and QEMU asserts that who writes to a file that can be written has said so.
   */
  const probing = ({ file, ...node }: Node): Node => ({
    ...onlyRead(node, probe),
    backing: null,
    ...(isNode(file) ? { file: onlyRead(file, probeFile) } : {})
  })
  const endProbing = execute("blockdev-del", { "node-name": probe })

  /** Refuses a qcow2 image whose data are in a file that only its header names: one that takes another file for them. */
  const refuseExternalData = (node: Node) =>
    execute("blockdev-add", { ...probing(node), "data-file": { driver: "null-co", size: 0 } }).pipe(
      Effect.matchEffect({
        onFailure: (error) => hasItsOwnData.test(error.detail) ? Effect.void : Effect.fail(error),
        onSuccess: () =>
          Effect.andThen(endProbing, refuse("its data are in another file, which its header names: convert it"))
      })
    )

  /** Has the daemon tell what an image says of itself, and how it calls the file that the image is in. */
  const ask = Effect.fnUntraced(function*(node: Node) {
    yield* execute("blockdev-add", probing(node))
    const answer = yield* execute("query-named-block-nodes", { flat: true })
    yield* endProbing
    const nodes = yield* decodeNodes(answer).pipe(
      Effect.mapError((error) =>
        new Errno.EIO({
          operation: "open",
          path: name,
          detail: `query-named-block-nodes: ${error.message}`,
          cause: error
        })
      )
    )
    const imageOf = (nodeName: string) => nodes.find((one) => one["node-name"] === nodeName)?.image
    return { image: imageOf(probe), own: imageOf(probeFile)?.filename ?? "" }
  })

  const refuseFarExtents = Effect.fnUntraced(function*(image: Told | undefined, own: string) {
    for (const { filename } of image?.["format-specific"]?.data?.extents ?? []) {
      if (filename === own) continue
      if (!own.startsWith("/") || !filename.startsWith("/") || dirname(filename) !== dirname(own)) {
        return yield* refuse(`a part of its content is ${filename}, which is not in its folder`)
      }
    }
  })

  /** What an image names, as a node; null where that is nothing. */
  const backingOf = Effect.fnUntraced(function*(node: Node, image: Told | undefined) {
    const named = image?.["backing-filename"]
    if (named === undefined) return null
    const path = image?.["full-backing-filename"] ?? named
    const format = image?.["backing-filename-format"]
    const remedy = "say what is by `backing`, or have it say so (qemu-img rebase -u)"
    if (format === undefined || !formats.has(format)) {
      return yield* refuse(
        format === undefined
          ? `it names ${named} behind it and does not say in which format that is: ${remedy}`
          : `it names ${named} behind it, in the format ${format}: must be one of ${[...formats].join(", ")}; ${remedy}`
      )
    }
    if (!path.startsWith("/")) return yield* refuse(`it names ${named} behind it, which is not a file: ${remedy}`)
    const { isDevice } = yield* ImageFile.look(path)
    const { cache, discard } = node
    const how = {
      "read-only": true,
      ...(cache === undefined ? {} : { cache }),
      ...(discard === undefined ? {} : { discard })
    }
    return { ...how, driver: format, file: { ...how, driver: isDevice ? "host_device" : "file", filename: path } }
  })

  return resolveNode(graph, [])
}

const isNode = (child: Schema.Json | undefined): child is Node =>
  typeof child === "object" && child !== null && !Array.isArray(child)

const onlyRead = (node: Node, name: string): Node => ({ ...node, "node-name": name, "read-only": true })

/** What the daemon tells of an image. */
const Told = Schema.Struct({
  "filename": Schema.String,
  "backing-filename": Schema.optionalKey(Schema.String),
  "full-backing-filename": Schema.optionalKey(Schema.String),
  "backing-filename-format": Schema.optionalKey(Schema.String),
  "format-specific": Schema.optionalKey(Schema.Struct({
    data: Schema.optionalKey(Schema.Struct({
      extents: Schema.optionalKey(Schema.Array(Schema.Struct({ filename: Schema.String })))
    }))
  }))
})
type Told = typeof Told.Type

const decodeNodes = Schema.decodeUnknownEffect(
  Schema.Array(Schema.Struct({ "node-name": Schema.optionalKey(Schema.String), "image": Told }))
)
