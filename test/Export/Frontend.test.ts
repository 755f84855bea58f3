/**
 * Goal: every message of the protocol does what it should, acknowledged where that is asked for and silently where not; and
 * whatever is wrong with a message costs its sender an acknowledgement that is not zero, or the connection, and nobody else
 * anything.
 * Method: a front-end that is not this library's says each message rightly and wrongly, as bytes on a socket with real
 * descriptors; after each wrong one the same or the next front-end is served, and every descriptor of this process is
 * accounted for. Random bytes come with their seed.
 */
import { describe, expect, it } from "@effect/vitest"
import { Deferred, Effect, type Scope } from "effect"
import { mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import * as Libc from "../../src/Native/Libc.ts"
import { make as randomNumbers } from "../../src/SeededRandom.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import {
  decodeConfig as decodeBlkConfig,
  FeatureBit,
  hasFeature,
  RequestType,
  Status
} from "../../src/Wire/VirtioBlk.ts"
import { BlockStore } from "../../src/index.ts"
import * as FakeFrontend from "../support/FakeFrontend.ts"
import { descriptors, leavesNothing, live } from "../support/resources.ts"

const { FrontendRequest, ProtocolFeature } = Message
type Name = keyof typeof FrontendRequest

const MiB = 2 ** 20
const memoryStore = Effect.orDie(BlockStore.memory({ capacity: MiB }))
const serve = (options: Parameters<typeof FakeFrontend.serve>[1] = {}) =>
  Effect.flatMap(memoryStore, (store) => FakeFrontend.serve(store, options))

/** Opens what is closed with the Scope. */
const own = (open: () => number): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(Effect.sync(open), (fd) => Effect.sync(() => Libc.close(fd)))

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "blkio-frontend-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** What every descriptor of this process links to, files and all. */
const links = (): ReadonlyArray<string> =>
  [...descriptors().values()].map((link) => link.replace(/\d+/g, "n")).toSorted()

/** A test that leaves no descriptor of any kind. */
const whole = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>): void =>
  it.live(name, () =>
    Effect.gen(function*() {
      const before = links()
      yield* leavesNothing(Effect.suspend(body))
      expect(links()).toStrictEqual(before)
    }))

const vring = (num: number, index = 0) => Message.encodeVringState(index, num)
const u64 = Message.encodeU64
const event = (hasFd = true, index = 0) => Message.encodeVringFd(index, hasFd)
const nothing = new Uint8Array(0)

describe("what is offered", () => {
  live("features of the device and of the protocol, queues, slots", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      const features = yield* frontend.askU64("GET_FEATURES")
      for (
        const bit of [
          FeatureBit.SEG_MAX,
          FeatureBit.BLK_SIZE,
          FeatureBit.FLUSH,
          FeatureBit.TOPOLOGY,
          FeatureBit.CONFIG_WCE,
          FeatureBit.DISCARD,
          FeatureBit.WRITE_ZEROES,
          FeatureBit.INDIRECT_DESC,
          FeatureBit.EVENT_IDX,
          FeatureBit.PROTOCOL_FEATURES,
          FeatureBit.VERSION_1
        ]
      ) {
        expect(hasFeature(features, bit), `bit ${bit}`).toBe(true)
      }
      expect(hasFeature(features, FeatureBit.MQ)).toBe(false)
      expect(hasFeature(features, FeatureBit.RO)).toBe(false)
      const protocol = yield* frontend.askU64("GET_PROTOCOL_FEATURES")
      const bits = Object.entries(ProtocolFeature).filter(([, bit]) => hasFeature(protocol, bit)).map(([name]) => name)
      expect(bits).toStrictEqual([
        "MQ",
        "REPLY_ACK",
        "BACKEND_REQ",
        "CONFIG",
        "INFLIGHT_SHMFD",
        "RESET_DEVICE",
        "CONFIGURE_MEM_SLOTS",
        "STATUS"
      ])
      expect(yield* frontend.askU64("GET_QUEUE_NUM")).toBe(1n)
      expect(yield* frontend.askU64("GET_MAX_MEM_SLOTS")).toBe(509n)
    }))

  live("MQ with more than one queue, and RO where the disk is read-only", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve({ numQueues: 3, readOnly: true })
      const frontend = yield* connect
      const features = yield* frontend.askU64("GET_FEATURES")
      expect(hasFeature(features, FeatureBit.MQ)).toBe(true)
      expect(hasFeature(features, FeatureBit.RO)).toBe(true)
      expect(yield* frontend.askU64("GET_QUEUE_NUM")).toBe(3n)
    }))
})

/** A message, said rightly; those of one test in the order of a device's start. */
const rightly = (frontend: FakeFrontend.FakeFrontend): ReadonlyArray<readonly [Name, Uint8Array?, Array<number>?]> => {
  const memory = frontend.makeMemory()
  const second = frontend.makeMemory({ guestAddress: 0, userAddress: 4096 })
  const queue = frontend.makeQueue({ memory })
  return [
    ["SET_OWNER"],
    ["SET_STATUS", u64(3n)],
    ["SET_FEATURES", u64(0x1_4000_0000n)],
    ["SET_STATUS", u64(11n)],
    ["SET_MEM_TABLE", Message.encodeMemoryTable([memory.region]), [memory.fd]],
    ["ADD_MEM_REG", Message.encodeMemoryRegion(second.region), [second.fd]],
    ["REM_MEM_REG", Message.encodeMemoryRegion(second.region)],
    ["SET_VRING_CALL", event(), [queue.callFd]],
    ["SET_VRING_NUM", vring(64)],
    ["SET_VRING_BASE", vring(0)],
    ["SET_VRING_ADDR", Message.encodeVringAddress({ index: 0, flags: 0, log: 0, ...queue.ring.addresses })],
    ["SET_VRING_ERR", event(), [queue.errorFd]],
    ["SET_VRING_KICK", event(), [queue.kickFd]],
    ["SET_VRING_ENABLE", vring(1)],
    ["SET_CONFIG", Message.encodeConfig({ offset: 32, size: 1, flags: 0, region: Uint8Array.of(0) })],
    ["SET_STATUS", u64(15n)]
  ]
}

