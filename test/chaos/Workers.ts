/**
 * Fibers that keep a device busy: on each queue some ask for one request after another, and some send a few at a time through
 * a stream.
 */
import { Cause, Effect, Exit, Stream } from "effect"
import { type BlockDevice, type IoQueue, VirtioBlk } from "../../src/index.ts"
import { BLOCK_BYTES, wordsOf } from "./Blocks.ts"
import type { Findings } from "./Findings.ts"
import { MAX_BLOCKS, MAX_BYTES, type Operation, type Slot, type Tracked, type Traffic } from "./Traffic.ts"

export type Device = typeof BlockDevice.Service

/** How many fibers of each kind a queue has, and how many requests a stream has at a time. */
export interface Load {
  readonly requesters: number
  readonly streamers: number
  readonly streamLength: number
}

/** Enough to have many requests in flight whenever the backend goes. */
export const heavy: Load = { requesters: 12, streamers: 2, streamLength: 10 }
/** So little that what a log has one after another was mostly asked for one after another. */
export const light: Load = { requesters: 2, streamers: 1, streamLength: 2 }

export const QUEUES = 2

/** How the device of a run is started. */
export const options = { numQueues: QUEUES, queueSize: 64 } as const satisfies VirtioBlk.Options

const slotsOf = (bytes: Uint8Array): ReadonlyArray<Slot> =>
  Array.from({ length: bytes.length / MAX_BYTES }, (_, i) => {
    const part = bytes.subarray(i * MAX_BYTES, (i + 1) * MAX_BYTES)
    return { bytes: part, words: wordsOf(part) }
  })

/** Sends a request by the call of its kind. */
const ask = (queue: IoQueue.IoQueue, request: IoQueue.Request): Effect.Effect<void, IoQueue.RequestFailure> => {
  switch (request._tag) {
    case "read":
      return queue.read(request.offset, request.buffer, request.flags)
    case "write":
      return queue.write(request.offset, request.buffer, request.flags)
    case "readv":
      return queue.readv(request.offset, request.buffers, request.flags)
    case "writev":
      return queue.writev(request.offset, request.buffers, request.flags)
    case "writeZeroes":
      return queue.writeZeroes(request.offset, request.length, request.flags)
    case "discard":
      return queue.discard(request.offset, request.length, request.flags)
    case "flush":
      return queue.flush(request.flags)
  }
}

/** Failures after which nothing else can be asked of the device. */
const isFatal = ({ _tag }: IoQueue.RequestFailure): boolean => _tag !== "EIO"

/** Carries an operation out, and tells whether the device can be asked for more. */
const carryOut = (queue: IoQueue.IoQueue, { end, request }: Operation): Effect.Effect<boolean> =>
  ask(queue, request).pipe(
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
  const finish = (tracked: Tracked, failure: IoQueue.RequestFailure | undefined) => {
    waiting.delete(tracked)
    tracked.end(failure)
  }
  return queue.process(Stream.fromIterable([...waiting])).pipe(
    Stream.runForEachArray((completions) =>
      Effect.sync(() => {
        for (const { error, request } of completions) finish(request, error)
      })
    ),
    Effect.matchEager({
      onSuccess: () => {
        if (waiting.size > 0) findings.report("unexpected", `a stream has ended without ${waiting.size} completions`)
        return true
      },
      onFailure: (failure) => {
        for (const tracked of waiting) finish(tracked, failure)
        return false
      }
    })
  )
}

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
  { requesters, streamLength, streamers }: Load,
  isOver: () => boolean
) {
  const fibers = yield* Effect.forEach(
    disk.queues,
    (queue) =>
      Effect.map(disk.allocate((requesters + streamers * streamLength) * MAX_BYTES), ({ bytes }) => {
        const slots = slotsOf(bytes)
        const begin = (from: number, count: number) =>
          slots.slice(from, from + count).flatMap((slot) => traffic.next(slot, disk.capacity) ?? [])
        /** A fiber that takes so many slots, from `from` on. */
        const fiber = (
          from: number,
          count: number,
          run: (operations: ReadonlyArray<Operation>) => Effect.Effect<boolean>
        ) =>
          Effect.gen(function*() {
            while (!isOver()) {
              const operations = begin(from, count)
              if (operations.length === 0) yield* Effect.yieldNow
              else if (!(yield* run(operations))) return
            }
          }).pipe(reportDefects(findings))
        return [
          ...Array.from({ length: requesters }, (_, i) =>
            fiber(i, 1, ([operation]) =>
              operation === undefined ? Effect.succeed(true) : carryOut(queue, operation))),
          ...Array.from({ length: streamers }, (_, i) =>
            fiber(requesters + i * streamLength, streamLength, (operations) =>
              stream(queue, operations, findings)))
        ]
      })
  )
  yield* Effect.all(fibers.flat(), { concurrency: "unbounded", discard: true })
})

/** Flushes, reads every block, and tells whether the device could be asked to the end. */
export const readAll = Effect.fnUntraced(function*(disk: Device, traffic: Traffic, blocks: number) {
  const queue = disk.queue(0)
  const { bytes } = yield* disk.allocate(MAX_BYTES)
  const slot = { bytes, words: wordsOf(bytes) }
  // The first one may have to say that there was a loss.
  for (let i = 0; i < 2; i++) {
    if (!(yield* carryOut(queue, traffic.flush()))) return false
  }
  const reachable = Math.min(blocks, Math.floor(disk.capacity / BLOCK_BYTES))
  for (let first = 0; first < reachable; first += MAX_BLOCKS) {
    const count = Math.min(MAX_BLOCKS, reachable - first)
    if (!(yield* carryOut(queue, traffic.read(slot, first, count)))) return false
  }
  return true
})
