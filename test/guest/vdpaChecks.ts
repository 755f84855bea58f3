/** Checks of what only vhost-vdpa has: a device with few features, and files that are no devices. */
import { Effect } from "effect"
import assert from "node:assert/strict"
import { VhostVdpa, VirtioBlk } from "../../src/index.ts"
import { type Check, errnoOf, KiB } from "../devices/Target.ts"
import { outlivesItsOwner } from "./vfioChecks.ts"

/** The job that serves it says how it is made. */
const poor = VhostVdpa.make({ path: "/dev/vhost-vdpa-1" })

const fewFeatures: Check = {
  name: "a disk that is read-only, of larger blocks and with one queue is what it is",
  body: Effect.fnUntraced(function*() {
    const recipe = yield* poor
    assert.equal(yield* errnoOf(Effect.scoped(VirtioBlk.make(recipe, { queueSize: 64 }))), "EROFS")
    const disk = yield* VirtioBlk.make(recipe, { readOnly: true, queueSize: 64 })
    const { deviceReadOnly, maxQueueSize, maxQueues, requestAlignment } = yield* disk.properties.getAll
    assert.deepEqual(
      { deviceReadOnly, maxQueues, maxQueueSize, requestAlignment },
      { deviceReadOnly: true, maxQueues: 1, maxQueueSize: 64, requestAlignment: 4 * KiB }
    )
    const { bytes } = yield* disk.allocate(16 * KiB)
    bytes.fill(0xee)
    assert.equal(yield* errnoOf(disk.queue(0).read(512, bytes)), "EINVAL")
    yield* disk.queue(0).read(8 * KiB, bytes)
    assert.ok(bytes.every((byte) => byte === 0))
    assert.equal(yield* errnoOf(disk.queue(0).write(0, bytes)), "EBADF")
  })
}

const noDevices: Check = {
  name: "what is no such device is refused by name",
  body: Effect.fnUntraced(function*() {
    for (const [path, expected] of [["/dev/vhost-vdpa-9", "ENOENT"], ["/dev/null", "ENODEV"]] as const) {
      const recipe = yield* VhostVdpa.make({ path })
      const error = yield* Effect.flip(Effect.scoped(VirtioBlk.create(recipe).connect))
      assert.deepEqual([path, error._tag], [path, expected])
    }
  })
}

export const checks: ReadonlyArray<Check> = [fewFeatures, noDevices, outlivesItsOwner]
