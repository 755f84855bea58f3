/**
 * Goal: a queue that was handed to another thread moves right data there, in every way of waiting; nothing that happens to the
 * device, the queue, the thread or the memory between them hangs either side, goes unsaid, or leaves something behind.
 * Method: real threads (queueThread.ts) on each backend. Data goes from thread to thread by way of the disk. What must be in
 * flight while something happens is on a backend whose requests take long. A time limit stands against hanging only.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope, Stream } from "effect"
import { type IoQueue, MemoryRegion, VirtioBlk } from "../../src/index.ts"
import { fakeConnection } from "../Driver/fakeConnection.ts"
import { slow } from "../support/Backend.ts"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"
import { mayLeave } from "../support/leakGate.ts"
import { BLOCK_BYTES, passOver, startIdleThread, startThread } from "../support/queueThread.ts"
import { leavesNothing } from "../support/resources.ts"

const QUEUE_SIZE = 64
const REGION_BYTES = 32 * BLOCK_BYTES
/** More than a ring holds several times over. */
const REQUESTS = 5 * QUEUE_SIZE + 7
const FOREVER_MS = 60_000

type Kind = IoQueue.Waiting

/** A device with a queue to hand over, which is its first, and one to keep. */
const openTwo = Effect.fnUntraced(function*(
  socketPath: string,
  kind: Kind = "adaptive",
  options: Parameters<typeof open>[1] = {}
) {
  const disk = yield* open(socketPath, {
    queueSize: QUEUE_SIZE,
    ...kind === "poll" ? { numPollQueues: 1 } : { numQueues: 2, waiting: kind },
    ...options
  })
  const kept = disk.queue(kind === "poll" ? 0 : 1)
  const given = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
  const region = yield* disk.allocate(REGION_BYTES)
  const handOver = disk.handOver({ queue: 0, kind: kind === "poll" ? "poll" : "event", regions: [region] })
  return { disk, kept, given, region, handOver }
})

/** A device of which one queue is in another thread. */
const openHanded = Effect.fnUntraced(function*(...args: Parameters<typeof openTwo>) {
  const opened = yield* openTwo(...args)
  const thread = yield* startThread(yield* opened.handOver)
  return { ...opened, thread }
})

const tagOf = <E extends { readonly _tag: string }, R>(effect: Effect.Effect<unknown, E, R>) =>
  Effect.map(Effect.flip(effect), ({ _tag }) => _tag)

const success = ["success"]

