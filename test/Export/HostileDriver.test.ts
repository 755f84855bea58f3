/**
 * Goal: a driver that does what it must not harms itself at most. A request that is wrong fails with the status that virtio
 * 1.2 §5.2.6 gives it, and the ring goes on; a ring that is broken ends its connection, with the error descriptor signalled
 * and EPROTO told to whoever watches, and the next front-end is served.
 * Method: a front-end of its own making (test/support/FakeFrontend.ts) on a real socket with real shared memory. The cases
 * and their numbers are those of virtio-villain's catalogue for block devices; then broken rings, memory that changes behind
 * the export's back, and rings full of garbage.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Fiber, Schema } from "effect"
import { execFileSync } from "node:child_process"
import { closeSync, constants, openSync } from "node:fs"
import * as Path from "node:path"
import { make as random } from "../../src/SeededRandom.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { decodeConfig, FeatureBit, RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { BlockStore, type Export } from "../../src/index.ts"
import { pattern, watched } from "../BlockStore/WatchedStore.ts"
import * as FakeFrontend from "../support/FakeFrontend.ts"
import { INDIRECT, NEXT, type RequestOptions, WRITE } from "../support/FakeRing.ts"
import { leavesNothing, live } from "../support/resources.ts"
import { brokenRings, garbage, QUEUE_SIZE } from "./brokenRings.ts"

const CAPACITY = 1 << 20
const SECTORS = CAPACITY / 512
const { DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES } = RequestType
const { IOERR, OK, UNSUPP } = Status

const disk = Effect.orDie(BlockStore.memory({ capacity: CAPACITY }))

/** Serves a disk in memory, or another, and starts a front-end. */
const open = Effect.fnUntraced(function*(
  options: FakeFrontend.StartOptions = {},
  exportOptions: Omit<Export.Options, "path" | "fd"> = {},
  store?: BlockStore.BlockStore
) {
  const served = yield* FakeFrontend.serve(store ?? (yield* disk), exportOptions)
  return { served, ...yield* served.start(options) }
})

const segments = (...each: ReadonlyArray<readonly [sector: number | bigint, sectors: number, flags?: number]>) => {
  const given = new Uint8Array(16 * each.length)
  const view = new DataView(given.buffer)
  each.forEach(([sector, sectors, flags = 0], i) => {
    view.setBigUint64(16 * i, BigInt(sector), true)
    view.setUint32(16 * i + 8, sectors, true)
    view.setUint32(16 * i + 12, flags, true)
  })
  return given
}

const zeroes = (length: number) => new Uint8Array(length)

interface Case {
  readonly name: string
  readonly request: RequestOptions
  /** The status; -1 where there is no room for one. */
  readonly status: number
  readonly without?: ReadonlyArray<number>
  readonly options?: Omit<Export.Options, "path" | "fd">
}

