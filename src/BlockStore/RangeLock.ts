/**
 * A lock on ranges: whoever holds one keeps others out of every range that overlaps it. First come, first served, so that
 * nobody is passed by for ever.
 *
 * Each claim counts the earlier ones that overlap it, so that coming and going cost one look at the claims there are.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

interface Claim {
  readonly start: number
  readonly end: number
  /** How many earlier claims overlap this one: it is held where there are none. */
  blockers: number
  /** Lets whoever waits for it go on. */
  grant: () => void
}

/** Ranges that are held or waited for. */
export class RangeLock {
  /** In the order of arrival. */
  readonly #claims = new Set<Claim>()

  /** Runs an effect while the bytes from `start` up to `end` are held. */
  with(start: number, end: number): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R> {
    return (effect) =>
      // A fiber may be interrupted before any operation: from its claim to its release, only where it waits and in the effect.
      Effect.uninterruptibleMask((restore) =>
        Effect.suspend(() => {
          const claim = this.#claim(start, end)
          return Effect.andThen(granted(claim), effect).pipe(
            restore,
            Effect.ensuring(Effect.sync(() => this.#release(claim)))
          )
        })
      )
  }

  #claim(start: number, end: number): Claim {
    const claim: Claim = { start, end, blockers: 0, grant: () => {} }
    for (const earlier of this.#claims) if (overlap(earlier, claim)) claim.blockers++
    this.#claims.add(claim)
    return claim
  }

  #release(claim: Claim): void {
    const free: Array<Claim> = []
    let isLater = false
    for (const other of this.#claims) {
      if (other === claim) isLater = true
      else if (isLater && overlap(claim, other) && --other.blockers === 0) free.push(other)
    }
    this.#claims.delete(claim)
    // Last, since whoever is granted a range runs at once and may come back here.
    for (const { grant } of free) grant()
  }
}

const granted = (claim: Claim): Effect.Effect<void> =>
  Effect.callback((resume) => {
    claim.grant = () => resume(Exit.void)
    if (claim.blockers === 0) claim.grant()
  })

const overlap = (one: Claim, other: Claim): boolean => one.start < other.end && other.start < one.end
