/**
 * Goal: the same content is the same disk through every format that the daemon knows, read and written, however it is opened and
 * named.
 * Method: images made by qemu-img, opened by the layer, hashed, written, and compared by qemu-img.
 */
import { describe, expect } from "@effect/vitest"
import { Effect } from "effect"
import { mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { relative } from "node:path"
import type { Source } from "../../src/QemuStorageDaemon/Image.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { withVariable } from "../support/environment.ts"
import {
  convert,
  createQcow2,
  encrypted,
  hash,
  hashThrough,
  makeContent,
  makeRaw,
  passphrase,
  refusal,
  run,
  sha256,
  SIZE
} from "../support/images.ts"
import { qsdIsHere } from "./requirement.ts"

describe.skipIf(!qsdIsHere)("the same content through", () => {
  onBackend("raw, whole and in part, qcow2 of both versions, vhdx and vdi is the same", () =>
    Effect.gen(function*() {
      const { content, expected, folder, raw } = yield* makeRaw()
      const part = `${folder}/part`
      writeFileSync(part, Buffer.concat([Buffer.alloc(512, 1), content, Buffer.alloc(1024, 2)]))
      yield* convert(raw, "qcow2", `${folder}/0.10.qcow2`, "-o", "compat=0.10")
      yield* convert(raw, "qcow2", `${folder}/1.1.qcow2`, "-c", "-o", "compat=1.1,cluster_size=4k")
      yield* convert(raw, "vhdx", `${folder}/disk.vhdx`)
      yield* convert(raw, "vdi", `${folder}/disk.VDI`)
      const images: ReadonlyArray<Source> = [
        raw,
        { _tag: "raw", file: part, offset: 512, size: SIZE },
        `${folder}/0.10.qcow2`,
        `${folder}/1.1.qcow2`,
        `${folder}/disk.vhdx`,
        `${folder}/disk.VDI`,
        { _tag: "throttle", file: { _tag: "qcow2", file: `${folder}/1.1.qcow2` }, limits: { bpsTotal: 512 * MiB } },
        { _tag: "blkdebug", file: { _tag: "vdi", file: `${folder}/disk.VDI` }, errors: [] },
        { _tag: "raw", file: { _tag: "vhdx", file: `${folder}/disk.vhdx` } }
      ]
      for (const image of images) expect([image, yield* hashThrough(image)]).toStrictEqual([image, expected])
    }))

  onBackend("each kind of vmdk is the same", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      for (
        const kind of [
          "monolithicSparse",
          "streamOptimized",
          "monolithicFlat",
          "twoGbMaxExtentSparse",
          "twoGbMaxExtentFlat"
        ]
      ) {
        const path = `${folder}/${kind}.vmdk`
        yield* convert(raw, "vmdk", path, "-o", `subformat=${kind}`)
        expect([kind, yield* hashThrough(path)]).toStrictEqual([kind, expected])
      }
    }))

  onBackend("luks and encrypted qcow2 is the same, with the passphrase alone", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      const [luks, qcow2] = [`${folder}/disk.luks`, `${folder}/disk.qcow2`]
      yield* convert(raw, "luks", luks, ...encrypted(""))
      yield* convert(raw, "qcow2", qcow2, ...encrypted("encrypt."))
      expect(readFileSync(qcow2).includes(readFileSync(raw).subarray(0, 4096))).toBe(false)
      expect(yield* hashThrough({ _tag: "luks", file: luks, passphrase })).toBe(expected)
      expect(yield* hashThrough({ _tag: "qcow2", file: qcow2, passphrase })).toBe(expected)
      expect(yield* refusal(luks)).toMatchObject({ _tag: "EINVAL", path: luks })
      expect(yield* refusal(qcow2)).toMatchObject({ _tag: "EINVAL", path: qcow2 })
    }))

  onBackend("a chain of three, in different folders and by relative names, is the same", () =>
    Effect.gen(function*() {
      const { content, folder } = yield* makeRaw()
      mkdirSync(`${folder}/a`)
      mkdirSync(`${folder}/b, c`)
      const [base, middle, top] = [`${folder}/base`, `${folder}/a/middle.img`, `${folder}/b, c/top.qcow2`] as const
      writeFileSync(base, content)
      const create = (path: string, backing: string, format: string) => createQcow2("-b", backing, "-F", format, path)
      yield* create(middle, "../base", "raw")
      yield* create(top, "../a/middle.img", "qcow2")
      const write = (path: string, byte: number, at: number) => {
        content.fill(byte, at, at + 65536)
        return run("qemu-io", "-f", "qcow2", "-c", `write -P ${byte} ${at} 64k`, path)
      }
      yield* write(middle, 1, MiB)
      yield* write(middle, 2, 2 * MiB)
      yield* write(top, 3, 2 * MiB)
      expect(yield* hashThrough(top)).toBe(sha256(content))
      // Described, it need not be what the image names.
      const other = `${folder}/other.raw`
      writeFileSync(other, makeContent(2))
      yield* createQcow2(`${folder}/over.qcow2`, String(SIZE))
      const over = { _tag: "qcow2", file: `${folder}/over.qcow2` } as const
      expect(yield* hashThrough({ ...over, backing: other })).toBe(sha256(makeContent(2)))
      expect(yield* hashThrough({ ...over, backing: top })).toBe(sha256(content))
      expect(yield* hashThrough({ ...over, backing: null })).toBe(sha256(Buffer.alloc(SIZE)))
      // A vmdk says of what is behind it that it is one, too.
      yield* run("qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", top, `${folder}/base.vmdk`)
      yield* run("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", `${folder}/top.vmdk`)
      expect(yield* hashThrough(`${folder}/top.vmdk`)).toBe(sha256(content))
    }))

  onBackend("each format that is written is what qemu-img reads", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const content = makeContent(3)
      const disks: ReadonlyArray<readonly [format: string, ...options: ReadonlyArray<string>]> = [
        ["raw"],
        ["qcow2", "-o", "compat=0.10"],
        ["qcow2", "-o", "compat=1.1"],
        ["vmdk"],
        ["vhdx"],
        ["vdi"]
      ]
      for (const [format, ...options] of disks) {
        const path = `${folder}/written.${format}`
        // Written over another content.
        yield* convert(raw, format, path, ...options)
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* QemuStorageDaemon.make(path)
          yield* disk.writeBytes(0, content)
          yield* disk.flush
          expect(yield* hash(disk)).toBe(sha256(content))
        }))
        yield* run("qemu-img", "convert", "-f", format, "-O", "raw", path, `${folder}/back`)
        expect([format, sha256(readFileSync(`${folder}/back`))]).toStrictEqual([format, sha256(content)])
        if (format !== "raw") yield* run("qemu-img", "check", "-q", "-f", format, path)
      }
      const luks = `${folder}/written.luks`
      yield* convert(raw, "luks", luks, ...encrypted(""))
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* QemuStorageDaemon.make({ _tag: "luks", file: luks, passphrase })
        yield* disk.writeBytes(0, content)
        yield* disk.flush
      }))
      writeFileSync(`${folder}/content`, content)
      yield* run(
        "qemu-img",
        "compare",
        ...encrypted("").slice(0, 2),
        "--image-opts",
        `driver=luks,file.filename=${luks},key-secret=s`,
        `driver=raw,file.filename=${folder}/content`
      )
    }))

  for (
    const [name, options] of [
      ["cache past the page cache and aio native", { cache: { direct: true }, aio: "native" }],
      ["aio io_uring", { aio: "io_uring" }],
      ["no flush", { cache: { noFlush: true } }],
      ["a thread of its own", { iothread: true }],
      ["discard ignored", { discard: "ignore" }],
      ["four queues and blocks of 4096", { numQueues: 4, blockSize: 4096 }],
      ["more queues than are used", { queues: 4, numQueues: 1 }]
    ] as const
  ) {
    onBackend(`${name} is the same, read and written`, () =>
      Effect.gen(function*() {
        const { expected, folder, raw } = yield* makeRaw()
        yield* convert(raw, "qcow2", `${folder}/disk.qcow2`)
        for (const path of [raw, `${folder}/disk.qcow2`]) {
          yield* Effect.scoped(Effect.gen(function*() {
            const disk = yield* QemuStorageDaemon.make(path, options)
            expect(yield* hash(disk)).toBe(expected)
            yield* disk.writeBytes(MiB, new Uint8Array(8192).fill(7))
            yield* disk.flush
            expect(yield* disk.readBytes(MiB, 8192)).toStrictEqual(new Uint8Array(8192).fill(7))
            expect(yield* disk.properties.get("num-queues")).toBe("numQueues" in options ? options.numQueues : 1)
            if ("blockSize" in options) {
              expect(disk.rules.requestAlignment).toBe(4096)
              expect(yield* Effect.flip(disk.queue(3).read(512, (yield* disk.allocate(512)).bytes))).toMatchObject({
                _tag: "EINVAL"
              })
            }
          }))
        }
      }))
  }

  onBackend("discard gives room back, unless it is ignored", () =>
    Effect.gen(function*() {
      const { folder } = yield* makeRaw()
      const path = `${folder}/full.raw`
      for (const discard of ["ignore", "unmap"] as const) {
        writeFileSync(path, Buffer.alloc(SIZE, 1))
        const before = statSync(path).blocks
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* QemuStorageDaemon.make(path, { discard })
          yield* disk.queue(0).discard(0, SIZE / 2)
        }))
        const after = statSync(path).blocks
        if (discard === "unmap") expect(after).toBeLessThan(before)
        else expect(after).toBe(before)
      }
    }))

  onBackend(
    "one image in three devices at once, and layers beside each other, is the same",
    () =>
      Effect.gen(function*() {
        const { expected, folder, raw } = yield* makeRaw()
        const path = `${folder}/disk.qcow2`
        yield* convert(raw, "qcow2", path)
        const hashes = yield* Effect.forEach([path, path, raw], (image) => hashThrough(image), { concurrency: 3 })
        expect(hashes).toStrictEqual([expected, expected, expected])
      })
  )

  onBackend(
    "a device that was opened to be read only refuses writes, and the file is as it was",
    () =>
      Effect.gen(function*() {
        const { expected, raw } = yield* makeRaw()
        const disk = yield* QemuStorageDaemon.make(raw, { readOnly: true })
        expect(yield* Effect.flip(disk.writeBytes(0, new Uint8Array(512).fill(1)))).toMatchObject({ _tag: "EBADF" })
        expect(sha256(readFileSync(raw))).toBe(expected)
      })
  )
})

