/**
 * The property table: everything a device can be asked or told, once. Types, the string form, validation, the errnos of
 * wrong use and the documentation page are all derived from it.
 *
 * Names and meanings are libblkio's; `device-read-only`, `min-io-size` and `topology-alignment-offset` are additions. A
 * property of type uint64 whose value means "no limit" is `Infinity`.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { MAX_QUEUE_SIZE } from "../Wire/SplitRing.ts"
import { type BlkConfig, FeatureBit, hasFeature, SECTOR_BYTES } from "../Wire/VirtioBlk.ts"

/**
 * The phases of a device's life, in order.
 *
 * @category models
 * @since 0.1.0
 */
export type Phase = "created" | "connected" | "started"

/** The phases, in order. */
export const phases: ReadonlyArray<Phase> = ["created", "connected", "started"]

/**
 * What a property's value may be.
 *
 * @category models
 * @since 0.1.0
 */
export type PropertyType = "string" | "bool" | "int" | "uint64"

/** What is known of a device from its transport alone. */
export interface RecipeFacts {
  readonly driver: string
  readonly path: string
  readonly fd: number
}

/** What is known of a device once it is connected. */
export interface DeviceFacts {
  /** The negotiated features. */
  readonly features: bigint
  readonly config: BlkConfig
  readonly maxQueues: number
  readonly maxQueueSize: number
  /** Regions left to the application. */
  readonly maxRegions: number
  readonly regionAlignment: number
  readonly needsRegionFd: boolean
}

/** What the user has chosen. */
export interface Settings {
  readonly "read-only": boolean
  readonly "num-queues": number
  readonly "num-poll-queues": number
  readonly "queue-size": number
}

/** The settings of a new device. */
export const defaultSettings: Settings = {
  "read-only": false,
  "num-queues": 1,
  "num-poll-queues": 0,
  "queue-size": 256
}

/** All that a property's value may depend on; `device` is there from the phase `connected` on. */
export interface PropertySource {
  readonly recipe: RecipeFacts
  readonly settings: Settings
  readonly device: DeviceFacts | undefined
}

interface TypeOf {
  readonly string: string
  readonly bool: boolean
  readonly int: number
  readonly uint64: number
}

/** One row of the table. */
export interface PropertyDefinition<Type extends PropertyType = PropertyType> {
  readonly type: Type
  readonly unit: "bytes" | "queues" | "descriptors" | "segments" | "regions" | "descriptor" | ""
  /** The first phase in which it can be read; before, reading is ENODEV. */
  readonly readableFrom: "created" | "connected"
  /** The only phase in which it can be set (before: ENODEV, after: EBUSY); undefined where it cannot be (EACCES). */
  readonly settableIn: "created" | "connected" | undefined
  readonly meaning: string
  readonly value: (source: PropertySource) => TypeOf[Type]
  /** What a value that is set must keep to beyond its type. */
  readonly rule?: Schema.Codec<number>
}

const MAX_INT = 2 ** 31 - 1

/** The values of each type, as Schemas. */
export const typeSchemas = {
  string: Schema.String,
  bool: Schema.Boolean,
  int: Schema.Int.check(Schema.isBetween({ minimum: -MAX_INT - 1, maximum: MAX_INT })),
  uint64: Schema.Number.check(
    Schema.makeFilter((value) => value === Infinity || Number.isSafeInteger(value) && value >= 0 || "must be a uint64")
  )
} as const
const clamp = (value: number): number => Math.min(value, MAX_INT)

/**
 * The most segments of one request whatever the device says: libvhost-user's VIRTQUEUE_MAX_SIZE of 1024 descriptors a chain,
 * less header and status.
 */
const MAX_SEGMENTS = 1022

/** Descriptors of a chain that carry header and status. */
const CHAIN_ENDS = 2

const row = <const Type extends PropertyType>(
  type: Type,
  unit: PropertyDefinition["unit"],
  meaning: string,
  value: (source: PropertySource) => TypeOf[Type]
): PropertyDefinition<Type> & { readonly readableFrom: "created"; readonly settableIn: undefined } => ({
  type,
  unit,
  meaning,
  value,
  readableFrom: "created",
  settableIn: undefined
})

/** A fact that is read from the connected device, and has a default before. */
const fact = <const Type extends PropertyType>(
  type: Type,
  unit: PropertyDefinition["unit"],
  meaning: string,
  byDefault: TypeOf[Type],
  value: (device: DeviceFacts, settings: Settings) => TypeOf[Type]
) => row(type, unit, meaning, ({ device, settings }) => device === undefined ? byDefault : value(device, settings))

const offers = (device: DeviceFacts, feature: keyof typeof FeatureBit): boolean =>
  hasFeature(device.features, FeatureBit[feature])

const blockSize = (device: DeviceFacts): number => offers(device, "BLK_SIZE") ? device.config.blkSize : SECTOR_BYTES

