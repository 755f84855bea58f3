/**
 * Goal: `blkio copy` makes the target hold what the source holds, leaves holes holes, and never calls a part of a copy a
 * success: whatever goes wrong is exit code 1 (2 for wrong usage), an errno, an offset, and not a word on stdout.
 * Method: the command itself, run as a program, between files and exports of each backend; the file system is the judge, and
 * qemu-img of qcow2 images. A target that drops what is written, one that fails at a known block and one that is killed stand for
 * disks that go wrong.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { describePosition, draw } from "../../src/cli/ProgressBar.ts"
import { slow, type Zeroes } from "../support/Backend.ts"
import { forEachBackend, makeImage } from "../support/backends.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { blkio, start } from "./blkio.ts"
import {
  allocatedBytes,
  folder,
  holds,
  noise,
  sameFiles,
  serveDevice,
  serveDeviceApart,
  writeImage,
  writeTypicalImage
} from "./stores.ts"

const GiB = 1024 * MiB

/** Progress off a terminal: whole lines. */
const LINES =
  /^(?:(?:copy|verify) +\d+% {2}[\d.]+ [KMGT]?i?B of [\d.]+ [KMGT]iB {2}[\d.]+ [KMGT]?i?B\/s {2}ETA \S+\n)*/u

/** The line that says why, without the progress before it. */
const reasonIn = (stderr: string): string => stderr.replace(LINES, "")

/** A source of which nothing arrives for some time: 64 MiB in 8 MiB steps of half a second. */
const slowSource = slow(500)

const zeroes = (size: number): Zeroes => ({ _tag: "zeroes", size })

describe("usage", () => {
  const image = "file:/nowhere/disk.raw"
  it.live.each<readonly [string, string, ReadonlyArray<string>]>([
    ["no store", "EINVAL: Missing required argument: SRC", []],
    ["one store", "EINVAL: Missing required argument: DST", [image]],
    ["three stores", "EINVAL: Unexpected positional argument", [image, image, image]],
    ["a path alone", "ENOENT: device: there is no driver \"/disk.raw\"", ["/disk.raw", image]],
    ["no path", "EINVAL: store: file: needs a path", ["file:", image]],
    ["no path of the target", "EINVAL: store: file: needs a path", [image, "file:"]],
    ["an unknown property", "ENOENT: set property: ", ["virtio-blk-vhost-user,path=/x,speed=1", image]],
    ["depth 0", "EINVAL: Invalid value for flag --depth: \"0\"", [image, image, "--depth", "0"]],
    ["no bytes", "EINVAL: Invalid value for flag --blocksize: \"-1\"", [image, image, "--blocksize=-1"]],
    ["unknown flag", "EINVAL: Unrecognized flag: --fast", [image, image, "--fast"]]
  ])("%s: exit code 2", ([, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("copy", ...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([2, ""])
    }))

  it.live("a lone path is told how a file is named", () =>
    Effect.gen(function*() {
      const { stderr } = yield* blkio("copy", "disk.raw", image)
      expect(stderr).toContain("; a file is file:PATH")
    }))

  it.live("--help has every flag and an example", () =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("copy", "--help")
      for (const word of ["SRC", "DST", "--verify", "--depth", "--blocksize", "--json", "EXAMPLES", "blkio copy "]) {
        expect(stdout).toContain(word)
      }
      expect([exit, stderr]).toStrictEqual([0, ""])
    }))
})

