/**
 * Goal: a queue of an export hands each request to the store once and its answer back once, whatever the store does with it:
 * fails, dies, throws, takes for ever; it never has more with the store than it may; it signals and asks for kicks exactly as
 * negotiated; and whatever the front-end does to the queue meanwhile (stop, new memory, new addresses), no answer is lost.
 * Method: a front-end of its own making on a real socket (test/support/FakeFrontend.ts), and a store in memory that notes what
 * it is asked and takes as many turns of the event loop as it is told (test/BlockStore/WatchedStore.ts).
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Logger, Schema } from "effect"
import { storeErrors } from "../../src/BlockStore/Interface.ts"
import { make as random } from "../../src/SeededRandom.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { FeatureBit, RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { BlockStore, type Export } from "../../src/index.ts"
import { pattern, watched } from "../BlockStore/WatchedStore.ts"
import * as FakeFrontend from "../support/FakeFrontend.ts"
import { leavesNothing, live } from "../support/resources.ts"

const CAPACITY = 1 << 20
const { FLUSH, IN, OUT } = RequestType
const { IOERR, OK, UNSUPP } = Status

const open = Effect.fnUntraced(function*(
  options: FakeFrontend.StartOptions = {},
  exportOptions: Omit<Export.Options, "path" | "fd"> = {},
  store?: BlockStore.BlockStore
) {
  const behind = watched({ capacity: CAPACITY })
  behind.content.set(pattern(0, CAPACITY))
  const served = yield* FakeFrontend.serve(store ?? behind.store, exportOptions)
  return { behind, served, ...yield* served.start(options) }
})

const read = (sector = 0) => ({ type: IN, sector, wanted: 512 })

/** Waits for the answers of requests, each of which must be right. */
const finish = Effect.fnUntraced(function*(
  queue: FakeFrontend.FrontendQueue,
  put: ReadonlyArray<ReturnType<FakeFrontend.FrontendQueue["submit"]>>,
  sectorOf: (i: number) => number
) {
  for (const [i, { data, head, isIntact, status }] of put.entries()) {
    expect(yield* queue.used(head)).toBe(513)
    expect([status(), isIntact()]).toStrictEqual([OK, true])
    expect(data()).toStrictEqual(pattern(512 * sectorOf(i), 512))
  }
})

/** Runs an effect; answers what was logged meanwhile. */
const logged = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ cause, logLevel, message }) => {
      lines.push(`${logLevel} ${String(message)} ${cause.reasons.map((reason) => reason._tag).join()}`)
    })
    return Effect.as(Effect.provide(effect, Logger.layer([logger])), lines)
  })

describe("a store that fails", () => {
  for (const errno of storeErrors) {
    live(
      `with ${errno} makes ${errno === "ENOTSUP" ? "UNSUPP" : "IOERR"}, and the next request is done`,
      () =>
        Effect.gen(function*() {
          const memory = yield* Effect.orDie(BlockStore.memory({ capacity: CAPACITY }))
          const failing = yield* Effect.orDie(BlockStore.failing(memory, [{ errno, times: 4 }]))
          const { queue, served } = yield* open({}, {}, failing)
          const segment = new Uint8Array(16).fill(1, 8, 9)
          const requests = [
            read(),
            { type: OUT, given: new Uint8Array(512) },
            { type: FLUSH },
            { type: RequestType.DISCARD, given: segment }
          ]
          for (const request of requests) {
            const { length, status } = yield* queue.do(request)
            expect([status, length]).toStrictEqual([errno === "ENOTSUP" ? UNSUPP : IOERR, 1])
          }
          for (const request of requests) expect((yield* queue.do(request)).status).toBe(OK)
          const { errors, flushes, others, reads, writes } = served.exported.statistics
          expect({ errors, flushes, others, reads, writes }).toStrictEqual({
            errors: 4,
            flushes: 2,
            others: 2,
            reads: 2,
            writes: 2
          })
        })
    )
  }

  const wild: ReadonlyArray<{ name: string; effect: () => Effect.Effect<void>; logs: ReadonlyArray<string> }> = [
    { name: "that dies", effect: () => Effect.die("oh"), logs: ["Error a request died in the store Die"] },
    {
      name: "that dies later",
      effect: () => Effect.andThen(Effect.sleep(1), Effect.die("oh")),
      logs: ["Error a request died in the store Die"]
    },
    {
      name: "that throws instead of answering an Effect",
      effect: () => {
        throw new Error("oh")
      },
      logs: ["Error a request died in the store Die"]
    },
    { name: "that interrupts itself", effect: () => Effect.interrupt, logs: [] }
  ]
  for (const { effect, logs, name } of wild) {
    live(
      `a request ${name} makes IOERR, is logged unless it was meant, and the next is done`,
      () =>
        Effect.gen(function*() {
          const { store } = watched({ capacity: CAPACITY })
          const strange = { ...store, read: effect }
          const lines = yield* logged(Effect.scoped(Effect.gen(function*() {
            const { queue, served } = yield* open({}, {}, strange)
            expect((yield* queue.do(read())).status).toBe(IOERR)
            expect((yield* queue.do({ type: FLUSH })).status).toBe(OK)
            expect(served.log).toStrictEqual(["connected"])
          })))
          expect(lines).toStrictEqual(logs)
        })
    )
  }
})

