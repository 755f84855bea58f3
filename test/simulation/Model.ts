/**
 * What a disk may hold, and the checker of every read.
 *
 * The disk is divided into cells, each of which is a register of its own. Whoever writes a cell marks it with the number of the
 * write and the number of the cell ({@link stamp}), so that a cell that is read names the write it comes from.
 *
 * A write takes effect at one moment between its begin and its end. So a read may give the value of a write unless another
 * one began after that one had ended, and had surely taken effect before the read began. A write takes effect for sure when it
 * is acknowledged, or has been read. One that failed, or was interrupted, may have taken effect or not, cell by cell; one whose
 * device is lost may still do so until the device is gone. A request that was refused never does.
 *
 * When a device crashes and loses what was not flushed, only writes that ended before a successful flush began, or that were
 * acknowledged with FUA, still count as having taken effect for sure: every other may have been lost. Where acknowledged ones
 * may be, each queue must say so once, by a flush that fails.
 *
 * Time is the number of things that have happened.
 */

/** Bytes of a cell: less than a sector, since calls that take bytes change parts of sectors. */
export const CELL_BYTES = 64
const CELL_WORDS = CELL_BYTES / 4

/** Which calls a write was made by: a later write through the device's store waits for an earlier one that was given up. */
export type Via = "queue" | "store"

/** A request as its caller sees it. */
export interface Operation {
  readonly id: number
  readonly kind: "read" | "write" | "zeroes" | "discard" | "flush"
  readonly via: Via
  /** On which queue, if that is known. */
  readonly queue: string
  readonly fua: boolean
  readonly firstCell: number
  readonly cells: number
  readonly begin: number
  /** After this it takes no effect any more. */
  end: number
  /** After this no write through the store is undone by it. */
  letGo: number
  /** Since then it has taken effect for sure, in every cell. */
  certain: number
  /** It survives a crash. */
  isStable: boolean
  /** It was answered, and answered well. */
  isAcknowledged: boolean
  isRefused: boolean
}

/** A write as one cell knows it. */
interface Entry {
  readonly operation: Operation
  /** Since then it has taken effect for sure in this cell, since it was read. */
  seen: number
  /** Since then it is known to have been replaced, since another was read after it. */
  replaced: number
}

/** How a request may end; after the last two it may still be carried out. */
export type Outcome = "done" | "refused" | "failed" | "given up" | "not answered"

const NEVER = Infinity
/** Some queue of the device. */
const ANY = "any"
const WRITTEN_NOTHING = 0
const NOT_A_VALUE = -1

export class Model {
  /** Reads that gave what they must not have given. */
  readonly wrongs: Array<string> = []
  cellsChecked = 0
  #time = 0
  #crashedAt = -1
  /** Whether acknowledged writes may have been lost in the last crash. */
  #atRisk = false
  /**
   * Before this, everything acknowledged may be stable: a flush may have waited for its place until then, and FUA has one of its own, of
   * which only the driver knows.
   */
  #flushedAt = -1
  /** Queues that have said so since. */
  readonly #toldSince = new Set<string>()
  readonly #operations: Array<Operation> = []
  readonly #cells: ReadonlyArray<Array<Entry>>

  readonly #hasCache: boolean

