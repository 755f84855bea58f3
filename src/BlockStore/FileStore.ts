/**
 * A store in a file: a regular file, or the node of a block device.
 *
 * Reads and writes are `preadv` and `pwritev`, straight from and into the caller's buffers, on Node's thread pool by way of
 * `node:fs`: nothing waits on the event loop. The same calls through koffi need an array of `struct iovec` built by hand for
 * each, measured slower in nearly every case (4 KiB from the page cache, 32 in flight: 2 µs by `node:fs`, 30 by koffi), and
 * would have to keep the buffers alive themselves. `fallocate` and `lseek`, which `node:fs` lacks, go through koffi on the
 * same pool.
 *
 * A call may move less than was asked, or be interrupted by a signal: it is then made again for the rest. The capacity is
 * the file's size when it is opened, rounded down to a multiple of the block size; a part of a block at the end is left
 * alone until the store is resized. A file that somebody else shrinks afterwards gives EIO beyond its end.
 *
 * Whoever shrinks the store waits for the calls under way, since a write that comes after `ftruncate` would make the file
 * longer again. From then on what begins beyond the new end is refused, and an operation of several calls fails with EIO at
 * the first that lies there.
 *
 * With `direct` the page cache is left out (O_DIRECT). The kernel then wants offsets, lengths and the buffers' places in
 * memory to be multiples of the disk's block size. Buffers that are not go through an aligned one, copied, at most 1 MiB at
 * a time; those that are (memory regions, at page boundaries) are used as they are.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { constants, fdatasync, fstat, ftruncate, open, readv, type Stats, unlink, writev } from "node:fs"
import { constants as system } from "node:os"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import { gather, scatter, section } from "./Buffers.ts"
import { type CapacityNews, makeNews } from "./CapacityChanges.ts"
import {
  type BlockStore,
  checkGeometry,
  checkOperation,
  lengthOf,
  type Operation,
  type StoreError,
  storeErrors,
  unlimited
} from "./Interface.ts"
import { OpenFile } from "./OpenFile.ts"

/**
 * A store in a file, which also knows where its holes are.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileStore extends BlockStore {
  /**
   * Finds the first run of blocks at or after `offset` (a multiple of the block size below the capacity) that may hold data;
   * what lies before it reads as zeroes. None where nothing but a hole follows. Where the system does not know, all is data.
   */
  readonly nextData: (
    offset: number
  ) => Effect.Effect<Option.Option<{ readonly offset: number; readonly length: number }>, StoreError>
  /**
   * Makes the file exactly this long, in bytes, and tells the subscribers of `capacityChanges`. What is added reads as
   * zeroes, and is a hole; what lies beyond the new end is cut off once the system calls under way have ended, and an
   * operation that needs another call there fails with EIO. What the file had beyond its capacity (a part of a block, or
   * what somebody else added) is cut off, too. Where resizing fails, the capacity stays.
   *
   * Fails with EINVAL for a capacity that is not a multiple of the block size, with EBADF where the store is read-only, and
   * with ENOTSUP for a block device, which keeps its size. Their `capacityChanges` ends at once; otherwise it ends when the
   * file is closed.
   */
  readonly resize: (capacity: number) => Effect.Effect<void, ResizeError>
}

const truncateErrors = ["EINVAL", "EPERM", "EFBIG", "ENOSPC"] as const satisfies ReadonlyArray<Errno.Tag>

/**
 * What resizing a file may fail with: a capacity that breaks a rule (EINVAL) or is more than a file may have (EFBIG); a store
 * that is read-only (EBADF), a block device (ENOTSUP) or closed (ESHUTDOWN); a file that may not be cut (EPERM); a full disk
 * or quota (ENOSPC); and EIO for an errno outside this set.
 *
 * @category errors
 * @since 0.1.0
 */
export type ResizeError =
  | Errno.Of<typeof truncateErrors[number]>
  | Errno.EBADF
  | Errno.ENOTSUP
  | Errno.ESHUTDOWN
  | Errno.EIO

/**
 * How a file is opened.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileOptions {
  readonly path: string
  /** Default false. */
  readonly readOnly?: boolean
  /** Leave out the page cache (O_DIRECT). Default false. */
  readonly direct?: boolean
  /**
   * A power of two from 512 up, in bytes. Default 512, and 4096 with `direct`, which every disk takes; a direct file whose
   * disk has larger blocks answers EINVAL.
   */
  readonly blockSize?: number
  /** Make the file where there is none; needs `size`. Default false. */
  readonly create?: boolean
  /**
   * Make a regular file this long, in bytes: what it lacks becomes a hole, what it has beyond is cut off. A block device has
   * to be at least this long, and keeps its size. Default: as it is.
   */
  readonly size?: number
}

