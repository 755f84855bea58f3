/**
 * Any image as a block device: `qemu-storage-daemon` (QSD) decodes the format or reaches the server, and the disk comes here
 * over vhost-user.
 *
 * {@link layer} gives a program its `BlockDevice` from a path or a description ({@link Image}). The daemon is a part of the
 * device's connection: connecting starts it, in a private folder, and losing it ends it. So a daemon that crashes, or hangs
 * past `deviceTimeout`, is started anew as `restart` says, and what was in flight is sent again (see
 * `VhostUser.Options.reconnect`). Where the format keeps what it has acknowledged in the daemon's memory until a flush, the
 * next flush after a crash fails with EIO: what was written since the last one must be written again.
 *
 * {@link start} runs one daemon with several exports, and leaves it to its own devices.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import type * as ByteSize from "effect/ByteSize"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Struct from "effect/Struct"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import { BlockDevice, type Device } from "../BlockDevice.ts"
import * as Errno from "../Errno.ts"
import type { ReconnectOptions } from "../Transport/ReconnectPolicy.ts"
import { type Recipe, Transport } from "../Transport/Transport.ts"
import * as VhostUser from "../Transport/VhostUser.ts"
import * as VirtioBlk from "../VirtioBlk.ts"
import * as BlockNodes from "./BlockNodes.ts"
import * as Create from "./Create.ts"
import { isTooDeep, Source } from "./Image.ts"
import * as Program from "./Program.ts"

export { Image, Source } from "./Image.ts"
export type { Blkdebug, Http, Iscsi, Luks, Nbd, NullCo, Qcow2, Raw, Rbd, Throttle, Vdi, Vhdx, Vmdk } from "./Image.ts"
export type { CreateError } from "./Create.ts"
export type { LaunchError, Requirements, RunningExport } from "./Program.ts"

/**
 * How a daemon is run, and how it opens its images.
 *
 * @category models
 * @since 0.1.0
 */
export interface DaemonOptions {
  /** The program. Default: what the environment names in EFFECT_BLKIO_QSD, else `qemu-storage-daemon` on PATH. */
  readonly binary?: string
  /** How files are read and written. Default: QEMU's, `threads`. `native` needs `cache.direct`. */
  readonly aio?: "threads" | "native" | "io_uring"
  /** Default: in the page cache, and a flush is a flush. */
  readonly cache?: {
    /** Past the page cache (O_DIRECT), and past librbd's cache. Default false. */
    readonly direct?: boolean
    /** Flushes are ignored. Default false. */
    readonly noFlush?: boolean
  }
  /** Whether discarded blocks are given back to the file system, or the server. Default: `unmap`, they are. */
  readonly discard?: "ignore" | "unmap"
  /** A thread for each export. Default: one for all, the monitor's. */
  readonly iothread?: boolean
  /** How long starting may take, opening the images included. Default 10 s. */
  readonly startTimeout?: Duration.Input
  /** How long the daemon may take to put its images in order when it is to end; then it is killed. Default 5 s. */
  readonly stopTimeout?: Duration.Input
}

/**
 * One disk of several that a daemon serves.
 *
 * @category models
 * @since 0.1.0
 */
export interface Export {
  readonly image: Source
  /** Default: true, where the image can be written. */
  readonly writable?: boolean
  /** Default 1. */
  readonly numQueues?: number
  /** A power of two from 512 to 2 MiB. Default 512. */
  readonly logicalBlockSize?: number
  /** Names the export, its block node and its socket. Default `disk0`, `disk1`, … */
  readonly id?: string
}

/**
 * What {@link start} starts.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartOptions extends DaemonOptions {
  /** The disks to serve, one at least. */
  readonly exports: Arr.NonEmptyReadonlyArray<Export>
}

/**
 * What a transport to an image is made with.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransportOptions extends DaemonOptions {
  /** Default: false, where the image can be written. */
  readonly readOnly?: boolean
  /** How many queues the daemon offers. Default 1. */
  readonly queues?: number
  /** The disk's block size: a power of two from 512 to 2 MiB. Default 512. */
  readonly blockSize?: number
  /**
   * When to start a daemon that went away again, and for how long; a Schedule alone says when. `never`: the device is lost with
   * the daemon. Default: after 50 ms, then after twice that each time up to 2 s, for a minute.
   */
  readonly restart?: "never" | Omit<ReconnectOptions, "keepsCache"> | ReconnectOptions["schedule"]
}

