/**
 * Goal: an export outlives its front-ends, one after another, whatever ends them, and leaves nothing of them or of itself; a
 * request that was not answered is done by the next backend, once; and the disk's size is what front-ends see.
 * Method: front-ends that come, wait, die and are killed, as processes too; stores that hold requests until they are let go;
 * what this process holds is counted before and after. The disk is looked at through the store.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Logger, Scope, Stream } from "effect"
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Libc from "../../src/Native/Libc.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { BlockStore, Export } from "../../src/index.ts"
import * as FakeFrontend from "../support/FakeFrontend.ts"
import type { SharedMemory } from "../support/FakeRing.ts"
import { open, withSeed } from "../support/daemon.ts"
import * as HeldStore from "../support/heldStore.ts"
import { startProgram } from "../support/program.ts"
import { count, leavesNothing, live } from "../support/resources.ts"
import { BLOCK_BYTES, BLOCKS } from "../support/writtenBlocks.ts"

const MiB = 2 ** 20
const memoryStore = Effect.orDie(BlockStore.memory({ capacity: MiB }))

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "blkio-export-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

const read = (sector: number) => ({ type: RequestType.IN, sector, wanted: 512 })
const write = (sector: number, byte = sector) => ({
  type: RequestType.OUT,
  sector,
  given: new Uint8Array(512).fill(byte)
})

const works = (queue: FakeFrontend.FrontendQueue) =>
  Effect.map(queue.do(read(0)), ({ status }) => {
    expect(status).toBe(Status.OK)
  })

const inFlight = (exported: Export.Export, many: number) =>
  FakeFrontend.eventually(
    `${many} requests in flight`,
    () => exported.statistics.inFlight === many ? true : undefined
  )

const lastLooks = FakeFrontend.turns(20)

describe("a front-end that goes", () => {
  live(
    "with requests in the store: they are interrupted and waited for, its memory is unmapped, the next is served",
    () =>
      Effect.gen(function*() {
        const held = yield* HeldStore.make(8)
        const slow = yield* Effect.succeed(
          BlockStore.around(held.store, {
            name: "slow to end",
            // The memory must be there until this, too, has ended.
            run: (_, effect) =>
              Effect.onInterrupt(effect, () =>
                Effect.sync(() => mapped.push(count().mappings)).pipe(
                  Effect.delay(20)
                ))
          })
        )
        const mapped: Array<number> = []
        const served = yield* FakeFrontend.serve(slow)
        const { frontend, queue } = yield* served.start()
        for (const sector of [8, 9, 10]) queue.submit(read(sector))
        queue.submit(write(11))
        queue.kick()
        yield* inFlight(served.exported, 4)
        frontend.close()
        yield* served.gone(1)
        expect(served.log).toStrictEqual(["connected", "ENOTCONN"])
        expect(held.interrupted.toSorted()).toStrictEqual(["read 10", "read 8", "read 9", "write 11"])
        expect(mapped).toStrictEqual([1, 1, 1, 1])
        expect(count().mappings).toBe(0)
        expect(served.exported.statistics.inFlight).toBe(0)
        yield* served.serves
      })
  )

  live("in the middle of each message of its start leaves nothing", () =>
    Effect.gen(function*() {
      const served = yield* FakeFrontend.serve(yield* memoryStore)
      // How many bytes a start has, in and out of this count, is found by doing it once.
      for (let steps = 1; steps <= 14; steps++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const frontend = yield* served.connect
          let said = 0
          const send = frontend.send.bind(frontend)
          frontend.send = (bytes, fds) => {
            if (++said < steps) return send(bytes, fds)
            const sent = send(bytes.subarray(0, bytes.length - 1), fds)
            frontend.close()
            return sent
          }
          yield* Effect.exit(FakeFrontend.start(frontend).pipe(Effect.timeout(20)))
        }))
        yield* served.gone(steps)
      }
      expect(count().mappings).toBe(0)
      yield* served.serves
    }))

  live("200 times leaves nothing", () =>
    Effect.gen(function*() {
      const served = yield* FakeFrontend.serve(yield* memoryStore)
      for (let round = 0; round < 200; round++) yield* served.serves
      yield* served.gone(200)
      expect(served.exported.statistics.connections).toBe(200)
    }))
})

describe("a second front-end", () => {
  live("waits until the first has gone", () =>
    Effect.gen(function*() {
      const served = yield* FakeFrontend.serve(yield* memoryStore)
      const { frontend, queue } = yield* served.start()
      const second = yield* served.connect
      second.say("GET_FEATURES")
      yield* lastLooks
      expect(second.look()).toBeUndefined()
      yield* works(queue)
      frontend.close()
      expect(yield* second.next).toMatchObject({ request: Message.FrontendRequest.GET_FEATURES })
      yield* second.negotiate()
      yield* second.share()
      yield* works(yield* second.startQueue())
      expect(served.log).toStrictEqual(["connected", "ENOTCONN", "connected"])
    }))

  live("that went while it waited is passed over", () =>
    Effect.gen(function*() {
      const served = yield* FakeFrontend.serve(yield* memoryStore)
      const { frontend } = yield* served.start()
      yield* Effect.scoped(served.connect)
      yield* Effect.scoped(served.connect)
      frontend.close()
      yield* served.serves
      yield* served.gone(4)
    }))
})

describe("the end of an export", () => {
  live(
    "with a front-end and its requests in flight leaves no descriptor, mapping or socket",
    () =>
      Effect.gen(function*() {
        const before = count()
        const held = yield* HeldStore.make()
        const scope = yield* Scope.make()
        const path = `${yield* folder}/disk.sock`
        const exported = yield* Scope.provide(Export.serve(held.store, { path }), scope)
        const frontend = yield* FakeFrontend.connect({ path })
        const waiting = yield* FakeFrontend.connect({ path })
        const { queue } = yield* FakeFrontend.start(frontend)
        yield* frontend.openChannel()
        const description = { mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 64 }
        const area = yield* frontend.ask("GET_INFLIGHT_FD", Message.encodeInflight(description))
        yield* frontend.tell("SET_INFLIGHT_FD", area.payload, { fds: area.fds })
        for (let sector = 0; sector < 20; sector++) queue.submit(read(sector))
        queue.kick()
        yield* inFlight(exported, 20)
        yield* Scope.close(scope, Exit.void)
        expect(held.interrupted).toHaveLength(20)
        expect(existsSync(path)).toBe(false)
        yield* frontend.ended
        yield* waiting.ended
        frontend.close()
        waiting.close()
        expect(count()).toStrictEqual(before)
      })
  )

  live("asks nothing of a store any more", () =>
    Effect.gen(function*() {
      const store = yield* memoryStore
      const scope = yield* Scope.make()
      const exported = yield* Scope.provide(Export.serve(store, { path: `${yield* folder}/disk.sock` }), scope)
      yield* Scope.close(scope, Exit.void)
      yield* store.resize(2 * MiB)
      expect(exported.statistics.connections).toBe(0)
    }))
})

describe("an export that cannot be made", () => {
  live(
    "says why: a path in use, a missing folder, a path too long, a store that is read-only",
    () =>
      Effect.gen(function*() {
        const store = yield* memoryStore
        const parent = yield* folder
        const refused = (options: Export.Options) => Effect.flip(Effect.scoped(Export.serve(store, options)))
        const path = `${parent}/disk.sock`
        yield* Export.serve(store, { path })
        expect(yield* refused({ path })).toMatchObject({ _tag: "EADDRINUSE", path })
        writeFileSync(`${parent}/file`, "content")
        expect(yield* refused({ path: `${parent}/file` })).toMatchObject({ _tag: "EADDRINUSE" })
        expect(readFileSync(`${parent}/file`, "utf8")).toBe("content")
        expect(yield* refused({ path: `${parent}/missing/disk.sock` })).toMatchObject({ _tag: "ENOENT" })
        expect(yield* refused({ path: "x".repeat(108) })).toMatchObject({ _tag: "ENAMETOOLONG" })
        expect(yield* refused({ path: `${parent}/other`, blockSize: 100 })).toMatchObject({ _tag: "EINVAL" })
        expect(existsSync(`${parent}/other`)).toBe(false)
        const readOnly = Export.serve(BlockStore.readOnly(store), { path: `${parent}/other`, readOnly: false })
        expect(yield* Effect.flip(Effect.scoped(readOnly))).toMatchObject({ _tag: "EINVAL" })
      })
  )

  live("for a descriptor: ENOTSOCK and EBADF, and the descriptor is left alone", () =>
    Effect.gen(function*() {
      const store = yield* memoryStore
      const refused = (fd: number) => Effect.flip(Effect.scoped(Export.serve(store, { fd })))
      const files = [openSync("/dev/null", "r"), openSync(import.meta.filename, "r"), Libc.createEventFd()]
      for (const fd of files) {
        expect(yield* refused(fd)).toMatchObject({
          _tag: "ENOTSOCK",
          detail: `fd ${fd} must be a connected Unix socket`
        })
        // Still open: it can be closed once.
        expect(Libc.checkWatchable(fd)).not.toBe(9)
        Libc.close(fd)
        expect(yield* refused(fd)).toMatchObject({ _tag: "EBADF" })
      }
    }))
})

describe("a connection that is given", () => {
  live("is served until it ends, and closed", () =>
    Effect.gen(function*() {
      const [own, given] = Libc.createSocketPair()
      const scope = yield* Scope.make()
      const exported = yield* Scope.provide(Export.serve(yield* memoryStore, { fd: given }), scope)
      expect(exported.path).toBe("")
      const events = yield* Effect.forkChild(Stream.runCollect(Stream.take(exported.events, 2)), {
        startImmediately: true
      })
      const frontend = yield* FakeFrontend.connect({ fd: own })
      const { queue } = yield* FakeFrontend.start(frontend)
      yield* works(queue)
      frontend.close()
      const found = yield* Fiber.join(events)
      // Also of what came before anybody asked.
      expect(found).toMatchObject([{ _tag: "connected" }, { _tag: "disconnected", reason: { _tag: "ENOTCONN" } }])
      expect(count().mappings).toBe(0)
      yield* Scope.close(scope, Exit.void)
    }))

  live("and is a socket that nobody is connected to, ends at once", () =>
    Effect.gen(function*() {
      const exported = yield* Export.serve(yield* memoryStore, { fd: Libc.createUnixSocket() })
      yield* FakeFrontend.eventually("the connection", () => exported.statistics.connections === 1 ? true : undefined)
      yield* lastLooks
      expect(exported.statistics.inFlight).toBe(0)
    }))
})

describe("a store that breaks its word", () => {
  live("costs the front-end its connection, and not the next one", () =>
    Effect.gen(function*() {
      const memory = yield* memoryStore
      let isBroken = false
      const served = yield* FakeFrontend.serve({
        ...memory,
        get capacity() {
          if (isBroken) throw new Error("a mistake of the store")
          return memory.capacity
        }
      })
      isBroken = true
      const frontend = yield* served.connect
      yield* frontend.ended
      yield* served.gone(1)
      expect(served.log).toStrictEqual(["EIO"])
      isBroken = false
      yield* served.serves
    }).pipe(Effect.provide(Logger.layer([]))))
})

describe("the size of the disk", () => {
  const capacityOf = (frontend: FakeFrontend.FakeFrontend) =>
    Effect.map(
      frontend.ask("GET_CONFIG", Message.encodeConfig({ offset: 0, size: 8, flags: 0 })),
      ({ payload }) => Number(new DataView(payload.buffer).getBigUint64(12, true)) * 512
    )
  const CONFIG_CHANGE = { request: Message.BackendRequest.CONFIG_CHANGE_MSG, flags: 0, payload: new Uint8Array(0) }

  live("follows the store's, and the front-end is told of each change", () =>
    Effect.gen(function*() {
      const store = yield* memoryStore
      const served = yield* FakeFrontend.serve(store)
      const { frontend, queue } = yield* served.start()
      const channel = yield* frontend.openChannel()
      const told = FakeFrontend.eventually("news", () => channel.look())
      expect(yield* capacityOf(frontend)).toBe(MiB)
      expect((yield* queue.do(read(MiB / 512))).status).toBe(Status.IOERR)
      yield* store.resize(2 * MiB)
      expect(yield* told).toMatchObject(CONFIG_CHANGE)
      expect(yield* capacityOf(frontend)).toBe(2 * MiB)
      expect(served.exported.capacity).toBe(2 * MiB)
      expect((yield* queue.do(read(MiB / 512))).status).toBe(Status.OK)
      yield* store.resize(MiB / 2)
      expect(yield* told).toMatchObject(CONFIG_CHANGE)
      expect(yield* capacityOf(frontend)).toBe(MiB / 2)
      expect((yield* queue.do(read(MiB / 1024))).status).toBe(Status.IOERR)
      expect((yield* queue.do(read(MiB / 1024 - 1))).status).toBe(Status.OK)
      // The next front-end sees it too.
      frontend.close()
      expect(yield* capacityOf(yield* served.connect)).toBe(MiB / 2)
    }))

  live("is what resize says, up to the store's, and nobody is told of no change", () =>
    Effect.gen(function*() {
      const store = yield* memoryStore
      const served = yield* FakeFrontend.serve(store, { capacity: MiB / 2 })
      const { frontend, queue } = yield* served.start()
      const channel = yield* frontend.openChannel()
      const { exported } = served
      expect([exported.capacity, yield* capacityOf(frontend)]).toStrictEqual([MiB / 2, MiB / 2])
      yield* exported.resize(MiB)
      expect(yield* FakeFrontend.eventually("news", () => channel.look())).toMatchObject(CONFIG_CHANGE)
      expect(yield* capacityOf(frontend)).toBe(MiB)
      yield* exported.resize(MiB)
      yield* exported.resize(512)
      yield* exported.resize(0)
      expect([exported.capacity, yield* capacityOf(frontend)]).toStrictEqual([0, 0])
      expect((yield* queue.do(read(0))).status).toBe(Status.IOERR)
      expect((yield* queue.do({ type: RequestType.FLUSH })).status).toBe(Status.OK)
      // The two that were changes.
      yield* lastLooks
      const news: Array<unknown> = []
      for (let found = channel.look(); found !== undefined; found = channel.look()) news.push(found)
      expect(news).toHaveLength(2)
      for (const wrong of [-512, 100, 0.5, NaN, Infinity, 2 * MiB, 2 ** 60]) {
        const error = yield* Effect.flip(exported.resize(wrong))
        expect(error).toMatchObject({ _tag: "EINVAL", operation: "resize" })
        expect(error.message).toContain(`capacity ${wrong} must be`)
      }
      expect(exported.capacity).toBe(0)
    }))

  live(
    "is never more than the store's, which may shrink below what was asked for and grow again",
    () =>
      Effect.gen(function*() {
        const store = yield* memoryStore
        const { exported } = yield* FakeFrontend.serve(store, { capacity: MiB / 2, blockSize: 4096 })
        yield* store.resize(MiB / 4 + 512)
        expect(exported.capacity).toBe(MiB / 4)
        yield* store.resize(4 * MiB)
        expect(exported.capacity).toBe(MiB / 2)
      })
  )

  live(
    "may change where the front-end has opened no channel, or has closed it, or does not read",
    () =>
      Effect.gen(function*() {
        const store = yield* memoryStore
        const { exported, start } = yield* FakeFrontend.serve(store)
        const { frontend, queue } = yield* start()
        yield* exported.resize(512)
        expect(yield* capacityOf(frontend)).toBe(512)
        ;(yield* frontend.openChannel()).close()
        yield* lastLooks
        yield* exported.resize(1024)
        yield* frontend.openChannel()
        for (let i = 0; i < 20_000; i++) yield* exported.resize(512 + 512 * (i % 2))
        expect(yield* capacityOf(frontend)).toBe(1024)
        yield* works(queue)
      })
  )

  live("reaches our own driver, for a store in memory and for one in a file", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/disk.img`
      writeFileSync(path, new Uint8Array(MiB))
      for (const store of [yield* memoryStore, yield* BlockStore.file({ path })]) {
        const { exported } = yield* FakeFrontend.serve(store)
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* open(exported.path)
          const change = Effect.forkChild(Stream.runCollect(Stream.take(disk.configChanges, 1)), {
            startImmediately: true
          })
          expect(disk.capacity).toBe(MiB)
          const larger = yield* change
          yield* store.resize(2 * MiB)
          expect(yield* Fiber.join(larger)).toMatchObject([{ capacity: 2 * MiB }])
          yield* disk.write(2 * MiB - 512, [new Uint8Array(512).fill(7)])
          const found = new Uint8Array(512)
          yield* store.read(2 * MiB - 512, [found])
          expect(found).toStrictEqual(new Uint8Array(512).fill(7))
          const smaller = yield* change
          yield* exported.resize(512)
          expect(yield* Fiber.join(smaller)).toMatchObject([{ capacity: 512 }])
          expect(yield* Effect.flip(disk.read(512, [found]))).toMatchObject({ _tag: "EINVAL" })
        }))
      }
    }))
})

/** An area for requests in flight, and the front-end's side of it. */
interface Area {
  readonly payload: Uint8Array
  readonly fds: ReadonlyArray<number>
}

