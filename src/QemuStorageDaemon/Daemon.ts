/**
 * A storage daemon that serves disks: the program, with the nodes and exports that were made in it.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import * as BlockNodes from "./BlockNodes.ts"
import type { Source } from "./Image.ts"
import type { DecodedDaemonOptions } from "./Options.ts"
import * as Program from "./Program.ts"

/**
 * A running daemon.
 *
 * @category models
 * @since 0.1.0
 */
export interface Daemon extends Program.Program {
  /** What it serves, in the order of the options. */
  readonly exports: Arr.NonEmptyReadonlyArray<Program.RunningExport>
  /** The first export's socket. */
  readonly socketPath: string
}

/**
 * Why a daemon cannot be started, or an image opened: see {@link LaunchError} and what the system says of files; EBUSY
 * for an image that another program has locked, ENOTSUP for a format or an engine this daemon has not, which Debian may have in
 * another package, EACCES for a wrong passphrase, too, EINVAL for one that is not in the format that it was said to be.
 *
 * @category errors
 * @since 0.1.0
 */
export type StartError = Program.LaunchError | Program.ServeError | BlockNodes.NodesError

/** One disk to serve. */
export interface Disk {
  readonly id: string
  readonly image: Source
  readonly writable: boolean
  readonly numQueues: number | undefined
  readonly logicalBlockSize: number | undefined
  /** Finds out what to make of the image. */
  readonly nodes: Effect.Effect<BlockNodes.BlockNodes, BlockNodes.NodesError, BlockNodes.Needs>
}

const DEFAULT_START_TIMEOUT = Duration.seconds(10)
const DEFAULT_STOP_TIMEOUT = Duration.seconds(5)

/** How a program is launched where nobody has said otherwise. */
export const launchOptionsOf = (
  { binary, startTimeout = DEFAULT_START_TIMEOUT, stopTimeout = DEFAULT_STOP_TIMEOUT }: Pick<
    DecodedDaemonOptions,
    "binary" | "startTimeout" | "stopTimeout"
  >
): Program.LaunchOptions => ({ binary, startTimeout, stopTimeout })

/** Finds out what to make of an image, as the daemon is to open it. */
export const nodesOf = (
  options: DecodedDaemonOptions,
  { id, image, writable }: Pick<Disk, "id" | "image" | "writable">
): Disk["nodes"] =>
  Effect.flatMap(BlockNodes.describe(image), (described) =>
    BlockNodes.make(described, {
      readOnly: !writable,
      discard: options.discard ?? "unmap",
      direct: options.cache?.direct ?? false,
      noFlush: options.cache?.noFlush ?? false,
      aio: options.aio
    }, id))

/** Starts a daemon, and waits until all its disks can be connected to. If it fails, nothing is left. */
export const start: (
  options: DecodedDaemonOptions,
  disks: Arr.NonEmptyReadonlyArray<Disk>
) => Effect.Effect<Daemon, StartError, Program.Requirements | Scope.Scope> = Effect.fnUntraced(
  function*(options, disks) {
    const launch = launchOptionsOf(options)
    const deadline = performance.now() + Duration.toMillis(launch.startTimeout)
    const serve = (program: Program.Program) => (disk: Disk) =>
      Effect.flatMap(disk.nodes, (nodes) =>
        Program.serve(program, nodes, {
          deadline,
          id: disk.id,
          name: BlockNodes.nameOf(disk.image),
          writable: disk.writable,
          numQueues: disk.numQueues ?? 1,
          logicalBlockSize: disk.logicalBlockSize ?? 512,
          iothread: options.iothread ?? false
        }))
    const scope = yield* Scope.fork(yield* Effect.scope)
    return yield* Effect.gen(function*() {
      const program = yield* Program.launch(launch)
      const exports = yield* Effect.forEach(disks, serve(program)).pipe(
        // One that hangs does not hear that it is to end.
        Effect.tapError((error) => Predicate.isTagged(error, "ETIMEDOUT") ? program.kill("SIGKILL") : Effect.void)
      )
      return { ...program, exports, socketPath: exports[0].socketPath }
    }).pipe(
      Scope.provide(scope),
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
    )
  }
)
