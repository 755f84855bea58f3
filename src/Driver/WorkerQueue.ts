/**
 * A queue of a device that lives in another thread of this process. One thread drives a ring; with a queue for each thread,
 * a program uses as many processors as the device has queues.
 *
 * The thread of the device takes a queue out with `disk.handOver`, and posts what it gets, with its `port` in the list of
 * what is transferred. {@link open} makes the queue of it in the other thread.
 *
 * The device stays where it was made: when it is lost, closed or resized, the queue hears of it. The queue's own Scope ends
 * it, too: what is in flight is waited for, as when a device closes.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { type MessagePort, receiveMessageOnPort } from "node:worker_threads"
import * as Errno from "../Errno.ts"
import { AddressSpace } from "../Memory/AddressSpace.ts"
import * as MemoryRegion from "../Memory/MemoryRegion.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import * as IoQueue from "../Queue/IoQueue.ts"
import { PackedRing } from "../Queue/PackedRing.ts"
import { type DeviceFailure, QueueEngine } from "../Queue/QueueEngine.ts"
import type { DeviceRules } from "../Queue/Request.ts"
import { SplitRing } from "../Queue/SplitRing.ts"
import { closed, drain, end, expire, watch } from "./EngineLife.ts"
import { fromPlain, type HandedMemory, type Order, type QueueHandle, type Report, toPlain } from "./QueueHandle.ts"

export type { HandedMemory, QueueHandle } from "./QueueHandle.ts"

/**
 * A queue in this thread, and the regions that its requests may use, as they are seen from here.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkerQueue {
  readonly queue: IoQueue.IoQueue
  /** In the order in which they were handed over. */
  readonly regions: ReadonlyArray<MemoryRegion.MemoryRegion>
  /** What the device allows, as its own thread tells of it. */
  readonly rules: DeviceRules
}

/**
 * What opening a queue may fail with: its memory or its descriptors cannot be had. ESHUTDOWN: the device, or a region that
 * goes with the queue, was closed meanwhile.
 *
 * @category errors
 * @since 0.1.0
 */
export type OpenError = MemoryRegion.MemoryError | Errno.ESHUTDOWN

/**
 * Opens a queue that another thread has handed over. It must go with its Scope: a thread that exits before leaves its
 * mappings and descriptors to the process.
 *
 * @category constructors
 * @since 0.1.0
 */
export const open = Effect.fn("WorkerQueue.open")(function*(
  handle: QueueHandle
): Effect.fn.Return<WorkerQueue, OpenError, Scope.Scope> {
  const { port } = handle
  yield* Effect.acquireRelease(
    Effect.sync(() => tell(port, { _tag: "opened" })),
    () =>
      Effect.sync(() => {
        tell(port, { _tag: "ended" })
        port.close()
      })
  )
  return yield* drive(handle).pipe(
    // Why the descriptors could not be had, where the device has said so.
    Effect.mapError((error) => arrived(port).some(isEnd) ? closed() : error),
    // Who goes on without the queue may keep its Scope, and the device is not to wait for that.
    Effect.onError(() => Effect.sync(() => tell(port, { _tag: "ended" })))
  )
})

const tell = (port: MessagePort, report: Report) => port.postMessage(report)

/** Takes the orders that have arrived. */
const arrived = (port: MessagePort): ReadonlyArray<Order> => {
  const orders: Array<Order> = []
  for (let got = receiveMessageOnPort(port); got !== undefined; got = receiveMessageOnPort(port)) {
    orders.push(got.message)
  }
  return orders
}

const isEnd = ({ _tag }: Order) => _tag === "end"

const drive = Effect.fnUntraced(function*(
  handle: QueueHandle
): Effect.fn.Return<WorkerQueue, OpenError, Scope.Scope> {
  const { port } = handle
  const rings = yield* map(handle.rings)
  const regions = yield* Effect.forEach(handle.regions, map)
  const kickFd = yield* copyOf(handle.kickFd)
  const completionFd = yield* copyOf(handle.completionFd)
  // Descriptors of a device that is gone may be anyone's by now. It says that it goes before it does.
  const early = arrived(port)
  if (early.some(isEnd)) return yield* closed()

  const space = new AddressSpace({ maxRegions: regions.length, alignment: 1 })
  for (const [i, region] of regions.entries()) space.add(region, handle.regions[i]?.address ?? 0)
  const rules: { -readonly [K in keyof DeviceRules]: DeviceRules[K] } = { ...handle.rules }
  const Ring = handle.layout === "packed" ? PackedRing : SplitRing
  const memory = { buffer: rings.bytes.buffer, offset: handle.ringOffset, address: handle.rings.address }
  const fail = (failure: DeviceFailure) => {
    tell(port, { _tag: "failed", failure: toPlain(failure) })
    engine.fail(failure)
  }
  const engine: QueueEngine = yield* Effect.acquireRelease(
    Effect.sync(() =>
      new QueueEngine({
        index: handle.index,
        waiting: handle.waiting,
        ring: new Ring(handle.ringOptions, memory, handle.position),
        rules,
        memory: space,
        notify: () => Libc.signalEventFd(kickFd),
        completionFd,
        signalsInTurn: handle.signalsInTurn,
        onFault: fail
      })
    ),
    (made) => end([made])
  )
  const closeTimeout = Duration.millis(handle.closeTimeoutMs)
  const isToEnd = yield* Deferred.make<void>()
  const heed = (order: Order) => {
    if (order._tag === "rules") Object.assign(rules, order.rules)
    else if (order._tag === "failed") engine.fail(fromPlain(order.failure))
    else Deferred.doneUnsafe(isToEnd, Exit.void)
  }
  early.forEach(heed)
  port.on("message", heed)
  yield* Deferred.await(isToEnd).pipe(
    Effect.andThen(drain([engine], closeTimeout)),
    Effect.andThen(end([engine])),
    Effect.andThen(Effect.sync(() => tell(port, { _tag: "ended" }))),
    Effect.forkScoped({ startImmediately: true })
  )
  port.once(
    "close",
    () => engine.fail(new Errno.ESHUTDOWN({ operation: "close", detail: "the thread of the device has ended" }))
  )
  yield* Effect.forkScoped(watch([engine], Duration.millis(handle.deviceTimeoutMs), fail))
  yield* Effect.forkScoped(expire([engine], Duration.millis(handle.requestTimeoutMs)))
  yield* Effect.addFinalizer(() => drain([engine], closeTimeout))
  return { queue: IoQueue.fromEngine(engine, handle.index), regions, rules }
})

const map = ({ fd, fdOffset, length }: HandedMemory) => MemoryRegion.fromFd({ fd, offset: fdOffset, length })

/** A descriptor of one's own, since the device may close its own first. */
const copyOf = (fd: number): Effect.Effect<number, OpenError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: () => Libc.duplicate(fd),
      catch: (cause) =>
        Errno.fromNumber(cause instanceof SyscallError ? cause.errno : 0, ["EBADF", "EMFILE"], {
          operation: "open queue",
          detail: `descriptor ${fd} of the queue cannot be had`,
          syscall: "fcntl",
          cause
        })
    }),
    (copy) => Effect.sync(() => Libc.close(copy))
  )
