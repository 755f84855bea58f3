/** Runs the `blkio` command, as a program of its own. */
import { Effect, Queue } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))

/** What a run left behind. */
export interface Outcome {
  /** The exit code, or the signal that ended it. */
  readonly exit: number | string
  readonly stdout: string
  readonly stderr: string
}

/** Starts the command; whatever becomes of the test, it ends with the Scope. */
export const start = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const lines = yield* Queue.unbounded<string>()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() => spawn(process.execPath, [main, ...args], { stdio: ["ignore", "pipe", "pipe"] })),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  const said = { stdout: "", stderr: "" }
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said.stdout += text
  })
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said.stderr += text
    Queue.offerUnsafe(lines, text)
  })
  const closed = once(child, "close")
  return {
    child,
    /** Waits until it has said something more on stderr. */
    stderr: Queue.take(lines),
    outcome: Effect.promise(async (): Promise<Outcome> => {
      const [code, signal]: Array<unknown> = await closed
      return { exit: typeof code === "number" ? code : String(signal), ...said }
    })
  }
})

/** Runs the command to its end. */
export const blkio = (...args: ReadonlyArray<string>) =>
  Effect.scoped(Effect.flatMap(start(...args), ({ outcome }) => outcome))
