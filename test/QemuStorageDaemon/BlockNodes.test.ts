/**
 * Goal: each description becomes the block nodes that QEMU's schema names, with each option where it belongs and none that
 * nobody has asked for; and a secret is in an object, never in a node.
 * Method: the graph and the objects of every description, as they go to the monitor.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, layer } from "@effect/vitest"
import { Effect, FileSystem, Redacted } from "effect"
import { writeFileSync } from "node:fs"
import { inspect } from "node:util"
import { it } from "vitest"
import * as BlockNodes from "../../src/QemuStorageDaemon/BlockNodes.ts"
import type { Image, Source } from "../../src/QemuStorageDaemon/Image.ts"

const plain = { readOnly: false, discard: "unmap", direct: false, noFlush: false, aio: undefined } as const
const all = { "read-only": false, "discard": "unmap", "cache": { direct: false, "no-flush": false } }
const secret = Redacted.make("sésame")
const inBase64 = Buffer.from("sésame").toString("base64")

/** Files `disk` and `base.qcow2`. */
const folder = FileSystem.FileSystem.use((fs) =>
  Effect.map(fs.makeTempDirectoryScoped({ prefix: "blkio-nodes-" }), (made) => {
    writeFileSync(`${made}/disk`, "")
    writeFileSync(`${made}/base.qcow2`, Buffer.from("QFI\xfb\0\0\0\x03", "latin1"))
    return made
  })
)

const graphOf = Effect.fnUntraced(function*(image: Image, opening: BlockNodes.Opening = plain) {
  const { node, objects } = yield* BlockNodes.make(image, opening, "d")
  return { node, objects: objects.map((object) => Redacted.value(object)) }
})

