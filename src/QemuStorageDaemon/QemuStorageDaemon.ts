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
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
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
import * as Running from "./Daemon.ts"
import type { Daemon, StartError } from "./Daemon.ts"
import type { Source } from "./Image.ts"
import {
  type CreateOptions,
  decodeCreate,
  decodeStart,
  decodeTransport,
  type StartOptions,
  type TransportOptions
} from "./Options.ts"
import * as Program from "./Program.ts"

export { Image, Source } from "./Image.ts"
export type { Blkdebug, Http, Iscsi, Luks, Nbd, NullCo, Qcow2, Raw, Rbd, Throttle, Vdi, Vhdx, Vmdk } from "./Image.ts"
export type { CreateError } from "./Create.ts"
export type { Daemon, StartError } from "./Daemon.ts"
export type { CreateOptions, DaemonOptions, Export, StartOptions, TransportOptions } from "./Options.ts"
export type { LaunchError, Requirements, RunningExport } from "./Program.ts"

/**
 * All that can be chosen of a device on an image. The daemon offers as many queues as the device drives, unless `queues` says
 * otherwise.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends TransportOptions, VirtioBlk.Options {}

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

const DEFAULT_RESTART: ReconnectOptions["schedule"] = Schedule.min([
  Schedule.exponential("50 millis"),
  Schedule.spaced("2 seconds")
])

/** Daemons that went away before they had run for {@link STEADY_MS}, one after another, until no more are started. */
const MOST_CRASHES = 50
const STEADY_MS = 10_000

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
    const { exports, ...options } = yield* decodeStart(given)
    const disks = Arr.map(exports, ({ id, image, logicalBlockSize, numQueues, writable }, index) => {
      const opened = { id: id ?? `disk${index}`, image, writable: writable ?? !BlockNodes.isReadOnly(image) }
      return { ...opened, numQueues, logicalBlockSize, nodes: Running.nodesOf(options, opened) }
    })
    for (const [index, { id }] of disks.entries()) {
      if (disks.findIndex((other) => other.id === id) !== index) {
        return yield* new Errno.EINVAL({
          operation: "start",
          detail: `two exports with the id ${id}: each needs its own`
        })
      }
    }
    return yield* Running.start(options, disks)
  }
)

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
    const { blockSize, image, queues, ...options } = yield* decodeTransport({ ...others, image: given })
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

    const opened = { id: "disk0", image, writable: !readOnly }
    // Decided once: what has been written since does not make it another image.
    let decided: BlockNodes.BlockNodes | undefined
    const nodes = Effect.suspend(() =>
      decided === undefined
        ? Effect.tap(Running.nodesOf(options, opened), (found) =>
          Effect.sync(() => {
            decided = found
          }))
        : Effect.succeed(decided)
    )
    const disk = { ...opened, numQueues: queues, logicalBlockSize: blockSize, nodes }
    let current: Daemon | undefined
    let crashes = 0
    const connect = Effect.gen(function*() {
      if (crashes > MOST_CRASHES) {
        const detail = `${crashes} daemons went away, one after another`
        return yield* new Errno.ENOTCONN({ operation, path: name, detail })
      }
      const daemon = yield* Running.start(options, [disk])
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
  const { image: decoded, layout = {}, size, ...options } = yield* decodeCreate({ ...given, image })
  yield* Create.create(decoded, Number(size), layout, Running.launchOptionsOf(options))
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
