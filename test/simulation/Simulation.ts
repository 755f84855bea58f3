/**
 * One run: a seed's device, its users and its faults, from connecting to the last check.
 *
 * A run has two sessions. In the first, everything may go wrong. Then the device is gone, and may have lost what was not flushed;
 * the second connects to the same disk, where nothing goes wrong, and reads all of it.
 */
import { Cause, Effect, Exit, Fiber, Scope } from "effect"
import { createHash } from "node:crypto"
import { readdirSync } from "node:fs"
import { inspect } from "node:util"
import type * as Errno from "../../src/Errno.ts"
import * as VirtioBlk from "../../src/VirtioBlk.ts"
import { Backend } from "./Backend.ts"
import { Disk } from "./Disk.ts"
import { EventLoop, type Stopped } from "./EventLoop.ts"
import { Model } from "./Model.ts"
import { DISK_BYTES, type Plan } from "./Plan.ts"
import { random } from "./Random.ts"
import * as Workload from "./Workload.ts"

/** What came of a run. */
export interface Result {
  readonly seed: number
  /** What must not be; empty if all is well. */
  readonly complaints: ReadonlyArray<string>
  /** Reads that gave what they must not have given. */
  readonly wrongs: ReadonlyArray<string>
  readonly log: ReadonlyArray<string>
  /** Of the log: two runs of a seed have the same. */
  readonly hash: string
  readonly faults: ReadonlyArray<string>
  /** The tags of all failures. */
  readonly failures: ReadonlyArray<string>
  readonly cellsChecked: number
  readonly simulatedMs: number
  readonly steps: number
  /** Whether the device told a lie that no reader may believe. */
  readonly hasLied: boolean
}

/** No run needs more than a fraction of these. */
const LIMITS = { steps: 200_000, timeMs: 120_000 }
const READ_BYTES = 8192

/** Distinguishes the choices of a run from those of its plan. */
const CHOICES = 0x5eed

