/**
 * The checks that every wire module makes before it trusts a number or a length, and the 64-bit fields that hold numbers.
 *
 * Addresses, sizes and offsets are JavaScript numbers here, whole and at most 2^53-1; a 64-bit field above that is refused
 * rather than rounded. Fields that may use all 64 bits (feature sets) are bigints and do not pass through this module.
 *
 * @since 0.1.0
 */
import { WireError } from "./WireError.ts"

/**
 * Is the largest value of an 8-bit field.
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_U8 = 0xff

/**
 * Is the largest value of a 16-bit field.
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_U16 = 0xffff

/**
 * Is the largest value of a 32-bit field.
 *
 * @since 0.1.0
 * @category constants
 */
export const MAX_U32 = 0xffff_ffff

/** The largest value of a 64-bit field. */
const MAX_U64 = 0xffff_ffff_ffff_ffffn

/**
 * Returns `value` when it is a whole number from 0 to `maximum`, and throws a `WireError` otherwise.
 *
 * @since 0.1.0
 * @category checks
 */
export const unsigned = (name: string, value: number, maximum: number): number => {
  if (!Number.isInteger(value) || value < 0 || value > maximum) {
    throw new WireError(`${name} ${value}: must be a whole number from 0 to ${maximum}`)
  }
  return value
}

/**
 * Returns `value` when it fits 64 unsigned bits, and throws a `WireError` otherwise.
 *
 * @since 0.1.0
 * @category checks
 */
export const unsigned64 = (name: string, value: bigint): bigint => {
  if (value < 0n || value > MAX_U64) throw new WireError(`${name} ${value}: must be from 0 to 2^64-1`)
  return value
}

/**
 * Throws a `WireError` unless `bytes` holds exactly `length` bytes.
 *
 * @since 0.1.0
 * @category checks
 */
export const exactLength = (name: string, bytes: Uint8Array, length: number): void => {
  if (bytes.byteLength !== length) {
    throw new WireError(`${name} of ${bytes.byteLength} bytes: must have exactly ${length}`)
  }
}

/**
 * Throws a `WireError` unless `bytes` holds at least `length` bytes.
 *
 * @since 0.1.0
 * @category checks
 */
export const minimumLength = (name: string, bytes: Uint8Array, length: number): void => {
  if (bytes.byteLength < length) {
    throw new WireError(`${name} of ${bytes.byteLength} bytes: must have at least ${length}`)
  }
}

/**
 * Gives a view of exactly the bytes of `bytes`, without a copy.
 *
 * @since 0.1.0
 * @category views
 */
export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/**
 * Writes a number from 0 to 2^53-1 as a little-endian 64-bit field, without a bigint.
 *
 * @since 0.1.0
 * @category fields
 */
export const setNumber64 = (view: DataView, at: number, name: string, value: number): void => {
  unsigned(name, value, Number.MAX_SAFE_INTEGER)
  view.setUint32(at, value >>> 0, true)
  view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true)
}

/**
 * Reads a little-endian 64-bit field as a number, and throws a `WireError` when it is above 2^53-1.
 *
 * @since 0.1.0
 * @category fields
 */
export const getNumber64 = (view: DataView, at: number, name: string): number => {
  const high = view.getUint32(at + 4, true)
  if (high > 0x1f_ffff) {
    throw new WireError(`${name} ${view.getBigUint64(at, true)}: must be from 0 to 2^53-1`)
  }
  return high * 0x1_0000_0000 + view.getUint32(at, true)
}
