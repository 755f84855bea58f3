/** What this process holds of the system, its child processes included. */
import { Effect } from "effect"
import { readdirSync, readFileSync } from "node:fs"
import { isDeepStrictEqual } from "node:util"
import { count } from "../support/resources.ts"
import type { Findings } from "./Findings.ts"

/** How long what was closed may take to go. */
const SETTLE_MS = 3000
const PAUSE_MS = 10

/** The processes that this one has started and that have not been waited for. */
const children = (): ReadonlyArray<string> =>
  readdirSync("/proc/self/task").flatMap((thread) => {
    try {
      return readFileSync(`/proc/self/task/${thread}/children`, "utf8").split(" ").filter((pid) => pid !== "")
    } catch {
      // The thread has ended.
      return []
    }
  })

const held = () => ({ ...count(), children: children().length })

/** Runs an effect, and reports what it leaves behind. */
export const leavingNothing = Effect.fnUntraced(function*<A, E, R>(findings: Findings, effect: Effect.Effect<A, E, R>) {
  const before = held()
  const result = yield* effect
  for (let waited = 0; waited < SETTLE_MS && !isDeepStrictEqual(held(), before); waited += PAUSE_MS) {
    yield* Effect.sleep(PAUSE_MS)
  }
  const after = held()
  if (!isDeepStrictEqual(after, before)) {
    findings.report("leaked", `held before: ${JSON.stringify(before)}, and after: ${JSON.stringify(after)}`)
  }
  return result
})
