/** What a proof prints: a row for each phase, as soon as it has ended. */
import { Console, Data, Duration, Effect, FileSystem, Stream } from "effect"
import type { ChildProcessSpawner } from "effect/process"
import { createCipheriv, createHash } from "node:crypto"
import * as SeededRandom from "../../src/SeededRandom.ts"
import { BlockStore } from "../../src/index.ts"
import type { ProgramFailed } from "./Programs.ts"
import * as Watch from "./Watch.ts"

const MiB = 2 ** 20

/** Something was not as it has to be. */
export class Disproved extends Data.TaggedError("Disproved")<{ readonly message: string }> {}

/** For each phase: far more than any takes. */
const PHASE_LIMIT = Duration.seconds(60)

const columns = [48, 6, 7, 12, 15, 7] as const
const row = (cells: ReadonlyArray<string>, result: string) =>
  [...cells.map((cell, index) => index === 0 ? cell.padEnd(columns[0]) : cell.padStart(columns[index] ?? 0)), result]
    .join("  ")

/** The head of the table. */
export const head = Console.log(row(["phase", "MiB", "s", "stall, ms", "slowest, ms", "errors"], "result"))

/**
 * Runs a phase over a watched store and prints its row; it gives how many bytes it moved, and what came of it. One that fails,
 * or does not end in time, has its row, too. A phase may have errors only if it says how many.
 */
export const phase = Effect.fnUntraced(function*<E extends { readonly message: string }, R>(
  name: string,
  store: BlockStore.BlockStore,
  body: (store: BlockStore.BlockStore) => Effect.Effect<{ readonly bytes: number; readonly result: string }, E, R>,
  { errors = 0 }: { readonly errors?: number } = {}
) {
  const watch = Watch.on(store)
  const began = performance.now()
  const print = (bytes: number, result: string) =>
    Console.log(row([
      name,
      (bytes / MiB).toFixed(0),
      ((performance.now() - began) / 1000).toFixed(1),
      watch.seen.stallMs.toFixed(0),
      watch.seen.slowestMs.toFixed(0),
      String(watch.seen.errors)
    ], result))
  const { bytes, result } = yield* body(watch.store).pipe(
    Effect.timeoutOrElse({
      duration: PHASE_LIMIT,
      orElse: () => Effect.fail(new Disproved({ message: `no end within ${Duration.format(PHASE_LIMIT)}` }))
    }),
    Effect.tapError(({ message }) => print(0, `FAILED: ${message}`))
  )
  yield* print(bytes, result)
  if (watch.seen.errors !== errors) {
    return yield* new Disproved({ message: `${name}: ${watch.seen.errors} errors, where there have to be ${errors}` })
  }
})

/** Fails unless something is so. */
export const ensure = (holds: boolean, message: string) => holds ? Effect.void : Effect.fail(new Disproved({ message }))

/** Gives the error of what has to fail. */
export const failureOf = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<E, Disproved, R> =>
  Effect.matchEffect(effect, {
    onFailure: Effect.succeed,
    onSuccess: () => Effect.fail(new Disproved({ message: "it succeeded, and should have failed" }))
  })

/** How the content of an image comes about: pieces of one length, of which each is zero, or half zero, or all by chance. */
const PIECE_BYTES = MiB

/** The seed that was asked for, or any. */
export const seedOr = (given: string | undefined): number => Number(given ?? Math.floor(Math.random() * 2 ** 32))

/** Makes an image file that is the same again with the same seed. What is zero is a hole. */
export const makeImage = Effect.fnUntraced(function*(path: string, bytes: number, seed: number) {
  const fs = yield* FileSystem.FileSystem
  const next = SeededRandom.make(seed)
  const key = createHash("sha256").update(String(seed)).digest().subarray(0, 16)
  const chance = createCipheriv("aes-128-ctr", key, new Uint8Array(16))
  const file = yield* fs.open(path, { flag: "w" })
  yield* file.truncate(bytes)
  for (let offset = 0; offset < bytes; offset += PIECE_BYTES) {
    const kind = next(8)
    if (kind < 2) continue
    yield* file.seek(BigInt(offset), "start")
    yield* file.writeAll(chance.update(new Uint8Array(kind < 4 ? PIECE_BYTES / 2 : PIECE_BYTES)))
  }
}, Effect.scoped)

/** The hash of all of a store, in hexadecimal. */
const hashOf = (store: BlockStore.BlockStore): Effect.Effect<string, BlockStore.StoreError> =>
  Effect.suspend(() => {
    const hash = createHash("sha256")
    return BlockStore.contents(store).pipe(
      Stream.runForEach((bytes) => Effect.sync(() => hash.update(bytes))),
      Effect.map(() => hash.digest("hex"))
    )
  })

/** Reads a store and compares its hash with that of the one it was copied from. */
export const verify = Effect.fnUntraced(function*(source: BlockStore.BlockStore, copy: BlockStore.BlockStore) {
  const [expected, found] = yield* Effect.all([hashOf(source), hashOf(copy)], { concurrency: 2 })
  yield* ensure(found === expected, `SHA-256 ${found}, which has to be ${expected}`)
  return { bytes: copy.capacity, result: `identical, SHA-256 ${found.slice(0, 16)}…` }
})

const PROGRESS_POLL_MS = 5

/** Does something to what a copy goes to, each thing as soon as a share of the copy is done. */
export type Disturbance = (
  reached: (share: number) => Effect.Effect<void>
) => Effect.Effect<void, ProgramFailed, ChildProcessSpawner.ChildProcessSpawner>

/** Copies while the target is disturbed. */
export const copyDuring = Effect.fnUntraced(function*(
  source: BlockStore.BlockStore,
  target: BlockStore.BlockStore,
  disturb: Disturbance
) {
  let share = 0
  const reached = (wanted: number): Effect.Effect<void> =>
    Effect.suspend(() =>
      share >= wanted ? Effect.void : Effect.andThen(Effect.sleep(PROGRESS_POLL_MS), reached(wanted))
    )
  const copying = Stream.runForEach(BlockStore.copy(source, target), ({ copied, total }) =>
    Effect.sync(() => {
      share = copied / total
    }))
  yield* Effect.all([copying, disturb(reached)], { concurrency: 2 })
  return { bytes: source.capacity, result: "copied" }
})

/** Writes to the start of a device, and reads it back. */
export const writeAndRead = Effect.fnUntraced(function*(device: BlockStore.BlockStore, block: Uint8Array) {
  yield* device.write(0, [block])
  yield* device.flush
  yield* ensureReads(device, block)
  return { bytes: 2 * block.length, result: "identical" }
})

/** Fails unless a device begins with this. */
export const ensureReads = Effect.fnUntraced(function*(device: BlockStore.BlockStore, expected: Uint8Array) {
  const found = new Uint8Array(expected.length)
  yield* device.read(0, [found])
  yield* ensure(Buffer.compare(found, expected) === 0, `what ${device.id} reads is not what it has to be`)
})
