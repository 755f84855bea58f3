/**
 * The vhost-vdpa transport: a virtio device that the kernel offers as a character device (`/dev/vhost-vdpa-N`), be it hardware
 * whose data path is virtio, a process that serves it (VDUSE), or the kernel's own simulator.
 *
 * This module makes the recipe and opens the device; `VhostVdpaConnection` is what then happens on it. A device has one user at
 * a time: opening it again gives EBUSY.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Errno from "../Errno.ts"
import { Kernel, type KernelCalls } from "../Native/Kernel.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { type ConnectError, type Recipe, Transport } from "./Transport.ts"
import { checkPathOrFd } from "./TransportOptions.ts"
import { OPERATION } from "./VhostVdpaCalls.ts"
import * as VhostVdpaConnection from "./VhostVdpaConnection.ts"

/**
 * What a vhost-vdpa transport is made from. Exactly one of `path` and `fd` must be given.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The character device. */
  readonly path?: string
  /** A device that is open already and unused; it is taken over by the first connection, and closed with it. */
  readonly fd?: number
  /** How long to wait for each call to the device. Default 60 s. */
  readonly replyTimeout?: Duration.Input
}

/**
 * The time limit of a call where none is given: twice the 30 s after which the kernel itself gives up a process that serves a
 * device (VDUSE), and time for the pinning of much memory.
 *
 * @category constants
 * @since 0.1.0
 */
export const DEFAULT_REPLY_TIMEOUT: Duration.Duration = Duration.seconds(60)

/**
 * Makes a transport from checked options; nothing is opened before it connects. EINVAL names what is wrong with them.
 *
 * @example
 * ```ts
 * import { VhostVdpa } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const transport = Effect.runSync(VhostVdpa.make({ path: "/dev/vhost-vdpa-0" }))
 * console.log(transport.driver) // => "virtio-blk-vhost-vdpa"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): Effect.Effect<Recipe, Errno.EINVAL> => {
  const checked = checkPathOrFd(OPERATION, options, DEFAULT_REPLY_TIMEOUT)
  if ("_tag" in checked) return checked
  const { fd, path, replyTimeoutMs } = checked
  const taken = { once: false }
  return Effect.succeed<Recipe>({
    driver: "virtio-blk-vhost-vdpa",
    path: path ?? "",
    fd: fd ?? -1,
    connect: Effect.flatMap(Kernel, (kernel) => {
      const opened = fd === undefined ? open(kernel, path ?? "", replyTimeoutMs) : adopt(fd, taken)
      return VhostVdpaConnection.make(kernel, opened, replyTimeoutMs)
    })
  })
}

/**
 * Provides a vhost-vdpa transport.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Transport, Errno.EINVAL> => Layer.effect(Transport, make(options))

/**
 * Provides a vhost-vdpa transport from configuration.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<Transport, Config.ConfigError | Errno.EINVAL> =>
  Layer.effect(Transport, Effect.flatMap(Config.unwrap(options), make))

/** Opens the device. The kernel resets it as it is opened, which may take long where another process serves it. */
const open = (kernel: KernelCalls, path: string, timeoutMs: number): Effect.Effect<number, ConnectError> => {
  if (path.includes("\0")) return new Errno.EINVAL({ operation: "connect", path, detail: "a path has no zero byte" })
  return Effect.callback((resume) => {
    let isLate = false
    const timer = setTimeout(() => {
      isLate = true
      const detail = `the device did not open within ${timeoutMs} ms; does whoever serves it still run?`
      resume(Exit.fail(new Errno.ETIMEDOUT({ operation: "connect", path, detail, syscall: "open" })))
    }, timeoutMs)
    kernel.openPooled(path, (fd, errno) => {
      clearTimeout(timer)
      if (!isLate) resume(fd < 0 ? Exit.fail(openError(errno, path)) : Exit.succeed(fd))
      else if (fd >= 0) kernel.close(fd)
    })
  })
}

/** Takes over a device that is open already: once, since its number may then stand for anything. */
const adopt = (fd: number, taken: { once: boolean }): Effect.Effect<number, ConnectError> =>
  Effect.suspend(() => {
    const described = { operation: "connect", detail: `fd ${fd} was taken over by an earlier connection` }
    if (taken.once) return Exit.fail(new Errno.EBADF(described))
    try {
      Libc.adopt(fd)
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error
      return Exit.fail(
        Errno.fromNumber(error.errno, ["EBADF"], {
          operation: "connect",
          detail: `fd ${fd} is not open`,
          syscall: error.syscall
        })
      )
    }
    taken.once = true
    return Exit.succeed(fd)
  })

const EBUSY = 16

const openError = (errno: number, path: string) =>
  Errno.fromNumber(
    errno,
    [
      "ENOENT",
      "ENOTDIR",
      "ELOOP",
      "ENAMETOOLONG",
      "EACCES",
      "EPERM",
      "EISDIR",
      "EBUSY",
      "ENODEV",
      "ENXIO",
      "EMFILE",
      "ENFILE",
      "ENOMEM"
    ],
    {
      operation: "connect",
      path,
      detail: errno === EBUSY ? "the device is in use: it has one user at a time" : "the device cannot be opened",
      syscall: "open"
    }
  )
