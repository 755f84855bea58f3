/**
 * The addresses by which a device of the kernel reaches memory (IOVAs): which of them are free.
 *
 * Plain data. A device says which ranges it can be given, with all 64 bits; here they are cut down to whole units of the
 * alignment and to what a number holds exactly (2^53-1). An address is the lowest that fits (first fit). The page at address
 * 0 is never given away: to some devices a ring at 0 is one that was not set.
 *
 * @since 0.1.0
 */

/** Addresses that a device says it can be given, both ends included. */
export interface AddressRange {
  readonly first: number | bigint
  readonly last: number | bigint
}

/** Addresses from `start` up to before `end`. */
interface Extent {
  readonly start: number
  readonly end: number
}

/** One past the last address that is a number. */
const END = Number.MAX_SAFE_INTEGER + 1

/** The free addresses of one device, and those in use. */
export class IovaSpace {
  /** Apart from each other and in order, with ends that are multiples of the alignment. */
  readonly #ranges: ReadonlyArray<Extent>
  /** What was allocated, by address. */
  #used: ReadonlyArray<Extent> = []
  readonly #alignment: number

  /** `alignment` is a power of two, in bytes, and at least a page; `ranges` may overlap and come in any order. */
  constructor(ranges: ReadonlyArray<AddressRange>, alignment: number) {
    this.#alignment = alignment
    const unit = BigInt(alignment)
    this.#ranges = merge(ranges.flatMap(({ first, last }) => {
      const lowest = first < unit ? unit : BigInt(first)
      const start = Number((lowest + unit - 1n) / unit * unit)
      const beyond = last < END ? BigInt(last) + 1n : BigInt(END)
      const end = Number(beyond / unit * unit)
      return start < end ? [{ start, end }] : []
    }))
  }

  /** Whether there is any address at all that could be given away. */
  get isEmpty(): boolean {
    return this.#ranges.length === 0
  }

  /** Takes the lowest free addresses for `length` bytes, and answers the first of them; -1 where no room is left. */
  allocate(length: number): number {
    const taken = alignUp(length, this.#alignment)
    for (const range of this.#ranges) {
      let start = range.start
      for (const used of [...this.#used, { start: range.end, end: range.end }]) {
        if (used.end <= start) continue
        const end = Math.min(used.start, range.end)
        // The difference is exact, where a sum might lie above 2^53.
        if (start < end && end - start >= taken) {
          this.#used = [...this.#used, { start, end: start + taken }].toSorted(byStart)
          return start
        }
        start = used.end
        if (start >= range.end) break
      }
    }
    return -1
  }

  /** Gives back what {@link IovaSpace.allocate} answered; does nothing for another address. */
  free(address: number): void {
    this.#used = this.#used.filter(({ start }) => start !== address)
  }
}

const byStart = (left: Extent, right: Extent): number => left.start - right.start

/** Rounds up; exact, since the alignment is a power of two. Nothing has length 0. */
const alignUp = (length: number, alignment: number): number => Math.max(1, Math.ceil(length / alignment)) * alignment

/** Joins what overlaps or touches. */
const merge = (extents: ReadonlyArray<Extent>): ReadonlyArray<Extent> => {
  const merged: Array<Extent> = []
  for (const extent of extents.toSorted(byStart)) {
    const last = merged.at(-1)
    if (last === undefined || last.end < extent.start) merged.push(extent)
    else merged[merged.length - 1] = { start: last.start, end: Math.max(last.end, extent.end) }
  }
  return merged
}
