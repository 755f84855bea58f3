/**
 * What lies behind an image that has not all of its content itself (a backing file), made a part of the graph, so that the
 * daemon never guesses.
 *
 * An image names the file behind it, and may say in which format that is. Where it does not, QEMU would tell by what the file
 * begins with, which whoever writes to it decides; so it is refused here. And it may name anything: only files are followed.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"
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

/** A longer chain is a mistake, or a ring. */
const longestChain = 256

const probe = "probe"

/**
 * Makes the nodes of a graph, the uppermost with a name, and for each image in it asks the daemon what it names behind itself. An
 * image that names nothing, as most do, is opened once.
 */
export const add = (
  graph: Node,
  nodeName: string,
  execute: Execute,
  path: string
): Effect.Effect<void, BackingError, FileSystem.FileSystem> => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "open", path, detail })

  /** Says of every image below a node what lies behind it. */
  const resolveChildren = Effect.fnUntraced(
    function*(node: Node, depth: number): Effect.fn.Return<Node, BackingError, FileSystem.FileSystem> {
      const resolved: Record<string, Schema.Json> = { ...node }
      for (const key of ["file", "image", "backing"]) {
        const child = node[key]
        if (isNode(child)) resolved[key] = yield* resolve(child, depth)
      }
      return resolved
    }
  )

  /** Says of a node, and of all below, what lies behind it. */
  const resolve = Effect.fnUntraced(
    function*(node: Node, depth: number): Effect.fn.Return<Node, BackingError, FileSystem.FileSystem> {
      const resolved = yield* resolveChildren(node, depth)
      if (!mayNameAnother(resolved)) return resolved
      const image = yield* open({ ...resolved, "read-only": true }, probe)
      if (image["dirty-flag"] === true) {
        // The daemon would write to it when it is closed, and abort since it may not (seen with QEMU 7.2).
        return yield* refuse("an image behind it was not closed after it was written: open that one for writing first")
      }
      yield* execute("blockdev-del", { "node-name": probe })
      return { ...resolved, backing: yield* behind(resolved, image, depth) }
    }
  )

  /** Opens an image with nothing behind it, and asks what it is. */
  const open = Effect.fnUntraced(function*(node: Node, name: string) {
    yield* execute("blockdev-add", { ...node, "backing": null, "node-name": name })
    const nodes = yield* execute("query-named-block-nodes", { flat: true }).pipe(
      Effect.flatMap(decodeNodes),
      Effect.catchTag(
        "SchemaError",
        (cause) =>
          new Errno.EIO({ operation: "open", path, detail: `query-named-block-nodes: ${cause.message}`, cause })
      )
    )
    return nodes.find((one) => one["node-name"] === name)?.image ?? {}
  })

  /** What an image names, as a node; null where that is nothing. */
  const behind = Effect.fnUntraced(
    function*(
      node: Node,
      image: ImageInfo,
      depth: number
    ): Effect.fn.Return<Node | null, BackingError, FileSystem.FileSystem> {
      const named = image["backing-filename"]
      if (named === undefined) return null
      if (depth === longestChain) return yield* refuse(`there are more than ${longestChain} files behind it`)
      const file = image["full-backing-filename"] ?? named
      const format = image["backing-filename-format"]
      const remedy = "say what is by `backing`, or have it say so (qemu-img rebase -u)"
      if (format === undefined || !formats.has(format)) {
        return yield* refuse(
          format === undefined
            ? `it names ${named} behind it and does not say in which format that is: ${remedy}`
            : `it names ${named} behind it, in the format ${format}: must be one of ${
              [...formats].join(", ")
            }; ${remedy}`
        )
      }
      if (!file.startsWith("/")) return yield* refuse(`it names ${named} behind it, which is not a file: ${remedy}`)
      const { isDevice } = yield* ImageFile.look(file)
      if (format === "qcow2") yield* ImageFile.refuseExternalData(file)
      const { cache = {}, discard = "ignore" } = node
      const how = { "read-only": true, cache, discard }
      return yield* resolve(
        { ...how, driver: format, file: { ...how, driver: isDevice ? "host_device" : "file", filename: file } },
        depth + 1
      )
    }
  )

  return Effect.gen(function*() {
    const node = yield* resolveChildren(graph, 0)
    if (!mayNameAnother(node)) {
      yield* execute("blockdev-add", { ...node, "node-name": nodeName })
      return
    }
    const image = yield* open(node, nodeName)
    if (image["backing-filename"] === undefined) return
    yield* execute("blockdev-del", { "node-name": nodeName })
    const backing = yield* behind(node, image, 0)
    yield* execute("blockdev-add", { ...node, backing, "node-name": nodeName })
  })
}

/** Tells whether a node is of an image that may name what lies behind it, and nobody has said what does. */
const mayNameAnother = (node: Node): boolean => backedFormats.has(node["driver"]) && node["backing"] === undefined

const isNode = (child: Schema.Json | undefined): child is Node =>
  typeof child === "object" && child !== null && !Array.isArray(child)

/** What the daemon says of an image (QEMU: qapi/block-core.json, ImageInfo). */
const ImageInfo = Schema.Struct({
  "backing-filename": Schema.optionalKey(Schema.String),
  "full-backing-filename": Schema.optionalKey(Schema.String),
  "backing-filename-format": Schema.optionalKey(Schema.String),
  "dirty-flag": Schema.optionalKey(Schema.Boolean)
})
type ImageInfo = typeof ImageInfo.Type

const decodeNodes = Schema.decodeUnknownEffect(
  Schema.Array(Schema.Struct({ "node-name": Schema.optionalKey(Schema.String), "image": ImageInfo }))
)
