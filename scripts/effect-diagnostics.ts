/**
 * Runs the Effect diagnostics over the whole project: floating effects, missing `yield*`, outdated names.
 *
 * `effect-tsgo` exits with 0 when it checked no file at all, which is what it does when tsconfig.json has lost its
 * `plugins` entry. Here every file has to have been checked.
 */
import { spawnSync } from "node:child_process"

const severities = "error,warning"
const args = ["diagnostics", "--project", "tsconfig.json", "--format", "text", "--strict", "--severity", severities]
const run = spawnSync("effect-tsgo", args, { encoding: "utf8" })
if (run.error !== undefined) throw run.error
process.stdout.write(run.stdout)
process.stderr.write(run.stderr)

const count = /^Checked (\d+) files out of (\d+) files/m.exec(run.stdout)
if (count === null || Number(count[1]) === 0 || count[1] !== count[2]) {
  process.stderr.write("effect-tsgo did not check every file: see `plugins` in tsconfig.json\n")
  process.exitCode = 1
} else {
  process.exitCode = run.status ?? 1
}
