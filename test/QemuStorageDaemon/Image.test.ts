/**
 * Goal: a description that cannot be is EINVAL, which says where and why, all that is wrong at once, however it is
 * nested; and a secret is in nothing that is printed, even if it is not one by its type.
 * Method: descriptions as a program without types would give them. Nothing is started.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import { inspect } from "node:util"
import { isTooDeep, parseNbdUri } from "../../src/QemuStorageDaemon/Image.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"

/** Gives what no type allows. */
const untyped = (value: unknown): QemuStorageDaemon.Source => value as QemuStorageDaemon.Source

const refusal = (image: unknown) =>
  QemuStorageDaemon.transport(untyped(image), { binary: "/nowhere" }).pipe(
    Effect.flip,
    Effect.provide(NodeServices.layer)
  )

const passphrase = Redacted.make("hunter2")

describe("a description", () => {
  it.live.each<readonly [string, unknown]>([
    ["Expected", undefined],
    ["Expected", null],
    ["Expected", 7],
    ["Expected", ""],
    ["Expected", []],
    ["Expected", {}],
    ["Expected", { _tag: "qcow" }],
    ["[\"file\"]", { _tag: "raw" }],
    ["[\"file\"]", { _tag: "raw", file: "" }],
    ["[\"offset\"]", { _tag: "raw", file: "a", offset: 1 }],
    ["[\"offset\"]", { _tag: "raw", file: "a", offset: -512 }],
    ["[\"size\"]", { _tag: "raw", file: "a", size: 1000 }],
    ["[\"sise\"]", { _tag: "raw", file: "a", sise: 512 }],
    ["[\"backing\"]", { _tag: "qcow2", file: "a", backing: 7 }],
    ["[\"lazyRefcounts\"]", { _tag: "qcow2", file: "a", lazyRefcounts: "yes" }],
    ["[\"passphrase\"]", { _tag: "luks", file: "a" }],
    ["[\"passphrase\"]", { _tag: "luks", file: "a", passphrase: Redacted.make("") }],
    ["must be nbd://", { _tag: "nbd", uri: "localhost" }],
    ["must be nbd://", { _tag: "nbd", uri: "nbds://localhost" }],
    ["[\"reconnectDelay\"]", { _tag: "nbd", uri: "nbd://h", reconnectDelay: -1 }],
    ["[\"pool\"]", { _tag: "rbd", pool: "", image: "i" }],
    ["[\"lun\"]", { _tag: "iscsi", portal: "h", target: "t", lun: 256 }],
    ["must be an http or https URL", { _tag: "http", url: "ftp://h/x" }],
    ["must be an http or https URL", { _tag: "http", url: "h" }],
    ["[\"size\"]", { _tag: "null-co", size: 0.5 }],
    ["[\"latencyMs\"]", { _tag: "null-co", size: 512, latencyMs: Infinity }],
    ["[\"iops\"]", { _tag: "throttle", file: "a", limits: { iops: 1 } }],
    ["[\"iopsTotal\"]", { _tag: "throttle", file: "a", limits: { iopsTotal: -1 } }],
    ["[\"errno\"]", { _tag: "blkdebug", file: "a", errors: [{ errno: 0 }] }],
    ["[\"operation\"]", { _tag: "blkdebug", file: "a", errors: [{ operation: "trim" }] }]
  ])("is refused: %s in %j", ([words, image]) =>
    Effect.gen(function*() {
      for (const nested of [image, { _tag: "throttle", limits: {}, file: { _tag: "vdi", file: image } }]) {
        const error = yield* refusal(nested)
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toContain(words)
      }
    }))

  it.live("says all that is wrong at once", () =>
    Effect.gen(function*() {
      const { message } = yield* refusal({ _tag: "nbd", uri: "x", reconnectDelay: "soon", tls: true })
      for (const key of ["uri", "reconnectDelay", "tls"]) expect(message).toContain(`["${key}"]`)
    }))

  it.live("that has itself inside, or goes deeper than anything does, is EINVAL", () =>
    Effect.gen(function*() {
      const ring: Record<string, unknown> = { _tag: "raw" }
      ring["file"] = ring
      const backed: Record<string, unknown> = { _tag: "qcow2", file: "a" }
      backed["backing"] = { _tag: "throttle", limits: {}, file: backed }
      const nest = (times: number) => {
        let image: unknown = "a"
        for (let i = 0; i < times; i++) image = { _tag: "raw", file: image }
        return image
      }
      for (const image of [ring, backed, nest(100), nest(100_000)]) {
        const error = yield* refusal(image)
        expect(error).toMatchObject({ _tag: "EINVAL", detail: "image: too many descriptions, one in another" })
        const started = yield* QemuStorageDaemon.start({ exports: [{ image: untyped(image) }], binary: "/nowhere" })
          .pipe(
            Effect.scoped,
            Effect.flip,
            Effect.provide(NodeServices.layer)
          )
        expect(started).toMatchObject({ _tag: "EINVAL", detail: error.detail })
      }
      expect(isTooDeep(nest(60))).toBe(false)
      yield* QemuStorageDaemon.transport(untyped(nest(60))).pipe(Effect.provide(NodeServices.layer))
    }))
})

describe("a secret", () => {
  it.live.each<readonly [string, unknown]>([
    ["beside a mistake", { _tag: "luks", fille: "a", passphrase }],
    ["in a place where none belongs", { _tag: "vdi", file: "a", passphrase }],
    ["that is not Redacted", { _tag: "luks", file: "a", passphrase: "hunter2" }],
    ["in a wrong file", { _tag: "qcow2", file: { _tag: "luks", passphrase }, passphrase: 7 }],
    ["in a URL", { _tag: "http", url: "http://me:hunter2@host/x" }],
    ["in a URL without a name", { _tag: "http", url: "https://:hunter2@host/x" }],
    ["in a URL of another kind", { _tag: "nbd", uri: "nbd://me:hunter2@host/x" }]
  ])("%s is not in the error", ([, image]) =>
    Effect.gen(function*() {
      const error = yield* refusal(image)
      expect(error._tag).toBe("EINVAL")
      for (const text of [error.message, String(error), JSON.stringify(error), inspect(error, { depth: null })]) {
        expect(text).not.toContain("hunter2")
      }
    }))
})

describe("an NBD URI", () => {
  it.each([
    ["nbd://host", { type: "inet", host: "host", port: "10809", exportName: "" }],
    ["nbd://host/", { type: "inet", host: "host", port: "10809", exportName: "" }],
    ["nbd://host:1/%2Fx", { type: "inet", host: "host", port: "1", exportName: "/x" }],
    ["nbd://[fe80::1]/x", { type: "inet", host: "fe80::1", port: "10809", exportName: "x" }],
    ["nbd+unix:///?socket=/run/x", { type: "unix", path: "/run/x", exportName: "" }],
    ["nbd+unix:///x?socket=/run/x", { type: "unix", path: "/run/x", exportName: "x" }],
    ["nbd:///x", undefined],
    ["nbd://host?tls-type=x509", undefined],
    ["nbd://host/x#y", undefined],
    ["nbd://host/%", undefined],
    ["nbd+unix:///x", undefined],
    ["nbd+unix://host/x?socket=/run/x", undefined],
    ["nbd+unix:///x?socket=", undefined],
    ["nbds+unix:///x?socket=/run/x", undefined],
    ["nbd:host:10809", undefined],
    ["", undefined]
  ])("%s", (uri, server) => {
    expect(parseNbdUri(uri)).toStrictEqual(server)
  })
})
