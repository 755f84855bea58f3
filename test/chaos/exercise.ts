/** Checked traffic on one device, whose backend nobody kills. */
import { Effect } from "effect"
import { make as random } from "../../src/SeededRandom.ts"
import type { Findings } from "./Findings.ts"
import { Oracle } from "./Oracle.ts"
import { Traffic, type TrafficOptions } from "./Traffic.ts"
import * as Workers from "./Workers.ts"

/** What does not get so far by then ends. */
const TIME_LIMIT_MS = 120_000

export interface ExerciseOptions extends Pick<TrafficOptions, "isExpected" | "journal"> {
  readonly seed: number
  /** Of the disk, which holds zeroes. */
  readonly blocks: number
  readonly load: Workers.Load
  /** How many are to be acknowledged. */
  readonly writes: number
  /** Is run after that, before all blocks are read. */
  readonly afterwards?: Effect.Effect<void>
}

/** Reads and writes at random, then flushes and reads every block. */
export const exercise = Effect.fnUntraced(function*(
  device: Workers.Device,
  findings: Findings,
  { blocks, load, seed, afterwards = Effect.void, writes, ...options }: ExerciseOptions
) {
  const traffic = new Traffic({
    ...options,
    oracle: new Oracle(seed, blocks),
    findings,
    below: random(seed),
    upMs: () => performance.now()
  })
  const until = performance.now() + TIME_LIMIT_MS
  const isOver = () => findings.writes >= writes || !findings.isClean || performance.now() > until
  yield* Workers.keepBusy(device, traffic, findings, load, isOver)
  yield* afterwards
  if (!(yield* Workers.readAll(device, traffic, blocks))) findings.report("unexpected", "the device has failed")
})