const maxSegmentLength = (device: DeviceFacts): number => offers(device, "SIZE_MAX") ? clamp(device.config.sizeMax) : 0

const maxSegments = (device: DeviceFacts, settings: Settings): number => {
  const segments = offers(device, "SEG_MAX") ? Math.min(Math.max(device.config.segMax, 1), MAX_SEGMENTS) : 1
  return offers(device, "INDIRECT_DESC")
    ? segments
    : Math.max(1, Math.min(segments, settings["queue-size"] - CHAIN_ENDS))
}

const optimalAlignment = (device: DeviceFacts): number => {
  const block = blockSize(device)
  const physical = offers(device, "TOPOLOGY") ? block * 2 ** device.config.physicalBlockExp : block
  // A physical block beyond the property's range is no alignment anybody could use.
  return physical > MAX_INT ? block : physical
}

const Count = typeSchemas.int.check(Schema.isGreaterThanOrEqualTo(0, { message: "must be 0 or more" }))

const QueueSize = typeSchemas.int.check(
  Schema.isGreaterThan(0, { message: "must be positive" }),
  Schema.makeFilter((size) => (size & (size - 1)) === 0 || "must be a power of two"),
  Schema.isLessThanOrEqualTo(MAX_QUEUE_SIZE, { message: `must be at most ${MAX_QUEUE_SIZE}` })
)

/** The table. */
const propertyTable = {
  "driver": row("string", "", "The driver's name.", ({ recipe }) => recipe.driver),
  "path": row("string", "", "Socket, character device or sysfs directory of the device.", ({ recipe }) => recipe.path),
  "fd": row("int", "descriptor", "The descriptor that stands for the path, -1 for none.", ({ recipe }) => recipe.fd),
  "read-only": {
    ...row(
      "bool",
      "",
      "Whether writes are refused; a read-only device starts only with true.",
      ({ settings }) => settings["read-only"]
    ),
    settableIn: "created"
  },
  "device-read-only": fact(
    "bool",
    "",
    "Whether the device itself is read-only.",
    false,
    (device) => offers(device, "RO")
  ),
  "num-queues": {
    ...row("int", "queues", "Event queues to start.", ({ settings }) => settings["num-queues"]),
    settableIn: "connected",
    rule: Count
  },
  "num-poll-queues": {
    ...row("int", "queues", "Poll queues to start.", ({ settings }) => settings["num-poll-queues"]),
    settableIn: "connected",
    rule: Count
  },
  "queue-size": {
    ...row(
      "int",
      "descriptors",
      "Descriptors of each queue: a power of two.",
      ({ settings }) => settings["queue-size"]
    ),
    settableIn: "connected",
    rule: QueueSize
  },
  "max-queues": {
    ...row("int", "queues", "The most event and poll queues together.", ({ device }) => device?.maxQueues ?? 0),
    readableFrom: "connected"
  },
  "max-queue-size": fact(
    "int",
    "descriptors",
    "The largest queue-size.",
    MAX_QUEUE_SIZE,
    (device) => device.maxQueueSize
  ),
  "can-add-queues": row("bool", "", "Whether queues can be added after start.", () => false),
  "supports-poll-queues": row("bool", "", "Whether there may be poll queues.", () => true),
  "capacity": {
    ...row(
      "uint64",
      "bytes",
      "Size of the disk.",
      ({ device }) => Number(device?.config.capacitySectors ?? 0n) * SECTOR_BYTES
    ),
    readableFrom: "connected"
  },
  "can-grow": row("bool", "", "Whether a write past the end makes the disk larger.", () => false),
  "request-alignment": fact("int", "bytes", "What offset and length must be multiples of.", SECTOR_BYTES, blockSize),
  "optimal-io-alignment": fact(
    "int",
    "bytes",
    "Alignment of offset and length for best performance.",
    SECTOR_BYTES,
    optimalAlignment
  ),
  "optimal-io-size": fact(
    "int",
    "bytes",
    "Request length for best performance, 0 for none.",
    0,
    (device) => offers(device, "TOPOLOGY") ? clamp(blockSize(device) * device.config.optIoSize) : 0
  ),
  "min-io-size": fact(
    "int",
    "bytes",
    "Smallest request length without a penalty, 0 for unspecified.",
    0,
    (device) => offers(device, "TOPOLOGY") ? clamp(blockSize(device) * device.config.minIoSize) : 0
  ),
  "topology-alignment-offset": fact(
    "int",
    "bytes",
    "Offset of the first logical block that begins a physical one.",
    0,
    (device) => offers(device, "TOPOLOGY") ? clamp(blockSize(device) * device.config.alignmentOffset) : 0
  ),
  "discard-alignment": fact("int", "bytes", "What a discard is best aligned to.", SECTOR_BYTES, (device) => {
    const alignment = offers(device, "DISCARD") ? SECTOR_BYTES * device.config.discardSectorAlignment : 0
    return alignment > 0 && alignment <= MAX_INT ? alignment : blockSize(device)
  }),
  "discard-alignment-offset": row("int", "bytes", "Where that alignment begins; virtio defines none.", () => 0),
  "max-discard-len": fact(
    "uint64",
    "bytes",
    "The longest discard, 0 for unspecified.",
    0,
    (device) => offers(device, "DISCARD") ? SECTOR_BYTES * device.config.maxDiscardSectors : 0
  ),
  "max-write-zeroes-len": fact(
    "uint64",
    "bytes",
    "The longest write-zeroes, 0 for unspecified.",
    0,
    (device) => offers(device, "WRITE_ZEROES") ? SECTOR_BYTES * device.config.maxWriteZeroesSectors : 0
  ),
  "max-segment-len": fact("int", "bytes", "The longest segment of a request, 0 for unspecified.", 0, maxSegmentLength),
  "max-segments": fact("int", "segments", "The most segments of a request.", 1, maxSegments),
  "max-transfer": fact(
    "int",
    "bytes",
    "The longest read or write, 0 for unspecified.",
    0,
    (device, settings) =>
      offers(device, "SEG_MAX") ? clamp(maxSegmentLength(device) * maxSegments(device, settings)) : 0
  ),
  "buf-alignment": row("int", "bytes", "What a buffer's address and length must be multiples of.", () => 1),
  "optimal-buf-alignment": row("int", "bytes", "Alignment of a buffer for best performance.", () => 1),
  "supports-fua-natively": row("bool", "", "Whether FUA takes no flush.", () => false),
  "flush-needed": fact(
    "bool",
    "",
    "Whether a write is stable only after a flush.",
    true,
    (device) => offers(device, "CONFIG_WCE") ? device.config.writeback !== 0 : offers(device, "FLUSH")
  ),
  "needs-mem-regions": row("bool", "", "Whether buffers must lie in mapped regions.", () => true),
  "needs-mem-region-fd": fact(
    "bool",
    "",
    "Whether regions are shared by descriptor.",
    true,
    (device) => device.needsRegionFd
  ),
  "may-pin-mem-regions": row("bool", "", "Whether mapping may pin a region's pages.", () => true),
  "mem-region-alignment": fact(
    "uint64",
    "bytes",
    "What a region's address and length must be multiples of.",
    1,
    (device) => device.regionAlignment
  ),
  "max-mem-regions": {
    ...row("uint64", "regions", "The most regions mapped at once.", ({ device }) => device?.maxRegions ?? 0),
    readableFrom: "connected"
  }
} as const satisfies {
  readonly [name: string]:
    | PropertyDefinition<"string">
    | PropertyDefinition<"bool">
    | PropertyDefinition<"int">
    | PropertyDefinition<"uint64">
}

