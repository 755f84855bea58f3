/**
 * Knows what each block of a disk may hold, by the rule that fio's verification keeps after a crash: a block holds its last
 * flushed value, or any later one that was in flight or acknowledged.
 *
 * The rule is kept for each block of 4 KiB as a whole: a write of several blocks may be carried out in part, a block may not.
 *
 * As long as no crash comes between, a block holds what was acknowledged last; a write that failed, or whose fate is unknown,
 * leaves its block with the old value or the new one, and the first read says which. A crash sets back what was not flushed:
 * then an older value is within the rule, and is counted by {@link Oracle.fellBack}, since a backend whose cache survives its
 * process (the page cache does) must lose nothing.
 *
 * A block has one writer at a time, and none while it is read: two writes at once, or a read beside a write, have no order
 * that could be checked.
 */
import type { Content } from "./Blocks.ts"

/** A value of a block: twice its generation, and one more where that generation is zeroes. */
type Version = number

const versionOf = (generation: number, zeroes: boolean): Version => generation * 2 + (zeroes ? 1 : 0)
const generationOf = (version: Version): number => Math.floor(version / 2)
const isZeroes = (version: Version): boolean => version % 2 === 1

/** Before anything is written. */
const INITIAL: Version = versionOf(0, true)

interface Block {
  readonly index: number
  /** The last generation given out. */
  generation: number
  /** What the block may hold if the backend has lost nothing. */
  held: ReadonlyArray<Version>
  /** What it may hold once the backend has lost its cache, {@link held} included. */
  atRisk: ReadonlyArray<Version>
  /** There was a crash, and nothing has told since what the block holds. */
  crashed: boolean
  /** What is being written. */
  writing: Version | undefined
  readers: number
}

/** A write or a read that has begun. */
export interface Access {
  readonly first: number
  readonly count: number
  /** Crashes before it. */
  readonly crashes: number
}

/** A flush that has begun: what was to be made stable. */
export interface Flush {
  readonly blocks: ReadonlyArray<{
    readonly block: Block
    readonly held: ReadonlyArray<Version>
    /** Of what came later it says nothing. */
    readonly generation: number
  }>
}

/** How a write ended: acknowledged, acknowledged as stable (FUA), or nobody knows. */
export type WriteEnd = "done" | "stable" | "unknown"

const describeVersion = (version: Version): string =>
  version === INITIAL
    ? "nothing written"
    : `${isZeroes(version) ? "zeroes of " : ""}generation ${generationOf(version)}`

const describeContent = (content: Content): string =>
  content._tag === "written"
    ? `generation ${content.generation} of block ${content.block} of run ${content.seed}`
    : content._tag

const union = (versions: ReadonlyArray<Version>, version: Version): ReadonlyArray<Version> =>
  versions.includes(version) ? versions : [...versions, version]

/** The rule's keeper, for one disk. */
export class Oracle {
  readonly seed: number
  readonly #blocks: Array<Block> = []
  /** Those of which something is at risk. */
  readonly #dirty = new Set<Block>()
  #crashes = 0
  #fellBack = 0

  constructor(seed: number, blocks: number) {
    this.seed = seed
    this.grow(blocks)
  }

  /** How many blocks there are. */
  get blocks(): number {
    return this.#blocks.length
  }

  /** How many times a block held what the rule permits after a crash, and not what was acknowledged. */
  get fellBack(): number {
    return this.#fellBack
  }

  /** Whether something was acknowledged, or may have been done, since it was last flushed. */
  get isDirty(): boolean {
    return this.#dirty.size > 0
  }

