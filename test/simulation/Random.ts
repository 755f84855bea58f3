/** Choices that follow from a seed. */
import * as SeededRandom from "../../src/SeededRandom.ts"

export interface Random {
  /** A number from 0 up to before `limit`. */
  readonly below: (limit: number) => number
  /** A number from `least` to `most`. */
  readonly between: (least: number, most: number) => number
  /** True so many times in a hundred. */
  readonly chance: (percent: number) => boolean
  readonly one: <const A>(of: ReadonlyArray<A>) => A
}

export const random = (seed: number): Random => {
  const below = SeededRandom.make(seed)
  return {
    below,
    between: (least, most) => least + below(most - least + 1),
    chance: (percent) => below(100) < percent,
    one: (of) => of[below(of.length)]!
  }
}
