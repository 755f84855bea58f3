/**
 * A client of QMP, the JSON protocol of the monitors of QEMU's programs, over a monitor's unix socket.
 *
 * One JSON object a line, both ways. The monitor greets, the client answers with `qmp_capabilities`, and from then on
 * commands are sent one at a time, each with an id of its own, and answered with `return` or `error` and that id;
 * events come in between (QEMU: docs/interop/qmp-spec). Out-of-band execution is not used.
 *
 * Whatever arrives is decoded by a Schema before it is believed: a line that is no message of the protocol, or is longer
 * than {@link lineLimit}, ends the connection with EPROTO. A connection that ended, for whatever reason, stays ended:
 * it fails the command that waits, every later one, and the event streams. An answer that comes after its command
 * timed out or was interrupted is dropped. The connection closes with the Scope it was made in.
 *
 * Commands of a storage daemon are methods with Schemas of their arguments and results; every other one is run by
 * `execute`. Those that start a job are Streams of its progress.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { EINVAL, EPROTO } from "../Errno.ts"
import type { Command, JobArgs, JobCommand } from "./Command.ts"
import { blockResize, type Calls, commands } from "./Commands.ts"
import * as Connection from "./Connection.ts"
import * as Job from "./Job.ts"
import { eventData, type KnownEvent, type KnownEventName } from "./KnownEvent.ts"
import type { CommandError, ConnectError, ConnectionError, JobError } from "./QmpError.ts"

export type { Call, Command, JobArgs, JobCommand } from "./Command.ts"
export type { Calls } from "./Commands.ts"
export { defaultTimeLimit, type Event, eventBacklog, lineLimit, type Options, socketPathLimit } from "./Connection.ts"
export { Job, type JobOptions, JobStatus } from "./Job.ts"
export type { KnownEvent, KnownEventName } from "./KnownEvent.ts"
export { BlockExport, BlockNode, DirtyBitmap, Snapshot } from "./Models.ts"
export { type CommandError, type ConnectError, type ConnectionError, JobError, QmpError } from "./QmpError.ts"
export type { Struct } from "./Struct.ts"

/**
 * A connection to a monitor, ready for commands.
 *
 * A method runs the command of its name: `blockdevAdd` is `blockdev-add`. Commands run one after another, in the order of
 * the calls.
 *
 * @category models
 * @since 0.1.0
 */
export interface Qmp extends Calls {
  /** QEMU's version, as in `7.2.22`. */
  readonly version: string
  /** Runs any command and gives what it returned, undecoded. */
  readonly execute: (command: string, args?: Schema.JsonObject) => Effect.Effect<unknown, CommandError>
  /**
   * What happens from the moment the stream is run. It ends when the connection is closed with its Scope, and fails
   * when the connection ends otherwise. A subscriber that does not keep up misses the oldest: see {@link eventBacklog}.
   */
  readonly events: Stream.Stream<Connection.Event, ConnectionError>
  /** As `events`, those of one name, decoded; it fails with EPROTO at one that is not as QEMU describes it. */
  readonly on: <Name extends KnownEventName>(name: Name) => Stream.Stream<KnownEvent<Name>, ConnectionError>
  /**
   * Gives a block node another size, in bytes.
   *
   * The daemon of QEMU 10.0 tells the client of a vhost-user-blk export, and crashes where no client ever connected;
   * that of 7.2 tells nobody and goes on serving the old size.
   */
  readonly blockResize: (nodeName: string, bytes: number) => Effect.Effect<void, CommandError>
  /**
   * Runs a job that `start` starts under this id, by `transaction` or `execute`; or, where `start` does nothing, one that
   * runs already. The methods that start a job do this themselves.
   *
   * Running the Stream starts the job. It has an element whenever the job got further, the last when the job has concluded,
   * which is then dismissed. It fails with JobError, which says why, when the job did not do what it was to do; and
   * when the connection ends. Whoever stops it before its end, by interruption or by taking no more, cancels the
   * job and waits until that is done, `timeLimit` at most.
   */
  readonly job: <E, R>(
    id: string,
    start: Effect.Effect<unknown, E, R>,
    options?: Job.JobOptions
  ) => Stream.Stream<Job.Job, E | JobError | CommandError, R>
}

