/**
 * Looking at a ring for a moment before going to sleep.
 *
 * Waking a sleeper costs 3 to 50 µs, so a look of 20 µs pays where the other side answers soon. Where it does not, or needs
 * the processor itself, looking in vain costs: it is bounded to a share of the time that passes, of which a little can be
 * saved up (a token bucket).
 *
 * @since 0.1.0
 */

const LOOK_MS = 0.02
/** The share of wall time that may be spent on looking in vain, and how much of it can be saved up. */
const SHARE = 0.15
const MAX_SAVINGS_MS = 1
/** Looks at the ring between two looks at the clock, which costs more. */
const LOOKS_PER_CLOCK = 32

/** What is looked at. */
export interface Ring {
  /** Whether something is there to be taken. */
  readonly pending: boolean
}

/** Looks for `durationMs`; answers whether something is there. */
export const look = (ring: Ring, began: number, durationMs: number): boolean => {
  const until = began + durationMs
  do {
    for (let i = 0; i < LOOKS_PER_CLOCK; i++) if (ring.pending) return true
  } while (performance.now() < until)
  return false
}

/** What one ring has left of its time for looking in vain. */
export class LookAgain {
  #savings = MAX_SAVINGS_MS
  #savedAt = 0

  /** Looks for as long as there is time for it; answers whether something is there. */
  find(ring: Ring): boolean {
    if (ring.pending) return true
    const began = performance.now()
    this.#savings = Math.min(MAX_SAVINGS_MS, this.#savings + (began - this.#savedAt) * SHARE)
    this.#savedAt = began
    if (this.#savings < LOOK_MS) return false
    if (look(ring, began, LOOK_MS)) return true
    this.#savings -= LOOK_MS
    return false
  }
}
