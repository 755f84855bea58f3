/**
 * Goal: what we write is what a real backend understands, and what it answers is what we read.
 * Method: golden bytes of a conversation with qemu-storage-daemon 7.2, recorded by scripts/golden/record.ts, which builds its
 * messages without src/Wire. The encoders must give the bytes sent, the decoders the values known of that daemon: a raw file
 * of 4 MiB, exported writable with 4 queues.
 */
import { describe, expect, it } from "@effect/vitest"
import * as VhostUser from "../../src/Wire/VhostUserMessage.ts"
import * as VirtioBlk from "../../src/Wire/VirtioBlk.ts"
import { names, received, sent } from "./golden/Recording.ts"

const { FLAG_NEED_REPLY, FLAG_REPLY, FrontendRequest, ProtocolFeature } = VhostUser
const { FeatureBit } = VirtioBlk

const expectedSent: Record<string, Uint8Array> = {
  SET_OWNER: VhostUser.encodeMessage(FrontendRequest.SET_OWNER, 0),
  GET_FEATURES: VhostUser.encodeMessage(FrontendRequest.GET_FEATURES, 0),
  GET_PROTOCOL_FEATURES: VhostUser.encodeMessage(FrontendRequest.GET_PROTOCOL_FEATURES, 0),
  SET_PROTOCOL_FEATURES: VhostUser.encodeMessage(
    FrontendRequest.SET_PROTOCOL_FEATURES,
    0,
    VhostUser.encodeU64(
      VirtioBlk.featureMask(
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG,
        ProtocolFeature.CONFIGURE_MEM_SLOTS
      )
    )
  ),
  GET_QUEUE_NUM: VhostUser.encodeMessage(FrontendRequest.GET_QUEUE_NUM, 0),
  GET_MAX_MEM_SLOTS: VhostUser.encodeMessage(FrontendRequest.GET_MAX_MEM_SLOTS, 0),
  "GET_CONFIG 96 bytes": VhostUser.encodeMessage(
    FrontendRequest.GET_CONFIG,
    0,
    VhostUser.encodeConfig({ offset: 0, size: 96, flags: 0 })
  ),
  "GET_CONFIG 60 bytes": VhostUser.encodeMessage(
    FrontendRequest.GET_CONFIG,
    0,
    VhostUser.encodeConfig({ offset: 0, size: 60, flags: 0 })
  ),
  "GET_CONFIG 8 bytes": VhostUser.encodeMessage(
    FrontendRequest.GET_CONFIG,
    0,
    VhostUser.encodeConfig({ offset: 0, size: 8, flags: 0 })
  ),
  SET_FEATURES: VhostUser.encodeMessage(
    FrontendRequest.SET_FEATURES,
    FLAG_NEED_REPLY,
    VhostUser.encodeU64(
      VirtioBlk.featureMask(
        FeatureBit.SIZE_MAX,
        FeatureBit.SEG_MAX,
        FeatureBit.BLK_SIZE,
        FeatureBit.FLUSH,
        FeatureBit.TOPOLOGY,
        FeatureBit.CONFIG_WCE,
        FeatureBit.MQ,
        FeatureBit.DISCARD,
        FeatureBit.WRITE_ZEROES,
        FeatureBit.INDIRECT_DESC,
        FeatureBit.EVENT_IDX,
        FeatureBit.PROTOCOL_FEATURES,
        FeatureBit.VERSION_1
      )
    )
  ),
  "SET_CONFIG writeback on": VhostUser.encodeMessage(
    FrontendRequest.SET_CONFIG,
    FLAG_NEED_REPLY,
    VhostUser.encodeConfig({ offset: 32, size: 1, flags: 0, region: Uint8Array.of(1) })
  ),
  "GET_CONFIG 60 bytes, writeback on": VhostUser.encodeMessage(
    FrontendRequest.GET_CONFIG,
    0,
    VhostUser.encodeConfig({ offset: 0, size: 60, flags: 0 })
  ),
  SET_VRING_NUM: VhostUser.encodeMessage(
    FrontendRequest.SET_VRING_NUM,
    FLAG_NEED_REPLY,
    VhostUser.encodeVringState(3, 256)
  ),
  SET_VRING_BASE: VhostUser.encodeMessage(
    FrontendRequest.SET_VRING_BASE,
    FLAG_NEED_REPLY,
    VhostUser.encodeVringState(3, 0x1234)
  ),
  GET_VRING_BASE: VhostUser.encodeMessage(FrontendRequest.GET_VRING_BASE, 0, VhostUser.encodeVringState(3, 0)),
  "SET_VRING_CALL without fd": VhostUser.encodeMessage(
    FrontendRequest.SET_VRING_CALL,
    FLAG_NEED_REPLY,
    VhostUser.encodeVringFd(3, false)
  ),
  "SET_MEM_TABLE without regions": VhostUser.encodeMessage(
    FrontendRequest.SET_MEM_TABLE,
    FLAG_NEED_REPLY,
    VhostUser.encodeMemoryTable([])
  ),
  GET_INFLIGHT_FD: VhostUser.encodeMessage(
    FrontendRequest.GET_INFLIGHT_FD,
    0,
    VhostUser.encodeInflight({ mmapSize: 0, mmapOffset: 0, numQueues: 1, queueSize: 128 })
  )
}

