/**
 * Tells test files, at import, whether tests in a guest can run: `describe.skipIf(!guestIsHere)("…", …)`.
 *
 * Where something is missing it says so on stderr, and throws where EFFECT_BLKIO_REQUIRE_GUEST=1 says that skipping is
 * not good enough. `test/guest/build` provides everything.
 */
import { existsSync, readFileSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

/** An empty variable is one that is not set, as for a shell. */
const variable = (name: string): string | undefined => process.env[name] === "" ? undefined : process.env[name]

const folder = variable("EFFECT_BLKIO_GUEST_CACHE")
  ?? join(variable("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "effect-blkio/guest")

/** What `build` leaves in its cache. */
export const cache = {
  kernel: join(folder, "vmlinuz"),
  base: join(folder, "base.cpio"),
  busybox: join(folder, "busybox")
} as const

/** The process's environment, with the folders of system programs on PATH, as they are for root only. */
export const environment = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` }

/** The cache has a copy of the script that filled it. */
const isCurrent = (): boolean => {
  const builtBy = join(folder, "built-by")
  return existsSync(builtBy)
    && readFileSync(builtBy).equals(readFileSync(fileURLToPath(new URL("build", import.meta.url))))
}

const missing = [
  ...["qemu-system-x86_64", "qemu-storage-daemon", "vdpa", "mke2fs", "e2fsck", "debugfs"].filter((program) =>
    !environment.PATH.split(":").some((folder) => existsSync(join(folder, program)))
  ),
  ...isCurrent() ? [] : [`a current cache in ${folder}`]
]

if (missing.length > 0) {
  const message = `tests in a guest. Missing: ${missing.join(", ")}. Run test/guest/build.`
  if (process.env["EFFECT_BLKIO_REQUIRE_GUEST"] === "1") throw new Error(message)
  console.warn(`\n*** SKIPPED: ${message} EFFECT_BLKIO_REQUIRE_GUEST=1 makes this a failure. ***\n`)
}

export const guestIsHere: boolean = missing.length === 0
