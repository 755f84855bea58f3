/**
 * Random requests to a disk, each checked by the oracle when it ends: reads and writes of one or several blocks, by one buffer
 * or several, some of them stable at once (FUA), zeroes, and flushes.
 */
import type { Errno, IoQueue } from "../../src/index.ts"
import { IoQueue as Queues } from "../../src/index.ts"
import { BLOCK_BYTES, BLOCK_WORDS, fill, identify } from "./Blocks.ts"
import type { Findings } from "./Findings.ts"
import type { Access, Oracle } from "./Oracle.ts"

const { FUA } = Queues.RequestFlag

/** The longest request. */
export const MAX_BLOCKS = 8
export const MAX_BYTES = MAX_BLOCKS * BLOCK_BYTES

/** Memory for one request at a time. */
export interface Slot {
  readonly bytes: Uint8Array
  /** The same memory. */
  readonly words: Uint32Array
}

/** Why a request, or a call of a store, failed. */
export interface Failure {
  readonly _tag: Errno.Tag
  readonly message: string
}

/** A request that the oracle knows of. It must be ended once. */
export interface Operation {
  readonly request: IoQueue.Request
  /** Where the request failed, with its failure. */
  readonly end: (failure: Failure | undefined) => void
}

/** An operation as a stream of requests has it: a request with its own end. */
export type Tracked = IoQueue.Request & Pick<Operation, "end">

/** What makes and ends operations. */
export interface TrafficOptions {
  readonly oracle: Oracle
  readonly findings: Findings
  readonly below: (limit: number) => number
  /** Milliseconds that the backend could have answered in. */
  readonly upMs: () => number
  /** Whether a request may fail like this. */
  readonly isExpected: (operation: string, failure: Failure) => boolean
  /** Hears when a write or flush is about to be asked for, and when it was acknowledged. */
  readonly journal?: Journal
}

/** Hears of what matters to a loss of power. */
export interface Journal {
  readonly writeBegun: (block: number, generation: number, zeroes: boolean) => void
  readonly writeEnded: (block: number, generation: number, stable: boolean) => void
  readonly flushBegun: () => () => void
}

/** How many tries it takes to say that there is nothing to do where all of a small disk is busy. */
const TRIES = 8

interface InFlight {
  readonly what: string
  readonly sinceUpMs: number
}

export class Traffic {
  readonly #options: TrafficOptions
  readonly #inFlight = new Set<InFlight>()

  constructor(options: TrafficOptions) {
    this.#options = options
  }

  /** Requests that have not ended after the backend was up for so long since. */
  hungFor(ms: number): ReadonlyArray<string> {
    const now = this.#options.upMs()
    return [...this.#inFlight].filter(({ sinceUpMs }) => now - sinceUpMs > ms)
      .map(({ sinceUpMs, what }) => `${what}: no end after ${Math.round(now - sinceUpMs)} ms`)
  }

  /** Begins a random operation on a disk of so many bytes; nothing where everything it tries is busy. */
  next(slot: Slot, capacity: number): Operation | undefined {
    const { below, oracle } = this.#options
    const kind = below(100)
    if (kind < 2) return this.flush()
    const count = below(4) > 0 ? 1 : 1 + below(MAX_BLOCKS)
    const blocks = Math.min(oracle.blocks, Math.floor(capacity / BLOCK_BYTES))
    const isRead = kind < 60
    for (let attempt = 0; attempt < TRIES; attempt++) {
      const first = below(blocks - count + 1)
      if (isRead ? oracle.mayRead(first, count) : oracle.mayWrite(first, count)) {
        return isRead ? this.read(slot, first, count) : this.#write(slot, first, count, kind < 65)
      }
    }
    return undefined
  }

  /** Begins reading blocks. */
  read(slot: Slot, first: number, count: number): Operation {
    const { findings, oracle } = this.#options
    const access = oracle.beginRead(first, count)
    const buffer = slot.bytes.subarray(0, count * BLOCK_BYTES)
    // What was there must not pass for what was read.
    slot.words.fill(0xdeadbeef, 0, count * BLOCK_WORDS)
    const offset = first * BLOCK_BYTES
    const split = this.#split(buffer)
    return this.#track(
      split === undefined ? { _tag: "read", offset, buffer } : { _tag: "readv", offset, buffers: split },
      (succeeded) => {
        const wrong = oracle.endRead(access, succeeded ? (nth) => identify(slot.words, nth * BLOCK_WORDS) : undefined)
        for (const text of wrong) findings.report("wrong", text)
        if (!succeeded) return
        findings.reads++
        findings.blocks += count - wrong.length
      }
    )
  }

  #write(slot: Slot, first: number, count: number, zeroes: boolean): Operation {
    const { below, findings, journal, oracle } = this.#options
    const stable = below(16) === 0
    const generations: Array<number> = []
    const access: Access = oracle.beginWrite(first, count, zeroes, (block, generation) => {
      if (!zeroes) fill(slot.words, (block - first) * BLOCK_WORDS, oracle.seed, block, generation)
      generations.push(generation)
      journal?.writeBegun(block, generation, zeroes)
    })
    const offset = first * BLOCK_BYTES
    const buffer = slot.bytes.subarray(0, count * BLOCK_BYTES)
    const flags = stable ? FUA : 0
    const split = this.#split(buffer)
    const request: IoQueue.Request = zeroes
      ? { _tag: "writeZeroes", offset, length: buffer.length, flags }
      : split === undefined
      ? { _tag: "write", offset, buffer, flags }
      : { _tag: "writev", offset, buffers: split, flags }
    return this.#track(request, (succeeded) => {
      oracle.endWrite(access, succeeded ? stable ? "stable" : "done" : "unknown")
      if (!succeeded) return
      findings.writes++
      for (const [nth, generation] of generations.entries()) journal?.writeEnded(first + nth, generation, stable)
    })
  }

  /** Begins a flush. */
  flush(): Operation {
    const { findings, journal, oracle } = this.#options
    const flush = oracle.beginFlush()
    const acknowledged = journal?.flushBegun()
    return this.#track({ _tag: "flush" }, (succeeded) => {
      if (!succeeded) return
      oracle.endFlush(flush)
      acknowledged?.()
      findings.flushes++
    })
  }

  /** Half of the buffers are given in two parts, at any sector. */
  #split(buffer: Uint8Array): ReadonlyArray<Uint8Array> | undefined {
    const { below } = this.#options
    if (below(2) === 0) return undefined
    const at = 512 * (1 + below(buffer.length / 512 - 1))
    return [buffer.subarray(0, at), buffer.subarray(at)]
  }

  #track(request: IoQueue.Request, end: (succeeded: boolean) => void): Operation {
    const { findings, isExpected, upMs } = this.#options
    const what = request._tag === "flush" ? "flush" : `${request._tag} at ${request.offset}`
    const inFlight = { what, sinceUpMs: upMs() }
    this.#inFlight.add(inFlight)
    return {
      request,
      end: (failure) => {
        if (!this.#inFlight.delete(inFlight)) findings.report("unexpected", `${what} has ended twice`)
        end(failure === undefined)
        if (failure === undefined) return
        if (isExpected(request._tag, failure)) findings.failed(request._tag, failure._tag)
        else findings.report("unexpected", `${what} failed with ${failure._tag}: ${failure.message}`)
      }
    }
  }
}
