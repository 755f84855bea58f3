/**
 * The numbers and bytes that the property tests of src/Wire draw from.
 *
 * Structures drawn have no prototype, which `toStrictEqual` counts as a difference: compare with a spread of them.
 */
import { Arbitrary, Schema } from "effect"

export const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

export const u8 = between(0, 0xff)
export const u16 = between(0, 0xffff)
export const u32 = between(0, 0xffff_ffff)
export const u64 = Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: 0n, maximum: 2n ** 64n - 1n }))

/** Addresses, sizes and offsets: what a 64-bit field may hold as a number. */
export const address = between(0, Number.MAX_SAFE_INTEGER)

export const bytes = (minLength: number, maxLength: number) =>
  Arbitrary.map(Arbitrary.array(Arbitrary.schema(u8), { minLength, maxLength }), (list) => Uint8Array.from(list))
