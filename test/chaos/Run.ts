/**
 * One run: random I/O that is checked, on a disk whose backend is killed, stopped, started again and made larger meanwhile.
 *
 * Without reconnecting the device fails with its backend; the run then opens the disk anew and goes on, with the same oracle.
 * With it no request fails, except for flushes that would have to make stable what the backend may have lost.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Fiber, FileSystem, Schedule, type Scope, Stream } from "effect"
import { closeSync, openSync, readSync } from "node:fs"
import { make as random } from "../../src/SeededRandom.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { backends, type Disk } from "./Backends.ts"
import { BLOCK_BYTES, identify, wordsOf } from "./Blocks.ts"
import { Findings } from "./Findings.ts"
import { leavingNothing } from "./Leftovers.ts"
import { Oracle } from "./Oracle.ts"
import { planOf } from "./Plan.ts"
import * as Supervisor from "./Supervisor.ts"
import { type Failure, Traffic } from "./Traffic.ts"
import * as Workers from "./Workers.ts"

export interface Options {
  readonly seed: number
  readonly backend: keyof typeof backends
  readonly reconnect: boolean
  readonly kills: number
  /** How long the plan takes, without the time that the backend takes to start. */
  readonly seconds: number
}

export interface Report {
  readonly findings: Findings
  readonly done: Supervisor.Done
  readonly blocks: number
  readonly seconds: number
}

/** Blocks at first: few, so that each is written often. */
const BLOCKS = 1024
/** Every request that was started has ended after the backend was up for so long. */
const END_WITHIN_MS = 10_000
const WATCH_EVERY_MS = 200
const REOPEN_EVERY_MS = 10
/** Silence that makes a device count as dead, and a stop that is longer. */
const DEVICE_TIMEOUT_MS = 1500
const LONG_STOP_MS = 2500
/** What starting a process may add to a run where the machine has much else to do, and what the rest of it may. */
const START_MS = 20_000
const REST_MS = 60_000

/** How a request may fail: the backend is gone, or is silent. */
const lossTags: ReadonlySet<string> = new Set(["ENOTCONN", "ETIMEDOUT"])
/** How opening a disk may fail: nobody listens, or whoever did has gone or is silent. */
const openTags: ReadonlySet<string> = new Set([...lossTags, "ENOENT", "ECONNREFUSED", "ECONNRESET", "EPIPE"])

/** Whether a request may fail like this. What survives a reconnection leaves only a flush to tell of it. */
const isExpected = ({ reconnect }: Options) => (operation: string, { _tag }: Failure): boolean =>
  reconnect ? operation === "flush" && _tag === "EIO" : lossTags.has(_tag)

/** How long a run may take at most, in milliseconds. */
export const limitOf = ({ kills, seconds }: Options): number => 2000 * seconds + 2 * START_MS * kills + REST_MS

/** Runs the plan of a seed against a backend, and tells what was found. */
export const run = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<Report, never, NodeServices.NodeServices> {
  const findings = new Findings()
  const oracle = new Oracle(options.seed, BLOCKS)
  const began = performance.now()
  const done = yield* leavingNothing(findings, Effect.scoped(disturbed(options, oracle, findings)))
  if (oracle.fellBack > 0) {
    // The rule permits it, since it is made for backends that lose what they cache.
    findings.report("wrong", `${oracle.fellBack} blocks lost what was acknowledged, though the page cache was not lost`)
  }
  return { findings, done, blocks: oracle.blocks, seconds: (performance.now() - began) / 1000 }
})

