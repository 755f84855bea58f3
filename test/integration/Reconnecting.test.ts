/**
 * Goal: a device whose backend goes away and comes back loses nothing, and calls nothing stable that may be lost; one that
 * does not come back, or comes back as another, ends with one typed error.
 * Method: a backend in a process of its own is killed, stopped and started again behind one path.
 */
import { expect } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, FileSystem, Option, Schedule, Scope, Stream } from "effect"
import { fstatSync } from "node:fs"
import type { ConnectionState, Device } from "../../src/BlockDevice.ts"
import { IoQueue, VhostUser, VirtioBlk } from "../../src/index.ts"
import { type Backend, type Disk, type ServeOptions, slow } from "../support/Backend.ts"
import { forEachBackend, makeImage } from "../support/backends.ts"
import { KiB, MiB, onBackend } from "../support/daemon.ts"
import { descriptors } from "../support/resources.ts"

const QUEUE_SIZE = 16
const soon = Schedule.spaced("20 millis")

/** A path behind which a backend is started, killed and started again. */
const restartable = Effect.fnUntraced(function*(backend: Backend) {
  const fs = yield* FileSystem.FileSystem
  const path = `${yield* fs.makeTempDirectoryScoped({ prefix: "blkio-reconnect-" })}/disk.sock`
  const parent = yield* Effect.scope
  const start = Effect.fnUntraced(function*(disk: Disk, options?: ServeOptions) {
    const scope = yield* Scope.fork(parent)
    const served = yield* Scope.provide(backend.serveApart(disk, options), scope)
    yield* fs.remove(path, { force: true })
    yield* fs.symlink(served.socketPath, path)
    const kill = Effect.gen(function*() {
      yield* served.kill("SIGKILL")
      yield* served.ended
      yield* fs.remove(path, { force: true })
      yield* Scope.close(scope, Exit.void)
    })
    return { ...served, kill, signal: served.kill }
  }, Effect.orDie)
  return { path, start }
})

const open = (
  path: string,
  reconnect: VhostUser.Options["reconnect"] = soon,
  options: VirtioBlk.Options & Pick<VhostUser.Options, "replyTimeout"> = {}
) => {
  const { replyTimeout = "5 seconds", ...rest } = options
  return Effect.flatMap(
    VhostUser.make({ path, replyTimeout, ...(reconnect === undefined ? {} : { reconnect }) }),
    (transport) => VirtioBlk.make(transport, { queueSize: QUEUE_SIZE, ...rest })
  )
}

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkScoped(effect, { startImmediately: true })

/** Waits until the device's connection is in a state. */
const reaches = (disk: Device, state: ConnectionState["_tag"]) =>
  Effect.map(
    Stream.runHead(Stream.filter(disk.connectionStates, ({ _tag }) => _tag === state)),
    Option.getOrThrow
  )

/** Our export keeps one in memory of which the driver has the descriptor; qemu-storage-daemon does not. */
const keepsRecord = ({ name }: Backend) => name === "our export"

const filled = (length: number, byte: number) => new Uint8Array(length).fill(byte)

