/**
 * The address space of one device: which regions it may access, and at which addresses it sees them.
 *
 * Plain data that the queues of a device share. A queue recognises a buffer by the `ArrayBuffer` it lies in, and gets the
 * device's address of it as a number. All that can be wrong with a mapping is checked here, before the backend is asked,
 * because backends answer a bad one by dying.
 *
 * @since 0.1.0
 */
import * as Errno from "../Errno.ts"
import { type MemoryRegion, PAGE_BYTES } from "./MemoryRegion.ts"

/** What limits the mappings of one device. */
export interface Limits {
  /** How many regions the application may map at once. */
  readonly maxRegions: number
  /** What a region's length, and where it lies, must be a multiple of, in bytes. */
  readonly alignment: number
}

/** The regions a device may access. */
export class AddressSpace {
  readonly #addresses = new Map<ArrayBufferLike, { readonly region: MemoryRegion; readonly address: number }>()
  readonly #limits: Limits
  /** What the device may access, and nobody may use for another request. */
  readonly #held = new Set<Uint8Array>()
  // A request's buffer is looked up twice in a row, and its neighbours lie in the same region.
  #lastView: Uint8Array | undefined
  #lastViewAddress = -1
  #lastBuffer: ArrayBufferLike | undefined
  #lastAddress = -1

  constructor(limits: Limits) {
    this.#limits = limits
  }

  /** Tells what is wrong with mapping `region`, if anything. */
  check(region: MemoryRegion): Errno.EINVAL | Errno.EEXIST | Errno.ENOSPC | undefined {
    const { alignment, maxRegions } = this.#limits
    const described = { operation: "map region", length: region.length }
    if (region.bytes.length === 0) return new Errno.EINVAL({ ...described, detail: "the region was released" })
    if (region.length % alignment !== 0 || Number(region.address) % alignment !== 0) {
      return new Errno.EINVAL({
        ...described,
        detail: `length and address must be multiples of mem-region-alignment ${alignment}`
      })
    }
    if (region.fdOffset % PAGE_BYTES !== 0) {
      return new Errno.EINVAL({
        ...described,
        detail: `fd offset ${region.fdOffset} must be a multiple of ${PAGE_BYTES}`
      })
    }
    for (const { region: other } of this.#addresses.values()) {
      if (other.file !== region.file) continue
      if (other.fdOffset === region.fdOffset && other.length === region.length) {
        return new Errno.EINVAL({ ...described, detail: "the region is mapped already" })
      }
      if (other.fdOffset < region.fdOffset + region.length && region.fdOffset < other.fdOffset + other.length) {
        return new Errno.EEXIST({
          ...described,
          detail:
            `file bytes from ${region.fdOffset} overlap the mapped region of ${other.length} bytes from ${other.fdOffset}`
        })
      }
    }
    if (this.#addresses.size >= maxRegions) {
      return new Errno.ENOSPC({
        ...described,
        detail: `the device takes at most ${maxRegions} regions (max-mem-regions)`
      })
    }
    return undefined
  }

  /** Records that the device sees `region` from `address` on. */
  add(region: MemoryRegion, address: number): void {
    this.#addresses.set(region.bytes.buffer, { region, address })
  }

  /** Forgets a region: from now on its buffers are unknown. Answers the device address it had, -1 if it was not mapped. */
  remove(region: MemoryRegion): number {
    const known = this.#addresses.get(region.bytes.buffer)
    if (known === undefined) return -1
    this.#addresses.delete(region.bytes.buffer)
    this.#lastBuffer = undefined
    this.#lastView = undefined
    return known.address
  }

  /** What the device may access, and at which addresses. */
  get regions(): ReadonlyArray<readonly [region: MemoryRegion, address: number]> {
    return Array.from(this.#addresses.values(), ({ address, region }) => [region, address])
  }

  /** Tells whether the device may access `region`. */
  has(region: MemoryRegion): boolean {
    return this.#addresses.has(region.bytes.buffer)
  }

  /** Holds a buffer back from further requests, since the device has not let go of it. */
  hold(buffer: Uint8Array): void {
    this.#held.add(buffer)
    this.#lastView = undefined
  }

  /** Ends a {@link hold}. */
  release(buffer: Uint8Array): void {
    this.#held.delete(buffer)
  }

  #isHeld(buffer: Uint8Array): boolean {
    for (const held of this.#held) if (overlaps(held, buffer)) return true
    return false
  }

  /** The device's address of `buffer`'s first byte, or -1 where the buffer lies in no mapped region, or is held back. */
  translate(buffer: Uint8Array): number {
    if (buffer === this.#lastView) return this.#lastViewAddress
    if (this.#held.size > 0 && this.#isHeld(buffer)) return -1
    const memory = buffer.buffer
    if (memory !== this.#lastBuffer) {
      const known = this.#addresses.get(memory)
      if (known === undefined) return -1
      this.#lastBuffer = memory
      this.#lastAddress = known.address
    }
    this.#lastView = buffer
    this.#lastViewAddress = this.#lastAddress + buffer.byteOffset
    return this.#lastViewAddress
  }
}

/** Tells whether two buffers have a byte in common. */
export const overlaps = (a: Uint8Array, b: Uint8Array): boolean =>
  a.buffer === b.buffer && a.byteOffset < b.byteOffset + b.length && b.byteOffset < a.byteOffset + a.length
