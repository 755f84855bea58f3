/**
 * One connection to a monitor: its socket, the messages on it, and who waits for which.
 *
 * Knows the protocol and no command but `qmp_capabilities`: text of arguments in, what was returned out, undecoded.
 *
 * @since 0.1.0
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PubSub from "effect/PubSub"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import * as Socket from "effect/socket/Socket"
import { ENAMETOOLONG, ENOTCONN, EPROTO, ETIMEDOUT, fromNumber, numberOf } from "../Errno.ts"
import { type ConnectError, type ConnectionError, QmpError } from "./QmpError.ts"

/**
 * How long the greeting, each answer and the end of a cancelled job may take, unless `timeLimit` says otherwise.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultTimeLimit: Duration.Duration = Duration.seconds(10)

/**
 * The longest line accepted, in characters. The longest answer known, that of `query-qmp-schema`, has a few hundred
 * thousand.
 *
 * @category constants
 * @since 0.1.0
 */
export const lineLimit: number = 16 * 1024 * 1024

/**
 * How many batches of events are kept for a subscriber that does not keep up; then the oldest are dropped.
 *
 * @category constants
 * @since 0.1.0
 */
export const eventBacklog: number = 1024

/**
 * The longest path of a unix socket, in bytes: `sockaddr_un` has room for 107 and a NUL (unix(7)).
 *
 * @category constants
 * @since 0.1.0
 */
export const socketPathLimit: number = 107

const Event = Schema.Struct({
  event: Schema.String,
  data: Schema.Record(Schema.String, Schema.Unknown).pipe(Schema.withDecodingDefaultKey(Effect.succeed({}))),
  timestamp: Schema.Struct({ seconds: Schema.Int, microseconds: Schema.Int })
})

/**
 * Something that happened in the daemon: its name, its particulars, and when.
 *
 * @category models
 * @since 0.1.0
 */
export type Event = typeof Event.Type

/**
 * Where the monitor is, and how patient to be with it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** The monitor's unix socket. */
  readonly path: string
  /** How long the greeting, each answer and the end of a cancelled job may take. Default: 10 s. */
  readonly timeLimit?: Duration.Input | undefined
}

/** A connection that has been negotiated. */
export interface Connection {
  readonly version: string
  /** `argumentsText` is JSON. */
  readonly send: (
    command: string,
    argumentsText: string | undefined
  ) => Effect.Effect<unknown, QmpError | ETIMEDOUT | ConnectionError>
  readonly events: Stream.Stream<Event, ConnectionError>
}

const Identifier = Schema.optionalKey(Schema.Unknown)

const Message = Schema.Union([
  Schema.Struct({
    QMP: Schema.Struct({
      version: Schema.Struct({
        qemu: Schema.Struct({ major: Schema.Natural, minor: Schema.Natural, micro: Schema.Natural })
      })
    })
  }),
  Schema.Struct({ return: Schema.Unknown, id: Identifier }),
  Schema.Struct({ error: Schema.Struct({ class: Schema.String, desc: Schema.String }), id: Identifier }),
  Event
])

const decodeMessage = Schema.decodeUnknownResult(Schema.fromJsonString(Message))

/** The command that waits for its answer. */
interface Pending {
  readonly id: string
  readonly command: string
  readonly reply: Deferred.Deferred<unknown, QmpError | ConnectionError>
}

