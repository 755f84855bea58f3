/**
 * A live vhost-user connection: handshake, memory, queues, configuration (QEMU's `docs/interop/vhost-user.rst`).
 *
 * Regions and rings are shared by descriptor. The addresses by which the backend knows them are made up here, one range
 * for each region, so that it learns nothing of this process's address space.
 *
 * Backends differ, and say less than the truth. Without CONFIGURE_MEM_SLOTS the whole memory table is sent each time;
 * without REPLY_ACK, and after every acknowledgement that matters, a question with an answer of its own tells whether the
 * backend is still alive, since some acknowledge a message and die of it.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { MAX_QUEUE_SIZE } from "../Wire/SplitRing.ts"
import * as Message from "../Wire/VhostUserMessage.ts"
import { CONFIG_SIZES, DeviceStatus, FeatureBit, featureMask, hasFeature } from "../Wire/VirtioBlk.ts"
import * as EventFd from "./EventFd.ts"
import { MessageSocket } from "./MessageSocket.ts"
import type { ConnectError, Connection, InflightRecord, QueueAddresses, QueueChannel } from "./Transport.ts"
import * as VhostUserChannel from "./VhostUserChannel.ts"

const { FrontendRequest, ProtocolFeature } = Message

/** Where the addresses made up for regions begin, and the unit of their distance. */
const FIRST_ADDRESS = 2 ** 32
const ADDRESS_UNIT = 2 ** 21

/** Regions where the backend does not configure memory slots: the descriptors of one message (SET_MEM_TABLE). */
const MAX_TABLE_REGIONS = Message.MAX_FDS

/** SET_VRING_KICK and its like hold a queue's index in 8 bits. */
const MAX_QUEUES = 256

/** More slots than this are none in practice, and the count stays a number of 32 bits. */
const MAX_REGIONS = 2 ** 31 - 1

/**
 * What is hidden from the driver where the backend offers it: a packed ring's base (SET_VRING_BASE) has wrap counters in it,
 * and no backend has shown yet that it takes them.
 */
const HIDDEN_FEATURES = featureMask(FeatureBit.RING_PACKED)

const WANTED_PROTOCOL_FEATURES = featureMask(
  ProtocolFeature.MQ,
  ProtocolFeature.REPLY_ACK,
  ProtocolFeature.BACKEND_REQ,
  ProtocolFeature.CONFIG,
  ProtocolFeature.CONFIGURE_MEM_SLOTS,
  ProtocolFeature.STATUS
)

const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK } = DeviceStatus

/**
 * Agrees on the protocol with the backend on a connected socket, and keeps the connection until the Scope closes. Where
 * `reconnects`, the backend is to keep a record of its requests, if it does that.
 */
