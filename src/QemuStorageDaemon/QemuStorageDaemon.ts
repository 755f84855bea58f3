/**
 * A `qemu-storage-daemon` (QSD) that lives as long as a Scope: images in, vhost-user-blk sockets and a monitor out.
 *
 * Everything of one daemon lies in a private folder of its own: a socket for each export and one for the monitor. The
 * daemon is ready when its monitor has answered, for it answers only after every export listens. When the Scope
 * closes, by success, failure or interruption, the daemon gets SIGTERM, after 1 s SIGKILL, and the folder goes; the
 * images stay. If starting fails, all of that happens before the error is seen; it happens too if this process is killed.
 * A daemon that ends by itself is not restarted: `exitCode` tells.
 *
 * A vhost-user-blk export serves one client at a time; a second one connects and waits. A qcow2 image is locked while it
 * is served; that a raw image is written by one daemon only is the caller's care.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import { EINVAL, EIO, ENAMETOOLONG, ENOENT } from "../Errno.ts"
import * as Qmp from "../Qmp/Qmp.ts"
import * as ExitCode from "./ExitCode.ts"
import * as OrphanGuard from "./OrphanGuard.ts"

const File = {
  /** The image's file. */
  path: Schema.NonEmptyString
}

/**
 * What an export serves: a file with a raw or qcow2 image, or `null-co`, a disk that drops what is written and answers
 * reads at once, or after `latencyMs`, with zeros where `readZeroes` asks for them and with nothing in particular else.
 *
 * @category models
 * @since 0.1.0
 */
export const Image = Schema.Union([
  Schema.TaggedStruct("raw", File),
  Schema.TaggedStruct("qcow2", File),
  Schema.TaggedStruct("null-co", {
    /** In bytes. */
    size: Schema.Union([Schema.Natural, Schema.ByteSize]),
    /** Reads give zeros. Default: the buffer stays as it was. */
    readZeroes: Schema.Boolean.pipe(Schema.withDecodingDefault(Effect.succeed(false))),
    /** How long each request takes, to have some in flight when something happens. Default: 0. */
    latencyMs: Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0)).pipe(
      Schema.withDecodingDefault(Effect.succeed(0))
    )
  })
])

/**
 * What an export serves, as it is written down.
 *
 * @category models
 * @since 0.1.0
 */
export type Image = typeof Image.Encoded

/**
 * One disk to serve.
 *
 * @category models
 * @since 0.1.0
 */
export const Export = Schema.Struct({
  image: Image,
  /** Default: true. */
  writable: Schema.Boolean.pipe(Schema.withDecodingDefault(Effect.succeed(true))),
  /** Default: 1. */
  numQueues: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65535 })).pipe(
    Schema.withDecodingDefault(Effect.succeed(1))
  ),
  /** A power of two from 512 to 2 MiB (QEMU: `check_block_size`). Default: 512. */
  logicalBlockSize: Schema.Int.check(
    Schema.isBetween({ minimum: 512, maximum: 2 ** 21 }),
    Schema.makeFilter((size) => Number.isInteger(Math.log2(size)) || "must be a power of two")
  ).pipe(Schema.withDecodingDefault(Effect.succeed(512))),
  /** Names the export, its block node and its socket. Default: `disk0`, `disk1`, … */
  id: Schema.optional(Schema.String.check(Schema.isPattern(
    /^[A-Za-z][A-Za-z0-9._-]{0,30}$/,
    { message: "must be a letter, then at most 30 letters, digits, dots, dashes and underscores" }
  )))
})

/**
 * One disk to serve, as it is written down.
 *
 * @category models
 * @since 0.1.0
 */
export type Export = typeof Export.Encoded

/**
 * What a daemon is started with.
 *
 * @category models
 * @since 0.1.0
 */
