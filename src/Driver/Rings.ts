/**
 * The rings of a device on one connection: their memory, and the start of its queues with them.
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
import type { Connection, ConnectionError, QueueChannel } from "../Transport/Transport.ts"
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

/** What rings are to go on with, and where channels belong that they do not have yet. */
export interface OpenOptions {
  readonly channels: ReadonlyArray<QueueChannel> | undefined
  readonly channelScope: Scope.Scope
}

const ALIGNMENT = 64

/** Makes rings as the properties say, and starts the device's queues with them; they are stopped with the Scope. */
export const open = Effect.fnUntraced(function*(
  connection: Connection,
  properties: PropertyState,
  { channelScope, channels: before }: OpenOptions
): Effect.fn.Return<Rings, StartDeviceError, Scope.Scope> {
  const features = properties.device?.features ?? 0n
  const count = properties.value("num-queues") + properties.value("num-poll-queues")
  const options: RingOptions = {
    queueSize: properties.value("queue-size"),
    maxSegments: properties.value("max-segments"),
    indirect: hasFeature(features, FeatureBit.INDIRECT_DESC),
    eventIdx: hasFeature(features, FeatureBit.EVENT_IDX)
  }
  const Ring: RingKind = hasFeature(features, FeatureBit.RING_PACKED) ? PackedRing : SplitRing
  const offsets = Array.from({ length: count }, (_, i) => i * Ring.bytes(options))
  const memory = yield* MemoryRegion.allocate(count * Ring.bytes(options) + ALIGNMENT)
  const address = yield* Effect.acquireRelease(connection.map(memory), () => connection.unmap(memory))
  const rings = offsets.map((offset) => new Ring(options, { buffer: memory.bytes.buffer, offset, address }))
  // Also where the start does not end well: the device lets go of the rings before their memory goes.
  yield* Effect.addFinalizer(() => connection.stop)
  const channels = yield* before === undefined
    ? Scope.provide(connection.start(rings), channelScope)
    : connection.start(rings, before)
  return { layout: Ring === PackedRing ? "packed" : "split", options, memory, address, rings, offsets, channels }
})

/** How often an answer is looked for, and how long. */
const LOOK_MS = 1
const PATIENCE_MS = 5000

/** Asks the device for its identity (virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID); empty where it tells none. */
export const identify = (
  { lost }: Connection,
  { address, channels: [channel], memory, rings: [ring] }: Rings
): Effect.Effect<string, ConnectionError> => {
  if (ring === undefined || channel === undefined) return Effect.succeed("")
  // Behind the rings there is room for it.
  const at = memory.length - ALIGNMENT
  const answer = new Uint32Array(1)
  const ask = Effect.sync(() => {
    ring.put(RequestType.GET_ID, 0, address + at, ID_BYTES)
    ring.publish()
    channel.notify()
  })
  const look = Effect.suspend((): Exit.Exit<string | undefined, ConnectionError> => {
    const count = ring.drain(answer)
    if (count < 0) {
      return Exit.fail(new Errno.EPROTO({ operation: "identify", detail: ring.fault ?? "the ring is broken" }))
    }
    if (count === 0) return Exit.succeed(undefined)
    if (statusOf(answer[0] ?? 0) !== Status.OK) return Exit.succeed("")
    return Exit.succeed(Buffer.from(memory.bytes.subarray(at, at + ID_BYTES)).toString("latin1").replace(/[\0 ]+$/, ""))
  })
  const wait: Effect.Effect<string, ConnectionError> = Effect.flatMap(
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
