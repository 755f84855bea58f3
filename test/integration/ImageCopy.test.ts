/**
 * Goal: a copy onto an image ends well although the daemon that writes it is killed again and again.
 * Method: a qcow2 image behind a daemon of the transport's own, which gets SIGKILL twenty times while the copy runs, at times
 * by chance (the seed is printed on failure); QEMU's own tools then say whether the image is whole and what is on it.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect } from "@effect/vitest"
import { Deferred, Effect, Exit, Schedule, Stream } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { writeFileSync } from "node:fs"
import * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { VirtioBlk } from "../../src/index.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { imagePath, MiB, onBackend, withSeed } from "../support/daemon.ts"
import { qsdIsHere } from "./requirement.ts"

const KILLS = 20
const CAPACITY = 256 * MiB

/** Runs a program and gives its exit code. */
const exitCodeOf = (command: string, ...args: ReadonlyArray<string>) =>
  Effect.flatMap(
    ChildProcessSpawner.ChildProcessSpawner,
    (spawner) => spawner.exitCode(ChildProcess.make(command, args, { stdin: "ignore" }))
  )

describe.skipIf(!qsdIsHere)("a copy onto qcow2", () => {
  onBackend(
    "ends well although its daemon is killed 20 times, and leaves an image without an error or a leak",
    () =>
      withSeed((random) =>
        Effect.gen(function*() {
          const raw = yield* imagePath("source.raw")
          const content = new Uint32Array(CAPACITY / 4)
          // A third is zeroes.
          for (let i = 0; i < content.length; i++) if (Math.floor(i / 2 ** 18) % 3 > 0) content[i] = random(2 ** 32)
          writeFileSync(raw, content)
          const target = yield* imagePath("target.qcow2")
          yield* DiskImage.createQcow2(target, CAPACITY)

          // Whoever reads what comes after a kill waits for that.
          const killed = Array.from({ length: KILLS }, () => Deferred.makeUnsafe<void>())
          const reached = Array.from({ length: KILLS }, () => Deferred.makeUnsafe<void>())
          const pace = (offset: number) => {
            const before = Math.floor(offset / CAPACITY * (KILLS + 1))
            for (const one of reached.slice(0, before)) Deferred.doneUnsafe(one, Exit.void)
            return Effect.forEach(killed.slice(0, before), (one) => Deferred.await(one), { discard: true })
          }
          let kills = 0
          yield* Effect.scoped(Effect.gen(function*() {
            const transport = yield* QemuStorageDaemon.transport(
              { _tag: "qcow2", file: target, lazyRefcounts: true },
              { restart: Schedule.spaced("10 millis") }
            )
            const disk = yield* VirtioBlk.make(transport)
            const file = yield* BlockStore.file({ path: raw, readOnly: true })
            const source: BlockStore.BlockStore = {
              ...file,
              read: (offset, buffers) => Effect.andThen(pace(offset), file.read(offset, buffers))
            }
            yield* Effect.forkScoped(Effect.gen(function*() {
              for (const [i, one] of reached.entries()) {
                yield* Deferred.await(one)
                yield* Effect.sleep(random(60))
                const daemon = yield* Effect.eventually(transport.daemon.pipe(Effect.tapError(() => Effect.sleep(1))))
                yield* daemon.kill("SIGKILL")
                yield* daemon.exitCode
                kills++
                Deferred.doneUnsafe(killed[i] ?? one, Exit.void)
              }
            }))
            const last = yield* Stream.runLast(BlockStore.copy(source, disk, { rewrite: Schedule.recurs(50) }))
            expect(last).toMatchObject({ value: { copied: CAPACITY } })
          }))
          expect(kills).toBe(KILLS)
          expect(yield* exitCodeOf("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, target)).toBe(0)
          // 0: clean; 2: errors; 3: leaked clusters.
          expect(yield* exitCodeOf("qemu-img", "check", "-q", target)).toBe(0)
        }).pipe(Effect.provide(NodeServices.layer))
      ),
    120_000
  )
})
