/**
 * Goal: the model allows every read that a disk may give, and no other.
 * Method: small histories by hand, for each rule one that keeps it and one that breaks it.
 */
import { describe, expect, it } from "@effect/vitest"
import { CELL_BYTES, Model, type Operation, stamp, valueOf } from "./Model.ts"

const BLOCK = 512
const CELLS = BLOCK / CELL_BYTES
const DISK = 4 * BLOCK

/** A disk of zeroes with a cache, and one block of it. */
const disk = () => {
  const model = new Model(DISK, true)
  const write = (via: "queue" | "store" = "queue", fua = false) => model.begin("write", via, 0, BLOCK, fua)
  const written = (fua = false) => {
    const operation = write("queue", fua)
    model.end(operation, "done")
    return operation
  }
  const flush = (queue = "event 0") => model.begin("flush", "queue", 0, 0, false, queue)
  const flushed = () => model.end(flush(), "done")
  /** Begins a read; what it gives is told when it ends. */
  const reading = () => {
    const operation = model.begin("read", "queue", 0, BLOCK)
    return (from?: Operation) => {
      const before = model.wrongs.length
      model.endRead(operation, contentOf(from))
      return model.wrongs.length === before
    }
  }
  /** Whether a read may now give the content of a write, or the zeroes that were there first. */
  const mayRead = (from?: Operation) => reading()(from)
  return { model, write, written, flush, flushed, reading, mayRead }
}

const contentOf = (write?: Operation): Uint8Array => {
  const bytes = new Uint8Array(BLOCK)
  if (write !== undefined) stamp(bytes, 0, write.id)
  return bytes
}

describe("a stamp", () => {
  it("names the write and the cell, and nothing passes for another", () => {
    const bytes = new Uint8Array(BLOCK)
    stamp(bytes, 8, 77)
    for (let i = 0; i < CELLS; i++) {
      expect(valueOf(bytes, i * CELL_BYTES, 8 + i)).toBe(77)
      expect(valueOf(bytes, i * CELL_BYTES, 9 + i)).toBe(-1)
    }
    for (const at of [0, 4, 63, 64, 300]) {
      const broken = bytes.slice()
      broken[at] = broken[at]! ^ 1
      expect(valueOf(broken, Math.floor(at / CELL_BYTES) * CELL_BYTES, 8 + Math.floor(at / CELL_BYTES))).toBe(-1)
    }
    expect(valueOf(new Uint8Array(CELL_BYTES), 0, 3)).toBe(0)
  })
})

describe("a read", () => {
  it("gives the last write that was acknowledged", () => {
    const { mayRead, written } = disk()
    expect(mayRead()).toBe(true)
    const first = written()
    expect(mayRead(first)).toBe(true)
    const second = written()
    expect(mayRead(second)).toBe(true)
    expect(mayRead(first)).toBe(false)
    expect(mayRead()).toBe(false)
  })

  it("gives nothing that was never written there", () => {
    const { model, written } = disk()
    const write = written()
    const read = model.begin("read", "queue", BLOCK, BLOCK)
    model.endRead(read, contentOf(write))
    expect(model.wrongs).toHaveLength(CELLS)
  })

  it("gives one or the other while a write is in flight, at any moment of the read", () => {
    const { mayRead, model, reading, write } = disk()
    const overlapping = reading()
    const second = reading()
    const inFlight = write()
    expect(mayRead()).toBe(true)
    model.end(inFlight, "done")
    expect(overlapping()).toBe(true)
    expect(second(inFlight)).toBe(true)
    expect(mayRead()).toBe(false)
  })

  it("does not go back to what a read has found replaced", () => {
    const { mayRead, write } = disk()
    const inFlight = write()
    expect(mayRead(inFlight)).toBe(true)
    expect(mayRead()).toBe(false)
  })

  it("finds writes of the same time in one order only", () => {
    const { mayRead, model, write } = disk()
    const one = write()
    const other = write()
    model.end(one, "done")
    model.end(other, "done")
    expect(mayRead(one)).toBe(true)
    expect(mayRead(other)).toBe(true)
    expect(mayRead(one)).toBe(false)
  })

  it("gives what failed, or what was there before", () => {
    const { mayRead, model, write, written } = disk()
    const before = written()
    const failed = write()
    model.end(failed, "failed")
    expect(mayRead(before)).toBe(true)
    expect(mayRead(failed)).toBe(true)
    const after = written()
    expect(mayRead(failed)).toBe(false)
    expect(mayRead(after)).toBe(true)
  })

  it("never gives what was refused", () => {
    const { mayRead, model, write } = disk()
    const refused = write()
    model.end(refused, "refused")
    expect(mayRead(refused)).toBe(false)
  })

  it("may give what was not answered at any time, until the device is gone", () => {
    const { mayRead, model, write, written } = disk()
    const late = write()
    model.end(late, "not answered")
    const acknowledged = written()
    expect(mayRead(acknowledged)).toBe(true)
    expect(mayRead(late)).toBe(true)
    model.deviceGone()
    const after = written()
    expect(mayRead(after)).toBe(true)
    expect(mayRead(late)).toBe(false)
  })

  it("gives zeroes or what was there before after a discard", () => {
    const { mayRead, model, written } = disk()
    const before = written()
    model.end(model.begin("discard", "queue", 0, BLOCK), "done")
    expect(mayRead(before)).toBe(true)
    expect(mayRead()).toBe(true)
    const after = written()
    expect(mayRead(after)).toBe(true)
    expect(mayRead()).toBe(false)
  })

  it("gives no write of the store that was given up before a later one began", () => {
    const { mayRead, model, write } = disk()
    const abandoned = write("store")
    model.end(abandoned, "given up")
    const byQueue = write("queue")
    model.end(byQueue, "done")
    expect(mayRead(byQueue)).toBe(true)
    expect(mayRead(abandoned)).toBe(true)
    const byStore = write("store")
    model.end(byStore, "done")
    expect(mayRead(byStore)).toBe(true)
    expect(mayRead(abandoned)).toBe(false)
  })
})

