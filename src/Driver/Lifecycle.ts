/**
 * The life of a virtio-blk device: created, connected, started. Each phase is a value of its own type, so that calling too
 * early or too late does not compile.
 *
 * A created device is only a plan and can be connected again and again; each connection, and each started device, belongs
 * to a Scope. A connection that fails leaves nothing behind, and a start that fails leaves the connected device as it was.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { inspect } from "node:util"
import * as Errno from "../Errno.ts"
import { type DeviceProperties } from "../Properties/Properties.ts"
import { PropertyState } from "../Properties/PropertyState.ts"
import type { Recipe } from "../Transport/Transport.ts"
import { FeatureBit, hasFeature } from "../Wire/VirtioBlk.ts"
import { type LinkError, open, type Way } from "./Link.ts"
import type { StartDeviceError } from "./Rings.ts"
import { start, type StartedDevice } from "./StartedDevice.ts"

/**
 * A device that is only planned.
 *
 * @category models
 * @since 0.1.0
 */
export interface CreatedDevice {
  readonly properties: DeviceProperties<"created">
  /** Connects to the device, and disconnects with the Scope. */
  readonly connect: Effect.Effect<ConnectedDevice, ConnectDeviceError, Scope.Scope>
}

/**
 * A device that can be inspected and configured.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConnectedDevice {
  readonly properties: DeviceProperties<"connected">
  /** Starts the device's queues, and stops them with the Scope. */
  readonly start: (options?: StartOptions) => Effect.Effect<StartedDevice, StartError, Scope.Scope>
}

/**
 * How a started device behaves beside its properties.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartOptions {
  /**
   * How event queues wait: `adaptive` (the default) looks at the ring for up to 20 µs before it sleeps, which is many times
   * faster on a server with a CPU to spare; `event` sleeps at once.
   */
  readonly waiting?: "adaptive" | "event"
  /**
   * A request that the device has not answered for so long fails with ETIME, an eighth later at most. The device keeps what it was
   * given: the buffer can be used for another request only when the device has let go of it (`IoQueue.released`), and a write may
   * still be carried out. Default: infinite.
   */
  readonly requestTimeout?: Duration.Input
  /** A device with requests in flight and no completion for so long is dead (ETIMEDOUT). Default 30 s; may be infinite. */
  readonly deviceTimeout?: Duration.Input
  /** How long closing waits for what is in flight. Default 5 s; may be infinite. */
  readonly closeTimeout?: Duration.Input
}

/**
 * What connecting may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type ConnectDeviceError = LinkError

/**
 * What starting may fail with. EROFS: the device is read-only and `read-only` is not set. EBUSY: it is started already.
 *
 * @category errors
 * @since 0.1.0
 */
export type StartError = StartDeviceError | Errno.EROFS | Errno.EBUSY | Errno.ENOTCONN

/**
 * The watchdog's limit where none is given.
 *
 * @category constants
 * @since 0.1.0
 */
export const DEFAULT_DEVICE_TIMEOUT: Duration.Duration = Duration.seconds(30)

/**
 * How long closing waits where nothing is given.
 *
 * @category constants
 * @since 0.1.0
 */
export const DEFAULT_CLOSE_TIMEOUT: Duration.Duration = Duration.seconds(5)

/** Plans a device over a transport. Nothing is opened before it connects. */
export const create = (recipe: Recipe): CreatedDevice => {
  const plan = new PropertyState(recipe, "created")
  return {
    properties: plan.in("created"),
    connect: Effect.gen(function*() {
      // Also the links that come after the first end after the devices that are started on them.
      const scope = yield* Scope.fork(yield* Effect.scope)
      const link = yield* open(recipe, scope)
      const state = new PropertyState(recipe, "connected", plan.settings, link.facts)
      const way: Way = { recipe, scope, link }
      return {
        properties: state.in("connected"),
        start: (options = {}) => startOnce(way, state, options)
      }
    })
  }
}

/** Starts the device in a Scope of its own, which is closed at once where starting fails. */
const startOnce = (
  way: Way,
  state: PropertyState,
  options: StartOptions
): Effect.Effect<StartedDevice, StartError, Scope.Scope> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const wrong = checkSettings(state) ?? checkOptions(options)
    if (wrong !== undefined) return yield* wrong
    const parent = yield* Effect.scope
    const scope = yield* Scope.fork(parent)
    state.phase = "started"
    return yield* start(way, state, {
      waiting: options.waiting ?? "adaptive",
      requestTimeout: Duration.fromInputUnsafe(options.requestTimeout ?? Duration.infinity),
      deviceTimeout: Duration.fromInputUnsafe(options.deviceTimeout ?? DEFAULT_DEVICE_TIMEOUT),
      closeTimeout: Duration.fromInputUnsafe(options.closeTimeout ?? DEFAULT_CLOSE_TIMEOUT),
      isClosing: () => parent.state._tag === "Closed"
    }).pipe(
      restore,
      Scope.provide(scope),
      Effect.onExit((exit) => {
        if (Exit.isSuccess(exit)) return Effect.void
        state.phase = "connected"
        return Scope.close(scope, exit)
      })
    )
  }))

/** Header, one segment and status, each a descriptor of the ring where the device does not know INDIRECT_DESC. */
const SMALLEST_CHAIN = 3

const checkSettings = (state: PropertyState): Errno.EBUSY | Errno.EINVAL | Errno.EROFS | undefined => {
  const operation = "start"
  if (state.phase === "started") return new Errno.EBUSY({ operation, detail: "the device is started already" })
  const queues = state.value("num-queues") + state.value("num-poll-queues")
  const most = state.value("max-queues")
  if (queues === 0) return new Errno.EINVAL({ operation, detail: "num-queues + num-poll-queues must not be 0" })
  if (queues > most) {
    return new Errno.EINVAL({ operation, detail: `num-queues + num-poll-queues = ${queues}: must be at most ${most}` })
  }
  if (state.value("queue-size") > state.value("max-queue-size")) {
    const detail = `queue-size ${state.value("queue-size")} exceeds max-queue-size ${state.value("max-queue-size")}`
    return new Errno.EINVAL({ operation, detail })
  }
  const isIndirect = hasFeature(state.device?.features ?? 0n, FeatureBit.INDIRECT_DESC)
  if (!isIndirect && state.value("queue-size") < SMALLEST_CHAIN) {
    const detail = `queue-size ${
      state.value("queue-size")
    } has no room for the ${SMALLEST_CHAIN} descriptors of a request`
    return new Errno.EINVAL({ operation, detail })
  }
  if (state.value("device-read-only") && !state.value("read-only")) {
    return new Errno.EROFS({ operation, detail: "the device is read-only; set read-only to start it so" })
  }
  return undefined
}

const checkOptions = ({ closeTimeout, deviceTimeout, requestTimeout }: StartOptions): Errno.EINVAL | undefined => {
  const refuse = (name: string, value: unknown, rule: string) =>
    new Errno.EINVAL({ operation: "start", detail: `${name} ${inspect(value)} must be ${rule}` })
  for (const [name, limit] of Object.entries({ deviceTimeout, requestTimeout })) {
    const duration = Duration.fromInput(limit ?? Duration.infinity)
    if (Option.isNone(duration) || !Duration.isGreaterThan(duration.value, Duration.zero)) {
      return refuse(name, limit, "a positive duration")
    }
  }
  const close = Duration.fromInput(closeTimeout ?? DEFAULT_CLOSE_TIMEOUT)
  if (Option.isNone(close) || Duration.isLessThan(close.value, Duration.zero)) {
    return refuse("closeTimeout", closeTimeout, "a duration, not negative")
  }
  return undefined
}
