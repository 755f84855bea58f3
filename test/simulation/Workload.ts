/**
 * Those who use the device: fibers that read and write at random through every part of its surface, tell the model of each
 * request, and look at how it ends.
 *
 * Each ends by itself: when its requests are used up, or soon after the device failed it.
 */
import { Cause, Effect, Exit, Fiber, type Scope, Stream } from "effect"
import type { Device } from "../../src/BlockDevice.ts"
import { storeErrors } from "../../src/BlockStore/BlockStore.ts"
import type * as Errno from "../../src/Errno.ts"
import { type Completion, type IoQueue, type Request, RequestFlag } from "../../src/Queue/IoQueue.ts"
import { SECTOR_BYTES } from "../../src/Wire/VirtioBlk.ts"
import { ask } from "../support/ask.ts"
import { CELL_BYTES, type Model, type Operation, type Outcome, stamp, type Via } from "./Model.ts"
import { type Actor, DISK_BYTES, type Plan } from "./Plan.ts"
import type { Random } from "./Random.ts"

export interface Setting {
  readonly device: Device
  readonly model: Model
  readonly plan: Plan
  readonly random: Random
  readonly log: (text: string) => void
  /** Hears of what must not be. */
  readonly complain: (text: string) => void
  /** Hears of each failure; answers whether something went wrong that may lead to it. */
  readonly failed: (error: Errno.Any) => boolean
  /** Whether the device has failed, or is being closed. */
  readonly isGivenUp: () => boolean
}

/** The part of the disk in which blocks are changed in part: nobody else writes there but by the same means. */
const PARTS_FROM = DISK_BYTES * 3 / 4
const SLOT_BYTES = 8192
const SLOTS = 8
/** What memory holds that no request uses. */
const CANARY = Buffer.alloc(SLOT_BYTES, 0xa5)

const lostBy: ReadonlyArray<string> = ["ENOTCONN", "ETIMEDOUT", "EPROTO", "ENODEV", "ESTALE", "ESHUTDOWN"]
/**
 * With these a request of a queue fails that was never carried out. One that is in flight when the device goes away may fail with
 * EINVAL, EFAULT or ENOTSUP and have been carried out: the device that comes back does not take it again.
 */
const refusedBy: ReadonlyArray<string> = ["EBADF", "ENOTCONN"]

const DEVICE_LOST = "device lost"

/** Whether a failure is of the device, and not of one request. */
export const isOfDevice = ({ _tag, operation }: Errno.Any): boolean =>
  lostBy.includes(_tag) && !ofRequests.includes(operation)

/** A status without meaning fails its request with EPROTO, and too many who wait for a device to come back get ENOTCONN. */
const ofRequests: ReadonlyArray<string> = [
  "submit",
  "read",
  "write",
  "readv",
  "writev",
  "discard",
  "writeZeroes",
  "flush"
]

/** What each kind of call may fail with. */
const declared = {
  read: ["EINVAL", "EFAULT", "ENOTSUP", "EIO", "ETIME", ...lostBy],
  write: ["EINVAL", "EFAULT", "ENOTSUP", "EIO", "EBADF", "ETIME", ...lostBy],
  range: ["EINVAL", "ENOTSUP", "EIO", "EBADF", "ETIME", ...lostBy],
  flush: ["EINVAL", "ENOTSUP", "EIO", "ETIME", ...lostBy],
  store: [...storeErrors],
  submit: lostBy,
  completions: ["EINVAL", "ETIME", ...lostBy],
  map: ["EINVAL", "EEXIST", "ENOMEM", "ENOSPC", "EIO", ...lostBy],
  refresh: ["EOVERFLOW", "EIO", ...lostBy]
} satisfies Record<string, ReadonlyArray<string>>

type Declared = keyof typeof declared

/** A request of a queue, with what it needs when it ends. */
type Pending = Request & { readonly pending: Call }

