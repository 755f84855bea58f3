/**
 * Jobs: what takes long, and is asked for by one command, watched by others and dismissed by a last one.
 *
 * A job is run as a Stream of its progress. How it stands is asked for at intervals, and at once when an event says that
 * its status changed: an event that was missed costs an interval and loses nothing. The job stays in the daemon until it
 * is dismissed here, so how it ended cannot be missed either.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type CommandError, type ConnectionError, JobError } from "./QmpError.ts"
import { struct } from "./Struct.ts"

/**
 * Where in its life a job is (QEMU: qapi/job.json, JobStatus). `ready` is what a mirror or a commit is when it has caught
 * up with its source and keeps up with it; `concluded` is the last of all.
 *
 * @category models
 * @since 0.1.0
 */
export const JobStatus = Schema.Literals([
  "undefined",
  "created",
  "running",
  "paused",
  "ready",
  "standby",
  "waiting",
  "pending",
  "aborting",
  "concluded",
  "null"
])

/**
 * Where in its life a job is.
 *
 * @category models
 * @since 0.1.0
 */
export type JobStatus = typeof JobStatus.Type

/**
 * A job, and how far it is (QEMU: qapi/job.json, JobInfo).
 *
 * @category models
 * @since 0.1.0
 */
export const Job = struct({
  id: Schema.String,
  /** `backup`, `mirror`, `create`, `commit`, `stream`, … */
  type: Schema.String,
  status: JobStatus,
  /** How much is done. The unit is the job's own: bytes for what copies. It may take back what it said. */
  currentProgress: Schema.Finite,
  /** What `currentProgress` is when all is done, as far as the job knows by now. */
  totalProgress: Schema.Finite,
  /** What went wrong, in QEMU's words. */
  error: Schema.optionalKey(Schema.String)
})

/**
 * A job, and how far it is.
 *
 * @category models
 * @since 0.1.0
 */
export type Job = typeof Job.Type

/**
 * How a job is watched.
 *
 * @category models
 * @since 0.1.0
 */
export interface JobOptions {
  /**
   * What is done when a mirror or a commit has caught up. `complete`: it is completed, which puts its target in the place
   * of its source for whoever uses that. `wait`: nothing, and it stays ready until somebody says `jobComplete`, or
   * `blockJobCancel`, which ends it and leaves the users where they are. Default: `complete`.
   */
  readonly whenReady?: "complete" | "wait" | undefined
  /** How often the job is asked for its progress. Default: 100 ms. */
  readonly pollInterval?: Duration.Input | undefined
}

const defaultPollInterval = Duration.millis(100)

/** How often a job that was cancelled is asked whether it has ended. */
const cancelPollInterval = Duration.millis(20)

/** What watching a job takes of a monitor. */
interface Monitor {
  readonly timeLimit: Duration.Input
  readonly queryJobs: Effect.Effect<ReadonlyArray<Job>, CommandError>
  readonly jobCancel: (args: { readonly id: string }) => Effect.Effect<void, CommandError>
  readonly jobComplete: (args: { readonly id: string }) => Effect.Effect<void, CommandError>
  readonly jobDismiss: (args: { readonly id: string }) => Effect.Effect<void, CommandError>
}

/** Starts a job and watches it to its end. `statusChanges` has an element whenever the status of any job changed. */
export const run = <E, R>(
  monitor: Monitor,
  statusChanges: Stream.Stream<{ readonly data: { readonly id: string } }, ConnectionError>,
  id: string,
  start: Effect.Effect<unknown, E, R>,
  options?: JobOptions
): Stream.Stream<Job, E | JobError | CommandError, R> =>
  Stream.unwrap(Effect.gen(function*() {
    const find = Effect.map(monitor.queryJobs, (jobs) => jobs.find((job) => job.id === id))
    let mustBeCancelled = true
    let completing = false

    const look: Effect.Effect<Job, JobError | CommandError> = Effect.gen(function*() {
      const job = yield* find
      if (job === undefined) {
        mustBeCancelled = false
        return yield* new JobError({ id, type: "", desc: "somebody else dismissed it, and how it ended is not known" })
      }
      if (job.status === "concluded") {
        // Refused where somebody else has just done it.
        yield* Effect.catchTag(monitor.jobDismiss({ id }), "QmpError", () => Effect.void)
        mustBeCancelled = false
        if (job.error !== undefined) return yield* new JobError({ id, type: job.type, desc: job.error })
      }
      if (job.status === "ready" && !completing && options?.whenReady !== "wait") {
        completing = true
        yield* monitor.jobComplete({ id })
      }
      return job
    })

    // Before the job is started: whoever is interrupted while the command is on its way leaves no job behind.
    yield* Effect.addFinalizer(() => mustBeCancelled ? cancel(monitor, find, id) : Effect.void)
    yield* start.pipe(Effect.tapError((error) =>
      Effect.sync(() => {
        // After ETIMEDOUT the job may have been started all the same.
        mustBeCancelled = isTimeout(error)
      })
    ))

    return Stream.tick(options?.pollInterval ?? defaultPollInterval).pipe(
      Stream.merge(Stream.filter(statusChanges, ({ data }) => data.id === id)),
      Stream.mapEffect(() => look),
      Stream.changesWith((a, b) =>
        a.status === b.status && a.currentProgress === b.currentProgress && a.totalProgress === b.totalProgress
      ),
      Stream.takeUntil(({ status }) => status === "concluded")
    )
  }))

const isTimeout = Schema.is(Schema.Struct({ _tag: Schema.Literal("ETIMEDOUT") }))

/** Cancels a job, waits until it has ended, and dismisses it; within the monitor's time limit. */
const cancel = (monitor: Monitor, find: Effect.Effect<Job | undefined, CommandError>, id: string) =>
  // One that has ended by now cannot be cancelled, and is dismissed.
  Effect.ignore(monitor.jobCancel({ id })).pipe(
    Effect.andThen(Effect.repeat(find, {
      schedule: Schedule.spaced(cancelPollInterval),
      until: (job) => job === undefined || job.status === "concluded"
    })),
    Effect.flatMap((job) => job === undefined ? Effect.void : monitor.jobDismiss({ id })),
    // It waits for its requests that are on their way.
    Effect.timeoutOption(monitor.timeLimit),
    Effect.ignore
  )