/** Connects to a monitor and negotiates. */
export const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<Connection, ConnectError, Scope.Scope> {
  const { path } = options
  if (Buffer.byteLength(path) > socketPathLimit) {
    return yield* new ENAMETOOLONG({
      operation: "connect",
      path,
      detail: `a socket's path has at most ${socketPathLimit} bytes`
    })
  }
  const timeLimit = Duration.fromInputUnsafe(options.timeLimit ?? defaultTimeLimit)
  const inTime = (operation: string) =>
    Effect.timeoutOrElse({
      duration: timeLimit,
      orElse: () =>
        Effect.fail(new ETIMEDOUT({ operation, path, detail: `no answer within ${Duration.format(timeLimit)}` }))
    })

  const events = yield* PubSub.sliding<Take.Take<Event, ConnectionError>>(eventBacklog)
  const greeting = Deferred.makeUnsafe<string, ConnectionError>()
  let ended: ConnectionError | undefined
  let pending: Pending | undefined

  const end = (error: ConnectionError, lastOfEvents: Exit.Exit<void, ConnectionError> = Exit.fail(error)) => {
    if (ended !== undefined) return
    ended = error
    Deferred.doneUnsafe(greeting, Exit.fail(error))
    if (pending !== undefined) Deferred.doneUnsafe(pending.reply, Exit.fail(error))
    PubSub.publishUnsafe(events, lastOfEvents)
  }

  const receive = (message: typeof Message.Type) => {
    if ("QMP" in message) {
      const { major, micro, minor } = message.QMP.version.qemu
      Deferred.doneUnsafe(greeting, Exit.succeed(`${major}.${minor}.${micro}`))
    } else if ("event" in message) {
      PubSub.publishUnsafe(events, [message])
    } else if (pending !== undefined && "return" in message && message.id === pending.id) {
      Deferred.doneUnsafe(pending.reply, Exit.succeed(message.return))
    } else if (
      // An error without an id answers a command that QEMU could not even parse: the one that waits.
      pending !== undefined && "error" in message && (message.id === pending.id || message.id === undefined)
    ) {
      const { command, reply } = pending
      Deferred.doneUnsafe(reply, Exit.fail(new QmpError({ command, ...message.error })))
    }
  }

  let rest = ""
  /** Takes in the lines that are complete, and gives the error that ends the connection, if there is one. */
  const receiveText = (text: string): EPROTO | undefined => {
    const lines = text.split("\n")
    lines[0] = rest + lines[0]
    rest = lines.pop() ?? ""
    for (const line of lines) {
      const message = decodeMessage(line)
      if (Result.isFailure(message)) {
        return new EPROTO({ operation: "qmp", path, detail: "not a message of QMP", cause: message.failure })
      }
      receive(message.success)
    }
    return rest.length <= lineLimit
      ? undefined
      : new EPROTO({ operation: "qmp", path, detail: `a line longer than ${lineLimit} characters` })
  }

  const socket = yield* NodeSocket.makeNet({ path })
  const pull = yield* Socket.readerString(socket).pipe(
    Effect.mapError((error) => connectError(path, error)),
    inTime("connect")
  )
  const writer = yield* socket.writer
  const lost = (error: Socket.SocketError) =>
    new ENOTCONN({ operation: "qmp", path, detail: "the daemon closed the connection, or is gone", cause: error })
  yield* pull.pipe(
    Effect.mapError(lost),
    Effect.flatMap((texts) => receiveText(texts.join("")) ?? Effect.void),
    Effect.forever,
    Effect.catch((error) => Effect.sync(() => end(error))),
    Effect.forkScoped({ startImmediately: true })
  )
  yield* Effect.addFinalizer(() =>
    Effect.sync(() =>
      end(new ENOTCONN({ operation: "qmp", path, detail: "the connection closed with its scope" }), Exit.void)
    )
  )

  const oneAtATime = Semaphore.makeUnsafe(1)
  let lastId = 0
  const send: Connection["send"] = (command, argumentsText) =>
    oneAtATime.withPermit(Effect.suspend(() => {
      if (ended !== undefined) return Effect.fail(ended)
      const id = String(++lastId)
      const reply = Deferred.makeUnsafe<unknown, QmpError | ConnectionError>()
      pending = { id, command, reply }
      const args = argumentsText === undefined ? "" : `"arguments": ${argumentsText}, `
      return writer.write(`{"execute": ${JSON.stringify(command)}, ${args}"id": "${id}"}\n`).pipe(
        Effect.mapError(lost),
        Effect.andThen(Effect.never),
        Effect.raceFirst(Deferred.await(reply)),
        inTime(command),
        Effect.ensuring(Effect.sync(() => {
          pending = undefined
        }))
      )
    }))

  const version = yield* Deferred.await(greeting).pipe(inTime("qmp greeting"))
  yield* send("qmp_capabilities", undefined).pipe(
    Effect.catchTag(
      "QmpError",
      (error) => new EPROTO({ operation: "qmp", path, detail: "negotiation refused", cause: error })
    )
  )

  return {
    version,
    send,
    events: Stream.unwrap(Effect.gen(function*() {
      // Subscribed before it is asked whether the connection ended: what comes next is seen by one or the other.
      const subscription = yield* PubSub.subscribe(events)
      return ended === undefined ? Stream.flattenTake(Stream.fromSubscription(subscription)) : Stream.fail(ended)
    }))
  }
})

const connectError = (path: string, error: Socket.SocketError) =>
  fromNumber(numberOf(error.reason.cause), ["ENOENT", "ECONNREFUSED", "EACCES"], {
    operation: "connect",
    path,
    detail: "no monitor can be reached",
    cause: error
  })
