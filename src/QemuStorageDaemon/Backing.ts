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

/** Asks the daemon what each image in a graph names, and makes it say so itself. */
export const resolve = (
  graph: Node,
  execute: Execute,
  name: string
): Effect.Effect<Node, BackingError, FileSystem.FileSystem> => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "open", path: name, detail })

  const resolveNode = Effect.fnUntraced(function*(
    node: Node,
    depth: number
  ): Effect.fn.Return<Node, BackingError, FileSystem.FileSystem> {
    const { file, image, backing } = node
    const resolved = {
      ...node,
      ...(isNode(file) ? { file: yield* resolveNode(file, depth) } : {}),
      ...(isNode(image) ? { image: yield* resolveNode(image, depth) } : {}),
      ...(isNode(backing) ? { backing: yield* resolveNode(backing, depth) } : {})
    }
    if (backing !== undefined || !backedFormats.has(node["driver"])) return resolved
    if (depth === longestChain) return yield* refuse(`there are more than ${longestChain} files behind it`)
    const behind = yield* backingOf(resolved)
    return { ...resolved, backing: behind === null ? null : yield* resolveNode(behind, depth + 1) }
  })

  /** What an image names, as a node; null where that is nothing. */
  const backingOf = Effect.fnUntraced(function*(node: Node) {
    yield* execute("blockdev-add", { ...node, "read-only": true, "backing": null, "node-name": probe })
    const answer = yield* execute("query-named-block-nodes", { flat: true })
    yield* execute("blockdev-del", { "node-name": probe })
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
    const image = nodes.find((one) => one["node-name"] === probe)?.image
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
    if (format === "qcow2") yield* ImageFile.refuseExternalData(path)
    const { cache, discard } = node
    const how = {
      "read-only": true,
      ...(cache === undefined ? {} : { cache }),
      ...(discard === undefined ? {} : { discard })
    }
    return { ...how, driver: format, file: { ...how, driver: isDevice ? "host_device" : "file", filename: path } }
  })

  return resolveNode(graph, 0)
}

const isNode = (child: Schema.Json | undefined): child is Node =>
  typeof child === "object" && child !== null && !Array.isArray(child)

const decodeNodes = Schema.decodeUnknownEffect(
  Schema.Array(Schema.Struct({
    "node-name": Schema.optionalKey(Schema.String),
    "image": Schema.Struct({
      "backing-filename": Schema.optionalKey(Schema.String),
      "full-backing-filename": Schema.optionalKey(Schema.String),
      "backing-filename-format": Schema.optionalKey(Schema.String)
    })
  }))
)
