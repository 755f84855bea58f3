/**
 * Goal: every field of a virtio-blk device lies where the specification puts it, and nothing out of range is written.
 * Method: a configuration space whose byte i holds i + 1, so that each expected value shows the offset it was read from;
 * hand-written request bytes; round trips and a bigint model for sectors; every length from 0 to past the end.
 */
import { describe, expect, it } from "@effect/vitest"
import {
  type BlkConfig,
  CONFIG_SIZES,
  CONFIG_WIDTHS,
  decodeConfig,
  decodeRequestHeader,
  encodeConfig,
  encodeRequestHeader,
  encodeSegment,
  FeatureBit,
  featureMask,
  featureNames,
  hasFeature,
  REQUEST_HEADER_BYTES,
  RequestType,
  SECTOR_BYTES,
  SEGMENT_BYTES,
  Status,
  STATUS_BYTES,
  WRITE_ZEROES_UNMAP
} from "../../src/Wire/VirtioBlk.ts"
import { between, u16, u32, u64, u8 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")

describe("features", () => {
  it("have the numbers of virtio 1.2 §5.2.3 and §6", () => {
    expect(FeatureBit).toStrictEqual({
      SIZE_MAX: 1,
      SEG_MAX: 2,
      GEOMETRY: 4,
      RO: 5,
      BLK_SIZE: 6,
      FLUSH: 9,
      TOPOLOGY: 10,
      CONFIG_WCE: 11,
      MQ: 12,
      DISCARD: 13,
      WRITE_ZEROES: 14,
      LIFETIME: 15,
      SECURE_ERASE: 16,
      ZONED: 17,
      NOTIFY_ON_EMPTY: 24,
      LOG_ALL: 26,
      ANY_LAYOUT: 27,
      INDIRECT_DESC: 28,
      EVENT_IDX: 29,
      PROTOCOL_FEATURES: 30,
      VERSION_1: 32,
      ACCESS_PLATFORM: 33,
      RING_PACKED: 34,
      IN_ORDER: 35,
      ORDER_PLATFORM: 36
    })
  })

  it("combine, are told apart and named", () => {
    const features = featureMask(FeatureBit.RO, FeatureBit.VERSION_1)
    expect(features).toBe(0x1_0000_0020n)
    expect(hasFeature(features, FeatureBit.RO)).toBe(true)
    expect(hasFeature(features, FeatureBit.FLUSH)).toBe(false)
    expect(featureNames(features)).toStrictEqual(["RO", "VERSION_1"])
    expect(featureMask()).toBe(0n)
    expect(featureNames(0n)).toStrictEqual([])
    expect(featureNames(1n | 1n << 63n)).toStrictEqual(["BIT_0", "BIT_63"])
    expect(featureNames(featureMask(...Object.values(FeatureBit)))).toStrictEqual(Object.keys(FeatureBit))
  })

  it("are bits 0 to 63", () => {
    expect(featureMask(63)).toBe(1n << 63n)
    expect(wireError(() => featureMask(64))).toBe("feature bit 64: must be a whole number from 0 to 63")
    expect(wireError(() => hasFeature(0n, -1))).toContain("feature bit -1")
  })

  it.prop("hold what a set of bits holds", [between(0, 63), between(0, 63), between(0, 63)], ([a, b, c]) => {
    const features = featureMask(a, b)
    expect(hasFeature(features, c)).toBe(new Set([a, b]).has(c))
    expect(featureNames(features).length).toBe(new Set([a, b]).size)
  })
})

describe("constants", () => {
  it("are those of virtio 1.2 §5.2.6", () => {
    expect(RequestType).toStrictEqual({ IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 })
    expect(Status).toStrictEqual({ OK: 0, IOERR: 1, UNSUPP: 2, UNWRITTEN: 255 })
    expect([SECTOR_BYTES, REQUEST_HEADER_BYTES, SEGMENT_BYTES, STATUS_BYTES, WRITE_ZEROES_UNMAP])
      .toStrictEqual([512, 16, 16, 1, 1])
  })

  it("ask for configuration sizes from the whole structure down to the capacity", () => {
    expect(CONFIG_SIZES.slice(0, 3)).toStrictEqual([96, 72, 60])
    expect(CONFIG_SIZES.at(-1)).toBe(8)
    expect(CONFIG_SIZES).toStrictEqual(CONFIG_SIZES.toSorted((a, b) => b - a))
  })

  it("divide the configuration into fields of their own widths, each at a multiple of its width", () => {
    let at = 0
    const ends = CONFIG_WIDTHS.map((width) => {
      expect(at % width).toBe(0)
      at += width
      return at
    })
    expect(at).toBe(CONFIG_SIZES[0])
    expect(ends).toStrictEqual(expect.arrayContaining([...CONFIG_SIZES]))
  })
})

describe("configuration space", () => {
  const counting = Uint8Array.from({ length: 96 }, (_, i) => i + 1)

  // The offsets of `struct virtio_blk_config` in <linux/virtio_blk.h>, low byte last.
  const expected: BlkConfig = {
    capacitySectors: 0x0807_0605_0403_0201n,
    sizeMax: 0x0c0b_0a09,
    segMax: 0x100f_0e0d,
    blkSize: 0x1817_1615,
    physicalBlockExp: 0x19,
    alignmentOffset: 0x1a,
    minIoSize: 0x1c1b,
    optIoSize: 0x201f_1e1d,
    writeback: 0x21,
    numQueues: 0x2423,
    maxDiscardSectors: 0x2827_2625,
    maxDiscardSeg: 0x2c2b_2a29,
    discardSectorAlignment: 0x302f_2e2d,
    maxWriteZeroesSectors: 0x3433_3231,
    maxWriteZeroesSeg: 0x3837_3635,
    writeZeroesMayUnmap: 0x39
  }

  /** Where each field ends, in bytes. */
  const ends: Record<keyof BlkConfig, number> = {
    capacitySectors: 8,
    sizeMax: 12,
    segMax: 16,
    blkSize: 24,
    physicalBlockExp: 25,
    alignmentOffset: 26,
    minIoSize: 28,
    optIoSize: 32,
    writeback: 33,
    numQueues: 36,
    maxDiscardSectors: 40,
    maxDiscardSeg: 44,
    discardSectorAlignment: 48,
    maxWriteZeroesSectors: 52,
    maxWriteZeroesSeg: 56,
    writeZeroesMayUnmap: 57
  }
  const fields = Object.keys(ends) as Array<keyof BlkConfig>

  it("is read field by field", () => {
    expect(decodeConfig(counting)).toStrictEqual(expected)
  })

  it("is written field by field, with geometry and unused bytes 0", () => {
    const golden = counting.slice(0, 60)
    golden.fill(0, 16, 20)
    golden.fill(0, 33, 34)
    golden.fill(0, 57, 60)
    expect(hex(encodeConfig(expected))).toBe(hex(golden))
  })

  it("is read where it lies, also inside a larger buffer", () => {
    const around = new Uint8Array(120).fill(0xee)
    around.set(counting.subarray(0, 60), 13)
    expect(decodeConfig(around.subarray(13, 73))).toStrictEqual(expected)
    expect(decodeConfig(around.subarray(13, 13 + 8)).sizeMax).toBe(0)
  })

  it("reads as zero beyond its end, at every length", () => {
    for (let length = 8; length <= 96; length++) {
      const config = decodeConfig(counting.subarray(0, length))
      for (const field of fields) {
        if (ends[field] <= length) expect(config[field], `${field} of ${length} bytes`).toBe(expected[field])
      }
    }
    for (const size of CONFIG_SIZES) {
      const config = decodeConfig(counting.subarray(0, size))
      for (const field of fields.filter((field) => ends[field] > size)) expect(Number(config[field])).toBe(0)
    }
  })

  it("needs the 8 bytes of the capacity", () => {
    for (let length = 0; length < 8; length++) {
      expect(wireError(() => decodeConfig(counting.subarray(0, length)))).toBe(
        `configuration space of ${length} bytes: must have at least 8`
      )
    }
  })

  it.each([
    ["sizeMax", 2 ** 32],
    ["segMax", 2 ** 32],
    ["blkSize", 2 ** 32],
    ["physicalBlockExp", 2 ** 8],
    ["alignmentOffset", 2 ** 8],
    ["minIoSize", 2 ** 16],
    ["optIoSize", 2 ** 32],
    ["writeback", 2 ** 8],
    ["numQueues", 2 ** 16],
    ["maxDiscardSectors", 2 ** 32],
    ["maxDiscardSeg", 2 ** 32],
    ["discardSectorAlignment", 2 ** 32],
    ["maxWriteZeroesSectors", 2 ** 32],
    ["maxWriteZeroesSeg", 2 ** 32],
    ["writeZeroesMayUnmap", 2 ** 8]
  ])("takes %s below %d only", (field, limit) => {
    expect(encodeConfig({ ...expected, [field]: limit - 1 }).byteLength).toBe(60)
    expect(wireError(() => encodeConfig({ ...expected, [field]: limit }))).toContain(`${field} ${limit}`)
    expect(wireError(() => encodeConfig({ ...expected, [field]: -1 }))).toContain(`${field} -1`)
  })

  it("takes a capacity of 64 bits only", () => {
    expect(wireError(() => encodeConfig({ ...expected, capacitySectors: 2n ** 64n }))).toContain("capacitySectors")
    expect(wireError(() => encodeConfig({ ...expected, capacitySectors: -1n }))).toContain("capacitySectors")
  })

  it.prop("comes back as it was written", {
    capacitySectors: u64,
    sizeMax: u32,
    segMax: u32,
    blkSize: u32,
    physicalBlockExp: u8,
    alignmentOffset: u8,
    minIoSize: u16,
    optIoSize: u32,
    writeback: u8,
    numQueues: u16,
    maxDiscardSectors: u32,
    maxDiscardSeg: u32,
    discardSectorAlignment: u32,
    maxWriteZeroesSectors: u32,
    maxWriteZeroesSeg: u32,
    writeZeroesMayUnmap: u8
  }, (config) => {
    expect(decodeConfig(encodeConfig(config))).toStrictEqual({ ...config })
  })
})

describe("request header and segment", () => {
  const sector = between(0, 2 ** 44)

  it("have the bytes of virtio 1.2 §5.2.6", () => {
    const bytes = new Uint8Array(48).fill(0xee)
    const view = new DataView(bytes.buffer)
    encodeRequestHeader(view, 4, RequestType.WRITE_ZEROES, 0x123_4567_89ab)
    encodeSegment(view, 24, 0xfff_ffff_fffe, 0x8000_0001, WRITE_ZEROES_UNMAP)
    expect(hex(bytes)).toBe([
      "eeeeeeee",
      "0d000000",
      "00000000",
      "ab89674523010000",
      "eeeeeeee",
      "feffffffff0f0000",
      "01000080",
      "01000000",
      "eeeeeeeeeeeeeeee"
    ].join(""))
  })

  it.prop("keep every sector, as a bigint model does", [sector, u32, between(0, 32)], ([sector, type, at]) => {
    const view = new DataView(new ArrayBuffer(48))
    encodeRequestHeader(view, at, type, sector)
    expect(decodeRequestHeader(view, at)).toStrictEqual({ type, sector: BigInt(sector) })
  })

  it.prop("keep every segment", [sector, u32, between(0, 1)], ([sector, sectors, flags]) => {
    const view = new DataView(new ArrayBuffer(SEGMENT_BYTES))
    encodeSegment(view, 0, sector, sectors, flags)
    expect([view.getBigUint64(0, true), view.getUint32(8, true), view.getUint32(12, true)])
      .toStrictEqual([BigInt(sector), sectors, flags])
  })

  it("ignores the reserved word, and reads a sector of 64 bits", () => {
    const view = new DataView(new Uint8Array(16).fill(0xff).buffer)
    expect(decodeRequestHeader(view, 0)).toStrictEqual({ type: 0xffff_ffff, sector: 2n ** 64n - 1n })
  })

  it("refuses a header that the view does not hold", () => {
    for (let length = 0; length < 16; length++) {
      expect(wireError(() => decodeRequestHeader(new DataView(new ArrayBuffer(length)), 0))).toBe(
        `request header at 0 of ${length} bytes: must have 16 bytes after it`
      )
    }
    const view = new DataView(new ArrayBuffer(32))
    expect(decodeRequestHeader(view, 16).type).toBe(0)
    for (const at of [17, 32, 33, -1, 0.5, NaN]) {
      expect(wireError(() => decodeRequestHeader(view, at))).toContain(`${at}`)
    }
  })

  it("refuses sectors and lengths that do not fit", () => {
    const view = new DataView(new ArrayBuffer(16))
    for (const sector of [-1, 2 ** 44 + 1, 2 ** 53, 0.5, NaN]) {
      expect(wireError(() => encodeRequestHeader(view, 0, RequestType.IN, sector))).toContain(`sector ${sector}`)
      expect(wireError(() => encodeSegment(view, 0, sector, 1, 0))).toContain(`sector ${sector}`)
    }
    for (const sectors of [-1, 2 ** 32, 0.5]) {
      expect(wireError(() => encodeSegment(view, 0, 0, sectors, 0))).toContain(`segment sectors ${sectors}`)
    }
  })
})
