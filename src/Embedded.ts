/**
 * A disk of one's own: an export and the device on it, in one process, with nothing to install and nobody to ask.
 *
 * For tests and small programs. It is the whole stack, and not an imitation of it: a thread serves a memory or file store
 * over a vhost-user socket, and the driver in this thread connects to it, maps its memory there and moves data through
 * rings.
 *
 * Thread, socket and memory belong to the Scope. A thread that dies is a backend that dies: what is in flight fails with
 * ENOTCONN.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Worker } from "node:worker_threads"
import { BlockDevice, type Device } from "./BlockDevice.ts"
import { type FileError, fileErrors, type FileOptions } from "./BlockStore/FileStore.ts"
import { type Disk, type Order, Report } from "./Embedded/protocol.ts"
import * as Errno from "./Errno.ts"
import type * as Export from "./Export/Export.ts"
import * as Libc from "./Native/Libc.ts"
import { SyscallError } from "./Native/SyscallError.ts"
import type { Recipe } from "./Transport/Transport.ts"
import * as VhostUserConnection from "./Transport/VhostUserConnection.ts"
import * as VirtioBlk from "./VirtioBlk.ts"

/**
 * What can be chosen of any embedded disk, beside what can be chosen of a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends VirtioBlk.Options {
  /** How the disk is served; see `Export.Options`. Its queues are as many as the device's. */
  readonly export?: Pick<Export.Options, "serial" | "writeCache" | "maxInFlight" | "maxSegments" | "waiting">
}

/**
 * A disk in memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryOptions extends Options {
  /** The size in bytes, a multiple of the block size. */
  readonly capacity: number
  /** A power of two from 512 up, in bytes. Default 512. */
  readonly blockSize?: number
}

/**
 * A disk in a file.
 *
 * @category models
 * @since 0.1.0
 */
export interface EmbeddedFileOptions extends Options, Omit<FileOptions, "readOnly"> {}

/**
 * What embedding a disk may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type EmbeddedError = FileError | VirtioBlk.ConnectDeviceError | VirtioBlk.StartError

/**
 * Makes a disk of zeroes in memory and gives the device on it.
 *
 * @example
 * ```ts
 * import { Embedded } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const disk = yield* Embedded.memory({ capacity: 1 << 24 })
 *   yield* disk.writeBytes(1000, new TextEncoder().encode("hello"))
 *   return new TextDecoder().decode(yield* disk.readBytes(1000, 5))
 * }))
 * console.log(await Effect.runPromise(program)) // => "hello"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const memory = (options: MemoryOptions): Effect.Effect<Device, EmbeddedError, Scope.Scope> => {
  const { blockSize = 512, capacity, ...others } = options
  return embed({ _tag: "memory", capacity, blockSize }, others)
}

/**
 * Opens a file, or makes one, and gives the device on it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const file = (options: EmbeddedFileOptions): Effect.Effect<Device, EmbeddedError, Scope.Scope> => {
  const { blockSize, create, direct, path, size, ...others } = options
  return embed({
    _tag: "file",
    path,
    readOnly: others.readOnly ?? false,
    ...blockSize === undefined ? {} : { blockSize },
    ...create === undefined ? {} : { create },
    ...direct === undefined ? {} : { direct },
    ...size === undefined ? {} : { size }
  }, others)
}

/**
 * Provides a disk in memory.
 *
 * @example
 * ```ts
 * import { BlockDevice, Embedded } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const capacity = BlockDevice.useSync((disk) => disk.capacity).pipe(
 *   Effect.provide(Embedded.layerMemory({ capacity: 1 << 30 }))
 * )
 * console.log(await Effect.runPromise(capacity)) // => 1073741824
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory = (options: MemoryOptions): Layer.Layer<BlockDevice, EmbeddedError> =>
  Layer.effect(BlockDevice, memory(options))

/**
 * Provides a disk in a file.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFile = (options: EmbeddedFileOptions): Layer.Layer<BlockDevice, EmbeddedError> =>
  Layer.effect(BlockDevice, file(options))

const REPLY_TIMEOUT_MS = 5000

const embed = Effect.fn("Embedded.make")(function*(
  disk: Disk,
  { export: served = {}, ...options }: Options
): Effect.fn.Return<Device, EmbeddedError, Scope.Scope> {
  const { numPollQueues = 0, numQueues = 1, readOnly = false } = options
  const [ours, theirs] = yield* openPair
  yield* startThread(disk, { ...served, readOnly, numQueues: numQueues + numPollQueues }, theirs)
  const transport: Recipe = {
    driver: "virtio-blk-vhost-user",
    path: "",
    fd: -1,
    connect: Effect.flatMap(copyOf(ours), (fd) => VhostUserConnection.make(fd, REPLY_TIMEOUT_MS, false))
  }
  return yield* VirtioBlk.make(transport, options)
})

/** A socket pair, closed with the Scope. Who uses an end has a copy of it. */
const openPair = Effect.acquireRelease(
  Effect.try({ try: Libc.createSocketPair, catch: (cause) => refused("a socket cannot be had", cause) }),
  (pair) => Effect.sync(() => pair.forEach(Libc.close))
)

