/**
 * Goal: whatever becomes of the backend, no block is wrong, nothing hangs, nothing is left behind.
 * Method: a short run of `npm run chaos` on each backend; docs/testing.md has the figures of long ones.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { qsdIsHere } from "../integration/requirement.ts"
import { withSeed } from "../support/daemon.ts"
import { limitOf, type Options, run } from "./Run.ts"

const KILLS = 3

const survives = (backend: Options["backend"], reconnect: boolean) => {
  const options = { backend, reconnect, kills: KILLS, seconds: 3, seed: 0 }
  it.live(
    reconnect ? "comes back, and no request fails" : "fails with its backend, and is opened anew",
    () =>
      withSeed(Effect.fnUntraced(function*(below) {
        const { done, findings } = yield* run({ ...options, seed: below(2 ** 32) })
        expect(findings.faults).toStrictEqual([])
        expect(done.kill + done.stopAndKill).toBe(KILLS)
        expect(findings.connections).toBeGreaterThan(1)
        expect(findings.blocks).toBeGreaterThan(1000)
      })).pipe(Effect.provide(NodeServices.layer)),
    limitOf(options)
  )
}

describe("a disk of our export, which is killed", () => {
  survives("export", false)
  survives("export", true)
})

describe.skipIf(!qsdIsHere)("a disk of qemu-storage-daemon, which is killed", () => {
  survives("qsd", false)
  survives("qsd", true)
})
