/**
 * The vhost-user transport: a virtio device served by another process over a Unix socket (QEMU's
 * `docs/interop/vhost-user.rst`), for example by `qemu-storage-daemon`, SPDK or a backend built on rust-vmm.
 *
 * This module makes the recipe and dials the socket; `VhostUserConnection` is what then happens on it.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import * as ReconnectPolicy from "./ReconnectPolicy.ts"
import { type ConnectError, type Recipe, Transport } from "./Transport.ts"
import { checkPathOrFd } from "./TransportOptions.ts"
import * as VhostUserConnection from "./VhostUserConnection.ts"

/**
 * What a vhost-user transport is made from. Exactly one of `path` and `fd` must be given.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The Unix socket on which the backend listens. */
  readonly path?: string
  /** A Unix socket that is connected already; it is taken over by the first connection, and closed with it. */
  readonly fd?: number
  /** How long to wait for the handshake, and for each reply. Default 5 s. */
  readonly replyTimeout?: Duration.Input
  /**
   * What to do when the backend goes away; a Schedule alone says when to try again. Requests in flight are sent again once it
   * is back, and new ones wait. Needs a `path`. Default: the device is lost with its connection.
   */
  readonly reconnect?: ReconnectPolicy.ReconnectOptions | ReconnectPolicy.ReconnectOptions["schedule"]
}

export type { ReconnectOptions } from "./ReconnectPolicy.ts"

/**
 * The handshake and reply time limit where none is given.
 *
 * @category constants
 * @since 0.1.0
 */
export const DEFAULT_REPLY_TIMEOUT: Duration.Duration = Duration.seconds(5)

/**
 * Makes a transport from checked options; nothing is opened before it connects. EINVAL names what is wrong with them.
 *
 * @example
 * ```ts
 * import { VhostUser } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const transport = Effect.runSync(VhostUser.make({ path: "/run/disk.sock" }))
 * console.log(transport.driver) // => "virtio-blk-vhost-user"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): Effect.Effect<Recipe, Errno.EINVAL> => {
  const checked = checkPathOrFd("vhost-user", options, DEFAULT_REPLY_TIMEOUT, ["reconnect"])
  if ("_tag" in checked) return checked
  const { reconnect } = options
  const policy = reconnect === undefined ? undefined : ReconnectPolicy.check("vhost-user", reconnect)
  if (policy !== undefined && "_tag" in policy) return policy
  if (policy !== undefined && checked.path === undefined) {
    return new Errno.EINVAL({ operation: "vhost-user", detail: "reconnect needs a path: a descriptor connects once" })
  }
  const { fd, path, replyTimeoutMs } = checked
  const taken = { once: false }
  return Effect.succeed<Recipe>({
    driver: "virtio-blk-vhost-user",
    path: path ?? "",
    fd: fd ?? -1,
    ...(policy === undefined ? {} : { reconnect: policy }),
    connect: Effect.flatMap(
      fd === undefined ? dial(path ?? "", replyTimeoutMs) : adopt(fd, taken),
      (socket) => VhostUserConnection.make(socket, replyTimeoutMs, policy !== undefined)
    )
  })
}

/**
 * Provides a vhost-user transport.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Transport, Errno.EINVAL> => Layer.effect(Transport, make(options))

/**
 * Provides a vhost-user transport from configuration, in which there is no way to say how to reconnect.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Omit<Options, "reconnect">>,
  reconnect?: Options["reconnect"]
): Layer.Layer<Transport, Config.ConfigError | Errno.EINVAL> =>
  Layer.effect(
    Transport,
    Effect.flatMap(Config.unwrap(options), (read) => make(reconnect === undefined ? read : { ...read, reconnect }))
  )

const RETRY_CONNECT_MS = 10

/** Connects a new socket, which is closed with the Scope; retries while the listener's backlog is full. */
const dial = (path: string, timeoutMs: number): Effect.Effect<number, ConnectError, Scope.Scope> => {
  if (path.includes("\0")) {
    return new Errno.EINVAL({ operation: "connect", path, detail: "a socket path has no zero byte" })
  }
  if (Buffer.byteLength(path) > Libc.MAX_SOCKET_PATH_BYTES) {
    const detail = `a socket path has at most ${Libc.MAX_SOCKET_PATH_BYTES} bytes`
    return new Errno.ENAMETOOLONG({ operation: "connect", path, detail })
  }
  const attempt = (fd: number, deadline: number): Effect.Effect<number, ConnectError> =>
    Effect.suspend(() => {
      const errno = Libc.connectUnixSocket(fd, path)
      if (errno === 0) return Exit.succeed(fd)
      if (errno !== Libc.EAGAIN) return Exit.fail(connectError(errno, path))
      if (performance.now() < deadline) return Effect.andThen(Effect.sleep(RETRY_CONNECT_MS), attempt(fd, deadline))
      const detail = "the backend accepts no connection; is it busy?"
      return Exit.fail(new Errno.ETIMEDOUT({ operation: "connect", path, detail }))
    })
  return Effect.flatMap(
    acquireDescriptor(Libc.createUnixSocket),
    (fd) => Effect.suspend(() => attempt(fd, performance.now() + timeoutMs))
  )
}

/** Takes over a socket that is connected already: once, since its number may then stand for anything. */
const adopt = (fd: number, taken: { once: boolean }): Effect.Effect<number, ConnectError, Scope.Scope> =>
  Effect.suspend(() => {
    const described = { operation: "connect", detail: `fd ${fd} was taken over by an earlier connection` }
    if (taken.once) return Exit.fail(new Errno.EBADF(described))
    return acquireDescriptor(() => {
      Libc.adoptSocket(fd)
      taken.once = true
      return fd
    })
  })

const acquireDescriptor = (open: () => number) =>
  Effect.acquireRelease(
    Effect.try({ try: open, catch: descriptorError }),
    (fd) => Effect.sync(() => Libc.close(fd))
  )

const connectError = (errno: number, path: string) =>
  Errno.fromNumber(
    errno,
    ["ENOENT", "ENOTDIR", "ELOOP", "EACCES", "EPERM", "ENOTSOCK", "EPROTOTYPE", "ECONNREFUSED"],
    { operation: "connect", path, detail: "no backend can be reached there", syscall: "connect" }
  )

const descriptorError = (error: unknown) =>
  Errno.fromNumber(error instanceof SyscallError ? error.errno : 0, ["EMFILE", "ENFILE", "EBADF", "ENOTSOCK"], {
    operation: "vhost-user",
    detail: "a socket cannot be had",
    cause: error
  })
