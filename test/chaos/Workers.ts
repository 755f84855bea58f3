/**
 * Fibers that keep a device busy: on each queue some ask for one request after another, and some send a few at a time through
 * a stream; others use the device as a store, with memory that it does not reach.
 */
import { Cause, Effect, Exit, Stream } from "effect"
import { type BlockDevice, IoQueue, type VirtioBlk } from "../../src/index.ts"
import { ask } from "../support/ask.ts"
import { BLOCK_BYTES, wordsOf } from "./Blocks.ts"
import type { Findings } from "./Findings.ts"
import {
  type Failure,
  MAX_BLOCKS,
  MAX_BYTES,
  type Operation,
  type Slot,
  type Tracked,
  type Traffic
} from "./Traffic.ts"

export type Device = typeof BlockDevice.Service

/** How many fibers there are. */
export interface Load {
  /** Of each queue, with one request at a time. */
  readonly requesters: number
  /** Of each queue, with streams of `streamLength` requests. */
  readonly streamers: number
  readonly streamLength: number
  /** Of the device, with one call at a time. */
  readonly callers: number
}

/** Enough to have many requests in flight whenever the backend goes. */
export const heavy: Load = { requesters: 10, streamers: 2, streamLength: 10, callers: 4 }
/** So little that what a log has one after another was mostly asked for one after another. */
export const light: Load = { requesters: 1, streamers: 1, streamLength: 2, callers: 2 }

export const QUEUES = 2

/** How a device is started, unless {@link optionsOf} says otherwise. */
export const options = { numQueues: QUEUES, queueSize: 64 } as const satisfies VirtioBlk.Options

const waysToWait: ReadonlyArray<VirtioBlk.Options> = [
  { ...options, waiting: "adaptive" },
  { ...options, waiting: "event" },
  { ...options, numQueues: QUEUES - 1, numPollQueues: 1 }
]

/** How the device of a run is started: seeds take turns in the ways of waiting. */
export const optionsOf = (seed: number): VirtioBlk.Options => waysToWait[seed % waysToWait.length] ?? options

const slotsOf = (bytes: Uint8Array): Array<Slot> =>
  Array.from({ length: bytes.length / MAX_BYTES }, (_, i) => {
    const part = bytes.subarray(i * MAX_BYTES, (i + 1) * MAX_BYTES)
    return { bytes: part, words: wordsOf(part) }
  })

/** Does what a request says by the call of a store. */
const call = (disk: Device, request: IoQueue.Request): Effect.Effect<void, Failure> => {
  const fua = ((request.flags ?? 0) & IoQueue.RequestFlag.FUA) !== 0
  switch (request._tag) {
    case "read":
      return disk.read(request.offset, [request.buffer])
    case "write":
      return disk.write(request.offset, [request.buffer], { fua })
    case "readv":
      return disk.read(request.offset, request.buffers)
    case "writev":
      return disk.write(request.offset, request.buffers, { fua })
    case "writeZeroes":
      return disk.writeZeroes(request.offset, request.length, { fua })
    case "discard":
      return disk.discard(request.offset, request.length)
    case "flush":
      return disk.flush
  }
}

/** Failures after which nothing else can be asked of the device. */
const isFatal = ({ _tag }: Failure): boolean => _tag !== "EIO"

/** Ends an operation as its request ends, and tells whether the device can be asked for more. */
const finish = (effect: Effect.Effect<void, Failure>, { end }: Operation): Effect.Effect<boolean> =>
  effect.pipe(
    Effect.matchEager({
      onSuccess: () => {
        end(undefined)
        return true
      },
      onFailure: (failure) => {
        end(failure)
        return !isFatal(failure)
      }
    })
  )

