/**
 * The memory that a front-end shares with an export: which regions are mapped here, and what lies at an address of theirs.
 *
 * A region has two addresses, and a message or a descriptor means one of them: descriptors name guest addresses,
 * SET_VRING_ADDR names user addresses (vhost-user: Memory region description). Whatever is asked for is looked up with its
 * whole length, so that nothing outside a mapped region is ever touched.
 *
 * A region has one mapping with one buffer. Removing it detaches the buffer first: a view that some store kept has length 0
 * from then on. Who removes a region sees to it that no request uses it any more.
 *
 * @since 0.1.0
 */
import { fstatSync } from "node:fs"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import type * as Message from "../Wire/VhostUserMessage.ts"

/** A region that is mapped here. */
export interface Region extends Message.MemoryRegion {
  /** Every byte of the mapping, which may begin before the region. */
  readonly bytes: Uint8Array
  readonly view: DataView
  /** Where the region begins in the mapping. */
  readonly start: number
  readonly mapping: Libc.Mapping
}

/** The most regions that are mapped at once: what rust-vmm and QEMU 10 offer, KVM's own limit of old. */
export const MAX_REGIONS = 509

/** The memory of one front-end. */
export class GuestMemory {
  readonly #regions: Array<Region> = []
  readonly #forgotten = new Set<Region>()
  readonly #sealed: boolean
  #last: Region | undefined

  /** With `sealed`, only memory that cannot be shrunk under the mapping is taken. */
  constructor(sealed: boolean) {
    this.#sealed = sealed
  }

  /** Maps a region of the file `fd`, which stays the caller's. Answers what is wrong with it, if anything. */
  add(region: Message.MemoryRegion, fd: number): string | undefined {
    const { guestAddress, size } = region
    if (this.#regions.length >= MAX_REGIONS) return `there may be ${MAX_REGIONS} regions`
    if (size === 0) return "a region has at least one byte"
    const overlapped = this.#regions.find((other) =>
      other.guestAddress < guestAddress + size && guestAddress < other.guestAddress + other.size
    )
    if (overlapped !== undefined) {
      return `guest addresses from ${guestAddress} overlap the ${overlapped.size} bytes from ${overlapped.guestAddress}`
    }
    try {
      const mapped = this.#map(region, fd)
      if (typeof mapped === "string") return mapped
      this.#regions.push(mapped)
      return undefined
    } catch (error) {
      // koffi throws an error of its own where V8 cannot have a view of that size.
      if (error instanceof SyscallError || error instanceof RangeError) return `it cannot be mapped: ${error.message}`
      throw error
    }
  }

  #map(region: Message.MemoryRegion, fd: number): Region | string {
    const { mmapOffset, size } = region
    const stat = fstatSync(fd)
    if (!stat.isFile()) return "its descriptor is no file"
    if (mmapOffset + size > stat.size) return `${size} bytes from ${mmapOffset} end beyond the file's ${stat.size}`
    if (this.#sealed && !Libc.isSealedAgainstShrinking(fd)) return "its file is not sealed against shrinking"
    // Of hugetlbfs the block is the huge page, whose multiples offset and length of a mapping must be.
    const page = Math.max(4096, stat.blksize)
    const start = mmapOffset % page
    const mapping = Libc.map(fd, mmapOffset - start, Math.ceil((start + size) / page) * page)
    const bytes = new Uint8Array(mapping.buffer)
    return { ...region, bytes, view: new DataView(mapping.buffer), start, mapping }
  }

  /** Finds the region of these very addresses and this size. */
  named(region: Message.MemoryRegion): Region | undefined {
    return this.#regions.find(({ guestAddress, size, userAddress }) =>
      guestAddress === region.guestAddress && userAddress === region.userAddress && size === region.size
    )
  }

  /** Forgets a region: from now on its addresses are unknown. Its memory stays until {@link release}. */
  forget(region: Region): void {
    const at = this.#regions.indexOf(region)
    if (at >= 0) this.#regions.splice(at, 1)
    this.#forgotten.add(region)
    this.#last = undefined
  }

  /** Detaches and unmaps what was forgotten. */
  release(region: Region): void {
    this.#forgotten.delete(region)
    Libc.unmap(region.mapping)
  }

  /** Unmaps all there is, and what was forgotten and is not released. */
  close(): void {
    for (const region of this.regions) this.forget(region)
    for (const region of Array.from(this.#forgotten)) this.release(region)
  }

  /** The regions there are. */
  get regions(): ReadonlyArray<Region> {
    return [...this.#regions]
  }

  /** The region that holds all of `length` bytes from a guest address. */
  atGuest(address: number, length: number): Region | undefined {
    const last = this.#last
    if (last !== undefined && holds(last.guestAddress, last.size, address, length)) return last
    // Called for each descriptor: no closure.
    for (const region of this.#regions) {
      if (holds(region.guestAddress, region.size, address, length)) {
        this.#last = region
        return region
      }
    }
    return undefined
  }

  /** The region that holds all of `length` bytes from a user address. */
  atUser(address: number, length: number): Region | undefined {
    return this.#regions.find(({ size, userAddress }) => holds(userAddress, size, address, length))
  }
}

const holds = (start: number, size: number, address: number, length: number): boolean =>
  address >= start && address - start <= size - length
