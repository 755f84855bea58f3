/**
 * The whole way to a started device against a vhost-user backend that goes wrong at any message, and in front of a fake device
 * that does at any request.
 *
 * Whatever happens, connecting, using and closing end, with success or an errno that is declared, and leave no descriptor open.
 */
import { Cause, Effect, Exit, Option } from "effect"
import { readdirSync } from "node:fs"
import { isDeepStrictEqual } from "node:util"
import { make } from "../../src/SeededRandom.ts"
import type { Recipe } from "../../src/Transport/Transport.ts"
import * as VhostUser from "../../src/Transport/VhostUser.ts"
import * as VirtioBlk from "../../src/VirtioBlk.ts"
import { encodeConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import * as FakeBackend from "../../src/testing/FakeBackend.ts"
import * as FakeDevice from "../../src/testing/FakeDevice.ts"
import * as FakeTransport from "../../src/testing/FakeTransport.ts"
import { config } from "../Properties/facts.ts"
import { type Check, fail, type Tally, turn } from "./Check.ts"

/** What may come of it: the errors that `VirtioBlk.make`, reading and writing declare, where the caller makes no mistake. */
const DECLARED = new Set([
  "success",
  "ENOTCONN",
  "ETIMEDOUT",
  "EPROTO",
  "ENODEV",
  "ENOTSUP",
  "EIO",
  "EOVERFLOW",
  "EROFS",
  "EINVAL",
  "ENOSPC",
  "ECONNREFUSED",
  "ESHUTDOWN"
])

const PATIENT_MS = 10_000
const SHORT = "20 millis"

const openDescriptors = (): number => readdirSync("/proc/self/fd").length

/** Runs to its end, and tells how it ended. */
const outcome = async (program: Effect.Effect<unknown, { readonly _tag: string }>, tally: Tally): Promise<void> => {
  const before = openDescriptors()
  const exit = await Effect.runPromiseExit(Effect.timeoutOption(program, PATIENT_MS))
  if (Exit.isSuccess(exit) && Option.isNone(exit.value)) fail(`it did not end within ${PATIENT_MS} ms`)
  const tag = Exit.isSuccess(exit)
    ? "success"
    : Option.match(Exit.findErrorOption(exit), { onNone: () => Cause.pretty(exit.cause), onSome: ({ _tag }) => _tag })
  if (!DECLARED.has(tag)) fail(`it ended as ${tag}`)
  tally.count(tag)
  // What was closed by the event loop is gone a few turns later.
  for (let turns = 0; turns < 100 && openDescriptors() !== before; turns++) await turn()
  const after = openDescriptors()
  if (after !== before) fail(`${after} descriptors are open: before, ${before} were`)
}

const use = (recipe: Recipe, options: VirtioBlk.Options) =>
  Effect.gen(function*() {
    const disk = yield* VirtioBlk.make(recipe, { closeTimeout: SHORT, deviceTimeout: "40 millis", ...options })
    return disk
  })

export const handshakesCheck = (): Check => ({
  name: "handshakes",
  unit: "handshakes",
  share: 1 / 500,
  episode: async (seed, tally) => {
    const next = make(seed)
    const rates: { [K in FakeBackend.MessageFault]?: number } = Object.fromEntries(
      FakeBackend.sorts.message.map((kind) => [kind, kind === "silence" ? 0.0005 : 0.003])
    )
    const protocolFeatures = next(4) === 0 ? FakeBackend.protocolFeatures.least : FakeBackend.protocolFeatures.all
    const numQueues = 1 + next(3)
    const script = {
      plan: { seed, rates },
      protocolFeatures,
      features: featureMask(
        FeatureBit.VERSION_1,
        FeatureBit.PROTOCOL_FEATURES,
        FeatureBit.BLK_SIZE,
        FeatureBit.MQ,
        ...[FeatureBit.EVENT_IDX, FeatureBit.INDIRECT_DESC, FeatureBit.FLUSH].filter(() => next(2) === 0)
      ),
      config: encodeConfig({ ...config, blkSize: 512 }),
      byteByByte: next(16) === 0
    }
    const acted: Array<string> = []
    const program = Effect.gen(function*() {
      const backend = yield* FakeBackend.make(script)
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          for (const { kind } of backend.acted()) acted.push(kind)
        })
      )
      const recipe = yield* VhostUser.make({ fd: backend.fd, replyTimeout: "200 millis" })
      const multiple = protocolFeatures === FakeBackend.protocolFeatures.all ? numQueues : 1
      const disk = yield* use(recipe, { numQueues: multiple, queueSize: 8 })
      yield* disk.allocate(4096)
      yield* disk.allocate(4096)
      yield* disk.refresh
    })
    await outcome(Effect.scoped(program), tally)
    for (const kind of acted) tally.count(`- ${kind}`)
    tally.count(acted.length === 0 ? "no fault" : "faults", 1)
    return 1
  }
})

export const devicesCheck = (): Check => ({
  name: "devices",
  unit: "requests of whole devices",
  share: 1 / 100,
  episode: async (seed, tally) => {
    const next = make(seed)
    const rate = [0, 0.002, 0.02][next(3)] ?? 0
    const kinds = [
      ...FakeDevice.requestFaults,
      ...FakeDevice.deviceEvents,
      "dropped kick",
      "dropped signal",
      "refused"
    ] as const
    const rates = Object.fromEntries(kinds.map((kind) => [kind, next(2) === 0 ? rate : 0]))
    const optional: ReadonlyArray<FakeTransport.Feature> = ["INDIRECT_DESC", "EVENT_IDX"]
    const fake = FakeTransport.make({
      features: [
        ...FakeTransport.usualFeatures.filter((name) => !optional.includes(name) || next(2) === 0),
        ...next(2) === 0 ? ["RING_PACKED"] as const : []
      ],
      plan: { seed, rates },
      order: { seed }
    })
    let requests = 0
    const program = Effect.gen(function*() {
      const disk = yield* use(fake.recipe, {
        numQueues: 1 + next(2),
        queueSize: 8 * 2 ** next(3),
        waiting: next(2) === 0 ? "event" : "adaptive"
      })
      const { bytes } = yield* disk.allocate(65_536)
      yield* Effect.forEach(Array.from({ length: 50 }, (_, i) => i), (i) => {
        const buffer = bytes.subarray(i * 1024, i * 1024 + 512 * (1 + next(2)))
        const queue = disk.queue(i % disk.queues.length)
        const sector = next(2000)
        const request = [
          () => queue.read(sector * 512, buffer),
          () => queue.write(sector * 512, buffer),
          () => queue.flush(),
          () => queue.discard(sector * 512, 512)
        ][next(4)]
        requests++
        const done = request === undefined ? Effect.void : request()
        return Effect.matchEager(done, {
          onFailure: ({ _tag }) => {
            tally.count(`request ${_tag}`)
            if (!DECLARED.has(_tag)) throw new Error(`a request ended as ${_tag}`)
          },
          onSuccess: () => tally.count("request success")
        })
      }, { concurrency: 16, discard: true })
    })
    await outcome(Effect.scoped(program), tally)
    for (const { kind } of fake.acted) tally.count(`- ${kind}`)
    if (!isDeepStrictEqual(fake.violations, [])) fail(`the driver broke a rule: ${fake.violations[0]}`)
    return requests
  }
})
