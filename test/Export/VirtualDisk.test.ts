/**
 * Goal: the device that a front-end sees answers each request as virtio 1.2 §5.2.6 says: what is wrong with it is found
 * before the store hears of it, and what is right reaches the store as it was meant, in parts that the store takes, and
 * stable where nobody may be told otherwise.
 * Method: requests made by hand against a store in memory that notes what it is asked (test/BlockStore/WatchedStore.ts).
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit } from "effect"
import * as Errno from "../../src/Errno.ts"
import type { BlkRequest } from "../../src/Export/BlkRequest.ts"
import { check, type Options } from "../../src/Export/Options.ts"
import { VirtualDisk } from "../../src/Export/VirtualDisk.ts"
import { decodeConfig, FeatureBit, featureMask, featureNames, RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { pattern, watched } from "../BlockStore/WatchedStore.ts"

const CAPACITY = 1 << 20
const SECTORS = CAPACITY / 512
const { DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES } = RequestType
const { IOERR, OK, UNSUPP } = Status

const request = (
  type: number | undefined,
  sector = 0,
  given: ReadonlyArray<Uint8Array> = [],
  wanted: ReadonlyArray<Uint8Array> = []
): BlkRequest => {
  const lengthOf = (buffers: ReadonlyArray<Uint8Array>) => buffers.reduce((sum, { length }) => sum + length, 0)
  return {
    head: 0,
    type,
    sector,
    given,
    givenLength: lengthOf(given),
    wanted,
    wantedLength: lengthOf(wanted),
    statusRegion: undefined,
    statusPosition: 0
  }
}

const bytes = (length: number) => length === 0 ? [] : [new Uint8Array(length)]

const segment = (sector: number | bigint, sectors: number, flags = 0) => {
  const given = new Uint8Array(16)
  const view = new DataView(given.buffer)
  view.setBigUint64(0, BigInt(sector), true)
  view.setUint32(8, sectors, true)
  view.setUint32(12, flags, true)
  return given
}

const open = (
  options: Omit<Options, "path"> & { readonly without?: ReadonlyArray<number> } = {},
  store: Partial<Parameters<typeof watched>[0]> = {}
) => {
  const { without = [], ...rest } = options
  const behind = watched({ capacity: CAPACITY, ...store })
  const settings = check(behind.store, { path: "unused", ...rest })
  if ("_tag" in settings) throw settings
  const disk = new VirtualDisk(behind.store, settings, CAPACITY)
  disk.negotiate(disk.features & ~featureMask(...without))
  /** Does a request; answers its status, or "failed" where the store failed. */
  const status = (made: BlkRequest) =>
    Effect.suspend(() => {
      const execution = disk.execute(made)
      if (typeof execution === "number") return Effect.succeed<number | "failed">(execution)
      return Effect.map(Effect.exit(execution), (exit) => Exit.isSuccess(exit) ? OK : "failed" as const)
    })
  return { behind, disk, status }
}

