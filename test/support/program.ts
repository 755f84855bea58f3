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

/** Starts a program; whatever becomes of the test, it ends with the Scope. */
export const startProgram = Effect.fnUntraced(function*(
  args: ReadonlyArray<string>,
  environment: { readonly [name: string]: string } = {}
) {
  const lines = yield* Queue.unbounded<string>()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...environment } })
    ),
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