/**
 * The errnos of {@link FileError}, for `Errno.fromNumber`.
 *
 * @category errors
 * @since 0.1.0
 */
export const fileErrors = [
  "EINVAL",
  "ENOENT",
  "EACCES",
  "EPERM",
  "EISDIR",
  "ENOTDIR",
  "EROFS",
  "EBUSY",
  "ENAMETOOLONG",
  "ELOOP",
  "EMFILE",
  "ENFILE",
  "ENOMEM",
  "ENOSPC",
  "EFBIG",
  "ENXIO",
  "ENODEV"
] as const satisfies ReadonlyArray<Errno.Tag>

/**
 * What opening a file may fail with: options that break a rule, or a file that is no store (EINVAL, EISDIR); whatever the
 * system has against it; and EIO for an errno outside this set.
 *
 * @category errors
 * @since 0.1.0
 */
export type FileError = Errno.Of<typeof fileErrors[number]> | Errno.EIO

const CREATED_MODE = 0o666
/** Large enough for the disk to run at its full rate, and a bound on the memory of a request. */
const PIECE_BYTES = 1 << 20
const { EDQUOT, EEXIST, EINTR, EINVAL, EIO, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP } = system.errno

/**
 * Opens a regular file or the node of a block device as a store, until the Scope closes.
 *
 * `discard` punches a hole, and fails with ENOTSUP where the file system cannot. `writeZeroes` punches one too, or with
 * `noUnmap` zeroes the range and keeps its room; where the file system cannot, zeroes are written, unless `noFallback` is
 * asked: then it fails with ENOTSUP. `flush` and `fua` are `fdatasync`. A full disk, or a full quota, is ENOSPC.
 *
 * @example
 * ```ts
 * import { BlockStore } from "effect-blkio"
 * import { Effect } from "effect"
 * import { rmSync } from "node:fs"
 *
 * const path = `disk-${process.pid}.img`
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const disk = yield* BlockStore.file({ path, create: true, size: 1 << 20 })
 *   yield* disk.write(0, [new Uint8Array(512).fill(1)], { fua: true })
 *   return disk.capacity
 * }))
 * console.log(await Effect.runPromise(program)) // => 1048576
 * rmSync(path)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const file = (options: FileOptions): Effect.Effect<FileStore, FileError, Scope.Scope> => {
  const direct = options.direct ?? false
  const blockSize = options.blockSize ?? (direct ? 4096 : 512)
  const wrong = checkOptions(options, blockSize)
  if (wrong !== undefined) return Effect.fail(wrong)
  return Effect.gen(function*() {
    const news = yield* Effect.acquireRelease(makeNews, ({ end }) => end)
    const { file, isDevice, size } = yield* Effect.acquireRelease(acquire(options), ({ file }) => file.close)
    return make(file, news, {
      id: `file:${options.path}`,
      capacity: size - size % blockSize,
      blockSize,
      readOnly: options.readOnly ?? false,
      direct,
      isDevice
    })
  })
}

const checkOptions = (options: FileOptions, blockSize: number): Errno.EINVAL | undefined => {
  const refuse = (detail: string) => new Errno.EINVAL({ operation: "open", path: options.path, detail })
  const wrong = checkGeometry("open", { blockSize, capacity: options.size ?? 0 })
  if (wrong !== undefined) return refuse(wrong.detail)
  if (options.create === true && options.size === undefined) return refuse("create needs a size")
  if (options.readOnly === true && (options.create === true || options.size !== undefined)) {
    return refuse("readOnly rules out create and size")
  }
  return options.path.includes("\0") ? refuse("the path must not hold a zero byte") : undefined
}

type Failure = NodeJS.ErrnoException | null

/** Runs a call of `node:fs`; its error has the errno, negative. */
const run = <A>(start: (done: (error: Failure, value: A) => void) => void): Effect.Effect<A, NodeJS.ErrnoException> =>
  Effect.callback((resume) => {
    start((error, value) => resume(error === null ? Exit.succeed(value) : Exit.fail(error)))
  })

const errnoOf = (error: NodeJS.ErrnoException): number => Math.abs(error.errno ?? EIO)

