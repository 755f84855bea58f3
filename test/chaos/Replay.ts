/**
 * Replays a log of writes: power is lost after each of its entries in turn, and when all has ended, and what a disk may then
 * hold is checked against what was asked of it and acknowledged.
 *
 * What stands before the last flush of a prefix is on the disk. Of what comes after it, the disk may have lost everything,
 * nothing, or any part: all three are checked, the third with one part, chosen by chance for each block of each write.
 *
 * When power is lost is known from the log alone: not before the last write of the prefix was asked for.
 */
import { BLOCK_BYTES, BLOCK_WORDS, type Content, identify, wordsOf } from "./Blocks.ts"
import type { History } from "./History.ts"
import type { Entry } from "./LogWrites.ts"

export interface Outcome {
  /** Entries after which power was lost, and those among them that are flushes. */
  readonly prefixes: number
  readonly flushes: number
  /** Disks that were checked. */
  readonly images: number
  /** What was wrong, at most {@link MOST} lines of it. */
  readonly violations: ReadonlyArray<string>
  /** What the disk holds in the end, if nothing is lost. */
  readonly image: Uint8Array
}

const MOST = 20

/** A block of an entry. */
interface Change {
  readonly block: number
  readonly content: Content
}

const changesOf = ({ data, offset }: Entry): ReadonlyArray<Change> => {
  const words = wordsOf(data)
  return Array.from({ length: data.length / BLOCK_BYTES }, (_, nth) => ({
    block: offset / BLOCK_BYTES + nth,
    content: identify(words, nth * BLOCK_WORDS)
  }))
}

export const replay = (
  entries: ReadonlyArray<Entry>,
  history: History,
  seed: number,
  below: (limit: number) => number
): Outcome => {
  const { blocks } = history
  const violations: Array<string> = []
  const image = new Uint8Array(blocks * BLOCK_BYTES)
  const stable: Array<Content> = Array.from({ length: blocks }, () => ({ _tag: "zeroes" }))
  const all = [...stable]
  /** What came after the last flush. */
  let volatile: Array<Change> = []
  /** The last generation of each block in the log. */
  const generations = Array.from({ length: blocks }, () => 0)
  const walk = history.walk()
  let images = 0

  const report = (text: string) => {
    if (violations.length < MOST) violations.push(text)
  }
  const check = (when: string, lost: string, contents: ReadonlyArray<Content>) => {
    images++
    for (let block = 0; block < blocks; block++) {
      const wrong = walk.check(block, contents[block] ?? { _tag: "damaged" }, seed)
      if (wrong !== undefined) report(`power lost after ${when}, and ${lost}: ${wrong}`)
    }
  }
  const checkAll = (when: string) => {
    check(when, "all that was not flushed", stable)
    if (volatile.length === 0) return
    check(when, "nothing else", all)
    const some = [...stable]
    for (const { block, content } of volatile) {
      if (below(2) === 0) some[block] = content
    }
    check(when, "some of what was not flushed", some)
  }

  for (const [i, entry] of entries.entries()) {
    const { data, isFlush, offset } = entry
    if (offset % BLOCK_BYTES !== 0 || data.length % BLOCK_BYTES !== 0 || offset + data.length > image.length) {
      report(`entry ${i} writes ${data.length} bytes at ${offset}, which nobody asked for`)
      continue
    }
    image.set(data, offset)
    for (const change of changesOf(entry)) {
      const { block, content } = change
      const generation = content._tag === "written"
        ? content.generation
        : content._tag === "zeroes"
        ? history.nextZeroes(block, generations[block] ?? 0)
        : 0
      const begun = history.begun(block, generation)
      if (begun === undefined) {
        report(`entry ${i} writes to block ${block} what nobody asked for`)
      } else {
        walk.moveTo(begun)
        generations[block] = generation
      }
      all[block] = content
      volatile.push(change)
    }
    if (isFlush) {
      for (const { block, content } of volatile) stable[block] = content
      volatile = []
    }
    checkAll(`entry ${i}`)
  }
  walk.moveTo(history.end)
  checkAll("everything")
  return {
    prefixes: entries.length,
    flushes: entries.filter(({ isFlush }) => isFlush).length,
    images,
    violations,
    image
  }
}
