/**
 * Goal: a front-end adds, removes and replaces the memory it shares while requests are in flight, and neither loses a request
 * nor leaves a mapping; what a request or a ring still needs is not taken from under it.
 * Method: a store that holds requests until the test lets them go; mappings of the test's memory are counted in
 * /proc/self/maps, of which the test itself has one each.
 */
import { describe, expect } from "@effect/vitest"
import { Effect } from "effect"
import { openSync, rmSync, writeFileSync } from "node:fs"
import * as Libc from "../../src/Native/Libc.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { BlockStore } from "../../src/index.ts"
import * as FakeFrontend from "../support/FakeFrontend.ts"
import { layRequest, type SharedMemory } from "../support/FakeRing.ts"
import { withSeed } from "../support/daemon.ts"
import * as HeldStore from "../support/heldStore.ts"
import { count, descriptors, live } from "../support/resources.ts"

const MiB = 2 ** 20
const GUEST = 2 ** 40
const USER = 2 ** 45

const serve = (options: Parameters<typeof FakeFrontend.serve>[1] = {}) =>
  Effect.flatMap(Effect.orDie(BlockStore.memory({ capacity: MiB })), (store) => FakeFrontend.serve(store, options))

const read = (sector: number) => ({ type: RequestType.IN, sector, wanted: 512 })

const works = (queue: FakeFrontend.FrontendQueue) =>
  Effect.map(queue.do(read(0)), ({ status }) => {
    expect(status).toBe(Status.OK)
  })

const regionOf = ({ region }: SharedMemory) => Message.encodeMemoryRegion(region)
const tableOf = (...memories: ReadonlyArray<SharedMemory>) =>
  Message.encodeMemoryTable(memories.map(({ region }) => region))
const fdsOf = (...memories: ReadonlyArray<SharedMemory>) => memories.map(({ fd }) => fd)

/** An export over a store that holds what is beyond sector 8, and a front-end with a ring. */
const held = Effect.gen(function*() {
  const store = yield* HeldStore.make(8)
  const served = yield* FakeFrontend.serve(store.store)
  const started = yield* served.start()
  return {
    ...started,
    served,
    store,
    inFlight: (many: number) =>
      FakeFrontend.eventually(
        `${many} requests in flight`,
        () => served.exported.statistics.inFlight === many ? true : undefined
      )
  }
})

/** Says a message, and fails the test where it is acknowledged before `then` was done. */
const notBefore = Effect.fnUntraced(function*(
  frontend: FakeFrontend.FakeFrontend,
  say: (options: { readonly needReply: true }) => void,
  then: Effect.Effect<void>
) {
  say({ needReply: true })
  yield* FakeFrontend.turns(20)
  expect(frontend.look(), "an acknowledgement that came too soon").toBeUndefined()
  yield* then
  const reply = yield* frontend.next
  if (reply === "end") throw new Error("the export closed the connection")
  return Message.decodeU64(reply.payload)
})

describe("ADD_MEM_REG", () => {
  live("takes 509 regions, refuses the 510th, and takes one again when one was removed", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend, queue } = yield* start()
      const before = count().mappings
      const file = frontend.makeMemory({ length: 4096 })
      const region = (i: number) =>
        Message.encodeMemoryRegion({ guestAddress: GUEST + i * 4096, userAddress: i * 4096, size: 4096, mmapOffset: 0 })
      for (let i = 1; i < 509; i++) yield* frontend.tell("ADD_MEM_REG", region(i), { fds: [file.fd] })
      expect(count().mappings).toBe(before + 1 + 508)
      expect(yield* frontend.acknowledged("ADD_MEM_REG", region(509), { fds: [file.fd] })).toBe(1n)
      yield* frontend.tell("REM_MEM_REG", region(7))
      yield* frontend.tell("ADD_MEM_REG", region(509), { fds: [file.fd] })
      yield* works(queue)
    }))

  for (const before of [16, 1008, 4096, 4096 + 16, 10_000]) {
    live(
      `takes a region that begins ${before} bytes into its file, and touches nothing around it`,
      () =>
        Effect.gen(function*() {
          const { start } = yield* serve()
          const { memory, queue } = yield* start({ before, after: 5000 })
          const end = before + memory.bytes.length
          memory.file.fill(0xee, 0, before)
          memory.file.fill(0xee, end)
          const given = Uint8Array.from({ length: 4096 }, (_, i) => i * 3)
          expect(yield* queue.do({ type: RequestType.OUT, sector: 8, given })).toMatchObject({ status: Status.OK })
          expect(yield* queue.do({ type: RequestType.IN, sector: 8, wanted: 4096 })).toMatchObject({ data: given })
          expect([...memory.file.subarray(0, before), ...memory.file.subarray(end)].every((byte) => byte === 0xee))
            .toBe(true)
        })
    )
  }

  live("takes memory whose guest addresses are the user addresses of other memory", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend, queue } = yield* start({ guestAddress: USER, userAddress: GUEST })
      const other = yield* frontend.share({ guestAddress: GUEST, userAddress: USER })
      const laid = layRequest(other, read(0))
      const head = queue.ring.put(laid.parts)
      queue.kick()
      yield* queue.used(head)
      expect([laid.status(), laid.isIntact()]).toStrictEqual([Status.OK, true])
      yield* works(queue)
    }))
})

