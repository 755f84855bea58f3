/**
 * `blkio copy SRC DST`: copies one store to the start of another. What is zero becomes a write-zeroes, or a hole; holes of a
 * file are skipped without being read.
 *
 * It succeeds only after everything was written and flushed, and with `--verify` read back and found the same. Whatever ends
 * it before says so, with the errno, and that the target is incomplete.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Command, Flag } from "effect/cli"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as Errno from "../Errno.ts"
import { UsageError } from "./Device.ts"
import * as ProgressBar from "./ProgressBar.ts"
import * as Store from "./Store.ts"
import * as flags from "./flags.ts"
import { formatBytes } from "./format.ts"

const MS_PER_S = 1000

const refuse = (detail: string) => new UsageError({ reason: new Errno.EINVAL({ operation: "copy", detail }) })

/** A device that comes back may have lost what it had acknowledged: what is flushed next is written again, so often. */
const rewrite = Schedule.recurs(10)

/** The command. */
export const copy = Command.make(
  "copy",
  {
    source: Store.argument("SRC"),
    target: Store.target("DST"),
    verify: Flag.Boolean("verify").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Read both back afterwards, and compare")
    ),
    depth: flags.depth,
    blocksize: flags.blocksize,
    json: flags.json
  },
  Effect.fnUntraced(function*(options) {
    const { blocksize, depth, json, verify } = options
    const from = yield* Store.parse(options.source)
    const to = yield* Store.parse(options.target)
    if (yield* Store.isSame(from, to)) return yield* refuse(`${from.text} and ${to.text} are the same`)
    const source = yield* Store.openSource(from)
    const total = source.capacity
    const target = yield* Store.openTarget(to, total)
    const alignment = Math.max(source.blockSize, target.blockSize)
    if (blocksize % alignment !== 0) return yield* refuse(`block size ${blocksize}: must be a multiple of ${alignment}`)

    const began = performance.now()
    let { copied, zeroes } = { copied: 0, zeroes: 0 }
    const incomplete = () => `${to.text} is incomplete, ${copied} of ${total} bytes are there`
    // A disk of no bytes is copied by doing nothing.
    const progress = total === 0
      ? Stream.empty
      : BlockStore.copy(source, target, { chunkSize: blocksize, depth, ...(to._tag === "device" ? { rewrite } : {}) })
    yield* progress.pipe(
      Stream.runForEach((now) =>
        Effect.sync(() => {
          copied = now.copied
          zeroes = now.zeroes
        })
      ),
      Effect.mapError((error) => withDetail(error, incomplete())),
      (copying) =>
        ProgressBar.during(copying, {
          label: "copy",
          position: () => ({ done: copied, total }),
          show: json ? "none" : undefined
        }),
      Effect.onInterrupt(() => Console.error(`EINTR: copy: interrupted; ${incomplete()}`))
    )
    const seconds = (performance.now() - began) / MS_PER_S
    if (verify) yield* verified(source, target, to, { chunkSize: blocksize, depth, length: total }, json)
    yield* Console.log(
      json
        ? JSON.stringify({ bytes: total, zeroes, seconds, verified: verify }, undefined, 2)
        : `copied ${total} bytes (${formatBytes(total)}), ${zeroes} of them zeroes, in ${seconds.toFixed(3)} s, `
          + `${formatBytes(seconds > 0 ? total / seconds : 0)}/s${verify ? ", verified" : ""}`
    )
  }, Effect.scoped)
).pipe(
  Command.withDescription("Copy a disk, and leave its zeroes out"),
  Command.withExamples([{
    command: "blkio copy virtio-blk-vhost-user,path=/run/disk.sock file:backup.raw --verify",
    description: "Back up an exported disk"
  }])
)

const withDetail = (error: BlockStore.StoreError, detail: string): BlockStore.StoreError => {
  const fields = Store.fieldsOf(error)
  return Errno.fromNumber(error.errno, BlockStore.storeErrors, { ...fields, detail: `${fields.detail}; ${detail}` })
}

/** Fails with EIO where the target does not begin with what the source holds. */
const verified = Effect.fnUntraced(function*(
  source: BlockStore.BlockStore,
  target: BlockStore.BlockStore,
  { path }: Store.Store,
  options: Required<BlockStore.ReadThroughOptions>,
  json: boolean
) {
  let done = 0
  const onProgress = (same: number) =>
    Effect.sync(() => {
      done = same
    })
  const difference = yield* BlockStore.compare(source, target, { ...options, onProgress }).pipe(
    (comparing) =>
      ProgressBar.during(comparing, {
        label: "verify",
        position: () => ({ done, total: options.length }),
        show: json ? "none" : undefined
      }),
    Effect.onInterrupt(() => Console.error("EINTR: verify: interrupted before all was read back"))
  )
  if (Option.isNone(difference)) return
  const { offset } = difference.value
  return yield* new Errno.EIO({ operation: "verify", path, offset, detail: "the target differs from the source" })
})