/**
 * Connects to a monitor and leaves negotiation behind. The connection is the Scope's; if connecting fails, nothing of
 * it is left.
 *
 * @example
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Effect, Stream } from "effect"
 * import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
 *
 * const program = Effect.gen(function*() {
 *   // The daemon brings its client along, made with the path of its monitor.
 *   const { qmp } = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "null-co", size: 2 ** 20 } }] })
 *   yield* qmp.blockdevAdd({ "node-name": "copy", driver: "null-co", size: 2 ** 20 })
 *   yield* qmp.blockdevBackup({ device: "disk0", target: "copy", sync: "full" }).pipe(
 *     Stream.filter(({ status }) => status === "concluded"),
 *     Stream.runForEach(({ currentProgress, type }) => Effect.sync(() => {
 *       console.log(type, currentProgress) // => "backup" 1048576
 *     }))
 *   )
 *   const refused = yield* Effect.flip(qmp.blockdevDel({ nodeName: "disk0" }))
 *   console.log(refused.message) // => "blockdev-del: Node disk0 is in use (GenericError)"
 * })
 *
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (options: Connection.Options) => Effect.Effect<Qmp, ConnectError, Scope.Scope> = Effect.fnUntraced(
  function*(options) {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const connection = yield* Connection.make(options).pipe(
      Scope.provide(scope),
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
    )
    return client(connection, options)
  }
)

const client = (
  connection: Connection.Connection,
  { path, timeLimit = Connection.defaultTimeLimit }: Connection.Options
): Qmp => {
  const send = (name: string, args: unknown) =>
    Effect.try({
      try: () => JSON.stringify(args),
      catch: (cause) => new EINVAL({ operation: name, detail: "arguments that are no JSON", cause })
    }).pipe(Effect.flatMap((text) => connection.send(name, text)))

  /** Sends a command. What is wrong with its arguments is told by fields and types, never by a value: it may be a secret. */
  const sendEncoded = (name: string, schema: Schema.Codec<unknown, unknown>, args: unknown) =>
    Schema.encodeEffect(schema)(args).pipe(
      Effect.mapError((error) => new EINVAL({ operation: name, detail: error.message, cause: error })),
      Effect.flatMap((encoded) => send(name, encoded))
    )

  const decode = <Value>(name: string, schema: Schema.Codec<Value, unknown>, value: unknown) =>
    Effect.mapError(
      Schema.decodeUnknownEffect(schema)(value),
      (error) => new EPROTO({ operation: name, path, detail: error.message, cause: error })
    )

  const call = <Args, Returned>({ args: schema, name, returns }: Command<Args, Returned>, args: Args) =>
    Effect.flatMap(sendEncoded(name, schema, args), (value) => decode(name, returns, value))

  const on: Qmp["on"] = <Name extends KnownEventName>(name: Name) =>
    connection.events.pipe(
      Stream.filter(({ event }) => event === name),
      Stream.mapEffect(({ data, timestamp }) =>
        Effect.map(
          decode<KnownEvent<Name>["data"]>(name, eventData[name], data),
          (data): KnownEvent<Name> => ({ event: name, data, timestamp })
        )
      )
    )

  const job: Qmp["job"] = (id, start, options) =>
    Job.run(
      {
        timeLimit,
        queryJobs: call(commands.queryJobs, undefined),
        jobCancel: (args) => call(commands.jobCancel, args),
        jobComplete: (args) => call(commands.jobComplete, args),
        jobDismiss: (args) => call(commands.jobDismiss, args)
      },
      on("JOB_STATUS_CHANGE"),
      id,
      start,
      options
    )

  const startJob =
    ({ args: schema, name }: JobCommand<unknown>) => (args: JobArgs<unknown>, options?: Job.JobOptions) =>
      Stream.suspend(() => {
        const jobId = args.jobId ?? `job-${crypto.randomUUID()}`
        return job(jobId, sendEncoded(name, schema, { ...args, jobId, autoDismiss: false }), options)
      })

  const methodOf = (command: Command<unknown, unknown> | JobCommand<unknown>) =>
    command.startsJob
      ? startJob(command)
      : command.args === Schema.Undefined
      ? call(command, undefined)
      : (args: unknown) => call(command, args)

  return {
    // Each is as `Call` has it, which the compiler cannot follow through the table.
    ...Object.fromEntries(
      Object.entries(commands).map(([name, command]) => [name, methodOf(command)])
    ) as unknown as Calls,
    version: connection.version,
    execute: send,
    events: connection.events,
    on,
    job,
    blockResize: (nodeName, size) => call(blockResize, { nodeName, size })
  }
}