const question = (queueSize: number, numQueues = 1) =>
  Message.encodeInflight({ mmapSize: 0, mmapOffset: 0, numQueues, queueSize })

/** Connects with an area in which the export notes what is in flight. */
const tracked = Effect.fnUntraced(function*(path: string, queueSize: number) {
  const frontend = yield* FakeFrontend.connect({ path })
  yield* frontend.negotiate()
  const memory = yield* frontend.share({ length: 4 * MiB })
  const area: Area = yield* frontend.ask("GET_INFLIGHT_FD", question(queueSize))
  yield* frontend.tell("SET_INFLIGHT_FD", area.payload, { fds: area.fds })
  return { area, frontend, memory, queue: yield* frontend.startQueue({ queueSize }) }
})

/** Hands an area, the memory and a ring to another export, as QEMU does when its backend comes back. */
const resumed = Effect.fnUntraced(
  function*(path: string, area: Area, memory: SharedMemory, queue: FakeFrontend.FrontendQueue) {
    const frontend = yield* FakeFrontend.connect({ path })
    const { addresses, queueSize, usedIdx } = queue.ring
    const named = Message.encodeVringFd(0, true)
    yield* frontend.negotiate()
    yield* frontend.tell("SET_INFLIGHT_FD", area.payload, { fds: area.fds })
    yield* frontend.tell("ADD_MEM_REG", Message.encodeMemoryRegion(memory.region), { fds: [memory.fd] })
    yield* frontend.tell("SET_VRING_NUM", Message.encodeVringState(0, queueSize))
    yield* frontend.tell("SET_VRING_BASE", Message.encodeVringState(0, usedIdx))
    yield* frontend.tell("SET_VRING_ADDR", Message.encodeVringAddress({ index: 0, flags: 0, log: 0, ...addresses }))
    yield* frontend.tell("SET_VRING_CALL", named, { fds: [queue.callFd] })
    yield* frontend.tell("SET_VRING_KICK", named, { fds: [queue.kickFd] })
    yield* frontend.tell("SET_VRING_ENABLE", Message.encodeVringState(0, 1))
    return frontend
  }
)