type Table = typeof propertyTable

/**
 * A property's name, as libblkio and the command line spell it.
 *
 * @category models
 * @since 0.1.0
 */
export type PropertyName = keyof Table

/** `num-queues` as a key of an object: `numQueues`. */
export type CamelCase<Name extends string> = Name extends `${infer Head}-${infer Tail}`
  ? `${Head}${Capitalize<CamelCase<Tail>>}`
  : Name

/**
 * The value of a property.
 *
 * @category models
 * @since 0.1.0
 */
export type PropertyValue<Name extends PropertyName = PropertyName> = TypeOf[Table[Name]["type"]]

/**
 * Names of the properties that can be read in a phase.
 *
 * @category models
 * @since 0.1.0
 */
export type Readable<P extends Phase> = P extends "created" ? {
    [Name in PropertyName]: Table[Name]["readableFrom"] extends "created" ? Name : never
  }[PropertyName]
  : PropertyName

/**
 * The properties of a phase, by camel-cased name.
 *
 * @category models
 * @since 0.1.0
 */
export type Values<P extends Phase> = {
  readonly [Name in Readable<P> as CamelCase<Name>]: PropertyValue<Name>
}

type SettableName<P extends Phase> = {
  [Name in PropertyName]: Table[Name]["settableIn"] extends P ? Name : never
}[PropertyName]

/**
 * What can be set in a phase, by camel-cased name; every other property is disallowed by type.
 *
 * @category models
 * @since 0.1.0
 */
export type Settable<P extends Phase> =
  & { readonly [Name in SettableName<P> as CamelCase<Name>]?: PropertyValue<Name> }
  & { readonly [Name in Exclude<PropertyName, SettableName<P>> as CamelCase<Name>]?: never }

/** The table as rows of one type. */
export const definitions: ReadonlyMap<string, PropertyDefinition> = new Map<string, PropertyDefinition>(
  Object.entries(propertyTable)
)

/** `num-queues` as a key of an object: `numQueues`. */
export const camelCase = (name: string): string =>
  name.replace(/-(?<letter>.)/gu, (_, letter: string) => letter.toUpperCase())
