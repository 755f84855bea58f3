/**
 * Every errno this library can answer with, one tagged error class each, and the one table from number to class.
 *
 * Numbers and names are Linux's (`include/uapi/asm-generic/errno-base.h` and `errno.h`, the same on x86-64, arm64 and
 * RISC-V). `_tag` is the errno's name, so `Effect.catchTag("EIO", …)` reads as it would in C. Number 95 is both
 * EOPNOTSUPP and ENOTSUP in C; here it has the one tag `ENOTSUP`.
 *
 * An operation declares a closed set of these classes. Whatever else the system may answer becomes `EIO` with the
 * original in `cause` (see {@link fromNumber}), so the declared set stays true.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Schema from "effect/Schema"
import { constants } from "node:os"

const fields = {
  /** The operation that failed, as the caller knows it: `read`, `connect`, `map`. */
  operation: Schema.String,
  /** The offending value and the rule it breaks. */
  detail: Schema.String,
  /** Where on the disk, in bytes. */
  offset: Schema.optionalKey(Schema.Number),
  /** How long the request was, in bytes. */
  length: Schema.optionalKey(Schema.Number),
  /** Index of the queue among its kind. */
  queue: Schema.optionalKey(Schema.Number),
  /** The system call that failed. */
  syscall: Schema.optionalKey(Schema.String),
  /** The file, socket or device concerned. */
  path: Schema.optionalKey(Schema.String),
  /** What lies beneath: another typed error, or an errno outside the operation's set. */
  cause: Schema.optionalKey(Schema.Defect())
}

/**
 * What an errno error is made of.
 *
 * @category models
 * @since 0.1.0
 */
export type ErrnoFields = Schema.Struct.Type<typeof fields>

/**
 * What every errno error can tell beside its fields.
 *
 * @category models
 * @since 0.1.0
 */
export interface ErrnoGetters<N extends number> {
  /** The errno's number, positive. */
  readonly errno: N
  /** True where the same call may succeed later without the caller changing anything. */
  readonly isRetryable: boolean
}

/**
 * The class of one errno: constructor, and Schema of its instances.
 *
 * @category models
 * @since 0.1.0
 */
export interface ErrnoClass<Self, Tag extends string, N extends number>
  extends Schema.Class<Self, Schema.TaggedStruct<Tag, typeof fields>, Cause.YieldableError & ErrnoGetters<N>>
{
  /** The errno's number, positive. */
  readonly errno: N
}

const retryable: ReadonlySet<string> = new Set([
  "ENOTCONN",
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "ETIME",
  "ETIMEDOUT",
  "EAGAIN",
  "EINTR"
])

const describe = (error: ErrnoFields): string =>
  error.operation
  + (error.path === undefined ? "" : ` ${error.path}`)
  + (error.offset === undefined ? "" : ` at ${error.offset}`)
  + (error.length === undefined ? "" : ` of ${error.length} bytes`)
  + (error.queue === undefined ? "" : ` on queue ${error.queue}`)
  + `: ${error.detail}`
  + (error.syscall === undefined ? "" : ` (${error.syscall})`)

const define = <Self>() =>
<const Tag extends string, const N extends number>(
  tag: Tag,
  errno: N
): ErrnoClass<Self, Tag, N> => {
  class Base extends Schema.TaggedError<Base>(tag)(tag, fields) {
    static readonly errno = errno
    get errno(): N {
      return errno
    }
    get isRetryable(): boolean {
      return retryable.has(tag)
    }
    override get message(): string {
      return describe(this)
    }
  }
  // `Self` is the subclass being declared; its instances are Base's, which the compiler cannot know here.
  return Base as unknown as ErrnoClass<Self, Tag, N>
}

/**
 * The system does not permit it.
 *
 * @category errors
 * @since 0.1.0
 */
export class EPERM extends define<EPERM>()("EPERM", 1) {}

/**
 * No such file, device, driver or property.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOENT extends define<ENOENT>()("ENOENT", 2) {}

/**
 * A signal arrived first.
 *
 * @category errors
 * @since 0.1.0
 */
export class EINTR extends define<EINTR>()("EINTR", 4) {}

/**
 * The device reported an I/O error, or the system gave an errno outside the operation's set (then in `cause`).
 *
 * @category errors
 * @since 0.1.0
 */
export class EIO extends define<EIO>()("EIO", 5) {}

/**
 * No such device or address.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENXIO extends define<ENXIO>()("ENXIO", 6) {}

/**
 * More than the kernel takes at once.
 *
 * @category errors
 * @since 0.1.0
 */
