/** Whether a daemon is here for the tests that need one, said so that nobody misses that they were left out. */
import { Config, Console, Effect } from "effect"
import { ENOENT } from "../../src/Errno.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"

/**
 * Tells whether tests that need a daemon can run: warns on stderr where they cannot, or fails with ENOENT where the
 * environment has EFFECT_BLKIO_REQUIRE_QSD=1. What else it has there is a ConfigError.
 */
export const requirement = Effect.gen(function*() {
  const required = yield* Config.Boolean("EFFECT_BLKIO_REQUIRE_QSD").pipe(Config.withDefault(false))
  if (yield* QemuStorageDaemon.available) return true
  const missing = new ENOENT({
    operation: "start",
    path: yield* Config.String("EFFECT_BLKIO_QSD").pipe(Config.withDefault("qemu-storage-daemon")),
    detail: "not here, or does not run; Debian has it in the package qemu-system-common"
  })
  if (required) return yield* missing
  yield* Console.warn(
    `\n*** SKIPPED: tests that need qemu-storage-daemon. ${missing.message}. `
      + "EFFECT_BLKIO_REQUIRE_QSD=1 makes this a failure. ***\n"
  )
  return false
})
