/**
 * Rings and queues with a fake device at their other end, in ordinary memory. When a queue's scope closes, a driver that broke a
 * rule fails the test.
 */
import { Effect, type Scope } from "effect"
import { deepStrictEqual } from "node:assert"
import * as Errno from "../../src/Errno.ts"
import { AddressSpace } from "../../src/Memory/AddressSpace.ts"
import type { MemoryRegion } from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import type { DriverRing, RingOptions } from "../../src/Queue/DriverRing.ts"
import * as IoQueue from "../../src/Queue/IoQueue.ts"
import { PackedRing } from "../../src/Queue/PackedRing.ts"
import { QueueEngine, type Waiting } from "../../src/Queue/QueueEngine.ts"
import type { DeviceRules } from "../../src/Queue/Request.ts"
import { SplitRing } from "../../src/Queue/SplitRing.ts"
import { SECTOR_BYTES } from "../../src/Wire/VirtioBlk.ts"
import { FakeDevice, type Order, type Shared } from "../../src/testing/FakeDevice.ts"
import { FakeDisk } from "../../src/testing/FakeDisk.ts"

/** A device that allows everything, with a disk of `capacity` bytes. */
export const rulesOf = (capacity: number, maxSegments: number): DeviceRules => ({
  capacity,
  requestAlignment: SECTOR_BYTES,
  readOnly: false,
  canFlush: true,
  canDiscard: true,
  canWriteZeroes: true,
  mayUnmap: true,
  writeCache: true,
  maxTransfer: 0,
  maxSegmentLength: 0,
  maxSegments,
  maxDiscardLength: 0,
  maxWriteZeroesLength: 0
})

/** A region that is only memory: nothing here asks the kernel for it. */
export const fakeRegion = (length: number): MemoryRegion => ({
  bytes: new Uint8Array(new ArrayBuffer(length)),
  length,
  fd: -1,
  fdOffset: 0,
  file: "memory",
  address: 0
})

/** When a device looks at its ring: inside the notification, a turn of the event loop later, or when told to. */
export type Working = "at once" | "next turn" | "by hand"

export interface QueueOptions {
  readonly packed?: boolean
  readonly queueSize?: number
  readonly indirect?: boolean
  readonly eventIdx?: boolean
  readonly maxSegments?: number
  readonly waiting?: Waiting
  readonly rules?: Partial<DeviceRules>
  readonly signalsInTurn?: boolean
  readonly working?: Working
  readonly order?: Order
}

/** A queue with a fake device behind it. */
export interface FakeQueue {
  readonly queue: IoQueue.IoQueue
  readonly engine: QueueEngine
  readonly ring: DriverRing
  readonly space: AddressSpace
  readonly device: FakeDevice
  readonly region: MemoryRegion
  /** The memory the ring lies in. */
  readonly memory: ArrayBuffer
  readonly rules: DeviceRules
  /** `length` bytes of mapped memory that nothing else uses. */
  readonly buffer: (length: number) => Uint8Array
  /** What happens at a notification; answers 0 or an errno. */
  notify: () => number
  notifications: number
  /** What the engine said of the device. */
  readonly faults: Array<Errno.EPROTO>
}

/** High addresses, so that all 64 bits of an address are seen to arrive. */
export const RING_ADDRESS = 2 ** 44 + 2 ** 33
/** Bytes before the ring in its memory, unless told otherwise. */
export const RING_OFFSET = 128
const REGION_ADDRESS = 2 ** 46 + 2 ** 32 * 5
const REGION_BYTES = 1 << 20
const DISK_BYTES = 1 << 20

/** Makes a ring over ordinary memory, and the device at its other end. */
export const makeRing = (
  options: RingOptions & { readonly packed: boolean },
  others: {
    readonly memory?: ReadonlyArray<Shared>
    readonly disk?: Uint8Array
    readonly signal?: () => void
    readonly order?: Order
    /** Bytes before the ring in its memory. */
    readonly offset?: number
  } = {}
): { readonly ring: DriverRing; readonly device: FakeDevice; readonly memory: ArrayBuffer } => {
  const { disk = new Uint8Array(DISK_BYTES), offset = RING_OFFSET, order = "fifo", signal = () => {} } = others
  const Ring = options.packed ? PackedRing : SplitRing
  const buffer = new ArrayBuffer(offset + Ring.bytes(options))
  const ring = new Ring(options, { buffer, offset, address: RING_ADDRESS })
  const memory = [{ buffer, address: RING_ADDRESS }, ...others.memory ?? []]
  const { eventIdx, indirect, maxSegments, packed } = options
  const device = new FakeDevice({
    ring,
    packed,
    memory,
    indirect,
    eventIdx,
    maxSegments,
    disk: new FakeDisk(disk),
    signal,
    order
  })
  return { ring, device, memory: buffer }
}

/** Makes a queue with a fake device behind it. */
export const make = (options: QueueOptions = {}): Effect.Effect<FakeQueue, never, Scope.Scope> => {
  const { eventIdx = true, indirect = true, order = "fifo", packed = false, queueSize = 16, waiting = "event" } =
    options
  const { maxSegments = indirect ? queueSize : queueSize - 2, working = "at once" } = options
  const open = Effect.sync((): FakeQueue & { readonly fd: number } => {
    const fd = Libc.createEventFd()
    const region = fakeRegion(REGION_BYTES)
    const { device, memory, ring } = makeRing({ packed, queueSize, indirect, eventIdx, maxSegments }, {
      memory: [{ buffer: region.bytes.buffer, address: REGION_ADDRESS }],
      signal: () => Libc.signalEventFd(fd),
      order
    })
    const space = new AddressSpace({ maxRegions: 8, alignment: 1 })
    space.add(region, REGION_ADDRESS)
    const rules = { ...rulesOf(device.disk.length, maxSegments), ...options.rules }
    const faults: Array<Errno.EPROTO> = []
    let allocated = 0
    const made = {
      fd,
      region,
      memory,
      device,
      ring,
      space,
      rules,
      faults,
      notifications: 0,
      notify: () => {
        if (working === "at once") device.work()
        if (working === "next turn") setImmediate(() => device.work())
        return 0
      },
      buffer: (length: number) => {
        const at = allocated
        allocated += length
        return region.bytes.subarray(at, at + length)
      }
    }
    const engine: QueueEngine = new QueueEngine({
      index: 0,
      waiting,
      ring,
      rules,
      memory: space,
      notify: () => {
        made.notifications++
        return made.notify()
      },
      completionFd: fd,
      signalsInTurn: options.signalsInTurn ?? true,
      onFault: (failure) => {
        faults.push(failure)
        engine.fail(failure)
      }
    })
    return Object.assign(made, { engine, queue: IoQueue.fromEngine(engine, 0) })
  })
  return Effect.acquireRelease(open, ({ device, engine, fd }) =>
    Effect.sync(() => {
      engine.fail(new Errno.ESHUTDOWN({ operation: "close", detail: "the test is over" }))
      Libc.close(fd)
      deepStrictEqual(device.violations, [], "the driver broke rules")
    }))
}

/** Runs a test against a queue of its own. */
export const using = <A, E>(
  options: QueueOptions,
  use: (fake: FakeQueue) => Effect.Effect<A, E, Scope.Scope>
): Effect.Effect<A, E> => Effect.scoped(Effect.flatMap(make(options), use))
