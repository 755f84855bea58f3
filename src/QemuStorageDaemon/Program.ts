/**
 * One `qemu-storage-daemon` (QSD): the program, its monitor, and what it serves.
 *
 * Its command line has the monitor and nothing else: images, secrets and exports are made by its monitor, which answers what
 * is wrong with each. Everything of one daemon lies in a private folder of its own: a socket for each export and one
 * for the monitor. When the Scope closes, by success, failure or interruption, the daemon gets SIGTERM, after `stopTimeout`
 * SIGKILL, and the folder goes; the images stay. It happens too if this process is killed.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ChildProcess from "effect/process/ChildProcess"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Errno from "../Errno.ts"
import * as Qmp from "../Qmp/Qmp.ts"
import * as Backing from "./Backing.ts"
import type { BlockNodes } from "./BlockNodes.ts"
import * as ExitCode from "./ExitCode.ts"
import * as OrphanGuard from "./OrphanGuard.ts"
import * as Refusal from "./Refusal.ts"

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

/** A program that runs, and serves nothing yet. */
export interface Program {
  readonly pid: number
  /** QEMU's version, as in `7.2.22`. */
  readonly version: string
  /** The private folder; it goes with the daemon. */
  readonly directory: string
  /** The connection to its monitor. */
  readonly qmp: Qmp.Qmp
  /** Sends a signal and does not wait for what comes of it. Nothing happens where the daemon has ended. */
  readonly kill: (signal: ChildProcess.Signal) => Effect.Effect<void>
  /** Ends the daemon as closing its Scope does, and waits for it: it first has its images in order. */
  readonly stop: Effect.Effect<void>
  /** Waits for the daemon's end: its exit code, or 128 + the number of the signal that ended it. */
  readonly exitCode: Effect.Effect<number>
  /** What the daemon has said on stderr so far, of that the last 16 Ki characters. */
  readonly stderr: Effect.Effect<string>
}

/**
 * Why a daemon cannot be started: no such program (ENOENT), one that may not be run (EACCES) or is too old (ENOTSUP), a folder
 * for temporary files whose name is too long for a socket (ENAMETOOLONG), not ready in time (ETIMEDOUT), and whatever else, with
 * the daemon's stderr in `detail` (EIO).
 *
 * @category errors
 * @since 0.1.0
 */
export type LaunchError =
  | Errno.ENOENT
  | Errno.EACCES
  | Errno.ENOTSUP
  | Errno.ENAMETOOLONG
  | Errno.ETIMEDOUT
  | Errno.EINVAL
  | Errno.EIO

/**
 * What starting needs of the platform; `NodeServices.layer` has it.
 *
 * @category models
 * @since 0.1.0
 */
export type Requirements = ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Path.Path

/** How a program is started and ended. */
export interface LaunchOptions {
  readonly binary: string | undefined
  readonly startTimeout: Duration.Duration
  readonly stopTimeout: Duration.Duration
}

const operation = "start"

/** How much of the daemon's stderr is kept, in characters. */
const stderrLimit = 16 * 1024

/** How often it is tried whether the monitor listens. */
const monitorPollInterval = Duration.millis(5)

/** How long the rest of stderr may take to arrive after the daemon's end: a descendant may keep the pipe open. */
const stderrDrainLimit = Duration.seconds(1)

/** The first version whose monitor makes vhost-user-blk exports (QEMU: qapi/block-export.json, "Since: 5.2"). */
const firstVersion = [5, 2] as const

/** The program's name: what the environment names in EFFECT_BLKIO_QSD, else `qemu-storage-daemon` on PATH. */
export const binaryFromEnvironment: Effect.Effect<string, Errno.EINVAL> = Config.String("EFFECT_BLKIO_QSD").pipe(
  Config.withDefault(""),
  Effect.map((binary) => binary === "" ? "qemu-storage-daemon" : binary),
  Effect.mapError((error) => new Errno.EINVAL({ operation: "read environment", detail: error.message, cause: error }))
)

