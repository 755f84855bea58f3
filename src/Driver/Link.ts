/**
 * One connection of a device after another: connects, agrees on features, and tells whether what came back after a loss is
 * the same device.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import type { DeviceFacts } from "../Properties/PropertyTable.ts"
import type { ConnectError, Connection, Recipe } from "../Transport/Transport.ts"
import { FeatureBit, hasFeature } from "../Wire/VirtioBlk.ts"
import { checkConfig, chooseFeatures } from "./Configuration.ts"

/** What making a link may fail with. */
export type LinkError = ConnectError | Errno.ENODEV | Errno.EOVERFLOW

/** A connection on which features are agreed. */
export interface Link {
  readonly connection: Connection
  /** What the device said of itself. */
  readonly facts: DeviceFacts
  /** Ends the connection. */
  readonly close: Effect.Effect<void>
}

/** How a device is reached: the link there is, and what it takes to make another. */
export interface Way {
  readonly recipe: Recipe
  /** Where links belong to. */
  readonly scope: Scope.Scope
  link: Link
}

/** What must still be so where a device comes back. */
export interface Before extends DeviceFacts {
  /** Queues of both kinds that are in use, and their descriptors. */
  readonly queues: number
  readonly queueSize: number
}

/** Connects, and agrees on features. */
export const open = (recipe: Recipe, parent: Scope.Scope): Effect.Effect<Link, LinkError> =>
  make(recipe, parent, (offered) => offered, () => undefined)

/** Connects to a device that was lost, which must be the one it was; ESTALE says in what it is not. */
export const reopen = (
  recipe: Recipe,
  parent: Scope.Scope,
  before: Before
): Effect.Effect<Link, LinkError | Errno.ESTALE> =>
  make(recipe, parent, () => before.features, (facts, offered) => {
    const differs = difference(before, facts, offered)
    return differs === undefined ? undefined : stale(differs)
  })

const make = <E>(
  recipe: Recipe,
  parent: Scope.Scope,
  choose: (offered: bigint) => bigint,
  check: (facts: DeviceFacts, offered: bigint) => Effect.Effect<never, E> | undefined
): Effect.Effect<Link, LinkError | E> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const scope = yield* Scope.fork(parent)
    const agree = Effect.gen(function*() {
      const connection = yield* recipe.connect
      const offered = chooseFeatures(connection.features)
      if (typeof offered !== "bigint") return yield* offered
      const features = choose(offered)
      const config = checkConfig(yield* connection.readConfig, features)
      if ("_tag" in config) return yield* config
      const facts: DeviceFacts = {
        features,
        config,
        // A device without MQ has one queue; some backends announce more in one place than in the other.
        maxQueues: hasFeature(features, FeatureBit.MQ) ? Math.min(config.numQueues, connection.maxQueues) : 1,
        maxQueueSize: connection.maxQueueSize,
        // One region holds the rings.
        maxRegions: connection.maxRegions - 1,
        regionAlignment: connection.regionAlignment,
        needsRegionFd: connection.needsRegionFd
      }
      const wrong = check(facts, offered)
      if (wrong !== undefined) return yield* wrong
      yield* connection.negotiate(features)
      return { connection, facts, close: Scope.close(scope, Exit.void) }
    })
    return yield* agree.pipe(
      restore,
      Scope.provide(scope),
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
    )
  }))

/** The error of a device that is not the one it was. */
export const stale = (differs: string): Errno.ESTALE =>
  new Errno.ESTALE({ operation: "reconnect", detail: `another device has come back: ${differs}` })

/** Tells in what a device that came back differs from what it was, if that matters to those who use it. */
const difference = (before: Before, now: DeviceFacts, offered: bigint): string | undefined => {
  const missing = Object.entries(FeatureBit).find(([, bit]) => hasFeature(before.features & ~offered, bit))
  if (missing !== undefined) return `it does not offer ${missing[0]} any more`
  if (now.config.capacitySectors < before.config.capacitySectors) {
    return `its capacity is ${now.config.capacitySectors} sectors, and was ${before.config.capacitySectors}`
  }
  if (hasFeature(before.features, FeatureBit.BLK_SIZE) && now.config.blkSize !== before.config.blkSize) {
    return `its block size is ${now.config.blkSize}, and was ${before.config.blkSize}`
  }
  if (now.maxQueues < before.queues) return `it has ${now.maxQueues} queues, and ${before.queues} are in use`
  if (now.maxQueueSize < before.queueSize) {
    return `its queues have ${now.maxQueueSize} descriptors, and ${before.queueSize} are in use`
  }
  return undefined
}