describe("where memory must be sealed", () => {
  live("what may shrink is refused, and what may not is served", () =>
    Effect.gen(function*() {
      const served = yield* serve({ sealedMemory: true })
      const frontend = yield* served.connect
      yield* frontend.negotiate()
      const path = `/dev/shm/effect-blkio-${process.pid}`
      writeFileSync(path, new Uint8Array(4096))
      const fd = yield* Effect.acquireRelease(
        Effect.sync(() => openSync(path, "r+")),
        (opened) => Effect.sync(() => Libc.close(opened))
      )
      rmSync(path)
      const region = { guestAddress: 0, userAddress: 0, size: 4096, mmapOffset: 0 }
      expect(yield* frontend.acknowledged("ADD_MEM_REG", Message.encodeMemoryRegion(region), { fds: [fd] })).toBe(1n)
      expect(yield* frontend.acknowledged("SET_MEM_TABLE", Message.encodeMemoryTable([region]), { fds: [fd] })).toBe(1n)
      yield* frontend.share()
      yield* works(yield* frontend.startQueue())
      frontend.say("ADD_MEM_REG", Message.encodeMemoryRegion(region), { fds: [fd] })
      yield* frontend.ended
      yield* served.gone(1)
      expect(served.reasons[0]).toBe("vhost-user export: ADD_MEM_REG: its file is not sealed against shrinking")
    }))
})

