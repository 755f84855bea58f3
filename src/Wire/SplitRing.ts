/**
 * The split virtqueue (virtio 1.2 §2.7): where its parts lie, and the arithmetic of its indices.
 *
 * A ring of N entries is three parts in shared memory:
 *
 * ```
 * descriptors  N × {addr u64, len u32, flags u16, next u16}                                     16 N bytes, §2.7.5
 * avail        flags u16, idx u16, N × u16, used_event u16                     driver writes     6 + 2 N, §2.7.6
 * used         flags u16, idx u16, N × {id u32, len u32}, avail_event u16      device writes     6 + 8 N, §2.7.8
 * ```
 *
 * Both `idx` fields count up for ever and wrap at 2^16; an entry's place in the ring is `idx % N`, which works because N is
 * a power of two and divides 2^16. Nothing here touches memory, keeps state or allocates except {@link layout}: the ring
 * engine works on its own typed arrays with the offsets given here.
 *
 * @since 0.1.0
 */
import { WireError } from "./WireError.ts"

/**
 * Is the size of a descriptor in bytes: addr u64 at 0, len u32 at 8, flags u16 at 12, next u16 at 14 (virtio 1.2 §2.7.5).
 *
 * @since 0.1.0
 * @category constants
 */
export const DESCRIPTOR_BYTES = 16

/**
 * Numbers the flags of a descriptor (virtio 1.2 §2.7.5): `NEXT` continues the chain, `WRITE` is for the device to write,
 * `INDIRECT` points to a table of descriptors.
 *
 * @since 0.1.0
 * @category constants
 */
export const DescriptorFlag = {
  NEXT: 1,
  WRITE: 2,
  INDIRECT: 4
} as const

/**
 * Is the largest number of entries in a split ring (virtio 1.2 §2.7: the largest power of two whose index differences fit
 * 16 bits unambiguously, 2^15).
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_QUEUE_SIZE = 32768

/**
 * Is the flag in the avail part by which the driver asks for no interrupts; only without EVENT_IDX (virtio 1.2 §2.7.7).
 *
 * @since 0.1.0
 * @category constants
 */
export const AVAIL_NO_INTERRUPT = 1

/**
 * Is the flag in the used part by which the device asks for no notifications; only without EVENT_IDX (virtio 1.2 §2.7.10).
 *
 * @since 0.1.0
 * @category constants
 */
export const USED_NO_NOTIFY = 1

/**
 * Is the byte offset of `flags` (u16) in the avail part (virtio 1.2 §2.7.6).
 *
 * @since 0.1.0
 * @category offsets
 */
export const AVAIL_FLAGS = 0

/**
 * Is the byte offset of `idx` (u16) in the avail part (virtio 1.2 §2.7.6).
 *
 * @since 0.1.0
 * @category offsets
 */
export const AVAIL_IDX = 2

/**
 * Is the byte offset of the entries (u16 each) in the avail part (virtio 1.2 §2.7.6).
 *
 * @since 0.1.0
 * @category offsets
 */
export const AVAIL_RING = 4

/**
 * Gives the byte offset of `used_event` (u16) in the avail part: after `queueSize` entries of 2 bytes (virtio 1.2 §2.7.6).
 *
 * @since 0.1.0
 * @category offsets
 */
export const availUsedEvent = (queueSize: number): number => AVAIL_RING + 2 * queueSize

/**
 * Is the byte offset of `flags` (u16) in the used part (virtio 1.2 §2.7.8).
 *
 * @since 0.1.0
 * @category offsets
 */
export const USED_FLAGS = 0

/**
 * Is the byte offset of `idx` (u16) in the used part (virtio 1.2 §2.7.8).
 *
 * @since 0.1.0
 * @category offsets
 */
export const USED_IDX = 2

/**
 * Is the byte offset of the entries in the used part (virtio 1.2 §2.7.8).
 *
 * @since 0.1.0
 * @category offsets
 */
export const USED_RING = 4

