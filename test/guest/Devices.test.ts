/**
 * Goal: the device suite over VFIO and over vhost-vdpa, on the kernel's real interfaces, and what only these have: an
 * IOMMU that isolates, resets, interrupts, a packed ring, a device that is taken away.
 * Method: guests have disks behind an IOMMU, and one serves a disk to itself by VDUSE. A program in them runs all checks
 * and reports each; each is a test here. Then the images' files are looked at from the host.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, layer } from "@effect/vitest"
import { Context, Effect, Layer, Schema } from "effect"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Image from "../devices/Image.ts"
import { imagePath } from "../support/daemon.ts"
import * as DeviceGuest from "./DeviceGuest.ts"
import { guestIsHere } from "./requirement.ts"
import { guests, targets } from "./targets.ts"

const decodeOutcome = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  target: Schema.String,
  check: Schema.String,
  failure: Schema.NullOr(Schema.String)
})))

class Report extends Context.Service<Report, {
  /** What became of a check; undefined where it was not run. */
  readonly failureOf: (target: string, check: string) => string | null | undefined
  /** What is wrong with an image. */
  readonly differences: (name: string) => ReadonlyArray<string>
}>()("test/guest/Report") {}

const report = Layer.effect(
  Report,
  Effect.gen(function*() {
    const folder = yield* imagePath(".")
    const image = (name: string): string => join(folder, `${name}.raw`)
    for (const { image: name } of targets) Image.create(image(name))
    const printed = yield* Effect.forEach(guests, ({ functions, hasVdpa }, i) =>
      DeviceGuest.run({
        program: fileURLToPath(new URL("program.ts", import.meta.url)),
        argument: String(i),
        functions: Object.fromEntries(
          Object.entries(functions).map(([name, disk]) => [name, { ...disk, image: image(name) }])
        ),
        vdpa: hasVdpa ? image("vdpa") : undefined
      }), { concurrency: "unbounded" })
    const outcomes = new Map(
      printed.join("").split("\n").filter((line) => line !== "").map((line) => {
        const { check, failure, target } = decodeOutcome(line)
        return [`${target}: ${check}`, failure]
      })
    )
    return {
      failureOf: (target: string, check: string) => outcomes.get(`${target}: ${check}`),
      differences: (name: string) => Image.differences(image(name))
    }
  })
).pipe(Layer.provide(NodeServices.layer))

describe.skipIf(!guestIsHere)("in a guest", () => {
  // With a name it is built before all tests, by its own time limit; without, in the first test, by that test's.
  layer(report, { excludeTestServices: true, timeout: "10 minutes" })("a device", (it) => {
    for (const { checks, image, name } of targets) {
      describe(`over ${name}`, () => {
        for (const check of checks) {
          it.effect(check.name, () =>
            Effect.gen(function*() {
              expect((yield* Report).failureOf(name, check.name)).toBeNull()
            }))
        }

        it.effect("its image holds what was there, and what was written", () =>
          Effect.gen(function*() {
            expect((yield* Report).differences(image)).toStrictEqual([])
          }))
      })
    }
  })
})
