/**
 * Measures the parts that a request goes through, each alone and on ordinary memory: rings, codecs, the check of a request,
 * and the Effect edge of a queue. Prints nanoseconds for each request or message.
 *
 *     npm run bench:micro [-- MILLISECONDS]
 *
 * README.md in this folder says how to read it.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Console, Effect, Exit, Stream } from "effect"
import { Bench, type FnOptions } from "tinybench"
import type { IoQueue, Read } from "../src/Queue/IoQueue.ts"
import * as Request from "../src/Queue/Request.ts"
import * as VhostUserMessage from "../src/Wire/VhostUserMessage.ts"
import * as VirtioBlk from "../src/Wire/VirtioBlk.ts"
import type { FakeQueue } from "../test/support/FakeQueue.ts"
import { LAYOUTS, makeQueue, makeRing } from "./echoQueue.ts"
import { digits } from "./tables.ts"

const [, , milliseconds = "500"] = process.argv

const BATCHES = [1, 32, 128]
const BLOCK_BYTES = 4096
/** How often a task does its thing, so that the clock does not count. */
const TIMES = 1024

/** What is measured: `operations` are what one call of a task does. */
class Tasks {
  readonly #bench = new Bench({ time: Number(milliseconds), warmupTime: Number(milliseconds) / 5, throws: true })
  readonly #operations = new Map<string, number>()

  add(name: string, operations: number, task: () => unknown, options?: FnOptions): void {
    this.#operations.set(name, operations)
    this.#bench.add(name, task, options)
  }

  /** Runs them all, and tells a line of each. */
  async run(): Promise<string> {
    await this.#bench.run()
    const width = Math.max(...[...this.#operations.keys()].map((name) => name.length))
    return this.#bench.tasks.map(({ name, result }) => {
      if (!("latency" in result)) return `${name.padEnd(width)}  ${result.state}`
      const { p50, p75, samplesCount } = result.latency
      const ns = (ms: number) => digits(ms * 1e6 / (this.#operations.get(name) ?? 1)).padStart(7)
      return `${name.padEnd(width)}  ${ns(p50)} ns, three of four below ${ns(p75)} (${samplesCount} samples)`
    }).join("\n")
  }
}

const addRings = (tasks: Tasks): void => {
  for (const layout of LAYOUTS) {
    for (const batch of BATCHES) {
      const { device, ring } = makeRing(layout)
      const out = new Uint32Array(ring.queueSize)
      tasks.add(`${layout.name}: put, publish, drain, in batches of ${batch}`, TIMES, () => {
        for (let done = 0; done < TIMES; done += batch) {
          for (let i = 0; i < batch; i++) ring.put(VirtioBlk.RequestType.IN, i * 8, 4096, BLOCK_BYTES)
          ring.publish()
          if (ring.notificationDue()) ring.notified()
          device.answer()
          if (ring.arm() && ring.drain(out) !== batch) throw new Error(ring.fault ?? "the device has not answered")
        }
      })
    }
  }
}

const addCodecs = (tasks: Tasks): void => {
  const payload = VhostUserMessage.encodeVringState(1, 256)
  const message = VhostUserMessage.encodeMessage(VhostUserMessage.FrontendRequest.SET_VRING_NUM, 0, payload)
  const regions = Array.from({ length: 8 }, (_, i) => ({
    guestAddress: 2 ** 32 * i,
    size: 2 ** 21,
    userAddress: 2 ** 40 + 2 ** 32 * i,
    mmapOffset: 0
  }))
  const table = VhostUserMessage.encodeMemoryTable(regions)
  const config = new Uint8Array(VirtioBlk.CONFIG_SIZES[2])
  const decoded = VirtioBlk.decodeConfig(config)
  const repeat = (name: string, codec: () => unknown) =>
    tasks.add(name, TIMES, () => {
      for (let i = 0; i < TIMES; i++) codec()
    })
  repeat("vhost-user: encode a message with its vring state", () =>
    VhostUserMessage.encodeMessage(
      VhostUserMessage.FrontendRequest.SET_VRING_NUM,
      0,
      VhostUserMessage.encodeVringState(1, 256)
    ))
  repeat("vhost-user: decode a header and a vring state", () => {
    VhostUserMessage.decodeHeader(message.subarray(0, VhostUserMessage.HEADER_BYTES))
    VhostUserMessage.decodeVringState(message.subarray(VhostUserMessage.HEADER_BYTES))
  })
  repeat("vhost-user: encode a memory table of 8 regions", () => VhostUserMessage.encodeMemoryTable(regions))
  repeat("vhost-user: decode a memory table of 8 regions", () => VhostUserMessage.decodeMemoryTable(table))
  repeat("virtio-blk: decode the configuration", () => VirtioBlk.decodeConfig(config))
  repeat("virtio-blk: encode the configuration", () => VirtioBlk.encodeConfig(decoded))
}

const addCheck = (tasks: Tasks, { rules, space }: FakeQueue, requests: ReadonlyArray<Read>): void => {
  tasks.add("check of a request", requests.length, () => {
    for (const request of requests) if (Request.check(request, rules, space) !== undefined) throw new Error("refused")
  })
}

/** One Effect for each request, so many at a time. */
const addReads = (tasks: Tasks, name: string, queue: IoQueue, requests: ReadonlyArray<Read>): void => {
  for (const fibers of BATCHES) {
    const share = TIMES / fibers
    const repeat = (request: Read) => {
      let left = share
      return Effect.whileLoop({
        while: () => left-- > 0,
        body: () => queue.read(request.offset, request.buffer),
        step: () => {}
      })
    }
    const all = Effect.forEach(requests.slice(0, fibers), (request) => Effect.suspend(() => repeat(request)), {
      concurrency: "unbounded",
      discard: true
    })
    tasks.add(`${name}: read, ${fibers} at a time`, TIMES, () => Effect.runPromise(all), { async: true })
  }
}

/** Arrays of requests through a Stream. */
const addProcess = (tasks: Tasks, name: string, queue: IoQueue, requests: ReadonlyArray<Read>): void => {
  for (const batch of BATCHES) {
    const [first, ...rest] = requests.slice(0, batch)
    if (first === undefined) continue
    const array = [first, ...rest] as const
    const all = Effect.suspend(() => {
      let left = TIMES / batch
      const pull: Effect.Effect<typeof array, Cause.Done> = Effect.suspend(() =>
        left-- > 0 ? Exit.succeed(array) : Cause.done()
      )
      return queue.process(Stream.fromPull(Effect.succeed(pull))).pipe(Stream.runForEachArray(() => Effect.void))
    })
    tasks.add(`${name}: process, in arrays of ${batch}`, TIMES, () => Effect.runPromise(all), { async: true })
  }
}

const program = Effect.gen(function*() {
  const tasks = new Tasks()
  addRings(tasks)
  addCodecs(tasks)
  for (const layout of LAYOUTS) {
    const fake = yield* makeQueue(layout)
    const requests = Array.from({ length: Math.max(...BATCHES) }, (_, i): Read => ({
      _tag: "read",
      offset: i * BLOCK_BYTES,
      buffer: fake.buffer(BLOCK_BYTES)
    }))
    if (!layout.packed) addCheck(tasks, fake, requests)
    addReads(tasks, layout.name, fake.queue, requests)
    addProcess(tasks, layout.name, fake.queue, requests)
  }
  yield* Console.log(yield* Effect.promise(() => tasks.run()))
})

program.pipe(Effect.scoped, NodeRuntime.runMain)
