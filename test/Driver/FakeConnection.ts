/**
 * A transport to nowhere: a connection that is a plain object, whose device is memory.
 *
 * It notes what the driver asks of it, in order, and fails where it is told to. Nothing answers a request until
 * {@link FakeConnection.device} puts a device behind the first queue.
 */
import { Deferred, Effect, Exit, PubSub, Scope, Stream } from "effect"
import * as Errno from "../../src/Errno.ts"
import type { MemoryRegion } from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import type { Connection, ConnectionError, QueueAddresses, Recipe } from "../../src/Transport/Transport.ts"
import { encodeConfig, FeatureBit, featureMask, hasFeature } from "../../src/Wire/VirtioBlk.ts"
import { config, type Feature, usualFeatures } from "../Properties/facts.ts"
import { FakeDevice } from "../support/FakeDevice.ts"

const ADDRESSES_APART = 2 ** 32

const describe = { operation: "fake", detail: "as the test asked" }

/** What each call is to fail with. */
interface Failures {
  connect?: Errno.ECONNREFUSED
  readConfig?: Errno.EIO | ConnectionError
  negotiate?: Errno.ENOTSUP | Errno.EIO
  map?: Errno.EIO | ConnectionError
  start?: Errno.EIO | Errno.EMFILE | ConnectionError
}

interface Options {
  readonly features?: ReadonlyArray<Feature>
  readonly config?: Partial<typeof config>
  readonly maxQueues?: number
  readonly maxQueueSize?: number
  readonly maxRegions?: number
  readonly regionAlignment?: number
}

/** The other end of a connection, with the handles a test pulls. */
export class FakeConnection {
  /** What was asked, in order. */
  readonly calls: Array<string> = []
  readonly failures: Failures = {}
  features: bigint
  config: Uint8Array
  negotiated = -1n
  /** What is mapped now. */
  readonly mapped = new Map<MemoryRegion, number>()
  queues: ReadonlyArray<QueueAddresses> = []
  notifications = 0
  readonly lost = Deferred.makeUnsafe<ConnectionError>()
  readonly #changed = Effect.runSync(PubSub.unbounded<void>())
  readonly #options: Options
  #nextAddress = ADDRESSES_APART
  #completionFds: ReadonlyArray<number> = []

  constructor(options: Options = {}) {
    this.#options = options
    this.features = featureMask(...(options.features ?? usualFeatures).map((name) => FeatureBit[name]))
    this.config = encodeConfig({ ...config, ...options.config })
  }

  readonly recipe: Recipe = {
    driver: "virtio-blk-vhost-user",
    path: "/run/fake.sock",
    fd: -1,
    connect: Effect.gen({ self: this }, function*() {
      yield* this.#call("connect")
      yield* Effect.addFinalizer(() => this.#note("disconnect"))
      return this.#connection(yield* Effect.scope)
    })
  }

  /** The device tells that its configuration is another one. */
  change(changes: Partial<typeof config>): Effect.Effect<void> {
    this.config = encodeConfig({ ...config, ...this.#options.config, ...changes })
    return Effect.asVoid(PubSub.publish(this.#changed, undefined))
  }

  lose(reason: ConnectionError = new Errno.ENOTCONN(describe)): void {
    Deferred.doneUnsafe(this.lost, Exit.succeed(reason))
  }

  /** Puts a device behind the first queue, which answers when it is told to work. */
  device(): FakeDevice {
    const memory = Array.from(this.mapped, ([{ bytes }, address]) => ({ buffer: bytes.buffer, address }))
    const [ring] = this.queues
    return new FakeDevice({
      ring: ring!,
      packed: hasFeature(this.negotiated, FeatureBit.RING_PACKED),
      memory,
      indirect: true,
      eventIdx: true,
      maxSegments: 126,
      disk: new Uint8Array(2 ** 20),
      signal: () => Libc.signalEventFd(this.#completionFds[0]!)
    })
  }

  #note(name: string): Effect.Effect<void> {
    return Effect.sync(() => {
      this.calls.push(name)
    })
  }

  #call<Name extends keyof Failures>(name: Name): Effect.Effect<void, NonNullable<Failures[Name]>> {
    return Effect.suspend(() => {
      this.calls.push(name)
      const failure = this.failures[name]
      return failure === undefined ? Effect.void : Effect.fail<NonNullable<Failures[Name]>>(failure)
    })
  }

  #connection(scope: Scope.Scope): Connection {
    const { maxQueueSize = 1024, maxQueues = 8, maxRegions = 8, regionAlignment = 1 } = this.#options
    const openEventFd = Effect.acquireRelease(
      Effect.sync(Libc.createEventFd),
      (fd) => Effect.sync(() => Libc.close(fd))
    ).pipe(Scope.provide(scope))
    return {
      features: this.features,
      maxQueues,
      maxQueueSize,
      maxRegions,
      regionAlignment,
      needsRegionFd: true,
      readConfig: Effect.map(this.#call("readConfig"), () => this.config),
      negotiate: (features) =>
        Effect.map(this.#call("negotiate"), () => {
          this.negotiated = features
        }),
      map: (region) =>
        Effect.map(this.#call("map"), () => {
          const address = this.#nextAddress
          this.#nextAddress += ADDRESSES_APART
          this.mapped.set(region, address)
          return address
        }),
      unmap: (region) =>
        Effect.map(this.#note("unmap"), () => {
          this.mapped.delete(region)
        }),
      start: (queues) =>
        this.#call("start").pipe(
          Effect.andThen(Effect.forEach(queues, () => openEventFd)),
          Effect.map((fds) => {
            this.queues = queues
            this.#completionFds = fds
            return fds.map((completionFd) => ({
              completionFd,
              kickFd: -1,
              signalsInTurn: true,
              notify: () => {
                this.notifications++
                return 0
              }
            }))
          })
        ),
      stop: this.#note("stop"),
      configChanged: Stream.fromPubSub(this.#changed),
      lost: this.lost
    }
  }
}
