/**
 * What a seed decides before a run begins: the shape of the device, how it works, what goes wrong, and who uses it.
 */
import { type Random, random } from "./Random.ts"

/** What goes wrong, and how. */
export type Fault =
  /** So many notifications are not heard; the device looks by itself `healMs` later, or not at all. */
  | { readonly kind: "dropped kick" | "dropped signal"; readonly count: number; readonly healMs: number }
  | { readonly kind: "failed kick"; readonly count: number }
  | { readonly kind: "delay"; readonly count: number; readonly delayMs: number }
  /** Nothing happens for so long. */
  | { readonly kind: "stall"; readonly stallMs: number }
  /** The backend goes away, and with it, in a crash, what was not flushed. Whoever reconnects is refused for so long. */
  | {
    readonly kind: "disconnect"
    readonly reason: "ENOTCONN" | "ENODEV" | "EPROTO" | "ETIMEDOUT"
    readonly crashes: boolean
    readonly awayMs: number
  }
  /** The device has met an error and wants to be reset, of which a connection says that it is lost. */
  | { readonly kind: "needs reset" }
  /** So many requests fail; of writes some sectors may be written. */
  | { readonly kind: "EIO burst"; readonly count: number }
  | { readonly kind: "unsupported"; readonly count: number }
  | { readonly kind: "protocol violation"; readonly how: Mischief }
  | { readonly kind: "resize"; readonly bytes: number }
  | { readonly kind: "config change" | "spurious signal" }
  | { readonly kind: "bad config"; readonly how: "block size" | "no disk" | "unreadable" }
  | { readonly kind: "failed connect"; readonly at: "connect" | "read config" | "negotiate" | "map" | "start" }
  /** The device says that it did what it did not do. */
  | { readonly kind: "lie"; readonly how: Lie }

/** Breaks of the protocol; the last two fail one request only. */
export type Mischief = (typeof mischiefs)[number]

const mischiefs = [
  "id out of range",
  "id not in flight",
  "repeated id",
  "more used than available",
  "length too long",
  "no status",
  "garbage status"
] as const

export type Lie = "lost write" | "torn write" | "misdirected write" | "misdirected read"

export const lies: ReadonlyArray<Lie> = ["lost write", "torn write", "misdirected write", "misdirected read"]

/** A fault, and the request at which it happens, counted over all queues. */
export interface PlannedFault {
  readonly at: number
  readonly fault: Fault
}

export interface Device {
  readonly packed: boolean
  readonly indirect: boolean
  readonly eventIdx: boolean
  readonly eventQueues: number
  readonly pollQueues: number
  readonly queueSize: number
  readonly blockBytes: number
  readonly sizeMax: number
  readonly segMax: number
  readonly canFlush: boolean
  readonly canDiscard: boolean
  readonly canWriteZeroes: boolean
  readonly mayUnmap: boolean
  readonly signalsInTurn: boolean
}

/** How the device works. */
export interface Pace {
  /** Looks at the ring while it is notified. */
  readonly atOnce: boolean
  /** Answers in the order in which it was asked. */
  readonly inOrder: boolean
  /** Looks at the ring after each answer, without being asked to. */
  readonly keepsLooking: boolean
  /** One request in so many takes up to `delayMs`; 0: none. */
  readonly slow: number
  readonly delayMs: number
}

export interface Reconnect {
  readonly everyMs: number
  readonly withinMs: number
  readonly maxWaiting: number
  readonly keepsCache: boolean
}

export type Actor = "requests" | "stream" | "by hand" | "store" | "memory" | "configuration"

export interface Plan {
  readonly seed: number
  readonly device: Device
  readonly pace: Pace
  readonly waiting: "event" | "adaptive"
  /** `Infinity`: requests may take as long as they will. */
  readonly requestTimeoutMs: number
  readonly deviceTimeoutMs: number
  readonly closeTimeoutMs: number
  /** How the driver gets the device back; undefined: not at all. */
  readonly reconnect: Reconnect | undefined
  readonly faults: ReadonlyArray<PlannedFault>
  /** When the Scope is closed, whatever is going on; `Infinity`: when all is done. */
  readonly closeAtMs: number
  /** What is not flushed may be lost between the sessions. */
  readonly crashes: boolean
  /** Whether calls are interrupted. */
  readonly interrupts: boolean
  readonly actors: ReadonlyArray<Actor>
  /** Requests of each actor. */
  readonly length: number
  /** See `EventLoop`. */
  readonly yields: number
  readonly beside: number
}

/** Bytes of the disk. */
export const DISK_BYTES = 2 ** 16

