/** Rings and queues in front of a device that answers inside the notification, in ordinary memory. */
import { Effect } from "effect"
import type { DriverRing } from "../src/Queue/DriverRing.ts"
import { PackedRing } from "../src/Queue/PackedRing.ts"
import { SplitRing } from "../src/Queue/SplitRing.ts"
import { make } from "../test/support/FakeQueue.ts"
import { type EchoDevice, packedEcho, splitEcho } from "./EchoDevice.ts"

const QUEUE_SIZE = 256
const ADDRESS = 2 ** 44

const RING = { queueSize: QUEUE_SIZE, maxSegments: 1, indirect: true, eventIdx: true }

/** The two layouts. */
export const LAYOUTS = [
  { name: "split ring", packed: false, Ring: SplitRing, echo: splitEcho },
  { name: "packed ring", packed: true, Ring: PackedRing, echo: packedEcho }
] as const

export type Layout = (typeof LAYOUTS)[number]

/** A ring and its device. */
export const makeRing = ({ Ring, echo }: Layout): { readonly ring: DriverRing; readonly device: EchoDevice } => {
  const buffer = new ArrayBuffer(Ring.bytes(RING))
  const ring = new Ring(RING, { buffer, offset: 0, address: ADDRESS })
  return { ring, device: echo(ring, buffer, 0) }
}

/** A queue of the tests, with this device in the place of theirs. */
export const makeQueue = Effect.fnUntraced(function*({ Ring, echo, packed }: Layout) {
  const { eventIdx, indirect, maxSegments, queueSize } = RING
  const fake = yield* make({ packed, queueSize, indirect, eventIdx, maxSegments, working: "by hand", waiting: "event" })
  // Their ring does not begin where its memory does, but it does end there.
  const device = echo(fake.ring, fake.memory, fake.memory.byteLength - Ring.bytes(RING))
  fake.notify = () => {
    device.answer()
    return 0
  }
  return fake
})
