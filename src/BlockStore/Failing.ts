/**
 * Faults on purpose: operations of a store that fail by a plan.
 *
 * A fault comes instead of the operation, which never reaches the store. A plan is one of three: a function, a list of
 * rules, or chance. Chance is reproducible: the same seed makes the same requests, in the same order, fail in the same way,
 * whatever else the process does.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Errno from "../Errno.ts"
import * as SeededRandom from "../SeededRandom.ts"
import { before } from "./Around.ts"
import { type BlockStore, type Operation, type StoreError } from "./Interface.ts"

/**
 * Which operations fail, and with what.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault {
  readonly errno: StoreError["_tag"]
  /** Only this kind of operation. Default: every kind. */
  readonly operation?: Operation["name"]
  /** Only operations that touch this range, in bytes. A flush touches none. Default: everywhere. */
  readonly range?: { readonly offset: number; readonly length: number }
  /** How often; afterwards the rule is spent. Default: always. */
  readonly times?: number
}

/**
 * Failure by chance.
 *
 * @category models
 * @since 0.1.0
 */
export interface Chance {
  /** A whole number; its low 32 bits count. */
  readonly seed: number
  /** The share of operations that fail, from 0 to 1. */
  readonly rate: number
  /** What they fail with, each as often as the others. */
  readonly errnos: ReadonlyArray<StoreError["_tag"]>
}

/**
 * Tells how an operation fails: by a function that names the errno, if any; by rules, of which the first that fits counts;
 * or by chance.
 *
 * @category models
 * @since 0.1.0
 */
export type FaultPlan =
  | ((operation: Operation) => StoreError["_tag"] | undefined)
  | ReadonlyArray<Fault>
  | Chance

/**
 * Makes operations of a store fail by a plan. Fails with EINVAL for a plan that makes no sense. An operation whose range is
 * wrong fails with its own EINVAL, and neither spends a rule nor moves chance on.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const disk = yield* BlockStore.memory({ capacity: 1 << 20 })
 *   const flaky = yield* BlockStore.failing(disk, [{ operation: "read", errno: "EIO", times: 1 }])
 *   const failure = yield* Effect.flip(flaky.read(0, [new Uint8Array(512)]))
 *   yield* flaky.read(0, [new Uint8Array(512)])
 *   return failure.message
 * })
 * console.log(Effect.runSync(program)) // => "read at 0 of 512 bytes: a fault on purpose, by rule 0"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const failing: {
  (plan: FaultPlan): (self: BlockStore) => Effect.Effect<BlockStore, Errno.EINVAL>
  (self: BlockStore, plan: FaultPlan): Effect.Effect<BlockStore, Errno.EINVAL>
} = dual(2, (self: BlockStore, plan: FaultPlan): Effect.Effect<BlockStore, Errno.EINVAL> =>
  Effect.suspend(() => {
    const wrong = checkPlan(plan)
    if (wrong !== undefined) return new Errno.EINVAL({ operation: "failing", detail: wrong })
    const verdict = verdictOf(plan)
    return Effect.succeed(before(self, "failing", (operation) =>
      Effect.suspend((): Effect.Effect<void, StoreError> => {
        const fault = verdict(operation)
        return fault === undefined ? Effect.void : faultOf(operation, fault)
      })))
  }))

interface Verdict {
  readonly errno: StoreError["_tag"]
  readonly reason: string
}

const classes = {
  EINVAL: Errno.EINVAL,
  ENOTSUP: Errno.ENOTSUP,
  EBADF: Errno.EBADF,
  EIO: Errno.EIO,
  ENOSPC: Errno.ENOSPC,
  ENOTCONN: Errno.ENOTCONN,
  ETIME: Errno.ETIME,
  ETIMEDOUT: Errno.ETIMEDOUT,
  EPROTO: Errno.EPROTO,
  ENODEV: Errno.ENODEV,
  ESTALE: Errno.ESTALE,
  ESHUTDOWN: Errno.ESHUTDOWN
} satisfies Record<StoreError["_tag"], unknown>

const faultOf = ({ name, ...range }: Operation, { errno, reason }: Verdict): StoreError =>
  new classes[errno]({
    operation: name,
    ...name === "flush" ? {} : range,
    detail: `a fault on purpose, by ${reason}`
  })

const isRules = (plan: FaultPlan): plan is ReadonlyArray<Fault> => Array.isArray(plan)

const checkPlan = (plan: FaultPlan): string | undefined => {
  if (typeof plan === "function") return undefined
  if (!isRules(plan)) {
    if (!Number.isSafeInteger(plan.seed)) return `seed ${plan.seed} must be a whole number`
    if (!(plan.rate >= 0 && plan.rate <= 1)) return `rate ${plan.rate} must be from 0 to 1`
    return plan.errnos.length === 0 ? "errnos must name one at least" : checkErrnos(plan.errnos)
  }
  const times = plan.find(({ times = 1 }) => times !== Infinity && (!Number.isSafeInteger(times) || times < 0))?.times
  if (times !== undefined) return `times ${times} must be a whole number from 0 up`
  return checkErrnos(plan.map(({ errno }) => errno))
}

/** For plans that come from outside, where the type has not been checked. */
const checkErrnos = (errnos: ReadonlyArray<string>): string | undefined => {
  const unknown = errnos.find((errno) => !Object.hasOwn(classes, errno))
  return unknown === undefined ? undefined : `errno ${unknown} is none that a store has`
}

const verdictOf = (plan: FaultPlan): (operation: Operation) => Verdict | undefined => {
  if (typeof plan === "function") {
    return (operation) => {
      const errno = plan(operation)
      return errno === undefined ? undefined : { errno, reason: "a function" }
    }
  }
  return isRules(plan) ? byRules(plan) : byChance(plan)
}

const byRules = (rules: ReadonlyArray<Fault>) => {
  const left = rules.map(({ times }) => times ?? Infinity)
  return (operation: Operation): Verdict | undefined => {
    for (const [index, rule] of rules.entries()) {
      const times = left[index] ?? 0
      if (times === 0 || !fits(rule, operation)) continue
      left[index] = times - 1
      return { errno: rule.errno, reason: `rule ${index}` }
    }
    return undefined
  }
}

const fits = ({ operation, range }: Fault, { length, name, offset }: Operation): boolean =>
  (operation === undefined || operation === name)
  && (range === undefined || (offset < range.offset + range.length && range.offset < offset + length))

/** What {@link Chance.rate} 1 stands for: one more than the largest number. */
const CERTAIN = 2 ** 32

const byChance = ({ errnos, rate, seed }: Chance) => {
  const next = SeededRandom.make(seed)
  let count = 0
  return (): Verdict | undefined => {
    // Two numbers a request, used or not: where a fault falls does not depend on how many errnos there are.
    const [hit, pick] = [next(CERTAIN), next(CERTAIN)]
    const reason = `seed ${seed} at request ${count++}`
    const errno = errnos[Math.floor(pick / CERTAIN * errnos.length)]
    return hit < rate * CERTAIN && errno !== undefined ? { errno, reason } : undefined
  }
}
