/** The backends there are, and suites that run on each of them. */
import { describe } from "@effect/vitest"
import { Effect } from "effect"
import { DiskImage } from "../../src/testing/index.ts"
import type { Backend, ServeOptions } from "./Backend.ts"
import { imagePath } from "./daemon.ts"
import { daemonBackend } from "./daemonBackend.ts"
import { exportBackend } from "./exportBackend.ts"

const backends: ReadonlyArray<Backend> = [exportBackend, daemonBackend]

/** A suite on each backend, under its name; skipped on one that cannot run here. */
export const forEachBackend = (title: string, suite: (backend: Backend) => void): void => {
  for (const backend of backends) {
    describe.skipIf(!backend.isHere)(`${title}, on ${backend.name}`, () => {
      suite(backend)
    })
  }
}

/** Makes an empty image. */
export const makeImage = Effect.fnUntraced(function*(format: DiskImage.Format, size: number) {
  const path = yield* imagePath(`disk.${format}`)
  yield* format === "raw" ? DiskImage.createRaw(path, size) : DiskImage.createQcow2(path, size)
  return { _tag: format, path }
}, Effect.orDie)

/** Serves a new raw image. */
export const serveRaw = Effect.fnUntraced(function*(backend: Backend, size: number, options?: ServeOptions) {
  const image = yield* makeImage("raw", size)
  const served = yield* backend.serve(image, options)
  return { ...served, image }
})

/** Serves a new raw image from a process that can be killed. */
export const serveRawApart = Effect.fnUntraced(function*(backend: Backend, size: number, options?: ServeOptions) {
  return yield* backend.serveApart(yield* makeImage("raw", size), options)
})
