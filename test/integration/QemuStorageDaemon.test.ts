/**
 * Goal: a daemon is there when `make` answers, and gone, with everything of it, when its Scope has closed.
 * Method: the real qemu-storage-daemon, looked at from outside: /proc, the file system, its sockets, qemu-io.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it, layer } from "@effect/vitest"
import { Effect, Exit, Fiber, FileSystem, Path, Schedule, Scope, Stream } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import * as Net from "node:net"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { withVariable } from "../support/environment.ts"
import { requirement } from "../support/requirement.ts"
import { qsdIsHere } from "./requirement.ts"

const MiB = 1024 * 1024
const nullDisk = { image: { _tag: "null-co", size: MiB, readZeroes: true } } as const

/** A folder of the test's own. */
const temporaryFolder = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "qsd-test-" }))

const withTemporaryFolder = (folder: string) => withVariable("TMPDIR", folder)

const imageIn = Effect.fnUntraced(function*(folder: string, name: string) {
  return (yield* Path.Path).join(folder, name)
})

/** A connection, as a vhost-user front-end would open it. */
const connectTo = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, Error>((resume) => {
      const socket = Net.connect({ path })
      socket.once("connect", () => resume(Effect.succeed(socket)))
      socket.once("error", (error) => resume(Effect.fail(error)))
    }),
    (socket) =>
      Effect.sync(() => {
        socket.destroy()
      })
  )

/** Processes with `text` on their command line. */
const processesThatName = (text: string): ReadonlyArray<string> =>
  readdirSync("/proc").filter((pid) => {
    if (!/^\d+$/.test(pid) || pid === String(process.pid)) return false
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(text)
    } catch {
      return false // it ended meanwhile
    }
  })

