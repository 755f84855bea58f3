/**
 * Watching descriptors inside Node's own event loop (`uv_poll`, reached through koffi).
 *
 * A watch holds no thread and costs no system call per wake-up beyond the loop's own. Rules that were learned by
 * measuring: the handle must stay referenced (garbage collection would end it silently), its callback must not throw,
 * and on Node 26 microtasks do not run after it, so whatever a watch leads to is resumed by `setImmediate`. A callback that
 * comes while its thread ends would end the process, so watches are closed when the thread exits; nothing helps against
 * `worker.terminate`, which runs nothing more there.
 *
 * @since 0.1.0
 */
import koffi from "koffi"
import { constants } from "node:os"
import * as Libc from "./Libc.ts"
import { SyscallError } from "./SyscallError.ts"

/** Which states of a descriptor wake its watcher. */
export interface Interest {
  readonly readable?: boolean
  readonly writable?: boolean
}

/** A descriptor that is being watched. */
export interface Watch {
  /** Watches for other states from now on; none at all pauses the watch. */
  readonly change: (interest: Interest) => void
  /** Ends the watch. Must come before the descriptor is closed. */
  readonly close: () => void
}

/** The open watches by descriptor, which keep their handles. */
const open = new Map<number, Watch>()
let closesOnExit = false

/**
 * Calls `onReady` whenever `fd` is in a state of interest, as long as it is (level-triggered), from inside the event
 * loop's polling phase. `onReady` must not throw.
 *
 * Throws a {@link SyscallError} for what cannot be watched: EBADF, EPERM (a file or directory), EEXIST (watched already).
 */
export const watch = (fd: number, interest: Interest, onReady: () => void): Watch => {
  checkWatchable(fd)
  const handle = koffi.node.poll(fd, { ...interest }, onReady)
  let isOpen = true
  const opened: Watch = {
    change: (next) => {
      // A start after the close would end the process.
      if (!isOpen) return
      if (next.readable === true || next.writable === true) handle.start({ ...next }, onReady)
      else handle.stop()
    },
    close: () => {
      if (!isOpen) return
      isOpen = false
      open.delete(fd)
      handle.close()
    }
  }
  open.set(fd, opened)
  if (!closesOnExit) {
    closesOnExit = true
    process.once("exit", () => open.forEach(({ close }) => close()))
  }
  return opened
}

/** koffi ends the process where libuv refuses a descriptor, so what libuv would refuse is refused here. */
const checkWatchable = (fd: number): void => {
  const errno = open.has(fd) ? constants.errno.EEXIST : Libc.checkWatchable(fd)
  if (errno !== 0) throw new SyscallError("uv_poll_init", errno)
}
