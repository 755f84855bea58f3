/**
 * A started device: its queues, its memory, and what ends them.
 *
 * Ends in one of three ways, the first of which decides: the connection is lost, or the device breaks the protocol or stays
 * silent, and everything in flight fails with that one cause; or the Scope closes, new requests are refused, what is in
 * flight is waited for as long as `closeTimeout` says, and fails with ESHUTDOWN then. Where the transport's recipe says how to
 * reconnect, a lost connection is no end yet:
 *
 * ```
 * connected ──► lost ──► reconnecting ──► connected: what was in flight is sent again
 *                 ▲            │  │
 *                 └── (again) ─┘  └──► failed: everything fails with one cause
 * ```
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import { AddressSpace } from "../Memory/AddressSpace.ts"
import * as MemoryRegion from "../Memory/MemoryRegion.ts"
import type { DeviceProperties } from "../Properties/Properties.ts"
import type { PropertyState } from "../Properties/PropertyState.ts"
import type { DeviceFacts } from "../Properties/PropertyTable.ts"
import * as IoQueue from "../Queue/IoQueue.ts"
import { type DeviceFailure, QueueEngine, type Waiting } from "../Queue/QueueEngine.ts"
import type { DeviceRules } from "../Queue/Request.ts"
import { UnflushedWrites } from "../Queue/UnflushedWrites.ts"
import type { ReconnectPolicy } from "../Transport/ReconnectPolicy.ts"
import type { Connection, ConnectionError } from "../Transport/Transport.ts"
import { checkConfig, rulesOf } from "./Configuration.ts"
import { closed, drain, end, expire, until, watch } from "./EngineLife.ts"
import { HandedQueue } from "./HandedQueue.ts"
import { type Before, type Link, reopen, stale, type Way } from "./Link.ts"
import type { HandedMemory, QueueHandle } from "./QueueHandle.ts"
import { type ConnectionState, isAway, reconnect } from "./Reconnection.ts"
import * as Rings from "./Rings.ts"
import type { StartDeviceError } from "./Rings.ts"

export type { ConnectionState } from "./Reconnection.ts"

/**
 * What changed when a device's configuration did.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConfigChange {
  /** The disk's size now, in bytes. */
  readonly capacity: number
  /** Whether a write is stable only after a flush, now. */
  readonly flushNeeded: boolean
}

/**
 * What mapping a region may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type MapError = Errno.EINVAL | Errno.EEXIST | Errno.ENOMEM | Errno.ENOSPC | Errno.EIO | DeviceFailure

/**
 * What reading a device's configuration may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type ConfigError = DeviceFailure | Errno.EOVERFLOW | Errno.EIO

/**
 * A started device.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartedDevice {
  readonly properties: DeviceProperties<"started">
  /** The disk's size in bytes; follows the device's configuration. */
  readonly capacity: number
  /** What the queues allow now, as plain values. */
  readonly rules: DeviceRules
  /** The event queues. */
  readonly queues: ReadonlyArray<IoQueue.IoQueue>
  /** The poll queues. */
  readonly pollQueues: ReadonlyArray<IoQueue.IoQueue>
  /** The event queue of an index from 0; where there is none, one that answers ENODEV. */
  readonly queue: (index: number) => IoQueue.IoQueue
  /** The poll queue of an index from 0; where there is none, one that answers ENODEV. */
  readonly pollQueue: (index: number) => IoQueue.IoQueue
  /** Those queues of both kinds that were not handed over. */
  readonly ownQueues: ReadonlyArray<IoQueue.IoQueue>
  /**
   * Hands a queue to another thread of this process, which opens it with `WorkerQueue.open`; here it answers ENODEV from then
   * on. Closing the Scope ends it there: what is in flight is waited for, as long as `closeTimeout` says.
   */
  readonly handOver: (options: HandOverOptions) => Effect.Effect<QueueHandle, HandOverError, Scope.Scope>
  /** Allocates `length` bytes of memory for buffers and maps it for the device, until the Scope closes. */
  readonly allocate: (
    length: number,
    options?: MemoryRegion.AllocateOptions
  ) => Effect.Effect<MemoryRegion.MemoryRegion, MemoryRegion.MemoryError | MapError, Scope.Scope>
  /**
   * Maps a region for the device. EINVAL: misaligned, released, or mapped already; EEXIST: overlaps a mapped one; ENOSPC:
   * no slot is left.
   */
  readonly map: (region: MemoryRegion.MemoryRegion) => Effect.Effect<void, MapError>
  /** Takes a region from the device, after the requests that use it have ended. Does nothing for one not mapped. */
  readonly unmap: (region: MemoryRegion.MemoryRegion) => Effect.Effect<void>
  /** Tells whether a buffer lies in a region that is mapped for the device. */
  readonly reaches: (buffer: Uint8Array) => boolean
  /** Changes of the device's configuration, as the device tells of them or {@link StartedDevice.refresh} finds them. */
  readonly configChanges: Stream.Stream<ConfigChange>
  /** What becomes of the connection: what holds now, and each change from then on. Ends with the device. */
  readonly connectionStates: Stream.Stream<ConnectionState>
  /**
   * Reads the device's configuration now. For backends that do not tell of changes; qemu-storage-daemon 7.2 even keeps
   * telling the old capacity.
   */
  readonly refresh: Effect.Effect<ConfigChange, ConfigError>
}

