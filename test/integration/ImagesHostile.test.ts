/**
 * Goal: what an image says decides nothing that its owner has not said: it is not taken for another format, and opens no other
 * file of the host.
 * Method: images of an attacker: headers in raw disks, backing files, data files and extents that name any file; and pipes and folders
 * in the place of images.
 */
import { describe, expect } from "@effect/vitest"
import { Effect } from "effect"
import { chmodSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import type { Image, Source } from "../../src/QemuStorageDaemon/Image.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import {
  convert,
  createQcow2,
  hashThrough,
  makeFolder,
  makeRaw,
  openTransport,
  passphrase,
  refusal,
  run,
  sha256
} from "../support/images.ts"
import { qsdIsHere } from "./requirement.ts"

describe.skipIf(!qsdIsHere)("what a disk's content says", () => {
  onBackend(
    "is content where the disk is raw: a guest that writes a header gets its header, and nothing else",
    () =>
      Effect.gen(function*() {
        const folder = yield* makeFolder
        writeFileSync(`${folder}/secret`, "not for the guest".repeat(100))
        yield* createQcow2("-b", `${folder}/secret`, "-F", "raw", `${folder}/evil`, "1M")
        const evil = readFileSync(`${folder}/evil`)
        const [raw, img, bare] = [`${folder}/disk.raw`, `${folder}/disk.img`, `${folder}/disk`] as const
        for (const path of [raw, img, bare]) writeFileSync(path, Buffer.alloc(MiB))
        // Served as raw, all of them, until the guest writes.
        for (const path of [raw, img, bare]) {
          yield* Effect.scoped(Effect.gen(function*() {
            const { daemon, disk } = yield* openTransport(path)
            yield* disk.writeBytes(0, evil)
            yield* disk.flush
            yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGKILL"))
            // The next daemon serves what the first one did.
            expect(yield* disk.readBytes(0, 4)).toStrictEqual(new Uint8Array(evil.subarray(0, 4)))
            expect(yield* disk.properties.get("capacity")).toBe(MiB)
          }))
        }
        for (const image of [raw, { _tag: "raw", file: img } as const, { _tag: "raw", file: bare } as const]) {
          yield* Effect.scoped(Effect.gen(function*() {
            const disk = yield* QemuStorageDaemon.make(image)
            expect(yield* disk.readBytes(0, 4)).toStrictEqual(new Uint8Array(evil.subarray(0, 4)))
          }))
        }
        for (const path of [img, bare]) {
          expect(yield* refusal(path, {})).toMatchObject({ _tag: "EINVAL", path, operation: "open" })
        }
      })
  )

  onBackend("must agree with a name and with a description", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      copyFileSync(raw, `${folder}/not.qcow2`)
      yield* convert(raw, "vdi", `${folder}/not.vmdk`)
      expect(yield* refusal(`${folder}/not.qcow2`)).toMatchObject({ _tag: "EINVAL" })
      expect(yield* refusal(`${folder}/not.vmdk`)).toMatchObject({ _tag: "EINVAL" })
      const zeroes = `${folder}/zeroes`
      writeFileSync(zeroes, Buffer.alloc(MiB))
      for (const _tag of ["qcow2", "vmdk", "vhdx", "vdi"] as const) {
        expect([_tag, (yield* refusal({ _tag, file: zeroes }))._tag]).toStrictEqual([_tag, "EINVAL"])
      }
      expect(yield* refusal({ _tag: "luks", file: raw, passphrase })).toMatchObject({ _tag: "EINVAL" })
    }))

  onBackend("does not open another file: data of a qcow2 image", () =>
    Effect.gen(function*() {
      const folder = yield* makeFolder
      const path = `${folder}/outside.qcow2`
      yield* createQcow2("-o", `data_file=${folder}/data,data_file_raw=on`, path, "1M")
      const bytes: Image = { _tag: "raw", file: path }
      for (const image of [path, { _tag: "qcow2", file: path }, { _tag: "qcow2", file: bytes }] as const) {
        const error = yield* refusal(image)
        expect(error).toMatchObject({ _tag: "EINVAL", path })
        expect(error.detail).toContain("data are in another file")
      }
      // And not behind another one.
      const over = `${folder}/over.qcow2`
      yield* createQcow2("-b", path, "-F", "qcow2", over)
      expect((yield* refusal(over)).detail).toContain("data are in another file")
      const described = { _tag: "qcow2", file: over, backing: { _tag: "qcow2", file: bytes } } as const
      expect((yield* refusal(described)).detail).toContain("data are in another file")
    }))

  onBackend("does not open another file: extents of a vmdk descriptor", () =>
    Effect.gen(function*() {
      const folder = yield* makeFolder
      const outside = yield* makeFolder
      writeFileSync(`${outside}/secret`, Buffer.alloc(4096, 1))
      writeFileSync(`${folder}/inside`, Buffer.alloc(4096, 2))
      const path = `${folder}/disk.vmdk`
      const descriptor = (extent: string) =>
        writeFileSync(
          path,
          [
            "# Disk DescriptorFile",
            "version=1",
            "CID=fffffffe",
            "parentCID=ffffffff",
            "createType=\"monolithicFlat\"",
            `RW 8 FLAT "${extent}" 0`,
            ""
          ].join("\n")
        )
      for (const extent of [`${outside}/secret`, `../${outside.slice(outside.lastIndexOf("/") + 1)}/secret`]) {
        descriptor(extent)
        const bytes: Image = { _tag: "raw", file: path }
        for (
          const image of [path, { _tag: "vmdk", file: path, backing: null }, { _tag: "vmdk", file: bytes }] as const
        ) {
          const error = yield* refusal(image)
          expect(error).toMatchObject({ _tag: "EINVAL", path })
          expect(error.detail).toContain("not in its folder")
        }
      }
      descriptor("inside")
      expect(yield* hashThrough(path)).toBe(sha256(Buffer.alloc(4096, 2)))
    }))

  onBackend(
    "does not open another file: backing that is none, says no format, or never ends",
    () =>
      Effect.gen(function*() {
        const folder = yield* makeFolder
        writeFileSync(`${folder}/base`, Buffer.alloc(MiB))
        yield* run("mkfifo", `${folder}/pipe`)
        mkdirSync(`${folder}/folder`)
        let number = 0
        const over = Effect.fnUntraced(function*(backing: string, format?: string) {
          const path = `${folder}/${number++}.qcow2`
          const said = format === undefined ? [] : ["-F", format]
          yield* createQcow2("-u", "-b", backing, ...said, path, "1M")
          return path
        })
        const refused = Effect.fnUntraced(function*(tag: string, words: string, backing: string, format?: string) {
          const error = yield* refusal(yield* over(backing, format))
          expect([backing, error._tag]).toStrictEqual([backing, tag])
          expect(error.detail).toContain(words)
        })
        yield* refused("EINVAL", "which is not a file", "nbd://localhost:1/x", "raw")
        yield* refused("EINVAL", "which is not a file", `json:{"driver":"file","filename":"${folder}/base"}`, "raw")
        yield* refused("EINVAL", "which is not a file", `file:${folder}/base`, "raw")
        yield* refused("EINVAL", "must be one of", "base", "qcow")
        yield* refused("EINVAL", "a FIFO", "pipe", "raw")
        yield* refused("EISDIR", "must be a file", "folder", "raw")
        yield* refused("ENOENT", "no such file", "none", "raw")
        yield* refused("EINVAL", "not in qcow2 format", "base", "qcow2")
        // qemu-img of today does not make one without a format: version 2 of the header, and no extension after it.
        const silent = yield* over("base", "raw")
        yield* run("qemu-img", "amend", "-q", "-f", "qcow2", "-o", "compat=0.10", silent)
        const bytes = readFileSync(silent)
        const extension = bytes.indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]))
        expect(extension).toBeGreaterThan(0)
        // An extension of a kind that nobody knows is passed over.
        bytes.writeUInt32BE(0x12345678, extension)
        writeFileSync(silent, bytes)
        expect((yield* refusal(silent)).detail).toContain("does not say in which format")
        // A ring of two.
        yield* createQcow2("-u", "-b", "b", "-F", "qcow2", `${folder}/a.qcow2`, "1M")
        yield* createQcow2("-u", "-b", "a.qcow2", "-F", "qcow2", `${folder}/b`, "1M")
        expect(yield* refusal(`${folder}/a.qcow2`)).toMatchObject({
          _tag: "EINVAL",
          detail: `${folder}/a.qcow2 lies behind itself`
        })
        // A ring that has another name each time.
        symlinkSync(".", `${folder}/l`)
        yield* createQcow2("-u", "-b", "l/c", "-F", "qcow2", `${folder}/c`, "1M")
        const long = yield* refusal({ _tag: "qcow2", file: `${folder}/c` }, { startTimeout: "5 seconds" })
        expect(["ELOOP", "ETIMEDOUT"]).toContain(long._tag)
      })
  )

  onBackend(
    "is not looked at where nothing can be read: a pipe, a folder, and nothing are refused at once",
    () =>
      Effect.gen(function*() {
        const folder = yield* makeFolder
        const pipe = `${folder}/pipe`
        yield* run("mkfifo", pipe)
        const kinds: ReadonlyArray<(file: string) => Source> = [
          (file) => file,
          (file) => ({ _tag: "raw", file }),
          (file) => ({ _tag: "qcow2", file }),
          (file) => ({ _tag: "vmdk", file }),
          (file) => ({ _tag: "luks", file, passphrase })
        ]
        for (const kind of kinds) {
          expect((yield* refusal(kind(pipe)))._tag).toBe("EINVAL")
          expect((yield* refusal(kind(folder)))._tag).toBe("EISDIR")
          expect((yield* refusal(kind(`${folder}/none`)))._tag).toBe("ENOENT")
          expect((yield* refusal(kind(`${folder}/none/none`)))._tag).toBe("ENOENT")
          expect((yield* refusal(kind("/dev/null")))._tag).toBe("EINVAL")
        }
        // To root nothing is forbidden.
        if (process.getuid?.() !== 0) {
          writeFileSync(`${folder}/mine`, "")
          chmodSync(`${folder}/mine`, 0)
          expect((yield* refusal(`${folder}/mine`))._tag).toBe("EACCES")
        }
      })
  )
})
