/**
 * A Unix socket on which an export waits for front-ends.
 *
 * A socket that somebody listens on is refused; one that a process left behind when it was killed is taken over. What is
 * left of our own is removed when the Scope closes, unless somebody else has put theirs there meanwhile.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { lstatSync, unlinkSync } from "node:fs"
import { constants } from "node:os"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { SyscallError } from "../Native/SyscallError.ts"

const listenErrors = [
  "EADDRINUSE",
  "EACCES",
  "EPERM",
  "ENOENT",
  "ENOTDIR",
  "ELOOP",
  "EROFS",
  "ENOSPC",
  "EMFILE",
  "ENFILE"
] as const satisfies ReadonlyArray<Errno.Tag>

/**
 * What making a socket may fail with: a path where somebody listens, or where there is something else (EADDRINUSE), whatever
 * the system has against it, and EIO for an errno outside this set.
 *
 * @category errors
 * @since 0.1.0
 */
export type ListenError = Errno.Of<typeof listenErrors[number]> | Errno.EIO

/** Front-ends that may wait while one is served. */
const BACKLOG = 16
/** How long to wait before a connection is tried once more that found no descriptor free. */
const RETRY_MS = 100

const { EADDRINUSE, ECONNREFUSED } = constants.errno

/** Listens at `path`; answers an Effect that waits for the next front-end and opens its connection, until its Scope closes. */
export const make = (
  path: string
): Effect.Effect<Effect.Effect<number, never, Scope.Scope>, ListenError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: () => bind(path),
      catch: (error) =>
        Errno.fromNumber(error instanceof SyscallError ? error.errno : 0, listenErrors, {
          operation: "listen",
          path,
          detail: error instanceof SyscallError && error.errno === EADDRINUSE
            ? "somebody listens there, or it is no socket"
            : "a socket cannot be made there",
          cause: error
        })
    }),
    ({ fd, inode }) =>
      Effect.sync(() => {
        // Before the descriptor goes: as long as it is open, the path is not taken for one that was left behind.
        if (inodeOf(path) === inode) unlinkSync(path)
        Libc.close(fd)
      })
  ).pipe(
    Effect.map(({ fd }) => Effect.acquireRelease(accept(fd), (connection) => Effect.sync(() => Libc.close(connection))))
  )

const bind = (path: string): { readonly fd: number; readonly inode: bigint | undefined } => {
  const fd = Libc.createUnixSocket()
  try {
    let errno = Libc.bindUnixSocket(fd, path)
    if (errno === EADDRINUSE && isLeftBehind(path)) {
      unlinkSync(path)
      errno = Libc.bindUnixSocket(fd, path)
    }
    if (errno !== 0) throw new SyscallError("bind", errno)
    Libc.listen(fd, BACKLOG)
    return { fd, inode: inodeOf(path) }
  } catch (error) {
    Libc.close(fd)
    throw error
  }
}

const isLeftBehind = (path: string): boolean => {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return false
  const probe = Libc.createUnixSocket()
  const errno = Libc.connectUnixSocket(probe, path)
  Libc.close(probe)
  return errno === ECONNREFUSED
}

const inodeOf = (path: string): bigint | undefined => {
  const stat = lstatSync(path, { bigint: true, throwIfNoEntry: false })
  return stat?.isSocket() === true ? stat.ino : undefined
}

/** Interruptible only while it waits, so that no connection is lost. */
const accept = (fd: number): Effect.Effect<number> =>
  Effect.suspend(() => {
    try {
      const connection = Libc.accept(fd)
      return connection < 0
        ? Effect.andThen(Effect.interruptible(readable(fd)), accept(fd))
        : Effect.succeed(connection)
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error
      return Effect.andThen(Effect.interruptible(Effect.sleep(RETRY_MS)), accept(fd))
    }
  })

/** Waits until somebody connects. */
const readable = (fd: number): Effect.Effect<void> =>
  Effect.callback((resume) => {
    let immediate: NodeJS.Immediate | undefined
    const watch = Poll.watch(fd, { readable: true }, () => {
      watch.change({})
      immediate = setImmediate(() => {
        watch.close()
        resume(Effect.void)
      })
    })
    return Effect.sync(() => {
      clearImmediate(immediate)
      watch.close()
    })
  })
