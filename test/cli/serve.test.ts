/**
 * Goal: `blkio serve` serves each kind of store as its options say, tells who comes and goes and what they did, and ends as a
 * server should: told to stop it loses nothing and leaves nothing, and that is exit code 0; what it cannot do is an errno.
 * Method: the command itself, run as a program, with this library's driver as its front-end. A disk with a latency on another
 * backend stands for requests in flight, one whose backend is killed for a store that cannot be flushed.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Fiber, Queue, Schema } from "effect"
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { createConnection } from "node:net"
import { fileURLToPath } from "node:url"
import { parseBytes } from "../../src/cli/format.ts"
import { slow } from "../support/Backend.ts"
import { KiB, MiB, onBackend, open } from "../support/daemon.ts"
import { exportBackend } from "../support/exportBackend.ts"
import { blkio, start } from "./blkio.ts"
import { deviceOn, folder, inUse, noise, serveDevice, serveDeviceApart } from "./stores.ts"

/** Starts serving; answers when it listens. */
const serve = Effect.fnUntraced(function*(store: string, socket: string, ...flags: ReadonlyArray<string>) {
  const program = yield* start("serve", store, "--socket", socket, ...flags)
  const { child, outcome, stderr } = program
  let said = ""
  /** Waits until it has said something on stderr. */
  const until = (pattern: RegExp) =>
    stderr.pipe(
      Effect.map((more) => {
        said += more
        return said
      }),
      Effect.repeat({ until: (text) => pattern.test(text) }),
      // What has ended says no more.
      Effect.raceFirst(Effect.flatMap(outcome, (how) => Effect.die(how)))
    )
  if (flags.includes("--json")) yield* Effect.promise(() => once(child.stdout, "data"))
  else yield* until(/^serving .*\n/u)
  return {
    until,
    kill: (signal: NodeJS.Signals) => Effect.sync(() => child.kill(signal)),
    outcome,
    /** Tells it to stop, and waits for its end. */
    stop: Effect.suspend(() => {
      child.kill("SIGTERM")
      return outcome
    })
  }
})

const CONNECTED = "front-end 1 connected\n"
/** What is said of one who did nothing wrong. */
const gone = (frontend: number, figures: string) =>
  new RegExp(
    `^front-end ${frontend} disconnected after \\d+\\.\\d s: ${figures}; the front-end closed the connection$`,
    "mu"
  )

