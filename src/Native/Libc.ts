/**
 * The C library's calls, bound by koffi.
 *
 * Only calls that return at once are bound, and descriptors are opened non-blocking and close-on-exec, so that nothing
 * here blocks the event loop, occupies a thread of the pool or leaks into a child process. The exceptions run on the thread
 * pool: {@link fallocate} and {@link seek}, which wait for the disk, and those named `…Pooled`, which wait for the driver of a
 * device. Calls of the control plane
 * throw {@link SyscallError}; the two of the data plane ({@link signalEventFd}, {@link drainEventFd}) answer with a
 * number, because an exception per request would cost more than the call.
 *
 * Structures are laid out by hand for 64-bit Linux (`struct msghdr`, `struct cmsghdr`, `struct sockaddr_un`: the same on
 * x86-64 and arm64), in buffers outside V8's heap, since the kernel is handed their addresses.
 *
 * @since 0.1.0
 */
import koffi from "koffi"
import { existsSync, fstatSync } from "node:fs"
import { SyscallError } from "./SyscallError.ts"

const libc = koffi.load(null)

type IntCall = (...args: ReadonlyArray<unknown>) => number
const bind = (definition: string): IntCall => libc.func(definition)

const calls = {
  accept: bind("int accept4(int fd, void *address, void *length, int flags)"),
  bind: bind("int bind(int fd, const void *address, uint32_t length)"),
  close: bind("int close(int fd)"),
  connect: bind("int connect(int fd, const void *address, uint32_t length)"),
  dup: bind("int fcntl(int fd, int command, int minimum)"),
  epollControl: bind("int epoll_ctl(int epoll, int operation, int fd, void *event)"),
  epollCreate: bind("int epoll_create1(int flags)"),
  eventfd: bind("int eventfd(unsigned int initial, int flags)"),
  fcntl: bind("int fcntl(int fd, int command, int argument)"),
  ftruncate: bind("int ftruncate(int fd, int64_t length)"),
  ioctl: bind("int ioctl(int fd, unsigned long request, void *argument)"),
  ioctlNumber: bind("int ioctl(int fd, unsigned long request, intptr_t argument)"),
  listen: bind("int listen(int fd, int backlog)"),
  memfdCreate: bind("int memfd_create(const char *name, unsigned int flags)"),
  munmap: bind("int munmap(uintptr_t address, size_t length)"),
  open: bind("int open(const char *path, int flags, int mode)"),
  pread: bind("intptr_t pread(int fd, void *buffer, size_t length, int64_t offset)"),
  pwrite: bind("intptr_t pwrite(int fd, const void *buffer, size_t length, int64_t offset)"),
  read: bind("intptr_t read(int fd, void *buffer, size_t length)"),
  recvmsg: bind("intptr_t recvmsg(int fd, void *message, int flags)"),
  sendmsg: bind("intptr_t sendmsg(int fd, const void *message, int flags)"),
  shutdown: bind("int shutdown(int fd, int how)"),
  socket: bind("int socket(int domain, int type, int protocol)"),
  socketpair: bind("int socketpair(int domain, int type, int protocol, void *pair)"),
  write: bind("intptr_t write(int fd, const void *buffer, size_t length)")
}
const mapMemory: (...args: ReadonlyArray<unknown>) => number | bigint = libc.func(
  "uintptr_t mmap(uintptr_t address, size_t length, int protection, int flags, int fd, int64_t offset)"
)

// include/uapi/linux/{memfd,fcntl,eventfd,mman}.h, include/linux/socket.h
const MFD_CLOEXEC = 1
const MFD_ALLOW_SEALING = 2
const MFD_HUGETLB = 4
const F_DUPFD_CLOEXEC = 1030
const F_ADD_SEALS = 1033
const F_GET_SEALS = 1034
const F_SEAL_SHRINK = 2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const MAP_FAILED = 2n ** 64n - 1n
const AF_UNIX = 1
const SOCK_STREAM = 1
const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_CTRUNC = 0x8
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const MSG_CMSG_CLOEXEC = 0x40000000

/** EAGAIN and EWOULDBLOCK: one number on Linux. */
export const EAGAIN = 11

const EINTR = 4
const EBADF = 9
const ECONNABORTED = 103

