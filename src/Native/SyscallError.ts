/**
 * The error that a failed system call throws inside this library, before an Effect gives it its type.
 *
 * @since 0.1.0
 */

/**
 * A system call that answered with an errno.
 *
 * @category errors
 * @since 0.1.0
 */
export class SyscallError extends Error {
  override readonly name = "SyscallError"
  readonly syscall: string
  readonly errno: number
  constructor(syscall: string, errno: number) {
    super(`${syscall}: errno ${errno}`)
    this.syscall = syscall
    this.errno = errno
  }
}
