/**
 * A server of NBD disks with faults, nbdkit, for storage daemons that pass such a disk on. Debian has it in the package nbdkit.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { existsSync } from "node:fs"
import * as ExitCode from "../../src/QemuStorageDaemon/ExitCode.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { leavesNothing } from "../support/resources.ts"

const answersVersion = Effect.gen(function*() {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  return (yield* spawner.exitCode(ChildProcess.make("nbdkit", ["--version"]))) === 0
}).pipe(Effect.orElseSucceed(() => false))

/** Whether tests can run that need it and a daemon; what says that a daemon must be here says so of it, too. */
export const nbdkitIsHere: boolean = await Effect.runPromise(
  leavesNothing(answersVersion).pipe(Effect.provide(NodeServices.layer))
) && qsdIsHere

if (!nbdkitIsHere) {
  if (process.env["EFFECT_BLKIO_REQUIRE_QSD"] === "1") throw new Error("nbdkit, or the daemon, is not here")
  console.warn("\n*** SKIPPED: tests that need nbdkit. EFFECT_BLKIO_REQUIRE_QSD=1 makes this a failure. ***\n")
}

const POLL_MS = 5

/** Serves an image file through filters at a socket until the Scope closes; `settings` are those of the filters. */
export const start = Effect.fnUntraced(function*(
  image: string,
  socketPath: string,
  filters: ReadonlyArray<string>,
  settings: ReadonlyArray<string>
) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-nbd-" })
  // Written once it listens.
  const pidFile = `${folder}/pid`
  const server = yield* ChildProcess.make("nbdkit", [
    "--foreground",
    "--exit-with-parent",
    "--unix",
    socketPath,
    "--pidfile",
    pidFile,
    ...filters.map((filter) => `--filter=${filter}`),
    "file",
    image,
    ...settings
  ], { stdin: "ignore", stdout: "ignore", stderr: "ignore", forceKillAfter: "1 second" })
  while (!existsSync(pidFile)) yield* Effect.sleep(POLL_MS)
  return {
    /** Ends it at once. */
    kill: Effect.andThen(
      Effect.sync(() => process.kill(server.pid, "SIGKILL")),
      Effect.asVoid(ExitCode.of(server))
    )
  }
}, Effect.orDie)