describe.skipIf(!qsdIsHere)("a name", () => {
  onBackend("may have in it whatever a name may", () =>
    Effect.gen(function*() {
      const { content, expected, folder } = yield* makeRaw()
      const names = [
        "a,b.raw",
        "a b.raw",
        "nbd:host:10809.raw",
        "json:{}.raw",
        "fat:rw:x.raw",
        "-rf.raw",
        "größe 盤 💾.raw",
        "x=y;$(z)`.raw",
        "new\nline.raw",
        "'quoted\".raw",
        "%41.raw"
      ]
      for (const name of names) {
        writeFileSync(`${folder}/${name}`, content)
        expect([name, yield* hashThrough(`${folder}/${name}`)]).toStrictEqual([name, expected])
      }
      // Relative to where this process is.
      for (const name of ["-rf.raw", "json:{}.raw"]) {
        expect(yield* hashThrough(`${relative(process.cwd(), folder)}/${name}`)).toBe(expected)
      }
      yield* createQcow2("-b", "nbd:host:10809.raw", "-F", "raw", "-u", `${folder}/x.qcow2`, String(SIZE))
      // QEMU takes that for a server; it is one here as well, which is not followed.
      expect(yield* refusal(`${folder}/x.qcow2`)).toMatchObject({ _tag: "EINVAL" })
      yield* createQcow2("-b", "./nbd:host:10809.raw", "-F", "raw", `${folder}/y.qcow2`)
      expect(yield* hashThrough(`${folder}/y.qcow2`)).toBe(expected)
    }))

  onBackend("of a folder for temporary files may be relative", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      expect(yield* withVariable("TMPDIR", relative(process.cwd(), folder))(hashThrough(raw))).toBe(expected)
    }))

  onBackend("of a link is the link's, and its content that of the file", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      yield* convert(raw, "qcow2", `${folder}/real`)
      symlinkSync("real", `${folder}/link.qcow2`)
      expect(yield* hashThrough(`${folder}/link.qcow2`)).toBe(expected)
      expect(yield* refusal(`${folder}/real`)).toMatchObject({ _tag: "EINVAL" })
    }))
})
