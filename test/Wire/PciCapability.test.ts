/**
 * Goal: the structures of a virtio device are found where its capabilities say, and a configuration space that lies, leads out of
 * itself or goes round in circles is refused.
 * Method: capabilities as a C program laid them out by the kernel's headers (`scripts/golden/vfio.c`) in a space put together by
 * hand, then the space made wrong in each way, then random bytes.
 */
import { describe, expect, it } from "@effect/vitest"
import { Schema } from "effect"
import { readFileSync } from "node:fs"
import {
  COMMAND,
  CommandBit,
  CommonField,
  CONFIG_SPACE_BYTES,
  decodeVirtioStructures
} from "../../src/Wire/PciCapability.ts"
import { WireError } from "../../src/Wire/WireError.ts"
import { bytes } from "./arbitraries.ts"
import { wireError } from "./wireError.ts"

const golden = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  constants: Schema.Record(Schema.String, Schema.Natural),
  structures: Schema.Record(Schema.String, Schema.String),
  common: Schema.Record(Schema.String, Schema.Natural)
})))(readFileSync(new URL("./golden/vfio-6.1.json", import.meta.url), "utf8"))

const goldenBytes = (name: string): Uint8Array => Uint8Array.from(Buffer.from(golden.structures[name] ?? "", "hex"))

interface Cap {
  readonly at: number
  readonly next: number
  readonly type: number
  readonly id?: number
  readonly length?: number
  readonly bar?: number
  readonly bytes?: number
}

const space = (...caps: ReadonlyArray<Cap>): Uint8Array => {
  const bytes = new Uint8Array(CONFIG_SPACE_BYTES)
  const view = new DataView(bytes.buffer)
  view.setUint16(6, 0x10, true)
  view.setUint8(0x34, caps[0]?.at ?? 0)
  for (const { at, bar = 4, bytes: size = 0x38, id = 9, length = 20, next, type } of caps) {
    bytes.set([id, next, length, type, bar], at)
    view.setUint32(at + 8, type * 0x1000, true)
    view.setUint32(at + 12, size, true)
    view.setUint32(at + 16, 4, true)
  }
  return bytes
}

const COMMON = { at: 0x40, next: 0x54, type: 1 }
const NOTIFY = { at: 0x54, next: 0x68, type: 2 }
const ISR = { at: 0x68, next: 0x7c, type: 3, bytes: 1 }
const DEVICE = { at: 0x7c, next: 0, type: 4, bytes: 60 }

describe("constants", () => {
  it("are those of the headers", () => {
    expect(golden.constants).toMatchObject({ COMMAND, ...CommandBit })
    expect(Object.fromEntries(Object.entries(CommonField).map(([name, { at }]) => [name, at]))).toStrictEqual(
      golden.common
    )
    // Each field ends where the next one begins, so the widths are right when the offsets are.
    const fields = Object.values(CommonField)
    for (const [i, { at, width }] of fields.entries()) expect(at + width).toBe(fields[i + 1]?.at ?? 0x38)
  })
})

describe("virtio structures", () => {
  it("are found as the headers lay them out", () => {
    const bytes = space(COMMON, { ...ISR, at: 0x54, next: 0x68 }, { at: 0x68, next: 0x80, type: 5, id: 0x11 })
    // The golden notify capability says that the next one lies at 0x60; here it is moved.
    bytes.set(goldenBytes("virtio_pci_notify_cap"), 0x80)
    bytes[0x81] = 0xa0
    bytes.set(goldenBytes("virtio_pci_cap"), 0xa0)
    expect(decodeVirtioStructures(bytes)).toStrictEqual({
      common: { bar: 4, offset: 0x1000, length: 0x38 },
      notify: { bar: 4, offset: 0x3040, length: 0x1020 },
      notifyMultiplier: 0x10204,
      isr: { bar: 4, offset: 0x3000, length: 1 },
      device: { bar: 4, offset: 0x2040, length: 0x1030 }
    })
  })

  it("are none of a device that has no capabilities, or none of virtio", () => {
    const bytes = space(COMMON, NOTIFY, ISR, DEVICE)
    bytes[6] = 0
    expect(decodeVirtioStructures(bytes)).toBeUndefined()
    expect(decodeVirtioStructures(space())).toBeUndefined()
    expect(decodeVirtioStructures(space({ ...COMMON, next: 0, id: 0x11 }))).toBeUndefined()
  })

  it("take the first usable one of each type, and leave out what is unknown", () => {
    const found = decodeVirtioStructures(space(
      { ...COMMON, next: 0x54, bar: 6 },
      { ...COMMON, at: 0x54, next: 0x68, bar: 2 },
      { ...COMMON, at: 0x68, next: 0x7c, bar: 3 },
      { ...NOTIFY, at: 0x7c, next: 0x90, length: 16 },
      { ...NOTIFY, at: 0x90, next: 0xa4 },
      { ...ISR, at: 0xa4, next: 0xb8 },
      { at: 0xb8, next: 0, type: 99 }
    ))
    expect(found).toMatchObject({ common: { bar: 2 }, notifyMultiplier: 4, device: undefined })
  })

  it("are refused where one is missing or too short", () => {
    expect(wireError(() => decodeVirtioStructures(space(COMMON, { ...NOTIFY, next: 0 })))).toContain("for isr")
    expect(wireError(() => decodeVirtioStructures(space({ ...COMMON, bytes: 0x37 }, NOTIFY, ISR, DEVICE))))
      .toContain("for common")
    expect(wireError(() => decodeVirtioStructures(space(COMMON, { ...NOTIFY, bytes: 1 }, ISR, DEVICE))))
      .toContain("for notify")
    expect(wireError(() => decodeVirtioStructures(new Uint8Array(255)))).toContain("of 255 bytes")
  })

  it("are refused where the chain goes round in circles, or into the header", () => {
    expect(wireError(() => decodeVirtioStructures(space(COMMON, { ...NOTIFY, next: 0x40 })))).toContain("has a loop")
    expect(wireError(() => decodeVirtioStructures(space({ ...COMMON, next: 0x3c })))).toContain("behind the header")
  })

  it("leave out what hangs over the end", () => {
    const bytes = space(COMMON, NOTIFY, ISR, { ...DEVICE, next: 0xfc })
    bytes.set([9, 0, 20, 4], 0xfc)
    expect(decodeVirtioStructures(bytes)).toMatchObject({ device: { length: 60 } })
  })

  it.prop(
    "whatever the bytes, they are read or refused",
    [bytes(CONFIG_SPACE_BYTES, CONFIG_SPACE_BYTES)],
    ([drawn]) => {
      drawn[6] = 0x10
      try {
        decodeVirtioStructures(drawn)
      } catch (error) {
        expect(error).toBeInstanceOf(WireError)
      }
    }
  )
})
