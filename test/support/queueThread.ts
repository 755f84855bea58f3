/**
 * A thread that drives a queue which was handed to it, as a test tells it to; and how a test starts one.
 *
 * The test says what to do, and hears twice of each task: when its requests were submitted, and how they ended. It is told to
 * end and never terminated, since a thread that watches a descriptor would take the process with it.
 */
// A thread loads what it starts with by itself, each time: only what it needs.
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import * as WorkerQueue from "../../src/Driver/WorkerQueue.ts"
import type * as IoQueue from "../../src/Queue/IoQueue.ts"

export const BLOCK_BYTES = 4096

/** The blocks that a task goes through one after another, and by which API. */
interface Blocks {
  readonly first: number
  readonly count: number
  readonly api: "request" | "process"
  /** How many blocks of the disk go by from one to the next. Default: 1. */
  readonly step?: number
}

/** What a test has its thread do. */
export type Task =
  | { readonly _tag: "open" }
  /** Fills each block with {@link byteOf} it. */
  | ({ readonly _tag: "write" } & Blocks)
  /** Reads each block, and finds it right where every byte is what {@link byteOf} says. */
  | ({ readonly _tag: "verify" } & Blocks)
  /** Reads the first block so many times at once, whatever is in it. */
  | { readonly _tag: "read"; readonly times: number }
  /** Reads a block at an offset in bytes. */
  | { readonly _tag: "read at"; readonly offset: number }
  /** Reads into memory of its own, which no device reaches. */
  | { readonly _tag: "read outside" }
  | { readonly _tag: "capacity" }
  /** Closes the Scope of the queue, and goes on. */
  | { readonly _tag: "close" }
  /** Ends the thread at once, whatever its Scope holds. */
  | { readonly _tag: "exit" }
  /** Ends in good order. */
  | { readonly _tag: "end" }

/** The distinct ends of a task's requests: `success`, `wrong data`, or an errno's name. */
export type Ends = ReadonlyArray<string>

type Report =
  | { readonly _tag: "begun"; readonly id: number }
  | { readonly _tag: "done"; readonly id: number; readonly ends: Ends }

/** What a block is filled with: never 0, and another byte than its neighbours'. */
const byteOf = (block: number): number => 1 + block * 7 % 255

interface Pending {
  readonly begun: Deferred.Deferred<void>
  readonly done: Deferred.Deferred<Ends>
}

/** A thread as the test sees it. */
export interface QueueThread {
  /** Waits until the requests of a task were submitted; answers with what waits for their ends. */
  readonly begin: (task: Task) => Effect.Effect<Effect.Effect<Ends>>
  /** Does a task, and waits for its ends. A thread that ended has no more of them: `gone`. */
  readonly ask: (task: Task) => Effect.Effect<Ends>
  /** Waits until the thread has ended. */
  readonly ended: Effect.Effect<void>
}

/** Starts a thread with a queue that it has not opened yet; it ends with the Scope. */
export const startIdleThread = Effect.fnUntraced(function*(
  handle: WorkerQueue.QueueHandle
): Effect.fn.Return<QueueThread, never, Scope.Scope> {
  const pending = new Map<number, Pending>()
  const exit = yield* Deferred.make<void>()
  let tasks = 0
  const worker = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const worker = new Worker(new URL(import.meta.url), {
        workerData: { queueThread: handle },
        transferList: [handle.port],
        execArgv: []
      })
      worker.on("message", (report: Report) => {
        const task = pending.get(report.id)
        if (task === undefined) return
        Deferred.doneUnsafe(task.begun, Exit.void)
        if (report._tag === "done") Deferred.doneUnsafe(task.done, Exit.succeed(report.ends))
      })
      worker.once("error", (error) => console.error("a thread of the test failed", error))
      worker.once("exit", () => {
        Deferred.doneUnsafe(exit, Exit.void)
        for (const { begun, done } of pending.values()) {
          Deferred.doneUnsafe(begun, Exit.void)
          Deferred.doneUnsafe(done, Exit.succeed(["gone"]))
        }
      })
      return worker
    }),
    (worker) =>
      Effect.andThen(
        Effect.sync(() => worker.postMessage({ id: -1, task: { _tag: "end" } })),
        Deferred.await(exit)
      )
  )
  const begin = Effect.fnUntraced(function*(task: Task) {
    const one = { begun: yield* Deferred.make<void>(), done: yield* Deferred.make<Ends>() }
    const id = tasks++
    pending.set(id, one)
    worker.postMessage({ id, task })
    yield* Deferred.await(one.begun)
    return Deferred.await(one.done)
  })
  return { begin, ask: (task) => Effect.flatten(begin(task)), ended: Deferred.await(exit) }
})

/** Starts a thread that has opened its queue. */
export const startThread = (handle: WorkerQueue.QueueHandle) =>
  Effect.tap(startIdleThread(handle), (thread) => thread.ask({ _tag: "open" }))

const tagOf = (exit: Exit.Exit<unknown, { readonly _tag: string }>): string =>
  Exit.match(exit, {
    onSuccess: () => "success",
    onFailure: ({ reasons: [reason] }) => reason?._tag === "Fail" ? reason.error._tag : reason?._tag ?? "nothing"
  })

const distinct = (ends: ReadonlyArray<string>): Ends => [...new Set(ends)].toSorted()

const isRight = (buffer: Uint8Array, block: number) => buffer.every((byte) => byte === byteOf(block))

/** The numbers of a task's blocks. */
const blocksOf = ({ count, first, step = 1 }: Blocks) => Array.from({ length: count }, (_, i) => first + i * step)