describe("usage", () => {
  const socket = ["--socket", "/nowhere/serve.sock"]
  it.live.each<readonly [string, string, ReadonlyArray<string>]>([
    ["no store", "EINVAL: Missing required argument: STORE", socket],
    ["no socket", "EINVAL: Missing required flag: --socket", ["memory:1M"]],
    ["an empty socket", "EINVAL: Missing value for flag --socket", ["memory:1M", "--socket", ""]],
    ["two stores", "EINVAL: Unexpected positional argument", ["memory:1M", "memory:1M", ...socket]],
    ["no driver", "ENOENT: device: there is no driver \"disk.raw\"", ["disk.raw", ...socket]],
    ["no path", "EINVAL: store: file: needs a path", ["file:", ...socket]],
    ["no base", "EINVAL: store: overlay: needs a path", ["overlay:", ...socket]],
    ["no size", "EINVAL: store: memory:: the size must be a positive multiple of 512", ["memory:", ...socket]],
    ["size 0", "EINVAL: store: memory:0: the size must be", ["memory:0", ...socket]],
    ["half a block", "EINVAL: store: memory:1000: the size must be", ["memory:1000", ...socket]],
    ["a unit that is none", "EINVAL: store: memory:64Q: the size must be", ["memory:64Q", ...socket]],
    ["a size below 0", "EINVAL: store: memory:-512: the size must be", ["memory:-512", ...socket]],
    ["a size beyond 2^53", "EINVAL: store: memory:9000P: the size must be", ["memory:9000P", ...socket]],
    ["no queues", "EINVAL: Invalid value for flag --queues: \"0\"", ["memory:1M", "--queues", "0", ...socket]],
    ["257 queues", "EINVAL: Invalid value for flag --queues: \"257\"", ["memory:1M", "--queues", "257", ...socket]],
    ["a block that is no power of two", "EINVAL: Invalid value for flag --block-size: \"1000\"", [
      "memory:1M",
      "--block-size",
      "1000",
      ...socket
    ]],
    ["a block below a sector", "EINVAL: Invalid value for flag --block-size: \"256\"", [
      "memory:1M",
      "--block-size",
      "256",
      ...socket
    ]],
    ["a disk that is not whole blocks", "EINVAL: serve: memory:1536 has 1536 bytes: must be a multiple of", [
      "memory:1536",
      "--block-size",
      "1024",
      ...socket
    ]],
    ["a serial that is too long", "EINVAL: Invalid value for flag --serial: \"ääääääääääb\"", [
      "memory:1M",
      "--serial",
      "ääääääääääb",
      ...socket
    ]],
    ["a zero of a zero", "EINVAL: Unrecognized flag: --no-no-write-cache", [
      "memory:1M",
      "--no-no-write-cache",
      ...socket
    ]]
  ])("%s: exit code 2", ([, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("serve", ...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([2, ""])
    }))

  onBackend("what cannot be opened, or made: exit code 1", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("half"), new Uint8Array(1000))
      writeFileSync(path("disk"), new Uint8Array(MiB))
      for (
        const [expected, store, socket] of [
          ["ENOENT: open ", `file:${path("none")}`, path("s")],
          ["ENOENT: open ", `overlay:${path("none")}`, path("s")],
          ["ENOENT: connect ", deviceOn(path("none")), path("s")],
          [`EINVAL: open ${path("half")}: 1000 bytes: `, `file:${path("half")}`, path("s")],
          [`EINVAL: open ${path("half")}: 1000 bytes: `, `overlay:${path("half")}`, path("s")],
          [`EADDRINUSE: listen ${path("disk")}: `, "memory:1M", path("disk")],
          [`ENOENT: listen ${path("no/s")}: `, "memory:1M", path("no/s")],
          ["ENAMETOOLONG: export /", "memory:1M", `/${"x".repeat(107)}`]
        ] as const
      ) {
        const { exit, stderr, stdout } = yield* blkio("serve", store, "--socket", socket)
        expect(stderr.slice(0, expected.length)).toBe(expected)
        expect(stderr.trimEnd()).not.toContain("\n")
        expect([exit, stdout]).toStrictEqual([1, ""])
      }
      expect([existsSync(path("s")), readFileSync(path("disk")).length]).toStrictEqual([false, MiB])
    }))

  it.live("--help has every flag, every kind of store, the fields of --json and an example", () =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("serve", "--help")
      for (
        const word of [
          ["STORE", "driver[,property=value…]", "file:PATH", "memory:SIZE", "overlay:PATH", "blkio serve "],
          ["--socket", "--read-only", "--queues", "--serial", "--block-size", "--no-write-cache", "--json"],
          ["store, path, bytes, queues, readOnly", "frontend, seconds, errno", "bytesWritten", "connections"]
        ].flat()
      ) expect(stdout).toContain(word)
      expect([exit, stderr]).toStrictEqual([0, ""])
    }))

  it("sizes are bytes, or have a unit that is a power of 1024", () => {
    expect(["4096", "1K", "64M", "64MiB", "1G", "2T", "1P"].map(parseBytes)).toStrictEqual([
      4096,
      KiB,
      64 * MiB,
      64 * MiB,
      1024 * MiB,
      2 * MiB * MiB,
      1024 * MiB * MiB
    ])
    for (const text of ["", "M", "iB", "1B", "1k", "1.5G", " 1", "1e3", "0x10", "8P9", "9P9", "9007199254740992"]) {
      expect(parseBytes(text)).toBe(undefined)
    }
  })

  onBackend("what lies in memory is a source, and no target", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB))
      const same = yield* blkio("compare", `file:${path("a")}`, `overlay:${path("a")}`)
      expect(same).toStrictEqual({ exit: 0, stdout: `identical: ${MiB} bytes\n`, stderr: "" })
      expect((yield* blkio("compare", "memory:1M", `file:${path("a")}`)).stdout).toContain("different: at offset 0")
      for (const target of ["memory:1M", `overlay:${path("a")}`]) {
        const { exit, stderr, stdout } = yield* blkio("copy", "memory:1M", target)
        expect(stderr).toMatch(/^EINVAL: store: \S+: a target is a device or a file[^\n]*\n$/u)
        expect([exit, stdout]).toStrictEqual([2, ""])
      }
      expect(readFileSync(path("a")).equals(noise(MiB))).toBe(true)
    }))
})