forEachBackend("a queue in another thread", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    for (const used of [0, REQUESTS]) {
      onBackend(`moves right data both ways: ${kind} queue, after ${used} requests here`, () =>
        Effect.gen(function*() {
          const { socketPath } = yield* serveRaw(backend, 8 * MiB, { numQueues: 2 })
          const { disk, given, handOver, kept } = yield* openTwo(socketPath, kind)
          const { bytes } = yield* disk.allocate(REGION_BYTES)
          // By either API, so that it is left in either's way.
          for (const api of ["process", "request"] as const) {
            expect(yield* passOver(given, bytes, "write", { first: 0, count: used, api })).toStrictEqual(
              used === 0 ? [] : success
            )
          }
          const thread = yield* startThread(yield* handOver)
          for (const [round, api] of (["process", "request"] as const).entries()) {
            const there = { first: round * 1000, count: REQUESTS, api }
            const here = { ...there, first: there.first + REQUESTS }
            expect(yield* thread.ask({ _tag: "write", ...there })).toStrictEqual(success)
            expect(yield* passOver(kept, bytes, "read", there)).toStrictEqual(success)
            expect(yield* passOver(kept, bytes, "write", here)).toStrictEqual(success)
            expect(yield* thread.ask({ _tag: "verify", ...here })).toStrictEqual(success)
          }
        }))
    }
  }

  onBackend("is handed over where a request has just ended in the same breath", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 8 * MiB, { numQueues: 2 })
      for (const kind of ["event", "adaptive", "poll"] as const) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { given, handOver, kept, region } = yield* openTwo(socketPath, kind)
          yield* given.read(0, region.bytes.subarray(0, BLOCK_BYTES))
          const thread = yield* startThread(yield* handOver)
          const blocks = { first: 0, count: REQUESTS, api: "request" } as const
          expect(yield* thread.ask({ _tag: "write", ...blocks })).toStrictEqual(success)
          expect(yield* passOver(kept, region.bytes, "read", blocks)).toStrictEqual(success)
        }))
      }
    }))

  onBackend("two at once do not get in each other's way", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 16 * MiB, { numQueues: 3 })
      const disk = yield* open(socketPath, { numQueues: 3, queueSize: QUEUE_SIZE })
      const threads = yield* Effect.forEach([0, 1], (queue) =>
        Effect.gen(function*() {
          const region = yield* disk.allocate(REGION_BYTES)
          return yield* startThread(yield* disk.handOver({ queue, regions: [region] }))
        }))
      const blocks = { count: 1024, step: 2, api: "process" } as const
      const all = (_tag: "write" | "verify", shift: number) =>
        Effect.forEach(threads, (thread, i) => thread.ask({ _tag, first: (i + shift) % 2, ...blocks }), {
          concurrency: "unbounded"
        })
      expect(yield* all("write", 0)).toStrictEqual([success, success])
      expect(yield* all("verify", 1)).toStrictEqual([success, success])
      const { bytes } = yield* disk.allocate(REGION_BYTES)
      expect(yield* passOver(disk.queue(2), bytes, "read", { first: 0, count: 2048, api: "process" })).toStrictEqual(
        success
      )
    }))

  onBackend("answers ENODEV here, and the disk's own calls and memory go by the others", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 2 })
      const { disk, given, kept, region, thread } = yield* openHanded(socketPath)
      const buffer = region.bytes.subarray(0, BLOCK_BYTES)
      expect(yield* tagOf(given.read(0, buffer))).toBe("ENODEV")
      expect(yield* tagOf(given.submit([{ _tag: "flush" }]))).toBe("ENODEV")
      expect(yield* tagOf(Stream.runDrain(given.process(Stream.make({ _tag: "flush" } as const))))).toBe("ENODEV")
      expect(yield* tagOf(Stream.runDrain(given.processFrom(() => [])))).toBe("ENODEV")
      expect(yield* tagOf(given.loop(() => []))).toBe("ENODEV")
      expect(disk.queues).toHaveLength(2)
      expect(disk.ownQueues).toStrictEqual([kept])
      for (let turn = 0; turn < 4; turn++) {
        yield* disk.writeBytes(turn * 1000, new Uint8Array(1000).fill(turn + 1))
        expect(yield* disk.readBytes(turn * 1000, 1000)).toStrictEqual(new Uint8Array(1000).fill(turn + 1))
      }
      const more = yield* disk.allocate(BLOCK_BYTES)
      yield* kept.read(0, more.bytes)
      expect(more.bytes[0]).toBe(1)
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
    }))

  onBackend("keeps its ring to itself, whatever is still asked of it here", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 2 })
      const { disk, given, region, thread } = yield* openHanded(socketPath)
      for (const enabled of [true, false]) {
        expect(yield* thread.ask({ _tag: "read", times: QUEUE_SIZE / 2 })).toStrictEqual(success)
        yield* Effect.ignore(given.setCompletionFdEnabled(enabled))
        yield* Effect.ignore(given.completions({ min: 0 }))
        // What was woken by this looks after it, and must not find answers of requests that it does not know.
        yield* Effect.sleep(10)
      }
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
      yield* disk.queue(1).read(0, region.bytes)
    }))

  onBackend("ends a stream here that has nothing to send", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { given, handOver } = yield* openTwo(socketPath)
      const idle = yield* Effect.forkScoped(tagOf(Stream.runDrain(given.process(Stream.never))), {
        startImmediately: true
      })
      yield* handOver
      expect(yield* Fiber.join(idle)).toBe("ENODEV")
    }))

  onBackend("reaches no memory but what was handed over with it", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { thread } = yield* openHanded(socketPath)
      expect(yield* thread.ask({ _tag: "read outside" })).toStrictEqual(["EFAULT"])
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
    }))

  onBackend("follows the disk's size", () =>
    Effect.gen(function*() {
      const { facts, resize, socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 2 })
      const { disk, thread } = yield* openHanded(socketPath)
      const beyond = { _tag: "read at", offset: 4 * MiB } as const
      expect(yield* thread.ask(beyond)).toStrictEqual(["EINVAL"])
      yield* resize(8 * MiB)
      yield* disk.refresh
      // The thread hears of it soon, and not before it hears of whatever else.
      yield* Effect.repeat(thread.ask({ _tag: "capacity" }), { until: ([bytes]) => bytes === String(disk.capacity) })
      expect(disk.capacity).toBe(facts.tellsOfResize ? 8 * MiB : 4 * MiB)
      expect(yield* thread.ask(beyond)).toStrictEqual(facts.tellsOfResize ? success : ["EINVAL"])
    }))
})