describe("REM_MEM_REG", () => {
  live("unmaps the region, whether or not a descriptor comes along, which is closed", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend, queue } = yield* start()
      const other = yield* frontend.share({ guestAddress: GUEST, userAddress: USER })
      const mappings = count().mappings
      const open = descriptors().size
      yield* frontend.tell("REM_MEM_REG", regionOf(other))
      expect(count().mappings).toBe(mappings - 1)
      yield* frontend.tell("ADD_MEM_REG", regionOf(other), { fds: [other.fd] })
      yield* frontend.tell("REM_MEM_REG", regionOf(other), { fds: [other.fd] })
      expect(count().mappings).toBe(mappings - 1)
      expect(descriptors().size).toBe(open)
      expect(yield* frontend.acknowledged("REM_MEM_REG", regionOf(other))).toBe(1n)
      yield* works(queue)
    }))

  live("waits for a request that uses the region, and disturbs no other", () =>
    Effect.gen(function*() {
      const { frontend, inFlight, queue, store } = yield* held
      const other = yield* frontend.share({ guestAddress: GUEST, userAddress: USER })
      const mappings = count().mappings
      const laid = layRequest(other, read(9))
      const head = queue.ring.put(laid.parts)
      queue.kick()
      yield* inFlight(1)
      const acknowledged = yield* notBefore(
        frontend,
        (options) => frontend.say("REM_MEM_REG", regionOf(other), options),
        Effect.gen(function*() {
          // Those that do not use it go on.
          yield* works(queue)
          expect(count().mappings).toBe(mappings)
          yield* store.release
        })
      )
      expect(acknowledged).toBe(0n)
      expect(count().mappings).toBe(mappings - 1)
      yield* queue.used(head)
      expect([laid.status(), laid.isIntact()]).toStrictEqual([Status.OK, true])
    }))

  live("does not wait for requests that do not use the region", () =>
    Effect.gen(function*() {
      const { frontend, inFlight, queue } = yield* held
      const other = yield* frontend.share({ guestAddress: GUEST, userAddress: USER })
      queue.submit(read(9))
      queue.kick()
      yield* inFlight(1)
      yield* frontend.tell("REM_MEM_REG", regionOf(other))
    }))

  live("leaves no mapping where the front-end dies while it waits", () =>
    Effect.gen(function*() {
      const { frontend, inFlight, queue, served, store } = yield* held
      const other = yield* frontend.share({ guestAddress: GUEST, userAddress: USER })
      queue.ring.put(layRequest(other, read(9)).parts)
      queue.kick()
      yield* inFlight(1)
      frontend.say("REM_MEM_REG", regionOf(other))
      yield* FakeFrontend.turns(20)
      frontend.close()
      yield* served.gone(1)
      expect(store.interrupted).toStrictEqual(["read 9"])
      expect(count().mappings).toBe(0)
      yield* served.serves
    }))

  live(
    "refuses the region in which a started ring lies, and takes it when the ring has stopped",
    () =>
      Effect.gen(function*() {
        const { start } = yield* serve()
        const { frontend, memory, queue } = yield* start()
        expect(yield* frontend.acknowledged("REM_MEM_REG", regionOf(memory))).toBe(1n)
        yield* works(queue)
        yield* frontend.ask("GET_VRING_BASE", Message.encodeVringState(0, 0))
        yield* frontend.tell("REM_MEM_REG", regionOf(memory))
        const kick = Message.encodeVringFd(0, true)
        expect(yield* frontend.acknowledged("SET_VRING_KICK", kick, { fds: [queue.kickFd] })).toBe(1n)
      })
  )
})

