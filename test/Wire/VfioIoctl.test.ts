/**
 * Goal: every request has the number, and every structure the bytes, that the kernel's headers give them; and no offset, count or
 * length that a kernel gives is believed unchecked.
 * Method: against what a C program made of the headers of Linux 6.1 (`scripts/golden/vfio.c`), and for iommufd, which is younger,
 * against bytes written down by hand from `include/uapi/linux/iommufd.h`. Structures with capabilities are cut short at every
 * length, and their chains are led out of them and round in circles.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { readFileSync } from "node:fs"
import * as Iommufd from "../../src/Wire/IommufdIoctl.ts"
import * as Vfio from "../../src/Wire/VfioIoctl.ts"
import { WireError } from "../../src/Wire/WireError.ts"
import { bytes } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const golden = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  requests: Schema.Record(Schema.String, Schema.Natural),
  constants: Schema.Record(Schema.String, Schema.Natural),
  structures: Schema.Record(Schema.String, Schema.String)
})))(readFileSync(new URL("./golden/vfio-6.1.json", import.meta.url), "utf8"))

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")
const goldenBytes = (name: string): Uint8Array => Uint8Array.from(Buffer.from(golden.structures[name] ?? "", "hex"))

/** The same bytes with a u32 at `at` replaced. */
const with32 = (bytes: Uint8Array, at: number, value: number): Uint8Array => {
  const copy = bytes.slice()
  new DataView(copy.buffer).setUint32(at, value, true)
  return copy
}

describe("numbers", () => {
  it("are those of the headers", () => {
    const younger = { DEVICE_BIND_IOMMUFD: 0x3b76, DEVICE_ATTACH_IOMMUFD_PT: 0x3b77 }
    expect(Vfio.VfioRequest).toStrictEqual({ ...golden.requests, ...younger })
    expect(Iommufd.IommufdRequest).toStrictEqual({
      IOAS_ALLOC: 0x3b81,
      IOAS_IOVA_RANGES: 0x3b84,
      IOAS_MAP: 0x3b85,
      IOAS_UNMAP: 0x3b86
    })
    const { API_VERSION, CONFIG_REGION, TYPE1V2_IOMMU } = Vfio
    expect(golden.constants).toMatchObject({ API_VERSION, CONFIG_REGION, TYPE1V2_IOMMU, ...Vfio.IrqIndex })
  })
})

describe("group and device", () => {
  it("tell whether the group is viable", () => {
    expect(hex(Vfio.encodeGroupStatus())).toBe("0800000000000000")
    expect(Vfio.decodeGroupViable(goldenBytes("vfio_group_status"))).toBe(true)
    expect(Vfio.decodeGroupViable(Vfio.encodeGroupStatus())).toBe(false)
    expect(wireError(() => Vfio.decodeGroupViable(new Uint8Array(7)))).toContain("of 7 bytes: must have exactly 8")
  })

  it("tell what the device is", () => {
    expect(Vfio.encodeDeviceInfo()).toStrictEqual(with32(new Uint8Array(16), 0, 16))
    expect(Vfio.decodeDeviceInfo(goldenBytes("vfio_device_info")))
      .toStrictEqual({ isPci: true, canReset: true, regions: 9, irqs: 5 })
    expect(Vfio.decodeDeviceInfo(Vfio.encodeDeviceInfo()))
      .toStrictEqual({ isPci: false, canReset: false, regions: 0, irqs: 0 })
  })
})

