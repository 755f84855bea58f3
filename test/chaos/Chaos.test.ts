/**
 * Goal: whatever becomes of the backend, no block is wrong, nothing hangs, nothing is left behind.
 * Method: a short run of `npm run chaos` on each backend; docs/testing.md has the figures of long ones.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { qsdIsHere } from "../integration/requirement.ts"
import { withSeed } from "../support/daemon.ts"
import type { Options } from "./Run.ts"
import { limitOf, run } from "./Run.ts"

const KILLS = 3
const short = { kills: KILLS, seconds: 3, reconnect: false } as const

const survives = (options: Omit<Options, "seed">) =>
  it.live(
    `checked I/O goes on over ${options.kills} kills`,
    () =>
      withSeed(Effect.fnUntraced(function*(below) {
        const { done, findings } = yield* run({ ...options, seed: below(2 ** 32) })
        expect(findings.faults).toStrictEqual([])
        expect(done.kill + done.stopAndKill).toBe(KILLS)
        expect(findings.connections).toBeGreaterThan(1)
        expect(findings.blocks).toBeGreaterThan(1000)
      })).pipe(Effect.provide(NodeServices.layer)),
    limitOf({ ...options, seed: 0 })
  )

describe("our export, killed", () => {
  survives({ ...short, backend: "export" })
})

describe.skipIf(!qsdIsHere)("qemu-storage-daemon, killed", () => {
  survives({ ...short, backend: "qsd" })
})
