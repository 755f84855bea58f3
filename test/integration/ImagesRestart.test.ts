/**
 * Goal: a disk whose daemon is killed or hangs goes on with the next one, and loses nothing that it has called stable; where none is to
 * come, or none comes, the device is lost with one typed error, in bounded time.
 * Method: the real daemon, killed and stopped while requests are in flight; programs that start it once and then no more.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Exit, Fiber, Option, Schedule, Scope, Stream } from "effect"
import { chmodSync, existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import type { ConnectionState, Device } from "../../src/BlockDevice.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { KiB, MiB, mustEnd, onBackend, withSeed } from "../support/daemon.ts"
import { withVariable } from "../support/environment.ts"
import {
  convert,
  createQcow2,
  hash,
  makeContent,
  makeFolder,
  makeRaw,
  openTransport,
  run,
  sha256,
  SIZE
} from "../support/images.ts"
import { qsdIsHere } from "./requirement.ts"

const soon = Schedule.spaced("20 millis")
const PIECE = 64 * KiB

const reaches = (disk: Device, state: ConnectionState["_tag"]) =>
  Effect.map(
    Stream.runHead(Stream.filter(disk.connectionStates, ({ _tag }) => _tag === state)),
    Option.getOrThrow
  )

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkScoped(effect, { startImmediately: true })

/** A program that is the daemon as long as a file is there, and after that ends at once. */
const daemonWhile = Effect.fnUntraced(function*() {
  const folder = yield* makeFolder
  const [binary, working, starts] = [`${folder}/qsd`, `${folder}/working`, `${folder}/starts`] as const
  const daemon = process.env["EFFECT_BLKIO_QSD"] ?? "qemu-storage-daemon"
  writeFileSync(working, "")
  writeFileSync(starts, "")
  writeFileSync(
    binary,
    `#!/bin/sh\necho >> ${starts}\ntest -e ${working} && exec ${daemon} "$@"\necho not today >&2\nexit 1\n`
  )
  chmodSync(binary, 0o755)
  return {
    binary,
    breakIt: Effect.sync(() => renameSync(working, `${folder}/broken`)),
    starts: () => readFileSync(starts, "utf8").length
  }
})

