/**
 * Goal: the oracle of the chaos runs lets pass what fio's flush rule allows, and finds everything else.
 * Method: faults are planted one by one: blocks that are torn, misplaced, stale, lost, of another run; and a disk that forgets
 * more, or less, than a crash may make it forget.
 */
import { describe, expect, it } from "@effect/vitest"
import { make as random } from "../../src/SeededRandom.ts"
import { BLOCK_BYTES, BLOCK_WORDS, type Content, fill, identify, wordsOf } from "./Blocks.ts"
import { Oracle, type WriteEnd } from "./Oracle.ts"

const SEED = 7

const written = (block: number, generation: number, seed = SEED): Content => ({
  _tag: "written",
  seed,
  block,
  generation
})
const zeroes: Content = { _tag: "zeroes" }

/** A disk of four blocks under an oracle, of which block 1 is used unless another is named. */
const subject = () => {
  const oracle = new Oracle(SEED, 4)
  const begin = (block = 1, isZeroes = false) => oracle.beginWrite(block, 1, isZeroes, () => {})
  return {
    oracle,
    begin,
    write: (end: WriteEnd = "done", block = 1) => oracle.endWrite(begin(block), end),
    writeZeroes: () => oracle.endWrite(begin(1, true), "done"),
    flush: () => oracle.endFlush(oracle.beginFlush()),
    /** What is wrong with a block that holds this. */
    read: (content: Content, block = 1) => oracle.endRead(oracle.beginRead(block, 1), () => content).length
  }
}

const RIGHT = 0
const WRONG = 1

describe("a block", () => {
  const block = () => {
    const bytes = new Uint8Array(2 * BLOCK_BYTES)
    const words = wordsOf(bytes)
    fill(words, BLOCK_WORDS, SEED, 3, 5)
    return { bytes, words }
  }

  it("says what it is", () => {
    const { words } = block()
    expect(identify(words, 0)).toStrictEqual(zeroes)
    expect(identify(words, BLOCK_WORDS)).toStrictEqual(written(3, 5))
  })

  it("is damaged by any bit that is not as it was", () => {
    const below = random(SEED)
    for (let i = 0; i < 1000; i++) {
      const { bytes, words } = block()
      const bit = below(8 * BLOCK_BYTES)
      bytes[BLOCK_BYTES + (bit >> 3)]! ^= 1 << (bit & 7)
      expect(identify(words, BLOCK_WORDS), `bit ${bit}`).toStrictEqual({ _tag: "damaged" })
    }
  })

  it("is damaged by a part of another, and by one byte that is not zero", () => {
    for (let sector = 1; sector < BLOCK_BYTES / 512; sector++) {
      const { words } = block()
      const next = new Uint32Array(BLOCK_WORDS)
      fill(next, 0, SEED, 3, 6)
      words.set(next.subarray(0, 128 * sector), BLOCK_WORDS)
      expect(identify(words, BLOCK_WORDS)).toStrictEqual({ _tag: "damaged" })
    }
    const bytes = new Uint8Array(BLOCK_BYTES)
    bytes[BLOCK_BYTES - 1] = 1
    expect(identify(wordsOf(bytes), 0)).toStrictEqual({ _tag: "damaged" })
  })
})