/** Runs a plan, and answers what came of it. Leaves nothing behind. */
export const run = (plan: Plan): Result => {
  const choices = random(plan.seed ^ CHOICES)
  const loop = new EventLoop(choices.below)
  loop.yields = plan.yields
  loop.beside = plan.beside
  const model = new Model(DISK_BYTES, plan.device.canFlush)
  const disk = new Disk(DISK_BYTES, choices, model)
  const complaints: Array<string> = []
  const failures: Array<string> = []
  const log: Array<string> = []
  const faults: Array<string> = []
  const note = (text: string) => {
    log.push(`${loop.now.toFixed(3)} ${text}`)
  }
  const complain = (text: string) => {
    note(`! ${text}`)
    complaints.push(text)
  }
  const descriptors = countDescriptors()

  const drive = (name: string, session: Effect.Effect<void>): boolean => {
    let exit: Exit.Exit<void> | Stopped
    try {
      exit = loop.run(session, { steps: loop.steps + LIMITS.steps, timeMs: loop.now + LIMITS.timeMs })
    } catch (error) {
      // Nobody is there to catch what is thrown into the event loop.
      complain(`${name} throws: ${inspect(error)}`)
      return false
    }
    if (typeof exit === "string") complain(`${name} does not end: ${exit}`)
    else if (Exit.isFailure(exit)) complain(`${name}: ${Cause.pretty(exit.cause)}`)
    return typeof exit !== "string"
  }

  const backendOf = (planned: Plan["faults"], isGivenUp: () => boolean) =>
    new Backend({
      device: plan.device,
      pace: plan.pace,
      faults: planned,
      disk,
      loop,
      random: choices,
      log: note,
      complain,
      isGivenUp,
      reconnect: plan.reconnect,
      crash: () => {
        // What the policy says to keep is kept.
        if (plan.reconnect?.keepsCache === true) return
        note("crash")
        disk.crash()
        model.crash()
      },
      ended: () => model.deviceLost()
    })
  const options = {
    numQueues: plan.device.eventQueues,
    numPollQueues: plan.device.pollQueues,
    queueSize: plan.device.queueSize,
    waiting: plan.waiting,
    requestTimeout: plan.requestTimeoutMs,
    deviceTimeout: plan.deviceTimeoutMs,
    closeTimeout: plan.closeTimeoutMs
  }

  let isGivenUp = false
  let isClosing = false
  const losses = new Set<string>()
  const first = backendOf(plan.faults, () => isGivenUp)
  const failed = (error: Errno.Any): boolean => {
    const { _tag, message } = error
    failures.push(_tag)
    note(message)
    if (!Workload.isOfDevice(error)) return first.excuses.has(_tag)
    isGivenUp = true
    if (_tag === "ESHUTDOWN") return isClosing
    losses.add(_tag)
    if (losses.size > 1) complain(`the device failed for different reasons: ${[...losses].join(", ")}`)
    return first.excuses.has(_tag)
  }
  const using = Effect.gen(function*() {
    const scope = yield* Scope.make()
    const made = yield* Effect.exit(Scope.provide(VirtioBlk.make(first.recipe, options), scope))
    if (Exit.isFailure(made)) {
      const [reason] = made.cause.reasons
      if (reason === undefined || !Cause.isFailReason(reason)) complain(`a defect: ${Cause.pretty(made.cause)}`)
      else if (!failed(reason.error)) complain(`making a device failed without a reason: ${reason.error.message}`)
      isClosing = true
      return yield* Scope.close(scope, Exit.void)
    }
    const device = made.value
    const setting = {
      device,
      model,
      plan,
      random: choices,
      log: note,
      complain,
      failed,
      isGivenUp: () => isGivenUp
    }
    // What an actor has may go with the actor, or with the device.
    const act = (actor: Plan["actors"][number]) =>
      choices.chance(50)
        ? Effect.scoped(Workload.run(setting, actor))
        : Scope.provide(Workload.run(setting, actor), scope)
    const actors = yield* Effect.forkDetach(Effect.forEach(plan.actors, act, { concurrency: "unbounded" }))
    yield* Number.isFinite(plan.closeAtMs)
      ? Effect.timeoutOption(Fiber.await(actors), plan.closeAtMs)
      : Fiber.await(actors)
    note("closing")
    isClosing = true
    isGivenUp = true
    yield* Scope.close(scope, Exit.void)
    const exit = yield* Fiber.await(actors)
    if (Exit.isFailure(exit)) complain(`the users: ${Cause.pretty(exit.cause)}`)
  })
  /**
   * Whether the device has forged an answer. It may be taken for that of a request which has the same id by then, which nobody can
   * notice: the device is then asked for what it has already, and what it has not written counts as written.
   */
  const isForger = () =>
    first.injected.includes("protocol violation")
    && plan.faults.some(({ fault }) =>
      fault.kind === "protocol violation" && (fault.how === "id not in flight" || fault.how === "repeated id")
    )
  const ended = drive("the first session", using)
  faults.push(...first.injected)
  if (ended) {
    loop.settle({ steps: loop.steps + LIMITS.steps, timeMs: Infinity })
    if (first.isAlive) complain("the device was not stopped")
    if (!isForger()) { for (const violation of first.violations) complain(`the driver broke a rule: ${violation}`) }
    if (plan.crashes) {
      disk.crash()
      model.crash()
    }
    model.deviceGone()
    note(plan.crashes ? "crash" : "end")

    const second = backendOf([], () => false)
    const checking = Effect.scoped(Effect.gen(function*() {
      const device = yield* VirtioBlk.make(second.recipe, { ...options, deviceTimeout: "30 seconds" })
      const { bytes } = yield* device.allocate(READ_BYTES)
      const length = Math.min(READ_BYTES, device.rules.maxSegmentLength || READ_BYTES)
      for (let at = 0; at < DISK_BYTES; at += length) {
        const operation = model.begin("read", "queue", at, length)
        yield* device.ownQueues[0]!.read(at, bytes.subarray(0, length))
        model.endRead(operation, bytes.subarray(0, length))
      }
    })).pipe(Effect.catch((error) => Effect.sync(() => complain(`the second session: ${error.message}`))))
    drive("the second session", checking)
    loop.settle({ steps: loop.steps + LIMITS.steps, timeMs: Infinity })
    for (const violation of second.violations) complain(`the driver broke a rule: ${violation}`)
    const regions = [...first.memory, ...second.memory].filter(({ buffer }) => buffer.byteLength > 0).length
    const left = { ...loop.leftovers, regions, descriptors: countDescriptors() - descriptors }
    for (const [what, count] of Object.entries(left)) if (count !== 0) complain(`${count} ${what} are left`)
  }
  const wrongs = isForger() ? [] : model.wrongs
  for (const wrong of wrongs) note(`! ${wrong}`)
  return {
    seed: plan.seed,
    complaints,
    wrongs,
    log,
    hash: createHash("sha256").update(log.join("\n")).digest("hex"),
    faults,
    failures,
    cellsChecked: model.cellsChecked,
    simulatedMs: loop.now,
    steps: loop.steps,
    hasLied: disk.hasLied
  }
}

const countDescriptors = (): number => readdirSync("/proc/self/fd").length