describe("between files", () => {
  onBackend("copies, and says bytes, zeroes, seconds and rate", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      const said = yield* blkio("copy", `file:${path("a")}`, `file:${path("b")}`, "--verify")
      expect(said.stdout).toMatch(
        /^copied 33554432 bytes \(32\.0 MiB\), \d+ of them zeroes, in [\d.]+ s, [\d.]+ [KMG]iB\/s, verified\n$/u
      )
      expect(said.exit).toBe(0)
      expect(sameFiles(path("a"), path("b"))).toBe(true)
    }))

  onBackend("--json is one object, and stderr stays empty", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      const args = ["copy", `file:${path("a")}`, `file:${path("b")}`, "--json"]
      const { exit, stderr, stdout } = yield* blkio(...args)
      expect([exit, stderr]).toStrictEqual([0, ""])
      const report: Record<string, unknown> = JSON.parse(stdout)
      expect(Object.keys(report)).toStrictEqual(["bytes", "zeroes", "seconds", "verified"])
      // What is not zero: 0.5 MiB, 2 MiB from 4096 before 5 MiB in grains of 64 KiB, one grain, and one grain.
      const data = MiB / 2 + 2 * MiB + 65_536 + 65_536 + 65_536
      expect(report).toMatchObject({ bytes: 32 * MiB, zeroes: 32 * MiB - data, verified: false })
      expect(report["seconds"]).toBeGreaterThan(0)
      expect(JSON.parse((yield* blkio(...args, "--verify")).stdout)).toMatchObject({ verified: true })
    }))

  onBackend("a sparse copy takes no more room than its source, also over old data", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      writeFileSync(path("old"), noise(32 * MiB))
      for (const target of ["new", "old"]) {
        expect((yield* blkio("copy", `file:${path("a")}`, `file:${path(target)}`)).exit).toBe(0)
        expect(sameFiles(path("a"), path(target))).toBe(true)
        // The source has a MiB of written zeroes, which become a hole.
        expect(allocatedBytes(path(target))).toBeLessThan((allocatedBytes(path("a")) - MiB) * 1.05)
      }
    }))

  onBackend(
    "skips holes without reading them: 256 GiB of nothing are copied and verified in no time",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        writeImage(path("a"), 256 * GiB, [[200 * GiB + 4096, noise(8192)]])
        const said = yield* blkio("copy", `file:${path("a")}`, `file:${path("b")}`, "--verify", "--json")
        expect(JSON.parse(said.stdout)).toMatchObject({ bytes: 256 * GiB, zeroes: 256 * GiB - 65_536, verified: true })
        expect(allocatedBytes(path("b"))).toBeLessThan(MiB)
        expect(statSync(path("b")).size).toBe(256 * GiB)
      })
  )

  onBackend("a smaller target grows, a larger one keeps its size and its end", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB, 1))
      writeFileSync(path("small"), noise(4096, 2))
      writeFileSync(path("large"), noise(2 * MiB + 100, 3))
      for (const target of ["small", "large"]) {
        expect((yield* blkio("copy", `file:${path("a")}`, `file:${path(target)}`, "--verify")).exit).toBe(0)
      }
      expect(sameFiles(path("a"), path("small"))).toBe(true)
      const large = readFileSync(path("large"))
      expect(large.length).toBe(2 * MiB + 100)
      expect(large.subarray(0, MiB).equals(readFileSync(path("a")))).toBe(true)
      expect(large.subarray(MiB).equals(noise(2 * MiB + 100, 3).subarray(MiB))).toBe(true)
    }))

  onBackend("an empty source is an empty copy", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), "")
      const said = yield* blkio("copy", `file:${path("a")}`, `file:${path("b")}`, "--verify", "--json")
      expect(JSON.parse(said.stdout)).toMatchObject({ bytes: 0, zeroes: 0, verified: true })
      expect(statSync(path("b")).size).toBe(0)
    }))

  onBackend("any depth and block size give the same copy", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      for (const [depth, blocksize] of [[1, 65_536], [3, 512 * 1000], [64, 4 * MiB], [2, 64 * MiB]] as const) {
        const flags = ["--depth", String(depth), "--blocksize", String(blocksize), "--json"]
        expect(yield* blkio("copy", `file:${path("a")}`, `file:${path("b")}`, ...flags)).toMatchObject({ exit: 0 })
        expect(sameFiles(path("a"), path("b"))).toBe(true)
      }
    }))

  onBackend("a source that cannot be read leaves no target behind", () =>
    Effect.gen(function*() {
      const path = yield* folder
      mkdirSync(path("directory"))
      writeFileSync(path("half"), new Uint8Array(1000))
      for (
        const [source, expected] of [
          ["missing", "ENOENT: open "],
          ["directory", "EISDIR: open "],
          ["half", "EINVAL: open "]
        ] as const
      ) {
        const { exit, stderr, stdout } = yield* blkio("copy", `file:${path(source)}`, `file:${path("b")}`)
        expect(stderr.slice(0, expected.length)).toBe(expected)
        expect(stderr).toContain(path(source))
        expect(stderr.trimEnd()).not.toContain("\n")
        expect([exit, stdout]).toStrictEqual([1, ""])
        expect(existsSync(path("b"))).toBe(false)
      }
    }))

  onBackend("a target that cannot be made", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB))
      const { exit, stderr, stdout } = yield* blkio("copy", `file:${path("a")}`, `file:${path("no/b")}`)
      expect(stderr).toMatch(/^ENOENT: open [^\n]+\n$/u)
      expect([exit, stdout]).toStrictEqual([1, ""])
    }))

  onBackend("a store is not copied onto itself, by whatever name", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB))
      symlinkSync(path("a"), path("link"))
      const { exit, stderr } = yield* blkio("copy", `file:${path("a")}`, `file:${path("link")}`)
      expect(stderr).toMatch(/^EINVAL: copy: .* are the same\n$/u)
      expect(exit).toBe(2)
    }))

  onBackend("is done although nobody reads what it says", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      const { child, outcome } = yield* start("copy", `file:${path("a")}`, `file:${path("b")}`, "--depth", "1")
      child.stdout.destroy()
      child.stderr.destroy()
      expect((yield* outcome).exit).toBe(0)
      expect(sameFiles(path("a"), path("b"))).toBe(true)
    }))
})