describe("a request that is wrong, and a good one after it", () => {
  const cases: ReadonlyArray<Case> = [
    { name: "b0001 a sector at the capacity", request: { type: IN, sector: SECTORS, wanted: 512 }, status: IOERR },
    { name: "b0001 a sector far beyond", request: { type: OUT, sector: 2 ** 40, given: zeroes(512) }, status: IOERR },
    {
      name: "b0002 sector and length past the end",
      request: { type: IN, sector: SECTORS - 1, wanted: 1024 },
      status: IOERR
    },
    {
      name: "b0002 the last sector there is",
      request: { type: IN, sector: 2n ** 64n - 1n, wanted: 1024 },
      status: IOERR
    },
    {
      name: "b0002 a byte that wraps to 0",
      request: { type: OUT, sector: 2n ** 55n, given: zeroes(512) },
      status: IOERR
    },
    { name: "b0003 an unknown type", request: { type: 0x1234, wanted: 512 }, status: UNSUPP },
    { name: "b0003 a type of all ones", request: { type: 0xffff_ffff }, status: UNSUPP },
    { name: "b0006 a read of 100 bytes", request: { type: IN, wanted: 100 }, status: IOERR },
    { name: "b0006 a write of 513 bytes", request: { type: OUT, given: zeroes(513) }, status: IOERR },
    { name: "b0007 a flush with data to write", request: { type: FLUSH, given: zeroes(512) }, status: IOERR },
    { name: "b0094 a flush with data to read", request: { type: FLUSH, wanted: 512 }, status: IOERR },
    { name: "b0008 a flush of a sector", request: { type: FLUSH, sector: 77 }, status: OK },
    { name: "b0009 GET_ID without room", request: { type: GET_ID }, status: IOERR },
    { name: "b0009 GET_ID of 1 byte", request: { type: GET_ID, wanted: 1 }, status: OK },
    { name: "b0024 GET_ID of 4096 bytes", request: { type: GET_ID, wanted: 4096 }, status: OK },
    { name: "b0011 a header of 15 bytes", request: { type: IN, out: [15], wanted: 512 }, status: IOERR },
    { name: "b0011 a header of 1 byte", request: { type: OUT, out: [1] }, status: IOERR },
    { name: "b0011 no header", request: { type: IN, out: [], wanted: 512 }, status: IOERR },
    { name: "b0012 no status", request: { type: OUT, given: zeroes(512), in: [] }, status: -1 },
    { name: "b0012 no status of a flush", request: { type: FLUSH, in: [] }, status: -1 },
    { name: "b0097 a status of 0 bytes", request: { type: FLUSH, in: [0] }, status: -1 },
    { name: "b0013 a discard without a segment", request: { type: DISCARD }, status: IOERR },
    { name: "b0013 write zeroes without a segment", request: { type: WRITE_ZEROES }, status: IOERR },
    { name: "b0014 a discard of half a segment", request: { type: DISCARD, given: zeroes(8) }, status: IOERR },
    { name: "b0014 write zeroes of 17 bytes", request: { type: WRITE_ZEROES, given: zeroes(17) }, status: IOERR },
    { name: "b0015 a discard with UNMAP", request: { type: DISCARD, given: segments([0, 1, 1]) }, status: UNSUPP },
    {
      name: "b0016 a discard with unknown flags",
      request: { type: DISCARD, given: segments([0, 1, 6]) },
      status: UNSUPP
    },
    {
      name: "b0017 write zeroes with unknown flags",
      request: { type: WRITE_ZEROES, given: segments([0, 1, 0xffff_fffe]) },
      status: UNSUPP
    },
    { name: "b0018 a discard past the end", request: { type: DISCARD, given: segments([SECTORS, 1]) }, status: IOERR },
    {
      name: "b0018 a discard that wraps",
      request: { type: DISCARD, given: segments([2n ** 64n - 1n, 2]) },
      status: IOERR
    },
    {
      name: "b0018 write zeroes of 2^32 - 1 sectors",
      request: { type: WRITE_ZEROES, given: segments([1, 0xffff_ffff]) },
      status: IOERR
    },
    {
      name: "b0019 a discard without its feature",
      request: { type: DISCARD, given: segments([0, 1]) },
      status: OK,
      without: [FeatureBit.DISCARD]
    },
    {
      name: "b0020 write zeroes without their feature",
      request: { type: WRITE_ZEROES, given: segments([0, 1]) },
      status: OK,
      without: [FeatureBit.WRITE_ZEROES]
    },
    { name: "b0021 a flush without its feature", request: { type: FLUSH }, status: OK, without: [FeatureBit.FLUSH] },
    { name: "b0029 a header in two", request: { type: IN, wanted: 512, out: [8, 8] }, status: OK },
    { name: "b0029 a header in sixteen", request: { type: IN, wanted: 512, out: Array(16).fill(1) }, status: OK },
    { name: "b0035 a read of data to read", request: { type: IN, given: zeroes(512) }, status: IOERR },
    { name: "b0071 a write of data to write", request: { type: OUT, wanted: 512 }, status: IOERR },
    { name: "b0073 a read both ways", request: { type: IN, given: zeroes(512), wanted: 512 }, status: IOERR },
    {
      name: "b0037 a status of 16 bytes after a write",
      request: { type: OUT, given: zeroes(512), in: [16] },
      status: IOERR
    },
    { name: "b0037 a status of 16 bytes after a read", request: { type: IN, in: [512, 16] }, status: IOERR },
    {
      name: "b0038 a discard over the limit",
      request: { type: DISCARD, given: segments([0, 9]) },
      status: IOERR,
      options: { maxRangeLength: 4096 }
    },
    {
      name: "b0056 more segments than seg_max",
      request: { type: IN, in: [...Array<number>(20).fill(512), 1], indirectFrom: 0 },
      status: OK,
      options: { maxSegments: 10 }
    },
    {
      name: "b0043 a discard of two segments",
      request: { type: DISCARD, given: segments([0, 1], [8, 1]) },
      status: UNSUPP
    },
    {
      name: "b0083 write zeroes of segments that overlap",
      request: { type: WRITE_ZEROES, given: segments([0, 8], [4, 8]) },
      status: UNSUPP
    },
    {
      name: "b0045 a read that is scattered by a table",
      request: { type: IN, in: [1, 511, 100, 412, 1], indirectFrom: 0, tableOffset: 5 },
      status: OK
    },
    {
      name: "b0051 the longest chain of a ring",
      request: { type: IN, in: [...Array<number>(62).fill(512), 1] },
      status: OK
    },
    {
      name: "b0051 the longest chain of a table",
      request: { type: IN, in: [...Array<number>(1022).fill(512), 1], indirectFrom: 0 },
      status: OK
    },
    {
      name: "b0057 a write to a read-only disk",
      request: { type: OUT, given: zeroes(512) },
      status: IOERR,
      options: { readOnly: true }
    },
    { name: "b0062 GET_LIFETIME", request: { type: 10, wanted: 6 }, status: UNSUPP },
    {
      name: "b0230 a reserved word that says FUA",
      request: { type: OUT, reserved: 1, given: zeroes(512) },
      status: OK
    },
    { name: "b0231 a reserved word of all ones", request: { type: IN, reserved: 0xffff_ffff, wanted: 512 }, status: OK }
  ]
  for (const { name, options, request, status, without = [] } of cases) {
    live(name, () =>
      Effect.gen(function*() {
        const { queue, served } = yield* open({ without }, options)
        const answer = yield* queue.do(request)
        expect(answer.status).toBe(status)
        const written = status === OK ? answer.data.length + 1 : status < 0 ? 0 : 1
        expect(answer.length).toBe(written)
        expect((yield* queue.do({ type: IN, sector: 5, wanted: 1024 })).status).toBe(OK)
        expect([served.log, queue.errors()]).toStrictEqual([["connected"], 0])
      }))
  }

  live("all of them at once, among good ones", () =>
    Effect.gen(function*() {
      const { queue, served } = yield* open({ queueSize: 256 })
      const given = pattern(0, 512)
      expect((yield* queue.do({ type: OUT, sector: 9, given })).status).toBe(OK)
      const several = cases.filter(({ options, without }) => options === undefined && without === undefined)
        .filter(({ request }) => (request.in?.length ?? 0) < 60)
      const put = several.map(({ request, status }) => ({
        bad: queue.submit({ indirectFrom: 0, ...request }),
        good: queue.submit({ type: IN, sector: 9, wanted: 512, indirectFrom: 0 }),
        status
      }))
      queue.kick()
      for (const { bad, good, status } of put) {
        yield* queue.used(bad.head)
        yield* queue.used(good.head)
        expect([bad.status(), bad.isIntact(), good.status(), good.isIntact()]).toStrictEqual([status, true, OK, true])
      }
      expect(served.log).toStrictEqual(["connected"])
      expect(served.exported.statistics.inFlight).toBe(0)
    }))
})

