/**
 * A live connection to a virtio device on PCI (virtio 1.2 §4.1): features, configuration, memory, queues.
 *
 * The device may access memory only while it is started: `start` makes it a bus master, and `stop` has it let go in the order
 * that leaves no access behind. The device is reset, and waited for until its status reads 0; then it is no bus master any
 * more; then its interrupts end; and only then may memory be unmapped. A device that does not become 0 in time is reset as a
 * whole where it can be. A reset loses the negotiated features, so a second start negotiates them again.
 *
 * Without ACCESS_PLATFORM a device takes addresses for physical ones and goes past the IOMMU, to memory that is not ours. Such a
 * device is refused.
 *
 * The host may want the device back (REQ): the connection is lost with ENODEV, and the device is free once the Scope is
 * closed. An error of the bus (ERR), or a device that asks for a reset, loses it with ENOTCONN: it may be connected anew.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Errno from "../Errno.ts"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import {
  CommandBit,
  CommonField,
  decodeVirtioStructures,
  GONE,
  type Location,
  NO_VECTOR
} from "../Wire/PciCapability.ts"
import { MAX_QUEUE_SIZE } from "../Wire/SplitRing.ts"
import { IrqIndex } from "../Wire/VfioIoctl.ts"
import { CONFIG_WIDTHS, DeviceStatus, FeatureBit, featureMask, hasFeature } from "../Wire/VirtioBlk.ts"
import * as EventFd from "./EventFd.ts"
import { IovaSpace } from "./IovaSpace.ts"
import type { ConnectError, Connection, ConnectionError, QueueAddresses, QueueChannel } from "./Transport.ts"
import { call, decoded, OPERATION } from "./VfioCall.ts"
import type { VfioDevice } from "./VfioDevice.ts"
import type { PciFunction } from "./VfioFunction.ts"
import * as Interrupts from "./VfioInterrupts.ts"
import type { Iommu } from "./VfioIommu.ts"

/** What the transport itself needs, of what a device offers. */
const PLATFORM_FEATURES = featureMask(FeatureBit.ACCESS_PLATFORM, FeatureBit.ORDER_PLATFORM)

/** More queues than this are asked for their size in vain: a driver of one process has no use for them. */
const MAX_QUEUES = 1024

/** How often a configuration that changes while it is read is read again. */
const MAX_CONFIG_READS = 16

const RESET_PAUSE_MS = 1

/**
 * The lowest address given to a device. QEMU 7.2 behind an emulated IOMMU writes what of a used element lies across the end of a
 * page to the element's offset in its ring, as if that were an address (measured). A ring is smaller than this, so that such a
 * write meets nothing of ours.
 */
const FIRST_ADDRESS = 2n ** 20n

