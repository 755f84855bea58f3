/**
 * Goal: `blkio hash` gives the hash of a disk's content by each algorithm, whatever is behind the export, as `sha256sum` gives
 * it of the raw image.
 * Method: the command itself, run as a program, on published test vectors in files, and on images that each backend serves
 * (qcow2 where it can); `sha256sum` is the judge.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { createHash } from "node:crypto"
import { writeFileSync } from "node:fs"
import { slow } from "../support/Backend.ts"
import { forEachBackend, makeImage } from "../support/backends.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { blkio, start } from "./blkio.ts"
import {
  convert,
  deviceOn,
  folder,
  inUse,
  noise,
  run,
  serveDevice,
  serveDeviceApart,
  writeImage,
  writeTypicalImage
} from "./stores.ts"

/** The input of BLAKE3's test_vectors.json. */
const blake3Input = (length: number) => Uint8Array.from({ length }, (_, i) => i % 251)

/** The input of xxHash's sanity test. */
const xxHashInput = (length: number) => {
  let state = 2_654_435_761n
  return Uint8Array.from({ length }, () => {
    const byte = Number(state >> 56n)
    state = BigInt.asUintN(64, state * 0x9e37_79b1_85eb_ca8dn)
    return byte
  })
}

describe("known vectors", () => {
  onBackend("of each algorithm", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const vectors: ReadonlyArray<readonly [string, Uint8Array, string]> = [
        ["sha256", new Uint8Array(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
        ["sha256", new Uint8Array(MiB), "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"],
        ["blake3", new Uint8Array(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"],
        ["blake3", blake3Input(1024), "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"],
        ["blake3", blake3Input(102_400), "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"],
        ["xxh3", new Uint8Array(), "2d06800538d394c2"],
        ["xxh3", xxHashInput(512), "617e49599013cb6b"],
        ["xxh3", xxHashInput(2048), "dd59e2c3a5f038e0"]
      ]
      for (const [algorithm, bytes, expected] of vectors) {
        const file = path("vector")
        writeFileSync(file, bytes)
        expect(yield* blkio("hash", `file:${file}`, "--algorithm", algorithm)).toStrictEqual({
          exit: 0,
          stdout: `${expected}  file:${file}\n`,
          stderr: ""
        })
      }
    }))
})

describe("of a file", () => {
  onBackend("is that of sha256sum, holes or none, at any depth", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeTypicalImage(path("sparse"))
      writeFileSync(path("full"), noise(5 * MiB + 512))
      writeImage(path("hole"), 3 * MiB + 1024, [])
      for (const name of ["sparse", "full", "hole"]) {
        const [expected] = run("sha256sum", path(name)).split(" ")
        for (const depth of ["1", "13"]) {
          const { stdout } = yield* blkio("hash", `file:${path(name)}`, "--depth", depth)
          expect(stdout).toBe(`${expected}  file:${path(name)}\n`)
        }
      }
    }))

  onBackend("--json is one object", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(MiB))
      const { exit, stderr, stdout } = yield* blkio("hash", `file:${path("a")}`, "--json")
      expect([exit, stderr]).toStrictEqual([0, ""])
      const report: Record<string, unknown> = JSON.parse(stdout)
      expect(Object.keys(report)).toStrictEqual(["algorithm", "hash", "bytes", "seconds"])
      const hash = createHash("sha256").update(noise(MiB)).digest("hex")
      expect(report).toMatchObject({ algorithm: "sha256", hash, bytes: MiB })
      expect(report["seconds"]).toBeGreaterThan(0)
    }))

  onBackend("that is not whole blocks is refused: its end would be left out", () =>
    Effect.gen(function*() {
      const path = yield* folder
      writeFileSync(path("a"), noise(1000))
      const { exit, stderr, stdout } = yield* blkio("hash", `file:${path("a")}`)
      expect(stderr).toMatch(/^EINVAL: open [^\n]*1000 bytes: [^\n]*multiple of 512\n$/u)
      expect([exit, stdout]).toStrictEqual([1, ""])
    }))
})

