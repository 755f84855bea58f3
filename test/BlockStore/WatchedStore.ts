/**
 * A store in memory that takes its time, notes what is asked of it, and fails where it is told to.
 *
 * A read copies what is there when it begins and a write arrives when it ends, some turns of the loop later, so that a
 * read-modify-write that nobody guards is torn.
 */
import { Effect, Stream } from "effect"
import { expect } from "vitest"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"

export interface Watched {
  readonly store: BlockStore.BlockStore
  readonly content: Uint8Array
  /** Every operation, in the order in which they began. */
  readonly log: Array<BlockStore.Operation & BlockStore.WriteZeroesOptions>
  inFlight: number
  mostInFlight: number
  /** What an operation fails with, if anything. */
  failure: (operation: BlockStore.Operation) => BlockStore.StoreError | undefined
  /** How many turns of the loop an operation takes; `Infinity`: it never ends. */
  turns: (operation: BlockStore.Operation) => number
  /** How many operations of a kind there were. */
  readonly count: (name: BlockStore.Operation["name"]) => number
}

export const watched = (options: {
  readonly capacity: number
  readonly blockSize?: number
  readonly limits?: Partial<BlockStore.Limits>
  readonly readOnly?: boolean
}): Watched => {
  const { blockSize = 512, capacity, readOnly = false } = options
  const content = new Uint8Array(capacity)
  const limits = { ...BlockStore.unlimited, ...options.limits }
  const facts = { id: "watched", capacity, blockSize, readOnly, limits }
  const perform = (
    operation: BlockStore.Operation & BlockStore.WriteZeroesOptions,
    begin: () => void,
    end: () => void
  ): Effect.Effect<void, BlockStore.StoreError> =>
    Effect.suspend(() => {
      const wrong = BlockStore.checkOperation(facts, operation)
      if (wrong !== undefined) return Effect.fail(wrong)
      made.log.push(operation)
      made.inFlight++
      made.mostInFlight = Math.max(made.mostInFlight, made.inFlight)
      const turns = made.turns(operation)
      const wait = turns === Infinity
        ? Effect.never
        : Effect.forEach(Array.from({ length: turns }), () => Effect.yieldNow, { discard: true })
      begin()
      return wait.pipe(
        Effect.andThen(Effect.suspend((): Effect.Effect<void, BlockStore.StoreError> => {
          const failure = made.failure(operation)
          if (failure !== undefined) return Effect.fail(failure)
          end()
          return Effect.void
        })),
        Effect.ensuring(Effect.sync(() => made.inFlight--))
      )
    })
  const made: Watched = {
    content,
    log: [],
    inFlight: 0,
    mostInFlight: 0,
    failure: () => undefined,
    turns: () => 1,
    count: (name) => made.log.filter((operation) => operation.name === name).length,
    store: {
      ...facts,
      read: (offset, buffers) => {
        const length = BlockStore.lengthOf(buffers)
        const found = new Uint8Array(length)
        return perform(
          { name: "read", offset, length },
          () => found.set(content.subarray(offset, offset + length)),
          () => {
            let at = 0
            for (const buffer of buffers) {
              buffer.set(found.subarray(at, at + buffer.length))
              at += buffer.length
            }
          }
        )
      },
      write: (offset, buffers, how) =>
        perform({ name: "write", offset, length: BlockStore.lengthOf(buffers), ...how }, () => {}, () => {
          let at = offset
          for (const buffer of buffers) {
            content.set(buffer, at)
            at += buffer.length
          }
        }),
      writeZeroes: (offset, length, how) =>
        perform({ name: "writeZeroes", offset, length, ...how }, () => {}, () => {
          content.fill(0, offset, offset + length)
        }),
      discard: (offset, length) =>
        perform({ name: "discard", offset, length }, () => {}, () => {
          content.fill(0xdd, offset, offset + length)
        }),
      flush: perform({ name: "flush", offset: 0, length: 0 }, () => {}, () => {}),
      capacityChanges: Stream.empty
    }
  }
  return made
}

/** Bytes that tell where they belong. */
export const pattern = (offset: number, length: number, round = 0): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (Math.imul(offset + i + 1, 0x9e3779b1) >>> 24) ^ round)

/** Compares bytes, quickly. */
export const expectBytes = (found: Uint8Array, wanted: Uint8Array, what = "bytes"): void => {
  if (Buffer.compare(found, wanted) === 0) return
  const at = found.findIndex((byte, i) => byte !== wanted[i])
  expect(
    { at, byte: found[at], length: found.length },
    `${what}: the first that differs, at ${at} of ${found.length}`
  ).toStrictEqual({ at, byte: wanted[at], length: wanted.length })
}
