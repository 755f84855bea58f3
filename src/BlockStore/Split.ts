/**
 * Ranges that are dealt with in parts, since no store takes any length at once.
 *
 * Parts are made as they are begun, and not in advance: a disk of petabytes has more of them than memory holds.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"

/** Parts of one range that are in flight at once. */
const PARTS_IN_FLIGHT = 8

/**
 * Deals with a range in parts of at most `most` bytes, several at once; the first that fails decides. All but the first
 * begin at a multiple of `grain`, where `most` is not less than that.
 */
export const inParts = <E, R>(
  start: number,
  end: number,
  most: number,
  each: (from: number, to: number) => Effect.Effect<void, E, R>,
  grain = 1
): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    if (end - start <= most) return each(start, end)
    let next = start
    const inTurn = Effect.whileLoop({
      while: () => next < end,
      body: () => {
        const from = next
        const aligned = from + most - (from + most) % grain
        next = Math.min(aligned > from ? aligned : from + most, end)
        return each(from, next)
      },
      step: () => {}
    })
    const lanes = Array.from({ length: Math.min(PARTS_IN_FLIGHT, Math.ceil((end - start) / most)) }, () => inTurn)
    return Effect.all(lanes, { concurrency: "unbounded", discard: true })
  })
