/**
 * Goal: whatever region a front-end names, only bytes of it are reachable, at the addresses it gave them; what cannot be
 * mapped is refused with the reason, and nothing of it stays.
 * Method: files of every kind, mapped and compared with the test's own mapping of them; every bound of a lookup from both
 * sides; what is mapped is counted in /proc/self/maps.
 */
import { afterEach, beforeEach, describe, expect, it } from "@effect/vitest"
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { GuestMemory, MAX_REGIONS, type Region } from "../../src/Export/GuestMemory.ts"
import * as Libc from "../../src/Native/Libc.ts"
import type { MemoryRegion } from "../../src/Wire/VhostUserMessage.ts"
import { count, type Resources } from "../support/resources.ts"

const KiB = 1024
const GUEST = 0x1_0000_0000
const USER = 0x7f00_0000_0000

let before: Resources
let memory: GuestMemory
const toClose: Array<() => void> = []
beforeEach(() => {
  before = count()
  memory = new GuestMemory(false)
})
afterEach(() => {
  for (const region of memory.regions) {
    memory.forget(region)
    memory.release(region)
  }
  for (const close of toClose.splice(0).toReversed()) close()
  expect(count()).toStrictEqual(before)
})

const own = (fd: number): number => {
  toClose.push(() => Libc.close(fd))
  return fd
}
const file = (length: number) => own(Libc.createMemoryFile("effect-blkio-test", length))
const folder = () => {
  const path = mkdtempSync(Path.join(tmpdir(), "blkio-memory-"))
  toClose.push(() => rmSync(path, { recursive: true }))
  return path
}
/** A file on a disk, which may shrink. */
const plainFile = (length: number, flags = "r+") => {
  const path = `${folder()}/memory`
  writeFileSync(path, new Uint8Array(length))
  return own(openSync(path, flags))
}

const region = (changes: Partial<MemoryRegion> = {}): MemoryRegion => ({
  guestAddress: GUEST,
  userAddress: USER,
  size: 4 * KiB,
  mmapOffset: 0,
  ...changes
})

const add = (changes: Partial<MemoryRegion> = {}, fd = file(64 * KiB)): Region => {
  expect(memory.add(region(changes), fd)).toBeUndefined()
  const added = memory.named(region(changes))
  if (added === undefined) throw new Error("the region is not there")
  return added
}

describe("a region", () => {
  it("is the part of the file that it names, by either of its addresses", () => {
    const fd = file(64 * KiB)
    const whole = Libc.map(fd, 0, 64 * KiB)
    toClose.push(() => Libc.unmap(whole))
    const own = new Uint8Array(whole.buffer)
    const { bytes, guestAddress, start, userAddress } = add({ mmapOffset: 8 * KiB, size: 12 * KiB }, fd)
    own[8 * KiB] = 1
    own[20 * KiB - 1] = 2
    expect([bytes[start], bytes[start + 12 * KiB - 1]]).toStrictEqual([1, 2])
    expect([guestAddress, userAddress]).toStrictEqual([GUEST, USER])
    expect(memory.atGuest(GUEST, 12 * KiB)).toBe(memory.atUser(USER, 12 * KiB))
    expect(memory.atGuest(USER, 1)).toBeUndefined()
    expect(memory.atUser(GUEST, 1)).toBeUndefined()
  })

  it.each([1, 512, 4095, 4096, 4097, 10_000])("may begin %i bytes into its file, whatever a page is", (mmapOffset) => {
    const fd = file(64 * KiB)
    const whole = Libc.map(fd, 0, 64 * KiB)
    toClose.push(() => Libc.unmap(whole))
    new Uint8Array(whole.buffer).forEach((_, i, bytes) => {
      bytes[i] = i * 7 + (i >> 8)
    })
    const { bytes, start } = add({ mmapOffset, size: 5000 }, fd)
    expect(bytes.subarray(start, start + 5000)).toStrictEqual(new Uint8Array(whole.buffer, mmapOffset, 5000))
  })

  it("may end with its file, at any byte", () => {
    const fd = plainFile(10_001)
    const { bytes, start } = add({ mmapOffset: 5000, size: 5001 }, fd)
    bytes[start + 5000] = 9
    const last = new Uint8Array(1)
    readSync(fd, last, 0, 1, 10_000)
    expect(last[0]).toBe(9)
  })

  it("outlives the descriptor it came with", () => {
    const fd = Libc.createMemoryFile("effect-blkio-test", 4 * KiB)
    const { bytes } = add({}, fd)
    closeSync(fd)
    bytes[4095] = 1
    expect(bytes[4095]).toBe(1)
  })

  it("is unmapped by its release, and its views are empty then", () => {
    const added = add()
    const view = added.bytes.subarray(10, 20)
    memory.forget(added)
    expect([memory.atGuest(GUEST, 1), memory.atUser(USER, 1), memory.named(region())]).toStrictEqual(
      [undefined, undefined, undefined]
    )
    expect(view).toHaveLength(10)
    expect(count().mappings).toBe(before.mappings + 1)
    memory.release(added)
    expect(view).toHaveLength(0)
    expect(count().mappings).toBe(before.mappings)
    // Its place is free again.
    add()
  })

  it("is named by both addresses and size, wherever it lies in its file", () => {
    const added = add({ mmapOffset: 4 * KiB })
    expect(memory.named(region({ mmapOffset: 0 }))).toBe(added)
    for (const other of [{ guestAddress: GUEST + 1 }, { userAddress: USER + 1 }, { size: 4 * KiB - 1 }]) {
      expect(memory.named(region(other))).toBeUndefined()
    }
  })
})

