/**
 * Goal: a device comes back more than once, also where it could not go on with its rings the first time.
 * Method: the first loss leaves a request in the ring whose memory is gone, so the rings are made anew; the second loss leaves
 * rings that could go on, with the record that was made with them.
 */
import { expect } from "@effect/vitest"
import { Effect, Exit, Fiber, FileSystem, Option, Schedule, Scope, Stream } from "effect"
import type { ConnectionState } from "../../src/BlockDevice.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { onBackend } from "../support/daemon.ts"
import { backends } from "./Backends.ts"
import { Oracle } from "./Oracle.ts"
import * as Supervisor from "./Supervisor.ts"

onBackend("comes back again after rings that were made anew", () =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-second-" })
    yield* DiskImage.createRaw(`${folder}/disk.raw`, 1 << 20)
    const disk = { image: `${folder}/disk.raw`, numQueues: 1 }
    const { disturb, socketPath } = yield* Supervisor.make(backends.export, disk, folder, new Oracle(0, 256))
    const device = yield* VirtioBlk.make(
      yield* VhostUser.make({ path: socketPath, reconnect: { schedule: Schedule.spaced(20), within: "15 seconds" } })
    )
    const reaches = (state: ConnectionState["_tag"]) =>
      Effect.map(
        Stream.runHead(Stream.filter(device.connectionStates, ({ _tag }) => _tag === state)),
        Option.getOrThrow
      )
    const region = yield* device.allocate(4096)
    const scope = yield* Scope.make()
    const passing = yield* Scope.provide(device.allocate(4096), scope)
    // Stopped, it takes nothing; then it is killed, and while it is away, the memory of what is in the ring goes.
    const killing = yield* Effect.forkScoped(disturb({ _tag: "stopAndKill", forMs: 300, downMs: 300 }), {
      startImmediately: true
    })
    yield* Effect.sleep(50)
    const reading = yield* Effect.forkScoped(Effect.exit(device.queue(0).read(0, passing.bytes)), {
      startImmediately: true
    })
    yield* reaches("reconnecting")
    yield* Scope.close(scope, Exit.void)
    yield* Fiber.join(reading)
    yield* Fiber.join(killing)
    yield* device.queue(0).read(0, region.bytes)
    yield* disturb({ _tag: "kill", downMs: 0 })
    expect(yield* Effect.exit(device.queue(0).read(0, region.bytes))).toStrictEqual(Exit.void)
  }), 60_000)