/** Does a task's blocks by streams, as many in flight as the region has buffers, and tells their ends. */
const byStream = Effect.fnUntraced(function*(
  queue: IoQueue.IoQueue,
  buffers: ReadonlyArray<Uint8Array>,
  kind: "read" | "write",
  blocks: ReadonlyArray<number>
) {
  const ends: Array<string> = []
  for (let from = 0; from < blocks.length; from += buffers.length) {
    const requests = blocks.slice(from, from + buffers.length).map((block, i) => {
      const buffer = buffers[i]!.fill(kind === "write" ? byteOf(block) : 0)
      return { _tag: kind, offset: block * BLOCK_BYTES, buffer, block } as const
    })
    const exit = yield* queue.process(Stream.fromIterable(requests)).pipe(
      Stream.runForEach(({ error, request: { block, buffer } }) =>
        Effect.sync(() => ends.push(error?._tag ?? (isRight(buffer, block) ? "success" : "wrong data")))
      ),
      Effect.exit
    )
    if (Exit.isFailure(exit)) ends.push(tagOf(exit))
  }
  return ends
})

/** The same by an Effect for each block. */
const byRequest = (
  queue: IoQueue.IoQueue,
  buffers: ReadonlyArray<Uint8Array>,
  kind: "read" | "write",
  blocks: ReadonlyArray<number>
) =>
  Effect.map(
    Effect.forEach(
      buffers,
      Effect.fnUntraced(function*(buffer, slot) {
        const ends: Array<string> = []
        for (let i = slot; i < blocks.length; i += buffers.length) {
          const block = blocks[i]!
          buffer.fill(kind === "write" ? byteOf(block) : 0)
          const tag = tagOf(yield* Effect.exit(queue[kind](block * BLOCK_BYTES, buffer)))
          ends.push(tag === "success" && !isRight(buffer, block) ? "wrong data" : tag)
        }
        return ends
      }),
      { concurrency: "unbounded" }
    ),
    (each) => each.flat()
  )

/** Writes or verifies blocks by a queue, with buffers of a block each. Also for the test's own thread. */
export const passOver = (
  queue: IoQueue.IoQueue,
  bytes: Uint8Array,
  kind: "read" | "write",
  blocks: Blocks
): Effect.Effect<Ends> => {
  const buffers = Array.from(
    { length: bytes.length / BLOCK_BYTES },
    (_, i) => bytes.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)
  )
  return Effect.map((blocks.api === "process" ? byStream : byRequest)(queue, buffers, kind, blocksOf(blocks)), distinct)
}

/** Does what it is told until it is told to end. */
const run = Effect.fnUntraced(function*(handle: WorkerQueue.QueueHandle) {
  const end = yield* Deferred.make<void>()
  const scope = yield* Scope.make()
  let opened: WorkerQueue.WorkerQueue | undefined
  const report = (what: Report) => parentPort?.postMessage(what)

  const withQueue = (use: (opened: WorkerQueue.WorkerQueue) => Effect.Effect<ReadonlyArray<string>>) =>
    Effect.suspend(() => opened === undefined ? Effect.succeed(["not open"]) : use(opened))

  const perform = (task: Task): Effect.Effect<ReadonlyArray<string>> => {
    switch (task._tag) {
      case "open":
        return WorkerQueue.open(handle).pipe(
          Scope.provide(scope),
          Effect.tap((queue) =>
            Effect.sync(() => {
              opened = queue
            })
          ),
          Effect.exit,
          Effect.map((exit) => [tagOf(exit)])
        )
      case "write":
        return withQueue(({ queue, regions: [region] }) => passOver(queue, region!.bytes, "write", task))
      case "verify":
        return withQueue(({ queue, regions: [region] }) => passOver(queue, region!.bytes, "read", task))
      case "read":
        return withQueue(({ queue, regions: [region] }) =>
          Effect.forEach(
            Array.from({ length: task.times }),
            () => Effect.map(Effect.exit(queue.read(0, region!.bytes.subarray(0, BLOCK_BYTES))), tagOf),
            { concurrency: "unbounded" }
          )
        )
      case "read at":
        return withQueue(({ queue, regions: [region] }) =>
          Effect.map(Effect.exit(queue.read(task.offset, region!.bytes.subarray(0, BLOCK_BYTES))), (exit) => [
            tagOf(exit)
          ])
        )
      case "read outside":
        return withQueue(({ queue }) =>
          Effect.map(Effect.exit(queue.read(0, new Uint8Array(BLOCK_BYTES))), (exit) => [tagOf(exit)])
        )
      case "capacity":
        return withQueue(({ rules }) => Effect.succeed([String(rules.capacity)]))
      case "close":
        return Effect.as(Scope.close(scope, Exit.void), ["success"])
      case "exit":
        return Effect.sync(() => process.exit(0))
      case "end":
        return Effect.as(Deferred.succeed(end, undefined), ["success"])
    }
  }

  const fork = Effect.runForkWith(yield* Effect.context())
  parentPort?.on("message", ({ id, task }: { readonly id: number; readonly task: Task }) => {
    fork(Effect.map(perform(task), (ends) => report({ _tag: "done", id, ends: distinct(ends) })))
    report({ _tag: "begun", id })
  })
  yield* Deferred.await(end)
  yield* Scope.close(scope, Exit.void)
  // Whatever became of the queue, nothing of it may keep the thread.
  parentPort?.close()
  handle.port.close()
})

if (!isMainThread && workerData?.queueThread !== undefined) await Effect.runPromise(run(workerData.queueThread))
