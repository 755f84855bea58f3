/** The programs that a proof needs: installed where they are missing, started, and ended with it. */
import { Console, Data, Duration, Effect, Exit, Scope, Stream } from "effect"
import { ChildProcess, type ChildProcessSpawner } from "effect/process"
import { statfsSync } from "node:fs"
import { tmpdir } from "node:os"
import * as ExitCode from "../../src/QemuStorageDaemon/ExitCode.ts"
import * as OrphanGuard from "../../src/QemuStorageDaemon/OrphanGuard.ts"

/** A program that is missing, ended badly, or did not end in time. */
export class ProgramFailed extends Data.TaggedError("ProgramFailed")<{ readonly message: string }> {}

const RUN_LIMIT = Duration.seconds(60)
/** A mirror may be slow. */
const INSTALL_LIMIT = Duration.minutes(5)

/** Runs a program to its end, and gives what it said on stdout. A bad end or too late a one is a failure that tells all. */
export const output = (
  program: string,
  args: ReadonlyArray<string>,
  { env = {}, limit = RUN_LIMIT }: { readonly env?: Record<string, string>; readonly limit?: Duration.Duration } = {}
) => {
  const line = [program, ...args].join(" ")
  return Effect.gen(function*() {
    const child = yield* ChildProcess.make(program, args, {
      stdin: "ignore",
      env,
      extendEnv: true,
      forceKillAfter: "1 second"
    })
    const [stdout, stderr, code] = yield* Effect.all([
      Stream.mkString(Stream.decodeText(child.stdout)),
      Stream.mkString(Stream.decodeText(child.stderr)),
      ExitCode.of(child)
    ], { concurrency: 3 })
    if (code === 0) return stdout
    return yield* new ProgramFailed({ message: `${line}: exit code ${code}\n${stdout}${stderr}` })
  }).pipe(
    Effect.scoped,
    Effect.mapError((error) =>
      error._tag === "ProgramFailed" ? error : new ProgramFailed({ message: `${line}: ${error.message}` })
    ),
    Effect.timeoutOrElse({
      duration: limit,
      orElse: () => Effect.fail(new ProgramFailed({ message: `${line}: no end within ${Duration.format(limit)}` }))
    })
  )
}

const isInstalled = (name: string) =>
  output("dpkg-query", ["--show", "--showformat=${db:Status-Status}", name]).pipe(
    Effect.map((status) => status === "installed"),
    Effect.orElseSucceed(() => false)
  )

/** Installs those of Debian's packages that are missing, and says so. */
export const install = Effect.fnUntraced(function*(packages: ReadonlyArray<string>) {
  const missing = yield* Effect.filter(packages, (name) => Effect.map(isInstalled(name), (installed) => !installed))
  if (missing.length === 0) return
  yield* Console.log(`installing what is missing: ${missing.join(" ")}`)
  const began = performance.now()
  const apt = (...args: ReadonlyArray<string>) => {
    const asRoot = process.getuid?.() === 0
    return output(asRoot ? "apt-get" : "sudo", asRoot ? args : ["-n", "apt-get", ...args], {
      env: { DEBIAN_FRONTEND: "noninteractive" },
      limit: INSTALL_LIMIT
    })
  }
  yield* apt("update").pipe(
    Effect.andThen(apt("install", "--yes", "--no-install-recommends", ...missing)),
    Effect.mapError(({ message }) =>
      new ProgramFailed({ message: `this needs Debian's packages ${missing.join(" ")}: ${message}` })
    )
  )
  yield* Console.log(`installed in ${((performance.now() - began) / 1000).toFixed(1)} s`)
})

/** What a proof may write, with room to spare. */
const ROOM_BYTES = 4 * 2 ** 30

/** In memory where there is room, since a disk's own stalls are not what is measured. */
export const directoryForData = (): string => {
  try {
    const { bavail, bsize } = statfsSync("/dev/shm")
    return bavail * bsize >= ROOM_BYTES ? "/dev/shm" : tmpdir()
  } catch {
    return tmpdir()
  }
}

/** A daemon that can be started, killed, and started again. */
export interface Server {
  /** Its process, while it runs. */
  readonly pid: () => number | undefined
  readonly start: Effect.Effect<void, ProgramFailed, ChildProcessSpawner.ChildProcessSpawner>
  /** Ends it at once, as a loss of power would, and waits for its end. Nothing happens where it does not run. */
  readonly kill: Effect.Effect<void>
}

/**
 * Makes a daemon that stays in the foreground, and does not start it yet; its command line must name the folder. It ends with
 * the Scope, or when this process is killed, and the folder goes then, too.
 */
export const server = Effect.fnUntraced(function*(
  folder: string,
  program: string,
  args: ReadonlyArray<string>,
  { env = {}, stderr = "inherit" }: {
    readonly env?: Readonly<Record<string, string>>
    /** Ignored where it always has something to say. */
    readonly stderr?: "inherit" | "ignore"
  } = {}
) {
  const parent = yield* Effect.scope
  let running: { readonly scope: Scope.Closeable; readonly pid: number } | undefined
  return {
    pid: () => running?.pid,
    start: Effect.gen(function*() {
      const scope = yield* Scope.fork(parent)
      const { pid } = yield* ChildProcess.make(program, args, {
        stdin: "ignore",
        stdout: "ignore",
        stderr,
        env,
        extendEnv: true,
        // Nothing in it is worth an orderly end, which may take seconds.
        killSignal: "SIGKILL"
      }).pipe(
        Effect.mapError(({ message }) => new ProgramFailed({ message })),
        Effect.tap(({ pid }) => OrphanGuard.make(pid, folder, Duration.zero)),
        Scope.provide(scope)
      )
      running = { scope, pid }
    }),
    kill: Effect.suspend(() => {
      if (running === undefined) return Effect.void
      const { scope } = running
      running = undefined
      return Scope.close(scope, Exit.void)
    })
  } satisfies Server
})
