/**
 * Goal: every vhost-user message has the bytes of the protocol's text, and no byte from outside is believed unchecked.
 * Method: bytes written by hand where no recording can have them (messages that carry file descriptors), round trips over
 * the whole range, every wrong length, and each 64-bit field at 2^53-1 and 2^53. What a real backend said is in
 * Recording.test.ts.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import {
  BackendRequest,
  CONFIG_HEADER_BYTES,
  decodeConfig,
  decodeHeader,
  decodeInflight,
  decodeMemoryRegion,
  decodeMemoryTable,
  decodeU64,
  decodeVringAddress,
  decodeVringFd,
  decodeVringState,
  encodeConfig,
  encodeInflight,
  encodeMemoryRegion,
  encodeMemoryTable,
  encodeMessage,
  encodeU64,
  encodeVringAddress,
  encodeVringFd,
  encodeVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  FrontendRequest,
  HEADER_BYTES,
  MAX_FDS,
  MAX_PAYLOAD_BYTES,
  ProtocolFeature,
  requestName,
  VERSION
} from "../../src/Wire/VhostUserMessage.ts"
import { address, between, bytes, u16, u32, u64, u8 } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")

/** Checks that `decode` takes `length` bytes and none of the other lengths up to `length + 40`. */
const onlyLength = (length: number, decode: (payload: Uint8Array) => unknown): void => {
  decode(new Uint8Array(length))
  for (let wrong = 0; wrong <= length + 40; wrong++) {
    if (wrong !== length) {
      expect(wireError(() => decode(new Uint8Array(wrong))), `${wrong} bytes`).toContain(`of ${wrong} bytes`)
    }
  }
}

/** Checks that the u64 at byte `at` may be 2^53-1 and not more. */
const exactUpTo53Bits = (length: number, at: number, name: string, decode: (payload: Uint8Array) => unknown): void => {
  const payload = new Uint8Array(length)
  const view = new DataView(payload.buffer)
  view.setBigUint64(at, 2n ** 53n - 1n, true)
  decode(payload)
  for (const tooMuch of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    view.setBigUint64(at, tooMuch, true)
    expect(wireError(() => decode(payload))).toBe(`${name} ${tooMuch}: must be from 0 to 2^53-1`)
  }
}

describe("constants", () => {
  it("are those of docs/interop/vhost-user.rst", () => {
    expect([HEADER_BYTES, VERSION, FLAG_REPLY, FLAG_NEED_REPLY, MAX_FDS, CONFIG_HEADER_BYTES, MAX_PAYLOAD_BYTES])
      .toStrictEqual([12, 1, 4, 8, 8, 12, 268])
    expect(FrontendRequest).toStrictEqual({
      GET_FEATURES: 1,
      SET_FEATURES: 2,
      SET_OWNER: 3,
      RESET_OWNER: 4,
      SET_MEM_TABLE: 5,
      SET_LOG_BASE: 6,
      SET_LOG_FD: 7,
      SET_VRING_NUM: 8,
      SET_VRING_ADDR: 9,
      SET_VRING_BASE: 10,
      GET_VRING_BASE: 11,
      SET_VRING_KICK: 12,
      SET_VRING_CALL: 13,
      SET_VRING_ERR: 14,
      GET_PROTOCOL_FEATURES: 15,
      SET_PROTOCOL_FEATURES: 16,
      GET_QUEUE_NUM: 17,
      SET_VRING_ENABLE: 18,
      SET_BACKEND_REQ_FD: 21,
      IOTLB_MSG: 22,
      SET_VRING_ENDIAN: 23,
      GET_CONFIG: 24,
      SET_CONFIG: 25,
      GET_INFLIGHT_FD: 31,
      SET_INFLIGHT_FD: 32,
      RESET_DEVICE: 34,
      VRING_KICK: 35,
      GET_MAX_MEM_SLOTS: 36,
      ADD_MEM_REG: 37,
      REM_MEM_REG: 38,
      SET_STATUS: 39,
      GET_STATUS: 40
    })
    expect(BackendRequest).toStrictEqual({
      IOTLB_MSG: 1,
      CONFIG_CHANGE_MSG: 2,
      VRING_HOST_NOTIFIER_MSG: 3,
      VRING_CALL: 4,
      VRING_ERR: 5
    })
    expect(Object.values(ProtocolFeature)).toStrictEqual(Array.from({ length: 20 }, (_, bit) => bit))
    expect(ProtocolFeature).toMatchObject({
      MQ: 0,
      REPLY_ACK: 3,
      BACKEND_REQ: 5,
      CONFIG: 9,
      INFLIGHT_SHMFD: 12,
      RESET_DEVICE: 13,
      INBAND_NOTIFICATIONS: 14,
      CONFIGURE_MEM_SLOTS: 15,
      STATUS: 16,
      DEVICE_STATE: 19
    })
  })

  it("name requests", () => {
    for (const [name, id] of Object.entries(FrontendRequest)) expect(requestName(id)).toBe(name)
    expect(requestName(99)).toBe("request 99")
    expect(requestName(0)).toBe("request 0")
  })
})