/** Starts the program and waits until its monitor answers. */
export const launch: (options: LaunchOptions) => Effect.Effect<Program, LaunchError, Requirements | Scope.Scope> =
  Effect.fnUntraced(function*(options) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const { startTimeout, stopTimeout } = options
    const binary = options.binary ?? (yield* binaryFromEnvironment)
    const failed = (detail: string, cause?: unknown) =>
      new Errno.EIO({ operation, path: binary, detail, ...(cause === undefined ? {} : { cause }) })

    const directory = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-" }).pipe(
      Effect.mapError((error) => failed(`no folder for its sockets: ${error.message}`, error)),
      // TMPDIR may be relative; the paths are to stay true when this process changes its folder.
      Effect.map((folder) => path.resolve(folder))
    )
    const monitorPath = path.join(directory, "monitor")
    yield* checkSocketPath(monitorPath)
    // Older than the daemon, so it closes after it.
    const afterDaemon = yield* Scope.fork(yield* Effect.scope)
    const daemon = yield* ChildProcess.make(binary, [
      // In this syntax a comma is written twice.
      "--chardev",
      `socket,id=monitor,server=on,wait=off,path=${monitorPath.replaceAll(",", ",,")}`,
      "--monitor",
      "chardev=monitor"
    ], { stdin: "ignore", stdout: "ignore", killSignal: "SIGTERM", forceKillAfter: stopTimeout }).pipe(
      Effect.mapError((error) => cannotRun(binary, error))
    )
    yield* OrphanGuard.make(daemon.pid, directory, stopTimeout)

    let stderr = ""
    const stderrReader = yield* daemon.stderr.pipe(
      Stream.decodeText(),
      Stream.runForEach((text) =>
        Effect.sync(() => {
          stderr = (stderr + text).slice(-stderrLimit)
        })
      ),
      Effect.ignore,
      Effect.forkIn(afterDaemon, { startImmediately: true }),
      // A pipe that is not read to its end stays open, where its process ended before the reader did.
      Effect.tap((reader) =>
        Scope.addFinalizer(afterDaemon, Effect.timeoutOption(Fiber.await(reader), stderrDrainLimit))
      ),
      Effect.uninterruptible
    )
    const saying = () => stderr.trim() === "" ? "nothing on stderr" : stderr.trim()

    const exitCode = ExitCode.of(daemon)
    const ended = exitCode.pipe(
      Effect.tap(() => Fiber.await(stderrReader).pipe(Effect.timeoutOption(stderrDrainLimit))),
      Effect.flatMap((code) => Effect.fail(failed(`ended with exit code ${code} before it was ready: ${saying()}`)))
    )
    const qmp = yield* Qmp.make({ path: monitorPath, timeLimit: startTimeout }).pipe(
      Effect.retry({
        schedule: Schedule.spaced(monitorPollInterval),
        while: ({ _tag }) => _tag === "ENOENT" || _tag === "ECONNREFUSED" || _tag === "ENOTCONN"
      }),
      Effect.mapError((error) => failed(`its monitor: ${error.message}; ${saying()}`, error)),
      Effect.raceFirst(ended),
      Effect.timeoutOrElse({
        duration: startTimeout,
        orElse: () =>
          Effect.fail(
            new Errno.ETIMEDOUT({
              operation,
              path: binary,
              detail: `not ready within ${Duration.format(startTimeout)}: ${saying()}`
            })
          )
      })
    )
    const [major = 0, minor = 0] = qmp.version.split(".").map(Number)
    const [firstMajor, firstMinor] = firstVersion
    if (major < firstMajor || (major === firstMajor && minor < firstMinor)) {
      return yield* new Errno.ENOTSUP({
        operation,
        path: binary,
        detail: `version ${qmp.version}: must be ${firstVersion.join(".")} or later`
      })
    }
    const kill: Program["kill"] = (signal) =>
      daemon.isRunning.pipe(
        // While it runs, or is a zombie that Node has not seen yet, the pid is the daemon's and nobody else's.
        Effect.filterOrFail((running) => running),
        Effect.andThen(Effect.try(() => process.kill(daemon.pid, signal))),
        Effect.ignore
      )
    return {
      pid: daemon.pid,
      version: qmp.version,
      directory,
      qmp,
      kill,
      stop: kill("SIGTERM").pipe(
        Effect.andThen(exitCode),
        Effect.timeoutOption(stopTimeout),
        Effect.andThen(kill("SIGKILL")),
        Effect.andThen(exitCode),
        Effect.asVoid
      ),
      exitCode,
      stderr: Effect.sync(() => stderr)
    }
  })

