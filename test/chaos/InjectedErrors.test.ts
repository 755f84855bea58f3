/**
 * Goal: an error of the disk behind a backend is the error of the request that it befell, and of no other; when it is over, all
 * goes on.
 * Method: QEMU's storage daemon with `blkdebug`, which fails reads, writes or flushes as it is told, for one sector, once, or in
 * a state that it comes to. Virtio-blk knows one error of a disk: whatever it was, EIO arrives.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, type Schema } from "effect"
import { IoQueue, type MemoryRegion } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { imagePath, onBackend, open, serve, withSeed } from "../support/daemon.ts"
import { exportNode } from "../support/daemonNode.ts"
import { BLOCK_BYTES } from "./Blocks.ts"
import { Findings } from "./Findings.ts"
import * as Workers from "./Workers.ts"
import { exercise } from "./exercise.ts"

const BLOCKS = 256
/** The block that has errors. */
const BAD = 40
const EIO = 5
const ENOSPC = 28

const sectorOf = (block: number) => block * BLOCK_BYTES / 512

type Rules = Readonly<Record<string, Schema.Json>>

/** Serves an image through blkdebug with rules, below a raw node where the events of that are to be seen. */
const serveWith = Effect.fnUntraced(function*(rules: Rules, below: "itself" | "raw" = "itself") {
  const path = yield* imagePath("disk.raw")
  yield* DiskImage.createRaw(path, BLOCKS * BLOCK_BYTES)
  const daemon = yield* serve({ exports: [{ image: { _tag: "null-co", size: BLOCK_BYTES } }] })
  const blkdebug = { driver: "blkdebug", image: { driver: "file", filename: path }, ...rules }
  const { socketPath } = yield* exportNode(
    daemon,
    "failing",
    below === "itself" ? blkdebug : { driver: "raw", file: blkdebug },
    { numQueues: Workers.QUEUES }
  )
  return yield* open(socketPath, Workers.options)
})

/** The requests that are sent by hand: one block each, and the tag of what they end with. */
const asks = ({ queue }: Workers.Device, { bytes }: MemoryRegion.MemoryRegion) => {
  const tagOf = <E extends { readonly _tag: string }>(effect: Effect.Effect<void, E>) =>
    Effect.match(effect, { onSuccess: () => "done", onFailure: ({ _tag }): string => _tag })
  return {
    read: (block: number, count = 1) =>
      tagOf(queue(0).read(block * BLOCK_BYTES, bytes.subarray(0, count * BLOCK_BYTES))),
    write: (block: number, value: number, flags = 0) =>
      Effect.suspend(() =>
        tagOf(queue(0).write(block * BLOCK_BYTES, bytes.subarray(0, BLOCK_BYTES).fill(value), flags))
      ),
    flush: tagOf(queue(0).flush())
  }
}

const begin = Effect.fnUntraced(function*(rules: Rules, below?: "itself" | "raw") {
  const disk = yield* serveWith(rules, below)
  const region = yield* disk.allocate(4 * BLOCK_BYTES)
  return { ...asks(disk, region), bytes: region.bytes }
})

const inject = (iotype: "read" | "write" | "flush", errno: number, more: Rules = {}): Rules => ({
  "inject-error": [{ event: "none", iotype, errno, ...more }]
})

describe.skipIf(!qsdIsHere)("an error of the disk", () => {
  for (const [name, errno] of [["EIO", EIO], ["ENOSPC", ENOSPC]] as const) {
    onBackend(`befalls the writes of its sector: ${name}`, () =>
      Effect.gen(function*() {
        const { bytes, read, write } = yield* begin(inject("write", errno, { sector: sectorOf(BAD) + 7 }))
        for (let i = 0; i < 3; i++) {
          expect(yield* write(BAD, 1)).toBe("EIO")
          expect(yield* write(BAD - 1, 2)).toBe("done")
          expect(yield* write(BAD + 1, 3)).toBe("done")
        }
        expect(yield* read(BAD - 1, 3)).toBe("done")
        expect([0, 1, 2].map((nth) => bytes[nth * BLOCK_BYTES])).toStrictEqual([2, 0, 3])
      }))
  }

  onBackend("befalls the reads of its sector, and those that cover it", () =>
    Effect.gen(function*() {
      const { bytes, read, write } = yield* begin(inject("read", EIO, { sector: sectorOf(BAD) }))
      expect(yield* write(BAD, 1)).toBe("done")
      expect(yield* write(BAD + 1, 2)).toBe("done")
      expect(yield* read(BAD)).toBe("EIO")
      expect(yield* read(BAD - 1, 3)).toBe("EIO")
      expect(yield* read(BAD + 1)).toBe("done")
      expect(bytes[0]).toBe(2)
    }))

  onBackend("that comes once is over then", () =>
    Effect.gen(function*() {
      const { bytes, read, write } = yield* begin(inject("write", ENOSPC, { sector: sectorOf(BAD), once: true }))
      expect(yield* write(BAD, 1)).toBe("EIO")
      expect(yield* write(BAD, 2)).toBe("done")
      expect(yield* read(BAD)).toBe("done")
      expect(bytes[0]).toBe(2)
    }))

  onBackend("of a flush is the flush's", () =>
    Effect.gen(function*() {
      const { flush, write } = yield* begin(inject("flush", EIO, { once: true }))
      expect(yield* write(BAD, 1)).toBe("done")
      expect(yield* flush).toBe("EIO")
      expect(yield* write(BAD, 2)).toBe("done")
      expect(yield* flush).toBe("done")
    }))

  onBackend("of a flush is the write's that is to be stable", () =>
    Effect.gen(function*() {
      const { write } = yield* begin(inject("flush", EIO, { once: true }))
      expect(yield* write(BAD, 1, IoQueue.RequestFlag.FUA)).toBe("EIO")
      expect(yield* write(BAD, 1, IoQueue.RequestFlag.FUA)).toBe("done")
    }))

  onBackend("that comes after other writes comes then, and goes", () =>
    Effect.gen(function*() {
      const next = (state: number) => ({ event: "write_aio", state, new_state: state + 1 })
      const { write } = yield* begin({
        "set-state": [next(1), next(2), next(3)],
        "inject-error": [{ event: "write_aio", state: 3, errno: ENOSPC, once: true }]
      }, "raw")
      const ends: Array<string> = []
      for (let i = 0; i < 6; i++) ends.push(yield* write(i, 1))
      expect(ends).toStrictEqual(["done", "done", "EIO", "done", "done", "done"])
    }))

  onBackend(
    "leaves its block with the old value or the new one, and all others right, under load",
    () =>
      withSeed(Effect.fnUntraced(function*(below) {
        const disk = yield* serveWith(inject("write", EIO, { sector: sectorOf(BAD) }))
        const findings = new Findings()
        yield* exercise(disk, findings, {
          seed: below(2 ** 32),
          blocks: BLOCKS,
          load: Workers.heavy,
          writes: 3000,
          isExpected: (operation, { _tag }) => operation.startsWith("write") && _tag === "EIO"
        })
        expect(findings.faults).toStrictEqual([])
        expect([...findings.failures.values()].reduce((sum, count) => sum + count, 0)).toBeGreaterThan(0)
        expect(findings.blocks).toBeGreaterThan(BLOCKS)
      }))
  )
})