describe("header and message", () => {
  it("have the protocol's bytes", () => {
    expect(hex(encodeMessage(FrontendRequest.SET_OWNER, 0))).toBe("030000000100000000000000")
    expect(hex(encodeMessage(FrontendRequest.SET_VRING_NUM, FLAG_NEED_REPLY, encodeVringState(1, 256)))).toBe(
      "0800000009000000080000000100000000010000"
    )
  })

  it.prop("come back", [u32, between(0, 0x3fff_ffff), bytes(0, 64)], ([request, flagBits, payload]) => {
    const flags = flagBits * 4
    const message = encodeMessage(request, flags, payload)
    expect(decodeHeader(message)).toStrictEqual({ request, flags, size: payload.byteLength })
    expect(message.slice(HEADER_BYTES)).toStrictEqual(payload)
  })

  it("puts its own version in, whatever the flags say", () => {
    for (const flags of [0, 1, 2, 3]) expect(encodeMessage(1, FLAG_REPLY | flags)[4]).toBe(5)
  })

  it("reads a header that more bytes follow, and one inside a larger buffer", () => {
    const message = encodeMessage(FrontendRequest.GET_FEATURES, FLAG_REPLY, encodeU64(7n))
    expect(decodeHeader(message.subarray(0, 12))).toStrictEqual({ request: 1, flags: FLAG_REPLY, size: 8 })
    const around = new Uint8Array(64).fill(0xee)
    around.set(message, 7)
    expect(decodeHeader(around.subarray(7))).toStrictEqual({ request: 1, flags: FLAG_REPLY, size: 8 })
  })

  it("refuses a short header", () => {
    for (let length = 0; length < 12; length++) {
      expect(wireError(() => decodeHeader(new Uint8Array(length)))).toBe(
        `message header of ${length} bytes: must have at least 12`
      )
    }
  })

  it("refuses other versions", () => {
    for (const version of [0, 2, 3]) {
      const header = encodeMessage(FrontendRequest.GET_CONFIG, 0)
      header[4] = version
      expect(wireError(() => decodeHeader(header))).toBe(`GET_CONFIG with protocol version ${version}: must be 1`)
    }
  })

  it("refuses payloads over the limit, in both directions", () => {
    expect(encodeMessage(24, 0, new Uint8Array(268)).byteLength).toBe(280)
    const tooMuch = "GET_CONFIG with 269 bytes of payload: must have at most 268"
    expect(wireError(() => encodeMessage(24, 0, new Uint8Array(269)))).toBe(tooMuch)
    const header = encodeMessage(24, 0)
    const view = new DataView(header.buffer)
    view.setUint32(8, 268, true)
    expect(decodeHeader(header).size).toBe(268)
    view.setUint32(8, 269, true)
    expect(wireError(() => decodeHeader(header))).toBe(tooMuch)
    view.setUint32(8, 0xffff_ffff, true)
    expect(wireError(() => decodeHeader(header))).toContain("4294967295 bytes")
  })

  it("refuses request numbers and flags that are no u32", () => {
    for (const wrong of [-1, 2 ** 32, 0.5]) {
      expect(wireError(() => encodeMessage(wrong, 0))).toContain(`request ${wrong}`)
      expect(wireError(() => encodeMessage(1, wrong))).toContain(`flags ${wrong}`)
    }
  })
})

