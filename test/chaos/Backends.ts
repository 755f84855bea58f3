/**
 * The backends that a run kills and starts again: QEMU's storage daemon, and our export in a process of its own.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import { Duration, Effect, FileSystem, type Scope } from "effect"
import { fileURLToPath } from "node:url"
import * as OrphanGuard from "../../src/QemuStorageDaemon/OrphanGuard.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { startProgram } from "../support/program.ts"

/** Bytes that a disk grows by at a time. */
export const GROWTH_BYTES = 256 * 1024

/** A process that serves a disk. */
export interface Running {
  readonly socketPath: string
  readonly kill: (signal: "SIGKILL" | "SIGTERM" | "SIGSTOP" | "SIGCONT") => Effect.Effect<void>
  /** Waits for its end. */
  readonly ended: Effect.Effect<void>
  /** Makes the disk longer by {@link GROWTH_BYTES}; `bytes` is what it then has. */
  readonly growTo: (bytes: number) => Effect.Effect<void>
}

/** What is to be served. */
export interface Disk {
  readonly image: string
  readonly numQueues: number
}

/**
 * Starts a process that serves a disk, waits until it listens, and has it gone when the Scope closes. What goes wrong with it
 * is a fault of the run, and dies.
 */
export type Start = (disk: Disk) => Effect.Effect<Running, never, Scope.Scope | NodeServices.NodeServices>

const startDaemon: Start = Effect.fnUntraced(function*({ image, numQueues }) {
  const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "raw", file: image }, numQueues }] })
  const [{ nodeName, socketPath }] = daemon.exports
  return {
    socketPath,
    kill: daemon.kill,
    ended: Effect.asVoid(daemon.exitCode),
    growTo: (bytes: number) => Effect.orDie(daemon.qmp.blockResize(nodeName, bytes))
  }
}, Effect.orDie)

const program = fileURLToPath(new URL("exportProgram.ts", import.meta.url))

const startExport: Start = Effect.fnUntraced(function*({ image, numQueues }) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-chaos-" })
  const socketPath = `${folder}/disk.sock`
  const { child, outcome, stderr } = yield* startProgram([
    program,
    image,
    socketPath,
    `${numQueues}`,
    `${GROWTH_BYTES}`
  ])
  yield* OrphanGuard.make(child.pid ?? 0, folder, Duration.seconds(1))
  const said = Effect.flatMap(
    stderr,
    (text) => text.startsWith("serving ") ? Effect.void : Effect.die(new Error(`the export says: ${text}`))
  )
  yield* said
  return {
    socketPath,
    kill: (signal: NodeJS.Signals) => Effect.sync(() => void child.kill(signal)),
    ended: Effect.asVoid(outcome),
    growTo: () => Effect.andThen(Effect.sync(() => child.kill("SIGUSR2")), said)
  }
}, Effect.orDie)

export const backends = { qsd: startDaemon, export: startExport }