export const Options = Schema.Struct({
  /** The disks to serve, one at least. */
  exports: Schema.NonEmptyArray(Export),
  /** The program. Default: what the environment names in EFFECT_BLKIO_QSD, else `qemu-storage-daemon` on PATH. */
  binary: Schema.optional(Schema.NonEmptyString),
  /** How the daemon reads and writes files. Default: QEMU's, `threads`. */
  aio: Schema.optional(Schema.Literals(["threads", "native", "io_uring"])),
  /** How the daemon caches files. Default: in the page cache, and a flush is a flush. */
  cache: Schema.optional(Schema.Struct({
    /** Past the page cache (O_DIRECT). `aio: "native"` needs it. */
    direct: Schema.Boolean.pipe(Schema.withDecodingDefault(Effect.succeed(false))),
    /** Flushes are ignored. */
    noFlush: Schema.Boolean.pipe(Schema.withDecodingDefault(Effect.succeed(false)))
  })),
  /** Whether discarded blocks are given back to the file system. Default: `unmap`, they are. */
  discard: Schema.Literals(["ignore", "unmap"]).pipe(Schema.withDecodingDefault(Effect.succeed("unmap" as const))),
  /** How long starting may take. Default: 10 s; numbers are milliseconds. */
  startTimeout: Schema.Union([Schema.Duration, Schema.DurationFromString, Schema.DurationFromMillis]).pipe(
    Schema.withDecodingDefault(Effect.succeed(10_000))
  )
}).check(
  Schema.makeFilter((options) =>
    options.aio !== "native" || options.cache?.direct === true ||
    { path: ["aio"], issue: "native needs cache.direct" }
  )
)

/**
 * What a daemon is started with, as it is written down.
 *
 * @category models
 * @since 0.1.0
 */
export type Options = typeof Options.Encoded

/**
 * A disk that a running daemon serves.
 *
 * @category models
 * @since 0.1.0
 */
export interface RunningExport {
  /** The export's id, for QMP. */
  readonly id: string
  /** The socket that a vhost-user front-end connects to. */
  readonly socketPath: string
  /** The block node's name, for QMP. */
  readonly nodeName: string
}

/**
 * A running daemon.
 *
 * @category models
 * @since 0.1.0
 */
export interface Daemon {
  readonly pid: number
  /** QEMU's version, as in `7.2.22`. */
  readonly version: string
  /** The private folder; it goes with the daemon. */
  readonly directory: string
  /** What it serves, in the order of the options. */
  readonly exports: Arr.NonEmptyReadonlyArray<RunningExport>
  /** The first export's socket. */
  readonly socketPath: string
  /** The connection to its monitor. */
  readonly qmp: Qmp.Qmp
  /** Sends a signal and does not wait for what comes of it. Nothing happens where the daemon has ended. */
  readonly kill: (signal: ChildProcess.Signal) => Effect.Effect<void>
  /** Waits for the daemon's end: its exit code, or 128 + the number of the signal that ended it. */
  readonly exitCode: Effect.Effect<number>
  /** What the daemon has said on stderr so far, of that the last 16 Ki characters. */
  readonly stderr: Effect.Effect<string>
}

/**
 * How starting can fail: options that break a rule (EINVAL), no such program (ENOENT), a folder for temporary files
 * whose name is too long for a socket (ENAMETOOLONG), and whatever else, with the daemon's stderr in `detail` (EIO).
 *
 * @category errors
 * @since 0.1.0
 */
export type StartError = EINVAL | ENOENT | ENAMETOOLONG | EIO

/**
 * What starting needs of the platform; `NodeServices.layer` has it.
 *
 * @category models
 * @since 0.1.0
 */
export type Requirements = ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Path.Path

/**
 * A running daemon, as a service.
 *
 * @category services
 * @since 0.1.0
 */
export class QemuStorageDaemon extends Context.Service<QemuStorageDaemon, Daemon>()(
  "effect-blkio/QemuStorageDaemon"
) {}

