/**
 * Goal: however a job ends, and whatever is missed of it, its Stream ends, says how, and leaves no job behind.
 * Method: a monitor of the tests' own with jobs in it, that go through the states a test gives them. The real ones:
 * test/integration/QmpJobs.test.ts.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope, Stream } from "effect"
import * as Qmp from "../../src/Qmp/Qmp.ts"
import { type Answer, happened, live, monitor, type Request, returns } from "./monitor.ts"

type State = readonly [status: Qmp.JobStatus, current: number, error?: string]

interface Behaviour {
  /** What each look at a job finds; the last state stays. */
  readonly states: ReadonlyArray<State>
  /** What is answered in another way. */
  readonly unless?: Answer
  /** Whether a job that is cancelled ends. */
  readonly ends?: boolean
}

/** The id of the job that a command concerns. */
const jobOf = (args: Request["arguments"] = {}) => {
  const id = args["job-id"] ?? args["id"]
  return typeof id === "string" ? id : ""
}

/** A monitor in which commands with a `job-id` start jobs. */
const jobMonitor = Effect.fnUntraced(function*({ ends = true, states, unless }: Behaviour) {
  const jobs = new Map<string, { looks: number; states: ReadonlyArray<State> }>()
  const sent: Array<string> = []
  const answer = ({ arguments: args = {}, execute, id }: Request): string => {
    const target = jobOf(args)
    const job = jobs.get(target)
    if (execute === "query-jobs") {
      return returns(
        id,
        [...jobs].map(([id, job]) => {
          const state = job.states[Math.min(job.looks++, job.states.length - 1)] ?? ["undefined", 0]
          const [status, current, error] = state
          return { id, type: "mirror", status, "current-progress": current, "total-progress": 9, error }
        })
      )
    }
    if (args["job-id"] !== undefined) {
      jobs.set(target, { looks: 0, states })
      return returns(id)
    }
    if (job === undefined && execute.startsWith("job-")) {
      return `${JSON.stringify({ id, error: { class: "DeviceNotActive", desc: `Job ${target} not found` } })}\n`
    }
    if (execute === "job-dismiss") jobs.delete(target)
    if (execute === "job-complete") jobs.set(target, { looks: 0, states: [["concluded", 9]] })
    if (execute === "job-cancel" && ends) {
      jobs.set(target, { looks: 0, states: [["aborting", 1], ["concluded", 1, "Operation canceled"]] })
    }
    return returns(id)
  }
  const { path } = yield* monitor((request, connection) => {
    if (request.execute !== "query-jobs") {
      sent.push(`${request.execute} ${jobOf(request.arguments)}`.trimEnd())
    }
    return unless?.(request, connection) ?? answer(request)
  })
  return { jobs, path, sent }
})

const quick = { pollInterval: 2 } as const
const mirror = { jobId: "j", device: "a", target: "b", sync: "full" } as const