export const make = Effect.fnUntraced(function*(
  socket: number,
  replyTimeoutMs: number,
  reconnects: boolean
): Effect.fn.Return<Connection, ConnectError, Scope.Scope> {
  const channel = yield* VhostUserChannel.make(socket, replyTimeoutMs)
  const { ask, tell } = channel
  const askU64 = (request: number) => ask(request, Message.decodeU64)
  const unsupported = (detail: string) => new Errno.ENOTSUP({ operation: "vhost-user", detail })

  yield* tell(FrontendRequest.SET_OWNER)
  const features = (yield* askU64(FrontendRequest.GET_FEATURES)) & ~HIDDEN_FEATURES
  if (!hasFeature(features, FeatureBit.PROTOCOL_FEATURES)) {
    return yield* unsupported("the backend offers no protocol features (bit 30), so its configuration cannot be read")
  }
  const offered = yield* askU64(FrontendRequest.GET_PROTOCOL_FEATURES)
  if (!hasFeature(offered, ProtocolFeature.CONFIG)) {
    return yield* unsupported("the backend does not offer CONFIG, so its configuration cannot be read")
  }
  const wanted = WANTED_PROTOCOL_FEATURES | (reconnects ? featureMask(ProtocolFeature.INFLIGHT_SHMFD) : 0n)
  const agreed = offered & wanted
  const has = (bit: number) => hasFeature(agreed, bit)
  yield* tell(FrontendRequest.SET_PROTOCOL_FEATURES, Message.encodeU64(agreed))
  if (has(ProtocolFeature.REPLY_ACK)) yield* channel.acknowledge

  const askCount = (request: number, limit: number) =>
    Effect.flatMap(askU64(request), (count) => {
      if (count > 0n) return Exit.succeed(Math.min(Number(count), limit))
      const detail = `${Message.requestName(request)} was answered with 0: must be at least 1`
      return Exit.fail(new Errno.EPROTO({ operation: "vhost-user", detail }))
    })
  const maxQueues = has(ProtocolFeature.MQ) ? yield* askCount(FrontendRequest.GET_QUEUE_NUM, MAX_QUEUES) : 1
  const maxRegions = has(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    ? yield* askCount(FrontendRequest.GET_MAX_MEM_SLOTS, MAX_REGIONS)
    : MAX_TABLE_REGIONS
  const configChanged = yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end)
  if (has(ProtocolFeature.BACKEND_REQ)) yield* openBackendChannel(channel, configChanged)

  /** Tells whether the backend is alive and has handled all that it was sent. */
  const confirm = Effect.asVoid(askU64(FrontendRequest.GET_FEATURES))
  const setStatus = (status: number) =>
    has(ProtocolFeature.STATUS) ? tell(FrontendRequest.SET_STATUS, Message.encodeU64(BigInt(status))) : Effect.void
  yield* setStatus(ACKNOWLEDGE | DRIVER)

  const negotiate = Effect.fnUntraced(function*(wanted: bigint) {
    const chosen = wanted & features | featureMask(FeatureBit.PROTOCOL_FEATURES)
    yield* tell(FrontendRequest.SET_FEATURES, Message.encodeU64(chosen))
    yield* setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK)
    if (has(ProtocolFeature.STATUS) && ((yield* askU64(FrontendRequest.GET_STATUS)) & BigInt(FEATURES_OK)) === 0n) {
      return yield* unsupported("the backend does not accept the features chosen (FEATURES_OK reads back as 0)")
    }
    yield* confirm
  })

  let configSizes: ReadonlyArray<number> = CONFIG_SIZES
  /** Some backends refuse to tell more than they know of; the size that worked is kept. */
  const readConfig = Effect.gen(function*() {
    for (const size of configSizes) {
      const region = yield* ask(
        FrontendRequest.GET_CONFIG,
        (payload) => payload.length === 0 ? new Uint8Array(0) : Message.decodeConfig(payload).region,
        Message.encodeConfig({ offset: 0, size, flags: 0 })
      )
      if (region.length === 0) continue
      if (region.length !== size) {
        const detail = `GET_CONFIG of ${size} bytes was answered with ${region.length}`
        const error = new Errno.EPROTO({ operation: "vhost-user", detail })
        channel.end(error)
        return yield* error
      }
      configSizes = [size]
      return region
    }
    return yield* new Errno.EIO({ operation: "vhost-user", detail: "the backend refuses to tell its configuration" })
  })

  const regions = new Map<MemoryRegion, Message.MemoryRegion>()
  let nextAddress = FIRST_ADDRESS
  const sendTable = Effect.suspend(() =>
    tell(
      FrontendRequest.SET_MEM_TABLE,
      Message.encodeMemoryTable([...regions.values()]),
      Array.from(regions.keys(), ({ fd }) => fd)
    )
  )
  const map = Effect.fnUntraced(function*(region: MemoryRegion, wanted?: number) {
    if (regions.size >= maxRegions) {
      const detail = `the backend takes at most ${maxRegions} regions, the rings' included`
      return yield* new Errno.EIO({ operation: "map region", length: region.length, detail })
    }
    const address = wanted ?? nextAddress
    // One unit stays unused behind each region, so that what runs over its end meets nothing.
    const end = address + (Math.ceil(region.length / ADDRESS_UNIT) + 1) * ADDRESS_UNIT
    nextAddress = Math.max(nextAddress, end)
    const described = {
      guestAddress: address,
      size: region.length,
      userAddress: address,
      mmapOffset: region.fdOffset
    }
    regions.set(region, described)
    const sent = has(ProtocolFeature.CONFIGURE_MEM_SLOTS)
      ? tell(FrontendRequest.ADD_MEM_REG, Message.encodeMemoryRegion(described), [region.fd])
      : sendTable
    yield* Effect.onError(
      Effect.andThen(sent, confirm),
      () => Effect.sync(() => regions.delete(region))
    )
    return address
  })
  const unmap = (region: MemoryRegion) =>
    Effect.suspend(() => {
      const described = regions.get(region)
      if (described === undefined) return Effect.void
      regions.delete(region)
      const sent = has(ProtocolFeature.CONFIGURE_MEM_SLOTS)
        ? tell(FrontendRequest.REM_MEM_REG, Message.encodeMemoryRegion(described))
        : sendTable
      return Effect.andThen(sent, confirm)
      // A connection that is lost has nothing mapped any more.
    }).pipe(Effect.ignore)

  /** Has the backend note its requests: in the record of the one before, where the rings go on, else in a new one. */
  const keepRecord = Effect.fnUntraced(function*(
    queues: ReadonlyArray<QueueAddresses>,
    before: InflightRecord | undefined
  ) {
    const goesOn = queues.every(({ base }) => base !== undefined)
    const record = goesOn && before !== undefined ? before : yield* Effect.acquireRelease(
      channel.askForFile(
        FrontendRequest.GET_INFLIGHT_FD,
        Message.decodeInflight,
        Message.encodeInflight({
          mmapSize: 0,
          mmapOffset: 0,
          numQueues: queues.length,
          queueSize: queues[0]?.queueSize ?? 0
        })
      ),
      ({ fd }) => Effect.sync(() => Libc.close(fd))
    )
    yield* tell(FrontendRequest.SET_INFLIGHT_FD, Message.encodeInflight(record.description), [record.fd])
    return record
  })

  let startedQueues = 0
  const start = Effect.fnUntraced(function*(
    queues: ReadonlyArray<QueueAddresses>,
    before: ReadonlyArray<QueueChannel> = []
  ) {
    const errorFd = yield* EventFd.open("vhost-user")
    const inflight = has(ProtocolFeature.INFLIGHT_SHMFD) ? yield* keepRecord(queues, before[0]?.inflight) : undefined
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        Poll.watch(errorFd, { readable: true }, () => {
          Libc.drainEventFd(errorFd)
          const detail = "the backend gave a queue up"
          setImmediate(channel.end, new Errno.ENOTCONN({ operation: "vhost-user", detail }))
        })
      ),
      (watch) => Effect.sync(() => watch.close())
    )
    const channels: Array<QueueChannel> = []
    for (const [index, { avail, base = 0, descriptors, queueSize, used }] of queues.entries()) {
      const known = before[index]
      const kickFd = known?.kickFd ?? (yield* EventFd.open("vhost-user"))
      const completionFd = known?.completionFd ?? (yield* EventFd.open("vhost-user"))
      const eventOf = Message.encodeVringFd(index, true)
      // The call descriptor comes first, since some backends create the queue on it (DPDK); the kick starts the ring.
      yield* tell(FrontendRequest.SET_VRING_CALL, eventOf, [completionFd])
      yield* tell(FrontendRequest.SET_VRING_NUM, Message.encodeVringState(index, queueSize))
      yield* tell(FrontendRequest.SET_VRING_BASE, Message.encodeVringState(index, base))
      const addresses = { index, flags: 0, descriptors, used, avail, log: 0 }
      yield* tell(FrontendRequest.SET_VRING_ADDR, Message.encodeVringAddress(addresses))
      yield* tell(FrontendRequest.SET_VRING_ERR, eventOf, [errorFd])
      // From here on `stop` has something to stop, also where the start does not end well.
      startedQueues = index + 1
      yield* tell(FrontendRequest.SET_VRING_KICK, eventOf, [kickFd])
      channels.push({
        notify: () => Libc.signalEventFd(kickFd),
        kickFd,
        completionFd,
        signalsInTurn: true,
        inflight
      })
    }
    for (const index of queues.keys()) {
      yield* tell(FrontendRequest.SET_VRING_ENABLE, Message.encodeVringState(index, 1))
    }
    yield* setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    yield* confirm
    return channels
  })

  /** Stops each ring: the backend answers once it has let go of it. */
  const stop = Effect.gen(function*() {
    for (let index = 0; index < startedQueues; index++) {
      yield* ask(FrontendRequest.GET_VRING_BASE, Message.decodeVringState, Message.encodeVringState(index, 0))
    }
    startedQueues = 0
  }).pipe(Effect.ignore)

  return {
    features,
    maxQueues,
    // vhost-user tells no limit; what the ring layout allows remains.
    maxQueueSize: MAX_QUEUE_SIZE,
    maxRegions,
    regionAlignment: 1,
    needsRegionFd: true,
    resumesRings: has(ProtocolFeature.INFLIGHT_SHMFD),
    readConfig,
    negotiate,
    map,
    unmap,
    start,
    stop,
    configChanged: Stream.fromQueue(configChanged),
    lost: channel.lost,
    released: channel.released
  }
})