describe("a store that takes its time", () => {
  live("for ever with one request does the others, in this queue and another", () =>
    Effect.gen(function*() {
      const { behind, frontend, queue, served } = yield* open({ queueSize: 16 }, { numQueues: 2 })
      behind.turns = ({ offset }) => offset === 0 ? Infinity : 3
      const other = yield* frontend.startQueue()
      const stuck = queue.submit(read(0))
      queue.kick()
      for (let i = 1; i < 20; i++) {
        yield* finish(queue, [queue.submit(read(i))].map((put) => (queue.kick(), put)), () => i)
        expect((yield* other.do(read(i))).data).toStrictEqual(pattern(512 * i, 512))
      }
      expect([stuck.status(), behind.inFlight, served.exported.statistics.inFlight]).toStrictEqual([0xff, 1, 1])
      frontend.close()
      yield* served.gone(1)
      // It is interrupted, and waited for, before the memory goes.
      expect([behind.inFlight, served.exported.statistics.inFlight]).toStrictEqual([0, 0])
    }))

  for (const maxInFlight of [1, 2, 7, 64]) {
    live(`has ${maxInFlight} requests at once and no more, and does all`, () =>
      Effect.gen(function*() {
        const { behind, queue } = yield* open({ queueSize: 256 }, { maxInFlight })
        behind.turns = ({ offset }) => offset / 512 % 5
        const put = Array.from({ length: 64 }, (_, i) => queue.submit(read(i)))
        queue.kick()
        yield* finish(queue, put, (i) => i)
        expect(behind.mostInFlight).toBeLessThanOrEqual(maxInFlight)
        expect(behind.mostInFlight).toBeGreaterThanOrEqual(Math.min(maxInFlight, 7))
        expect(behind.log.map(({ offset }) => offset / 512)).toStrictEqual(put.map((_, i) => i))
      }))
  }

  live("counts its requests for each queue by itself", () =>
    Effect.gen(function*() {
      const { behind, frontend, queue } = yield* open({}, { maxInFlight: 2, numQueues: 2 })
      behind.turns = () => Infinity
      const other = yield* frontend.startQueue()
      for (const each of [queue, other]) {
        for (let i = 0; i < 5; i++) each.submit(read(i))
        each.kick()
      }
      yield* FakeFrontend.eventually("4 requests", () => behind.inFlight === 4 ? true : undefined)
      yield* FakeFrontend.turns(20)
      expect(behind.inFlight).toBe(4)
    }))

  live("none at all gets more than a batch at once, and does all", () =>
    Effect.gen(function*() {
      const { behind, queue } = yield* open({ queueSize: 1024, length: 1 << 22 })
      behind.turns = () => 0
      const put = Array.from({ length: 1000 }, (_, i) => queue.submit({ ...read(i), indirectFrom: 0 }))
      queue.kick()
      yield* finish(queue, put, (i) => i)
    }))

  live("gets parts that it takes", () =>
    Effect.gen(function*() {
      const small = watched({ capacity: CAPACITY, limits: { maxTransfer: 1024 } })
      const { queue } = yield* open({}, {}, small.store)
      const given = pattern(7, 5 * 512)
      const framing = { out: [16, 100, 1000, 1460] }
      expect((yield* queue.do({ type: OUT, sector: 1, given, ...framing })).status).toBe(OK)
      expect((yield* queue.do({ type: IN, sector: 1, in: [1, 999, 1561], wanted: 5 * 512 })).data).toStrictEqual(given)
      expect(small.log.map(({ length, name, offset }) => [name, offset / 512, length / 512])).toStrictEqual([
        ["write", 1, 2],
        ["write", 3, 2],
        ["write", 5, 1],
        ["read", 1, 2],
        ["read", 3, 2],
        ["read", 5, 1]
      ])
    }))

  live("makes stable what it is to make stable", () =>
    Effect.gen(function*() {
      const cases = [
        { without: [], writeCache: true, fua: false },
        { without: [], writeCache: false, fua: true },
        { without: [FeatureBit.CONFIG_WCE], writeCache: false, fua: true },
        { without: [FeatureBit.FLUSH], writeCache: true, fua: true },
        { without: [FeatureBit.FLUSH, FeatureBit.CONFIG_WCE], writeCache: true, fua: true }
      ]
      for (const { fua, without, writeCache } of cases) {
        const found = yield* Effect.scoped(Effect.gen(function*() {
          const { behind, queue } = yield* open({ without }, { writeCache })
          yield* queue.do({ type: OUT, given: new Uint8Array(512) })
          return behind.log[0]?.fua
        }))
        expect({ without, writeCache, fua: found }).toStrictEqual({ without, writeCache, fua })
      }
    }))
})

