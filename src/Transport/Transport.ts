/**
 * A transport: how a virtio device is reached.
 *
 * A transport is a recipe. It holds what is needed to reach the device and can connect again and again; each
 * {@link Connection} is one live link to it, owned by a Scope and lost when the backend goes away. The driver above knows
 * virtio-blk and nothing of sockets, character devices or PCI; a transport knows these and nothing of blocks.
 *
 * The order in which a driver uses a connection: read the configuration, `negotiate`, `map` memory for the rings, `start`,
 * then `map` and `unmap` at will, and `stop` before the Scope closes.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Deferred from "effect/Deferred"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type * as Errno from "../Errno.ts"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import type { Inflight } from "../Wire/VhostUserMessage.ts"
import type { ReconnectPolicy } from "./ReconnectPolicy.ts"

export type { ReconnectOptions, ReconnectPolicy } from "./ReconnectPolicy.ts"

/**
 * The drivers, by libblkio's names.
 *
 * @category models
 * @since 0.1.0
 */
export type DriverName = "virtio-blk-vhost-user" | "virtio-blk-vhost-vdpa" | "virtio-blk-vfio-pci"

/**
 * Why a connection is of no use any more: the backend is gone, silent, or broke the protocol; or the device was taken away
 * (ENODEV).
 *
 * @category errors
 * @since 0.1.0
 */
export type ConnectionError = Errno.ENOTCONN | Errno.ETIMEDOUT | Errno.EPROTO | Errno.ENODEV

/**
 * What connecting may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type ConnectError =
  | ConnectionError
  | Errno.EINVAL
  | Errno.ENOENT
  | Errno.ENOTDIR
  | Errno.ELOOP
  | Errno.ENAMETOOLONG
  | Errno.EACCES
  | Errno.EPERM
  | Errno.EBADF
  | Errno.EBUSY
  | Errno.EISDIR
  | Errno.ENXIO
  | Errno.ENOMEM
  | Errno.ENOTSOCK
  | Errno.EPROTOTYPE
  | Errno.ECONNREFUSED
  | Errno.EMFILE
  | Errno.ENFILE
  | Errno.ENOTSUP
  | Errno.EIO

/**
 * Where the parts of a queue's ring lie, as the device sees them.
 *
 * @category models
 * @since 0.1.0
 */
export interface QueueAddresses {
  readonly queueSize: number
  readonly descriptors: number
  readonly avail: number
  readonly used: number
  /**
   * Where a ring goes on that another backend has left: the index of the next used element. Only with channels that have a record;
   * a ring without it is new.
   */
  readonly base?: number
}

/**
 * Memory in which a backend notes the requests that it has taken and not answered, for the one that comes after it
 * (vhost-user: Inflight I/O tracking).
 *
 * @category models
 * @since 0.1.0
 */
export interface InflightRecord {
  readonly fd: number
  readonly description: Inflight
}

/**
 * What a started queue is driven by.
 *
 * @category models
 * @since 0.1.0
 */
export interface QueueChannel {
  /** Tells the device to look at the ring; answers 0 or an errno. Does not block. */
  readonly notify: () => number
  /** The event counter that notifies the device, for other threads; -1 where it is notified otherwise. */
  readonly kickFd: number
  /** The event counter the device signals, non-blocking. */
  readonly completionFd: number
  /**
   * Whether the device is a program that signals by a system call of the thread that looks for requests next, which gives the
   * driver time to have the next one ready.
   */
  readonly signalsInTurn: boolean
  /** What the backend notes its requests in; the record of all queues of a device. */
  readonly inflight?: InflightRecord | undefined
}

/**
 * One live link to a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Connection {
  /** The feature bits the device offers. */
  readonly features: bigint
  /** The most queues the transport can drive. */
  readonly maxQueues: number
  /** The most descriptors a queue may have. */
  readonly maxQueueSize: number
  /** The most memory regions that can be mapped at once, the rings' included. */
  readonly maxRegions: number
  /** What a region's address and length must be a multiple of, in bytes. */
  readonly regionAlignment: number
  /** Whether regions are handed over by file descriptor. */
  readonly needsRegionFd: boolean
  /** Whether rings that another backend has left can go on here, with its record. */
  readonly resumesRings?: boolean
  /** Reads the configuration space, as much of it as the device has. */
  readonly readConfig: Effect.Effect<Uint8Array, ConnectionError | Errno.EIO>
  /** Takes a subset of the offered features. */
  readonly negotiate: (features: bigint) => Effect.Effect<void, ConnectionError | Errno.EIO | Errno.ENOTSUP>
  /**
   * Lets the device access a region, and answers the device's address of its first byte: `address`, where an earlier
   * connection to the same device had it there.
   */
  readonly map: (
    region: MemoryRegion,
    address?: number
  ) => Effect.Effect<number, ConnectionError | Errno.EINVAL | Errno.EIO | Errno.ENOMEM | Errno.ENOSPC>
  /** Takes a region back. Does nothing where the connection is lost. */
  readonly unmap: (region: MemoryRegion) => Effect.Effect<void>
  /**
   * Hands the rings to the device and starts it; answers a channel for each, that lasts as long as the Scope: those of an
   * earlier connection to the same device, where they are given.
   */
  readonly start: (
    queues: ReadonlyArray<QueueAddresses>,
    channels?: ReadonlyArray<QueueChannel>
  ) => Effect.Effect<
    ReadonlyArray<QueueChannel>,
    ConnectionError | Errno.EIO | Errno.EMFILE | Errno.ENFILE,
    Scope.Scope
  >
  /** Has the device let go of the rings. Does nothing where it was not started or the connection is lost. */
  readonly stop: Effect.Effect<void>
  /** Emits when the device says that its configuration has changed. */
  readonly configChanged: Stream.Stream<void>
  /** Done once the connection is lost, with the reason. */
  readonly lost: Deferred.Deferred<ConnectionError>
  /**
   * Ends a connection, and waits until the backend has let go of all memory, however long it takes. Only where the recipe
   * says how to reconnect: a backend that was silent may still carry out what it was asked.
   */
  readonly released?: Effect.Effect<void>
}

/**
 * How a virtio device is reached.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recipe {
  /** The driver that uses this transport (property `driver`). */
  readonly driver: DriverName
  /** Socket, character device or sysfs directory (property `path`); empty where a descriptor stands for it. */
  readonly path: string
  /** The descriptor that stands for the path (property `fd`); -1 where there is none. */
  readonly fd: number
  /** Connects to the device. */
  readonly connect: Effect.Effect<Connection, ConnectError, Scope.Scope>
  /** What to do when the backend goes away; without it, the device is lost with its connection. */
  readonly reconnect?: ReconnectPolicy
}

/**
 * The transport as a service.
 *
 * @category services
 * @since 0.1.0
 */
export class Transport extends Context.Service<Transport, Recipe>()("effect-blkio/Transport") {}