forEachBackend("a backend that comes back", (backend) => {
  for (const kind of ["event", "adaptive", "poll"] as const) {
    onBackend(`answers what was in flight and what waited: ${kind} queue`, () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const first = yield* start(slow(60_000))
        const disk = yield* open(
          path,
          soon,
          kind === "poll" ? { numQueues: 0, numPollQueues: 1 } : { waiting: kind }
        )
        const queue = kind === "poll" ? disk.pollQueue(0) : disk.queue(0)
        const { bytes } = yield* disk.allocate(QUEUE_SIZE * 4 * KiB)
        const buffer = (slot: number) => bytes.subarray(slot * 4 * KiB, (slot + 1) * 4 * KiB)
        const requests = Array.from({ length: 3 * QUEUE_SIZE }, (_, i) =>
          ({ _tag: "read", offset: 0, buffer: buffer(i % QUEUE_SIZE), name: i }) as const)
        const stream = yield* fork(Stream.runCollect(queue.process(Stream.fromIterable(requests))))
        let looped = 0
        const loop = yield* fork(queue.loop((completions) => {
          expect(completions.every(({ error }) =>
            error === undefined
          )).toBe(true)
          looped += completions.length
          return looped < 2 * QUEUE_SIZE ? [requests[looped]!] : []
        }))
        yield* queue.submit([requests[0]!, requests[1]!]).pipe(fork)
        const others = yield* Effect.forEach(
          [
            queue.read(0, buffer(0)),
            queue.write(0, buffer(1)),
            queue.write(0, buffer(2), IoQueue.RequestFlag.FUA),
            queue.discard(0, 4 * KiB)
          ],
          fork
        )
        const lost = yield* fork(reaches(disk, "lost"))
        yield* first.kill
        expect(yield* Fiber.join(lost)).toMatchObject({ reason: { _tag: "ENOTCONN" } })
        const late = yield* fork(queue.read(0, buffer(3)))
        expect(late.pollUnsafe()).toBe(undefined)
        yield* start(slow(0))
        const ended = yield* Fiber.join(stream)
        expect(
          ended.map(({ request }) => request.name).toSorted((a, b) => a - b)
        ).toStrictEqual(requests.map(({ name }) => name))
        expect(ended.every(({ error }) => error === undefined)).toBe(true)
        yield* Fiber.join(loop)
        expect(looped).toBe(2 * QUEUE_SIZE)
        expect((yield* queue.completions({ min: 2 })).map(({ error }) => error)).toStrictEqual([undefined, undefined])
        yield* Effect.forEach([...others, late], Fiber.join)
        yield* queue.read(0, buffer(0))
      }))
  }

  onBackend("has what was written, and more than once, and the device goes on", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const image = yield* makeImage("raw", MiB)
      let served = yield* start(image)
      const disk = yield* open(path)
      const { bytes } = yield* disk.allocate(64 * KiB)
      const fd = disk.queue(0).completionFd
      for (let round = 1; round <= 3; round++) {
        const at = round * 64 * KiB
        bytes.fill(round)
        yield* disk.queue(0).write(at, bytes)
        yield* served.kill
        served = yield* start(image)
        bytes.fill(0)
        yield* disk.queue(0).read(at, bytes)
        expect(bytes.every((byte) => byte === round)).toBe(true)
        yield* disk.writeBytes(at, filled(8 * KiB, round + 100))
        expect(yield* disk.readBytes(at, 8 * KiB)).toStrictEqual(filled(8 * KiB, round + 100))
        expect(disk.queue(0).completionFd).toStrictEqual(fd)
      }
    }))

  onBackend(
    "goes on with the rings that are there, where it keeps a record of what it has taken",
    () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const first = yield* start(slow(60_000))
        const disk = yield* open(path)
        const records = () =>
          Array.from(descriptors()).flatMap(([fd, link]) => link.includes("inflight") ? [fstatSync(fd).ino] : [])
        const before = records()
        expect(before).toHaveLength(keepsRecord(backend) ? 1 : 0)
        const { bytes } = yield* disk.allocate(40 * 512)
        const buffer = (slot: number) => bytes.subarray(slot * 512, (slot + 1) * 512)
        const reading = yield* Effect.forEach(
          Array.from({ length: 40 }, (_, i) => i),
          (i) => fork(disk.queue(0).read(i * 512, buffer(i)))
        )
        yield* first.kill
        const second = yield* start(slow(60_000))
        yield* reaches(disk, "connected")
        expect(records()).toStrictEqual(before)
        yield* second.kill
        const third = yield* start(slow(0))
        yield* Effect.forEach(reading, Fiber.join)
        expect(records()).toStrictEqual(before)
        // A request that nobody waits for is in the ring, so that it is left.
        const image = yield* makeImage("raw", 64 * MiB)
        yield* third.kill
        const late = yield* start(slow(60_000))
        yield* reaches(disk, "connected")
        const given = yield* fork(disk.queue(0).read(0, buffer(0)))
        const letting = yield* fork(Fiber.interrupt(given))
        yield* late.kill
        yield* start(image)
        yield* Fiber.join(letting)
        yield* disk.queue(0).read(0, buffer(0))
        if (keepsRecord(backend)) expect(records()).not.toStrictEqual(before)
        yield* Effect.forEach([1, 2, 3], (i) => disk.queue(0).write(i * 512, buffer(i)), { concurrency: 3 })
      })
  )

  onBackend("leaves no descriptor of the lost connections behind", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      let served = yield* start(slow(0))
      const disk = yield* open(path)
      const again = Effect.gen(function*() {
        yield* served.kill
        served = yield* start(slow(0))
        yield* disk.readBytes(0, 512)
        yield* reaches(disk, "connected")
        return descriptors().size
      })
      // The first connection's error counter belongs to the device.
      const before = yield* again
      yield* again
      expect(yield* again).toBe(before)
    }))

  onBackend(
    "may have lost what was not flushed: the next flush of each queue says so, once",
    () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const image = yield* makeImage("raw", MiB)
        const first = yield* start(image, { numQueues: 2 })
        const disk = yield* open(path, soon, { numQueues: 2 })
        const { bytes } = yield* disk.allocate(4 * KiB)
        const [one, two] = [disk.queue(0), disk.queue(1)]
        yield* one.write(0, bytes)
        yield* two.flush()
        yield* first.kill
        const second = yield* start(image, { numQueues: 2 })
        // Everything had been flushed.
        yield* one.flush()
        yield* two.flush()
        yield* one.write(0, bytes)
        yield* second.kill
        const third = yield* start(image, { numQueues: 2 })
        yield* two.write(0, bytes, IoQueue.RequestFlag.FUA)
        for (const queue of [one, two]) {
          const error = yield* Effect.flip(queue.flush())
          expect(error).toMatchObject({ _tag: "EIO", operation: "flush" })
          expect(error.message).toContain("may have lost writes")
          yield* queue.flush()
        }
        // A write through the cache is stable by itself.
        yield* one.write(0, bytes, IoQueue.RequestFlag.FUA)
        yield* one.flush()
        yield* third.kill
        yield* start(image, { numQueues: 2 })
        yield* one.flush()
        yield* two.flush()
      })
  )

  onBackend("keeps its cache where the policy says so", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const image = yield* makeImage("raw", MiB)
      const first = yield* start(image)
      const disk = yield* open(path, { schedule: soon, keepsCache: true })
      yield* disk.writeBytes(0, filled(4 * KiB, 7))
      yield* first.kill
      yield* start(image)
      yield* disk.flush
      expect(yield* disk.readBytes(0, 4 * KiB)).toStrictEqual(filled(4 * KiB, 7))
    }))

  onBackend(
    "with less than it had is ESTALE, which says what changed, for everything that waits",
    () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        for (
          const [before, after, options, says] of [
            [MiB, MiB / 2, {}, "capacity is 1024 sectors, and was 2048"],
            [MiB, MiB, { blockSize: 4 * KiB }, "block size is 4096, and was 512"]
          ] as const
        ) {
          yield* Effect.scoped(Effect.gen(function*() {
            const first = yield* start(yield* makeImage("raw", before))
            const disk = yield* open(path)
            const { bytes } = yield* disk.allocate(4 * KiB)
            yield* first.kill
            const waiting = yield* fork(Effect.flip(disk.queue(0).read(0, bytes)))
            const second = yield* start(yield* makeImage("raw", after), options)
            const error = yield* Fiber.join(waiting)
            expect(error).toMatchObject({ _tag: "ESTALE", operation: "reconnect" })
            expect(error.message).toContain(says)
            expect(yield* reaches(disk, "failed")).toMatchObject({ failure: { _tag: "ESTALE" } })
            expect(yield* Effect.flip(disk.queue(0).flush())).toMatchObject({ _tag: "ESTALE" })
            expect(yield* Effect.flip(disk.writeBytes(0, filled(512, 1)))).toMatchObject({ _tag: "ESTALE" })
            expect(yield* Effect.flip(Effect.scoped(disk.allocate(4 * KiB)))).toMatchObject({ _tag: "ESTALE" })
            yield* second.kill
          }))
        }
      })
  )

  onBackend("with fewer queues is ESTALE", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const image = yield* makeImage("raw", MiB)
      const first = yield* start(image, { numQueues: 2 })
      const disk = yield* open(path, soon, { numQueues: 2 })
      yield* first.kill
      yield* start(image, { numQueues: 1 })
      const error = yield* Effect.flip(disk.readBytes(0, 512))
      expect(error).toMatchObject({ _tag: "ESTALE" })
      expect(error.message).toMatch(/MQ|1 queues, and 2 are in use/u)
    }))

  onBackend("with more than it had is the same device, grown", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const first = yield* start(yield* makeImage("raw", MiB))
      const disk = yield* open(path)
      const changes = yield* fork(Stream.runHead(disk.configChanges))
      yield* first.kill
      yield* start(yield* makeImage("raw", 2 * MiB))
      expect(yield* Fiber.join(changes)).toMatchObject({ value: { capacity: 2 * MiB } })
      expect(disk.capacity).toBe(2 * MiB)
      yield* disk.writeBytes(2 * MiB - 512, filled(512, 9))
    }))

  onBackend(
    "has the regions that were mapped, but not those released meanwhile, and new ones wait for it",
    () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const first = yield* start(slow(60_000))
        const disk = yield* open(path)
        const kept = yield* disk.allocate(4 * KiB)
        const scope = yield* Scope.fork(yield* Effect.scope)
        const released = yield* Scope.provide(disk.allocate(4 * KiB), scope)
        const onReleased = yield* fork(Effect.flip(disk.queue(0).read(0, released.bytes)))
        const onKept = yield* fork(disk.queue(0).read(0, kept.bytes))
        yield* first.kill
        yield* reaches(disk, "reconnecting")
        const allocating = yield* fork(disk.allocate(4 * KiB))
        const refreshing = yield* fork(disk.refresh)
        yield* Scope.close(scope, Exit.void)
        expect(yield* Fiber.join(onReleased)).toMatchObject({ _tag: "EFAULT" })
        expect(allocating.pollUnsafe()).toBe(undefined)
        yield* start(slow(0))
        yield* Fiber.join(onKept)
        yield* Fiber.join(refreshing)
        yield* disk.queue(0).read(0, (yield* Fiber.join(allocating)).bytes)
        yield* disk.queue(0).read(0, kept.bytes)
        expect(released.bytes.length).toBe(0)
      })
  )

  onBackend("keeps at most so many waiting as the policy says: ENOTCONN for the others", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const first = yield* start(slow(0))
      const disk = yield* open(path, { schedule: soon, maxWaiting: 2 })
      const { bytes } = yield* disk.allocate(4 * KiB)
      yield* first.kill
      yield* reaches(disk, "reconnecting")
      const waiting = yield* Effect.forEach([0, 1], () => fork(disk.queue(0).read(0, bytes)))
      const error = yield* Effect.flip(disk.queue(0).read(0, bytes))
      expect(error).toMatchObject({ _tag: "ENOTCONN" })
      expect(error.message).toContain("2 requests wait")
      yield* start(slow(0))
      yield* Effect.forEach(waiting, Fiber.join)
    }))

  onBackend("is killed again in the middle of it, whenever that is", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const image = yield* makeImage("raw", MiB)
      let served = yield* start(image)
      const disk = yield* open(path, soon, { replyTimeout: "1 second" })
      const { bytes } = yield* disk.allocate(4 * KiB)
      for (let delayMs = 0; delayMs < 6; delayMs++) {
        yield* served.kill
        const reading = yield* fork(disk.queue(0).read(0, bytes))
        served = yield* start(image)
        yield* Effect.sleep(delayMs * 5)
        yield* served.kill
        served = yield* start(image)
        yield* Fiber.join(reading)
      }
    }), 120_000)

  onBackend(
    "was stopped and goes on: what it still had is not sent before it has let go",
    () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const image = yield* makeImage("raw", MiB)
        const served = yield* start(image)
        const disk = yield* open(path, soon, { deviceTimeout: "300 millis" })
        const { bytes } = yield* disk.allocate(4 * KiB)
        yield* served.signal("SIGSTOP")
        bytes.fill(5)
        const writing = yield* fork(disk.queue(0).write(0, bytes))
        expect(yield* reaches(disk, "lost")).toMatchObject({ reason: { _tag: "ETIMEDOUT" } })
        yield* Effect.sleep(200)
        // Nobody may use the buffer for something else as long as the backend may read it.
        expect(writing.pollUnsafe()).toBe(undefined)
        yield* served.signal("SIGCONT")
        yield* Fiber.join(writing)
        yield* reaches(disk, "connected")
        expect(yield* disk.readBytes(0, 4 * KiB)).toStrictEqual(filled(4 * KiB, 5))
      })
  )
})