const seeds = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 }))

describe("data", () => {
  it.live.prop(
    "is what was written, in any framing of either request",
    [seeds],
    ([seed]) =>
      leavesNothing(Effect.gen(function*() {
        const next = random(seed)
        const { behind, memory, queue } = yield* open({ queueSize: 128, length: 1 << 21 })
        behind.turns = () => next(3)
        const disk = Uint8Array.from(behind.content)
        const split = (total: number) => {
          const lengths: Array<number> = []
          for (let left = total; left > 0;) {
            const length = Math.min(left, [0, 1, 15, 512, 1 + next(total)][next(5)]! + (lengths.length > 40 ? left : 0))
            lengths.push(length)
            left -= length
          }
          return lengths
        }
        for (let round = 0; round < 25; round++) {
          const length = 512 * (1 + next(20))
          const sector = next((CAPACITY - length) / 512 + 1)
          const place = { sector, indirectFrom: next(4), tableOffset: next(16) }
          if (next(2) === 0) {
            const given = Uint8Array.from({ length }, () => next(256))
            disk.set(given, sector * 512)
            const { length: written, status } = yield* queue.do({ type: OUT, given, out: split(16 + length), ...place })
            expect([status, written]).toStrictEqual([OK, 1])
          } else {
            const { data, length: written, status } = yield* queue.do({ type: IN, in: split(length + 1), ...place })
            expect([status, written]).toStrictEqual([OK, length + 1])
            expect(Buffer.compare(data, disk.subarray(sector * 512, sector * 512 + length))).toBe(0)
          }
        }
        expect(Buffer.compare(behind.content, disk)).toBe(0)
        expect(memory.allocated).toBeLessThan(1 << 16)
      })),
    { arbitrary: { runs: 30 }, timeout: 300_000 }
  )
})

