/** What a run does to its backend, and when: the same for the same seed. */
import { make as random } from "../../src/SeededRandom.ts"

/** One thing done to a backend. */
export type Disturbance =
  /** SIGKILL, and a new process after a while. */
  | { readonly _tag: "kill"; readonly downMs: number }
  /** SIGTERM, and a new process after a while. */
  | { readonly _tag: "restart"; readonly downMs: number }
  /** SIGSTOP, and SIGCONT after a while. */
  | { readonly _tag: "stop"; readonly forMs: number }
  /** SIGSTOP, then SIGKILL while it is stopped, and a new process after a while. */
  | { readonly _tag: "stopAndKill"; readonly forMs: number; readonly downMs: number }
  /** Makes the disk larger. */
  | { readonly _tag: "grow" }

/** A disturbance and how long the backend is left alone before it. */
export interface Step {
  readonly afterMs: number
  readonly disturbance: Disturbance
}

/** Every so many kills there is one of the other disturbances, on average. */
const KILLS_FOR_EACH_OTHER = 3
const MAX_DOWN_MS = 60
const MAX_STOP_MS = 300
/** A stop that a device with the time limit of the run is declared dead for, once in so many stops. */
const STOPS_FOR_EACH_LONG_ONE = 8

/** Plans a run: so many kills, other disturbances between them, spread over its time. */
export const planOf = (
  seed: number,
  options: { readonly kills: number; readonly seconds: number; readonly longStopMs: number }
): ReadonlyArray<Step> => {
  const below = random(seed)
  const disturbances: Array<Disturbance> = []
  const stopMs = () => below(STOPS_FOR_EACH_LONG_ONE) === 0 ? options.longStopMs : 1 + below(MAX_STOP_MS)
  const other = (): Disturbance => {
    switch (below(4)) {
      case 0:
        return { _tag: "restart", downMs: below(MAX_DOWN_MS) }
      case 1:
        return { _tag: "grow" }
      default:
        return { _tag: "stop", forMs: stopMs() }
    }
  }
  for (let kill = 0; kill < options.kills; kill++) {
    if (below(KILLS_FOR_EACH_OTHER) === 0) disturbances.push(other())
    const downMs = below(MAX_DOWN_MS)
    disturbances.push(
      below(8) === 0 ? { _tag: "stopAndKill", forMs: 1 + below(MAX_STOP_MS), downMs } : { _tag: "kill", downMs }
    )
  }
  if (options.kills === 0) disturbances.push(other(), other(), other())
  const meanMs = options.seconds * 1000 / disturbances.length
  return disturbances.map((disturbance) => ({ afterMs: Math.round(below(2 * meanMs)), disturbance }))
}
