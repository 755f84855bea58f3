/**
 * Goal: every example does what it says, as a newcomer runs it.
 * Method: each is run as a program, against each backend on images made here, and its output is compared. Those that start
 * qemu-storage-daemon need it here; those that serve a disk are talked to.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, FileSystem, Schedule } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { createHash } from "node:crypto"
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync, writeSync } from "node:fs"
import { createServer as createHttpServer } from "node:http"
import { DiskImage } from "../src/testing/index.ts"
import { inUse } from "./cli/stores.ts"
import { qsdIsHere } from "./integration/requirement.ts"
import { forEachBackend, serveRaw, serveRawApart } from "./support/backends.ts"
import { imagePath, MiB, onBackend, open } from "./support/daemon.ts"
import { freePort } from "./support/freePort.ts"
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

describe.skipIf(!qsdIsHere)("examples that start qemu-storage-daemon", () => {
  onBackend("03_hash_qcow2", () =>
    Effect.gen(function*() {
      const path = yield* imagePath("disk.qcow2")
      yield* DiskImage.createQcow2(path, 8 * MiB)
      yield* DiskImage.qemuIo(path, "qcow2", ["write -P 0x5a 3M 1M"])
      const raw = Buffer.alloc(8 * MiB).fill(0x5a, 3 * MiB, 4 * MiB)
      const { exit, stdout } = yield* run("03_hash_qcow2.ts", path)
      expect(stdout).toBe(`${createHash("sha256").update(raw).digest("hex")}  ${8 * MiB} bytes\n`)
      expect(exit).toBe(0)
    }))

  onBackend("11_incremental_backup", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
      const image = yield* imagePath("disk.qcow2")
      const folder = `${image}.backups`
      yield* DiskImage.createQcow2(image, 16 * MiB)
      yield* DiskImage.qemuIo(image, "qcow2", ["write -P 0x5a 4M 4M"])
      const bytesCopied: Array<number> = []
      for (const [index, written] of [undefined, "write -P 0x77 5M 1M", "write -P 0x88 0 192K"].entries()) {
        // By another program: what honours the bitmap of the image is in the next backup.
        if (written !== undefined) yield* DiskImage.qemuIo(image, "qcow2", [written])
        const { exit, stderr, stdout } = yield* run("11_incremental_backup.ts", image, folder)
        expect([exit, stderr]).toStrictEqual([0, ""])
        expect(stdout).toContain(`${index}.qcow2 is the disk as it was\n`)
        const [, bytes] = /^backup concluded: (\d+) of \1 bytes$/mu.exec(stdout) ?? []
        bytesCopied.push(Number(bytes))
        yield* fs.copyFile(image, `${image}.${index}`)
      }
      // The last of them: three blocks of qemu-io's, of which the program has written one again.
      expect(bytesCopied).toStrictEqual([16 * MiB, MiB + 65_536, 192 * 1024])
      for (const index of [0, 1, 2]) {
        const tool = (...args: ReadonlyArray<string>) => spawner.exitCode(ChildProcess.make("qemu-img", args))
        expect(yield* tool("compare", `${image}.${index}`, `${folder}/${index}.qcow2`)).toBe(0)
        expect(yield* tool("check", "-q", `${folder}/${index}.qcow2`)).toBe(0)
      }
      expect((yield* fs.readDirectory(folder)).toSorted()).toStrictEqual(["0.qcow2", "1.qcow2", "2.qcow2"])
      const elsewhere = yield* run("11_incremental_backup.ts", image, `${image}.elsewhere`)
      expect(elsewhere.exit).toBe(1)
      expect(elsewhere.stdout + elsewhere.stderr).toContain("does not know what was written since")
    }))
})

/** A web server of one file, which notes the ranges it is asked for; answers with its port. */
const serveBytes = (file: Uint8Array, asked: Array<string>) =>
  Effect.acquireRelease(
    Effect.callback<ReturnType<typeof createHttpServer>>((resume) => {
      const server = createHttpServer(({ headers: { range }, method }, response) => {
        if (method === "HEAD") return response.writeHead(200, { "content-length": file.length }).end()
        const [, first = "", last = ""] = /^bytes=(\d+)-(\d+)$/u.exec(range ?? "") ?? []
        asked.push(range ?? "all")
        return response.writeHead(206).end(file.subarray(Number(first), Number(last) + 1))
      })
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.sync(() => {
        server.closeAllConnections()
        server.close()
      })
  ).pipe(Effect.map((server) => {
    const address = server.address()
    return typeof address === "object" && address !== null ? address.port : 0
  }))

forEachBackend("examples", (backend) => {
  onBackend("01_properties", () =>
    Effect.gen(function*() {
      const { facts, socketPath } = yield* serveRaw(backend, 4 * MiB, { numQueues: 4 })
      const outcome = yield* run("01_properties.ts", socketPath)
      expect(outcome).toStrictEqual({
        exit: 0,
        stdout: `4194304 bytes in blocks of 512\nup to 4 queues, ${facts.maxSegments} segments a request\n`,
        stderr: ""
      })
      const missing = yield* run("01_properties.ts", "/nowhere/disk.sock")
      expect(missing).toStrictEqual({ exit: 1, stdout: "", stderr: "no backend listens on /nowhere/disk.sock\n" })
    }))

  onBackend("02_many_requests", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 4 * MiB + 512, { readOnly: true })
      const { exit, stdout } = yield* run("02_many_requests.ts", socketPath)
      expect(stdout).toBe("4194816 bytes read, 0 bytes unreadable\n")
      expect(exit).toBe(0)
    }))

  onBackend("04_copy", () =>
    Effect.gen(function*() {
      const source = yield* serveRaw(backend, 8 * MiB)
      const target = yield* serveRaw(backend, 8 * MiB)
      const fs = yield* FileSystem.FileSystem
      yield* fill(source.image.path, MiB, 2 * MiB, 0x77)
      const { exit, stdout } = yield* run("04_copy.ts", source.socketPath, target.socketPath)
      expect(stdout).toContain(`100%, ${6 * MiB} bytes of zeroes\ncopied\n`)
      expect(exit).toBe(0)
      const [a, b] = yield* Effect.all([fs.readFile(source.image.path), fs.readFile(target.image.path)])
      expect(Buffer.compare(a, b)).toBe(0)
    }))

  onBackend("05_http_ranges", () =>
    Effect.gen(function*() {
      const { image, socketPath } = yield* serveRaw(backend, 4 * MiB)
      yield* fill(image.path, 65536, 65536, 0x33)
      const port = yield* freePort
      const server = yield* start("05_http_ranges.ts", [], { BLKIO_SOCKET: socketPath, PORT: String(port) })
      const get = (range?: string) =>
        Effect.tryPromise(() => fetch(`http://127.0.0.1:${port}/`, range === undefined ? {} : { headers: { range } }))
      const first = yield* get("bytes=65535-65537").pipe(
        Effect.retry({ times: 2000, schedule: Schedule.spaced("20 millis") })
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

  onBackend("06_list_directory", () =>
    Effect.gen(function*() {
      const path = yield* makeExtImage()
      const { socketPath } = yield* backend.serve({ _tag: "raw", path })
      const { exit, stdout } = yield* run("06_list_directory.ts", socketPath)
      expect(stdout).toBe(`partition 1: ${15 * MiB} bytes from ${MiB}\n  folder\n  hello.txt\n  lost+found\n`)
      expect(exit).toBe(0)
    }))

  onBackend("07_queue_per_fiber", () =>
    Effect.gen(function*() {
      const { image, socketPath } = yield* serveRaw(backend, 8 * MiB, { numQueues: 4 })
      yield* fill(image.path, 2 * MiB, MiB, 1)
      yield* fill(image.path, 6 * MiB, MiB, 2)
      const { exit, stdout } = yield* run("07_queue_per_fiber.ts", socketPath)
      const line = (queue: number, sum: number) => `queue ${queue}: the bytes of its share add up to ${sum}\n`
      expect(stdout).toBe(line(0, 0) + line(1, MiB) + line(2, 0) + line(3, 2 * MiB))
      expect(exit).toBe(0)
    }))

  onBackend("10_queue_per_thread", () =>
    Effect.gen(function*() {
      const { image, socketPath } = yield* serveRaw(backend, 8 * MiB + 512, { numQueues: 2 })
      yield* fill(image.path, 2 * MiB, MiB, 1)
      yield* fill(image.path, 6 * MiB, MiB, 2)
      const { exit, stderr, stdout } = yield* run("10_queue_per_thread.ts", socketPath)
      const bytes = readFileSync(image.path)
      const half = 4 * MiB + 131_072
      const hashOf = (share: Buffer) => createHash("sha256").update(share).digest("hex")
      expect(stderr).toBe("")
      expect(stdout).toBe(
        `${hashOf(bytes.subarray(0, half))}  bytes 0 to ${half}\n`
          + `${hashOf(bytes.subarray(half))}  bytes ${half} to ${8 * MiB + 512}\n`
      )
      expect(exit).toBe(0)
    }))

  onBackend("08_soak", () =>
    Effect.gen(function*() {
      const { socketPath } = yield* serveRaw(backend, 16 * MiB)
      const calm = yield* run("08_soak.ts", socketPath, "5")
      expect(calm.stdout).toMatch(/^written: [1-9]\d*$/m)
      expect(calm.stdout).toMatch(/^read and right: [1-9]\d*$/m)
      expect(calm.stdout).not.toContain("WRONG")
      expect(calm.exit).toBe(0)
      const mortal = yield* serveRawApart(backend, 16 * MiB)
      const rough = yield* start("08_soak.ts", [mortal.socketPath, "20"])
      yield* inUse(mortal)
      yield* mortal.kill("SIGKILL")
      expect((yield* rough.outcome).stdout).toMatch(/^ended by ENOTCONN: 1$/m)
    }))
})

describe("examples that serve a disk themselves", () => {
  onBackend("00_demo", () =>
    Effect.gen(function*() {
      const path = yield* imagePath("file")
      writeFileSync(path, Buffer.alloc(3 * MiB + 123, 0x5a))
      const { exit, stderr, stdout } = yield* run("00_demo.ts", path)
      expect(stdout).toMatch(/^serving \S+disk\.img, 4 MiB\n/u)
      for (const [name, value] of [["driver", "virtio-blk-vhost-user"], ["capacity", 4 * MiB], ["max-queues", 2]]) {
        expect(stdout).toMatch(new RegExp(`^  ${name} +${value}$`, "mu"))
      }
      expect(stdout).toMatch(/^copying +█+ 100%$/mu)
      const hash = createHash("sha256").update(readFileSync(path)).digest("hex")
      expect(stdout).toContain(`verified sha256 ${hash.slice(0, 16)}… is the file's\n`)
      expect(stdout).toContain("refused  EINVAL: read at 1 of 512 bytes: offset must be")
      expect(stdout).toMatch(/^measured \d+ k random reads a second, 32 in flight$/mu)
      expect([exit, stderr]).toStrictEqual([0, ""])
    }))

  onBackend("09_lazy_http", () =>
    Effect.gen(function*() {
      const image = Uint8Array.from({ length: MiB }, (_, i) => i >> 12)
      const asked: Array<string> = []
      const port = yield* serveBytes(image, asked)
      const socketPath = yield* imagePath("lazy.sock")
      const server = yield* start("09_lazy_http.ts", [`http://127.0.0.1:${port}/disk.img`, socketPath])
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(socketPath).pipe(
          Effect.retry({ times: 2000, schedule: Schedule.spaced("20 millis") })
        )
        expect(disk.capacity).toBe(MiB)
        const { bytes } = yield* disk.allocate(8192)
        // Across the edge of two chunks of 64 KiB, twice: what was fetched is not fetched again.
        for (let round = 0; round < 2; round++) {
          yield* disk.queue(0).read(3 * 65_536 - 4096, bytes.fill(0))
          expect(Buffer.from(bytes).equals(image.subarray(3 * 65_536 - 4096, 3 * 65_536 + 4096))).toBe(true)
        }
        yield* disk.queue(0).write(0, bytes.fill(0xee))
        yield* disk.queue(0).read(0, bytes.fill(0))
        expect(bytes.every((byte) => byte === 0xee)).toBe(true)
      }))
      expect(asked.toSorted()).toStrictEqual(["bytes=131072-196607", "bytes=196608-262143"])
      while (!server.said.stdout.includes("it went")) yield* Effect.sleep("10 millis")
      server.child.kill("SIGTERM")
      const { exit, stdout } = yield* server.outcome
      expect(stdout).toContain(`serving ${MiB} bytes of http://127.0.0.1:${port}/disk.img on ${socketPath}\n`)
      expect(stdout).toContain("a front-end came\n")
      expect(stdout).toContain(`${2 * 65_536} bytes were fetched for it\n`)
      expect(exit).toBe(130)
    }))
})

describe("examples that start programs of their own", () => {
  onBackend("12_cluster_hash", () =>
    Effect.gen(function*() {
      const path = yield* imagePath("disk.raw")
      yield* DiskImage.createRaw(path, 40 * MiB)
      yield* fill(path, 20 * MiB, 3 * MiB, 0x5a)
      const { outcome } = yield* start("12_cluster_hash.ts", ["hash", "--runners", "1", path], {
        CLUSTER_DATABASE: `${path}.sqlite`
      })
      const raw = Buffer.alloc(40 * MiB).fill(0x5a, 20 * MiB, 23 * MiB)
      const list = [0, 16, 32].map((at) => raw.subarray(at * MiB, (at + 16) * MiB)).map((extent) =>
        `${createHash("sha256").update(extent).digest("hex")}\n`
      )
      const { exit, stdout } = yield* outcome
      expect(stdout).toBe(`${createHash("sha256").update(list.join("")).digest("hex")}  ${path}\n`)
      expect(exit).toBe(0)
    }))
})

describe("examples", () => {
  it("every example has its test", () => {
    expect(readdirSync("examples").filter((name) => name.endsWith(".ts"))).toHaveLength(13)
  })
})