describe("stores", () => {
  onBackend("file: what was written is in the file, at the size it had", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("disk"), new Uint8Array(MiB))
      const { stop } = yield* serve(`file:${path("disk")}`, path("s"))
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(path("s"))
        expect(disk.capacity).toBe(MiB)
        yield* disk.write(4096, [noise(8192)])
      }))
      expect(yield* stop).toMatchObject({ exit: 0, stdout: "" })
      const expected = new Uint8Array(MiB)
      expected.set(noise(8192), 4096)
      expect(readFileSync(path("disk")).equals(expected)).toBe(true)
    }))

  onBackend("overlay: reads as its base, takes writes, and leaves the base as it is", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("base"), noise(MiB))
      const { stop } = yield* serve(`overlay:${path("base")}`, path("s"))
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(path("s"))
        yield* disk.write(512, [new Uint8Array(512).fill(7)])
        const found = new Uint8Array(MiB)
        yield* disk.read(0, [found])
        expect(found).toStrictEqual(noise(MiB).fill(7, 512, 1024))
      }))
      // It stays while it is served.
      yield* Effect.scoped(Effect.gen(function*() {
        const found = new Uint8Array(512)
        yield* (yield* open(path("s"))).read(512, [found])
        expect(found).toStrictEqual(new Uint8Array(512).fill(7))
      }))
      expect(yield* stop).toMatchObject({ exit: 0 })
      expect(readFileSync(path("base")).equals(noise(MiB))).toBe(true)
    }))

  onBackend("memory: zeroes, that keep what is written while they are served", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { stop } = yield* serve("memory:64M", path("s"))
      const disk = yield* open(path("s"))
      const found = noise(8192)
      expect(disk.capacity).toBe(64 * MiB)
      yield* disk.read(64 * MiB - 8192, [found])
      expect(found).toStrictEqual(new Uint8Array(8192))
      yield* disk.write(64 * MiB - 8192, [noise(8192)])
      yield* disk.read(64 * MiB - 8192, [found])
      expect(found).toStrictEqual(noise(8192))
      expect(yield* stop).toMatchObject({ exit: 0 })
    }))

  onBackend("a device: serves on what another backend serves", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("disk"), new Uint8Array(MiB))
      const inner = yield* serve(`file:${path("disk")}`, path("inner"))
      const outer = yield* serve(deviceOn(path("inner")), path("outer"))
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(path("outer"))
        yield* disk.write(0, [noise(MiB)])
        const found = new Uint8Array(MiB)
        yield* disk.read(0, [found])
        expect(found).toStrictEqual(noise(MiB))
      }))
      expect(yield* outer.stop).toMatchObject({ exit: 0 })
      expect((yield* inner.stop).stderr).toMatch(gone(1, "\\d+ requests, 1\\.0 MiB read, 1\\.0 MiB written, 0 errors"))
      expect(readFileSync(path("disk")).equals(noise(MiB))).toBe(true)
    }))
})

