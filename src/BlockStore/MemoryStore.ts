/**
 * A store in memory, for tests, scratch space and the top of an overlay.
 *
 * It is sparse: memory is taken in chunks on the first write to each, and given back when a discard or a write-zeroes
 * covers a whole chunk. What was never written reads as zeroes. Every operation is done before it returns to the event
 * loop, so that no two ever interleave; nothing is stable beyond the life of the process, and a flush is free.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Errno from "../Errno.ts"
import { type CapacityNews, makeNews } from "./CapacityChanges.ts"
import { type BlockStore, checkGeometry, checkOperation, lengthOf, type Operation, unlimited } from "./Interface.ts"

/**
 * A store in memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryStore extends BlockStore {
  /** How much memory the content takes, in bytes. */
  readonly allocatedBytes: number
  /**
   * Makes the store larger or smaller, and tells the subscribers of `capacityChanges`. What is added reads as zeroes; what
   * lies beyond the new end is dropped, its memory freed. Fails with EINVAL for a capacity that is not a multiple of the
   * block size.
   *
   * @example
   * ```ts
   * import { BlockStore } from "effect-blkio"
   * import { Effect } from "effect"
   *
   * const program = Effect.gen(function*() {
   *   const store = yield* BlockStore.memory({ capacity: 1 << 20 })
   *   yield* store.write(0, [new Uint8Array(1 << 20).fill(7)])
   *   yield* store.resize(512)
   *   yield* store.resize(1024)
   *   const found = new Uint8Array(1024)
   *   yield* store.read(0, [found])
   *   return [store.capacity, found[511], found[512], store.allocatedBytes]
   * })
   * console.log(Effect.runSync(program)) // => [ 1024, 7, 0, 65536 ]
   * ```
   */
  readonly resize: (capacity: number) => Effect.Effect<void, Errno.EINVAL>
}

/** One bit of bookkeeping per 64 KiB, and little memory lost to a lone block: QEMU's default cluster, for the same reasons. */
const CHUNK_BYTES = 65_536

/**
 * Makes a store of `capacity` zeroes in memory. Fails with EINVAL for a block size (default 512) that is not a power of two
 * from 512 up, and for a capacity that is not a multiple of it. A write for which there is no memory fails with ENOSPC.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const store = yield* BlockStore.memory({ capacity: 2 ** 40 })
 *   yield* store.write(2 ** 39, [new Uint8Array(512).fill(7)])
 *   const block = new Uint8Array(512)
 *   yield* store.read(2 ** 39, [block])
 *   return [block[0], store.allocatedBytes]
 * })
 * console.log(Effect.runSync(program)) // => [ 7, 65536 ]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const memory = (options: {
  readonly capacity: number
  readonly blockSize?: number
}): Effect.Effect<MemoryStore, Errno.EINVAL> =>
  Effect.suspend(() => {
    const geometry = { capacity: options.capacity, blockSize: options.blockSize ?? 512 }
    return checkGeometry("memory", geometry) ?? Effect.map(makeNews, (news) => make(geometry, news))
  })

const make = (
  { blockSize, capacity: initial }: { readonly capacity: number; readonly blockSize: number },
  news: CapacityNews
): MemoryStore => {
  const chunkBytes = Math.max(CHUNK_BYTES, blockSize)
  const chunks = new Map<number, Uint8Array>()
  let capacity = initial

  const checked = (operation: Operation, body: () => void) =>
    Effect.suspend((): Effect.Effect<void, Errno.EINVAL | Errno.EBADF | Errno.ENOSPC> => {
      const wrong = checkOperation(self, operation)
      if (wrong !== undefined) return wrong
      try {
        body()
        return Effect.void
      } catch (error) {
        // What V8 throws where it cannot have the memory.
        if (!(error instanceof RangeError)) throw error
        const { name, ...range } = operation
        return new Errno.ENOSPC({ operation: name, ...range, detail: "out of memory", cause: error })
      }
    })

  const allocated = (index: number): Uint8Array => {
    const known = chunks.get(index)
    if (known !== undefined) return known
    const chunk = new Uint8Array(chunkBytes)
    chunks.set(index, chunk)
    return chunk
  }

  /** Visits the parts of a range that lie in one chunk each. */
  const eachPart = (offset: number, length: number, visit: (index: number, from: number, to: number) => void) => {
    for (let at = offset; at < offset + length;) {
      const from = at % chunkBytes
      const to = Math.min(chunkBytes, from + offset + length - at)
      visit((at - from) / chunkBytes, from, to)
      at += to - from
    }
  }

  const fill = (offset: number, length: number) =>
    eachPart(offset, length, (index, from, to) => allocated(index).fill(0, from, to))

  /** Looks at the chunks there are, not at those there could be: a range may be terabytes of nothing. */
  const release = (offset: number, length: number) => {
    const visit = (index: number, from: number, to: number) => {
      if (to - from === chunkBytes) chunks.delete(index)
      else chunks.get(index)?.fill(0, from, to)
    }
    if (length / chunkBytes <= chunks.size) return eachPart(offset, length, visit)
    for (const index of chunks.keys()) {
      const from = Math.max(offset, index * chunkBytes)
      const to = Math.min(offset + length, (index + 1) * chunkBytes)
      if (from < to) visit(index, from - index * chunkBytes, to - index * chunkBytes)
    }
  }

  const self: MemoryStore = {
    id: "memory",
    get capacity() {
      return capacity
    },
    blockSize,
    readOnly: false,
    limits: unlimited,
    get allocatedBytes() {
      return chunks.size * chunkBytes
    },
    resize: (next) =>
      Effect.uninterruptible(Effect.suspend((): Effect.Effect<void, Errno.EINVAL> => {
        const wrong = checkGeometry("resize", { blockSize, capacity: next })
        if (wrong !== undefined) return wrong
        if (next === capacity) return Effect.void
        // To the end of the last chunk, which would be kept if it were released in part.
        if (next < capacity) release(next, Math.ceil(capacity / chunkBytes) * chunkBytes - next)
        capacity = next
        return news.tell(next)
      })),
    read: (offset, buffers) =>
      checked({ name: "read", offset, length: lengthOf(buffers) }, () => {
        let at = offset
        for (const buffer of buffers) {
          let filled = 0
          eachPart(at, buffer.length, (index, from, to) => {
            const chunk = chunks.get(index)
            if (chunk === undefined) buffer.fill(0, filled, filled + to - from)
            else buffer.set(chunk.subarray(from, to), filled)
            filled += to - from
          })
          at += buffer.length
        }
      }),
    write: (offset, buffers) =>
      checked({ name: "write", offset, length: lengthOf(buffers) }, () => {
        let at = offset
        for (const buffer of buffers) {
          let taken = 0
          eachPart(at, buffer.length, (index, from, to) => {
            allocated(index).set(buffer.subarray(taken, taken + to - from), from)
            taken += to - from
          })
          at += buffer.length
        }
      }),
    writeZeroes: (offset, length, how) =>
      checked({ name: "writeZeroes", offset, length }, () => {
        if (how?.noUnmap === true) fill(offset, length)
        else release(offset, length)
      }),
    discard: (offset, length) => checked({ name: "discard", offset, length }, () => release(offset, length)),
    flush: Effect.void,
    capacityChanges: news.changes
  }
  return self
}
