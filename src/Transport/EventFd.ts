/**
 * Event counters (`man 2 eventfd`) that belong to a Scope.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"

/** Creates an event counter, non-blocking, that is closed with the Scope. */
export const open = (
  operation: string
): Effect.Effect<number, Errno.EMFILE | Errno.ENFILE | Errno.EIO, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: Libc.createEventFd,
      catch: (error) =>
        Errno.fromNumber(error instanceof SyscallError ? error.errno : 0, ["EMFILE", "ENFILE"], {
          operation,
          detail: "an event counter cannot be had",
          syscall: "eventfd"
        })
    }),
    (fd) => Effect.sync(() => Libc.close(fd))
  )
