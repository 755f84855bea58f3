/**
 * Goal: connecting says why it fails, and coming and going leaves nothing behind, however often and whenever interrupted.
 * Method: each backend, other clients on its sockets, a thousand open/close cycles, interruption at random moments with a
 * printed seed; descriptors and mappings are counted by {@link onBackend}, those of a backend in this process among them.
 */
import { expect } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { createServer, type Server } from "node:net"
import * as Libc from "../../src/Native/Libc.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { slow, type Zeroes } from "../support/Backend.ts"
import { forEachBackend, serveRaw, serveRawApart } from "../support/backends.ts"
import { at, imagePath, KiB, MiB, onBackend, open, withSeed } from "../support/daemon.ts"
import { startProgram } from "../support/program.ts"
import * as Resources from "../support/resources.ts"

/** A disk of which only the connection matters. */
const disk: Zeroes = { _tag: "zeroes", size: 64 * MiB }

const CYCLES = 1000
const INTERRUPTIONS = 100

/** The socket of a program that speaks JSON, and first, as QEMU's monitor does. */
const monitor = Effect.gen(function*() {
  const path = yield* imagePath("monitor")
  const greeting = JSON.stringify({ QMP: { version: { qemu: { micro: 0, minor: 0, major: 10 } }, capabilities: [] } })
  yield* Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer((socket) => {
        socket.resume().on("error", () => socket.destroy())
        socket.write(`${greeting}\r\n`)
      })
      server.listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )
  return path
})

