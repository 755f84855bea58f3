/**
 * A virtio-blk device in this process, and the transport to it: no socket, no daemon, no kernel. Whatever drives a device drives
 * this one, so that a program can be tested against disks that fail in ways no real one does when it is asked to.
 *
 * The device is a {@link FakeDevice} for each queue, all with one disk, and acts a fault plan out. It goes by Effect's clock:
 * notified, it takes and answers requests in steps, `latency` apart, until nothing is left to answer. Under a `TestClock` a run is
 * therefore the same each time. A connection can be lost, and the disk is still there for the next one.
 *
 * The handles change the device at once, whatever it is doing; nothing of the driver runs before they return.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import * as Libc from "../Native/Libc.ts"
import * as SeededRandom from "../SeededRandom.ts"
import * as EventFd from "../Transport/EventFd.ts"
import type { Connection, ConnectionError, QueueAddresses, QueueChannel, Recipe } from "../Transport/Transport.ts"
import {
  type BlkConfig,
  decodeConfig,
  encodeConfig,
  FeatureBit,
  featureMask,
  hasFeature,
  SECTOR_BYTES
} from "../Wire/VirtioBlk.ts"
import { type Acting, type DeviceEvent, type DeviceFault, FakeDevice, type Order, sorts } from "./FakeDevice.ts"
import { FakeDisk } from "./FakeDisk.ts"
import * as FaultPlan from "./FaultPlan.ts"

/**
 * A feature of a device, by its name in virtio 1.2.
 *
 * @category models
 * @since 0.1.0
 */
export type Feature = keyof typeof FeatureBit

/**
 * What a modern device offers, and a fake one unless told otherwise. Its ring is split; `RING_PACKED` makes it packed.
 *
 * @category constants
 * @since 0.1.0
 */
export const usualFeatures: ReadonlyArray<Feature> = [
  "SIZE_MAX",
  "SEG_MAX",
  "BLK_SIZE",
  "FLUSH",
  "TOPOLOGY",
  "CONFIG_WCE",
  "MQ",
  "DISCARD",
  "WRITE_ZEROES",
  "INDIRECT_DESC",
  "EVENT_IDX",
  "VERSION_1"
]

/**
 * What a fake device is like.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The disk's size in bytes. Default 1 MiB. */
  readonly capacity?: number
  /** Default: {@link usualFeatures}. */
  readonly features?: ReadonlyArray<Feature>
  /** What the device says of itself where that is not what follows from the other options, or is not true. */
  readonly config?: Partial<BlkConfig>
  /** Default 8. */
  readonly maxQueues?: number
  /** Default 1024. */
  readonly maxQueueSize?: number
  /** How many regions the device takes, the rings' included. Default 8. */
  readonly maxRegions?: number
  /** Default 1. */
  readonly regionAlignment?: number
  /** What goes wrong. Default: nothing. */
  readonly plan?: FaultPlan.FaultPlan<DeviceFault>
  /** In which order requests are answered. Default: the first first. */
  readonly order?: Order
  /** The time from a notification to the answers, and between steps. Default 0: as soon as other fibers have had their turn. */
  readonly latency?: Duration.Input
  /** Whether the device answers, or leaves it to whoever calls the methods of its {@link FakeTransport.devices}. Default true. */
  readonly answers?: boolean
  /** What GET_ID answers with, at most 20 bytes. Default `fake`. */
  readonly serial?: string
}

/**
 * What each step of connecting and starting is to fail with, until it is taken back.
 *
 * @category models
 * @since 0.1.0
 */
export interface Failures {
  connect?: Errno.ECONNREFUSED
  readConfig?: Errno.EIO | ConnectionError
  negotiate?: Errno.ENOTSUP | Errno.EIO
  map?: Errno.EIO | ConnectionError
  start?: Errno.EIO | Errno.EMFILE | ConnectionError
}

/** How far apart regions lie for the device, so that what runs over the end of one meets nothing. */
const ADDRESSES_APART = 2 ** 32

/** The most blocks that a planned resize adds. */
const MOST_BLOCKS = 64

/** The source of numbers by which requests are carried out or not when a connection is lost: none of the plan's own. */
const LOSS = 2 ** 16

/** One connection, from the device's side. */
interface Session {
  readonly lost: Deferred.Deferred<ConnectionError>
  readonly changed: Queue.Queue<void, Cause.Done>
  readonly kicks: Queue.Queue<void, Cause.Done>
  readonly memory: Array<
    { readonly region: MemoryRegion; readonly buffer: ArrayBuffer; readonly address: number; readonly length: number }
  >
  /** Why the connection is of no use. */
  reason: ConnectionError | undefined
}