/** The longest path `struct sockaddr_un` holds beside its terminating zero, in bytes. */
export const MAX_SOCKET_PATH_BYTES = 107

const check = (syscall: string, result: number): number => {
  if (result < 0) throw new SyscallError(syscall, koffi.errno())
  return result
}

/** Closes a descriptor. An error is not reported: Linux has released the number in every case (`man 2 close`). */
export const close = (fd: number): void => {
  calls.close(fd)
}

/** Duplicates a descriptor; the copy is close-on-exec and owned by the caller. */
export const duplicate = (fd: number): number => {
  // koffi would cut another number down to the 32 bits of an int, which may be some other descriptor.
  if (!Number.isInteger(fd) || fd !== (fd | 0)) throw new SyscallError("fcntl", EBADF)
  return check("fcntl", calls.dup(fd, F_DUPFD_CLOEXEC, 0))
}

/**
 * Creates anonymous memory of `length` bytes as a file that cannot shrink, so that a mapping of it can never fault.
 * `name` shows in `/proc/self/maps` as `/memfd:name`. With `huge`, it is made of the system's huge pages, of which `length`
 * must be a multiple; they are taken when it is mapped.
 */
export const createMemoryFile = (name: string, length: number, huge = false): number => {
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0)
  const fd = check("memfd_create", calls.memfdCreate(name, flags))
  try {
    check("ftruncate", calls.ftruncate(fd, length))
    check("fcntl", calls.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** Tells whether a file can never become shorter, so that a mapping of it cannot fault: a memfd that is sealed. */
export const isSealedAgainstShrinking = (fd: number): boolean => {
  const seals = calls.fcntl(fd, F_GET_SEALS, 0)
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0
}

/** Memory that is mapped from a file and shared with whoever else maps it. */
export interface Mapping {
  /** All of the memory. The one view of it: a second one would outlive {@link unmap}. */
  readonly buffer: ArrayBuffer
  readonly length: number
  readonly address: number | bigint
}

/** Maps `length` bytes of `fd` from `offset` (a multiple of the page size), readable and writable, shared. */
export const map = (fd: number, offset: number, length: number): Mapping => {
  const address = mapMemory(0, length, PROT_READ_WRITE, MAP_SHARED, fd, offset)
  if (address === MAP_FAILED) throw new SyscallError("mmap", koffi.errno())
  try {
    return { buffer: koffi.view(address, length), length, address }
  } catch (error) {
    calls.munmap(address, length)
    throw error
  }
}

/**
 * Detaches the mapping's buffer, so that every view of it has length 0, and then unmaps the memory. A buffer that the
 * application has moved elsewhere (`transfer`, `postMessage`) is out of reach: its memory stays mapped, since access to it
 * would end the process.
 */
export const unmap = (mapping: Mapping): void => {
  if (mapping.buffer.detached) return
  mapping.buffer.transfer()
  check("munmap", calls.munmap(mapping.address, mapping.length))
}

/** Creates an event counter (`man 2 eventfd`), non-blocking. */
export const createEventFd = (): number => check("eventfd", calls.eventfd(0, O_NONBLOCK | O_CLOEXEC))

/** Tells whether the kernel can watch a descriptor. Answers 0 or the errno; EPERM is that of files, folders and /dev/null. */
export const checkWatchable = (fd: number): number => {
  const EPOLL_CTL_ADD = 1
  const epoll = check("epoll_create1", calls.epollCreate(O_CLOEXEC))
  // struct epoll_event is 12 bytes on x86-64 and 16 elsewhere.
  const added = calls.epollControl(epoll, EPOLL_CTL_ADD, fd, new Uint8Array(new ArrayBuffer(16)))
  const errno = added === 0 ? 0 : koffi.errno()
  close(epoll)
  return errno
}

const one = new Uint8Array(new BigUint64Array([1n]).buffer)
const counter = new Uint8Array(new ArrayBuffer(8))

/** Adds one to an event counter. Answers 0, or the errno; a counter that is full is signalled already, so EAGAIN is 0. */
export const signalEventFd = (fd: number): number => {
  if (calls.write(fd, one, 8) === 8) return 0
  const errno = koffi.errno()
  return errno === EAGAIN ? 0 : errno
}

/**
 * Resets an event counter to zero; does nothing where it is zero already. Answers whether the descriptor can be read at all,
 * which one that another process handed over may not be.
 */
export const drainEventFd = (fd: number): boolean => {
  const count = calls.read(fd, counter, 8)
  return count > 0 || (count < 0 && koffi.errno() === EAGAIN)
}

/** Opens a Unix stream socket, non-blocking and not yet connected. */
export const createUnixSocket = (): number =>
  check("socket", calls.socket(AF_UNIX, SOCK_STREAM | O_NONBLOCK | O_CLOEXEC, 0))

/**
 * Connects a Unix socket to `path`, at most {@link MAX_SOCKET_PATH_BYTES} long. Answers 0 or the errno; EAGAIN means that
 * the listener's backlog is full.
 */
export const connectUnixSocket = (fd: number, path: string): number => {
  const address = socketAddress(path)
  return calls.connect(fd, address, address.length) === 0 ? 0 : koffi.errno()
}

/** Lays out `struct sockaddr_un`: family u16 (its high byte 0), path, terminating zero. */
const socketAddress = (path: string): Uint8Array => {
  const bytes = Buffer.from(path)
  const address = new Uint8Array(new ArrayBuffer(2 + bytes.length + 1))
  address[0] = AF_UNIX
  address.set(bytes, 2)
  return address
}

/**
 * Binds a Unix socket to `path`, at most {@link MAX_SOCKET_PATH_BYTES} long, which makes a file there. Answers 0 or the
 * errno.
 */
export const bindUnixSocket = (fd: number, path: string): number => {
  const address = socketAddress(path)
  return calls.bind(fd, address, address.length) === 0 ? 0 : koffi.errno()
}

/** Has a bound socket take connections, of which `backlog` may wait for {@link accept}. */
export const listen = (fd: number, backlog: number): void => {
  check("listen", calls.listen(fd, backlog))
}

/** Takes the connection that has waited longest, non-blocking and close-on-exec; -1 where none waits any more. */
export const accept = (fd: number): number => {
  const connection = calls.accept(fd, null, null, O_NONBLOCK | O_CLOEXEC)
  if (connection >= 0) return connection
  const errno = koffi.errno()
  // A connection may be gone again before it is taken.
  if (errno === EAGAIN || errno === ECONNABORTED || errno === EINTR) return -1
  throw new SyscallError("accept4", errno)
}

/** Ends a connection for everybody who has a descriptor of it. */
export const shutdown = (fd: number): void => {
  const SHUT_RDWR = 2
  calls.shutdown(fd, SHUT_RDWR)
}

/** Tells the peer of a socket that nothing more comes; what it sends can still be received. */
export const shutdownSending = (fd: number): void => {
  const SHUT_WR = 1
  calls.shutdown(fd, SHUT_WR)
}

/** Makes a descriptor non-blocking and close-on-exec. */
export const adopt = (fd: number): void => {
  const F_SETFD = 2
  const F_GETFL = 3
  const F_SETFL = 4
  const FD_CLOEXEC = 1
  check("fcntl", calls.fcntl(fd, F_SETFD, FD_CLOEXEC))
  check("fcntl", calls.fcntl(fd, F_SETFL, check("fcntl", calls.fcntl(fd, F_GETFL, 0)) | O_NONBLOCK))
}

/** Makes a socket non-blocking and close-on-exec; throws EBADF or ENOTSOCK for what is none. */
export const adoptSocket = (fd: number): void => {
  let isSocket: boolean
  try {
    isSocket = fstatSync(fd).isSocket()
  } catch {
    throw new SyscallError("fstat", EBADF)
  }
  const ENOTSOCK = 88
  if (!isSocket) throw new SyscallError("fstat", ENOTSOCK)
  adopt(fd)
}

/** Creates a pair of connected Unix stream sockets, both non-blocking. */
export const createSocketPair = (): readonly [number, number] => {
  const pair = new Int32Array(new ArrayBuffer(8))
  check("socketpair", calls.socketpair(AF_UNIX, SOCK_STREAM | O_NONBLOCK | O_CLOEXEC, 0, pair))
  const [left = -1, right = -1] = pair
  return [left, right]
}

// struct msghdr: name 0, namelen 8, iov 16, iovlen 24, control 32, controllen 40, flags 48; 56 bytes.
// struct cmsghdr: len 0 (u64), level 8, type 12; data from 16, each message padded to 8 bytes.
const MSGHDR_BYTES = 56
const CMSGHDR_BYTES = 16
const FD_BYTES = 4
/** The kernel's own limit on the descriptors of one message (SCM_MAX_FD), so none is ever lost to a small buffer. */
const SCM_MAX_FD = 253
const LITTLE = true

const IOVEC_BYTES = 16

interface SocketMessage {
  readonly header: DataView
  readonly control: DataView
  readonly bytes: Uint8Array
}

/**
 * Lays a message out: its header, room for control messages, and room for its bytes. They share one ArrayBuffer, outside
 * V8's heap: the garbage collector cannot move it, nor free a part of it while the call holds another.
 */
const socketMessage = (controlBytes: number, length: number): SocketMessage => {
  const controlAt = MSGHDR_BYTES + IOVEC_BYTES
  const bytesAt = controlAt + controlBytes
  const memory = new ArrayBuffer(bytesAt + length)
  const address = koffi.address(new Uint8Array(memory))
  const header = new DataView(memory, 0, controlAt)
  header.setBigUint64(16, address + BigInt(MSGHDR_BYTES), LITTLE)
  header.setBigUint64(24, 1n, LITTLE)
  if (controlBytes > 0) {
    header.setBigUint64(32, address + BigInt(controlAt), LITTLE)
    header.setBigUint64(40, BigInt(controlBytes), LITTLE)
  }
  header.setBigUint64(MSGHDR_BYTES, address + BigInt(bytesAt), LITTLE)
  header.setBigUint64(MSGHDR_BYTES + 8, BigInt(length), LITTLE)
  const control = new DataView(memory, controlAt, controlBytes)
  return { header, control, bytes: new Uint8Array(memory, bytesAt, length) }
}

/**
 * Sends bytes on a Unix socket, with descriptors attached to the first of them (SCM_RIGHTS). Answers the number of bytes
 * taken, 0 where the socket is full.
 */
export const send = (fd: number, bytes: Uint8Array, fds: ReadonlyArray<number>): number => {
  const controlBytes = fds.length === 0 ? 0 : CMSGHDR_BYTES + Math.ceil(fds.length * FD_BYTES / 8) * 8
  const message = socketMessage(controlBytes, bytes.length)
  message.bytes.set(bytes)
  if (fds.length > 0) {
    message.control.setBigUint64(0, BigInt(CMSGHDR_BYTES + fds.length * FD_BYTES), LITTLE)
    message.control.setInt32(8, SOL_SOCKET, LITTLE)
    message.control.setInt32(12, SCM_RIGHTS, LITTLE)
    fds.forEach((attached, i) => message.control.setInt32(CMSGHDR_BYTES + i * FD_BYTES, attached, LITTLE))
  }
  const sent = calls.sendmsg(fd, message.header, MSG_DONTWAIT | MSG_NOSIGNAL)
  if (sent >= 0) return sent
  if (koffi.errno() === EAGAIN) return 0
  throw new SyscallError("sendmsg", koffi.errno())
}

/** What one look at a socket found. */
export type Received =
  /** `fds` are open, close-on-exec and owned by the caller. `bytes` is empty at the end of the stream. */
  | { readonly _tag: "Data"; readonly bytes: Uint8Array; readonly fds: ReadonlyArray<number> }
  | { readonly _tag: "Empty" }

/** Receives up to `limit` bytes from a Unix socket, and the descriptors that came with them. */
export const receive = (fd: number, limit: number): Received => {
  const { bytes, control, header } = socketMessage(CMSGHDR_BYTES + SCM_MAX_FD * FD_BYTES + 4, limit)
  const received = calls.recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
  if (received < 0) {
    if (koffi.errno() === EAGAIN) return { _tag: "Empty" }
    throw new SyscallError("recvmsg", koffi.errno())
  }
  const fds = attachedDescriptors(
    new DataView(control.buffer, control.byteOffset, Number(header.getBigUint64(40, LITTLE)))
  )
  if ((header.getInt32(48, LITTLE) & MSG_CTRUNC) !== 0) {
    fds.forEach(close)
    const EMFILE = 24
    throw new SyscallError("recvmsg", EMFILE)
  }
  return { _tag: "Data", bytes: bytes.slice(0, received), fds }
}

const attachedDescriptors = (control: DataView): ReadonlyArray<number> => {
  const fds: Array<number> = []
  let at = 0
  while (at + CMSGHDR_BYTES <= control.byteLength) {
    const length = Number(control.getBigUint64(at, LITTLE))
    if (length < CMSGHDR_BYTES || at + length > control.byteLength) break
    if (control.getInt32(at + 8, LITTLE) === SOL_SOCKET && control.getInt32(at + 12, LITTLE) === SCM_RIGHTS) {
      for (let data = at + CMSGHDR_BYTES; data + FD_BYTES <= at + length; data += FD_BYTES) {
        fds.push(control.getInt32(data, LITTLE))
      }
    }
    at += Math.ceil(length / 8) * 8
  }
  return fds
}

/** What happens to a range of a file (include/uapi/linux/falloc.h). */
export const FALLOC_FL_KEEP_SIZE = 0x01
/** The range becomes a hole: it takes no room and reads as zeroes. */
export const FALLOC_FL_PUNCH_HOLE = 0x02
/** The range reads as zeroes and keeps its room. */
export const FALLOC_FL_ZERO_RANGE = 0x10

/** From the end of a file (include/uapi/linux/fs.h). */
export const SEEK_END = 2
/** To the next byte that is not in a hole. */
export const SEEK_DATA = 3
/** To the next hole; the end of the file counts as one. */
export const SEEK_HOLE = 4

type PooledCall = (
  args: ReadonlyArray<number>,
  done: (result: number, errno: number) => void
) => void

/** koffi throws above 256 calls in the air (`max_async_calls`), and the pool has 4 threads unless told otherwise. */
const MAX_POOLED_CALLS = 64

let pooledCalls = 0
const waitingCalls: Array<() => void> = []

/** Binds a call that runs on the thread pool, with its own errno; calls beyond {@link MAX_POOLED_CALLS} wait in line. */
const bindPooled = (definition: string): PooledCall => {
  const call = libc.func(definition)
  return (args, done) => {
    const start = () => {
      pooledCalls++
      call.async(...args, (_: unknown, result: number) => {
        // koffi keeps the errno of the thread for as long as this callback runs, so it is read before anything else.
        const errno = result < 0 ? koffi.errno() : 0
        pooledCalls--
        waitingCalls.shift()?.()
        done(result, errno)
      })
    }
    if (pooledCalls < MAX_POOLED_CALLS) start()
    else waitingCalls.push(start)
  }
}

const pooled = {
  close: bindPooled("int close(int fd)"),
  fallocate: bindPooled("int fallocate(int fd, int mode, int64_t offset, int64_t length)"),
  ioctl: bindPooled("int ioctl(int fd, unsigned long request, uintptr_t argument)"),
  lseek: bindPooled("int64_t lseek(int fd, int64_t offset, int whence)"),
  open: bindPooled("int open(uintptr_t path, int flags, int mode)"),
  write: bindPooled("intptr_t write(int fd, uintptr_t buffer, size_t length)")
}

/** Changes the allocation of a range of a file (`man 2 fallocate`), on the thread pool. Answers 0 or the errno. */
export const fallocate = (
  fd: number,
  mode: number,
  offset: number,
  length: number,
  done: (errno: number) => void
): void => pooled.fallocate([fd, mode, offset, length], (_, errno) => done(errno))

/**
 * Moves a descriptor's own position (`man 2 lseek`), on the thread pool. Answers where it is then, in bytes, and 0 or the
 * errno. Calls that name their position, as preadv and pwritev do, take no notice.
 */
export const seek = (
  fd: number,
  offset: number,
  whence: number,
  done: (position: number, errno: number) => void
): void => pooled.lseek([fd, offset, whence], done)

/** Tells how many bytes past a multiple of `alignment` a buffer lies in memory. The buffer must lie outside V8's heap. */
export const misalignment = (buffer: Uint8Array, alignment: number): number =>
  Number(koffi.address(buffer) % BigInt(alignment))

/** Allocates zeroed memory at a multiple of `alignment` bytes, as direct I/O demands. */
export const alignedMemory = (length: number, alignment: number): Uint8Array<ArrayBuffer> => {
  const memory = new Uint8Array(new ArrayBuffer(length + alignment))
  const past = misalignment(memory, alignment)
  const start = past === 0 ? 0 : alignment - past
  return memory.subarray(start, start + length)
}

const O_RDWR = 2

/** Opens a device for reading and writing, close-on-exec. */
export const openDevice = (path: string): number => check("open", calls.open(path, O_RDWR | O_CLOEXEC, 0))

/** Does what {@link openDevice} does on the thread pool, for devices that are reset as they are opened. */
export const openDevicePooled = (path: string, done: (fd: number, errno: number) => void): void => {
  const bytes = outsideHeap(Buffer.from(`${path}\0`))
  pooled.open([Number(koffi.address(bytes)), O_RDWR | O_CLOEXEC, 0], holding(bytes, done))
}

/** Closes a device on the thread pool, since its driver may reset it then. An error is not reported, as by {@link close}. */
export const closePooled = (fd: number, done: () => void): void => pooled.close([fd], () => done())

/** What an ioctl is given: a number, or memory that it reads and writes. */
export type IoctlArgument = number | Uint8Array

/** Asks a device's driver for something (`man 2 ioctl`); answers what it returns. */
export const ioctl = (fd: number, request: number, argument: IoctlArgument): number => {
  if (typeof argument === "number") return check("ioctl", calls.ioctlNumber(fd, request, argument))
  const memory = outsideHeap(argument)
  const result = check("ioctl", calls.ioctl(fd, request, memory))
  argument.set(memory)
  return result
}

/** Does what {@link ioctl} does on the thread pool, for what may take long: a reset, the pinning of memory. */
export const ioctlPooled = (
  fd: number,
  request: number,
  argument: IoctlArgument,
  done: (result: number, errno: number) => void
): void => {
  if (typeof argument === "number") return pooled.ioctl([fd, request, argument], done)
  const memory = outsideHeap(argument)
  pooled.ioctl([fd, request, Number(koffi.address(memory))], (result, errno) => {
    argument.set(memory)
    done(result, errno)
  })
}

/** Keeps memory that a pooled call works on from being freed before it is done: what a closure names lives as long as it. */
const holding =
  (memory: Uint8Array, done: (result: number, errno: number) => void) => (result: number, errno: number): void => {
    void memory
    done(result, errno)
  }

/** A copy that the garbage collector does not move. */
const outsideHeap = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => {
  const memory = new Uint8Array(new ArrayBuffer(bytes.length))
  memory.set(bytes)
  return memory
}

/** Reads from a position of a device, at most `bytes.length` bytes by one call; answers how many. */
export const readAt = (fd: number, bytes: Uint8Array, position: number): number => {
  const memory = outsideHeap(bytes)
  const count = check("pread", calls.pread(fd, memory, memory.length, position))
  bytes.set(memory.subarray(0, count))
  return count
}

/** Writes to a position of a device by one call; answers how many bytes it took. */
export const writeAt = (fd: number, bytes: Uint8Array, position: number): number =>
  check("pwrite", calls.pwrite(fd, outsideHeap(bytes), bytes.length, position))

/** Does what {@link write} does on the thread pool, for what may take long: the pinning of memory. */
export const writePooled = (
  fd: number,
  bytes: Uint8Array,
  done: (count: number, errno: number) => void
): void => {
  const memory = outsideHeap(bytes)
  pooled.write([fd, Number(koffi.address(memory)), memory.length], holding(memory, done))
}

/**
 * Tells whether the device that a descriptor was opened from has been removed from the system. Its entry in sysfs goes when it
 * does, however the descriptor was come by. False where there is no sysfs that could tell.
 */
export const isDeviceRemoved = (fd: number): boolean => {
  const devices = "/sys/dev/char"
  try {
    const { rdev } = fstatSync(fd)
    // The C library's makedev, for numbers that the kernel gives away: 12 bits of major, 20 of minor.
    const major = rdev >>> 8 & 0xfff
    const minor = rdev & 0xff | rdev >>> 12 & 0xfff00
    return existsSync(devices) && !existsSync(`${devices}/${major}:${minor}`)
  } catch {
    return false
  }
}
