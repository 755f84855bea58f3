/**
 * The requests a queue takes, and the rules they must keep before they come near the ring.
 *
 * A request is a plain object. A caller may use a larger one (an object with fields of its own that satisfies the
 * interface): its completion holds the very same object, so these fields serve as user data.
 *
 * @since 0.1.0
 */
import * as Errno from "../Errno.ts"
import type { AddressSpace } from "../Memory/AddressSpace.ts"
import { REQUEST_HEADER_BYTES, SECTOR_BYTES, Status, STATUS_BYTES } from "../Wire/VirtioBlk.ts"

/**
 * Flags of a request, in libblkio's numbers. `FUA`: completed only once the data is stable (write, writev, writeZeroes).
 * `NO_UNMAP`: zeroed blocks stay allocated (writeZeroes). `NO_FALLBACK`: fail instead of writing zeroes the slow way
 * (writeZeroes; a queue has no slow way, so there the flag changes nothing).
 *
 * @category constants
 * @since 0.1.0
 */
export const RequestFlag = { FUA: 1, NO_UNMAP: 2, NO_FALLBACK: 4 } as const

/**
 * Reads from `offset` (bytes) into `buffer`, which lies in a mapped region.
 *
 * @category models
 * @since 0.1.0
 */
export interface Read {
  readonly _tag: "read"
  readonly offset: number
  readonly buffer: Uint8Array
  readonly flags?: number
}

/**
 * Writes `buffer`, which lies in a mapped region, to `offset` (bytes). Flags: FUA.
 *
 * @category models
 * @since 0.1.0
 */
export interface Write {
  readonly _tag: "write"
  readonly offset: number
  readonly buffer: Uint8Array
  readonly flags?: number
}

/**
 * Reads from `offset` (bytes) into several buffers, one after another; empty ones are skipped.
 *
 * @category models
 * @since 0.1.0
 */
export interface Readv {
  readonly _tag: "readv"
  readonly offset: number
  readonly buffers: ReadonlyArray<Uint8Array>
  readonly flags?: number
}

/**
 * Writes several buffers to `offset` (bytes), one after another; empty ones are skipped. Flags: FUA.
 *
 * @category models
 * @since 0.1.0
 */
export interface Writev {
  readonly _tag: "writev"
  readonly offset: number
  readonly buffers: ReadonlyArray<Uint8Array>
  readonly flags?: number
}

/**
 * Makes `length` bytes from `offset` read as zeroes. Flags: FUA, NO_UNMAP, NO_FALLBACK.
 *
 * @category models
 * @since 0.1.0
 */
export interface WriteZeroes {
  readonly _tag: "writeZeroes"
  readonly offset: number
  readonly length: number
  readonly flags?: number
}

/**
 * Tells the device that `length` bytes from `offset` are no longer needed; what they read as afterwards is undefined.
 *
 * @category models
 * @since 0.1.0
 */
export interface Discard {
  readonly _tag: "discard"
  readonly offset: number
  readonly length: number
  readonly flags?: number
}

/**
 * Makes every write that completed before it was submitted stable.
 *
 * @category models
 * @since 0.1.0
 */
export interface Flush {
  readonly _tag: "flush"
  readonly flags?: number
}

/**
 * Any request.
 *
 * @category models
 * @since 0.1.0
 */
export type Request = Read | Write | Readv | Writev | WriteZeroes | Discard | Flush

/**
 * What is wrong with a request before it is queued.
 *
 * @category errors
 * @since 0.1.0
 */
export type InvalidRequest = Errno.EINVAL | Errno.ENOTSUP | Errno.EBADF | Errno.EFAULT

/**
 * What the started device allows. Capacity and write cache follow the device's configuration.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceRules {
  /** Bytes. */
  readonly capacity: number
  readonly requestAlignment: number
  readonly readOnly: boolean
  readonly canFlush: boolean
  readonly canDiscard: boolean
  readonly canWriteZeroes: boolean
  readonly mayUnmap: boolean
  /** The device may cache writes, so that FUA takes a flush. */
  readonly writeCache: boolean
  /** Bytes of one request; 0 means unspecified, as in the limits below. */
  readonly maxTransfer: number
  readonly maxSegmentLength: number
  readonly maxSegments: number
  readonly maxDiscardLength: number
  readonly maxWriteZeroesLength: number
}

const { FUA, NO_FALLBACK, NO_UNMAP } = RequestFlag

