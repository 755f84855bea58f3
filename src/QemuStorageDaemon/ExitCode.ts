/**
 * How a process ended, as one number.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import { constants } from "node:os"

/** Looked up by names that come from outside. */
const signals: Readonly<Record<string, number>> = constants.signals

/**
 * Waits for the end of a process and gives its exit code, or 128 + the number of the signal that ended it, as shells do:
 * 137 after SIGKILL.
 *
 * @category accessors
 * @since 0.1.0
 */
export const of = (process: ChildProcessSpawner.ChildProcessHandle): Effect.Effect<number> =>
  process.exitCode.pipe(
    Effect.catch((error) => {
      // The handle fails where a signal ended the process, and names the signal in its cause's message only.
      const name = /'(SIG[A-Z0-9]+)'/.exec(String(error.cause))?.[1] ?? ""
      return Effect.succeed(128 + (signals[name] ?? 0))
    })
  )
