/**
 * The device suite: the same checks on every device, whatever its transport.
 *
 * Each check runs in a Scope of its own and has to leave the process as it found it: no descriptor and no mapping that
 * belongs to a device or its memory. A check that hangs is given up, and the next one begins. What becomes of each check
 * is a value, so that a guest can hand it to the host.
 */
import { Cause, Effect, Exit } from "effect"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { inspect, isDeepStrictEqual } from "node:util"
import type { Check, Extent, Facts, Target } from "./Target.ts"
import * as Data from "./data.ts"
import * as Lifecycle from "./lifecycle.ts"
import * as Memory from "./memory.ts"
import * as Queues from "./queues.ts"
import * as Requests from "./requests.ts"

/** What became of a check. */
export interface Outcome {
  readonly target: string
  readonly check: string
  /** What went wrong; null where nothing did. */
  readonly failure: string | null
  readonly milliseconds: number
}

const all: ReadonlyArray<Check> = [
  ...Lifecycle.checks,
  ...Requests.checks,
  ...Queues.checks,
  ...Memory.checks,
  ...Data.checks
]

/** The checks that apply to a device of which this is known. */
export const checksFor = (facts: Facts, extent: Extent = "everything"): ReadonlyArray<Check> =>
  all.filter(({ applies = () => true, isEssential = false }) =>
    applies(facts) && (extent === "everything" || isEssential)
  )

/** Far more than a check takes in a guest on a busy machine. */
const CHECK_LIMIT = "60 seconds"

/** The kernel lets go of some things after it was told to, and so does Node. */
const PATIENCE_MS = 3000
const PAUSE_MS = 10

/** The names under which a device and its memory show in this process, and how many of each there are. */
const held = (): { readonly [name: string]: number } => {
  const names: Array<string> = []
  const belongs = /^(?:\/memfd:effect-blkio|anon_inode:\[(?:eventfd|vfio-device)\]|socket:|\/dev\/(?:vfio|vhost-vdpa))/
  for (const fd of readdirSync("/proc/self/fd")) {
    try {
      const [name] = belongs.exec(readlinkSync(`/proc/self/fd/${fd}`)) ?? []
      if (name !== undefined) names.push(`descriptor ${name}`)
    } catch {
      // The descriptor by which the directory was read is closed by now.
    }
  }
  const mapped = /\/memfd:effect-blkio|anon_inode:\[vfio-device\]|\/dev\/vhost-vdpa/g
  for (const [name] of readFileSync("/proc/self/maps", "utf8").matchAll(mapped)) names.push(`mapping ${name}`)
  const counts: { [name: string]: number } = {}
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

/** An error with all it was caused by: what a guest prints is all there is to see. */
const tell = (cause: Cause.Cause<unknown>): string => {
  const [squashed, pretty] = [Cause.squash(cause), Cause.pretty(cause)]
  return squashed instanceof Error && squashed.cause !== undefined
    ? `${pretty}\ncaused by ${inspect(squashed.cause, { depth: 6 })}`
    : pretty
}

/** Runs one check on a device, and tells what became of it. */
export const runCheck = Effect.fnUntraced(function*(target: Target, check: Check) {
  const before = held()
  const start = performance.now()
  const exit = yield* Effect.suspend(() => check.body(target)).pipe(
    Effect.scoped,
    Effect.timeout(CHECK_LIMIT),
    Effect.exit
  )
  for (let waited = 0; waited < PATIENCE_MS && !isDeepStrictEqual(held(), before); waited += PAUSE_MS) {
    yield* Effect.sleep(PAUSE_MS)
  }
  const after = held()
  const left = isDeepStrictEqual(after, before)
    ? null
    : `before ${JSON.stringify(before)}, left ${JSON.stringify(after)}`
  const outcome: Outcome = {
    target: target.name,
    check: check.name,
    failure: Exit.isFailure(exit) ? tell(exit.cause) : left,
    milliseconds: Math.round(performance.now() - start)
  }
  return outcome
})
