/**
 * The front-end's conversation with a vhost-user backend: a message, its reply, one at a time.
 *
 * Every wait has a limit. When one passes, or a waiting fiber is interrupted, the conversation is out of step for good and
 * the channel ends: a reply that came later would be taken for another message's.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import * as Message from "../Wire/VhostUserMessage.ts"
import { WireError } from "../Wire/WireError.ts"
import { MessageSocket, type Received } from "./MessageSocket.ts"
import type { ConnectionError } from "./Transport.ts"

/** A conversation with a backend. */
export interface VhostUserChannel {
  /** Sends a message that has a reply of its own, and decodes its payload. */
  readonly ask: <A>(
    request: number,
    decode: (payload: Uint8Array) => A,
    payload?: Uint8Array
  ) => Effect.Effect<A, ConnectionError>
  /** As {@link VhostUserChannel.ask}, for a reply with one descriptor, which is the caller's from then on. */
  readonly askForFile: <A>(
    request: number,
    decode: (payload: Uint8Array) => A,
    payload?: Uint8Array
  ) => Effect.Effect<{ readonly fd: number; readonly description: A }, ConnectionError>
  /**
   * Sends a message that changes something. With REPLY_ACK ({@link VhostUserChannel.acknowledge}) its acknowledgement is
   * awaited, and EIO says that the backend refused it.
   */
  readonly tell: (
    request: number,
    payload?: Uint8Array,
    fds?: ReadonlyArray<number>
  ) => Effect.Effect<void, ConnectionError | Errno.EIO>
  /** Has every later {@link VhostUserChannel.tell} ask for an acknowledgement. */
  readonly acknowledge: Effect.Effect<void>
  /** Done once the conversation has ended, with the reason. */
  readonly lost: Deferred.Deferred<ConnectionError>
  /** Ends the conversation for a reason. */
  readonly end: (reason: ConnectionError) => void
  /** Ends the conversation, and waits until the backend has closed its end, as it does when it lets go of the memory. */
  readonly released: Effect.Effect<void>
}

