/**
 * Which blocks of a store have changed: a bitmap that takes memory only where there are marks.
 *
 * It is kept in pages. A page without marks is absent and one with nothing but marks is a word of its own, so that marking
 * a whole disk costs one entry per 16 MiB of 512-byte blocks, and no bits.
 *
 * @since 0.1.0
 */

/** A run of blocks, in blocks. */
export interface Run {
  readonly start: number
  readonly count: number
  readonly isMarked: boolean
}

/** 4 KiB of bits. */
const BLOCKS_A_PAGE = 32_768
const BITS = 32

export class ChangedBlocks {
  readonly #pages = new Map<number, Uint32Array | "full">()

  /** Marks `count` blocks from `start` on. */
  mark(start: number, count: number): void {
    for (let block = start; block < start + count;) {
      const page = Math.floor(block / BLOCKS_A_PAGE)
      const from = block % BLOCKS_A_PAGE
      const to = Math.min(BLOCKS_A_PAGE, from + start + count - block)
      this.#markWithin(page, from, to)
      block += to - from
    }
  }

  /** The runs of marked and unmarked blocks, in turn, that make up `count` blocks from `start` on. */
  runs(start: number, count: number): ReadonlyArray<Run> {
    const found: Array<Run> = []
    const end = start + count
    for (let block = start; block < end;) {
      const isMarked = this.#has(block)
      let next = block + 1
      while (next < end && this.#has(next) === isMarked) next += this.#uniform(next, end)
      next = Math.min(next, end)
      found.push({ start: block, count: next - block, isMarked })
      block = next
    }
    return found
  }

  /** All runs of marked blocks, in order, as long as they can be. */
  marked(): ReadonlyArray<Run> {
    const found: Array<Run> = []
    for (const page of [...this.#pages.keys()].toSorted((left, right) => left - right)) {
      for (const run of this.runs(page * BLOCKS_A_PAGE, BLOCKS_A_PAGE)) {
        if (!run.isMarked) continue
        const last = found.at(-1)
        if (last !== undefined && last.start + last.count === run.start) {
          found[found.length - 1] = { ...last, count: last.count + run.count }
        } else found.push(run)
      }
    }
    return found
  }

  #has(block: number): boolean {
    const bits = this.#pages.get(Math.floor(block / BLOCKS_A_PAGE))
    if (bits === undefined || bits === "full") return bits === "full"
    const bit = block % BLOCKS_A_PAGE
    return ((bits[bit >>> 5] ?? 0) >>> (bit & 31) & 1) === 1
  }

  /** How many blocks from `block` on are surely like it: to the end of a page that is absent or full, or of a word. */
  #uniform(block: number, end: number): number {
    const within = block % BLOCKS_A_PAGE
    const bits = this.#pages.get(Math.floor(block / BLOCKS_A_PAGE))
    if (bits === undefined || bits === "full") return Math.min(BLOCKS_A_PAGE - within, end - block)
    const word = bits[within >>> 5] ?? 0
    const isWhole = word === 0 || word === 0xffff_ffff
    return isWhole ? Math.min(BITS - within % BITS, end - block) : 1
  }

  #markWithin(page: number, from: number, to: number): void {
    const known = this.#pages.get(page)
    if (known === "full") return
    if (to - from === BLOCKS_A_PAGE) {
      this.#pages.set(page, "full")
      return
    }
    const bits = known ?? new Uint32Array(BLOCKS_A_PAGE / BITS)
    if (known === undefined) this.#pages.set(page, bits)
    for (let bit = from; bit < to;) {
      const count = Math.min(BITS - bit % BITS, to - bit)
      const mask = count === BITS ? 0xffff_ffff : ((1 << count) - 1) << (bit % BITS)
      bits[bit >>> 5] = (bits[bit >>> 5] ?? 0) | mask
      bit += count
    }
  }
}
