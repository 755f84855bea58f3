/**
 * Goal: jobs of the real daemon do what they say while the disk is in use, and end as they should when something goes wrong:
 * an error of the disk, an interruption, the daemon's death.
 * Method: images served by the real daemon and written through this library; what comes of it is compared by qemu-img.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Fiber, Path, Stream } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { DiskImage } from "../../src/testing/index.ts"
import { imagePath, KiB, MiB, onBackend, open, serve } from "../support/daemon.ts"
import { qsdIsHere } from "./requirement.ts"

const size = 32 * MiB

/** A daemon with a full qcow2 image as node `disk0`, a device on it, and a way to make more images. */
const fullDisk = Effect.fnUntraced(function*() {
  const path = yield* imagePath("disk.qcow2")
  yield* DiskImage.createQcow2(path, size)
  yield* DiskImage.qemuIo(path, "qcow2", [`write -P 0x5a 0 ${size}`])
  const daemon = yield* serve({ exports: [{ image: { _tag: "qcow2", file: path } }] })
  const { qmp } = daemon
  const folder = (yield* Path.Path).dirname(path)
  /** Makes an image by the daemon itself, and a node of it. */
  const addTarget = Effect.fnUntraced(function*(name: string) {
    const filename = `${folder}/${name}.qcow2`
    yield* Stream.runDrain(qmp.blockdevCreate({ options: { driver: "file", filename, size: 0 } }))
    yield* qmp.blockdevAdd({ "node-name": `${name}-file`, driver: "file", filename })
    yield* Stream.runDrain(qmp.blockdevCreate({ options: { driver: "qcow2", file: `${name}-file`, size } }))
    yield* qmp.blockdevAdd({ "node-name": name, driver: "qcow2", file: `${name}-file` })
    return filename
  })
  return { ...daemon, path, addTarget }
})

/** Whether two images hold the same, as qemu-img sees it. */
const identical = Effect.fnUntraced(function*(a: string, b: string) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  return (yield* spawner.exitCode(ChildProcess.make("qemu-img", ["compare", "--force-share", a, b]))) === 0
})

/** Slow enough to be met in the middle, in bytes a second. */
const slow = 4 * MiB