/** Checks the header of an answer and gives its payload. */
const payloadOf = (name: string, request: number): Uint8Array => {
  const message = received(name)
  const header = VhostUser.decodeHeader(message)
  expect(header).toStrictEqual({ request, flags: FLAG_REPLY, size: message.byteLength - VhostUser.HEADER_BYTES })
  return message.subarray(VhostUser.HEADER_BYTES)
}

describe("messages sent to qemu-storage-daemon", () => {
  it("are all known here", () => {
    expect(Object.keys(expectedSent)).toStrictEqual(names)
  })

  it.each(Object.keys(expectedSent))("%s has the bytes that it understood", (name) => {
    expect(Buffer.from(expectedSent[name]!).toString("hex")).toBe(sent(name))
  })
})

describe("messages received from qemu-storage-daemon", () => {
  it("GET_FEATURES offers what it is known to offer", () => {
    const features = VhostUser.decodeU64(payloadOf("GET_FEATURES", FrontendRequest.GET_FEATURES))
    expect(features).toBe(0x1_7500_7e46n)
    expect(VirtioBlk.featureNames(features)).toStrictEqual([
      "SIZE_MAX",
      "SEG_MAX",
      "BLK_SIZE",
      "FLUSH",
      "TOPOLOGY",
      "CONFIG_WCE",
      "MQ",
      "DISCARD",
      "WRITE_ZEROES",
      "NOTIFY_ON_EMPTY",
      "LOG_ALL",
      "INDIRECT_DESC",
      "EVENT_IDX",
      "PROTOCOL_FEATURES",
      "VERSION_1"
    ])
    expect(VirtioBlk.hasFeature(features, FeatureBit.RO)).toBe(false)
  })

  it("GET_PROTOCOL_FEATURES offers what it is known to offer", () => {
    const features = VhostUser.decodeU64(payloadOf("GET_PROTOCOL_FEATURES", FrontendRequest.GET_PROTOCOL_FEATURES))
    expect(features).toBe(0x8f2bn)
    const offered = Object.entries(ProtocolFeature).filter(([, bit]) => VirtioBlk.hasFeature(features, bit))
    expect(offered.map(([name]) => name)).toStrictEqual([
      "MQ",
      "LOG_SHMFD",
      "REPLY_ACK",
      "BACKEND_REQ",
      "PAGEFAULT",
      "CONFIG",
      "BACKEND_SEND_FD",
      "HOST_NOTIFIER",
      "CONFIGURE_MEM_SLOTS"
    ])
  })

  it("GET_QUEUE_NUM and GET_MAX_MEM_SLOTS give 4 queues and 32 slots", () => {
    expect(VhostUser.decodeU64(payloadOf("GET_QUEUE_NUM", FrontendRequest.GET_QUEUE_NUM))).toBe(4n)
    expect(VhostUser.decodeU64(payloadOf("GET_MAX_MEM_SLOTS", FrontendRequest.GET_MAX_MEM_SLOTS))).toBe(32n)
  })

  const config: VirtioBlk.BlkConfig = {
    capacitySectors: 8192n,
    sizeMax: 0,
    segMax: 126,
    blkSize: 512,
    physicalBlockExp: 0,
    alignmentOffset: 0,
    minIoSize: 1,
    optIoSize: 1,
    writeback: 0,
    numQueues: 4,
    maxDiscardSectors: 32768,
    maxDiscardSeg: 1,
    discardSectorAlignment: 1,
    maxWriteZeroesSectors: 32768,
    maxWriteZeroesSeg: 1,
    writeZeroesMayUnmap: 0
  }

  it.each([
    ["GET_CONFIG 60 bytes", 0],
    ["GET_CONFIG 60 bytes, writeback on", 1]
  ])("%s describes the disk, with writeback %i", (name, writeback) => {
    const { flags, offset, region, size } = VhostUser.decodeConfig(payloadOf(name, FrontendRequest.GET_CONFIG))
    expect({ offset, size, flags }).toStrictEqual({ offset: 0, size: 60, flags: 0 })
    const decoded = VirtioBlk.decodeConfig(region)
    expect(decoded).toStrictEqual({ ...config, writeback })
    expect(VirtioBlk.encodeConfig(decoded)).toStrictEqual(region)
    expect(Number(decoded.capacitySectors) * VirtioBlk.SECTOR_BYTES).toBe(4194304)
    expect(decoded.maxDiscardSectors * VirtioBlk.SECTOR_BYTES).toBe(16777216)
  })

  it("GET_CONFIG of 8 bytes gives the capacity", () => {
    const { region, size } = VhostUser.decodeConfig(payloadOf("GET_CONFIG 8 bytes", FrontendRequest.GET_CONFIG))
    expect(size).toBe(8)
    expect(VirtioBlk.decodeConfig(region)).toMatchObject({ capacitySectors: 8192n, blkSize: 0, numQueues: 0 })
  })

  it("GET_CONFIG of 96 bytes is refused with an empty payload", () => {
    expect(payloadOf("GET_CONFIG 96 bytes", FrontendRequest.GET_CONFIG).byteLength).toBe(0)
  })

  it.each([
    ["SET_FEATURES", FrontendRequest.SET_FEATURES],
    ["SET_CONFIG writeback on", FrontendRequest.SET_CONFIG],
    ["SET_VRING_NUM", FrontendRequest.SET_VRING_NUM],
    ["SET_VRING_BASE", FrontendRequest.SET_VRING_BASE],
    ["SET_VRING_CALL without fd", FrontendRequest.SET_VRING_CALL],
    ["SET_MEM_TABLE without regions", FrontendRequest.SET_MEM_TABLE]
  ])("%s is acknowledged", (name, request) => {
    expect(VhostUser.decodeU64(payloadOf(name, request))).toBe(0n)
  })

  it("GET_VRING_BASE gives back the base that was set", () => {
    expect(VhostUser.decodeVringState(payloadOf("GET_VRING_BASE", FrontendRequest.GET_VRING_BASE))).toStrictEqual({
      index: 3,
      num: 0x1234
    })
  })

  it("GET_INFLIGHT_FD describes an area for one queue of 128", () => {
    expect(VhostUser.decodeInflight(payloadOf("GET_INFLIGHT_FD", FrontendRequest.GET_INFLIGHT_FD))).toStrictEqual({
      mmapSize: 2112,
      mmapOffset: 0,
      numQueues: 1,
      queueSize: 128
    })
  })
})
