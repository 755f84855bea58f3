/** An iSCSI target on the loopback interface, served by tgtd from a file, for as long as a Scope. No module of the kernel. */
import { Duration, Effect, FileSystem, Schedule } from "effect"
import * as OrphanGuard from "../../../src/QemuStorageDaemon/OrphanGuard.ts"
import { freePort } from "../../support/freePort.ts"
import { directoryForData, output, server } from "../Programs.ts"

/** What it needs of Debian. */
export const packages = ["tgt"]

const NAME = "iqn.2026-01.example:disk"
/** LUN 0 is the controller. */
const LUN = 1

/** Makes a target of a size, and does not start it yet. */
export const make = Effect.fnUntraced(function*(bytes: number) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ directory: directoryForData(), prefix: "blkio-tgt-" })
  yield* OrphanGuard.make(process.pid, folder, Duration.zero)
  const path = `${folder}/disk.raw`
  yield* fs.writeFile(path, new Uint8Array())
  yield* fs.truncate(path, bytes)

  const portal = `127.0.0.1:${yield* freePort}`
  const env = { TGT_IPC_SOCKET: `${folder}/control` }
  const daemon = yield* server(
    folder,
    "tgtd",
    ["--foreground", "--pid-file", `${folder}/pid`, "--iscsi", `portal=${portal}`],
    { env, stderr: "ignore" }
  )
  const administer = (operation: string, mode: string, ...args: ReadonlyArray<string>) =>
    output("tgtadm", ["--lld", "iscsi", "--op", operation, "--mode", mode, "--tid", "1", ...args], { env })
  return {
    folder,
    /** What it keeps. */
    path,
    image: { _tag: "iscsi", portal, target: NAME, lun: LUN } as const,
    kill: daemon.kill,
    /** Starts it, and tells it what it serves: it keeps nothing of that itself. */
    start: Effect.gen(function*() {
      yield* daemon.start
      yield* Effect.retry(administer("new", "target", "--targetname", NAME), {
        times: 100,
        schedule: Schedule.spaced("20 millis")
      })
      yield* administer("new", "logicalunit", "--lun", String(LUN), "--backing-store", path)
      yield* administer("bind", "target", "--initiator-address", "ALL")
    })
  }
})
