/**
 * Goal: no number reaches a field it does not fit, and no 64-bit field is ever rounded.
 * Method: the edges of every width by hand; 64-bit fields against bigint reads and writes of the same bytes.
 */
import { describe, expect, it } from "@effect/vitest"
import {
  exactLength,
  getNumber64,
  MAX_U16,
  MAX_U32,
  MAX_U8,
  minimumLength,
  setNumber64,
  unsigned,
  unsigned64,
  viewOf
} from "../../src/Wire/Bounds.ts"
import { WireError } from "../../src/Wire/WireError.ts"
import { address, u64 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

describe("WireError", () => {
  it("is an Error with its own name", () => {
    const error = new WireError("queue size 3: must be a power of two")
    expect(error).toBeInstanceOf(Error)
    expect(error.name).toBe("WireError")
    expect(String(error)).toBe("WireError: queue size 3: must be a power of two")
  })
})

describe("unsigned", () => {
  it.each([MAX_U8, MAX_U16, MAX_U32, Number.MAX_SAFE_INTEGER])("takes 0 to %i and nothing else", (maximum) => {
    expect(unsigned("n", 0, maximum)).toBe(0)
    expect(unsigned("n", maximum, maximum)).toBe(maximum)
    for (const value of [-1, maximum + 1, 0.5, NaN, Infinity, -Infinity]) {
      expect(wireError(() => unsigned("n", value, maximum))).toBe(
        `n ${value}: must be a whole number from 0 to ${maximum}`
      )
    }
  })

  it("takes 64 bits as a bigint", () => {
    expect(unsigned64("n", 0n)).toBe(0n)
    expect(unsigned64("n", 2n ** 64n - 1n)).toBe(2n ** 64n - 1n)
    expect(wireError(() => unsigned64("n", -1n))).toBe("n -1: must be from 0 to 2^64-1")
    expect(wireError(() => unsigned64("n", 2n ** 64n))).toBe("n 18446744073709551616: must be from 0 to 2^64-1")
  })
})

describe("lengths", () => {
  it("are exact or at least", () => {
    exactLength("thing", new Uint8Array(3), 3)
    minimumLength("thing", new Uint8Array(3), 3)
    minimumLength("thing", new Uint8Array(4), 3)
    expect(wireError(() => exactLength("thing", new Uint8Array(4), 3))).toBe("thing of 4 bytes: must have exactly 3")
    expect(wireError(() => exactLength("thing", new Uint8Array(2), 3))).toBe("thing of 2 bytes: must have exactly 3")
    expect(wireError(() => minimumLength("thing", new Uint8Array(2), 3))).toBe(
      "thing of 2 bytes: must have at least 3"
    )
  })
})

describe("viewOf", () => {
  it("sees the bytes of a part of a buffer and not those around it", () => {
    const view = viewOf(Uint8Array.of(1, 2, 3, 4).subarray(1, 3))
    expect(view.byteLength).toBe(2)
    expect(view.getUint16(0, true)).toBe(0x0302)
  })
})

describe("64-bit numbers", () => {
  it.prop("are written as a bigint would be, and read back", [address], ([value]) => {
    const view = new DataView(new ArrayBuffer(10))
    setNumber64(view, 1, "n", value)
    expect(view.getBigUint64(1, true)).toBe(BigInt(value))
    expect(getNumber64(view, 1, "n")).toBe(value)
  })

  it.prop("above 2^53-1 are refused when read", [u64], ([value]) => {
    const view = new DataView(new ArrayBuffer(8))
    view.setBigUint64(0, value, true)
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) expect(getNumber64(view, 0, "n")).toBe(Number(value))
    else expect(wireError(() => getNumber64(view, 0, "n"))).toBe(`n ${value}: must be from 0 to 2^53-1`)
  })

  it("are exact at the edges of each half", () => {
    const view = new DataView(new ArrayBuffer(8))
    for (const value of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 44, 2 ** 53 - 1]) {
      setNumber64(view, 0, "n", value)
      expect(view.getBigUint64(0, true)).toBe(BigInt(value))
      expect(getNumber64(view, 0, "n")).toBe(value)
    }
    for (const value of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      view.setBigUint64(0, value, true)
      expect(wireError(() => getNumber64(view, 0, "n"))).toContain("2^53-1")
    }
    expect(wireError(() => setNumber64(view, 0, "n", 2 ** 53))).toContain("9007199254740992")
  })
})
