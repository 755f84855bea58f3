/** A driver's ring and the device's side of it, both of which begin at any index, as after many laps. */
import type { DriverRing, RingKind, RingOptions } from "../../src/Queue/DriverRing.ts"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import type { SeededRandom } from "../../src/SeededRandom.ts"
import { AVAIL_IDX, USED_IDX } from "../../src/Wire/SplitRing.ts"
import { DeviceMemory, type DeviceRing, type Shared } from "../../src/testing/DeviceRing.ts"
import { PackedDeviceRing } from "../../src/testing/PackedDeviceRing.ts"
import { SplitDeviceRing } from "../../src/testing/SplitDeviceRing.ts"

/** The rings under test; a broken one in the place of a layout shows whether a check would notice. */
export interface Rings {
  readonly split: RingKind
  readonly packed: RingKind
}

export const rings: Rings = { split: SplitRing, packed: PackedRing }

export interface RingAt {
  readonly ring: DriverRing
  readonly device: DeviceRing
  readonly memory: DeviceMemory
  /** All of the ring's memory, the slots included. */
  readonly bytes: Uint8Array
  readonly packed: boolean
  readonly options: RingOptions
  /** Rules that the driver broke. */
  readonly violations: Array<string>
}

const RING_ADDRESS = 2 ** 44 + 2 ** 33
/** Descriptor flags of a packed ring: AVAIL and USED, and where they lie in a descriptor. */
const BOTH_TURNS = 0x8080
const DESCRIPTOR_BYTES = 16
const DESCRIPTOR_FLAGS = 14

/** Chooses a ring, and where it begins: mostly so near the end of the 16 bits that the index wraps soon. */
export const choose = (
  next: SeededRandom,
  { packed: Packed, split: Split }: Rings,
  { mostIndirect = 6, shared = [] }: { readonly mostIndirect?: number; readonly shared?: ReadonlyArray<Shared> } = {}
): RingAt => {
  const packed = next(2) === 0
  const indirect = next(4) > 0
  const eventIdx = next(2) === 0
  const queueSize = indirect ? 2 ** next(mostIndirect + 1) : 2 ** (2 + next(mostIndirect - 1))
  const maxSegments = indirect ? 1 + next(4) : Math.min(1 + next(4), queueSize - 2)
  const options = { queueSize, maxSegments, indirect, eventIdx }
  const position = (next(4) === 0 ? next(2 ** 16) : 2 ** 16 - next(2 * queueSize + 8)) & 0xffff
  const Ring = packed ? Packed : Split
  const buffer = new ArrayBuffer(Ring.bytes(options))
  const ring = new Ring(options, { buffer, offset: 0, address: RING_ADDRESS }, position)
  const memory = new DeviceMemory([{ buffer, address: RING_ADDRESS }, ...shared])
  const violations: Array<string> = []
  const violation = (text: string) => violations.push(text)
  const device = new (packed ? PackedDeviceRing : SplitDeviceRing)({
    ring,
    memory,
    indirect,
    eventIdx,
    violation,
    position
  })
  // What the laps before have left: indices that are equal, and descriptors that were used.
  if (packed) {
    const place = position & queueSize - 1
    const inFirst = (position & queueSize) === 0
    for (let at = 0; at < queueSize; at++) {
      const isUsedInThisLap = at < place
      if (isUsedInThisLap === inFirst) {
        memory.store16(ring.descriptors + at * DESCRIPTOR_BYTES + DESCRIPTOR_FLAGS, BOTH_TURNS)
      }
    }
  } else {
    memory.store16(ring.avail + AVAIL_IDX, position)
    memory.store16(ring.used + USED_IDX, position)
  }
  device.askNotifications(true)
  return { ring, device, memory, bytes: new Uint8Array(buffer), packed, options, violations }
}