/**
 * Starts a daemon, waits until all its exports listen, and ends it with the Scope.
 *
 * @example
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Effect } from "effect"
 * import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
 *
 * const program = Effect.gen(function*() {
 *   const daemon = yield* QemuStorageDaemon.make({
 *     exports: [{ image: { _tag: "null-co", size: 1024 ** 3 }, numQueues: 4 }]
 *   })
 *   const [served] = yield* daemon.qmp.queryBlockExports
 *   console.log(served?.id) // => "disk0"
 * })
 *
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (options: Options) => Effect.Effect<Daemon, StartError, Requirements | Scope.Scope> = Effect.fn(
  "QemuStorageDaemon.make"
)(function*(options) {
  const decoded = yield* decodeOptions(options).pipe(
    Effect.mapError((error) => new EINVAL({ operation, detail: error.message, cause: error }))
  )
  const scope = yield* Scope.fork(yield* Effect.scope)
  return yield* start(decoded).pipe(
    Scope.provide(scope),
    Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
  )
})

/**
 * Provides a daemon that runs as long as the layer lives.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<QemuStorageDaemon, StartError, Requirements> =>
  Layer.effect(QemuStorageDaemon, make(options))

/** How long a program may take to tell its version: one that waits for something is not the daemon. */
const availableTimeLimit = Duration.seconds(10)

/**
 * Tells whether the program that {@link make} would start is there and runs.
 *
 * @category availability
 * @since 0.1.0
 */
export const available: Effect.Effect<boolean, never, ChildProcessSpawner.ChildProcessSpawner> = Effect.gen(
  function*() {
    const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
    const binary = yield* binaryFromEnvironment
    const version = ChildProcess.make(binary, ["--version"], { stdin: "ignore", forceKillAfter: "1 second" })
    return (yield* spawner.exitCode(version)) === 0
  }
).pipe(Effect.timeout(availableTimeLimit), Effect.orElseSucceed(() => false))

const operation = "start"

/** How much of the daemon's stderr is kept, in characters. */
const stderrLimit = 16 * 1024

/** How often it is tried whether the monitor listens. */
const monitorPollInterval = Duration.millis(5)

/** How long the rest of stderr may take to arrive after the daemon's end: a descendant may keep the pipe open. */
const stderrDrainLimit = Duration.seconds(1)

const decodeOptions = Schema.decodeUnknownEffect(Options, { errors: "all", onExcessProperty: "error" })

const badEnvironment = (error: Config.ConfigError) =>
  new EINVAL({ operation: "read environment", detail: error.message, cause: error })

const binaryFromEnvironment = Config.String("EFFECT_BLKIO_QSD").pipe(
  Config.withDefault(""),
  Effect.map((binary) => binary === "" ? "qemu-storage-daemon" : binary),
  Effect.mapError(badEnvironment)
)

const notFound = (binary: string, what: string, cause?: PlatformError.PlatformError) =>
  new ENOENT({
    operation,
    path: binary,
    detail: `${what}; Debian has qemu-storage-daemon in the package qemu-system-common (bookworm), `
      + "and EFFECT_BLKIO_QSD may name another one",
    ...(cause === undefined ? {} : { cause })
  })