forEachBackend("with exports", (backend) => {
  for (const format of backend.formats) {
    onBackend(`raw to ${format} to raw is what it was, and as small`, () =>
      Effect.gen(function*() {
        const path = yield* folder
        writeTypicalImage(path("a.raw"))
        const image = yield* makeImage(format, 32 * MiB)
        yield* Effect.scoped(Effect.gen(function*() {
          const { device } = yield* serveDevice(backend, image)
          expect((yield* blkio("copy", `file:${path("a.raw")}`, device, "--verify")).exit).toBe(0)
          // The source of the way back is read-only for us, and may be for the backend.
          expect((yield* blkio("copy", device, `file:${path("c.raw")}`, "--verify")).exit).toBe(0)
        }))
        expect(holds(image, path("a.raw"))).toBe(true)
        expect(sameFiles(path("a.raw"), path("c.raw"))).toBe(true)
        const least = allocatedBytes(path("a.raw")) - MiB
        expect(allocatedBytes(path("c.raw"))).toBeLessThan(least * 1.05)
        // Clusters of 64 KiB around what is data, and the tables.
        expect(allocatedBytes(image.path)).toBeLessThan(least + 8 * 65_536)
      }))
  }

  onBackend("from export to export, of which the first is read-only", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a.raw"))
      writeFileSync(path("b.raw"), noise(32 * MiB))
      const source = yield* serveDevice(backend, { _tag: "raw", path: path("a.raw") }, { readOnly: true })
      const target = yield* serveDevice(backend, { _tag: "raw", path: path("b.raw") }, { numQueues: 2 })
      const said = yield* blkio("copy", source.device, `${target.device},num-queues=2`, "--verify", "--json")
      expect(said).toMatchObject({ exit: 0, stderr: "" })
      expect(sameFiles(path("a.raw"), path("b.raw"))).toBe(true)
    }))

  onBackend("a target that is too small, read-only, or has larger blocks", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(2 * MiB))
      const source = `file:${path("a")}`
      const small = yield* serveDevice(backend, zeroes(MiB))
      const tooSmall = yield* blkio("copy", source, small.device)
      expect(tooSmall.stderr).toMatch(/^EINVAL: copy of 2097152 bytes: [^\n]*capacity 1048576[^\n]*\n$/u)
      expect(tooSmall).toMatchObject({ exit: 1, stdout: "" })

      const readOnly = yield* serveDevice(backend, zeroes(2 * MiB), { readOnly: true })
      const refused = yield* blkio("copy", source, readOnly.device)
      expect(refused.stderr).toMatch(/^EROFS: start: [^\n]+\n$/u)
      expect(refused).toMatchObject({ exit: 1, stdout: "" })
      const asked = yield* blkio("copy", source, `${readOnly.device},read-only=true`)
      expect(asked.stderr).toMatch(/^EBADF: store [^\n]+ read-only[^\n]+\n$/u)
      expect(asked).toMatchObject({ exit: 2, stdout: "" })

      const large = yield* serveDevice(backend, zeroes(2 * MiB), { blockSize: 4096 })
      const wrong = yield* blkio("copy", source, large.device, "--blocksize", "512")
      expect(wrong.stderr).toBe("EINVAL: copy: block size 512: must be a multiple of 4096\n")
      expect(wrong).toMatchObject({ exit: 2, stdout: "" })
      expect((yield* blkio("copy", source, large.device)).exit).toBe(0)
    }))

  onBackend("--verify finds the first byte that did not arrive", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeImage(path("a"), 8 * MiB, [[3 * MiB + 4101, noise(3)], [5 * MiB, noise(512)]])
      // It takes every write with thanks, and has only zeroes to give.
      const { device, socketPath } = yield* serveDevice(backend, zeroes(8 * MiB))
      expect((yield* blkio("copy", `file:${path("a")}`, device)).exit).toBe(0)
      for (const json of [[], ["--json"]]) {
        const { exit, stderr, stdout } = yield* blkio("copy", `file:${path("a")}`, device, "--verify", ...json)
        expect(reasonIn(stderr)).toBe(
          `EIO: verify ${socketPath} at ${3 * MiB + 4101}: the target differs from the source\n`
        )
        expect([exit, stdout]).toStrictEqual([1, ""])
      }
    }))

  onBackend(
    "a block that cannot be written: EIO, the disk, the offset, and that the target is incomplete",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        writeFileSync(path("a"), noise(4 * MiB))
        const bad = 3 * MiB + 7 * 512
        const disk = { ...zeroes(4 * MiB), fault: { operation: "write", offset: bad } } as const
        const { device, socketPath } = yield* serveDevice(backend, disk)
        const { exit, stderr, stdout } = yield* blkio("copy", `file:${path("a")}`, device, "--json")
        expect(stderr).toContain(` ${socketPath} at `)
        const [, offset, length] =
          /^EIO: write \S+ at (\d+) of (\d+) bytes(?: on queue 0)?: .* is incomplete, \d+ of 4194304 bytes are there\n$/u
            .exec(stderr) ?? []
        expect(Number(offset)).toBeLessThanOrEqual(bad)
        expect(Number(offset) + Number(length)).toBeGreaterThan(bad)
        expect([exit, stdout]).toStrictEqual([1, ""])
      })
  )

  onBackend(
    "a backend that is killed in mid-copy: exit 1, ENOTCONN, the offset, and no word of success",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        const { device, kill } = yield* serveDeviceApart(backend, slowSource)
        const { outcome, stderr } = yield* start("copy", device, `file:${path("b")}`, "--verify")
        yield* stderr
        yield* kill("SIGKILL")
        const said = yield* outcome
        expect(reasonIn(said.stderr)).toMatch(
          /^ENOTCONN: read \S+ at \d+ of \d+ bytes(?: on queue 0)?: [^\n]+ is incomplete, \d+ of 67108864 bytes are there\n$/u
        )
        expect(said.stderr).not.toMatch(/copied|verified|identical|success/u)
        expect(said).toMatchObject({ exit: 1, stdout: "" })
      })
  )

  onBackend(
    "SIGINT in mid-copy: exit 130, what is missing, and the export serves the next",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        const { device } = yield* serveDevice(backend, slowSource)
        const { child, outcome, stderr } = yield* start("copy", device, `file:${path("b")}`)
        yield* stderr
        child.kill("SIGINT")
        const said = yield* outcome
        expect(reasonIn(said.stderr)).toMatch(
          /^EINTR: copy: interrupted; [^\n]+ is incomplete, \d+ of 67108864 bytes[^\n]*\n$/u
        )
        expect(said).toMatchObject({ exit: 130, stdout: "" })
        expect((yield* blkio("info", device)).exit).toBe(0)
      })
  )

  onBackend("off a terminal it says how far it is by lines, a second apart", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const { device } = yield* serveDevice(backend, slowSource)
      const said = yield* blkio("copy", device, `file:${path("b")}`)
      expect(said.exit).toBe(0)
      expect(reasonIn(said.stderr)).toBe("")
      expect(said.stderr).not.toContain("\r")
      expect(said.stderr).not.toContain("\u001B")
      const lines = said.stderr.trimEnd().split("\n")
      const seconds = Number(/in ([\d.]+) s/u.exec(said.stdout)?.[1])
      expect(lines.length).toBeGreaterThanOrEqual(1)
      expect(lines.length).toBeLessThanOrEqual(seconds)
      const percents = lines.map((line) => Number(/(\d+)%/u.exec(line)?.[1]))
      expect(percents).toStrictEqual(percents.toSorted((a, b) => a - b))
    }))
})

