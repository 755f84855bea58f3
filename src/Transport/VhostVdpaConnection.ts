/**
 * A live connection to a vhost-vdpa device: handshake, memory, queues, configuration (`drivers/vhost/vdpa.c` in Linux).
 *
 * Memory is handed over by address: an IOTLB message says which addresses of the device lead to which of this process, and the
 * kernel pins what lies there or finds the file behind it. Devices that are served by a process or in software reach only
 * memory that is shared and mapped from a file; they pass over any other without an error, and requests that need it never
 * end. So such memory is refused here. Messages come in batches only where the memory is taken back: what goes wrong within a
 * batch is not reported.
 *
 * A device's status only grows, until all of it is taken back by a reset. Whatever is set is read back, because drivers of
 * devices drop what they do not accept. At the end the device is reset first, so that it accesses nothing any more; then its
 * memory is taken back, then the descriptor closed. This is done also where the connection is lost.
 *
 * How a loss is noticed: the device says that it needs a reset, a call says that there is no device, or the device's entry is
 * gone from the system, which is looked at every second. The kernel does not tell of a removal: the descriptor cannot be
 * watched, and the removal waits until it is closed. A device that falls silent is the driver's to notice.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { constants } from "node:os"
import * as Errno from "../Errno.ts"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import type { KernelCalls } from "../Native/Kernel.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { isSharedFileMemory, lockedMemory } from "../Native/ProcessMemory.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { MAX_QUEUE_SIZE } from "../Wire/SplitRing.ts"
import * as Vhost from "../Wire/VhostIoctl.ts"
import { CONFIG_SIZES, decodeConfig, DeviceStatus, FeatureBit, featureMask, hasFeature } from "../Wire/VirtioBlk.ts"
import * as EventFd from "./EventFd.ts"
import { IovaSpace } from "./IovaSpace.ts"
import type { ConnectError, Connection, QueueAddresses, QueueChannel } from "./Transport.ts"
import * as VhostVdpaCalls from "./VhostVdpaCalls.ts"

const { BackendFeature, Ioctl, IotlbType } = Vhost
const { OPERATION } = VhostVdpaCalls

/** What the kernel wants regions to be a multiple of (`VHOST_PAGE_SIZE`), in bytes. */
const REGION_ALIGNMENT = 4096

/** What the device's addresses are a multiple of, in bytes: the largest page of every platform Node runs on. */
const IOVA_ALIGNMENT = 65536

/** The kernel sets no limit of its own; more than this are none in practice, and the count stays a number of 32 bits. */
const MAX_REGIONS = 2 ** 31 - 1

/** The address range of kernels that do not tell. */
const WHOLE_RANGE: Vhost.IovaRange = { first: 0n, last: 2n ** 64n - 1n }

const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET } = DeviceStatus

/** What says that the device reaches memory as the platform has it; some devices refuse a driver that leaves it out. */
const PLATFORM_FEATURES = featureMask(FeatureBit.ACCESS_PLATFORM, FeatureBit.ORDER_PLATFORM)

/** Where a packed ring begins: both wrap counters, in bit 15 of either half, are 1 (virtio 1.2 §2.8.1). */
const PACKED_BASE = 0x8000_8000

const WANTED_BACKEND_FEATURES = featureMask(BackendFeature.IOTLB_MSG_V2, BackendFeature.IOTLB_BATCH)

const { E2BIG, EBUSY, EFAULT, EINVAL, ENOBUFS, ENOMEM, ENOTTY, EOPNOTSUPP } = constants.errno

/** How often the device's entry in the system is looked at. */
const PRESENCE_INTERVAL = "1 second"