describe.skipIf(!qsdIsHere)("a daemon that is killed", () => {
  for (const format of ["raw", "qcow2", "vdi"] as const) {
    onBackend(
      `while a ${format} image is read and written has all answered and nothing lost`,
      () =>
        withSeed(Effect.fnUntraced(function*(below) {
          const { expected, folder, raw } = yield* makeRaw()
          const path = `${folder}/copy.${format}`
          yield* convert(raw, format, path)
          const content = makeContent(below(2 ** 31))
          const { daemon, disk } = yield* openTransport(path, { restart: soon })
          expect(yield* hash(disk)).toBe(expected)
          const pids = new Set<number>()
          // Writes all of it again and again, and reads it beside that.
          const order = Array.from({ length: SIZE / PIECE }, (_, piece) => piece * PIECE)
          const killing = yield* fork(Effect.gen(function*() {
            for (let kills = 0; kills < 5; kills++) {
              yield* Effect.sleep(below(120))
              yield* daemon.pipe(
                Effect.tap(({ kill, pid }) => {
                  pids.add(pid)
                  return kill("SIGKILL")
                }),
                Effect.retry(soon)
              )
            }
          }))
          const pass = Effect.forEach(
            order,
            (at) =>
              Effect.all([
                disk.writeBytes(at, content.subarray(at, at + PIECE)),
                disk.readBytes(below(SIZE / PIECE) * PIECE, PIECE)
              ], { concurrency: 2 }),
            { concurrency: 8, discard: true }
          )
          yield* Effect.repeat(pass, { until: () => killing.pollUnsafe() !== undefined })
          yield* Fiber.join(killing)
          expect(pids.size).toBeGreaterThan(1)
          // What may be lost is told of by a flush, and is written again.
          yield* Effect.retry(disk.flush, { times: 1 }).pipe(Effect.catchTag("EIO", () => Effect.void))
          yield* pass
          yield* disk.flush
          expect(yield* hash(disk)).toBe(sha256(content))
          const { kill, exitCode } = yield* daemon
          yield* kill("SIGKILL")
          yield* exitCode
          expect(yield* hash(disk)).toBe(sha256(content))
        }))
    )
  }

  onBackend("leaves a qcow2 image in order, once it is closed", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const path = `${folder}/disk.qcow2`
      yield* createQcow2(path, String(SIZE))
      const content = readFileSync(raw)
      yield* Effect.scoped(Effect.gen(function*() {
        const { daemon, disk } = yield* openTransport({ _tag: "qcow2", file: path, lazyRefcounts: true }, {
          restart: soon
        })
        for (let at = 0; at < SIZE; at += MiB) {
          yield* Effect.all([
            disk.writeBytes(at, content.subarray(at, at + MiB)),
            Effect.flatMap(Effect.retry(daemon, soon), ({ kill }) => kill("SIGKILL"))
          ], { concurrency: 2 })
        }
        yield* Effect.ignore(disk.flush)
        yield* disk.writeBytes(0, content)
        yield* disk.flush
      }))
      yield* run("qemu-img", "check", "-f", "qcow2", path)
      yield* run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, path)
    }))

  onBackend(
    "fails the next flush where the format keeps writes to itself, and that one alone",
    () =>
      Effect.gen(function*() {
        const { folder, raw } = yield* makeRaw()
        for (const [format, failures] of [["raw", 0], ["qcow2", 1], ["vmdk", 1], ["vhdx", 1]] as const) {
          const path = `${folder}/flush.${format}`
          yield* convert(raw, format, path)
          yield* Effect.scoped(Effect.gen(function*() {
            const { daemon, disk } = yield* openTransport(path, { restart: soon })
            const lose = Effect.gen(function*() {
              const { exitCode, kill } = yield* daemon
              yield* kill("SIGKILL")
              yield* exitCode
              yield* disk.readBytes(0, 512)
            })
            const flushes = Effect.forEach(
              [1, 2, 3],
              () => Effect.match(disk.flush, { onFailure: ({ _tag }) => _tag, onSuccess: () => "done" })
            )
            // All that was written is stable: nothing can be lost.
            yield* disk.writeBytes(0, new Uint8Array(4096).fill(1))
            yield* disk.flush
            yield* lose
            expect([format, ...yield* flushes]).toStrictEqual([format, "done", "done", "done"])
            yield* disk.writeBytes(0, new Uint8Array(4096).fill(2))
            yield* lose
            expect([format, ...yield* flushes]).toStrictEqual(
              [format, "EIO", "done", "done"].with(1, failures === 0 ? "done" : "EIO")
            )
          }))
        }
      })
  )

  onBackend("is the end where nothing is to be started again", () =>
    Effect.gen(function*() {
      const { raw } = yield* makeRaw()
      const { daemon, disk } = yield* openTransport(raw, { restart: "never" })
      const { kill } = yield* daemon
      yield* kill("SIGSTOP")
      const reading = yield* fork(Effect.flip(disk.readBytes(0, 512)))
      yield* kill("SIGKILL")
      expect(yield* Fiber.join(reading)).toMatchObject({ _tag: "ENOTCONN" })
      expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(512)))).toMatchObject({ _tag: "ENOTCONN" })
      expect(yield* Effect.flip(disk.flush)).toMatchObject({ _tag: "ENOTCONN" })
    }))

  for (
    const [name, restart] of [
      ["the schedule ends", Schedule.upTo(Schedule.spaced("10 millis"), { times: 3 })],
      ["the time is over", { schedule: Schedule.spaced("10 millis"), within: "1 second" }]
    ] as const
  ) {
    onBackend(`and comes back as one that ends at once is given up when ${name}`, () =>
      Effect.gen(function*() {
        const { raw } = yield* makeRaw()
        const { binary, breakIt, starts } = yield* daemonWhile()
        const { daemon, disk } = yield* openTransport(raw, { restart, binary })
        yield* breakIt
        yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGKILL"))
        const error = yield* Effect.flip(disk.readBytes(0, 512))
        expect(error).toMatchObject({ _tag: "ENOTCONN" })
        expect(error.message).toContain("did not come back")
        expect(yield* reaches(disk, "failed")).toMatchObject({ failure: { _tag: "ENOTCONN" } })
        expect(yield* Effect.flip(disk.flush)).toMatchObject({ _tag: "ENOTCONN" })
        expect(yield* Effect.flip(daemon)).toMatchObject({ _tag: "ENOTCONN" })
        const tried = starts()
        expect(tried).toBeGreaterThan(1)
        yield* Effect.sleep("200 millis")
        expect(starts()).toBe(tried)
      }))
  }

  onBackend("and whose image is gone meanwhile is given up: the error says why", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const { daemon, disk } = yield* openTransport(raw, { restart: { schedule: soon, within: "1 second" } })
      renameSync(raw, `${folder}/elsewhere`)
      yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGKILL"))
      const error = yield* Effect.flip(disk.readBytes(0, 512))
      expect(error).toMatchObject({ _tag: "ENOTCONN" })
      expect(error.message).toContain(raw)
      expect(error.message).toMatch(/No such file/u)
    }))

  onBackend("and whose image comes back goes on", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      const { daemon, disk } = yield* openTransport(raw, { restart: soon })
      renameSync(raw, `${folder}/elsewhere`)
      yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGKILL"))
      const reading = yield* fork(hash(disk))
      yield* Effect.sleep("300 millis")
      renameSync(`${folder}/elsewhere`, raw)
      expect(yield* Fiber.join(reading)).toBe(expected)
    }))

  onBackend("as its device closes, or before the next one stands, leaves nothing", () =>
    Effect.gen(function*() {
      const { raw } = yield* makeRaw()
      const temporary = yield* makeFolder
      for (let delayMs = 0; delayMs < 200; delayMs += 25) {
        const scope = yield* Scope.make()
        const { daemon, disk } = yield* openTransport(raw, { restart: soon }).pipe(
          Scope.provide(scope),
          withVariable("TMPDIR", temporary)
        )
        yield* withVariable("TMPDIR", temporary)(Effect.gen(function*() {
          const { kill, pid } = yield* daemon
          yield* kill("SIGKILL")
          const reading = yield* Effect.forkChild(Effect.exit(disk.readBytes(0, 512)), { startImmediately: true })
          yield* Effect.sleep(delayMs)
          yield* Effect.ignore(daemon)
          yield* Scope.close(scope, Exit.void)
          yield* Fiber.join(reading)
          expect(existsSync(`/proc/${pid}`)).toBe(false)
        }))
        expect(readdirSync(temporary)).toStrictEqual([])
      }
    }))
})

