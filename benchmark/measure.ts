/**
 * One run of a program in a process of its own, and what it reports.
 *
 * A run without requests, or with one that failed, measures nothing; it is an error, as is a program that fails, says what
 * cannot be read, or does not end.
 */
import { Effect, Schema, Stream } from "effect"
import { ChildProcess } from "effect/process"
import * as ExitCode from "../src/QemuStorageDaemon/ExitCode.ts"

/** How long after all its requests were to be done a program may take to end, in ms. */
const PATIENCE_MS = 30_000

const NonNegative = Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))

/** What a run has found. Latencies and CPU time are in µs; CPU time is the client's, per request. */
export const Figures = Schema.Struct({
  kiops: NonNegative,
  /** GiB per second. */
  gibps: NonNegative,
  cpuUs: NonNegative,
  meanUs: NonNegative,
  /** Percentiles, where the program tells them. */
  p50Us: Schema.optionalKey(NonNegative),
  p99Us: Schema.optionalKey(NonNegative),
  p999Us: Schema.optionalKey(NonNegative)
})

/** What a run has found. */
export type Figures = typeof Figures.Type

/** A run that measured nothing. */
export class RunFailed extends Schema.TaggedError<RunFailed>()("RunFailed", {
  /** The command as one could type it. */
  command: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.command}: ${this.reason}`
  }
}

/** A program and its arguments. */
export type Command = readonly [program: string, ...args: ReadonlyArray<string>]

/** What a program has said. */
export interface Output {
  readonly stdout: string
  readonly stderr: string
}

const failed = (command: Command, reason: string): RunFailed =>
  new RunFailed({ command: command.map((word) => /[\s"$]/u.test(word) ? `'${word}'` : word).join(" "), reason })

/** Runs a program whose measuring takes so many seconds, and gives what it has said. */
export const output = Effect.fnUntraced(
  function*(command: Command, seconds: number) {
    const [program, ...args] = command
    const child = yield* ChildProcess.make(program, args, { stdin: "ignore", forceKillAfter: "1 second" })
    const text = (stream: typeof child.stdout) => stream.pipe(Stream.decodeText(), Stream.mkString)
    const [stdout, stderr, exitCode] = yield* Effect.all(
      [text(child.stdout), text(child.stderr), ExitCode.of(child)],
      { concurrency: "unbounded" }
    ).pipe(Effect.timeoutOrElse({
      duration: seconds * 1000 + PATIENCE_MS,
      orElse: () => Effect.fail(failed(command, `has not ended ${PATIENCE_MS / 1000} s after its time`))
    }))
    if (exitCode !== 0) {
      return yield* failed(command, `exit code ${exitCode}: ${(stderr || stdout).trim() || "it says nothing"}`)
    }
    return { stdout, stderr }
  },
  (effect, command) => Effect.catchTag(effect, "PlatformError", (error) => failed(command, error.message)),
  Effect.scoped
)

/** Reads a program's report as its Schema says, in the name of the command that gave it. */
export const decode = <A>(schema: Schema.ConstraintDecoder<A>, command: Command, text: string) =>
  Schema.decodeUnknownEffect(schema)(text).pipe(
    Effect.mapError((error) => failed(command, `its report cannot be read: ${error.message}`))
  )

/** Refuses the figures of a run that has made no requests, or has seen some fail. */
export const sound = (
  figures: Figures,
  command: Command,
  { errors, requests }: { readonly errors: number; readonly requests: number }
) =>
  requests > 0 && errors === 0
    ? Effect.succeed(figures)
    : Effect.fail(failed(command, `${requests} requests, ${errors} errors`))

/** What `blkio bench --json` prints, and `benchmark/nodeFs.ts`, too. */
const OurReport = Schema.fromJsonString(
  Schema.Struct({
    aggregate: Schema.Struct({
      kiops: Schema.Finite,
      gibps: Schema.Finite,
      mean_lat_us: Schema.Finite,
      p50_lat_us: Schema.Finite,
      p99_lat_us: Schema.Finite,
      p999_lat_us: Schema.Finite,
      requests: Schema.Int,
      errors: Schema.Int,
      cpu_us_per_io: Schema.Finite
    })
  })
)

/** Reads a report in the form of `blkio bench --json`. */
export const readOurs = Effect.fnUntraced(function*(command: Command, { stdout }: Output) {
  const { aggregate } = yield* decode(OurReport, command, stdout)
  const figures: Figures = {
    kiops: aggregate.kiops,
    gibps: aggregate.gibps,
    cpuUs: aggregate.cpu_us_per_io,
    meanUs: aggregate.mean_lat_us,
    p50Us: aggregate.p50_lat_us,
    p99Us: aggregate.p99_lat_us,
    p999Us: aggregate.p999_lat_us
  }
  return yield* sound(figures, command, aggregate)
})

/** The command that measures the disk at a socket by this library. */
export const blkioBench = (socketPath: string, options: ReadonlyArray<string>): Command => [
  process.execPath,
  "src/cli/main.ts",
  "bench",
  `virtio-blk-vhost-user,path=${socketPath}`,
  ...options,
  "--json"
]

/** Runs `blkio bench` for so many seconds on the disk at a socket. */
export const measure = Effect.fnUntraced(
  function*(socketPath: string, seconds: number, options: ReadonlyArray<string>) {
    const command = blkioBench(socketPath, ["--runtime", String(seconds), ...options])
    return yield* readOurs(command, yield* output(command, seconds))
  }
)