/**
 * All that can be chosen of a device on an image. Its queues are as many as the daemon's, if nobody says otherwise.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends TransportOptions, VirtioBlk.Options {}

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
 * A transport that has a daemon of its own. Its `path` says what the image is.
 *
 * @category models
 * @since 0.1.0
 */
export interface ImageTransport extends Recipe {
  /**
   * The daemon that runs now, for its monitor. What is made there goes with it: the next one serves the image, and nothing
   * else. ENOTCONN where none runs, since nothing is connected or it is being started.
   */
  readonly daemon: Effect.Effect<Daemon, Errno.ENOTCONN>
  /** Whether the disk is opened to be read only. */
  readonly readOnly: boolean
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

/**
 * How opening a device on an image can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export type OpenError = VirtioBlk.ConnectDeviceError | VirtioBlk.StartError

/**
 * The daemon behind a layer's block device, as a service.
 *
 * @category services
 * @since 0.1.0
 */
export class QemuStorageDaemon extends Context.Service<QemuStorageDaemon, Pick<ImageTransport, "daemon">>()(
  "effect-blkio/QemuStorageDaemon"
) {}

const DEFAULT_START_TIMEOUT = Duration.seconds(10)
const DEFAULT_STOP_TIMEOUT = Duration.seconds(5)

const DEFAULT_RESTART: ReconnectOptions["schedule"] = Schedule.min([
  Schedule.exponential("50 millis"),
  Schedule.spaced("2 seconds")
])

/** Daemons that went away before they had run for {@link STEADY_MS}, one after another, until no more are started. */
const MOST_CRASHES = 50
const STEADY_MS = 10_000

const optional = Schema.optionalKey
const Queues = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65535 }))
const BlockSize = Schema.Int.check(
  // QEMU: util/block-helpers.c, check_block_size.
  Schema.isBetween({ minimum: 512, maximum: 2 ** 21 }),
  Schema.makeFilter((size) => Number.isInteger(Math.log2(size)) || "must be a power of two")
)
const Timeout = Schema.Union([Schema.Duration, Schema.DurationFromString, Schema.DurationFromMillis])

const daemonFields = {
  binary: optional(Schema.NonEmptyString),
  aio: optional(Schema.Literals(["threads", "native", "io_uring"])),
  cache: optional(Schema.Struct({ direct: optional(Schema.Boolean), noFlush: optional(Schema.Boolean) })),
  discard: optional(Schema.Literals(["ignore", "unmap"])),
  iothread: optional(Schema.Boolean),
  startTimeout: optional(Timeout),
  stopTimeout: optional(Timeout)
}

const nativeNeedsDirect = Schema.makeFilter(
  (options: { readonly aio?: string; readonly cache?: { readonly direct?: boolean } }) =>
    options.aio !== "native" || options.cache?.direct === true ||
    { path: ["aio"], issue: "native needs cache.direct" }
)

const StartSchema = Schema.Struct({
  ...daemonFields,
  exports: Schema.NonEmptyArray(Schema.Struct({
    image: Source,
    writable: optional(Schema.Boolean),
    numQueues: optional(Queues),
    logicalBlockSize: optional(BlockSize),
    id: optional(Schema.String.check(Schema.isPattern(
      /^[A-Za-z][A-Za-z0-9._-]{0,30}$/,
      { message: "must be a letter, then at most 30 letters, digits, dots, dashes and underscores" }
    )))
  }))
}).check(nativeNeedsDirect)

const TransportSchema = Schema.Struct({
  ...daemonFields,
  image: Source,
  readOnly: optional(Schema.Boolean),
  queues: optional(Queues),
  blockSize: optional(BlockSize),
  // Checked where reconnecting is.
  restart: optional(Schema.Unknown)
}).check(nativeNeedsDirect)

const CreateSchema = Schema.Struct({
  image: Source,
  size: Schema.Union([Schema.Natural, Schema.ByteSize]).check(
    Schema.makeFilter((size) => Number(size) % 512 === 0 || "must be a multiple of 512")
  ),
  layout: optional(Schema.JsonObject),
  binary: daemonFields.binary,
  startTimeout: daemonFields.startTimeout,
  stopTimeout: daemonFields.stopTimeout
})