forEachBackend("handing a queue over", (backend) => {
  onBackend("is refused for a queue that is not there, and for one that has gone", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { disk, handOver, kept, region } = yield* openTwo(socketPath)
      for (const queue of [-1, 2, 0.5]) expect(yield* tagOf(disk.handOver({ queue, regions: [] }))).toBe("ENODEV")
      expect(yield* tagOf(disk.handOver({ queue: 0, kind: "poll", regions: [] }))).toBe("ENODEV")
      const thread = yield* startThread(yield* handOver)
      expect(yield* tagOf(handOver)).toBe("ENODEV")
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
      yield* kept.read(0, region.bytes)
    }))

  onBackend("is refused while requests are in flight, which go on", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(200), { numQueues: 2 })
      const { given, handOver, region } = yield* openTwo(socketPath)
      const request = { _tag: "read", offset: 0, buffer: region.bytes.subarray(0, BLOCK_BYTES) } as const
      yield* given.submit([request])
      expect(yield* Effect.flip(handOver)).toMatchObject({ _tag: "EBUSY", operation: "hand over", queue: 0 })
      expect(yield* given.completions({ min: 1 })).toMatchObject([{ request }])
      const thread = yield* startThread(yield* handOver)
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
    }))

  onBackend("is refused with a region that is not mapped, and the queue stays", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { disk, given, handOver, region } = yield* openTwo(socketPath)
      const foreign = yield* MemoryRegion.allocate(4 * KiB)
      const released = yield* Effect.scoped(disk.allocate(4 * KiB))
      for (const wrong of [foreign, released]) {
        expect(yield* Effect.flip(disk.handOver({ queue: 0, regions: [region, wrong] }))).toMatchObject({
          _tag: "EINVAL",
          operation: "hand over"
        })
      }
      yield* given.read(0, region.bytes)
      expect(disk.ownQueues).toHaveLength(2)
      const thread = yield* startThread(yield* handOver)
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(success)
    }))

  onBackend("is refused by a device that is gone, with its failure", () =>
    Effect.gen(function*() {
      const { socketPath, withdraw } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { given, handOver, region } = yield* openTwo(socketPath)
      yield* withdraw
      yield* Effect.repeat(Effect.exit(given.read(0, region.bytes)), { until: Exit.isFailure })
      expect(yield* tagOf(handOver)).toBe("ENOTCONN")
    }))
})

describe("handing a queue over, without a descriptor to notify the device by", () => {
  it.live("is refused, and the queue stays", () =>
    leavesNothing(Effect.gen(function*() {
      const disk = yield* VirtioBlk.make(fakeConnection().recipe)
      expect(yield* tagOf(disk.handOver({ queue: 0, regions: [] }))).toBe("ENOTSUP")
      expect(disk.ownQueues).toHaveLength(1)
      // Not ENODEV: it looks at requests.
      expect(yield* tagOf(disk.queue(0).read(0, new Uint8Array(4096)))).toBe("EFAULT")
    })))
})