describe("stopping", () => {
  const base = (frontend: FakeFrontend.FakeFrontend, index = 0) =>
    Effect.map(
      frontend.ask("GET_VRING_BASE", Message.encodeVringState(index, 0)),
      ({ payload }) => Message.decodeVringState(payload)
    )

  live("waits for what is with the store, takes nothing more, and goes on there", () =>
    Effect.gen(function*() {
      const { behind, frontend, queue } = yield* open({ base: 0xfffe }, { maxInFlight: 3 })
      behind.turns = () => 100
      const put = Array.from({ length: 8 }, (_, i) => queue.submit(read(i)))
      queue.kick()
      yield* FakeFrontend.eventually("3 requests", () => behind.inFlight === 3 ? true : undefined)
      expect(yield* base(frontend)).toStrictEqual({ index: 0, num: 1 })
      expect([behind.inFlight, behind.log.length, queue.ring.usedIdx]).toStrictEqual([0, 3, 1])
      queue.kick()
      yield* FakeFrontend.turns(20)
      expect(behind.log.length).toBe(3)
      // Stopped twice is stopped.
      expect(yield* base(frontend)).toStrictEqual({ index: 0, num: 1 })
      yield* frontend.tell("SET_VRING_KICK", Message.encodeVringFd(0, true), { fds: [queue.kickFd] })
      yield* finish(queue, put, (i) => i)
      expect(behind.log.length).toBe(8)
    }))

  live("one queue leaves the other alone", () =>
    Effect.gen(function*() {
      const { behind, frontend, queue } = yield* open({}, { numQueues: 2 })
      behind.turns = ({ offset }) => offset === 0 ? Infinity : 1
      const other = yield* frontend.startQueue()
      other.submit(read(0))
      other.kick()
      yield* FakeFrontend.eventually("a request", () => behind.inFlight === 1 ? true : undefined)
      expect((yield* queue.do(read(1))).status).toBe(OK)
      expect(yield* base(frontend)).toStrictEqual({ index: 0, num: 1 })
      expect(behind.inFlight).toBe(1)
    }))

  it.live.prop(
    "in any moment, and moving memory and rings, loses no answer and gives none twice",
    [seeds],
    ([seed]) =>
      leavesNothing(Effect.gen(function*() {
        const next = random(seed)
        const { behind, frontend, memory, queue } = yield* open({
          base: next(2 ** 16),
          without: next(2) === 0 ? [] : [FeatureBit.EVENT_IDX]
        }, { maxInFlight: 1 + next(8) })
        behind.turns = () => next(6)
        const tableOf = () => [Message.encodeMemoryTable([memory.region]), { fds: [memory.fd] }] as const
        const { allocated } = memory
        for (let round = 0; round < 12; round++) {
          memory.allocated = allocated
          const sectors = Array.from({ length: 1 + next(8) }, () => next(CAPACITY / 512))
          const put = sectors.map((sector) => queue.submit(read(sector)))
          queue.kick()
          yield* FakeFrontend.turns(1 + next(8))
          switch (next(3)) {
            case 0: {
              const { num } = yield* base(frontend)
              // Whatever was taken is answered.
              expect(queue.ring.usedIdx).toBe(num)
              yield* frontend.tell("SET_VRING_KICK", Message.encodeVringFd(0, true), { fds: [queue.kickFd] })
              break
            }
            case 1:
              yield* frontend.tell("SET_MEM_TABLE", ...tableOf())
              break
            default:
              yield* frontend.tell(
                "SET_VRING_ADDR",
                Message.encodeVringAddress({ index: 0, flags: 0, log: 0, ...queue.ring.addresses })
              )
          }
          yield* finish(queue, put, (i) => sectors[i]!)
          expect(queue.ring.usedIdx).toBe(queue.ring.availIdx)
        }
      })),
    { arbitrary: { runs: 40 }, timeout: 300_000 }
  )

  live(
    "by disabling takes nothing, answers what was taken, and goes on when it is enabled",
    () =>
      Effect.gen(function*() {
        const { behind, frontend, queue } = yield* open({ enable: false })
        const enable = (num: number) => frontend.tell("SET_VRING_ENABLE", Message.encodeVringState(0, num))
        const first = queue.submit(read(1))
        queue.kick()
        yield* FakeFrontend.turns(20)
        expect(behind.log).toStrictEqual([])
        behind.turns = () => 30
        yield* enable(1)
        yield* FakeFrontend.eventually("a request", () => behind.inFlight === 1 ? true : undefined)
        yield* enable(0)
        const second = queue.submit(read(2))
        queue.kick()
        yield* finish(queue, [first], () => 1)
        yield* FakeFrontend.turns(20)
        expect(behind.log.length).toBe(1)
        yield* enable(1)
        yield* finish(queue, [second], () => 2)
      })
  )
})

