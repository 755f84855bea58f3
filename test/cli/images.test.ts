/**
 * Goal: wherever a DEVICE stands, an image of any format, an NBD export or an RBD image can stand, and nothing has to be started
 * by hand for it.
 * Method: the command itself, run as a program, on images that QEMU's own tools made of one disk and compare with it.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { chmodSync, copyFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import * as Device from "../../src/cli/Device.ts"
import { nbdkitIsHere, start as startNbdkit } from "../chaos/nbdkit.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { MiB, onBackend } from "../support/daemon.ts"
import { startProgram } from "../support/program.ts"
import { blkio } from "./blkio.ts"
import { folder, run, writeTypicalImage } from "./stores.ts"

const secret = "correct horse"

/** Makes an encrypted volume. On a machine with much to do, QEMU may not be able to tell how fast it is, and gives up. */
const makeLuks = (raw: string, path: string, attempts = 20): void => {
  try {
    const options = ["--object", `secret,id=s,data=${secret}`, "-o", "key-secret=s,iter-time=10"]
    run("qemu-img", "convert", "-f", "raw", "-O", "luks", ...options, raw, path)
  } catch (error) {
    if (attempts === 0 || !String(error).includes("Unable to get accurate CPU usage")) throw error
    makeLuks(raw, path, attempts - 1)
  }
}

/** A disk in every format, its hash, and where its passphrase is. */
const makeImages = Effect.gen(function*() {
  const path = yield* folder
  const raw = path("disk.raw")
  writeTypicalImage(raw)
  for (const format of ["qcow2", "vmdk", "vhdx", "vdi"]) {
    run("qemu-img", "convert", "-f", "raw", "-O", format, raw, path(`disk.${format}`))
  }
  makeLuks(raw, path("disk.luks"))
  copyFileSync(path("disk.qcow2"), path("cloud.img"))
  writeFileSync(path("passphrase"), `${secret}\n`)
  chmodSync(path("passphrase"), 0o600)
  return { path, raw, hash: run("sha256sum", raw).slice(0, 64) }
})

describe.skipIf(!qsdIsHere)("an image as a DEVICE", () => {
  onBackend("has the same hash in each format", () =>
    Effect.gen(function*() {
      const { hash, path } = yield* makeImages
      const images = [
        ...["raw", "qcow2", "vmdk", "vhdx", "vdi"].map((format) => `image:${path(`disk.${format}`)}`),
        `image:${path("disk.luks")},format=luks,passphrase-file=${path("passphrase")}`,
        `image:${path("cloud.img")},format=qcow2`
      ]
      for (const image of images) {
        const { exit, stderr, stdout } = yield* blkio("hash", image)
        expect({ image, exit, stderr, stdout }).toStrictEqual({
          image,
          exit: 0,
          stderr: "",
          stdout: `${hash}  ${image}\n`
        })
      }
    }), 120_000)

  onBackend(
    "is a source, a target that is made where there is none, and compared, with its own properties",
    () =>
      Effect.gen(function*() {
        const { path, raw } = yield* makeImages
        const target = path("copy.qcow2")
        expect(yield* blkio("copy", `image:${path("disk.vmdk")}`, `image:${target},num-queues=2`, "--verify", "--json"))
          .toMatchObject({ exit: 0, stderr: "" })
        expect(run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, target)).toContain("identical")
        expect(yield* blkio("compare", `image:${target}`, `file:${raw}`)).toMatchObject({ exit: 0 })
        expect((yield* blkio("info", `image:${target},num-queues=3,read-only=true`)).stdout).toMatch(
          /^num-queues +3$/mu
        )
        expect(yield* blkio("bench", `image:${target}`, "--runtime", "0.2", "--queues", "2")).toMatchObject({ exit: 0 })
        // Itself, by another name.
        expect(yield* blkio("copy", `image:${target}`, `file:${target}`)).toMatchObject({ exit: 2 })
      }),
    120_000
  )

  onBackend("leaves nothing, whatever ends the command", () =>
    Effect.gen(function*() {
      const { path } = yield* makeImages
      const temporary = path("tmp")
      mkdirSync(temporary)
      const started = yield* startProgram(
        [
          new URL("../../src/cli/main.ts", import.meta.url).pathname,
          "bench",
          `image:${path("disk.qcow2")}`,
          "--runtime",
          "60"
        ],
        { TMPDIR: temporary }
      )
      const isThere = Effect.sync(() => readdirSync(temporary).length > 0)
      yield* Effect.repeat(Effect.andThen(Effect.sleep(20), isThere), { until: (there) => there })
      yield* Effect.sleep(200)
      started.child.kill("SIGINT")
      expect(yield* started.outcome).toMatchObject({ exit: 130 })
      expect(readdirSync(temporary)).toStrictEqual([])
    }), 60_000)

  onBackend("says what is wrong: 1 where the image is, 2 where the command is", () =>
    Effect.gen(function*() {
      const { path } = yield* makeImages
      const luks = `image:${path("disk.luks")},format=luks`
      writeFileSync(path("other"), "wrong")
      const wrong: ReadonlyArray<readonly [device: string, said: RegExp]> = [
        [`image:${path("none.qcow2")}`, /^ENOENT: open .*none\.qcow2: there is no such file/u],
        [`image:${path("cloud.img")}`, /^EINVAL: open .*cloud\.img: it begins as a qcow2 image/u],
        [`${luks},passphrase-file=${path("other")}`, /^EACCES: open .*Invalid password/u],
        ["nbd://127.0.0.1:1/x", /^ECONNREFUSED: /u]
      ]
      for (const [device, said] of wrong) {
        const result = yield* blkio("hash", device)
        expect({ device, ...result }).toMatchObject({
          device,
          exit: 1,
          stdout: "",
          stderr: expect.stringMatching(said)
        })
      }
      expect(yield* blkio("info", luks)).toMatchObject({
        exit: 2,
        stderr: expect.stringMatching(/passphrase-file=PATH/u)
      })
    }), 120_000)
})

