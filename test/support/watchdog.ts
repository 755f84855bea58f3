/** A last bound on the time of a program that is run by hand. */
import { Effect } from "effect"

/** Ends the process where a run has not ended in time, though everything in it should be bounded. */
export const endAfter = (limitMs: number) =>
  Effect.acquireRelease(
    Effect.sync(() =>
      setTimeout(() => {
        process.stderr.write(`HUNG: the run did not end within ${limitMs} ms\n`)
        process.exit(1)
      }, limitMs)
    ),
    (timer) => Effect.sync(() => clearTimeout(timer))
  )
