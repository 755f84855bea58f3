/**
 * What a fuzzing check is: episodes, each of which is all that follows from its seed.
 *
 * An episode counts what it did, and throws where something is not as it must be. The seed of the n-th episode is that of the run
 * plus n, so that the one that failed can be repeated alone.
 */

/** How often things were seen, by name. */
export class Tally {
  readonly counts = new Map<string, number>()

  count(name: string, by = 1): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + by)
  }
}

export interface Check {
  readonly name: string
  /** What is counted. */
  readonly unit: string
  /** How many units are done for each one that is asked for. */
  readonly share: number
  /** Runs an episode; answers how many units it did. */
  readonly episode: (seed: number, tally: Tally) => number | Promise<number>
}

/** Why a run ended early. */
export interface Failure {
  readonly seed: number
  readonly cause: unknown
}

export interface Result {
  readonly units: number
  readonly episodes: number
  readonly tally: Tally
  readonly failure: Failure | undefined
}

export interface Limits {
  readonly seed: number
  /** Units that are to be done, at least one episode. */
  readonly units: number
  readonly seconds: number
  /** What was thrown outside of any episode's own calls, so far. */
  readonly uncaught?: ReadonlyArray<unknown>
}

/** Runs episodes until there are as many units as are asked for, the time is over, or one fails. */
export const run = async (check: Check, { seconds, seed, uncaught = [], units }: Limits): Promise<Result> => {
  const tally = new Tally()
  const ends = Date.now() + seconds * 1000
  const before = uncaught.length
  let done = 0
  let episodes = 0
  do {
    const episodeSeed = (seed + episodes) >>> 0
    try {
      const made = check.episode(episodeSeed, tally)
      done += typeof made === "number" ? made : await made
      if (uncaught.length > before) throw uncaught[before]
    } catch (cause) {
      return { units: done, episodes, tally, failure: { seed: episodeSeed, cause } }
    }
    episodes++
  } while (done < units && Date.now() < ends)
  return { units: done, episodes, tally, failure: undefined }
}

/** Lets the event loop turn. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Fails an episode. */
export const fail = (what: string): never => {
  throw new Error(what)
}
