/**
 * Plans of faults: which of the things that a fake does go wrong, and how.
 *
 * Each thing a fake does is an occasion of some sort (a request it takes, a notification it hears, a message it answers), and is
 * numbered from 0 within its sort. A plan names the occasions, or leaves it to chance: then each sort has a source of numbers
 * of its own, so that what befalls the hundredth request does not depend on how many notifications came before it.
 *
 * A plan is plain data. What was acted out is a list, and a plan itself: print it with `JSON.stringify`, give it back, and the
 * same happens again; leave out what does not matter, and a failure becomes small.
 *
 * @since 0.1.0
 */
import * as SeededRandom from "../SeededRandom.ts"

/**
 * One fault.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault<out Kind extends string = string> {
  readonly kind: Kind
  /** At which occasion of the kind's sort, from 0. */
  readonly at: number
  /** What the kind leaves open, as a whole number below 2^32: which wrong id, how long a delay. */
  readonly value: number
}

/**
 * Faults by name.
 *
 * @category models
 * @since 0.1.0
 */
export interface Listed<out Kind extends string = string> {
  readonly faults: ReadonlyArray<Fault<Kind>>
}

/**
 * Faults by chance. Rates are from 0 to 1, and those of one sort add up to at most 1, since one fault at most befalls an
 * occasion.
 *
 * @category models
 * @since 0.1.0
 */
export interface ByChance<Kind extends string = string> {
  readonly seed: number
  readonly rates: { readonly [K in Kind]?: number }
}

/**
 * Tells what goes wrong.
 *
 * @category models
 * @since 0.1.0
 */
export type FaultPlan<Kind extends string = string> = Listed<Kind> | ByChance<Kind>

/**
 * The plan by which nothing goes wrong.
 *
 * @category constructors
 * @since 0.1.0
 */
export const none: Listed<never> = { faults: [] }

/**
 * The kinds of faults there are of each sort of occasion.
 *
 * @category models
 * @since 0.1.0
 */
export type Sorts<Kind extends string = string> = { readonly [sort: string]: ReadonlyArray<Kind> }

/** One more than the largest number of a source, which rate 1 stands for. */
const CERTAIN = 2 ** 32

/**
 * A plan that is being acted out.
 *
 * @category models
 * @since 0.1.0
 */
export interface Acting<S extends Sorts> {
  /** What was acted out so far: by itself a plan that does the same again. */
  readonly acted: ReadonlyArray<Fault<S[keyof S][number]>>
  /** Counts an occasion, and gives the fault that befalls it, if any. */
  readonly next: <Sort extends keyof S>(sort: Sort) => Fault<S[Sort][number]> | undefined
}

/**
 * Begins to act a plan out.
 *
 * @example
 * ```ts
 * import { FaultPlan } from "effect-blkio/testing"
 *
 * const sorts = { bell: ["unheard"], letter: ["lost", "late"] } as const
 * const acting = FaultPlan.begin({ seed: 1, rates: { lost: 0.25, late: 0.25 } }, sorts)
 * for (let i = 0; i < 8; i++) acting.next("letter")
 * console.log(acting.acted.map(({ at, kind }) => `${at} ${kind}`).join(", ")) // => "1 late, 2 late, 3 late, 4 late"
 *
 * const again = FaultPlan.begin({ faults: acting.acted }, sorts)
 * for (let i = 0; i < 8; i++) again.next("letter")
 * console.log(JSON.stringify(again.acted) === JSON.stringify(acting.acted)) // => true
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const begin = <const S extends Sorts>(plan: FaultPlan<S[keyof S][number]>, sorts: S): Acting<S> => {
  const acted: Array<Fault<S[keyof S][number]>> = []
  const bySort = new Map<keyof S, () => Fault | undefined>(
    Object.entries(sorts).map(([sort, kinds], index) => [
      sort,
      "faults" in plan ? listed(plan, kinds) : byChance(plan, kinds, index)
    ])
  )
  return {
    acted,
    next: <Sort extends keyof S>(sort: Sort) => {
      // Each sort draws from its own kinds.
      const fault = bySort.get(sort)?.() as Fault<S[Sort][number]> | undefined
      if (fault !== undefined) acted.push(fault)
      return fault
    }
  }
}

const listed = (plan: Listed, kinds: ReadonlyArray<string>) => {
  const faults = new Map(plan.faults.filter(({ kind }) => kinds.includes(kind)).map((fault) => [fault.at, fault]))
  let count = 0
  return (): Fault | undefined => faults.size === 0 ? undefined : faults.get(count++)
}

const byChance = ({ rates, seed }: ByChance, kinds: ReadonlyArray<string>, index: number) => {
  const possible = kinds.flatMap((kind) => {
    const rate = rates[kind] ?? 0
    return rate > 0 ? [{ kind, rate: rate * CERTAIN }] : []
  })
  const next = SeededRandom.make(SeededRandom.fork(seed, index))
  let count = 0
  return (): Fault | undefined => {
    if (possible.length === 0) return undefined
    const at = count++
    // Two numbers for each occasion, used or not: where the next fault falls does not depend on this one.
    let hit = next(CERTAIN)
    const value = next(CERTAIN)
    for (const { kind, rate } of possible) {
      if (hit < rate) return { kind, at, value }
      hit -= rate
    }
    return undefined
  }
}