describe("every description", () => {
  layer(NodeServices.layer, { excludeTestServices: true })((it) => {
    it.effect("over a file is that file, by its full path", () =>
      Effect.gen(function*() {
        const made = yield* folder
        const file = `${made}/disk`
        const fileNode = { ...all, driver: "file", filename: file }
        const over = (image: Image) => Effect.map(graphOf(image), ({ node }) => node)
        expect(yield* over({ _tag: "raw", file })).toStrictEqual({ ...all, driver: "raw", file: fileNode })
        expect(yield* over({ _tag: "raw", file, offset: 512, size: 1024 })).toStrictEqual({
          ...all,
          driver: "raw",
          file: fileNode,
          offset: 512,
          size: 1024
        })
        for (const _tag of ["qcow2", "vmdk", "vhdx", "vdi"] as const) {
          expect(yield* over({ _tag, file })).toStrictEqual({ ...all, driver: _tag, file: fileNode })
        }
        expect(yield* over({ _tag: "qcow2", file, backing: null, lazyRefcounts: true })).toStrictEqual({
          ...all,
          "driver": "qcow2",
          "file": fileNode,
          "backing": null,
          "lazy-refcounts": true
        })
        expect(yield* over({ _tag: "vmdk", file, backing: null })).toStrictEqual({
          ...all,
          driver: "vmdk",
          file: fileNode,
          backing: null
        })
        const cwd = process.cwd()
        expect(yield* over({ _tag: "raw", file: "package.json" })).toMatchObject({
          file: { filename: `${cwd}/package.json` }
        })
      }))

    it.effect("is opened as the options say, with all below it; what is behind is only read", () =>
      Effect.gen(function*() {
        const made = yield* folder
        const how = {
          "read-only": false,
          "discard": "ignore",
          "cache": { direct: true, "no-flush": true }
        }
        const onlyRead = { ...how, "read-only": true }
        const { node } = yield* graphOf(
          {
            _tag: "qcow2",
            file: { _tag: "raw", file: `${made}/disk` },
            backing: `${made}/base.qcow2`
          },
          { readOnly: false, discard: "ignore", direct: true, noFlush: true, aio: "native" }
        )
        expect(node).toStrictEqual({
          ...how,
          driver: "qcow2",
          file: {
            ...how,
            driver: "raw",
            file: { ...how, driver: "file", filename: `${made}/disk`, aio: "native" }
          },
          backing: {
            ...onlyRead,
            driver: "qcow2",
            file: { ...onlyRead, driver: "file", filename: `${made}/base.qcow2`, aio: "native" }
          }
        })
      }))

    it.effect("of a disk elsewhere has what was said, and nothing else", () =>
      Effect.gen(function*() {
        const table: ReadonlyArray<readonly [Image, BlockNodes.Node]> = [
          [{ _tag: "nbd", uri: "nbd://host" }, {
            driver: "nbd",
            server: { type: "inet", host: "host", port: "10809" },
            export: ""
          }],
          [{ _tag: "nbd", uri: "nbd://[::1]:7/a%20disk/x", reconnectDelay: 3, openTimeout: 4 }, {
            "driver": "nbd",
            "server": { type: "inet", host: "::1", port: "7" },
            "export": "a disk/x",
            "reconnect-delay": 3,
            "open-timeout": 4
          }],
          [{ _tag: "nbd", uri: "nbd+unix:///e?socket=/run/a%2Cb" }, {
            driver: "nbd",
            server: { type: "unix", path: "/run/a,b" },
            export: "e"
          }],
          [{ _tag: "rbd", pool: "p", image: "i" }, { driver: "rbd", pool: "p", image: "i" }],
          [
            { _tag: "rbd", pool: "p", image: "i", namespace: "n", snapshot: "s", conf: "/etc/c", user: "u" },
            { driver: "rbd", pool: "p", image: "i", namespace: "n", snapshot: "s", conf: "/etc/c", user: "u" }
          ],
          [{ _tag: "iscsi", portal: "h:3260", target: "iqn.t" }, {
            driver: "iscsi",
            transport: "tcp",
            portal: "h:3260",
            target: "iqn.t"
          }],
          [
            { _tag: "iscsi", portal: "h", target: "iqn.t", lun: 3, user: "u", initiatorName: "iqn.me", timeout: 9 },
            {
              "driver": "iscsi",
              "transport": "tcp",
              "portal": "h",
              "target": "iqn.t",
              "lun": 3,
              "user": "u",
              "initiator-name": "iqn.me",
              "timeout": 9
            }
          ],
          [{ _tag: "http", url: "http://h/x", verify: false }, { driver: "http", url: "http://h/x" }],
          [
            { _tag: "http", url: "https://h/x", readahead: 512, timeout: 6, verify: false, user: "u" },
            { driver: "https", url: "https://h/x", readahead: 512, timeout: 6, username: "u", sslverify: false }
          ],
          [{ _tag: "null-co", size: 1024 }, {
            "driver": "null-co",
            "size": 1024,
            "read-zeroes": false,
            "latency-ns": 0
          }],
          [{ _tag: "null-co", size: 1024, readZeroes: true, latencyMs: 1.5 }, {
            "driver": "null-co",
            "size": 1024,
            "read-zeroes": true,
            "latency-ns": 1_500_000
          }]
        ]
        for (const [image, node] of table) {
          expect(yield* graphOf(image)).toStrictEqual({ node: { ...all, ...node }, objects: [] })
        }
      }))

    it.effect("of a filter lies over its image", () =>
      Effect.gen(function*() {
        const file = { _tag: "null-co", size: 512 } as const
        const fileNode = { ...all, "driver": "null-co", "size": 512, "read-zeroes": false, "latency-ns": 0 }
        expect(
          yield* graphOf({ _tag: "throttle", file, limits: { iopsTotal: 1, bpsReadMax: 2, iopsWriteMax: 3 } })
        ).toStrictEqual({
          node: { ...all, "driver": "throttle", "throttle-group": "d-throttle-group0", "file": fileNode },
          objects: [{
            "qom-type": "throttle-group",
            "id": "d-throttle-group0",
            "limits": { "iops-total": 1, "bps-read-max": 2, "iops-write-max": 3 }
          }]
        })
        // QEMU takes no empty list.
        expect((yield* graphOf({ _tag: "blkdebug", file, errors: [] })).node).toStrictEqual({
          ...all,
          driver: "blkdebug",
          image: fileNode
        })
        const errors = [{}, { operation: "flush", errno: 28, sector: 7, once: true }] as const
        expect((yield* graphOf({ _tag: "blkdebug", file, errors })).node).toStrictEqual({
          ...all,
          "driver": "blkdebug",
          "image": fileNode,
          "inject-error": [
            { event: "none", errno: 5, once: false },
            { event: "none", errno: 28, once: true, iotype: "flush", sector: 7 }
          ]
        })
      }))

    it.effect("has its secrets in objects of their own, which nothing prints", () =>
      Effect.gen(function*() {
        const file = `${yield* folder}/disk`
        const secretObject = (id: string, data = inBase64) => ({ "qom-type": "secret", id, "format": "base64", data })
        // A key of Ceph's is bytes, and its text is their base64.
        const key = "AQCvzWhfAAAAABAAfY7VN9y8YJQ8OJHqtNoW4A=="
        const table: ReadonlyArray<readonly [Image, BlockNodes.Node, ReadonlyArray<object>]> = [
          [{ _tag: "luks", file, passphrase: secret }, { "key-secret": "d-secret0" }, [secretObject("d-secret0")]],
          [
            { _tag: "qcow2", file, passphrase: secret },
            { encrypt: { format: "luks", "key-secret": "d-secret0" } },
            [secretObject("d-secret0")]
          ],
          [{ _tag: "rbd", pool: "p", image: "i", key: Redacted.make(key) }, { "key-secret": "d-secret0" }, [
            secretObject("d-secret0", key)
          ]],
          [{ _tag: "iscsi", portal: "h", target: "t", password: secret }, { "password-secret": "d-secret0" }, [
            secretObject("d-secret0")
          ]],
          [
            { _tag: "http", url: "http://h/", password: secret, cookie: secret },
            { "password-secret": "d-secret0", "cookie-secret": "d-secret1" },
            [secretObject("d-secret0"), secretObject("d-secret1")]
          ]
        ]
        for (const [image, part, objects] of table) {
          const made = yield* BlockNodes.make(image, plain, "d")
          expect(made.node).toMatchObject(part)
          expect(made.objects.map((object) => Redacted.value(object))).toStrictEqual(objects)
          for (const text of [inspect(made, { depth: null }), JSON.stringify(made)]) {
            for (const word of ["sésame", inBase64, key]) expect(text).not.toContain(word)
          }
        }
      }))

    it.effect("that cannot be opened is refused before a daemon is asked", () =>
      Effect.gen(function*() {
        const made = yield* folder
        const refusal = (image: Image) => Effect.flip(BlockNodes.make(image, plain, "d"))
        expect(yield* refusal({ _tag: "qcow2", file: `${made}/none` })).toMatchObject({ _tag: "ENOENT" })
        expect(yield* refusal({ _tag: "luks", file: made, passphrase: secret })).toMatchObject({ _tag: "EISDIR" })
        expect(yield* refusal({ _tag: "qcow2", file: `${made}/disk`, backing: `${made}/none.qcow2` })).toMatchObject({
          _tag: "ENOENT",
          path: `${made}/none.qcow2`
        })
        writeFileSync(`${made}/disk.luks`, Buffer.from("LUKS\xba\xbe", "latin1"))
        expect((yield* Effect.flip(BlockNodes.describe(`${made}/disk.luks`))).detail).toContain("needs its passphrase")
      }))
  })
})