export class E2BIG extends define<E2BIG>()("E2BIG", 7) {}

/**
 * Not open for this: a write to a device started read-only, or a bad file descriptor.
 *
 * @category errors
 * @since 0.1.0
 */
export class EBADF extends define<EBADF>()("EBADF", 9) {}

/**
 * Not now.
 *
 * @category errors
 * @since 0.1.0
 */
export class EAGAIN extends define<EAGAIN>()("EAGAIN", 11) {}

/**
 * Out of memory, or over the limit on locked memory.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOMEM extends define<ENOMEM>()("ENOMEM", 12) {}

/**
 * Not allowed by file permissions, or a property that can only be read.
 *
 * @category errors
 * @since 0.1.0
 */
export class EACCES extends define<EACCES>()("EACCES", 13) {}

/**
 * A buffer that does not lie in a memory region mapped for the device.
 *
 * @category errors
 * @since 0.1.0
 */
export class EFAULT extends define<EFAULT>()("EFAULT", 14) {}

/**
 * In use, or too late in the device's lifecycle.
 *
 * @category errors
 * @since 0.1.0
 */
export class EBUSY extends define<EBUSY>()("EBUSY", 16) {}

/**
 * Exists already, or overlaps what is mapped.
 *
 * @category errors
 * @since 0.1.0
 */
export class EEXIST extends define<EEXIST>()("EEXIST", 17) {}

/**
 * No such device, or too early in the device's lifecycle.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENODEV extends define<ENODEV>()("ENODEV", 19) {}

/**
 * A part of the path is not a directory.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOTDIR extends define<ENOTDIR>()("ENOTDIR", 20) {}

/**
 * The path is a directory.
 *
 * @category errors
 * @since 0.1.0
 */
export class EISDIR extends define<EISDIR>()("EISDIR", 21) {}

/**
 * A value breaks a rule; `detail` says which.
 *
 * @category errors
 * @since 0.1.0
 */
export class EINVAL extends define<EINVAL>()("EINVAL", 22) {}

/**
 * The system is out of open files.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENFILE extends define<ENFILE>()("ENFILE", 23) {}

/**
 * The process is out of file descriptors.
 *
 * @category errors
 * @since 0.1.0
 */
export class EMFILE extends define<EMFILE>()("EMFILE", 24) {}

/**
 * A property of another type.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOTTY extends define<ENOTTY>()("ENOTTY", 25) {}

/**
 * Larger than the file may grow.
 *
 * @category errors
 * @since 0.1.0
 */
export class EFBIG extends define<EFBIG>()("EFBIG", 27) {}

/**
 * No space or no slot left.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOSPC extends define<ENOSPC>()("ENOSPC", 28) {}

/**
 * The device is read-only and was not opened so.
 *
 * @category errors
 * @since 0.1.0
 */
export class EROFS extends define<EROFS>()("EROFS", 30) {}

/**
 * The peer is gone.
 *
 * @category errors
 * @since 0.1.0
 */
export class EPIPE extends define<EPIPE>()("EPIPE", 32) {}

/**
 * The path is longer than the system takes.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENAMETOOLONG extends define<ENAMETOOLONG>()("ENAMETOOLONG", 36) {}

/**
 * Too many symbolic links.
 *
 * @category errors
 * @since 0.1.0
 */
export class ELOOP extends define<ELOOP>()("ELOOP", 40) {}

/**
 * Fewer completions than asked for came in time.
 *
 * @category errors
 * @since 0.1.0
 */
export class ETIME extends define<ETIME>()("ETIME", 62) {}

/**
 * The device or the backend broke the protocol.
 *
 * @category errors
 * @since 0.1.0
 */
export class EPROTO extends define<EPROTO>()("EPROTO", 71) {}

/**
 * A value is too large to be represented.
 *
 * @category errors
 * @since 0.1.0
 */
export class EOVERFLOW extends define<EOVERFLOW>()("EOVERFLOW", 75) {}

/**
 * Not a socket.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOTSOCK extends define<ENOTSOCK>()("ENOTSOCK", 88) {}

/**
 * A socket of another type.
 *
 * @category errors
 * @since 0.1.0
 */
export class EPROTOTYPE extends define<EPROTOTYPE>()("EPROTOTYPE", 91) {}

/**
 * The device does not support it.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOTSUP extends define<ENOTSUP>()("ENOTSUP", 95) {}

/**
 * The address is in use.
 *
 * @category errors
 * @since 0.1.0
 */
