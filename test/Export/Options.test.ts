/**
 * Goal: what an export is made with is checked before anything is opened, each wrong value is refused with a message that
 * names it and its rule, and what is left out follows from the store.
 * Method: the check itself, over stores in memory and filters of them; every bound from both sides.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { check, type Options } from "../../src/Export/Options.ts"
import { BlockStore, Errno } from "../../src/index.ts"

const MiB = 2 ** 20
const store = Effect.runSync(BlockStore.memory({ capacity: MiB, blockSize: 4096 }))
const readOnly = BlockStore.readOnly(store)

const settings = (options: Options, of: BlockStore.BlockStore = store) => {
  const checked = check(of, { path: "socket", ...options })
  if ("_tag" in checked) throw checked
  return checked
}

const refusal = (options: unknown, of: BlockStore.BlockStore = store): Errno.EINVAL | Errno.ENAMETOOLONG => {
  // What JavaScript callers may hand over has not the type of it.
  const checked = check(of, options as Options)
  if (!("_tag" in checked)) throw new Error("expected a refusal")
  return checked
}

describe("settings", () => {
  it("follow from the store where nothing is said", () => {
    expect(settings({})).toStrictEqual({
      path: "socket",
      fd: undefined,
      readOnly: false,
      serial: "effect-blkio",
      numQueues: 1,
      blockSize: 4096,
      capacity: undefined,
      writeCache: true,
      maxInFlight: 128,
      maxSegments: 126,
      maxRangeLength: 16 * MiB,
      waiting: "adaptive",
      sealedMemory: false
    })
    expect(settings({}, readOnly).readOnly).toBe(true)
  })

  it("are what was asked for", () => {
    const asked = {
      readOnly: true,
      serial: "12345678901234567890",
      numQueues: 256,
      blockSize: 8192,
      capacity: 16_384,
      writeCache: false,
      maxInFlight: 32_768,
      maxSegments: 1022,
      maxRangeLength: 8192,
      waiting: "event",
      sealedMemory: true
    } as const
    expect(settings(asked)).toStrictEqual({ path: "socket", fd: undefined, ...asked })
  })

  it("have a range that is a block where a block is larger than the usual range", () => {
    const large = Effect.runSync(BlockStore.memory({ capacity: 64 * MiB, blockSize: 32 * MiB }))
    expect(settings({}, large).maxRangeLength).toBe(32 * MiB)
  })

  it.each<Options>([
    { numQueues: 1 },
    { maxInFlight: 1 },
    { maxSegments: 1 },
    { maxRangeLength: 4096 },
    { capacity: 0 },
    { capacity: MiB },
    { serial: "" },
    { serial: "ä".repeat(10) },
    { maxRangeLength: 2 ** 41 - 4096 }
  ])("may be at the bound: %j", (options) => expect(settings(options)).toMatchObject(options))

  it("take a descriptor in place of a path, and a path that is empty for none", () => {
    expect(check(store, { fd: 7 })).toMatchObject({ fd: 7, path: undefined })
    expect(check(store, { fd: 7, path: "" })).toMatchObject({ fd: 7, path: undefined })
    expect(check(store, { fd: 0 })).toMatchObject({ fd: 0, path: undefined })
  })
})

describe("refusals", () => {
  const path = "socket"
  it.each<[options: unknown, says: RegExp]>([
    [{}, /one of path and fd must be set/],
    [{ path: "" }, /one of path and fd must be set/],
    [{ path, fd: 3 }, /one of path and fd must be set/],
    [{ path: "a\0b" }, /zero byte/],
    [{ path: 7 }, /path/],
    [{ fd: -1 }, /fd/],
    [{ fd: 2 ** 31 }, /fd/],
    [{ fd: 1.5 }, /fd/],
    [{ path, serial: "123456789012345678901" }, /at most 20 bytes/],
    [{ path, serial: "ä".repeat(11) }, /at most 20 bytes/],
    [{ path, numQueues: 0 }, /numQueues/],
    [{ path, numQueues: 257 }, /numQueues/],
    [{ path, numQueues: 1.5 }, /numQueues/],
    [{ path, blockSize: 0 }, /blockSize 0 must be a power of two/],
    [{ path, blockSize: 4095 }, /blockSize 4095 must be a power of two/],
    [{ path, blockSize: 512 }, /blockSize 512 must be a multiple of the store's, 4096/],
    [{ path, capacity: -4096 }, /capacity -4096/],
    [{ path, capacity: 512 }, /capacity 512 must be a whole multiple of the block size 4096/],
    [{ path, capacity: MiB + 4096 }, /capacity 1052672 must be at most the store's, 1048576/],
    [{ path, capacity: Number.POSITIVE_INFINITY }, /capacity/],
    [{ path, maxInFlight: 0 }, /maxInFlight/],
    [{ path, maxInFlight: 32_769 }, /maxInFlight/],
    [{ path, maxSegments: 0 }, /maxSegments/],
    [{ path, maxSegments: 1023 }, /maxSegments/],
    [{ path, maxRangeLength: 0 }, /maxRangeLength/],
    [{ path, maxRangeLength: 512 }, /maxRangeLength 512 must be a multiple of the block size 4096/],
    [{ path, maxRangeLength: 2 ** 41 }, /maxRangeLength/],
    [{ path, waiting: "poll" }, /waiting/],
    [{ path, sealedMemory: 1 }, /sealedMemory/],
    [{ path, writeCache: "yes" }, /writeCache/],
    [{ path, queues: 1 }, /queues/]
  ])("%j", (options, says) => {
    const refused = refusal(options)
    expect(refused).toMatchObject({ _tag: "EINVAL", operation: "export" })
    expect(refused.message).toMatch(says)
  })

  it("a read-only store is not served for writing", () => {
    expect(refusal({ path, readOnly: false }, readOnly).message).toMatch(/readOnly must be true/)
  })

  it("a path of 108 bytes is too long, and one of 107 is not", () => {
    expect(settings({ path: "x".repeat(107) }).path).toHaveLength(107)
    for (const long of ["x".repeat(108), "ä".repeat(54)]) {
      expect(refusal({ path: long })).toMatchObject({ _tag: "ENAMETOOLONG", path: long })
    }
  })
})
