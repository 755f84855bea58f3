/**
 * Goal: a disk of an NBD server is a disk like another: slow, it is waited for; failing, it fails single requests; gone, it is waited for
 * as long as `reconnectDelay` says, and after that fails requests until it is back. Nothing that is read is ever wrong.
 * Method: nbdkit with its filters `delay` and `error`, killed, stopped and started again, over TCP and unix sockets; qcow2 over it.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Fiber, Schedule } from "effect"
import { rmSync, writeFileSync } from "node:fs"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { nbdkitIsHere, type Place, start } from "../chaos/nbdkit.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { freePort } from "../support/freePort.ts"
import {
  convert,
  createQcow2,
  hash,
  hashThrough,
  makeContent,
  makeFolder,
  makeRaw,
  openTransport,
  refusal,
  sha256
} from "../support/images.ts"

const uriOf = (place: Place) =>
  "socket" in place ? `nbd+unix:///?socket=${encodeURIComponent(place.socket)}` : `nbd://127.0.0.1:${place.port}`

const placeIn = (kind: string, folder: string): Effect.Effect<Place> =>
  kind === "TCP" ? Effect.map(freePort, (port) => ({ port })) : Effect.succeed({ socket: `${folder}/nbd, 1.sock` })

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkScoped(effect, { startImmediately: true })

describe.skipIf(!nbdkitIsHere)("a disk of an NBD server", () => {
  for (const kind of ["TCP", "unix"]) {
    onBackend(`over ${kind} has the same content, raw and in qcow2, read and written`, () =>
      Effect.gen(function*() {
        const { content, expected, folder, raw } = yield* makeRaw()
        const place = yield* placeIn(kind, folder)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* start(raw, place)
          const image = { _tag: "nbd", uri: uriOf(place) } as const
          expect(yield* hashThrough(image)).toBe(expected)
          yield* Effect.scoped(Effect.gen(function*() {
            const disk = yield* QemuStorageDaemon.make(image)
            content.fill(9, MiB, 2 * MiB)
            yield* disk.writeBytes(MiB, content.subarray(MiB, 2 * MiB))
            yield* disk.flush
          }))
        }))
        expect(yield* hashThrough(raw)).toBe(sha256(content))
        const qcow2 = `${folder}/disk.qcow2`
        yield* convert(raw, "qcow2", qcow2)
        yield* start(qcow2, place)
        expect(yield* hashThrough({ _tag: "qcow2", file: { _tag: "nbd", uri: uriOf(place) } })).toBe(sha256(content))
      }))
  }

  onBackend("opens no file of this host that a qcow2 image there names", () =>
    Effect.gen(function*() {
      const folder = yield* makeFolder
      const path = `${folder}/there.qcow2`
      const place = { socket: `${folder}/nbd.sock` }
      const uri = uriOf(place)
      yield* createQcow2("-o", `data_file=${folder}/data`, path, "1M")
      yield* Effect.scoped(Effect.gen(function*() {
        yield* start(path, place)
        expect(yield* refusal({ _tag: "qcow2", file: { _tag: "nbd", uri } })).toMatchObject({
          _tag: "EINVAL",
          path: uri
        })
      }))
      // A relative name would be one of the server's.
      writeFileSync(`${folder}/base`, Buffer.alloc(MiB))
      yield* createQcow2("-b", "base", "-F", "raw", path)
      yield* start(path, place)
      expect(yield* refusal({ _tag: "qcow2", file: { _tag: "nbd", uri } })).toMatchObject({ _tag: "EINVAL", path: uri })
    }))

  onBackend("that takes its time is waited for", () =>
    Effect.gen(function*() {
      const { content, folder, raw } = yield* makeRaw()
      const place = { socket: `${folder}/nbd.sock` }
      yield* start(raw, place, ["delay"], ["rdelay=100ms", "wdelay=100ms"])
      const disk = yield* QemuStorageDaemon.make({ _tag: "nbd", uri: uriOf(place) })
      yield* disk.writeBytes(0, new Uint8Array(4096).fill(3))
      content.fill(3, 0, 4096)
      expect(yield* hash(disk)).toBe(sha256(content))
    }))

  onBackend("that fails fails those requests with EIO, until it is well again", () =>
    Effect.gen(function*() {
      const { content, folder, raw } = yield* makeRaw()
      const place = { socket: `${folder}/nbd.sock` }
      const ill = `${folder}/ill`
      yield* start(raw, place, ["error"], ["error=ENOSPC", "error-rate=100%", `error-file=${ill}`])
      const disk = yield* QemuStorageDaemon.make({ _tag: "nbd", uri: uriOf(place) })
      writeFileSync(ill, "")
      expect(yield* Effect.flip(disk.readBytes(0, 512))).toMatchObject({ _tag: "EIO" })
      expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(512)))).toMatchObject({ _tag: "EIO" })
      rmSync(ill)
      expect(yield* hash(disk)).toBe(sha256(content))
    }))

  for (const kind of ["TCP", "unix"]) {
    onBackend(
      `over ${kind} that is killed and comes back in time is waited for: nothing fails`,
      () =>
        Effect.gen(function*() {
          const { folder, raw } = yield* makeRaw()
          const place = yield* placeIn(kind, folder)
          const first = yield* start(raw, place, ["delay"], ["wdelay=5ms"])
          const disk = yield* QemuStorageDaemon.make({ _tag: "nbd", uri: uriOf(place), reconnectDelay: 60 })
          const content = makeContent(5)
          const writing = yield* fork(disk.writeBytes(0, content))
          yield* Effect.sleep("20 millis")
          yield* first.kill
          const reading = yield* fork(disk.readBytes(0, 512))
          yield* Effect.sleep("200 millis")
          yield* start(raw, place)
          yield* Fiber.join(writing)
          yield* Fiber.join(reading)
          expect(yield* hash(disk)).toBe(sha256(content))
          yield* disk.flush
        })
    )
  }

  onBackend(
    "that is killed fails requests with EIO where nothing is to be waited for, and serves them when it is back",
    () =>
      Effect.gen(function*() {
        const { expected, folder, raw } = yield* makeRaw()
        const place = { socket: `${folder}/nbd.sock` }
        const first = yield* start(raw, place)
        const { daemon, disk, pid } = yield* openTransport({ _tag: "nbd", uri: uriOf(place) })
        expect(yield* hash(disk)).toBe(expected)
        yield* first.kill
        expect(yield* Effect.flip(disk.readBytes(0, 512))).toMatchObject({ _tag: "EIO" })
        expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(512)))).toMatchObject({ _tag: "EIO" })
        yield* start(raw, place)
        // The daemon's client may have to find out by a request that is lost.
        yield* Effect.retry(disk.readBytes(0, 512), { times: 100, schedule: Schedule.spaced(100) })
        expect(yield* hash(disk)).toBe(expected)
        // It was the same daemon all the time.
        expect((yield* daemon).pid).toBe(pid)
      })
  )

  onBackend(
    "that falls silent has the device wait, or count as lost after deviceTimeout: then it is opened anew",
    () =>
      Effect.gen(function*() {
        const { expected, folder, raw } = yield* makeRaw()
        const place = { socket: `${folder}/nbd.sock` }
        const server = yield* start(raw, place)
        const { disk, pid, daemon } = yield* openTransport({ _tag: "nbd", uri: uriOf(place) }, {
          restart: Schedule.spaced("50 millis"),
          startTimeout: "1 second",
          stopTimeout: "300 millis",
          device: { deviceTimeout: "500 millis" }
        })
        yield* server.stop
        const reading = yield* fork(hash(disk))
        yield* Effect.sleep("2 seconds")
        expect(reading.pollUnsafe()).toBe(undefined)
        yield* server.goOn
        expect(yield* Fiber.join(reading)).toBe(expected)
        expect((yield* daemon).pid).not.toBe(pid)
      })
  )

  onBackend("that falls silent before it is opened is ETIMEDOUT", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const place = { socket: `${folder}/nbd.sock` }
      const server = yield* start(raw, place)
      yield* server.stop
      const error = yield* refusal({ _tag: "nbd", uri: uriOf(place) }, {
        startTimeout: "1 second",
        stopTimeout: "300 millis"
      })
      expect(error).toMatchObject({ _tag: "ETIMEDOUT" })
      yield* server.goOn
    }))
})
