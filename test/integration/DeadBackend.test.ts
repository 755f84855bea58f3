/**
 * Goal: whatever becomes of the backend, everything in flight ends with one typed error and nothing hangs.
 * Method: a backend whose requests take long is killed, stopped, or left while every kind of request is pending: request
 * and answer, stream, completions by hand, waiters in line. A fiber that does not end fails the test by its time limit.
 */
import { expect } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import type { BlockDevice } from "../../src/index.ts"
import { type IoQueue, MemoryRegion } from "../../src/index.ts"
import { slow } from "../support/Backend.ts"
import { forEachBackend, serveRaw, serveRawApart } from "../support/backends.ts"
import { at, KiB, MiB, onBackend, open } from "../support/daemon.ts"
import { descriptors } from "../support/resources.ts"

const QUEUE_SIZE = 16

/** Longer than any test waits, so that what is in flight stays so. */
const FOREVER_MS = 60_000

/** Runs every kind of request on a queue, more than the ring holds, and gives the fibers that wait for their ends. */
const keepBusy = Effect.fnUntraced(function*(queue: IoQueue.IoQueue, buffer: Uint8Array) {
  const read = { _tag: "read", offset: 0, buffer } as const
  const single = yield* Effect.forkScoped(Effect.exit(queue.read(0, buffer)), { startImmediately: true })
  yield* queue.submit([read, read, read])
  const byHand = yield* Effect.forkScoped(Effect.exit(queue.completions({ min: 3 })), { startImmediately: true })
  const stream = yield* Effect.forkScoped(
    queue.process(Stream.fromIterable(Array.from({ length: 2 * QUEUE_SIZE }, () => read))).pipe(
      Stream.runDrain,
      Effect.exit
    ),
    { startImmediately: true }
  )
  // The ring is full by now, or will be: these stand in line.
  const waiting = yield* Effect.forkScoped(
    Effect.exit(queue.submit(Array.from({ length: 3 * QUEUE_SIZE }, () => read))),
    { startImmediately: true }
  )
  const others = [
    queue.write(0, buffer),
    queue.readv(0, [buffer, buffer]),
    queue.writev(0, [buffer, buffer]),
    queue.flush(),
    queue.writeZeroes(0, 4 * KiB),
    queue.discard(0, 4 * KiB),
    queue.write(0, buffer, 1)
  ]
  const inLine = yield* Effect.forEach(
    others,
    (request) => Effect.forkScoped(Effect.exit(request), { startImmediately: true })
  )
  yield* Effect.sleep(50)
  return [single, byHand, stream, waiting, ...inLine]
})

const tagOf = (exit: Exit.Exit<unknown, { readonly _tag: string }>): string =>
  Exit.match(exit, {
    onSuccess: () => "success",
    onFailure: ({ reasons: [reason] }) => reason?._tag === "Fail" ? reason.error._tag : reason?._tag ?? "nothing"
  })

/** The distinct ends of fibers. */
const endsOf = (fibers: ReadonlyArray<Fiber.Fiber<Exit.Exit<unknown, { readonly _tag: string }>>>) =>
  Effect.map(Effect.forEach(fibers, (fiber) => Fiber.join(fiber)), (exits) => [...new Set(exits.map(tagOf))])

/** Whatever is asked of a lost device. */
const askAll = Effect.fnUntraced(
  function*(disk: typeof BlockDevice.Service, queue: IoQueue.IoQueue, buffer: Uint8Array) {
    const asked = [
      queue.read(0, buffer),
      queue.write(0, buffer),
      queue.flush(),
      queue.discard(0, 512),
      queue.writeZeroes(0, 512),
      queue.submit([{ _tag: "flush" }]),
      queue.completions(),
      Stream.runDrain(queue.process(Stream.make({ _tag: "flush" } as const))),
      Effect.scoped(disk.allocate(4 * KiB)),
      disk.refresh
    ]
    const exits = yield* Effect.forEach(
      asked,
      (effect) => Effect.exit(effect as Effect.Effect<unknown, { _tag: string }>)
    )
    return exits.map(tagOf)
  }
)

