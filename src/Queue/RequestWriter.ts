/**
 * Writes requests into a ring: what each kind of request is in virtio's terms, with the device's addresses of its buffers.
 *
 * @since 0.1.0
 */
import type { AddressSpace } from "../Memory/AddressSpace.ts"
import { RequestType, SECTOR_BYTES, WRITE_ZEROES_UNMAP } from "../Wire/VirtioBlk.ts"
import type { DriverRing } from "./DriverRing.ts"
import * as Request from "./Request.ts"

/** Writes requests into one ring. */
export class RequestWriter {
  readonly #ring: DriverRing
  readonly #memory: AddressSpace
  readonly #rules: Request.DeviceRules
  readonly #addresses: Array<number> = []
  readonly #lengths: Array<number> = []

  constructor(ring: DriverRing, memory: AddressSpace, rules: Request.DeviceRules) {
    this.#ring = ring
    this.#memory = memory
    this.#rules = rules
  }

  /** Puts a request that {@link segmentsOf} says to fit into the ring; -1 where its memory was unmapped since it was checked. */
  put(request: Request.Request): number {
    switch (request._tag) {
      case "read":
      case "write": {
        const address = this.#memory.translate(request.buffer)
        if (address < 0) return -1
        const type = request._tag === "read" ? RequestType.IN : RequestType.OUT
        return this.#ring.put(type, request.offset / SECTOR_BYTES, address, request.buffer.length)
      }
      case "readv":
      case "writev": {
        let count = 0
        for (const buffer of request.buffers) {
          if (buffer.length === 0) {
            if (Request.isDetached(buffer)) return -1
            continue
          }
          const address = this.#memory.translate(buffer)
          if (address < 0) return -1
          this.#addresses[count] = address
          this.#lengths[count++] = buffer.length
        }
        const type = request._tag === "readv" ? RequestType.IN : RequestType.OUT
        return this.#ring.putSegments(type, request.offset / SECTOR_BYTES, this.#addresses, this.#lengths, count)
      }
      case "discard":
        return this.#ring.putRange(
          RequestType.DISCARD,
          request.offset / SECTOR_BYTES,
          request.length / SECTOR_BYTES,
          0
        )
      case "writeZeroes": {
        const unmap = this.#rules.mayUnmap && ((request.flags ?? 0) & Request.RequestFlag.NO_UNMAP) === 0
        return this.#ring.putRange(
          RequestType.WRITE_ZEROES,
          request.offset / SECTOR_BYTES,
          request.length / SECTOR_BYTES,
          unmap ? WRITE_ZEROES_UNMAP : 0
        )
      }
      case "flush":
        return this.#ring.putFlush()
    }
  }
}

/** How many data segments a request has in a ring. */
export const segmentsOf = (request: Request.Request): number => {
  switch (request._tag) {
    case "flush":
      return 0
    case "readv":
    case "writev": {
      let count = 0
      for (const buffer of request.buffers) if (buffer.length > 0) count++
      return count
    }
    default:
      return 1
  }
}