/** `script` runs a command on a terminal of its own; Debian has it in the package bsdutils, which is always there. */
const scriptIsHere = spawnSync("script", ["--version"]).status === 0
if (!scriptIsHere) console.warn("SKIPPED: the progress bar on a terminal: there is no program `script` on PATH")

describe.skipIf(!scriptIsHere)("on a terminal", () => {
  forEachBackend("copying", (backend) => {
    onBackend("it draws a bar in place, erases it, and leaves the result", () =>
      Effect.gen(function*() {
        const path = yield* folder
        const { device } = yield* serveDevice(backend, slowSource)
        const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))
        const command = [process.execPath, main, "copy", device, `file:${path("b")}`].map((word) => `'${word}'`).join(
          " "
        )
        const shown = yield* Effect.promise(async () => {
          const terminal = spawn("script", ["-qefc", command, "/dev/null"], {
            stdio: ["pipe", "pipe", "inherit"],
            env: { ...process.env, TERM: "xterm" }
          })
          let text = ""
          terminal.stdout.setEncoding("utf8").on("data", (more: string) => {
            text += more
          })
          const [code]: Array<unknown> = await once(terminal, "close")
          terminal.stdin.destroy()
          expect(code).toBe(0)
          return text
        })
        const drawn = shown.split("\r\u001B[K")
        expect(drawn.length).toBeGreaterThan(10)
        expect(drawn[0]).toBe("")
        for (const bar of drawn.slice(1, -1)) {
          expect(bar).toMatch(/^copy \[#*\.*\] +\d+% {2}.* of 64\.0 MiB {2}.*\/s {2}ETA \S+$/u)
          expect(bar.length).toBeLessThan(80)
        }
        expect(drawn.at(-1)).toMatch(/^copied 67108864 bytes [^\n]*\n$/u)
      }), 300_000)
  })
})

describe("the bar", () => {
  it("fits its line, whatever the width", () => {
    const position = { done: 3 * GiB, total: 4 * GiB }
    expect(draw("copy", position, 256 * MiB, 200)).toBe(
      `copy [${"#".repeat(30)}${".".repeat(10)}]  75%  3.0 GiB of 4.0 GiB  256.0 MiB/s  ETA 0:04`
    )
    for (let columns = 1; columns < 200; columns++) {
      expect(draw("copy", position, 256 * MiB, columns).length).toBeLessThan(columns)
    }
  })

  it("says what is left, and that it cannot know it where nothing moves", () => {
    expect(describePosition({ done: 0, total: 0 }, 0)).toBe("100%  0 B of 0 B  0 B/s  ETA unknown")
    expect(describePosition({ done: 512, total: 2048 }, 512)).toBe(" 25%  512 B of 2.0 KiB  512 B/s  ETA 0:03")
    expect(describePosition({ done: 0, total: 4 * GiB }, MiB)).toContain("ETA 1:08:16")
  })
})
