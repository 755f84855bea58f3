/**
 * Medians, ratios round by round, and whether a target is met.
 *
 * Ratios are made of runs of the same round, which were neighbours in time, and only then summed up: a machine that is slow
 * for some minutes slows both sides of a ratio.
 */

/** Some numbers, summed up; `undefined` where there are none. */
export interface Summary {
  readonly min: number
  /** The quartiles below and above the median. */
  readonly lower: number
  readonly median: number
  readonly upper: number
  readonly max: number
}

/** What a ratio has to be. */
export interface Target {
  readonly kind: "at least" | "at most"
  readonly bound: number
  /** Met, too, where the interquartile range includes 1: then the rounds do not tell the two sides apart. */
  readonly orEven?: boolean
}

export type Verdict = "met" | "missed" | "not measured" | "no target"

/** The number below which a share of the sorted numbers lies, by linear interpolation. */
const quantile = (sorted: ReadonlyArray<number>, share: number): number => {
  const at = (sorted.length - 1) * share
  const below = sorted[Math.floor(at)] ?? Number.NaN
  const above = sorted[Math.ceil(at)] ?? Number.NaN
  return below + (above - below) * (at - Math.floor(at))
}

export const summarize = (numbers: ReadonlyArray<number>): Summary | undefined => {
  if (numbers.length === 0) return undefined
  const sorted = numbers.toSorted((a, b) => a - b)
  return {
    min: quantile(sorted, 0),
    lower: quantile(sorted, 0.25),
    median: quantile(sorted, 0.5),
    upper: quantile(sorted, 0.75),
    max: quantile(sorted, 1)
  }
}

/** Divides what belongs to the same round; a round that one side has not, or where it has 0 below, gives nothing. */
export const ratios = (
  ours: ReadonlyMap<number, number>,
  theirs: ReadonlyMap<number, number>
): ReadonlyArray<number> =>
  [...ours].flatMap(([round, figure]) => {
    const base = theirs.get(round)
    return base === undefined || base === 0 ? [] : [figure / base]
  })

export const judge = (ratio: Summary | undefined, target: Target | undefined): Verdict => {
  if (ratio === undefined) return "not measured"
  if (target === undefined) return "no target"
  const { bound, kind, orEven = false } = target
  const isMet = kind === "at least" ? ratio.median >= bound : ratio.median <= bound
  const isEven = orEven && ratio.lower <= 1 && ratio.upper >= 1
  return isMet || isEven ? "met" : "missed"
}