const nbd: Image = { _tag: "nbd", uri: "nbd://h" }
const http: Image = { _tag: "http", url: "http://h/x" }
const rbd: Image = { _tag: "rbd", pool: "p", image: "i" }
const iscsi: Image = { _tag: "iscsi", portal: "h", target: "t" }
const nullCo: Image = { _tag: "null-co", size: 512 }
const throttled = (file: Source): Image => ({ _tag: "throttle", file, limits: {} })

describe("of a description is known", () => {
  it.each<readonly [Source, boolean]>([
    ["a.qcow2", false],
    [http, true],
    [throttled({ _tag: "qcow2", file: http }), true],
    [{ ...rbd, snapshot: "s" }, true],
    [rbd, false],
    [nbd, false],
    [iscsi, false],
    [nullCo, false],
    [{ _tag: "blkdebug", file: "a", errors: [] }, false]
  ])("whether %j can only be read: %s", (source, expected) => {
    expect(BlockNodes.isReadOnly(source)).toBe(expected)
  })

  it.each<readonly [Source, boolean]>([
    ["a.raw", true],
    ["a.img", true],
    ["a.qcow2", false],
    ["a.vmdk", false],
    [{ _tag: "raw", file: "a.qcow2" }, true],
    [{ _tag: "raw", file: { _tag: "qcow2", file: "a" } }, false],
    [{ _tag: "luks", file: "a", passphrase: secret }, true],
    [{ _tag: "vhdx", file: "a" }, false],
    [{ _tag: "vdi", file: "a" }, false],
    [throttled("a"), true],
    [throttled({ _tag: "vdi", file: "a" }), false],
    [{ _tag: "blkdebug", file: rbd, errors: [] }, false],
    [nbd, true],
    [iscsi, true],
    [http, true],
    [nullCo, true],
    [rbd, false]
  ])("whether %j keeps what it acknowledged: %s", (source, expected) => {
    expect(BlockNodes.keepsCache(source, false)).toBe(expected)
  })

  it("that past librbd's cache nothing is kept there", () => {
    expect(BlockNodes.keepsCache(throttled(rbd), true)).toBe(true)
    expect(BlockNodes.keepsCache({ _tag: "qcow2", file: rbd }, true)).toBe(false)
  })

  it.each<readonly [Source, string]>([
    ["/a.raw", "/a.raw"],
    [throttled({ _tag: "qcow2", file: nbd }), "nbd://h"],
    [rbd, "rbd:p/i"],
    [{ ...rbd, namespace: "n", key: secret }, "rbd:p/n/i"],
    [{ ...iscsi, password: secret }, "iscsi://h/t/0"],
    [{ ...iscsi, lun: 2 }, "iscsi://h/t/2"],
    [{ ...http, password: secret }, "http://h/x"],
    [nullCo, "null-co"]
  ])("what errors call it: %j", (source, expected) => {
    expect(BlockNodes.nameOf(source)).toBe(expected)
  })
})
