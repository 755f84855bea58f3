/**
 * The rings of a device's queues: their memory, and the start of the queues with them.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import * as MemoryRegion from "../Memory/MemoryRegion.ts"
import type { PropertyState } from "../Properties/PropertyState.ts"
import type { DriverRing, RingKind, RingOptions } from "../Queue/DriverRing.ts"
import { statusOf } from "../Queue/DriverRing.ts"
import { PackedRing } from "../Queue/PackedRing.ts"
import { SplitRing } from "../Queue/SplitRing.ts"
import type { Connection, ConnectionError, QueueAddresses, QueueChannel } from "../Transport/Transport.ts"
import { FeatureBit, hasFeature, ID_BYTES, RequestType, Status } from "../Wire/VirtioBlk.ts"

/** What starting a device's queues may fail with, once its settings were checked. */
export type StartDeviceError = MemoryRegion.MemoryError | Errno.ENOSPC | ConnectionError

/** The rings of the queues of both kinds, event queues first. */
export interface Rings {
  readonly layout: "split" | "packed"
  readonly options: RingOptions
  readonly memory: MemoryRegion.MemoryRegion
  /** The device's address of the memory. */
  readonly address: number
  readonly rings: ReadonlyArray<DriverRing>
  /** Where each ring begins in the memory. */
  readonly offsets: ReadonlyArray<number>
  readonly channels: ReadonlyArray<QueueChannel>
}

/** Of what a ring begins at a multiple, in bytes. */
const ALIGNMENT = 64

/** Rings, and what they belong to. */
export interface Linked {
  readonly rings: Rings
  /** What the rings belong to. */
  readonly ringScope: Scope.Closeable
  /** What belongs to them on the connection that they are on. */
  readonly scope: Scope.Closeable
}

/**
 * Starts the device's queues, as the properties say, with the channels they have, or new ones that belong to `parent`. `left` are
 * rings that a lost connection has left and that go on with another backend, which finds what it has to do in the record of the
 * one before; without them, they are new.
 */
export const put = (
  connection: Connection,
  properties: PropertyState,
  parent: Scope.Scope,
  channels?: ReadonlyArray<QueueChannel>,
  left?: Linked
): Effect.Effect<Linked, StartDeviceError> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const ringScope = left?.ringScope ?? (yield* Scope.fork(parent))
    const scope = yield* Scope.fork(parent)
    const { Ring, options } = layoutOf(properties)
    const count = properties.value("num-queues") + properties.value("num-poll-queues")
    const offsets = Array.from({ length: count }, (_, i) => i * Ring.bytes(options))
    // Behind the rings there is room for the device's identity.
    const bytes = count * Ring.bytes(options) + ALIGNMENT
    const start = Effect.gen(function*() {
      const memory = left?.rings.memory ?? (yield* Scope.provide(MemoryRegion.allocate(bytes), ringScope))
      const address = yield* Effect.acquireRelease(
        connection.map(memory, left?.rings.address),
        () => connection.unmap(memory)
      )
      const rings = left?.rings.rings
        ?? offsets.map((offset) => new Ring(options, { buffer: memory.bytes.buffer, offset, address }))
      // Also where the start does not end well: the device lets go of the rings before their memory goes.
      yield* Effect.addFinalizer(() => connection.stop)
      const addresses = rings.map(({ avail, descriptors, queueSize, used, usedPosition }): QueueAddresses => ({
        avail,
        descriptors,
        queueSize,
        used,
        ...(left === undefined ? {} : { base: usedPosition })
      }))
      const started = yield* channels === undefined
        ? Scope.provide(connection.start(addresses), parent)
        // A record that comes with new rings is for whoever goes on with them, also after this link.
        : Scope.provide(connection.start(addresses, channels), left === undefined ? ringScope : scope)
      const layout = Ring === PackedRing ? "packed" : "split"
      return { layout, options, memory, address, rings, offsets, channels: started } as const
    })
    const rings = yield* start.pipe(
      restore,
      Scope.provide(scope),
      Effect.onError((cause) => {
        const exit = Exit.failCause(cause)
        return Effect.andThen(Scope.close(scope, exit), left === undefined ? Scope.close(ringScope, exit) : Effect.void)
      })
    )
    return { rings, ringScope, scope }
  }))

/** How often an answer is looked for, and how long. */
const LOOK_MS = 1
const PATIENCE_MS = 5000

/**
 * Asks the device for its identity (virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID) on rings that are not in use yet; empty where it
 * has none, EIO where it cannot tell it now.
 */
export const identify = (
  { lost }: Connection,
  { address, channels: [channel], memory, rings: [ring] }: Rings
): Effect.Effect<string, ConnectionError | Errno.EIO> => {
  if (ring === undefined || channel === undefined) return Effect.succeed("")
  const at = memory.length - ALIGNMENT
  const answer = new Uint32Array(1)
  const ask = Effect.sync(() => {
    ring.put(RequestType.GET_ID, 0, address + at, ID_BYTES)
    ring.publish()
    channel.notify()
  })
  const look = Effect.suspend((): Exit.Exit<string | undefined, Errno.EPROTO | Errno.EIO> => {
    const count = ring.drain(answer)
    if (count < 0) {
      return Exit.fail(new Errno.EPROTO({ operation: "identify", detail: ring.fault ?? "the ring is broken" }))
    }
    if (count === 0) return Exit.succeed(undefined)
    const status = statusOf(answer[0] ?? 0)
    if (status === Status.UNSUPP) return Exit.succeed("")
    if (status !== Status.OK) {
      return Exit.fail(new Errno.EIO({ operation: "identify", detail: `the device answers with status ${status}` }))
    }
    return Exit.succeed(Buffer.from(memory.bytes.subarray(at, at + ID_BYTES)).toString("latin1").replace(/[\0 ]+$/, ""))
  })
  const wait: Effect.Effect<string, Errno.EPROTO | Errno.EIO> = Effect.flatMap(
    look,
    (name) => name === undefined ? Effect.andThen(Effect.sleep(LOOK_MS), wait) : Effect.succeed(name)
  )
  return Effect.andThen(ask, wait).pipe(
    Effect.raceFirst(Effect.flatMap(Deferred.await(lost), Effect.fail)),
    Effect.timeoutOrElse({
      duration: PATIENCE_MS,
      orElse: () => new Errno.ETIMEDOUT({ operation: "identify", detail: `no answer within ${PATIENCE_MS} ms` })
    })
  )
}

/** What rings are like, by the properties. */
const layoutOf = (properties: PropertyState): { readonly Ring: RingKind; readonly options: RingOptions } => {
  const features = properties.device?.features ?? 0n
  return {
    Ring: hasFeature(features, FeatureBit.RING_PACKED) ? PackedRing : SplitRing,
    options: {
      queueSize: properties.value("queue-size"),
      maxSegments: properties.value("max-segments"),
      indirect: hasFeature(features, FeatureBit.INDIRECT_DESC),
      eventIdx: hasFeature(features, FeatureBit.EVENT_IDX)
    }
  }
}