describe("options", () => {
  onBackend("--read-only refuses writes, and a file that nobody may write is served", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("disk"), noise(MiB), { mode: 0o444 })
      for (const store of [`file:${path("disk")}`, `overlay:${path("disk")}`, "memory:1M"]) {
        const { stop } = yield* serve(store, path("s"), "--read-only")
        expect((yield* Effect.flip(Effect.scoped(open(path("s")))))._tag).toBe("EROFS")
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* open(path("s"), { readOnly: true })
          expect((yield* Effect.flip(disk.write(0, [noise(512)])))._tag).toBe("EBADF")
          const found = new Uint8Array(512)
          yield* disk.read(0, [found])
          expect(found).toStrictEqual(store === "memory:1M" ? new Uint8Array(512) : noise(512))
        }))
        expect(yield* stop).toMatchObject({ exit: 0 })
      }
    }))

  onBackend(
    "--queues and --block-size are what the front-end sees, and --no-write-cache and --serial are taken",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        const flags = ["--queues", "4", "--block-size", "4096", "--no-write-cache", "--serial", "scratch"]
        const { stop } = yield* serve("memory:1M", path("s"), ...flags)
        const disk = yield* open(path("s"), { numQueues: 4 })
        const { maxQueues, requestAlignment } = yield* disk.properties.getAll
        expect({ maxQueues, requestAlignment }).toStrictEqual({ maxQueues: 4, requestAlignment: 4096 })
        yield* disk.write(0, [noise(4096)])
        const { exit, stderr } = yield* stop
        expect(stderr).toContain(`serving memory:1M (${MiB} bytes, 4 queues) on ${path("s")}\n`)
        expect(exit).toBe(0)
      })
  )
})

describe("the socket", () => {
  onBackend("of a server that lives is EADDRINUSE for another, which leaves it alone", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { stop } = yield* serve("memory:1M", path("s"))
      const { exit, stderr, stdout } = yield* blkio("serve", "memory:1M", "--socket", path("s"))
      expect(stderr).toMatch(/^EADDRINUSE: listen [^\n]*\n$/u)
      expect(stderr).toContain(path("s"))
      expect([exit, stdout]).toStrictEqual([1, ""])
      yield* Effect.scoped(open(path("s")))
      expect(yield* stop).toMatchObject({ exit: 0 })
    }))

  onBackend("of one that was killed is taken over", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const first = yield* serve("memory:1M", path("s"))
      yield* first.kill("SIGKILL")
      yield* first.outcome
      expect(existsSync(path("s"))).toBe(true)
      const second = yield* serve("memory:2M", path("s"))
      yield* Effect.scoped(Effect.gen(function*() {
        expect((yield* open(path("s"))).capacity).toBe(2 * MiB)
      }))
      expect(yield* second.stop).toMatchObject({ exit: 0 })
      expect(existsSync(path("s"))).toBe(false)
    }))
})

