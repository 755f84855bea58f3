/**
 * The other end: a device that works in simulated time, as its plan says, and goes wrong where the plan says so.
 *
 * A backend goes away and comes back: each connection to it is a {@link Link}, and what is to go wrong and the disk outlive
 * them all.
 */
import { Duration, Effect, Queue, Schedule } from "effect"
import * as Errno from "../../src/Errno.ts"
import type { Recipe } from "../../src/Transport/Transport.ts"
import { type BlkConfig, SECTOR_BYTES } from "../../src/Wire/VirtioBlk.ts"
import type { Shared } from "../../src/testing/DeviceRing.ts"
import type { Disk } from "./Disk.ts"
import type { EventLoop } from "./EventLoop.ts"
import { Link } from "./Link.ts"
import { type Device, DISK_BYTES, type Fault, type Pace, type PlannedFault, type Reconnect } from "./Plan.ts"
import type { Random } from "./Random.ts"

export interface BackendOptions {
  readonly device: Device
  readonly pace: Pace
  readonly faults: ReadonlyArray<PlannedFault>
  readonly disk: Disk
  readonly loop: EventLoop
  readonly random: Random
  readonly log: (text: string) => void
  /** Hears of what the driver must not do. */
  readonly complain: (text: string) => void
  /** Whether the driver may have given the device up, and taken memory back from requests that were not answered. */
  readonly isGivenUp: () => boolean
  /** How the driver is to get the device back. */
  readonly reconnect: Reconnect | undefined
  /** Has the disk lose what was not flushed. */
  readonly crash: () => void
  /** Hears that a device went away. */
  readonly ended: () => void
}

/** What the errors of a device that goes wrong name. */
export const OPERATION = "simulation"
/** What may come of an answer that is late, or never comes. */
export const LATE = ["ETIME", "ETIMEDOUT"]
/** What may come of a backend that went away: it may not come back, or be another one; and a flush tells of lost writes. */
export const AWAY = ["ENOTCONN", "ESTALE", "EIO", ...LATE]

/** What is still to go wrong. */
interface Pending {
  droppedKicks: number
  droppedSignals: number
  failedKicks: number
  delays: number
  errors: number
  unsupported: number
}

export class Backend {
  /** What went wrong so far, by kind. */
  readonly injected: Array<Fault["kind"]> = []
  /** The errnos that may come of it. */
  readonly excuses = new Set<string>()
  readonly options: BackendOptions
  readonly pending: Pending = {
    droppedKicks: 0,
    droppedSignals: 0,
    failedKicks: 0,
    delays: 0,
    errors: 0,
    unsupported: 0
  }
  /** What is planned and has not gone wrong yet. */
  readonly planned: Array<PlannedFault>
  config: BlkConfig
  isConfigReadable = true
  /** How many requests were taken. */
  requests = 0
  capacity = DISK_BYTES
  stalledUntil = 0
  /** Until then the backend is away. */
  awayUntil = 0
  /** When the device hears of a notification that was dropped, and how long what is delayed takes. */
  healMs = Infinity
  delayMs = 0
  /** The last there was. */
  link: Link | undefined
  readonly #links: Array<Link> = []

  constructor(options: BackendOptions) {
    this.options = options
    this.planned = [...options.faults]
    const { blockBytes, eventQueues, mayUnmap, pollQueues, segMax, sizeMax } = options.device
    this.config = {
      capacitySectors: BigInt(DISK_BYTES / SECTOR_BYTES),
      sizeMax,
      segMax,
      blkSize: blockBytes,
      physicalBlockExp: 0,
      alignmentOffset: 0,
      minIoSize: 1,
      optIoSize: 0,
      writeback: 1,
      numQueues: eventQueues + pollQueues,
      maxDiscardSectors: 64,
      maxDiscardSeg: 1,
      discardSectorAlignment: 1,
      maxWriteZeroesSectors: 32,
      maxWriteZeroesSeg: 1,
      writeZeroesMayUnmap: mayUnmap ? 1 : 0
    }
  }

  get recipe(): Recipe {
    const { loop, reconnect } = this.options
    const refuse = (detail: string) => new Errno.ECONNREFUSED({ operation: OPERATION, detail })
    return {
      driver: "virtio-blk-vhost-user",
      path: "/run/simulated.sock",
      fd: -1,
      ...(reconnect === undefined ? {} : {
        reconnect: {
          schedule: Schedule.spaced(reconnect.everyMs),
          within: Duration.millis(reconnect.withinMs),
          maxWaiting: reconnect.maxWaiting,
          keepsCache: reconnect.keepsCache
        }
      }),
      connect: Effect.gen({ self: this }, function*() {
        this.options.log(loop.now < this.awayUntil ? "connecting in vain" : "connecting")
        if (loop.now < this.awayUntil) return yield* refuse("the backend is away")
        yield* this.mayFail("connect", refuse("as planned"))
        const changed = yield* Effect.acquireRelease(Queue.unbounded<void>(), Queue.shutdown)
        const link = new Link(this, changed)
        this.stalledUntil = 0
        this.link = link
        this.#links.push(link)
        yield* Effect.addFinalizer(() => Effect.sync(() => link.end("disconnected")))
        return link.connection
      })
    }
  }

  /** Whether a device still serves. */
  get isAlive(): boolean {
    return this.#links.some(({ isAlive }) => isAlive)
  }

  /** What is mapped, of all links. */
  get memory(): ReadonlyArray<Shared> {
    return this.#links.flatMap(({ memory }) => memory)
  }

  /** What the driver did wrong, as its device saw it. */
  get violations(): ReadonlyArray<string> {
    return this.#links.flatMap(({ violations }) => violations)
  }

  /** Fails where that is planned. */
  mayFail<E>(at: (Fault & { readonly kind: "failed connect" })["at"], error: E): Effect.Effect<void, E> {
    return Effect.suspend(() => {
      const place = this.planned.findIndex(({ at: from, fault }) =>
        fault.kind === "failed connect" && fault.at === at && from <= this.requests
      )
      if (place < 0) return Effect.void
      const [{ fault }] = this.planned.splice(place, 1) as [PlannedFault]
      this.happened(fault, "EIO", "ECONNREFUSED", "EMFILE")
      return Effect.fail(error)
    })
  }

  /** Notes that something goes wrong, and which errnos may come of it. */
  happened(fault: Fault, ...excuses: ReadonlyArray<string>): void {
    this.options.log(`fault: ${JSON.stringify(fault)}`)
    this.injected.push(fault.kind)
    // A device that may be silent may be lost, where it is to be got back.
    const also = excuses.includes("ETIMEDOUT") && this.options.reconnect !== undefined ? AWAY : []
    for (const excuse of [...excuses, ...also]) this.excuses.add(excuse)
  }
}