forEachBackend("the end of a queue in another thread", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(
      `is ENOTCONN for what is in flight when the backend is killed: ${kind} queue`,
      () =>
        Effect.gen(function*() {
          const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS), { numQueues: 2 })
          const { disk, thread } = yield* openHanded(socketPath, kind)
          const reading = yield* thread.begin({ _tag: "read", times: 3 * QUEUE_SIZE })
          yield* kill("SIGKILL")
          expect(yield* reading).toStrictEqual(["ENOTCONN"])
          expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(["ENOTCONN"])
          expect(yield* tagOf(Effect.scoped(disk.allocate(4 * KiB)))).toBe("ENOTCONN")
        })
    )

    onBackend(
      `waits for what is in flight when the device is closed, and is ESHUTDOWN then: ${kind} queue`,
      () =>
        Effect.gen(function*() {
          const { socketPath } = yield* backend.serve(slow(200), { numQueues: 2 })
          const scope = yield* Scope.make()
          const { handOver } = yield* openTwo(socketPath, kind).pipe(Scope.provide(scope))
          const thread = yield* startThread(yield* handOver.pipe(Scope.provide(scope)))
          const reading = yield* thread.begin({ _tag: "read", times: 4 })
          yield* Scope.close(scope, Exit.void)
          expect(yield* reading).toStrictEqual(success)
          expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(["ESHUTDOWN"])
        })
    )
  }

  onBackend("is ESHUTDOWN for those who wait for room when the device is closed", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(200), { numQueues: 2 })
      const scope = yield* Scope.make()
      const { handOver } = yield* openTwo(socketPath).pipe(Scope.provide(scope))
      const thread = yield* startThread(yield* handOver.pipe(Scope.provide(scope)))
      const reading = yield* thread.begin({ _tag: "read", times: 20 * QUEUE_SIZE })
      yield* Scope.close(scope, Exit.void)
      expect(yield* reading).toStrictEqual(["ESHUTDOWN", "success"])
    }))

  onBackend("comes after closeTimeout where the backend does not answer: ESHUTDOWN", () =>
    Effect.gen(function*() {
      const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS), { numQueues: 2 })
      const scope = yield* Scope.make()
      const { handOver } = yield* openTwo(socketPath, "adaptive", {
        closeTimeout: "200 millis",
        replyTimeout: "2 seconds"
      }).pipe(Scope.provide(scope))
      const thread = yield* startThread(yield* handOver.pipe(Scope.provide(scope)))
      const reading = yield* thread.begin({ _tag: "read", times: 4 })
      yield* kill("SIGSTOP")
      yield* Scope.close(scope, Exit.void)
      expect(yield* reading).toStrictEqual(["ESHUTDOWN"])
      yield* kill("SIGCONT")
    }))

  onBackend("is the device's where the thread finds it silent: ETIMEDOUT for both", () =>
    Effect.gen(function*() {
      const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS), { numQueues: 2 })
      const { kept, region, thread } = yield* openHanded(socketPath, "adaptive", {
        deviceTimeout: "2 seconds",
        replyTimeout: "2 seconds"
      })
      const reading = yield* thread.begin({ _tag: "read", times: 4 })
      yield* kill("SIGSTOP")
      expect(yield* reading).toStrictEqual(["ETIMEDOUT"])
      // Here nothing was in flight, so this side only knows what it is told.
      expect(yield* tagOf(Effect.repeat(kept.read(0, region.bytes), { times: 1 }))).toBe("ETIMEDOUT")
      yield* kill("SIGCONT")
    }))

  onBackend("comes before that of a region which was handed over with it", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(200), { numQueues: 2 })
      const disk = yield* open(socketPath, { numQueues: 2 })
      const scope = yield* Scope.make()
      const lent = yield* disk.allocate(REGION_BYTES).pipe(Scope.provide(scope))
      const thread = yield* startThread(yield* disk.handOver({ queue: 0, regions: [lent] }))
      const reading = yield* thread.begin({ _tag: "read", times: 4 })
      yield* Scope.close(scope, Exit.void)
      expect(yield* reading).toStrictEqual(success)
      expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual(["ESHUTDOWN"])
      const { bytes } = yield* disk.allocate(BLOCK_BYTES)
      yield* disk.queue(1).read(0, bytes)
    }))

  onBackend(
    "may be its own Scope's: what is in flight is waited for, and the device goes on",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* backend.serve(slow(100), { numQueues: 2 })
        const { kept, region, thread } = yield* openHanded(socketPath)
        const reading = yield* thread.begin({ _tag: "read", times: 4 })
        expect(yield* thread.ask({ _tag: "close" })).toStrictEqual(success)
        expect(yield* reading).toStrictEqual(success)
        expect(yield* thread.ask({ _tag: "read outside" })).toStrictEqual(["ESHUTDOWN"])
        yield* kept.read(0, region.bytes)
      })
  )

  onBackend("may be its thread's, while the device goes on", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const { kept, region, thread } = yield* openHanded(socketPath)
      yield* thread.ask({ _tag: "end" })
      yield* thread.ended
      yield* kept.read(0, region.bytes)
    }))

  onBackend("is no matter where it was never opened, or never left", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const scope = yield* Scope.make()
      const { disk, handOver, region } = yield* openTwo(socketPath).pipe(Scope.provide(scope))
      const thread = yield* startIdleThread(yield* handOver.pipe(Scope.provide(scope)))
      yield* disk.handOver({ queue: 1, regions: [region] }).pipe(Scope.provide(scope))
      yield* Scope.close(scope, Exit.void)
      // Whose descriptors these are by now, nobody knows.
      expect(yield* thread.ask({ _tag: "open" })).toStrictEqual(["ESHUTDOWN"])
    }))
})