/** Opens a device, agrees with it on what is used, and keeps the connection until the Scope closes. */
export const make = Effect.fnUntraced(function*(
  kernel: KernelCalls,
  open: Effect.Effect<number, ConnectError>,
  replyTimeoutMs: number
): Effect.fn.Return<Connection, ConnectError, Scope.Scope> {
  const calls = yield* VhostVdpaCalls.make(kernel, open, replyTimeoutMs)
  const { ask, end, ioctl, quiescing, tell } = calls
  const refuse = (detail: string) => new Errno.EIO({ operation: OPERATION, detail })
  const unsupported = (detail: string) => new Errno.ENOTSUP({ operation: OPERATION, detail })

  /** Asks for what older kernels do not know; answers undefined there. */
  const askNewer = Effect.fnUntraced(function*<A>(request: number, decode: (argument: Uint8Array) => A) {
    const argument = Vhost.emptyArgument(request)
    const errno = yield* ioctl(request, argument)
    if (errno === ENOTTY || errno === EOPNOTSUPP) return undefined
    if (errno !== 0) return yield* VhostVdpaCalls.refusal(request, errno)
    return decode(argument)
  })
  const atLeastOne = (request: number, count: number): Effect.Effect<number, Errno.EPROTO> =>
    count > 0 ? Effect.succeed(count) : new Errno.EPROTO({
      operation: OPERATION,
      detail: `${Vhost.ioctlName(request)} was answered with 0: must be at least 1`
    })

  // Before anything is changed, since another kind of device may take the other calls for something else.
  const idArgument = Vhost.emptyArgument(Ioctl.VHOST_VDPA_GET_DEVICE_ID)
  const idErrno = yield* ioctl(Ioctl.VHOST_VDPA_GET_DEVICE_ID, idArgument)
  if (idErrno !== 0) {
    const cause = new SyscallError("ioctl", idErrno)
    return yield* new Errno.ENODEV({ operation: OPERATION, detail: "this is no vhost-vdpa device", cause })
  }
  const id = Vhost.decodeNumber(idArgument)
  if (id !== Vhost.BLOCK_DEVICE_ID) {
    const detail = `the device has the virtio device id ${id}: must be ${Vhost.BLOCK_DEVICE_ID}, a block device`
    return yield* new Errno.ENODEV({ operation: OPERATION, detail })
  }
  const ownErrno = yield* ioctl(Ioctl.VHOST_SET_OWNER)
  if (ownErrno === EBUSY) {
    const detail = "the device has an owner: a descriptor that is handed over must not have been used"
    return yield* new Errno.EBUSY({ operation: OPERATION, detail, syscall: "ioctl" })
  }
  if (ownErrno !== 0) return yield* VhostVdpaCalls.refusal(Ioctl.VHOST_SET_OWNER, ownErrno)

  const offered = (yield* askNewer(Ioctl.VHOST_GET_BACKEND_FEATURES, Vhost.decodeU64)) ?? 0n
  const agreed = offered & WANTED_BACKEND_FEATURES
  if (agreed !== 0n) yield* tell(Ioctl.VHOST_SET_BACKEND_FEATURES, Vhost.encodeU64(agreed))
  const messageVersion = hasFeature(agreed, BackendFeature.IOTLB_MSG_V2) ? 2 : 1
  const canBatch = messageVersion === 2 && hasFeature(agreed, BackendFeature.IOTLB_BATCH)
  const write = (through: Pick<VhostVdpaCalls.VhostVdpaCalls, "write">, message: Vhost.IotlbMessage) =>
    through.write(Vhost.encodeIotlbMessage(messageVersion, message))

  let status = 0
  const readStatus = ask(Ioctl.VHOST_VDPA_GET_STATUS, Vhost.decodeNumber)
  /** Adds to the device's status, and answers what it is then. */
  const addStatus = Effect.fnUntraced(function*(bits: number) {
    status |= bits
    yield* tell(Ioctl.VHOST_VDPA_SET_STATUS, Vhost.encodeU8(status))
    return yield* readStatus
  })
  /** Resets the device; answers an errno. */
  const reset = Effect.gen(function*() {
    status = 0
    return yield* quiescing.ioctl(Ioctl.VHOST_VDPA_SET_STATUS, Vhost.encodeU8(0))
  })
  const introduce = Effect.gen(function*() {
    yield* addStatus(ACKNOWLEDGE)
    const now = yield* addStatus(DRIVER)
    if ((now & NEEDS_RESET) !== 0 || (now & DRIVER) === 0) {
      return yield* refuse(`the device cannot be used: its status is ${now} after a reset`)
    }
  })

  const resetErrno = yield* reset
  if (resetErrno !== 0) return yield* VhostVdpaCalls.refusal(Ioctl.VHOST_VDPA_SET_STATUS, resetErrno)
  const left = yield* readStatus
  if (left !== 0) return yield* refuse(`the device does not reset: its status stays ${left}`)
  yield* introduce

  const features = yield* ask(Ioctl.VHOST_GET_FEATURES, Vhost.decodeU64)
  const range = (yield* askNewer(Ioctl.VHOST_VDPA_GET_IOVA_RANGE, Vhost.decodeIovaRange)) ?? WHOLE_RANGE
  const space = new IovaSpace([range], IOVA_ALIGNMENT)
  if (space.isEmpty) {
    return yield* unsupported(
      `the device can be given no address from ${range.first} to ${range.last} that is used here`
    )
  }

  const configBytes = yield* askNewer(Ioctl.VHOST_VDPA_GET_CONFIG_SIZE, Vhost.decodeNumber)
  let configSizes: ReadonlyArray<number> = configBytes === undefined
    ? CONFIG_SIZES
    : [Math.min(CONFIG_SIZES[0], configBytes)]
  /** A kernel that does not tell the size refuses to read beyond it; the size that worked is kept. */
  const readConfig = Effect.gen(function*() {
    let last = 0
    for (const size of configSizes) {
      if (size === 0) return new Uint8Array(0)
      const argument = Vhost.encodeConfigQuestion(size)
      last = yield* ioctl(Ioctl.VHOST_VDPA_GET_CONFIG, argument)
      if (last === 0) {
        configSizes = [size]
        return Vhost.decodeConfigAnswer(argument)
      }
      if (last !== E2BIG && last !== EINVAL) break
    }
    return yield* VhostVdpaCalls.refusal(Ioctl.VHOST_VDPA_GET_CONFIG, last)
  })

  const ringSize = yield* atLeastOne(
    Ioctl.VHOST_VDPA_GET_VRING_NUM,
    yield* ask(Ioctl.VHOST_VDPA_GET_VRING_NUM, Vhost.decodeNumber)
  )
  const rings = yield* askNewer(Ioctl.VHOST_VDPA_GET_VQS_COUNT, Vhost.decodeNumber)
  const maxQueues = rings !== undefined
    ? yield* atLeastOne(Ioctl.VHOST_VDPA_GET_VQS_COUNT, rings)
    : hasFeature(features, FeatureBit.MQ)
    ? Math.max(1, decodeConfig(yield* readConfig).numQueues)
    : 1

  let chosen = 0n
  const negotiate = Effect.fnUntraced(function*(wanted: bigint) {
    chosen = wanted & features | features & PLATFORM_FEATURES
    const errno = yield* ioctl(Ioctl.VHOST_SET_FEATURES, Vhost.encodeU64(chosen))
    if (errno === EINVAL || errno === EOPNOTSUPP) {
      return yield* unsupported(`the device does not accept the features 0x${chosen.toString(16)}`)
    }
    if (errno !== 0) return yield* VhostVdpaCalls.refusal(Ioctl.VHOST_SET_FEATURES, errno)
    if (((yield* addStatus(FEATURES_OK)) & FEATURES_OK) === 0) {
      return yield* unsupported("the device does not accept the features chosen (FEATURES_OK reads back as 0)")
    }
  })

  const mapped = new Map<MemoryRegion, { readonly iova: number; readonly size: number }>()
  const map = Effect.fnUntraced(function*(region: MemoryRegion) {
    const described = { operation: "map region", length: region.length }
    const size = Math.ceil(region.length / REGION_ALIGNMENT) * REGION_ALIGNMENT
    const userAddress = Number(region.address)
    if (!isSharedFileMemory(userAddress, region.length)) {
      const detail = "memory for a vhost-vdpa device must be shared and mapped from a file"
      return yield* new Errno.EINVAL({ ...described, detail })
    }
    const iova = space.allocate(size)
    if (iova < 0) {
      return yield* new Errno.ENOMEM({ ...described, detail: "the device has no range of free addresses that large" })
    }
    const errno = yield* write(calls, { type: IotlbType.UPDATE, iova, size, userAddress })
    if (errno !== 0) {
      space.free(iova)
      return yield* notMapped(region.length, errno)
    }
    mapped.set(region, { iova, size })
    return iova
  }, Effect.uninterruptible)

  /** An address that the kernel does not take back stays in use. */
  const invalidate = (region: MemoryRegion, { iova, size }: { readonly iova: number; readonly size: number }) =>
    Effect.map(write(quiescing, { type: IotlbType.INVALIDATE, iova, size }), (errno) => {
      mapped.delete(region)
      if (errno === 0) space.free(iova)
    })
  const unmap = (region: MemoryRegion) =>
    Effect.suspend(() => {
      const known = mapped.get(region)
      return known === undefined ? Effect.void : invalidate(region, known)
      // Whoever unmaps can do nothing about a connection on which not even that is possible.
    }).pipe(Effect.ignore)
  const unmapAll = Effect.gen(function*() {
    if (mapped.size === 0) return
    if (canBatch) yield* write(quiescing, { type: IotlbType.BATCH_BEGIN })
    for (const [region, known] of mapped) yield* invalidate(region, known)
    if (canBatch) yield* write(quiescing, { type: IotlbType.BATCH_END })
  })

  /** Quiesces the device. One that does not let itself be reset is of no use any more. */
  const stop = Effect.gen(function*() {
    const errno = status === 0 ? 0 : yield* reset
    if (errno === 0) return
    const cause = new SyscallError("ioctl", errno)
    end(new Errno.ENOTCONN({ operation: OPERATION, detail: "the device does not let itself be reset", cause }))
  }).pipe(Effect.ignore)
  yield* Effect.addFinalizer(() => Effect.andThen(stop, Effect.ignore(unmapAll)))

  const configChanged = yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end)
  const configFd = yield* EventFd.open(OPERATION)
  const onConfigChange = Effect.gen(function*() {
    if (((yield* readStatus) & NEEDS_RESET) === 0) {
      Queue.offerUnsafe(configChanged, undefined)
    } else {
      const detail = "the device says that it needs a reset (NEEDS_RESET)"
      end(new Errno.ENOTCONN({ operation: OPERATION, detail }))
    }
  })
  yield* watchConfig(configFd, onConfigChange)
  const look = Effect.sync(() => {
    if (!kernel.isDeviceRemoved(calls.fd)) return
    end(new Errno.ENODEV({ operation: OPERATION, detail: "the device was removed from the system" }))
  })
  // Where there is no entry to begin with, as in a container that hides it, its absence says nothing.
  if (!kernel.isDeviceRemoved(calls.fd)) {
    yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(PRESENCE_INTERVAL), look)))
  }

  const start = Effect.fnUntraced(function*(queues: ReadonlyArray<QueueAddresses>) {
    if (status === 0) {
      // It was started and stopped before: what was agreed upon went with the reset.
      yield* introduce
      yield* Effect.catchTag(negotiate(chosen), "ENOTSUP", ({ detail }) => refuse(detail))
    }
    const base = hasFeature(chosen, FeatureBit.RING_PACKED) ? PACKED_BASE : 0
    const channels: Array<QueueChannel> = []
    for (const [index, { avail, descriptors, queueSize, used }] of queues.entries()) {
      const kickFd = yield* EventFd.open(OPERATION)
      const completionFd = yield* EventFd.open(OPERATION)
      yield* tell(Ioctl.VHOST_SET_VRING_NUM, Vhost.encodeVringState(index, queueSize))
      yield* tell(Ioctl.VHOST_SET_VRING_BASE, Vhost.encodeVringState(index, base))
      const addresses = { index, flags: 0, descriptors, used, avail, log: 0 }
      yield* tell(Ioctl.VHOST_SET_VRING_ADDR, Vhost.encodeVringAddress(addresses))
      yield* tell(Ioctl.VHOST_SET_VRING_CALL, Vhost.encodeVringFile(index, completionFd))
      yield* tell(Ioctl.VHOST_SET_VRING_KICK, Vhost.encodeVringFile(index, kickFd))
      channels.push({ notify: () => Libc.signalEventFd(kickFd), kickFd, completionFd, signalsInTurn: false })
    }
    // A reset takes this back. Kernels before 5.8 do not know it, and their devices tell of no changes; such a kernel takes the
    // descriptor for the index of a ring, which may or may not exist.
    const errno = yield* ioctl(Ioctl.VHOST_VDPA_SET_CONFIG_CALL, Vhost.encodeDescriptor(configFd))
    if (errno !== 0 && errno !== ENOTTY && errno !== ENOBUFS) {
      return yield* VhostVdpaCalls.refusal(Ioctl.VHOST_VDPA_SET_CONFIG_CALL, errno)
    }
    // Not every device takes a ring once it runs, so they are enabled before.
    for (const index of queues.keys()) {
      yield* tell(Ioctl.VHOST_VDPA_SET_VRING_ENABLE, Vhost.encodeVringState(index, 1))
    }
    const now = yield* addStatus(DRIVER_OK)
    if ((now & DRIVER_OK) === 0 || (now & NEEDS_RESET) !== 0) {
      return yield* refuse(`the device does not start: its status is ${now} after DRIVER_OK`)
    }
    return channels
  })

  return {
    features,
    maxQueues,
    maxQueueSize: Math.min(ringSize, MAX_QUEUE_SIZE),
    maxRegions: MAX_REGIONS,
    regionAlignment: REGION_ALIGNMENT,
    needsRegionFd: false,
    readConfig,
    negotiate,
    map,
    unmap,
    start,
    stop,
    configChanged: Stream.fromQueue(configChanged),
    lost: calls.lost
  }
})