const heldExport = fileURLToPath(new URL("../support/heldExportProgram.ts", import.meta.url))

/** Serves from a process that can be killed. */
const startApart = Effect.fnUntraced(function*(from: number) {
  const path = `${yield* folder}/apart.sock`
  const { child, outcome, stderr } = yield* startProgram([heldExport, path, String(from)])
  expect(yield* stderr).toBe("serving\n")
  return {
    path,
    kill: Effect.andThen(Effect.sync(() => child.kill("SIGKILL")), outcome)
  }
})

describe("requests in flight", () => {
  live("have an area of the protocol's size", () =>
    Effect.gen(function*() {
      const served = yield* FakeFrontend.serve(yield* memoryStore, { numQueues: 2 })
      const frontend = yield* served.connect
      yield* frontend.negotiate()
      for (const [numQueues, mmapSize] of [[1, 2112], [2, 4224]] as const) {
        const { fds, payload } = yield* frontend.ask("GET_INFLIGHT_FD", question(128, numQueues))
        expect(fds).toHaveLength(1)
        expect(payload).toHaveLength(24)
        expect(Message.decodeInflight(payload)).toStrictEqual({ mmapSize, mmapOffset: 0, numQueues, queueSize: 128 })
      }
    }))

  live(
    "when a backend is killed are done by the next, once and in order, before what came later",
    () =>
      Effect.gen(function*() {
        const apart = yield* startApart(8)
        const { area, frontend, memory, queue } = yield* tracked(apart.path, 64)
        const order = [8, 0, 9, 1, 2, 20, 3, 15, 4, 5, 11, 6, 7, 10]
        const heads = order.map((sector) => queue.submit(write(sector)).head)
        queue.kick()
        const answered = yield* FakeFrontend.eventually(
          "the answers to what is not held",
          () => queue.ring.usedIdx === 8 ? queue.ring.collect() : undefined
        )
        yield* apart.kill
        yield* frontend.ended
        const left = order.filter((_, i) => !answered.some(({ id }) => id === heads[i]))
        expect(left).toStrictEqual([8, 9, 20, 15, 11, 10])
        const later = [30, 31].map((sector) => queue.submit(write(sector)).head)

        const held = yield* HeldStore.make(1e6)
        const served = yield* FakeFrontend.serve(held.store)
        yield* resumed(served.exported.path, area, memory, queue)
        yield* FakeFrontend.eventually(
          "all answers",
          () => queue.ring.usedIdx === order.length + later.length ? true : undefined
        )
        expect(held.began).toStrictEqual([...left, 30, 31].map((sector) => `write ${sector}`))
        const again = queue.ring.collect().map(({ id }) => id)
        expect(new Set([...answered.map(({ id }) => id), ...again])).toStrictEqual(new Set([...heads, ...later]))
        expect(answered.length + again.length).toBe(heads.length + later.length)
        // And the ring goes on.
        const last = queue.submit(read(8))
        queue.kick()
        yield* queue.used(last.head)
        expect(last.data()).toStrictEqual(new Uint8Array(512).fill(8))
      })
  )

  live(
    "when a front-end leaves one export for another are done there, whatever became of them here",
    () =>
      Effect.gen(function*() {
        const held = yield* HeldStore.make(4)
        const first = yield* FakeFrontend.serve(held.store)
        const { area, frontend, memory, queue } = yield* tracked(first.exported.path, 16)
        for (const sector of [9, 1, 7, 2]) queue.submit(write(sector))
        queue.kick()
        yield* inFlight(first.exported, 2)
        yield* FakeFrontend.eventually("two answers", () => queue.ring.usedIdx === 2 ? true : undefined)
        // The connection alone: its memory stays the test's.
        Libc.shutdown(frontend.fd)
        yield* first.gone(1)
        const second = yield* HeldStore.make(1e6)
        const next = yield* FakeFrontend.serve(second.store)
        yield* resumed(next.exported.path, area, memory, queue)
        yield* FakeFrontend.eventually("all answers", () => queue.ring.usedIdx === 4 ? true : undefined)
        expect(second.began).toStrictEqual(["write 9", "write 7"])
      })
  )

  for (let round = 0; round < 4; round++) {
    live(
      `when a backend is killed at any moment and the next one too, are answered once each (${round + 1} of 4)`,
      () =>
        withSeed((random) =>
          Effect.gen(function*() {
            const apart = yield* startApart(1e6)
            const { area, memory, queue } = yield* tracked(apart.path, 256)
            const submitted: Array<{ readonly head: number; readonly sector: number }> = []
            const answered: Array<number> = []
            const ids = new Map<number, number>()
            const collect = () => {
              for (const { id } of queue.ring.collect()) {
                const sector = ids.get(id)
                ids.delete(id)
                // A head that nobody waits for was answered twice.
                expect(sector).toBeDefined()
                if (sector !== undefined) answered.push(sector)
              }
            }
            const submit = (many: number) => {
              for (let i = 0; i < many && ids.size < 80; i++) {
                const sector = submitted.length % 2000
                const { head } = queue.submit({
                  type: RequestType.OUT,
                  sector,
                  given: new Uint8Array(512).fill(sector)
                })
                ids.set(head, sector)
                submitted.push({ head, sector })
              }
              queue.kick()
            }
            const until = performance.now() + 20 + random(60)
            while (performance.now() < until && submitted.length < 1900) {
              submit(1 + random(8))
              yield* FakeFrontend.turns(1 + random(5))
              collect()
            }
            submit(20)
            yield* apart.kill
            collect()
            const left = submitted.filter(({ head, sector }) => ids.get(head) === sector).map(({ sector }) => sector)
            const held = yield* HeldStore.make(1e6)
            const served = yield* FakeFrontend.serve(held.store)
            yield* resumed(served.exported.path, area, memory, queue)
            yield* FakeFrontend.eventually("all answers", () => {
              collect()
              return ids.size === 0 ? true : undefined
            })
            expect(held.began).toStrictEqual(left.map((sector) => `write ${sector}`))
            expect(answered.toSorted((a, b) => a - b)).toStrictEqual(submitted.map(({ sector }) => sector))
          })
        )
    )
  }

  live(
    "in an area of hostile content cost its front-end the connection at most",
    () =>
      withSeed((random) =>
        Effect.gen(function*() {
          const served = yield* FakeFrontend.serve(yield* memoryStore)
          for (let round = 0; round < 60; round++) {
            yield* Effect.scoped(Effect.gen(function*() {
              const { area, frontend, memory, queue } = yield* tracked(served.exported.path, 16)
              yield* works(queue)
              const mapping = Libc.map(area.fds[0] ?? -1, 0, 320)
              const bytes = new Uint8Array(mapping.buffer)
              for (let at = 0; at < bytes.length; at++) {
                if (random(2) === 0) {
                  bytes[at] = random(3) === 0
                    ? 1
                    : random(256)
                }
              }
              if (random(4) > 0) new DataView(mapping.buffer).setUint16(8, 1, true)
              Libc.unmap(mapping)
              Libc.shutdown(frontend.fd)
              yield* Effect.exit(resumed(served.exported.path, area, memory, queue))
              yield* FakeFrontend.turns(4)
            }))
          }
          yield* served.serves
        })
      )
  )
})

