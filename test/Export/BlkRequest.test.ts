/**
 * Goal: a virtio-blk request is the same whatever the driver does with the edges of header, data and status (virtio 1.2
 * §2.7.4.1); data is views of the driver's memory, and what decides is read once.
 * Method: requests of known content in every framing by hand and in random ones, in memory that is mapped twice, with guard
 * bytes around each part.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { type BlkRequest, decode, segmentsOf, uses } from "../../src/Export/BlkRequest.ts"
import { Chain } from "../../src/Export/DeviceRing.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { RequestType, Status } from "../../src/Wire/VirtioBlk.ts"
import { type Laid, layRequest, type RequestOptions } from "../support/FakeRing.ts"
import { type ExportRing, withRing } from "./exportRing.ts"

const seeds = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 }))

/** Puts a request into the ring and takes it out at the other side. */
const taken = ({ device, driver, memory }: ExportRing, options: RequestOptions) => {
  const laid = layRequest(memory, options)
  const head = driver.put(laid.parts, options)
  const chain = new Chain()
  expect([device.take(chain), device.fault, chain.head]).toStrictEqual([true, undefined, head])
  return { laid, request: decode(chain) }
}

const joined = (buffers: ReadonlyArray<Uint8Array>) => Uint8Array.from(Buffer.concat(buffers))

/** Answers a request as the export would, and tells what the driver sees of it. */
const answered = ({ laid, request }: { readonly laid: Laid; readonly request: BlkRequest }) => {
  let byte = 1
  for (const buffer of request.wanted) for (let i = 0; i < buffer.length; i++) buffer[i] = byte++ & 0xff
  if (request.statusRegion !== undefined) request.statusRegion.bytes[request.statusPosition] = Status.OK
  return { status: laid.status(), data: laid.data(), isIntact: laid.isIntact() }
}

const counted = (length: number) => Uint8Array.from({ length }, (_, i) => i + 1 & 0xff)

