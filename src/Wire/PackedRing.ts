/**
 * The packed virtqueue (virtio 1.2 §2.8): where its parts lie, and the arithmetic of its wrap counters.
 *
 * A ring of N entries is three parts in shared memory:
 *
 * ```
 * descriptors    N × {addr u64, len u32, id u16, flags u16}    both sides write    16 N bytes, §2.8.13
 * driver event   desc u16, flags u16                           driver writes       4 bytes, §2.8.14
 * device event   desc u16, flags u16                           device writes       4 bytes, §2.8.14
 * ```
 *
 * The driver writes available descriptors in the order of the ring, the device overwrites them with used ones, also in that
 * order. Two flags tell them apart, and from those of the lap before: their meaning turns over with each side's wrap
 * counter, which is 1 in the first lap, 0 in the second, and so on (§2.8.1).
 *
 * Here a place in the ring and its lap are one index, as in the split ring: it counts descriptors up for ever and wraps at
 * 2^16. Its place is `idx % N`, and its wrap counter the inverse of bit `N`, which works because N is a power of two and two
 * laps divide 2^16. The specification allows other sizes; this driver does not use them.
 *
 * Nothing here touches memory, keeps state or allocates except {@link layout}.
 *
 * @since 0.1.0
 */
import { alignUp, checkQueueSize, DESCRIPTOR_BYTES } from "./SplitRing.ts"

/**
 * Numbers the flags that a descriptor of the ring has beside those of `DescriptorFlag` (virtio 1.2 §2.8.1). In an available
 * descriptor they differ, in a used one they are equal.
 *
 * @since 0.1.0
 * @category constants
 */
export const TurnFlag = {
  AVAIL: 1 << 7,
  USED: 1 << 15
} as const

/**
 * Is the byte offset of `len` (u32) in a descriptor (virtio 1.2 §2.8.13).
 *
 * @since 0.1.0
 * @category offsets
 */
export const DESCRIPTOR_LENGTH = 8

/**
 * Is the byte offset of `id` (u16) in a descriptor (virtio 1.2 §2.8.13).
 *
 * @since 0.1.0
 * @category offsets
 */
export const DESCRIPTOR_ID = 12

/**
 * Is the byte offset of `flags` (u16) in a descriptor (virtio 1.2 §2.8.13).
 *
 * @since 0.1.0
 * @category offsets
 */
export const DESCRIPTOR_FLAGS = 14

/**
 * Numbers the wishes that an event area can hold (virtio 1.2 §2.8.10): to hear of everything, of nothing, or of the one
 * descriptor that its `desc` names, which needs EVENT_IDX. 3 is reserved.
 *
 * @since 0.1.0
 * @category constants
 */
export const EventFlag = {
  ENABLE: 0,
  DISABLE: 1,
  DESC: 2
} as const

/**
 * Is the size of an event area in bytes: desc u16 at 0, flags u16 at 2 (virtio 1.2 §2.8.14).
 *
 * @since 0.1.0
 * @category constants
 */
export const EVENT_BYTES = 4

/** The wrap counter in an event area's `desc`, above the 15 bits of the place (virtio 1.2 §2.8.14). */
const EVENT_WRAP = 1 << 15

/**
 * Says where the parts of one ring lie: byte offsets from the ring's start, and the whole size in bytes.
 *
 * @since 0.1.0
 * @category layout
 */
export interface Layout {
  /** The number of entries. */
  readonly queueSize: number
  /** The byte offset of the descriptors. */
  readonly descriptors: number
  /** The byte offset of the driver's event area. */
  readonly driverEvent: number
  /** The byte offset of the device's event area. */
  readonly deviceEvent: number
  /** The size of the ring in bytes, a multiple of 64. */
  readonly bytes: number
}

/**
 * Lays out a ring of `queueSize` entries, each part on cache lines of its own, when the ring starts on one. That also
 * satisfies the alignments that virtio 1.2 §2.8.10.1 demands: 16 for descriptors, 4 for the event areas.
 *
 * Throws a `WireError` unless `queueSize` is a power of two from 1 to 32768.
 *
 * @since 0.1.0
 * @category layout
 */
export const layout = (queueSize: number): Layout => {
  checkQueueSize(queueSize)
  const descriptors = 0
  const driverEvent = alignUp(descriptors + DESCRIPTOR_BYTES * queueSize)
  const deviceEvent = alignUp(driverEvent + EVENT_BYTES)
  return { queueSize, descriptors, driverEvent, deviceEvent, bytes: alignUp(deviceEvent + EVENT_BYTES) }
}

/**
 * Gives the turn flags of a descriptor that is available at `idx`: AVAIL equals the wrap counter and USED does not.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const availableTurn = (idx: number, queueSize: number): number =>
  (idx & queueSize) === 0 ? TurnFlag.AVAIL : TurnFlag.USED

/**
 * Gives the turn flags of a descriptor that is used at `idx`: both equal the wrap counter.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const usedTurn = (idx: number, queueSize: number): number =>
  (idx & queueSize) === 0 ? TurnFlag.AVAIL | TurnFlag.USED : 0

/**
 * Picks the turn flags out of a descriptor's flags.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const turnOf = (flags: number): number => flags & (TurnFlag.AVAIL | TurnFlag.USED)

/**
 * Gives the word of an event area (`desc` below, `flags` above) that asks to hear when the descriptor at `idx` changes.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const eventAt = (idx: number, queueSize: number): number =>
  idx & (queueSize - 1) | ((idx & queueSize) === 0 ? EVENT_WRAP : 0) | EventFlag.DESC << 16

/**
 * Tells whether whoever wrote `event`, the word of an event area, wants to hear that the descriptors from `oldIdx` up to
 * before `newIdx` changed.
 *
 * A wish that makes no sense counts as one for everything, since a notification too many does no harm. So does one for a
 * single descriptor after two laps or more, in which it has come round.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const crossesEvent = (event: number, newIdx: number, oldIdx: number, queueSize: number): boolean => {
  const flags = event >>> 16
  if (flags !== EventFlag.DESC) return flags !== EventFlag.DISABLE
  const eventIdx = event & (EVENT_WRAP - 1) | ((event & EVENT_WRAP) === 0 ? queueSize : 0)
  return ((eventIdx - oldIdx) & (2 * queueSize - 1)) < ((newIdx - oldIdx) & 0xffff)
}