  /** A disk of zeroes, that may lose in a crash what was not flushed, or not. */
  constructor(bytes: number, hasCache: boolean) {
    this.#hasCache = hasCache
    const zeroes = this.begin("zeroes", "queue", 0, bytes)
    this.end(zeroes, "done")
    zeroes.isStable = true
    this.#cells = Array.from(
      { length: bytes / CELL_BYTES },
      () => [{ operation: zeroes, seen: NEVER, replaced: NEVER }]
    )
  }

  /** A request begins. */
  begin(kind: Operation["kind"], via: Via, offset: number, length: number, fua = false, queue = ANY): Operation {
    const operation: Operation = {
      id: this.#operations.length,
      kind,
      via,
      queue,
      fua,
      firstCell: offset / CELL_BYTES,
      cells: length / CELL_BYTES,
      begin: this.#time++,
      end: NEVER,
      letGo: NEVER,
      certain: NEVER,
      isStable: false,
      isAcknowledged: false,
      isRefused: false
    }
    this.#operations.push(operation)
    if (this.#isWrite(operation)) {
      for (const cell of this.#cellsOf(operation)) cell.push({ operation, seen: NEVER, replaced: NEVER })
    }
    return operation
  }

  /** A request ends. */
  end(operation: Operation, outcome: Outcome): void {
    const now = this.#time++
    if (operation.kind === "flush") this.#judgeFlush(operation, outcome)
    switch (outcome) {
      case "done":
        operation.end = now
        operation.isAcknowledged = true
        if (operation.fua || !this.#hasCache) operation.isStable = true
        if (operation.fua || operation.kind === "flush") this.#flushedAt = now
        // What a discarded range reads as is not said: as before, or as zeroes. What is heard of after a crash may have been done
        // before.
        if (operation.kind !== "discard" && (operation.begin > this.#crashedAt || operation.isStable)) {
          operation.certain = now
        }
        if (operation.kind === "flush") this.#flushed(operation)
        return
      case "refused":
        operation.end = now
        operation.isRefused = true
        return
      case "failed":
        operation.end = now
        return
      case "given up":
        operation.letGo = now
        if (operation.via === "queue") operation.end = now
        return
      case "not answered":
        return
    }
  }

  /** A read ends well, with these bytes. */
  endRead(operation: Operation, bytes: Uint8Array): void {
    const now = this.#time++
    operation.end = now
    for (let i = 0; i < operation.cells; i++) {
      const cell = operation.firstCell + i
      this.cellsChecked++
      const value = valueOf(bytes, i * CELL_BYTES, cell)
      const wrong = value === NOT_A_VALUE
        ? `holds what was never written there: ${describe(bytes, i * CELL_BYTES)}`
        : this.#wrong(cell, value, operation.begin)
      if (wrong !== undefined) {
        this.wrongs.push(`read ${operation.id}: cell ${cell} (sector ${Math.floor(cell / 8)}) ${wrong}`)
      } // What was found before a crash, and is heard of after it, may be lost.
      else if (operation.begin > this.#crashedAt) this.#saw(cell, value, operation.begin, now)
    }
  }

  /** The device went away, and may come back: what is in flight is asked for again then, and so may be carried out twice. */
  deviceLost(): void {
    for (const cell of this.#cells) {
      for (const entry of cell) if (entry.operation.end === NEVER) entry.replaced = NEVER
    }
  }

  /** The driver is gone, too: what was not done will not be. */
  deviceGone(): void {
    const now = this.#time++
    for (const operation of this.#operations) operation.end = Math.min(operation.end, now)
  }

  /** The device crashed, in which what was not flushed may be lost. */
  crash(): void {
    this.#crashedAt = this.#time++
    this.#toldSince.clear()
    this.#atRisk = this.#operations.some((operation) =>
      operation.isAcknowledged && !operation.isStable && this.#isWrite(operation) && operation.cells > 0
      && operation.end > this.#flushedAt
    )
    for (const operation of this.#operations) if (!operation.isStable) operation.certain = NEVER
    for (const cell of this.#cells) {
      for (const entry of cell) {
        entry.replaced = NEVER
        if (!entry.operation.isStable) entry.seen = NEVER
      }
    }
  }

  /** After a crash that may have lost acknowledged writes, no queue may call anything stable before it has said so. */
  #judgeFlush(flush: Operation, outcome: Outcome): void {
    if (outcome !== "done") this.#toldSince.add(flush.queue)
    else if (
      this.#atRisk && flush.begin > this.#crashedAt && !this.#toldSince.has(flush.queue) &&
      (flush.queue !== ANY || this.#toldSince.size === 0)
    ) {
      this.wrongs.push(`flush ${flush.id} succeeds, although the crash at ${this.#crashedAt} may have lost writes`)
    }
  }

  /** Whether no read may find `held` in a cell once the write of this stamp is acknowledged. */
  replaces(cell: number, stamped: number, held: number): boolean {
    const entries = this.#cells[cell] ?? []
    const later = entries.find((entry) => gives(entry, stamped))
    return later !== undefined
      && entries.every((entry) => !gives(entry, held) || isAfter(later.operation, entry.operation))
  }

  /** What the writes to a cell are known to have come to, for the log of a failure. */
  history(cell: number): ReadonlyArray<string> {
    return (this.#cells[cell] ?? []).map(({ operation, replaced, seen }) =>
      `${operation.kind} ${operation.id} by ${operation.via}: ${operation.begin} to ${operation.end}, certain since ${
        Math.min(operation.certain, seen)
      }, let go ${operation.letGo}, replaced ${replaced}${operation.isStable ? ", stable" : ""}${
        operation.isRefused ? ", refused" : ""
      }`
    )
  }

  #isWrite({ kind }: Operation): boolean {
    return kind === "write" || kind === "zeroes" || kind === "discard"
  }

  #cellsOf({ cells, firstCell }: Operation): ReadonlyArray<Array<Entry>> {
    // The disk itself is the first operation, before there are cells.
    return this.#cells === undefined ? [] : this.#cells.slice(firstCell, firstCell + cells)
  }

  #flushed(flush: Operation): void {
    for (const operation of this.#operations) {
      if (operation.isAcknowledged && operation.end < flush.begin) operation.isStable = true
    }
  }

  /** Why no read that began then may give this value. */
  #wrong(cell: number, value: number, begin: number): string | undefined {
    const entries = this.#cells[cell] ?? []
    const givers = entries.filter((entry) => gives(entry, value))
    if (givers.length === 0) return `gives write ${value}, which never went there`
    let why = ""
    for (const giver of givers) {
      const { operation, replaced } = giver
      const later = entries.find((entry) =>
        entry !== giver && isAfter(entry.operation, operation) && certain(entry) < begin
      )
      if (operation.isRefused) why = "that was refused"
      else if (later !== undefined) why = `that write ${later.operation.id} had replaced before`
      // Zeroes may come from another write of zeroes.
      else if (replaced < begin && value !== WRITTEN_NOTHING) why = "that a read had found replaced before"
      else return undefined
    }
    return `gives write ${value}, ${why}\n  ${this.history(cell).join("\n  ")}`
  }

  /** Notes what a read says of the order in which writes took effect. */
  #saw(cell: number, value: number, begin: number, end: number): void {
    const entries = this.#cells[cell] ?? []
    const givers = entries.filter((entry) => gives(entry, value))
    for (const entry of entries) {
      if (!givers.includes(entry) && entry.seen < begin) entry.replaced = Math.min(entry.replaced, end)
    }
    const [only] = givers
    if (givers.length === 1 && only !== undefined) only.seen = Math.min(only.seen, end)
  }
}

