/**
 * The hash of an image as an entity of a cluster: whoever wants it sends a request to the image, and the runner to which the
 * image belongs at the time hashes it.
 *
 * An image is cut into *extents* of equal length (the last may be shorter). Each is hashed by itself, and the hash of the
 * image is that of the list of their digests: a tree of two levels, which can be computed in pieces, by several runners one
 * after the other. With coreutils, for extents of 16 MiB:
 *
 *     split -b 16M --filter=sha256sum disk.raw | cut -c1-64 | sha256sum
 *
 * The request is stored before it is sent, and the digest of an extent as soon as it is known. When a runner dies, or another
 * joins, the image moves to another runner, which is given the request anew and goes on where no digest is stored. An image
 * that moves from a living runner loses no work: the extent at hand is finished first. One that moves from a dead runner loses
 * the extent that was at hand.
 */
import { Effect, Option, Schema, Semaphore, Stream } from "effect"
import { BlockStore, Errno } from "effect-blkio"
import { ClusterSchema, Entity } from "effect/cluster"
import { Rpc } from "effect/rpc"
import { createHash } from "node:crypto"
import { type Attempt, Checkpoints } from "./Checkpoints.ts"
import * as Image from "./Image.ts"

/** Asks for the hash of an image. In one `run`, an image is hashed once, however often it is asked for. */
const Hash = Rpc.make("Hash", {
  payload: { run: Schema.String, image: Schema.String, extentBytes: Schema.Int.check(Schema.isGreaterThan(0)) },
  primaryKey: ({ extentBytes, run }) => `${extentBytes}/${run}`,
  success: Schema.String,
  // The library's errors are Schemas: they arrive as they were, from whichever machine.
  error: Schema.Union([...Errno.byNumber.values()])
})
  // Kept in SQL until it is answered.
  .annotate(ClusterSchema.Persisted, true)
  // Interrupted at once where the image is to move; it does not wait for the whole image to be hashed.
  .annotate(ClusterSchema.InterruptOnTermination, true)
  // Who stops waiting does not stop the work, and can ask for the same run again.
  .annotate(ClusterSchema.Uninterruptible, "client")

export const ImageHash = Entity.make("ImageHash", [Hash])

/** The entity of an image. An id may have 255 characters, a path more. */
export const entityId = (image: string): string => createHash("sha256").update(image).digest("hex")

/** How a runner goes about it. */
export interface Options {
  /** How many images are read at once; the others of this runner wait. */
  readonly imagesAtOnce: number
  /** The rate at which an image is read at most. */
  readonly bytesPerSecond: Option.Option<number>
}

/** Hashes one extent; undefined where it is no longer this attempt's. Not interrupted, so that nothing is lost. */
const hashExtent = (attempt: Attempt, extent: number, content: BlockStore.BlockStore) =>
  Effect.gen(function*() {
    if (!(yield* attempt.start(extent))) return
    const hash = yield* BlockStore.contents(content).pipe(
      Stream.runFold(() => createHash("sha256"), (hash, chunk) => hash.update(chunk))
    )
    const digest = hash.digest("hex")
    yield* attempt.finish(extent, digest)
    return digest
  }).pipe(Effect.uninterruptible)

/** Hashes the extents that no earlier attempt has, in order, and then the list. */
const hashImage = Effect.fnUntraced(function*(store: BlockStore.BlockStore, extentBytes: number, attempt: Attempt) {
  const list = createHash("sha256")
  const { capacity } = store
  for (let extent = 0; extent * extentBytes < capacity; extent++) {
    const offset = extent * extentBytes
    const content = yield* BlockStore.slice(store, offset, Math.min(extentBytes, capacity - offset))
    const digest = attempt.done.get(extent) ?? (yield* hashExtent(attempt, extent, content))
    // Another attempt has begun, so the cluster is about to interrupt this one: what it would answer no longer counts.
    if (digest === undefined) return yield* Effect.never
    list.update(`${digest}\n`)
  }
  return list.digest("hex")
})

/** Has a runner take on images. */
export const layer = ({ bytesPerSecond, imagesAtOnce }: Options) => {
  const turns = Semaphore.makeUnsafe(imagesAtOnce)
  return ImageHash.toLayer(Effect.gen(function*() {
    const checkpoints = yield* Checkpoints
    const { host, port } = yield* Entity.CurrentRunnerAddress
    return ImageHash.of({
      Hash: ({ payload: { extentBytes, image }, requestId }) =>
        Effect.gen(function*() {
          const store = yield* Image.open(image)
          const limited = Option.isNone(bytesPerSecond)
            ? store
            : yield* BlockStore.rateLimit(store, { bytesPerSecond: bytesPerSecond.value, burst: 0 })
          const attempt = yield* checkpoints.begin({ request: String(requestId), image, runner: `${host}:${port}` })
          return yield* hashImage(limited, extentBytes, attempt)
        }).pipe(Effect.scoped, Semaphore.withPermit(turns))
    })
  }))
}
