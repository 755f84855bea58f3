/**
 * How far a command has come, on stderr: a bar that is drawn again and again on a terminal, and else a line a second at most.
 *
 * Progress is looked at, not told: what works never waits for what is shown, and stderr that nobody reads any more does no
 * harm.
 */
import * as Effect from "effect/Effect"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import { formatBytes, formatTime } from "./format.ts"

/** How far something has come, in bytes. */
export interface Position {
  readonly done: number
  readonly total: number
}

const MS_PER_S = 1000
const BAR_EVERY_MS = 100
const LINE_EVERY_MS = 1000
/** What the rate is measured over: short enough to follow the disk, long enough to be read. */
const WINDOW_MS = 5000
export const DEFAULT_COLUMNS = 80
const MAX_BAR_COLUMNS = 40
/** Back to the line's begin, and erase it (ECMA-48: EL). */
export const CLEAR_LINE = "\r\x1b[K"

/** Measures the rate over the last seconds. */
const makeRate = (now: number) => {
  const samples = [{ at: now, done: 0 }]
  return (at: number, done: number): number => {
    samples.push({ at, done })
    while (samples.length > 2 && (samples[1]?.at ?? at) <= at - WINDOW_MS) samples.shift()
    const first = samples[0] ?? { at, done }
    return at > first.at ? (done - first.done) / (at - first.at) * MS_PER_S : 0
  }
}

/** What is said of a position: `42%  1.2 GiB of 3.0 GiB  850.0 MiB/s  ETA 0:02`. */
export const describePosition = ({ done, total }: Position, bytesPerSecond: number): string => {
  const percent = total === 0 ? 100 : Math.floor(done / total * 100)
  const left = bytesPerSecond > 0 ? formatTime((total - done) / bytesPerSecond) : "unknown"
  return `${String(percent).padStart(3)}%  ${formatBytes(done)} of ${formatBytes(total)}  `
    + `${formatBytes(bytesPerSecond)}/s  ETA ${left}`
}

/** The line of the bar: no bar where there is no room for one. */
export const draw = (label: string, position: Position, bytesPerSecond: number, columns: number): string => {
  const text = describePosition(position, bytesPerSecond)
  // Label, space, brackets and a space; the last column stays free, since terminals wrap there.
  const width = Math.min(MAX_BAR_COLUMNS, columns - text.length - label.length - 5)
  if (width < 1) return `${label} ${text}`.slice(0, Math.max(0, columns - 1))
  const filled = position.total === 0 ? width : Math.floor(position.done / position.total * width)
  return `${label} [${"#".repeat(filled).padEnd(width, ".")}] ${text}`
}

/** How progress is shown. */
export interface Options {
  /** What is being done, in one word. */
  readonly label: string
  readonly position: () => Position
  /** `bar` only: nothing where stderr is no terminal. `none`: nothing at all. Default: `bar`, and lines elsewhere. */
  readonly show?: "bar" | "none" | undefined
}

/** Shows how far an Effect has come while it runs. The bar is gone when it ends, the lines stay. */
export const during = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  { label, position, show }: Options
): Effect.Effect<A, E, R | Stdio.Stdio> =>
  Effect.gen(function*() {
    const stdio = yield* Stdio.Stdio
    const isTerminal = process.env["TERM"] !== "dumb" && (yield* stdio.stderrIsTerminal)
    if (show === "none" || (show === "bar" && !isTerminal)) return yield* effect
    const say = (text: string) => Effect.ignore(Stream.run(Stream.make(text), stdio.stderr()))
    const rate = makeRate(performance.now())
    const once = Effect.suspend(() => {
      const current = position()
      const bytesPerSecond = rate(performance.now(), current.done)
      return say(
        isTerminal
          ? CLEAR_LINE + draw(label, current, bytesPerSecond, process.stderr.columns || DEFAULT_COLUMNS)
          : `${label} ${describePosition(current, bytesPerSecond)}\n`
      )
    })
    const forever = Effect.sleep(isTerminal ? BAR_EVERY_MS : LINE_EVERY_MS).pipe(
      Effect.andThen(once),
      Effect.forever
    )
    return yield* Effect.raceFirst(effect, forever).pipe(
      Effect.ensuring(isTerminal ? say(CLEAR_LINE) : Effect.void)
    )
  })