/**
 * Which queue to hand over, and with which regions.
 *
 * @category models
 * @since 0.1.0
 */
export interface HandOverOptions {
  /** Index among the queues of its kind. */
  readonly queue: number
  /** Default: an event queue. */
  readonly kind?: "event" | "poll"
  /** The mapped regions that its requests may use. They stay where they are; the other thread maps them for itself. */
  readonly regions: ReadonlyArray<MemoryRegion.MemoryRegion>
}

/**
 * What handing a queue over may fail with. EBUSY: requests are in flight or wait. EINVAL: a region is not mapped for the device.
 * ENODEV: there is no such queue, or not any more. ENOTSUP: the transport's queues cannot leave their thread.
 *
 * @category errors
 * @since 0.1.0
 */
export type HandOverError = Errno.EBUSY | Errno.EINVAL | Errno.ENOTSUP | DeviceFailure

/** How a device is to be started. */
export interface StartOptions {
  readonly waiting: Exclude<Waiting, "poll">
  readonly requestTimeout: Duration.Duration
  readonly deviceTimeout: Duration.Duration
  readonly closeTimeout: Duration.Duration
  /** Tells whether the Scope that the device was started in is closing. */
  readonly isClosing: () => boolean
}

/** How long a backend that was given requests and did not start may take to let go of them. */
const RELEASE_TIMEOUT = Duration.seconds(5)

/** Subscribers to configuration changes that fall behind by more than this miss the oldest. */
const CHANGES_KEPT = 16