describe("a request that is wrong", () => {
  const cases: ReadonlyArray<{ name: string; made: BlkRequest; is: number; options?: Parameters<typeof open>[0] }> = [
    { name: "no header", made: request(undefined, 0, [], bytes(512)), is: IOERR },
    { name: "an unknown type", made: request(99), is: UNSUPP },
    { name: "a type of 2^32 - 1", made: request(0xffff_ffff), is: UNSUPP },
    { name: "SCSI commands", made: request(2), is: UNSUPP },
    { name: "GET_LIFETIME", made: request(10, 0, [], bytes(40)), is: UNSUPP },
    { name: "SECURE_ERASE", made: request(14, 0, [segment(0, 8)]), is: UNSUPP },
    { name: "ZONE_REPORT", made: request(16, 0, [], bytes(512)), is: UNSUPP },
    { name: "a read at the end", made: request(IN, SECTORS, [], bytes(512)), is: IOERR },
    { name: "a read across the end", made: request(IN, SECTORS - 1, [], bytes(1024)), is: IOERR },
    { name: "a read at sector 2^64 - 1", made: request(IN, 2 ** 64, [], bytes(512)), is: IOERR },
    {
      name: "a read at sector 2^55, whose byte 2^64 wraps to 0",
      made: request(IN, 2 ** 55, [], bytes(512)),
      is: IOERR
    },
    { name: "a write at the end", made: request(OUT, SECTORS, bytes(512)), is: IOERR },
    { name: "a write across the end", made: request(OUT, SECTORS - 1, bytes(1024)), is: IOERR },
    { name: "a read of 511 bytes", made: request(IN, 0, [], bytes(511)), is: IOERR },
    { name: "a write of 513 bytes", made: request(OUT, 0, bytes(513)), is: IOERR },
    { name: "a read of nothing beyond the end", made: request(IN, SECTORS + 1), is: IOERR },
    { name: "a read with data given", made: request(IN, 0, bytes(512), bytes(512)), is: IOERR },
    { name: "a read with data given only", made: request(IN, 0, bytes(512)), is: IOERR },
    { name: "a write with data wanted", made: request(OUT, 0, bytes(512), bytes(512)), is: IOERR },
    { name: "a write with data wanted only", made: request(OUT, 0, [], bytes(512)), is: IOERR },
    { name: "a flush with data given", made: request(FLUSH, 0, bytes(512)), is: IOERR },
    { name: "a flush with data wanted", made: request(FLUSH, 0, [], bytes(512)), is: IOERR },
    { name: "GET_ID without room", made: request(GET_ID), is: IOERR },
    { name: "GET_ID with data given", made: request(GET_ID, 0, bytes(20), bytes(20)), is: IOERR },
    { name: "a discard without a segment", made: request(DISCARD), is: IOERR },
    { name: "a discard of 15 bytes", made: request(DISCARD, 0, bytes(15)), is: IOERR },
    { name: "a discard of 17 bytes", made: request(DISCARD, 0, bytes(17)), is: IOERR },
    { name: "a discard of two segments", made: request(DISCARD, 0, [segment(0, 8), segment(8, 8)]), is: UNSUPP },
    { name: "a discard of two that overlap", made: request(DISCARD, 0, [segment(0, 8), segment(0, 8)]), is: UNSUPP },
    { name: "a discard that wants data", made: request(DISCARD, 0, [segment(0, 8)], bytes(512)), is: IOERR },
    { name: "a discard with UNMAP", made: request(DISCARD, 0, [segment(0, 8, 1)]), is: UNSUPP },
    { name: "a discard with an unknown flag", made: request(DISCARD, 0, [segment(0, 8, 2)]), is: UNSUPP },
    { name: "a discard at the end", made: request(DISCARD, 0, [segment(SECTORS, 1)]), is: IOERR },
    { name: "a discard across the end", made: request(DISCARD, 0, [segment(SECTORS - 1, 2)]), is: IOERR },
    { name: "a discard that wraps", made: request(DISCARD, 0, [segment(2n ** 64n - 1n, 2)]), is: IOERR },
    { name: "a discard of 2^32 - 1 sectors", made: request(DISCARD, 0, [segment(0, 0xffff_ffff)]), is: IOERR },
    {
      name: "a discard over the limit",
      made: request(DISCARD, 0, [segment(0, 9)]),
      is: IOERR,
      options: { maxRangeLength: 4096 }
    },
    { name: "write zeroes without a segment", made: request(WRITE_ZEROES), is: IOERR },
    {
      name: "write zeroes of two segments",
      made: request(WRITE_ZEROES, 0, [segment(0, 1), segment(1, 1)]),
      is: UNSUPP
    },
    { name: "write zeroes with an unknown flag", made: request(WRITE_ZEROES, 0, [segment(0, 8, 2)]), is: UNSUPP },
    { name: "write zeroes with all flags", made: request(WRITE_ZEROES, 0, [segment(0, 8, 0xffff_ffff)]), is: UNSUPP },
    { name: "write zeroes across the end", made: request(WRITE_ZEROES, 0, [segment(SECTORS - 1, 2)]), is: IOERR },
    { name: "write zeroes that wrap", made: request(WRITE_ZEROES, 0, [segment(2n ** 64n - 1n, 2)]), is: IOERR },
    { name: "a write to a read-only disk", made: request(OUT, 0, bytes(512)), is: IOERR, options: { readOnly: true } },
    {
      name: "a discard of a read-only disk",
      made: request(DISCARD, 0, [segment(0, 8)]),
      is: IOERR,
      options: { readOnly: true }
    },
    {
      name: "write zeroes to a read-only disk",
      made: request(WRITE_ZEROES, 0, [segment(0, 8)]),
      is: IOERR,
      options: { readOnly: true }
    },
    { name: "a read of half a block", made: request(IN, 0, [], bytes(512)), is: IOERR, options: { blockSize: 4096 } },
    { name: "a read beside a block", made: request(IN, 1, [], bytes(4096)), is: IOERR, options: { blockSize: 4096 } },
    {
      name: "a discard of half a block",
      made: request(DISCARD, 0, [segment(0, 4)]),
      is: IOERR,
      options: { blockSize: 4096 }
    }
  ]

  it.effect.each(cases)("$name", ({ is, made, options }) =>
    Effect.gen(function*() {
      const { behind, status } = open(options)
      expect(yield* status(made)).toBe(is)
      expect(behind.log).toStrictEqual([])
    }))
})

