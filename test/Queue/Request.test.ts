/**
 * Goal: what can never be queued is refused before it comes near the ring, by the first rule that it breaks, with the right
 * errno and a message that names the value and the rule.
 * Method: a table of requests that break one rule, and one of requests that break two, each pair of neighbouring rules in
 * both directions; every number that is not a whole number of bytes; memory that was never mapped, or is gone.
 */
import { describe, expect, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import { AddressSpace } from "../../src/Memory/AddressSpace.ts"
import * as Request from "../../src/Queue/Request.ts"
import { fakeRegion, rulesOf } from "../support/FakeQueue.ts"

const CAPACITY = 1 << 20
const region = fakeRegion(1 << 20)
const space = new AddressSpace({ maxRegions: 8, alignment: 1 })
space.add(region, 2 ** 40)
const stray = new Uint8Array(new ArrayBuffer(1 << 16))
const mapped = (length: number) => region.bytes.subarray(0, length)
const detached = () => {
  const bytes = new Uint8Array(new ArrayBuffer(4096))
  bytes.buffer.transfer()
  return bytes
}

type Rules = Partial<Request.DeviceRules>

const check = (request: Request.Request, rules: Rules = {}) =>
  Request.check(request, { ...rulesOf(CAPACITY, 14), ...rules }, space)

/** The errno, and the message after the operation and its range. */
const verdict = (request: Request.Request, rules: Rules = {}) => {
  const wrong = check(request, rules)
  return wrong === undefined ? undefined : `${wrong._tag} ${wrong.message}`
}

const { FUA, NO_FALLBACK, NO_UNMAP } = Request.RequestFlag

const read = (offset: number, buffer: Uint8Array, flags?: number): Request.Read =>
  flags === undefined ? { _tag: "read", offset, buffer } : { _tag: "read", offset, buffer, flags }
const write = (offset: number, buffer: Uint8Array, flags = 0): Request.Write => ({
  _tag: "write",
  offset,
  buffer,
  flags
})
const readv = (offset: number, ...buffers: Array<Uint8Array>): Request.Readv => ({ _tag: "readv", offset, buffers })
const writev = (offset: number, ...buffers: Array<Uint8Array>): Request.Writev => ({ _tag: "writev", offset, buffers })
const discard = (offset: number, length: number, flags = 0): Request.Discard => ({
  _tag: "discard",
  offset,
  length,
  flags
})
const writeZeroes = (offset: number, length: number, flags = 0): Request.WriteZeroes => ({
  _tag: "writeZeroes",
  offset,
  length,
  flags
})

describe("a good request passes", () => {
  const good: ReadonlyArray<Request.Request> = [
    read(0, mapped(512)),
    read(CAPACITY - 512, mapped(512)),
    read(0, region.bytes),
    write(512, mapped(1024), FUA),
    readv(0, mapped(100), mapped(412)),
    readv(0, mapped(0), mapped(512), stray.subarray(0, 0)),
    readv(0, ...Array.from({ length: 14 }, () => mapped(512))),
    readv(0, ...Array.from({ length: 28 }, (_, i) => mapped(i % 2 * 512))),
    writev(0, mapped(512), mapped(512)),
    discard(0, CAPACITY),
    writeZeroes(512, 512, FUA | NO_UNMAP | NO_FALLBACK),
    { _tag: "flush" },
    { _tag: "flush", flags: 0 }
  ]
  it.each(good)("$_tag at $offset", (request) => {
    expect(verdict(request)).toBeUndefined()
  })

  it("a flush on any device, since it is answered without it", () => {
    expect(verdict({ _tag: "flush" }, { canFlush: false, readOnly: true, capacity: 0 })).toBeUndefined()
  })

  it("reading on a device that is read-only", () => {
    expect(verdict(read(0, mapped(512)), { readOnly: true })).toBeUndefined()
    expect(verdict(readv(0, mapped(512)), { readOnly: true })).toBeUndefined()
  })
})

describe("flags", () => {
  it.each([
    { request: read(0, mapped(512), FUA), name: "FUA" },
    { request: read(0, mapped(512), NO_UNMAP), name: "NO_UNMAP" },
    { request: { ...readv(0, mapped(512)), flags: FUA }, name: "FUA" },
    { request: write(0, mapped(512), NO_UNMAP), name: "NO_UNMAP" },
    { request: write(0, mapped(512), FUA | NO_FALLBACK), name: "NO_FALLBACK" },
    { request: write(0, mapped(512), NO_UNMAP | NO_FALLBACK), name: "NO_UNMAP" },
    { request: { ...writev(0, mapped(512)), flags: NO_UNMAP }, name: "NO_UNMAP" },
    { request: discard(0, 512, FUA), name: "FUA" },
    { request: discard(0, 512, NO_UNMAP), name: "NO_UNMAP" },
    { request: { _tag: "flush", flags: FUA } satisfies Request.Flush, name: "FUA" }
  ])("$name is not valid for $request._tag", ({ name, request }) => {
    expect(verdict(request)).toMatch(
      new RegExp(`^EINVAL ${request._tag}.*: flag ${name} is not valid for ${request._tag}$`)
    )
  })

  it.each([8, 9, -1, -8, 2 ** 31, 2 ** 32, 2 ** 32 + FUA, 2 ** 53, 1.5, 0.5, NaN, Infinity, -Infinity])(
    "%d contains unsupported bits",
    (flags) => {
      for (
        const request of [write(0, mapped(512), flags), writeZeroes(0, 512, flags), { _tag: "flush", flags } as const]
      ) {
        expect(verdict(request)).toMatch(/^EINVAL .*: flags? .*(contain unsupported bits|is not valid for)/)
      }
      expect(verdict(write(0, mapped(512), flags))).toContain(`${flags}`)
    }
  )
})

describe("one rule broken", () => {
  const odd = [NaN, Infinity, -Infinity, 0.5, 511.5, 1, 511, 513, -1]
  it.each(odd)("offset %d: not a multiple of request-alignment", (offset) => {
    for (
      const request of [
        read(offset, mapped(512)),
        write(offset, mapped(512)),
        readv(offset, mapped(512)),
        writev(offset, mapped(512)),
        discard(offset, 512),
        writeZeroes(offset, 512)
      ]
    ) {
      expect(verdict(request)).toBe(
        `EINVAL ${request._tag} at ${offset} of 512 bytes: offset must be a multiple of request-alignment 512`
      )
    }
  })

  it("offset -512 is a multiple, and yet wrong", () => {
    expect(verdict(read(-512, mapped(512)))).toMatch(/^EINVAL read at -512 of 512 bytes: offset must/)
    expect(verdict(discard(-512, 512))).toMatch(/^EINVAL discard at -512 of 512 bytes: offset must/)
  })

  it.each(odd)("length %d of a range: not a multiple of request-alignment", (length) => {
    for (const request of [discard(0, length), writeZeroes(0, length)]) {
      expect(verdict(request)).toBe(
        `EINVAL ${request._tag} at 0 of ${length} bytes: length must be a multiple of request-alignment 512`
      )
    }
  })

  it.each([0, -512, -0, -(2 ** 53)])("length %d of a range: not positive", (length) => {
    expect(verdict(discard(0, length))).toMatch(/^EINVAL discard at 0 of .* bytes: length must be positive$/)
    expect(verdict(writeZeroes(0, length))).toMatch(/^EINVAL writeZeroes at 0 of .* bytes: length must be positive$/)
  })

  it("a buffer of no bytes, or vectors of none", () => {
    for (
      const request of [read(0, mapped(0)), write(0, mapped(0)), readv(0), readv(0, mapped(0), mapped(0)), writev(0)]
    ) {
      expect(verdict(request)).toBe(`EINVAL ${request._tag} at 0 of 0 bytes: length must be positive`)
    }
  })

  it("a data length that is not aligned, whatever its parts are", () => {
    for (const request of [read(0, mapped(100)), write(0, mapped(513)), readv(0, mapped(512), mapped(1))]) {
      expect(verdict(request)).toMatch(
        /^EINVAL .* of (100|513) bytes: length must be a multiple of request-alignment 512$/
      )
    }
    expect(verdict(read(512, mapped(4096)), { requestAlignment: 4096 })).toBe(
      "EINVAL read at 512 of 4096 bytes: offset must be a multiple of request-alignment 4096"
    )
    expect(verdict(read(0, mapped(512)), { requestAlignment: 4096 })).toBe(
      "EINVAL read at 0 of 512 bytes: length must be a multiple of request-alignment 4096"
    )
  })

  it.each([CAPACITY, CAPACITY - 512, 2 ** 52, 2 ** 53, 2 ** 53 - 512, 2 ** 63, 2 ** 64 - 2048, 1e300])(
    "1024 bytes from %d: beyond the end",
    (offset) => {
      for (
        const request of [
          read(offset, mapped(1024)),
          writev(offset, mapped(512), mapped(512)),
          discard(offset, 1024),
          writeZeroes(offset, 1024)
        ]
      ) {
        expect(verdict(request)).toBe(
          `EINVAL ${request._tag} at ${offset} of 1024 bytes: the range must end within capacity ${CAPACITY}`
        )
      }
    }
  )

  it.each([2 ** 53, 2 ** 53 - 512, 2 ** 64 - 512, 2 ** 64, 1e300])(
    "%d bytes from 512: start + length wraps nothing",
    (length) => {
      expect(verdict(discard(512, length))).toMatch(/^EINVAL .*: the range must end within capacity/)
      expect(verdict(writeZeroes(512, length), { capacity: 2 ** 53 - 1 })).toMatch(
        /^EINVAL .*: (the range must end within capacity|length exceeds 4294967295 sectors)/
      )
    }
  )

  it("more sectors than 32 bits hold", () => {
    const capacity = 2 ** 50
    expect(verdict(discard(0, (2 ** 32 - 1) * 512), { capacity })).toBeUndefined()
    expect(verdict(discard(0, 2 ** 32 * 512), { capacity })).toBe(
      "EINVAL discard at 0 of 2199023255552 bytes: length exceeds 4294967295 sectors"
    )
    expect(verdict(writeZeroes(0, 2 ** 32 * 512), { capacity })).toMatch(/: length exceeds 4294967295 sectors$/)
  })

  it("a limit of the device, by name", () => {
    expect(verdict(read(0, mapped(8192)), { maxTransfer: 4096 })).toBe(
      "EINVAL read at 0 of 8192 bytes: length exceeds max-transfer 4096"
    )
    expect(verdict(writev(0, mapped(4096), mapped(512)), { maxTransfer: 4096 })).toMatch(/max-transfer 4096$/)
    expect(verdict(write(0, mapped(8192)), { maxSegmentLength: 4096 })).toMatch(
      /a segment of 8192 bytes exceeds max-segment-len 4096$/
    )
    expect(verdict(readv(0, mapped(512), mapped(8192)), { maxSegmentLength: 4096 })).toMatch(
      /a segment of 8192 bytes exceeds max-segment-len 4096$/
    )
    expect(verdict(discard(0, 8192), { maxDiscardLength: 4096 })).toBe(
      "EINVAL discard at 0 of 8192 bytes: length exceeds max-discard-len 4096"
    )
    expect(verdict(writeZeroes(0, 8192), { maxWriteZeroesLength: 4096 })).toBe(
      "EINVAL writeZeroes at 0 of 8192 bytes: length exceeds max-write-zeroes-len 4096"
    )
    const limits = { maxTransfer: 4096, maxSegmentLength: 4096, maxDiscardLength: 4096, maxWriteZeroesLength: 4096 }
    for (const request of [read(0, mapped(4096)), discard(0, 4096), writeZeroes(0, 4096)]) {
      expect(verdict(request, limits)).toBeUndefined()
    }
  })

  it("more bytes than one chain may describe (virtio 1.2 §2.7.5: 2^32)", () => {
    const large = fakeRegion(2 ** 31)
    const others = new AddressSpace({ maxRegions: 1, alignment: 1 })
    others.add(large, 2 ** 40)
    const rules = rulesOf(2 ** 40, 14)
    const whole = readv(0, large.bytes, large.bytes)
    expect(Request.check(whole, rules, others)?._tag).toBe("EINVAL")
    expect(Request.check(readv(0, large.bytes, large.bytes.subarray(512)), rules, others)).toBeUndefined()
  })

  it("more segments than fit", () => {
    const buffers = Array.from({ length: 15 }, () => mapped(512))
    expect(verdict(readv(0, ...buffers))).toBe("EINVAL readv at 0 of 7680 bytes: 15 segments exceed max-segments 14")
    expect(verdict(writev(0, ...buffers))).toMatch(/15 segments exceed max-segments 14$/)
  })

  it("a ring too small for any data", () => {
    for (const request of [read(0, mapped(512)), write(0, mapped(512)), discard(0, 512), writeZeroes(0, 512)]) {
      expect(verdict(request, { maxSegments: 0 })).toMatch(/^EINVAL .*: 1 segments? exceeds? max-segments 0$/)
    }
  })

  it("memory that is not mapped", () => {
    for (const request of [read(0, stray.subarray(0, 512)), writev(0, mapped(512), stray.subarray(512, 1024))]) {
      expect(verdict(request)).toMatch(/^EFAULT .*: the buffer must lie in a mapped memory region, and not in /)
    }
  })

  it("memory that was released", () => {
    for (
      const request of [
        read(0, detached()),
        write(0, detached()),
        readv(0, detached()),
        writev(0, detached(), detached())
      ]
    ) {
      expect(verdict(request)).toBe(
        `EFAULT ${request._tag} at 0 of 0 bytes: the buffer must lie in a mapped memory region, and not in what a request that `
          + "ran out of time still holds"
      )
    }
    expect(verdict(readv(0, mapped(512), detached()))).toMatch(/^EFAULT /)
    expect(verdict(writev(0, detached(), mapped(512), mapped(0)))).toMatch(/^EFAULT /)
  })

  it("a region that was mapped once", () => {
    const other = fakeRegion(4096)
    space.add(other, 2 ** 41)
    expect(verdict(read(0, other.bytes))).toBeUndefined()
    expect(space.remove(other)).toBe(2 ** 41)
    expect(verdict(read(0, other.bytes))).toMatch(/^EFAULT /)
    expect(verdict(read(0, mapped(512)))).toBeUndefined()
  })

  it("a feature the device lacks", () => {
    expect(verdict(discard(0, 512), { canDiscard: false })).toBe(
      "ENOTSUP discard at 0 of 512 bytes: the device does not offer DISCARD"
    )
    for (const flags of [0, NO_FALLBACK]) {
      expect(verdict(writeZeroes(0, 512, flags), { canWriteZeroes: false })).toBe(
        "ENOTSUP writeZeroes at 0 of 512 bytes: the device does not offer WRITE_ZEROES"
      )
    }
  })

  it("writing on a device that is read-only", () => {
    for (const request of [write(0, mapped(512)), writev(0, mapped(512)), discard(0, 512), writeZeroes(0, 512)]) {
      expect(verdict(request, { readOnly: true })).toBe(
        `EBADF ${request._tag} at 0 of 512 bytes: the device was started read-only`
      )
    }
  })
})

describe("two rules broken: the first decides", () => {
  const missing = { canDiscard: false, canWriteZeroes: false, readOnly: true }
  const readOnly = { readOnly: true }
  const small = {
    maxTransfer: 512,
    maxSegmentLength: 512,
    maxDiscardLength: 512,
    maxWriteZeroesLength: 512,
    maxSegments: 1
  }
  const long = stray.subarray(0, 1024)
  const cases: ReadonlyArray<readonly [string, Request.Request, Rules, RegExp]> = [
    ["flags before feature", discard(0, 512, FUA), missing, /^EINVAL .*flag FUA/],
    ["flags before offset", read(1, stray, FUA), {}, /^EINVAL .*flag FUA/],
    ["feature before offset", discard(1, 1), missing, /^ENOTSUP /],
    ["feature before length", writeZeroes(0, 0), missing, /^ENOTSUP /],
    ["offset before read-only", write(1, mapped(512)), readOnly, /^EINVAL .*offset/],
    ["offset before length", read(1, mapped(1)), {}, /^EINVAL .*offset/],
    ["a range's alignment before read-only", discard(0, 1), readOnly, /^EINVAL .*length must be a multiple/],
    ["read-only before a zero length", discard(0, 0), readOnly, /^EBADF /],
    ["read-only before a data length", write(0, mapped(100)), readOnly, /^EBADF /],
    ["read-only before an empty buffer", write(0, mapped(0)), readOnly, /^EBADF /],
    ["read-only before capacity", writeZeroes(CAPACITY, 512), readOnly, /^EBADF /],
    ["length before capacity", read(CAPACITY, mapped(100)), {}, /^EINVAL .*multiple of request-alignment/],
    ["zero length before capacity", read(CAPACITY * 2, mapped(0)), {}, /^EINVAL .*positive/],
    ["capacity before limits", read(CAPACITY, mapped(1024)), small, /^EINVAL .*capacity/],
    ["capacity before a range's limit", discard(CAPACITY, 1024), small, /^EINVAL .*capacity/],
    ["max-transfer before memory", read(0, long), { maxTransfer: 512 }, /^EINVAL .*max-transfer/],
    [
      "max-transfer before segments",
      readv(0, long, long),
      { maxTransfer: 512, maxSegments: 1 },
      /^EINVAL .*max-transfer/
    ],
    ["max-segment-len before memory", read(0, long), { maxSegmentLength: 512 }, /^EINVAL .*max-segment-len/],
    [
      "max-segment-len of a later buffer before memory of an earlier one",
      readv(0, stray.subarray(0, 512), mapped(1024)),
      { maxSegmentLength: 512 },
      /^EINVAL .*max-segment-len/
    ],
    [
      "max-segment-len before the number of segments",
      readv(0, mapped(512), mapped(1024)),
      { maxSegmentLength: 512, maxSegments: 1 },
      /^EINVAL .*max-segment-len/
    ],
    ["segments before memory", writev(0, stray.subarray(0, 512), mapped(512)), { maxSegments: 1 }, /^EINVAL .*segments/]
  ]
  it.each(cases)("%s", (_, request, rules, expected) => {
    expect(verdict(request, rules)).toMatch(expected)
  })
})

describe("whatever the numbers are", () => {
  const special = [NaN, Infinity, -Infinity, 0, -0, 1, 7, 8, 512, -512, CAPACITY, CAPACITY - 512, 2 ** 32, 2 ** 53]
  const number = Arbitrary.map(
    Arbitrary.all([
      Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: special.length + 2 }))),
      Arbitrary.schema(Schema.Number),
      Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: -4, maximum: 2 * CAPACITY / 512 })))
    ]),
    ([pick, any, sectors]) => pick === special.length ? any : special[pick] ?? sectors * 512
  )

  it.prop(
    "nothing is thrown, and what passes is a whole range of the disk",
    [number, number, number],
    ([a, b, flags]) => {
      for (const request of [discard(a, b, flags), writeZeroes(a, b, flags)]) {
        const wrong = check(request)
        if (wrong === undefined) {
          expect([a % 512 === 0, b % 512 === 0, a >= 0, b > 0, a + b <= CAPACITY]).toStrictEqual(Array(5).fill(true))
          expect([0, 1, 2, 3, 4, 5, 6, 7]).toContain(flags === 0 ? 0 : flags)
        } else {
          expect(wrong.message).toContain(request._tag)
        }
      }
      const wrong = check(read(a, mapped(512), flags))
      if (wrong === undefined) expect([a % 512 === 0, a >= 0, a + 512 <= CAPACITY]).toStrictEqual([true, true, true])
    }
  )
})