describe("usage", () => {
  it.live.each<readonly [number, string, ReadonlyArray<string>]>([
    [2, "EINVAL: Missing required argument: STORE", []],
    [2, "EINVAL: Invalid value for flag --algorithm: \"md5\"", ["file:/x", "--algorithm", "md5"]],
    [2, "ENOENT: device: there is no driver \"nvme\"", ["nvme,path=/x"]],
    [1, "ENOENT: open /nowhere/disk.raw: ", ["file:/nowhere/disk.raw"]],
    [1, "ENOENT: connect /nowhere/disk.sock: ", [deviceOn("/nowhere/disk.sock")]]
  ])("exit code %i: %s", ([code, expected, args]) =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("hash", ...args)
      expect(stderr.slice(0, expected.length)).toBe(expected)
      expect(stderr.trimEnd()).not.toContain("\n")
      expect([exit, stdout]).toStrictEqual([code, ""])
    }))

  it.live("--help has every flag and an example", () =>
    Effect.gen(function*() {
      const { stdout } = yield* blkio("hash", "--help")
      for (const word of ["STORE", "--algorithm", "blake3", "--depth", "--json", "EXAMPLES", "blkio hash "]) {
        expect(stdout).toContain(word)
      }
    }))
})

forEachBackend("of an export", (backend) => {
  for (const format of backend.formats) {
    onBackend(`of a ${format} image, which is read-only, is that of its raw form`, () =>
      Effect.gen(function*() {
        const path = yield* folder
        writeTypicalImage(path("a.raw"))
        const image = convert(path("a.raw"), path("served"), format)
        const { device } = yield* serveDevice(backend, image, { readOnly: true })
        const [expected] = run("sha256sum", path("a.raw")).split(" ")
        expect((yield* blkio("hash", device)).stdout).toBe(`${expected}  ${device}\n`)
        for (const algorithm of ["blake3", "xxh3"]) {
          const [ours, theirs] = yield* Effect.all([
            blkio("hash", device, "--algorithm", algorithm),
            blkio("hash", `file:${path("a.raw")}`, "--algorithm", algorithm)
          ])
          expect(ours.exit).toBe(0)
          expect(ours.stdout.split(" ")[0]).toBe(theirs.stdout.split(" ")[0])
        }
      }))
  }

  onBackend("of one that was written a moment ago", () =>
    Effect.gen(function*() {
      const path = yield* folder
      const image = yield* makeImage(backend.formats.at(-1) ?? "raw", 8 * MiB)
      writeFileSync(path("a.raw"), noise(8 * MiB))
      const { device } = yield* serveDevice(backend, image)
      expect((yield* blkio("copy", `file:${path("a.raw")}`, device)).exit).toBe(0)
      const [expected] = run("sha256sum", path("a.raw")).split(" ")
      expect((yield* blkio("hash", device)).stdout).toBe(`${expected}  ${device}\n`)
    }))

  onBackend("a disk that dies gives no hash", () =>
    Effect.gen(function*() {
      const { device, kill, pid } = yield* serveDeviceApart(backend, slow(500))
      const { outcome } = yield* start("hash", device)
      yield* inUse({ pid })
      yield* kill("SIGKILL")
      const said = yield* outcome
      expect(said.stderr).toMatch(/^ENOTCONN: read \S+ at \d+ of \d+ bytes[^\n]*\n$/u)
      expect(said).toMatchObject({ exit: 1, stdout: "" })
    }))

  onBackend("SIGINT ends it with 130, and the next client is served", () =>
    Effect.gen(function*() {
      const { device, pid } = yield* serveDevice(backend, slow(500))
      const { child, outcome } = yield* start("hash", device)
      yield* inUse({ pid })
      child.kill("SIGINT")
      expect(yield* outcome).toStrictEqual({ exit: 130, stdout: "", stderr: "" })
      expect((yield* blkio("info", device)).exit).toBe(0)
    }))
})