describe("a request that is right", () => {
  it.effect("is done", () =>
    Effect.gen(function*() {
      const { behind, status } = open()
      const given = pattern(0, 1024)
      expect(yield* status(request(OUT, 6, [given.subarray(0, 100), given.subarray(100)]))).toBe(OK)
      const wanted = [new Uint8Array(700), new Uint8Array(324)]
      expect(yield* status(request(IN, 6, [], wanted))).toBe(OK)
      expect(Uint8Array.from(Buffer.concat(wanted))).toStrictEqual(given)
      expect(yield* status(request(FLUSH))).toBe(OK)
      expect(yield* status(request(WRITE_ZEROES, 0, [segment(7, 1)]))).toBe(OK)
      expect(yield* status(request(DISCARD, 0, [segment(6, 1)]))).toBe(OK)
      expect(behind.log).toStrictEqual([
        { name: "write", offset: 3072, length: 1024, fua: false },
        { name: "read", offset: 3072, length: 1024 },
        { name: "flush", offset: 0, length: 0 },
        { name: "writeZeroes", offset: 3584, length: 512, fua: false, noUnmap: true },
        { name: "discard", offset: 3072, length: 512 }
      ])
    }))

  it.effect("reaches the last sector", () =>
    Effect.gen(function*() {
      const { status } = open()
      expect(yield* status(request(OUT, SECTORS - 1, bytes(512)))).toBe(OK)
      expect(yield* status(request(IN, 0, [], bytes(CAPACITY)))).toBe(OK)
      expect(yield* status(request(WRITE_ZEROES, 0, [segment(0, SECTORS)]))).toBe(OK)
      expect(yield* status(request(DISCARD, 0, [segment(SECTORS - 1, 1)]))).toBe(OK)
    }))

  it.effect("of no length is done without the store", () =>
    Effect.gen(function*() {
      const { behind, status } = open()
      expect(yield* status(request(IN, SECTORS))).toBe(OK)
      expect(yield* status(request(OUT, 0))).toBe(OK)
      expect(yield* status(request(DISCARD, 0, [segment(0, 0)]))).toBe(OK)
      expect(yield* status(request(WRITE_ZEROES, 0, [segment(0, 0, 1)]))).toBe(OK)
      expect(behind.log).toStrictEqual([])
    }))

  it.effect("may name a sector that means nothing: a flush and a GET_ID have none", () =>
    Effect.gen(function*() {
      const { status } = open()
      expect(yield* status(request(FLUSH, 12345))).toBe(OK)
      expect(yield* status(request(GET_ID, 2 ** 64, [], bytes(20)))).toBe(OK)
    }))

  it.effect("may be one whose feature was not negotiated, which harms nobody", () =>
    Effect.gen(function*() {
      const { status } = open({ without: [FeatureBit.FLUSH, FeatureBit.DISCARD, FeatureBit.WRITE_ZEROES] })
      expect(yield* status(request(FLUSH))).toBe(OK)
      expect(yield* status(request(DISCARD, 0, [segment(0, 8)]))).toBe(OK)
      expect(yield* status(request(WRITE_ZEROES, 0, [segment(0, 8)]))).toBe(OK)
    }))

  it.effect("UNMAP lets write zeroes unmap, and nothing else does", () =>
    Effect.gen(function*() {
      const { behind, status } = open()
      yield* status(request(WRITE_ZEROES, 0, [segment(0, 8, 1)]))
      yield* status(request(WRITE_ZEROES, 0, [segment(0, 8, 0)]))
      expect(behind.log).toMatchObject([{ noUnmap: false }, { noUnmap: true }])
    }))
})

