/**
 * Serves a disk over a vhost-user socket: to this library's driver, to libblkio, to QEMU and so to virtual machines.
 *
 * Any {@link BlockStore} can be served: memory, a file, an overlay, a device of some other backend, or one of your own. A
 * request reaches it as views of the front-end's memory, which nothing is copied from or to; the typed error of a store
 * becomes the status of its request.
 *
 * ```
 * front-end ──socket──► Frontend ──► DeviceQueue ──► VirtualDisk ──► BlockStore
 *     └──── shared memory: rings and buffers ────┘
 * ```
 *
 * One front-end is served at a time, and others wait until it has gone. The front-end is not trusted: whatever it puts into
 * a message, a ring or a descriptor is checked, and what breaks a rule ends its connection at most. The next one is served.
 *
 * Not offered: logging of dirty memory (so no live migration), the packed ring, zones, secure erase.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { BlockStore, StoreError } from "../BlockStore/Interface.ts"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import type { ConnectionError } from "../Transport/Transport.ts"
import { RequestType, Status } from "../Wire/VirtioBlk.ts"
import type { BlkRequest } from "./BlkRequest.ts"
import * as Frontend from "./Frontend.ts"
import * as Listener from "./Listener.ts"
import { check, type Options, type Settings } from "./Options.ts"

export type { Waiting } from "./DeviceQueue.ts"
export type { ListenError } from "./Listener.ts"
export type { Options } from "./Options.ts"

/**
 * What happens at an export: a front-end comes, and goes for a reason. ENOTCONN: it closed the connection or died; EPROTO:
 * it broke the protocol, and the message says how; EIO: it could not be served.
 *
 * @category models
 * @since 0.1.0
 */
export type Event =
  | { readonly _tag: "connected" }
  | { readonly _tag: "disconnected"; readonly reason: ConnectionError | Errno.EIO }

/**
 * What an export has done since it was made. It counts on while it is looked at.
 *
 * @category models
 * @since 0.1.0
 */
export interface Statistics {
  /** Front-ends that came. */
  readonly connections: number
  /** Requests that were answered, by what they asked for; those that were refused count too. */
  readonly reads: number
  readonly writes: number
  readonly flushes: number
  readonly others: number
  /** Bytes of the reads and writes that succeeded. */
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Requests that were answered with an error. */
  readonly errors: number
  /** Requests that are with the store now. */
  readonly inFlight: number
}

/**
 * A disk that is being served.
 *
 * @category models
 * @since 0.1.0
 */
export interface Export {
  /** The socket, or `""` where it was given as `fd`. */
  readonly path: string
  /** The size that front-ends see, in bytes. */
  readonly capacity: number
  /**
   * Shows front-ends another size, in bytes, and tells the one that is connected. EINVAL for one that is no multiple of the
   * block size, or larger than the store. A store that changes its own size needs no telling.
   */
  readonly resize: (capacity: number) => Effect.Effect<void, Errno.EINVAL>
  /** Tells of front-ends: first of the last 64 events that there were, then of those to come. */
  readonly events: Stream.Stream<Event>
  readonly statistics: Statistics
}

