/**
 * A PCI function's configuration space, as far as virtio needs it: identity, command register, and the capabilities that say
 * where a virtio device keeps its structures (PCI 3.0 §6.1 and §6.7, virtio 1.2 §4.1.4).
 *
 * The function is not trusted: a chain that leaves the space or goes round in circles, and a structure that is shorter than
 * it must be, are refused here; whether a structure lies within its BAR is known only to who asks the BAR's size. The first
 * usable capability of each type is taken, and unknown ones are ignored, as §4.1.4 demands.
 *
 * @since 0.1.0
 */
import { minimumLength, viewOf } from "./Bounds.ts"
import { WireError } from "./WireError.ts"

/**
 * Is the size of the configuration space that holds the capabilities, in bytes; PCI Express has more behind it.
 *
 * @since 0.1.0
 * @category constants
 */
export const CONFIG_SPACE_BYTES = 256

/**
 * Is the vendor of every virtio device (virtio 1.2 §4.1.2).
 *
 * @since 0.1.0
 * @category constants
 */
export const VIRTIO_VENDOR = 0x1af4

/**
 * Numbers the device ids of virtio (virtio 1.2 §4.1.2): what is below `MODERN` may speak the legacy interface, what is from
 * there on is 0x1040 and the type of the device.
 *
 * @since 0.1.0
 * @category constants
 */
export const DeviceId = {
  FIRST: 0x1000,
  TRANSITIONAL_BLOCK: 0x1001,
  MODERN: 0x1040,
  BLOCK: 0x1042,
  LAST: 0x107f
} as const

/**
 * Is where the command register lies, 16 bits wide (PCI 3.0 §6.2.2).
 *
 * @since 0.1.0
 * @category constants
 */
export const COMMAND = 0x04

/**
 * Numbers bits of the command register: to answer at its BARs, to access memory itself, and to keep INTx quiet.
 *
 * @since 0.1.0
 * @category constants
 */
export const CommandBit = { MEMORY: 2, BUS_MASTER: 4, INTX_DISABLE: 0x400 } as const

const STATUS = 0x06
const STATUS_HAS_CAPABILITIES = 0x10
const FIRST_CAPABILITY = 0x34
/** Below it lies the header that every function has. */
const HEADER_BYTES = 0x40
const CAP_VENDOR = 0x09
/** What fits between the header and the end, 4 bytes each at least. */
const MAX_CAPABILITIES = (CONFIG_SPACE_BYTES - HEADER_BYTES) / 4

/**
 * Where a structure of a virtio device lies.
 *
 * @since 0.1.0
 * @category models
 */
export interface Location {
  /** The BAR, 0 to 5. */
  readonly bar: number
  /** In bytes from the beginning of the BAR. */
  readonly offset: number
  readonly length: number
}

/**
 * Where a virtio device keeps its structures.
 *
 * @since 0.1.0
 * @category models
 */
export interface VirtioStructures {
  readonly common: Location
  readonly notify: Location
  /** How far apart the doorbells of queues lie, times each queue's `queue_notify_off`. */
  readonly notifyMultiplier: number
  readonly isr: Location
  /** Where a device has none, its configuration space is empty. */
  readonly device: Location | undefined
}

/** `cfg_type` (virtio 1.2 §4.1.4). */
const StructureType = { COMMON: 1, NOTIFY: 2, ISR: 3, DEVICE: 4 } as const

/** id u8 at 0, next u8 at 1, length u8 at 2, type u8 at 3, BAR u8 at 4, offset u32 at 8, length u32 at 12. */
const VIRTIO_CAP_BYTES = 16
/** With the multiplier, u32 at 16. */
const NOTIFY_CAP_BYTES = 20
const LAST_BAR = 5

/** What each structure must have at least: the common one up to `queue_device`, a doorbell, a byte of interrupt status. */
const COMMON_BYTES = 0x38
const NOTIFY_BYTES = 2
const ISR_BYTES = 1

/**
 * Finds where a virtio device keeps its structures; undefined where it has none, so that it speaks only the legacy interface.
 *
 * Throws a `WireError` for a broken chain, and for a device that has some structures but not all it must have.
 *
 * @since 0.1.0
 * @category decoders
 */