describe("what the catalogue does beyond one request", () => {
  live(
    "b0022 one buffer in two queues at once, b0023 a chain of one queue made of the other's ring",
    () =>
      Effect.gen(function*() {
        const { frontend, memory, queue, served } = yield* open({}, { numQueues: 2 })
        const other = yield* frontend.startQueue()
        const data = { address: memory.allocate(512), length: 512, write: true }
        const heads = [queue, other].map(({ ring }) => {
          const header = { address: memory.allocate(16), length: 16 }
          return ring.put([header, data, { address: memory.allocate(1), length: 1, write: true }])
        })
        queue.kick()
        other.kick()
        yield* queue.used(heads[0]!)
        yield* other.used(heads[1]!)
        // A read into the other queue's descriptors, which are rewritten before they are used again.
        const table = memory.region.guestAddress + other.ring.descriptorsAt
        const head = queue.ring.put([
          { address: memory.allocate(16), length: 16 },
          { address: table, length: 1024, write: true },
          { address: memory.allocate(1), length: 1, write: true }
        ])
        queue.kick()
        yield* queue.used(head)
        expect((yield* other.do({ type: IN, wanted: 512 })).status).toBe(OK)
        expect((yield* queue.do({ type: IN, wanted: 512 })).status).toBe(OK)
        expect(served.log).toStrictEqual(["connected"])
      })
  )

  live("b0032 an index that the other queue has reached means nothing to this one", () =>
    Effect.gen(function*() {
      const { frontend, queue } = yield* open({}, { numQueues: 2 })
      const other = yield* frontend.startQueue({ base: 40_000 })
      for (let i = 0; i < 5; i++) expect((yield* queue.do({ type: FLUSH })).status).toBe(OK)
      expect((yield* other.do({ type: FLUSH })).status).toBe(OK)
      expect([queue.ring.usedIdx, other.ring.usedIdx]).toStrictEqual([5, 40_001])
    }))

  live("b0041 a kick and a reset at once, b0050 a flush after it", () =>
    Effect.gen(function*() {
      const { frontend, served } = yield* open()
      for (let round = 0; round < 10; round++) {
        const memory = frontend.shared[0]!
        memory.allocated = 0
        const queue = round === 0 ? frontend.queues[0]! : yield* frontend.startQueue({ index: 0 })
        for (let i = 0; i < 8; i++) queue.submit({ type: IN, wanted: 512 })
        queue.kick()
        yield* frontend.tell("RESET_DEVICE")
        frontend.say("SET_FEATURES", Message.encodeU64(yield* frontend.askU64("GET_FEATURES")))
        memory.allocated = 0
        memory.bytes.fill(0)
        const again = yield* frontend.startQueue({ index: 0 })
        expect((yield* again.do({ type: FLUSH })).status).toBe(OK)
        yield* frontend.ask("GET_VRING_BASE", Message.encodeVringState(0, 0))
      }
      expect(served.log).toStrictEqual(["connected"])
    }))

  live("b0053 the write cache on and off, with writes between", () =>
    Effect.gen(function*() {
      const { store, log } = watched({ capacity: CAPACITY })
      const { frontend, queue } = yield* open({}, {}, store)
      const configured = Effect.map(
        frontend.ask("GET_CONFIG", Message.encodeConfig({ offset: 0, size: 60, flags: 0 })),
        ({ payload }) => decodeConfig(Message.decodeConfig(payload).region).writeback
      )
      for (const writeback of [0, 1, 0]) {
        const region = Uint8Array.of(writeback)
        yield* frontend.tell("SET_CONFIG", Message.encodeConfig({ offset: 32, size: 1, flags: 0, region }))
        expect(yield* configured).toBe(writeback)
        expect((yield* queue.do({ type: OUT, given: zeroes(512) })).status).toBe(OK)
      }
      expect(log.map(({ fua }) => fua)).toStrictEqual([true, false, true])
    }))

  for (const queueSize of [2, 4, 256, 1024, 32768]) {
    live(`b0060 a queue of ${queueSize} descriptors`, () =>
      Effect.gen(function*() {
        const { queue } = yield* open({ queueSize, length: 1 << 21 })
        const request = { indirectFrom: 0, type: OUT, sector: 3, given: pattern(0, 1024) }
        for (let i = 0; i < 5; i++) expect((yield* queue.do(request)).status).toBe(OK)
        const { data } = yield* queue.do({ indirectFrom: 0, type: IN, sector: 3, wanted: 1024 })
        expect(data).toStrictEqual(request.given)
      }))
  }

  live("b0060 sizes that no queue has, b0076 a queue that is not there", () =>
    Effect.gen(function*() {
      const { frontend } = yield* open({}, { numQueues: 2 })
      const size = (index: number, num: number) =>
        frontend.acknowledged("SET_VRING_NUM", Message.encodeVringState(index, num))
      for (const num of [0, 3, 100, 65_536, 0xffff_ffff]) expect(yield* size(1, num)).toBe(1n)
      for (const index of [2, 255, 0xffff_ffff]) expect(yield* size(index, 16)).toBe(1n)
      expect(yield* size(1, 16)).toBe(0n)
    }))
})

