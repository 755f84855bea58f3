/**
 * A queue against a device that answers with anything: wrong ids, ids out of range, ids twice, lengths, statuses and flags of any
 * value, indices that jump, and any bytes anywhere in the ring.
 *
 * An episode is one queue (ring, engine, surface) with the device at its other end, until the device breaks the protocol for good.
 * In most, the device reads each request from the ring as it should, and what it answers is known: a request may succeed only if
 * the device gave that very request the status OK, has to end as its status says as long as nothing was broken, and after that
 * as EPROTO says. In the others the device writes over whatever there is, and what is left is that each request ends, once.
 *
 * Time stands still for the queue, so that an episode is the same each time it is run.
 */
import { Cause, Effect, Exit, Option, Stream } from "effect"
import type * as Errno from "../../src/Errno.ts"
import { AddressSpace } from "../../src/Memory/AddressSpace.ts"
import * as Libc from "../../src/Native/Libc.ts"
import * as IoQueue from "../../src/Queue/IoQueue.ts"
import {
  type DeviceFailure,
  type Owner,
  QueueEngine,
  type RequestFailure,
  type Waiter
} from "../../src/Queue/QueueEngine.ts"
import type { Request } from "../../src/Queue/Request.ts"
import { make, type SeededRandom } from "../../src/SeededRandom.ts"
import { fakeRegion, rulesOf } from "../support/FakeQueue.ts"
import { type Check, fail, type Tally, turn } from "./Check.ts"
import { Liar, Scribbler } from "./HostileDevice.ts"
import { APART, Ledger } from "./Ledger.ts"
import { choose, type Rings, rings } from "./ringAt.ts"

const REGION_BYTES = 2 ** 16
const REGION_ADDRESS = 2 ** 46
/** So many answers, if the device keeps to the protocol for so long. */
const MOST_ANSWERS = 400
/** Turns of the event loop in which everything must have ended, once the device has broken the protocol for good. */
const PATIENCE = 300

const region = fakeRegion(REGION_BYTES)
const space = new AddressSpace({ maxRegions: 1, alignment: 1 })
space.add(region, REGION_ADDRESS)
const shared = [{ buffer: region.bytes.buffer, address: REGION_ADDRESS }]

export const completionsCheck = (under: Rings = rings): Check => ({
  name: "completions",
  unit: "hostile completions",
  share: 1,
  episode: (seed, tally) => withTimeStill(() => episode(make(seed), tally, under))
})

/** Runs with a clock that goes on by a millisecond each time it is looked at, and without stacks, most of what errors cost. */
const withTimeStill = async <A>(body: () => Promise<A>): Promise<A> => {
  const { stackTraceLimit } = Error
  let time = 0
  Error.stackTraceLimit = 0
  performance.now = () => ++time
  try {
    return await body()
  } finally {
    Reflect.deleteProperty(performance, "now")
    Error.stackTraceLimit = stackTraceLimit
  }
}