describe("its end", () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    onBackend(
      `${signal} with requests in flight: exit code 0, no socket, and ENOTCONN for the client`,
      () =>
        Effect.gen(function*() {
          const path = yield* folder
          const { device, pid } = yield* serveDevice(exportBackend, slow(300))
          const server = yield* serve(device, path("s"))
          const disk = yield* open(path("s"))
          const reads = yield* Effect.forEach(
            Array.from({ length: 8 }),
            () => Effect.forkChild(Effect.flip(disk.read(0, [new Uint8Array(4096)])), { startImmediately: true })
          )
          yield* inUse({ pid })
          yield* server.kill(signal)
          const { exit, stderr, stdout } = yield* server.outcome
          for (const read of reads) expect((yield* Fiber.join(read))._tag).toBe("ENOTCONN")
          expect(stderr).toMatch(
            /\nfront-end 1 disconnected after [^\n]*, 0 errors; the server was stopped\nstopped after [^\n]*, 1 front-end\n$/u
          )
          expect([exit, stdout, existsSync(path("s"))]).toStrictEqual([0, "", false])
        })
    )
  }

  onBackend("a second signal ends it at once", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { device, kill, pid } = yield* serveDeviceApart(exportBackend, slow(1))
      const server = yield* serve(device, path("s"))
      const disk = yield* open(path("s"))
      yield* disk.read(0, [new Uint8Array(4096)])
      yield* inUse({ pid })
      // Its flush will not be answered.
      yield* kill("SIGSTOP")
      yield* server.kill("SIGTERM")
      yield* server.until(/the server was stopped\n/u)
      yield* server.kill("SIGTERM")
      expect((yield* server.outcome).exit).toBe(143)
      yield* kill("SIGKILL")
    }))

  onBackend("a flush that fails is told, and exit code 1", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { device, ended, kill } = yield* serveDeviceApart(exportBackend, slow(1))
      const server = yield* serve(device, path("s"))
      yield* kill("SIGKILL")
      yield* ended
      const { exit, stderr } = yield* server.stop
      expect(stderr).toMatch(/\nENOTCONN: flush [^\n]*\nstopped after [^\n]*, 0 front-ends\n$/u)
      expect([exit, existsSync(path("s"))]).toStrictEqual([1, false])
    }))
})

describe("what it says", () => {
  onBackend("two clients, one after the other, each with its own figures, and then both", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { stop, until } = yield* serve("memory:1M", path("s"))
      yield* Effect.scoped(Effect.gen(function*() {
        yield* (yield* open(path("s"))).write(0, [noise(64 * KiB)])
      }))
      yield* until(/front-end 1 disconnected/u)
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(path("s"))
        yield* disk.read(0, [new Uint8Array(32 * KiB)])
        yield* disk.flush
      }))
      yield* until(/front-end 2 disconnected/u)
      const { exit, stderr, stdout } = yield* stop
      const lines = stderr.trimEnd().split("\n")
      expect(lines).toHaveLength(6)
      expect(lines[0]).toBe(`serving memory:1M (${MiB} bytes, 1 queue) on ${path("s")}`)
      expect(`${lines[1]}\n`).toBe(CONNECTED)
      expect(lines[2]).toMatch(gone(1, "1 request, 0 B read, 64\\.0 KiB written, 0 errors"))
      expect(lines[3]).toBe("front-end 2 connected")
      expect(lines[4]).toMatch(gone(2, "2 requests, 32\\.0 KiB read, 0 B written, 0 errors"))
      expect(lines[5]).toMatch(
        /^stopped after \d+\.\d s: 3 requests, 32\.0 KiB read, 64\.0 KiB written, 0 errors, 2 front-ends$/u
      )
      expect([exit, stdout]).toStrictEqual([0, ""])
    }))

  onBackend(
    "of a front-end that breaks the protocol, which rule it broke; the next one is served",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        const { stop, until } = yield* serve("memory:1M", path("s"))
        const rude = createConnection(path("s"))
        // It is cut off with what it said half read.
        rude.on("error", () => {}).resume().end(Buffer.alloc(64, 0xff))
        const said = yield* until(/front-end 1 disconnected/u)
        expect(said).toMatch(/^front-end 1 disconnected after [^;]*; EPROTO: vhost-user export: \S.*$/mu)
        yield* Effect.scoped(open(path("s")))
        expect(yield* stop).toMatchObject({ exit: 0 })
      })
  )

  const figures = {
    requests: Schema.Natural,
    reads: Schema.Natural,
    writes: Schema.Natural,
    flushes: Schema.Natural,
    others: Schema.Natural,
    bytesRead: Schema.Natural,
    bytesWritten: Schema.Natural,
    errors: Schema.Natural
  }
  const seconds = Schema.Finite.check(Schema.isGreaterThan(0))
  const decodeEvent = Schema.decodeUnknownSync(
    Schema.fromJsonString(Schema.Union([
      Schema.Struct({
        event: Schema.Literal("serving"),
        store: Schema.String,
        path: Schema.String,
        bytes: Schema.Natural,
        queues: Schema.Natural,
        readOnly: Schema.Boolean
      }),
      Schema.Struct({ event: Schema.Literal("connected"), frontend: Schema.Natural }),
      Schema.Struct({
        event: Schema.Literal("disconnected"),
        frontend: Schema.Natural,
        seconds,
        errno: Schema.NullOr(Schema.String),
        reason: Schema.String,
        ...figures
      }),
      Schema.Struct({ event: Schema.Literal("stopped"), connections: Schema.Natural, seconds, ...figures })
    ])),
    { onExcessProperty: "error" }
  )

  onBackend("--json: an object a line on stdout, and nothing on stderr", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { stop } = yield* serve("memory:1M", path("s"), "--json", "--queues", "2")
      const disk = yield* open(path("s"))
      yield* disk.write(0, [noise(8192)])
      yield* disk.discard(0, 4096)
      const { exit, stderr, stdout } = yield* stop
      const events = stdout.trimEnd().split("\n").map((line) => decodeEvent(line))
      const did = { requests: 2, reads: 0, writes: 1, flushes: 0, others: 1, bytesRead: 0, bytesWritten: 8192 }
      expect(events).toMatchObject([
        { event: "serving", store: "memory:1M", path: path("s"), bytes: MiB, queues: 2, readOnly: false },
        { event: "connected", frontend: 1 },
        { event: "disconnected", frontend: 1, errno: null, reason: "the server was stopped", errors: 0, ...did },
        { event: "stopped", connections: 1, errors: 0, ...did }
      ])
      expect([exit, stderr]).toStrictEqual([0, ""])
    }))
})

