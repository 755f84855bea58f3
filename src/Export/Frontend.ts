/**
 * One front-end at an export: the backend's side of the vhost-user protocol, from its first message to its end.
 *
 * Messages are handled one after another, in the order they came. One that breaks a rule is refused: with a non-zero
 * acknowledgement where the front-end asked for one, and otherwise by ending the connection, since it would go on believing
 * that it was obeyed. Bytes that are no message, and a ring that breaks the virtio protocol, end the connection too. Nothing
 * that a front-end does ends more than its own connection.
 *
 * However a connection ends, its requests that are with the store are interrupted and waited for before the memory that
 * they use is unmapped, so that what they still do cannot hit memory that is somebody else's by then.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import { fstatSync } from "node:fs"
import type { BlockStore, StoreError } from "../BlockStore/Interface.ts"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { MessageSocket, type Received } from "../Transport/MessageSocket.ts"
import type { ConnectionError } from "../Transport/Transport.ts"
import * as Message from "../Wire/VhostUserMessage.ts"
import { FeatureBit, featureMask, hasFeature } from "../Wire/VirtioBlk.ts"
import { WireError } from "../Wire/WireError.ts"
import type { BlkRequest } from "./BlkRequest.ts"
import { DeviceQueue } from "./DeviceQueue.ts"
import { GuestMemory, MAX_REGIONS, type Region } from "./GuestMemory.ts"
import { InflightArea } from "./InflightArea.ts"
import type { Settings } from "./Options.ts"
import { VirtualDisk } from "./VirtualDisk.ts"

const { FrontendRequest, ProtocolFeature } = Message

/** A front-end that is being served. */
export interface Frontend {
  /** Serves it until it goes, or does what ends its connection; answers why. */
  readonly serve: Effect.Effect<ConnectionError>
  /** Tells it the disk's size in bytes. */
  readonly resize: (capacity: number) => void
  /** Its requests that are with the store. */
  readonly inFlight: () => number
}

/** What a front-end is served with. */
export interface FrontendOptions {
  readonly store: BlockStore
  readonly settings: Settings
  readonly capacity: number
  /** Hears of each request that ended. */
  readonly onEnd: (request: BlkRequest, status: number, cause: Cause.Cause<StoreError> | undefined) => void
}

/** A message that is understood and refused. */
class Refusal extends Data.TaggedError("Refusal")<{ readonly detail: string }> {}

/** What a message is answered with: a payload, and a descriptor that goes with it and is closed then. */
interface Reply {
  readonly payload: Uint8Array
  readonly fd?: number
}

/** Protocol features that are offered. INFLIGHT_SHMFD and the others of a backend's own are there to be used or not. */
const PROTOCOL_FEATURES = featureMask(
  ProtocolFeature.MQ,
  ProtocolFeature.REPLY_ACK,
  ProtocolFeature.BACKEND_REQ,
  ProtocolFeature.CONFIG,
  ProtocolFeature.INFLIGHT_SHMFD,
  ProtocolFeature.RESET_DEVICE,
  ProtocolFeature.CONFIGURE_MEM_SLOTS,
  ProtocolFeature.STATUS
)

/**
 * Messages that are answered in any case: NEED_REPLY changes nothing (vhost-user: REPLY_ACK), and an acknowledgement would be
 * taken for their answer.
 */
const questions: ReadonlySet<number> = new Set([
  FrontendRequest.GET_FEATURES,
  FrontendRequest.GET_PROTOCOL_FEATURES,
  FrontendRequest.GET_QUEUE_NUM,
  FrontendRequest.GET_MAX_MEM_SLOTS,
  FrontendRequest.GET_CONFIG,
  FrontendRequest.GET_STATUS,
  FrontendRequest.GET_VRING_BASE,
  FrontendRequest.GET_INFLIGHT_FD
])

/** The most messages that wait to be handled: those of 256 queues' start, and room beside them. */
const MAX_INBOX = 4096