describe("a crash", () => {
  it("may lose what was not flushed", () => {
    const { mayRead, model, written } = disk()
    const write = written()
    model.crash()
    expect(mayRead(write)).toBe(true)
    const { mayRead: mayReadOther, model: other, written: writtenToOther } = disk()
    writtenToOther()
    other.crash()
    expect(mayReadOther()).toBe(true)
  })

  it("does not lose what was flushed, nor go back behind it", () => {
    const { flushed, mayRead, model, written } = disk()
    const first = written()
    flushed()
    const second = written()
    model.crash()
    expect(mayRead()).toBe(false)
    expect(mayRead(first)).toBe(true)
    expect(mayRead(second)).toBe(true)
  })

  it("does not lose what was acknowledged with FUA", () => {
    const { mayRead, model, written } = disk()
    written(true)
    model.crash()
    expect(mayRead()).toBe(false)
  })

  it("may lose what was written while a flush was under way, or whose flush failed", () => {
    const { flush, mayRead, model, written } = disk()
    const early = flush()
    written()
    model.end(early, "done")
    model.end(flush(), "failed")
    model.crash()
    expect(mayRead()).toBe(true)
  })

  it("loses nothing where there is no cache", () => {
    const model = new Model(DISK, false)
    model.end(model.begin("write", "queue", 0, BLOCK), "done")
    model.crash()
    model.endRead(model.begin("read", "queue", 0, BLOCK), contentOf())
    expect(model.wrongs).toHaveLength(CELLS)
  })

  it("must be told of by the next flush of each queue, where acknowledged writes may be lost", () => {
    const { flush, model, written } = disk()
    written()
    model.crash()
    model.end(flush("event 0"), "failed")
    model.end(flush("event 0"), "done")
    expect(model.wrongs).toHaveLength(0)
    model.end(flush("event 1"), "done")
    expect(model.wrongs).toHaveLength(1)
  })

  it("need not be told of where nothing can be lost", () => {
    const { flush, flushed, model, written } = disk()
    written()
    flushed()
    written(true)
    model.crash()
    model.end(flush(), "done")
    expect(model.wrongs).toHaveLength(0)
  })

  it("may lose what a read had found before it, also where the read ends after it", () => {
    const { mayRead, model, reading, written } = disk()
    const write = written()
    const read = reading()
    model.crash()
    expect(read(write)).toBe(true)
    expect(mayRead()).toBe(true)
  })

  it("need not be told of what FUA may have flushed with it", () => {
    const { flush, model, written } = disk()
    written()
    written(true)
    model.crash()
    model.end(flush(), "done")
    expect(model.wrongs).toHaveLength(0)
    written(true)
    written()
    model.crash()
    model.end(flush(), "done")
    expect(model.wrongs).toHaveLength(1)
  })
})