const start = Effect.fnUntraced(function*(
  options: typeof Options.Type
): Effect.fn.Return<Daemon, StartError, Requirements | Scope.Scope> {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const binary = options.binary ?? (yield* binaryFromEnvironment)
  const failed = (detail: string, cause?: unknown) =>
    new EIO({ operation, path: binary, detail, ...(cause === undefined ? {} : { cause }) })

  const directory = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-" }).pipe(
    Effect.mapError((error) => failed(`no folder for its sockets: ${error.message}`, error)),
    // TMPDIR may be relative; the paths are to stay true when this process changes its folder.
    Effect.map((folder) => path.resolve(folder))
  )
  const exports = Arr.map(options.exports, (disk, index) => {
    const id = disk.id ?? `disk${index}`
    return { disk, id, nodeName: id, socketPath: path.join(directory, `${id}.sock`) }
  })
  const monitorPath = path.join(directory, "monitor")
  for (const [index, { id, socketPath }] of exports.entries()) {
    if (exports.findIndex((other) => other.id === id) !== index) {
      return yield* new EINVAL({ operation, detail: `two exports with the id ${id}: each needs its own` })
    }
    if (Buffer.byteLength(socketPath) > Qmp.socketPathLimit) {
      return yield* new ENAMETOOLONG({
        operation,
        path: socketPath,
        detail: `a socket's path has at most ${Qmp.socketPathLimit} bytes; set TMPDIR to a shorter one`
      })
    }
  }

  const daemon = yield* ChildProcess.make(binary, [
    ...exports.flatMap(({ disk, id, nodeName, socketPath }) => [
      "--blockdev",
      JSON.stringify({ "node-name": nodeName, ...blockdev(disk, options, path) }),
      "--export",
      JSON.stringify({
        type: "vhost-user-blk",
        id,
        "node-name": nodeName,
        addr: { type: "unix", path: socketPath },
        writable: disk.writable,
        "num-queues": disk.numQueues,
        "logical-block-size": disk.logicalBlockSize
      })
    ]),
    // Last, so that an answer from the monitor means that the exports listen. In this syntax a comma is written twice.
    "--chardev",
    `socket,id=monitor,server=on,wait=off,path=${monitorPath.replaceAll(",", ",,")}`,
    "--monitor",
    "chardev=monitor"
  ], { stdin: "ignore", stdout: "ignore", killSignal: "SIGTERM", forceKillAfter: "1 second" }).pipe(
    Effect.mapError((error) =>
      error.reason._tag === "NotFound" ? notFound(binary, "no such program", error) : failed(error.message, error)
    )
  )

  yield* OrphanGuard.make(daemon.pid, directory)

  let stderr = ""
  const stderrReader = yield* daemon.stderr.pipe(
    Stream.decodeText(),
    Stream.runForEach((text) =>
      Effect.sync(() => {
        stderr = (stderr + text).slice(-stderrLimit)
      })
    ),
    Effect.ignore,
    Effect.forkScoped({ startImmediately: true })
  )
  const saying = () => stderr.trim() === "" ? "nothing on stderr" : stderr.trim()

  const exitCode = ExitCode.of(daemon)
  const ended = exitCode.pipe(
    Effect.tap(() => Fiber.await(stderrReader).pipe(Effect.timeoutOption(stderrDrainLimit))),
    Effect.flatMap((code) => Effect.fail(failed(`ended with exit code ${code} before it was ready: ${saying()}`)))
  )
  const qmp = yield* Qmp.make({ path: monitorPath }).pipe(
    Effect.retry({
      schedule: Schedule.spaced(monitorPollInterval),
      while: ({ _tag }) => _tag === "ENOENT" || _tag === "ECONNREFUSED" || _tag === "ENOTCONN"
    }),
    Effect.mapError((error) => failed(`its monitor: ${error.message}; ${saying()}`, error)),
    Effect.raceFirst(ended),
    Effect.timeoutOrElse({
      duration: options.startTimeout,
      orElse: () => Effect.fail(failed(`not ready within ${Duration.format(options.startTimeout)}: ${saying()}`))
    })
  )

  return {
    pid: daemon.pid,
    version: qmp.version,
    directory,
    exports: Arr.map(exports, ({ id, nodeName, socketPath }) => ({ id, nodeName, socketPath })),
    socketPath: exports[0].socketPath,
    qmp,
    kill: (signal) =>
      daemon.isRunning.pipe(
        // While it runs, or is a zombie that Node has not seen yet, the pid is the daemon's and nobody else's.
        Effect.filterOrFail((running) => running),
        Effect.andThen(Effect.try(() => process.kill(daemon.pid, signal))),
        Effect.ignore
      ),
    exitCode,
    stderr: Effect.sync(() => stderr)
  }
})

/** QEMU's BlockdevOptions for an image (QEMU: qapi/block-core.json), without the node's name. */
const blockdev = (disk: typeof Export.Type, options: typeof Options.Type, path: Path.Path) => {
  const general = {
    "read-only": !disk.writable,
    discard: options.discard,
    cache: { direct: options.cache?.direct === true, "no-flush": options.cache?.noFlush === true }
  }
  const { image } = disk
  if (image._tag === "null-co") {
    return {
      ...general,
      driver: "null-co",
      size: Number(image.size),
      "read-zeroes": image.readZeroes,
      "latency-ns": Math.round(image.latencyMs * 1e6)
    }
  }
  return {
    ...general,
    driver: image._tag,
    file: { ...general, driver: "file", filename: path.resolve(image.path), aio: options.aio }
  }
}