describe.skipIf(!qsdIsHere)("QMP jobs", () => {
  onBackend("two backups at once: progress of each, both identical, nothing left", () =>
    Effect.gen(function*() {
      const { addTarget, path, qmp } = yield* fullDisk()
      const names = ["one", "two"]
      const filenames = yield* Effect.forEach(names, addTarget)
      const progress = yield* Effect.forEach(
        names,
        (target) => Stream.runCollect(qmp.blockdevBackup({ device: "disk0", target, sync: "full", speed: 16 * MiB })),
        { concurrency: "unbounded" }
      )
      for (const jobs of progress) {
        expect(new Set(jobs.map(({ id }) => id)).size).toBe(1)
        expect(jobs.length).toBeGreaterThan(2)
        const done = jobs.map(({ currentProgress }) => currentProgress)
        expect(done).toStrictEqual(done.toSorted((a, b) => a - b))
        expect(jobs.at(-1)).toMatchObject({ type: "backup", status: "concluded", currentProgress: size })
      }
      expect(yield* qmp.queryJobs).toStrictEqual([])
      for (const [index, name] of names.entries()) {
        yield* qmp.blockdevDel({ nodeName: name })
        expect(yield* identical(path, filenames[index] ?? "")).toBe(true)
      }
    }))

  onBackend(
    "a backup holds the disk as it was when it began, though that is written to meanwhile",
    () =>
      Effect.gen(function*() {
        const { addTarget, qmp, socketPath } = yield* fullDisk()
        const filename = yield* addTarget("copy")
        const disk = yield* open(socketPath)
        let written = false
        yield* qmp.blockdevBackup({ device: "disk0", target: "copy", sync: "full", speed: 16 * MiB }).pipe(
          Stream.runForEach(({ status }) => {
            if (written || status === "concluded") return Effect.void
            written = true
            return disk.writeBytes(size - MiB, new Uint8Array(MiB).fill(1))
          })
        )
        expect(written).toBe(true)
        expect((yield* disk.readBytes(size - MiB, 512))[0]).toBe(1)
        yield* qmp.blockdevDel({ nodeName: "copy" })
        yield* DiskImage.qemuIo(filename, "qcow2", [`read -P 0x5a 0 ${size}`])
      })
  )

  onBackend(
    "a mirror that is completed takes the place of its source, with what was written meanwhile",
    () =>
      Effect.gen(function*() {
        const { addTarget, path, qmp, socketPath } = yield* fullDisk()
        const filename = yield* addTarget("new")
        const disk = yield* open(socketPath)
        const write = (at: number, value: number) => disk.writeBytes(at, new Uint8Array(64 * KiB).fill(value))
        const statuses: Array<string> = []
        yield* qmp.blockdevMirror({ device: "disk0", target: "new", sync: "full" }, { whenReady: "wait" }).pipe(
          Stream.runForEach(({ id, status }) =>
            Effect.gen(function*() {
              if (status === "ready" && !statuses.includes("ready")) {
                yield* write(MiB, 7)
                yield* qmp.jobComplete({ id })
              }
              statuses.push(status)
            })
          )
        )
        expect(statuses).toContain("ready")
        expect(statuses.at(-1)).toBe("concluded")
        yield* write(2 * MiB, 8)
        yield* disk.flush
        // The source has what was written before, the target what was written after too.
        const inUse = { inUse: true }
        yield* DiskImage.qemuIo(path, "qcow2", [`read -P 7 1M 64K`, `read -P 0x5a 2M 64K`], inUse)
        yield* DiskImage.qemuIo(filename, "qcow2", [`read -P 7 1M 64K`, `read -P 8 2M 64K`], inUse)
      })
  )

  onBackend(
    "a mirror that is ended when it is ready leaves a copy, and its source in use",
    () =>
      Effect.gen(function*() {
        const { addTarget, path, qmp, socketPath } = yield* fullDisk()
        const filename = yield* addTarget("copy")
        const disk = yield* open(socketPath)
        let ended = false
        yield* qmp.blockdevMirror({ device: "disk0", target: "copy", sync: "full" }, { whenReady: "wait" }).pipe(
          Stream.runForEach(({ id, status }) => {
            if (ended || status !== "ready") return Effect.void
            ended = true
            return qmp.blockJobCancel({ device: id })
          })
        )
        expect(ended).toBe(true)
        yield* disk.writeBytes(0, new Uint8Array(64 * KiB).fill(9))
        yield* disk.flush
        yield* DiskImage.qemuIo(path, "qcow2", ["read -P 9 0 64K"], { inUse: true })
        yield* DiskImage.qemuIo(filename, "qcow2", [`read -P 0x5a 0 ${size}`], { inUse: true })
      })
  )

  onBackend("a target that is full is a JobError that says so, and the daemon goes on", () =>
    Effect.gen(function*() {
      const { addTarget, qmp, socketPath } = yield* fullDisk()
      yield* addTarget("rest")
      yield* qmp.blockdevAdd({
        "node-name": "full",
        "driver": "blkdebug",
        "image": "rest",
        "inject-error": [{ "event": "none", "iotype": "write", "errno": 28, "sector": 4096, "once": false }]
      })
      const backup = qmp.blockdevBackup({ device: "disk0", target: "full", sync: "full" })
      expect(yield* Effect.flip(Stream.runDrain(backup))).toMatchObject({
        _tag: "JobError",
        type: "backup",
        desc: "No space left on device"
      })
      expect(yield* qmp.queryJobs).toStrictEqual([])
      const error = yield* Effect.flip(Stream.runDrain(qmp.blockdevCreate({
        options: { driver: "file", filename: "/proc/nowhere/disk", size: 0 }
      })))
      expect(error).toMatchObject({ _tag: "JobError", type: "create", desc: expect.stringContaining("/proc/nowhere") })
      const disk = yield* open(socketPath)
      expect((yield* disk.readBytes(0, 512))[0]).toBe(0x5a)
    }))

  onBackend("a job that stops at an error waits, and goes on when it is told to", () =>
    Effect.gen(function*() {
      const { addTarget, path, qmp } = yield* fullDisk()
      const filename = yield* addTarget("rest")
      yield* qmp.blockdevAdd({
        "node-name": "moody",
        "driver": "blkdebug",
        "image": "rest",
        "inject-error": [{ "event": "none", "iotype": "write", "errno": 28, "sector": 4096, "once": true }]
      })
      const met = yield* Effect.forkChild(Stream.runCollect(Stream.take(qmp.on("BLOCK_JOB_ERROR"), 1)), {
        startImmediately: true
      })
      const statuses: Array<string> = []
      yield* qmp.blockdevBackup({ device: "disk0", target: "moody", sync: "full", onTargetError: "stop" }).pipe(
        Stream.runForEach(({ id, status }) => {
          statuses.push(status)
          return status === "paused" ? Effect.andThen(Fiber.await(met), qmp.jobResume({ id })) : Effect.void
        })
      )
      expect(yield* Fiber.join(met)).toMatchObject([{ data: { operation: "write", action: "stop" } }])
      expect(statuses).toContain("paused")
      yield* qmp.blockdevDel({ nodeName: "moody" })
      yield* qmp.blockdevDel({ nodeName: "rest" })
      expect(yield* identical(path, filename)).toBe(true)
    }))

  onBackend("an incremental backup that failed has emptied nothing, and is run again", () =>
    Effect.gen(function*() {
      const { addTarget, qmp, socketPath } = yield* fullDisk()
      const filename = yield* addTarget("rest")
      yield* qmp.blockDirtyBitmapAdd({ node: "disk0", name: "day", granularity: 64 * KiB, persistent: true })
      const dirty = qmp.queryNamedBlockNodes({ flat: true }).pipe(
        Effect.map((nodes) => nodes.find(({ nodeName }) => nodeName === "disk0")?.dirtyBitmaps?.[0]?.count)
      )
      const disk = yield* open(socketPath)
      yield* disk.writeBytes(2 * MiB, new Uint8Array(MiB).fill(3))
      expect(yield* dirty).toBe(MiB)
      yield* qmp.blockdevAdd({
        "node-name": "moody",
        "driver": "blkdebug",
        "image": "rest",
        "inject-error": [{ "event": "none", "iotype": "write", "errno": 28, "sector": 4096, "once": true }]
      })
      const backup = qmp.blockdevBackup({ device: "disk0", target: "moody", sync: "incremental", bitmap: "day" })
      expect(yield* Effect.flip(Stream.runDrain(backup))).toMatchObject({ _tag: "JobError" })
      expect(yield* dirty).toBe(MiB)
      const again = yield* Stream.runCollect(backup)
      expect(again.at(-1)).toMatchObject({ status: "concluded", currentProgress: MiB })
      expect(yield* dirty).toBe(0)
      yield* qmp.blockdevDel({ nodeName: "moody" })
      yield* qmp.blockdevDel({ nodeName: "rest" })
      yield* DiskImage.qemuIo(filename, "qcow2", ["read -P 0 0 2M", "read -P 3 2M 1M", "read -P 0 3M 1M"])
    }))

  onBackend("a job that is interrupted is gone, and its nodes are free", () =>
    Effect.gen(function*() {
      const { addTarget, qmp } = yield* fullDisk()
      yield* addTarget("copy")
      const seen: Array<number> = []
      const copying = yield* qmp.blockdevBackup({ device: "disk0", target: "copy", sync: "full", speed: slow }).pipe(
        Stream.runForEach(({ currentProgress }) => Effect.sync(() => seen.push(currentProgress))),
        Effect.forkChild({ startImmediately: true })
      )
      while (seen.length < 2) yield* Effect.sleep(5)
      expect(yield* qmp.queryJobs).toMatchObject([{ type: "backup", status: "running" }])
      yield* Fiber.interrupt(copying)
      expect(yield* qmp.queryJobs).toStrictEqual([])
      yield* qmp.blockdevDel({ nodeName: "copy" })
    }))

  onBackend("somebody else's cancelling is a JobError", () =>
    Effect.gen(function*() {
      const { addTarget, qmp } = yield* fullDisk()
      yield* addTarget("copy")
      const error = yield* qmp.blockdevBackup({ device: "disk0", target: "copy", sync: "full", speed: slow }).pipe(
        Stream.runForEach(({ id, status }) =>
          status === "running" ? Effect.ignore(qmp.jobCancel({ id })) : Effect.void
        ),
        Effect.flip
      )
      expect(error).toMatchObject({ _tag: "JobError", type: "backup", desc: expect.stringMatching(/cancell?ed/iu) })
    }))

  onBackend("a daemon that is killed in the middle of a job is ENOTCONN", () =>
    Effect.gen(function*() {
      const { addTarget, kill, qmp } = yield* fullDisk()
      yield* addTarget("copy")
      const started: Array<string> = []
      const copying = yield* qmp.blockdevBackup({ device: "disk0", target: "copy", sync: "full", speed: slow }).pipe(
        Stream.runForEach(({ status }) => Effect.sync(() => started.push(status))),
        Effect.forkChild({ startImmediately: true })
      )
      while (started.length === 0) yield* Effect.sleep(5)
      yield* kill("SIGKILL")
      expect(yield* Effect.flip(Fiber.join(copying))).toMatchObject({ _tag: "ENOTCONN" })
      expect(yield* Effect.flip(qmp.queryJobs)).toMatchObject({ _tag: "ENOTCONN" })
    }))

  onBackend("jobs of one transaction succeed together or not at all", () =>
    Effect.gen(function*() {
      const { addTarget, qmp } = yield* fullDisk()
      yield* addTarget("good")
      yield* addTarget("rest")
      yield* qmp.blockdevAdd({
        "node-name": "bad",
        "driver": "blkdebug",
        "image": "rest",
        "inject-error": [{ "event": "none", "iotype": "write", "errno": 5, "sector": 4096, "once": false }]
      })
      const backup = (jobId: string, target: string) => ({
        type: "blockdev-backup",
        data: { jobId, autoDismiss: false, device: "disk0", target, sync: "full", speed: 64 * MiB }
      } as const)
      const both = qmp.transaction({
        actions: [backup("to-good", "good"), backup("to-bad", "bad")],
        properties: { completionMode: "grouped" }
      })
      const started = yield* Effect.cached(both)
      const outcomes = yield* Effect.forEach(
        ["to-good", "to-bad"],
        (id) => Effect.flip(Stream.runDrain(qmp.job(id, started))),
        { concurrency: "unbounded" }
      )
      expect(outcomes).toMatchObject([
        { _tag: "JobError", id: "to-good" },
        { _tag: "JobError", id: "to-bad", desc: "Input/output error" }
      ])
      expect(yield* qmp.queryJobs).toStrictEqual([])
    }))
})
