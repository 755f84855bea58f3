/**
 * Goal: the device suite, over vhost-user, on this library's own backend and on QEMU's storage daemon.
 * Method: each serves an image that was written here before; every check of the suite is a test; then the image's file is
 * looked at past the backend.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, layer } from "@effect/vitest"
import { Context, Effect, Layer, type Scope } from "effect"
import { BlockStore, Export, VhostUser } from "../../src/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { imagePath, serve } from "../support/daemon.ts"
import * as Image from "./Image.ts"
import { CAPACITY, type Facts, MiB, type Recipe } from "./Target.ts"
import { checksFor, runCheck } from "./suite.ts"

const QUEUES = 4

interface Backend {
  readonly name: string
  readonly isHere: boolean
  readonly properties: Partial<Facts["properties"]>
  /** Serves an image with {@link QUEUES} queues, and gives the socket's path. */
  readonly serve: (image: string) => Effect.Effect<string, never, Scope.Scope | NodeServices.NodeServices>
}

const backends: ReadonlyArray<Backend> = [
  {
    name: "Export",
    isHere: true,
    properties: { flushNeeded: true },
    serve: Effect.fnUntraced(function*(image) {
      const path = `${image}.sock`
      yield* Export.serve(yield* BlockStore.file({ path: image }), { path, numQueues: QUEUES })
      return path
    }, Effect.orDie)
  },
  {
    name: "qemu-storage-daemon",
    isHere: qsdIsHere,
    properties: { flushNeeded: false },
    serve: (path) =>
      serve({ exports: [{ image: { _tag: "raw", file: path }, numQueues: QUEUES }] })
        .pipe(Effect.map(({ socketPath }) => socketPath), Effect.orDie)
  }
]

/** Beside what every check allows itself. */
const TEST_TIMEOUT_MS = 90_000

for (const backend of backends) {
  class Served extends Context.Service<Served, { readonly recipe: Recipe; readonly image: string }>()(
    `test/devices/${backend.name}`
  ) {}

  const served = Layer.effect(
    Served,
    Effect.gen(function*() {
      const image = yield* imagePath("disk.raw")
      Image.create(image)
      const path = yield* backend.serve(image)
      return { image, recipe: yield* VhostUser.make({ path }) }
    })
  ).pipe(Layer.provide(NodeServices.layer))

  const facts: Facts = {
    properties: {
      driver: "virtio-blk-vhost-user",
      capacity: CAPACITY,
      maxQueues: QUEUES,
      maxQueueSize: 32768,
      requestAlignment: 512,
      maxSegments: 126,
      maxDiscardLen: 16 * MiB,
      maxWriteZeroesLen: 16 * MiB,
      deviceReadOnly: false,
      needsMemRegions: true,
      needsMemRegionFd: true,
      memRegionAlignment: 1,
      ...backend.properties
    },
    offers: { discard: true, writeZeroes: true },
    // A second one waits until the first is gone.
    secondOpener: undefined,
    // A chain may have 1024 descriptors, and so may the ring that has them all.
    largestRing: 1024
  }

  describe.skipIf(!backend.isHere)(`on ${backend.name}`, () => {
    layer(served, { excludeTestServices: true })("a device over vhost-user", (it) => {
      for (const check of checksFor(facts)) {
        it.effect(check.name, () =>
          Effect.gen(function*() {
            const { recipe } = yield* Served
            const { failure } = yield* runCheck({ name: backend.name, recipe, facts }, check)
            expect(failure).toBeNull()
          }), TEST_TIMEOUT_MS)
      }

      it.effect("its image holds what was there, and what was written", () =>
        Effect.gen(function*() {
          expect(Image.differences((yield* Served).image)).toStrictEqual([])
        }))
    })
  })
}