/** Carries operations out by one stream, and tells whether the device can be asked for more. */
const stream = (
  queue: IoQueue.IoQueue,
  operations: ReadonlyArray<Operation>,
  findings: Findings
): Effect.Effect<boolean> => {
  const waiting = new Set<Tracked>(operations.map(({ end, request }) => ({ ...request, end })))
  const endOne = (tracked: Tracked, failure: Failure | undefined) => {
    waiting.delete(tracked)
    tracked.end(failure)
  }
  return queue.process(Stream.fromIterable([...waiting])).pipe(
    Stream.runForEachArray((completions) =>
      Effect.sync(() => {
        for (const { error, request } of completions) endOne(request, error)
      })
    ),
    Effect.matchEager({
      onSuccess: () => {
        if (waiting.size > 0) findings.report("unexpected", `a stream has ended without ${waiting.size} completions`)
        return true
      },
      onFailure: (failure) => {
        for (const tracked of waiting) endOne(tracked, failure)
        return false
      }
    })
  )
}

/** Asks a queue for an operation's request. */
const request = (queue: IoQueue.IoQueue, operation: Operation): Effect.Effect<boolean> =>
  finish(ask(queue, operation.request), operation)

/** Whatever a fiber dies of is a finding. */
const reportDefects = (findings: Findings) => <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.onExit(effect, (exit) =>
    Effect.sync(() => {
      if (Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause)) {
        findings.report("unexpected", Cause.pretty(exit.cause))
      }
    }))

/** Keeps the device busy until it fails or `isOver`. */
export const keepBusy = Effect.fnUntraced(function*(
  disk: Device,
  traffic: Traffic,
  findings: Findings,
  { callers, requesters, streamLength, streamers }: Load,
  isOver: () => boolean
) {
  /** Begins operations with all of these slots, again and again. */
  const fiber = (
    slots: ReadonlyArray<Slot>,
    carryOut: (operations: ReadonlyArray<Operation>) => Effect.Effect<boolean>
  ) =>
    Effect.gen(function*() {
      while (!isOver()) {
        const operations = slots.flatMap((slot) => traffic.next(slot, disk.capacity) ?? [])
        if (operations.length === 0) yield* Effect.yieldNow
        else if (!(yield* carryOut(operations))) return
      }
    }).pipe(reportDefects(findings))
  /** As the one before, with one slot. */
  const fiberOfOne = (slot: Slot, carryOut: (operation: Operation) => Effect.Effect<boolean>) =>
    fiber([slot], ([operation]) => operation === undefined ? Effect.succeed(true) : carryOut(operation))

  const fibers = slotsOf(new Uint8Array(callers * MAX_BYTES)).map((slot) =>
    fiberOfOne(slot, (operation) => finish(call(disk, operation.request), operation))
  )
  for (const queue of disk.ownQueues) {
    const { bytes } = yield* disk.allocate((requesters + streamers * streamLength) * MAX_BYTES)
    const slots = slotsOf(bytes)
    for (const slot of slots.splice(0, requesters)) {
      fibers.push(fiberOfOne(slot, (operation) => request(queue, operation)))
    }
    while (slots.length > 0) {
      fibers.push(fiber(slots.splice(0, streamLength), (operations) => stream(queue, operations, findings)))
    }
  }
  yield* Effect.all(fibers, { concurrency: "unbounded", discard: true })
})

/** Flushes, reads every block, and tells whether the device could be asked to the end. */
export const readAll = Effect.fnUntraced(function*(disk: Device, traffic: Traffic, blocks: number) {
  const queue = disk.queue(0)
  const { bytes } = yield* disk.allocate(MAX_BYTES)
  const slot = { bytes, words: wordsOf(bytes) }
  // The first one may have to say that there was a loss.
  for (let i = 0; i < 2; i++) {
    if (!(yield* request(queue, traffic.flush()))) return false
  }
  const reachable = Math.min(blocks, Math.floor(disk.capacity / BLOCK_BYTES))
  for (let first = 0; first < reachable; first += MAX_BLOCKS) {
    const count = Math.min(MAX_BLOCKS, reachable - first)
    if (!(yield* request(queue, traffic.read(slot, first, count)))) return false
  }
  return true
})
