/**
 * The driver's side of a virtqueue, carrying virtio-blk requests (virtio 1.2 §5.2.6): what the queue engine knows of a ring,
 * whichever of the two layouts it has ({@link SplitRing}, {@link PackedRing}).
 *
 * A ring is plain data and one view of memory, no Effect and no system call, so that it runs on ordinary memory in tests and
 * can live in any thread. One ring belongs to one thread. Nothing is allocated per request.
 *
 * The device is not trusted. What the driver needs to know of its own requests it keeps outside the shared memory, and
 * each value read from it is checked: a violation sets {@link DriverRing.fault} and the ring is dead from then on.
 *
 * A request is known by its slot, a number below `queueSize` that is its alone until it is drained.
 *
 * @since 0.1.0
 */

/** What a ring is made of. */
export interface RingOptions {
  /** Number of descriptors: a power of two, at most 32768. */
  readonly queueSize: number
  /** The most data segments a request may have, at least 1. */
  readonly maxSegments: number
  /** INDIRECT_DESC was negotiated. */
  readonly indirect: boolean
  /** EVENT_IDX was negotiated. */
  readonly eventIdx: boolean
}

/** Where a ring lies. */
export interface RingMemory {
  /** Memory that the device shares. */
  readonly buffer: ArrayBuffer
  /** Where the ring begins in it: a multiple of 64. */
  readonly offset: number
  /** The device's address of `buffer`'s first byte. */
  readonly address: number
}

/** A layout of rings. */
export interface RingKind {
  /**
   * Makes the driver's side of a ring. `position` is that of another one that drove this ring before and left nothing
   * outstanding; without it the memory is zeroed.
   */
  new(options: RingOptions, memory: RingMemory, position?: number): DriverRing
  /** How much memory a ring needs, in bytes: a multiple of 64. */
  readonly bytes: (options: RingOptions) => number
}

/** The driver's side of one virtqueue. */
export interface DriverRing {
  /** The device's address of the descriptors (`queue_desc` in virtio 1.2 §4.1.4.3). */
  readonly descriptors: number
  /** The device's address of the part that only the driver writes (`queue_driver`). */
  readonly avail: number
  /** The device's address of the part that only the device writes (`queue_device`). */
  readonly used: number
  readonly queueSize: number
  /** What the device did wrong; once set, the ring must not be used. */
  fault: string | undefined
  /** Requests the device has not answered. */
  readonly outstanding: number
  /** Where the next request goes: by this another side may go on, once nothing is outstanding. */
  readonly position: number
  /** Where the next answer comes: by this another device may go on with the ring as it is. */
  readonly usedPosition: number
  /** Whether the device has answered something that was not drained. */
  readonly pending: boolean

  /** Whether a request with this many data segments fits now. */
  fits(segments: number): boolean

  /**
   * Puts a request with one data segment into the ring and answers its slot. The caller has seen that it {@link fits}.
   * The device does not see it before {@link publish}.
   */
  put(type: number, sector: number, address: number, length: number): number

  /** Puts a request with `count` data segments into the ring, at least 1, otherwise as {@link put}. */
  putSegments(
    type: number,
    sector: number,
    addresses: ReadonlyArray<number>,
    lengths: ReadonlyArray<number>,
    count: number
  ): number

  /**
   * Puts a discard or a write-zeroes of one range (§5.2.6: `struct virtio_blk_discard_write_zeroes`) into the ring,
   * otherwise as {@link put}.
   */
  putRange(type: number, sector: number, sectors: number, flags: number): number

  /** Puts a flush into the ring, otherwise as {@link put}. It has no data segment. */
  putFlush(): number

  /** Shows the device all that was put since the last time. */
  publish(): void

  /**
   * Tells whether the device must be notified of what was published: true until {@link notified} is called, so that a
   * notification that failed stays due.
   */
  notificationDue(): boolean

  /**
   * Asks again, where {@link notificationDue} said so: a device that has found the requests by itself needs no notification
   * of them any more.
   */
  notificationStillDue(): boolean

  /** Records that the device was notified. */
  notified(): void

  /**
   * Takes what the device has answered: writes a packed completion ({@link slotOf}, {@link statusOf}) into `out` for each,
   * frees its slot, and answers how many there were (at most `out.length`), or -1 where the device broke the protocol.
   */
  drain(out: Uint32Array): number

  /**
   * Asks the device to signal the next completion, and tells whether one is there already: then nobody may sleep, since
   * that one may go unsignalled.
   */
  arm(): boolean

  /** Asks the device not to signal completions; it may all the same, now and then. */
  disarm(): void
}

/** A packed completion. */
export const completionOf = (slot: number, status: number): number => slot | status << 16

/** The slot of a packed completion. */
export const slotOf = (completion: number): number => completion & 0xffff

/** The status byte of a packed completion. */
export const statusOf = (completion: number): number => completion >>> 16
