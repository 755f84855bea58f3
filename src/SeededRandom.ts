/**
 * Numbers by chance that come again with the same seed, for faults on purpose and for tests: mulberry32, whose whole state is 32
 * bits. Good enough for those, the same on every machine, and of no use for secrets.
 *
 * Imports nothing, so that every room may use it.
 *
 * @since 0.1.0
 */

/**
 * Gives numbers: whole, from 0 up to before `limit`, which is at most 2^32.
 *
 * @category models
 * @since 0.1.0
 */
export type SeededRandom = (limit: number) => number

/**
 * Makes a source of numbers; the low 32 bits of `seed` count.
 *
 * @example
 * ```ts
 * import { SeededRandom } from "effect-blkio/testing"
 *
 * const next = SeededRandom.make(42)
 * const again = SeededRandom.make(42)
 * console.log(next(6), next(6), next(6)) // => 3 2 5
 * console.log(again(6), again(6), again(6)) // => 3 2 5
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (seed: number): SeededRandom => {
  let state = seed | 0
  return (limit) => {
    state = state + 0x6d2b79f5 | 0
    let mixed = Math.imul(state ^ state >>> 15, state | 1)
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61)
    return Math.floor(((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32 * limit)
  }
}

/**
 * Gives the seed of one of many sources that have a seed in common, so that what one gives does not depend on how often another
 * was asked.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fork = (seed: number, index: number): number =>
  // Mixed, since neighbouring seeds begin alike.
  Math.imul(Math.imul(seed ^ 0x9e3779b1, 0x85ebca6b) + Math.imul(index + 1, 0xc2b2ae35), 0x27d4eb2f) >>> 0