/** Has a device ready to be negotiated with, and keeps the connection until the Scope closes. */
export const make = Effect.fnUntraced(function*(
  pci: PciFunction,
  device: VfioDevice,
  iommu: Iommu,
  resetTimeoutMs: number
): Effect.fn.Return<Connection, ConnectError, Scope.Scope> {
  const { path } = pci
  const unsupported = (detail: string) => new Errno.ENOTSUP({ operation: OPERATION, path, detail })
  const failed = (detail: string) => new Errno.EIO({ operation: OPERATION, path, detail })
  const broken = (detail: string) => new Errno.EPROTO({ operation: OPERATION, path, detail })
  /** Accesses registers. */
  const access = <A>(run: () => A) => call(run, { detail: "the device's registers do not answer", path, tags: [] })

  const structures = yield* decoded(() => decodeVirtioStructures(device.configSpace))
  if (structures === undefined) {
    return yield* unsupported("the device speaks only the legacy interface of virtio (it has no virtio capabilities)")
  }
  const common = yield* device.registers("the common configuration", structures.common)
  const isr = yield* device.registers("the interrupt status", structures.isr)
  const doorbells = yield* device.place("the doorbells", structures.notify)
  const available = {
    msix: yield* device.interrupts(IrqIndex.MSIX),
    intx: yield* device.interrupts(IrqIndex.INTX)
  }
  if (available.msix === 0 && available.intx === 0) return yield* unsupported("the device has no interrupts")

  const lost = Deferred.makeUnsafe<ConnectionError>()
  /** Not from inside a watch: whoever waits for it goes on in a turn of the event loop of its own. */
  const lose = (reason: ConnectionError) => {
    setImmediate(() => Deferred.doneUnsafe(lost, Exit.succeed(reason)))
  }
  const gone = () =>
    new Errno.ENODEV({ operation: OPERATION, path, detail: "the device does not answer any more: it was taken away" })
  const loseBy = (error: unknown) => {
    const detail = "the device does not answer"
    lose(new Errno.ENOTCONN({ operation: OPERATION, path, detail, cause: error }))
  }
  const configChanged = yield* Effect.acquireRelease(Queue.sliding<void, Cause.Done>(1), Queue.end)

  /** A live device has to be reset before its memory goes; one that is stuck has had its chance. */
  let state: "reset" | "live" | "stuck" = "live"
  let interrupts: number | undefined

  const { DEVICE_STATUS } = CommonField
  const awaitReset: Effect.Effect<void, Errno.EIO | Errno.ENODEV | Errno.ETIMEDOUT> = Effect.suspend(() => {
    const deadline = performance.now() + resetTimeoutMs
    const look: Effect.Effect<void, Errno.EIO | Errno.ENODEV | Errno.ETIMEDOUT> = Effect.flatMap(
      access(() => common.read(DEVICE_STATUS)),
      (status) => {
        if (status === 0) return Effect.void
        if (status === GONE) return gone()
        if (performance.now() < deadline) return Effect.andThen(Effect.sleep(RESET_PAUSE_MS), look)
        const detail = `the device does not finish its reset: its status reads ${status} after ${resetTimeoutMs} ms`
        return new Errno.ETIMEDOUT({ operation: OPERATION, path, detail })
      }
    )
    return Effect.andThen(access(() => common.write(DEVICE_STATUS, 0)), look)
  })
  const answerAtBars = device.command(CommandBit.MEMORY, CommandBit.BUS_MASTER | CommandBit.INTX_DISABLE)
  const reset = Effect.catchTag(awaitReset, "ETIMEDOUT", (error) =>
    device.canReset
      // What the reset does to the command register is the kernel's business; what we need of it is set again.
      ? device.reset.pipe(Effect.andThen(answerAtBars), Effect.andThen(awaitReset))
      : Effect.fail(error)).pipe(
      Effect.andThen(Effect.sync(() => {
        state = "reset"
      }))
    )

  /** Has the device let go of everything; each step is taken whatever became of the one before. */
  const stop = Effect.gen(function*() {
    if (state !== "live") return
    state = "stuck"
    yield* Effect.ignore(reset)
    yield* Effect.ignore(device.command(0, CommandBit.BUS_MASTER))
    if (interrupts === undefined) return
    yield* Effect.ignore(device.unlisten(interrupts))
    interrupts = undefined
  })

  yield* answerAtBars
  yield* reset
  yield* Effect.addFinalizer(() => stop)

  const features = yield* access(() => {
    common.write(CommonField.DEVICE_FEATURE_SELECT, 0)
    const low = common.read(CommonField.DEVICE_FEATURE)
    common.write(CommonField.DEVICE_FEATURE_SELECT, 1)
    return BigInt(common.read(CommonField.DEVICE_FEATURE)) << 32n | BigInt(low)
  })
  if (!hasFeature(features, FeatureBit.VERSION_1)) {
    return yield* unsupported("the device does not offer VERSION_1: it is a legacy device")
  }
  if (!hasFeature(features, FeatureBit.ACCESS_PLATFORM)) {
    return yield* unsupported(
      "the device does not offer ACCESS_PLATFORM: it would access memory past the IOMMU (QEMU: iommu_platform=on)"
    )
  }

  /** The features that were negotiated last. */
  let negotiated = 0n
  const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET } = DeviceStatus
  const agree = Effect.gen(function*() {
    if (state !== "reset") yield* reset
    state = "live"
    const status = yield* access(() => {
      common.write(DEVICE_STATUS, ACKNOWLEDGE)
      common.write(DEVICE_STATUS, ACKNOWLEDGE | DRIVER)
      common.write(CommonField.DRIVER_FEATURE_SELECT, 0)
      common.write(CommonField.DRIVER_FEATURE, Number(negotiated & 0xffff_ffffn))
      common.write(CommonField.DRIVER_FEATURE_SELECT, 1)
      common.write(CommonField.DRIVER_FEATURE, Number(negotiated >> 32n))
      common.write(DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
      return common.read(DEVICE_STATUS)
    })
    if (status === GONE) return yield* gone()
    if ((status & FEATURES_OK) !== 0) return
    yield* access(() => common.write(DEVICE_STATUS, FAILED))
    return yield* unsupported("the device does not accept the features chosen (FEATURES_OK reads back as 0)")
  })

  const sizes = yield* readQueueSizes(common, access)
  const [firstSize] = sizes
  if (firstSize === undefined) return yield* broken("the device has no queue")
  // A split ring has a size that is a power of two (§2.7); one number stands for all queues.
  const maxQueueSize = 2 ** Math.floor(Math.log2(Math.min(MAX_QUEUE_SIZE, ...sizes)))

  const readGeneration = () => common.read(CommonField.CONFIG_GENERATION)
  const config = structures.device === undefined
    ? undefined
    : { location: structures.device, registers: yield* device.registers("the configuration", structures.device) }
  let generation = -1
  const readConfig = Effect.gen(function*() {
    if (config === undefined) return new Uint8Array(0)
    for (let attempt = 0; attempt < MAX_CONFIG_READS; attempt++) {
      const bytes = yield* access(() => {
        const before = readGeneration()
        const bytes = readFields(config.registers, config.location)
        generation = readGeneration()
        return generation === before ? bytes : undefined
      })
      if (bytes !== undefined) return bytes
    }
    return yield* failed(`the configuration changed ${MAX_CONFIG_READS} times while it was read`)
  })

  const listener: Interrupts.Listener = {
    onConfig: (isCertain) => {
      try {
        const status = common.read(DEVICE_STATUS)
        if (status === GONE) return lose(gone())
        if ((status & NEEDS_RESET) !== 0) {
          const detail = "the device met an error and wants to be reset (NEEDS_RESET)"
          return lose(new Errno.ENOTCONN({ operation: OPERATION, path, detail }))
        }
        if (!isCertain && readGeneration() === generation) return
        setImmediate(() => Queue.offerUnsafe(configChanged, undefined))
      } catch (error) {
        loseBy(error)
      }
    },
    onFailure: loseBy
  }
  yield* onceSignalled(device, IrqIndex.REQ, () =>
    lose(
      new Errno.ENODEV({
        operation: OPERATION,
        path,
        detail: "the host wants the device back; it goes once this connection is closed"
      })
    ))
  yield* onceSignalled(device, IrqIndex.ERR, () =>
    lose(
      new Errno.ENOTCONN({ operation: OPERATION, path, detail: "PCI Express reported an error of the device (AER)" })
    ))

  const ranges = iommu.ranges.filter(({ last }) => last > FIRST_ADDRESS)
    .map(({ first, last }) => ({ first: first < FIRST_ADDRESS ? FIRST_ADDRESS : first, last }))
  const space = new IovaSpace(ranges, iommu.pageSize)
  const mapped = new Map<MemoryRegion, { readonly iova: number; readonly length: number }>()
  const map = Effect.fnUntraced(function*(region: MemoryRegion) {
    // The last page is the region's as a whole, whatever of it the region uses.
    const length = Math.ceil(region.length / iommu.pageSize) * iommu.pageSize
    const iova = mapped.size < iommu.maxMappings ? space.allocate(length) : -1
    if (iova < 0) {
      const detail = mapped.size < iommu.maxMappings
        ? "the IOMMU has no free addresses for it"
        : `the IOMMU takes at most ${iommu.maxMappings} mappings, the rings' included`
      return yield* new Errno.ENOSPC({ operation: "map region", length: region.length, detail })
    }
    yield* Effect.onError(
      iommu.map({ userAddress: region.address, iova, length }),
      () => Effect.sync(() => space.free(iova))
    )
    mapped.set(region, { iova, length })
    return iova
  }, Effect.uninterruptible)
  const unmap = (region: MemoryRegion) =>
    Effect.suspend(() => {
      const mapping = mapped.get(region)
      if (mapping === undefined) return Effect.void
      mapped.delete(region)
      // An address that could not be taken back is not given away again.
      return Effect.andThen(
        iommu.unmap(mapping.iova, mapping.length),
        Effect.sync(() => space.free(mapping.iova))
      )
    }).pipe(Effect.ignore, Effect.uninterruptible)

  const writeAddress = (low: 0x20 | 0x28 | 0x30, address: number) => {
    common.write({ at: low, width: 4 }, address % 2 ** 32)
    common.write({ at: low + 4, width: 4 }, Math.floor(address / 2 ** 32))
  }
  /** Sets a queue up (§4.1.5.1.3); answers its `queue_notify_off`, or what is wrong. */
  const setQueue = (index: number, queue: QueueAddresses, vector: number): number | string => {
    common.write(CommonField.QUEUE_SELECT, index)
    common.write(CommonField.QUEUE_SIZE, queue.queueSize)
    writeAddress(CommonField.QUEUE_DESC_LOW.at, queue.descriptors)
    writeAddress(CommonField.QUEUE_DRIVER_LOW.at, queue.avail)
    writeAddress(CommonField.QUEUE_DEVICE_LOW.at, queue.used)
    if (vector !== NO_VECTOR) {
      common.write(CommonField.QUEUE_MSIX_VECTOR, vector)
      if (common.read(CommonField.QUEUE_MSIX_VECTOR) !== vector) return "the device has no room for its vector"
    }
    const notifyOff = common.read(CommonField.QUEUE_NOTIFY_OFF)
    common.write(CommonField.QUEUE_ENABLE, 1)
    return common.read(CommonField.QUEUE_ENABLE) === 1 ? notifyOff : "the device does not enable it"
  }

  const start = Effect.fnUntraced(function*(queues: ReadonlyArray<QueueAddresses>) {
    if (state !== "live") yield* Effect.catchTag(agree, "ENOTSUP", ({ detail }) => failed(detail))
    const completionFds = yield* Effect.forEach(queues, () => EventFd.open(OPERATION))
    const ring = yield* openDoorbells(device, doorbells)
    yield* device.command(CommandBit.MEMORY | CommandBit.BUS_MASTER, CommandBit.INTX_DISABLE)
    // Interrupts are there before anything can cause one; `stop` ends them, also where the start does not end well.
    const routes = yield* Interrupts.route(device, available, isr, completionFds, listener)
    interrupts = routes.index
    if (routes.config !== NO_VECTOR) {
      const vector = yield* access(() => {
        common.write(CommonField.CONFIG_MSIX_VECTOR, routes.config)
        return common.read(CommonField.CONFIG_MSIX_VECTOR)
      })
      if (vector !== routes.config) return yield* failed("the device has no room for the configuration's vector")
    }
    const channels: Array<QueueChannel> = []
    for (const [index, queue] of queues.entries()) {
      const notifyOff = yield* access(() => setQueue(index, queue, routes.queues[index] ?? NO_VECTOR))
      if (typeof notifyOff === "string") {
        return yield* new Errno.EIO({ operation: OPERATION, path, queue: index, detail: notifyOff })
      }
      const at = notifyOff * structures.notifyMultiplier
      if (at + DOORBELL_BYTES > structures.notify.length) {
        const detail = `doorbell at ${at}: must lie within the ${structures.notify.length} bytes of doorbells`
        return yield* new Errno.EPROTO({ operation: OPERATION, path, queue: index, detail })
      }
      channels.push({
        notify: ring(at, index),
        kickFd: -1,
        completionFd: completionFds[index] ?? -1,
        signalsInTurn: false
      })
    }
    const status = yield* access(() => {
      common.write(DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
      return common.read(DEVICE_STATUS)
    })
    if (status === GONE) return yield* gone()
    if ((status & (NEEDS_RESET | DRIVER_OK)) !== DRIVER_OK) {
      return yield* failed(`the device does not start: its status reads ${status}`)
    }
    return channels
  })

  return {
    features,
    maxQueues: sizes.length,
    maxQueueSize,
    maxRegions: iommu.maxMappings,
    regionAlignment: iommu.pageSize,
    needsRegionFd: false,
    readConfig,
    negotiate: (wanted) =>
      Effect.suspend(() => {
        negotiated = (wanted | PLATFORM_FEATURES) & features
        return agree
      }),
    map,
    unmap,
    start,
    stop,
    configChanged: Stream.fromQueue(configChanged),
    lost
  }
})

/** Asks each queue for its size, up to the first that is not there (§4.1.5.1.3: its size is 0). */
const readQueueSizes = (
  common: { readonly read: (field: Field) => number; readonly write: (field: Field, value: number) => void },
  access: <A>(run: () => A) => Effect.Effect<A, Errno.EIO>
): Effect.Effect<ReadonlyArray<number>, Errno.EIO> =>
  access(() => {
    const count = Math.min(common.read(CommonField.NUM_QUEUES), MAX_QUEUES)
    const sizes: Array<number> = []
    for (let index = 0; index < count; index++) {
      common.write(CommonField.QUEUE_SELECT, index)
      const size = common.read(CommonField.QUEUE_SIZE)
      if (size === 0) break
      sizes.push(size)
    }
    return sizes
  })

type Field = (typeof CommonField)[keyof typeof CommonField]

/** Reads as much of the configuration as the device has, field by field. */
const readFields = (
  registers: { readonly read: (register: { readonly at: number; readonly width: 1 | 2 | 4 }) => number },
  { length }: Location
): Uint8Array => {
  const bytes = new Uint8Array(CONFIG_WIDTHS.reduce<number>((sum, width) => sum + width, 0))
  const view = new DataView(bytes.buffer)
  let at = 0
  for (const width of CONFIG_WIDTHS) {
    if (at + width > length) break
    const value = registers.read({ at, width })
    if (width === 1) view.setUint8(at, value)
    else if (width === 2) view.setUint16(at, value, true)
    else view.setUint32(at, value, true)
    at += width
  }
  return bytes.subarray(0, at)
}

/** Calls `onSignal` once such an interrupt comes, where the device has it. */
const onceSignalled = Effect.fnUntraced(function*(device: VfioDevice, index: number, onSignal: () => void) {
  if ((yield* device.interrupts(index)) === 0) return
  const fd = yield* Interrupts.openSignal(onSignal)
  yield* device.listen(index, [fd])
})

/** A doorbell takes the number of its queue, 16 bits (§4.1.5.2; NOTIFICATION_DATA is never negotiated). */
const DOORBELL_BYTES = 2

/**
 * Makes the function that rings a queue's doorbell: a store of 16 bits into the mapped BAR where that is possible, and a
 * pwrite otherwise. The driver has made the ring's index visible to the device before, by an atomic store.
 */
const openDoorbells = Effect.fnUntraced(function*(
  device: VfioDevice,
  { mappable, position }: Effect.Success<ReturnType<VfioDevice["place"]>>
) {
  const byWrite = (at: number, queue: number) => {
    const bytes = new Uint8Array(new Uint16Array([queue]).buffer)
    return () => {
      try {
        device.writeAt(bytes, position + at)
        return 0
      } catch (error) {
        return error instanceof SyscallError ? error.errno : Errno.EIO.errno
      }
    }
  }
  if (mappable === undefined) return byWrite
  const mapping = yield* Effect.acquireRelease(
    // Where mapping fails for want of address space, or of a kernel that maps this BAR, writing remains.
    Effect.sync(() => {
      try {
        return device.mapArea(mappable)
      } catch (error) {
        if (error instanceof SyscallError) return undefined
        throw error
      }
    }),
    (mapping) => Effect.sync(() => mapping && device.unmapArea(mapping))
  )
  if (mapping === undefined) return byWrite
  // One typed array for all queues: a store to it is one access of its width, which a DataView does not promise.
  const registers = new Uint16Array(mapping.buffer, 0, Math.floor(mapping.length / DOORBELL_BYTES))
  return (at: number, queue: number) => {
    const offset = position - mappable.offset + at
    if (offset % DOORBELL_BYTES !== 0) return byWrite(at, queue)
    const index = offset / DOORBELL_BYTES
    return () => {
      registers[index] = queue
      return 0
    }
  }
})
