/**
 * Goal: an image that was made is one, of its size and format, and reads as zeroes; what is there is never overwritten, and what
 * failed leaves nothing.
 * Method: the real daemon makes them; qemu-img says what they are, and a device reads them.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, FileSystem, Redacted } from "effect"
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { imagePath, MiB, onBackend } from "../support/daemon.ts"
import { qsdIsHere } from "./requirement.ts"

const SIZE = 24 * MiB
const passphrase = Redacted.make("swordfish")

const readsAsZeroes = Effect.fnUntraced(function*(image: QemuStorageDaemon.Source) {
  const disk = yield* QemuStorageDaemon.make(image)
  expect(disk.capacity).toBe(SIZE)
  const bytes = yield* disk.readBytes(0, SIZE)
  expect(bytes.every((byte) => byte === 0)).toBe(true)
  yield* disk.writeBytes(SIZE - 4096, new Uint8Array(4096).fill(7))
  yield* disk.flush
}, Effect.scoped)

describe.skipIf(!qsdIsHere)("making an image", () => {
  onBackend("of each format, by its path", () =>
    Effect.gen(function*() {
      for (const format of ["raw", "qcow2", "vmdk", "vhdx", "vdi"] as const) {
        const path = yield* imagePath(`new, disk.${format}`)
        yield* QemuStorageDaemon.create(path, { size: SIZE })
        const info: unknown = JSON.parse(
          execFileSync("qemu-img", ["info", "--output=json", path], { encoding: "utf8" })
        )
        expect(info).toMatchObject({ "format": format, "virtual-size": SIZE })
        yield* readsAsZeroes(path)
        if (format === "raw") continue
        expect(execFileSync("qemu-img", ["check", "-f", format, path], { encoding: "utf8" })).toContain("No errors")
      }
    }))

  onBackend("that is encrypted, by its description", () =>
    Effect.gen(function*() {
      const image = { _tag: "qcow2", file: yield* imagePath("secret.qcow2"), passphrase } as const
      // Where there is much to do, QEMU may not be able to tell how fast the machine is (EIO).
      yield* Effect.retry(
        QemuStorageDaemon.create(image, { size: SIZE, layout: { "cluster-size": 2 * MiB } }),
        { times: 20, while: ({ _tag }) => _tag === "EIO" }
      )
      yield* readsAsZeroes(image)
      const wrong = { ...image, passphrase: Redacted.make("tunafish") }
      expect(yield* Effect.flip(QemuStorageDaemon.make(wrong))).toMatchObject({ _tag: "EACCES" })
    }), 120_000)

  onBackend("does not touch what is there, and leaves nothing of what failed", () =>
    Effect.gen(function*() {
      const path = yield* imagePath("disk.qcow2")
      const folder = dirname(path)
      writeFileSync(path, "precious")
      expect(yield* Effect.flip(QemuStorageDaemon.create(path, { size: SIZE }))).toMatchObject({ _tag: "EEXIST", path })
      expect(yield* FileSystem.FileSystem.use((fs) => fs.readFileString(path))).toBe("precious")
      mkdirSync(`${folder}/nothing`)
      const wrong: ReadonlyArray<
        readonly [image: QemuStorageDaemon.Source, options: QemuStorageDaemon.CreateOptions, tag: string]
      > = [
        [`${folder}/none/disk.qcow2`, { size: SIZE }, "ENOENT"],
        [`${folder}/nothing/odd.qcow2`, { size: 100 }, "EINVAL"],
        [`${folder}/nothing/odd.qcow2`, { size: SIZE, layout: { "cluster-size": 12345 } }, "EINVAL"],
        [`${folder}/nothing/odd.qcow2`, { size: SIZE, layout: { "no-such-option": 1 } }, "EINVAL"],
        [`${folder}/nothing/odd.qcow2`, { size: SIZE, binary: "/nowhere/qsd" }, "ENOENT"],
        [`${folder}/nothing/odd.luks`, { size: SIZE }, "EINVAL"],
        [{ _tag: "nbd", uri: "nbd://localhost/x" }, { size: SIZE }, "EINVAL"],
        [{ _tag: "qcow2", file: { _tag: "nbd", uri: "nbd://localhost/x" } }, { size: SIZE }, "EINVAL"],
        [{ _tag: "throttle", file: `${folder}/nothing/x`, limits: {} }, { size: SIZE }, "EINVAL"]
      ]
      for (const [image, options, tag] of wrong) {
        expect(yield* Effect.flip(QemuStorageDaemon.create(image, options))).toMatchObject({ _tag: tag })
      }
      for (const delay of [0, 10, 40, 80, 160]) {
        yield* Effect.timeoutOption(
          QemuStorageDaemon.create(`${folder}/nothing/late.qcow2`, { size: SIZE, layout: { preallocation: "full" } }),
          delay
        ).pipe(Effect.tap((made) =>
          Effect.sync(() => {
            expect(existsSync(`${folder}/nothing/late.qcow2`)).toBe(made._tag === "Some")
          })
        ))
        yield* Effect.ignore(FileSystem.FileSystem.use((fs) => fs.remove(`${folder}/nothing/late.qcow2`)))
      }
      expect(readdirSync(`${folder}/nothing`)).toStrictEqual([])
    }))
})
