/**
 * Runs in a guest. With the guest's number: runs its checks, each outcome a line of JSON on standard output. With a
 * target's name: owns that target's device until it is killed.
 */
import { Effect } from "effect"
import { writeSync } from "node:fs"
import { runCheck } from "../devices/suite.ts"
import * as Owner from "./owner.ts"
import { guests, type GuestTarget, targets } from "./targets.ts"

const targetOf = ({ facts, name, recipe }: GuestTarget) => Effect.map(recipe, (recipe) => ({ name, recipe, facts }))

const runAll = (group: ReadonlyArray<GuestTarget>) =>
  Effect.forEach(
    group,
    Effect.fnUntraced(function*(described: GuestTarget) {
      const target = yield* targetOf(described)
      for (const check of described.checks) {
        writeSync(1, `${JSON.stringify(yield* runCheck(target, check))}\n`)
      }
    }),
    { discard: true }
  )

const [, , what, name] = process.argv
const owned = targets.find((target) => target.name === name)
if (what !== Owner.argument) await Effect.runPromise(runAll(guests[Number(what)]?.targets ?? []))
else if (owned !== undefined) await Effect.runPromise(Effect.flatMap(targetOf(owned), Owner.own))
