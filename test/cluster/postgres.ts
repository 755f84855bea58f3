/**
 * A PostgreSQL server for a test: data in a folder of its own, at a port of its own, gone with the Scope.
 *
 * Without one {@link postgresIsHere} says so on stderr at import, and throws where EFFECT_BLKIO_REQUIRE_POSTGRES=1 says that
 * skipping is not good enough.
 */
import { Effect, FileSystem, Schedule, Stream } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { chownSync, globSync } from "node:fs"
import { freePort } from "../support/freePort.ts"

/** Where Debian has the programs, of each version its own; the newest last. */
const folder = globSync("/usr/lib/postgresql/*/bin/initdb").toSorted().at(-1)?.replace(/\/initdb$/u, "")

export const postgresIsHere: boolean = folder !== undefined

if (!postgresIsHere) {
  const missing =
    "tests that need a PostgreSQL server: none in /usr/lib/postgresql; Debian has it in the package postgresql"
  if (process.env["EFFECT_BLKIO_REQUIRE_POSTGRES"] === "1") throw new Error(missing)
  console.warn(`\n*** SKIPPED: ${missing}. EFFECT_BLKIO_REQUIRE_POSTGRES=1 makes this a failure. ***\n`)
}

/** The server refuses to be root; every Linux knows this user. */
const NOBODY = 65_534
const isRoot = process.getuid?.() === 0
const asNobody = ["--reuid", String(NOBODY), "--regid", String(NOBODY), "--clear-groups"]

const command = (program: string, args: ReadonlyArray<string>, options: ChildProcess.CommandOptions = {}) =>
  isRoot
    ? ChildProcess.make("setpriv", [...asNobody, `${folder}/${program}`, ...args], options)
    : ChildProcess.make(`${folder}/${program}`, args, options)

/** Starts a server, and answers with the URL of an empty database. */
export const start = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const root = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-postgres-" })
  if (isRoot) yield* Effect.sync(() => chownSync(root, NOBODY, NOBODY))
  const data = `${root}/data`
  const options = { cwd: root, env: { LC_ALL: "C" }, extendEnv: true }
  const init = ["-D", data, "-U", "blkio", "-A", "trust", "-E", "UTF8", "--no-sync"]
  yield* spawner.string(command("initdb", init, options))
  const port = yield* freePort
  const server = yield* command("postgres", ["-D", data, "-k", root, "-h", "127.0.0.1", "-p", String(port), "-F"], {
    ...options,
    stdout: "ignore",
    // Ends its connections, and itself, at once.
    killSignal: "SIGINT"
  })
  let said = ""
  yield* server.stderr.pipe(
    Stream.decodeText,
    Stream.runForEach((text) => Effect.sync(() => void (said += text))),
    Effect.forkScoped
  )
  yield* Effect.suspend(() => said.includes("ready to accept connections") ? Effect.void : Effect.fail(said)).pipe(
    Effect.retry({ times: 600, schedule: Schedule.spaced("50 millis") })
  )
  return `postgres://blkio@127.0.0.1:${port}/postgres`
})
