/**
 * Goal: what the chaos runs are to find, they find: wrong data, requests that do not end, failures that nothing explains, and
 * what is left behind.
 * Method: our export serves stores that go wrong in one way each, now and then, under the same traffic; and what looks after the
 * rest is shown a request that never ends, one that ends twice, and a process that nobody waits for.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { make as random } from "../../src/SeededRandom.ts"
import { BlockStore, Errno, Export } from "../../src/index.ts"
import { onBackend, open, withSeed } from "../support/daemon.ts"
import { BLOCK_BYTES, wordsOf } from "./Blocks.ts"
import { Findings } from "./Findings.ts"
import { leavingNothing } from "./Leftovers.ts"
import { Oracle } from "./Oracle.ts"
import { MAX_BYTES, Traffic } from "./Traffic.ts"
import * as Workers from "./Workers.ts"
import { exercise } from "./exercise.ts"

const SEED = 7
const BLOCKS = 64
const WRITES = 500
/** Of so many operations one goes wrong. */
const EVERY = 20

type Store = BlockStore.BlockStore
/** What goes wrong with an operation on a store. */
type Fault<Name extends "read" | "write"> = (store: Store, ...args: Parameters<Store[Name]>) => ReturnType<Store[Name]>

const badWrites = (fault: Fault<"write">) => (store: Store): Store => {
  let writes = 0
  return { ...store, write: (...args) => ++writes % EVERY === 0 ? fault(store, ...args) : store.write(...args) }
}

const badReads = (fault: Fault<"read">) => (store: Store): Store => {
  let reads = 0
  return { ...store, read: (...args) => ++reads % EVERY === 0 ? fault(store, ...args) : store.read(...args) }
}

const lengthOf = (buffers: ReadonlyArray<Uint8Array>) => buffers.reduce((sum, { length }) => sum + length, 0)
/** A place that has room for the buffers too, mostly another one. */
const elsewhere = (buffers: ReadonlyArray<Uint8Array>) => BLOCKS * BLOCK_BYTES - lengthOf(buffers)

const faults: Readonly<Record<string, (store: Store) => Store>> = {
  "a write that is not done": badWrites(() => Effect.void),
  "a write to another place": badWrites((store, _, buffers) => store.write(elsewhere(buffers), buffers)),
  "a write that is done in part": badWrites((store, offset, [first]) =>
    first === undefined ? Effect.void : store.write(offset, [first.subarray(0, 512)])
  ),
  "a bit that is written wrong": badWrites((store, offset, buffers) =>
    store.write(offset, buffers.map((buffer) => buffer.map((byte, i) => i === 700 ? byte ^ 4 : byte)))
  ),
  "a read that is not done": badReads(() => Effect.void),
  "a read from another place": badReads((store, _, buffers) => store.read(elsewhere(buffers), buffers)),
  "a read that is done in part": badReads((store, offset, [first]) =>
    first === undefined ? Effect.void : store.read(offset, [first.subarray(0, 512)])
  ),
  "writeZeroes that is not done": (store) => ({ ...store, writeZeroes: () => Effect.void })
}

/** Serves a store and has checked traffic on it. */
const tryStore = Effect.fnUntraced(function*(spoil: (store: Store) => Store, seed: number) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-chaos-" })
  const memory = yield* BlockStore.memory({ capacity: BLOCKS * BLOCK_BYTES })
  const { path } = yield* Export.serve(spoil(memory), { path: `${folder}/disk.sock`, numQueues: Workers.QUEUES })
  const findings = new Findings()
  yield* exercise(yield* open(path, Workers.options), findings, {
    seed,
    blocks: BLOCKS,
    load: Workers.heavy,
    writes: WRITES,
    isExpected: () => false
  })
  return findings
})

const kindsOf = ({ faults }: Findings) => [...new Set(faults.map(({ fault }) => fault))]

describe("checked traffic", () => {
  onBackend("finds nothing on a store that is right", () =>
    withSeed(Effect.fnUntraced(function*(below) {
      expect((yield* tryStore((store) => store, below(2 ** 32))).faults).toStrictEqual([])
    })))

  for (const [name, spoil] of Object.entries(faults)) {
    onBackend(`finds ${name}`, () =>
      withSeed(Effect.fnUntraced(function*(below) {
        expect(kindsOf(yield* tryStore(spoil, below(2 ** 32)))).toStrictEqual(["wrong"])
      })))
  }

  onBackend("finds a failure that nothing explains", () =>
    withSeed(Effect.fnUntraced(function*(below) {
      const failing = badWrites(() => Effect.fail(new Errno.EIO({ operation: "write", detail: "planted" })))
      expect(kindsOf(yield* tryStore(failing, below(2 ** 32)))).toStrictEqual(["unexpected"])
    })))
})

describe("those who look after the rest", () => {
  const subject = () => {
    const findings = new Findings()
    const bytes = new Uint8Array(MAX_BYTES)
    let now = 0
    const traffic = new Traffic({
      oracle: new Oracle(SEED, BLOCKS),
      findings,
      below: random(SEED),
      upMs: () => now,
      isExpected: () => false
    })
    const wait = (ms: number) => {
      now += ms
    }
    return { findings, traffic, slot: { bytes, words: wordsOf(bytes) }, wait }
  }

  it("name requests that have not ended in time", () => {
    const { slot, traffic, wait } = subject()
    const reading = traffic.read(slot, 3, 1)
    wait(600)
    const flushing = traffic.flush()
    wait(500)
    expect(traffic.hungFor(1000)).toStrictEqual(["read at 12288: no end after 1100 ms"])
    reading.end(new Errno.EIO({ operation: "read", detail: "planted" }))
    expect(traffic.hungFor(1000)).toStrictEqual([])
    wait(600)
    expect(traffic.hungFor(1000)).toStrictEqual(["flush: no end after 1100 ms"])
    flushing.end(undefined)
    expect(traffic.hungFor(0)).toStrictEqual([])
  })

  it("notice a request that ends twice", () => {
    const { findings, traffic } = subject()
    const { end } = traffic.flush()
    end(undefined)
    expect(findings.isClean).toBe(true)
    end(undefined)
    expect(findings.faults).toMatchObject([{ fault: "unexpected", text: "flush has ended twice" }])
  })

  it.live("notice a process that is left behind", () =>
    Effect.gen(function*() {
      const findings = new Findings()
      const child = yield* leavingNothing(findings, Effect.sync(() => spawn("sleep", ["60"], { stdio: "ignore" })))
      expect(findings.faults).toMatchObject([{ fault: "leaked" }])
      child.kill()
      yield* Effect.promise(() => once(child, "exit"))
    }))
})