describe("regions", () => {
  const golden = goldenBytes("vfio_region_info")

  it("have areas that may be mapped", () => {
    expect(hex(Vfio.encodeRegionInfo(7))).toBe(`200000000000000007000000${"00".repeat(20)}`)
    expect(Vfio.decodeRegionInfo(golden)).toStrictEqual({
      size: 0x10000,
      offset: 0x40000000000,
      mappable: [{ offset: 0, length: 0x1000 }, { offset: 0x3000, length: 0xd000 }]
    })
  })

  it("may be mapped as a whole without a list, or not at all", () => {
    expect(Vfio.decodeRegionInfo(with32(golden, 4, 4)).mappable).toStrictEqual([{ offset: 0, length: 0x10000 }])
    expect(Vfio.decodeRegionInfo(with32(golden, 4, 8)).mappable).toStrictEqual([])
    // A kernel that was given no room for the list tells where it would be by 0.
    expect(Vfio.decodeRegionInfo(with32(golden, 12, 0)).mappable).toStrictEqual([{ offset: 0, length: 0x10000 }])
  })

  it("are refused where anything leads out of the structure or of the region", () => {
    for (let length = 0; length < golden.length; length++) {
      expect(wireError(() => Vfio.decodeRegionInfo(golden.slice(0, length))), `${length} bytes`).not.toBe("")
    }
    expect(wireError(() => Vfio.decodeRegionInfo(with32(golden, 12, golden.length - 7)))).toContain("must lie within")
    expect(wireError(() => Vfio.decodeRegionInfo(with32(golden, 36, 32)))).toContain("has a loop")
    expect(wireError(() => Vfio.decodeRegionInfo(with32(golden, 48, 0xffff_ffff)))).toContain(
      "4294967295 sparse mmap areas"
    )
    expect(wireError(() => Vfio.decodeRegionInfo(with32(golden, 80, 0xd001)))).toContain("must lie within the region")
    expect(wireError(() => Vfio.decodeRegionInfo(with32(golden, 20, 0x20_0000)))).toContain("region size")
  })
})

describe("interrupts", () => {
  it("have the bytes of the headers", () => {
    expect(Vfio.decodeIrqInfo(goldenBytes("vfio_irq_info"))).toStrictEqual({ count: 5 })
    expect(Vfio.decodeIrqInfo(with32(goldenBytes("vfio_irq_info"), 4, 0))).toStrictEqual({ count: 0 })
    expect(hex(Vfio.encodeIrqInfo(3))).toBe("10000000000000000300000000000000")
    expect(hex(Vfio.encodeIrqEvents(Vfio.IrqIndex.MSIX, [7, 0x102]))).toBe(golden.structures["vfio_irq_set events"])
    expect(hex(Vfio.encodeIrqDisable(Vfio.IrqIndex.MSIX))).toBe(golden.structures["vfio_irq_set disable"])
    expect(hex(Vfio.encodeIrqUnmask(Vfio.IrqIndex.INTX))).toBe(golden.structures["vfio_irq_set unmask"])
  })
})

