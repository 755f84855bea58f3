/**
 * Goal: a plan by chance decides the same for an occasion whatever happens on occasions of other sorts, keeps its rates, and what
 * was acted out is a plan that does the same.
 *
 * Method: two sorts of occasions, in different interleavings; and a fake backend, which has messages for occasions.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit } from "effect"
import { encodeConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import * as FakeBackend from "../../src/testing/FakeBackend.ts"
import * as FaultPlan from "../../src/testing/FaultPlan.ts"
import { config } from "../Properties/facts.ts"
import { leavesNothing } from "../support/resources.ts"

const sorts = { bell: ["unheard", "twice"], letter: ["lost", "late"] } as const
const plan = { seed: 5, rates: { unheard: 0.1, lost: 0.2, late: 0.05 } }

const faultsOf = (acting: FaultPlan.Acting<typeof sorts>, sort: keyof typeof sorts) =>
  acting.acted.filter(({ kind }) => sorts[sort].some((one) => one === kind))

describe("a plan by chance", () => {
  it("does not mind the order of sorts", () => {
    const inTurn = FaultPlan.begin(plan, sorts)
    const apart = FaultPlan.begin(plan, sorts)
    for (let i = 0; i < 200; i++) {
      inTurn.next("bell")
      inTurn.next("letter")
      apart.next("letter")
    }
    for (let i = 0; i < 200; i++) apart.next("bell")
    expect(faultsOf(apart, "bell")).toStrictEqual(faultsOf(inTurn, "bell"))
    expect(faultsOf(apart, "letter")).toStrictEqual(faultsOf(inTurn, "letter"))
    expect(apart.acted.length).toBeGreaterThan(0)
  })

  it("keeps its rates", () => {
    const acting = FaultPlan.begin(plan, sorts)
    for (let i = 0; i < 20_000; i++) acting.next("letter")
    const rateOf = (kind: string) => acting.acted.filter((fault) => fault.kind === kind).length / 20_000
    expect(rateOf("lost")).toBeCloseTo(0.2, 1)
    expect(rateOf("late")).toBeCloseTo(0.05, 1)
    expect(rateOf("unheard")).toBe(0)
  })

  it("is repeated by what was acted out, which is plain data", () => {
    const first = FaultPlan.begin(plan, sorts)
    const again = FaultPlan.begin(JSON.parse(JSON.stringify({ faults: first.acted })), sorts)
    for (let i = 0; i < 100; i++) first.next(i % 3 === 0 ? "bell" : "letter")
    const listed = FaultPlan.begin(JSON.parse(JSON.stringify({ faults: first.acted })), sorts)
    for (let i = 0; i < 100; i++) listed.next(i % 3 === 0 ? "bell" : "letter")
    expect(listed.acted).toStrictEqual(first.acted)
    expect(again.acted).toStrictEqual([])
  })
})

describe("a backend with a plan", () => {
  const start = (given: FaultPlan.FaultPlan<FakeBackend.MessageFault>) =>
    Effect.gen(function*() {
      const backend = yield* FakeBackend.make({
        plan: given,
        features: featureMask(FeatureBit.VERSION_1, FeatureBit.PROTOCOL_FEATURES, FeatureBit.MQ),
        config: encodeConfig({ ...config, blkSize: 512 })
      })
      const recipe = yield* VhostUser.make({ fd: backend.fd, replyTimeout: "1 second" })
      const exit = yield* Effect.exit(Effect.scoped(VirtioBlk.make(recipe, { queueSize: 8 })))
      return { tag: Exit.isSuccess(exit) ? "success" : (yield* Effect.flip(exit))._tag, acted: backend.acted() }
    })

  it.live.each(FakeBackend.sorts.message.filter((kind) => kind !== "silence").map((kind) => ({ kind })))(
    "does at one message what it says, and the front-end ends with an errno or goes on: $kind",
    ({ kind }) =>
      leavesNothing(Effect.gen(function*() {
        const faults = [{ kind, at: 4, value: 123_456 }]
        const { acted, tag } = yield* start({ faults })
        expect(acted).toStrictEqual(faults)
        // The fifth message asks how many queues there are: the answer comes without descriptors, and may be 1.
        const goesOn = kind === "missing descriptors" || kind === "acknowledge with 1"
        expect(goesOn ? ["success"] : ["EPROTO", "ENOTCONN"]).toContain(tag)
      }))
  )

  it.live("does the same again from its seed", () =>
    Effect.gen(function*() {
      const rates = { "missing descriptors": 0.3 }
      const first = yield* start({ seed: 3, rates })
      expect(first.acted.length).toBeGreaterThan(3)
      expect(yield* start({ seed: 3, rates })).toStrictEqual(first)
      expect(yield* start({ faults: first.acted })).toStrictEqual(first)
    }))
})
