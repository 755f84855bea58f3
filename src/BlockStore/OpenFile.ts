/**
 * An open file whose descriptor outlives every call on it.
 *
 * A call on the thread pool cannot be withdrawn, and the number of a closed descriptor goes to the next file that is
 * opened: a call that is late would then read or write that file. So calls are counted, closing waits for the last of
 * them, and a call that comes after closing began fails with ESHUTDOWN. Interruption waits for the call, too, since the
 * kernel still has the caller's buffers.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { close } from "node:fs"
import * as Errno from "../Errno.ts"

/** A descriptor, and the calls that are using it. */
export class OpenFile {
  readonly #fd: number
  #calls = 0
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
      this.#calls++
      start(this.#fd, (exit) => {
        this.#calls--
        if (this.#calls === 0) this.#onIdle?.()
        resume(exit)
      })
    }))
  }

  /** Waits for the calls that are under way, and closes the file. An error is not reported: the number is free anyway. */
  readonly close: Effect.Effect<void> = Effect.callback((resume) => {
    this.#closing = true
    const finish = () => close(this.#fd, () => resume(Exit.void))
    if (this.#calls === 0) finish()
    else this.#onIdle = finish
  })
}