const probe = (queue: FakeFrontend.FrontendQueue) =>
  Effect.map(queue.do({ type: RequestType.IN, sector: 0, wanted: 512 }), ({ status }) => {
    expect(status).toBe(Status.OK)
  })

describe("every message, said rightly", () => {
  whole("is acknowledged with 0 where that is asked for", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      yield* frontend.negotiate()
      for (const [name, payload, fds = []] of rightly(frontend)) yield* frontend.tell(name, payload, { fds })
      expect(yield* frontend.askU64("GET_STATUS")).toBe(15n)
      for (const queue of frontend.queues) yield* probe(queue)
    }))

  whole("is obeyed in silence where it is not", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      yield* frontend.negotiate()
      for (const [name, payload, fds = []] of rightly(frontend)) frontend.say(name, payload, { fds })
      // The first message that comes back is the answer to this.
      expect(yield* frontend.askU64("GET_STATUS")).toBe(15n)
      for (const queue of frontend.queues) yield* probe(queue)
    }))

  whole("is not acknowledged without REPLY_ACK, whatever it asks for", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      yield* frontend.negotiate({ protocolFeatures: (offered) => offered & ~(1n << BigInt(ProtocolFeature.REPLY_ACK)) })
      for (const [name, payload, fds = []] of rightly(frontend)) frontend.say(name, payload, { fds, needReply: true })
      expect(yield* frontend.askU64("GET_STATUS")).toBe(15n)
      for (const queue of frontend.queues) yield* probe(queue)
    }))

  whole("comes in pieces of a byte", () =>
    Effect.gen(function*() {
      const { connect } = yield* serve()
      const frontend = yield* connect
      yield* frontend.negotiate()
      for (const [name, payload, fds = []] of rightly(frontend)) {
        const bytes = Message.encodeMessage(FrontendRequest[name], Message.FLAG_NEED_REPLY, payload)
        for (const [i, byte] of bytes.entries()) {
          frontend.send(Uint8Array.of(byte), i === 0 ? fds : [])
          if (i % 5 === 0) yield* FakeFrontend.turns(1)
        }
        const reply = yield* frontend.next
        if (reply === "end") throw new Error(`${name} ended the connection`)
        expect([reply.request, Message.decodeU64(reply.payload)]).toStrictEqual([FrontendRequest[name], 0n])
      }
      for (const queue of frontend.queues) yield* probe(queue)
    }))

  whole("has answers of their own asked for with NEED_REPLY or without", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend } = yield* start()
      const questions = [
        ["GET_FEATURES", nothing, 8],
        ["GET_PROTOCOL_FEATURES", nothing, 8],
        ["GET_QUEUE_NUM", nothing, 8],
        ["GET_MAX_MEM_SLOTS", nothing, 8],
        ["GET_STATUS", nothing, 8],
        ["GET_CONFIG", Message.encodeConfig({ offset: 0, size: 60, flags: 0 }), 72],
        ["GET_VRING_BASE", vring(0), 8],
        ["GET_INFLIGHT_FD", Message.encodeInflight({ mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 64 }), 24]
      ] as const
      for (const [name, payload, length] of questions) {
        const plain = yield* frontend.ask(name, payload)
        const asked = yield* frontend.ask(name, payload, { needReply: true })
        expect([plain.payload.length, asked.payload.length]).toStrictEqual([length, length])
        expect(asked.payload).toStrictEqual(plain.payload)
      }
    }))
})

/** How a message may be wrong: its payload, its descriptors, and what the reason says. */
interface Wrong {
  readonly name: Name
  readonly what: string
  readonly says: RegExp
  readonly payload?: Uint8Array | ((frontend: FakeFrontend.FakeFrontend) => Uint8Array)
  readonly fds?: (frontend: FakeFrontend.FakeFrontend) => Effect.Effect<Array<number>, never, Scope.Scope>
}

const eventFds = (count: number): NonNullable<Wrong["fds"]> => (frontend) =>
  Effect.sync(() => Array.from({ length: count }, () => frontend.eventFd()))

const opened = (path: string, flags: string): NonNullable<Wrong["fds"]> => () =>
  Effect.map(own(() => openSync(path, flags)), (fd) => [fd])

/** A file on a disk, which may shrink. */
const makeFile = Effect.fnUntraced(function*(length: number, flags: string) {
  const path = `${yield* folder}/memory`
  writeFileSync(path, new Uint8Array(length))
  return yield* own(() => openSync(path, flags))
})

const plainFile = (length: number, flags = "r+"): NonNullable<Wrong["fds"]> => () =>
  Effect.map(makeFile(length, flags), (fd) => [fd])

/** An end of a connection to nobody. */
const makeSocket = Effect.gen(function*() {
  const [left, right] = Libc.createSocketPair()
  yield* own(() => right)
  return yield* own(() => left)
})

const socketFd: NonNullable<Wrong["fds"]> = () => Effect.map(makeSocket, (fd) => [fd])

const memoryFds = (count: number): NonNullable<Wrong["fds"]> => (frontend) =>
  Effect.sync(() => Array.from({ length: count }, () => frontend.makeMemory({ length: 4096 }).fd))