/**
 * Is the size of an entry of the used part in bytes: id u32 at 0, len u32 at 4 (virtio 1.2 §2.7.8).
 *
 * @since 0.1.0
 * @category offsets
 */
export const USED_ELEMENT_BYTES = 8

/**
 * Gives the byte offset of `avail_event` (u16) in the used part: after `queueSize` entries of 8 bytes (virtio 1.2 §2.7.8).
 *
 * @since 0.1.0
 * @category offsets
 */
export const usedAvailEvent = (queueSize: number): number => USED_RING + USED_ELEMENT_BYTES * queueSize

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
  /** The byte offset of the avail part. */
  readonly avail: number
  /** The byte offset of the used part. */
  readonly used: number
  /** The size of the ring in bytes, a multiple of 64. */
  readonly bytes: number
}

/**
 * A cache line of x86-64 and of most arm64 processors, in bytes. Driver and device write different parts, and each part on
 * lines of its own keeps them from taking the lines from each other. It also satisfies the alignments that virtio 1.2 §2.7
 * demands: 16 for descriptors, 2 for avail, 4 for used.
 */
const CACHE_LINE_BYTES = 64

/**
 * Rounds a number of bytes up to whole cache lines.
 *
 * @since 0.1.0
 * @category layout
 */
export const alignUp = (bytes: number): number => Math.ceil(bytes / CACHE_LINE_BYTES) * CACHE_LINE_BYTES

/**
 * Throws a `WireError` unless `queueSize` is a power of two from 1 to 32768.
 *
 * @since 0.1.0
 * @category layout
 */
export const checkQueueSize = (queueSize: number): void => {
  if (isPowerOfTwo(queueSize) && queueSize <= MAX_QUEUE_SIZE) return
  throw new WireError(`queue size ${queueSize}: must be a power of two from 1 to ${MAX_QUEUE_SIZE}`)
}

/**
 * Lays out a ring of `queueSize` entries, each part on cache lines of its own, when the ring starts on one.
 *
 * Throws a `WireError` unless `queueSize` is a power of two from 1 to 32768.
 *
 * @since 0.1.0
 * @category layout
 */
export const layout = (queueSize: number): Layout => {
  checkQueueSize(queueSize)
  const descriptors = 0
  const avail = alignUp(descriptors + DESCRIPTOR_BYTES * queueSize)
  const used = alignUp(avail + availUsedEvent(queueSize) + 2)
  const bytes = alignUp(used + usedAvailEvent(queueSize) + 2)
  return { queueSize, descriptors, avail, used, bytes }
}

/**
 * Tells whether `n` is a power of two: 1, 2, 4 and so on up to 2^52; false for anything else, fractions and NaN included.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const isPowerOfTwo = (n: number): boolean => {
  if (!Number.isSafeInteger(n) || n < 1) return false
  const low = n >>> 0
  const high = Math.floor(n / 0x1_0000_0000)
  return high === 0 ? (low & (low - 1)) === 0 : low === 0 && (high & (high - 1)) === 0
}

/**
 * Reduces a whole number to the 16 bits of an index.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const wrap16 = (n: number): number => n & 0xffff

/**
 * Counts the entries between the index last seen and `idx`, both of 16 bits: 0 to 65535.
 *
 * More than the entries in flight means that the other side broke the ring; the caller checks that.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const pending = (idx: number, last: number): number => (idx - last) & 0xffff

/**
 * Tells whether going from `oldIdx` to `newIdx` passed the entry `event`, so that the other side asked to be notified
 * (`vring_need_event`, virtio 1.2 §2.7.7.2 for interrupts, §2.7.10 for notifications).
 *
 * `event` is the index of the entry that completes the wish: notify when the index becomes `event + 1`.
 *
 * @since 0.1.0
 * @category arithmetic
 */
export const crossesEvent = (event: number, newIdx: number, oldIdx: number): boolean =>
  ((newIdx - event - 1) & 0xffff) < ((newIdx - oldIdx) & 0xffff)
