/**
 * Goal: each property follows from the device's features and configuration as the table in the specification says (virtio
 * 1.2 §5.2.4, with libblkio's names), and nothing a device may claim gives a value that is out of its type's range.
 *
 * Method: devices that are only facts, one feature more or less at a time. Expected values are written out as numbers.
 * Whatever was not thought of is left to random configurations, which must at least give values of the right type.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { PropertyState } from "../../src/Properties/PropertyState.ts"
import {
  definitions,
  type DeviceFacts,
  type PropertyName,
  type Settings,
  typeSchemas
} from "../../src/Properties/PropertyTable.ts"
import { type BlkConfig, FeatureBit } from "../../src/Wire/VirtioBlk.ts"
import { type Feature, usualFeatures } from "../../src/testing/FakeTransport.ts"
import { device, recipe } from "./facts.ts"

const settings: Settings = { "read-only": false, "num-queues": 1, "num-poll-queues": 0, "queue-size": 256 }

const valueOf = (name: PropertyName, facts?: DeviceFacts, changes: Partial<Settings> = {}) =>
  new PropertyState(recipe, facts === undefined ? "created" : "connected", { ...settings, ...changes }, facts).value(
    name
  )

const INT_MAX = 2 ** 31 - 1

describe("before a device is connected", () => {
  it.each<[PropertyName, string | number | boolean]>([
    ["driver", "virtio-blk-vhost-user"],
    ["path", "/run/disk.sock"],
    ["fd", -1],
    ["read-only", false],
    ["device-read-only", false],
    ["num-queues", 1],
    ["num-poll-queues", 0],
    ["queue-size", 256],
    ["max-queue-size", 32768],
    ["can-add-queues", false],
    ["supports-poll-queues", true],
    ["can-grow", false],
    ["request-alignment", 512],
    ["optimal-io-alignment", 512],
    ["optimal-io-size", 0],
    ["min-io-size", 0],
    ["topology-alignment-offset", 0],
    ["discard-alignment", 512],
    ["discard-alignment-offset", 0],
    ["max-discard-len", 0],
    ["max-write-zeroes-len", 0],
    ["max-segment-len", 0],
    ["max-segments", 1],
    ["max-transfer", 0],
    ["buf-alignment", 1],
    ["optimal-buf-alignment", 1],
    ["supports-fua-natively", false],
    ["flush-needed", true],
    ["needs-mem-regions", true],
    ["needs-mem-region-fd", true],
    ["may-pin-mem-regions", true],
    ["mem-region-alignment", 1]
  ])("%s is %o", (name, expected) => {
    expect(valueOf(name)).toBe(expected)
  })

  it("usualFeatures else cannot be read", () => {
    const later = [...definitions].filter(([, { readableFrom }]) => readableFrom === "connected").map(([name]) => name)
    expect(later.toSorted()).toStrictEqual(["capacity", "max-mem-regions", "max-queues"])
  })
})

describe("once it is connected", () => {
  // With every feature, and what remains without the one named.
  it.each<[PropertyName, string | number | boolean, Feature?, (string | number | boolean)?]>([
    ["driver", "virtio-blk-vhost-user"],
    ["path", "/run/disk.sock"],
    ["fd", -1],
    ["read-only", false],
    ["device-read-only", false],
    ["num-queues", 1],
    ["num-poll-queues", 0],
    ["queue-size", 256],
    ["max-queues", 4],
    ["max-queue-size", 1024],
    ["can-add-queues", false],
    ["supports-poll-queues", true],
    ["capacity", 4194304],
    ["can-grow", false],
    ["request-alignment", 4096, "BLK_SIZE", 512],
    ["optimal-io-alignment", 16384, "TOPOLOGY", 4096],
    ["optimal-io-alignment", 16384, "BLK_SIZE", 2048],
    ["optimal-io-size", 28672, "TOPOLOGY", 0],
    ["optimal-io-size", 28672, "BLK_SIZE", 3584],
    ["min-io-size", 20480, "TOPOLOGY", 0],
    ["min-io-size", 20480, "BLK_SIZE", 2560],
    ["topology-alignment-offset", 12288, "TOPOLOGY", 0],
    ["topology-alignment-offset", 12288, "BLK_SIZE", 1536],
    ["discard-alignment", 8192, "DISCARD", 4096],
    ["discard-alignment-offset", 0, "TOPOLOGY", 0],
    ["max-discard-len", 16777216, "DISCARD", 0],
    ["max-write-zeroes-len", 33554432, "WRITE_ZEROES", 0],
    ["max-segment-len", 65536, "SIZE_MAX", 0],
    ["max-segments", 126, "SEG_MAX", 1],
    ["max-transfer", 8257536, "SIZE_MAX", 0],
    ["max-transfer", 8257536, "SEG_MAX", 0],
    ["buf-alignment", 1],
    ["optimal-buf-alignment", 1],
    ["supports-fua-natively", false],
    ["flush-needed", true],
    ["needs-mem-regions", true],
    ["needs-mem-region-fd", true],
    ["may-pin-mem-regions", true],
    ["mem-region-alignment", 4096],
    ["max-mem-regions", 31]
  ])("%s is %o; without %s: %o", (name, expected, feature, without) => {
    expect(valueOf(name, device(usualFeatures))).toBe(expected)
    if (feature !== undefined) {
      expect(valueOf(name, device(usualFeatures.filter((other) => other !== feature)))).toBe(without)
    }
  })

  it("device-read-only is what RO says, read-only what the user says", () => {
    const facts = device(["RO"])
    expect([valueOf("device-read-only", facts), valueOf("read-only", facts)]).toStrictEqual([true, false])
    expect(valueOf("read-only", device([]), { "read-only": true })).toBe(true)
  })

  it.each<[ReadonlyArray<Feature>, number, boolean]>([
    [["CONFIG_WCE", "FLUSH"], 0, false],
    [["CONFIG_WCE", "FLUSH"], 1, true],
    [["CONFIG_WCE"], 1, true],
    [["FLUSH"], 0, true],
    [[], 1, false]
  ])("flush-needed of %j with writeback %i is %o", (features, writeback, expected) => {
    expect(valueOf("flush-needed", device(features, { writeback }))).toBe(expected)
  })

  it("needs-mem-region-fd and max-mem-regions are the transport's", () => {
    const facts = { ...device([]), needsRegionFd: false, maxRegions: Infinity }
    expect(valueOf("needs-mem-region-fd", facts)).toBe(false)
    expect(valueOf("max-mem-regions", facts)).toBe(Infinity)
  })

  it("max-segments fits the queue where there are no indirect descriptors, and follows its size", () => {
    const chained = device(["SEG_MAX"])
    expect(valueOf("max-segments", chained)).toBe(126)
    expect(valueOf("max-segments", chained, { "queue-size": 128 })).toBe(126)
    expect(valueOf("max-segments", chained, { "queue-size": 64 })).toBe(62)
    expect(valueOf("max-segments", chained, { "queue-size": 4 })).toBe(2)
    expect(valueOf("max-segments", chained, { "queue-size": 2 })).toBe(1)
    expect(valueOf("max-segments", device(["SEG_MAX", "INDIRECT_DESC"]), { "queue-size": 2 })).toBe(126)
  })
})

describe("values that make no sense", () => {
  it.each<[PropertyName, string, Partial<BlkConfig>, number]>([
    ["optimal-io-alignment", "physical_block_exp 255", { physicalBlockExp: 255 }, 4096],
    ["optimal-io-alignment", "physical_block_exp 31", { physicalBlockExp: 31 }, 4096],
    ["optimal-io-alignment", "physical_block_exp 18", { physicalBlockExp: 18 }, 2 ** 30],
    ["optimal-io-size", "opt_io_size 2^32-1", { optIoSize: 2 ** 32 - 1 }, INT_MAX],
    ["min-io-size", "min_io_size 65535 of 2^30 bytes", { minIoSize: 65535, blkSize: 2 ** 30 }, INT_MAX],
    ["topology-alignment-offset", "255 blocks of 2^30", { alignmentOffset: 255, blkSize: 2 ** 30 }, INT_MAX],
    ["max-segment-len", "size_max 0", { sizeMax: 0 }, 0],
    ["max-segment-len", "size_max 2^32-1", { sizeMax: 2 ** 32 - 1 }, INT_MAX],
    ["max-segments", "seg_max 0", { segMax: 0 }, 1],
    ["max-segments", "seg_max 2^32-1", { segMax: 2 ** 32 - 1 }, 1022],
    ["max-transfer", "size_max 0", { sizeMax: 0 }, 0],
    ["max-transfer", "size_max and seg_max 2^32-1", { sizeMax: 2 ** 32 - 1, segMax: 2 ** 32 - 1 }, INT_MAX],
    ["max-transfer", "seg_max 0", { segMax: 0 }, 65536],
    ["discard-alignment", "discard_sector_alignment 0", { discardSectorAlignment: 0 }, 4096],
    ["discard-alignment", "discard_sector_alignment 2^32-1", { discardSectorAlignment: 2 ** 32 - 1 }, 4096],
    ["max-discard-len", "max_discard_sectors 0", { maxDiscardSectors: 0 }, 0],
    ["max-discard-len", "max_discard_sectors 2^32-1", { maxDiscardSectors: 2 ** 32 - 1 }, 2199023255040],
    ["max-write-zeroes-len", "max_write_zeroes_sectors 2^32-1", { maxWriteZeroesSectors: 2 ** 32 - 1 }, 2199023255040],
    ["capacity", "2^44-1 sectors", { capacitySectors: 2n ** 44n - 1n }, (2 ** 44 - 1) * 512]
  ])("%s with %s", (name, _, changes, expected) => {
    expect(valueOf(name, device(usualFeatures, changes))).toBe(expected)
  })

  const unsigned = (bits: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** bits - 1 }))
  const anyConfig = Arbitrary.schema(Schema.Struct({
    features: Schema.Array(Schema.Literals(Object.keys(FeatureBit) as Array<Feature>)),
    queueSizeLog2: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 15 })),
    blkSizeLog2: Schema.Int.check(Schema.isBetween({ minimum: 9, maximum: 30 })),
    sizeMax: unsigned(32),
    segMax: unsigned(32),
    physicalBlockExp: unsigned(8),
    alignmentOffset: unsigned(8),
    minIoSize: unsigned(16),
    optIoSize: unsigned(32),
    maxDiscardSectors: unsigned(32),
    discardSectorAlignment: unsigned(32),
    maxWriteZeroesSectors: unsigned(32)
  }))

  it.prop(
    "no checked configuration gives a value out of its type's range",
    [anyConfig],
    ([{ blkSizeLog2, features, queueSizeLog2, ...fields }]) => {
      const facts = device(features, { ...fields, blkSize: 2 ** blkSizeLog2 })
      for (const [name, { type }] of definitions) {
        const value = valueOf(name as PropertyName, facts, { "queue-size": 2 ** queueSizeLog2 })
        expect([name, value, Schema.is(typeSchemas[type])(value)]).toStrictEqual([name, value, true])
      }
    }
  )
})