forEachBackend("opening a queue while its device closes", (backend) => {
  onBackend("works or is ESHUTDOWN, and holds neither up", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      for (const delayMs of [0, 1, 2, 4]) {
        yield* Effect.scoped(Effect.gen(function*() {
          const scope = yield* Scope.make()
          const { handOver } = yield* openTwo(socketPath, "adaptive", { closeTimeout: "10 minutes" }).pipe(
            Scope.provide(scope)
          )
          const thread = yield* startIdleThread(yield* handOver.pipe(Scope.provide(scope)))
          // It is there, and does what comes at once.
          expect(yield* thread.ask({ _tag: "capacity" })).toStrictEqual(["not open"])
          const opening = yield* Effect.forkScoped(thread.ask({ _tag: "open" }), { startImmediately: true })
          yield* Effect.sleep(delayMs)
          yield* Scope.close(scope, Exit.void)
          const [outcome] = yield* Fiber.join(opening)
          expect(["success", "ESHUTDOWN"]).toContain(outcome)
          expect(yield* thread.ask({ _tag: "read", times: 1 })).toStrictEqual([
            outcome === "success" ? "ESHUTDOWN" : "not open"
          ])
        }))
      }
    }))
})

forEachBackend("a thread that exits in the middle", (backend) => {
  it.live("does not hold the device up", () =>
    Effect.gen(function*() {
      // Nobody is there any more to close what the thread had opened: the process keeps it.
      mayLeave(/^(?:descriptor \d+: (?:anon_inode:\[eventfd\]|\/memfd:effect-blkio)|mapping .*\/memfd:effect-blkio)/u)
      const { socketPath } = yield* backend.serve(slow(100), { numQueues: 2 })
      for (const kind of ["event", "poll"] as const) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { kept, region, thread } = yield* openHanded(socketPath, kind, { closeTimeout: "10 minutes" })
          const reading = yield* thread.begin({ _tag: "read", times: 4 })
          expect(yield* thread.ask({ _tag: "exit" })).toStrictEqual(["gone"])
          expect(yield* reading).toStrictEqual(["gone"])
          yield* thread.ended
          yield* kept.read(0, region.bytes.subarray(0, BLOCK_BYTES))
        }))
      }
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
})