const gives = ({ operation }: Entry, value: number): boolean =>
  value === WRITTEN_NOTHING ? operation.kind !== "write" : operation.kind === "write" && operation.id === value

const certain = ({ operation, seen }: Entry): number => Math.min(operation.certain, seen)

/** Whether one write began when another could take no effect any more. */
const isAfter = (later: Operation, earlier: Operation): boolean =>
  later.begin > (later.via === "store" ? Math.min(earlier.end, earlier.letGo) : earlier.end)

/** Marks bytes that are to be written from a cell on. */
export const stamp = (bytes: Uint8Array, firstCell: number, id: number): void => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  for (let i = 0; i < bytes.length / 4; i++) {
    view.setUint32(4 * i, word(id, firstCell + Math.floor(i / CELL_WORDS), i % CELL_WORDS))
  }
}

/** The number of the write that a cell's bytes come from; 0 for zeroes. */
export const valueOf = (bytes: Uint8Array, at: number, cell: number): number => {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, CELL_BYTES)
  const id = view.getUint32(0)
  for (let i = 0; i < CELL_WORDS; i++) {
    if (view.getUint32(4 * i) !== (id === WRITTEN_NOTHING ? 0 : word(id, cell, i))) return NOT_A_VALUE
  }
  return id
}

const word = (id: number, cell: number, at: number): number =>
  at === 0 ? id : at === 1 ? cell : Math.imul(id, 0x9e3779b1) + Math.imul(cell, 0x85ebca6b) + at >>> 0

const describe = (bytes: Uint8Array, at: number): string => {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, CELL_BYTES)
  return `write ${view.getUint32(0)} to cell ${view.getUint32(4)}, or noise`
}
