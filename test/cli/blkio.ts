/** Runs the `blkio` command, as a program of its own. */
import { Effect } from "effect"
import { fileURLToPath } from "node:url"
import { startProgram } from "../support/program.ts"

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))

/** Starts the command; whatever becomes of the test, it ends with the Scope. */
export const start = (...args: ReadonlyArray<string>) => startProgram([main, ...args])

/** Runs the command to its end. */
export const blkio = (...args: ReadonlyArray<string>) =>
  Effect.scoped(Effect.flatMap(start(...args), ({ outcome }) => outcome))