describe("a lookup", () => {
  it("finds what lies wholly in a region, and nothing that passes an end of it", () => {
    const added = add({ size: 4000 })
    for (const at of [GUEST, GUEST + 1, GUEST + 3999]) expect(memory.atGuest(at, 1)).toBe(added)
    expect(memory.atGuest(GUEST, 4000)).toBe(added)
    expect(memory.atGuest(GUEST + 3999, 2)).toBeUndefined()
    expect(memory.atGuest(GUEST + 4000, 1)).toBeUndefined()
    expect(memory.atGuest(GUEST - 1, 1)).toBeUndefined()
    expect(memory.atGuest(GUEST - 1, 2)).toBeUndefined()
    expect(memory.atGuest(GUEST, 4001)).toBeUndefined()
    expect(memory.atGuest(GUEST, 0xffff_ffff)).toBeUndefined()
    expect(memory.atGuest(2 ** 64, 1)).toBeUndefined()
    expect(memory.atUser(USER + 3999, 1)).toBe(added)
    expect(memory.atUser(USER + 3999, 2)).toBeUndefined()
    expect(memory.atUser(2 ** 53 - 1, 1)).toBeUndefined()
  })

  it("does not join regions that lie side by side", () => {
    const fd = file(64 * KiB)
    const first = add({}, fd)
    const second = add({ guestAddress: GUEST + 4 * KiB, userAddress: USER + 4 * KiB, mmapOffset: 4 * KiB }, fd)
    expect(memory.atGuest(GUEST + 4 * KiB - 1, 1)).toBe(first)
    expect(memory.atGuest(GUEST + 4 * KiB, 1)).toBe(second)
    expect(memory.atGuest(GUEST + 4 * KiB - 1, 2)).toBeUndefined()
    expect(memory.atGuest(GUEST + 4 * KiB - 1, 1)).toBe(first)
  })

  it("does not find what was forgotten just after it was found", () => {
    const added = add()
    expect(memory.atGuest(GUEST, 1)).toBe(added)
    memory.forget(added)
    expect(memory.atGuest(GUEST, 1)).toBeUndefined()
    memory.release(added)
  })
})

describe("what is refused", () => {
  const refused = (changes: Partial<MemoryRegion>, fd: number, by = memory) => {
    const mappings = count().mappings
    const said = by.add(region(changes), fd)
    expect(count().mappings).toBe(mappings)
    return said
  }

  it("no bytes, and more than the file has", () => {
    const fd = file(8 * KiB)
    expect(refused({ size: 0 }, fd)).toBe("a region has at least one byte")
    expect(refused({ size: 8 * KiB + 1 }, fd)).toMatch(/8193 bytes from 0 end beyond the file's 8192/)
    expect(refused({ size: 1, mmapOffset: 8 * KiB }, fd)).toMatch(/1 bytes from 8192 end beyond/)
    expect(refused({ size: 2 ** 52, mmapOffset: 2 ** 52 }, fd)).toMatch(/beyond/)
    expect(refused({ size: 4 * KiB, mmapOffset: 2 ** 53 - 1 - 4 * KiB }, fd)).toMatch(/beyond/)
  })

  it("a size for which there is no room in this process", () => {
    const fd = file(4 * KiB)
    ftruncateSync(fd, 2 ** 52)
    expect(refused({ size: 2 ** 51 }, fd)).toMatch(/cannot be mapped/)
  })

  it("a descriptor that is no file, or not to be read and written", () => {
    const [left, right] = Libc.createSocketPair()
    for (const fd of [own(left), own(right), own(Libc.createEventFd()), own(openSync("/dev/zero", "r+"))]) {
      expect(refused({}, fd)).toBe("its descriptor is no file")
    }
    expect(refused({}, own(openSync(folder(), "r")))).toBe("its descriptor is no file")
    expect(refused({}, plainFile(8 * KiB, "r"))).toMatch(/cannot be mapped: mmap: errno 13/)
    expect(refused({}, plainFile(8 * KiB, "a"))).toMatch(/cannot be mapped: mmap: errno 13/)
  })

  it("guest addresses that another region has", () => {
    const fd = file(64 * KiB)
    add({ size: 8 * KiB }, fd)
    for (
      const [guestAddress, size] of [
        [GUEST, 8 * KiB],
        [GUEST + 8 * KiB - 1, 1],
        [GUEST - 1, 2],
        [GUEST - 4 * KiB, 16 * KiB],
        [GUEST + 1, 1]
      ] as const
    ) {
      expect(refused({ guestAddress, size, userAddress: 0 }, fd)).toMatch(/overlap the 8192 bytes from 4294967296/)
    }
    add({ guestAddress: GUEST - 1, size: 1 }, fd)
    add({ guestAddress: GUEST + 8 * KiB, size: 1 }, fd)
  })

  it("the 510th region", () => {
    const fd = file(4 * KiB)
    for (let i = 0; i < MAX_REGIONS; i++) add({ guestAddress: GUEST + i * 4 * KiB, userAddress: i }, fd)
    expect(MAX_REGIONS).toBe(509)
    expect(refused({ guestAddress: 0 }, fd)).toBe("there may be 509 regions")
    const [first] = memory.regions
    if (first === undefined) throw new Error("there is no region")
    memory.forget(first)
    memory.release(first)
    add({ guestAddress: 0 }, fd)
  })

  it("memory that may shrink, where it must be sealed", () => {
    const sealed = new GuestMemory(true)
    expect(refused({}, plainFile(8 * KiB), sealed)).toBe("its file is not sealed against shrinking")
    const added = file(8 * KiB)
    expect(sealed.add(region(), added)).toBeUndefined()
    for (const each of sealed.regions) sealed.release(each)
    // Where it need not be, it is taken.
    add({}, plainFile(8 * KiB))
  })
})