export class EADDRINUSE extends define<EADDRINUSE>()("EADDRINUSE", 98) {}

/**
 * The peer ended the connection.
 *
 * @category errors
 * @since 0.1.0
 */
export class ECONNRESET extends define<ECONNRESET>()("ECONNRESET", 104) {}

/**
 * The backend is gone.
 *
 * @category errors
 * @since 0.1.0
 */
export class ENOTCONN extends define<ENOTCONN>()("ENOTCONN", 107) {}

/**
 * The device is closed, or is closing.
 *
 * @category errors
 * @since 0.1.0
 */
export class ESHUTDOWN extends define<ESHUTDOWN>()("ESHUTDOWN", 108) {}

/**
 * No answer in time.
 *
 * @category errors
 * @since 0.1.0
 */
export class ETIMEDOUT extends define<ETIMEDOUT>()("ETIMEDOUT", 110) {}

/**
 * Nobody listens there.
 *
 * @category errors
 * @since 0.1.0
 */
export class ECONNREFUSED extends define<ECONNREFUSED>()("ECONNREFUSED", 111) {}

/**
 * The device is not the one it was.
 *
 * @category errors
 * @since 0.1.0
 */
export class ESTALE extends define<ESTALE>()("ESTALE", 116) {}

const classes = [
  EPERM,
  ENOENT,
  EINTR,
  EIO,
  ENXIO,
  E2BIG,
  EBADF,
  EAGAIN,
  ENOMEM,
  EACCES,
  EFAULT,
  EBUSY,
  EEXIST,
  ENODEV,
  ENOTDIR,
  EISDIR,
  EINVAL,
  ENFILE,
  EMFILE,
  ENOTTY,
  EFBIG,
  ENOSPC,
  EROFS,
  EPIPE,
  ENAMETOOLONG,
  ELOOP,
  ETIME,
  EPROTO,
  EOVERFLOW,
  ENOTSOCK,
  EPROTOTYPE,
  ENOTSUP,
  EADDRINUSE,
  ECONNRESET,
  ENOTCONN,
  ESHUTDOWN,
  ETIMEDOUT,
  ECONNREFUSED,
  ESTALE
] as const

/**
 * Any errno error.
 *
 * @category models
 * @since 0.1.0
 */
export type Any = InstanceType<typeof classes[number]>

/**
 * The name of an errno.
 *
 * @category models
 * @since 0.1.0
 */
export type Tag = Any["_tag"]

/**
 * The error that belongs to a tag.
 *
 * @category models
 * @since 0.1.0
 */
export type Of<T extends Tag> = Extract<Any, { readonly _tag: T }>

/**
 * The table from number to class.
 *
 * @category models
 * @since 0.1.0
 */
export const byNumber: ReadonlyMap<number, typeof classes[number]> = new Map(
  classes.map((errorClass) => [errorClass.errno, errorClass])
)

/**
 * Turns an errno from the system into a typed error of a closed set: its own class where `tags` allows it, else EIO
 * with the original in `cause`.
 *
 * @example
 * ```ts
 * import { Errno } from "effect-blkio"
 *
 * const refused = Errno.fromNumber(111, ["ENOENT", "ECONNREFUSED"], { operation: "connect", detail: "no backend" })
 * console.log(refused._tag) // => "ECONNREFUSED"
 * const other = Errno.fromNumber(37, ["ENOENT", "ECONNREFUSED"], { operation: "connect", detail: "no backend" })
 * console.log(other._tag) // => "EIO"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromNumber = <const T extends Tag>(
  errno: number,
  tags: ReadonlyArray<T>,
  error: ErrnoFields
): Of<T> | EIO => {
  const errorClass = byNumber.get(errno)
  const allowed: ReadonlyArray<string> = tags
  if (errorClass !== undefined && allowed.includes(errorClass.identifier)) {
    // `allowed` holds the class's own tag, so the instance is one of T's.
    return new errorClass(error) as Of<T>
  }
  return new EIO({ ...error, cause: new Error(`${nameOf(errno)} (errno ${errno})`, { cause: error.cause }) })
}

/** The errno, positive, that an error of Node's has, or 0. @internal */
export const numberOf = (cause: unknown): number =>
  cause instanceof Error && "errno" in cause && typeof cause.errno === "number" ? -cause.errno : 0

const nameOf = (errno: number): string =>
  Object.entries(constants.errno).find(([, number]) => number === errno)?.[0] ?? "unknown errno"