describe("SET_MEM_TABLE", () => {
  live("replaces all regions while a ring runs, after its requests in flight have ended", () =>
    Effect.gen(function*() {
      const { frontend, inFlight, memory, queue, store } = yield* held
      const second = frontend.makeMemory({ guestAddress: GUEST, userAddress: USER })
      const mappings = count().mappings
      const requests = [9, 10, 11].map((sector) => queue.submit(read(sector)))
      queue.kick()
      yield* inFlight(3)
      const acknowledged = yield* notBefore(
        frontend,
        (options) => frontend.say("SET_MEM_TABLE", tableOf(memory, second), { ...options, fds: fdsOf(memory, second) }),
        store.release
      )
      expect(acknowledged).toBe(0n)
      // All of them were shown to the driver before the memory went.
      expect(new Set(queue.ring.collect().map(({ id }) => id))).toStrictEqual(new Set(requests.map(({ head }) => head)))
      for (const request of requests) expect([request.status(), request.isIntact()]).toStrictEqual([Status.OK, true])
      expect(count().mappings).toBe(mappings + 1)
      yield* works(queue)
      const laid = layRequest(second, read(0))
      const head = queue.ring.put(laid.parts)
      queue.kick()
      yield* queue.used(head)
      expect(laid.status()).toBe(Status.OK)
      yield* frontend.tell("SET_MEM_TABLE", tableOf(memory), { fds: fdsOf(memory) })
      expect(count().mappings).toBe(mappings)
      yield* works(queue)
    }))

  live("takes no request while it waits", () =>
    Effect.gen(function*() {
      const { frontend, inFlight, memory, queue, store } = yield* held
      queue.submit(read(9))
      queue.kick()
      yield* inFlight(1)
      let head = -1
      yield* notBefore(
        frontend,
        (options) => frontend.say("SET_MEM_TABLE", tableOf(memory), { ...options, fds: fdsOf(memory) }),
        Effect.gen(function*() {
          head = queue.submit(read(1)).head
          queue.kick()
          yield* FakeFrontend.turns(20)
          expect(store.began).toStrictEqual(["read 9"])
          yield* store.release
        })
      )
      yield* queue.used(head)
    }))

  live(
    "that has no memory for a running ring is refused, stops it, and leaves it to be set up again",
    () =>
      Effect.gen(function*() {
        const { served, frontend, memory, queue } = yield* held
        yield* works(queue)
        const other = frontend.makeMemory({ guestAddress: GUEST, userAddress: USER })
        const acknowledged = yield* frontend.acknowledged("SET_MEM_TABLE", tableOf(other), { fds: fdsOf(other) })
        expect(acknowledged).toBe(1n)
        queue.submit(read(1))
        queue.kick()
        yield* FakeFrontend.turns(20)
        expect(queue.ring.usedIdx).toBe(1)
        yield* frontend.tell("SET_MEM_TABLE", tableOf(memory), { fds: fdsOf(memory) })
        yield* works(yield* frontend.startQueue({ index: 0 }))
        expect(served.reasons).toStrictEqual([])
      })
  )

  live(
    "with regions that overlap, or a file that cannot be mapped, is refused and leaves nothing mapped twice",
    () =>
      Effect.gen(function*() {
        const { start } = yield* serve()
        const { frontend, memory } = yield* start()
        const mappings = count().mappings
        const fds = [memory.fd, memory.fd]
        expect(yield* frontend.acknowledged("SET_MEM_TABLE", tableOf(memory, memory), { fds })).toBe(1n)
        expect(yield* frontend.acknowledged("SET_MEM_TABLE", tableOf(memory), { fds: [frontend.eventFd()] })).toBe(1n)
        expect(count().mappings).toBeLessThanOrEqual(mappings)
        yield* frontend.tell("SET_MEM_TABLE", tableOf(memory), { fds: [memory.fd] })
        yield* works(yield* frontend.startQueue({ index: 0 }))
      })
  )

  live("takes 8 regions, and none", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      yield* frontend.negotiate()
      const before = count().mappings
      const memories = Array.from({ length: 8 }, (_, i) =>
        frontend.makeMemory({ guestAddress: GUEST + i * MiB, userAddress: USER + i * MiB }))
      yield* frontend.tell("SET_MEM_TABLE", tableOf(...memories), { fds: fdsOf(...memories) })
      expect(count().mappings).toBe(before + 16)
      yield* frontend.tell("SET_MEM_TABLE", tableOf())
      expect(count().mappings).toBe(before + 8)
    }))

  live(
    "and REM_MEM_REG, ADD_MEM_REG and SET_VRING_ADDR at any moment lose no request",
    () =>
      withSeed((random) =>
        Effect.gen(function*() {
          const memory = yield* Effect.orDie(BlockStore.memory({ capacity: MiB }))
          const store = BlockStore.around(memory, {
            name: "uneven",
            run: (_, effect) =>
              Effect.suspend(() => random(3) === 0 ? effect : Effect.andThen(FakeFrontend.turns(1 + random(4)), effect))
          })
          const { start } = yield* FakeFrontend.serve(store)
          const { frontend, memory: first, queue } = yield* start()
          const second = frontend.makeMemory({ guestAddress: GUEST, userAddress: USER })
          const addresses = Message.encodeVringAddress({ index: 0, flags: 0, log: 0, ...queue.ring.addresses })
          const answered: Array<number> = []
          const { allocated } = first
          for (let round = 0; round < 300; round++) {
            first.allocated = allocated
            const heads = Array.from({ length: 1 + random(8) }, () => queue.submit(read(random(100))).head)
            queue.kick()
            yield* FakeFrontend.turns(1 + random(6))
            switch (random(3)) {
              case 0:
                yield* frontend.tell("SET_MEM_TABLE", tableOf(first, second), { fds: fdsOf(first, second) })
                break
              case 1:
                yield* frontend.acknowledged("REM_MEM_REG", regionOf(second))
                break
              default:
                yield* frontend.tell("SET_VRING_ADDR", addresses)
            }
            const left = new Set(heads)
            yield* FakeFrontend.eventually(`the answers of round ${round}`, () => {
              for (const { id } of queue.ring.collect()) {
                answered.push(id)
                left.delete(id)
              }
              return left.size === 0 ? true : undefined
            })
          }
          expect(answered).toHaveLength(queue.ring.usedIdx)
        })
      )
  )
})
