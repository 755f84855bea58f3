/**
 * The system calls by which a device of the kernel is driven: vhost-vdpa's character device, VFIO's groups, containers and
 * devices.
 *
 * A service with a default, so that a test can put a simulated kernel in its place and have any call fail in any way. Calls
 * throw {@link SyscallError}.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Libc from "./Libc.ts"

/** The calls. */
export interface KernelCalls {
  /** Opens a device for reading and writing. */
  readonly open: (path: string) => number
  /** The same on the thread pool. Answers the descriptor (negative where it failed) and the errno. */
  readonly openPooled: (path: string, done: (fd: number, errno: number) => void) => void
  readonly close: (fd: number) => void
  /** The same on the thread pool, for a device whose driver resets it then. */
  readonly closePooled: (fd: number, done: () => void) => void
  /** Asks a driver for something at once; what it changes is in `argument` afterwards. Answers what it returns. */
  readonly ioctl: (fd: number, request: number, argument: Libc.IoctlArgument) => number
  /** The same on the thread pool, for what may take long. Answers what it returns (negative where it failed) and the errno. */
  readonly ioctlPooled: (
    fd: number,
    request: number,
    argument: Libc.IoctlArgument,
    done: (result: number, errno: number) => void
  ) => void
  /** Reads at a position by one call of exactly this width; answers how many bytes came. */
  readonly readAt: (fd: number, bytes: Uint8Array, position: number) => number
  /** Writes at a position by one call of exactly this width; answers how many bytes went. */
  readonly writeAt: (fd: number, bytes: Uint8Array, position: number) => number
  /** Writes on the thread pool. Answers how many bytes went (negative where it failed) and the errno. */
  readonly writePooled: (fd: number, bytes: Uint8Array, done: (count: number, errno: number) => void) => void
  readonly map: (fd: number, offset: number, length: number) => Libc.Mapping
  readonly unmap: (mapping: Libc.Mapping) => void
  /** Tells whether the device behind a descriptor is gone from the system, which its driver may not. */
  readonly isDeviceRemoved: (fd: number) => boolean
}

/** The kernel. */
export const Kernel = Context.Reference<KernelCalls>("effect-blkio/Native/Kernel", {
  defaultValue: () => ({
    open: Libc.openDevice,
    openPooled: Libc.openDevicePooled,
    close: Libc.close,
    closePooled: Libc.closePooled,
    ioctl: Libc.ioctl,
    ioctlPooled: Libc.ioctlPooled,
    readAt: Libc.readAt,
    writeAt: Libc.writeAt,
    writePooled: Libc.writePooled,
    map: Libc.map,
    unmap: Libc.unmap,
    isDeviceRemoved: Libc.isDeviceRemoved
  })
})