const region = (changes: Partial<Message.MemoryRegion> = {}) =>
  Message.encodeMemoryRegion({ guestAddress: 0, userAddress: 0, size: 4096, mmapOffset: 0, ...changes })
const table = (count: number) =>
  Message.encodeMemoryTable(
    Array.from({ length: count }, (_, i) => ({
      guestAddress: i * 4096,
      userAddress: i * 4096,
      size: 4096,
      mmapOffset: 0
    }))
  )
const ring = (changes: Partial<Message.VringAddress>) => (frontend: FakeFrontend.FakeFrontend) => {
  const { addresses } = frontend.makeQueue({ queueSize: 64 }).ring
  return Message.encodeVringAddress({ index: 0, flags: 0, log: 0, ...addresses, ...changes })
}
const inflight = (changes: Partial<Message.Inflight> = {}) =>
  Message.encodeInflight({ mmapSize: 2112, mmapOffset: 0, numQueues: 1, queueSize: 128, ...changes })
const setConfig = (offset: number, ...bytes: ReadonlyArray<number>) =>
  Message.encodeConfig({ offset, size: bytes.length, flags: 0, region: Uint8Array.from(bytes) })

const vringEvents = ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] as const

/** Understood, and refused. */
const wrongs: ReadonlyArray<Wrong> = [
  {
    name: "SET_FEATURES",
    what: "bits that were not offered",
    payload: u64(1n << 63n),
    says: /features 0x8000000000000000/
  },
  { name: "SET_FEATURES", what: "the packed ring", payload: u64(1n << 34n | 1n << 32n), says: /0x400000000 were not/ },
  {
    name: "SET_PROTOCOL_FEATURES",
    what: "bits that were not offered",
    payload: u64(2n),
    says: /features 0x2 were not/
  },
  { name: "RESET_OWNER", what: "at all", says: /not known/ },
  { name: "SET_LOG_BASE", what: "at all", payload: new Uint8Array(16), fds: memoryFds(1), says: /not known/ },
  { name: "SET_LOG_FD", what: "at all", fds: eventFds(1), says: /not known/ },
  { name: "IOTLB_MSG", what: "at all", payload: new Uint8Array(32), says: /not known/ },
  { name: "VRING_KICK", what: "at all", payload: vring(0), says: /not known/ },
  { name: "SET_VRING_ENDIAN", what: "at all", payload: vring(0), says: /not known/ },

  ...([0, 3, 65_536, 0xffff_ffff] as const).map((num): Wrong => ({
    name: "SET_VRING_NUM",
    what: `a size of ${num}`,
    payload: vring(num),
    says: /must be a power of two from 1 to 32768/
  })),
  { name: "SET_VRING_BASE", what: "a base of 70000", payload: vring(70_000), says: /70000: must be from 0 to 65535/ },
  { name: "SET_VRING_ENABLE", what: "a number of 2", payload: vring(2), says: /enable 2: must be 0 or 1/ },
  ...(["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ENABLE"] as const).flatMap((name) =>
    [1, 256, 0xffff_ffff].map((index): Wrong => ({
      name,
      what: `queue ${index}`,
      payload: vring(1, index),
      says: new RegExp(`queue ${index}: there are 1`)
    }))
  ),
  { name: "SET_VRING_ADDR", what: "queue 1", payload: ring({ index: 1 }), says: /queue 1: there are 1/ },
  {
    name: "SET_VRING_ADDR",
    what: "descriptors nowhere",
    payload: ring({ descriptors: 16 }),
    says: /descriptors at 16/
  },
  { name: "SET_VRING_ADDR", what: "avail nowhere", payload: ring({ avail: 0 }), says: /avail ring at 0 are not in/ },
  { name: "SET_VRING_ADDR", what: "used nowhere", payload: ring({ used: 2 ** 52 }), says: /used ring at/ },
  {
    name: "SET_VRING_ADDR",
    what: "a used ring at no multiple of 4",
    payload: (frontend) => ring({ used: (frontend.shared[0]?.region.userAddress ?? 0) + 2 })(frontend),
    says: /multiple of 4/
  },
  {
    name: "SET_VRING_ADDR",
    what: "descriptors that pass the region's end",
    payload: (frontend) => ring({ descriptors: (frontend.shared[0]?.region.userAddress ?? 0) + MiB - 16 })(frontend),
    says: /1024 bytes of the descriptors/
  },

  ...vringEvents.flatMap((name): ReadonlyArray<Wrong> => [
    { name, what: "queue 1", payload: event(true, 1), fds: eventFds(1), says: /queue 1: there are 1/ },
    { name, what: "no descriptor where one was announced", payload: event(), says: /0 descriptors: there must be 1/ },
    { name, what: "2 descriptors", payload: event(), fds: eventFds(2), says: /2 descriptors: there must be 1/ },
    { name, what: "8 descriptors", payload: event(), fds: eventFds(8), says: /8 descriptors: there must be 1/ },
    { name, what: "a file", payload: event(), fds: plainFile(8), says: /no event counter/ },
    { name, what: "a folder", payload: event(), fds: opened("/", "r"), says: /no event counter/ },
    { name, what: "/dev/null", payload: event(), fds: opened("/dev/null", "r+"), says: /no event counter/ },
    { name, what: "memory", payload: event(), fds: memoryFds(1), says: /no event counter/ },
    { name, what: "a socket", payload: event(), fds: socketFd, says: /a socket, no event counter/ },
    {
      name,
      what: "the front-end's own end of the connection",
      payload: event(),
      fds: ({ fd }) => Effect.succeed([fd]),
      says: /a socket, no event counter/
    }
  ]),
  {
    name: "SET_VRING_KICK",
    what: "a ring without a size",
    payload: event(),
    fds: eventFds(1),
    says: /ring has no size/
  },

  { name: "SET_BACKEND_REQ_FD", what: "no descriptor", says: /0 descriptors: there must be 1/ },
  { name: "SET_BACKEND_REQ_FD", what: "2 descriptors", fds: eventFds(2), says: /2 descriptors: there must be 1/ },
  { name: "SET_BACKEND_REQ_FD", what: "a file", fds: plainFile(8), says: /errno 1$/ },
  { name: "SET_BACKEND_REQ_FD", what: "/dev/null", fds: opened("/dev/null", "r+"), says: /errno 1$/ },

  { name: "ADD_MEM_REG", what: "no descriptor", payload: region(), says: /0 descriptors: there must be 1/ },
  { name: "ADD_MEM_REG", what: "2 descriptors", payload: region(), fds: memoryFds(2), says: /2 descriptors/ },
  { name: "ADD_MEM_REG", what: "8 descriptors", payload: region(), fds: memoryFds(8), says: /8 descriptors/ },
  { name: "ADD_MEM_REG", what: "an event counter", payload: region(), fds: eventFds(1), says: /no file/ },
  { name: "ADD_MEM_REG", what: "a socket", payload: region(), fds: socketFd, says: /no file/ },
  { name: "ADD_MEM_REG", what: "a folder", payload: region(), fds: opened("/", "r"), says: /no file/ },
  { name: "ADD_MEM_REG", what: "/dev/zero", payload: region(), fds: opened("/dev/zero", "r+"), says: /no file/ },
  { name: "ADD_MEM_REG", what: "a file to be read", payload: region(), fds: plainFile(4096, "r"), says: /errno 13/ },
  {
    name: "ADD_MEM_REG",
    what: "a file too short",
    payload: region(),
    fds: plainFile(4095),
    says: /beyond the file's 4095/
  },
  { name: "ADD_MEM_REG", what: "no bytes", payload: region({ size: 0 }), fds: memoryFds(1), says: /at least one byte/ },
  {
    name: "ADD_MEM_REG",
    what: "all addresses there are",
    payload: region({ size: 2 ** 53 - 1 }),
    fds: memoryFds(1),
    says: /beyond the file's|overlap/
  },
  {
    name: "ADD_MEM_REG",
    what: "an offset beyond the file",
    payload: region({ mmapOffset: 1 }),
    fds: memoryFds(1),
    says: /beyond the file's 4096/
  },
  {
    name: "ADD_MEM_REG",
    what: "what overlaps another",
    payload: (frontend) => Message.encodeMemoryRegion({ ...frontend.shared[0]!.region, size: 4096 }),
    fds: memoryFds(1),
    says: /overlap/
  },
  { name: "REM_MEM_REG", what: "what was never added", payload: region(), says: /no such region/ },

  {
    name: "SET_MEM_TABLE",
    what: "too few descriptors",
    payload: table(2),
    fds: memoryFds(1),
    says: /1 descriptors for 2/
  },
  { name: "SET_MEM_TABLE", what: "too many", payload: table(1), fds: memoryFds(2), says: /2 descriptors for 1/ },
  { name: "SET_MEM_TABLE", what: "none", payload: table(8), says: /0 descriptors for 8/ },

  { name: "GET_INFLIGHT_FD", what: "no queues", payload: inflight({ numQueues: 0 }), says: /0 queues of 128/ },
  {
    name: "GET_INFLIGHT_FD",
    what: "2 queues",
    payload: inflight({ numQueues: 2 }),
    says: /2 queues of 128: there are 1/
  },
  { name: "GET_INFLIGHT_FD", what: "queues of 0", payload: inflight({ queueSize: 0 }), says: /1 queues of 0/ },
  { name: "GET_VRING_BASE", what: "queue 1", payload: vring(0, 1), says: /queue 1: there are 1/ },
  { name: "SET_INFLIGHT_FD", what: "no descriptor", payload: inflight(), says: /0 descriptors/ },
  { name: "SET_INFLIGHT_FD", what: "an event counter", payload: inflight(), fds: eventFds(1), says: /no file/ },
  {
    name: "SET_INFLIGHT_FD",
    what: "a file too short",
    payload: inflight(),
    fds: plainFile(2111),
    says: /beyond the file's/
  },
  {
    name: "SET_INFLIGHT_FD",
    what: "a file to be read",
    payload: inflight(),
    fds: plainFile(2112, "r"),
    says: /errno 13/
  },
  {
    name: "SET_INFLIGHT_FD",
    what: "too small",
    payload: inflight({ mmapSize: 64 }),
    fds: memoryFds(1),
    says: /need 2112/
  },

  { name: "SET_CONFIG", what: "the capacity", payload: setConfig(0, 1), says: /only writeback/ },
  {
    name: "SET_CONFIG",
    what: "writeback and more",
    payload: setConfig(32, 1, 0),
    says: /2 bytes at 32: only writeback/
  },
  { name: "SET_CONFIG", what: "no bytes", payload: setConfig(32), says: /0 bytes at 32/ },
  { name: "SET_CONFIG", what: "writeback 2", payload: setConfig(32, 2), says: /writeback 2: must be 0 or 1/ }
]