forEachBackend("a backend that is gone", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(`fails what is in flight with ENOTCONN when it is killed: ${kind} queue`, () =>
      Effect.gen(function*() {
        const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS))
        const disk = yield* open(socketPath, {
          queueSize: QUEUE_SIZE,
          ...(kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : { waiting: kind })
        })
        const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
        const region = yield* disk.allocate(64 * KiB)
        const buffer = region.bytes.subarray(0, 4 * KiB)
        const pending = yield* keepBusy(queue, buffer)
        expect(pending.every((fiber) => fiber.pollUnsafe() === undefined)).toBe(true)
        yield* kill("SIGKILL")
        expect(yield* endsOf(pending)).toStrictEqual(["ENOTCONN"])
        expect(new Set(yield* askAll(disk, queue, buffer))).toStrictEqual(new Set(["ENOTCONN"]))
      }))
  }

  onBackend(
    "fails those who take completions slowly, and those who wait for them to be taken",
    () =>
      Effect.gen(function*() {
        const { ended, kill, socketPath } = yield* serveRawApart(backend, MiB)
        const disk = yield* open(socketPath, { queueSize: QUEUE_SIZE })
        const queue = disk.queue(0)
        const region = yield* disk.allocate(4 * KiB)
        const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
        // The first ring's worth is answered and not taken; the rest waits for that.
        const submitting = yield* Effect.forkScoped(
          Effect.exit(queue.submit(Array.from({ length: 5 * QUEUE_SIZE }, () => read))),
          { startImmediately: true }
        )
        yield* Effect.sleep(1000)
        expect(submitting.pollUnsafe()).toBeUndefined()
        yield* kill("SIGKILL")
        yield* ended
        // What was answered can still be taken; the failure comes after it.
        let taken = 0
        const drained = yield* Effect.flip(Effect.forever(
          Effect.tap(queue.completions(), (completions) =>
            Effect.sync(() => {
              taken += completions.filter(({ error }) => error === undefined).length
            }))
        ))
        expect(drained).toMatchObject({ _tag: "ENOTCONN" })
        expect(taken).toBeGreaterThanOrEqual(QUEUE_SIZE)
        expect(yield* endsOf([submitting])).toStrictEqual(["ENOTCONN"])
      })
  )

  onBackend(
    "ends a stream that is interrupted after the device died, and one whose reader is slow",
    () =>
      Effect.gen(function*() {
        const { ended, kill, socketPath } = yield* backend.serveApart(slow(5))
        const disk = yield* open(socketPath, { queueSize: QUEUE_SIZE })
        const region = yield* disk.allocate(4 * KiB)
        const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
        const seen = yield* Deferred.make<void>()
        const killed = yield* Deferred.make<void>()
        const lagging = yield* Effect.forkScoped(
          disk.queue(0).process(Stream.forever(Stream.make(read))).pipe(
            Stream.runForEachArray(() => Effect.andThen(Deferred.succeed(seen, undefined), Deferred.await(killed))),
            Effect.exit
          )
        )
        yield* Deferred.await(seen)
        yield* kill("SIGKILL")
        yield* ended
        yield* Effect.sleep(50)
        yield* Deferred.succeed(killed, undefined)
        expect(yield* endsOf([lagging])).toStrictEqual(["ENOTCONN"])
      })
  )

  onBackend("fails mapping and unmapping, whenever it is killed", () =>
    Effect.gen(function*() {
      for (let delayMs = 0; delayMs < 10; delayMs++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { kill, socketPath } = yield* serveRawApart(backend, MiB)
          const disk = yield* open(socketPath)
          const allocating = yield* Effect.forkScoped(
            Effect.exit(Effect.forever(Effect.scoped(Effect.andThen(disk.allocate(8 * KiB), Effect.yieldNow)))),
            { startImmediately: true }
          )
          yield* Effect.sleep(delayMs)
          yield* kill("SIGKILL")
          expect(yield* endsOf([allocating])).toStrictEqual(["ENOTCONN"])
        }))
      }
    }))

  onBackend("fails connecting and starting, whenever it is killed", () =>
    Effect.gen(function*() {
      for (let delayMs = 0; delayMs < 10; delayMs++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { kill, socketPath } = yield* serveRawApart(backend, MiB, { numQueues: 4 })
          const opening = yield* Effect.forkScoped(
            Effect.exit(Effect.forever(Effect.scoped(open(socketPath, { numQueues: 4 })))),
            { startImmediately: true }
          )
          yield* Effect.sleep(delayMs)
          yield* kill("SIGKILL")
          // Nobody listens any more, or nobody is connected any more.
          expect(["ENOTCONN", "ECONNREFUSED"]).toContain((yield* endsOf([opening]))[0])
        }))
      }
    }))

  onBackend("is told by a stopped backend's silence: ETIMEDOUT after deviceTimeout", () =>
    Effect.gen(function*() {
      const { kill, socketPath } = yield* serveRawApart(backend, MiB)
      const disk = yield* open(socketPath, {
        queueSize: QUEUE_SIZE,
        deviceTimeout: "2 seconds",
        replyTimeout: "2 seconds"
      })
      const region = yield* disk.allocate(64 * KiB)
      const buffer = region.bytes.subarray(0, 4 * KiB)
      yield* disk.queue(0).write(0, buffer)
      yield* kill("SIGSTOP")
      const pending = yield* keepBusy(disk.queue(0), buffer)
      expect(yield* endsOf(pending)).toStrictEqual(["ETIMEDOUT"])
      expect(new Set(yield* askAll(disk, disk.queue(0), buffer))).toStrictEqual(new Set(["ETIMEDOUT"]))
      yield* kill("SIGCONT")
    }))

  onBackend("is not presumed dead while it is slow but makes progress", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(100))
      const disk = yield* open(socketPath, { deviceTimeout: "2 seconds" })
      const region = yield* disk.allocate(4 * KiB)
      for (let i = 0; i < 3; i++) yield* disk.queue(0).read(0, region.bytes)
      // Idle for longer than the limit is no silence either.
      yield* Effect.sleep(2500)
      yield* disk.queue(0).read(0, region.bytes)
    }))

  onBackend("or goes on without this export fails what comes after with ENOTCONN", () =>
    Effect.gen(function*() {
      const { socketPath, withdraw } = yield* serveRaw(backend, MiB)
      const disk = yield* open(socketPath)
      const region = yield* disk.allocate(4 * KiB)
      yield* disk.queue(0).read(0, region.bytes)
      yield* withdraw
      yield* Effect.sleep(100)
      expect(yield* Effect.flip(disk.queue(0).read(0, region.bytes))).toMatchObject({ _tag: "ENOTCONN" })
    }))
})