describe.skipIf(!qsdIsHere)("a daemon that hangs", () => {
  onBackend(
    "is killed once the device has been silent for too long, and the next one answers",
    () =>
      Effect.gen(function*() {
        const { expected, raw } = yield* makeRaw()
        const { daemon, disk, pid } = yield* openTransport(raw, {
          restart: soon,
          stopTimeout: "300 millis",
          device: { deviceTimeout: "1 second" }
        })
        yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGSTOP"))
        expect(yield* hash(disk)).toBe(expected)
        expect(existsSync(`/proc/${pid}`)).toBe(false)
        const next = yield* daemon
        mustEnd(next.pid)
        expect(next.pid).not.toBe(pid)
        expect(existsSync(next.directory)).toBe(true)
      })
  )
})

describe.skipIf(!qsdIsHere)("a layer", () => {
  onBackend("of its own stands beside others, and its daemon can be asked", () =>
    Effect.gen(function*() {
      const hashes = yield* Effect.forEach([1, 2, 3], (seed) =>
        Effect.gen(function*() {
          const { expected, raw } = yield* makeRaw(seed)
          const program = Effect.gen(function*() {
            const disk = yield* QemuStorageDaemon.make(raw)
            return yield* hash(disk)
          })
          const nodes = QemuStorageDaemon.QemuStorageDaemon.use(({ daemon }) =>
            Effect.flatMap(daemon, ({ qmp }) => qmp.queryBlockExports)
          )
          const found = yield* Effect.provide(
            Effect.all([Effect.scoped(program), nodes], { concurrency: 2 }),
            QemuStorageDaemon.layer(raw, { readOnly: true })
          )
          expect(found[1]).toHaveLength(1)
          return found[0] === expected
        }), { concurrency: 3 })
      expect(hashes).toStrictEqual([true, true, true])
    }))
})