describe("a ring that is broken", () => {
  for (const { breakRing, fault, indirect = true, name } of brokenRings) {
    live(name, () =>
      Effect.gen(function*() {
        const without = indirect ? [] : [FeatureBit.INDIRECT_DESC]
        const { frontend, queue, served } = yield* open({ queueSize: QUEUE_SIZE, without })
        expect((yield* queue.do({ type: IN, wanted: 512 })).status).toBe(OK)
        breakRing(queue.ring)
        queue.kick()
        yield* frontend.ended
        yield* served.gone(1)
        expect(served.log).toStrictEqual(["connected", "EPROTO"])
        expect(served.reasons[0]).toMatch(new RegExp(`^ring: queue 0: ${fault.source.replace(/^\^/, "")}`))
        expect(queue.errors()).toBe(1)
        yield* served.serves
      }))
  }

  live("a head that is in flight already, and whose first is taken back from the store", () =>
    Effect.gen(function*() {
      const behind = watched({ capacity: CAPACITY })
      behind.turns = ({ offset }) => offset === 0 ? Infinity : 1
      const { frontend, queue, served } = yield* open({}, {}, behind.store)
      const { head } = queue.submit({ type: IN, wanted: 512 })
      queue.ring.offer(head)
      queue.kick()
      yield* frontend.ended
      yield* served.gone(1)
      expect(served.reasons).toStrictEqual([`ring: queue 0: head ${head} is in flight already`])
      expect([queue.errors(), behind.inFlight]).toStrictEqual([1, 0])
      yield* served.serves
    }))

  live("a kick descriptor that cannot be read", () =>
    Effect.gen(function*() {
      const { frontend, served } = yield* open({ enable: false })
      const fifo = Path.join(Path.dirname(served.exported.path), "fifo")
      execFileSync("mkfifo", [fifo])
      // Nobody is left who could write, so it can be watched, and reads as at its end.
      const kick = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK)
      closeSync(openSync(fifo, constants.O_WRONLY))
      frontend.say("SET_VRING_KICK", Message.encodeVringFd(0, true), { fds: [kick] })
      closeSync(kick)
      yield* frontend.ended
      yield* served.gone(1)
      expect(served.reasons).toStrictEqual(["ring: queue 0: its kick descriptor cannot be read"])
      yield* served.serves
    }))

  live("one of two queues, while the other has a request with the store", () =>
    Effect.gen(function*() {
      const behind = watched({ capacity: CAPACITY })
      behind.turns = ({ offset }) => offset === 0 ? Infinity : 1
      const { frontend, queue, served } = yield* open({}, { numQueues: 2 }, behind.store)
      const other = yield* frontend.startQueue()
      queue.submit({ type: IN, wanted: 512 })
      queue.kick()
      yield* FakeFrontend.eventually("the store to have it", () => behind.inFlight === 1 ? true : undefined)
      expect(served.exported.statistics.inFlight).toBe(1)
      other.ring.offer(9999)
      other.kick()
      yield* frontend.ended
      yield* served.gone(1)
      expect([queue.errors(), other.errors(), behind.inFlight]).toStrictEqual([0, 1, 0])
      expect(served.exported.statistics.inFlight).toBe(0)
      yield* served.serves
    }))
})

