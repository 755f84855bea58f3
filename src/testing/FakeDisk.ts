/**
 * What a fake device stores: bytes, and a write cache that a crash may empty.
 *
 * A disk outlives the connections to it and the devices in front of it. With a cache, a write is stable once a flush has ended
 * that began after it; a crash keeps or forgets each write that is not stable yet, by chance, as a disk does that loses power.
 *
 * @since 0.1.0
 */
import type { SeededRandom } from "../SeededRandom.ts"

interface Unstable {
  readonly at: number
  readonly before: Uint8Array
  readonly after: Uint8Array
}

/** The most writes that are not stable at a time; then the older half becomes so. */
const CACHE_WRITES = 4096

/**
 * The content of a disk.
 *
 * @category models
 * @since 0.1.0
 */
export class FakeDisk {
  /** The content, as a read finds it. May be written directly, too: then it is stable at once. */
  bytes: Uint8Array
  readonly #hasCache: boolean
  #unstable: Array<Unstable> = []

  constructor(bytes: Uint8Array, options: { readonly writeCache?: boolean } = {}) {
    this.bytes = bytes
    this.#hasCache = options.writeCache ?? false
  }

  /** Writes what lies within the disk. */
  write(at: number, bytes: Uint8Array): void {
    if (this.#hasCache) {
      if (this.#unstable.length === CACHE_WRITES) this.#unstable.splice(0, CACHE_WRITES / 2)
      this.#unstable.push({ at, before: this.bytes.slice(at, at + bytes.length), after: bytes.slice() })
    }
    this.bytes.set(bytes, at)
  }

  /** Makes stable what was written. */
  flush(): void {
    this.#unstable = []
  }

  /** Keeps or forgets each write that is not stable, by chance. */
  crash(random: SeededRandom): void {
    const unstable = this.#unstable
    this.#unstable = []
    for (const { at, before } of unstable.toReversed()) this.bytes.set(before, at)
    for (const { after, at } of unstable) if (random(2) === 0) this.bytes.set(after, at)
  }

  /** Makes the disk larger, with zeroes, or smaller; what was written is stable then. */
  resize(length: number): void {
    const bytes = new Uint8Array(length)
    bytes.set(this.bytes.subarray(0, length))
    this.flush()
    this.bytes = bytes
  }
}