describe("IOMMU", () => {
  const golden = goldenBytes("vfio_iommu_type1_info")

  it("tells pages, ranges and how many mappings there can be", () => {
    expect(Vfio.encodeIommuInfo()).toStrictEqual(with32(new Uint8Array(24), 0, 24))
    expect(Vfio.decodeIommuInfo(golden)).toStrictEqual({
      pageSize: 4096,
      ranges: [{ first: 0n, last: 0xfedfffffn }, { first: 0xfef00000n, last: 0x7fffffffffn }],
      available: 65535
    })
  })

  it("tells less where the kernel is older", () => {
    const nothing = { ranges: [], available: undefined }
    expect(Vfio.decodeIommuInfo(golden.slice(0, 16))).toStrictEqual({ pageSize: 4096, ...nothing })
    expect(Vfio.decodeIommuInfo(with32(golden, 4, 1))).toStrictEqual({ pageSize: 4096, ...nothing })
    expect(Vfio.decodeIommuInfo(with32(golden, 4, 0))).toStrictEqual({ pageSize: 4096, ...nothing })
    // The chain may begin with the last of the capabilities.
    expect(Vfio.decodeIommuInfo(with32(golden, 16, 40))).toMatchObject({ available: undefined, ranges: [{}, {}] })
  })

  it("has the page size that its smallest page is", () => {
    expect(Vfio.decodeIommuInfo(with32(golden, 8, 0x4021_0000)).pageSize).toBe(65536)
    expect(Vfio.decodeIommuInfo(with32(golden, 8, 0xffff_ffff)).pageSize).toBe(4096)
    const huge = with32(with32(golden, 8, 0), 12, 1)
    expect(wireError(() => Vfio.decodeIommuInfo(huge))).toContain("must be at most 2^30")
  })

  it("is refused where anything leads out of the structure", () => {
    for (let length = 24; length < golden.length; length++) {
      expect(wireError(() => Vfio.decodeIommuInfo(golden.slice(0, length))), `${length} bytes`).not.toBe("")
    }
    expect(wireError(() => Vfio.decodeIommuInfo(with32(golden, 28, 24)))).toContain("has a loop")
    expect(wireError(() => Vfio.decodeIommuInfo(with32(golden, 48, 3)))).toContain("3 IOVA ranges")
    expect(wireError(() => Vfio.decodeIommuInfo(with32(golden, 56, 0xffff_ffff)))).toContain("must end where it begins")
  })

  it("maps and unmaps", () => {
    const mapping = { userAddress: 0x7020304050607000n, iova: 0x10203040506000, length: 0x1020304050000 }
    expect(hex(Vfio.encodeDmaMap(mapping))).toBe(structure("vfio_iommu_type1_dma_map"))
    expect(hex(Vfio.encodeDmaUnmap(mapping.iova, mapping.length))).toBe(structure("vfio_iommu_type1_dma_unmap"))
    expect(wireError(() => Vfio.encodeDmaMap({ ...mapping, iova: -1 }))).toContain("IOVA -1")
    expect(wireError(() => Vfio.encodeDmaMap({ ...mapping, userAddress: -1n }))).toContain("user address -1")
  })

  it("says how much room it needs, up to a limit", () => {
    expect(Vfio.neededBytes(golden)).toBe(golden.length)
    expect(Vfio.neededBytes(with32(new Uint8Array(24), 0, 88))).toBe(88)
    expect(Vfio.neededBytes(with32(new Uint8Array(24), 0, 0))).toBe(24)
    expect(wireError(() => Vfio.neededBytes(with32(new Uint8Array(24), 0, 65537)))).toContain("argsz 65537")
  })

  it.prop("whatever the bytes, they are read or refused", [bytes(0, 128)], ([drawn]) => {
    for (const decode of [Vfio.decodeIommuInfo, Vfio.decodeRegionInfo, Vfio.decodeIovaRanges, Vfio.neededBytes]) {
      try {
        decode(drawn)
      } catch (error) {
        expect(error).toBeInstanceOf(WireError)
      }
    }
  })
})

const structure = (name: string): string => golden.structures[name] ?? ""

describe("iommufd", () => {
  const u32 = (value: number) => hex(with32(new Uint8Array(4), 0, value))
  const u64 = (value: number) => u32(value % 2 ** 32) + u32(Math.floor(value / 2 ** 32))

  it("has the bytes of iommufd.h", () => {
    expect(hex(Vfio.encodeBindIommufd(9))).toBe(u32(16) + u32(0) + u32(9) + u32(0))
    expect(hex(Vfio.encodeAttach(3))).toBe(u32(12) + u32(0) + u32(3))
    expect(hex(Iommufd.encodeIoasAlloc())).toBe(u32(12) + u32(0) + u32(0))
    expect(Iommufd.decodeIoasAlloc(with32(Iommufd.encodeIoasAlloc(), 8, 3))).toBe(3)
    expect(hex(Iommufd.encodeIoasRanges(3, 0x10203040, 64)))
      .toBe(u32(32) + u32(3) + u32(64) + u32(0) + u64(0x10203040) + u64(0))
    const mapping = { userAddress: 0x7f0102030000, iova: 0x1000, length: 0x2000 }
    expect(hex(Iommufd.encodeIoasMap(3, mapping)))
      .toBe(u32(40) + u32(7) + u32(3) + u32(0) + u64(0x7f0102030000) + u64(0x2000) + u64(0x1000))
    expect(hex(Iommufd.encodeIoasUnmap(3, 0x1000, 0x2000))).toBe(u32(24) + u32(3) + u64(0x1000) + u64(0x2000))
  })

  it("tells ranges and pages", () => {
    const filled = with32(with32(Iommufd.encodeIoasRanges(3, 0, 64), 8, 2), 24, 65536)
    expect(Iommufd.decodeIoasRanges(filled)).toStrictEqual({ count: 2, pageSize: 65536 })
    expect(Iommufd.decodeIoasRanges(with32(filled, 24, 1)).pageSize).toBe(4096)
    expect(wireError(() => Iommufd.decodeIoasRanges(filled.slice(1)))).toContain("must have exactly 32")
  })
})