  /** Adds blocks that nothing was written to. */
  grow(blocks: number): void {
    for (let index = this.#blocks.length; index < blocks; index++) {
      this.#blocks.push({
        index,
        generation: 0,
        held: [INITIAL],
        atRisk: [INITIAL],
        crashed: false,
        writing: undefined,
        readers: 0
      })
    }
  }

  /** Whether a write would be the only access to these blocks. */
  mayWrite(first: number, count: number): boolean {
    return this.#some(first, count, ({ readers, writing }) => readers > 0 || writing !== undefined) === undefined
  }

  /** Whether no write is under way to these blocks. */
  mayRead(first: number, count: number): boolean {
    return this.#some(first, count, ({ writing }) => writing !== undefined) === undefined
  }

  /** Begins a write, and tells the generation of each block to `each`. */
  beginWrite(first: number, count: number, zeroes: boolean, each: (block: number, generation: number) => void): Access {
    for (const block of this.#range(first, count)) {
      block.generation++
      block.writing = versionOf(block.generation, zeroes)
      each(block.index, block.generation)
    }
    return { first, count, crashes: this.#crashes }
  }

  endWrite({ count, crashes, first }: Access, end: WriteEnd): void {
    const crashed = crashes !== this.#crashes
    for (const block of this.#range(first, count)) {
      const { writing } = block
      if (writing === undefined) continue
      block.writing = undefined
      if (end === "stable") {
        block.held = [writing]
        block.atRisk = [writing]
        block.crashed = false
      } else {
        block.held = end === "done" ? [writing] : union(block.held, writing)
        block.atRisk = union(block.atRisk, writing)
        // Acknowledged after the crash it may have been done before it.
        block.crashed = end === "done" ? crashed : block.crashed || crashed
      }
      this.#review(block)
    }
  }

  beginFlush(): Flush {
    return {
      blocks: [...this.#dirty].map((block) => ({
        block,
        held: block.crashed ? block.atRisk : block.held,
        generation: block.generation - (block.writing === undefined ? 0 : 1)
      }))
    }
  }

  /** A flush has succeeded. One that failed says nothing. */
  endFlush(flush: Flush): void {
    for (const { block, generation, held } of flush.blocks) {
      block.atRisk = block.atRisk.filter((version) => held.includes(version) || generationOf(version) > generation)
      this.#review(block)
    }
  }

  /** The backend has gone, and with it, perhaps, what it had not made stable. */
  crash(): void {
    this.#crashes++
    for (const block of this.#dirty) block.crashed = true
  }

  beginRead(first: number, count: number): Access {
    for (const block of this.#range(first, count)) block.readers++
    return { first, count, crashes: this.#crashes }
  }

  /** Ends a read. Where it has succeeded, `contentOf` tells what it found; answers what is wrong with that. */
  endRead(
    { count, crashes, first }: Access,
    contentOf: ((nth: number) => Content) | undefined
  ): ReadonlyArray<string> {
    const wrong: Array<string> = []
    for (const block of this.#range(first, count)) {
      block.readers--
      if (contentOf === undefined) continue
      const found = this.#observe(block, contentOf(block.index - first), crashes)
      if (found !== undefined) wrong.push(found)
    }
    return wrong
  }

  /** Takes in what a block holds, and answers what is wrong with that. */
  #observe(block: Block, content: Content, crashes: number): string | undefined {
    const matching = (versions: ReadonlyArray<Version>) =>
      versions.filter((version) => this.#is(block, version, content))
    const here = matching(block.held)
    // Who read before the crash says nothing about what came after it.
    const isLate = crashes !== this.#crashes
    if (here.length > 0) {
      if (!isLate) {
        block.held = here
        block.crashed = false
        this.#review(block)
      }
      return undefined
    }
    const older = block.crashed ? matching(block.atRisk) : []
    if (older.length > 0) {
      this.#fellBack++
      if (!isLate) {
        block.held = older
        block.crashed = false
        this.#review(block)
      }
      return undefined
    }
    const allowed = block.crashed ? block.atRisk : block.held
    return `block ${block.index} holds ${describeContent(content)}; allowed: ${allowed.map(describeVersion).join(", ")}`
  }

  #is(block: Block, version: Version, content: Content): boolean {
    switch (content._tag) {
      case "zeroes":
        return isZeroes(version)
      case "written":
        return !isZeroes(version) && content.generation === generationOf(version) && content.block === block.index
          && content.seed === this.seed
      case "damaged":
        return false
    }
  }

  /** Keeps the list of those of which something is at risk. */
  #review(block: Block): void {
    const isClean = block.atRisk.every((version) => block.held.includes(version))
    if (isClean) {
      block.crashed = false
      this.#dirty.delete(block)
    } else {
      this.#dirty.add(block)
    }
  }

  #range(first: number, count: number): ReadonlyArray<Block> {
    return this.#blocks.slice(first, first + count)
  }

  #some(first: number, count: number, isSo: (block: Block) => boolean): Block | undefined {
    return this.#range(first, count).find(isSo)
  }
}