const copyOf = (fd: number): Effect.Effect<number, SocketError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({ try: () => Libc.duplicate(fd), catch: (cause) => refused("a socket cannot be had", cause) }),
    (copy) => Effect.sync(() => Libc.close(copy))
  )

type SocketError = Errno.EMFILE | Errno.ENFILE | Errno.EIO

const refused = (detail: string, cause: unknown): SocketError =>
  Errno.fromNumber(cause instanceof SyscallError ? cause.errno : 0, ["EMFILE", "ENFILE"], {
    operation: "embedded",
    detail,
    cause
  })

interface Thread {
  readonly worker: Worker
  hasEnded: boolean
}

const isReport = Schema.is(Report)

/**
 * Starts the thread that serves the disk on a copy of `socket`, and waits until it does. When the Scope closes, the thread is
 * told to end and waited for. Should it end by itself, the connection is shut down, which tells the driver.
 */
const startThread = (
  disk: Disk,
  options: Omit<Export.Options, "path" | "fd">,
  socket: number
): Effect.Effect<Thread, FileError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Thread, FileError>((resume) => {
      let fd: number
      try {
        fd = Libc.duplicate(socket)
      } catch (cause) {
        return resume(Exit.fail(refused("a socket cannot be had", cause)))
      }
      const order: Order = { disk, export: { ...options, fd } }
      // Sources are run as they are, and built ones as what they were built to.
      const ending = import.meta.url.slice(import.meta.url.lastIndexOf("."))
      const url = new URL(`./Embedded/worker${ending}`, import.meta.url)
      const worker = new Worker(url, { workerData: order, execArgv: [], name: "effect-blkio" })
      const thread: Thread = { worker, hasEnded: false }
      let reports: ReadonlyArray<Report> = []
      let cause: unknown
      worker.on("error", (error) => {
        cause = error
      })
      worker.on("message", (report: unknown) => {
        if (!isReport(report)) return
        reports = [...reports, report]
        if (report._tag === "serving") resume(Exit.succeed(thread))
      })
      worker.once("exit", () => {
        thread.hasEnded = true
        const [first, last] = reports
        // The export closes the descriptor that it has taken; what a thread leaves open outlives it.
        if (first?._tag !== "serving" || last?._tag !== "closed") Libc.close(fd)
        Libc.shutdown(socket)
        if (first?._tag !== "failed") return resume(Exit.fail(refused("the thread that serves the disk ended", cause)))
        const { _tag, errno, ...fields } = first
        resume(Exit.fail(Errno.fromNumber(errno, fileErrors, fields)))
      })
    }),
    (thread) =>
      Effect.callback<void>((resume) => {
        if (thread.hasEnded) return resume(Exit.void)
        thread.worker.once("exit", () => resume(Exit.void))
        thread.worker.postMessage("end")
      })
  )
