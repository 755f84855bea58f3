/**
 * Goal: faults and delays of a disk far away arrive as what they are: errors of single requests, silence, or just time; and when
 * they are over, all goes on.
 * Method: nbdkit with its filters `error` and `delay` behind the daemon's NBD client, and nbdkit killed and started again.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { rmSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import { DiskImage } from "../../src/testing/index.ts"
import { imagePath, onBackend, open, serve, withSeed } from "../support/daemon.ts"
import { exportNode } from "../support/daemonNode.ts"
import { BLOCK_BYTES } from "./Blocks.ts"
import { Findings } from "./Findings.ts"
import * as Workers from "./Workers.ts"
import { exercise } from "./exercise.ts"
import { nbdkitIsHere, start } from "./nbdkit.ts"

const BLOCKS = 256

/** An image, and a folder that goes with it. */
const makeImage = Effect.gen(function*() {
  const image = yield* imagePath("disk.raw")
  yield* DiskImage.createRaw(image, BLOCKS * BLOCK_BYTES)
  return { image, folder: dirname(image), socket: `${dirname(image)}/nbd.sock` }
})

/** Has a daemon pass on what is served at a socket, and opens that. */
const openPassedOn = Effect.fnUntraced(function*(socket: string, options: Parameters<typeof open>[1] = {}) {
  const daemon = yield* serve({ exports: [{ image: { _tag: "null-co", size: BLOCK_BYTES } }] })
  const { socketPath } = yield* exportNode(
    daemon,
    "remote",
    { driver: "nbd", server: { type: "unix", path: socket } },
    { numQueues: Workers.QUEUES }
  )
  return yield* open(socketPath, { ...Workers.options, ...options })
})

describe.skipIf(!nbdkitIsHere)("a disk far away", () => {
  for (const errno of ["EIO", "ENOSPC", "EPERM"]) {
    onBackend(
      `that fails some of everything with ${errno} fails those requests with EIO, until it is well again`,
      () =>
        withSeed(Effect.fnUntraced(function*(below) {
          const { folder, image, socket } = yield* makeImage
          // There are errors as long as this file is there.
          const trigger = `${folder}/ill`
          yield* start(image, { socket }, ["error"], [`error=${errno}`, "error-rate=5%", `error-file=${trigger}`])
          const disk = yield* openPassedOn(socket)
          writeFileSync(trigger, "")
          const findings = new Findings()
          let failed = 0
          yield* exercise(disk, findings, {
            seed: below(2 ** 32),
            blocks: BLOCKS,
            load: Workers.heavy,
            writes: 1000,
            isExpected: (_operation, { _tag }) => _tag === "EIO",
            afterwards: Effect.sync(() => {
              rmSync(trigger)
              failed = findings.failures.size
            })
          })
          expect(findings.faults).toStrictEqual([])
          expect(failed).toBeGreaterThan(0)
        }))
    )
  }

  onBackend("that takes its time is waited for", () =>
    withSeed(Effect.fnUntraced(function*(below) {
      const { image, socket } = yield* makeImage
      yield* start(image, { socket }, ["delay"], ["rdelay=20ms", "wdelay=30ms"])
      const disk = yield* openPassedOn(socket)
      const findings = new Findings()
      yield* exercise(disk, findings, {
        seed: below(2 ** 32),
        blocks: BLOCKS,
        load: Workers.heavy,
        writes: 100,
        isExpected: () => false
      })
      expect(findings.faults).toStrictEqual([])
    })))

  onBackend(
    "that takes more than the device may be silent for has the device count as dead: ETIMEDOUT",
    () =>
      Effect.gen(function*() {
        const { image, socket } = yield* makeImage
        yield* start(image, { socket }, ["delay"], ["wdelay=3"])
        const disk = yield* openPassedOn(socket, { deviceTimeout: "300 millis", closeTimeout: "100 millis" })
        const { bytes } = yield* disk.allocate(BLOCK_BYTES)
        yield* disk.queue(0).read(0, bytes)
        expect(yield* Effect.flip(disk.queue(0).write(0, bytes))).toMatchObject({ _tag: "ETIMEDOUT" })
      })
  )

  onBackend("that goes away fails requests with EIO, and serves them when it is back", () =>
    Effect.gen(function*() {
      const { image, socket } = yield* makeImage
      const first = yield* start(image, { socket })
      const disk = yield* openPassedOn(socket)
      const { bytes } = yield* disk.allocate(BLOCK_BYTES)
      const write = disk.queue(0).write(0, bytes.fill(7))
      yield* write
      yield* first.kill
      expect(yield* Effect.flip(write)).toMatchObject({ _tag: "EIO" })
      expect(yield* Effect.flip(disk.queue(1).read(0, bytes))).toMatchObject({ _tag: "EIO" })
      rmSync(socket, { force: true })
      yield* start(image, { socket })
      // The daemon's client may have to find out by a request that is lost.
      yield* Effect.retry(write, { times: 20, schedule: Schedule.spaced(100) })
      yield* disk.queue(1).read(0, bytes.fill(0))
      expect(bytes.every((byte) => byte === 7)).toBe(true)
    }))
})
