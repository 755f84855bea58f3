/**
 * The virtio-blk driver: turns a transport into a block device.
 *
 * The phases of a device's life as values (`create`, its `connect`, its `start`), all of it in one step (`make`), and the
 * same as Layers for composition:
 *
 * ```
 * VhostUser.layer ──► Transport ──► layerConnected ──► Properties, ConnectedDevice ──► layerStarted ──► BlockDevice
 *                              └─────────────────────────── layer ───────────────────────────────────────►
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { BlockDevice, type Device, fromStarted } from "./BlockDevice.ts"
import {
  type ConnectDeviceError,
  type ConnectedDevice,
  create,
  type StartError,
  type StartOptions
} from "./Driver/Lifecycle.ts"
import * as Errno from "./Errno.ts"
import { Properties, type Settable } from "./Properties/Properties.ts"
import { type Recipe, Transport } from "./Transport/Transport.ts"

export {
  type ConnectDeviceError,
  type ConnectedDevice,
  create,
  type CreatedDevice,
  DEFAULT_CLOSE_TIMEOUT,
  DEFAULT_DEVICE_TIMEOUT,
  type StartError,
  type StartOptions
} from "./Driver/Lifecycle.ts"

/**
 * What can be chosen before connecting.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConnectOptions {
  /** Refuse writes; needed for a device that is read-only itself. Default false. */
  readonly readOnly?: boolean
}

/**
 * What can be chosen before starting.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartedOptions extends StartOptions {
  /** Event queues. Default 1. */
  readonly numQueues?: number
  /** Poll queues. Default 0. */
  readonly numPollQueues?: number
  /** Descriptors of each queue: a power of two, at most 32768. Default 256. */
  readonly queueSize?: number
}

/**
 * All that can be chosen of a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends ConnectOptions, StartedOptions {}

const optional = Schema.optionalKey
const decode = Schema.decodeUnknownResult(
  Schema.Struct({
    readOnly: optional(Schema.Boolean),
    numQueues: optional(Schema.Int),
    numPollQueues: optional(Schema.Int),
    queueSize: optional(Schema.Int),
    waiting: optional(Schema.Literals(["adaptive", "event"])),
    // Durations are checked when the device starts.
    requestTimeout: optional(Schema.Unknown),
    deviceTimeout: optional(Schema.Unknown),
    closeTimeout: optional(Schema.Unknown)
  }),
  { errors: "all", onExcessProperty: "error" }
)

/** Checks the shape of options, whose values the property table checks. */
const checkShape = (options: Options): Effect.Effect<void, Errno.EINVAL> => {
  const decoded = decode(options)
  return Result.isFailure(decoded)
    ? new Errno.EINVAL({ operation: "virtio-blk options", detail: decoded.failure.message })
    : Effect.void
}

/**
 * The connected device as a service, for {@link layerStarted}.
 *
 * @category services
 * @since 0.1.0
 */
export class Connected extends Context.Service<Connected, ConnectedDevice>()("effect-blkio/VirtioBlk/Connected") {}

const connect = Effect.fn("VirtioBlk.connect")(function*(
  transport: Recipe,
  options: ConnectOptions
): Effect.fn.Return<ConnectedDevice, ConnectDeviceError, Scope.Scope> {
  const device = create(transport)
  // A device that was created just now allows it.
  yield* Effect.orDie(device.properties.set({ readOnly: options.readOnly ?? false }))
  return yield* device.connect
})

const start = Effect.fn("VirtioBlk.start")(function*(
  device: ConnectedDevice,
  { closeTimeout, deviceTimeout, numPollQueues, numQueues, queueSize, requestTimeout, waiting }: StartedOptions
): Effect.fn.Return<Device, StartError, Scope.Scope> {
  const settings: { -readonly [K in keyof Settable<"connected">]: Settable<"connected">[K] } = {}
  if (numQueues !== undefined) settings.numQueues = numQueues
  if (numPollQueues !== undefined) settings.numPollQueues = numPollQueues
  if (queueSize !== undefined) settings.queueSize = queueSize
  yield* device.properties.set(settings)
  const started = yield* device.start({
    ...(waiting === undefined ? {} : { waiting }),
    ...(requestTimeout === undefined ? {} : { requestTimeout }),
    ...(deviceTimeout === undefined ? {} : { deviceTimeout }),
    ...(closeTimeout === undefined ? {} : { closeTimeout })
  })
  return yield* fromStarted(started)
})

/**
 * Connects to a device and starts it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  transport: Recipe,
  options: Options = {}
): Effect.Effect<Device, ConnectDeviceError | StartError, Scope.Scope> =>
  checkShape(options).pipe(
    Effect.andThen(connect(transport, options)),
    Effect.flatMap((device) => start(device, options))
  )

/**
 * Connects to a device and provides its properties; a program that only inspects a device needs no more.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConnected = (
  options: ConnectOptions = {}
): Layer.Layer<Properties | Connected, ConnectDeviceError, Transport> =>
  Layer.effectContext(Effect.gen(function*() {
    yield* checkShape(options)
    const device = yield* connect(yield* Transport, options)
    return Context.make(Properties, device.properties).pipe(Context.add(Connected, device))
  }))

/**
 * Starts a connected device.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerStarted = (options: StartedOptions = {}): Layer.Layer<BlockDevice, StartError, Connected> =>
  Layer.effect(
    BlockDevice,
    Effect.gen(function*() {
      yield* checkShape(options)
      return yield* start(yield* Connected, options)
    })
  )

/**
 * Connects to a device and starts it.
 *
 * @example
 * ```ts
 * import { BlockDevice, VhostUser, VirtioBlk } from "effect-blkio"
 * import { Effect, Layer } from "effect"
 *
 * const Disk = VirtioBlk.layer({ queueSize: 128 }).pipe(Layer.provide(VhostUser.layer({ path: "/nowhere/disk.sock" })))
 * const capacity = BlockDevice.useSync((disk) => disk.capacity).pipe(
 *   Effect.provide(Disk),
 *   Effect.catchTag("ENOENT", (error) => Effect.succeed(error.path))
 * )
 * console.log(await Effect.runPromise(capacity)) // => "/nowhere/disk.sock"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<BlockDevice, ConnectDeviceError | StartError, Transport> =>
  Layer.effect(BlockDevice, Effect.flatMap(Transport, (transport) => make(transport, options)))

/**
 * As {@link layer}, from configuration.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<BlockDevice, Config.ConfigError | ConnectDeviceError | StartError, Transport> =>
  Layer.effect(
    BlockDevice,
    Effect.gen(function*() {
      return yield* make(yield* Transport, yield* Config.unwrap(options))
    })
  )