describe("u64", () => {
  it.prop("comes back", [u64], ([value]) => {
    expect(decodeU64(encodeU64(value))).toBe(value)
  })

  it("has 8 bytes, lowest first", () => {
    expect(hex(encodeU64(0x0102_0304_0506_0708n))).toBe("0807060504030201")
    onlyLength(8, decodeU64)
    expect(wireError(() => encodeU64(-1n))).toContain("u64 payload -1")
    expect(wireError(() => encodeU64(2n ** 64n))).toContain("2^64-1")
  })
})

describe("vring state", () => {
  it.prop("comes back", { index: u32, num: u32 }, (state) => {
    expect(decodeVringState(encodeVringState(state.index, state.num))).toStrictEqual({ ...state })
  })

  it("has 8 bytes, index first", () => {
    expect(hex(encodeVringState(0x0102_0304, 0x0506_0708))).toBe("0403020108070605")
    onlyLength(8, decodeVringState)
    expect(wireError(() => encodeVringState(2 ** 32, 0))).toContain("vring index")
    expect(wireError(() => encodeVringState(0, -1))).toContain("vring number")
  })
})

describe("vring addresses", () => {
  const arbitrary = { index: u32, flags: u32, descriptors: address, used: address, avail: address, log: address }

  it.prop("come back", arbitrary, (value) => {
    expect(decodeVringAddress(encodeVringAddress(value))).toStrictEqual({ ...value })
  })

  it("have 40 bytes, in the order descriptors, used, avail, log", () => {
    const address = { index: 2, flags: 1, descriptors: 0x7f00_0000_1000, used: 0x2000, avail: 0x3000, log: 0x4000 }
    expect(hex(encodeVringAddress(address))).toBe(
      ["02000000", "01000000", "00100000007f0000", "0020000000000000", "0030000000000000", "0040000000000000"].join("")
    )
    onlyLength(40, decodeVringAddress)
  })

  it("hold addresses up to 2^53-1", () => {
    ;["descriptors", "used", "avail", "log"].forEach((name, i) => {
      exactUpTo53Bits(40, 8 + 8 * i, `${name} address`, decodeVringAddress)
      const zero = { index: 0, flags: 0, descriptors: 0, used: 0, avail: 0, log: 0 }
      expect(wireError(() => encodeVringAddress({ ...zero, [name]: 2 ** 53 }))).toContain(`${name} address`)
      expect(wireError(() => encodeVringAddress({ ...zero, [name]: -1 }))).toContain(`${name} address -1`)
    })
  })
})

describe("vring file descriptor", () => {
  it.prop("comes back", { index: u8, hasFd: Schema.Boolean }, (value) => {
    expect(decodeVringFd(encodeVringFd(value.index, value.hasFd))).toStrictEqual({ ...value })
  })

  it("has the index in bits 0-7 and 'none' in bit 8", () => {
    expect(hex(encodeVringFd(3, true))).toBe("0300000000000000")
    expect(hex(encodeVringFd(255, false))).toBe("ff01000000000000")
    onlyLength(8, decodeVringFd)
    expect(wireError(() => encodeVringFd(256, true))).toBe("vring index 256: must be a whole number from 0 to 255")
    for (const bit of [9n, 31n, 32n, 52n, 63n]) {
      expect(wireError(() => decodeVringFd(encodeU64(1n << bit)))).toContain("vring")
    }
  })
})

