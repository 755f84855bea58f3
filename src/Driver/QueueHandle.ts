/**
 * A queue that is handed from the thread of its device to another: what it is made of, as plain data, and what the two
 * threads say to each other about it.
 *
 * Rings and regions are files in memory, so the other thread maps them for itself, and drives the ring with an engine of its
 * own. No request passes between the threads. What does pass: that the device is gone or closing, that its rules have
 * changed; and back, that the device broke the protocol, and that the queue has ended.
 *
 * @since 0.1.0
 */
import type { MessagePort } from "node:worker_threads"
import * as Errno from "../Errno.ts"
import type { RingOptions } from "../Queue/DriverRing.ts"
import type { DeviceFailure, Waiting } from "../Queue/QueueEngine.ts"
import type { DeviceRules } from "../Queue/Request.ts"

/**
 * A piece of shared memory, and where the device sees it.
 *
 * @category models
 * @since 0.1.0
 */
export interface HandedMemory {
  readonly fd: number
  /** Where it begins in the file, in bytes. */
  readonly fdOffset: number
  readonly length: number
  /** The device's address of its first byte. */
  readonly address: number
}

/**
 * A queue on its way to another thread of this process. It can be posted once, with its `port` in the list of what is
 * transferred; `WorkerQueue.open` makes the queue of it there.
 *
 * @category models
 * @since 0.1.0
 */
export interface QueueHandle {
  /** Position among the queues of its kind, from 0. */
  readonly index: number
  readonly waiting: Waiting
  readonly layout: "split" | "packed"
  readonly ringOptions: RingOptions
  /** The memory of all rings, and where this one begins in it. */
  readonly rings: HandedMemory
  readonly ringOffset: number
  /** Where the ring goes on. */
  readonly position: number
  readonly kickFd: number
  readonly completionFd: number
  readonly signalsInTurn: boolean
  readonly rules: DeviceRules
  /** The regions that requests may use. */
  readonly regions: ReadonlyArray<HandedMemory>
  readonly requestTimeoutMs: number
  readonly deviceTimeoutMs: number
  readonly closeTimeoutMs: number
  /** The line to the thread of the device. */
  readonly port: MessagePort
}

/** A device's failure as plain data. */
export interface PlainFailure {
  readonly tag: DeviceFailure["_tag"]
  readonly operation: string
  readonly detail: string
  readonly queue?: number
}

/** What the thread of the device says. */
export type Order =
  | { readonly _tag: "rules"; readonly rules: DeviceRules }
  | { readonly _tag: "failed"; readonly failure: PlainFailure }
  | { readonly _tag: "end" }

/** What the thread that has the queue says. */
export type Report =
  | { readonly _tag: "opened" }
  | { readonly _tag: "failed"; readonly failure: PlainFailure }
  | { readonly _tag: "ended" }

/** Makes plain data of a failure; its cause stays behind. */
export const toPlain = ({ _tag, detail, operation, queue }: DeviceFailure): PlainFailure => ({
  tag: _tag,
  operation,
  detail,
  ...queue === undefined ? {} : { queue }
})

/** Makes a failure of plain data. */
export const fromPlain = ({ tag, ...fields }: PlainFailure): DeviceFailure => {
  switch (tag) {
    case "ENOTCONN":
      return new Errno.ENOTCONN(fields)
    case "ETIMEDOUT":
      return new Errno.ETIMEDOUT(fields)
    case "EPROTO":
      return new Errno.EPROTO(fields)
    case "ENODEV":
      return new Errno.ENODEV(fields)
    case "ESTALE":
      return new Errno.ESTALE(fields)
    case "ESHUTDOWN":
      return new Errno.ESHUTDOWN(fields)
  }
}
