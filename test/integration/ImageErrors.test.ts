/**
 * Goal: whatever keeps an image from being opened is one typed error that names it, in bounded time, and leaves nothing; and a
 * secret is nowhere but in the daemon's memory.
 * Method: the real daemon, one without its modules, servers that are not there or say nothing; /proc for what can be seen of a daemon.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Fiber, Logger, Redacted, References, Tracer } from "effect"
import { copyFileSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs"
import * as Net from "node:net"
import { delimiter, join } from "node:path"
import { inspect } from "node:util"
import type { Image } from "../../src/QemuStorageDaemon/Image.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { onBackend } from "../support/daemon.ts"
import { withVariable } from "../support/environment.ts"
import {
  convert,
  encrypted,
  hash,
  makeFolder,
  makeRaw,
  openTransport,
  PASSPHRASE,
  passphrase,
  refusal
} from "../support/images.ts"
import { qsdIsHere } from "./requirement.ts"

/** Where the daemon's program is. */
const programFile = (): string => {
  const named = process.env["EFFECT_BLKIO_QSD"] ?? "qemu-storage-daemon"
  const folders = (process.env["PATH"] ?? "").split(delimiter)
  const found = [named, ...folders.map((folder) => join(folder, named))].find((path) =>
    path.includes("/") && statSync(path, { throwIfNoEntry: false })?.isFile()
  )
  return realpathSync(found ?? named)
}

/** A server that takes connections and says nothing. */
const silentServer = Effect.acquireRelease(
  Effect.callback<Net.Server & { readonly port: number }>((resume) => {
    const clients = new Set<Net.Socket>()
    const server = Net.createServer((client) => clients.add(client.on("error", () => {})))
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      const port = typeof address === "object" && address !== null ? address.port : 0
      resume(Effect.succeed(Object.assign(server, { port, clients })))
    })
  }),
  (server) =>
    Effect.callback<void>((resume) => {
      for (const client of (server as unknown as { clients: Set<Net.Socket> }).clients) client.destroy()
      server.close(() => resume(Effect.void))
    })
)

describe.skipIf(!qsdIsHere)("an image that cannot be opened", () => {
  onBackend("since another daemon has it: EBUSY, until that one is gone", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      const path = `${folder}/disk.qcow2`
      yield* convert(raw, "qcow2", path)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* QemuStorageDaemon.make(path)
        for (const readOnly of [false, true]) {
          expect(yield* refusal(path, { readOnly })).toMatchObject({ _tag: "EBUSY", operation: "open", path })
        }
      }))
      expect(yield* Effect.flatMap(QemuStorageDaemon.make(path), hash)).toBe(expected)
    }))

  onBackend("without its passphrase: EACCES", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const file = `${folder}/disk`
      yield* convert(raw, "luks", file, ...encrypted(""))
      const wrong = Redacted.make("another")
      expect(yield* refusal({ _tag: "luks", file, passphrase: wrong })).toMatchObject({ _tag: "EACCES", path: file })
      yield* convert(raw, "qcow2", file, ...encrypted("encrypt."))
      expect(yield* refusal({ _tag: "qcow2", file, passphrase: wrong })).toMatchObject({ _tag: "EACCES", path: file })
      yield* convert(raw, "qcow2", file)
      expect(yield* refusal({ _tag: "qcow2", file, passphrase })).toMatchObject({ _tag: "EINVAL", path: file })
    }))

  onBackend("since the program lacks the driver: ENOTSUP, which names the package", () =>
    Effect.gen(function*() {
      const folder = yield* makeFolder
      // Modules are looked for beside the program.
      const binary = `${folder}/qsd`
      copyFileSync(programFile(), binary)
      const remote: ReadonlyArray<Image> = [
        { _tag: "rbd", pool: "p", image: "i" },
        { _tag: "iscsi", portal: "127.0.0.1:1", target: "iqn.t" },
        { _tag: "http", url: "http://127.0.0.1:1/x" },
        { _tag: "http", url: "https://127.0.0.1:1/x" }
      ]
      for (const image of remote) {
        const error = yield* refusal(image, { binary })
        expect([image._tag, error._tag]).toStrictEqual([image._tag, "ENOTSUP"])
        expect(error.detail).toContain("qemu-block-extra")
      }
    }))

  onBackend(
    "since its server is not there: ECONNREFUSED, or ENOENT where that is a socket",
    () =>
      Effect.gen(function*() {
        const folder = yield* makeFolder
        const port = yield* Effect.scoped(Effect.map(silentServer, ({ port }) => port))
        const tcp = `nbd://127.0.0.1:${port}/x`
        expect(yield* refusal({ _tag: "nbd", uri: tcp })).toMatchObject({ _tag: "ECONNREFUSED", path: tcp })
        const unix = `nbd+unix:///x?socket=${folder}/none`
        expect(yield* refusal({ _tag: "nbd", uri: unix })).toMatchObject({ _tag: "ENOENT", path: unix })
      })
  )

  onBackend(
    "since its server says nothing: ETIMEDOUT, within the time that starting may take",
    () =>
      Effect.gen(function*() {
        const { port } = yield* silentServer
        const start = performance.now()
        const uri = `nbd://127.0.0.1:${port}/x`
        const error = yield* refusal({ _tag: "qcow2", file: { _tag: "nbd", uri } }, {
          startTimeout: "2 seconds",
          stopTimeout: "500 millis"
        })
        expect(error).toMatchObject({ _tag: "ETIMEDOUT", path: uri })
        expect(performance.now() - start).toBeLessThan(25_000)
      })
  )

  onBackend("and is given up while it is tried leaves nothing, whenever that is", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const path = `${folder}/disk.qcow2`
      yield* convert(raw, "qcow2", path)
      const temporary = yield* makeFolder
      for (let delayMs = 0; delayMs < 240; delayMs += 20) {
        const opening = yield* Effect.forkChild(
          Effect.scoped(QemuStorageDaemon.make(path)).pipe(withVariable("TMPDIR", temporary)),
          { startImmediately: true }
        )
        yield* Effect.sleep(delayMs)
        yield* Fiber.interrupt(opening)
        expect(readdirSync(temporary)).toStrictEqual([])
      }
      // Nothing holds its lock.
      yield* Effect.scoped(QemuStorageDaemon.make(path))
    }))
})