describe("memory regions", () => {
  /** Every end stays at or below 2^53-1. */
  const region = {
    guestAddress: between(0, 2 ** 52),
    size: between(0, 2 ** 52 - 1),
    userAddress: between(0, 2 ** 52),
    mmapOffset: between(0, 2 ** 52)
  }
  const regionArbitrary = Arbitrary.schema(Schema.Struct(region))
  const example = { guestAddress: 0x1000, size: 0x2000, userAddress: 0x7f00_0000_0000, mmapOffset: 0x4000 }
  const exampleHex = ["0010000000000000", "0020000000000000", "00000000007f0000", "0040000000000000"].join("")

  it.prop("come back alone", region, (value) => {
    expect(decodeMemoryRegion(encodeMemoryRegion(value))).toStrictEqual({ ...value })
  })

  it.prop("come back as a table", [Arbitrary.array(regionArbitrary, { maxLength: 8 })], ([regions]) => {
    expect(decodeMemoryTable(encodeMemoryTable(regions))).toStrictEqual(regions.map((region) => ({ ...region })))
  })

  it("have the protocol's bytes", () => {
    expect(hex(encodeMemoryRegion(example))).toBe("0000000000000000" + exampleHex)
    expect(hex(encodeMemoryTable([example, example]))).toBe("0200000000000000" + exampleHex + exampleHex)
    expect(encodeMemoryTable(Array.from({ length: 8 }, () => example)).byteLength).toBe(8 + 8 * 32)
    expect(decodeMemoryTable(encodeMemoryTable([]))).toStrictEqual([])
  })

  it("have 40 bytes alone, and 8 + 32 each in a table", () => {
    onlyLength(40, decodeMemoryRegion)
    for (let length = 0; length < 8; length++) {
      expect(wireError(() => decodeMemoryTable(new Uint8Array(length)))).toBe(
        `memory table of ${length} bytes: must have at least 8`
      )
    }
    for (let count = 0; count <= 8; count++) {
      onlyLength(8 + 32 * count, (payload) => {
        if (payload.byteLength > 0) payload[0] = count
        return decodeMemoryTable(payload)
      })
    }
  })

  it("are at most 8 in a table", () => {
    const nine = Array.from({ length: 9 }, () => example)
    expect(wireError(() => encodeMemoryTable(nine))).toBe("memory table regions 9: must be a whole number from 0 to 8")
    for (const count of [9, 0xffff_ffff]) {
      const payload = new Uint8Array(8 + 32 * 9)
      new DataView(payload.buffer).setUint32(0, count, true)
      expect(wireError(() => decodeMemoryTable(payload))).toContain(`memory table regions ${count}`)
    }
  })

  it("hold numbers up to 2^53-1, ends included", () => {
    ;["guest address", "size", "user address", "mmap offset"].forEach((name, i) =>
      exactUpTo53Bits(40, 8 + 8 * i, `region ${name}`, decodeMemoryRegion)
    )
    for (const field of ["guestAddress", "userAddress", "mmapOffset"] as const) {
      const last = { ...example, [field]: 2 ** 53 - 1 - example.size }
      const beyond = { ...example, [field]: 2 ** 53 - example.size }
      expect(decodeMemoryRegion(encodeMemoryRegion(last))).toStrictEqual(last)
      expect(wireError(() => encodeMemoryRegion(beyond))).toContain("must end at or before 2^53-1")
      const payload = encodeMemoryRegion(last)
      new DataView(payload.buffer).setBigUint64(16, BigInt(example.size) + 1n, true)
      expect(wireError(() => decodeMemoryRegion(payload))).toContain("must end at or before 2^53-1")
    }
    for (const field of ["guestAddress", "size", "userAddress", "mmapOffset"] as const) {
      for (const wrong of [-1, 0.5, NaN, 2 ** 53]) {
        expect(wireError(() => encodeMemoryRegion({ ...example, [field]: wrong }))).toContain(`${wrong}`)
        expect(wireError(() => encodeMemoryTable([example, { ...example, [field]: wrong }]))).toContain(`${wrong}`)
      }
    }
  })
})