describe("memory that changes behind the export's back", () => {
  live("a request is what it was when it was taken", () =>
    Effect.gen(function*() {
      const behind = watched({ capacity: CAPACITY })
      behind.content.set(pattern(0, CAPACITY))
      behind.turns = () => 50
      const { memory, queue } = yield* open({}, {}, behind.store)
      const put = [
        queue.submit({ type: IN, sector: 2, wanted: 512 }),
        queue.submit({ type: IN, sector: 3, wanted: 512, out: [8, 8], indirectFrom: 0 }),
        queue.submit({ type: WRITE_ZEROES, given: segments([4, 1]), out: [16, 8, 8] })
      ]
      queue.kick()
      yield* FakeFrontend.eventually("the store to have them", () => behind.inFlight === 3 ? true : undefined)
      const { ring } = queue
      for (const { parts } of put) {
        for (const { address, length, write } of parts) {
          if (write !== true) memory.at(Number(address), length).fill(0xff)
        }
      }
      // Whatever descriptors and avail ring say from now on, the answers go where they were to go.
      for (let i = 0; i < ring.queueSize; i++) {
        ring.setDescriptor(i, {
          address: 2n ** 64n - 1n,
          length: 0xffff_ffff,
          flags: NEXT | WRITE | INDIRECT,
          next: 0xffff
        })
        ring.setAvail(i, 0xffff)
      }
      for (const { head } of put) yield* queue.used(head)
      expect(put.map(({ status }) => status())).toStrictEqual([OK, OK, OK])
      expect(put.every(({ isIntact }) => isIntact())).toBe(true)
      expect(put[0]!.data()).toStrictEqual(pattern(1024, 512))
      expect(put[1]!.data()).toStrictEqual(pattern(1536, 512))
      expect(behind.content.subarray(2048, 2560)).toStrictEqual(zeroes(512))
      expect(behind.content.subarray(2560)).toStrictEqual(pattern(2560, CAPACITY - 2560))
    }))

  live("a region is not taken away under a request that uses it", () =>
    Effect.gen(function*() {
      const behind = watched({ capacity: CAPACITY })
      behind.content.set(pattern(0, CAPACITY))
      behind.turns = ({ offset }) => offset === 1024 ? 200 : 1
      const { frontend, memory, queue } = yield* open({}, {}, behind.store)
      const data = yield* frontend.share({ guestAddress: 2 ** 41, userAddress: 2 ** 42, length: 4096 })
      const header = memory.allocate(16)
      new DataView(memory.at(header, 16).buffer, memory.at(header, 16).byteOffset).setBigUint64(8, 2n, true)
      const status = memory.allocate(1)
      const parts = [
        { address: header, length: 16 },
        { address: 2 ** 41, length: 512, write: true },
        { address: status, length: 1, write: true }
      ]
      const head = queue.ring.put(parts)
      queue.kick()
      yield* FakeFrontend.eventually("the store to have it", () => behind.inFlight === 1 ? true : undefined)
      const removed = yield* Effect.forkChild(
        frontend.tell("REM_MEM_REG", Message.encodeMemoryRegion(data.region)),
        { startImmediately: true }
      )
      yield* queue.used(head)
      yield* Fiber.join(removed)
      expect(data.bytes.subarray(0, 512)).toStrictEqual(pattern(1024, 512))
      // From now on it is unknown.
      queue.ring.put(parts)
      queue.kick()
      yield* frontend.ended
    }))
})

