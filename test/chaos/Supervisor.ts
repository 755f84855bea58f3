/**
 * Keeps a backend alive, and does to it what a plan says.
 *
 * The socket's path stays the same: it is a link to that of the process that serves now.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Exit, Scope } from "effect"
import { renameSync, symlinkSync } from "node:fs"
import { type Disk, GROWTH_BYTES, type Running, type Start } from "./Backends.ts"
import { BLOCK_BYTES } from "./Blocks.ts"
import type { Oracle } from "./Oracle.ts"
import type { Disturbance } from "./Plan.ts"

/** How often each disturbance was done. */
export type Done = Record<Disturbance["_tag"], number>

/** A backend under supervision. */
export interface Supervised {
  readonly socketPath: string
  readonly done: Done
  /** For how long the backend could have answered so far, in milliseconds. */
  readonly upMs: () => number
  readonly disturb: (disturbance: Disturbance) => Effect.Effect<void, never, NodeServices.NodeServices>
  /** Ends the process. */
  readonly end: Effect.Effect<void>
}

/** Time that passes only while the backend is up. */
class UpTime {
  #passedMs = 0
  #since: number | undefined

  get ms(): number {
    return this.#passedMs + (this.#since === undefined ? 0 : performance.now() - this.#since)
  }

  start(): void {
    this.#since = performance.now()
  }

  stop(): void {
    this.#passedMs = this.ms
    this.#since = undefined
  }
}

/** Starts a backend; the last process of it is gone when the Scope closes. */
export const make = Effect.fnUntraced(function*(start: Start, disk: Disk, folder: string, oracle: Oracle) {
  const socketPath = `${folder}/disk.sock`
  const parent = yield* Effect.scope
  const upTime = new UpTime()
  const done: Done = { kill: 0, restart: 0, stop: 0, stopAndKill: 0, grow: 0 }

  const launch = Effect.gen(function*() {
    const scope = yield* Scope.fork(parent)
    const running = yield* start(disk).pipe(Scope.provide(scope))
    yield* Effect.sync(() => {
      symlinkSync(running.socketPath, `${folder}/next.sock`)
      renameSync(`${folder}/next.sock`, socketPath)
      upTime.start()
    })
    return { running, scope }
  })
  let current: { readonly running: Running; readonly scope: Scope.Closeable } = yield* launch

  const replace = Effect.fnUntraced(function*(signal: "SIGKILL" | "SIGTERM", downMs: number) {
    const { running, scope } = current
    yield* running.kill(signal)
    yield* running.ended
    upTime.stop()
    // It acknowledges nothing any more, and the next one does not yet.
    oracle.crash()
    yield* Scope.close(scope, Exit.void)
    yield* Effect.sleep(downMs)
    current = yield* launch
  })
  const stop = Effect.fnUntraced(function*(forMs: number) {
    yield* current.running.kill("SIGSTOP")
    upTime.stop()
    yield* Effect.sleep(forMs)
  })
  const carryOut = (disturbance: Disturbance) => {
    switch (disturbance._tag) {
      case "kill":
        return replace("SIGKILL", disturbance.downMs)
      case "restart":
        return replace("SIGTERM", disturbance.downMs)
      case "stop":
        return Effect.gen(function*() {
          yield* stop(disturbance.forMs)
          yield* current.running.kill("SIGCONT")
          upTime.start()
        })
      case "stopAndKill":
        return Effect.andThen(stop(disturbance.forMs), replace("SIGKILL", disturbance.downMs))
      case "grow":
        return Effect.gen(function*() {
          const blocks = oracle.blocks + GROWTH_BYTES / BLOCK_BYTES
          yield* current.running.growTo(blocks * BLOCK_BYTES)
          oracle.grow(blocks)
        })
    }
  }

  return {
    socketPath,
    done,
    upMs: () => upTime.ms,
    disturb: (disturbance) =>
      Effect.andThen(
        carryOut(disturbance),
        Effect.sync(() => {
          done[disturbance._tag]++
        })
      ),
    end: Effect.suspend(() => {
      upTime.stop()
      return Scope.close(current.scope, Exit.void)
    })
  } satisfies Supervised
})
