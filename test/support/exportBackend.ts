/** This library's export as a backend: in the test's own process, or in one that can be killed. */
import { Duration, Effect, Exit, FileSystem, Scope } from "effect"
import { closeSync, openSync, readSync, writeSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { expect } from "vitest"
import * as OrphanGuard from "../../src/QemuStorageDaemon/OrphanGuard.ts"
import { Export } from "../../src/index.ts"
import type { Backend, Disk, Facts, ServeOptions } from "./Backend.ts"
import { MiB, mustEnd } from "./daemon.ts"
import { openStore } from "./exportedStore.ts"
import { startProgram } from "./program.ts"

const facts: Facts = {
  // 509 slots, as QEMU 10 has.
  maxMemRegions: 508,
  maxSegments: 126,
  maxDiscardLength: 16 * MiB,
  maxWriteZeroesLength: 16 * MiB,
  writeCache: true,
  tellsOfResize: true
}

const folder = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "blkio-export-" }))

const serve = Effect.fnUntraced(function*(disk: Disk, options: ServeOptions = {}) {
  const directory = yield* folder
  const { resize, store } = yield* openStore(disk, options)
  // Made after the store was opened, it closes before.
  const scope = yield* Scope.fork(yield* Effect.scope)
  const { path, statistics } = yield* Export.serve(store, { path: `${directory}/disk.sock`, ...options }).pipe(
    Scope.provide(scope)
  )
  return {
    socketPath: path,
    pid: process.pid,
    facts,
    flushes: () => statistics.flushes,
    resize,
    withdraw: Scope.close(scope, Exit.void)
  }
}, Effect.orDie)

const command = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))
const program = fileURLToPath(new URL("exportProgram.ts", import.meta.url))

/** What serves a disk from a process of its own: the command line, and our program for what that does not have. */
const argumentsFor = (disk: Disk, socketPath: string, options: ServeOptions): ReadonlyArray<string> => {
  if (disk._tag === "zeroes") return [program, socketPath, JSON.stringify(disk), JSON.stringify(options)]
  const { blockSize = 512, numQueues = 1, readOnly = false } = options
  return [
    command,
    "serve",
    `file:${disk.path}`,
    "--socket",
    socketPath,
    "--queues",
    `${numQueues}`,
    "--block-size",
    `${blockSize}`,
    ...readOnly ? ["--read-only"] : []
  ]
}

const serveApart = Effect.fnUntraced(function*(disk: Disk, options: ServeOptions = {}) {
  const directory = yield* folder
  const socketPath = `${directory}/disk.sock`
  const { child, outcome, stderr } = yield* startProgram(argumentsFor(disk, socketPath, options))
  const pid = child.pid ?? 0
  mustEnd(pid)
  yield* OrphanGuard.make(pid, directory, Duration.seconds(1))
  expect(yield* stderr).toMatch(/^serving\b/u)
  return {
    socketPath,
    pid,
    kill: (signal: NodeJS.Signals) => Effect.sync(() => void child.kill(signal)),
    ended: Effect.asVoid(outcome)
  }
}, Effect.orDie)

/** Opens a file as long as something is done with it. */
const withFile = <A>(path: string, flags: string, use: (fd: number) => A) =>
  Effect.acquireUseRelease(
    Effect.sync(() => openSync(path, flags)),
    (fd) => Effect.sync(() => use(fd)),
    (fd) => Effect.sync(() => closeSync(fd))
  )

export const exportBackend: Backend = {
  name: "our export",
  isHere: true,
  formats: ["raw"],
  serve,
  serveTogether: (disks) => Effect.forEach(disks, (disk) => serve(disk)),
  serveApart,
  fill: ({ path }, patterns) =>
    withFile(path, "r+", (fd) => {
      for (const [offset, length, byte] of patterns) writeSync(fd, Buffer.alloc(length, byte), 0, length, offset)
    }),
  verify: ({ path }, patterns) =>
    withFile(path, "r", (fd) => {
      for (const [offset, length, byte] of patterns) {
        const found = Buffer.alloc(length, ~byte)
        readSync(fd, found, 0, length, offset)
        expect(found.equals(Buffer.alloc(length, byte)), `${length} bytes of ${byte} at ${offset}`).toBe(true)
      }
    })
}