describe("GET_ID", () => {
  it.effect.each([
    { serial: "", length: 20 },
    { serial: "disk", length: 20 },
    { serial: "exactly twenty bytes", length: 20 },
    { serial: "exactly twenty bytes", length: 7 },
    { serial: "disk", length: 1 },
    { serial: "disk", length: 512 }
  ])("tells '$serial' in $length bytes", ({ length, serial }) =>
    Effect.gen(function*() {
      for (const cut of [0, 1, 3]) {
        const { status } = open({ serial })
        const room = new Uint8Array(length).fill(0xee)
        const wanted = [room.subarray(0, cut), room.subarray(cut)].filter((buffer) => buffer.length > 0)
        expect(yield* status(request(GET_ID, 0, [], wanted))).toBe(OK)
        const expected = new Uint8Array(length).fill(0xee)
        expected.fill(0, 0, 20)
        expected.set(Buffer.from(serial).subarray(0, length))
        expect(room).toStrictEqual(expected)
      }
    }))
})

describe("a write is stable before it is answered", () => {
  const { CONFIG_WCE, FLUSH: F } = FeatureBit
  const cases = [
    { writeCache: true, without: [], set: undefined, fua: false },
    { writeCache: true, without: [CONFIG_WCE], set: undefined, fua: false },
    { writeCache: true, without: [], set: 0, fua: true },
    { writeCache: true, without: [F], set: undefined, fua: true },
    { writeCache: true, without: [F, CONFIG_WCE], set: undefined, fua: true },
    { writeCache: true, without: [F], set: 1, fua: true },
    { writeCache: false, without: [], set: undefined, fua: true },
    { writeCache: false, without: [CONFIG_WCE], set: undefined, fua: true },
    { writeCache: false, without: [F, CONFIG_WCE], set: undefined, fua: true },
    { writeCache: false, without: [], set: 1, fua: false },
    { writeCache: false, without: [F], set: 1, fua: true }
  ]
  it.effect.each(cases)(
    "writeCache $writeCache, without features $without, writeback set to $set: $fua",
    ({ fua, set, without, writeCache }) =>
      Effect.gen(function*() {
        const { behind, disk, status } = open({ writeCache, without })
        if (set !== undefined) expect(disk.configure(32, Uint8Array.of(set))).toBeUndefined()
        yield* status(request(OUT, 0, bytes(512)))
        yield* status(request(WRITE_ZEROES, 0, [segment(0, 1)]))
        expect(behind.log).toMatchObject([{ name: "write", fua }, { name: "writeZeroes", fua }])
      })
  )

  it.effect("again after a reset, until features are negotiated and as the options say", () =>
    Effect.gen(function*() {
      const { behind, disk, status } = open()
      disk.configure(32, Uint8Array.of(0))
      disk.reset()
      expect(decodeConfig(disk.config).writeback).toBe(1)
      yield* status(request(OUT, 0, bytes(512)))
      disk.negotiate(disk.features)
      yield* status(request(OUT, 0, bytes(512)))
      expect(behind.log).toMatchObject([{ fua: true }, { fua: false }])
    }))
})