const strictly = { errors: "all", onExcessProperty: "error" } as const
const decodeStart = Schema.decodeUnknownEffect(StartSchema, strictly)
const decodeCreate = Schema.decodeUnknownEffect(CreateSchema, strictly)
const decodeTransport = Schema.decodeUnknownEffect(TransportSchema, strictly)

const wrong = (operation: string) => (error: Schema.SchemaError) =>
  new Errno.EINVAL({ operation, detail: error.message, cause: error })

/** Decoding follows a description as deep as it goes. */
const refuseDeep = (operation: string, given: unknown): Effect.Effect<void, Errno.EINVAL> =>
  isTooDeep(given)
    ? new Errno.EINVAL({ operation, detail: "image: too many descriptions, one in another" })
    : Effect.void

/**
 * Starts a daemon with several exports, waits until all listen, and ends it with the Scope. A daemon that ends by itself is not
 * started again: `exitCode` tells. An export serves one client at a time; a second one connects and waits.
 *
 * @example
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Effect } from "effect"
 * import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
 *
 * const program = Effect.gen(function*() {
 *   const daemon = yield* QemuStorageDaemon.start({
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
export const start: (
  options: StartOptions
) => Effect.Effect<Daemon, StartError, Program.Requirements | Scope.Scope> = Effect.fn("QemuStorageDaemon.start")(
  function*(given) {
    yield* refuseDeep("start", given)
    const { exports, ...options } = yield* decodeStart(given).pipe(Effect.mapError(wrong("start")))
    const disks = Arr.map(exports, (disk, index) => ({ ...disk, id: disk.id ?? `disk${index}` }))
    for (const [index, { id }] of disks.entries()) {
      if (disks.findIndex((other) => other.id === id) !== index) {
        return yield* new Errno.EINVAL({
          operation: "start",
          detail: `two exports with the id ${id}: each needs its own`
        })
      }
    }
    return yield* launchAndServe(options, (program, deadline) =>
      Effect.forEach(disks, (disk) =>
        Effect.flatMap(
          nodesOf(disk.image, disk.writable ?? !BlockNodes.isReadOnly(disk.image), options, disk.id),
          (nodes) =>
            Program.serve(program, nodes, {
              deadline,
              id: disk.id,
              name: BlockNodes.nameOf(disk.image),
              writable: disk.writable ?? !BlockNodes.isReadOnly(disk.image),
              numQueues: disk.numQueues ?? 1,
              logicalBlockSize: disk.logicalBlockSize ?? 512,
              iothread: options.iothread ?? false
            })
        )))
  }
)

/** What decoding has left of {@link DaemonOptions}. */
type Decoded = Omit<typeof TransportSchema.Type, "image" | "readOnly" | "queues" | "blockSize" | "restart">

const nodesOf = (image: Source, writable: boolean, options: Decoded, id: string) =>
  Effect.flatMap(BlockNodes.describe(image), (described) =>
    BlockNodes.make(described, {
      readOnly: !writable,
      discard: options.discard ?? "unmap",
      direct: options.cache?.direct ?? false,
      noFlush: options.cache?.noFlush ?? false,
      aio: options.aio
    }, id))

/** Starts a program and has it serve. If it fails, nothing is left. */
const launchAndServe = Effect.fnUntraced(function*<E, R>(
  options: Decoded,
  serve: (
    program: Program.Program,
    deadline: number
  ) => Effect.Effect<Arr.NonEmptyReadonlyArray<Program.RunningExport>, E, R>
) {
  const { binary, startTimeout = DEFAULT_START_TIMEOUT, stopTimeout = DEFAULT_STOP_TIMEOUT } = options
  const deadline = performance.now() + Duration.toMillis(startTimeout)
  const scope = yield* Scope.fork(yield* Effect.scope)
  return yield* Effect.gen(function*() {
    const program = yield* Program.launch({ binary, startTimeout, stopTimeout })
    const exports = yield* serve(program, deadline).pipe(
      // One that hangs does not hear that it is to end.
      Effect.tapError((error) => Predicate.isTagged(error, "ETIMEDOUT") ? program.kill("SIGKILL") : Effect.void)
    )
    return { ...program, exports, socketPath: exports[0].socketPath }
  }).pipe(
    Scope.provide(scope),
    Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
  )
})

