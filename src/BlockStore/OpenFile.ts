/**
 * An open file whose descriptor outlives every call on it.
 *
 * A call on the thread pool cannot be withdrawn, and the number of a closed descriptor goes to the next file that is
 * opened: a call that is late would then read or write that file. So calls are counted, closing waits for the last of
 * them, and a call that comes after closing began fails with ESHUTDOWN. Interruption waits for the call, too, since the
 * kernel still has the caller's buffers.
 *
 * Calls are counted by turns, too: whoever waits until the file has settled begins a new one, and waits for the calls of
 * those before. It is not held up by calls that come meanwhile.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { close } from "node:fs"
import * as Errno from "../Errno.ts"

/** Calls that began between two that waited for the file to settle. */
interface Turn {
  calls: number
  onIdle: (() => void) | undefined
}

/** A descriptor, and the calls that are using it. */
export class OpenFile {
  readonly #fd: number
  #calls = 0
  #turn: Turn = { calls: 0, onIdle: undefined }
  #closing = false
  #onIdle: (() => void) | undefined

  constructor(fd: number) {
    this.#fd = fd
  }

  /** Runs one or more system calls in a row, until `start` tells how they ended. */
  call<A, E>(
    operation: string,
    start: (fd: number, done: (exit: Exit.Exit<A, E>) => void) => void
  ): Effect.Effect<A, E | Errno.ESHUTDOWN> {
    return Effect.uninterruptible(Effect.callback<A, E | Errno.ESHUTDOWN>((resume) => {
      if (this.#closing) {
        return resume(Exit.fail(new Errno.ESHUTDOWN({ operation, detail: "the file is closed" })))
      }
      const turn = this.#turn
      turn.calls++
      this.#calls++
      start(this.#fd, (exit) => {
        turn.calls--
        this.#calls--
        if (turn.calls === 0) turn.onIdle?.()
        if (this.#calls === 0) this.#onIdle?.()
        resume(exit)
      })
    }))
  }

  /** Waits for the calls that are under way now. One at a time may wait, and is not interrupted. */
  readonly settled: Effect.Effect<void> = Effect.uninterruptible(Effect.callback((resume) => {
    const turn = this.#turn
    if (turn.calls === 0) return resume(Exit.void)
    this.#turn = { calls: 0, onIdle: undefined }
    turn.onIdle = () => resume(Exit.void)
  }))

  /** Waits for the calls that are under way, and closes the file. An error is not reported: the number is free anyway. */
  readonly close: Effect.Effect<void> = Effect.callback((resume) => {
    this.#closing = true
    const finish = () => close(this.#fd, () => resume(Exit.void))
    if (this.#calls === 0) finish()
    else this.#onIdle = finish
  })
}