describe("a store that takes less at once", () => {
  it.effect("gets parts, each once, at multiples of the block size", () =>
    Effect.gen(function*() {
      const limits = { maxTransfer: 5 * 512, maxDiscard: 3 * 512, maxWriteZeroes: 512 }
      const { behind, status } = open({}, { limits })
      const given = pattern(0, 16 * 512)
      const inThree = (buffer: Uint8Array) => [buffer.subarray(0, 1), buffer.subarray(1, 5000), buffer.subarray(5000)]
      expect(yield* status(request(OUT, 3, inThree(given)))).toBe(OK)
      const found = new Uint8Array(given.length)
      expect(yield* status(request(IN, 3, [], inThree(found)))).toBe(OK)
      expect(found).toStrictEqual(given)
      expect(yield* status(request(DISCARD, 0, [segment(3, 7)]))).toBe(OK)
      expect(yield* status(request(WRITE_ZEROES, 0, [segment(3, 3)]))).toBe(OK)
      const parts = (name: string) =>
        behind.log.filter((operation) => operation.name === name).map((
          { length, offset }
        ) => [offset / 512, length / 512])
      expect(parts("write")).toStrictEqual([[3, 5], [8, 5], [13, 5], [18, 1]])
      expect(parts("read")).toStrictEqual([[3, 5], [8, 5], [13, 5], [18, 1]])
      expect(parts("discard")).toStrictEqual([[3, 3], [6, 3], [9, 1]])
      expect(parts("writeZeroes")).toStrictEqual([[3, 1], [4, 1], [5, 1]])
      expect(behind.content.subarray(10 * 512, 19 * 512)).toStrictEqual(given.subarray(7 * 512))
    }))

  it.effect("fails as one where a part fails", () =>
    Effect.gen(function*() {
      const { behind, status } = open({}, { limits: { maxTransfer: 512 } })
      behind.failure = ({ offset }) =>
        offset === 1024 ? new Errno.EIO({ operation: "read", detail: "on purpose" }) : undefined
      expect(yield* status(request(IN, 0, [], bytes(2048)))).toBe("failed")
      expect(yield* status(request(IN, 3, [], bytes(2048)))).toBe(OK)
    }))
})

describe("the configuration space", () => {
  it("tells what the options say, and no more than 256 bytes", () => {
    const { disk } = open({
      blockSize: 4096,
      maxSegments: 77,
      maxRangeLength: 1 << 20,
      numQueues: 3,
      writeCache: false
    })
    expect(disk.config.length).toBe(256)
    expect(decodeConfig(disk.config)).toStrictEqual({
      capacitySectors: BigInt(SECTORS),
      sizeMax: 0,
      segMax: 77,
      blkSize: 4096,
      physicalBlockExp: 0,
      alignmentOffset: 0,
      minIoSize: 1,
      optIoSize: 1,
      writeback: 0,
      numQueues: 3,
      maxDiscardSectors: 2048,
      maxDiscardSeg: 1,
      discardSectorAlignment: 8,
      maxWriteZeroesSectors: 2048,
      maxWriteZeroesSeg: 1,
      writeZeroesMayUnmap: 1
    })
    expect(disk.config.subarray(60).every((byte) => byte === 0)).toBe(true)
  })

  it("takes writeback, 0 or 1, and nothing else", () => {
    const { disk } = open()
    expect(disk.configure(32, Uint8Array.of(0))).toBeUndefined()
    expect(decodeConfig(disk.config).writeback).toBe(0)
    expect(disk.configure(32, Uint8Array.of(1))).toBeUndefined()
    expect(disk.configure(32, Uint8Array.of(2))).toBe("writeback 2: must be 0 or 1")
    for (const [offset, length] of [[0, 8], [32, 0], [32, 2], [31, 1], [33, 1], [31, 2], [256, 1]] as const) {
      expect(disk.configure(offset, new Uint8Array(length))).toBe(
        `${length} bytes at ${offset}: only writeback, 1 byte at 32, can be set`
      )
    }
    expect(decodeConfig(disk.config).writeback).toBe(1)
  })

  it("has RO and MQ where they mean something", () => {
    expect(featureNames(open().disk.features)).toStrictEqual([
      "SEG_MAX",
      "BLK_SIZE",
      "FLUSH",
      "TOPOLOGY",
      "CONFIG_WCE",
      "DISCARD",
      "WRITE_ZEROES",
      "INDIRECT_DESC",
      "EVENT_IDX",
      "PROTOCOL_FEATURES",
      "VERSION_1"
    ])
    const names = featureNames(open({ numQueues: 2, readOnly: true }).disk.features)
    expect(names).toEqual(expect.arrayContaining(["RO", "MQ"]))
  })
})
