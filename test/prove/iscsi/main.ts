/**
 * `npm run prove:iscsi`: a disk of an iSCSI target, behind qemu-storage-daemon, behind this library, while the target's daemon
 * is killed and comes back. Exit code 1 where a byte differs, or where there is an error. As root, or with `sudo -n`, it
 * installs what it needs of Debian.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect } from "effect"
import { BlockStore } from "../../../src/index.ts"
import { endAfter } from "../../support/watchdog.ts"
import * as Bridge from "../Bridge.ts"
import { install, output } from "../Programs.ts"
import { copyDuring, ensure, failureOf, head, makeImage, phase, seedOr, verify, writeAndRead } from "../Report.ts"
import * as Target from "./Target.ts"

const KiB = 2 ** 10
const MiB = 2 ** 20
const IMAGE_BYTES = 256 * MiB
const AWAY_MS = 2000
const REQUEST_TIMEOUT_MS = 1000
const LIMIT_MS = 120_000

const prove = Effect.gen(function*() {
  yield* install([...Target.packages, "qemu-system-common", "qemu-utils", "qemu-block-extra"])
  const began = performance.now()
  const target = yield* Target.make(IMAGE_BYTES)
  yield* target.start
  const seed = seedOr(process.env["TEST_SEED"])
  const path = `${target.folder}/source.raw`
  yield* makeImage(path, IMAGE_BYTES, seed)
  const source = yield* BlockStore.file({ path, readOnly: true })
  yield* Console.log(`tgtd runs; an image of ${IMAGE_BYTES / MiB} MiB by TEST_SEED=${seed}`)
  const { device } = yield* Bridge.open(target.image)

  yield* head
  yield* phase(
    `copy; tgtd killed, away for ${AWAY_MS / 1000} s`,
    device,
    (device) =>
      copyDuring(source, device, (reached) =>
        Effect.gen(function*() {
          yield* reached(0.3)
          yield* target.kill
          yield* Effect.sleep(AWAY_MS)
          yield* target.start
        }))
  )
  yield* phase("hash it", device, (device) => verify(source, device))
  yield* phase(
    "the target's file, without us",
    device,
    () => Effect.as(output("cmp", [path, target.path]), { bytes: IMAGE_BYTES, result: "identical by cmp" })
  )

  const { device: impatient } = yield* Bridge.open(target.image, { requestTimeout: REQUEST_TIMEOUT_MS })
  const block = new Uint8Array(64 * KiB).fill(7)
  yield* target.kill
  yield* phase(
    `write; tgtd killed, requestTimeout ${REQUEST_TIMEOUT_MS / 1000} s`,
    impatient,
    (device) =>
      Effect.gen(function*() {
        const error = yield* failureOf(device.write(0, [block]))
        yield* ensure(error._tag === "ETIME", `${error._tag} instead of ETIME`)
        return { bytes: 0, result: error._tag }
      }),
    { errors: 1 }
  )
  yield* target.start
  yield* phase("write and read by the other device; it is back", device, (device) => writeAndRead(device, block))
  yield* phase("the same by the impatient one", impatient, (device) => writeAndRead(device, block))
  yield* Console.log(`all as it has to be: ${((performance.now() - began) / 1000).toFixed(1)} s`)
})

Effect.andThen(endAfter(LIMIT_MS), prove).pipe(
  Effect.scoped,
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