const episode = async (next: SeededRandom, tally: Tally, under: Rings): Promise<number> => {
  const at = choose(next, under, { shared })
  const { options, ring } = at
  const isWatched = next(16) === 0
  const completionFd = isWatched ? Libc.createEventFd() : -1
  const ledger = new Ledger(tally)
  const errors: Array<unknown> = []
  /** What goes wrong in a listener is noticed here: it must not throw into the engine. */
  const end = (request: Request, tag: string) => {
    try {
      ledger.end(request, tag)
    } catch (error) {
      errors.push(error)
    }
  }
  const faults: Array<Errno.EPROTO> = []
  const engine: QueueEngine = new QueueEngine({
    index: 0,
    waiting: isWatched ? "event" : "poll",
    ring,
    rules: rulesOf(2 ** 40, options.maxSegments),
    memory: space,
    notify: () => 0,
    completionFd,
    signalsInTurn: next(2) === 0,
    onFault: (failure) => {
      faults.push(failure)
      engine.fail(failure)
    }
  })
  try {
    const requests = Array.from(
      { length: 1 + next(3 * options.queueSize + 20) },
      (_, i) => ledger.add(requestOf(next, i, options.maxSegments))
    )
    submitted[next(submitted.length)]?.(engine, requests, end)
    const device = next(5) === 0 ? new Scribbler(next, at, ledger, tally) : new Liar(next, at, ledger, tally)
    const answers = 1 + next(MOST_ANSWERS)
    for (let turns = 0; ledger.left > 0 && device.answers < answers && !device.isDone; turns++) {
      // Submitted is what fibers submit, a turn of the event loop later.
      await turn()
      device.answer()
      if (isWatched) Libc.signalEventFd(completionFd)
      if (errors.length > 0) throw errors[0]
      if (turns > 4 * MOST_ANSWERS) fail(`${ledger.left} requests do not end`)
    }
    for (let turns = 0; ledger.left > 0; turns++) {
      // Turn by turn, since a request that has just been submitted may be all there is in flight.
      device.breakForGood()
      if (isWatched) Libc.signalEventFd(completionFd)
      await turn()
      if (turns > PATIENCE) fail(`${ledger.left} requests do not end after the device broke the protocol`)
    }
    await turn()
    if (errors.length > 0) throw errors[0]
    checkAfterwards(engine, faults)
    if (!ledger.isScribbling && at.violations.length > 0) fail(`the driver broke a rule: ${at.violations[0]}`)
    tally.count(at.packed ? "packed" : "split")
    return device.answers
  } finally {
    engine.stop()
    if (completionFd >= 0) Libc.close(completionFd)
  }
}

/** A broken queue refuses what comes, with the cause of it all; and there is one cause. */
const checkAfterwards = (engine: QueueEngine, faults: ReadonlyArray<Errno.EPROTO>): void => {
  if (faults.length > 1) fail(`${faults.length} faults were reported`)
  if (engine.failure !== faults[0]) {
    fail(`the queue's failure is ${engine.failure?.message}, its fault ${faults[0]?.message}`)
  }
  if (faults.length === 1 && engine.outstanding !== 0) {
    fail(`${engine.outstanding} requests outstanding on a broken queue`)
  }
  if (faults.length === 0) return
  const exit = Effect.runSyncExit(IoQueue.fromEngine(engine, 0).read(0, region.bytes.subarray(0, 512)))
  if (!Exit.isFailure(exit)) fail("a broken queue takes a request")
}

/** A request that its place on the disk tells from all others. */
const requestOf = (next: SeededRandom, index: number, maxSegments: number): Request => {
  const offset = (index + 1) * APART
  const buffer = () => region.bytes.subarray(0, 512 * (1 + next(8)))
  switch (next(8)) {
    case 0:
      return { _tag: "write", offset, buffer: buffer() }
    case 1:
      return { _tag: "discard", offset, length: 512 * (1 + next(100)) }
    case 2:
      return { _tag: "writeZeroes", offset, length: 512 * (1 + next(100)) }
    case 3:
      return { _tag: "readv", offset, buffers: Array.from({ length: 1 + next(maxSegments) }, buffer) }
    case 4:
      return { _tag: "writev", offset, buffers: Array.from({ length: 1 + next(maxSegments) }, buffer) }
    default:
      return { _tag: "read", offset, buffer: buffer() }
  }
}

type End = (request: Request, tag: string) => void
type Submit = (engine: QueueEngine, requests: ReadonlyArray<Request>, end: End) => void

const tagOf = (failure: { readonly _tag: string } | undefined): string => failure?._tag ?? "success"

const tagOfExit = (exit: Exit.Exit<unknown, { readonly _tag: string }>): string =>
  Exit.isSuccess(exit)
    ? "success"
    : Option.match(Exit.findErrorOption(exit), { onNone: () => Cause.pretty(exit.cause), onSome: tagOf })

/** A function that gives requests in two arrays. */
const inTwo = (requests: ReadonlyArray<Request>): () => ReadonlyArray<Request> => {
  const half = Math.ceil(requests.length / 2)
  const halves = [requests.slice(0, half), requests.slice(half)]
  return () => halves.shift() ?? []
}

