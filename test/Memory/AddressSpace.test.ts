/**
 * Goal: every rule of mapping has its errno, is checked before the device is asked, and buffers are translated only where
 * they lie in what is mapped.
 * Method: one address space a test, over real regions of one file or of several, so that files can overlap in every
 * position. Alignments are checked on regions whose address is made up, since real ones lie on pages.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import { AddressSpace } from "../../src/Memory/AddressSpace.ts"
import * as MemoryRegion from "../../src/Memory/MemoryRegion.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { live } from "../support/resources.ts"

const PAGE = MemoryRegion.PAGE_BYTES

const memoryFile = (length: number) =>
  Effect.acquireRelease(
    Effect.sync(() => Libc.createMemoryFile("effect-blkio", length)),
    (fd) => Effect.sync(() => Libc.close(fd))
  )

const space = (limits: { maxRegions?: number; alignment?: number } = {}) =>
  new AddressSpace({ maxRegions: 8, alignment: 1, ...limits })

describe("check", () => {
  live("finds nothing wrong with a first region, and changes nothing", () =>
    Effect.gen(function*() {
      const region = yield* MemoryRegion.allocate(4096)
      const device = space({ maxRegions: 1, alignment: 4096 })
      expect(device.check(region)).toBeUndefined()
      expect(device.check(region)).toBeUndefined()
      expect(device.has(region)).toBe(false)
    }))

  live("EINVAL for a region that was released", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const region = yield* Scope.provide(MemoryRegion.allocate(4096), scope)
      yield* Scope.close(scope, Exit.void)
      expect(space().check(region)).toMatchObject({ _tag: "EINVAL", detail: "the region was released", length: 4096 })
    }))

  for (const [length, address] of [[4095, 4096], [4096, 512], [512, 4096], [8192, 4097n]] as const) {
    live(`EINVAL for ${length} bytes at ${address} where both must be multiples of 4096`, () =>
      Effect.gen(function*() {
        const region = { ...(yield* MemoryRegion.allocate(length)), address }
        expect(space({ alignment: 4096 }).check(region)).toMatchObject({
          _tag: "EINVAL",
          operation: "map region",
          detail: "length and address must be multiples of mem-region-alignment 4096"
        })
        expect(space().check(region)).toBeUndefined()
      }))
  }

  live("EINVAL for an offset that is not a multiple of the page size", () =>
    Effect.gen(function*() {
      const region = { ...(yield* MemoryRegion.allocate(4096)), fdOffset: 512 }
      expect(space().check(region)).toMatchObject({
        _tag: "EINVAL",
        detail: "fd offset 512 must be a multiple of 4096"
      })
    }))

  live("EINVAL for a region that is mapped already, also when it was opened anew", () =>
    Effect.gen(function*() {
      const fd = yield* memoryFile(8 * PAGE)
      const region = yield* MemoryRegion.fromFd({ fd, offset: PAGE, length: 2 * PAGE })
      const twin = yield* MemoryRegion.fromFd({ fd, offset: PAGE, length: 2 * PAGE })
      const device = space()
      device.add(region, 2 ** 32)
      expect(device.check(region)).toMatchObject({ _tag: "EINVAL", detail: "the region is mapped already" })
      expect(device.check(twin)).toMatchObject({ _tag: "EINVAL", detail: "the region is mapped already" })
      device.remove(region)
      expect(device.check(region)).toBeUndefined()
      expect(device.check(twin)).toBeUndefined()
    }))

  // In pages; what is mapped are pages 2, 3, 4 and 5.
  const positions: ReadonlyArray<[name: string, offset: number, length: number, tag: string | undefined]> = [
    ["before, with a gap", 0, 1, undefined],
    ["before, touching", 0, 2, undefined],
    ["over the start", 1, 2, "EEXIST"],
    ["over the start, to the end", 1, 5, "EEXIST"],
    ["around", 1, 6, "EEXIST"],
    ["within, from the start", 2, 2, "EEXIST"],
    ["within", 3, 1, "EEXIST"],
    ["within, to the end", 4, 2, "EEXIST"],
    ["identical", 2, 4, "EINVAL"],
    ["from the start, over the end", 2, 5, "EEXIST"],
    ["over the end", 5, 2, "EEXIST"],
    ["after, touching", 6, 2, undefined],
    ["after, with a gap", 7, 1, undefined]
  ]
  for (const [name, offset, length, tag] of positions) {
    live(`${tag ?? "nothing"} for file bytes ${name}`, () =>
      Effect.gen(function*() {
        const fd = yield* memoryFile(8 * PAGE)
        const device = space()
        device.add(yield* MemoryRegion.fromFd({ fd, offset: 2 * PAGE, length: 4 * PAGE }), 2 ** 32)
        const region = yield* MemoryRegion.fromFd({ fd, offset: offset * PAGE, length: length * PAGE })
        expect(device.check(region)?._tag).toBe(tag)
        // The same bytes of another file are in nobody's way.
        const other = yield* MemoryRegion.fromFd({
          fd: yield* memoryFile(8 * PAGE),
          offset: offset * PAGE,
          length: length * PAGE
        })
        expect(device.check(other)).toBeUndefined()
      }))
  }

  live("ENOSPC at exactly the limit, and room again after a removal", () =>
    Effect.gen(function*() {
      const device = space({ maxRegions: 3 })
      const regions = yield* Effect.forEach([1, 2, 3, 4], () => MemoryRegion.allocate(PAGE))
      for (const [index, region] of regions.slice(0, 3).entries()) {
        expect(device.check(region)).toBeUndefined()
        device.add(region, 2 ** 32 * (index + 1))
      }
      const [first, , , last] = regions
      if (first === undefined || last === undefined) throw new Error("four regions were made")
      expect(device.check(last)).toMatchObject({
        _tag: "ENOSPC",
        length: PAGE,
        detail: "the device takes at most 3 regions (max-mem-regions)"
      })
      // What is wrong with the region itself comes first.
      expect(device.check(first)?._tag).toBe("EINVAL")
      device.remove(first)
      expect(device.check(last)).toBeUndefined()
      expect(space({ maxRegions: 0 }).check(last)?._tag).toBe("ENOSPC")
    }))
})

describe("translate", () => {
  live("gives the device's address of a buffer in a mapped region, and -1 for any other", () =>
    Effect.gen(function*() {
      const device = space()
      const first = yield* MemoryRegion.allocate(8192)
      const second = yield* MemoryRegion.allocate(4096)
      const third = yield* MemoryRegion.allocate(4096)
      device.add(first, 2 ** 32)
      device.add(second, 2 ** 40)
      // To and fro, since the last region found is remembered.
      for (let round = 0; round < 3; round++) {
        expect(device.translate(first.bytes)).toBe(2 ** 32)
        expect(device.translate(first.bytes.subarray(5000, 5001))).toBe(2 ** 32 + 5000)
        expect(device.translate(second.bytes.subarray(512))).toBe(2 ** 40 + 512)
        expect(device.translate(third.bytes)).toBe(-1)
        expect(device.translate(new Uint8Array(16))).toBe(-1)
        expect(device.translate(Buffer.from("a slice of Node's own pool"))).toBe(-1)
      }
      expect(device.translate(new Uint8Array(first.bytes.buffer, 100, 0))).toBe(2 ** 32 + 100)
    }))

  live("forgets a region with its removal, also the one it remembers", () =>
    Effect.gen(function*() {
      const device = space()
      const region = yield* MemoryRegion.allocate(4096)
      const other = yield* MemoryRegion.allocate(4096)
      device.add(region, 4096)
      device.add(other, 65_536)
      expect(device.translate(region.bytes)).toBe(4096)
      expect(device.remove(region)).toBe(4096)
      expect(device.translate(region.bytes)).toBe(-1)
      expect(device.has(region)).toBe(false)
      expect(device.remove(region)).toBe(-1)
      expect(device.translate(other.bytes)).toBe(65_536)
      device.add(region, 8192)
      expect(device.translate(region.bytes)).toBe(8192)
    }))

  live("still knows a region that was released before its removal, and then forgets it", () =>
    Effect.gen(function*() {
      const device = space()
      const scope = yield* Scope.make()
      const region = yield* Scope.provide(MemoryRegion.allocate(4096), scope)
      device.add(region, 4096)
      yield* Scope.close(scope, Exit.void)
      expect(device.has(region)).toBe(true)
      expect(device.remove(region)).toBe(4096)
      expect(device.has(region)).toBe(false)
    }))
})
