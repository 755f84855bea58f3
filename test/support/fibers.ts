/** What tests of fibers that wait for one another have in common. */
import { Cause, Effect, Exit, Option } from "effect"
import { setImmediate as turn } from "node:timers/promises"

/** Starts an Effect at once, beside its caller. */
export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** Lets the event loop turn. */
export const turns = (count = 3): Effect.Effect<void> =>
  Effect.promise(async () => {
    for (let i = 0; i < count; i++) await turn()
  })

/** The failure of an Effect that failed, and not with a defect or an interruption. */
export const errorOf = <E>(exit: Exit.Exit<unknown, E>): E | undefined =>
  Exit.isFailure(exit) ? Option.getOrUndefined(Cause.findErrorOption(exit.cause)) : undefined