/**
 * What serving may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type ServeError = Listener.ListenError | Errno.EINVAL | Errno.ENAMETOOLONG | Errno.EBADF | Errno.ENOTSOCK

const EVENTS_KEPT = 64

/**
 * Serves a store until the Scope closes. It listens when the Effect has ended.
 *
 * @example
 * ```ts
 * import { BlockDevice, BlockStore, Export, VhostUser, VirtioBlk } from "effect-blkio"
 * import { Effect, Layer } from "effect"
 * import { tmpdir } from "node:os"
 *
 * const path = `${tmpdir()}/blkio-${process.pid}.sock`
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const store = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   yield* Export.serve(store, { path, serial: "scratch" })
 *   return yield* BlockDevice.useSync((disk) => disk.capacity).pipe(
 *     Effect.provide(VirtioBlk.layer().pipe(Layer.provide(VhostUser.layer({ path }))))
 *   )
 * }))
 * console.log(await Effect.runPromise(program)) // => 1048576
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const serve = Effect.fn("Export.serve")(function*(
  store: BlockStore,
  options: Options
): Effect.fn.Return<Export, ServeError, Scope.Scope> {
  const settings = check(store, options)
  if ("_tag" in settings) return yield* settings
  const events = yield* PubSub.sliding<Event>({ capacity: EVENTS_KEPT, replay: EVENTS_KEPT })
  const run = Effect.runForkWith(yield* Effect.context())
  let chosen = settings.capacity ?? Infinity
  let frontend: Frontend.Frontend | undefined
  const statistics = {
    connections: 0,
    reads: 0,
    writes: 0,
    flushes: 0,
    others: 0,
    bytesRead: 0,
    bytesWritten: 0,
    errors: 0,
    get inFlight() {
      return frontend?.inFlight() ?? 0
    }
  }
  const capacityOf = () => {
    const most = Math.min(chosen, store.capacity)
    return most - most % settings.blockSize
  }

  const onEnd = (request: BlkRequest, status: number, cause: Cause.Cause<StoreError> | undefined) => {
    const isOk = status === Status.OK
    if (!isOk) statistics.errors++
    switch (request.type) {
      case RequestType.IN:
        statistics.reads++
        if (isOk) statistics.bytesRead += request.wantedLength
        break
      case RequestType.OUT:
        statistics.writes++
        if (isOk) statistics.bytesWritten += request.givenLength
        break
      case RequestType.FLUSH:
        statistics.flushes++
        break
      default:
        statistics.others++
    }
    // The front-end hears of an I/O error; what the store did not mean to happen is for whoever wrote it.
    if (cause !== undefined && Cause.hasDies(cause)) run(Effect.logError("a request died in the store", cause))
  }

  /** Serves the front-end at the other end of a socket until it goes. */
  const serveOne = (fd: number): Effect.Effect<void> =>
    Effect.scoped(Effect.gen(function*() {
      const served = yield* Frontend.make(fd, { store, settings, capacity: capacityOf(), onEnd })
      statistics.connections++
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          frontend = served
        }),
        () =>
          Effect.sync(() => {
            frontend = undefined
          })
      )
      yield* PubSub.publish(events, { _tag: "connected" })
      return yield* served.serve
    })).pipe(
      Effect.catch(Effect.succeed),
      // A mistake of ours, or of the store's, ends one connection and not the export.
      Effect.catchDefect((defect) =>
        Effect.as(
          Effect.logError("serving a front-end failed", defect),
          new Errno.EIO({ operation: "export", detail: "the front-end could not be served", cause: defect })
        )
      ),
      Effect.flatMap((reason) => PubSub.publish(events, { _tag: "disconnected", reason }))
    )

  yield* Effect.forkScoped(yield* serving(settings, serveOne), { startImmediately: true })

  let told = capacityOf()
  const tell = () => {
    const capacity = capacityOf()
    if (capacity === told) return
    told = capacity
    frontend?.resize(capacity)
  }
  yield* store.capacityChanges.pipe(
    Stream.runForEach(() => Effect.sync(tell)),
    Effect.forkScoped({ startImmediately: true })
  )

  return {
    path: settings.path ?? "",
    get capacity() {
      return capacityOf()
    },
    resize: (capacity) =>
      Effect.suspend(() => {
        const { blockSize } = settings
        const refuse = (detail: string) => new Errno.EINVAL({ operation: "resize", detail })
        if (!Number.isSafeInteger(capacity) || capacity < 0 || capacity % blockSize !== 0) {
          return refuse(`capacity ${capacity} must be a whole multiple of the block size ${blockSize}`)
        }
        if (capacity > store.capacity) {
          return refuse(`capacity ${capacity} must be at most the store's, ${store.capacity}`)
        }
        chosen = capacity
        tell()
        return Effect.void
      }),
    events: Stream.fromPubSub(events),
    statistics
  }
})

/** Opens what front-ends connect to; answers the Effect that serves them. */
const serving = (
  settings: Settings,
  serveOne: (fd: number) => Effect.Effect<void>
): Effect.Effect<Effect.Effect<void>, ServeError, Scope.Scope> => {
  const { fd, path } = settings
  if (path !== undefined) {
    return Effect.map(
      Listener.make(path),
      (accept) => Effect.forever(Effect.scoped(Effect.flatMap(accept, serveOne)))
    )
  }
  return Effect.acquireRelease(
    Effect.try({
      try: () => {
        Libc.adoptSocket(fd ?? -1)
        return fd ?? -1
      },
      catch: (error) =>
        Errno.fromNumber(error instanceof SyscallError ? error.errno : 0, ["EBADF", "ENOTSOCK"], {
          operation: "export",
          detail: `fd ${fd} must be a connected Unix socket`,
          cause: error
        })
    }),
    (socket) => Effect.sync(() => Libc.close(socket))
  ).pipe(Effect.map(serveOne))
}