/** A process, and all that it has started. */
const family = (pid: number): ReadonlyArray<number> =>
  readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    (readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").match(/\d+/gu) ?? []).map(Number)
  ).flatMap((child) => [child, ...family(child)])

describe.skipIf(!qsdIsHere)("a secret", () => {
  const secrets = [PASSPHRASE, Buffer.from(PASSPHRASE).toString("base64")]
  const mustNotBeIn = (text: string) => {
    for (const secret of secrets) expect(text).not.toContain(secret)
  }

  onBackend("is on no command line, in no environment, and in no file", () =>
    Effect.gen(function*() {
      const { expected, folder, raw } = yield* makeRaw()
      const file = `${folder}/disk.luks`
      yield* convert(raw, "luks", file, ...encrypted(""))
      const { daemon, disk } = yield* openTransport({ _tag: "luks", file, passphrase }, { readOnly: true })
      const { directory, pid, stderr } = yield* daemon
      expect(yield* hash(disk)).toBe(expected)
      const started = family(process.pid)
      expect(started).toContain(pid)
      for (const one of started) {
        for (const name of ["cmdline", "environ"]) mustNotBeIn(readFileSync(`/proc/${one}/${name}`, "utf8"))
      }
      for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
        expect([entry.name, entry.isSocket()]).toStrictEqual([entry.name, true])
      }
      mustNotBeIn(yield* stderr)
      mustNotBeIn(inspect([disk, yield* daemon], { depth: 8 }))
    }))

  onBackend("is in no error, log or span of an opening that fails", () =>
    Effect.gen(function*() {
      const { folder, raw } = yield* makeRaw()
      const file = `${folder}/disk`
      yield* convert(raw, "luks", file, ...encrypted(""))
      const logged: Array<unknown> = []
      const spans: Array<Tracer.Span> = []
      const logger = Logger.make((options) => void logged.push(options))
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const opening = (image: Image) =>
        refusal(image, { startTimeout: "5 seconds" }).pipe(
          Effect.tap((error) => Effect.logError(error)),
          Effect.withSpan("opening"),
          Effect.provideService(Tracer.Tracer, tracer),
          Effect.provideService(References.MinimumLogLevel, "All"),
          Effect.provide(Logger.layer([logger]))
        )
      // Of another format, so that it is refused after the secret was given.
      const inWrong: Image = { _tag: "qcow2", file, passphrase }
      for (
        const image of [
          inWrong,
          { _tag: "luks", file: raw, passphrase },
          { _tag: "http", url: "http://127.0.0.1:1/x", user: "me", password: passphrase, cookie: passphrase },
          { _tag: "iscsi", portal: "127.0.0.1:1", target: "iqn.t", user: "me", password: passphrase }
        ] as ReadonlyArray<Image>
      ) {
        const error = yield* opening(image)
        for (const text of [String(error), JSON.stringify(error), inspect(error, { depth: null, showHidden: true })]) {
          mustNotBeIn(text)
        }
      }
      expect(logged.length).toBeGreaterThan(0)
      expect(spans.length).toBeGreaterThan(0)
      mustNotBeIn(inspect(logged, { depth: 8 }))
      mustNotBeIn(inspect(spans.map(({ attributes, name, status }) => ({ attributes, name, status })), { depth: null }))
    }))
})