describe("a request", () => {
  const out: ReadonlyArray<ReadonlyArray<number>> = [
    [16, 1024],
    [8, 8, 1024],
    [4, 4, 8, 1000, 24],
    [1040],
    [528, 512],
    [1, 15, 1024],
    [15, 1, 1024],
    [15, 1025],
    [0, 16, 0, 1024, 0],
    Array.from({ length: 104 }, () => 10)
  ]
  const writable: ReadonlyArray<ReadonlyArray<number>> = [
    [1024, 1],
    [1025],
    [1, 1024],
    [1023, 2],
    [512, 512, 1],
    [1024, 0, 1],
    [0, 1024, 1, 0, 0],
    Array.from({ length: 41 }, () => 25)
  ]
  const framings = [{}, { indirectFrom: 0 }, { indirectFrom: 0, tableOffset: 3 }, { indirectFrom: 1, tableOffset: 8 }]
  const given = counted(1024)

  it.each(out.map((lengths) => ({ lengths })))("gives its data, framed $lengths", ({ lengths }) => {
    for (const framing of framings) {
      withRing({ queueSize: 128 }, (ring) => {
        const { laid, request } = taken(ring, {
          type: RequestType.OUT,
          sector: 2 ** 40 + 7,
          given,
          out: lengths,
          ...framing
        })
        expect(request).toMatchObject({ type: 1, sector: 2 ** 40 + 7, givenLength: 1024, wantedLength: 0, wanted: [] })
        expect(joined(request.given)).toStrictEqual(given)
        expect(request.given.every(({ length }) => length > 0)).toBe(true)
        expect(answered({ laid, request })).toMatchObject({ status: 0, isIntact: true })
      })
    }
  })

  it.each(writable.map((lengths) => ({ lengths })))("takes its data, framed $lengths", ({ lengths }) => {
    for (const framing of framings) {
      withRing({ queueSize: 128 }, (ring) => {
        const { laid, request } = taken(ring, {
          type: RequestType.IN,
          sector: 9,
          wanted: 1024,
          in: lengths,
          ...framing
        })
        expect(request).toMatchObject({ type: 0, sector: 9, givenLength: 0, given: [], wantedLength: 1024 })
        expect(answered({ laid, request })).toStrictEqual({ status: 0, data: counted(1024), isIntact: true })
      })
    }
  })

  it("has no type where there are fewer than 16 bytes to read", () => {
    for (const lengths of [[], [0], [15], [8, 7], [1, 0, 14]]) {
      withRing({}, (ring) => {
        const { request } = taken(ring, { type: RequestType.IN, out: lengths, wanted: 512 })
        expect(request).toMatchObject({ type: undefined, givenLength: 0, given: [], wantedLength: 512 })
        expect(request.statusRegion).toBeDefined()
      })
    }
  })

  it("has no status where there is no byte to write", () => {
    for (const lengths of [[], [0], [0, 0]]) {
      withRing({}, (ring) => {
        const { request } = taken(ring, { type: RequestType.OUT, given: counted(512), in: lengths })
        expect(request).toMatchObject({
          type: 1,
          givenLength: 512,
          wantedLength: 0,
          wanted: [],
          statusRegion: undefined
        })
      })
    }
  })

  it("holds sectors up to 2^64, above 2^53 at least as far away", () => {
    for (const sector of [0n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 64n - 1n]) {
      withRing({}, (ring) => {
        const { request } = taken(ring, { type: RequestType.IN, sector, reserved: 0xffff_ffff, wanted: 512 })
        expect(request.sector).toBe(Number(sector))
      })
    }
  })

  it("reads its header once", () =>
    withRing({}, (ring) => {
      for (const lengths of [[16, 16], [8, 8, 16]]) {
        const { laid, request } = taken(ring, { type: RequestType.OUT, sector: 3, given: counted(16), out: lengths })
        for (const { address, length } of laid.parts) ring.memory.at(Number(address), length).fill(0xee)
        expect(request).toMatchObject({ type: 1, sector: 3, givenLength: 16 })
        // Data is the driver's memory itself.
        expect(joined(request.given)).toStrictEqual(new Uint8Array(16).fill(0xee))
      }
    }))

  it("keeps nothing of the one before", () =>
    withRing({}, (ring) => {
      const first = taken(ring, { type: RequestType.OUT, sector: 3, given: counted(64), out: [4, 12, 64] })
      const { request } = taken(ring, { type: RequestType.FLUSH, out: [15] })
      expect(request).toMatchObject({ type: undefined, sector: 0, givenLength: 0 })
      expect(joined(first.request.given)).toStrictEqual(counted(64))
    }))

  it("uses the regions of its data and its status", () => {
    const guestAddress = 2 ** 40
    const others = [
      { guestAddress: guestAddress + (1 << 20), userAddress: 2 ** 45, length: 4096 },
      { guestAddress: guestAddress + (1 << 21), userAddress: 2 ** 44, length: 4096 },
      { guestAddress: guestAddress + (1 << 22), userAddress: 2 ** 43, length: 4096 }
    ]
    withRing({ guestAddress, others }, (ring, [first]) => {
      ring.driver.put([
        { address: others[0]!.guestAddress, length: 16 },
        { address: others[1]!.guestAddress, length: 512, write: true },
        { address: others[2]!.guestAddress, length: 1, write: true }
      ])
      first?.view.setUint32(0, RequestType.IN, true)
      const chain = new Chain()
      expect(ring.device.take(chain)).toBe(true)
      const request = decode(chain)
      // Neither the ring's nor the header's: both were read.
      expect(ring.guest.regions.map((region) => uses(request, region))).toStrictEqual([false, false, true, true])
    })
  })

  it.prop("is the same in any framing", [seeds], ([seed]) => {
    const next = random(seed)
    /** Numbers that sum up to `total`, some of them 0. */
    const split = (total: number) => {
      const lengths: Array<number> = []
      for (let left = total; left > 0;) {
        const length = Math.min(left, next(4) === 0 ? 0 : 1 + next([3, 20, 600][next(3)]!))
        lengths.push(length)
        left -= length
      }
      return lengths
    }
    const given = Uint8Array.from({ length: next(1200) }, () => next(256))
    const wanted = next(1200)
    const out = split(16 + given.length)
    const lengths = split(wanted + 1)
    const sector = next(2 ** 31) * 2 ** next(20)
    const count = out.length + lengths.length
    withRing({ queueSize: 1024 }, (ring) => {
      const indirectFrom = next(3) === 0 ? count : next(count)
      const { laid, request } = taken(ring, {
        type: 77,
        sector,
        given,
        wanted,
        out,
        in: lengths,
        indirectFrom,
        tableOffset: next(16)
      })
      expect(request).toMatchObject({ type: 77, sector, givenLength: given.length, wantedLength: wanted })
      expect(joined(request.given)).toStrictEqual(given)
      expect(answered({ laid, request })).toStrictEqual({ status: 0, data: counted(wanted), isIntact: true })
    })
  }, { arbitrary: { runs: 500 } })
})

describe("segments", () => {
  const segment = (sector: bigint, sectors: number, flags: number) => {
    const bytes = new Uint8Array(16)
    const view = new DataView(bytes.buffer)
    view.setBigUint64(0, sector, true)
    view.setUint32(8, sectors, true)
    view.setUint32(12, flags, true)
    return bytes
  }

  it.each([[[16, 32]], [[48]], [[16, 5, 27]], [[10, 6, 16, 16]]])(
    "are read wherever they lie, framed %j",
    (lengths) =>
      withRing({}, (ring) => {
        const given = joined([segment(5n, 6, 1), segment(2n ** 64n - 1n, 0xffff_ffff, 0xffff_ffff)])
        const { request } = taken(ring, { type: RequestType.WRITE_ZEROES, given, out: lengths })
        expect(segmentsOf(request)).toStrictEqual([
          { sector: 5, sectors: 6, flags: 1 },
          { sector: 2 ** 64, sectors: 0xffff_ffff, flags: 0xffff_ffff }
        ])
      })
  )

  it.each([0, 1, 15, 17, 31])("are none in %i bytes", (length) =>
    withRing({}, (ring) => {
      const { request } = taken(ring, { type: RequestType.DISCARD, given: new Uint8Array(length) })
      expect(segmentsOf(request)).toBeUndefined()
    }))
})
