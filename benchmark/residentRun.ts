/**
 * What `memory.ts` runs to see how much memory a process takes: with nothing, with this package, or with a device at a socket
 * that had 128 requests in flight for a while. Prints bytes.
 *
 *     node --expose-gc --conditions=@effect-blkio/source benchmark/residentRun.ts [package|device SOCKET]
 */
const DEPTH = 128
const BLOCK_BYTES = 4096
const REQUESTS = 100_000

const [, , what, socket = ""] = process.argv

const resident = (): number => {
  if (globalThis.gc === undefined) throw new Error("run this with --expose-gc")
  globalThis.gc()
  return process.memoryUsage().rss
}

if (what === undefined) console.log(resident())
else {
  const { BlockDevice, VhostUser, VirtioBlk } = await import("effect-blkio")
  const { Effect, Layer, Stream } = await import("effect")
  if (what === "package") console.log(resident())
  else {
    const program = Effect.gen(function*() {
      const disk = yield* BlockDevice
      const { bytes } = yield* disk.allocate(DEPTH * BLOCK_BYTES)
      const reads = Stream.range(0, REQUESTS - 1).pipe(
        Stream.map((i) => ({
          _tag: "read" as const,
          offset: i * BLOCK_BYTES % disk.capacity,
          buffer: bytes.subarray(i % DEPTH * BLOCK_BYTES, (i % DEPTH + 1) * BLOCK_BYTES)
        })),
        Stream.rechunk(DEPTH)
      )
      yield* Stream.runDrain(disk.queue(0).process(reads))
      console.log(resident())
    })
    const Disk = VirtioBlk.layer().pipe(Layer.provide(VhostUser.layer({ path: socket })))
    await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Disk)))
  }
}