describe("telling each other", () => {
  live("with EVENT_IDX gives one signal for two requests, where the second is asked for", () =>
    Effect.gen(function*() {
      const { queue } = yield* open()
      queue.ring.usedEvent = 1
      yield* queue.do(read())
      expect(queue.signals()).toBe(0)
      yield* queue.do(read())
      expect(queue.signals()).toBe(1)
      yield* queue.do(read())
      expect(queue.signals()).toBe(0)
    }))

  live(
    "with EVENT_IDX gives a signal for each where each is asked for, across the wrap of the index",
    () =>
      Effect.gen(function*() {
        const { queue } = yield* open({ base: 0xfff0 })
        for (let i = 0; i < 40; i++) {
          queue.ring.usedEvent = queue.ring.usedIdx
          expect((yield* queue.do(read(i))).data).toStrictEqual(pattern(512 * i, 512))
          expect(queue.signals()).toBe(1)
        }
        expect(queue.ring.usedIdx).toBe(24)
      })
  )

  live("without EVENT_IDX follows AVAIL_NO_INTERRUPT", () =>
    Effect.gen(function*() {
      const { queue } = yield* open({ without: [FeatureBit.EVENT_IDX] })
      for (const [flags, signals] of [[0, 1], [1, 0], [1, 0], [0, 1]] as const) {
        queue.ring.availFlags = flags
        yield* queue.do(read())
        expect(queue.signals()).toBe(signals)
      }
    }))

  for (const waiting of ["event", "adaptive"] as const) {
    for (const eventIdx of [true, false]) {
      live(
        `asks for a kick before it sleeps (${waiting}, ${eventIdx ? "by avail_event" : "by the flags"})`,
        () =>
          Effect.gen(function*() {
            const { behind, queue } = yield* open({ without: eventIdx ? [] : [FeatureBit.EVENT_IDX] }, { waiting })
            const { ring } = queue
            const asks = FakeFrontend.eventually(
              "the export to ask for a kick",
              () => (eventIdx ? ring.availEvent === ring.availIdx : ring.usedFlags === 0) || undefined
            )
            for (let i = 0; i < 5; i++) {
              yield* queue.do(read())
              yield* asks
            }
            // Asleep: without a kick nothing is seen.
            yield* Effect.sleep(5)
            const { head } = queue.submit(read())
            yield* FakeFrontend.turns(20)
            expect(behind.log.length).toBe(5)
            queue.kick()
            yield* queue.used(head)
          })
      )
    }
  }

  live("without a kick descriptor looks at the ring all the time", () =>
    Effect.gen(function*() {
      const { frontend, queue } = yield* open()
      yield* frontend.tell("SET_VRING_KICK", Message.encodeVringFd(0, false))
      for (let i = 0; i < 5; i++) yield* finish(queue, [queue.submit(read(i))], () => i)
    }))

  live("signals a descriptor that it is given, for what was used before", () =>
    Effect.gen(function*() {
      const { frontend, queue } = yield* open()
      yield* frontend.tell("SET_VRING_CALL", Message.encodeVringFd(0, false))
      queue.ring.usedEvent = queue.ring.usedIdx
      yield* queue.do(read())
      expect(queue.signals()).toBe(0)
      yield* frontend.tell("SET_VRING_CALL", Message.encodeVringFd(0, true), { fds: [queue.callFd] })
      expect(queue.signals()).toBe(1)
    }))

  live("counts what it has done", () =>
    Effect.gen(function*() {
      const { frontend, queue, served } = yield* open()
      yield* queue.do(read())
      yield* queue.do({ type: OUT, sector: 1, given: new Uint8Array(1024) })
      yield* queue.do({ type: FLUSH })
      yield* queue.do({ type: 99 })
      yield* queue.do({ ...read(), sector: 2 ** 30 })
      frontend.close()
      yield* served.gone(1)
      expect({ ...served.exported.statistics }).toStrictEqual({
        connections: 1,
        reads: 2,
        writes: 1,
        flushes: 1,
        others: 1,
        bytesRead: 512,
        bytesWritten: 1024,
        errors: 2,
        inFlight: 0
      })
    }))
})
