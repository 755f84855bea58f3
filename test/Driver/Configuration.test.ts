/**
 * Goal: features are chosen and configurations believed only where they make sense, whatever the device says.
 * Method: the pure functions, on feature sets and on bytes.
 */
import { describe, expect, it } from "@effect/vitest"
import { checkConfig, chooseFeatures } from "../../src/Driver/Configuration.ts"
import { type BlkConfig, encodeConfig, FeatureBit, featureMask, featureNames } from "../../src/Wire/VirtioBlk.ts"
import { config } from "../Properties/facts.ts"

const BLK_SIZE = featureMask(FeatureBit.BLK_SIZE, FeatureBit.VERSION_1)
const check = (changes: Partial<BlkConfig>, features = BLK_SIZE) =>
  checkConfig(encodeConfig({ ...config, ...changes }), features)

const wanted = [
  "SIZE_MAX",
  "SEG_MAX",
  "RO",
  "BLK_SIZE",
  "FLUSH",
  "TOPOLOGY",
  "CONFIG_WCE",
  "MQ",
  "DISCARD",
  "WRITE_ZEROES",
  "INDIRECT_DESC",
  "EVENT_IDX",
  "VERSION_1",
  "RING_PACKED"
]

describe("chooseFeatures", () => {
  const chosen = (offered: bigint) => {
    const features = chooseFeatures(offered)
    return typeof features === "bigint" ? featureNames(features) : features._tag
  }

  it("takes of all 64 bits exactly what the driver makes use of; never 24 and 26", () => {
    expect(chosen(2n ** 64n - 1n)).toStrictEqual(wanted)
  })

  it("takes nothing that is not offered", () => {
    for (let bit = 0; bit < 64; bit++) {
      const [name = ""] = featureNames(featureMask(bit))
      const expected = wanted.filter((other) => other === name || other === "VERSION_1")
      expect(chosen(featureMask(FeatureBit.VERSION_1, bit))).toStrictEqual(expected)
    }
  })

  it("refuses a device without VERSION_1, whatever else it offers", () => {
    expect(chosen(0n)).toBe("ENOTSUP")
    expect(chosen(2n ** 64n - 1n & ~featureMask(FeatureBit.VERSION_1))).toBe("ENOTSUP")
  })
})

describe("checkConfig", () => {
  it.each([512, 1024, 4096, 2 ** 20, 2 ** 30])("takes blocks of %i bytes", (blkSize) => {
    expect(check({ blkSize })).toMatchObject({ blkSize })
  })

  it.each([0, 1, 3, 256, 513, 4095, 2 ** 31, 2 ** 32 - 1])("refuses blocks of %i bytes: EPROTO", (blkSize) => {
    expect(check({ blkSize })).toMatchObject({ _tag: "EPROTO" })
  })

  it("does not look at the block size where BLK_SIZE was not negotiated", () => {
    expect(check({ blkSize: 3 }, featureMask(FeatureBit.VERSION_1))).toMatchObject({ blkSize: 3 })
  })

  it("takes block size and capacity of 0 for a disk that is gone: ENODEV", () => {
    expect(check({ blkSize: 0, capacitySectors: 0n })).toMatchObject({ _tag: "ENODEV" })
    expect(checkConfig(new Uint8Array(60), BLK_SIZE)).toMatchObject({ _tag: "ENODEV" })
  })

  it("takes an empty disk", () => {
    expect(check({ capacitySectors: 0n })).toMatchObject({ capacitySectors: 0n })
  })

  it.each<[bigint, boolean]>([
    [2n ** 44n - 1n, true],
    [2n ** 44n, false],
    [2n ** 55n, false],
    [2n ** 64n - 1n, false]
  ])("capacity of %i sectors fits: %o, else EOVERFLOW", (capacitySectors, fits) => {
    expect(check({ capacitySectors })).toMatchObject(fits ? { capacitySectors } : { _tag: "EOVERFLOW" })
  })

  it.each([0, 1, 7])("refuses %i bytes, which hold no capacity: EPROTO", (length) => {
    expect(checkConfig(new Uint8Array(length).fill(1), BLK_SIZE)).toMatchObject({ _tag: "EPROTO" })
  })

  it("takes a short configuration space of a device that does not need more of it", () => {
    const bytes = encodeConfig(config)
    expect(checkConfig(bytes.subarray(0, 24), BLK_SIZE)).toMatchObject({ blkSize: 4096, numQueues: 0 })
    expect(checkConfig(bytes.subarray(0, 8), featureMask(FeatureBit.VERSION_1))).toMatchObject({
      capacitySectors: 8192n,
      blkSize: 0
    })
    expect(checkConfig(bytes.subarray(0, 20), BLK_SIZE)).toMatchObject({ _tag: "EPROTO" })
  })
})
