/**
 * What was asked of a disk and what was acknowledged, in order, and what the disk must therefore hold when power is lost.
 *
 * Time is counted by events. A block holds, after a loss of power, the value that was stable last, or any later one: stable is
 * what had been acknowledged when a flush began that was acknowledged itself, and what was acknowledged with FUA.
 */
import type { Content } from "./Blocks.ts"
import type { Journal } from "./Traffic.ts"

interface Write {
  readonly zeroes: boolean
  readonly begun: number
  /** Never, where it was not acknowledged. */
  ended: number
  stable: boolean
}

interface Flush {
  readonly begun: number
  readonly ended: number
}

export class History implements Journal {
  /** The writes of each block, the first generation first. */
  readonly #writes: ReadonlyArray<Array<Write>>
  /** In the order in which they were acknowledged. */
  readonly #flushes: Array<Flush> = []
  #now = 0

  constructor(blocks: number) {
    this.#writes = Array.from({ length: blocks }, () => [])
  }

  get blocks(): number {
    return this.#writes.length
  }

  writeBegun(block: number, _generation: number, zeroes: boolean): void {
    this.#writes[block]?.push({ zeroes, begun: this.#now++, ended: Infinity, stable: false })
  }

  writeEnded(block: number, generation: number, stable: boolean): void {
    const write = this.#writes[block]?.[generation - 1]
    if (write === undefined) return
    write.ended = this.#now++
    write.stable = stable
  }

  flushBegun(): () => void {
    const begun = this.#now++
    return () => this.#flushes.push({ begun, ended: this.#now++ })
  }

  /** When a generation of a block was asked for, if it was. */
  begun(block: number, generation: number): number | undefined {
    return this.#writes[block]?.[generation - 1]?.begun
  }

  /** The first generation of a block after `generation` that is zeroes, or 0. */
  nextZeroes(block: number, generation: number): number {
    const writes = this.#writes[block] ?? []
    for (let next = generation; next < writes.length; next++) {
      if (writes[next]?.zeroes === true) return next + 1
    }
    return 0
  }

  /** When everything has ended. */
  get end(): number {
    return this.#now
  }

  /** Goes through time, from the beginning on. */
  walk(): Walk {
    return new Walk(this.#writes, this.#flushes)
  }
}

/** What must be stable, as time goes on. */
export class Walk {
  readonly #writes: ReadonlyArray<ReadonlyArray<Write>>
  readonly #flushes: ReadonlyArray<Flush>
  /** The generation of each block that must be stable, 0 for none. */
  readonly #stable: Array<number>
  #nextFlush = 0
  #now = -1

  constructor(writes: ReadonlyArray<ReadonlyArray<Write>>, flushes: ReadonlyArray<Flush>) {
    this.#writes = writes
    this.#flushes = flushes
    this.#stable = writes.map(() => 0)
  }

  /** Moves on to a time, which is not before the last one. */
  moveTo(now: number): void {
    if (now <= this.#now) return
    this.#now = now
    let flushedBefore = -1
    for (; (this.#flushes[this.#nextFlush]?.ended ?? Infinity) < now; this.#nextFlush++) {
      flushedBefore = Math.max(flushedBefore, this.#flushes[this.#nextFlush]?.begun ?? -1)
    }
    for (const [block, writes] of this.#writes.entries()) {
      for (let generation = (this.#stable[block] ?? 0) + 1; generation <= writes.length; generation++) {
        const write = writes[generation - 1]
        if (write === undefined || write.ended >= now) break
        if (write.ended < flushedBefore || write.stable) this.#stable[block] = generation
      }
    }
  }

  /** Tells what is wrong with a block that holds this if power is lost now. */
  check(block: number, content: Content, seed: number): string | undefined {
    const stable = this.#stable[block] ?? 0
    const writes = this.#writes[block] ?? []
    const isRight = content._tag === "zeroes"
      ? stable === 0 || writes.some((write, i) => i + 1 >= stable && write.zeroes)
      : content._tag === "written" && content.seed === seed && content.block === block
        && content.generation >= stable && content.generation <= writes.length
    if (isRight) return undefined
    const found = content._tag === "written"
      ? `generation ${content.generation} of block ${content.block}`
      : content._tag
    return `block ${block} holds ${found}, and generation ${stable} was stable`
  }
}
