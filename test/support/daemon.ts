/**
 * Real daemons and devices on them, for integration tests.
 *
 * A test made by {@link onBackend} runs on the real clock, in a Scope, and must end with every daemon it started gone and
 * with the descriptors and mappings it began with.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { it } from "@effect/vitest"
import { Effect, FileSystem, type Scope } from "effect"
import { existsSync } from "node:fs"
import { expect } from "vitest"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { leavesNothing } from "./resources.ts"

export const KiB = 1024
export const MiB = 1024 * KiB

/** Pids of all daemons that were started by this file's tests. */
const started = new Set<number>()

/** A test that leaves nothing behind, not even a daemon. */
export const onBackend = <A, E>(
  name: string,
  body: () => Effect.Effect<A, E, Scope.Scope | NodeServices.NodeServices>,
  timeoutMs?: number
): void =>
  it.live(
    name,
    () =>
      Effect.gen(function*() {
        yield* leavesNothing(Effect.suspend(body))
        expect([...started].filter((pid) => existsSync(`/proc/${pid}`))).toStrictEqual([])
      }).pipe(Effect.provide(NodeServices.layer)),
    timeoutMs
  )

/** Has {@link onBackend} see that a process has gone with its test. */
export const mustEnd = (pid: number): void => {
  started.add(pid)
}

/** Starts a daemon that {@link onBackend} sees gone. */
export const serve = (options: QemuStorageDaemon.StartOptions) =>
  Effect.tap(QemuStorageDaemon.start(options), ({ pid }) => Effect.sync(() => mustEnd(pid)))

/** A path for an image in a folder that goes with the Scope. */
export const imagePath = (name: string) =>
  FileSystem.FileSystem.use((fs) =>
    Effect.map(fs.makeTempDirectoryScoped({ prefix: "blkio-image-" }), (folder) => `${folder}/${name}`)
  )

/** Serves a new raw image. */
export const serveRaw = Effect.fnUntraced(function*(
  size: number,
  options: Partial<Omit<QemuStorageDaemon.StartOptions["exports"][0], "image">> = {}
) {
  const path = yield* imagePath("disk.raw")
  yield* DiskImage.createRaw(path, size)
  const daemon = yield* serve({ exports: [{ image: { _tag: "raw", file: path }, ...options }] })
  return { daemon, path }
})

/** A created device at a socket. */
export const at = (path: string, options: Omit<VhostUser.Options, "path"> = {}) =>
  Effect.map(VhostUser.make({ path, ...options }), VirtioBlk.create)

/** Connects to a socket and starts the device there. */
export const open = (
  path: string,
  { replyTimeout, ...options }: VirtioBlk.Options & Pick<VhostUser.Options, "replyTimeout"> = {}
) =>
  Effect.flatMap(
    VhostUser.make({ path, ...(replyTimeout === undefined ? {} : { replyTimeout }) }),
    (transport) => VirtioBlk.make(transport, options)
  )

/** QEMU's major version, for what 7.2 and 10 do differently. */
export const majorOf = ({ version }: QemuStorageDaemon.Daemon): number => Number.parseInt(version, 10)

/** Runs what follows with a seed that a failure tells. */
export const withSeed = <A, E, R>(body: (random: (below: number) => number) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const seed = Number(process.env["TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 32))
    return body(random(seed)).pipe(
      Effect.onError(() => Effect.sync(() => console.error(`failed with TEST_SEED=${seed}`)))
    )
  })