export const decodeVirtioStructures = (space: Uint8Array): VirtioStructures | undefined => {
  minimumLength("PCI configuration space", space, CONFIG_SPACE_BYTES)
  const view = viewOf(space)
  const found = new Map<number, { readonly location: Location; readonly at: number }>()
  for (const at of vendorCapabilities(view)) {
    if (at + VIRTIO_CAP_BYTES > CONFIG_SPACE_BYTES) continue
    const type = view.getUint8(at + 3)
    const length = view.getUint8(at + 2)
    const location = {
      bar: view.getUint8(at + 4),
      offset: view.getUint32(at + 8, true),
      length: view.getUint32(at + 12, true)
    }
    const wanted = type === StructureType.NOTIFY ? NOTIFY_CAP_BYTES : VIRTIO_CAP_BYTES
    const isUsable = length >= wanted && at + wanted <= CONFIG_SPACE_BYTES && location.bar <= LAST_BAR
      && location.length >= leastOf(type)
    if (isUsable && !found.has(type)) found.set(type, { location, at })
  }
  const common = found.get(StructureType.COMMON)
  const notify = found.get(StructureType.NOTIFY)
  const isr = found.get(StructureType.ISR)
  if (common === undefined && notify === undefined && isr === undefined) return undefined
  if (common === undefined || notify === undefined || isr === undefined) {
    const missing = Object.entries({ common, notify, isr }).flatMap(([name, it]) => it === undefined ? [name] : [])
    throw new WireError(`the device has no usable structure for ${missing.join(", ")}`)
  }
  return {
    common: common.location,
    notify: notify.location,
    notifyMultiplier: view.getUint32(notify.at + 16, true),
    isr: isr.location,
    device: found.get(StructureType.DEVICE)?.location
  }
}

const leastOf = (type: number): number =>
  type === StructureType.COMMON ? COMMON_BYTES : type === StructureType.NOTIFY ? NOTIFY_BYTES : ISR_BYTES

/** Where the capabilities of virtio begin. The two lowest bits of a pointer are reserved (PCI 3.0 §6.7). */
const vendorCapabilities = (view: DataView): ReadonlyArray<number> => {
  if ((view.getUint16(STATUS, true) & STATUS_HAS_CAPABILITIES) === 0) return []
  const vendor: Array<number> = []
  let at = view.getUint8(FIRST_CAPABILITY) & ~3
  for (let count = 0; at !== 0; count++) {
    if (at < HEADER_BYTES) {
      throw new WireError(`PCI capability at ${at}: must lie behind the header of ${HEADER_BYTES} bytes`)
    }
    if (count === MAX_CAPABILITIES) throw new WireError("the chain of PCI capabilities has a loop")
    if (view.getUint8(at) === CAP_VENDOR) vendor.push(at)
    at = view.getUint8(at + 1) & ~3
  }
  return vendor
}

/**
 * Locates the fields of the common configuration structure (virtio 1.2 §4.1.4.3). Their widths are part of their names' meaning
 * and kept with them: a field is read and written by one access of exactly that many bytes (§4.1.3.1).
 *
 * @since 0.1.0
 * @category constants
 */
export const CommonField = {
  DEVICE_FEATURE_SELECT: { at: 0x00, width: 4 },
  DEVICE_FEATURE: { at: 0x04, width: 4 },
  DRIVER_FEATURE_SELECT: { at: 0x08, width: 4 },
  DRIVER_FEATURE: { at: 0x0c, width: 4 },
  CONFIG_MSIX_VECTOR: { at: 0x10, width: 2 },
  NUM_QUEUES: { at: 0x12, width: 2 },
  DEVICE_STATUS: { at: 0x14, width: 1 },
  CONFIG_GENERATION: { at: 0x15, width: 1 },
  QUEUE_SELECT: { at: 0x16, width: 2 },
  QUEUE_SIZE: { at: 0x18, width: 2 },
  QUEUE_MSIX_VECTOR: { at: 0x1a, width: 2 },
  QUEUE_ENABLE: { at: 0x1c, width: 2 },
  QUEUE_NOTIFY_OFF: { at: 0x1e, width: 2 },
  QUEUE_DESC_LOW: { at: 0x20, width: 4 },
  QUEUE_DESC_HIGH: { at: 0x24, width: 4 },
  QUEUE_DRIVER_LOW: { at: 0x28, width: 4 },
  QUEUE_DRIVER_HIGH: { at: 0x2c, width: 4 },
  QUEUE_DEVICE_LOW: { at: 0x30, width: 4 },
  QUEUE_DEVICE_HIGH: { at: 0x34, width: 4 }
} as const

/**
 * Is what a vector reads back as that the device could not take, and what stands for none (virtio 1.2 §4.1.5.1.2).
 *
 * @since 0.1.0
 * @category constants
 */
export const NO_VECTOR = 0xffff

/**
 * Is what a register of 8 bits reads as when the function does not answer any more.
 *
 * @since 0.1.0
 * @category constants
 */
export const GONE = 0xff

/**
 * Numbers the bits of the interrupt status, which reading clears (virtio 1.2 §4.1.4.5): a queue has used buffers, the
 * configuration has changed.
 *
 * @since 0.1.0
 * @category constants
 */
export const IsrBit = { QUEUE: 1, CONFIG: 2 } as const
