/**
 * The VFIO transport: a virtio device on PCI, real or of a virtual machine's, driven from this process behind an IOMMU
 * (Linux, `Documentation/driver-api/vfio.rst`; virtio 1.2 §4.1).
 *
 * This module makes the recipe and opens the device, by its own character device and iommufd where the kernel has them, else
 * by its IOMMU group; `VfioPciConnection` is what then happens with it. The device must be bound to vfio-pci, which is the
 * administrator's business.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { inspect } from "node:util"
import * as Errno from "../Errno.ts"
import { type ConnectError, type Connection, type Recipe, Transport } from "./Transport.ts"
import { checkTimeout } from "./TransportOptions.ts"
import { OPERATION } from "./VfioCall.ts"
import * as VfioCdev from "./VfioCdev.ts"
import * as VfioDevice from "./VfioDevice.ts"
import * as VfioFunction from "./VfioFunction.ts"
import * as VfioGroup from "./VfioGroup.ts"
import * as VfioPciConnection from "./VfioPciConnection.ts"

/**
 * What a VFIO transport is made from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The device: its directory in sysfs (`/sys/bus/pci/devices/0000:01:00.0`), or its address (`0000:01:00.0`). */
  readonly path: string
  /** How long the device may take to reset. Default 5 s. */
  readonly resetTimeout?: Duration.Input
}

const decodeOptions = Schema.decodeUnknownResult(
  Schema.Struct({
    path: Schema.String,
    fd: Schema.optionalKey(Schema.Unknown),
    resetTimeout: Schema.optionalKey(Schema.Unknown)
  }),
  { errors: "all", onExcessProperty: "error" }
)

/**
 * The time limit of a reset where none is given.
 *
 * @category constants
 * @since 0.1.0
 */
export const DEFAULT_RESET_TIMEOUT: Duration.Duration = Duration.seconds(5)

/**
 * Makes a transport from checked options; nothing is opened before it connects. EINVAL names what is wrong with them; ENOENT
 * is the answer to an option `fd`, which other transports have and this one has not.
 *
 * @example
 * ```ts
 * import { VfioPci } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const transport = Effect.runSync(VfioPci.make({ path: "0000:01:00.0" }))
 * console.log(transport.path) // => "/sys/bus/pci/devices/0000:01:00.0"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): Effect.Effect<Recipe, Errno.EINVAL | Errno.ENOENT> => {
  const refuse = (detail: string) => Effect.fail(new Errno.EINVAL({ operation: OPERATION, detail }))
  const decoded = decodeOptions(options)
  if (Result.isFailure(decoded)) return refuse(decoded.failure.message)
  if (decoded.success.fd !== undefined) {
    return new Errno.ENOENT({
      operation: OPERATION,
      detail: "there is no fd that stands for a PCI device; give its path"
    })
  }
  const { path } = decoded.success
  if (path === "") return refuse("path must be set")
  if (path.includes("\0")) return refuse(`path ${inspect(path)} must have no zero byte`)
  const { resetTimeout = DEFAULT_RESET_TIMEOUT } = options
  const resetTimeoutMs = checkTimeout(OPERATION, "reset", resetTimeout)
  if (typeof resetTimeoutMs !== "number") return resetTimeoutMs
  const directory = VfioFunction.directoryOf(path)
  return Effect.succeed<Recipe>({
    driver: "virtio-blk-vfio-pci",
    path: directory,
    fd: -1,
    connect: connect(directory, resetTimeoutMs)
  })
}

/**
 * Provides a VFIO transport.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Transport, Errno.EINVAL | Errno.ENOENT> =>
  Layer.effect(Transport, make(options))

/**
 * Provides a VFIO transport from configuration.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<Transport, Config.ConfigError | Errno.EINVAL | Errno.ENOENT> =>
  Layer.effect(Transport, Effect.flatMap(Config.unwrap(options), make))

const connect = Effect.fnUntraced(
  function*(directory: string, resetTimeoutMs: number): Effect.fn.Return<Connection, ConnectError, Scope.Scope> {
    const pci = yield* VfioFunction.find(directory)
    const cdev = yield* VfioCdev.open(pci)
    const attached = cdev === undefined ? yield* VfioGroup.attach(pci) : yield* VfioCdev.attach(cdev, pci)
    const device = yield* VfioDevice.make(attached.device, pci.path)
    return yield* VfioPciConnection.make(pci, device, attached.iommu, resetTimeoutMs)
  }
)
