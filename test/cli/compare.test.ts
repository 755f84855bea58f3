/**
 * Goal: `blkio compare` tells equal from different, by exit code and by the exact byte, on files and on exports, and never
 * says that disks are the same which are not, whoever reads its answer.
 * Method: the command itself, run as a program; images that differ in known bytes, as files and on each backend.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawnSync } from "node:child_process"
import { copyFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { slow } from "../support/Backend.ts"
import { forEachBackend } from "../support/backends.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { blkio, start } from "./blkio.ts"
import {
  convert,
  folder,
  inUse,
  noise,
  run,
  serveDevice,
  serveDeviceApart,
  writeImage,
  writeTypicalImage
} from "./stores.ts"

const SIZE = 3 * MiB + 512

describe("files", () => {
  onBackend("that are the same, with and without holes: exit 0", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("a"))
      run("cp", "--sparse=never", path("a"), path("b"))
      const [a, b] = [`file:${path("a")}`, `file:${path("b")}`] as const
      expect(yield* blkio("compare", a, b)).toStrictEqual({
        exit: 0,
        stdout: "identical: 33554432 bytes\n",
        stderr: ""
      })
      expect((yield* blkio("compare", a, a, "--depth", "1")).exit).toBe(0)
      const { exit, stderr, stdout } = yield* blkio("compare", a, b, "--json")
      expect([exit, stderr]).toStrictEqual([0, ""])
      expect(JSON.parse(stdout)).toStrictEqual({
        identical: true,
        offset: null,
        reason: null,
        sizes: [32 * MiB, 32 * MiB]
      })
    }))

  onBackend("that differ in one byte, at any place: its offset, and exit 1", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const bytes = noise(SIZE)
      writeFileSync(path("a"), bytes)
      for (const offset of [0, 1, 511, 512, MiB - 1, MiB, 2 * MiB + 77, SIZE - 513, SIZE - 1]) {
        const changed = bytes.slice()
        changed[offset] = 0
        // What follows does not matter.
        changed.fill(0, offset + 1, Math.max(offset + 1, SIZE - offset))
        writeFileSync(path("b"), changed)
        expect(yield* blkio("compare", `file:${path("a")}`, `file:${path("b")}`)).toStrictEqual({
          exit: 1,
          stdout: `different: at offset ${offset}\n`,
          stderr: ""
        })
      }
    }), 300_000)

  onBackend("that differ where one has a hole", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeImage(path("a"), 64 * MiB, [])
      writeImage(path("b"), 64 * MiB, [[41 * MiB + 5, Uint8Array.of(1)]])
      for (const [a, b] of [["a", "b"], ["b", "a"]] as const) {
        const { exit, stdout } = yield* blkio("compare", `file:${path(a)}`, `file:${path(b)}`, "--json")
        expect(exit).toBe(1)
        expect(JSON.parse(stdout)).toStrictEqual({
          identical: false,
          offset: 41 * MiB + 5,
          reason: "content",
          sizes: [64 * MiB, 64 * MiB]
        })
      }
    }))

  onBackend("of different size are different, at the shorter one's end if not before", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const bytes = noise(SIZE)
      writeFileSync(path("a"), bytes)
      writeFileSync(path("b"), bytes.subarray(0, MiB + 512))
      writeFileSync(path("c"), bytes.slice(0, MiB + 512).fill(0, 700))
      writeFileSync(path("empty"), "")
      const sizes = (other: string, size: number) =>
        `; file:${path("a")} has ${SIZE} bytes, file:${path(other)} has ${size}\n`
      for (
        const [other, size, expected] of [
          ["b", MiB + 512, `different: one ends at ${MiB + 512}`],
          ["c", MiB + 512, "different: at offset 700"],
          ["empty", 0, "different: one ends at 0"]
        ] as const
      ) {
        expect(yield* blkio("compare", `file:${path("a")}`, `file:${path(other)}`)).toStrictEqual({
          exit: 1,
          stdout: expected + sizes(other, size),
          stderr: ""
        })
      }
      const { exit, stdout } = yield* blkio("compare", `file:${path("b")}`, `file:${path("a")}`, "--json")
      expect(exit).toBe(1)
      expect(JSON.parse(stdout)).toStrictEqual({
        identical: false,
        offset: MiB + 512,
        reason: "capacity",
        sizes: [MiB + 512, SIZE]
      })
    }))

  onBackend("the exit code tells the difference also where nobody reads the answer", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB, 1))
      writeFileSync(path("b"), noise(MiB, 2))
      const { child, outcome } = yield* start("compare", `file:${path("a")}`, `file:${path("b")}`)
      child.stdout.destroy()
      expect(yield* outcome).toStrictEqual({ exit: 1, stdout: "", stderr: "" })
    }))

  onBackend("an answer that cannot be written is an error: ENOSPC", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB))
      copyFileSync(path("a"), path("b"))
      const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))
      const command = `exec "$0" "$1" compare "file:$2" "file:$3" >/dev/full`
      const { status, stderr } = spawnSync("sh", ["-c", command, process.execPath, main, path("a"), path("b")], {
        encoding: "utf8"
      })
      expect(stderr).toMatch(/^ENOSPC: output: [^\n]+\n$/u)
      expect(status).toBe(1)
    }))
})

describe("usage", () => {
  it.live.each<readonly [number, string, ReadonlyArray<string>]>([
    [2, "EINVAL: Missing required argument: A", []],
    [2, "EINVAL: Missing required argument: B", ["file:/nowhere/a"]],
    [2, "EINVAL: store: file: needs a path", ["file:/nowhere/a", "file:"]],
    [1, "ENOENT: open /nowhere/a: ", ["file:/nowhere/a", "file:/nowhere/b"]]
  ])("exit code %i: %s", ([code, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("compare", ...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([code, ""])
    }))

  it.live("--help has every flag and an example", () =>
    Effect.gen(function*() {
      const { stdout } = yield* blkio("compare", "--help")
      for (const word of ["<A> <B>", "--depth", "--json", "EXAMPLES", "blkio compare "]) expect(stdout).toContain(word)
    }))
})

forEachBackend("exports", (backend) => {
  onBackend(
    "two of them, and one with the image it serves; blocks of another size do not matter",
    () =>
      Effect.gen(function*() {
        const path = yield* folder
        // Not whole blocks of 4096 bytes.
        writeFileSync(path("a"), noise(SIZE))
        const other = convert(path("a"), path("b"), backend.formats.at(-1) ?? "raw")
        const a = yield* serveDevice(backend, { _tag: "raw", path: path("a") }, { readOnly: true })
        const b = yield* serveDevice(backend, other, { readOnly: true })
        const same = { exit: 0, stdout: `identical: ${SIZE} bytes\n`, stderr: "" }
        expect(yield* blkio("compare", a.device, b.device)).toStrictEqual(same)
        expect(yield* blkio("compare", `file:${path("a")}`, b.device)).toStrictEqual(same)

        const bytes = noise(4 * MiB)
        writeFileSync(path("whole"), bytes)
        const large = yield* serveDevice(backend, { _tag: "raw", path: path("whole") }, { blockSize: 4096 })
        expect((yield* blkio("compare", a.device, large.device)).stdout).toContain(`different: one ends at ${SIZE}; `)
        bytes[SIZE - 1]! ^= 1
        writeFileSync(path("whole"), bytes)
        expect((yield* blkio("compare", large.device, a.device)).stdout).toContain(`different: at offset ${SIZE - 1}; `)
      })
  )

  onBackend("a disk that dies is neither the same nor different", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeImage(path("a"), 64 * MiB, [])
      const { device, kill, pid } = yield* serveDeviceApart(backend, slow(500))
      const { outcome } = yield* start("compare", `file:${path("a")}`, device)
      yield* inUse({ pid })
      yield* kill("SIGKILL")
      const said = yield* outcome
      expect(said.stderr).toMatch(/^ENOTCONN: read \S+ at \d+ of \d+ bytes[^\n]*\n$/u)
      expect(said).toMatchObject({ exit: 1, stdout: "" })
    }))

  onBackend("SIGINT ends it with 130", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeImage(path("a"), 64 * MiB, [])
      const { device, pid } = yield* serveDevice(backend, slow(500))
      const { child, outcome } = yield* start("compare", device, `file:${path("a")}`)
      yield* inUse({ pid })
      child.kill("SIGINT")
      expect(yield* outcome).toStrictEqual({ exit: 130, stdout: "", stderr: "" })
      expect((yield* blkio("info", device)).exit).toBe(0)
    }))
})
