/**
 * Memory regions: shared memory for data buffers, backed by a file descriptor so that a device in another process, or
 * the kernel, can reach it.
 *
 * A region belongs to a Scope. When the Scope closes, the region's one view is detached (every `Uint8Array` over it then
 * has length 0) before the memory is unmapped, so that a stale view can read nothing and crash nothing. A region that a
 * device has mapped is unmapped there first; `BlockDevice.allocate` sees to the order.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { fstatSync } from "node:fs"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"

/**
 * A piece of shared memory. Buffers handed to a queue are subarrays of its `bytes`.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRegion {
  /** All of the region. Its `buffer` is the identity by which a queue recognises what lies in the region. */
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Length in bytes, also after release. */
  readonly length: number
  /** The region's own descriptor of the file behind it, open until the Scope closes. */
  readonly fd: number
  /** Where the region begins in that file, in bytes. */
  readonly fdOffset: number
  /** Identity of that file, `device:inode`: two regions of one file may overlap. */
  readonly file: string
  /** Where the region lies in this process, for transports that map memory by address. */
  readonly address: number | bigint
}

/**
 * What creating a region may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type MemoryError =
  | Errno.EINVAL
  | Errno.EBADF
  | Errno.EACCES
  | Errno.ENODEV
  | Errno.ENOMEM
  | Errno.EMFILE
  | Errno.ENFILE
  | Errno.EIO

/**
 * The page size that file offsets of regions must keep to, in bytes: the smallest of every platform Node runs on, and a
 * divisor of the larger ones, where the kernel's own check applies.
 *
 * @category constants
 * @since 0.1.0
 */
export const PAGE_BYTES = 4096

const Length = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 2 ** 33 }))
const Offset = Schema.Int.check(
  Schema.isBetween({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER - 2 ** 33 }),
  Schema.isMultipleOf(PAGE_BYTES)
)
const isLength = Schema.is(Length)
const isOffset = Schema.is(Offset)

/**
 * How a region is allocated.
 *
 * @category models
 * @since 0.1.0
 */
export interface AllocateOptions {
  /**
   * Take huge pages, of the system's default size: the length must be a multiple of it (2 MiB on x86-64), and there must be
   * as many free (`/proc/sys/vm/nr_hugepages`), or it is ENOMEM. A device then finds its way through memory with fewer
   * steps. Default false.
   */
  readonly hugePages?: boolean
}

/**
 * Allocates a region of `length` bytes (1 to 2^33) of zeroed memory: a close-on-exec memfd that is sealed against
 * shrinking, mapped shared. It shows in `/proc/self/maps` as `/memfd:effect-blkio`.
 *
 * @example
 * ```ts
 * import { MemoryRegion } from "effect-blkio"
 * import { Effect } from "effect"
 *
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const region = yield* MemoryRegion.allocate(65536)
 *   return region.bytes.length
 * }))
 * console.log(Effect.runSync(program)) // => 65536
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocate = (
  length: number,
  { hugePages = false }: AllocateOptions = {}
): Effect.Effect<MemoryRegion, MemoryError, Scope.Scope> =>
  isLength(length)
    ? acquire(
      "allocate",
      () => mapped(Libc.createMemoryFile("effect-blkio", length, hugePages), 0, length),
      hugePages
        ? `${length} bytes of huge pages: must be whole ones, and free (/proc/sys/vm/nr_hugepages)`
        : undefined
    )
    : Effect.fail(
      new Errno.EINVAL({ operation: "allocate", detail: `length ${length} must be a whole number from 1 to 2^33` })
    )

/**
 * Opens a region over memory that the application supplies: `length` bytes from `offset` (a multiple of the page size)
 * of a file that can be mapped shared and written (a memfd, a file on tmpfs or hugetlbfs). The descriptor is duplicated
 * and stays the caller's. A file that is shrunk below the region afterwards makes access to it fault (`SIGBUS`): seal it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromFd = (options: {
  readonly fd: number
  readonly offset: number
  readonly length: number
}): Effect.Effect<MemoryRegion, MemoryError, Scope.Scope> => {
  const refuse = (detail: string) => Effect.fail(new Errno.EINVAL({ operation: "open region", detail }))
  if (!isLength(options.length)) return refuse(`length ${options.length} must be a whole number from 1 to 2^33`)
  if (!isOffset(options.offset)) return refuse(`offset ${options.offset} must be a multiple of ${PAGE_BYTES}`)
  return acquire("open region", () => mapped(Libc.duplicate(options.fd), options.offset, options.length))
}

interface Owned {
  readonly region: MemoryRegion
  readonly mapping: Libc.Mapping
}

/** Maps the region; takes ownership of `fd`. */
const mapped = (fd: number, fdOffset: number, length: number): Owned => {
  try {
    const { dev, ino, size } = fstatSync(fd, { bigint: true })
    if (fdOffset + length > size) {
      throw new Errno.EINVAL({
        operation: "open region",
        detail: `offset ${fdOffset} + length ${length} must lie within the file's ${size} bytes`
      })
    }
    const mapping = Libc.map(fd, fdOffset, length)
    const bytes = new Uint8Array(mapping.buffer)
    return { region: { bytes, length, fd, fdOffset, file: `${dev}:${ino}`, address: mapping.address }, mapping }
  } catch (error) {
    Libc.close(fd)
    throw error
  }
}

const acquire = (
  operation: string,
  open: () => Owned,
  detail = "the system refused the memory"
): Effect.Effect<MemoryRegion, MemoryError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({ try: open, catch: (error) => typed(operation, detail, error) }),
    ({ mapping, region }) =>
      Effect.sync(() => {
        Libc.unmap(mapping)
        Libc.close(region.fd)
      })
  ).pipe(Effect.map(({ region }) => region))

const typed = (operation: string, detail: string, error: unknown): MemoryError => {
  if (error instanceof Errno.EINVAL) return error
  if (error instanceof SyscallError) {
    return Errno.fromNumber(
      error.errno,
      ["EINVAL", "EBADF", "EACCES", "ENODEV", "ENOMEM", "EMFILE", "ENFILE"],
      { operation, detail, syscall: error.syscall }
    )
  }
  return new Errno.EIO({ operation, detail, cause: error })
}
