/**
 * A store as a sequence of parts, holes told from data where the store knows them: what copying, comparing and hashing
 * have in common.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { FileStore } from "./FileStore.ts"
import type { BlockStore, StoreError } from "./Interface.ts"

/** A store that may know where its holes are. */
export type MayHaveHoles = BlockStore & Partial<Pick<FileStore, "nextData">>

/** A run of bytes. A hole reads as zeroes; what is not told to be one may be zeroes all the same. */
export interface Part {
  readonly offset: number
  readonly length: number
  readonly isHole: boolean
}

/** Chunks that are told at once: a bound on what a long run of data takes. */
const PAGE_CHUNKS = 256

/**
 * Divides the first `length` bytes of a store into parts, in order: data by chunks, and what is known to be a hole by runs of
 * whole chunks up to `maxHole` (a multiple of `chunkSize`) bytes. Only the last part may end within a chunk. With `holes: false` all is data.
 */
export const partsOf = (
  store: MayHaveHoles,
  { chunkSize, holes = true, length, maxHole }: {
    readonly chunkSize: number
    readonly length: number
    readonly maxHole: number
    readonly holes?: boolean
  }
): Stream.Stream<Part, StoreError> => {
  const all = { from: 0, to: length }
  const dataFrom = (offset: number): Effect.Effect<typeof all, StoreError> =>
    !holes || store.nextData === undefined || chunkSize % store.blockSize !== 0
      ? Exit.succeed(all)
      : Effect.map(
        store.nextData(offset),
        Option.match({
          onNone: () => ({ from: length, to: length }),
          onSome: (data) => ({ from: data.offset, to: Math.min(length, data.offset + data.length) })
        })
      )
  const take = (from: number, to: number, step: number, isHole: boolean): ReadonlyArray<Part> =>
    Array.from({ length: Math.min(PAGE_CHUNKS, Math.ceil((to - from) / step)) }, (_, i) => {
      const offset = from + i * step
      return { offset, length: Math.min(step, to - offset), isHole }
    })
  return Stream.paginate(
    { at: 0, data: { from: 0, to: 0 } },
    Effect.fnUntraced(function*({ at, data }) {
      if (at >= length) return [[], Option.none()]
      const next = at < data.to ? data : yield* dataFrom(at)
      const holeEnd = next.from >= length ? length : next.from - next.from % chunkSize
      const parts = holeEnd > at
        ? take(at, holeEnd, maxHole, true)
        : take(at, Math.min(length, Math.ceil(next.to / chunkSize) * chunkSize), chunkSize, false)
      const last = parts.at(-1)
      return [parts, Option.some({ at: last === undefined ? length : last.offset + last.length, data: next })]
    })
  )
}
