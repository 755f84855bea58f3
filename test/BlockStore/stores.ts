/**
 * Stores of every kind, alike in capacity, for tests that hold for all of them.
 */
import { Effect, type Scope } from "effect"
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"

export const CAPACITY = 1 << 18

export const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(tmpdir(), "block-store-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

/** Whether the file system of the temporary directory takes O_DIRECT; says so where it does not. */
export const hasDirectIo: boolean = (() => {
  const directory = mkdtempSync(Path.join(tmpdir(), "block-store-"))
  const path = Path.join(directory, "direct")
  writeFileSync(path, "")
  try {
    closeSync(openSync(path, constants.O_RDWR | constants.O_DIRECT))
    return true
  } catch (error) {
    console.warn(`SKIPPED: every test of direct I/O: ${tmpdir()} does not take O_DIRECT (${String(error)})`)
    return false
  } finally {
    rmSync(directory, { recursive: true })
  }
})()

export const fileStore = (options: Partial<BlockStore.FileOptions> = {}) =>
  Effect.gen(function*() {
    const path = Path.join(yield* temporaryDirectory, "disk")
    return yield* BlockStore.file({ path, create: true, size: CAPACITY, ...options })
  })

type Make = Effect.Effect<BlockStore.BlockStore, unknown, Scope.Scope>

const memory = BlockStore.memory({ capacity: CAPACITY })
const largeBlocks = BlockStore.memory({ capacity: CAPACITY, blockSize: 4096 })
const overlay = (base: Make, top: Make): Make =>
  Effect.flatMap(base, (below) => Effect.flatMap(top, BlockStore.overlay(below)))
const sliceOfMemory = BlockStore.memory({ capacity: CAPACITY * 4 }).pipe(
  Effect.flatMap(BlockStore.slice(CAPACITY, CAPACITY))
)

/** All of them can be written to, read as zeroes at first, and have {@link CAPACITY} bytes. */
export const stores: ReadonlyArray<readonly [name: string, make: Make]> = [
  ["memory", memory],
  ["memory with large blocks", largeBlocks],
  ["file", fileStore()],
  ["file with large blocks", fileStore({ blockSize: 8192 })],
  ...hasDirectIo ? [["direct file", fileStore({ direct: true })] as const] : [],
  ["slice of memory", sliceOfMemory],
  ["slice of a file", Effect.flatMap(fileStore({ size: CAPACITY * 2 }), BlockStore.slice(4096, CAPACITY))],
  ["overlay of memory", overlay(memory, memory)],
  ["overlay with large blocks on a file", overlay(fileStore(), largeBlocks)],
  ["overlay of a file on memory with large blocks", overlay(largeBlocks, fileStore())],
  ["no delay", Effect.map(memory, BlockStore.delay(0))],
  ["metered", Effect.map(memory, BlockStore.metered({ name: "conformance" }))],
  ["logged", Effect.map(memory, BlockStore.logged)],
  ["traced", Effect.flatMap(memory, BlockStore.traced({ sample: 0.5 }))],
  ["failing never", Effect.flatMap(memory, BlockStore.failing({ seed: 1, rate: 0, errnos: ["EIO"] }))],
  ["high rate", Effect.flatMap(memory, BlockStore.rateLimit({ bytesPerSecond: 1e12 }))],
  [
    "filters over an overlay over slices",
    overlay(sliceOfMemory, Effect.flatMap(fileStore({ size: CAPACITY * 2 }), BlockStore.slice(CAPACITY, CAPACITY)))
      .pipe(
        Effect.flatMap(BlockStore.traced({ sample: 1 })),
        Effect.map(BlockStore.logged),
        Effect.map(BlockStore.metered()),
        Effect.map(BlockStore.delay({ flush: "1 millis" })),
        Effect.flatMap(BlockStore.slice(0, CAPACITY))
      )
  ],
  ["an overlay over an overlay", overlay(overlay(memory, largeBlocks), memory)]
]
