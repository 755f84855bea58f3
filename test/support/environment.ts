/**
 * The process's own environment, for tests of what reads it: where programs are (PATH), where temporary files go (TMPDIR).
 */
import { Effect } from "effect"

/** Runs an effect with a variable of the process's environment set. */
export const withVariable = (name: string, value: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const before = process.env[name]
      process.env[name] = value
      return before
    }),
    () => effect,
    (before) =>
      Effect.sync(() => {
        if (before === undefined) delete process.env[name]
        else process.env[name] = before
      })
  )
