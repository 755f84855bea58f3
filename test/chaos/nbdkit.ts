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

/** Where a server listens. */
export type Place = { readonly socket: string } | { readonly port: number }

/** Serves an image file through filters until the Scope closes; `settings` are those of the filters. */
export const start = Effect.fnUntraced(function*(
  image: string,
  place: Place,
  filters: ReadonlyArray<string> = [],
  settings: ReadonlyArray<string> = []
) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-nbd-" })
  // Written once it listens.
  const pidFile = `${folder}/pid`
  // One that was killed has left it.
  if ("socket" in place) yield* fs.remove(place.socket, { force: true })
  const server = yield* ChildProcess.make("nbdkit", [
    "--foreground",
    "--exit-with-parent",
    "--pidfile",
    pidFile,
    ...("socket" in place ? ["--unix", place.socket] : ["--ipaddr", "127.0.0.1", "--port", String(place.port)]),
    ...filters.map((filter) => `--filter=${filter}`),
    "file",
    image,
    ...settings
  ], { stdin: "ignore", stdout: "ignore", stderr: "ignore", forceKillAfter: "1 second" })
  while (!existsSync(pidFile)) yield* Effect.sleep(POLL_MS)
  const signal = (name: NodeJS.Signals) => Effect.sync(() => process.kill(server.pid, name))
  return {
    stop: signal("SIGSTOP"),
    goOn: signal("SIGCONT"),
    /** Ends it at once. */
    kill: Effect.andThen(signal("SIGKILL"), Effect.asVoid(ExitCode.of(server)))
  }
}, Effect.orDie)