/**
 * Makes a transport to an image. Nothing is opened before it connects; EINVAL names what is wrong with the options.
 *
 * A path's format is told by its ending: `.qcow2`, `.vmdk`, `.vhdx`, `.vdi`, `.raw`, `.iso`, `.dd`; what it begins with must agree.
 * Any other name is raw, and is refused (EINVAL) if it begins as another format does: whoever writes to a raw disk decides what
 * it begins with. A description says the format, and that is that.
 *
 * @category constructors
 * @since 0.1.0
 */
export const transport: (
  image: Source,
  options?: TransportOptions
) => Effect.Effect<ImageTransport, Errno.EINVAL, Program.Requirements> = Effect.fnUntraced(
  function*(given, { restart = DEFAULT_RESTART, ...others } = {}) {
    const operation = "qemu-storage-daemon"
    yield* refuseDeep(operation, given)
    const { image, ...options } = yield* decodeTransport({ ...others, image: given }).pipe(
      Effect.mapError(wrong(operation))
    )
    const readOnly = options.readOnly ?? BlockNodes.isReadOnly(image)
    const direct = options.cache?.direct ?? false
    const reconnect = restart === "never" ? undefined : {
      ...(Schedule.isSchedule(restart) ? { schedule: restart } : restart),
      keepsCache: BlockNodes.keepsCache(image, direct)
    }
    const viaSocket = (path: string) => VhostUser.make(reconnect === undefined ? { path } : { path, reconnect })
    const recipe = yield* viaSocket("daemon")
    const services = yield* Effect.context<Program.Requirements>()
    const name = BlockNodes.nameOf(image)

    let nodes: BlockNodes.BlockNodes | undefined
    let current: Daemon | undefined
    let crashes = 0
    const connect = Effect.gen(function*() {
      if (crashes > MOST_CRASHES) {
        const detail = `${crashes} daemons went away, one after another`
        return yield* new Errno.ENOTCONN({ operation, path: name, detail })
      }
      const daemon = yield* launchAndServe(options, (program, deadline) =>
        Effect.gen(function*() {
          // Decided once: what has been written since does not make it another image.
          nodes ??= yield* nodesOf(image, !readOnly, options, "disk0")
          const served = yield* Program.serve(program, nodes, {
            deadline,
            id: "disk0",
            name,
            writable: !readOnly,
            numQueues: options.queues ?? 1,
            logicalBlockSize: options.blockSize ?? 512,
            iothread: options.iothread ?? false
          })
          return Arr.of(served)
        }))
      const startedAt = performance.now()
      current = daemon
      const isGone = Effect.sync(() => {
        if (current === daemon) current = undefined
      })
      yield* daemon.exitCode.pipe(Effect.andThen(isGone), Effect.forkScoped)
      yield* Effect.addFinalizer(() => isGone)
      const connection = yield* Effect.flatMap(viaSocket(daemon.socketPath), (socket) => socket.connect)
      const { released = Effect.void } = connection
      const lost = Effect.sync(() => {
        crashes = performance.now() - startedAt < STEADY_MS ? crashes + 1 : 0
      })
      return {
        ...connection,
        // One that hangs does not let go by itself, and one that is connected does not end.
        released: Effect.all([lost, released, daemon.stop], { concurrency: "unbounded", discard: true })
      }
    }).pipe(Effect.provideContext(services))

    return {
      ...recipe,
      path: name,
      readOnly,
      connect,
      daemon: Effect.suspend(() =>
        current === undefined
          ? new Errno.ENOTCONN({ operation, path: name, detail: "no daemon runs now" })
          : Effect.succeed(current)
      )
    }
  }
)

/** What is chosen of the device, and not of the daemon. */
const deviceKeys = [
  "numQueues",
  "numPollQueues",
  "queueSize",
  "waiting",
  "requestTimeout",
  "deviceTimeout",
  "closeTimeout"
] as const

const open = Effect.fnUntraced(function*(image: Source, options: Options) {
  const device = Struct.pick(options, deviceKeys)
  const { numPollQueues = 0, numQueues = 1 } = device
  const recipe = yield* transport(image, {
    queues: Math.max(1, numQueues + numPollQueues),
    ...Struct.omit(options, deviceKeys)
  })
  const disk = yield* VirtioBlk.make(recipe, {
    ...(BlockNodes.takesOneAtATime(image) ? { queueSize: 1 } : {}),
    ...device,
    readOnly: recipe.readOnly
  })
  return { recipe, disk }
})