forEachBackend("connecting", (backend) => {
  onBackend(
    "a second client is told that there may be another one, and comes in when the first has left",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* serveRaw(backend, MiB)
        const first = yield* Scope.make()
        const disk = yield* open(socketPath).pipe(Scope.provide(first))
        const error = yield* Effect.flip(Effect.scoped(open(socketPath, { replyTimeout: "200 millis" })))
        expect(error).toMatchObject({ _tag: "ETIMEDOUT", isRetryable: true })
        expect(error.message).toContain("serves one client at a time: is another one connected?")
        // The first does not notice.
        yield* disk.queue(0).flush()
        const waiting = yield* Effect.forkScoped(open(socketPath, { replyTimeout: "20 seconds" }), {
          startImmediately: true
        })
        yield* Effect.sleep(50)
        expect(waiting.pollUnsafe()).toBeUndefined()
        yield* Scope.close(first, Exit.void)
        yield* (yield* Fiber.join(waiting)).queue(0).flush()
      })
  )

  onBackend(
    "where nothing is, ENOENT; where nobody listens, ECONNREFUSED; where no backend talks, a typed error",
    () =>
      Effect.gen(function*() {
        const path = yield* imagePath("nobody.sock")
        expect(yield* Effect.flip(open(path))).toMatchObject({ _tag: "ENOENT", path, errno: 2 })
        const { ended, kill, socketPath } = yield* serveRawApart(backend, MiB)
        yield* kill("SIGKILL")
        yield* ended
        expect(yield* Effect.flip(open(socketPath))).toMatchObject({ _tag: "ECONNREFUSED", errno: 111 })
        const file = yield* imagePath("file/below")
        expect(yield* Effect.flip(open(file))).toMatchObject({ _tag: "ENOENT" })
        expect(yield* Effect.flip(open(`/${"x".repeat(107)}`))).toMatchObject({ _tag: "ENAMETOOLONG" })

        const error = yield* Effect.flip(open(yield* monitor, { replyTimeout: "300 millis" }))
        expect(["EPROTO", "ETIMEDOUT"]).toContain(error._tag)
      })
  )

  onBackend("takes a connected socket over by its descriptor, once", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB)
      const fd = Libc.createUnixSocket()
      expect(Libc.connectUnixSocket(fd, socketPath)).toBe(0)
      expect(yield* Effect.flip(VhostUser.make({ path: socketPath, fd }))).toMatchObject({ _tag: "EINVAL" })
      expect(yield* Effect.flip(VhostUser.make({}))).toMatchObject({ _tag: "EINVAL" })
      const device = VirtioBlk.create(yield* VhostUser.make({ fd }))
      yield* Effect.scoped(Effect.gen(function*() {
        const connected = yield* device.connect
        expect(yield* connected.properties.getAll).toMatchObject({ fd, path: "", capacity: MiB })
      }))
      expect(yield* Effect.flip(Effect.scoped(device.connect))).toMatchObject({ _tag: "EBADF" })
      const file = yield* VhostUser.make({ fd: 12345 })
      expect(yield* Effect.flip(Effect.scoped(file.connect))).toMatchObject({ _tag: "EBADF" })
    }))

  onBackend(`${CYCLES} times leaves the process as it was`, () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, MiB, { numQueues: 2 })
      const before = Resources.count()
      for (let cycle = 0; cycle < CYCLES; cycle++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* open(socketPath, { numQueues: 2, queueSize: 16 })
          const region = yield* disk.allocate(4 * KiB)
          yield* disk.queue(cycle % 2).read(0, region.bytes)
        }))
        if (cycle % 100 === 0) yield* Resources.settlesAt(before)
      }
    }), 300_000)

  onBackend(
    "interrupted at any moment leaves the process at once as it was, and the backend fit for the next",
    () =>
      withSeed((random) =>
        Effect.gen(function*() {
          // Its descriptors are not among those that are counted here.
          const { socketPath } = yield* serveRawApart(backend, MiB, { numQueues: 2 })
          const before = Resources.count()
          const session = Effect.scoped(Effect.gen(function*() {
            const disk = yield* open(socketPath, { numQueues: 1, numPollQueues: 1, queueSize: 16 })
            const region = yield* disk.allocate(64 * KiB)
            const read = { _tag: "read", offset: 0, buffer: region.bytes.subarray(0, 4 * KiB) } as const
            yield* Effect.forEach([disk.queue(0), disk.pollQueue(0)], (queue) =>
              Effect.all([
                Stream.runDrain(queue.process(Stream.fromIterable(Array.from({ length: 100 }, () => read)))),
                Effect.forEach(Array.from({ length: 40 }), () => queue.write(0, read.buffer, 1), {
                  concurrency: "unbounded",
                  discard: true
                }),
                Effect.andThen(
                  queue.submit(Array.from({ length: 20 }, () => read)),
                  Effect.scoped(disk.allocate(4 * KiB))
                )
              ], { concurrency: "unbounded", discard: true }), { concurrency: "unbounded", discard: true })
          }))
          let interrupted = 0
          for (let i = 0; i < INTERRUPTIONS; i++) {
            const running = yield* Effect.forkChild(session, { startImmediately: true })
            // Some moments lie between two turns of the event loop, others in the middle of the I/O.
            const turns = random(40)
            for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow
            if (random(2) === 0) yield* Effect.sleep(random(12))
            yield* Fiber.interrupt(running)
            const exit = yield* Fiber.await(running)
            if (Exit.isFailure(exit)) {
              interrupted++
              expect(Cause.hasInterruptsOnly(exit.cause) ? "" : Cause.pretty(exit.cause)).toBe("")
            }
            expect(Resources.count()).toStrictEqual(before)
          }
          expect(interrupted).toBeGreaterThan(INTERRUPTIONS / 4)
          // The backend has let go of every one of them.
          yield* session
        })
      ),
    300_000
  )

  onBackend(
    "interrupting a request gives its buffer back only when the device has let go of it",
    () =>
      Effect.gen(function*() {
        const { socketPath } = yield* backend.serve(slow(1000))
        const disk = yield* open(socketPath, { queueSize: 2 })
        const region = yield* disk.allocate(4 * KiB)
        const reading = yield* Effect.forkChild(disk.queue(0).read(0, region.bytes), { startImmediately: true })
        const interrupting = yield* Effect.forkChild(Fiber.interrupt(reading), { startImmediately: true })
        yield* Effect.sleep(20)
        expect(reading.pollUnsafe()).toBeUndefined()
        yield* Fiber.join(interrupting)
        expect(reading.pollUnsafe()).toBeDefined()
        // Those who wait in line leave at once.
        const more = yield* Effect.forEach(
          Array.from({ length: 4 }),
          () => Effect.forkChild(disk.queue(0).read(0, region.bytes), { startImmediately: true })
        )
        yield* Fiber.interrupt(more[3]!)
        yield* Fiber.interrupt(more[2]!)
        expect(more[0]!.pollUnsafe()).toBeUndefined()
        yield* Effect.forEach(more.slice(0, 2), (fiber) => Fiber.join(fiber))
        yield* disk.queue(0).read(0, region.bytes)
      })
  )

  onBackend(
    "two devices in one process, and one in another process, work at the same time",
    () =>
      Effect.gen(function*() {
        const [first, second, third] = yield* backend.serveTogether([disk, disk, disk])
        const { outcome } = yield* startProgram([
          "src/cli/main.ts",
          "bench",
          `virtio-blk-vhost-user,path=${third!.socketPath}`,
          "--runtime",
          "1",
          "--iodepth",
          "32",
          "--json"
        ])
        const drive = (path: string) =>
          Effect.scoped(Effect.gen(function*() {
            const device = yield* open(path)
            const region = yield* device.allocate(4 * KiB)
            const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
            return yield* device.queue(0).process(Stream.fromIterable(Array.from({ length: 20_000 }, () => read))).pipe(
              Stream.runFold(() => 0, (count, { error }) => count + (error === undefined ? 1 : 0))
            )
          }))
        const counts = yield* Effect.forEach([first!, second!], ({ socketPath }) => drive(socketPath), {
          concurrency: "unbounded"
        })
        expect(counts).toStrictEqual([20_000, 20_000])
        const { exit, stderr, stdout } = yield* outcome
        expect([exit, stderr]).toStrictEqual([0, ""])
        expect(JSON.parse(stdout)).toMatchObject({ aggregate: { errors: 0 } })
      })
  )

  onBackend("a device stays usable while another one of the same backend is stopped", () =>
    Effect.gen(function*() {
      const [first, second] = yield* backend.serveTogether([disk, disk])
      const kept = yield* open(first!.socketPath)
      for (let i = 0; i < 5; i++) {
        yield* Effect.scoped(Effect.flatMap(at(second!.socketPath), ({ connect }) => connect))
        yield* kept.queue(0).writeZeroes(0, 4 * KiB)
      }
    }))
})