/** Asks a question, whose answer is the answer also where it comes with NEED_REPLY (vhost-user: REPLY_ACK). */
const isQuestion = (name: Name) => name.startsWith("GET_")

const say = Effect.fnUntraced(
  function*(frontend: FakeFrontend.FakeFrontend, { fds, name, payload = nothing }: Wrong, needReply: boolean) {
    const bytes = typeof payload === "function" ? payload(frontend) : payload
    frontend.say(name, bytes, { fds: fds === undefined ? [] : yield* fds(frontend), needReply })
  }
)

/** Until it has memory: each of the wrong messages finds some right one before it. */
const prepared = (served: FakeFrontend.Served, wrong: Wrong) =>
  Effect.gen(function*() {
    const frontend = yield* served.connect
    yield* frontend.negotiate()
    yield* frontend.share()
    if (wrong.name === "SET_VRING_ADDR") yield* frontend.tell("SET_VRING_NUM", vring(64))
    return frontend
  })

describe("a message that is refused", () => {
  for (const wrong of wrongs.filter(({ name }) => !isQuestion(name))) {
    whole(
      `${wrong.name}: ${wrong.what}: is acknowledged with what is not 0, and the connection goes on`,
      () =>
        Effect.gen(function*() {
          const served = yield* serve()
          const frontend = yield* prepared(served, wrong)
          yield* say(frontend, wrong, true)
          const reply = yield* frontend.next
          if (reply === "end") throw new Error("the export ended the connection")
          expect([reply.request, reply.flags]).toStrictEqual([FrontendRequest[wrong.name], Message.FLAG_REPLY])
          expect(Message.decodeU64(reply.payload)).not.toBe(0n)
          yield* probe(yield* frontend.startQueue({ index: 0 }))
          expect(served.reasons).toStrictEqual([])
        })
    )
  }

  for (const wrong of wrongs) {
    whole(
      `${wrong.name}: ${wrong.what}: ends the connection where no acknowledgement is due, and not the export`,
      () =>
        Effect.gen(function*() {
          const served = yield* serve()
          const frontend = yield* prepared(served, wrong)
          yield* say(frontend, wrong, isQuestion(wrong.name))
          yield* frontend.ended
          yield* served.gone(1)
          expect(served.log).toStrictEqual(["connected", "EPROTO"])
          expect(served.reasons[0]).toMatch(new RegExp(`^vhost-user export: ${wrong.name}: `))
          expect(served.reasons[0]).toMatch(wrong.says)
          yield* served.serves
        })
    )
  }
})

