/**
 * Goal: every ioctl has the number, and every structure and IOTLB message the bytes, that the kernel's headers give them; and
 * nothing of another length is read.
 * Method: against what a C program made of the headers of Linux 6.1 (`scripts/golden/vhost.c`), and for what is younger,
 * against numbers written down by hand from those of 6.12.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { readFileSync } from "node:fs"
import * as Vhost from "../../src/Wire/VhostIoctl.ts"
import { featureMask } from "../../src/Wire/VirtioBlk.ts"
import { address, u64 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const golden = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  ioctls: Schema.Record(Schema.String, Schema.Natural),
  structures: Schema.Record(Schema.String, Schema.String)
})))(readFileSync(new URL("./golden/vhost-6.1.json", import.meta.url), "utf8"))

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")
const goldenBytes = (name: string): Uint8Array => Uint8Array.from(Buffer.from(golden.structures[name] ?? "", "hex"))

describe("ioctls", () => {
  it("have the numbers of the headers", () => {
    const younger = {
      VHOST_VDPA_RESUME: 0xaf7e,
      VHOST_VDPA_GET_VRING_DESC_GROUP: 0xc008af7f,
      VHOST_VDPA_GET_VRING_SIZE: 0xc008af82
    }
    expect(Vhost.Ioctl).toStrictEqual({ ...golden.ioctls, ...younger })
  })

  it("are named", () => {
    expect(Vhost.ioctlName(0x8004af70)).toBe("VHOST_VDPA_GET_DEVICE_ID")
    expect(Vhost.ioctlName(0xaf99)).toBe("ioctl 0xaf99")
  })

  it("that the kernel fills get zeroes of their size", () => {
    expect(Vhost.emptyArgument(Vhost.Ioctl.VHOST_VDPA_GET_VRING_NUM)).toStrictEqual(new Uint8Array(2))
    expect(Vhost.emptyArgument(Vhost.Ioctl.VHOST_VDPA_GET_IOVA_RANGE)).toStrictEqual(new Uint8Array(16))
  })
})

describe("backend features", () => {
  it("are numbers of bits, as the headers have them", () => {
    expect(Object.values(Vhost.BackendFeature)).toStrictEqual([1, 2, 3, 4, 5, 6, 7, 8])
    // What the kernel's simulator was seen to offer: everything but DESC_ASID.
    const { DESC_ASID: _, ...offered } = Vhost.BackendFeature
    expect(featureMask(...Object.values(offered))).toBe(0x17en)
  })
})

describe("structures", () => {
  it("have the bytes of the headers", () => {
    expect(hex(Vhost.encodeVringState(3, 0x102))).toBe(golden.structures["vhost_vring_state"])
    expect(hex(Vhost.encodeVringFile(3, -1))).toBe(golden.structures["vhost_vring_file"])
    const vring = {
      index: 3,
      flags: 0,
      descriptors: 0x1020304050600,
      used: 0x1020304050700,
      avail: 0x1020304050800,
      log: 0
    }
    expect(hex(Vhost.encodeVringAddress(vring))).toBe(golden.structures["vhost_vring_addr"])
    expect(hex(Vhost.encodeConfigQuestion(96).subarray(0, 8))).toBe(golden.structures["vhost_vdpa_config"])
    expect(Vhost.decodeIovaRange(goldenBytes("vhost_vdpa_iova_range"))).toStrictEqual({
      first: 0x0102030405060708n,
      last: 0xf1f2f3f4f5f6f7f8n
    })
  })

  it("of one number are little-endian", () => {
    expect(hex(Vhost.encodeU8(0x80))).toBe("80")
    expect(hex(Vhost.encodeU64(0x0102030405060708n))).toBe("0807060504030201")
    expect(hex(Vhost.encodeDescriptor(0x01020304))).toBe("04030201")
    expect(hex(Vhost.encodeDescriptor(-1))).toBe("ffffffff")
    expect([1, 2, 4].map((length) => Vhost.decodeNumber(Uint8Array.of(1, 2, 3, 0xf4).subarray(0, length))))
      .toStrictEqual(
        [0x01, 0x0201, 0xf4030201]
      )
  })

  it("hold room for the configuration behind its head", () => {
    const question = Vhost.encodeConfigQuestion(60)
    expect(question.length).toBe(68)
    question.fill(7, 8)
    expect(Vhost.decodeConfigAnswer(question)).toStrictEqual(new Uint8Array(60).fill(7))
  })

  it("of another length are refused", () => {
    for (const length of [0, 3, 5, 8]) {
      expect(wireError(() => Vhost.decodeNumber(new Uint8Array(length)))).toContain("must have exactly 4")
    }
    for (const length of [7, 9]) {
      expect(wireError(() => Vhost.decodeU64(new Uint8Array(length)))).toContain("must have exactly 8")
    }
    for (const length of [15, 17]) {
      expect(wireError(() => Vhost.decodeIovaRange(new Uint8Array(length)))).toContain("must have exactly 16")
    }
    expect(wireError(() => Vhost.decodeConfigAnswer(new Uint8Array(7)))).toContain("must have at least 8")
  })

  it("refuse what does not fit", () => {
    expect(wireError(() => Vhost.encodeU8(256))).toBe("u8 argument 256: must be a whole number from 0 to 255")
    for (const fd of [-2, 0.5, 2 ** 31, NaN]) {
      expect(wireError(() => Vhost.encodeVringFile(0, fd))).toBe(`descriptor ${fd}: must be one, or -1 for none`)
      expect(wireError(() => Vhost.encodeDescriptor(fd))).toBe(`descriptor ${fd}: must be one, or -1 for none`)
    }
  })

  it.prop(
    "of an IOVA range keep all 64 bits",
    [Arbitrary.schema(Schema.Struct({ first: u64, last: u64 }))],
    ([range]) => {
      const bytes = new Uint8Array(16)
      bytes.set(Vhost.encodeU64(range.first))
      bytes.set(Vhost.encodeU64(range.last), 8)
      expect(Vhost.decodeIovaRange(bytes)).toStrictEqual({ ...range })
    }
  )
})

describe("IOTLB messages", () => {
  const mapping = { iova: 0x1020304050000, size: 0x203000 }
  const update = { type: Vhost.IotlbType.UPDATE, ...mapping, userAddress: 0x1112131415000 }
  const invalidate = { type: Vhost.IotlbType.INVALIDATE, ...mapping }

  it.each<[string, 1 | 2, Vhost.IotlbMessage]>([
    ["vhost_msg update", 1, update],
    ["vhost_msg invalidate", 1, invalidate],
    ["vhost_msg_v2 update", 2, update],
    ["vhost_msg_v2 invalidate", 2, invalidate],
    ["vhost_msg_v2 batch begin", 2, { type: Vhost.IotlbType.BATCH_BEGIN }],
    ["vhost_msg_v2 batch end", 2, { type: Vhost.IotlbType.BATCH_END }]
  ])("%s has the bytes of the headers", (name, version, message) => {
    const bytes = Vhost.encodeIotlbMessage(version, message)
    expect(bytes.length).toBe(Vhost.IOTLB_MESSAGE_BYTES)
    expect(hex(bytes)).toBe(golden.structures[name])
  })

  it("refuse addresses above 2^53-1", () => {
    for (const field of ["iova", "size", "userAddress"]) {
      expect(wireError(() => Vhost.encodeIotlbMessage(2, { ...update, [field]: 2 ** 53 }))).toContain(
        "9007199254740992"
      )
    }
  })

  it.prop(
    "of both versions differ in the version alone",
    [Arbitrary.schema(Schema.Struct({ iova: address, size: address, userAddress: address }))],
    ([fields]) => {
      const [one, two] = ([1, 2] as const).map((version) =>
        Vhost.encodeIotlbMessage(version, { type: Vhost.IotlbType.UPDATE, ...fields })
      )
      expect(one?.[0]).toBe(1)
      expect(two?.[0]).toBe(2)
      expect(one?.subarray(1)).toStrictEqual(two?.subarray(1))
    }
  )
})