/**
 * A device, and the handles to it.
 *
 * @category models
 * @since 0.1.0
 */
export class FakeTransport {
  /** What drivers connect with, one after another. */
  readonly recipe: Recipe
  /** What was asked of the device, in order: `connect`, `readConfig`, `negotiate`, `map`, `start`, `unmap`, `stop`, `disconnect`. */
  readonly calls: Array<string> = []
  readonly failures: Failures = {}
  /** The feature bits that are offered to whoever connects next. */
  features: bigint
  /** The configuration space. To change it and tell the driver, use {@link FakeTransport.change}. */
  config: Uint8Array
  /** The features that were negotiated last. */
  negotiated = -1n
  /** The regions that are mapped now, and the device's addresses of them. */
  readonly mapped = new Map<MemoryRegion, number>()
  /** The rings as they were handed over last. */
  queues: ReadonlyArray<QueueAddresses> = []
  /** The devices behind the rings of the present connection: none before it starts and after it is lost. */
  devices: ReadonlyArray<FakeDevice> = []
  readonly disk: FakeDisk
  /** How often the device was notified. */
  notifications = 0
  /** How many connections were made. */
  connections = 0
  readonly #options: Options
  readonly #faults: Acting
  readonly #random: SeededRandom.SeededRandom
  readonly #violations: Array<string> = []
  #session: Session | undefined
  #nextAddress = ADDRESSES_APART