/** Starts a connected device's queues, as its properties say. */
export const start = Effect.fnUntraced(function*(
  way: Way,
  properties: PropertyState,
  options: StartOptions
): Effect.fn.Return<StartedDevice, StartDeviceError, Scope.Scope> {
  const { reconnect: policy } = way.recipe
  const eventQueues = properties.value("num-queues")
  // Also the rings that come after the first go after the engines.
  const scope = yield* Scope.fork(yield* Effect.scope)
  let linked = yield* Rings.put(way.link.connection, properties, scope)
  // Where it cannot be told now, nothing is compared with it later.
  const identity = policy === undefined
    ? ""
    : yield* Effect.catchTag(Rings.identify(way.link.connection, linked.rings), "EIO", () => Effect.succeed(""))

  const rules: { -readonly [K in keyof DeviceRules]: DeviceRules[K] } = rulesOf(properties)
  const space = new AddressSpace({
    maxRegions: properties.value("max-mem-regions"),
    alignment: properties.value("mem-region-alignment")
  })
  const unflushed = policy === undefined || policy.keepsCache ? undefined : new UnflushedWrites()
  const engines = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const made: Array<QueueEngine> = []
      for (const [i, ring] of linked.rings.rings.entries()) {
        const channel = linked.rings.channels[i]
        if (channel === undefined) continue
        const index = i < eventQueues ? i : i - eventQueues
        const waiting = i < eventQueues ? options.waiting : "poll"
        const onFault = (failure: DeviceFailure) => fail(failure)
        made.push(new QueueEngine({ ...channel, index, waiting, ring, rules, memory: space, unflushed, onFault }))
      }
      return made
    }),
    end
  )
  const handed = new Set<HandedQueue>()
  const states = yield* Effect.acquireRelease(
    PubSub.sliding<ConnectionState>({ capacity: CHANGES_KEPT, replay: 1 }),
    PubSub.shutdown
  )
  const tell = (state: ConnectionState) => PubSub.publishUnsafe(states, state)
  tell({ _tag: "connected" })
  /** Done when the link there is was followed by another, or by none. */
  let followed = Deferred.makeUnsafe<void>()
  let lostBy: DeviceFailure | undefined
  const over = Deferred.makeUnsafe<void>()
  /** Gives the device up. */
  const fail = (failure: DeviceFailure) => {
    if (lostBy !== undefined) return
    lostBy = failure
    for (const queue of handed) queue.tellFailure(failure)
    for (const engine of engines) engine.fail(failure)
    tell({ _tag: "failed", failure })
    Deferred.doneUnsafe(over, Exit.void)
    Deferred.doneUnsafe(followed, Exit.void)
  }
  /** Why the device takes nothing more; a single queue may have gone to another thread. */
  const gone = (): DeviceFailure | undefined => lostBy ?? (options.isClosing() ? closed() : undefined)

  /** Uses the connection there is; where it is lost meanwhile and the device comes back, the one after it. */
  const onLink = <A, E>(
    use: (connection: Connection) => Effect.Effect<A, E | ConnectionError>
  ): Effect.Effect<A, E | DeviceFailure> =>
    Effect.suspend(() => {
      const { connection } = way.link
      const next = followed
      return Effect.catchIf(
        use(connection),
        () => policy !== undefined && Deferred.isDoneUnsafe(connection.lost),
        () =>
          Effect.andThen(
            // Whoever waits for a device that is away may be interrupted, also in the middle of acquiring something.
            Effect.interruptible(Deferred.await(next)),
            Effect.suspend((): Effect.Effect<A, E | DeviceFailure> => {
              const failure = gone()
              return failure === undefined ? onLink(use) : Exit.fail(failure)
            })
          )
      )
    })

  const changes = yield* PubSub.sliding<ConfigChange>(CHANGES_KEPT)
  /** Takes over what the device says of itself now. */
  const adopt = (facts: DeviceFacts): Effect.Effect<ConfigChange> =>
    Effect.suspend(() => {
      properties.device = facts
      Object.assign(rules, rulesOf(properties))
      for (const queue of handed) queue.tellRules({ ...rules })
      const change = { capacity: rules.capacity, flushNeeded: properties.value("flush-needed") }
      return Effect.as(PubSub.publish(changes, change), change)
    })
  const refresh = Effect.uninterruptible(Effect.gen(function*() {
    const { facts } = way.link
    const config = checkConfig(yield* onLink(({ readConfig }) => readConfig), facts.features)
    if ("_tag" in config) {
      if (config._tag !== "EOVERFLOW") fail(config)
      return yield* config
    }
    return yield* adopt({ ...properties.device ?? facts, config })
  }))
  const heedChanges = (connection: Connection, until: Scope.Scope) =>
    connection.configChanged.pipe(
      // What a failed refresh means for the device is done in it; whoever asks for the next one gets its error.
      Stream.runForEach(() => Effect.ignore(refresh)),
      Effect.forkIn(until, { startImmediately: true })
    )

  const mapping = yield* Semaphore.make(1)
  /** Whether the rings of the link before are still there. */
  let hasLeftRings = true
  /** Gets back what a backend was given that found it in the rings; one that does not let go ends the device. */
  const takeBack = ({ connection }: Link) =>
    Effect.map(
      Effect.timeoutOption(Effect.interruptible(connection.released ?? Effect.void), RELEASE_TIMEOUT),
      (released) => {
        if (Option.isSome(released)) { for (const engine of engines) engine.letGo() }
        else {
          const detail = "the backend that came back is silent, and does not let go of memory"
          fail(new Errno.ETIMEDOUT({ operation: "reconnect", detail }))
        }
      }
    )
  /** Makes the device what it was, on another link. */
  const restore = mapping.withPermit(Effect.uninterruptibleMask(Effect.fnUntraced(function*(interruptible) {
    const known = properties.device ?? way.link.facts
    const before: Before = { ...known, queues: engines.length, queueSize: properties.value("queue-size") }
    const next = yield* interruptible(reopen(way.recipe, way.scope, before))
    let goesOn = false
    const compare = (on: Rings.Linked) =>
      identity === "" ? Effect.void : Effect.flatMap(
        Rings.identify(next.connection, on.rings),
        (now) => now === identity ? Effect.void : stale(`it calls itself "${now}", and was "${identity}"`)
      )
    return yield* Effect.gen(function*() {
      // The limits may be others now, and the rings depend on them.
      properties.device = next.facts
      for (const [region, address] of space.regions) yield* interruptible(next.connection.map(region, address))
      const { channels } = linked.rings
      const mayGoOn = hasLeftRings && handed.size === 0 && next.connection.resumesRings === true
        && channels.every(({ inflight }) => inflight !== undefined) && engines.every(({ isRingWhole }) => isRingWhole)
      if (mayGoOn) {
        // Not on rings with requests in them.
        yield* interruptible(Effect.scoped(
          Effect.flatMap(
            Effect.flatMap(Effect.scope, (scratch) => Rings.put(next.connection, properties, scratch)),
            compare
          )
        ))
        goesOn = true
        for (const engine of engines) engine.handBack()
      } else {
        hasLeftRings = false
        yield* Scope.close(linked.ringScope, Exit.void)
      }
      const relinked = yield* interruptible(
        Rings.put(next.connection, properties, scope, channels, goesOn ? linked : undefined)
      )
      if (!goesOn) {
        yield* Effect.onError(
          interruptible(compare(relinked)),
          () => Effect.andThen(Scope.close(relinked.scope, Exit.void), Scope.close(relinked.ringScope, Exit.void))
        )
      }
      hasLeftRings = true
      return { next, relinked, goesOn }
    }).pipe(Effect.onError(() => {
      properties.device = known
      return Effect.andThen(goesOn ? takeBack(next) : Effect.void, next.close)
    }))
  })))

  /** Keeps what is in flight while the device is away, and has it sent again when it is back. */
  const recover = Effect.fnUntraced(function*(policy: ReconnectPolicy, reason: ConnectionError) {
    for (const queue of handed) queue.tellFailure(reason)
    for (const engine of engines) engine.suspend(policy.maxWaiting)
    // What other threads have written is not counted here.
    const hasLostWrites = unflushed !== undefined && (unflushed.lose() || handed.size > 0)
    let attempts = 0
    const attempt = Effect.suspend(() => {
      tell({ _tag: "reconnecting", attempt: ++attempts })
      return restore
    })
    const released = Effect.gen(function*() {
      yield* way.link.connection.released ?? Effect.void
      for (const engine of engines) engine.letGo()
      yield* Scope.close(linked.scope, Exit.void)
      yield* way.link.close
    })
    const { goesOn, next, relinked } = yield* reconnect(policy, reason, released, attempt)
    way.link = next
    linked = relinked
    yield* adopt(next.facts)
    for (const [i, engine] of engines.entries()) {
      const ring = relinked.rings.rings[i]
      engine.resume(goesOn ? undefined : ring, hasLostWrites)
    }
    yield* heedChanges(next.connection, relinked.scope)
    tell({ _tag: "connected" })
    const before = followed
    followed = Deferred.makeUnsafe()
    Deferred.doneUnsafe(before, Exit.void)
  })
  const attend = Effect.gen(function*() {
    for (;;) {
      const reason = yield* Deferred.await(way.link.connection.lost)
      // Nobody waits for a device to come back that is being closed.
      if (policy === undefined || !isAway(reason) || options.isClosing()) return fail(reason)
      tell({ _tag: "lost", reason })
      const isBack = yield* Effect.raceFirst(
        Effect.as(recover(policy, reason), true),
        Effect.as(Deferred.await(over), false)
      )
      if (!isBack) return
    }
  }).pipe(Effect.catch((failure) => Effect.sync(() => fail(failure))))
  yield* Effect.forkScoped(attend, { startImmediately: true })
  yield* heedChanges(way.link.connection, linked.scope)
  /** A device that is silent is lost, and may come back. */
  const silent = (failure: Errno.ETIMEDOUT) => {
    if (policy === undefined) fail(failure)
    else Deferred.doneUnsafe(way.link.connection.lost, Exit.succeed(failure))
  }
  yield* Effect.forkScoped(watch(engines, options.deviceTimeout, silent))
  yield* Effect.forkScoped(expire(engines, options.requestTimeout))
  // So that the device is still watched while it is waited for.
  yield* Effect.addFinalizer(() =>
    Effect.all(
      [drain(engines, options.closeTimeout), ...Array.from(handed, (queue) => queue.end(options.closeTimeout))],
      { concurrency: "unbounded", discard: true }
    )
  )
  // Last, and so before all others: whoever waits for a device that is away hears that it is closed.
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      Deferred.doneUnsafe(over, Exit.void)
      Deferred.doneUnsafe(followed, Exit.void)
    })
  )

  const map = (region: MemoryRegion.MemoryRegion): Effect.Effect<void, MapError> =>
    onLink((connection) =>
      Effect.suspend((): Effect.Effect<void, MapError> => {
        const wrong = gone() ?? space.check(region)
        return wrong === undefined
          ? Effect.map(connection.map(region), (base) => space.add(region, base))
          : Exit.fail(wrong)
      }).pipe((effect) => mapping.withPermit(effect), Effect.uninterruptible)
    )
  const unmap = (region: MemoryRegion.MemoryRegion): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (!space.has(region)) return Effect.void
      space.remove(region)
      // What a device that is away had of it, it will not have again.
      for (const engine of engines) engine.dropUnreachable()
      const users = Array.from(handed).filter((queue) => queue.uses(region))
      return Effect.forEach(users, (queue) => queue.end(options.closeTimeout), { concurrency: "unbounded" }).pipe(
        Effect.andThen(until(engines, (engine) => !engine.uses(region.bytes.buffer))),
        Effect.andThen(Effect.suspend(() => way.link.connection.unmap(region)))
      )
    }).pipe((effect) => mapping.withPermit(effect), Effect.uninterruptible)

  const surfaces = engines.map((engine) => IoQueue.fromEngine(engine, engine.index))
  const queues = surfaces.slice(0, eventQueues)
  const polled = surfaces.slice(eventQueues)
  let ownQueues = surfaces

  const takeOut = (
    { kind = "event", queue: index, regions }: HandOverOptions
  ): { readonly handle: QueueHandle; readonly near: HandedQueue } | HandOverError => {
    const refused = { operation: "hand over", queue: index }
    const at = kind === "event" ? index : eventQueues + index
    const surface = (kind === "event" ? queues : polled)[index]
    const engine = engines[at]
    const { address, channels, layout, memory, offsets, options: ringOptions, rings } = linked.rings
    const ring = rings[at]
    const channel = channels[at]
    const ringOffset = offsets[at]
    if (
      surface === undefined || engine === undefined || ring === undefined || channel === undefined
      || ringOffset === undefined
    ) {
      return new Errno.ENODEV({ ...refused, detail: `there is no ${kind} queue ${index}` })
    }
    const failure = engine.failure ?? gone()
    if (failure !== undefined) return failure
    if (channel.kickFd < 0) {
      return new Errno.ENOTSUP({ ...refused, detail: "the transport notifies the device from its own thread only" })
    }
    if (engine.outstanding > 0 || engine.isContended || engine.isSuspended) {
      return new Errno.EBUSY({ ...refused, detail: `${engine.outstanding} requests are in flight` })
    }
    const handedRegions: Array<HandedMemory> = []
    for (const { bytes, fd, fdOffset, length } of regions) {
      const base = space.translate(bytes)
      if (base < 0) return new Errno.EINVAL({ ...refused, length, detail: "a region is not mapped for the device" })
      handedRegions.push({ fd, fdOffset, length, address: base })
    }
    // It may be on the stack right now, and must not go on looking at a ring that another thread drives.
    engine.fail(new Errno.ENODEV({ ...refused, detail: "the queue was handed to another thread" }))
    ownQueues = ownQueues.filter((other) => other !== surface)
    const near = new HandedQueue(regions, fail)
    handed.add(near)
    const handle: QueueHandle = {
      index,
      waiting: engine.waiting,
      layout,
      ringOptions,
      rings: { fd: memory.fd, fdOffset: 0, length: memory.length, address },
      ringOffset,
      position: ring.position,
      kickFd: channel.kickFd,
      completionFd: channel.completionFd,
      signalsInTurn: channel.signalsInTurn,
      rules: { ...rules },
      regions: handedRegions,
      requestTimeoutMs: Duration.toMillis(options.requestTimeout),
      deviceTimeoutMs: Duration.toMillis(options.deviceTimeout),
      closeTimeoutMs: Duration.toMillis(options.closeTimeout),
      port: near.port
    }
    return { handle, near }
  }
  const handOver = (what: HandOverOptions): Effect.Effect<QueueHandle, HandOverError, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.suspend(() => {
        const taken = takeOut(what)
        return "_tag" in taken ? Exit.fail(taken) : Exit.succeed(taken)
      }),
      ({ near }) => near.end(options.closeTimeout)
    ).pipe(Effect.map(({ handle }) => handle))
  return {
    properties: properties.in("started"),
    get capacity() {
      return rules.capacity
    },
    rules,
    queues,
    pollQueues: polled,
    queue: (index) => queues[index] ?? IoQueue.absent("event", index, queues.length),
    pollQueue: (index) => polled[index] ?? IoQueue.absent("poll", index, polled.length),
    get ownQueues() {
      return ownQueues
    },
    handOver,
    allocate: (length, allocateOptions) =>
      Effect.tap(
        MemoryRegion.allocate(length, allocateOptions),
        (region) =>
          Effect.acquireRelease(map(region), () =>
            // Where the region goes because the device does, in whatever order, it waits no longer than closing may.
            options.isClosing() ? Effect.andThen(drain(engines, options.closeTimeout), end(engines)) : unmap(region))
      ),
    map,
    unmap,
    reaches: (buffer) => space.translate(buffer) >= 0,
    configChanges: Stream.fromPubSub(changes),
    connectionStates: Stream.fromPubSub(states),
    refresh
  }
})