/** Opens the conversation over a connected socket. When the Scope closes it ends, if it has not before. */
export const make = Effect.fnUntraced(function*(
  fd: number,
  replyTimeoutMs: number
): Effect.fn.Return<VhostUserChannel, Errno.EIO, Scope.Scope> {
  const turn = yield* Semaphore.make(1)
  const lost = yield* Deferred.make<ConnectionError>()
  let reason: ConnectionError | undefined
  let hasAnswered = false
  let acknowledges = false
  let waiter: ((outcome: Exit.Exit<Received, ConnectionError>) => void) | undefined

  const settle = (outcome: Exit.Exit<Received, ConnectionError>) => {
    const waiting = waiter
    waiter = undefined
    waiting?.(outcome)
  }
  const end = (why: ConnectionError) => {
    if (reason !== undefined) return
    reason = why
    socket.close()
    // Whoever waits is resumed within these calls: it finds the channel ended, and `lost` done.
    Deferred.doneUnsafe(lost, Exit.succeed(why))
    settle(Exit.fail(why))
  }
  const broken = (detail: string) => {
    const error = new Errno.EPROTO({ operation: "vhost-user", detail })
    end(error)
    return error
  }

  const socket = yield* Effect.acquireRelease(
    Effect.try({
      try: () =>
        new MessageSocket(fd, { socket: "vhost-user", peer: "backend", maxFds: 1 }, {
          onEnd: end,
          onMessage: (message) => {
            hasAnswered = true
            if (waiter === undefined) {
              message.fds.forEach(Libc.close)
              broken(`${Message.requestName(message.header.request)} that was not asked for`)
            } else settle(Exit.succeed(message))
          }
        }),
      catch: (cause) => new Errno.EIO({ operation: "vhost-user", detail: "the socket cannot be watched", cause })
    }),
    () => Effect.sync(() => end(new Errno.ENOTCONN({ operation: "vhost-user", detail: "the connection was closed" })))
  )

  /** Sends a message. EIO where its descriptors cannot be handed over; the channel goes on. */
  const send = (request: number, message: Uint8Array, fds: ReadonlyArray<number>): Exit.Exit<void, Errno.EIO> => {
    try {
      socket.send(message, fds)
      return Exit.void
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error
      return Exit.fail(
        new Errno.EIO({
          operation: Message.requestName(request),
          detail: "a descriptor cannot be handed over",
          syscall: error.syscall,
          cause: error
        })
      )
    }
  }

  /** Sends by `sendMessage` and waits for what comes back, with no turn for an interruption in between. */
  const converse = <E>(
    request: number,
    sendMessage: () => Exit.Exit<void, E>
  ): Effect.Effect<Received, ConnectionError | E> =>
    Effect.callback((resume) => {
      if (reason !== undefined) return resume(Exit.fail(reason))
      const timer = setTimeout(() => {
        const hint = hasAnswered ? "" : "; qemu-storage-daemon serves one client at a time: is another one connected?"
        end(
          new Errno.ETIMEDOUT({
            operation: Message.requestName(request),
            detail: `no reply within ${replyTimeoutMs} ms${hint}`
          })
        )
      }, replyTimeoutMs)
      waiter = (outcome) => {
        clearTimeout(timer)
        resume(outcome)
      }
      const sent = sendMessage()
      if (Exit.isFailure(sent)) {
        clearTimeout(timer)
        waiter = undefined
        return resume(Exit.failCause(sent.cause))
      }
      return Effect.sync(() => {
        clearTimeout(timer)
        waiter = undefined
        end(new Errno.ENOTCONN({ operation: Message.requestName(request), detail: "interrupted before the reply" }))
      })
    })

  /** Sends, and decodes what comes back. Whatever descriptors are not taken in decoding are closed. */
  const exchange = <A, E>(
    request: number,
    sendMessage: () => Exit.Exit<void, E>,
    decode: (payload: Uint8Array, fds: ReadonlyArray<number>) => A,
    files: 0 | 1 = 0
  ): Effect.Effect<A, ConnectionError | E> =>
    turn.withPermit(
      converse(request, sendMessage).pipe(
        Effect.flatMap(({ fds, header, payload: reply }) => {
          const refuse = (detail: string) => {
            fds.forEach(Libc.close)
            return broken(detail)
          }
          if (fds.length !== files) {
            return refuse(`${Message.requestName(request)} was answered with ${fds.length} descriptors, not ${files}`)
          }
          if (header.request !== request || header.flags !== Message.FLAG_REPLY) {
            return refuse(
              `${Message.requestName(request)} was answered by ${
                Message.requestName(header.request)
              }, flags ${header.flags}`
            )
          }
          try {
            return Exit.succeed(decode(reply, fds))
          } catch (error) {
            if (error instanceof WireError) return refuse(`reply to ${Message.requestName(request)}: ${error.message}`)
            throw error
          }
        })
      )
    )

  const asking = (request: number, payload?: Uint8Array) => () => {
    socket.send(Message.encodeMessage(request, 0, payload), [])
    return Exit.void
  }

  const released = Effect.callback<void>((resume) => {
    end(new Errno.ENOTCONN({ operation: "vhost-user", detail: "the connection was given up" }))
    Libc.shutdownSending(fd)
    const watch = Poll.watch(fd, { readable: true }, () => {
      if (!isClosed(fd)) return
      watch.change({})
      setImmediate(() => {
        watch.close()
        resume(Exit.void)
      })
    })
    return Effect.sync(() => watch.close())
  })

  return {
    lost,
    end,
    released,
    acknowledge: Effect.sync(() => {
      acknowledges = true
    }),
    ask: (request, decode, payload) => exchange(request, asking(request, payload), decode),
    askForFile: (request, decode, payload) =>
      exchange(
        request,
        asking(request, payload),
        (reply, [fd = -1]) => ({ fd, description: decode(reply) }),
        1
      ),
    tell: (request, payload, fds = []) => {
      const message = Message.encodeMessage(request, acknowledges ? Message.FLAG_NEED_REPLY : 0, payload)
      const sendMessage = () => send(request, message, fds)
      return acknowledges
        ? exchange(request, sendMessage, Message.decodeU64).pipe(
          Effect.flatMap((result) =>
            result === 0n ? Exit.void : new Errno.EIO({
              operation: Message.requestName(request),
              detail: `the backend refused it (acknowledgement ${result})`
            })
          )
        )
        : turn.withPermit(
          Effect.suspend((): Exit.Exit<void, ConnectionError | Errno.EIO> =>
            reason === undefined ? sendMessage() : Exit.fail(reason)
          )
        )
    }
  }
})

const DISCARDED_BYTES = 4096

/** Takes some of what the peer has sent, and tells whether it has closed its end. */
const isClosed = (fd: number): boolean => {
  try {
    const received = Libc.receive(fd, DISCARDED_BYTES)
    if (received._tag === "Empty") return false
    received.fds.forEach(Libc.close)
    return received.bytes.length === 0
  } catch (error) {
    // A connection that was reset has no other end any more.
    if (error instanceof SyscallError) return true
    throw error
  }
}
