/**
 * What a fake device knows of its side of a virtqueue, whichever layout it has, and the memory it lies in.
 *
 * Both layouts are written from virtio 1.2 and not from `src/Queue`, so that the two check each other: a rule that the
 * driver breaks becomes a violation.
 */

/** Memory the device may access, and at which address. */
export interface Shared {
  readonly buffer: ArrayBufferLike
  readonly address: number
  /** How long it is. A device keeps its own mapping of memory that the driver gives up. Default: as long as the buffer is. */
  readonly length?: number
}

/** One element of a buffer. */
export interface Element {
  readonly address: number
  readonly length: number
  readonly isWritable: boolean
}

/** A buffer as the device found it. */
export interface Chain {
  /** How the driver knows it: its head in a split ring, its buffer id in a packed one. */
  readonly id: number
  readonly elements: ReadonlyArray<Element>
  /** How many ring descriptors it takes. */
  readonly descriptors: number
}

export interface DeviceRingOptions {
  readonly ring: {
    readonly descriptors: number
    readonly avail: number
    readonly used: number
    readonly queueSize: number
  }
  readonly memory: DeviceMemory
  readonly indirect: boolean
  readonly eventIdx: boolean
  /** Hears of a rule that the driver broke. */
  readonly violation: (text: string) => void
  /** Where both sides begin, as a free-running index of 16 bits. Default 0. */
  readonly position?: number
}

export interface DeviceRing {
  /** Takes the next buffer that the driver made available. */
  readonly next: () => Chain | undefined
  /** Asks to be notified of the next buffer, where that needs asking, and tells whether it is there already. */
  readonly askForNext: () => boolean
  /** Asks for notifications, or for none. */
  readonly askNotifications: (asks: boolean) => void
  /** Writes that a buffer of so many ring descriptors was used; the driver does not see it before {@link publish}. */
  readonly use: (id: number, length: number, descriptors: number) => void
  /** Breaks the protocol: says to have used that many more, or one more in a packed ring, which has no count of them. */
  readonly runAhead: (by: number) => void
  /** Shows what was used since the last time, and tells whether the driver asked for a signal. */
  readonly publish: () => boolean
}

/** What a descriptor's flags say in both layouts (§2.7.5, §2.8.3, §2.8.6, §2.8.7). */
export const NEXT = 1
export const WRITE = 2
export const INDIRECT = 4

/** The device's view of memory. */
export class DeviceMemory {
  readonly #shared: ReadonlyArray<Shared>

  constructor(shared: ReadonlyArray<Shared>) {
    this.#shared = shared
  }

  /** Finds the memory at a device address. */
  view(address: number, length: number): DataView {
    for (const { address: base, buffer, length: size = buffer.byteLength } of this.#shared) {
      const at = address - base
      if (at < 0 || at + length > size) continue
      return buffer.byteLength < size ? new DataView(new ArrayBuffer(length)) : new DataView(buffer, at, length)
    }
    throw new Error(`${length} bytes at device address ${address} are not mapped`)
  }

  load16(address: number): number {
    return Atomics.load(this.#half(address), 0)
  }

  store16(address: number, value: number): void {
    Atomics.store(this.#half(address), 0, value)
  }

  #half(address: number): Uint16Array {
    const { buffer, byteOffset } = this.view(address, 2)
    return new Uint16Array(buffer, byteOffset, 1)
  }
}