const writer = fileURLToPath(new URL("../support/writerProgram.ts", import.meta.url))

const KILLS = 100

describe("front-ends that are killed", () => {
  it.live(
    `${KILLS} of them, with writes in flight: no acknowledged write is lost, nothing is left, and the next is served`,
    () =>
      leavesNothing(withSeed((random) =>
        Effect.gen(function*() {
          const memory = yield* Effect.orDie(BlockStore.memory({ capacity: 2 * BLOCKS * BLOCK_BYTES }))
          const store = BlockStore.around(memory, {
            name: "uneven",
            run: (_, effect) => Effect.suspend(() => Effect.andThen(FakeFrontend.turns(1 + random(3)), effect))
          })
          const served = yield* FakeFrontend.serve(store)
          const before = count()
          // A hundred programs start faster from what one has compiled, which it leaves where it ends by itself.
          const environment = { NODE_COMPILE_CACHE: yield* folder }
          yield* Effect.scoped(
            Effect.flatMap(startProgram([writer, "/nowhere"], environment), ({ outcome }) => outcome)
          )
          const round = Effect.fnUntraced(function*(index: number) {
            const part = index % 2 * BLOCKS
            const first = index * 1_000_000
            const { child, outcome } = yield* startProgram(
              [writer, served.exported.path, String(part), String(first)],
              environment
            )
            const enough = 1 + random(100)
            let lines = 0
            child.stdout.on("data", (text: string) => {
              lines += text.split("\n").length - 1
              if (lines >= enough) child.kill("SIGKILL")
            })
            const { exit, stderr, stdout } = yield* outcome
            expect({ exit, stderr }).toStrictEqual({ exit: "SIGKILL", stderr: "" })
            const found = new Uint8Array(BLOCKS * BLOCK_BYTES)
            yield* memory.read(part * BLOCK_BYTES, [found])
            const numbers = new Float64Array(found.buffer)
            const acknowledged = stdout.split("\n").slice(0, -1).map(Number)
            expect(acknowledged.length).toBeGreaterThanOrEqual(enough)
            for (const number of acknowledged) {
              const at = (number - first) % BLOCKS * BLOCK_BYTES / 8
              const there = numbers.subarray(at, at + BLOCK_BYTES / 8)
              // This one, or a later one of the same writer; whole in every case.
              expect(there[0], `block of ${number}`).toBeGreaterThanOrEqual(number)
              expect(there.every((value) => value === there[0]), `block of ${number} is torn`).toBe(true)
            }
          }, Effect.scoped)
          yield* Effect.forEach(Array.from({ length: KILLS }).keys(), round, { concurrency: 2, discard: true })
          yield* served.gone(KILLS)
          expect(count()).toStrictEqual(before)
          expect(served.exported.statistics).toMatchObject({ connections: KILLS, inFlight: 0, errors: 0 })
          yield* served.serves
        })
      )),
    // A hundred programs are started, each in half a second where nothing else runs.
    300_000
  )
})
