/**
 * Serves a disk image that lies on a web server, without downloading it first: a block is fetched when it is first read, and
 * kept. What the front-end writes goes to memory and is gone at the end.
 *
 * A store of one's own is an object: a few facts and an Effect for each operation. Everything else (splitting, overlays,
 * serving) is there.
 *
 *     npm run example examples/09_lazy_http.ts http://localhost:8080/disk.img /run/disk.sock
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Console, Effect, Exit, Stream } from "effect"
import { BlockStore, Errno, Export } from "effect-blkio"
import { FetchHttpClient, HttpClient } from "effect/http"

const [, , url = "", path = ""] = process.argv
const CHUNK_BYTES = 1 << 16

const failed = (operation: string, detail: string, cause?: unknown) =>
  new Errno.EIO({ operation, detail: `${url}: ${detail}`, path: url, cause })

const refused = new Errno.EBADF({ operation: "write", detail: "the image on the web server is not ours to change" })

/** The image as a store. What was fetched once is read from `kept`, a store of the same size. */
const httpImage = Effect.gen(function*() {
  const client = HttpClient.filterStatusOk(yield* HttpClient.HttpClient)
  const head = yield* client.head(url).pipe(Effect.mapError((cause) => failed("open", "no answer", cause)))
  const size = Number(head.headers["content-length"] ?? 0)
  const capacity = size - size % 512
  const kept = yield* BlockStore.memory({ capacity })

  const fetch = Effect.fnUntraced(function*(chunk: number) {
    const first = chunk * CHUNK_BYTES
    const last = Math.min(first + CHUNK_BYTES, capacity) - 1
    const response = yield* client.get(url, { headers: { range: `bytes=${first}-${last}` } })
    const bytes = new Uint8Array(yield* response.arrayBuffer)
    if (response.status !== 206 || bytes.length !== last + 1 - first) {
      return yield* failed("read", `${bytes.length} bytes with status ${response.status} for ${last + 1 - first}`)
    }
    yield* kept.write(first, [bytes])
  }, Effect.catchTag("HttpClientError", (cause) => failed("read", "no answer", cause)))

  /** Fetches that were begun: whoever needs the same chunk waits for the same one. */
  const begun = new Map<number, Effect.Effect<void, BlockStore.StoreError>>()
  const once = Effect.fnUntraced(function*(chunk: number) {
    const fetched = begun.get(chunk) ?? (yield* Effect.cached(fetch(chunk)))
    begun.set(chunk, fetched)
    const exit = yield* Effect.exit(fetched)
    // One that failed may be tried again.
    if (Exit.isFailure(exit)) begun.delete(chunk)
    return yield* exit
  })

  const image: BlockStore.BlockStore = {
    id: url,
    capacity,
    blockSize: 512,
    readOnly: true,
    limits: BlockStore.unlimited,
    read: Effect.fnUntraced(function*(offset, buffers) {
      const end = offset + BlockStore.lengthOf(buffers)
      const first = Math.floor(offset / CHUNK_BYTES)
      const chunks = Array.from({ length: Math.ceil(end / CHUNK_BYTES) - first }, (_, i) => first + i)
      yield* Effect.forEach(chunks, once, { concurrency: 8, discard: true })
      yield* kept.read(offset, buffers)
    }),
    write: () => refused,
    writeZeroes: () => refused,
    discard: () => refused,
    flush: Effect.void,
    capacityChanges: Stream.empty
  }
  return { image, fetchedBytes: () => begun.size * CHUNK_BYTES }
})

const program = Effect.gen(function*() {
  const { fetchedBytes, image } = yield* httpImage
  const disk = yield* BlockStore.overlay(image, yield* BlockStore.memory({ capacity: image.capacity }))
  const { events } = yield* Export.serve(disk, { path, serial: "lazy" })
  yield* Console.log(`serving ${disk.capacity} bytes of ${url} on ${path}`)
  yield* Stream.runForEach(events, (event) =>
    event._tag === "connected"
      ? Console.log("a front-end came")
      : Console.log(`it went: ${event.reason.message}; ${fetchedBytes()} bytes were fetched for it`))
})

program.pipe(Effect.scoped, Effect.provide(FetchHttpClient.layer), NodeRuntime.runMain)
