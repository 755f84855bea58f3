/**
 * A store that notes for how long nothing came back from it.
 *
 * Two figures, for two time limits: the longest stall, in which requests waited and none ended, is what a `deviceTimeout` must
 * exceed; the slowest request is what a `requestTimeout` must.
 */
import { Effect, Exit } from "effect"
import { BlockStore } from "../../src/index.ts"

/** What was seen so far. */
export interface Seen {
  stallMs: number
  slowestMs: number
  /** Operations that failed. */
  errors: number
}

/** Puts a watch on a store. */
export const on = (store: BlockStore.BlockStore): { readonly store: BlockStore.BlockStore; readonly seen: Seen } => {
  const seen: Seen = { stallMs: 0, slowestMs: 0, errors: 0 }
  let inFlight = 0
  let quietSince = 0
  const watched = BlockStore.around(store, {
    name: "watched",
    run: (_, effect) =>
      Effect.suspend(() => {
        const began = performance.now()
        if (inFlight++ === 0) quietSince = began
        return Effect.onExit(effect, (exit) =>
          Effect.sync(() => {
            const now = performance.now()
            inFlight--
            seen.stallMs = Math.max(seen.stallMs, now - quietSince)
            seen.slowestMs = Math.max(seen.slowestMs, now - began)
            if (Exit.isFailure(exit)) seen.errors++
            quietSince = now
          }))
      })
  })
  return { store: watched, seen }
}