interface Call {
  readonly operation: Operation
  readonly declared: Declared
  /** It is made to be refused, by EINVAL, EFAULT or ENOTSUP. */
  readonly isWrong: boolean
  /** What it may fail with although nothing goes wrong. */
  readonly expected: ReadonlyArray<string>
  /** The memory that is its alone. */
  readonly buffer: Uint8Array
  /** Where a read's data is found. */
  readonly found: () => Uint8Array
  /** Gives the memory back. */
  readonly release: () => void
}

/** Runs one actor to its end. */
export const run = (setting: Setting, actor: Actor): Effect.Effect<void, never, Scope.Scope> =>
  new Workload(setting).act(actor)

class Workload {
  readonly #setting: Setting
  /** Why the device is of no use any more. */
  #lost = false

  constructor(setting: Setting) {
    this.#setting = setting
  }

  act(actor: Actor): Effect.Effect<void, never, Scope.Scope> {
    switch (actor) {
      case "requests":
        return this.#requests()
      case "stream":
        return this.#stream()
      case "by hand":
        return this.#byHand()
      case "store":
        return this.#store()
      case "memory":
        return this.#memory()
      case "configuration":
        return this.#configuration()
    }
  }

  /** One request after another, each awaited. */
  readonly #requests = Effect.fnUntraced({ self: this }, function*() {
    const queue = this.#queue()
    const slots = yield* this.#slots()
    for (let i = 0; i < this.#setting.plan.length && !this.#lost; i++) {
      const request = this.#request(queue, slots, () => true)
      if (request === undefined) continue
      const { pending } = request
      const ending = this.#end(pending, yield* this.#perform(ask(queue, request)))
      if (ending === "ETIME" && ("buffer" in request || "buffers" in request)) {
        // Whoever waits for it may use the memory again. What has none may be carried out at any time.
        yield* queue.released(pending.buffer)
        if (!this.#lost && !this.#setting.isGivenUp()) this.#close(pending, "failed")
      }
    }
  })

  /** Requests of a stream or of a function, left early now and then. */
  readonly #stream = Effect.fnUntraced({ self: this }, function*() {
    const { complain, plan, random } = this.#setting
    const queue = this.#queue()
    const slots = yield* this.#slots()
    const open = new Set<Pending>()
    const next = (): Pending | undefined => {
      const request = this.#request(queue, slots, (kind) => kind !== "too long")
      if (request !== undefined) open.add(request)
      return request
    }
    const generate = function*(count: number) {
      for (let i = 0; i < count; i++) {
        const request = next()
        if (request !== undefined) yield request
      }
    }
    const leavesAt = plan.interrupts && random.chance(30) ? random.between(1, plan.length) : Infinity
    for (let round = 0; round < 2 && !this.#lost; round++) {
      let count = 0
      const hear = ({ error, request }: Completion<Pending>) => {
        count++
        if (!open.delete(request)) complain(`request ${request.pending.operation.id} ended twice`)
        this.#end(request.pending, error === undefined ? Exit.void : Exit.fail(error))
      }
      // No more than there is memory for: the stream may pull all of them before the first has ended.
      const source = generate(Math.min(SLOTS, plan.length))
      const some = (): ReadonlyArray<Pending> => {
        const requests: Array<Pending> = []
        for (let left = random.between(1, SLOTS); left > 0; left--) {
          const { done, value } = source.next()
          if (done !== true) requests.push(value)
        }
        return requests
      }
      const completions = (): Stream.Stream<Completion<Pending>, Errno.Any> =>
        form === 1
          ? queue.process(Stream.fromIterable(source, { chunkSize: random.between(1, SLOTS) }))
          : queue.processFrom(some)
      const form = random.below(3)
      const exit = yield* this.#perform(
        form === 0 && leavesAt === Infinity
          ? queue.loop<Pending>((completions) => {
            completions.forEach(hear)
            return some()
          })
          : Stream.runForEach(
            leavesAt === Infinity ? completions() : Stream.take(completions(), leavesAt),
            (completion) => Effect.sync(() => hear(completion))
          )
      )
      if (Exit.isSuccess(exit) && leavesAt === Infinity && open.size > 0) {
        complain(`${open.size} requests of a stream did not end`)
      }
      if (Exit.isFailure(exit)) this.#judge("submit", exit)
      // One that was too late may have ended unseen, and the device still has its memory.
      const mayGoOn = this.#lost || this.#setting.isGivenUp() || Number.isFinite(plan.requestTimeoutMs)
      const outcome = mayGoOn ? "not answered" : "given up"
      for (const { pending } of open) this.#close(pending, outcome)
      open.clear()
      this.#setting.log(`stream ends after ${count}`)
    }
  })

  /** Submitting and taking completions by hand. */
  readonly #byHand = Effect.fnUntraced({ self: this }, function*() {
    const { complain, plan, random } = this.#setting
    const queue = this.#queue()
    const slots = yield* this.#slots()
    const open = new Set<Pending>()
    let left = plan.length
    // Submitting waits for completions to be taken, so that is for another fiber.
    let submitting: Fiber.Fiber<void> | undefined
    const refused = { yet: false }
    while ((left > 0 || open.size > 0) && !this.#lost && !refused.yet) {
      const batch: Array<Pending> = []
      const isFree = submitting === undefined || submitting.pollUnsafe() !== undefined
      for (let i = isFree ? random.between(0, 3) : 0; i > 0 && left > 0 && open.size < SLOTS; i--) {
        left--
        const request = this.#request(queue, slots, () => true)
        if (request !== undefined) batch.push(request)
        if (request !== undefined) open.add(request)
      }
      if (batch.length > 0) {
        submitting = yield* Effect.forkChild(
          Effect.map(Effect.exit(queue.submit(batch)), (exit) => {
            if (Exit.isFailure(exit)) this.#judge("submit", exit)
            // Which of the batch were submitted is not said.
            refused.yet = Exit.isFailure(exit)
          }),
          { startImmediately: true }
        )
      }
      // Beyond a queue's size nobody may wait: submitting waits then for completions to be taken.
      const min = random.between(0, Math.min(open.size, queue.size))
      const max = random.chance(50) ? Infinity : min + random.below(3)
      const timeout = random.chance(30) ? { timeout: random.below(20) } : {}
      const taken = yield* Effect.exit(queue.completions({ min, max, ...timeout }))
      if (Exit.isFailure(taken)) {
        // Fewer may be outstanding than are about to be submitted.
        const mayBeFewer = batch.length > 0 || !isFree
        this.#judge("completions", taken, ["timeout" in timeout ? "ETIME" : "", mayBeFewer ? "EINVAL" : ""])
        yield* Effect.yieldNow
        continue
      }
      if (taken.value.length > max) complain(`${taken.value.length} completions, at most ${max} were asked for`)
      if (taken.value.length < min) complain(`${taken.value.length} completions, at least ${min} were asked for`)
      for (const { error, request } of taken.value) {
        // The very object that was submitted.
        const ended = request as Pending
        if (!open.delete(ended)) complain(`request ${ended.pending.operation.id} ended twice`)
        this.#end(ended.pending, error === undefined ? Exit.void : Exit.fail(error))
      }
    }
    for (const { pending } of open) this.#close(pending, "not answered")
  })

  /** Calls that take ordinary memory, any offset and any length. */
  readonly #store = Effect.fnUntraced({ self: this }, function*() {
    const { device, plan, random } = this.#setting
    for (let i = 0; i < plan.length && !this.#lost; i++) {
      const isWhole = random.chance(50)
      const grain = isWhole ? device.blockSize : CELL_BYTES
      const [from, to] = isWhole ? [0, device.capacity] : [PARTS_FROM, DISK_BYTES]
      const length = random.between(1, Math.min(12 * device.blockSize, 16384) / grain) * grain
      const last = (Math.min(to, DISK_BYTES) - length - from) / grain
      if (last < 0) continue
      const offset = from + random.below(last + 1) * grain
      const fua = random.chance(20)
      const begin = (kind: Operation["kind"], range = { offset, length }) =>
        this.#begin(kind, "store", range.offset, range.length, fua)
      switch (random.below(8)) {
        case 0:
        case 1: {
          const operation = begin("read")
          this.#endRead(operation, yield* this.#perform(device.readBytes(offset, length)))
          break
        }
        case 2: {
          const operation = begin("write")
          const exit = yield* this.#perform(device.writeBytes(offset, stamped(operation, length), { fua }))
          this.#conclude("store", operation, exit)
          break
        }
        case 3: {
          // Nobody keeps this one out of blocks that others are changing a part of.
          if (offset + length > PARTS_FROM) break
          const operation = begin("write")
          const bytes = stamped(operation, length)
          const half = Math.floor(length / 2)
          const buffers = [bytes.subarray(0, half), bytes.subarray(half)]
          this.#conclude("store", operation, yield* this.#perform(device.write(offset, buffers, { fua })))
          break
        }
        case 4: {
          const operation = begin("zeroes")
          const options = { fua, noUnmap: random.chance(50), noFallback: random.chance(30) }
          const exit = yield* this.#perform(device.writeZeroes(offset, length, options))
          this.#conclude("store", operation, exit, unless(device.rules.canWriteZeroes || !options.noFallback))
          break
        }
        case 5: {
          // Of blocks that are covered in part nothing is discarded.
          const first = Math.ceil(offset / device.blockSize) * device.blockSize
          const end = Math.floor((offset + length) / device.blockSize) * device.blockSize
          const operation = begin("discard", { offset: first, length: Math.max(0, end - first) })
          const exit = yield* this.#perform(device.discard(offset, length))
          this.#conclude("store", operation, exit, unless(device.rules.canDiscard))
          break
        }
        case 6: {
          const operation = begin("flush", { offset: 0, length: 0 })
          this.#conclude("flush", operation, yield* this.#perform(device.flush))
          break
        }
        case 7: {
          if (random.chance(50)) {
            const operation = begin("read")
            const chunks = Stream.runCollect(device.stream({ offset, length }, { chunkSize: 4 * grain, depth: 3 }))
            this.#endRead(operation, yield* this.#perform(Effect.map(chunks, (parts) => Buffer.concat(parts))))
          } else {
            const operation = this.#begin("write", "store", offset, length, false)
            const bytes = stamped(operation, length)
            const parts = [bytes.subarray(0, grain), bytes.subarray(grain)].filter(({ length }) => length > 0)
            const write = Stream.run(Stream.fromIterable(parts), device.sink(offset, { depth: random.between(1, 3) }))
            this.#conclude("store", operation, yield* this.#perform(write))
          }
          break
        }
      }
    }
  })

  /** Memory that comes and goes while requests use it. */
  readonly #memory = Effect.fnUntraced({ self: this }, function*() {
    const { complain, device, plan, random } = this.#setting
    const queue = this.#queue()
    for (let i = 0; i < plan.length / 4 && !this.#lost; i++) {
      const fibers: Array<readonly [Pending, Fiber.Fiber<Exit.Exit<void, Errno.Any>>]> = []
      const used = Effect.gen({ self: this }, function*() {
        const region = yield* device.allocate(SLOT_BYTES * 2)
        const slots = new Slots(region.bytes, 2, this.#setting)
        for (let n = random.between(1, 2); n > 0; n--) {
          const request = this.#request(queue, slots, (kind) => kind === "read" || kind === "write")
          if (request === undefined) continue
          fibers.push([request, yield* Effect.forkDetach(Effect.exit(ask(queue, request)))])
        }
        yield* Effect.sleep(random.below(3))
        return region
      })
      const exit = yield* Effect.exit(Effect.scoped(used))
      if (Exit.isFailure(exit)) this.#judge("map", exit)
      for (const [request, fiber] of fibers) {
        const ended = yield* Fiber.join(fiber)
        this.#end({ ...request.pending, expected: ["EFAULT"] }, ended)
      }
      if (Exit.isSuccess(exit) && exit.value.bytes.length !== 0) complain("a region that was released can be seen")
    }
  })

  /** Someone who follows the configuration. */
  readonly #configuration = Effect.fnUntraced({ self: this }, function*() {
    const { device, log, plan, random } = this.#setting
    const changes = yield* Effect.forkChild(
      Stream.runForEach(device.configChanges, ({ capacity }) => Effect.sync(() => log(`capacity ${capacity}`)))
    )
    for (let i = 0; i < plan.length / 4 && !this.#lost; i++) {
      const exit = yield* Effect.exit(device.refresh)
      if (Exit.isFailure(exit)) this.#judge("refresh", exit)
      yield* Effect.sleep(random.below(10))
    }
    yield* Fiber.interrupt(changes)
  })

  #begin(
    kind: Operation["kind"],
    via: Via,
    offset: number,
    length: number,
    fua: boolean,
    queue?: string
  ): Operation {
    const { log, model } = this.#setting
    const isFua = fua && (kind === "write" || kind === "zeroes")
    const operation = model.begin(kind, via, offset, length, isFua, queue)
    const sectors = `sectors ${offset / SECTOR_BYTES} to ${(offset + length) / SECTOR_BYTES}`
    log(`${kind} ${operation.id} of the ${via} begins: ${sectors}${operation.fua ? ", FUA" : ""}`)
    return operation
  }

  #queue(): IoQueue {
    const { device, random } = this.#setting
    return random.one([...device.queues, ...device.pollQueues])
  }

  readonly #slots = Effect.fnUntraced({ self: this }, function*() {
    const exit = yield* Effect.exit(this.#setting.device.allocate(SLOT_BYTES * SLOTS))
    if (Exit.isFailure(exit)) {
      this.#judge("map", exit)
      return new Slots(new Uint8Array(0), 0, this.#setting)
    }
    return new Slots(exit.value.bytes, SLOTS, this.#setting)
  })

  /** Runs a call, and interrupts it now and then. */
  #perform<A, E>(call: Effect.Effect<A, E>): Effect.Effect<Exit.Exit<A, E>> {
    const { plan, random } = this.#setting
    if (!plan.interrupts || !random.chance(15)) return Effect.exit(call)
    return Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(call)
      yield* random.chance(50) ? Effect.yieldNow : Effect.sleep(random.below(2000) / 1000)
      yield* Fiber.interrupt(fiber)
      return yield* Fiber.await(fiber)
    })
  }

  /** Makes a request of a kind that is allowed, if there is memory for it. */
  #request(queue: IoQueue, slots: Slots, allows: (kind: string) => boolean): Pending | undefined {
    const { device, random } = this.#setting
    const slot = slots.take()
    if (slot === undefined) return undefined
    const block = device.blockSize
    const kind = random.one(["read", "read", "write", "write", "zeroes", "discard", "flush", "too long", "elsewhere"])
    const isWrong = (kind === "too long" || kind === "elsewhere") && allows(kind)
    const { canDiscard, canWriteZeroes, maxDiscardLength, maxSegmentLength, maxSegments, maxWriteZeroesLength } =
      device.rules
    const most = Math.min(SLOT_BYTES, kind === "discard" ? maxDiscardLength || SLOT_BYTES : SLOT_BYTES)
    const segment = Math.min(most, maxSegmentLength || SLOT_BYTES)
    const length = random.between(1, Math.max(1, Math.min(segment, maxWriteZeroesLength || segment) / block)) * block
    const places = Math.floor((Math.min(PARTS_FROM, device.capacity) - length) / block) + 1
    if (places <= 0) {
      slots.give(slot)
      return undefined
    }
    // Half of all goes where others go, too.
    const offset = random.below(random.chance(50) ? Math.min(places, 4) : places) * block
    const release = () => slots.give(slot)
    const buffers = random.chance(50) && maxSegments > 1 && length > block ? split(slot, length, random) : undefined
    const buffer = slot.subarray(0, length)
    const gathered = () => Buffer.concat((buffers ?? [buffer]).filter(({ length }) => length > 0))
    const flags = random.chance(20) ? RequestFlag.FUA : 0
    const call = (
      operationKind: Operation["kind"],
      of: Declared,
      expected: ReadonlyArray<string> = [],
      at = offset,
      bytes = length
    ): { readonly pending: Call; readonly operation: Operation } => {
      const operation = this.#begin(operationKind, "queue", at, bytes, flags !== 0, `${queue.kind} ${queue.index}`)
      return {
        operation,
        pending: {
          operation,
          declared: of,
          expected,
          isWrong: isWrong || expected.length > 0,
          buffer: slot,
          found: gathered,
          release
        }
      }
    }
    if (isWrong) {
      // Nothing of it may ever be seen.
      const { operation, pending } = call("write", "write", ["EINVAL", "EFAULT"])
      stamp(buffer, offset / CELL_BYTES, operation.id)
      return kind === "too long"
        ? { _tag: "write", offset: device.capacity, buffer, pending }
        : { _tag: "write", offset, buffer: buffer.slice(), pending }
    }
    if (kind === "flush" && allows(kind)) return { _tag: "flush", pending: call("flush", "flush", [], 0, 0).pending }
    if (kind === "discard" && allows(kind)) {
      return { _tag: "discard", offset, length, pending: call("discard", "range", unless(canDiscard)).pending }
    }
    if (kind === "zeroes" && allows(kind)) {
      const unmap = random.chance(50) ? RequestFlag.NO_UNMAP : 0
      return {
        _tag: "writeZeroes",
        offset,
        length,
        flags: flags | unmap,
        pending: call("zeroes", "range", unless(canWriteZeroes)).pending
      }
    }
    if (kind === "read" || !allows("write")) {
      const { pending } = call("read", "read")
      return buffers === undefined
        ? { _tag: "read", offset, buffer, pending }
        : { _tag: "readv", offset, buffers, pending }
    }
    const { operation, pending } = call("write", "write")
    const data = stamped(operation, length)
    if (buffers === undefined) {
      buffer.set(data)
      return { _tag: "write", offset, buffer, flags, pending }
    }
    let at = 0
    for (const part of buffers) {
      part.set(data.subarray(at, at + part.length))
      at += part.length
    }
    return { _tag: "writev", offset, buffers, flags, pending }
  }

  /** Takes the end of a request to the model. */
  #end(call: Call, exit: Exit.Exit<void, Errno.Any>): string | undefined {
    if (Exit.isSuccess(exit) && call.operation.kind === "read") {
      const found = call.found()
      // Where its memory has gone since, nobody can see what was read.
      this.#setting.log(`read ${call.operation.id} done`)
      if (found.length > 0) this.#setting.model.endRead(call.operation, found)
    } else {
      const { outcome, tag } = this.#conclude(call.declared, call.operation, exit, call.expected, call.isWrong)
      if (outcome === "not answered") return tag
    }
    call.release()
    return undefined
  }

  /** A device that was given up may go on for a while, and read memory: what it may be reading stays as it is. */
  #close({ operation, release }: Call, outcome: Outcome): void {
    this.#setting.model.end(operation, outcome)
    if (outcome !== "not answered") release()
  }

  #endRead(operation: Operation, exit: Exit.Exit<Uint8Array, Errno.Any>): void {
    this.#setting.log(`read ${operation.id} ends`)
    if (Exit.isSuccess(exit)) this.#setting.model.endRead(operation, exit.value)
    else this.#conclude("store", operation, exit)
  }

  #conclude(
    of: Declared,
    operation: Operation,
    exit: Exit.Exit<unknown, Errno.Any>,
    expected: ReadonlyArray<string> = [],
    isWrong = false
  ): { readonly outcome: Outcome; readonly tag: string | undefined } {
    const { log, model } = this.#setting
    const tag = Exit.isSuccess(exit) ? undefined : this.#judge(of, exit, expected)
    const outcome = isWrong && tag !== undefined && expected.includes(tag)
      ? "refused"
      : this.#outcome(operation.via, exit, tag)
    log(`${operation.kind} ${operation.id} ${tag ?? outcome}`)
    model.end(operation, outcome)
    return { outcome, tag }
  }

  #outcome(via: Via, exit: Exit.Exit<unknown, Errno.Any>, tag: string | undefined): Outcome {
    if (Exit.isSuccess(exit)) return "done"
    if (tag === undefined) return this.#setting.isGivenUp() ? "not answered" : "given up"
    if (tag === DEVICE_LOST || tag === "ETIME") return "not answered"
    // A call of the store has parts, and lets go of those in flight when one fails.
    if (via === "store") return "given up"
    return tag !== undefined && refusedBy.includes(tag) ? "refused" : "failed"
  }

  /** Judges a failure, and gives its tag; none where it is an interruption. */
  #judge(
    of: Declared,
    exit: Exit.Failure<unknown, Errno.Any>,
    expected: ReadonlyArray<string> = []
  ): string | undefined {
    const { complain, failed, log } = this.#setting
    const { cause } = exit
    if (Cause.hasInterruptsOnly(cause)) return undefined
    // A call that has several parts may fail for several reasons.
    for (const reason of cause.reasons) {
      if (!Cause.isFailReason(reason)) {
        if (Cause.isInterruptReason(reason)) continue
        complain(`a defect: ${Cause.pretty(cause)}`)
        this.#lost = true
        return undefined
      }
      const { error } = reason
      log(`${of} fails: ${error._tag}`)
      if (!(declared[of] as ReadonlyArray<string>).includes(error._tag)) {
        complain(`${of} failed with ${error._tag}, which is not declared`)
      }
      if (!failed(error) && !expected.includes(error._tag)) {
        complain(`${of} failed without a reason: ${error._tag}: ${error.message}`)
      }
      if (isOfDevice(error)) this.#lost = true
    }
    return this.#lost ? DEVICE_LOST : cause.reasons.find(Cause.isFailReason)?.error._tag
  }
}

