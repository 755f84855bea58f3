/**
 * Random I/O on a disk that logs its writes (`blklogwrites`), with flushes and FUA, and the log of it, to be replayed.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem } from "effect"
import { readFileSync } from "node:fs"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { exportNode } from "../support/daemonNode.ts"
import { BLOCK_BYTES } from "./Blocks.ts"
import { Findings } from "./Findings.ts"
import { History } from "./History.ts"
import { leavingNothing } from "./Leftovers.ts"
import { type Entry, parse } from "./LogWrites.ts"
import { type Outcome, replay } from "./Replay.ts"
import * as Workers from "./Workers.ts"
import { exercise } from "./exercise.ts"

/** Few, so that each is written often, and each of very many disks is checked soon. */
const BLOCKS = 256

export interface Recording {
  readonly entries: ReadonlyArray<Entry>
  readonly history: History
  readonly findings: Findings
  /** What the disk held in the end. */
  readonly image: Uint8Array
}

/** Writes at random until so many writes were acknowledged, flushes, and gives what was logged. */
export const record = (seed: number, writes: number): Effect.Effect<Recording, never, NodeServices.NodeServices> => {
  const findings = new Findings()
  return leavingNothing(findings, Effect.scoped(recorded(seed, writes, findings)))
}

const recorded = Effect.fnUntraced(function*(seed: number, writes: number, findings: Findings) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-power-" })
  const image = `${folder}/disk.raw`
  const log = `${folder}/log`
  yield* DiskImage.createRaw(image, BLOCKS * BLOCK_BYTES)
  yield* fs.writeFile(log, new Uint8Array())
  const history = new History(BLOCKS)
  yield* Effect.scoped(Effect.gen(function*() {
    // Of the two exports the second is used: a daemon starts with one at least, and the monitor makes the rest.
    const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "null-co", size: BLOCK_BYTES } }] })
    const { socketPath } = yield* exportNode(daemon, "logged", {
      driver: "blklogwrites",
      file: { driver: "file", filename: image },
      log: { driver: "file", filename: log }
    }, { numQueues: Workers.QUEUES })
    const device = yield* VirtioBlk.make(yield* VhostUser.make({ path: socketPath }), Workers.optionsOf(seed))
    // The log counts its entries at each flush, and there is one in the end.
    yield* exercise(device, findings, {
      seed,
      blocks: BLOCKS,
      load: Workers.light,
      writes,
      isExpected: () => false,
      journal: history
    })
  }))
  return { entries: parse(readFileSync(log)), history, findings, image: readFileSync(image) }
}, Effect.orDie)

/** Records, replays, and tells whether the log agrees with the disk in the end. */
export const run = Effect.fnUntraced(function*(
  seed: number,
  writes: number
): Effect.fn.Return<{ readonly findings: Findings; readonly outcome: Outcome }, never, NodeServices.NodeServices> {
  const { entries, findings, history, image } = yield* record(seed, writes)
  const outcome = replay(entries, history, seed, random(seed))
  for (const text of outcome.violations) findings.report("wrong", text)
  if (Buffer.compare(outcome.image, image) !== 0) findings.report("wrong", "the disk is not what its log says")
  return { findings, outcome }
})
