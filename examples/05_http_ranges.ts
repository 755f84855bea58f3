/**
 * Serves a disk over HTTP, by ranges: `GET /` with `Range: bytes=0-511`. The disk is a Layer like any other part of the
 * service, and Config says where it is.
 *
 *     BLKIO_SOCKET=/run/disk.sock PORT=8080 npm run example examples/05_http_ranges.ts
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Config, Effect, Layer, Option } from "effect"
import { BlockDevice, VhostUser, VirtioBlk } from "effect-blkio"
import { HttpRouter, HttpServerRequest, HttpServerResponse } from "effect/http"
import { createServer } from "node:http"

const Disk = VirtioBlk.layerConfig({ readOnly: Config.Boolean("READ_ONLY").pipe(Config.withDefault(true)) }).pipe(
  Layer.provide(VhostUser.layerConfig({ path: Config.String("BLKIO_SOCKET") }))
)

/** The first and last byte that a Range header asks for, of a disk of so many bytes. */
const parseRange = (header: string | undefined, capacity: number): Option.Option<readonly [number, number]> => {
  const [, from, to] = /^bytes=(?<from>\d+)-(?<to>\d*)$/u.exec(header ?? "bytes=0-") ?? []
  const first = Number(from ?? Infinity)
  const last = Math.min(to === undefined || to === "" ? Infinity : Number(to), capacity - 1)
  return first <= last ? Option.some([first, last]) : Option.none()
}

const Routes = HttpRouter.add(
  "GET",
  "/",
  Effect.gen(function*() {
    const disk = yield* BlockDevice
    const request = yield* HttpServerRequest.HttpServerRequest
    const range = parseRange(request.headers["range"], disk.capacity)
    if (Option.isNone(range)) {
      return HttpServerResponse.empty({ status: 416, headers: { "content-range": `bytes */${disk.capacity}` } })
    }
    const [first, last] = range.value
    return HttpServerResponse.stream(disk.stream({ offset: first, length: last - first + 1 }), {
      status: request.headers["range"] === undefined ? 200 : 206,
      contentType: "application/octet-stream",
      contentLength: last - first + 1,
      headers: { "accept-ranges": "bytes", "content-range": `bytes ${first}-${last}/${disk.capacity}` }
    })
  })
)

const Server = Layer.unwrap(
  Effect.map(Config.Port("PORT"), (port) => NodeHttpServer.layer(createServer, { port, host: "127.0.0.1" }))
)

// The disk comes first: a server that listens before it can answer leaves its first clients waiting.
HttpRouter.serve(Routes).pipe(Layer.provide(Server), Layer.provide(Disk), Layer.launch, NodeRuntime.runMain)