/** Messages with a payload of one length, and that length. */
const lengths: ReadonlyArray<readonly [Name, number]> = [
  ["SET_FEATURES", 8],
  ["SET_PROTOCOL_FEATURES", 8],
  ["SET_MEM_TABLE", 8],
  ["SET_VRING_NUM", 8],
  ["SET_VRING_BASE", 8],
  ["GET_VRING_BASE", 8],
  ["SET_VRING_ENABLE", 8],
  ["SET_VRING_ADDR", 40],
  ["SET_VRING_KICK", 8],
  ["SET_VRING_CALL", 8],
  ["SET_VRING_ERR", 8],
  ["ADD_MEM_REG", 40],
  ["REM_MEM_REG", 40],
  ["GET_CONFIG", 12],
  ["SET_CONFIG", 12],
  ["GET_INFLIGHT_FD", 24],
  ["SET_INFLIGHT_FD", 24],
  ["SET_STATUS", 8]
]

describe("what is no message", () => {
  for (const [name, length] of lengths) {
    whole(`${name} of another length than ${length} ends the connection`, () =>
      Effect.gen(function*() {
        const served = yield* serve()
        const wrong = [0, length - 1, length + 1, 268]
        for (const [i, size] of wrong.entries()) {
          const frontend = yield* served.connect
          yield* frontend.negotiate()
          frontend.say(name, new Uint8Array(size), { fds: [frontend.eventFd()], needReply: i % 2 === 0 })
          yield* frontend.ended
          yield* served.gone(i + 1)
          expect(served.reasons[i]).toMatch(new RegExp(`^vhost-user export: ${name}: .* ${size} bytes`))
        }
        expect(served.log.filter((said) => said !== "connected")).toStrictEqual(wrong.map(() => "EPROTO"))
        yield* served.serves
      }))
  }

  const header = (request: number, flags: number, size: number) =>
    new Uint8Array(Uint32Array.of(request, flags, size).buffer)

  const framings: ReadonlyArray<readonly [what: string, bytes: Uint8Array, tag: string, says: RegExp]> = [
    ["version 0", header(1, 0, 0), "EPROTO", /GET_FEATURES with protocol version 0: must be 1/],
    ["version 2", header(1, 2, 0), "EPROTO", /version 2/],
    ["version 3", header(2, 3, 8), "EPROTO", /version 3/],
    ["an announced size above the limit", header(25, 1, 269), "EPROTO", /SET_CONFIG with 269 bytes .* at most 268/],
    ["the largest size", header(25, 1, 0xffff_ffff), "EPROTO", /4294967295 bytes/],
    ["an unknown request", header(1000, 1, 0), "EPROTO", /request 1000: it is not known here/],
    ["request 0", header(0, 1, 0), "EPROTO", /request 0: it is not known here/],
    ["a header that ends early", header(1, 1, 0).subarray(0, 11), "ENOTCONN", /inside a message/],
    ["a payload that ends early", Uint8Array.of(...header(2, 1, 8), 1, 2, 3), "ENOTCONN", /inside a message/],
    ["a payload that never begins", header(2, 1, 8), "ENOTCONN", /inside a message/]
  ]
  for (const [what, bytes, tag, says] of framings) {
    whole(`${what} ends the connection, with the descriptors that came along`, () =>
      Effect.gen(function*() {
        const served = yield* serve()
        yield* Effect.scoped(Effect.gen(function*() {
          const frontend = yield* served.connect
          frontend.send(bytes, [frontend.eventFd(), frontend.makeMemory().fd])
          if (tag === "EPROTO") yield* frontend.ended
          else yield* FakeFrontend.turns(5)
        }))
        yield* served.gone(1)
        expect(served.log).toStrictEqual(["connected", tag])
        expect(served.reasons[0]).toMatch(says)
        yield* served.serves
      }))
  }

  whole(
    "9 descriptors with one message end the connection, and 8 are no more than refused",
    () =>
      Effect.gen(function*() {
        const served = yield* serve()
        const frontend = yield* served.connect
        yield* frontend.negotiate()
        const fds = Array.from({ length: 9 }, () => frontend.eventFd())
        expect(yield* frontend.acknowledged("SET_VRING_CALL", event(), { fds: fds.slice(1) })).toBe(1n)
        frontend.say("SET_VRING_CALL", event(), { fds, needReply: true })
        yield* frontend.ended
        yield* served.gone(1)
        expect(served.reasons[0]).toMatch(/9 descriptors with a message: there may be 8/)
        yield* served.serves
      })
  )

  whole("a descriptor with every byte of a message ends the connection", () =>
    Effect.gen(function*() {
      const served = yield* serve()
      const frontend = yield* served.connect
      const fd = frontend.eventFd()
      for (const byte of Message.encodeMessage(FrontendRequest.SET_FEATURES, 0, u64(0n))) {
        yield* Effect.ignore(Effect.try(() => frontend.send(Uint8Array.of(byte), [fd])))
      }
      yield* frontend.ended
      yield* served.gone(1)
      expect(served.reasons[0]).toMatch(/9 descriptors with a message/)
      yield* served.serves
    }))

  whole("all descriptors that the kernel carries end the connection, and are closed", () =>
    Effect.gen(function*() {
      const served = yield* serve()
      const frontend = yield* served.connect
      const fd = frontend.eventFd()
      frontend.say("SET_VRING_CALL", event(), { fds: Array.from({ length: 253 }, () => fd) })
      yield* frontend.ended
      yield* served.gone(1)
      yield* served.serves
    }))

  whole("descriptors with a message that takes none are closed, and the message obeyed", () =>
    Effect.gen(function*() {
      const served = yield* serve()
      const frontend = yield* served.connect
      yield* frontend.negotiate()
      const before = links()
      const fds = [frontend.eventFd(), frontend.makeMemory().fd]
      for (const name of ["SET_OWNER", "RESET_DEVICE"] as const) yield* frontend.tell(name, nothing, { fds })
      yield* frontend.tell("SET_VRING_NUM", vring(64), { fds })
      yield* frontend.tell("SET_VRING_CALL", event(false), { fds })
      yield* frontend.ask("GET_CONFIG", Message.encodeConfig({ offset: 0, size: 8, flags: 0 }), { fds })
      expect(links()).toHaveLength(before.length + 2)
    }))

  whole("more messages than may wait end the connection, with all of their descriptors", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const store = BlockStore.around(yield* memoryStore, {
        name: "held",
        run: (_, effect) => Effect.andThen(Deferred.await(gate), effect)
      })
      const served = yield* FakeFrontend.serve(store)
      const { frontend, queue } = yield* served.start()
      queue.submit({ type: RequestType.IN, sector: 0, wanted: 512 })
      queue.kick()
      yield* FakeFrontend.eventually("a request", () => served.exported.statistics.inFlight === 1 ? true : undefined)
      // It waits for the request, and all that comes after it waits for that.
      frontend.say("GET_VRING_BASE", vring(0))
      const call = Message.encodeMessage(FrontendRequest.SET_VRING_CALL, 0, event())
      for (let i = 0; i < 5000 && served.reasons.length === 0;) {
        const sent = yield* Effect.orElseSucceed(Effect.try(() => frontend.send(call, [queue.callFd])), () => -1)
        if (sent < 0) break
        if (sent === 0) yield* FakeFrontend.turns(1)
        else i++
      }
      yield* served.gone(1)
      expect(served.reasons[0]).toMatch(/sent 4096 messages without waiting/)
      yield* Deferred.succeed(gate, undefined)
      yield* served.serves
    }))

  const rounds = 300
  whole(`random bytes, and random messages with random descriptors, ${rounds} times`, () =>
    Effect.gen(function*() {
      const seed = Number(process.env["TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 32))
      const random = randomNumbers(seed)
      const served = yield* serve()
      const file = yield* makeFile(8192, "r+")
      const socket = yield* makeSocket
      const known = Object.values(FrontendRequest)
      const message = () => {
        const size = random(4) === 0 ? random(269) : [0, 8, 8, 24, 40, 40][random(6)] ?? 0
        const payload = Uint8Array.from({ length: size }, () => random(3) === 0 ? random(256) : 0)
        return Message.encodeMessage(known[random(known.length)] ?? 1, random(2) * Message.FLAG_NEED_REPLY, payload)
      }
      yield* Effect.forEach(Array.from({ length: rounds }), (_, round) =>
        Effect.scoped(Effect.gen(function*() {
          const frontend = yield* served.connect
          if (round % 3 > 0) yield* frontend.negotiate()
          const kinds = [frontend.eventFd(), frontend.makeMemory({ length: 8192 }).fd, socket, file]
          for (let i = random(12); i >= 0; i--) {
            const fds = Array.from({ length: random(3) * random(3) }, () => kinds[random(kinds.length)] ?? 0)
            const bytes = round % 3 === 0 ? Uint8Array.from({ length: 1 + random(60) }, () => random(256)) : message()
            const sent = yield* Effect.orElseSucceed(Effect.try(() => frontend.send(bytes, fds)), () => -1)
            if (sent < 0) break
            if (random(3) === 0) yield* FakeFrontend.turns(1 + random(4))
          }
        })), { discard: true }).pipe(
          Effect.andThen(served.serves),
          Effect.onError(() => Effect.sync(() => console.error(`failed with TEST_SEED=${seed}`)))
        )
    }))
})

