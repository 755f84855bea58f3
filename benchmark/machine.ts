/**
 * The machine, and the peers that are on it.
 */
import { Config, Deferred, Effect, FileSystem, Schema } from "effect"
import { ChildProcess } from "effect/process"
import { createServer } from "node:net"
import { arch, cpus, release } from "node:os"
import { output, RunFailed } from "./measure.ts"
import { fioJob, type Peer } from "./programs.ts"

/** Where a result was made. */
export interface Machine {
  readonly processor: string
  readonly processors: number
  readonly kernel: string
  readonly node: string
  readonly storageDaemon: string
  /** The peers that took part, with their versions. */
  readonly peers: Readonly<Record<string, string>>
}

/** Tells what is known without running anything. */
export const here = (): Pick<Machine, "processor" | "processors" | "kernel" | "node"> => ({
  processor: `${cpus()[0]?.model.trim() || "unknown"}, ${arch()}`,
  processors: cpus().length,
  kernel: `Linux ${release()}`,
  node: process.version
})

/** A peer that is here. */
export interface FoundPeer {
  readonly path: string
  readonly version: string
}

/** Peers by name: found, or the reason why one is left out. */
export type Peers = Readonly<Record<Peer, FoundPeer | string>>

const HOW_TO_GET_BLKIO_BENCH =
  "BLKIO_BENCH is not set. Compile examples/blkio-bench.c of libblkio (cc -O2 -D_GNU_SOURCE blkio-bench.c -lblkio -lpthread; "
  + "Debian has it in libblkio-dev), and set BLKIO_BENCH to the program's path"

/** A socket that takes a connection and says nothing. */
const silentSocket = Effect.fnUntraced(function*() {
  const folder = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "blkio-" }))
  const path = `${folder}/silent.sock`
  const connected = Deferred.makeUnsafe<void>()
  yield* Effect.acquireRelease(
    Effect.callback<ReturnType<typeof createServer>>((resume) => {
      const server = createServer(() => Deferred.doneUnsafe(connected, Effect.void))
      server.listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )
  return { path, connected: Deferred.await(connected) }
})

/**
 * Finds libblkio's version: `blkio-bench` does not tell it, but the name of the library that it has loaded does. While it waits
 * for an answer from a socket, it has.
 */
const findBlkioBench = Effect.gen(function*() {
  const path = yield* Config.String("BLKIO_BENCH").pipe(Config.withDefault(""), Effect.orDie)
  if (path === "") return HOW_TO_GET_BLKIO_BENCH
  const socket = yield* silentSocket()
  const failed = (reason: string) => new RunFailed({ command: `BLKIO_BENCH=${path}`, reason })
  const child = yield* ChildProcess.make(path, ["virtio-blk-vhost-user", `path=${socket.path}`], {
    stdin: "ignore",
    forceKillAfter: "1 second"
  }).pipe(Effect.mapError(({ message }) => failed(message)))
  const ended = Effect.exit(child.exitCode).pipe(Effect.andThen(failed("it ended before it connected to a socket")))
  yield* Effect.raceFirst(socket.connected, ended)
  const maps = yield* FileSystem.FileSystem.use((fs) => fs.readFileString(`/proc/${child.pid}/maps`))
  return { path, version: /libblkio\.so\.(\d\S*)$/mu.exec(maps)?.[1] ?? "of an unknown version" }
}).pipe(Effect.scoped)

const FioVersion = Schema.fromJsonString(Schema.Struct({ "fio version": Schema.String }))

/** Finds fio, and tries whether it may use io_uring, which containers often forbid. */
const findFio = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const file = yield* fs.makeTempFileScoped()
  const load = { readwrite: "read", blockBytes: 4096, depth: 1, seconds: 0.01, rampSeconds: 0 } as const
  yield* fs.truncate(file, load.blockBytes)
  const { stdout } = yield* output(["fio", ...fioJob(file, load)], load.seconds)
  const { "fio version": version } = yield* Schema.decodeEffect(FioVersion)(stdout)
  return { path: "fio", version: version.replace("fio-", "") }
}).pipe(
  Effect.scoped,
  Effect.catch(({ message }) => Effect.succeed(`${message}. Debian has it in the package fio`))
)

/** Looks for the peers. Fails where BLKIO_BENCH names what is none. */
export const findPeers = Effect.gen(function*() {
  return { "blkio-bench": yield* findBlkioBench, fio: yield* findFio } satisfies Peers
})