describe("any ring at all", () => {
  const GUARD_BYTES = 4096
  let ended = 0
  let requests = 0

  it.live.prop(
    "ends its own connection at most, and reaches nothing but the memory that was shared",
    [Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 }))],
    ([seed]) =>
      leavesNothing(Effect.gen(function*() {
        const next = random(seed)
        const behind = watched({ capacity: CAPACITY })
        const delay = next(3)
        behind.turns = ({ offset }) => offset === 512 ? Infinity : delay
        const served = yield* FakeFrontend.serve(behind.store, { maxInFlight: 1 + next(64) })
        yield* Effect.scoped(Effect.gen(function*() {
          const { frontend, memory, queue } = yield* served.start({
            queueSize: 2 << next(6),
            base: next(2 ** 16),
            length: 8192 + 16 * next(100),
            before: GUARD_BYTES,
            after: GUARD_BYTES,
            without: [[], [FeatureBit.EVENT_IDX], [FeatureBit.INDIRECT_DESC]][next(3)]!
          })
          const guards = [memory.file.subarray(0, GUARD_BYTES), memory.file.subarray(-GUARD_BYTES)]
          for (const guard of guards) guard.fill(0xa5)
          const { ring } = queue
          let idx = ring.availIdx
          for (let round = 0; round < 3; round++) {
            garbage(ring, next)
            idx = next(20) === 0 ? next(2 ** 16) : idx + next(1 + ring.queueSize / [1, 4][next(2)]!) & 0xffff
            ring.availIdx = idx
            queue.kick()
            yield* FakeFrontend.turns(1 + next(8))
          }
          if (frontend.look() === "end") ended++
          expect(guards.every((guard) => guard.every((byte) => byte === 0xa5))).toBe(true)
        }))
        yield* served.gone(1)
        requests += behind.log.length
        behind.turns = () => 1
        yield* served.serves
        expect(behind.inFlight).toBe(0)
      })),
    { arbitrary: { runs: 300 }, timeout: 300_000 }
  )

  it("got as far as the store, and was ended, often enough", () => {
    expect(requests).toBeGreaterThan(40)
    expect(ended).toBeGreaterThan(50)
  })
})
