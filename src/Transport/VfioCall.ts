/**
 * Asking VFIO: system calls and what they answer, as effects with typed errors.
 *
 * An errno means one thing to one call and another to the next, so each caller names those it expects and says what they mean;
 * any other becomes EIO with the original in `cause`. A structure that the kernel filled and that makes no sense is EPROTO.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import { Kernel, type KernelCalls } from "../Native/Kernel.ts"
import type { IoctlArgument } from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { WireError } from "../Wire/WireError.ts"

/** The name of the operation in errors of a device that was reached. */
export const OPERATION = "vfio-pci"

/** The name of the operation in errors of reaching it, as every transport has it. */
export const CONNECT = "connect"

/** What a call's failure means. */
export interface Meaning<T extends Errno.Tag> {
  /** What could not be done; or, by errno, why. */
  readonly detail: string | ((errno: number) => string)
  readonly path?: string
  /** {@link OPERATION} unless it says otherwise. */
  readonly operation?: string
  /** The errnos that have a meaning here. */
  readonly tags: ReadonlyArray<T>
}

/** The typed error of a call that failed. Whatever else was thrown is a defect. */
const refusal =
  <const T extends Errno.Tag>({ detail, operation = OPERATION, path, tags }: Meaning<T>) =>
  (error: unknown): Errno.Of<T> | Errno.EIO => {
    if (!(error instanceof SyscallError)) throw error
    return Errno.fromNumber(error.errno, tags, {
      operation,
      detail: typeof detail === "string" ? detail : detail(error.errno),
      syscall: error.syscall,
      ...(path === undefined ? {} : { path })
    })
  }

/** Makes a call that returns at once. */
export const call = <A, const T extends Errno.Tag>(
  run: () => A,
  meaning: Meaning<T>
): Effect.Effect<A, Errno.Of<T> | Errno.EIO> => Effect.try({ try: run, catch: refusal(meaning) })

/** Makes a call that may take long, on the thread pool; once made it is waited for. */
export const callPooled = <const T extends Errno.Tag>(
  kernel: KernelCalls,
  fd: number,
  request: number,
  argument: IoctlArgument,
  meaning: Meaning<T>
): Effect.Effect<number, Errno.Of<T> | Errno.EIO> =>
  Effect.uninterruptible(Effect.callback((resume) => {
    kernel.ioctlPooled(
      fd,
      request,
      argument,
      (result, errno) =>
        resume(result < 0 ? Exit.fail(refusal(meaning)(new SyscallError("ioctl", errno))) : Exit.succeed(result))
    )
  }))

/** Reads what the kernel or the device gave. */
export const decoded = <A>(decode: () => A): Effect.Effect<A, Errno.EPROTO> =>
  Effect.try({
    try: decode,
    catch: (error) => {
      if (!(error instanceof WireError)) throw error
      return new Errno.EPROTO({ operation: OPERATION, detail: error.message })
    }
  })

/** The errnos of opening a device file. */
export const OPEN_TAGS = ["ENOENT", "EACCES", "EPERM", "EBUSY", "ENODEV", "EMFILE", "ENFILE"] as const

/** Opens a device file, or has the kernel make a descriptor; it is closed with the Scope. */
export const acquire = <const T extends Errno.Tag>(
  open: (kernel: KernelCalls) => number,
  meaning: Meaning<T>
): Effect.Effect<number, Errno.Of<T> | Errno.EIO, Scope.Scope> =>
  Effect.flatMap(Kernel, (kernel) =>
    Effect.acquireRelease(
      call(() => open(kernel), { operation: CONNECT, ...meaning }),
      (fd) => close(kernel, fd)
    ))

/** Closes a descriptor. With that of a device the kernel resets it, which takes its time. */
export const close = (kernel: KernelCalls, fd: number): Effect.Effect<void> =>
  Effect.callback((resume) => kernel.closePooled(fd, () => resume(Exit.void)))