const allowedFlags: Record<Request["_tag"], number> = {
  read: 0,
  readv: 0,
  write: FUA,
  writev: FUA,
  writeZeroes: FUA | NO_UNMAP | NO_FALLBACK,
  discard: 0,
  flush: 0
}

/** A range's sector count travels in 32 bits (virtio 1.2 §5.2.6). */
const MAX_UINT32 = 2 ** 32 - 1
/** A chain may describe 2^32 bytes (virtio 1.2 §2.7.5); its header and its status are among them. */
const MAX_CHAIN_DATA = 2 ** 32 - REQUEST_HEADER_BYTES - STATUS_BYTES

/** How many bytes of the disk a request covers. */
const lengthOf = (request: Request): number => {
  switch (request._tag) {
    case "read":
    case "write":
      return request.buffer.length
    case "readv":
    case "writev":
      return request.buffers.reduce((sum, buffer) => sum + buffer.length, 0)
    case "writeZeroes":
    case "discard":
      return request.length
    case "flush":
      return 0
  }
}

/** The fields by which an error names a request. */
export const describe = (request: Request): { operation: string; offset?: number; length?: number } =>
  request._tag === "flush"
    ? { operation: "flush" }
    : { operation: request._tag, offset: request.offset, length: lengthOf(request) }

/** The error of a request that the device has answered with a status other than OK. */
export const failureOf = (
  request: Request,
  status: number,
  queue: number
): Errno.EIO | Errno.ENOTSUP | Errno.EPROTO => {
  const described = { ...describe(request), queue }
  switch (status) {
    case Status.IOERR:
      return new Errno.EIO({ ...described, detail: "the device reported an I/O error" })
    case Status.UNSUPP:
      return new Errno.ENOTSUP({ ...described, detail: "the device does not support the request" })
    case Status.UNWRITTEN:
      return new Errno.EPROTO({ ...described, detail: "the device completed the request without a status" })
    default:
      return new Errno.EPROTO({ ...described, detail: `the device gave the unknown status ${status}` })
  }
}

/**
 * Tells what is wrong with a request, if anything; the first rule that it breaks decides, in the order: flags, feature,
 * start, read-only, length, capacity, limits, segments, memory. Nothing is thrown, and a request that passes allocates
 * nothing.
 */
export const check = (
  request: Request,
  rules: DeviceRules,
  memory: AddressSpace
): InvalidRequest | undefined => {
  const { flags = 0 } = request
  // Anything but a small whole number differs from its own low bits.
  if ((flags & allowedFlags[request._tag]) !== flags) return flagsError(request, flags)
  switch (request._tag) {
    case "flush":
      return undefined
    case "read":
    case "write": {
      const { buffer } = request
      return checkRange(request, buffer.length, request._tag === "write", rules)
        ?? checkData(request, buffer.length, buffer.length, 1, rules)
        ?? (memory.translate(buffer) < 0 ? unmapped(request) : undefined)
    }
    case "readv":
    case "writev":
      return checkVector(request, rules, memory)
    case "discard":
      if (!rules.canDiscard) return unsupported(request, "DISCARD")
      return checkRange(request, request.length, true, rules)
        ?? checkRangeLimit(request, rules.maxDiscardLength, "max-discard-len")
        ?? checkSegments(request, 1, rules)
    case "writeZeroes":
      if (!rules.canWriteZeroes) return unsupported(request, "WRITE_ZEROES")
      return checkRange(request, request.length, true, rules)
        ?? checkRangeLimit(request, rules.maxWriteZeroesLength, "max-write-zeroes-len")
        ?? checkSegments(request, 1, rules)
  }
}

const invalid = (request: Request, detail: string): Errno.EINVAL => new Errno.EINVAL({ ...describe(request), detail })

const flagsError = (request: Request, flags: number): Errno.EINVAL => {
  const named = Object.entries(RequestFlag).find(([, bit]) => (flags & bit & ~allowedFlags[request._tag]) !== 0)
  const known = FUA | NO_UNMAP | NO_FALLBACK
  return invalid(
    request,
    (flags & ~known) !== 0 || named === undefined
      ? `flags ${flags} contain unsupported bits`
      : `flag ${named[0]} is not valid for ${request._tag}`
  )
}

const unsupported = (request: Request, feature: string): Errno.ENOTSUP =>
  new Errno.ENOTSUP({ ...describe(request), detail: `the device does not offer ${feature}` })