/**
 * Says why memory was not mapped. The kernel answers EFAULT to whatever went wrong (`vhost_chr_write_iter`), also where pinning
 * exceeded the limit on locked memory; a limit that is too small is named, since it is the usual reason.
 */
const notMapped = (length: number, errno: number): Errno.ENOMEM | Errno.EIO => {
  const described = {
    operation: "map region",
    length,
    syscall: "write",
    cause: new SyscallError("write", errno)
  }
  const { limit, pinned } = lockedMemory()
  const isOverLimit = pinned + length > limit
  if (errno !== ENOMEM && !(errno === EFAULT && isOverLimit)) {
    return Errno.fromNumber(errno, [], { ...described, detail: "the kernel refused to map it for the device" })
  }
  const advice = isOverLimit
    ? `; with ${pinned} bytes pinned already it exceeds the limit on locked memory (RLIMIT_MEMLOCK), which is ${limit} bytes`
      + ": raise it (ulimit -l, LimitMEMLOCK=) or map less"
    : ""
  return new Errno.ENOMEM({ ...described, detail: `the kernel could not pin it for the device${advice}` })
}

/** Runs `onChange` whenever the device signals `fd`. */
const watchConfig = Effect.fnUntraced(function*<E>(fd: number, onChange: Effect.Effect<unknown, E>) {
  const signals = yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end)
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      Poll.watch(fd, { readable: true }, () => {
        Libc.drainEventFd(fd)
        setImmediate(() => Queue.offerUnsafe(signals, undefined))
      })
    ),
    (watch) => Effect.sync(() => watch.close())
  )
  yield* Stream.fromQueue(signals).pipe(
    // A call that fails for good has ended the connection.
    Stream.runForEach(() => Effect.ignore(onChange)),
    Effect.forkScoped
  )
})
