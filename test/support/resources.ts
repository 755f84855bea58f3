/**
 * What this process holds of the system, so that a test can say that nothing is left behind.
 *
 * Descriptors are counted by what they link to. `/proc/self/maps` as a whole grows by garbage collection alone, so only
 * mappings that bear the name of our memory are counted.
 */
import { it } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import { readFileSync } from "node:fs"
import { isDeepStrictEqual } from "node:util"
import { expect } from "vitest"
import { descriptors, mappings } from "./holdings.ts"

export { descriptors }

export interface Resources {
  readonly eventfds: number
  readonly memfds: number
  readonly sockets: number
  readonly mappings: number
}

export const count = (): Resources => {
  const links = [...descriptors().values()]
  const those = (start: string) => links.filter((link) => link.startsWith(start)).length
  return {
    eventfds: those("anon_inode:[eventfd]"),
    memfds: those("/memfd:effect-blkio"),
    sockets: those("socket:"),
    mappings: mappings().length
  }
}

/** Whether `descriptor` is open for this process alone, and not for the programs it starts. */
export const isCloseOnExec = (descriptor: number): boolean => {
  const [, flags = ""] = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${descriptor}`, "utf8")) ?? []
  const O_CLOEXEC = 0o2000000
  return (Number.parseInt(flags, 8) & O_CLOEXEC) !== 0
}

/** Node closes its own sockets some turns of the loop after it was told to, and a backend in this process learns of an end. */
const PATIENCE_MS = 3000
const PAUSE_MS = 10

/** Waits until the counts are `before` again, and fails the test where they do not become so. */
export const settlesAt = Effect.fnUntraced(function*(before: Resources) {
  for (let waited = 0; waited < PATIENCE_MS && !isDeepStrictEqual(count(), before); waited += PAUSE_MS) {
    yield* Effect.sleep(PAUSE_MS)
  }
  expect(count()).toStrictEqual(before)
})

/** Runs an effect in a Scope of its own, and fails the test unless the counts are then what they were. */
export const leavesNothing = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, Exclude<R, Scope.Scope>> =>
  Effect.gen(function*() {
    const before = count()
    const exit = yield* Effect.exit(Effect.scoped(effect))
    // A failed body says more than what it left behind.
    if (Exit.isSuccess(exit)) yield* settlesAt(before)
    return yield* exit
  })

/** A test on the real clock, in a Scope, that must leave the process as it was. */
export const live = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>): void =>
  it.live(name, () => leavesNothing(Effect.suspend(body)))
