/**
 * How a device's interrupts reach the completion event counters of its queues.
 *
 * With a vector of MSI-X for each queue and one for the configuration, the kernel itself signals each queue's counter and
 * nothing here runs. With fewer, queues share: a counter of our own stands behind the vector, and each signal of it is passed
 * on to every queue that might be meant, which costs a turn of the event loop. Without MSI-X the one INTx line is shared by
 * all; it is a level, so the kernel masks it when it comes, and it is unmasked once the device's interrupt status was read,
 * which lowers it.
 *
 * A queue that is signalled for another looks at its ring and finds nothing: wrong signals are harmless, lost ones are not.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { IsrBit, NO_VECTOR } from "../Wire/PciCapability.ts"
import { IrqIndex } from "../Wire/VfioIoctl.ts"
import * as EventFd from "./EventFd.ts"
import { call, OPERATION } from "./VfioCall.ts"
import type { Registers, VfioDevice } from "./VfioDevice.ts"

/** Which interrupts a device has to offer. */
export interface Available {
  readonly msix: number
  readonly intx: number
}

/** Who hears of what is no queue's. Called from inside the event loop's polling phase; must not throw. */
export interface Listener {
  /** The configuration may have changed; `isCertain` where the device says so. */
  readonly onConfig: (isCertain: boolean) => void
  /** The device does not answer. */
  readonly onFailure: (error: unknown) => void
}

/** Which vector each part of the device is given. */
export interface Vectors {
  readonly config: number
  /** By queue. */
  readonly queues: ReadonlyArray<number>
}

/** Deals vectors out: one for the configuration and one for each queue as long as there are as many, then shared ones. */
const deal = (vectors: number, queues: number): Vectors => ({
  config: 0,
  queues: Array.from({ length: queues }, (_, i) => vectors === 1 ? 0 : 1 + i % (vectors - 1))
})

/** What a device's interrupts are, once they are set up. */
export interface Routes extends Vectors {
  /** The kind that must be disabled in the end. */
  readonly index: number
}

/** Opens an event counter and calls `onSignal` whenever it was signalled, until the Scope closes. */
export const openSignal = Effect.fnUntraced(function*(onSignal: () => void) {
  const fd = yield* EventFd.open(OPERATION)
  yield* Effect.acquireRelease(
    call(() =>
      Poll.watch(fd, { readable: true }, () => {
        Libc.drainEventFd(fd)
        onSignal()
      }), { detail: "an event counter cannot be watched", tags: ["EMFILE", "ENFILE"] }),
    (watch) => Effect.sync(() => watch.close())
  )
  return fd
})

/** Sets the interrupts up that signal `completionFds`, one for each queue. */
export const route = (
  device: VfioDevice,
  available: Available,
  isr: Registers,
  completionFds: ReadonlyArray<number>,
  listener: Listener
): Effect.Effect<Routes, Errno.EIO | Errno.EMFILE | Errno.ENFILE, Scope.Scope> =>
  available.msix > 0
    ? routeVectors(device, Math.min(available.msix, completionFds.length + 1), completionFds, listener)
    : routeLine(device, isr, completionFds, listener)

/** The kernel answers with a smaller number where it has no more vectors to give: then that many are asked for. */
const routeVectors: (
  device: VfioDevice,
  count: number,
  completionFds: ReadonlyArray<number>,
  listener: Listener
) => Effect.Effect<Routes, Errno.EIO | Errno.EMFILE | Errno.ENFILE, Scope.Scope> = Effect.fnUntraced(
  function*(device, count, completionFds, listener) {
    const vectors = deal(count, completionFds.length)
    const fds: Array<number> = []
    for (let vector = 0; vector < count; vector++) {
      const served = completionFds.filter((_, queue) => vectors.queues[queue] === vector)
      const isConfig = vectors.config === vector
      const [only] = served
      fds.push(
        only !== undefined && served.length === 1 && !isConfig
          ? only
          : yield* openSignal(() => {
            served.forEach(Libc.signalEventFd)
            if (isConfig) listener.onConfig(served.length === 0)
          })
      )
    }
    const fewer = yield* device.listen(IrqIndex.MSIX, fds)
    return fewer > 0 && fewer < count
      ? yield* routeVectors(device, fewer, completionFds, listener)
      : { ...vectors, index: IrqIndex.MSIX }
  }
)

const ISR = { at: 0, width: 1 } as const

const routeLine = Effect.fnUntraced(function*(
  device: VfioDevice,
  isr: Registers,
  completionFds: ReadonlyArray<number>,
  listener: Listener
) {
  const fd = yield* openSignal(() => {
    try {
      const status = isr.read(ISR)
      if ((status & IsrBit.QUEUE) !== 0) completionFds.forEach(Libc.signalEventFd)
      if ((status & IsrBit.CONFIG) !== 0) listener.onConfig(true)
      device.unmask(IrqIndex.INTX)
    } catch (error) {
      listener.onFailure(error)
    }
  })
  yield* device.listen(IrqIndex.INTX, [fd])
  return { config: NO_VECTOR, queues: completionFds.map(() => NO_VECTOR), index: IrqIndex.INTX }
})
