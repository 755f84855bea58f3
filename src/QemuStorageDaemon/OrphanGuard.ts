/**
 * Ends a daemon whose owner is gone without a chance to run finalizers: killed, aborted, or interrupted at the keyboard
 * together with the test runner around it.
 *
 * A shell waits at the end of a pipe whose other end only this process has. The system closes that end whatever way
 * this process goes; then the shell does what the Scope would have done. It lies in a session of its own, so a signal
 * to the terminal's process group does not reach it.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as ChildProcess from "effect/process/ChildProcess"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"

// Only a process that has the folder on its command line is signalled: the pid may be another's by then.
const script = `
ours() { grep -qsF -- "$2" "/proc/$1/cmdline"; }
read -r _
if ours "$1" "$2"; then
  kill -TERM "$1"
  sleep "$3"
  if ours "$1" "$2"; then kill -KILL "$1"; fi
fi
rm -rf -- "$2"
`

/**
 * Sees to it that a daemon and its folder do not outlive this process; the daemon's command line must name the folder. It
 * has `stopTimeout` to end by itself.
 * The guard ends with the Scope. Where there is no shell there is no guard.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  pid: number,
  directory: string,
  stopTimeout: Duration.Duration
): Effect.Effect<void, never, ChildProcessSpawner.ChildProcessSpawner | Scope.Scope> =>
  ChildProcess.make("sh", ["-c", script, "sh", String(pid), directory, String(Duration.toSeconds(stopTimeout))], {
    stdin: "pipe",
    stdout: "ignore",
    stderr: "ignore",
    detached: true,
    forceKillAfter: "1 second"
  }).pipe(Effect.ignore)