forEachBackend("a backend that does not come back", (backend) => {
  const ends: ReadonlyArray<[name: string, reconnect: VhostUser.ReconnectOptions, says: string]> = [
    ["before the schedule ends", { schedule: Schedule.recurs(3) }, "did not come back: connect"],
    ["in time", { schedule: soon, within: "200 millis" }, "did not come back within 200ms: connect"]
  ]
  for (const [name, reconnect, says] of ends) {
    onBackend(`${name}: ENOTCONN for everything`, () =>
      Effect.gen(function*() {
        const { path, start } = yield* restartable(backend)
        const first = yield* start(slow(60_000))
        const disk = yield* open(path, reconnect)
        const { bytes } = yield* disk.allocate(4 * KiB)
        const reading = yield* fork(Effect.flip(disk.queue(0).read(0, bytes)))
        const streaming = yield* fork(
          Effect.flip(
            Stream.runDrain(disk.queue(0).process(Stream.make({ _tag: "read", offset: 0, buffer: bytes } as const)))
          )
        )
        yield* first.kill
        const failed = yield* reaches(disk, "failed")
        for (const error of [yield* Fiber.join(reading), yield* Fiber.join(streaming)]) {
          expect(error).toMatchObject({ _tag: "ENOTCONN", operation: "reconnect" })
          expect(error.message).toContain(says)
          expect(failed).toMatchObject({ failure: error })
        }
        expect(yield* Effect.flip(Effect.scoped(disk.allocate(4 * KiB)))).toMatchObject({ _tag: "ENOTCONN" })
        expect(yield* Effect.flip(disk.refresh)).toMatchObject({ _tag: "ENOTCONN" })
      }))
  }

  onBackend("lets go of whoever is interrupted", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const first = yield* start(slow(60_000))
      const disk = yield* open(path, { schedule: soon, within: Duration.infinity })
      const { bytes } = yield* disk.allocate(8 * KiB)
      const request = { _tag: "read", offset: 0, buffer: bytes.subarray(4 * KiB) } as const
      const early = yield* fork(disk.queue(0).read(0, bytes.subarray(0, 4 * KiB)))
      const interrupting = yield* fork(Fiber.interrupt(early))
      const reading = yield* fork(disk.queue(0).read(0, bytes.subarray(0, 4 * KiB)))
      const streaming = yield* fork(Stream.runDrain(disk.queue(0).process(Stream.make(request))))
      yield* first.kill
      yield* reaches(disk, "reconnecting")
      yield* Fiber.join(interrupting)
      const waiting = yield* fork(disk.queue(0).flush())
      yield* Fiber.interrupt(reading)
      yield* Fiber.interrupt(streaming)
      yield* Fiber.interrupt(waiting)
      yield* disk.queue(0).released(bytes)
    }))

  onBackend("lets the device close, after closeTimeout at most", () =>
    Effect.gen(function*() {
      const { path, start } = yield* restartable(backend)
      const first = yield* start(slow(60_000))
      const scope = yield* Scope.fork(yield* Effect.scope)
      const disk = yield* Scope.provide(
        open(path, { schedule: soon, within: Duration.infinity }, { closeTimeout: "100 millis" }),
        scope
      )
      const { bytes } = yield* Scope.provide(disk.allocate(4 * KiB), scope)
      const reading = yield* fork(Effect.flip(disk.queue(0).read(0, bytes)))
      yield* first.kill
      yield* reaches(disk, "reconnecting")
      const waiting = yield* fork(Effect.flip(disk.queue(0).read(0, bytes)))
      const states = yield* fork(Stream.runCollect(disk.connectionStates))
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(reading)).toMatchObject({ _tag: "ESHUTDOWN" })
      expect(yield* Fiber.join(waiting)).toMatchObject({ _tag: "ESHUTDOWN" })
      yield* Fiber.join(states)
    }))
})