describe("a job", () => {
  live("gives its progress once each, ends when it has concluded, and is dismissed", () =>
    Effect.gen(function*() {
      const { jobs, path, sent } = yield* jobMonitor({
        states: [["running", 0], ["running", 0], ["running", 4], ["running", 9], ["concluded", 9]]
      })
      const qmp = yield* Qmp.make({ path })
      const progress = yield* Stream.runCollect(qmp.blockdevMirror(mirror, quick))
      expect(progress.map(({ currentProgress, status }) => [status, currentProgress])).toStrictEqual([
        ["running", 0],
        ["running", 4],
        ["running", 9],
        ["concluded", 9]
      ])
      expect(progress[0]).toStrictEqual({
        id: "j",
        type: "mirror",
        status: "running",
        currentProgress: 0,
        totalProgress: 9
      })
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-dismiss j"])
      expect([...jobs]).toStrictEqual([])
    }))

  live("is looked at when an event tells of it, long before its interval is over", () =>
    Effect.gen(function*() {
      const changed = happened("JOB_STATUS_CHANGE", { id: "j", status: "concluded" })
      const { path } = yield* jobMonitor({
        states: [["running", 0], ["concluded", 9]],
        unless: ({ execute }, connection) => {
          // After the look that finds it running: one of another job, and its own.
          if (execute === "query-jobs") {
            setTimeout(() => connection.write(changed.replace(`"j"`, `"other"`) + changed), 20)
          }
          return undefined
        }
      })
      const qmp = yield* Qmp.make({ path })
      const progress = yield* Stream.runCollect(qmp.blockdevMirror(mirror, { pollInterval: "1 hour" }))
      expect(progress.map(({ status }) => status)).toStrictEqual(["running", "concluded"])
    }))

  live("ends, though more events tell of it than are kept for who reads them", () =>
    Effect.gen(function*() {
      const flood = happened("JOB_STATUS_CHANGE", { id: "j", status: "running" }).repeat(3 * Qmp.eventBacklog)
      const { path } = yield* jobMonitor({
        states: [["running", 0], ["running", 1], ["running", 2], ["concluded", 9]],
        unless: ({ execute }, connection) => {
          if (execute === "query-jobs") connection.write(flood)
          return undefined
        }
      })
      const qmp = yield* Qmp.make({ path })
      const progress = yield* Stream.runCollect(qmp.blockdevMirror(mirror, quick))
      expect(progress.map(({ currentProgress }) => currentProgress)).toStrictEqual([0, 1, 2, 9])
    }))

  live("has an id of its own each time it is run", () =>
    Effect.gen(function*() {
      const { path, sent } = yield* jobMonitor({ states: [["running", 0], ["concluded", 9]] })
      const qmp = yield* Qmp.make({ path })
      const twice = qmp.blockdevBackup({ device: "a", target: "b", sync: "full" }, quick)
      const [first, second] = yield* Effect.all([Stream.runCollect(twice), Stream.runCollect(twice)], {
        concurrency: "unbounded"
      })
      const ids = [...first, ...second].map(({ id }) => id)
      expect(new Set(ids).size).toBe(2)
      expect(sent.toSorted()).toStrictEqual(
        [...new Set(ids)].flatMap((id) => [`blockdev-backup ${id}`, `job-dismiss ${id}`]).toSorted()
      )
    }))

  live("that fails is a JobError with QEMU's words, and is dismissed", () =>
    Effect.gen(function*() {
      const { jobs, path, sent } = yield* jobMonitor({
        states: [["running", 0], ["aborting", 3], ["concluded", 3, "No space left on device"]]
      })
      const qmp = yield* Qmp.make({ path })
      const error = yield* Effect.flip(Stream.runDrain(qmp.blockdevMirror(mirror, quick)))
      expect(error).toMatchObject({ _tag: "JobError", id: "j", type: "mirror", desc: "No space left on device" })
      expect(error.message).toBe("mirror job j: No space left on device")
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-dismiss j"])
      expect([...jobs]).toStrictEqual([])
    }))

  live("that is refused is the QmpError of its command, and nothing is cancelled", () =>
    Effect.gen(function*() {
      const { path, sent } = yield* jobMonitor({
        states: [],
        unless: ({ execute, id }) =>
          execute === "blockdev-mirror"
            ? `${JSON.stringify({ id, error: { class: "GenericError", desc: "Job ID 'j' already in use" } })}\n`
            : undefined
      })
      const qmp = yield* Qmp.make({ path })
      expect(yield* Effect.flip(Stream.runDrain(qmp.blockdevMirror(mirror, quick)))).toMatchObject({
        _tag: "QmpError",
        command: "blockdev-mirror"
      })
      expect(sent).toStrictEqual(["blockdev-mirror j"])
    }))

  live("that somebody else dismissed is a JobError", () =>
    Effect.gen(function*() {
      const { jobs, path, sent } = yield* jobMonitor({ states: [["running", 0]] })
      const qmp = yield* Qmp.make({ path })
      const error = yield* qmp.blockdevMirror(mirror, quick).pipe(
        Stream.runForEach(() => Effect.sync(() => jobs.clear())),
        Effect.flip
      )
      expect(error).toMatchObject({ _tag: "JobError", id: "j", desc: expect.stringContaining("not known") })
      expect(sent).toStrictEqual(["blockdev-mirror j"])
    }))

  live("that is interrupted is cancelled, waited for and dismissed", () =>
    Effect.gen(function*() {
      const { jobs, path, sent } = yield* jobMonitor({ states: [["running", 1]] })
      const qmp = yield* Qmp.make({ path })
      const seen: Array<number> = []
      const running = yield* qmp.blockdevMirror(mirror, quick).pipe(
        Stream.runForEach(({ currentProgress }) => Effect.sync(() => seen.push(currentProgress))),
        Effect.forkChild({ startImmediately: true })
      )
      while (seen.length === 0) yield* Effect.sleep(1)
      yield* Fiber.interrupt(running)
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-cancel j", "job-dismiss j"])
      expect([...jobs]).toStrictEqual([])
      // So does whoever takes no more.
      yield* Stream.runDrain(Stream.take(qmp.blockdevMirror(mirror, quick), 1))
      expect(sent.slice(3)).toStrictEqual(["blockdev-mirror j", "job-cancel j", "job-dismiss j"])
    }))

  for (const stops of ["is interrupted", "is not answered"] as const) {
    live(`whose start ${stops} is not left behind`, () =>
      Effect.gen(function*() {
        let held: (() => void) | undefined
        const { jobs, path, sent } = yield* jobMonitor({
          states: [["running", 1]],
          unless: ({ execute }) => {
            if (execute !== "blockdev-mirror") return undefined
            // Started, and the answer never comes.
            jobs.set("j", { looks: 0, states: [["running", 1]] })
            held?.()
            return ""
          }
        })
        const qmp = yield* Qmp.make({ path, timeLimit: "500 millis" })
        const start = Effect.callback<void>((resume) => {
          held = () => resume(Effect.void)
        })
        const waiting = yield* Effect.forkChild(start, { startImmediately: true })
        const running = yield* Effect.forkChild(Stream.runDrain(qmp.blockdevMirror(mirror, quick)), {
          startImmediately: true
        })
        yield* Fiber.join(waiting)
        if (stops === "is interrupted") yield* Fiber.interrupt(running)
        else expect(yield* Effect.flip(Fiber.join(running))).toMatchObject({ _tag: "ETIMEDOUT" })
        expect(sent).toStrictEqual(["blockdev-mirror j", "job-cancel j", "job-dismiss j"])
        expect([...jobs]).toStrictEqual([])
      }))
  }

  live("that does not end when it is cancelled holds its caller for a bounded time", () =>
    Effect.gen(function*() {
      const { path } = yield* jobMonitor({ states: [["running", 1]], ends: false })
      const scope = yield* Scope.make()
      const qmp = yield* Qmp.make({ path, timeLimit: "500 millis" }).pipe(Scope.provide(scope))
      yield* Stream.runDrain(Stream.take(qmp.blockdevMirror(mirror, quick), 1)).pipe(Effect.timeout("30 seconds"))
      yield* Scope.close(scope, Exit.void)
    }))

  live("whose monitor falls silent is ETIMEDOUT, in bounded time", () =>
    Effect.gen(function*() {
      const { path, sent } = yield* jobMonitor({
        states: [["running", 1]],
        unless: ({ execute }) => execute === "blockdev-mirror" ? undefined : ""
      })
      const qmp = yield* Qmp.make({ path, timeLimit: "300 millis" })
      expect(yield* Effect.flip(Stream.runDrain(qmp.blockdevMirror(mirror, quick)))).toMatchObject({
        _tag: "ETIMEDOUT",
        operation: "query-jobs"
      })
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-cancel j"])
    }))

  live("that is ready is completed once", () =>
    Effect.gen(function*() {
      const { path, sent } = yield* jobMonitor({ states: [["running", 8], ["ready", 9], ["ready", 9]] })
      const qmp = yield* Qmp.make({ path })
      const progress = yield* Stream.runCollect(qmp.blockdevMirror(mirror, quick))
      expect(progress.map(({ status }) => status)).toStrictEqual(["running", "ready", "concluded"])
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-complete j", "job-dismiss j"])
    }))

  live("that is ready waits for its caller, where it is told to", () =>
    Effect.gen(function*() {
      const { path, sent } = yield* jobMonitor({ states: [["ready", 9]] })
      const qmp = yield* Qmp.make({ path })
      yield* qmp.blockdevMirror(mirror, { ...quick, whenReady: "wait" }).pipe(
        Stream.filter(({ status }) => status === "ready"),
        Stream.runForEach(({ id }) =>
          Effect.gen(function*() {
            yield* Effect.sleep(20)
            expect(sent).toStrictEqual(["blockdev-mirror j"])
            yield* qmp.jobComplete({ id })
          })
        )
      )
      expect(sent).toStrictEqual(["blockdev-mirror j", "job-complete j", "job-dismiss j"])
    }))

  live(
    "ends with the connection: ENOTCONN when that is lost, EPROTO at what is no QMP, ENOTCONN when it closes",
    () =>
      Effect.gen(function*() {
        for (const [last, tag] of [[undefined, "ENOTCONN"], ["oops\n", "EPROTO"]] as const) {
          const { path } = yield* jobMonitor({
            states: [["running", 1]],
            unless: ({ execute }, connection) => {
              if (execute !== "query-jobs") return undefined
              // Between two looks.
              setTimeout(() => last === undefined ? connection.destroy() : connection.write(last), 20)
              return undefined
            }
          })
          const qmp = yield* Qmp.make({ path })
          const progress = qmp.blockdevMirror(mirror, { pollInterval: "1 hour" })
          expect(yield* Effect.flip(Stream.runDrain(progress))).toMatchObject({ _tag: tag })
        }
        const { path } = yield* jobMonitor({ states: [["running", 1]] })
        const scope = yield* Scope.make()
        const qmp = yield* Qmp.make({ path }).pipe(Scope.provide(scope))
        const seen: Array<string> = []
        const running = yield* qmp.blockdevMirror(mirror, quick).pipe(
          Stream.runForEach(({ status }) => Effect.sync(() => seen.push(status))),
          Effect.forkChild({ startImmediately: true })
        )
        while (seen.length === 0) yield* Effect.sleep(1)
        yield* Scope.close(scope, Exit.void)
        expect(yield* Effect.flip(Fiber.join(running))).toMatchObject({ _tag: "ENOTCONN" })
      })
  )

  live("that a transaction starts is watched by its id, and so is one that runs already", () =>
    Effect.gen(function*() {
      const { jobs, path, sent } = yield* jobMonitor({ states: [] })
      const qmp = yield* Qmp.make({ path })
      const start = qmp.execute("transaction").pipe(Effect.andThen(Effect.sync(() => {
        jobs.set("full", { looks: 0, states: [["running", 1], ["concluded", 9]] })
      })))
      const first = yield* Stream.runCollect(qmp.job("full", start, quick))
      expect(first.map(({ status }) => status)).toStrictEqual(["running", "concluded"])
      jobs.set("old", { looks: 0, states: [["concluded", 3, "Input/output error"]] })
      expect(yield* Effect.flip(Stream.runDrain(qmp.job("old", Effect.void, quick)))).toMatchObject({
        _tag: "JobError",
        desc: "Input/output error"
      })
      expect(sent.filter((command) => command.startsWith("job-"))).toStrictEqual([
        "job-dismiss full",
        "job-dismiss old"
      ])
    }))
})
