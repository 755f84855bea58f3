/**
 * Goal: whenever power is lost, a disk holds what was flushed, or something later; and a disk that breaks this is found out.
 * Method: the log of a real daemon's writes is replayed up to each entry. Then faults are planted in that log, one by one, as
 * if the library had not sent a flush or a write, or the disk had kept them wrongly.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { make as random } from "../../src/SeededRandom.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { withSeed } from "../support/daemon.ts"
import { BLOCK_BYTES } from "./Blocks.ts"
import { type Entry, parse } from "./LogWrites.ts"
import { record, type Recording } from "./PowerLoss.ts"
import { replay } from "./Replay.ts"

const WRITES = 600

/** What is wrong with a log that was changed. */
const violationsIn = ({ history }: Recording, entries: ReadonlyArray<Entry>, seed: number) =>
  replay(entries, history, seed, random(seed)).violations

const overlap = (one: Entry, other: Entry) =>
  one.offset < other.offset + other.data.length && other.offset < one.offset + one.data.length

/** Entries to spoil: the last write of other than zeroes that nothing undoes, and one that a later one undoes. */
const landmarks = (entries: ReadonlyArray<Entry>) => {
  const writes = (entry: Entry) => entry.data.some((byte) => byte !== 0)
  const isUndone = (entry: Entry, i: number) => entries.slice(i + 1).some((later) => overlap(entry, later))
  return {
    lastWrite: entries.findLastIndex((entry, i) => writes(entry) && !isUndone(entry, i)),
    oldWrite: entries.findIndex((entry, i) => writes(entry) && isUndone(entry, i))
  }
}

const replaced = (entries: ReadonlyArray<Entry>, index: number, ...by: ReadonlyArray<Entry>) => [
  ...entries.slice(0, index),
  ...by,
  ...entries.slice(index + 1)
]

describe.skipIf(!qsdIsHere)("power that is lost", () => {
  it.live("leaves what was stable; whatever else is found", () =>
    withSeed(Effect.fnUntraced(function*(below) {
      const seed = below(2 ** 32)
      const recording = yield* record(seed, WRITES)
      const { entries, findings, history, image } = recording
      expect(findings.faults).toStrictEqual([])
      const outcome = replay(entries, history, seed, below)
      expect(outcome.violations).toStrictEqual([])
      expect(outcome.flushes).toBeGreaterThan(1)
      expect(entries.length - outcome.flushes).toBe(findings.writes)
      expect(Buffer.compare(outcome.image, image)).toBe(0)

      const { lastWrite, oldWrite } = landmarks(entries)
      const write = entries[lastWrite]!
      const planted = {
        "no flush at all": entries.filter(({ isFlush }) => !isFlush),
        "no flush after a write": entries.filter(({ isFlush }, i) => !isFlush || i < lastWrite),
        "a write too few": replaced(entries, lastWrite),
        "a write after its flush": [...replaced(entries, lastWrite), write],
        "a write in the wrong place": replaced(entries, lastWrite, {
          ...write,
          offset: (write.offset + BLOCK_BYTES) % (image.length - write.data.length)
        }),
        "a wrong byte": replaced(entries, lastWrite, {
          ...write,
          data: write.data.map((byte, i) => i === 99 ? ~byte : byte)
        }),
        "half a block": replaced(entries, lastWrite, {
          ...write,
          data: write.data.map((byte, i) => i < 2048 ? byte : 0)
        }),
        "an old write again": [...entries, entries[oldWrite]!]
      }
      for (const [fault, changed] of Object.entries(planted)) {
        expect([fault, violationsIn(recording, changed, seed).length]).not.toStrictEqual([fault, 0])
      }
      // Of a single flush the next one may do the work before power is lost.
      const isFound = ({ isFlush }: Entry, i: number) =>
        isFlush && violationsIn(recording, replaced(entries, i), seed).length > 0
      expect(entries.some(isFound)).toBe(true)
    })).pipe(Effect.provide(NodeServices.layer)), 120_000)
})

describe("a log of writes", () => {
  const header = (magic = 0x6a736677736872n, entries = 1n) => {
    const log = Buffer.alloc(1024)
    log.writeBigUInt64LE(magic, 0)
    log.writeBigUInt64LE(1n, 8)
    log.writeBigUInt64LE(entries, 16)
    log.writeUInt32LE(512, 24)
    log.writeBigUInt64LE(3n, 512)
    log.writeBigUInt64LE(1n, 520)
    return log
  }

  it("is read entry by entry", () => {
    const data = Buffer.alloc(512, 9)
    expect(parse(Buffer.concat([header(), data]))).toStrictEqual([
      { isFlush: false, offset: 1536, data: new Uint8Array(data) }
    ])
  })

  it("is refused where it is none, is cut short, or holds what this library never asks for", () => {
    expect(() => parse(header(1n))).toThrow(/no log of writes/u)
    expect(() => parse(header())).toThrow(/cut short/u)
    for (const [flags, message] of [[4n, /discard/u], [16n, /flags 16/u]] as const) {
      const log = header()
      log.writeBigUInt64LE(flags, 528)
      expect(() => parse(log)).toThrow(message)
    }
  })
})
