/**
 * Goal: every example does what it says, as a newcomer runs it.
 * Method: each is run as a program, against qemu-storage-daemon on images made here, and its output is compared.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, FileSystem, Schedule } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { createHash } from "node:crypto"
import { closeSync, openSync, readdirSync, writeSync } from "node:fs"
import { createServer } from "node:net"
import { DiskImage } from "../src/testing/index.ts"
import { qsdIsHere } from "./integration/requirement.ts"
import { imagePath, MiB, onDaemon, serve, serveRaw } from "./support/daemon.ts"
import { startProgram } from "./support/program.ts"

const start = (name: string, args: ReadonlyArray<string>, environment?: { readonly [name: string]: string }) =>
  startProgram(["--conditions=@effect-blkio/source", `examples/${name}`, ...args], environment)

const run = (name: string, ...args: ReadonlyArray<string>) =>
  Effect.flatMap(start(name, args), ({ outcome }) => outcome)

/** A disk of 16 MiB with one partition, from 1 MiB on, and an ext4 file system in it. */
const makeExtImage = Effect.fnUntraced(function*() {
  const fs = yield* FileSystem.FileSystem
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const path = yield* imagePath("ext.raw")
  const content = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-content-" })
  yield* fs.writeFileString(`${content}/hello.txt`, "hello\n")
  yield* fs.makeDirectory(`${content}/folder`)
  yield* DiskImage.createRaw(path, 16 * MiB)
  const options = ["-q", "-t", "ext4", "-d", content, "-E", `offset=${MiB}`, path, "15360"]
  const made = yield* spawner.exitCode(ChildProcess.make("mke2fs", options, {
    extendEnv: true,
    env: { PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` }
  }))
  expect(made).toBe(0)
  // A master boot record: one entry of type Linux, sectors 2048 to 32767.
  const record = Buffer.alloc(512)
  record[446 + 4] = 0x83
  record.writeUInt32LE(2048, 446 + 8)
  record.writeUInt32LE(30720, 446 + 12)
  record.writeUInt16LE(0xaa55, 510)
  const file = yield* fs.open(path, { flag: "r+" })
  yield* file.writeAll(record)
  return path
})

/** Fills a part of a raw image, which the daemon reads through the page cache. */
const fill = (path: string, offset: number, length: number, value: number) =>
  Effect.sync(() => {
    const file = openSync(path, "r+")
    writeSync(file, Buffer.alloc(length, value), 0, length, offset)
    closeSync(file)
  })

const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

describe.skipIf(!qsdIsHere)("examples", () => {
  onDaemon("00_demo", () =>
    Effect.gen(function*() {
      const { exit, stdout } = yield* run("00_demo.ts")
      expect(stdout).toMatch(/^qemu-storage-daemon [\d.]+ serves 64 MiB on /)
      expect(stdout).toContain("connected: 67108864 bytes in blocks of 512, 2 queues, 256 descriptors each\n")
      expect(stdout).toContain("wrote a block, read it back: the same\n")
      expect(stdout).toContain("a mistake is a typed error: EINVAL: read at 1 of 4096 bytes: offset must be")
      expect(stdout).toMatch(/read 16384 blocks as a stream in [\d.]+ s\n$/)
      expect(exit).toBe(0)
    }))

  onDaemon("01_properties", () =>
    Effect.gen(function*() {
      const { daemon } = yield* serveRaw(4 * MiB, { numQueues: 4 })
      const outcome = yield* run("01_properties.ts", daemon.socketPath)
      expect(outcome).toStrictEqual({
        exit: 0,
        stdout: "4194304 bytes in blocks of 512\nup to 4 queues, 126 segments a request\n",
        stderr: ""
      })
      const missing = yield* run("01_properties.ts", "/nowhere/disk.sock")
      expect(missing).toStrictEqual({ exit: 1, stdout: "", stderr: "no backend listens on /nowhere/disk.sock\n" })
    }))

  onDaemon("02_many_requests", () =>
    Effect.gen(function*() {
      const { daemon } = yield* serveRaw(4 * MiB + 512, { writable: false })
      const { exit, stdout } = yield* run("02_many_requests.ts", daemon.socketPath)
      expect(stdout).toBe("4194816 bytes read, 0 bytes unreadable\n")
      expect(exit).toBe(0)
    }))

  onDaemon("03_hash_qcow2", () =>
    Effect.gen(function*() {
      const path = yield* imagePath("disk.qcow2")
      yield* DiskImage.createQcow2(path, 8 * MiB)
      yield* DiskImage.qemuIo(path, "qcow2", ["write -P 0x5a 3M 1M"])
      const raw = Buffer.alloc(8 * MiB).fill(0x5a, 3 * MiB, 4 * MiB)
      const { exit, stdout } = yield* run("03_hash_qcow2.ts", path)
      expect(stdout).toBe(`${createHash("sha256").update(raw).digest("hex")}  ${8 * MiB} bytes\n`)
      expect(exit).toBe(0)
    }))

  onDaemon("04_copy", () =>
    Effect.gen(function*() {
      const source = yield* serveRaw(8 * MiB)
      const target = yield* serveRaw(8 * MiB)
      const fs = yield* FileSystem.FileSystem
      yield* fill(source.path, MiB, 2 * MiB, 0x77)
      const { exit, stdout } = yield* run("04_copy.ts", source.daemon.socketPath, target.daemon.socketPath)
      expect(stdout).toContain(`100%, ${6 * MiB} bytes of zeroes\ncopied\n`)
      expect(exit).toBe(0)
      const [a, b] = yield* Effect.all([fs.readFile(source.path), fs.readFile(target.path)])
      expect(Buffer.compare(a, b)).toBe(0)
    }))

  onDaemon("05_http_ranges", () =>
    Effect.gen(function*() {
      const { daemon, path } = yield* serveRaw(4 * MiB)
      yield* fill(path, 65536, 65536, 0x33)
      const port = yield* freePort
      const server = yield* start("05_http_ranges.ts", [], { BLKIO_SOCKET: daemon.socketPath, PORT: String(port) })
      const get = (range?: string) =>
        Effect.tryPromise(() => fetch(`http://127.0.0.1:${port}/`, range === undefined ? {} : { headers: { range } }))
      const first = yield* get("bytes=65535-65537").pipe(
        Effect.retry({ times: 200, schedule: Schedule.spaced("20 millis") })
      )
      expect(first.status).toBe(206)
      expect(first.headers.get("content-range")).toBe(`bytes 65535-65537/${4 * MiB}`)
      expect(Buffer.from(yield* Effect.promise(() => first.arrayBuffer()))).toStrictEqual(Buffer.from([0, 0x33, 0x33]))
      const all = yield* get()
      expect([all.status, (yield* Effect.promise(() => all.arrayBuffer())).byteLength]).toStrictEqual([200, 4 * MiB])
      expect((yield* get(`bytes=${4 * MiB}-`)).status).toBe(416)
      server.child.kill("SIGTERM")
      expect((yield* server.outcome).exit).toBe(130)
    }))

  onDaemon("06_list_directory", () =>
    Effect.gen(function*() {
      const path = yield* makeExtImage()
      const daemon = yield* serve({ exports: [{ image: { _tag: "raw", path } }] })
      const { exit, stdout } = yield* run("06_list_directory.ts", daemon.socketPath)
      expect(stdout).toBe(`partition 1: ${15 * MiB} bytes from ${MiB}\n  folder\n  hello.txt\n  lost+found\n`)
      expect(exit).toBe(0)
    }))

  onDaemon("07_queue_per_fiber", () =>
    Effect.gen(function*() {
      const { daemon, path } = yield* serveRaw(8 * MiB, { numQueues: 4 })
      yield* fill(path, 2 * MiB, MiB, 1)
      yield* fill(path, 6 * MiB, MiB, 2)
      const { exit, stdout } = yield* run("07_queue_per_fiber.ts", daemon.socketPath)
      const line = (queue: number, sum: number) => `queue ${queue}: the bytes of its share add up to ${sum}\n`
      expect(stdout).toBe(line(0, 0) + line(1, MiB) + line(2, 0) + line(3, 2 * MiB))
      expect(exit).toBe(0)
    }))

  onDaemon("08_soak", () =>
    Effect.gen(function*() {
      const { daemon } = yield* serveRaw(16 * MiB)
      const calm = yield* run("08_soak.ts", daemon.socketPath, "0.5")
      expect(calm.stdout).toMatch(/^written: [1-9]\d*$/m)
      expect(calm.stdout).toMatch(/^read and right: [1-9]\d*$/m)
      expect(calm.stdout).not.toContain("WRONG")
      expect(calm.exit).toBe(0)
      const rough = yield* start("08_soak.ts", [daemon.socketPath, "20"])
      yield* Effect.sleep("1 second")
      yield* daemon.kill("SIGKILL")
      expect((yield* rough.outcome).stdout).toMatch(/^ended by ENOTCONN: 1$/m)
    }))

  onDaemon("every example has its test", () =>
    Effect.sync(() => {
      expect(readdirSync("examples").filter((name) => name.endsWith(".ts"))).toHaveLength(9)
    }))
})
