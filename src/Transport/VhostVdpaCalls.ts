/**
 * The calls to one vhost-vdpa device: an ioctl or an IOTLB message at a time, each on the thread pool.
 *
 * Any of them may take long, since the driver of the device asks hardware or another process (VDUSE) and pins memory; and
 * while one does, the kernel lets every other wait. So none is made on the event loop, and each has a limit. A call that
 * passes it cannot be taken back: the connection is lost, no further call is made, and the descriptor stays open until that
 * call has returned, since its number could stand for something else before.
 *
 * Calls that quiesce the device are made also where the connection is lost for another reason: a device that wants to be
 * reset may still access memory.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { constants } from "node:os"
import * as Errno from "../Errno.ts"
import type { KernelCalls } from "../Native/Kernel.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import * as Vhost from "../Wire/VhostIoctl.ts"
import type { ConnectionError } from "./Transport.ts"

/** The calls to a device. */
export interface VhostVdpaCalls {
  /** The device. */
  readonly fd: number
  /** Makes an ioctl and answers its errno, 0 where it went well; the kernel fills or reads `argument`. */
  readonly ioctl: (request: number, argument?: Uint8Array) => Effect.Effect<number, ConnectionError>
  /** Makes an ioctl that changes something. EIO: the kernel refused it. */
  readonly tell: (request: number, argument?: Uint8Array) => Effect.Effect<void, ConnectionError | Errno.EIO>
  /** Makes an ioctl that answers, and decodes what it answers. */
  readonly ask: <A>(
    request: number,
    decode: (argument: Uint8Array) => A
  ) => Effect.Effect<A, ConnectionError | Errno.EIO>
  /** Writes an IOTLB message and answers its errno, 0 where it went well. */
  readonly write: (message: Uint8Array) => Effect.Effect<number, ConnectionError>
  /** The same for what has to be done also where the connection is lost. */
  readonly quiescing: Pick<VhostVdpaCalls, "ioctl" | "write">
  /** Done once the connection is lost, with the reason. */
  readonly lost: Deferred.Deferred<ConnectionError>
  /** Ends the connection for a reason. */
  readonly end: (reason: ConnectionError) => void
}

/** The name of the operation in the errors of this transport. */
export const OPERATION = "vhost-vdpa"

/** Answers that mean that there is no device any more. */
const GONE: ReadonlySet<number> = new Set([constants.errno.ENODEV, constants.errno.ENXIO])

/** What an ioctl is refused with, where its errno has no meaning of its own. */
export const refusal = (request: number, errno: number): Errno.EIO =>
  Errno.fromNumber(errno, [], {
    operation: OPERATION,
    detail: `the kernel refused ${Vhost.ioctlName(request)}`,
    syscall: "ioctl",
    cause: new SyscallError("ioctl", errno)
  })

/** Opens a device, which is closed with the Scope. */
export const make = Effect.fnUntraced(function*<E>(
  kernel: KernelCalls,
  open: Effect.Effect<number, E>,
  replyTimeoutMs: number
): Effect.fn.Return<VhostVdpaCalls, E, Scope.Scope> {
  const turn = yield* Semaphore.make(1)
  const lost = yield* Deferred.make<ConnectionError>()
  let reason: ConnectionError | undefined
  /** A call has passed its limit: there are no others any more. */
  let isStuck = false
  let isUnderway = false
  let isClosed = false

  const end = (why: ConnectionError) => {
    if (reason !== undefined) return
    reason = why
    Deferred.doneUnsafe(lost, Exit.succeed(why))
  }
  const fd = yield* Effect.acquireRelease(open, (fd) =>
    Effect.sync(() => {
      end(new Errno.ENOTCONN({ operation: OPERATION, detail: "the connection was closed" }))
      isClosed = true
      if (!isUnderway) kernel.close(fd)
    }))

  /** Makes a call by `submit`; once made it is waited for, as long as the limit allows. */
  const call = (
    name: string,
    isQuiescing: boolean,
    submit: (done: (result: number, errno: number) => void) => void
  ): Effect.Effect<number, ConnectionError> =>
    turn.withPermit(Effect.uninterruptible(Effect.callback((resume) => {
      if (reason !== undefined && (isStuck || isClosed || !isQuiescing)) return resume(Exit.fail(reason))
      const lose = (error: ConnectionError) => {
        end(error)
        resume(Exit.fail(error))
      }
      const timer = setTimeout(() => {
        isStuck = true
        const detail = `${name} has not returned within ${replyTimeoutMs} ms; does whoever serves the device still run?`
        lose(new Errno.ETIMEDOUT({ operation: OPERATION, detail }))
      }, replyTimeoutMs)
      isUnderway = true
      submit((result, errno) => {
        clearTimeout(timer)
        isUnderway = false
        if (isClosed) kernel.close(fd)
        if (isStuck) return
        if (result < 0 && GONE.has(errno)) {
          const cause = new SyscallError(name, errno)
          lose(new Errno.ENODEV({ operation: OPERATION, detail: `the device is gone (${name})`, cause }))
        } else resume(Exit.succeed(result < 0 ? errno : 0))
      })
    })))

  const callsOf = (isQuiescing: boolean): Pick<VhostVdpaCalls, "ioctl" | "write"> => ({
    ioctl: (request, argument) =>
      call(Vhost.ioctlName(request), isQuiescing, (done) => kernel.ioctlPooled(fd, request, argument ?? 0, done)),
    write: (message) => call("write", isQuiescing, (done) => kernel.writePooled(fd, message, done))
  })

  const { ioctl, write } = callsOf(false)
  const succeed = (request: number, argument?: Uint8Array) =>
    Effect.flatMap(ioctl(request, argument), (errno) => errno === 0 ? Exit.void : Exit.fail(refusal(request, errno)))
  return {
    fd,
    ioctl,
    tell: succeed,
    ask: (request, decode) =>
      Effect.suspend(() => {
        const argument = Vhost.emptyArgument(request)
        return Effect.map(succeed(request, argument), () => decode(argument))
      }),
    write,
    quiescing: callsOf(true),
    lost,
    end
  }
})