/** What an export is made of. */
export interface ExportOptions {
  /** When it must be there, by `performance.now()`. */
  readonly deadline: number
  readonly id: string
  /** Says what it is, for errors. */
  readonly name: string
  readonly writable: boolean
  readonly numQueues: number
  readonly logicalBlockSize: number
  /** Whether it is served by a thread of its own. */
  readonly iothread: boolean
}

/** Why an image cannot be served. */
export type ServeError = Backing.BackingError | Errno.ENAMETOOLONG

/** Makes the nodes of an image, and an export that listens. */
export const serve: (
  program: Program,
  nodes: BlockNodes,
  options: ExportOptions
) => Effect.Effect<RunningExport, ServeError, FileSystem.FileSystem | Path.Path> = Effect.fnUntraced(
  function*(program, nodes, options) {
    const { deadline, id, logicalBlockSize, name, numQueues, writable } = options
    const socketPath = (yield* Path.Path).join(program.directory, `${id}.sock`)
    yield* checkSocketPath(socketPath)
    const attempting = attempt(program, name)
    const execute: Backing.Execute = (command, args) =>
      attempting(
        program.qmp.execute(command, args).pipe(
          // The monitor's own limit is on each answer, and this one on all.
          Effect.timeoutOrElse({
            duration: Math.max(0, deadline - performance.now()),
            orElse: () => Effect.fail(new Errno.ETIMEDOUT({ operation: command, detail: "no answer in time" }))
          })
        )
      )
    for (const object of nodes.objects) yield* execute("object-add", Redacted.value(object))
    const iothread = `${id}-iothread`
    if (options.iothread) yield* execute("object-add", { "qom-type": "iothread", id: iothread })
    const node = yield* Backing.resolve(nodes.node, execute, name)
    yield* execute("blockdev-add", { ...node, "node-name": id })
    yield* execute("block-export-add", {
      "type": "vhost-user-blk",
      id,
      "node-name": id,
      "addr": { type: "unix", path: socketPath },
      writable,
      "num-queues": numQueues,
      "logical-block-size": logicalBlockSize,
      ...(options.iothread ? { iothread } : {})
    })
    return { id, nodeName: id, socketPath }
  }
)

/** Has what a monitor refuses for an image be an error of the image. */
export const attempt = ({ exitCode, stderr }: Program, name: string) =>
<A, R>(
  asked: Effect.Effect<A, Qmp.CommandError | Qmp.JobError, R>
): Effect.Effect<A, Refusal.Refusal, R> => {
  const fields = { operation: "open", path: name }
  return Effect.catchTags(asked, {
    QmpError: (error) => Refusal.from(error, name),
    JobError: (error) => Refusal.from(error, name),
    ETIMEDOUT: (cause) => new Errno.ETIMEDOUT({ ...fields, detail: `${cause.operation}: ${cause.detail}`, cause }),
    EPROTO: (cause) => new Errno.EIO({ ...fields, detail: cause.message, cause }),
    // It has ended, or is about to.
    ENOTCONN: (cause) =>
      Effect.flatMap(
        Effect.all([Effect.timeoutOption(exitCode, stderrDrainLimit), stderr]),
        ([code, said]) => {
          const how = code._tag === "Some" ? `ended with exit code ${code.value}` : "closed its monitor"
          return Effect.fail(new Errno.EIO({ ...fields, detail: `the daemon ${how}: ${said.trim()}`, cause }))
        }
      )
  })
}

const checkSocketPath = (path: string) =>
  Buffer.byteLength(path) <= Qmp.socketPathLimit ? Effect.void : new Errno.ENAMETOOLONG({
    operation,
    path,
    detail: `a socket's path has at most ${Qmp.socketPathLimit} bytes; set TMPDIR to a shorter one`
  })

const cannotRun = (binary: string, error: PlatformError.PlatformError) => {
  const fields = { operation, path: binary, cause: error }
  switch (error.reason._tag) {
    case "NotFound":
      return new Errno.ENOENT({
        ...fields,
        detail: "no such program; Debian has qemu-storage-daemon in the package qemu-system-common (bookworm), "
          + "and EFFECT_BLKIO_QSD may name another one"
      })
    case "PermissionDenied":
      return new Errno.EACCES({ ...fields, detail: error.message })
    default:
      return new Errno.EIO({ ...fields, detail: error.message })
  }
}