describe("configuration", () => {
  it.prop("comes back", [u32, u32, bytes(0, 256)], ([offset, flags, region]) => {
    const config = { offset, size: region.byteLength, flags, region }
    expect(decodeConfig(encodeConfig(config))).toStrictEqual(config)
  })

  it("has the protocol's bytes, zeros where no region is given", () => {
    expect(hex(encodeConfig({ offset: 32, size: 1, flags: 0, region: Uint8Array.of(1) }))).toBe(
      "20000000010000000000000001"
    )
    expect(hex(encodeConfig({ offset: 0, size: 4, flags: 1 }))).toBe("00000000040000000100000000000000")
    expect(encodeConfig({ offset: 0, size: 256, flags: 0 }).byteLength).toBe(MAX_PAYLOAD_BYTES)
  })

  it("gives a region that the payload no longer touches", () => {
    const payload = encodeConfig({ offset: 0, size: 2, flags: 0, region: Uint8Array.of(1, 2) })
    const { region } = decodeConfig(payload)
    payload.fill(0)
    expect(region).toStrictEqual(Uint8Array.of(1, 2))
  })

  it("has exactly the bytes it names", () => {
    for (let length = 0; length < 12; length++) {
      expect(wireError(() => decodeConfig(new Uint8Array(length)))).toBe(
        `configuration of ${length} bytes: must have at least 12`
      )
    }
    for (const size of [0, 1, 8, 60, 96]) {
      onlyLength(12 + size, (payload) => {
        if (payload.byteLength >= 12) payload[4] = size
        return decodeConfig(payload)
      })
    }
    expect(wireError(() => encodeConfig({ offset: 0, size: 2, flags: 0, region: new Uint8Array(3) }))).toBe(
      "configuration region of 3 bytes: must have exactly 2"
    )
  })

  it("is at most 256 bytes long", () => {
    expect(wireError(() => encodeConfig({ offset: 0, size: 257, flags: 0 }))).toContain("configuration size 257")
    for (const size of [257, 0xffff_ffff]) {
      const payload = new Uint8Array(12 + 257)
      new DataView(payload.buffer).setUint32(4, size, true)
      expect(wireError(() => decodeConfig(payload))).toContain(`configuration size ${size}`)
    }
    expect(wireError(() => encodeConfig({ offset: -1, size: 1, flags: 0 }))).toContain("configuration offset -1")
    expect(wireError(() => encodeConfig({ offset: 0, size: 1, flags: 2 ** 32 }))).toContain("configuration flags")
  })
})

describe("inflight description", () => {
  it.prop("comes back", { mmapSize: address, mmapOffset: address, numQueues: u16, queueSize: u16 }, (inflight) => {
    expect(decodeInflight(encodeInflight(inflight))).toStrictEqual({ ...inflight })
  })

  it("has 24 bytes, the last 4 of them padding", () => {
    expect(hex(encodeInflight({ mmapSize: 2112, mmapOffset: 0x1000, numQueues: 4, queueSize: 256 }))).toBe(
      ["4008000000000000", "0010000000000000", "0400", "0001", "00000000"].join("")
    )
    onlyLength(24, decodeInflight)
    exactUpTo53Bits(24, 0, "inflight size", decodeInflight)
    exactUpTo53Bits(24, 8, "inflight offset", decodeInflight)
  })

  it("holds what fits", () => {
    const zero = { mmapSize: 0, mmapOffset: 0, numQueues: 0, queueSize: 0 }
    expect(wireError(() => encodeInflight({ ...zero, mmapSize: 2 ** 53 }))).toContain("inflight size")
    expect(wireError(() => encodeInflight({ ...zero, mmapOffset: -1 }))).toContain("inflight offset")
    expect(wireError(() => encodeInflight({ ...zero, numQueues: 65536 }))).toContain("inflight queues")
    expect(wireError(() => encodeInflight({ ...zero, queueSize: 65536 }))).toContain("inflight queue size")
  })
})

describe("any bytes", () => {
  it.prop("end in a value or a WireError, never in another error", [bytes(0, 300)], ([payload]) => {
    const decoders: ReadonlyArray<(payload: Uint8Array) => unknown> = [
      decodeHeader,
      decodeU64,
      decodeVringState,
      decodeVringAddress,
      decodeVringFd,
      decodeMemoryRegion,
      decodeMemoryTable,
      decodeConfig,
      decodeInflight
    ]
    for (const decode of decoders) {
      let value: unknown
      try {
        value = decode(payload)
      } catch {
        expect(wireError(() => decode(payload))).toMatch(/: must /)
        continue
      }
      expect(value).toBeDefined()
    }
  }, { arbitrary: { runs: 500 } })
})