describe("the configuration space", () => {
  live(
    "is shown through every window of 256 bytes, and an empty payload says that there is no such part",
    () =>
      Effect.gen(function*() {
        const { connect } = yield* serve({ numQueues: 2 })
        const frontend = yield* connect
        const get = (offset: number, size: number) =>
          Effect.map(
            frontend.ask("GET_CONFIG", Message.encodeConfig({ offset, size, flags: 0 })),
            ({ payload }) => payload
          )
        const space = Message.decodeConfig(yield* get(0, 256)).region
        expect(decodeBlkConfig(space.subarray(0, 60))).toMatchObject({
          capacitySectors: BigInt(MiB / 512),
          segMax: 126,
          blkSize: 512,
          numQueues: 2,
          writeback: 1,
          maxDiscardSectors: 32_768
        })
        expect(space.subarray(60).every((byte) => byte === 0)).toBe(true)
        for (
          const [offset, size] of [[0, 0], [0, 1], [0, 8], [0, 60], [32, 1], [20, 40], [60, 196], [255, 1], [
            256,
            0
          ]] as const
        ) {
          const found = Message.decodeConfig(yield* get(offset, size))
          expect(found).toStrictEqual({ offset, size, flags: 0, region: space.slice(offset, offset + size) })
        }
        for (
          const [offset, size] of [[1, 256], [256, 1], [255, 2], [257, 0], [0xffff_ffff, 1], [0xffff_ffff, 0]] as const
        ) {
          expect(yield* get(offset, size)).toStrictEqual(nothing)
        }
      })
  )

  live(
    "takes writeback, which decides whether a write is stable before it is acknowledged",
    () =>
      Effect.gen(function*() {
        const stable: Array<boolean> = []
        const memory = yield* memoryStore
        const { start } = yield* FakeFrontend.serve({
          ...memory,
          write: (offset, buffers, options) => {
            stable.push(options?.fua === true)
            return memory.write(offset, buffers, options)
          }
        })
        const { frontend, queue } = yield* start()
        const writeback = Effect.map(
          frontend.ask("GET_CONFIG", Message.encodeConfig({ offset: 32, size: 1, flags: 0 })),
          ({ payload }) => payload[12]
        )
        const write = queue.do({ type: RequestType.OUT, sector: 0, given: new Uint8Array(512) })
        expect(yield* writeback).toBe(1)
        yield* write
        yield* frontend.tell("SET_CONFIG", setConfig(32, 0))
        expect(yield* writeback).toBe(0)
        yield* write
        yield* frontend.tell("SET_CONFIG", setConfig(32, 1))
        expect(yield* writeback).toBe(1)
        yield* write
        expect(stable).toStrictEqual([false, true, false])
      })
  )
})