describe.skipIf(!qsdIsHere)("QemuStorageDaemon", () => {
  layer(NodeServices.layer, { excludeTestServices: true })((it) => {
    it.effect("serves its exports, tells its version, and lies in a private folder", () =>
      Effect.gen(function*() {
        const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
        const daemon = yield* QemuStorageDaemon.start({
          exports: [{ ...nullDisk, numQueues: 4 }, { ...nullDisk, id: "second", writable: false }]
        })
        const program = process.env["EFFECT_BLKIO_QSD"] ?? "qemu-storage-daemon"
        expect(yield* spawner.string(ChildProcess.make(program, ["--version"]))).toContain(` ${daemon.version} `)
        expect(daemon.version).toMatch(/^\d+\.\d+\.\d+$/)
        expect(statSync(daemon.directory).mode & 0o777).toBe(0o700)
        expect(daemon.exports.map(({ id, nodeName }) => [id, nodeName])).toStrictEqual([
          ["disk0", "disk0"],
          ["second", "second"]
        ])
        expect(daemon.socketPath).toBe(daemon.exports[0].socketPath)
        for (const { socketPath } of daemon.exports) {
          expect(Buffer.byteLength(socketPath)).toBeLessThanOrEqual(107)
          yield* connectTo(socketPath)
        }
        expect(yield* daemon.stderr).toBe("")
      }))

    it.effect("leaves no process and no folder when its scope closes", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const daemon = yield* QemuStorageDaemon.start({ exports: [nullDisk] }).pipe(Scope.provide(scope))
        expect(existsSync(`/proc/${daemon.pid}`)).toBe(true)
        yield* Scope.close(scope, Exit.void)
        expect(existsSync(`/proc/${daemon.pid}`)).toBe(false)
        expect(existsSync(daemon.directory)).toBe(false)
        expect(yield* daemon.exitCode).toBe(0)
        yield* daemon.kill("SIGKILL")
      }))

    it.effect("ends a daemon that does not hear SIGTERM", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const daemon = yield* QemuStorageDaemon.start({ exports: [nullDisk] }).pipe(Scope.provide(scope))
        yield* daemon.kill("SIGSTOP")
        const start = performance.now()
        yield* Scope.close(scope, Exit.void)
        expect(performance.now() - start).toBeGreaterThan(900)
        expect(yield* daemon.exitCode).toBe(137)
        expect(existsSync(`/proc/${daemon.pid}`)).toBe(false)
        expect(existsSync(daemon.directory)).toBe(false)
      }))

    it.effect("tells of its end by a signal", () =>
      Effect.gen(function*() {
        const daemon = yield* QemuStorageDaemon.start({ exports: [nullDisk] })
        const events = yield* Effect.forkChild(Stream.runDrain(daemon.qmp.events), { startImmediately: true })
        const front = yield* connectTo(daemon.socketPath)
        const closed = Effect.callback<void>((resume) => {
          front.resume().once("close", () => resume(Effect.void))
        })
        const waiting = yield* Effect.forkChild(closed, { startImmediately: true })
        yield* daemon.kill("SIGKILL")
        expect(yield* daemon.exitCode).toBe(137)
        yield* Fiber.join(waiting)
        expect(yield* Effect.flip(Fiber.join(events))).toMatchObject({ _tag: "ENOTCONN" })
        expect(yield* Effect.flip(daemon.qmp.execute("query-version"))).toMatchObject({ _tag: "ENOTCONN" })
        expect(yield* Effect.flip(Stream.runDrain(daemon.qmp.events))).toMatchObject({ _tag: "ENOTCONN" })
        yield* daemon.kill("SIGKILL")
      }))

    it.effect("leaves nothing when it is interrupted while it starts", () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        let started = 0
        for (let delayMs = 0; delayMs <= 60; delayMs += 4) {
          const scope = yield* Scope.make()
          const starting = yield* Effect.forkChild(
            QemuStorageDaemon.start({ exports: [nullDisk] }).pipe(Scope.provide(scope), withTemporaryFolder(folder)),
            { startImmediately: true }
          )
          yield* Effect.sleep(delayMs)
          yield* Fiber.interrupt(starting)
          if (Exit.isSuccess(yield* Fiber.await(starting))) {
            started++
            yield* Scope.close(scope, Exit.void)
          }
          expect(readdirSync(folder)).toStrictEqual([])
          expect(processesThatName(folder)).toStrictEqual([])
        }
        expect(started).toBeLessThan(16)
      }))

    it.effect("leaves nothing when the process that started it is killed", () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        const owner = `
          import * as NodeServices from "@effect/platform-node/NodeServices"
          import { Effect } from "effect"
          import * as QemuStorageDaemon from ${
          JSON.stringify(new URL("../../src/QemuStorageDaemon/QemuStorageDaemon.ts", import.meta.url).href)
        }
          await Effect.runPromise(Effect.gen(function*() {
            const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "null-co", size: 512 } }] })
            console.log(daemon.pid)
            yield* daemon.kill("SIGSTOP")
            process.kill(process.pid, "SIGKILL")
          }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
        `
        const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
        const output = yield* spawner.string(
          ChildProcess.make(process.execPath, ["--input-type=module", "-e", owner], {
            env: { TMPDIR: folder },
            extendEnv: true
          })
        )
        const pid = Number(output)
        expect(pid).toBeGreaterThan(1)
        yield* Effect.sync(() => [readdirSync(folder), processesThatName(folder)].flat()).pipe(
          Effect.repeat({ schedule: Schedule.spaced("20 millis"), until: (left) => left.length === 0 }),
          Effect.timeout("10 seconds")
        )
      }))

    it.effect("an image that is not there is ENOENT, and leaves nothing", () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        const error = yield* QemuStorageDaemon.start({
          exports: [nullDisk, { image: { _tag: "raw", file: "/nowhere/disk.raw" } }]
        }).pipe(withTemporaryFolder(folder), Effect.flip)
        expect(error).toMatchObject({ _tag: "ENOENT", operation: "open", path: "/nowhere/disk.raw" })
        // The test's own scope is still open.
        expect(readdirSync(folder)).toStrictEqual([])
        expect(processesThatName(folder)).toStrictEqual([])
      }))

    it.effect("a raw file is not taken for qcow2", () =>
      Effect.gen(function*() {
        const path = yield* imageIn(yield* temporaryFolder, "disk.raw")
        yield* DiskImage.createRaw(path, MiB)
        const error = yield* Effect.flip(
          QemuStorageDaemon.start({ exports: [{ image: { _tag: "qcow2", file: path } }] })
        )
        expect(error).toMatchObject({ _tag: "EINVAL", path })
        expect(error.detail).toContain("not in qcow2 format")
      }))

    it.effect("an image that is served can be verified beside the daemon, a raw one and a qcow2", () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        const raw = yield* imageIn(folder, "odd, name=1:2.raw")
        const qcow2 = yield* imageIn(folder, "-odd, name=1:2.qcow2")
        yield* DiskImage.createRaw(raw, MiB)
        yield* DiskImage.createQcow2(qcow2, MiB)
        for (const [path, format] of [[raw, "raw"], [qcow2, "qcow2"]] as const) {
          const disk = { exports: [{ image: { _tag: format, file: path } }] } as const
          yield* DiskImage.qemuIo(path, format, ["write -P 0xa5 4096 4096"])
          yield* Effect.scoped(Effect.gen(function*() {
            yield* QemuStorageDaemon.start(disk)
            const output = yield* DiskImage.qemuIo(path, format, ["read -P 0xa5 4096 4096"], { inUse: true })
            expect(output).toContain("read 4096/4096 bytes at offset 4096")
            if (format === "qcow2") {
              // QEMU locks only images with metadata of their own.
              expect(yield* Effect.flip(QemuStorageDaemon.start(disk))).toMatchObject({ _tag: "EBUSY", path })
              expect((yield* Effect.flip(DiskImage.qemuIo(path, format, ["read 0 4096"]))).detail).toContain("lock")
            }
          }))
        }
      }))

    it.effect("reads what is read-only with a read-only export", () =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const path = yield* imageIn(yield* temporaryFolder, "disk.qcow2")
        yield* DiskImage.createQcow2(path, 4 * MiB)
        yield* fs.chmod(path, 0o444)
        const daemon = yield* QemuStorageDaemon.start({
          exports: [{ image: { _tag: "qcow2", file: path }, writable: false }],
          aio: "threads",
          cache: { noFlush: true },
          discard: "ignore"
        })
        const nodes = yield* daemon.qmp.execute("query-named-block-nodes", { flat: true })
        expect(nodes).toContainEqual(expect.objectContaining({ "node-name": "disk0", drv: "qcow2", ro: true }))
      }))

    it.effect("QMP: asks, resizes, and hears of events", () =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const path = yield* imageIn(yield* temporaryFolder, "disk.raw")
        yield* DiskImage.createRaw(path, MiB)
        const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "raw", file: path }, id: "data" }] })
        const { qmp } = daemon
        expect(yield* qmp.execute("query-version")).toMatchObject({ qemu: { major: expect.any(Number) } })
        expect(yield* qmp.queryBlockExports).toStrictEqual([
          { id: "data", type: "vhost-user-blk", nodeName: "data", shuttingDown: false }
        ])

        // QEMU 10's daemon dies of a resize that no client was there to see.
        yield* connectTo(daemon.socketPath)
        yield* qmp.execute("query-version")
        yield* qmp.blockResize(daemon.exports[0].nodeName, 3 * MiB)
        expect(Number((yield* fs.stat(path)).size)).toBe(3 * MiB)
        expect(yield* Effect.flip(qmp.blockResize("other", MiB))).toMatchObject({
          _tag: "QmpError",
          command: "block_resize",
          class: "GenericError",
          desc: expect.stringContaining("other")
        })
        expect(yield* Effect.flip(qmp.execute("no-such-command"))).toMatchObject({
          _tag: "QmpError",
          class: "CommandNotFound"
        })

        const deleted = yield* Effect.forkChild(
          qmp.events.pipe(
            Stream.filter(({ event }) => event === "BLOCK_EXPORT_DELETED"),
            Stream.take(1),
            Stream.runCollect
          ),
          { startImmediately: true }
        )
        yield* qmp.execute("block-export-del", { id: "data", mode: "hard" })
        expect(yield* Fiber.join(deleted)).toMatchObject([{ data: { id: "data" } }])
        expect(yield* qmp.queryBlockExports).toStrictEqual([])
      }))

    it.effect("QMP: many commands at once are answered each with its own", () =>
      Effect.gen(function*() {
        const { qmp } = yield* QemuStorageDaemon.start({ exports: [nullDisk] })
        const answers = yield* Effect.forEach(
          Array.from({ length: 50 }, (_, index) => index),
          (index) =>
            index % 2 === 0
              ? qmp.execute("query-qmp-schema").pipe(
                Effect.map((schema) => Array.isArray(schema) && schema.length > 100)
              )
              : qmp.blockResize(`node${index}`, MiB).pipe(
                Effect.flip,
                Effect.map((error) => error.message.includes(`'node${index}'`))
              ),
          { concurrency: "unbounded" }
        )
        expect(answers).toStrictEqual(answers.map(() => true))
      }))

    it.effect("two daemons stand side by side", () =>
      Effect.gen(function*() {
        const daemons = yield* Effect.forEach([1, 2], () => QemuStorageDaemon.start({ exports: [nullDisk] }), {
          concurrency: "unbounded"
        })
        expect(new Set(daemons.map(({ directory }) => directory)).size).toBe(2)
        expect(new Set(daemons.map(({ pid }) => pid)).size).toBe(2)
      }))
  })

  const program = QemuStorageDaemon.QemuStorageDaemon.use(({ daemon }) => daemon)
  const Disk = QemuStorageDaemon.layer(nullDisk.image)

  it.live("is a service that ends with its layer", () =>
    Effect.gen(function*() {
      const { directory, pid } = yield* program.pipe(Effect.provide(Disk))
      expect(existsSync(`/proc/${pid}`)).toBe(false)
      expect(existsSync(directory)).toBe(false)
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("is available", () =>
    Effect.gen(function*() {
      expect(yield* QemuStorageDaemon.available).toBe(true)
      expect(yield* requirement).toBe(true)
    }).pipe(Effect.provide(NodeServices.layer)))
})
