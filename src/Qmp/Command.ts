/**
 * What a command is: its name, and the Schemas of its arguments and of what it returns, said once.
 *
 * A command is declared in the table of `Commands.ts` and called as a method of the connection, whose type follows from the
 * declaration.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import type { Job, JobOptions } from "./Job.ts"
import type { CommandError, JobError } from "./QmpError.ts"

/**
 * A command that is answered when it is done.
 *
 * @category models
 * @since 0.1.0
 */
export interface Command<Args, Returned> {
  readonly name: string
  readonly args: Schema.Codec<Args, unknown>
  readonly returns: Schema.Codec<Returned, unknown>
  readonly startsJob: false
}

/**
 * A command that starts a job and is answered at once.
 *
 * @category models
 * @since 0.1.0
 */
export interface JobCommand<Args> {
  readonly name: string
  readonly args: Schema.Codec<Args, unknown>
  readonly startsJob: true
}

/** Declares a command, and what it returns unless that is nothing. */
export function command<Args>(name: string, args: Schema.Codec<Args, unknown>): Command<Args, void>
export function command<Args, Returned>(
  name: string,
  args: Schema.Codec<Args, unknown>,
  returns: Schema.Codec<Returned, unknown>
): Command<Args, Returned>
export function command<Args>(
  name: string,
  args: Schema.Codec<Args, unknown>,
  returns: Schema.Codec<unknown, unknown> = Schema.Void
): Command<Args, unknown> {
  return { name, args, returns, startsJob: false }
}

/** Declares a command that has no arguments. */
export const query = <Returned>(
  name: string,
  returns: Schema.Codec<Returned, unknown>
): Command<undefined, Returned> => ({ name, args: Schema.Undefined, returns, startsJob: false })

/** Declares a command that starts a job. */
export const jobCommand = <Args extends { readonly jobId: string }>(
  name: string,
  args: Schema.Codec<Args, unknown>
): JobCommand<Args> => ({ name, args, startsJob: true })

/**
 * The arguments of a command that starts a job: the job has an id of its own unless one is given, and is always dismissed here.
 *
 * @category models
 * @since 0.1.0
 */
export type JobArgs<Args> = Omit<Args, "jobId" | "autoDismiss"> & {
  /** Letters, digits, `-`, `.` and `_`, a letter first. Default: one that no other job has. */
  readonly jobId?: string | undefined
}

/**
 * How a command is called: an Effect, a function to one, or for a job a function to the Stream of its progress.
 *
 * @category models
 * @since 0.1.0
 */
export type Call<C> = C extends Command<infer Args, infer Returned>
  ? [Args] extends [undefined] ? Effect.Effect<Returned, CommandError>
  : (args: Args) => Effect.Effect<Returned, CommandError>
  : C extends JobCommand<infer Args>
    ? (args: JobArgs<Args>, options?: JobOptions) => Stream.Stream<Job, JobError | CommandError>
  : never