describe("the end of a device's use", () => {
  /** Each way back to how the device was at first. */
  const resets = [
    ["SET_STATUS 0", (frontend: FakeFrontend.FakeFrontend) => frontend.tell("SET_STATUS", u64(0n))],
    ["RESET_DEVICE", (frontend: FakeFrontend.FakeFrontend) => frontend.tell("RESET_DEVICE")]
  ] as const

  for (const [name, reset] of resets) {
    whole(
      `by ${name}: rings stop, the write cache is as at first, and it can be set up again`,
      () =>
        Effect.gen(function*() {
          const { start } = yield* serve()
          const { frontend, memory, queue } = yield* start()
          yield* frontend.tell("SET_STATUS", u64(15n))
          yield* frontend.tell("SET_CONFIG", setConfig(32, 0))
          yield* probe(queue)
          yield* reset(frontend)
          expect(yield* frontend.askU64("GET_STATUS")).toBe(0n)
          const { payload } = yield* frontend.ask("GET_CONFIG", Message.encodeConfig({ offset: 32, size: 1, flags: 0 }))
          expect(payload[12]).toBe(1)
          // The ring that was is not looked at.
          const { head } = queue.submit({ type: RequestType.IN, sector: 0, wanted: 512 })
          queue.kick()
          yield* FakeFrontend.turns(20)
          expect(queue.ring.usedIdx).toBe(1)
          expect(head).toBeGreaterThanOrEqual(0)
          // Its memory is still there: a region is not added twice.
          expect(
            yield* frontend.acknowledged("ADD_MEM_REG", Message.encodeMemoryRegion(memory.region), { fds: [memory.fd] })
          )
            .toBe(1n)
          yield* frontend.negotiate()
          yield* frontend.tell("SET_STATUS", u64(15n))
          yield* probe(yield* frontend.startQueue({ index: 0, queueSize: 16 }))
          expect(yield* frontend.askU64("GET_STATUS")).toBe(15n)
        })
    )

    whole(`by ${name}: waits for what is with the store`, () =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const store = BlockStore.around(yield* memoryStore, {
          name: "held",
          run: (_, effect) => Effect.andThen(Deferred.await(gate), effect)
        })
        const served = yield* FakeFrontend.serve(store)
        const { frontend, queue } = yield* served.start()
        const { head, status } = queue.submit({ type: RequestType.IN, sector: 0, wanted: 512 })
        queue.kick()
        yield* FakeFrontend.eventually("a request", () => served.exported.statistics.inFlight === 1 ? true : undefined)
        if (name === "RESET_DEVICE") frontend.say("RESET_DEVICE", nothing, { needReply: true })
        else frontend.say("SET_STATUS", u64(0n), { needReply: true })
        yield* FakeFrontend.turns(20)
        expect(frontend.look()).toBeUndefined()
        yield* Deferred.succeed(gate, undefined)
        expect(yield* frontend.next).toMatchObject({ payload: u64(0n) })
        // It was answered before.
        expect(queue.ring.collect()).toMatchObject([{ id: head }])
        expect(status()).toBe(Status.OK)
      }))
  }

  whole("by GET_VRING_BASE: tells where to go on, and the ring does so", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend, queue } = yield* start({ base: 65_534 })
      for (let i = 0; i < 5; i++) yield* probe(queue)
      const { payload } = yield* frontend.ask("GET_VRING_BASE", vring(0))
      expect(Message.decodeVringState(payload)).toStrictEqual({ index: 0, num: 3 })
      queue.submit({ type: RequestType.IN, sector: 0, wanted: 512 })
      queue.kick()
      yield* FakeFrontend.turns(20)
      expect(queue.ring.usedIdx).toBe(3)
      yield* frontend.tell("SET_VRING_KICK", event(), { fds: [queue.kickFd] })
      yield* FakeFrontend.eventually("the request", () => queue.ring.usedIdx === 4 ? true : undefined)
    }))

  whole(
    "while a ring has started, its size and base are refused, and other addresses are where it goes on",
    () =>
      Effect.gen(function*() {
        const { start } = yield* serve()
        const { frontend, queue } = yield* start()
        yield* probe(queue)
        expect(yield* frontend.acknowledged("SET_VRING_NUM", vring(32))).toBe(1n)
        expect(yield* frontend.acknowledged("SET_VRING_BASE", vring(0))).toBe(1n)
        const addresses = { index: 0, flags: 0, log: 0, ...queue.ring.addresses }
        yield* frontend.tell("SET_VRING_ADDR", Message.encodeVringAddress(addresses))
        yield* probe(queue)
        const wrong = Message.encodeVringAddress({ ...addresses, used: 0 })
        expect(yield* frontend.acknowledged("SET_VRING_ADDR", wrong)).toBe(1n)
      })
  )

  whole("descriptors for kick, call and error may be given anew, and taken away", () =>
    Effect.gen(function*() {
      const { start } = yield* serve()
      const { frontend, queue } = yield* start({ without: [FeatureBit.EVENT_IDX] })
      for (let round = 0; round < 20; round++) {
        yield* frontend.tell("SET_VRING_CALL", event(), { fds: [queue.callFd] })
        yield* frontend.tell("SET_VRING_ERR", event(), { fds: [queue.errorFd] })
        yield* frontend.tell("SET_VRING_KICK", event(), { fds: [queue.kickFd] })
        yield* probe(queue)
      }
      expect(queue.signals()).toBeGreaterThan(0)
      for (const name of vringEvents) yield* frontend.tell(name, event(false))
      // Without a kick the ring is looked at all the time.
      yield* probe(queue)
      expect(queue.signals()).toBe(0)
    }))
})

