/**
 * A store that tells what is done to it, in the log.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { around } from "./Around.ts"
import type { BlockStore, StoreError } from "./Interface.ts"

/**
 * Logs every operation when it ends, at level Debug: its name as the message, and as annotations `store`, `offset`,
 * `length`, `durationMs` and `outcome` (`ok`, an errno, `interrupted`, or `defect`).
 *
 * @category combinators
 * @since 0.1.0
 */
export const logged = (self: BlockStore): BlockStore =>
  around(self, {
    name: "logged",
    run: ({ length, name, offset }, effect) =>
      Effect.clockWith((clock) => {
        const start = clock.monotonicTimeNanosUnsafe()
        return Effect.onExit(effect, (exit) => {
          const durationMs = Number(clock.monotonicTimeNanosUnsafe() - start) / 1e6
          return Effect.logDebug(name).pipe(
            Effect.annotateLogs({ store: self.id, offset, length, durationMs, outcome: outcomeOf(exit) })
          )
        })
      })
  })

const outcomeOf = (exit: Exit.Exit<void, StoreError>): string => {
  if (Exit.isSuccess(exit)) return "ok"
  const failure = exit.cause.reasons.find(Cause.isFailReason)
  if (failure !== undefined) return failure.error._tag
  return Cause.hasInterrupts(exit.cause) ? "interrupted" : "defect"
}