  constructor(options: Options = {}) {
    const { capacity = 2 ** 20, config, features = usualFeatures, maxQueues = 8, plan = FaultPlan.none } = options
    this.#options = options
    this.#faults = FaultPlan.begin(plan, sorts)
    this.#random = SeededRandom.make(SeededRandom.fork("seed" in plan ? plan.seed : 0, LOSS))
    this.features = featureMask(...features.map((name) => FeatureBit[name]))
    this.disk = new FakeDisk(new Uint8Array(capacity), { writeCache: true })
    this.config = encodeConfig({
      capacitySectors: BigInt(capacity / SECTOR_BYTES),
      sizeMax: 2 ** 20,
      segMax: 126,
      blkSize: SECTOR_BYTES,
      physicalBlockExp: 0,
      alignmentOffset: 0,
      minIoSize: 1,
      optIoSize: 0,
      writeback: 1,
      numQueues: maxQueues,
      maxDiscardSectors: 2 ** 16,
      maxDiscardSeg: 1,
      discardSectorAlignment: 1,
      maxWriteZeroesSectors: 2 ** 16,
      maxWriteZeroesSeg: 1,
      writeZeroesMayUnmap: 1,
      ...config
    })
    this.recipe = {
      driver: "virtio-blk-vhost-user",
      path: "/run/fake.sock",
      fd: -1,
      connect: Effect.suspend(() => this.#connect())
    }
  }

  /** The faults so far: by itself a plan that does the same again. */
  get acted(): ReadonlyArray<FaultPlan.Fault<DeviceFault>> {
    return this.#faults.acted
  }

  /** Rules that the driver broke, on all connections. */
  get violations(): ReadonlyArray<string> {
    return [...this.#violations, ...this.devices.flatMap(({ violations }) => violations)]
  }

  /** Changes the configuration, and tells the driver. What is not named stays as it is. */
  change(changes: Partial<BlkConfig>): void {
    this.config = encodeConfig({ ...decodeConfig(this.config), ...changes })
    this.#tell()
  }

  /** Makes the disk larger or smaller, in bytes, and tells the driver. What is added reads as zeroes. */
  resize(capacity: number): void {
    this.disk.resize(capacity)
    this.change({ capacitySectors: BigInt(capacity / SECTOR_BYTES) })
  }

  /**
   * Loses the connection. Each request that is not answered has been carried out or not, by chance. Whoever connects again finds
   * the same disk.
   */
  lose(reason: ConnectionError = gone("the fake backend went away")): void {
    const session = this.#session
    if (session === undefined) return
    this.#end(session, reason)
    Deferred.doneUnsafe(session.lost, Exit.succeed(reason))
  }

  /** Loses the connection, and the disk's cache with it: each write that was not flushed is kept or forgotten, by chance. */
  crash(): void {
    this.lose(gone("the fake backend crashed"))
    this.disk.crash(this.#random)
  }

  #tell(): void {
    if (this.#session !== undefined) Queue.offerUnsafe(this.#session.changed, undefined)
  }

  /** Ends a connection from the device's side. */
  #end(session: Session, reason: ConnectionError): void {
    session.reason ??= reason
    if (this.#session !== session) return
    this.#halt()
    this.#session = undefined
    this.mapped.clear()
  }

  /** Lets go of the rings. */
  #halt(): void {
    const devices = this.devices
    this.devices = []
    for (const device of devices) {
      device.abandon(this.#random)
      this.#violations.push(...device.violations)
    }
  }

  #note(name: string): Effect.Effect<void> {
    return Effect.sync(() => {
      this.calls.push(name)
    })
  }

  #call<Name extends keyof Failures>(
    name: Name,
    session?: Session
  ): Effect.Effect<void, NonNullable<Failures[Name]> | ConnectionError> {
    return Effect.suspend((): Exit.Exit<void, NonNullable<Failures[Name]> | ConnectionError> => {
      this.calls.push(name)
      const failure = this.failures[name] ?? session?.reason
      return failure === undefined ? Exit.void : Exit.fail(failure)
    })
  }

  #connect = Effect.fnUntraced(function*(
    this: FakeTransport
  ): Effect.fn.Return<Connection, Errno.ECONNREFUSED | ConnectionError, Scope.Scope> {
    const { latency = 0, maxQueueSize = 1024, maxQueues = 8, maxRegions = 8, regionAlignment = 1 } = this.#options
    yield* this.#call("connect")
    if (this.#faults.next("connect") !== undefined) {
      return yield* new Errno.ECONNREFUSED({ operation: "connect", path: this.recipe.path, detail: "as planned" })
    }
    const session: Session = {
      lost: yield* Deferred.make<ConnectionError>(),
      changed: yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end),
      kicks: yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end),
      memory: [],
      reason: undefined
    }
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        // A backend serves one front-end at a time.
        this.lose(gone("another driver connected"))
        this.#session = session
        this.connections++
      }),
      () =>
        Effect.sync(() => {
          this.calls.push("disconnect")
          this.#end(session, gone("the driver disconnected"))
        })
    )
    const pause = Duration.isZero(Duration.fromInputUnsafe(latency)) ? Effect.yieldNow : Effect.sleep(latency)
    const answer = Effect.whileLoop({
      while: () => this.#step(session),
      body: () => pause,
      step: () => {}
    })
    yield* Queue.take(session.kicks).pipe(
      Effect.andThen(pause),
      Effect.andThen(answer),
      Effect.forever,
      Effect.ignore,
      Effect.forkScoped({ startImmediately: true })
    )
    return {
      features: this.features,
      maxQueues,
      maxQueueSize,
      maxRegions,
      regionAlignment,
      needsRegionFd: true,
      readConfig: Effect.map(this.#call("readConfig", session), () => this.config),
      negotiate: (features) =>
        Effect.map(this.#call("negotiate", session), () => {
          this.negotiated = features
        }),
      map: (region: MemoryRegion, at?: number) =>
        Effect.map(this.#call("map", session), () => {
          const address = at ?? this.#nextAddress
          if (at === undefined) this.#nextAddress += ADDRESSES_APART
          this.mapped.set(region, address)
          session.memory.push({ region, buffer: region.bytes.buffer, address, length: region.length })
          return address
        }),
      unmap: (region) =>
        Effect.map(this.#note("unmap"), () => {
          const at = session.memory.findIndex((mapped) => mapped.region === region)
          if (at >= 0) session.memory.splice(at, 1)
          if (session === this.#session) this.mapped.delete(region)
        }),
      start: (queues: ReadonlyArray<QueueAddresses>, channels: ReadonlyArray<QueueChannel> = []) =>
        this.#start(session, queues, channels),
      stop: Effect.map(this.#note("stop"), () => {
        if (session === this.#session) this.#halt()
      }),
      configChanged: Stream.fromQueue(session.changed),
      lost: session.lost
    }
  })

  #start = Effect.fnUntraced(function*(
    this: FakeTransport,
    session: Session,
    queues: ReadonlyArray<QueueAddresses>,
    channels: ReadonlyArray<QueueChannel>
  ) {
    yield* this.#call("start", session)
    const fds = yield* Effect.forEach(queues, (_, index) => {
      const known = channels[index]
      return known === undefined ? EventFd.open("fake transport") : Effect.succeed(known.completionFd)
    })
    // Gone before the event counters are.
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        this.queues = queues
        this.devices = queues.map((ring, index) => this.#device(session, ring, fds[index] ?? -1))
      }),
      () =>
        Effect.sync(() => {
          if (session === this.#session) this.#halt()
        })
    )
    return fds.map((completionFd, index): QueueChannel =>
      channels[index] ?? { completionFd, kickFd: -1, signalsInTurn: true, notify: () => this.#kick(index) }
    )
  })

  #device(session: Session, ring: QueueAddresses, completionFd: number): FakeDevice {
    const has = (bit: number) => hasFeature(this.negotiated, bit)
    const { order = "fifo", serial = "fake" } = this.#options
    return new FakeDevice({
      ring,
      packed: has(FeatureBit.RING_PACKED),
      memory: session.memory,
      indirect: has(FeatureBit.INDIRECT_DESC),
      eventIdx: has(FeatureBit.EVENT_IDX),
      maxSegments: has(FeatureBit.SEG_MAX) ? Math.max(1, decodeConfig(this.config).segMax) : 1,
      disk: this.disk,
      signal: () => Libc.signalEventFd(completionFd),
      order,
      serial,
      faults: this.#faults
    })
  }

  /** Hears a notification. */
  #kick(index: number): number {
    this.notifications++
    const { answers = true } = this.#options
    if (this.devices[index] === undefined || this.#faults.next("kick") !== undefined) return 0
    if (answers && this.#session !== undefined) Queue.offerUnsafe(this.#session.kicks, undefined)
    return 0
  }

  /** Has every queue take what is there and answer what is due; answers whether more is to be done. */
  #step(session: Session): boolean {
    if (session !== this.#session) return false
    let isBusy = false
    for (const device of this.devices) {
      try {
        isBusy = device.step() || isBusy
      } catch (error) {
        // What no device can make sense of: memory that is not mapped, a chain without an end.
        this.#violations.push(String(error))
        this.lose(gone("the fake backend met a ring that makes no sense"))
        return false
      }
      for (const event of device.events.splice(0)) this.#happen(event)
      if (session !== this.#session) return false
    }
    return isBusy
  }

  #happen({ kind, value }: FaultPlan.Fault<DeviceEvent>): void {
    switch (kind) {
      case "configuration changes":
        return this.#tell()
      case "garbage configuration": {
        const next = SeededRandom.make(value)
        this.config = this.config.map(() => next(256))
        return this.#tell()
      }
      case "resized": {
        const { blkSize = SECTOR_BYTES } = this.#options.config ?? {}
        return this.resize(this.disk.bytes.length + (1 + value % MOST_BLOCKS) * blkSize)
      }
      case "needs reset":
        return this.lose(gone("the device met an error and wants to be reset (NEEDS_RESET)"))
      case "connection lost":
        return this.lose()
      case "crash":
        return this.crash()
    }
  }
}

