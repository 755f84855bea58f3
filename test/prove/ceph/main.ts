/**
 * `npm run prove:ceph`: an RBD image, behind qemu-storage-daemon, behind this library, while the OSDs of its cluster are killed
 * and come back. Exit code 1 where a byte differs, where there is an error that should not be, or none where there should be
 * one. As root, or with `sudo -n`, it installs what it needs of Debian.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Schema } from "effect"
import { BlockStore } from "../../../src/index.ts"
import { endAfter } from "../../support/watchdog.ts"
import * as Bridge from "../Bridge.ts"
import { install, output } from "../Programs.ts"
import {
  copyDuring,
  type Disturbance,
  ensure,
  ensureReads,
  failureOf,
  head,
  makeImage,
  phase,
  seedOr,
  verify,
  writeAndRead
} from "../Report.ts"
import * as Cluster from "./Cluster.ts"

const KiB = 2 ** 10
const MiB = 2 ** 20

const IMAGE = "disk"
/** What each copy moves; the image has three such parts. */
const PART_BYTES = 192 * MiB
const IMAGE_BYTES = 3 * PART_BYTES
/** RBD keeps an image in objects of this size. */
const OBJECT_BYTES = 4 * MiB
const AWAY_MS = 6000
const OP_TIMEOUT_S = 3
const LIMIT_MS = 300_000

const secondsSince = (began: number) => ((performance.now() - began) / 1000).toFixed(1)

const open = (conf: string, more: { readonly namespace?: string; readonly snapshot?: string } = {}) =>
  Bridge.open({ _tag: "rbd", pool: Cluster.POOL, image: IMAGE, conf, ...more })

/** Copies while OSDs die, and reads it all back. */
const deaths = Effect.fnUntraced(function*(
  { clean, conf, noticed, osds: [first, second], rbd }: Cluster.Cluster,
  { path, source }: { readonly path: string; readonly source: BlockStore.BlockStore }
) {
  const both = [first, second]
  const copyPart = Effect.fnUntraced(function*(
    part: number,
    how: string,
    disturb: (daemon: Effect.Success<ReturnType<typeof open>>["daemon"]) => Disturbance
  ) {
    const { daemon, device } = yield* open(conf)
    const ofPart = BlockStore.slice(part * PART_BYTES, PART_BYTES)
    const content = yield* ofPart(source)
    yield* phase(
      `copy; ${how}`,
      device,
      (device) => Effect.flatMap(ofPart(device), (target) => copyDuring(content, target, disturb(daemon)))
    )
    yield* phase("hash it", device, (device) => Effect.flatMap(ofPart(device), (target) => verify(content, target)))
  }, Effect.scoped)

  yield* copyPart(0, "OSD 0 killed, and started again", () => (reached) =>
    Effect.gen(function*() {
      yield* reached(0.2)
      yield* first.kill
      yield* reached(0.4)
      yield* first.start
    }))
  yield* copyPart(1, `both killed, away for ${AWAY_MS / 1000} s`, () => (reached) =>
    Effect.gen(function*() {
      yield* reached(0.3)
      yield* Effect.forEach(both, ({ kill }) => kill, { concurrency: 2 })
      yield* Effect.sleep(AWAY_MS)
      yield* Effect.forEach(both, ({ start }) => start)
    }))

  yield* copyPart(2, "qemu-storage-daemon killed", (daemon) => (reached) =>
    Effect.gen(function*() {
      yield* reached(0.3)
      yield* Effect.flatMap(daemon, ({ kill }) => kill("SIGKILL"))
    }).pipe(Effect.orDie))

  const waiting = performance.now()
  yield* clean
  yield* Console.log(`(both OSDs have all of it after ${secondsSince(waiting)} s more; OSD 1 killed)`)
  yield* second.kill
  // Who opens it before the monitor knows waits for the dead one.
  yield* noticed
  const { device } = yield* open(conf)
  yield* phase("read from OSD 0 alone", device, (device) => verify(source, device))
  yield* phase("the same by `rbd export`, without us", device, () =>
    Effect.gen(function*() {
      const exported = `${path}.exported`
      yield* rbd("export", "--no-progress", `${Cluster.POOL}/${IMAGE}`, exported)
      yield* output("cmp", [path, exported])
      return { bytes: IMAGE_BYTES, result: "identical by cmp" }
    }))
  yield* second.start
  yield* clean
}, Effect.scoped)

/** Has a request time out, and goes on. */
const timeouts = Effect.fnUntraced(function*({ clean, confWith, osds }: Cluster.Cluster) {
  const { device } = yield* open(yield* confWith("impatient", { rados_osd_op_timeout: OP_TIMEOUT_S }))
  const block = new Uint8Array(64 * KiB).fill(7)
  yield* Effect.forEach(osds, ({ kill }) => kill, { concurrency: 2 })
  yield* phase(`write; both dead, rados_osd_op_timeout = ${OP_TIMEOUT_S}`, device, (device) =>
    Effect.gen(function*() {
      const error = yield* failureOf(device.write(0, [block]))
      yield* ensure(error._tag === "EIO", `${error._tag} instead of EIO`)
      return { bytes: 0, result: error._tag }
    }), { errors: 1 })
  yield* Effect.forEach(osds, ({ start }) => start)
  yield* clean
  yield* phase("write and read by the same device; both back", device, (device) => writeAndRead(device, block))
}, Effect.scoped)