const checkRange = (
  request: Exclude<Request, Flush>,
  length: number,
  writes: boolean,
  rules: DeviceRules
): InvalidRequest | undefined => {
  const { offset } = request
  const { capacity, readOnly, requestAlignment } = rules
  const isRange = request._tag === "discard" || request._tag === "writeZeroes"
  if (!isMultiple(offset, requestAlignment)) {
    return invalid(request, `offset must be a multiple of request-alignment ${requestAlignment}`)
  }
  if (isRange && length % requestAlignment !== 0) {
    return invalid(request, `length must be a multiple of request-alignment ${requestAlignment}`)
  }
  if (writes && readOnly) return new Errno.EBADF({ ...describe(request), detail: "the device was started read-only" })
  if (length <= 0) {
    return isReleased(request) ? unmapped(request) : invalid(request, "length must be positive")
  }
  if (length % requestAlignment !== 0) {
    return invalid(request, `length must be a multiple of request-alignment ${requestAlignment}`)
  }
  // Subtraction, since the sum of two safe integers need not be one.
  if (length > capacity - offset) return invalid(request, `the range must end within capacity ${capacity}`)
  return undefined
}

/**
 * Whether a number is 0 or a multiple of a power of two. `%` says the same, but for numbers that do not fit 32 bits it is a call
 * that costs as much as all other checks.
 */
const isMultiple = (n: number, powerOfTwo: number): boolean =>
  n >= 0 && n < Infinity && Math.floor(n / powerOfTwo) * powerOfTwo === n

/** Whether a request covers nothing because the region of a buffer is gone. */
const isReleased = (request: Request): boolean =>
  "buffer" in request ? isDetached(request.buffer) : "buffers" in request && request.buffers.some(isDetached)

/** Whether the region a buffer lay in is gone, which leaves it empty. */
export const isDetached = ({ buffer }: Uint8Array): boolean => buffer instanceof ArrayBuffer && buffer.detached

const UNMAPPED =
  "the buffer must lie in a mapped memory region, and not in what a request that ran out of time still holds"

/** The buffers of a request's data. */
export const buffersOf = (request: Request): ReadonlyArray<Uint8Array> =>
  "buffer" in request ? [request.buffer] : "buffers" in request ? request.buffers : []

/** The error of a buffer the device cannot reach, or may not be given. */
export const unmapped = (request: Request): Errno.EFAULT => new Errno.EFAULT({ ...describe(request), detail: UNMAPPED })

/** Checks how much data a request carries, in how long and how many segments. */
const checkData = (
  request: Request,
  length: number,
  longest: number,
  segments: number,
  rules: DeviceRules
): Errno.EINVAL | undefined => {
  const { maxSegmentLength, maxTransfer } = rules
  if (maxTransfer > 0 && length > maxTransfer) return invalid(request, `length exceeds max-transfer ${maxTransfer}`)
  if (length > MAX_CHAIN_DATA) return invalid(request, `length exceeds the ${MAX_CHAIN_DATA} bytes of one request`)
  if (maxSegmentLength > 0 && longest > maxSegmentLength) {
    return invalid(request, `a segment of ${longest} bytes exceeds max-segment-len ${maxSegmentLength}`)
  }
  return checkSegments(request, segments, rules)
}

/** Without INDIRECT_DESC, a small ring may have no room for any segment at all. */
const checkSegments = (request: Request, segments: number, { maxSegments }: DeviceRules): Errno.EINVAL | undefined =>
  segments > maxSegments ? invalid(request, `${segments} segments exceed max-segments ${maxSegments}`) : undefined

const checkRangeLimit = (
  request: Discard | WriteZeroes,
  limit: number,
  property: string
): Errno.EINVAL | undefined => {
  if (limit > 0 && request.length > limit) return invalid(request, `length exceeds ${property} ${limit}`)
  if (request.length / SECTOR_BYTES > MAX_UINT32) return invalid(request, `length exceeds ${MAX_UINT32} sectors`)
  return undefined
}

const checkVector = (
  request: Readv | Writev,
  rules: DeviceRules,
  memory: AddressSpace
): InvalidRequest | undefined => {
  let length = 0
  let longest = 0
  let segments = 0
  for (const buffer of request.buffers) {
    length += buffer.length
    if (buffer.length > longest) longest = buffer.length
    if (buffer.length > 0) segments++
  }
  const wrong = checkRange(request, length, request._tag === "writev", rules)
    ?? checkData(request, length, longest, segments, rules)
  if (wrong !== undefined) return wrong
  for (const buffer of request.buffers) {
    if (buffer.length === 0 ? isDetached(buffer) : memory.translate(buffer) < 0) return unmapped(request)
  }
  return undefined
}
