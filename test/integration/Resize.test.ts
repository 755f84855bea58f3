/**
 * Goal: a disk that is resized while it is in use is used at its new size, as far as the backend tells of it.
 * Method: each backend resizes its disk under a started device. Our export and QEMU 10 tell at once; QEMU 7.2 tells nothing
 * and keeps its old answer.
 */
import { expect } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import { forEachBackend, serveRaw } from "../support/backends.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"

forEachBackend("a resized disk", (backend) => {
  onBackend(
    "changes its capacity where the backend tells of it; where it does not, the old one stays",
    () =>
      Effect.gen(function*() {
        const { facts, resize, socketPath } = yield* serveRaw(backend, 4 * MiB)
        const disk = yield* open(socketPath)
        const region = yield* disk.allocate(4 * KiB)
        const changes: Array<number> = []
        yield* Effect.forkScoped(
          Stream.runForEach(disk.configChanges, ({ capacity }) => Effect.sync(() => changes.push(capacity))),
          { startImmediately: true }
        )
        const readAt = (offset: number) => disk.queue(0).read(offset, region.bytes)

        if (!facts.tellsOfResize) {
          yield* resize(8 * MiB)
          expect(yield* disk.refresh).toStrictEqual({ capacity: 4 * MiB, flushNeeded: false })
          expect(disk.capacity).toBe(4 * MiB)
          expect(yield* Effect.flip(readAt(4 * MiB))).toMatchObject({ _tag: "EINVAL" })
          yield* readAt(0)
          // What this call found is a change to those who listen, also where nothing has changed.
          expect(changes).toStrictEqual([4 * MiB])
          return
        }

        const told = Effect.forkScoped(Stream.runCollect(Stream.take(disk.configChanges, 1)), {
          startImmediately: true
        })
        const larger = yield* told
        yield* resize(8 * MiB)
        expect(yield* Fiber.join(larger)).toMatchObject([{ capacity: 8 * MiB }])
        expect(disk.capacity).toBe(8 * MiB)
        expect(yield* disk.properties.get("capacity")).toBe(8 * MiB)
        region.bytes.fill(9)
        yield* disk.queue(0).write(8 * MiB - 4 * KiB, region.bytes)
        yield* readAt(8 * MiB - 4 * KiB)
        expect(yield* Effect.flip(readAt(8 * MiB))).toMatchObject({ _tag: "EINVAL" })

        const smaller = yield* told
        yield* resize(2 * MiB)
        expect(yield* Fiber.join(smaller)).toMatchObject([{ capacity: 2 * MiB }])
        expect(yield* Effect.flip(readAt(2 * MiB))).toMatchObject({ _tag: "EINVAL" })
        yield* readAt(2 * MiB - 4 * KiB)
        expect((yield* disk.refresh).capacity).toBe(2 * MiB)
        expect(changes).toContain(8 * MiB)
        expect(changes.at(-1)).toBe(2 * MiB)
      })
  )

  onBackend("under load loses no request", () =>
    Effect.gen(function*() {
      const { resize, socketPath } = yield* serveRaw(backend, 4 * MiB)
      const disk = yield* open(socketPath)
      const region = yield* disk.allocate(4 * KiB)
      const read = { _tag: "read", offset: 0, buffer: region.bytes } as const
      const reading = yield* Effect.forkScoped(
        disk.queue(0).process(Stream.fromIterable(Array.from({ length: 20_000 }, () => read))).pipe(
          Stream.runFold(() => 0, (count, { error }) => count + (error === undefined ? 1 : 0))
        ),
        { startImmediately: true }
      )
      for (const size of [8, 4, 16, 2, 4]) yield* resize(size * MiB)
      expect(yield* Fiber.join(reading)).toBe(20_000)
    }))
})