/** Pieces of a region, each for one request at a time. */
class Slots {
  readonly #free: Array<Uint8Array>
  readonly #setting: Setting

  constructor(bytes: Uint8Array, count: number, setting: Setting) {
    this.#setting = setting
    this.#free = Array.from({ length: count }, (_, i) => bytes.subarray(i * SLOT_BYTES, (i + 1) * SLOT_BYTES))
    for (const slot of this.#free) slot.set(CANARY)
  }

  take(): Uint8Array | undefined {
    const slot = this.#free.shift()
    if (slot?.length === 0) return undefined
    if (slot !== undefined && !this.#setting.isGivenUp() && !CANARY.equals(slot)) {
      this.#setting.complain("memory was written after the request that used it had ended")
    }
    return slot
  }

  give(slot: Uint8Array): void {
    if (slot.length === 0) return
    slot.set(CANARY)
    this.#free.push(slot)
  }
}

const unless = (isSupported: boolean): ReadonlyArray<string> => isSupported ? [] : ["ENOTSUP"]

const stamped = (operation: Operation, length: number): Uint8Array => {
  const bytes = new Uint8Array(length)
  stamp(bytes, operation.firstCell, operation.id)
  return bytes
}

/** Cuts the first `length` bytes of a slot in two anywhere, and puts the second first; an empty piece comes along. */
const split = (slot: Uint8Array, length: number, random: Random): ReadonlyArray<Uint8Array> => {
  const cut = random.between(1, length - 1)
  return [slot.subarray(cut, length), slot.subarray(0, 0), slot.subarray(0, cut)]
}
