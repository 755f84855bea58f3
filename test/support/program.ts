/** Runs a program of this project on the Node that runs the tests, and tells how it ended. */
import { Effect, Queue } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"

/** What a run left behind. */
interface Outcome {
  /** The exit code, or the signal that ended it. */
  readonly exit: number | string
  readonly stdout: string
  readonly stderr: string
}

/** Starts a program; whatever becomes of the test, it has ended when the Scope has closed. */
export const startProgram = Effect.fnUntraced(function*(
  args: ReadonlyArray<string>,
  environment: { readonly [name: string]: string } = {}
) {
  const lines = yield* Queue.unbounded<string>()
  const { child, closed } = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(process.execPath, args, {
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...process.env, ...environment }
      })
      return { child, closed: once(child, "close"), exited: once(child, "exit") }
    }),
    ({ child, exited }) =>
      Effect.promise(() => {
        child.kill("SIGKILL")
        return exited
      })
  )
  const said = { stdout: "", stderr: "" }
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said.stdout += text
  })
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said.stderr += text
    Queue.offerUnsafe(lines, text)
  })
  return {
    child,
    /** What it has said so far. */
    said,
    /** Waits until it has said something more on stderr. */
    stderr: Queue.take(lines),
    outcome: Effect.promise(async (): Promise<Outcome> => {
      const [code, signal]: Array<unknown> = await closed
      return { exit: typeof code === "number" ? code : String(signal), ...said }
    })
  }
})
