/**
 * Goal: a file's name says in which format it is, its header must agree, and no content whatever makes a raw file another thing.
 * Method: real files with real headers and made-up ones; a model that is one line of a table.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it, layer } from "@effect/vitest"
import { Arbitrary, Effect, FileSystem, Schema } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import * as ImageFile from "../../src/QemuStorageDaemon/ImageFile.ts"
import { bytes } from "../Wire/arbitraries.ts"

const latin1 = (text: string, at = 0) =>
  Buffer.concat([Buffer.alloc(at), Buffer.from(text, "latin1"), Buffer.alloc(600)])

/** What images begin with, and of which format they are then. */
const headers = {
  qcow2: latin1("QFI\xfb\0\0\0\x03"),
  "qcow2 of version 2": latin1("QFI\xfb\0\0\0\x02"),
  vmdk: latin1("KDMV"),
  "vmdk of ESX": latin1("COWD"),
  "vmdk descriptor": latin1("# Disk DescriptorFile\n"),
  vhdx: latin1("vhdxfile"),
  vdi: latin1("\x7f\x10\xda\xbe", 64),
  luks: latin1("LUKS\xba\xbe\0\x01")
} as const

/** Of these nobody can say that they are another format by a name. */
const foreign = {
  qcow: latin1("QFI\xfb\0\0\0\x01"),
  qed: latin1("QED\0"),
  parallels: latin1("WithoutFreeSpace"),
  "parallels extended": latin1("WithouFreSpacExt"),
  vpc: latin1("conectix")
} as const

const nothing = { nothing: Buffer.alloc(0), "a byte": Buffer.from("Q"), zeroes: Buffer.alloc(600) } as const

const formatOf = (header: string) => header.split(" ")[0] ?? ""

const folder = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "blkio-probe-" }))

const probe = (path: string) =>
  ImageFile.formatOf(path).pipe(
    Effect.matchEager({ onFailure: ({ _tag }): string => _tag, onSuccess: (format) => format })
  )

describe("a name", () => {
  it.each([
    ["disk.qcow2", "qcow2"],
    ["DISK.QCOW2", "qcow2"],
    ["a.b/disk.vmdk", "vmdk"],
    ["disk.vhdx", "vhdx"],
    ["disk.vdi", "vdi"],
    ["disk.luks", "luks"],
    ["disk.raw", "raw"],
    ["disk.iso", "raw"],
    ["disk.dd", "raw"],
    ["disk.img", undefined],
    ["disk", undefined],
    ["disk.", undefined],
    ["qcow2", undefined],
    ["disk.qcow2/disk", undefined],
    ["disk.qcow2.bak", undefined],
    ["disk.qcow2 ", undefined],
    ["disk.qcow2\n", undefined],
    ["disk.__proto__", undefined],
    ["", undefined]
  ])("%j stands for %s", (name, format) => {
    expect(ImageFile.formatOfName(name)).toBe(format)
  })

  it.prop("without a dot stands for nothing", [Arbitrary.schema(Schema.String)], ([name]) => {
    expect(ImageFile.formatOfName(name.replaceAll(".", ""))).toBe(undefined)
  })
})

layer(NodeServices.layer, { excludeTestServices: true })((it) => {
  it.effect("name and header must agree; any header does where the name says raw, and none where it says nothing", () =>
    Effect.gen(function*() {
      const made = yield* folder
      for (const ending of [".qcow2", ".vmdk", ".vhdx", ".vdi", ".luks", ".raw", ".iso", ".dd", ".img", ""]) {
        for (const [header, content] of Object.entries({ ...headers, ...foreign, ...nothing })) {
          const path = `${made}/disk${ending}`
          writeFileSync(path, content)
          const named = ImageFile.formatOfName(path)
          const expected = named === "raw" || (named === undefined && header in nothing)
            ? "raw"
            : named !== undefined && header in headers && named === formatOf(header)
            ? named
            : "EINVAL"
          expect([ending, header, yield* probe(path)]).toStrictEqual([ending, header, expected])
        }
      }
    }))

  it.effect("the error says what the name and the header say", () =>
    Effect.gen(function*() {
      const made = yield* folder
      const refusal = Effect.fnUntraced(function*(name: string, content: Uint8Array) {
        writeFileSync(`${made}/${name}`, content)
        const { _tag, detail, operation, path } = yield* Effect.flip(ImageFile.formatOf(`${made}/${name}`))
        expect([_tag, operation, path]).toStrictEqual(["EINVAL", "open", `${made}/${name}`])
        return detail
      })
      const remedy = "describe it by { _tag, file } instead of its path"
      expect(yield* refusal("a.img", headers.qcow2)).toBe(
        `it begins as a qcow2 image, and its name does not say that it is one: ${remedy}`
      )
      expect(yield* refusal("a.qcow2", headers.vdi)).toBe(
        `its name says that it is a qcow2 image, and it begins as a vdi image: ${remedy}`
      )
      expect(yield* refusal("a.vmdk", nothing.zeroes)).toBe(
        `its name says that it is a vmdk image, and it begins as none: ${remedy}`
      )
    }))

  it.effect.prop(
    "whatever it begins with, a file named .raw is raw",
    [bytes(0, 128)],
    ([content]) =>
      Effect.gen(function*() {
        const path = `${yield* folder}/disk.raw`
        writeFileSync(path, content)
        expect(yield* ImageFile.formatOf(path)).toBe("raw")
      }),
    { arbitrary: { runs: 50 } }
  )

  it.effect("what is no file is refused without being opened, and what is not there is told by the system", () =>
    Effect.gen(function*() {
      const made = yield* folder
      const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
      // Opening one waits until somebody writes.
      yield* spawner.exitCode(ChildProcess.make("mkfifo", [`${made}/pipe.qcow2`, `${made}/pipe`]))
      mkdirSync(`${made}/folder.qcow2`)
      symlinkSync("pipe", `${made}/to-pipe.img`)
      symlinkSync("loop.raw", `${made}/loop.raw`)
      writeFileSync(`${made}/file`, "")
      writeFileSync(`${made}/real.qcow2`, headers.qcow2)
      symlinkSync("real.qcow2", `${made}/link.qcow2`)
      symlinkSync("real.qcow2", `${made}/link`)
      const table = [
        ["pipe.qcow2", "EINVAL"],
        ["pipe", "EINVAL"],
        ["to-pipe.img", "EINVAL"],
        ["folder.qcow2", "EISDIR"],
        ["loop.raw", "ELOOP"],
        ["missing.qcow2", "ENOENT"],
        ["file/disk.raw", "ENOTDIR"],
        // A link's own name counts.
        ["link.qcow2", "qcow2"],
        ["link", "EINVAL"]
      ] as const
      for (const [name, expected] of table) {
        expect([name, yield* probe(`${made}/${name}`)]).toStrictEqual([name, expected])
      }
      expect(yield* probe("/dev/null")).toBe("EINVAL")
    }))
})