/** Begins to serve the front-end at the other end of a socket. When the Scope closes it is not served any more. */
export const make = Effect.fnUntraced(function*(
  fd: number,
  { capacity, onEnd, settings, store }: FrontendOptions
): Effect.fn.Return<Frontend, Errno.EIO, Scope.Scope> {
  const run = Effect.runForkWith(yield* Effect.context())
  const ended = yield* Deferred.make<ConnectionError>()
  const inbox = yield* Queue.unbounded<Received>()
  const end = (reason: ConnectionError) => {
    Deferred.doneUnsafe(ended, Exit.succeed(reason))
  }

  const disk = new VirtualDisk(store, settings, capacity)
  const memory = new GuestMemory(settings.sealedMemory)
  const queues = Array.from({ length: settings.numQueues }, (_, index) =>
    new DeviceQueue({
      index,
      memory,
      maxInFlight: settings.maxInFlight,
      waiting: settings.waiting,
      execute: disk.execute,
      run,
      onEnd,
      onFault: (detail) => end(new Errno.EPROTO({ operation: "ring", detail }))
    }))
  let inflight: InflightArea | undefined
  let backendChannel: { readonly fd: number; readonly socket: MessageSocket } | undefined
  let features = 0n
  let protocolFeatures = 0n
  let status = 0n

  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      const fibers = queues.flatMap((queue) => queue.close())
      yield* Fiber.interruptAll(fibers)
      memory.close()
      inflight?.close()
      closeBackendChannel()
    })
  )
  const closeBackendChannel = () => {
    backendChannel?.socket.close()
    if (backendChannel !== undefined) Libc.close(backendChannel.fd)
    backendChannel = undefined
  }

  const socket = yield* Effect.acquireRelease(
    Effect.try({
      try: () =>
        new MessageSocket(fd, { socket: "vhost-user export", peer: "front-end", maxFds: Message.MAX_FDS }, {
          onEnd: end,
          onMessage: (message) => {
            if (Queue.sizeUnsafe(inbox) < MAX_INBOX) Queue.offerUnsafe(inbox, message)
            else {
              message.fds.forEach(Libc.close)
              const detail = `the front-end sent ${MAX_INBOX} messages without waiting`
              end(new Errno.EPROTO({ operation: "vhost-user export", detail }))
            }
          }
        }),
      catch: (cause) => new Errno.EIO({ operation: "vhost-user export", detail: "the socket cannot be watched", cause })
    }),
    (opened) =>
      Effect.gen(function*() {
        opened.close()
        for (const { fds } of yield* Queue.clear(inbox)) fds.forEach(Libc.close)
      })
  )

  /** Waits until `condition` holds for every queue, which is looked at whenever one of its requests has ended. */
  const until = (condition: (queue: DeviceQueue) => boolean): Effect.Effect<void> =>
    Effect.forEach(queues, (queue) =>
      Effect.callback<void>((resume) => {
        const stop = queue.when(() => condition(queue), () => resume(Exit.void))
        return Effect.sync(stop)
      }), { discard: true })

  /** Maps other memory in place of all there is, while no request is with the store. Rings go on where they lie then. */
  const replaceMemory = Effect.fnUntraced(function*(
    regions: ReadonlyArray<Message.MemoryRegion>,
    fds: ReadonlyArray<number>
  ): Effect.fn.Return<void, Refusal> {
    for (const queue of queues) queue.pause()
    yield* until((queue) => queue.isIdle)
    for (const region of memory.regions) {
      memory.forget(region)
      memory.release(region)
    }
    const wrong = firstDefined(regions, (region, i) => memory.add(region, fds[i] ?? -1))
      ?? firstDefined(queues, (queue) => queue.resume())
    if (wrong === undefined) return
    for (const queue of queues) queue.stop()
    return yield* new Refusal({ detail: wrong })
  })

  /** Takes a region away, after the requests that use it have ended. */
  const forget = (region: Region): Effect.Effect<void, Refusal> => {
    const queue = queues.find((each) => each.liesIn(region))
    if (queue !== undefined) return new Refusal({ detail: `the ring of queue ${queue.index} lies in it` })
    memory.forget(region)
    return Effect.map(until((each) => !each.uses(region)), () => memory.release(region))
  }

  const stop = (queue: DeviceQueue): Effect.Effect<number> =>
    Effect.suspend(() => {
      queue.pause()
      return Effect.map(until((each) => each !== queue || queue.isIdle), () => queue.stop())
    })

  /** Goes back to how the device was at first; what the front-end shares stays mapped. */
  const reset = Effect.gen(function*() {
    for (const queue of queues) {
      queue.enable(false)
      yield* stop(queue)
      queue.setBase(0)
    }
    disk.reset()
    features = 0n
    status = 0n
  })

  const queueAt = (index: number): Effect.Effect<DeviceQueue, Refusal> => {
    const queue = queues[index]
    return queue === undefined
      ? new Refusal({ detail: `queue ${index}: there are ${queues.length}` })
      : Effect.succeed(queue)
  }

  const acceptFeatures = (chosen: bigint): string | undefined => {
    const unknown = chosen & ~disk.features
    if (unknown !== 0n) return `features 0x${unknown.toString(16)} were not offered`
    features = chosen
    disk.negotiate(chosen)
    for (const queue of queues) {
      queue.indirect = hasFeature(chosen, FeatureBit.INDIRECT_DESC)
      queue.eventIdx = hasFeature(chosen, FeatureBit.EVENT_IDX)
      // vhost-user: Ring states. Without protocol features there is no SET_VRING_ENABLE, and rings are enabled.
      if (!hasFeature(chosen, FeatureBit.PROTOCOL_FEATURES)) queue.enable(true)
    }
    return undefined
  }

  /** Handles a message. Descriptors that it keeps are taken out of `fds`. */
  const handle = Effect.fnUntraced(function*(
    { header, payload }: Received,
    fds: Array<number>
  ): Effect.fn.Return<Reply | undefined, Refusal | WireError> {
    switch (header.request) {
      case FrontendRequest.GET_FEATURES:
        return u64(disk.features)
      case FrontendRequest.SET_FEATURES:
        return yield* refuseWhere(acceptFeatures(yield* decode(payload, Message.decodeU64)))
      case FrontendRequest.SET_OWNER:
        return undefined
      case FrontendRequest.GET_PROTOCOL_FEATURES:
        return u64(PROTOCOL_FEATURES)
      case FrontendRequest.SET_PROTOCOL_FEATURES: {
        const chosen = yield* decode(payload, Message.decodeU64)
        const unknown = chosen & ~PROTOCOL_FEATURES
        if (unknown !== 0n) {
          return yield* new Refusal({ detail: `protocol features 0x${unknown.toString(16)} were not offered` })
        }
        protocolFeatures = chosen
        return undefined
      }
      case FrontendRequest.GET_QUEUE_NUM:
        return u64(BigInt(queues.length))
      case FrontendRequest.GET_MAX_MEM_SLOTS:
        return u64(BigInt(MAX_REGIONS))
      case FrontendRequest.GET_CONFIG: {
        const { offset, size } = yield* decode(payload, Message.decodeConfig)
        const { config } = disk
        // An empty payload says that there is no such part (vhost-user: GET_CONFIG).
        if (offset + size > config.length) return { payload: new Uint8Array(0) }
        const region = config.subarray(offset, offset + size)
        return { payload: Message.encodeConfig({ offset, size, flags: 0, region }) }
      }
      case FrontendRequest.SET_CONFIG: {
        const { offset, region } = yield* decode(payload, Message.decodeConfig)
        return yield* refuseWhere(disk.configure(offset, region))
      }
      case FrontendRequest.SET_BACKEND_REQ_FD: {
        const channel = yield* only(fds)
        fds.shift()
        closeBackendChannel()
        backendChannel = yield* attempt(() => ({
          fd: channel,
          socket: new MessageSocket(channel, backendNames, { onMessage: () => {}, onEnd: () => closeBackendChannel() })
        })).pipe(Effect.tapError(() => Effect.sync(() => Libc.close(channel))))
        return undefined
      }
      case FrontendRequest.SET_STATUS: {
        const chosen = yield* decode(payload, Message.decodeU64)
        if (chosen === 0n) yield* reset
        else status = chosen
        return undefined
      }
      case FrontendRequest.GET_STATUS:
        return u64(status)
      case FrontendRequest.RESET_DEVICE:
        yield* reset
        return undefined

      case FrontendRequest.SET_MEM_TABLE: {
        const regions = yield* decode(payload, Message.decodeMemoryTable)
        if (fds.length !== regions.length) {
          return yield* new Refusal({ detail: `${fds.length} descriptors for ${regions.length} regions` })
        }
        yield* replaceMemory(regions, fds)
        return undefined
      }
      case FrontendRequest.ADD_MEM_REG: {
        const region = yield* decode(payload, Message.decodeMemoryRegion)
        const file = yield* only(fds)
        return yield* refuseWhere(memory.add(region, file))
      }
      case FrontendRequest.REM_MEM_REG: {
        const region = memory.named(yield* decode(payload, Message.decodeMemoryRegion))
        if (region === undefined) return yield* new Refusal({ detail: "there is no such region" })
        yield* forget(region)
        return undefined
      }

      case FrontendRequest.SET_VRING_NUM: {
        const { index, num } = yield* decode(payload, Message.decodeVringState)
        return yield* refuseWhere((yield* queueAt(index)).setSize(num))
      }
      case FrontendRequest.SET_VRING_BASE: {
        const { index, num } = yield* decode(payload, Message.decodeVringState)
        return yield* refuseWhere((yield* queueAt(index)).setBase(num))
      }
      case FrontendRequest.SET_VRING_ADDR: {
        const address = yield* decode(payload, Message.decodeVringAddress)
        const queue = yield* queueAt(address.index)
        return yield* refuseWhere(queue.setAddresses(address))
      }
      case FrontendRequest.GET_VRING_BASE: {
        const { index } = yield* decode(payload, Message.decodeVringState)
        return { payload: Message.encodeVringState(index, yield* stop(yield* queueAt(index))) }
      }
      case FrontendRequest.SET_VRING_KICK: {
        const { fd: kick, queue } = yield* vringFd(payload, fds)
        if (!hasFeature(features, FeatureBit.PROTOCOL_FEATURES)) queue.enable(true)
        return yield* refuseWhere(yield* attempt(() => queue.start(kick)))
      }
      case FrontendRequest.SET_VRING_CALL: {
        const { fd: call, queue } = yield* vringFd(payload, fds)
        queue.setCall(call)
        return undefined
      }
      case FrontendRequest.SET_VRING_ERR: {
        const { fd: error, queue } = yield* vringFd(payload, fds)
        queue.setError(error)
        return undefined
      }
      case FrontendRequest.SET_VRING_ENABLE: {
        const { index, num } = yield* decode(payload, Message.decodeVringState)
        if (num > 1) return yield* new Refusal({ detail: `enable ${num}: must be 0 or 1` })
        const queue = yield* queueAt(index)
        queue.enable(num === 1)
        return undefined
      }

      case FrontendRequest.GET_INFLIGHT_FD: {
        const { numQueues, queueSize } = yield* decode(payload, Message.decodeInflight)
        if (numQueues === 0 || numQueues > queues.length || queueSize === 0) {
          return yield* new Refusal({
            detail: `${numQueues} queues of ${queueSize}: there are ${queues.length} queues`
          })
        }
        const area = yield* attempt(() => InflightArea.create(numQueues, queueSize))
        return { payload: Message.encodeInflight(area.inflight), fd: area.fd }
      }
      case FrontendRequest.SET_INFLIGHT_FD: {
        const description = yield* decode(payload, Message.decodeInflight)
        const file = yield* only(fds)
        const area = yield* attempt(() => InflightArea.open(description, file))
        if (typeof area === "string") return yield* new Refusal({ detail: area })
        for (const queue of queues) queue.setInflight(area.queue(queue.index))
        inflight?.close()
        inflight = area
        return undefined
      }
      default:
        return yield* new Refusal({ detail: "it is not known here" })
    }
  })

  /** The queue that SET_VRING_KICK, _CALL or _ERR names, and the descriptor that came with it. */
  const vringFd = Effect.fnUntraced(function*(
    payload: Uint8Array,
    fds: Array<number>
  ): Effect.fn.Return<{ readonly queue: DeviceQueue; readonly fd: number | undefined }, Refusal | WireError> {
    const { hasFd, index } = yield* decode(payload, Message.decodeVringFd)
    const queue = yield* queueAt(index)
    if (!hasFd) return { queue, fd: undefined }
    const event = yield* only(fds)
    const errno = yield* attempt(() => Libc.checkWatchable(event))
    if (errno !== 0) return yield* new Refusal({ detail: `its descriptor is no event counter (errno ${errno})` })
    // With its own end of the connection here, a front-end that dies would never be seen to go.
    if (fstatSync(event).isSocket()) {
      return yield* new Refusal({ detail: "its descriptor is a socket, no event counter" })
    }
    // Neither a read nor a write of it may ever wait, whoever else uses it.
    yield* attempt(() => Libc.adopt(event))
    fds.shift()
    return { queue, fd: event }
  })

  const answer = (request: number, { fd: attached, payload }: Reply): void => {
    try {
      socket.send(Message.encodeMessage(request, Message.FLAG_REPLY, payload), attached === undefined ? [] : [attached])
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error
      end(
        new Errno.ENOTCONN({ operation: "vhost-user export", detail: "no descriptor is left", syscall: error.syscall })
      )
    } finally {
      if (attached !== undefined) Libc.close(attached)
    }
  }

  const respond = Effect.fnUntraced(function*(message: Received) {
    const { flags, request } = message.header
    const fds = [...message.fds]
    const asksAnswer = (flags & Message.FLAG_NEED_REPLY) !== 0
      && hasFeature(protocolFeatures, ProtocolFeature.REPLY_ACK)
      && !questions.has(request)
    const handled = yield* handle(message, fds).pipe(
      Effect.result,
      Effect.ensuring(Effect.sync(() => fds.forEach(Libc.close)))
    )
    if (Result.isSuccess(handled)) {
      if (handled.success !== undefined) answer(request, handled.success)
      else if (asksAnswer) answer(request, u64(0n))
      return
    }
    const { failure } = handled
    const isRefusal = failure instanceof Refusal
    if (isRefusal && asksAnswer) return answer(request, u64(1n))
    const detail = `${Message.requestName(request)}: ${isRefusal ? failure.detail : failure.message}`
    end(new Errno.EPROTO({ operation: "vhost-user export", detail }))
  })

  return {
    serve: Effect.raceFirst(
      Effect.forever(Effect.flatMap(Queue.take(inbox), respond)),
      Deferred.await(ended)
    ),
    inFlight: () => queues.reduce((sum, queue) => sum + queue.inFlight, 0),
    resize: (size) => {
      disk.capacity = size
      backendChannel?.socket.send(Message.encodeMessage(Message.BackendRequest.CONFIG_CHANGE_MSG, 0), [])
    }
  }
})

