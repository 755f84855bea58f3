/**
 * A device under test, what is known of it beforehand, and how its disk is divided between the two sides.
 *
 * The suite knows nothing of where a device comes from and uses only the public API, no test runner: it has to run in a
 * guest, too. The disk has a part that the other side has written before, one that belongs to the checks, and one that
 * this side writes and the other side looks at afterwards.
 */
import { Effect, type Scope } from "effect"
import { type Transport, VirtioBlk } from "../../src/index.ts"

export const KiB = 1024
export const MiB = 1024 * KiB

export type Recipe = typeof Transport.Service
export type Properties = Effect.Success<VirtioBlk.ConnectedDevice["properties"]["getAll"]>

/** What is known of a device beforehand. */
export interface Facts {
  /** Its properties, as far as they are known. */
  readonly properties: Partial<Properties> & Pick<Properties, "capacity" | "maxQueues">
  /** Requests that not every device takes. */
  readonly offers: { readonly discard: boolean; readonly writeZeroes: boolean }
  /** What the kernel answers to a second opener; undefined where it does not say no. */
  readonly secondOpener: string | undefined
  /** How many descriptors a ring of the device may have; what the transport could take may be more. */
  readonly largestRing: number
}

/**
 * How much is checked: everything, or what is essential where a device differs in one respect only from one of which
 * everything is checked.
 */
export type Extent = "everything" | "essential"

/** A device under test. */
export interface Target {
  readonly name: string
  readonly recipe: Recipe
  readonly facts: Facts
}

/** One check: a goal in a few words, and what fails or dies where it is not met. */
export interface Check {
  readonly name: string
  /** Whether there is anything to check on a device of which this is known. */
  readonly applies?: (facts: Facts) => boolean
  readonly isEssential?: true
  readonly body: (target: Target) => Effect.Effect<unknown, unknown, Scope.Scope>
}

/** The smallest disk on which the suite can run. */
export const CAPACITY = 64 * MiB

/** What the other side has written before, and the checks only read. */
export const foreign = { offset: 0, length: 256 * KiB, round: 0x51 } as const
/** What belongs to the checks. */
export const work = { offset: MiB, length: 46 * MiB } as const
/** What this side writes, and the other side finds afterwards. The hole reads as zeroes. */
export const lasting = { offset: 48 * MiB, length: MiB, round: 0xa7, hole: 256 * KiB, holeLength: 128 * KiB } as const

const SECTOR_BYTES = 512

/** What every sector has: whatever a place lacks of it is noticed. */
const filling = Uint8Array.from({ length: SECTOR_BYTES }, (_, i) => i * 167 + (i >> 3))

/** Fills with bytes that tell, sector by sector, where on the disk they belong, and of which round they are. */
export const fillPattern = (bytes: Uint8Array, offset: number, round: number): Uint8Array => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
    bytes.set(filling.subarray(0, Math.min(SECTOR_BYTES, bytes.length - at)), at)
    view.setUint32(at, (offset + at) / SECTOR_BYTES)
    view.setUint32(at + 4, round)
  }
  return bytes
}

/** What the other side has to write before. */
export const foreignBytes = (): Uint8Array => fillPattern(new Uint8Array(foreign.length), foreign.offset, foreign.round)

/** What the other side has to find afterwards. */
export const lastingBytes = (): Uint8Array =>
  fillPattern(new Uint8Array(lasting.length), lasting.offset, lasting.round)
    .fill(0, lasting.hole, lasting.hole + lasting.holeLength)

/** Connects to the device and starts it. */
export const open = ({ recipe }: Target, options: VirtioBlk.Options = {}) => VirtioBlk.make(recipe, options)

/** The three ways in which a queue waits. */
export const waits = {
  event: { waiting: "event" },
  adaptive: { waiting: "adaptive" },
  poll: { numQueues: 0, numPollQueues: 1 }
} as const satisfies { readonly [kind: string]: VirtioBlk.Options }

export const kinds = ["event", "adaptive", "poll"] as const

export const unlimited = { concurrency: "unbounded", discard: true } as const

/** The errno by whose name an effect fails; dies where it succeeds. */
export const errnoOf = <E extends { readonly _tag: string }, R>(effect: Effect.Effect<unknown, E, R>) =>
  Effect.matchEffect(effect, {
    onFailure: ({ _tag }) => Effect.succeed(_tag),
    onSuccess: () => Effect.die(new Error("it succeeded, where it should have failed"))
  })