const decodeExtents = Schema.decodeUnknownEffect(Schema.fromJsonString(Schema.Array(Schema.Struct({
  length: Schema.Natural,
  exists: Schema.Literals(["true", "false"])
}))))

/** What else an RBD image can do. */
const features = Effect.fnUntraced(function*({ conf, rbd }: Cluster.Cluster) {
  const image = `${Cluster.POOL}/${IMAGE}`
  const { daemon, device } = yield* open(conf)

  yield* phase("4 MiB zeroed after a snapshot", device, (device) =>
    Effect.gen(function*() {
      const before = new Uint8Array(OBJECT_BYTES).fill(9)
      yield* device.write(0, [before])
      yield* rbd("snap", "create", "--no-progress", `${image}@before`)
      yield* device.writeZeroes(0, OBJECT_BYTES)
      yield* ensureReads(device, new Uint8Array(OBJECT_BYTES))
      const { device: snapshot } = yield* open(conf, { snapshot: "before" })
      yield* ensureReads(snapshot, before)
      const { _tag } = yield* failureOf(snapshot.write(0, [before]))
      return { bytes: 2 * OBJECT_BYTES, result: `zeroes here, the old content there, read-only (${_tag})` }
    }).pipe(Effect.scoped))
  yield* rbd("snap", "rm", "--no-progress", `${image}@before`)

  /** How many bytes of the image are kept. */
  const kept = Effect.map(
    Effect.flatMap(rbd("diff", image, "--format", "json"), decodeExtents),
    (extents) => extents.reduce((sum, { exists, length }) => sum + (exists === "true" ? length : 0), 0)
  )
  yield* phase("discard", device, (device) =>
    Effect.gen(function*() {
      const before = yield* kept
      yield* device.discard(0, PART_BYTES)
      yield* device.flush
      const after = yield* kept
      yield* ensure(after < before, `${after} bytes are kept, ${before} were before`)
      return { bytes: PART_BYTES, result: `kept ${(before / MiB).toFixed(1)} MiB, now ${(after / MiB).toFixed(1)}` }
    }))
  yield* phase("rbd resize by 64 MiB, then block_resize by 64", device, (device) =>
    Effect.gen(function*() {
      const bytes = IMAGE_BYTES + 64 * MiB
      yield* rbd("resize", "--no-progress", image, "--size", `${bytes / MiB}M`)
      const first = device.capacity
      const { exports: [{ nodeName }], qmp } = yield* daemon
      yield* qmp.blockResize(nodeName, bytes + 64 * MiB)
      const second = device.capacity
      const { device: anew } = yield* open(conf)
      yield* ensure(anew.capacity === bytes + 64 * MiB, `opened anew it has ${anew.capacity} bytes`)
      const sizes = [IMAGE_BYTES, first, second].map((size) => size / MiB).join(", ")
      return { bytes: 0, result: `${sizes}; opened anew ${anew.capacity / MiB}` }
    }).pipe(Effect.scoped))
  yield* rbd("namespace", "create", `${Cluster.POOL}/tenant`)
  yield* rbd("create", `${Cluster.POOL}/tenant/${IMAGE}`, "--size", "16M")
  const { device: tenants } = yield* open(conf, { namespace: "tenant" })
  yield* phase("write and read in a namespace", tenants, (device) =>
    Effect.gen(function*() {
      yield* ensure(device.capacity === 16 * MiB, "it is another image")
      return yield* writeAndRead(device, new Uint8Array(64 * KiB).fill(3))
    }))
}, Effect.scoped)

const prove = Effect.gen(function*() {
  const began = performance.now()
  yield* install([...Cluster.packages, "qemu-system-common", "qemu-utils", "qemu-block-extra"])
  const installed = performance.now()
  const cluster = yield* Cluster.make
  yield* cluster.rbd("create", `${Cluster.POOL}/${IMAGE}`, "--size", `${IMAGE_BYTES / MiB}M`)
  const up = secondsSince(installed)
  const seed = seedOr(process.env["TEST_SEED"])
  const path = `${cluster.folder}/source.raw`
  yield* makeImage(path, IMAGE_BYTES, seed)
  const source = yield* BlockStore.file({ path, readOnly: true })
  yield* Console.log(
    `a monitor and 2 OSDs are up after ${up} s; an image of ${IMAGE_BYTES / MiB} MiB by TEST_SEED=${seed}`
  )

  yield* head
  yield* deaths(cluster, { path, source })
  yield* timeouts(cluster)
  yield* features(cluster)
  yield* Console.log(`all as it has to be: ${secondsSince(began)} s, ${secondsSince(installed)} s without installing`)
})

Effect.andThen(endAfter(LIMIT_MS), prove).pipe(
  Effect.scoped,
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
