/**
 * `blkio hash STORE`: the hash of a disk's content, which is the hash of its raw image: `sha256sum` of the one is `blkio hash`
 * of the other, whatever the format behind the export.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Command, Flag } from "effect/cli"
import { createHash } from "node:crypto"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as ProgressBar from "./ProgressBar.ts"
import * as Store from "./Store.ts"
import * as flags from "./flags.ts"

const MS_PER_S = 1000

/** A hash that is being computed. */
interface Hasher {
  readonly update: (bytes: Uint8Array) => unknown
  /** In hexadecimal. */
  readonly digest: (encoding: "hex") => string
}

const algorithms = {
  sha256: async (): Promise<Hasher> => createHash("sha256"),
  // Loaded by those who ask for it.
  blake3: async (): Promise<Hasher> => (await (await import("hash-wasm")).createBLAKE3()).init(),
  xxh3: async (): Promise<Hasher> => (await (await import("hash-wasm")).createXXHash3()).init()
}

/** The command. */
export const hash = Command.make(
  "hash",
  {
    store: Store.argument("STORE"),
    algorithm: Flag.Literals("algorithm", ["sha256", "blake3", "xxh3"]).pipe(
      Flag.withDefault("sha256"),
      Flag.withDescription("xxh3 has 64 bits and no secrets: it finds accidents, not attacks")
    ),
    depth: flags.depth,
    json: flags.json
  },
  Effect.fnUntraced(function*({ algorithm, depth, json, store: text }) {
    const store = yield* Store.openSource(yield* Store.parse(text))
    const hasher = yield* Effect.promise(algorithms[algorithm])
    const total = store.capacity
    const began = performance.now()
    let done = 0
    yield* BlockStore.contents(store, { depth }).pipe(
      Stream.runForEach((bytes) =>
        Effect.sync(() => {
          hasher.update(bytes)
          done += bytes.length
        })
      ),
      (hashing) =>
        ProgressBar.during(hashing, {
          label: "hash",
          position: () => ({ done, total }),
          show: json ? "none" : "bar"
        })
    )
    const digest = hasher.digest("hex")
    const seconds = (performance.now() - began) / MS_PER_S
    yield* Console.log(
      json ? JSON.stringify({ algorithm, hash: digest, bytes: total, seconds }, undefined, 2) : `${digest}  ${text}`
    )
  }, Effect.scoped)
).pipe(
  Command.withDescription("Hash the content of a disk"),
  Command.withExamples([{ command: "blkio hash virtio-blk-vhost-user,path=/run/disk.sock --algorithm blake3" }])
)
