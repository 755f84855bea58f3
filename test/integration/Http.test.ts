/**
 * Goal: an image on a web server is a disk that can be read: its bytes where they are, by ranges, and a server that fails is an
 * error of one request, not of the disk.
 * Method: a file behind node:http, which answers ranges, behind the daemon's http driver. Debian has that driver in the package
 * qemu-block-extra; without it these tests are skipped.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect } from "@effect/vitest"
import { Effect } from "effect"
import { randomFillSync } from "node:crypto"
import * as Http from "node:http"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { KiB, MiB, onBackend } from "../support/daemon.ts"
import { leavesNothing } from "../support/resources.ts"
import { qsdIsHere } from "./requirement.ts"

const content = randomFillSync(new Uint8Array(4 * MiB))

interface WebServer {
  readonly url: string
  /** The ranges that were asked for; `all` where a request named none. */
  readonly ranges: Array<string>
  /** Has it answer each request with this status, and nothing else. */
  status: number | undefined
}

/** Serves the content at `/disk`; other paths are not there. */
const serveFile = ({ acceptsRanges = true }: { readonly acceptsRanges?: boolean } = {}) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly server: Http.Server; readonly web: WebServer }>((resume) => {
      const server = Http.createServer(({ headers, method, url }, response) => {
        const status = web.status ?? (url === "/disk" ? undefined : 404)
        if (status !== undefined) {
          response.writeHead(status).end()
          return
        }
        const common = acceptsRanges ? { "accept-ranges": "bytes" } : {}
        const { first, last } = /^bytes=(?<first>\d+)-(?<last>\d*)$/u.exec(headers.range ?? "")?.groups ?? {}
        const from = first === undefined ? 0 : Number(first)
        const to = last === undefined || last === "" ? content.length - 1 : Math.min(Number(last), content.length - 1)
        if (method === "HEAD") {
          response.writeHead(200, { ...common, "content-length": content.length }).end()
          return
        }
        web.ranges.push(headers.range ?? "all")
        response.writeHead(206, {
          ...common,
          "content-length": to - from + 1,
          "content-range": `bytes ${from}-${to}/${content.length}`
        }).end(content.subarray(from, to + 1))
      })
      const web: WebServer = { url: "", ranges: [], status: undefined }
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        resume(Effect.succeed({ server, web: Object.assign(web, { url: `http://127.0.0.1:${port}/disk` }) }))
      })
    }),
    ({ server }) =>
      Effect.promise(() =>
        new Promise<void>((resolve) => {
          server.close(() => resolve())
          server.closeAllConnections()
        })
      )
  ).pipe(Effect.map(({ web }) => web))

const imageAt = (url: string) => ({ _tag: "http", url }) as const

/** The daemon finds out that the driver is missing only when it is used. */
const driverIsHere = Effect.gen(function*() {
  const error = yield* Effect.flip(QemuStorageDaemon.make(imageAt("http://127.0.0.1:1/")))
  return error._tag !== "ENOTSUP"
}).pipe(Effect.scoped)

const httpIsHere = qsdIsHere
  && await Effect.runPromise(leavesNothing(driverIsHere).pipe(Effect.provide(NodeServices.layer)))

if (qsdIsHere && !httpIsHere) {
  if (process.env["EFFECT_BLKIO_REQUIRE_QSD"] === "1") throw new Error("qemu-block-extra is not here")
  console.warn(
    "\n*** SKIPPED: tests that need qemu-block-extra. EFFECT_BLKIO_REQUIRE_QSD=1 makes this a failure. ***\n"
  )
}

const at = (offset: number, length: number) => content.subarray(offset, offset + length)

describe.skipIf(!httpIsHere)("an image on a web server", () => {
  onBackend("is read as the server has it, by ranges", () =>
    Effect.gen(function*() {
      const web = yield* serveFile()
      const disk = yield* QemuStorageDaemon.make(imageAt(web.url))
      expect(disk.capacity).toBe(content.length)
      expect(disk.queue(0).size).toBe(1)
      expect(Buffer.compare(yield* disk.readBytes(0, content.length), content)).toBe(0)
      expect(web.ranges).not.toHaveLength(0)
      expect(web.ranges).not.toContain("all")
      // Not the whole file for a part of it.
      web.ranges.length = 0
      expect(Buffer.compare(yield* disk.readBytes(MiB + 5, 4 * KiB), at(MiB + 5, 4 * KiB))).toBe(0)
      expect(web.ranges.length).toBeLessThan(3)
    }))

  onBackend("is not written", () =>
    Effect.gen(function*() {
      const web = yield* serveFile()
      const disk = yield* QemuStorageDaemon.make(imageAt(web.url))
      expect(disk.readOnly).toBe(true)
      expect(yield* Effect.flip(disk.write(0, [new Uint8Array(512)]))).toMatchObject({ _tag: "EBADF" })
      expect(yield* Effect.flip(QemuStorageDaemon.make(imageAt(web.url), { readOnly: false }))).toMatchObject({
        _tag: "ENOTSUP",
        path: web.url
      })
    }))

  onBackend("has an error for what the server cannot give, and goes on", () =>
    Effect.gen(function*() {
      const web = yield* serveFile()
      const disk = yield* QemuStorageDaemon.make(imageAt(web.url))
      web.status = 500
      expect(yield* Effect.flip(disk.readBytes(2 * MiB, 4 * KiB))).toMatchObject({ _tag: "EIO", offset: 2 * MiB })
      web.status = undefined
      expect(Buffer.compare(yield* disk.readBytes(2 * MiB, 4 * KiB), at(2 * MiB, 4 * KiB))).toBe(0)
    }))

  onBackend("is refused where there is none, and where the server knows no ranges", () =>
    Effect.gen(function*() {
      const web = yield* serveFile()
      const refusal = (url: string) => Effect.flip(QemuStorageDaemon.make(imageAt(url)))
      expect(yield* refusal(`${web.url}-not`)).toMatchObject({ _tag: "ENOENT" })
      const plain = yield* serveFile({ acceptsRanges: false })
      expect(yield* refusal(plain.url)).toMatchObject({ _tag: "ENOTSUP", path: plain.url })
      expect(yield* refusal("http://127.0.0.1:1/disk")).toMatchObject({ _tag: "ECONNREFUSED" })
    }))
})
