/**
 * `blkio compare A B`: tells whether two stores hold the same. Exit code 0 where they do; where not, the first offset at
 * which they differ, and exit code 1. The same content in different sizes is different.
 */
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Command } from "effect/cli"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as ProgressBar from "./ProgressBar.ts"
import * as Store from "./Store.ts"
import * as flags from "./flags.ts"

/** The stores differ: an answer, which was given, and no error of theirs. */
class Different extends Data.TaggedError("Different") {}

/** The command. */
export const compare = Command.make(
  "compare",
  { a: Store.argument("A"), b: Store.argument("B"), depth: flags.depth, json: flags.json },
  Effect.fnUntraced(function*({ depth, json, ...texts }) {
    const parsedA = yield* Store.parse(texts.a)
    const parsedB = yield* Store.parse(texts.b)
    const a = yield* Store.openSource(parsedA)
    const b = yield* Store.openSource(parsedB)
    const total = Math.min(a.capacity, b.capacity)
    let done = 0
    const onProgress = (same: number) =>
      Effect.sync(() => {
        done = same
      })
    const difference = Option.getOrUndefined(
      yield* ProgressBar.during(BlockStore.compare(a, b, { depth, onProgress }), {
        label: "compare",
        position: () => ({ done, total }),
        show: json ? "none" : "bar"
      })
    )
    const sizes = a.capacity === b.capacity ? "" : `; ${a.id} has ${a.capacity} bytes, ${b.id} has ${b.capacity}`
    yield* Console.log(
      json
        ? JSON.stringify(
          {
            identical: difference === undefined,
            offset: difference?.offset ?? null,
            reason: difference?.reason ?? null,
            sizes: [a.capacity, b.capacity]
          },
          undefined,
          2
        )
        : difference === undefined
        ? `identical: ${total} bytes`
        : difference.reason === "capacity"
        ? `different: one ends at ${difference.offset}${sizes}`
        : `different: at offset ${difference.offset}${sizes}`
    )
    if (difference !== undefined) return yield* new Different()
  }, Effect.scoped)
).pipe(
  Command.withDescription("Find the first byte at which two disks differ"),
  Command.withExamples([{
    command: "blkio compare virtio-blk-vhost-user,path=/run/disk.sock file:backup.raw",
    description: "Check a backup against the disk"
  }])
)