/** Opens the file and learns or sets its size. Whatever fails on the way leaves nothing open, and no file behind. */
const acquire = Effect.fnUntraced(function*(options: FileOptions) {
  const { path } = options
  const failed = (error: NodeJS.ErrnoException) =>
    Errno.fromNumber(errnoOf(error), fileErrors, {
      operation: "open",
      path,
      detail: "the system refused",
      ...error.syscall === undefined ? {} : { syscall: error.syscall }
    })
  // Opening a pipe would wait for its other end; the flag means nothing to the files that pass for a store.
  const flags = (options.readOnly === true ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK
    | (options.direct === true ? constants.O_DIRECT : 0)
  const opened = (more: number) => run<number>((done) => open(path, flags | more, CREATED_MODE, done))
  const { created, fd } = yield* (options.create === true
    ? opened(constants.O_CREAT | constants.O_EXCL).pipe(
      Effect.map((fd) => ({ fd, created: true })),
      Effect.catchIf(
        (error) => errnoOf(error) === EEXIST,
        () => Effect.map(opened(0), (fd) => ({ fd, created: false }))
      )
    )
    : Effect.map(opened(0), (fd) => ({ fd, created: false }))).pipe(Effect.mapError(failed))
  const file = new OpenFile(fd)
  const prepared = yield* prepare(fd, options).pipe(
    Effect.mapError((error) => error instanceof Errno.EINVAL || error instanceof Errno.EISDIR ? error : failed(error)),
    Effect.onError(() =>
      Effect.andThen(
        file.close,
        created ? Effect.ignore(run<void>((done) => unlink(path, (error) => done(error)))) : Effect.void
      )
    )
  )
  return { file, ...prepared }
})

/** Answers with the size in bytes, and whether it is that of a device. */
const prepare = Effect.fnUntraced(function*(fd: number, { path, size }: FileOptions) {
  const refused = { operation: "open", path }
  const stats = yield* run<Stats>((done) => fstat(fd, done))
  if (stats.isDirectory()) return yield* new Errno.EISDIR({ ...refused, detail: "a store is a file, not a directory" })
  if (stats.isFile()) {
    if (size === undefined || size === stats.size) return { size: stats.size, isDevice: false }
    yield* run<void>((done) => ftruncate(fd, size, (error) => done(error)))
    return { size, isDevice: false }
  }
  if (!stats.isBlockDevice()) {
    return yield* new Errno.EINVAL({ ...refused, detail: "a store is a regular file or a block device" })
  }
  const length = yield* Effect.callback<number, NodeJS.ErrnoException>((resume) => {
    Libc.seek(fd, 0, Libc.SEEK_END, (position, errno) => {
      resume(errno === 0 ? Exit.succeed(position) : Exit.fail(Object.assign(new Error(), { errno, syscall: "lseek" })))
    })
  })
  if (size !== undefined && length < size) {
    return yield* new Errno.EINVAL({ ...refused, detail: `the device has ${length} bytes and needs ${size}` })
  }
  return { size: length, isDevice: true }
})

interface Facts {
  readonly id: string
  readonly capacity: number
  readonly blockSize: number
  readonly readOnly: boolean
  readonly direct: boolean
  readonly isDevice: boolean
}

/** A full quota is to a writer what a full disk is. */
const fullQuotaIsFullDisk = (errno: number): number => errno === EDQUOT ? ENOSPC : errno

/** Names the operation, the part of it and the call that failed. */
const failed = (operation: Operation, errno: number, syscall: string): StoreError => {
  const { name, ...range } = operation
  return Errno.fromNumber(fullQuotaIsFullDisk(errno), storeErrors, {
    operation: name,
    ...name === "flush" ? {} : range,
    detail: "the system refused",
    syscall
  })
}

const make = (file: OpenFile, news: CapacityNews, { direct, isDevice, ...facts }: Facts): FileStore => {
  const { blockSize, readOnly } = facts
  const pieceBytes = Math.max(PIECE_BYTES, blockSize)
  let capacity = facts.capacity

  const checked = (operation: Operation, effect: () => Effect.Effect<void, StoreError>) =>
    Effect.suspend((): Effect.Effect<void, StoreError> => checkOperation(self, operation) ?? effect())

  /** What is wrong with a call of an operation that was checked some calls ago, and overtaken by a shrink. */
  const overtaken = ({ name, ...range }: Operation, end: number): Errno.EIO | undefined =>
    end > capacity
      ? new Errno.EIO({ operation: name, ...range, detail: `the file ends at ${capacity}: it was shrunk` })
      : undefined

  /** Fills or empties the buffers by as many calls as it takes. */
  const move = (operation: Operation, offset: number, buffers: ReadonlyArray<Uint8Array>) =>
    file.call<void, StoreError>(operation.name, (fd, done) => {
      const reads = operation.name === "read"
      const [call, syscall] = reads ? [readv, "preadv"] as const : [writev, "pwritev"] as const
      const length = lengthOf(buffers)
      const late = overtaken(operation, offset + length)
      if (late !== undefined) return done(Exit.fail(late))
      const step = (moved: number) => {
        const rest = moved === 0 ? buffers : section(buffers, moved, length - moved)
        call(fd, rest, offset + moved, (error, count) => {
          if (error !== null) {
            if (errnoOf(error) === EINTR) step(moved)
            else done(Exit.fail(failed(operation, errnoOf(error), syscall)))
          } else if (moved + count === length) done(Exit.void)
          else if (count > 0) step(moved + count)
          else {
            const { name, ...range } = operation
            const detail = reads ? `the file ends at ${offset + moved}: it was shrunk` : "the system took nothing"
            done(Exit.fail(new Errno.EIO({ operation: name, ...range, detail, syscall })))
          }
        })
      }
      step(0)
    })

  const isAligned = (buffer: Uint8Array) =>
    buffer.length % blockSize === 0 && Libc.misalignment(buffer, blockSize) === 0

  const moveAligned = Effect.fnUntraced(function*(operation: Operation, buffers: ReadonlyArray<Uint8Array>) {
    const { length, name, offset } = operation
    const bounce = Libc.alignedMemory(Math.min(length, pieceBytes), blockSize)
    for (let at = 0; at < length; at += bounce.length) {
      const piece = bounce.subarray(0, Math.min(bounce.length, length - at))
      if (name === "write") gather(buffers, at, piece)
      yield* move(operation, offset + at, [piece])
      if (name === "read") scatter(buffers, at, piece)
    }
  })

  const transfer = (operation: Operation, buffers: ReadonlyArray<Uint8Array>) => {
    const filled = buffers.filter((buffer) => buffer.length > 0)
    return direct && !filled.every(isAligned)
      ? moveAligned(operation, filled)
      : move(operation, operation.offset, filled)
  }

  const sync = (operation: Operation) =>
    file.call<void, StoreError>(operation.name, (fd, done) => {
      fdatasync(fd, (error) =>
        done(error === null ? Exit.void : Exit.fail(failed(operation, errnoOf(error), "fdatasync"))))
    })

  const stable = (operation: Operation, effect: Effect.Effect<void, StoreError>, fua: boolean | undefined) =>
    fua === true ? Effect.andThen(effect, sync(operation)) : effect

  /** Answers whether the file system can do it at all. */
  const allocate = (operation: Operation, mode: number) =>
    file.call<boolean, StoreError>(operation.name, (fd, done) => {
      const late = overtaken(operation, operation.offset + operation.length)
      if (late !== undefined) return done(Exit.fail(late))
      const step = () =>
        Libc.fallocate(fd, mode | Libc.FALLOC_FL_KEEP_SIZE, operation.offset, operation.length, (errno) => {
          if (errno === EINTR) step()
          else if (errno === 0) done(Exit.succeed(true))
          else if (errno === EOPNOTSUPP || errno === ENOSYS) done(Exit.succeed(false))
          else done(Exit.fail(failed(operation, errno, "fallocate")))
        })
      step()
    })

  const unsupported = ({ name, ...range }: Operation) =>
    new Errno.ENOTSUP({ operation: name, ...range, detail: "the file system cannot do it", syscall: "fallocate" })

  let zeroes: Uint8Array | undefined
  const writeZeroesSlowly = Effect.fnUntraced(function*(operation: Operation) {
    zeroes ??= Libc.alignedMemory(pieceBytes, blockSize)
    for (let at = 0; at < operation.length; at += zeroes.length) {
      const piece = zeroes.subarray(0, Math.min(zeroes.length, operation.length - at))
      yield* move(operation, operation.offset + at, [piece])
    }
  })

  const zero = Effect.fnUntraced(function*(operation: Operation, noUnmap: boolean, noFallback: boolean) {
    if (!noUnmap && (yield* allocate(operation, Libc.FALLOC_FL_PUNCH_HOLE))) return
    if (yield* allocate(operation, Libc.FALLOC_FL_ZERO_RANGE)) return
    if (noFallback) return yield* unsupported(operation)
    yield* writeZeroesSlowly(operation)
  })

  /** `end`: the capacity when the search began. */
  const seek = (operation: string, from: number, end: number, whence: number) =>
    file.call<number, StoreError>(operation, (fd, done) => {
      Libc.seek(fd, from, whence, (position, errno) => {
        if (errno === 0) done(Exit.succeed(Math.min(position, end)))
        else if (errno === ENXIO) done(Exit.succeed(end))
        // Block devices do not know holes.
        else if (errno === EINVAL) done(Exit.succeed(whence === Libc.SEEK_DATA ? from : end))
        else {done(
            Exit.fail(
              Errno.fromNumber(errno, storeErrors, {
                operation,
                offset: from,
                detail: "the system refused",
                syscall: "lseek"
              })
            )
          )}
      })
    })

  const truncate = (size: number) =>
    file.call<void, ResizeError>("resize", (fd, done) => {
      const step = () =>
        ftruncate(fd, size, (error) => {
          if (error === null) return done(Exit.void)
          const errno = errnoOf(error)
          if (errno === EINTR) return step()
          done(Exit.fail(Errno.fromNumber(fullQuotaIsFullDisk(errno), truncateErrors, {
            operation: "resize",
            detail: `the system refused a size of ${size} bytes`,
            syscall: "ftruncate"
          })))
        })
      step()
    })

  const resizing = Semaphore.makeUnsafe(1)
  const resize = Effect.fnUntraced(
    function*(next: number): Effect.fn.Return<void, ResizeError> {
      const previous = capacity
      if (next < previous) {
        // First, so that nothing begins beyond the new end while the file settles.
        capacity = next
        yield* file.settled
        yield* Effect.onError(truncate(next), () => Effect.sync(() => capacity = previous))
      } else {
        // Up first, so that a file that cannot be so long stays as it was; then down and up again, so that what it had
        // beyond the capacity does not show.
        for (const size of [next, previous, next]) yield* truncate(size)
        capacity = next
      }
      if (next !== previous) yield* news.tell(next)
    },
    Effect.uninterruptible,
    (effect) => resizing.withPermit(effect)
  )

  const self: FileStore = {
    ...facts,
    get capacity() {
      return capacity
    },
    limits: unlimited,
    read: (offset, buffers) => {
      const operation: Operation = { name: "read", offset, length: lengthOf(buffers) }
      return checked(operation, () => transfer(operation, buffers))
    },
    write: (offset, buffers, options) => {
      const operation: Operation = { name: "write", offset, length: lengthOf(buffers) }
      return checked(operation, () => stable(operation, transfer(operation, buffers), options?.fua))
    },
    writeZeroes: (offset, length, options) => {
      const operation: Operation = { name: "writeZeroes", offset, length }
      return checked(
        operation,
        () => stable(operation, zero(operation, options?.noUnmap ?? false, options?.noFallback ?? false), options?.fua)
      )
    },
    discard: (offset, length) => {
      const operation: Operation = { name: "discard", offset, length }
      return checked(operation, () =>
        Effect.flatMap(
          allocate(operation, Libc.FALLOC_FL_PUNCH_HOLE),
          (done): Effect.Effect<void, StoreError> => done ? Effect.void : unsupported(operation)
        ))
    },
    flush: sync({ name: "flush", offset: 0, length: 0 }),
    resize: (next) =>
      Effect.suspend((): Effect.Effect<void, ResizeError> => {
        const operation = "resize"
        const wrong = checkGeometry(operation, { blockSize, capacity: next })
        if (wrong !== undefined) return wrong
        if (readOnly) return new Errno.EBADF({ operation, detail: "the store is read-only" })
        return isDevice ? new Errno.ENOTSUP({ operation, detail: "a block device keeps its size" }) : resize(next)
      }),
    capacityChanges: readOnly || isDevice ? Stream.empty : news.changes,
    nextData: Effect.fnUntraced(function*(offset: number) {
      const end = capacity
      if (offset % blockSize !== 0 || offset < 0 || offset >= end) {
        return yield* new Errno.EINVAL({
          operation: "nextData",
          offset,
          detail: `offset must be a multiple of the block size ${blockSize} below capacity ${end}`
        })
      }
      const data = yield* seek("nextData", offset, end, Libc.SEEK_DATA)
      if (data === end) return Option.none()
      const hole = yield* seek("nextData", data, end, Libc.SEEK_HOLE)
      const start = data - data % blockSize
      return Option.some({ offset: start, length: Math.ceil(hole / blockSize) * blockSize - start })
    })
  }
  return self
}
