/**
 * Goal: the vhost-user transport says to a backend what the protocol wants, in the order in which every backend takes it;
 * and whatever a backend does wrong, whenever, is a typed error in bounded time that leaves no descriptor, no memory and
 * nobody waiting behind.
 * Method: a scripted backend at the other end of a socket pair (src/testing/FakeBackend.ts) records what it is told, and
 * goes wrong in each way at each message. Paths are tried on real sockets. Every test must leave the process as it was.
 */
import { describe, expect, it } from "@effect/vitest"
import {
  Arbitrary,
  Config,
  ConfigProvider,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Layer,
  Schedule,
  Schema,
  Scope,
  Stream
} from "effect"
import { execFileSync, spawn } from "node:child_process"
import {
  chmodSync,
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync
} from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { inspect } from "node:util"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { type Connection, Transport } from "../../src/Transport/Transport.ts"
import * as VhostUser from "../../src/Transport/VhostUser.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import * as FakeBackend from "../../src/testing/FakeBackend.ts"
import { bytes } from "../Wire/arbitraries.ts"
import { count, leavesNothing, live } from "../support/resources.ts"

const { BackendRequest, FrontendRequest, ProtocolFeature } = Message

/** Long enough never to pass by itself. */
const PATIENT = "20 seconds"
/** Short, where a test waits for it to pass. */
const SHORT = "500 millis"

const connectTo = (backend: FakeBackend.FakeBackend, replyTimeout: VhostUser.Options["replyTimeout"] = PATIENT) =>
  Effect.flatMap(VhostUser.make({ fd: backend.fd, replyTimeout }), ({ connect }) => connect)

const connected = Effect.fnUntraced(function*(
  script: Partial<FakeBackend.Script> = {},
  replyTimeout?: VhostUser.Options["replyTimeout"]
) {
  const backend = yield* FakeBackend.make(script)
  return { backend, connection: yield* connectTo(backend, replyTimeout) }
})

const queueAt = (address: number) => ({
  queueSize: 16,
  descriptors: address,
  avail: address + 256,
  used: address + 512
})

const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => condition() ? Effect.void : Effect.andThen(Effect.sleep(1), until(condition)))

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "vu-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

/** A listener that takes connections, and answers nothing. */
const listener = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly server: Net.Server; readonly sockets: Set<Net.Socket> }>((resume) => {
      const sockets = new Set<Net.Socket>()
      const server = Net.createServer((socket) => {
        sockets.add(socket)
        socket.on("error", () => {})
      })
      server.listen(path, () => resume(Exit.succeed({ server, sockets })))
    }),
    ({ server, sockets }) =>
      Effect.callback<void>((resume) => {
        for (const socket of sockets) socket.destroy()
        server.close(() => resume(Exit.void))
      })
  )