describe("the export's own channel", () => {
  const change = (served: FakeFrontend.Served, capacity: number) => served.exported.resize(capacity)

  whole("is given anew: the one before is closed, and news comes on the last", () =>
    Effect.gen(function*() {
      const served = yield* serve()
      const { frontend } = yield* served.start()
      const first = yield* frontend.openChannel()
      const second = yield* frontend.openChannel()
      yield* change(served, 512)
      const news = yield* FakeFrontend.eventually("news", () => second.look())
      expect(news).toMatchObject({ request: Message.BackendRequest.CONFIG_CHANGE_MSG, flags: 0 })
      // The test has the other end of it, too: nothing came there.
      expect(first.look()).toBeUndefined()
    }))

  /** What a front-end may do there that it should not. */
  const misuses: ReadonlyArray<readonly [what: string, misuse: (channel: FakeFrontend.MessageStream) => void]> = [
    ["bytes that are no message", (channel) => channel.send(new Uint8Array(100).fill(0xff))],
    ["a message of ours", (channel) => channel.send(Message.encodeMessage(FrontendRequest.GET_FEATURES, 8))],
    ["descriptors", (channel) => channel.send(Uint8Array.of(1), [channel.fd, channel.fd])],
    ["its end", (channel) => Libc.shutdown(channel.fd)]
  ]
  for (const [what, misuse] of misuses) {
    whole(`costs a front-end that sends ${what} the channel at most`, () =>
      Effect.gen(function*() {
        const served = yield* serve()
        const { frontend, queue } = yield* served.start()
        misuse(yield* frontend.openChannel())
        yield* FakeFrontend.turns(20)
        yield* change(served, 512)
        yield* probe(queue)
        const again = yield* frontend.openChannel()
        yield* change(served, 1024)
        yield* FakeFrontend.eventually("news", () => again.look())
        expect(served.reasons).toStrictEqual([])
      }))
  }

  whole("may be what is no socket, where no news can come", () =>
    Effect.gen(function*() {
      const served = yield* serve()
      const { frontend, queue } = yield* served.start()
      const counter = frontend.eventFd()
      yield* frontend.tell("SET_BACKEND_REQ_FD", nothing, { fds: [counter] })
      Libc.signalEventFd(counter)
      yield* change(served, 512)
      yield* FakeFrontend.turns(20)
      yield* change(served, 1024)
      yield* probe(queue)
    }))
})