/** `script` runs a command on a terminal of its own; Debian has it in the package bsdutils, which is always there. */
const scriptIsHere = spawnSync("script", ["--version"]).status === 0
if (!scriptIsHere) console.warn("SKIPPED: the live line on a terminal: there is no program `script` on PATH")

describe.skipIf(!scriptIsHere)("on a terminal", () => {
  onBackend("draws a live line in place, and erases it before anything else is said", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))
      const command = [process.execPath, main, "serve", "memory:1M", "--socket", path("s")]
        .map((word) => `'${word}'`).join(" ")
      const parts = yield* Queue.unbounded<string>()
      const terminal = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn("script", ["-qefc", `exec ${command}`, "/dev/null"], {
            stdio: ["pipe", "pipe", "inherit"],
            env: { ...process.env, TERM: "xterm" }
          })
        ),
        (child) => Effect.sync(() => void child.kill("SIGKILL"))
      )
      const closed = once(terminal, "close")
      terminal.stdout.setEncoding("utf8").on("data", (text: string) => Queue.offerUnsafe(parts, text))
      let shown = ""
      const until = (pattern: RegExp) =>
        Queue.take(parts).pipe(
          Effect.map((part) => {
            shown += part
            return pattern.test(shown)
          }),
          Effect.repeat({ until: (found) => found })
        )
      yield* until(/serving /u)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* (yield* open(path("s"))).write(0, [noise(64 * KiB)])
        yield* until(/\d+ IOPS/u)
      }))
      yield* until(/disconnected/u)
      yield* until(/disconnected[^]*IOPS/u)
      // As the key does it.
      terminal.stdin.write("\u0003")
      yield* until(/stopped after[^\n]*\n/u)
      const [code]: Array<unknown> = yield* Effect.promise(() => closed)
      terminal.stdin.destroy()
      expect(code).toBe(0)
      const drawn = shown.split("\r\u001B[K")
      for (const line of drawn.slice(1)) {
        expect(line).toMatch(
          /^(?:\d+ IOPS {2}[\d.]+ [KMG]?i?B\/s {2}\d+ in flight(?:\^C)?|(?:serving|front-end|stopped) [^\r\n]*\r?\n)$/u
        )
      }
    }))
})