const gone = (detail: string): Errno.ENOTCONN => new Errno.ENOTCONN({ operation: "fake transport", detail })

/**
 * Makes a device. Nothing runs before something connects.
 *
 * @example
 * ```ts
 * import { VirtioBlk } from "effect-blkio"
 * import { FakeTransport } from "effect-blkio/testing"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   // The second request fails, and the third is answered with the id of no request.
 *   const fake = FakeTransport.make({
 *     plan: {
 *       faults: [
 *         { kind: "I/O error", at: 1, value: 0 },
 *         { kind: "id out of range", at: 2, value: 0 }
 *       ]
 *     }
 *   })
 *   const disk = yield* VirtioBlk.make(fake.recipe)
 *   const { bytes } = yield* disk.allocate(4096)
 *   const read = Effect.match(disk.queue(0).read(0, bytes), {
 *     onFailure: ({ _tag }) => _tag,
 *     onSuccess: () => "success"
 *   })
 *   return [yield* read, yield* read, yield* read, yield* read]
 * })
 * console.log((await Effect.runPromise(Effect.scoped(program))).join(", ")) // => "success, EIO, EPROTO, EPROTO"
 * ```
 *
 * @example
 * ```ts
 * import { VirtioBlk } from "effect-blkio"
 * import { FakeTransport } from "effect-blkio/testing"
 * import { Effect } from "effect"
 *
 * const fake = FakeTransport.make({ capacity: 65536, plan: { seed: 7, rates: { delayed: 0.5, torn: 0.1 } } })
 * const program = Effect.gen(function*() {
 *   const disk = yield* VirtioBlk.make(fake.recipe)
 *   yield* disk.writeBytes(512, new Uint8Array(512).fill(7))
 * })
 * await Effect.runPromise(Effect.scoped(program))
 * // The disk is there after the connection.
 * console.log(fake.disk.bytes[512], fake.violations.length) // => 7 0
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options = {}): FakeTransport => new FakeTransport(options)
