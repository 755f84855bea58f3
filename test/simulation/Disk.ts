/**
 * What the device stores, and what of it survives a crash.
 *
 * It outlives the sessions. It also tells a lie where it is told to, and keeps to it: the sectors concerned are not written any
 * more, so that the lie stays to be found.
 */
import { SECTOR_BYTES } from "../../src/Wire/VirtioBlk.ts"
import { CELL_BYTES, type Model, valueOf } from "./Model.ts"
import type { Lie } from "./Plan.ts"
import type { Random } from "./Random.ts"

export class Disk {
  readonly bytes: Uint8Array
  /** Whether a lie was told that no reader may believe. */
  hasLied = false
  readonly #stable: Uint8Array
  readonly #frozen = new Set<number>()
  readonly #random: Random
  readonly #model: Model

  constructor(length: number, random: Random, model: Model) {
    this.bytes = new Uint8Array(length)
    this.#stable = new Uint8Array(length)
    this.#random = random
    this.#model = model
  }

  write(at: number, data: Uint8Array): void {
    for (let done = 0; done < data.length; done += SECTOR_BYTES) {
      const sector = (at + done) / SECTOR_BYTES
      if (!this.#frozen.has(sector)) this.bytes.set(data.subarray(done, done + SECTOR_BYTES), at + done)
    }
  }

  flush(): void {
    this.#stable.set(this.bytes)
  }

  /** Loses, sector by sector, what was not flushed, or keeps it. */
  crash(): void {
    for (let at = 0; at < this.bytes.length; at += SECTOR_BYTES) {
      if (this.#random.chance(50)) this.bytes.set(this.#stable.subarray(at, at + SECTOR_BYTES), at)
    }
    this.flush()
  }

  /** Does not do what a write asks for, if that is sure to be wrong. Answers whether it lied. */
  lieWriting(how: Lie, at: number, data: Uint8Array): boolean {
    // Of a torn write the first sector arrives.
    const from = how === "torn write" ? SECTOR_BYTES : 0
    const missing = data.subarray(from)
    if (!this.#isMissed(at + from, missing)) return false
    this.write(at, data.subarray(0, from))
    if (how === "misdirected write") {
      const other = this.#elsewhere(at, data.length)
      this.write(other, data)
      this.#freeze(other, data.length)
    }
    this.#freeze(at, data.length)
    this.hasLied = true
    return true
  }

  /** Gives the data of another place, if that shows. */
  lieReading(at: number, length: number): Uint8Array | undefined {
    const other = this.#elsewhere(at, length)
    const found = this.bytes.subarray(other, other + length)
    if (found.every((byte) => byte === 0)) return undefined
    this.hasLied = true
    return found
  }

  /** Whether some cell would keep a value that no read may give once the write is acknowledged. */
  #isMissed(at: number, data: Uint8Array): boolean {
    for (let done = 0; done < data.length; done += CELL_BYTES) {
      const cell = (at + done) / CELL_BYTES
      const held = valueOf(this.bytes, at + done, cell)
      // Zeroes may be written again.
      if (held > 0 && this.#model.replaces(cell, valueOf(data, done, cell), held)) return true
    }
    return false
  }

  #elsewhere(at: number, length: number): number {
    return at >= length ? 0 : this.bytes.length - length
  }

  #freeze(at: number, length: number): void {
    for (let done = 0; done < length; done += SECTOR_BYTES) this.#frozen.add((at + done) / SECTOR_BYTES)
  }
}
