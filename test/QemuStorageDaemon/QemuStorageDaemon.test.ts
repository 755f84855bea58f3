/**
 * Goal: whatever is wrong with the options, the program or the environment is a typed error in bounded time, and leaves
 * nothing. What a daemon does when it is well: test/integration/QemuStorageDaemon.test.ts.
 * Method: shell scripts that stand for a daemon that is not well.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { ConfigProvider, Console, Effect, FileSystem, Path } from "effect"
import { readdirSync } from "node:fs"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { withVariable } from "../support/environment.ts"
import { requirement } from "../support/requirement.ts"

const disk = { image: { _tag: "null-co", size: 512 } } as const

/** A program that runs this script; it and all temporary files are the test's own. */
const daemonThat = Effect.fnUntraced(function*(script: string) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "qsd-test-" })
  const binary = (yield* Path.Path).join(folder, "daemon")
  yield* fs.writeFileString(binary, `#!/bin/sh\n${script}\n`)
  yield* fs.chmod(binary, 0o755)
  return { binary, folder }
})

const withTemporaryFolder = (folder: string) => withVariable("TMPDIR", folder)

const withEnvironment = (environment: Record<string, string>) =>
  Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord(environment)))

describe("QemuStorageDaemon", () => {
  it.live.each<readonly [string, QemuStorageDaemon.StartOptions]>([
    ["length of at least 1", { exports: [{ image: { _tag: "raw", file: "" } }] }],
    ["[\"size\"]", { exports: [{ image: { _tag: "null-co", size: -1 } }] }],
    ["[\"latencyMs\"]", { exports: [{ image: { _tag: "null-co", size: 512, latencyMs: -1 } }] }],
    ["between 1 and 65535", { exports: [{ ...disk, numQueues: 0 }] }],
    ["power of two", { exports: [{ ...disk, logicalBlockSize: 1000 }] }],
    ["must be a letter", { exports: [{ ...disk, id: "../x" }] }],
    ["two exports with the id disk1", { exports: [{ ...disk, id: "disk1" }, disk] }],
    ["cache.direct", { exports: [disk], aio: "native" }]
  ])("EINVAL: %s", ([rule, options]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(QemuStorageDaemon.start(options))
      expect(error._tag).toBe("EINVAL")
      expect(error.message).toContain(rule)
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("options that no type allows are EINVAL, all told of at once", () =>
    Effect.gen(function*() {
      const options = JSON.parse(`{ "exports": [], "aoi": "native", "binary": 7, "startTimeout": "soon" }`)
      const error = yield* Effect.flip(QemuStorageDaemon.start(options))
      expect(error._tag).toBe("EINVAL")
      for (const name of ["exports", "aoi", "binary", "startTimeout"]) expect(error.message).toContain(`["${name}"]`)
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a program that is not there is ENOENT and names the package", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(QemuStorageDaemon.start({ exports: [disk], binary: "/nowhere/qsd" }))
      expect(error).toMatchObject({ _tag: "ENOENT", path: "/nowhere/qsd" })
      expect(error.detail).toContain("qemu-system-common")
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a program that may not be run is EACCES", () =>
    Effect.gen(function*() {
      expect(yield* Effect.flip(QemuStorageDaemon.start({ exports: [disk], binary: "/etc/passwd" }))).toMatchObject({
        _tag: "EACCES",
        path: "/etc/passwd"
      })
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("the environment names the program, an option goes first", () =>
    Effect.gen(function*() {
      const { binary } = yield* daemonThat("echo that one >&2; exit 1")
      const named = yield* Effect.flip(QemuStorageDaemon.start({ exports: [disk] }))
      expect(named).toMatchObject({ _tag: "ENOENT", path: "/nowhere/qsd" })
      expect((yield* Effect.flip(QemuStorageDaemon.start({ exports: [disk], binary }))).detail).toContain("that one")
    }).pipe(withEnvironment({ EFFECT_BLKIO_QSD: "/nowhere/qsd" }), Effect.provide(NodeServices.layer)))

  it.live("a daemon that ends before it is ready is EIO at once, with the end of what it said", () =>
    Effect.gen(function*() {
      const { binary, folder } = yield* daemonThat("seq 1 20000 >&2; echo bad day >&2; exit 3")
      const start = performance.now()
      const error = yield* QemuStorageDaemon.start({ exports: [disk], binary }).pipe(
        withTemporaryFolder(folder),
        Effect.flip
      )
      expect(error).toMatchObject({ _tag: "EIO", path: binary })
      expect(error.detail).toContain("ended with exit code 3 before it was ready")
      expect(error.detail).toMatch(/bad day$/)
      expect(error.detail.length).toBeLessThan(17_000)
      expect(performance.now() - start).toBeLessThan(8_000)
      expect(readdirSync(folder)).toStrictEqual(["daemon"])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a daemon ended by a signal is EIO with 128 + the signal", () =>
    Effect.gen(function*() {
      const { binary } = yield* daemonThat("kill -SEGV $$")
      const error = yield* Effect.flip(QemuStorageDaemon.start({ exports: [disk], binary }))
      expect(error.detail).toContain("exit code 139 before it was ready: nothing on stderr")
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a daemon that never becomes ready is ETIMEDOUT in bounded time, though it ignores SIGTERM", () =>
    Effect.gen(function*() {
      const { binary, folder } = yield* daemonThat("trap '' TERM; echo \"I am $$\" >&2; while :; do sleep 0.05; done")
      const start = performance.now()
      const error = yield* QemuStorageDaemon.start({
        exports: [disk],
        binary,
        startTimeout: "2 seconds",
        stopTimeout: "1 second"
      }).pipe(
        withTemporaryFolder(folder),
        Effect.flip
      )
      expect(error._tag).toBe("ETIMEDOUT")
      expect(error.detail).toContain("not ready within 2s: I am ")
      expect(performance.now() - start).toBeLessThan(20_000)
      const pid = Number(/I am (\d+)/.exec(error.detail)?.[1])
      expect(() => process.kill(pid, 0)).toThrow("ESRCH")
      expect(readdirSync(folder)).toStrictEqual(["daemon"])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("a folder whose name is too long for a socket is ENAMETOOLONG", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const { folder } = yield* daemonThat("exit 1")
      const long = (yield* Path.Path).join(folder, "x".repeat(100))
      yield* fs.makeDirectory(long)
      const error = yield* Effect.flip(withTemporaryFolder(long)(QemuStorageDaemon.start({ exports: [disk] })))
      expect(error._tag).toBe("ENAMETOOLONG")
      expect(error.message).toContain("at most 107 bytes")
      expect(readdirSync(long)).toStrictEqual([])
      const missing = yield* Effect.flip(withTemporaryFolder("/nowhere")(QemuStorageDaemon.start({ exports: [disk] })))
      expect(missing._tag).toBe("EIO")
    }).pipe(Effect.provide(NodeServices.layer)))

  describe("requirement", () => {
    const warnings: Array<string> = []
    const listening = Effect.provideService(
      Console.Console,
      Object.assign(Object.create(globalThis.console), { warn: (text: string) => warnings.push(text) })
    )

    it.live("is met by a program that answers --version", () =>
      Effect.gen(function*() {
        const { binary } = yield* daemonThat("test \"$1\" = --version")
        expect(yield* requirement.pipe(withEnvironment({ EFFECT_BLKIO_QSD: binary }))).toBe(true)
      }).pipe(Effect.provide(NodeServices.layer)))

    it.live("warns where nothing requires the program", () =>
      Effect.gen(function*() {
        expect(yield* requirement).toBe(false)
        expect(warnings.join()).toMatch(/SKIPPED.*\/nowhere\/qsd.*qemu-system-common/)
      }).pipe(listening, withEnvironment({ EFFECT_BLKIO_QSD: "/nowhere/qsd" }), Effect.provide(NodeServices.layer)))

    it.live("fails where something does", () =>
      Effect.gen(function*() {
        expect(yield* Effect.flip(requirement)).toMatchObject({
          _tag: "ENOENT",
          path: "/nowhere/qsd"
        })
      }).pipe(
        withEnvironment({ EFFECT_BLKIO_QSD: "/nowhere/qsd", EFFECT_BLKIO_REQUIRE_QSD: "1" }),
        Effect.provide(NodeServices.layer)
      ))

    it.live("does not guess what another value means", () =>
      Effect.gen(function*() {
        expect(yield* Effect.flip(requirement)).toMatchObject({ _tag: "ConfigError" })
      }).pipe(withEnvironment({ EFFECT_BLKIO_REQUIRE_QSD: "perhaps" }), Effect.provide(NodeServices.layer)))
  })
})