describe("make", () => {
  const bad: ReadonlyArray<[name: string, options: unknown, says: string]> = [
    ["neither path nor fd", {}, "one of path and fd must be set"],
    ["an empty path", { path: "" }, "one of path and fd must be set"],
    ["both path and fd", { path: "/run/disk.sock", fd: 3 }, "one of path and fd must be set"],
    ["a key that is none", { path: "/run/disk.sock", pth: 1 }, "pth"],
    ["a path that is no string", { path: 7 }, "path"],
    ["a negative fd", { fd: -1 }, "fd"],
    ["a broken fd", { fd: 1.5 }, "fd"],
    ["an fd beyond 32 bits", { fd: 2 ** 32 }, "fd"],
    ["a reconnect that is no Schedule", { path: "/run/disk.sock", reconnect: { schedule: 5 } }, "schedule"],
    [
      "a time limit of 0 for it",
      { path: "/run/disk.sock", reconnect: { schedule: Schedule.forever, within: 0 } },
      "within"
    ],
    [
      "a negative maxWaiting",
      { path: "/run/disk.sock", reconnect: { schedule: Schedule.forever, maxWaiting: -1 } },
      "maxWaiting"
    ],
    [
      "an unknown key of it",
      { path: "/run/disk.sock", reconnect: { schedule: Schedule.forever, retries: 1 } },
      "retries"
    ],
    ["a descriptor that is to reconnect", { fd: 3, reconnect: Schedule.forever }, "needs a path"],
    ["no options", undefined, "object"],
    ["null for options", null, "object"]
  ]
  for (const [name, options, says] of bad) {
    it.effect(`EINVAL for ${name}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(VhostUser.make(options as VhostUser.Options))
        expect(error).toMatchObject({ _tag: "EINVAL", operation: "vhost-user" })
        expect(error.message).toContain(says)
      }))
  }

  for (const replyTimeout of [0, -1, 0n, -1n, NaN, "soon", "0 millis", {}, null, true] as const) {
    it.effect(`EINVAL for the time limit ${inspect(replyTimeout)}`, () =>
      Effect.gen(function*() {
        const options = { path: "/run/disk.sock", replyTimeout } as VhostUser.Options
        const error = yield* Effect.flip(VhostUser.make(options))
        expect(error._tag).toBe("EINVAL")
        expect(error.message).toMatch(/^vhost-user: reply time limit .* must be a positive duration$/)
      }))
  }

  for (const replyTimeout of [1, 1n, "5 seconds", Infinity, { seconds: 1 }, [1, 0]] as const) {
    it.effect(`takes the time limit ${inspect(replyTimeout)}`, () =>
      Effect.map(
        VhostUser.make({ path: "/run/disk.sock", replyTimeout }),
        (transport) => {
          expect(transport).toMatchObject({ driver: "virtio-blk-vhost-user", path: "/run/disk.sock", fd: -1 })
        }
      ))
  }

  it.effect("tells the descriptor that stands for the path", () =>
    Effect.map(VhostUser.make({ fd: 7 }), (transport) => expect(transport).toMatchObject({ path: "", fd: 7 })))

  it.effect("is provided by layers, from options and from configuration", () =>
    Effect.gen(function*() {
      const pathOf = Effect.map(Transport, ({ path }) => path)
      expect(yield* Effect.provide(pathOf, VhostUser.layer({ path: "/a" }))).toBe("/a")
      const configured = VhostUser.layerConfig({ path: Config.String("DISK") }).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ DISK: "/b" })))
      )
      expect(yield* Effect.provide(pathOf, configured)).toBe("/b")
      expect(yield* Effect.flip(Effect.provide(pathOf, VhostUser.layer({})))).toMatchObject({ _tag: "EINVAL" })
    }))
})

describe("a path", () => {
  const refused = (path: string, replyTimeout: VhostUser.Options["replyTimeout"] = PATIENT) =>
    Effect.flatMap(VhostUser.make({ path, replyTimeout }), ({ connect }) => Effect.flip(Effect.scoped(connect)))

  live("ENOENT where there is nothing", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* temporaryDirectory, "absent")
      const error = yield* refused(path)
      expect(error).toMatchObject({ _tag: "ENOENT", path, syscall: "connect" })
      expect(error.message).toContain(path)
    }))

  live("ENOTDIR where a part of it is a file, ELOOP where links lead in a circle", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      writeFileSync(Path.join(directory, "file"), "")
      expect(yield* refused(Path.join(directory, "file", "socket"))).toMatchObject({ _tag: "ENOTDIR" })
      execFileSync("ln", ["-s", "circle", Path.join(directory, "circle")])
      expect(yield* refused(Path.join(directory, "circle"))).toMatchObject({ _tag: "ELOOP" })
    }))

  live("ECONNREFUSED where nobody listens any more", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const stale = Path.join(directory, "stale")
      yield* Effect.scoped(Effect.map(listener(Path.join(directory, "live")), () => {
        // Node unlinks the path it listened on when it closes: this name stays.
        renameSync(Path.join(directory, "live"), stale)
      }))
      expect(yield* refused(stale)).toMatchObject({ _tag: "ECONNREFUSED", isRetryable: true })
    }))

  live("ECONNREFUSED for a plain file, and for a directory", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const path = Path.join(directory, "file")
      writeFileSync(path, "")
      expect(yield* refused(path)).toMatchObject({ _tag: "ECONNREFUSED" })
      expect(yield* refused(directory)).toMatchObject({ _tag: "ECONNREFUSED" })
    }))

  it.live.skipIf(process.getuid?.() === 0)(
    "EACCES without the permission (SKIPPED FOR ROOT, whom nothing is denied)",
    () =>
      leavesNothing(Effect.gen(function*() {
        const path = Path.join(yield* temporaryDirectory, "socket")
        yield* listener(path)
        chmodSync(path, 0)
        expect(yield* refused(path)).toMatchObject({ _tag: "EACCES" })
      }))
  )

  live("ENAMETOOLONG from 108 bytes on, counted as bytes; 107 will do", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const of = (length: number) => Path.join(directory, "x".repeat(length - directory.length - 1))
      expect(yield* refused(of(108))).toMatchObject({ _tag: "ENAMETOOLONG", path: of(108) })
      expect(yield* refused(of(4000))).toMatchObject({ _tag: "ENAMETOOLONG" })
      expect(yield* refused("/" + "é".repeat(54))).toMatchObject({ _tag: "ENAMETOOLONG" })
      expect(yield* refused(of(107))).toMatchObject({ _tag: "ENOENT" })
      yield* listener(of(107))
      expect(yield* refused(of(107), SHORT)).toMatchObject({ _tag: "ETIMEDOUT" })
    }))

  live(
    "EINVAL for a zero byte",
    () => Effect.map(refused("/run/disk\0sock"), (error) => expect(error).toMatchObject({ _tag: "EINVAL" }))
  )

  live("ETIMEDOUT with a hint where somebody listens who never answers, again and again", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* temporaryDirectory, "silent")
      yield* listener(path)
      const transport = yield* VhostUser.make({ path, replyTimeout: SHORT })
      for (let round = 0; round < 3; round++) {
        const error = yield* Effect.flip(Effect.scoped(transport.connect))
        expect(error).toMatchObject({ _tag: "ETIMEDOUT", operation: "GET_FEATURES", isRetryable: true })
        expect(error.message).toContain("no reply within 500 ms")
        expect(error.message).toContain("is another one connected?")
      }
    }))

  live("ENOTCONN where somebody listens who hangs up", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* temporaryDirectory, "socket")
      const { server } = yield* listener(path)
      server.on("connection", (socket) => socket.destroy())
      expect(yield* refused(path)).toMatchObject({ _tag: "ENOTCONN" })
    }))

  live("ETIMEDOUT with a hint where the listener's backlog stays full", () =>
    Effect.gen(function*() {
      const path = Path.join(yield* temporaryDirectory, "full")
      // In a process of its own, since Node takes every connection on its next turn: this one never has another turn.
      const program = `require("node:net").createServer().listen({ path: ${JSON.stringify(path)}, backlog: 1 }, () => {
        require("node:fs").writeSync(1, "listening")
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
      })`
      yield* Effect.acquireRelease(
        Effect.callback<ReturnType<typeof spawn>>((resume) => {
          const child = spawn(process.execPath, ["--eval", program], { stdio: ["ignore", "pipe", "inherit"] })
          child.stdout.once("data", () => resume(Exit.succeed(child)))
        }),
        (child) =>
          Effect.callback<void>((resume) => {
            child.once("close", () => resume(Exit.void))
            child.kill("SIGKILL")
          })
      )
      let errno = 0
      while (errno === 0) {
        const fd = yield* Effect.acquireRelease(
          Effect.sync(Libc.createUnixSocket),
          (fd) => Effect.sync(() => Libc.close(fd))
        )
        errno = Libc.connectUnixSocket(fd, path)
      }
      expect(errno).toBe(Libc.EAGAIN)
      const error = yield* refused(path, SHORT)
      expect(error).toMatchObject({ _tag: "ETIMEDOUT", operation: "connect", path })
      expect(error.message).toContain("is it busy?")
      const fiber = yield* Effect.forkChild(refused(path), { startImmediately: true })
      yield* Effect.sleep(30)
      yield* Fiber.interrupt(fiber)
    }))
})

describe("a descriptor", () => {
  live("is taken over, and closed with the connection", () =>
    Effect.gen(function*() {
      const backend = yield* FakeBackend.make()
      yield* Effect.scoped(connectTo(backend))
      expect(() => fstatSync(backend.fd)).toThrow(/EBADF/)
    }))

  live("is taken over once: its number may stand for something else by now", () =>
    Effect.gen(function*() {
      const backend = yield* FakeBackend.make()
      const transport = yield* VhostUser.make({ fd: backend.fd })
      const scope = yield* Scope.make()
      yield* Scope.provide(transport.connect, scope)
      const error = yield* Effect.flip(Effect.scoped(transport.connect))
      expect(error).toMatchObject({ _tag: "EBADF" })
      expect(fstatSync(backend.fd).isSocket()).toBe(true)
      yield* Scope.close(scope, Exit.void)

      const file = openSync("/dev/null", "r")
      expect(yield* Effect.flip(Effect.scoped(transport.connect))).toMatchObject({ _tag: "EBADF" })
      fstatSync(file)
      closeSync(file)
    }))

  live(
    "EBADF where it is not open, ENOTSOCK where it is no socket; what is not taken over stays open",
    () =>
      Effect.gen(function*() {
        const refused = (fd: number) =>
          Effect.flatMap(VhostUser.make({ fd }), ({ connect }) => Effect.flip(Effect.scoped(connect)))
        expect(yield* refused(1_000_000)).toMatchObject({ _tag: "EBADF" })
        const eventFd = Libc.createEventFd()
        const files = [openSync(import.meta.filename, "r"), openSync("/dev/null", "r"), eventFd]
        for (const fd of files) {
          expect(yield* refused(fd)).toMatchObject({ _tag: "ENOTSOCK" })
          fstatSync(fd)
          closeSync(fd)
        }
      })
  )

  live("ENOTCONN for a socket that is connected to nobody", () =>
    Effect.gen(function*() {
      const transport = yield* VhostUser.make({ fd: Libc.createUnixSocket() })
      expect(yield* Effect.flip(Effect.scoped(transport.connect))).toMatchObject({ _tag: "ENOTCONN" })
    }))
})

describe("the conversation", () => {
  const optional = ["MQ", "REPLY_ACK", "BACKEND_REQ", "CONFIGURE_MEM_SLOTS", "STATUS"] as const
  const combinations = Array.from(
    { length: 2 ** optional.length },
    (_, bits) => optional.filter((_, i) => (bits >> i & 1) === 1)
  )

  for (const chosen of combinations) {
    live(`is the recommended one with ${chosen.join(", ") || "nothing optional"}`, () =>
      Effect.gen(function*() {
        const has = (name: typeof optional[number]) => chosen.includes(name)
        const offered = featureMask(ProtocolFeature.CONFIG, ...chosen.map((name) => ProtocolFeature[name]))
        // What is never wanted must not be taken: bits 1, 2 and 20 stand for all others.
        const { backend, connection } = yield* connected({
          protocolFeatures: offered | featureMask(ProtocolFeature.LOG_SHMFD, ProtocolFeature.RARP, 20)
        })
        const region = yield* MemoryRegion.allocate(8192)
        const ack = has("REPLY_ACK") ? "!" : ""
        const status = has("STATUS") ? [`SET_STATUS${ack}`] : []
        const slots = has("CONFIGURE_MEM_SLOTS")
        const since = (start: number) => backend.transcript().slice(start)
        let start = 0
        const expectNext = (...expected: ReadonlyArray<string>) => {
          expect(since(start)).toStrictEqual(expected)
          start += expected.length
        }
        /** A message without an answer may still be under way: it has arrived once the next question is answered. */
        const arrived = (messages: number) => until(() => since(start).length >= messages)

        const handshake = [
          "SET_OWNER",
          "GET_FEATURES",
          "GET_PROTOCOL_FEATURES",
          "SET_PROTOCOL_FEATURES",
          ...has("MQ") ? ["GET_QUEUE_NUM"] : [],
          ...slots ? ["GET_MAX_MEM_SLOTS"] : [],
          ...has("BACKEND_REQ") ? [`SET_BACKEND_REQ_FD${ack}+1`] : [],
          ...status
        ]
        yield* arrived(handshake.length)
        expectNext(...handshake)
        expect(Message.decodeU64(backend.named("SET_PROTOCOL_FEATURES")[0]!.payload)).toBe(offered)
        expect(connection).toMatchObject({
          features: FakeBackend.defaults.features,
          maxQueues: has("MQ") ? 4 : 1,
          maxRegions: slots ? 32 : 8,
          maxQueueSize: 32768,
          needsRegionFd: true
        })

        yield* connection.readConfig
        expectNext("GET_CONFIG")

        yield* connection.negotiate(featureMask(FeatureBit.VERSION_1))
        expectNext(`SET_FEATURES${ack}`, ...status, ...has("STATUS") ? ["GET_STATUS"] : [], "GET_FEATURES")

        const address = yield* connection.map(region)
        expectNext(slots ? `ADD_MEM_REG${ack}+1` : `SET_MEM_TABLE${ack}+1`, "GET_FEATURES")

        const channels = yield* connection.start([queueAt(address), queueAt(address + 4096)])
        expect(channels.length).toBe(2)
        const ring = [
          `SET_VRING_CALL${ack}+1`,
          `SET_VRING_NUM${ack}`,
          `SET_VRING_BASE${ack}`,
          `SET_VRING_ADDR${ack}`,
          `SET_VRING_ERR${ack}+1`,
          `SET_VRING_KICK${ack}+1`
        ]
        const enable = `SET_VRING_ENABLE${ack}`
        expectNext(...ring, ...ring, enable, enable, ...status, "GET_FEATURES")

        yield* connection.unmap(region)
        expectNext(slots ? `REM_MEM_REG${ack}` : `SET_MEM_TABLE${ack}`, "GET_FEATURES")
        yield* connection.unmap(region)
        expectNext()

        yield* connection.stop
        expectNext("GET_VRING_BASE", "GET_VRING_BASE")
        yield* connection.stop
        expectNext()
        const statuses = backend.named("SET_STATUS").map(({ payload }) => Message.decodeU64(payload))
        expect(statuses).toStrictEqual(has("STATUS") ? [3n, 11n, 15n] : [])
      }))
  }

  live("hands each queue over as it was asked to, and wires its events", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      const region = yield* MemoryRegion.allocate(8192)
      const address = yield* connection.map(region)
      const queues = [queueAt(address), queueAt(address + 4096)]
      const channels = yield* connection.start(queues)
      for (const [index, queue] of queues.entries()) {
        const [call, num, base, ring, error, kick] = ["CALL", "NUM", "BASE", "ADDR", "ERR", "KICK"].map((name) =>
          backend.named(`SET_VRING_${name}`)[index]!
        )
        expect(Message.decodeVringFd(call!.payload)).toStrictEqual({ index, hasFd: true })
        expect(Message.decodeVringFd(error!.payload)).toStrictEqual({ index, hasFd: true })
        expect(Message.decodeVringFd(kick!.payload)).toStrictEqual({ index, hasFd: true })
        expect(Message.decodeVringState(num!.payload)).toStrictEqual({ index, num: 16 })
        expect(Message.decodeVringState(base!.payload)).toStrictEqual({ index, num: 0 })
        const { avail, descriptors, used } = queue
        expect(Message.decodeVringAddress(ring!.payload)).toStrictEqual({
          index,
          flags: 0,
          descriptors,
          used,
          avail,
          log: 0
        })
        const enable = backend.named("SET_VRING_ENABLE")[index]!
        expect(Message.decodeVringState(enable.payload)).toStrictEqual({ index, num: 1 })

        const { completionFd, notify } = channels[index]!
        const counter = new BigUint64Array(1)
        expect(notify()).toBe(0)
        expect(notify()).toBe(0)
        readSync(kick!.fds[0]!, counter)
        expect(counter[0]).toBe(2n)
        Libc.signalEventFd(call!.fds[0]!)
        readSync(completionFd, counter)
        expect(counter[0]).toBe(1n)
        expect(() => readSync(completionFd, counter)).toThrow(/EAGAIN/)
      }
    }))

  live("shares memory by descriptor, at addresses that never meet", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      const file = Libc.createMemoryFile("effect-blkio", 65_536)
      const regions = [
        yield* MemoryRegion.allocate(1),
        yield* MemoryRegion.allocate(2 ** 21),
        yield* MemoryRegion.allocate(2 ** 21 + 1),
        yield* MemoryRegion.fromFd({ fd: file, offset: 8192, length: 4096 })
      ]
      Libc.close(file)
      const described: Array<Message.MemoryRegion> = []
      for (const [index, region] of regions.entries()) {
        const address = yield* connection.map(region)
        const { fds: [fd = -1], payload } = backend.named("ADD_MEM_REG")[index]!
        const sent = Message.decodeMemoryRegion(payload)
        expect(sent).toStrictEqual({
          guestAddress: address,
          userAddress: address,
          size: region.length,
          mmapOffset: region.fdOffset
        })
        expect(address % 4096).toBe(0)
        expect(`${fstatSync(fd).dev}:${fstatSync(fd).ino}`).toBe(region.file)
        const mapping = Libc.map(fd, sent.mmapOffset, sent.size)
        region.bytes[region.length - 1] = 0x77
        expect(new Uint8Array(mapping.buffer)[region.length - 1]).toBe(0x77)
        Libc.unmap(mapping)
        for (const other of described) {
          expect(other.guestAddress + other.size < address || address + region.length < other.guestAddress).toBe(true)
        }
        described.push(sent)
      }
      for (const [index, region] of regions.entries()) {
        yield* connection.unmap(region)
        const { fds, payload } = backend.named("REM_MEM_REG")[index]!
        expect(fds).toStrictEqual([])
        expect(Message.decodeMemoryRegion(payload)).toStrictEqual(described[index])
      }
    }))

  live(
    "without memory slots, sends the whole table with every descriptor, 8 regions at most",
    () =>
      Effect.gen(function*() {
        const { backend, connection } = yield* connected({ protocolFeatures: FakeBackend.protocolFeatures.least })
        expect(connection.maxRegions).toBe(8)
        const regions = yield* Effect.forEach(Array.from({ length: 9 }), () => MemoryRegion.allocate(4096))
        const addresses: Array<number> = []
        for (const region of regions.slice(0, 8)) {
          addresses.push(yield* connection.map(region))
          const { fds, payload } = backend.named("SET_MEM_TABLE").at(-1)!
          expect(fds.length).toBe(addresses.length)
          expect(Message.decodeMemoryTable(payload).map(({ guestAddress }) => guestAddress)).toStrictEqual(addresses)
        }
        const error = yield* Effect.flip(connection.map(regions[8]!))
        expect(error).toMatchObject({ _tag: "EIO", length: 4096 })
        expect(error.message).toContain("at most 8 regions")
        yield* connection.unmap(regions[3]!)
        const { fds, payload } = backend.named("SET_MEM_TABLE").at(-1)!
        expect(fds.length).toBe(7)
        expect(Message.decodeMemoryTable(payload).map(({ guestAddress }) => guestAddress)).toStrictEqual(
          addresses.toSpliced(3, 1)
        )
        yield* connection.map(regions[8]!)
      })
  )

  live("asks for no more slots than the backend has, since it would die of that", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected({ slots: 2n })
      const regions = yield* Effect.forEach([1, 2, 3], () => MemoryRegion.allocate(4096))
      yield* connection.map(regions[0]!)
      yield* connection.map(regions[1]!)
      expect(yield* Effect.flip(connection.map(regions[2]!))).toMatchObject({ _tag: "EIO" })
      expect(backend.named("ADD_MEM_REG").length).toBe(2)
    }))

  live("takes the features that are wanted and offered, and bit 30", () =>
    Effect.gen(function*() {
      const offered = featureMask(FeatureBit.VERSION_1, FeatureBit.PROTOCOL_FEATURES, FeatureBit.FLUSH, 24, 26)
      const { backend, connection } = yield* connected({ features: offered })
      expect(connection.features).toBe(offered)
      yield* connection.negotiate(featureMask(FeatureBit.VERSION_1, FeatureBit.FLUSH, FeatureBit.DISCARD))
      expect(Message.decodeU64(backend.named("SET_FEATURES")[0]!.payload)).toBe(
        featureMask(FeatureBit.VERSION_1, FeatureBit.FLUSH, FeatureBit.PROTOCOL_FEATURES)
      )
    }))

  live("hides RING_PACKED, whose rings it could not hand over", () =>
    Effect.gen(function*() {
      const offered = featureMask(FeatureBit.VERSION_1, FeatureBit.PROTOCOL_FEATURES)
      const { backend, connection } = yield* connected({ features: offered | featureMask(FeatureBit.RING_PACKED) })
      expect(connection.features).toBe(offered)
      yield* connection.negotiate(featureMask(FeatureBit.VERSION_1, FeatureBit.RING_PACKED))
      expect(Message.decodeU64(backend.named("SET_FEATURES")[0]!.payload)).toBe(offered)
    }))

  live("ENOTSUP where FEATURES_OK reads back as 0", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ acceptsFeatures: false })
      expect(yield* Effect.flip(connection.negotiate(0n))).toMatchObject({ _tag: "ENOTSUP" })
    }))

  for (
    const [name, script] of [
      ["protocol features", { features: featureMask(FeatureBit.VERSION_1) }],
      ["CONFIG", { protocolFeatures: featureMask(ProtocolFeature.REPLY_ACK) }]
    ] as const
  ) {
    live(`ENOTSUP where ${name} are not offered`, () =>
      Effect.gen(function*() {
        const backend = yield* FakeBackend.make(script)
        const error = yield* Effect.flip(Effect.scoped(connectTo(backend)))
        expect(error._tag).toBe("ENOTSUP")
        expect(error.message).toContain(name)
      }))
  }

  live("bounds the counts that a backend tells", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ queues: 2n ** 64n - 1n, slots: 2n ** 64n - 1n })
      expect(connection.maxQueues).toBe(256)
      expect(connection.maxRegions).toBe(2 ** 31 - 1)
      for (const script of [{ queues: 0n }, { slots: 0n }]) {
        const backend = yield* FakeBackend.make(script)
        expect(yield* Effect.flip(Effect.scoped(connectTo(backend)))).toMatchObject({ _tag: "EPROTO" })
      }
    }))

  for (
    const [limit, asked] of [
      [96, [96, 96]],
      [72, [96, 72, 72]],
      [60, [96, 72, 60, 60]],
      [36, [96, 72, 60, 36, 36]],
      [8, [96, 72, 60, 36, 33, 32, 24, 8, 8]]
    ] as const
  ) {
    live(
      `asks for the configuration from 96 bytes downwards, and remembers that ${limit} worked`,
      () =>
        Effect.gen(function*() {
          const { backend, connection } = yield* connected({ refusesConfig: (size) => size > limit })
          const config = yield* connection.readConfig
          expect(config).toStrictEqual(FakeBackend.defaults.config.slice(0, limit))
          expect(yield* connection.readConfig).toStrictEqual(config)
          const questions = backend.named("GET_CONFIG").map(({ payload }) => Message.decodeConfig(payload))
          expect(questions.map(({ size }) => size)).toStrictEqual(asked)
          expect(questions.every(({ flags, offset }) => offset === 0 && flags === 0)).toBe(true)
        })
    )
  }

  live("EIO where the backend refuses to tell its configuration at all, and goes on", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ refusesConfig: () => true })
      expect(yield* Effect.flip(connection.readConfig)).toMatchObject({ _tag: "EIO" })
      expect(yield* connection.map(yield* MemoryRegion.allocate(4096))).toBeGreaterThan(0)
    }))

  live("takes replies byte by byte", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({ byteByByte: true })
      expect(yield* connection.readConfig).toStrictEqual(FakeBackend.defaults.config.slice(0, 96))
      yield* connection.negotiate(0n)
      const address = yield* connection.map(yield* MemoryRegion.allocate(4096))
      yield* connection.start([queueAt(address)])
      yield* connection.stop
    }))

  live("keeps to one question at a time, whoever asks", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected()
      const configs = yield* Effect.all(Array.from({ length: 50 }, () => connection.readConfig), {
        concurrency: "unbounded"
      })
      expect(configs.length).toBe(50)
    }))

  live("EIO for a region whose descriptor is closed; the connection goes on", () =>
    Effect.gen(function*() {
      for (const protocolFeatures of Object.values(FakeBackend.protocolFeatures)) {
        const { connection } = yield* connected({ protocolFeatures })
        const released = yield* Effect.scoped(MemoryRegion.allocate(4096))
        const region = yield* MemoryRegion.allocate(4096)
        yield* connection.map(region)
        const error = yield* Effect.flip(connection.map({ ...released, fd: 1_000_000 }))
        expect(error).toMatchObject({ _tag: "EIO", syscall: "fcntl" })
        expect(error.message).toContain("a descriptor cannot be handed over")
        yield* connection.unmap(region)
        yield* connection.readConfig
      }
    }))
})

describe("a backend that goes wrong", () => {
  interface Phase {
    readonly name: string
    readonly request: number
    readonly occurrence?: number
    /** Whether the reply is a mere acknowledgement. */
    readonly isAck: boolean
    readonly run: (connection: Connection) => Effect.Effect<unknown, unknown, Scope.Scope>
  }

  const handshake = (name: keyof typeof FrontendRequest, isAck: boolean) => ({
    name: `handshake, ${name}`,
    request: FrontendRequest[name],
    isAck
  })
  const started = (connection: Connection) =>
    Effect.gen(function*() {
      const address = yield* connection.map(yield* MemoryRegion.allocate(8192))
      return yield* connection.start([queueAt(address), queueAt(address + 4096)])
    })
  const mapped = (connection: Connection) => Effect.flatMap(MemoryRegion.allocate(4096), connection.map)

  const handshakes = [
    handshake("GET_FEATURES", false),
    handshake("GET_PROTOCOL_FEATURES", false),
    handshake("GET_QUEUE_NUM", false),
    handshake("GET_MAX_MEM_SLOTS", false),
    handshake("SET_BACKEND_REQ_FD", true),
    handshake("SET_STATUS", true)
  ]
  const phase = (
    name: string,
    message: keyof typeof FrontendRequest,
    run: Phase["run"],
    occurrence = 1
  ): Phase => ({
    name: `${name}, ${message}`,
    request: FrontendRequest[message],
    occurrence,
    isAck: !message.startsWith("GET_"),
    run
  })
  const phases: ReadonlyArray<Phase> = [
    phase("readConfig", "GET_CONFIG", ({ readConfig }) => readConfig),
    phase("negotiate", "SET_FEATURES", ({ negotiate }) => negotiate(1n << 32n)),
    phase("negotiate", "SET_STATUS", ({ negotiate }) => negotiate(1n << 32n), 2),
    phase("negotiate", "GET_STATUS", ({ negotiate }) => negotiate(1n << 32n)),
    phase("negotiate", "GET_FEATURES", ({ negotiate }) => negotiate(1n << 32n), 2),
    phase("map", "ADD_MEM_REG", mapped),
    phase("map", "GET_FEATURES", mapped, 2),
    phase("start", "SET_VRING_CALL", started),
    phase("start", "SET_VRING_NUM", started),
    phase("start", "SET_VRING_BASE", started, 2),
    phase("start", "SET_VRING_ADDR", started, 2),
    phase("start", "SET_VRING_ERR", started),
    phase("start", "SET_VRING_KICK", started, 2),
    phase("start", "SET_VRING_ENABLE", started, 2),
    phase("start", "SET_STATUS", started, 2)
  ]

  const garbage = Uint8Array.from({ length: 40 }, (_, i) => i * 37 + 3 & 0xff)
  const faults: ReadonlyArray<[name: string, what: FakeBackend.Fault, tag: string]> = [
    ["answers another request", "wrong request", "EPROTO"],
    ["forgets the reply flag", "no reply flag", "EPROTO"],
    ["speaks another version", "wrong version", "EPROTO"],
    ["answers with another size", "wrong size", "EPROTO"],
    ["leaves inside its reply", "short payload and close", "ENOTCONN"],
    ["announces a payload above the limit", "payload above the limit", "EPROTO"],
    ["sends descriptors nobody asked for", "extra descriptors", "EPROTO"],
    ["answers twice", "reply twice", "EPROTO"],
    ["sends garbage", { garbage }, "EPROTO"],
    ["answers and leaves", "reply and close", "ENOTCONN"],
    ["leaves", "close", "ENOTCONN"],
    ["falls silent", "silence", "ETIMEDOUT"]
  ]

  for (const [name, what, tag] of faults) {
    const replyTimeout = tag === "ETIMEDOUT" ? SHORT : PATIENT
    for (const { name: at, request } of handshakes) {
      live(`${name} (${at}): ${tag}`, () =>
        Effect.gen(function*() {
          const backend = yield* FakeBackend.make({ fault: { request, what } })
          yield* Effect.scoped(Effect.gen(function*() {
            const exit = yield* Effect.exit(connectTo(backend, replyTimeout))
            // What comes after the last reply of the handshake is the connection's to notice.
            const error = Exit.isSuccess(exit)
              ? yield* Deferred.await(exit.value.lost)
              : yield* Effect.flip(exit)
            expect(error).toMatchObject({ _tag: tag })
            if (what === "silence") {
              expect(error.message.includes("is another one connected?")).toBe(request === FrontendRequest.GET_FEATURES)
            }
          }))
        }))
    }
    for (const { name: at, occurrence = 1, request, run } of phases) {
      live(`${name} (${at}): ${tag}`, () =>
        Effect.gen(function*() {
          const { connection } = yield* connected({ fault: { request, occurrence, what } }, replyTimeout)
          const exit = yield* Effect.exit(run(connection))
          const isLost = yield* Deferred.isDone(connection.lost)
          const lost = yield* Deferred.await(connection.lost)
          expect(lost._tag).toBe(tag)
          if (Exit.isFailure(exit)) {
            expect(isLost).toBe(true)
            expect(yield* Effect.flip(exit)).toBe(lost)
          }
          // From now on everything has the one reason, at once; and what cannot fail does nothing.
          expect(yield* Effect.flip(connection.readConfig)).toBe(lost)
          expect(yield* Effect.flip(connection.negotiate(0n))).toBe(lost)
          expect(yield* Effect.flip(mapped(connection))).toBe(lost)
          expect(yield* Effect.flip(connection.start([queueAt(0)]))).toBe(lost)
          yield* connection.stop
        }))
    }
  }

  for (const { isAck, name: at, occurrence = 1, request, run } of phases) {
    if (!isAck) continue
    live(`refuses (${at}): EIO, and the connection goes on`, () =>
      Effect.gen(function*() {
        const { backend, connection } = yield* connected({ fault: { request, occurrence, what: "acknowledge with 1" } })
        const error = yield* Effect.flip(run(connection))
        expect(error).toMatchObject({ _tag: "EIO", operation: Message.requestName(request) })
        expect(yield* Deferred.isDone(connection.lost)).toBe(false)
        expect((yield* connection.readConfig).length).toBe(96)
        // Every ring that may have been started is stopped, and no other.
        yield* connection.stop
        expect(backend.named("GET_VRING_BASE").length).toBe(backend.named("SET_VRING_KICK").length)
      }))
  }

  live("acknowledges a region with 0 and dies of it: ENOTCONN on that very map", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected({
        fault: { request: FrontendRequest.ADD_MEM_REG, occurrence: 2, what: "reply and close" }
      })
      yield* mapped(connection)
      expect(yield* Effect.flip(mapped(connection))).toMatchObject({ _tag: "ENOTCONN" })
    }))

  for (const protocolFeatures of [FakeBackend.protocolFeatures.least, FakeBackend.protocolFeatures.all]) {
    live(
      `leaves while nobody waits for it (protocol features ${protocolFeatures}): lost`,
      () =>
        Effect.gen(function*() {
          const { backend, connection } = yield* connected({ protocolFeatures })
          backend.hangUp()
          const lost = yield* Deferred.await(connection.lost)
          expect(lost).toMatchObject({ _tag: "ENOTCONN", isRetryable: true })
          expect(yield* Effect.flip(connection.readConfig)).toBe(lost)
        })
    )
  }

  live("speaks without being asked: lost with EPROTO", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      backend.send(Message.encodeMessage(FrontendRequest.GET_FEATURES, Message.FLAG_REPLY, Message.encodeU64(1n)))
      const lost = yield* Deferred.await(connection.lost)
      expect(lost).toMatchObject({ _tag: "EPROTO" })
      expect(lost.message).toContain("GET_FEATURES that was not asked for")
    }))

  live("signals the error counter of a queue: lost with ENOTCONN", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      yield* started(connection)
      const [first, second] = backend.named("SET_VRING_ERR")
      expect(fstatSync(first!.fds[0]!).ino).toBe(fstatSync(second!.fds[0]!).ino)
      Libc.signalEventFd(second!.fds[0]!)
      const lost = yield* Deferred.await(connection.lost)
      expect(lost).toMatchObject({ _tag: "ENOTCONN" })
      expect(lost.message).toContain("gave a queue up")
      // A notification by now is nobody's, and harms nobody.
      yield* connection.stop
    }))

  live("changes its mind about the size of its configuration: EPROTO", () =>
    Effect.gen(function*() {
      const payload = Message.encodeConfig({ offset: 0, size: 60, flags: 0 })
      const reply = Message.encodeMessage(FrontendRequest.GET_CONFIG, Message.FLAG_REPLY, payload)
      const { connection } = yield* connected({
        fault: { request: FrontendRequest.GET_CONFIG, what: { garbage: reply } }
      })
      const error = yield* Effect.flip(connection.readConfig)
      expect(error).toMatchObject({ _tag: "EPROTO" })
      expect(yield* Deferred.await(connection.lost)).toBe(error)
    }))

  const request = Schema.Literals(Object.values(FrontendRequest))
  const flags = Schema.Literals([0, Message.FLAG_REPLY, Message.FLAG_NEED_REPLY, 2 ** 31 + Message.FLAG_REPLY])
  it.live.prop(
    "answers with any bytes whatever: a typed error or none, and never a defect",
    {
      request,
      occurrence: Schema.Literals([1, 2]),
      noise: bytes(1, 400),
      isNoise: Schema.Boolean,
      isWrong: Schema.Boolean,
      other: request,
      flags,
      // Mostly of the size that most replies have.
      payload: Arbitrary.map(bytes(0, 40), (drawn) => drawn.length > 12 ? drawn.subarray(0, 8) : drawn)
    },
    ({ flags, isNoise, isWrong, noise, occurrence, other, payload, request }) =>
      leavesNothing(Effect.gen(function*() {
        const reply = Message.encodeMessage(isWrong ? other : request, flags, payload)
        const what = { garbage: isNoise ? noise : reply }
        const backend = yield* FakeBackend.make({ fault: { request, occurrence, what } })
        const exit = yield* Effect.exit(Effect.scoped(Effect.gen(function*() {
          const connection = yield* connectTo(backend, "20 millis")
          yield* connection.readConfig
          yield* connection.negotiate(1n << 32n)
          yield* started(connection)
          yield* connection.stop
        })))
        if (Exit.isSuccess(exit)) return
        const error: { readonly _tag: string } = yield* Effect.flip(exit)
        expect(["EPROTO", "ENOTCONN", "ETIMEDOUT", "EIO", "ENOTSUP"]).toContain(error._tag)
      })),
    { arbitrary: { runs: 300 } }
  )
})

describe("the backend's own channel", () => {
  const change = (flags: number) => Message.encodeMessage(BackendRequest.CONFIG_CHANGE_MSG, flags)
  const answer = (request: number, result: bigint) =>
    Message.encodeMessage(request, Message.FLAG_REPLY, Message.encodeU64(result))

  live("emits that the configuration has changed", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      backend.request(change(0))
      yield* Stream.runDrain(Stream.take(connection.configChanged, 1))
      expect(backend.answers().length).toBe(0)
      // One that nobody has taken yet stands for all that follow it.
      backend.request(change(0))
      backend.request(change(0))
      yield* Stream.runDrain(Stream.take(connection.configChanged, 1))
    }))

  live("acknowledges it where it is asked to, before anybody looks", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      backend.request(change(Message.FLAG_NEED_REPLY))
      yield* until(() => backend.answers().length >= 20)
      expect([...backend.answers()]).toStrictEqual([...answer(BackendRequest.CONFIG_CHANGE_MSG, 0n)])
      yield* Stream.runDrain(Stream.take(connection.configChanged, 1))
    }))

  live("refuses what it does not know, and goes on", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      backend.request(Message.encodeMessage(BackendRequest.VRING_HOST_NOTIFIER_MSG, 0, new Uint8Array(24)))
      backend.request(Message.encodeMessage(99, Message.FLAG_NEED_REPLY, new Uint8Array(8)))
      yield* until(() => backend.answers().length >= 20)
      expect([...backend.answers()]).toStrictEqual([...answer(99, 1n)])
      expect((yield* connection.readConfig).length).toBe(96)
    }))

  live("ends the connection with EPROTO for descriptors, and closes them", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      const before = count()
      const sent = Libc.createEventFd()
      backend.request(change(0), [sent, sent])
      Libc.close(sent)
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "EPROTO" })
      expect(count()).toStrictEqual(before)
    }))

  live("ends the connection with EPROTO for garbage", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      backend.request(new Uint8Array(12).fill(0xff))
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "EPROTO" })
      expect(yield* Effect.flip(connection.readConfig)).toMatchObject({ _tag: "EPROTO" })
    }))

  live("ends the connection with EPROTO where its answers are never read", () =>
    Effect.gen(function*() {
      const { backend, connection } = yield* connected()
      while (!(yield* Deferred.isDone(connection.lost))) {
        for (let i = 0; i < 100; i++) {
          try {
            backend.request(change(Message.FLAG_NEED_REPLY))
          } catch {
            break
          }
        }
        yield* Effect.sleep(1)
      }
      const lost = yield* Deferred.await(connection.lost)
      expect(lost).toMatchObject({ _tag: "EPROTO" })
      expect(lost.message).toContain("unread")
    }))
})

describe("the end", () => {
  live("of the Scope ends whoever waits, and everything after it, with ENOTCONN", () =>
    Effect.gen(function*() {
      const backend = yield* FakeBackend.make({ fault: { request: FrontendRequest.GET_CONFIG, what: "silence" } })
      const scope = yield* Scope.make()
      const connection = yield* Scope.provide(connectTo(backend), scope)
      const waiting = yield* Effect.forkChild(Effect.flip(connection.readConfig), { startImmediately: true })
      const events = yield* Effect.forkChild(Stream.runDrain(connection.configChanged), { startImmediately: true })
      yield* until(() => backend.named("GET_CONFIG").length === 1)
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(waiting)).toMatchObject({ _tag: "ENOTCONN" })
      yield* Fiber.join(events)
      expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENOTCONN" })
      const region = yield* MemoryRegion.allocate(4096)
      expect(yield* Effect.flip(connection.map(region))).toMatchObject({ _tag: "ENOTCONN" })
      yield* connection.unmap(region)
      yield* connection.stop
    }))

  for (
    const name of [
      "GET_FEATURES",
      "GET_PROTOCOL_FEATURES",
      "GET_QUEUE_NUM",
      "GET_MAX_MEM_SLOTS",
      "SET_BACKEND_REQ_FD",
      "SET_STATUS"
    ] as const
  ) {
    live(`comes at once by interruption, waiting for ${name}`, () =>
      Effect.gen(function*() {
        const backend = yield* FakeBackend.make({ fault: { request: FrontendRequest[name], what: "silence" } })
        const fiber = yield* Effect.forkChild(Effect.scoped(connectTo(backend, Infinity)), { startImmediately: true })
        yield* until(() => backend.named(name).length === 1)
        yield* Fiber.interrupt(fiber)
        expect(Exit.hasInterrupts(yield* Fiber.await(fiber))).toBe(true)
      }))
  }

  live(
    "comes by interruption of a wait for a reply: a later one would be taken for another's",
    () =>
      Effect.gen(function*() {
        const { backend, connection } = yield* connected({
          fault: { request: FrontendRequest.ADD_MEM_REG, what: "silence" }
        })
        const region = yield* MemoryRegion.allocate(4096)
        const fiber = yield* Effect.forkChild(connection.map(region), { startImmediately: true })
        const queued = yield* Effect.forkChild(Effect.flip(connection.readConfig), { startImmediately: true })
        yield* until(() => backend.named("ADD_MEM_REG").length === 1)
        yield* Fiber.interrupt(fiber)
        expect(yield* Deferred.await(connection.lost)).toMatchObject({ _tag: "ENOTCONN" })
        expect((yield* Fiber.join(queued))._tag).toBe("ENOTCONN")
      })
  )

  live("does not come by interruption of who merely waits for a turn", () =>
    Effect.gen(function*() {
      const { connection } = yield* connected()
      const asking = yield* Effect.forkChild(connection.readConfig, { startImmediately: true })
      const waiting = yield* Effect.forkChild(connection.readConfig, { startImmediately: true })
      yield* Fiber.interrupt(waiting)
      expect((yield* Fiber.join(asking)).length).toBe(96)
      expect((yield* connection.readConfig).length).toBe(96)
    }))

  live("comes by interruption at any moment, and leaves nothing", () =>
    Effect.gen(function*() {
      const before = count()
      for (let delay = 0; delay < 60; delay++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const backend = yield* FakeBackend.make()
          const session = Effect.scoped(Effect.gen(function*() {
            const connection = yield* connectTo(backend)
            yield* connection.negotiate(1n << 32n)
            const address = yield* connection.map(yield* MemoryRegion.allocate(8192))
            yield* connection.start([queueAt(address), queueAt(address + 4096)])
            return yield* Effect.never
          }))
          const fiber = yield* Effect.forkChild(session, { startImmediately: true })
          yield* Effect.forEach(Array.from({ length: delay }), () => Effect.yieldNow, { discard: true })
          yield* Fiber.interrupt(fiber)
        }))
        expect(count()).toStrictEqual(before)
      }
    }))

  live("leaves nothing after 200 connections", () =>
    Effect.gen(function*() {
      const before = count()
      for (let round = 0; round < 200; round++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { connection } = yield* connected()
          yield* connection.negotiate(1n << 32n)
          const address = yield* connection.map(yield* MemoryRegion.allocate(8192))
          yield* connection.start([queueAt(address), queueAt(address + 4096)])
          if (round % 2 === 0) yield* connection.stop
        }))
      }
      expect(count()).toStrictEqual(before)
    }))

  live("leaves no timer that would keep the process alive", () =>
    Effect.gen(function*() {
      const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length
      const before = timers()
      yield* Effect.scoped(Effect.gen(function*() {
        const { connection } = yield* connected()
        yield* connection.readConfig
        yield* connection.negotiate(1n << 32n)
      }))
      expect(timers()).toBe(before)
    }))
})
