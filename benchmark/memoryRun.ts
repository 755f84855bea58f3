/**
 * What `memory.ts` runs in a process of its own: so many requests one way, then twice as many. Small garbage collections mark
 * the begin and the end of those for whoever reads the collector's trace. Reports on stderr, since the trace is on stdout.
 *
 * V8 counts what it allocates by pages, and some of that is the compiler's: what both parts have in common is no request's.
 *
 *     node --expose-gc --trace-gc-nvp benchmark/memoryRun.ts ring|engine|loop|stream|request REQUESTS
 */
import { Cause, Effect, Exit, Stream } from "effect"
import { getHeapStatistics } from "node:v8"
import type { IoQueue, Read } from "../src/Queue/IoQueue.ts"
import type { Owner, QueueEngine } from "../src/Queue/QueueEngine.ts"
import { RequestType } from "../src/Wire/VirtioBlk.ts"
import { LAYOUTS, makeQueue, makeRing } from "./echoQueue.ts"

const DEPTH = 128
const BLOCK_BYTES = 4096

/** Does so many requests, {@link DEPTH} at a time. */
type Way = (count: number) => Effect.Effect<void>

const [layout] = LAYOUTS

const ring = (): Way => {
  const { device, ring } = makeRing(layout)
  const out = new Uint32Array(ring.queueSize)
  return (count) =>
    Effect.sync(() => {
      for (let done = 0; done < count; done += DEPTH) {
        for (let i = 0; i < DEPTH; i++) ring.put(RequestType.IN, i * 8, BLOCK_BYTES, BLOCK_BYTES)
        ring.publish()
        if (ring.notificationDue()) ring.notified()
        device.answer()
        if (ring.drain(out) !== DEPTH) throw new Error(ring.fault ?? "the device has not answered")
      }
    })
}

const engine = (engine: QueueEngine, requests: ReadonlyArray<Read>): Way => (count) =>
  Effect.callback((resume) => {
    let [left, running] = [count, requests.length]
    const owner: Owner = {
      isAbandoned: false,
      completed: (request) => {
        if (left-- > 0) engine.submit(request, owner)
        else if (--running === 0) resume(Exit.void)
      }
    }
    for (const request of requests) engine.submit(request, owner)
  })

const loop = (queue: IoQueue, requests: ReadonlyArray<Read>): Way => (count) => {
  let left = count / DEPTH
  return Effect.orDie(queue.loop(() => left-- > 0 ? requests : []))
}

const stream = (queue: IoQueue, [first, ...rest]: ReadonlyArray<Read>): Way => (count) => {
  if (first === undefined) return Effect.void
  const array = [first, ...rest] as const
  let left = count / DEPTH
  const pull: Effect.Effect<typeof array, Cause.Done> = Effect.suspend(() =>
    left-- > 0 ? Exit.succeed(array) : Cause.done()
  )
  return Effect.orDie(
    queue.process(Stream.fromPull(Effect.succeed(pull))).pipe(Stream.runForEachArray(() => Effect.void))
  )
}

const request = (queue: IoQueue, requests: ReadonlyArray<Read>): Way => (count) => {
  let left = count
  const repeat = ({ buffer, offset }: Read) =>
    Effect.whileLoop({ while: () => left-- > 0, body: () => queue.read(offset, buffer), step: () => {} })
  return Effect.orDie(Effect.forEach(requests, repeat, { concurrency: "unbounded", discard: true }))
}

const collect = (): void => {
  if (globalThis.gc === undefined) throw new Error("run this with --expose-gc")
  globalThis.gc({ type: "minor" })
}

const program = Effect.gen(function*() {
  const [, , kind, count = "0"] = process.argv
  const fake = yield* makeQueue(layout)
  const requests = Array.from({ length: DEPTH }, (_, i): Read => ({
    _tag: "read",
    offset: i * BLOCK_BYTES,
    buffer: fake.buffer(BLOCK_BYTES)
  }))
  const ways: Readonly<Record<string, () => Way>> = {
    ring,
    engine: () => engine(fake.engine, requests),
    loop: () => loop(fake.queue, requests),
    stream: () => stream(fake.queue, requests),
    request: () => request(fake.queue, requests)
  }
  const way = ways[kind ?? ""]?.()
  if (way === undefined) throw new Error(`no such way: ${kind}`)
  const allocates = Effect.fnUntraced(function*(requests: number) {
    collect()
    const before = getHeapStatistics().total_allocated_bytes
    yield* way(requests)
    return getHeapStatistics().total_allocated_bytes - before
  })
  yield* way(Number(count))
  const once = yield* allocates(Number(count))
  const twice = yield* allocates(2 * Number(count))
  collect()
  console.error(JSON.stringify({ allocated: Math.max(0, twice - once) }))
})

await Effect.runPromise(Effect.scoped(program))