describe("the oracle", () => {
  it("expects what was acknowledged last", () => {
    const { read, write, writeZeroes } = subject()
    expect(read(zeroes)).toBe(RIGHT)
    write()
    expect(read(zeroes)).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
    write()
    expect(read(written(1, 1))).toBe(WRONG)
    expect(read(written(1, 2))).toBe(RIGHT)
    writeZeroes()
    expect(read(written(1, 2))).toBe(WRONG)
    expect(read(zeroes)).toBe(RIGHT)
  })

  it("finds a block of another place, of another run, of the future, and a damaged one", () => {
    const { read, write } = subject()
    write()
    expect(read(written(2, 1))).toBe(WRONG)
    expect(read(written(1, 1, SEED + 1))).toBe(WRONG)
    expect(read(written(1, 2))).toBe(WRONG)
    expect(read({ _tag: "damaged" })).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
  })

  it("takes the old value or the new one after a write of which nobody knows, and then keeps to it", () => {
    for (const [first, second] of [[1, 2], [2, 1]] as const) {
      const { read, write } = subject()
      write()
      write("unknown")
      expect(read(zeroes)).toBe(WRONG)
      expect(read(written(1, first))).toBe(RIGHT)
      expect(read(written(1, second))).toBe(WRONG)
    }
  })

  it("lets a crash take what was not flushed, and counts that", () => {
    const { oracle, read, write } = subject()
    write()
    write()
    oracle.crash()
    expect(read(written(1, 1))).toBe(RIGHT)
    expect(oracle.fellBack).toBe(1)
    // It does not come back.
    expect(read(written(1, 2))).toBe(WRONG)
  })

  it("lets a crash take nothing that was flushed", () => {
    const { flush, oracle, read, write } = subject()
    write()
    flush()
    oracle.crash()
    expect(read(zeroes)).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
    write()
    oracle.crash()
    expect(read(zeroes)).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
    expect(oracle.fellBack).toBe(1)
  })

  it("lets a crash take nothing that was written with FUA", () => {
    const { oracle, read, write } = subject()
    write()
    write("stable")
    oracle.crash()
    expect(read(written(1, 1))).toBe(WRONG)
    expect(read(written(1, 2))).toBe(RIGHT)
    expect(oracle.fellBack).toBe(0)
  })

  it("does not count as flushed what was acknowledged after the flush began", () => {
    const { begin, oracle, read, write } = subject()
    write()
    const second = begin()
    const flush = oracle.beginFlush()
    oracle.endWrite(second, "done")
    oracle.endFlush(flush)
    oracle.crash()
    expect(read(zeroes)).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
  })

  it("counts as flushed whatever a block turned out to hold", () => {
    const { flush, oracle, read, write } = subject()
    write()
    write()
    oracle.crash()
    expect(read(written(1, 1))).toBe(RIGHT)
    flush()
    oracle.crash()
    expect(read(zeroes)).toBe(WRONG)
    expect(read(written(1, 2))).toBe(WRONG)
    expect(read(written(1, 1))).toBe(RIGHT)
  })

  it("takes nothing for certain that began before a crash and ended after it", () => {
    const { begin, oracle, read, write } = subject()
    write()
    const late = begin()
    oracle.crash()
    oracle.endWrite(late, "done")
    // Done before the crash, it may be lost.
    expect(read(written(1, 1))).toBe(RIGHT)
    expect(oracle.fellBack).toBe(1)

    const reader = subject()
    reader.write()
    const reading = reader.oracle.beginRead(1, 1)
    reader.oracle.crash()
    expect(reader.oracle.endRead(reading, () => written(1, 1))).toStrictEqual([])
    expect(reader.read(zeroes)).toBe(RIGHT)
  })

  it("keeps writers alone, and readers away from them", () => {
    const { begin, oracle } = subject()
    const reading = oracle.beginRead(0, 2)
    expect(oracle.mayWrite(1, 2)).toBe(false)
    expect(oracle.mayRead(1, 2)).toBe(true)
    oracle.endRead(reading, undefined)
    const writing = begin()
    expect(oracle.mayWrite(1, 2)).toBe(false)
    expect(oracle.mayRead(0, 2)).toBe(false)
    expect(oracle.mayRead(2, 2)).toBe(true)
    oracle.endWrite(writing, "unknown")
    expect(oracle.mayWrite(1, 2)).toBe(true)
  })

  it("expects zeroes where the disk has grown", () => {
    const { oracle, read, write } = subject()
    write()
    oracle.grow(6)
    expect(oracle.blocks).toBe(6)
    expect(read(zeroes, 5)).toBe(RIGHT)
    expect(read(written(1, 1))).toBe(RIGHT)
  })
})