const chooseFault = (of: Random): Fault => {
  const count = of.between(1, 4)
  switch (of.below(16)) {
    case 0:
      return { kind: "dropped kick", count, healMs: of.one([Infinity, 1, 20]) }
    case 1:
      return { kind: "dropped signal", count, healMs: of.one([Infinity, 1, 20]) }
    case 2:
      return { kind: "failed kick", count }
    case 3:
      return { kind: "delay", count: of.between(1, 16), delayMs: of.between(1, 200) }
    case 4:
      return { kind: "stall", stallMs: of.one([5, 100, 10_000, Infinity]) }
    case 5:
    case 6:
      return {
        kind: "disconnect",
        reason: of.one(["ENOTCONN", "ENOTCONN", "ENOTCONN", "ENODEV", "EPROTO", "ETIMEDOUT"]),
        crashes: of.chance(50),
        awayMs: of.one([0, 0, 7, 100, 10_000])
      }
    case 7:
      return { kind: "needs reset" }
    case 8:
    case 9:
      return { kind: "EIO burst", count: of.between(1, 12) }
    case 10:
      return { kind: "unsupported", count }
    case 11:
      return { kind: "protocol violation", how: of.one(mischiefs) }
    case 12:
      return { kind: "resize", bytes: of.one([DISK_BYTES / 2, DISK_BYTES * 3 / 4, DISK_BYTES * 2]) }
    case 13:
      return { kind: of.one(["config change", "spurious signal"]) }
    case 14:
      return { kind: "bad config", how: of.one(["block size", "no disk", "unreadable"]) }
    default:
      return { kind: "failed connect", at: of.one(["connect", "read config", "negotiate", "map", "start"]) }
  }
}

const chooseDevice = (of: Random): Device => {
  const indirect = of.chance(70)
  const eventQueues = of.between(1, 2)
  return {
    packed: of.chance(40),
    indirect,
    eventIdx: of.chance(70),
    eventQueues,
    pollQueues: of.chance(30) ? 1 : 0,
    queueSize: indirect ? of.one([1, 2, 4, 8, 64]) : of.one([4, 8, 32]),
    blockBytes: of.one([512, 512, 4096]),
    sizeMax: of.one([0, 4096, 8192]),
    segMax: of.one([0, 1, 4, 126]),
    canFlush: of.chance(85),
    canDiscard: of.chance(70),
    canWriteZeroes: of.chance(70),
    mayUnmap: of.chance(50),
    signalsInTurn: of.chance(50)
  }
}

const allActors: ReadonlyArray<Actor> = ["requests", "stream", "by hand", "store", "memory", "configuration"]

/** Only one takes completions by hand: whoever else did so on the same queue would take his. */
const chooseActors = (of: Random): ReadonlyArray<Actor> => {
  const actors = Array.from({ length: of.between(1, 4) }, () => of.one(allActors))
  return actors.filter((actor, i) => actor !== "by hand" || actors.indexOf(actor) === i)
}

/** The plan of a seed. */
export const fromSeed = (seed: number): Plan => {
  const of = random(seed)
  const faults = Array.from({ length: of.one([0, 1, 1, 2, 3]) }, () => ({
    at: of.chance(50) ? of.below(8) : of.below(100),
    fault: chooseFault(of)
  }))
  const pace = {
    atOnce: of.chance(30),
    inOrder: of.chance(50),
    keepsLooking: of.chance(30),
    slow: of.one([0, 2, 8]),
    delayMs: of.one([1, 10])
  }
  const reconnect = of.chance(50)
    ? {
      everyMs: of.one([1, 30]),
      withinMs: of.one([50, 2000]),
      maxWaiting: of.one([0, 2, 4096]),
      keepsCache: of.chance(30)
    }
    : undefined
  return {
    seed,
    device: chooseDevice(of),
    pace,
    waiting: of.one(["event", "adaptive"]),
    requestTimeoutMs: of.chance(30) ? of.between(100, 400) : Infinity,
    deviceTimeoutMs: of.between(500, 3000),
    reconnect,
    closeTimeoutMs: of.one([0, 50, 2000]),
    faults,
    closeAtMs: of.chance(25) && reconnect === undefined ? of.below(60) : Infinity,
    crashes: of.chance(60),
    interrupts: of.chance(50),
    actors: chooseActors(of),
    length: of.between(4, 24),
    yields: of.one([0, 0, 5, 50]),
    beside: of.one([0, 30])
  }
}

/** The plan of a seed whose device lies once, and does nothing else wrong. */
export const liar = (seed: number, how: Lie): Plan => {
  const plan = fromSeed(seed)
  return {
    ...plan,
    faults: [{ at: seed % 7, fault: { kind: "lie", how } }],
    requestTimeoutMs: Infinity,
    closeAtMs: Infinity,
    crashes: false,
    interrupts: false,
    // The store also reads what it is about to overwrite, where a lie does not show.
    actors: how === "misdirected read" ? ["requests", "requests"] : ["requests", "requests", "store"],
    length: 24
  }
}