const disturbed = Effect.fnUntraced(function*(
  options: Options,
  oracle: Oracle,
  findings: Findings
): Effect.fn.Return<Supervisor.Done, never, NodeServices.NodeServices | Scope.Scope> {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* Effect.orDie(fs.makeTempDirectoryScoped({ prefix: "blkio-chaos-" }))
  const disk: Disk = { image: `${folder}/disk.raw`, numQueues: Workers.QUEUES }
  yield* Effect.orDie(DiskImage.createRaw(disk.image, BLOCKS * BLOCK_BYTES))
  const supervised = yield* Supervisor.make(backends[options.backend], disk, folder, oracle)
  const { upMs } = supervised
  const traffic = new Traffic({ oracle, findings, below: random(options.seed), upMs, isExpected: isExpected(options) })
  const transport = yield* Effect.orDie(VhostUser.make({
    path: supervised.socketPath,
    ...options.reconnect ? { reconnect: Schedule.spaced(REOPEN_EVERY_MS) } : {}
  }))
  const open = VirtioBlk.make(transport, { ...Workers.optionsOf(options.seed), deviceTimeout: DEVICE_TIMEOUT_MS })

  let openedAtUpMs = 0
  /** Opens the disk anew until it was used to the end. */
  const sessions = <E extends Failure>(
    use: (device: Workers.Device) => Effect.Effect<boolean, E, Scope.Scope>
  ) =>
    Effect.scoped(Effect.gen(function*() {
      const device = yield* open
      yield* Effect.forkScoped(
        Stream.runForEach(device.connectionStates, ({ _tag }) =>
          Effect.sync(() => {
            if (_tag === "connected") findings.connections++
          })),
        { startImmediately: true }
      )
      const isDone = yield* use(device)
      openedAtUpMs = upMs()
      return isDone
    })).pipe(
      Effect.catch((failure) => {
        if (!openTags.has(failure._tag)) {
          findings.report("unexpected", `opening failed with ${failure._tag}: ${failure.message}`)
        }
        findings.failed("open", failure._tag)
        if (upMs() - openedAtUpMs > END_WITHIN_MS) findings.report("hung", "the disk cannot be opened")
        return Effect.as(Effect.sleep(REOPEN_EVERY_MS), false)
      }),
      Effect.repeat({ until: (isDone) => isDone || !findings.isClean })
    )

  let isOver = false
  const busy = sessions((device) =>
    Effect.map(
      Workers.keepBusy(device, traffic, findings, Workers.heavy, () => isOver || !findings.isClean),
      () => isOver
    )
  )
  const disturbing = Effect.gen(function*() {
    for (const { afterMs, disturbance } of planOf(options.seed, { ...options, longStopMs: LONG_STOP_MS })) {
      yield* Effect.sleep(afterMs)
      if (!findings.isClean) break
      yield* supervised.disturb(disturbance)
    }
    isOver = true
  })
  const watching = Effect.sleep(WATCH_EVERY_MS).pipe(
    Effect.map(() => {
      for (const text of traffic.hungFor(END_WITHIN_MS)) findings.report("hung", text)
    }),
    Effect.repeat({ until: () => !findings.isClean })
  )
  yield* Effect.gen(function*() {
    const using = yield* Effect.forkChild(busy, { startImmediately: true })
    yield* disturbing
    yield* Fiber.join(using)
    yield* sessions((device) => Workers.readAll(device, traffic, oracle.blocks))
  }).pipe(Effect.raceFirst(watching))
  yield* supervised.end
  if (findings.isClean) checkImage(disk.image, oracle, findings)
  return supervised.done
})

/** Reads the image by way of the file system, when nobody serves it any more. */
const checkImage = (path: string, oracle: Oracle, findings: Findings): void => {
  const bytes = new Uint8Array(BLOCK_BYTES)
  const words = wordsOf(bytes)
  const fd = openSync(path, "r")
  for (let block = 0; block < oracle.blocks; block++) {
    const access = oracle.beginRead(block, 1)
    const length = readSync(fd, bytes, 0, BLOCK_BYTES, block * BLOCK_BYTES)
    if (length !== BLOCK_BYTES) findings.report("wrong", `the image ends within block ${block}`)
    for (const text of oracle.endRead(access, () => identify(words, 0))) {
      findings.report("wrong", `in the image, ${text}`)
    }
  }
  closeSync(fd)
}
