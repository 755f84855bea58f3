/**
 * Goal: images are what they are said to be, and every way in which a tool can object is a typed error with its words.
 * Method: the real qemu-img and qemu-io, which come with what the daemon's tests need.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { ByteSize, Effect, FileSystem, Path } from "effect"
import { DiskImage } from "../../src/testing/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { withVariable } from "../support/environment.ts"

const imageNamed = Effect.fnUntraced(function*(name: string) {
  const fs = yield* FileSystem.FileSystem
  return (yield* Path.Path).join(yield* fs.makeTempDirectoryScoped({ prefix: "image-test-" }), name)
})

/** With a PATH on which there is nothing. */
const withoutTools = withVariable("PATH", "/nowhere")

describe("DiskImage", () => {
  it.live("a raw image is of that size, of zeros, and takes no room", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const path = yield* imageNamed("disk.raw")
      yield* fs.writeFileString(path, "what was there")
      yield* DiskImage.createRaw(path, ByteSize.mebibytes(2))
      const { blocks, size } = yield* fs.stat(path)
      expect(Number(size)).toBe(2 * 1024 * 1024)
      expect(blocks).toMatchObject({ value: 0n })
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a size that is none is EINVAL, a folder that is not there ENOENT, a folder in its place EIO", () =>
    Effect.gen(function*() {
      const path = yield* imageNamed("disk.raw")
      for (const size of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
        expect(yield* Effect.flip(DiskImage.createRaw(path, size))).toMatchObject({ _tag: "EINVAL", path })
        expect(yield* Effect.flip(DiskImage.createQcow2(path, size))).toMatchObject({ _tag: "EINVAL", path })
      }
      expect(yield* Effect.flip(DiskImage.createRaw(`${path}/x/y`, 512))).toMatchObject({ _tag: "ENOENT" })
      expect(yield* Effect.flip(DiskImage.createRaw("/", 512))).toMatchObject({ _tag: "EIO" })
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a tool that is not there is ENOENT and names its package", () =>
    Effect.gen(function*() {
      const path = yield* imageNamed("disk.raw")
      const error = yield* withoutTools(Effect.flip(DiskImage.qemuIo(path, "raw", ["read 0 512"])))
      expect(error).toMatchObject({ _tag: "ENOENT", operation: "qemu-io" })
      expect(error.detail).toContain("qemu-utils")
      expect(yield* withoutTools(Effect.flip(DiskImage.createQcow2(path, 512)))).toMatchObject({ _tag: "ENOENT" })
    }).pipe(Effect.provide(NodeServices.layer)))

  describe.skipIf(!qsdIsHere)("with QEMU's tools", () => {
    it.live("what is written is read, in either format", () =>
      Effect.gen(function*() {
        for (const format of ["raw", "qcow2"] as const) {
          const path = yield* imageNamed(`disk.${format}`)
          yield* format === "raw" ? DiskImage.createRaw(path, 65536) : DiskImage.createQcow2(path, 65536)
          const output = yield* DiskImage.qemuIo(path, format, [
            "write -P 0xa5 512 1024",
            "read -P 0xa5 512 1024",
            "read -P 0 0 512",
            "read -P 0 1536 64000"
          ])
          expect(output).toContain("wrote 1024/1024 bytes at offset 512")
          expect(output).toContain("read 64000/64000 bytes at offset 1536")
        }
      }).pipe(Effect.provide(NodeServices.layer)))

    it.live.each<readonly [string, ReadonlyArray<string>, string]>([
      [
        "a pattern that differs",
        ["read -P 1 0 512", "read 0 512"],
        "Pattern verification failed at offset 0, 512 bytes"
      ],
      ["a range beyond the end", ["read 1M 512"], "read failed: Input/output error"],
      ["an unknown command", ["reed 0 512"], "command \"reed\" not found"]
    ])("%s is EIO, in qemu-io's words", ([, commands, words]) =>
      Effect.gen(function*() {
        const path = yield* imageNamed("disk.raw")
        yield* DiskImage.createRaw(path, 65536)
        const error = yield* Effect.flip(DiskImage.qemuIo(path, "raw", commands))
        expect(error).toMatchObject({ _tag: "EIO", operation: "qemu-io", path })
        expect(error.detail).toContain(words)
      }).pipe(Effect.provide(NodeServices.layer)))

    it.live("an image that is not there, or in another format, is EIO", () =>
      Effect.gen(function*() {
        const path = yield* imageNamed("disk.raw")
        expect((yield* Effect.flip(DiskImage.qemuIo(path, "raw", ["read 0 512"]))).detail).toContain("No such file")
        yield* DiskImage.createRaw(path, 65536)
        expect((yield* Effect.flip(DiskImage.qemuIo(path, "qcow2", []))).detail).toContain("not in qcow2 format")
        expect(yield* Effect.flip(DiskImage.createQcow2("/nowhere/disk.qcow2", 512))).toMatchObject({ _tag: "EIO" })
      }).pipe(Effect.provide(NodeServices.layer)))
  })
})