describe("what is wrong with a DEVICE is found before anything is opened", () => {
  it.each<readonly [device: string, tag: string, said: RegExp]>([
    ["image:", "EINVAL", /needs a path/u],
    ["image:a,format=luks", "EINVAL", /passphrase-file=PATH/u],
    ["image:a,format=luks,passphrase-file=/nowhere/a", "ENOENT", /\/nowhere\/a/u],
    ["image:a,format=luks,passphrase-file=/", "EIO", /passphrase-file/u],
    ["image:a,passphrase-file=/etc/hostname", "EINVAL", /needs format=luks or format=qcow2/u],
    ["image:a,format=vdi,passphrase-file=/etc/hostname", "EINVAL", /of no use with format=vdi/u],
    ["image:a,format=ext4", "EINVAL", /format=ext4: must be raw, qcow2/u],
    ["image:a,frobnicate=1", "ENOENT", /frobnicate/u],
    ["image:a,path=b", "EACCES", /path/u],
    ["image:a,format", "EINVAL", /property=value/u],
    ["image:a,num-queues=-1", "EINVAL", /num-queues/u],
    ["nbd:somewhere", "EINVAL", /nbd:\/\/HOST/u],
    ["nbd://", "EINVAL", /nbd:\/\/HOST/u],
    ["nbd+unix:///x", "EINVAL", /socket=PATH/u],
    ["nbd://h/x,reconnect-delay=soon", "EINVAL", /number of seconds/u],
    ["rbd:disk", "EINVAL", /rbd:POOL\/IMAGE/u],
    ["rbd:a/b/c", "EINVAL", /rbd:POOL\/IMAGE/u],
    ["rbd:a/b,snapshot=", "EINVAL", /snapshot/u],
    ["images:x", "ENOENT", /there is no driver "images:x"; .*image:PATH/u]
  ])("%s: %s", (device, tag, said) =>
    Effect.runPromise(
      Effect.gen(function*() {
        const { reason } = yield* Effect.flip(Device.parse(device))
        expect(reason._tag).toBe(tag)
        expect(reason.message).toMatch(said)
      }).pipe(Effect.provide(NodeServices.layer))
    ))
})

describe.skipIf(!nbdkitIsHere)("an NBD export as a DEVICE", () => {
  onBackend("is read and written", () =>
    Effect.gen(function*() {
      const { hash, path, raw } = yield* makeImages
      const copied = path("copy.raw")
      run("truncate", "-s", String(32 * MiB), copied)
      yield* startNbdkit(raw, { socket: path("source") })
      yield* startNbdkit(copied, { socket: path("target") })
      const source = `nbd+unix:///?socket=${path("source")}`
      const target = `nbd:nbd+unix:///?socket=${path("target")},reconnect-delay=5`
      expect((yield* blkio("hash", source)).stdout).toBe(`${hash}  ${source}\n`)
      expect(yield* blkio("copy", source, target, "--verify")).toMatchObject({ exit: 0 })
      expect(run("sha256sum", copied).slice(0, 64)).toBe(hash)
    }), 60_000)
})
