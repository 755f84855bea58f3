/**
 * Blocks that say what they are: of which run, at which place, in which generation, and a checksum over all of it. A block
 * that was torn, misplaced, or never asked to be written is recognised by itself.
 *
 * Little-endian words of 32 bits: magic, seed of the run, index of the block, generation, checksum, then numbers that follow
 * from these. Generations of a block count its writes from 1.
 */

export const BLOCK_BYTES = 4096
const WORDS = BLOCK_BYTES / 4

/** `blkc` */
const MAGIC = 0x636b6c62
const CHECKSUM_AT = 4
const PAYLOAD_AT = 5

const FNV_OFFSET = 0x811c9dc5
const FNV_PRIME = 0x01000193

/** FNV-1a, by words instead of bytes, over all but the checksum itself. */
const checksum = (words: Uint32Array, at: number): number => {
  let hash = FNV_OFFSET
  for (let i = at; i < at + WORDS; i++) {
    if (i !== at + CHECKSUM_AT) hash = Math.imul(hash ^ words[i]!, FNV_PRIME)
  }
  return hash >>> 0
}

/** Makes the block at word `at` what generation `generation` of block `block` is. */
export const fill = (words: Uint32Array, at: number, seed: number, block: number, generation: number): void => {
  words[at] = MAGIC
  words[at + 1] = seed
  words[at + 2] = block
  words[at + 3] = generation
  let number = seed ^ Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(generation, 0x85ebca6b)
  for (let i = at + PAYLOAD_AT; i < at + WORDS; i++) {
    number = Math.imul(number, 1664525) + 1013904223 | 0
    words[i] = number
  }
  words[at + CHECKSUM_AT] = checksum(words, at)
}

/** What a block turned out to be. */
export type Content =
  | { readonly _tag: "zeroes" }
  | { readonly _tag: "written"; readonly seed: number; readonly block: number; readonly generation: number }
  /** Neither zeroes nor a block as it was written. */
  | { readonly _tag: "damaged" }

const ZEROES: Content = { _tag: "zeroes" }
const DAMAGED: Content = { _tag: "damaged" }

/** Tells what the block at word `at` is. */
export const identify = (words: Uint32Array, at: number): Content => {
  if (words[at] === MAGIC) {
    if (words[at + CHECKSUM_AT] !== checksum(words, at)) return DAMAGED
    return { _tag: "written", seed: words[at + 1]!, block: words[at + 2]!, generation: words[at + 3]! }
  }
  for (let i = at; i < at + WORDS; i++) {
    if (words[i] !== 0) return DAMAGED
  }
  return ZEROES
}

/** The words of a buffer, which begins at a multiple of four bytes. */
export const wordsOf = ({ buffer, byteLength, byteOffset }: Uint8Array): Uint32Array =>
  new Uint32Array(buffer, byteOffset, byteLength / 4)

/** Words of a block, to find the n-th. */
export const BLOCK_WORDS = WORDS