forEachBackend("closing", (backend) => {
  onBackend("waits for what is in flight", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(200))
      const scope = yield* Scope.make()
      const disk = yield* open(socketPath, { queueSize: QUEUE_SIZE }).pipe(Scope.provide(scope))
      const region = yield* disk.allocate(4 * KiB).pipe(Scope.provide(scope))
      const reading = yield* Effect.forkScoped(Effect.exit(disk.queue(0).read(0, region.bytes)), {
        startImmediately: true
      })
      const inLine = yield* Effect.forEach(
        Array.from({ length: 2 * QUEUE_SIZE }),
        () => Effect.forkScoped(Effect.exit(disk.queue(0).writeZeroes(0, 4 * KiB)), { startImmediately: true })
      )
      yield* Scope.close(scope, Exit.void)
      expect(yield* endsOf([reading])).toStrictEqual(["success"])
      expect((yield* endsOf(inLine)).toSorted()).toStrictEqual(["ESHUTDOWN", "success"])
      expect(yield* Effect.flip(disk.queue(0).flush())).toMatchObject({ _tag: "ESHUTDOWN" })
      expect(region.bytes.length).toBe(0)
    }))

  onBackend(
    "gives what a stopped backend does not answer up after closeTimeout: ESHUTDOWN",
    () =>
      Effect.gen(function*() {
        const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS))
        const scope = yield* Scope.make()
        const disk = yield* open(socketPath, {
          queueSize: QUEUE_SIZE,
          closeTimeout: "200 millis",
          replyTimeout: "2 seconds"
        }).pipe(Scope.provide(scope))
        const region = yield* disk.allocate(4 * KiB).pipe(Scope.provide(scope))
        const pending = yield* keepBusy(disk.queue(0), region.bytes)
        yield* kill("SIGSTOP")
        yield* Scope.close(scope, Exit.void)
        expect(yield* endsOf(pending)).toStrictEqual(["ESHUTDOWN"])
        yield* kill("SIGCONT")
      })
  )

  onBackend("keeps the queues' descriptors until what is in flight has ended", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* backend.serve(slow(1500), { numQueues: 2 })
      for (const waiting of ["event", "adaptive"] as const) {
        const scope = yield* Scope.make()
        const disk = yield* open(socketPath, { numQueues: 2, waiting }).pipe(Scope.provide(scope))
        const fds = disk.queues.map(({ completionFd }) => Option.getOrThrow(completionFd))
        // Memory that outlives the device, so that nothing else waits for the requests.
        const region = yield* MemoryRegion.allocate(4 * KiB)
        yield* disk.map(region)
        const reading = yield* Effect.forEach(disk.queues, (queue) =>
          Effect.forkScoped(Effect.exit(queue.read(0, region.bytes)), { startImmediately: true }))
        const closing = yield* Effect.forkScoped(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* Effect.sleep(20)
        expect(closing.pollUnsafe()).toBeUndefined()
        const links = descriptors()
        for (const fd of fds) {
          expect(links.get(fd)).toBe("anon_inode:[eventfd]")
        }
        expect(yield* endsOf(reading)).toStrictEqual(["success"])
        yield* Fiber.join(closing)
      }
    }))

  onBackend("does not wait longer than the connection lives, however long it may wait", () =>
    Effect.gen(function*() {
      const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS))
      const scope = yield* Scope.make()
      const disk = yield* open(socketPath, { closeTimeout: Infinity, deviceTimeout: Infinity }).pipe(
        Scope.provide(scope)
      )
      const region = yield* disk.allocate(4 * KiB)
      const reading = yield* Effect.forkScoped(Effect.exit(disk.queue(0).read(0, region.bytes)), {
        startImmediately: true
      })
      const closing = yield* Effect.forkScoped(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* Effect.sleep(100)
      expect(closing.pollUnsafe()).toBeUndefined()
      yield* kill("SIGKILL")
      yield* Fiber.join(closing)
      expect(yield* endsOf([reading])).toStrictEqual(["ENOTCONN"])
    }))

  onBackend("does not wait longer than deviceTimeout for a silent device", () =>
    Effect.gen(function*() {
      const { kill, socketPath } = yield* backend.serveApart(slow(FOREVER_MS))
      const scope = yield* Scope.make()
      const disk = yield* open(socketPath, {
        closeTimeout: Infinity,
        deviceTimeout: "1 second",
        replyTimeout: "2 seconds"
      }).pipe(Scope.provide(scope))
      const region = yield* disk.allocate(4 * KiB)
      const reading = yield* Effect.forkScoped(Effect.exit(disk.queue(0).read(0, region.bytes)), {
        startImmediately: true
      })
      yield* Effect.sleep(10)
      yield* kill("SIGSTOP")
      yield* Scope.close(scope, Exit.void)
      expect(yield* endsOf([reading])).toStrictEqual(["ETIMEDOUT"])
      yield* kill("SIGCONT")
    }))

  onBackend("is clean when the backend was killed before", () =>
    Effect.gen(function*() {
      const { ended, kill, socketPath } = yield* backend.serveApart(slow(0))
      const device = yield* at(socketPath)
      yield* Effect.scoped(Effect.gen(function*() {
        const connected = yield* device.connect
        yield* kill("SIGKILL")
        yield* ended
        expect(yield* Effect.flip(connected.start())).toMatchObject({ _tag: "ENOTCONN" })
      }))
      expect(yield* Effect.flip(Effect.scoped(device.connect))).toMatchObject({ _tag: "ECONNREFUSED" })
    }))
})
