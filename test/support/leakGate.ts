/**
 * Fails every test, and every file, that ends with more than it began with: descriptors, mappings of our memory, timers,
 * child processes.
 *
 * A test is compared from before its first `beforeEach` to after its last `afterEach` and `onTestFinished`, so what a suite
 * keeps from test to test (a `layer(…)`, a `beforeAll`) is there at both ends. A file is compared from before it was imported
 * to after its last `afterAll`, when nothing may be kept any more. A `layer(…)` without a name is built inside the first test:
 * one that holds something needs a name. Tests that run at the same time are compared together,
 * and the last to end answers for all: which of them left something cannot be told. A test that failed says more than what
 * it left behind, so it is not asked.
 */
import { aroundAll, aroundEach } from "vitest"
import { type Holdings, holdings, leftSince } from "./holdings.ts"

/** Much closes some turns of the loop after it was told to, and later where the machine is busy. */
const PATIENCE_MS = 10_000

/** Node tells that a timer is done in the turn of the event loop after it, of this one, too. */
const pause = (ms: number) => new Promise<void>((resolve) => void setTimeout(() => setImmediate(resolve), ms))

const mustBeNone = (who: string, left: ReadonlyArray<string>): void => {
  if (left.length > 0) throw new Error([`${who} left behind:`, ...left].join("\n  "))
}

/** Tests that run at the same time; one alone as a rule. */
interface Group {
  readonly before: Holdings
  readonly names: Array<string>
  running: number
  anyFailed: boolean
}

/** What the tests that run now have said that they leave, and what those before them have left by that. */
const excuses: Array<RegExp> = []
const excused = new Set<string>()

/** Excuses what the test that runs will leave, line by line of the report. For what the test cannot help, and says why. */
export const mayLeave = (what: RegExp): void => void excuses.push(what)

const isExcused = (line: string) => excuses.some((what) => what.test(line))

const inexcusable = (before: Holdings): ReadonlyArray<string> =>
  leftSince(before).filter((line) => !excused.has(line) && !isExcused(line))

/** Waits until nothing is left, as long as `mayWait`, and tells what is. */
const settle = async (before: Holdings, mayWait: () => boolean): Promise<ReadonlyArray<string>> => {
  let left = inexcusable(before)
  for (let ms = 1; left.length > 0 && mayWait(); ms = Math.min(2 * ms, 50)) {
    await pause(ms)
    left = inexcusable(before)
  }
  return left
}

/** Watches the tests of the file that is about to be imported; for a setup file of vitest. */
export const install = (patienceMs: number = PATIENCE_MS): void => {
  const atStart = holdings()
  let anyFailed = false
  let current: Group | undefined

  const patience = () => {
    const end = performance.now() + patienceMs
    return () => performance.now() < end
  }

  aroundEach(async (runTest, { task }) => {
    const group = current ??= { before: holdings(), names: [], running: 0, anyFailed: false }
    group.names.push(task.name)
    group.running++
    await runTest()
    group.anyFailed ||= task.result?.state === "fail"
    // Another may begin while this one waits; it answers then.
    const isLast = () => group.running === 1
    const mayWait = patience()
    const left = isLast() && !group.anyFailed ? await settle(group.before, () => isLast() && mayWait()) : []
    const answers = isLast()
    group.running--
    if (!answers) return
    current = undefined
    if (excuses.length > 0) { for (const line of leftSince(group.before).filter(isExcused)) excused.add(line) }
    excuses.length = 0
    anyFailed ||= group.anyFailed || left.length > 0
    mustBeNone(group.names.length === 1 ? "the test" : `one of the tests "${group.names.join("\", \"")}"`, left)
  }, 2 * patienceMs)

  aroundAll(async (runFile) => {
    await runFile()
    if (!anyFailed) mustBeNone("the file", await settle(atStart, patience()))
  }, 2 * patienceMs)
}