const throughStream = (
  stream: Stream.Stream<IoQueue.Completion<Request>, IoQueue.DeviceFailure>,
  requests: ReadonlyArray<Request>,
  end: End
): void => {
  const open = new Set(requests)
  const given = Stream.runForEach(stream, ({ error, request }) =>
    Effect.sync(() => {
      open.delete(request)
      end(request, tagOf(error))
    }))
  Effect.runFork(given).addObserver((exit) => {
    for (const request of open) end(request, tagOfExit(exit))
  })
}

/** The ways in which requests reach the engine. */
const submitted: ReadonlyArray<Submit> = [
  // As the engine's own owners, who hear of each call.
  (engine, requests, end) => {
    for (const request of requests) {
      const owner = new Submitter(engine, request, end)
      if (engine.isContended || !engine.submit(request, owner)) engine.join(owner)
    }
  },
  // By request and answer.
  (engine, requests, end) => {
    const queue = IoQueue.fromEngine(engine, 0)
    for (const request of requests) {
      Effect.runFork(answerOf(queue, request)).addObserver((exit) => end(request, tagOfExit(exit)))
    }
  },
  // As a stream. It fails once with the device, and then those whose completions were not given have failed.
  (engine, requests, end) =>
    throughStream(IoQueue.fromEngine(engine, 0).process(Stream.fromIterable(requests)), requests, end),
  // The same, of a function.
  (engine, requests, end) => throughStream(IoQueue.fromEngine(engine, 0).processFrom(inTwo(requests)), requests, end),
  // In a loop, likewise.
  (engine, requests, end) => {
    const open = new Set(requests)
    const next = inTwo(requests)
    const looping = IoQueue.fromEngine(engine, 0).loop<Request>((completions) => {
      for (const { error, request } of completions) {
        open.delete(request)
        end(request, tagOf(error))
      }
      return next()
    })
    Effect.runFork(looping).addObserver((exit) => {
      for (const request of open) end(request, tagOfExit(exit))
    })
  },
  // By hand, likewise.
  (engine, requests, end) => {
    const queue = IoQueue.fromEngine(engine, 0)
    const open = new Set(requests)
    const take = Effect.matchEager(queue.completions(), {
      onFailure: ({ _tag }) => {
        // Nothing is outstanding, since nothing was submitted yet.
        if (_tag === "EINVAL") return
        for (const request of open) end(request, _tag)
        open.clear()
      },
      onSuccess: (completions) => {
        for (const { error, request } of completions) {
          open.delete(request)
          end(request, tagOf(error))
        }
      }
    })
    const takeAll = Effect.whileLoop({
      while: () => open.size > 0,
      body: () => Effect.andThen(take, Effect.yieldNow),
      step: () => {}
    })
    Effect.runFork(
      Effect.all([Effect.ignore(queue.submit(requests)), takeAll], { concurrency: "unbounded", discard: true })
    )
  }
]

/** Whoever submits a request, and hears of its end. */
class Submitter implements Owner, Waiter {
  readonly isAbandoned = false
  readonly #engine: QueueEngine
  readonly #request: Request
  readonly #end: End

  constructor(engine: QueueEngine, request: Request, end: End) {
    this.#engine = engine
    this.#request = request
    this.#end = end
  }

  completed(request: Request, failure: RequestFailure | undefined): void {
    this.#end(request, tagOf(failure))
  }

  place(): boolean {
    return this.#engine.submit(this.#request, this)
  }

  placed(): void {}

  refused(failure: DeviceFailure): void {
    this.#end(this.#request, failure._tag)
  }
}

const answerOf = (queue: IoQueue.IoQueue, request: Request) => {
  switch (request._tag) {
    case "read":
      return queue.read(request.offset, request.buffer)
    case "write":
      return queue.write(request.offset, request.buffer)
    case "readv":
      return queue.readv(request.offset, request.buffers)
    case "writev":
      return queue.writev(request.offset, request.buffers)
    case "discard":
      return queue.discard(request.offset, request.length)
    case "writeZeroes":
      return queue.writeZeroes(request.offset, request.length)
    case "flush":
      return queue.flush()
  }
}