/**
 * Opens an image as a block device, until the Scope closes. Who needs the daemon's monitor makes the {@link transport} and gives it
 * to `VirtioBlk.make`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  image: Source,
  options: Options = {}
): Effect.Effect<Device, OpenError, Program.Requirements | Scope.Scope> =>
  Effect.map(open(image, options), ({ disk }) => disk)

/**
 * Provides an image as the block device of a program, and the daemon behind it.
 *
 * @example
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { BlockDevice } from "effect-blkio"
 * import { Effect, Layer } from "effect"
 * import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
 *
 * const Disk = QemuStorageDaemon.layer("/nowhere/disk.qcow2", { readOnly: true }).pipe(Layer.provide(NodeServices.layer))
 * const capacity = BlockDevice.useSync((disk) => disk.capacity).pipe(
 *   Effect.provide(Disk),
 *   Effect.catchTag("ENOENT", (error) => Effect.succeed(error.path))
 * )
 * console.log(await Effect.runPromise(capacity)) // => "/nowhere/disk.qcow2"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  image: Source,
  options: Options = {}
): Layer.Layer<BlockDevice | QemuStorageDaemon, OpenError, Program.Requirements> =>
  Layer.effectContext(
    Effect.map(open(image, options), ({ disk, recipe }) =>
      Context.make(BlockDevice, disk).pipe(Context.add(QemuStorageDaemon, recipe)))
  )

/**
 * Provides the transport to an image, and the daemon behind it, for `VirtioBlk.layer`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerTransport = (
  image: Source,
  options: TransportOptions = {}
): Layer.Layer<Transport | QemuStorageDaemon, Errno.EINVAL, Program.Requirements> =>
  Layer.effectContext(
    Effect.map(transport(image, options), (recipe) =>
      Context.make(Transport, recipe).pipe(Context.add(QemuStorageDaemon, recipe)))
  )

/**
 * What an image is made with.
 *
 * @category models
 * @since 0.1.0
 */
export interface CreateOptions extends Pick<DaemonOptions, "binary" | "startTimeout" | "stopTimeout"> {
  /** In bytes, a multiple of 512. */
  readonly size: number | ByteSize.ByteSize
  /**
   * What the format can be told beside the size (QEMU: qapi/block-core.json, BlockdevCreateOptions), such as
   * `{ "cluster-size": 2097152, "preallocation": "metadata" }` of a qcow2 image.
   */
  readonly layout?: Schema.JsonObject
}

/**
 * Makes an image of zeroes: a path, whose ending says the format, or a description of a file in a format. EEXIST where there is a
 * file; a part of an image is not left behind.
 *
 * @example
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Effect } from "effect"
 * import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
 *
 * const made = QemuStorageDaemon.create("/nowhere/disk.qcow2", { size: 2 ** 30 }).pipe(
 *   Effect.catchTag("ENOENT", (error) => Effect.succeed(error.path)),
 *   Effect.provide(NodeServices.layer)
 * )
 * console.log(await Effect.runPromise(made)) // => "/nowhere/disk.qcow2"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const create = Effect.fn("QemuStorageDaemon.create")(function*(
  image: Source,
  given: CreateOptions
): Effect.fn.Return<void, Create.CreateError, Program.Requirements> {
  const options = yield* decodeCreate({ ...given, image }).pipe(Effect.mapError(wrong("create")))
  const { binary, layout = {}, size, startTimeout = DEFAULT_START_TIMEOUT, stopTimeout = DEFAULT_STOP_TIMEOUT } =
    options
  yield* Create.create(options.image, Number(size), layout, { binary, startTimeout, stopTimeout })
})

/** How long a program may take to tell its version: one that waits for something is not the daemon. */
const availableTimeLimit = Duration.seconds(10)

/**
 * Tells whether the program that would be started is there and runs.
 *
 * @category availability
 * @since 0.1.0
 */
export const available: Effect.Effect<boolean, never, ChildProcessSpawner.ChildProcessSpawner> = Effect.gen(
  function*() {
    const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
    const binary = yield* Program.binaryFromEnvironment
    const version = ChildProcess.make(binary, ["--version"], { stdin: "ignore", forceKillAfter: "1 second" })
    return (yield* spawner.exitCode(version)) === 0
  }
).pipe(Effect.timeout(availableTimeLimit), Effect.orElseSucceed(() => false))