/** Opens the channel on which the backend asks the front-end (SET_BACKEND_REQ_FD). */
const openBackendChannel = Effect.fnUntraced(function*(
  channel: VhostUserChannel.VhostUserChannel,
  configChanged: Queue.Queue<void, Cause.Done>
) {
  const [ours, theirs] = yield* Effect.acquireRelease(
    Effect.try({
      try: Libc.createSocketPair,
      catch: (error) =>
        Errno.fromNumber(error instanceof SyscallError ? error.errno : 0, ["EMFILE", "ENFILE"], {
          operation: "vhost-user",
          detail: "a channel for the backend cannot be had",
          syscall: "socketpair"
        })
    }),
    (pair) => Effect.sync(() => pair.forEach(Libc.close))
  )
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const names = { socket: "vhost-user backend channel", peer: "backend", maxFds: 0 } as const
      const socket: MessageSocket = new MessageSocket(ours, names, {
        onMessage: ({ header }) => {
          const isKnown = header.request === Message.BackendRequest.CONFIG_CHANGE_MSG
          // The acknowledgement goes out before the configuration is read: the backend may be waiting for it.
          if ((header.flags & Message.FLAG_NEED_REPLY) !== 0) {
            const result = Message.encodeU64(isKnown ? 0n : 1n)
            socket.send(Message.encodeMessage(header.request, Message.FLAG_REPLY, result), [])
          }
          if (isKnown) Queue.offerUnsafe(configChanged, undefined)
        },
        onEnd: (reason) => {
          // That the backend closes this channel alone means only that it has nothing to say.
          if (reason._tag === "EPROTO") channel.end(reason)
        }
      })
      return socket
    }),
    (socket) => Effect.sync(() => socket.close())
  )
  yield* channel.tell(FrontendRequest.SET_BACKEND_REQ_FD, undefined, [theirs])
})
