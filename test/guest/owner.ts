/** A process that owns a device, is in the midst of reading it, and is killed. */
import { Effect, Fiber, Stream } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { writeSync } from "node:fs"
import { KiB, open, type Target } from "../devices/Target.ts"

/** What the program is called with to be the owner of a target. */
export const argument = "own"

const SIGN = "owned\n"

/** Owns the target's device until it is killed. */
export const own = (target: Target) =>
  Effect.scoped(Effect.gen(function*() {
    const disk = yield* open(target)
    const { bytes } = yield* disk.allocate(64 * KiB)
    yield* disk.queue(0).read(0, bytes)
    const reading = yield* Effect.forkScoped(
      disk.queue(0).process(Stream.forever(Stream.make({ _tag: "read", offset: 0, buffer: bytes } as const))).pipe(
        Stream.runDrain
      )
    )
    writeSync(1, SIGN)
    yield* Fiber.join(reading)
  }))

/** Starts this program as the owner of a target, and kills it once it is. */
export const startAndKill = (target: Target): Effect.Effect<void> =>
  Effect.promise(async () => {
    const [program = ""] = process.argv.slice(1)
    const child = spawn(process.execPath, [...process.execArgv, program, argument, target.name], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    const ended = once(child, "exit")
    const sign = await Promise.race([once(child.stdout, "data").then(String), ended.then(([code]) => `exit ${code}`)])
    if (sign !== SIGN) throw new Error(`the owner did not come to own the device: ${sign}`)
    child.kill("SIGKILL")
    await ended
  })