const u64 = (value: bigint): Reply => ({ payload: Message.encodeU64(value) })

const backendNames = { socket: "vhost-user export's own channel", peer: "front-end", maxFds: 0 } as const

const decode = <A>(payload: Uint8Array, decoder: (payload: Uint8Array) => A): Effect.Effect<A, WireError> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(decoder(payload))
    } catch (error) {
      if (error instanceof WireError) return Effect.fail(error)
      throw error
    }
  })

/** Refuses the message where something is wrong. */
const refuseWhere = (wrong: string | undefined): Effect.Effect<undefined, Refusal> =>
  wrong === undefined ? Effect.undefined : new Refusal({ detail: wrong })

/** Refuses the message where a system call fails. */
const attempt = <A>(call: () => A): Effect.Effect<A, Refusal> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(call())
    } catch (error) {
      if (error instanceof SyscallError) return new Refusal({ detail: error.message })
      throw error
    }
  })

/** The one descriptor that came with a message. */
const only = (fds: ReadonlyArray<number>): Effect.Effect<number, Refusal> => {
  const [fd] = fds
  return fd === undefined || fds.length > 1
    ? new Refusal({ detail: `${fds.length} descriptors: there must be 1` })
    : Effect.succeed(fd)
}

const firstDefined = <A>(
  items: ReadonlyArray<A>,
  check: (item: A, index: number) => string | undefined
): string | undefined => {
  for (const [index, item] of items.entries()) {
    const wrong = check(item, index)
    if (wrong !== undefined) return wrong
  }
  return undefined
}
