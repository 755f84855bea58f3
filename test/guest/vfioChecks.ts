/** Checks of what only VFIO has: isolation, resets, interrupts, packed rings, and a device that is taken away. */
import { Effect, Fiber, Stream } from "effect"
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, constants, openSync, readFileSync, readSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import { VirtioBlk } from "../../src/index.ts"
import { type Check, errnoOf, foreign, foreignBytes, KiB, open, type Recipe, type Target } from "../devices/Target.ts"
import { roundTrip } from "../devices/lifecycle.ts"
import * as Owner from "./owner.ts"

type Connection = Effect.Success<Recipe["connect"]>

/** The same device, with a part of its connection replaced. */
const altered = (target: Target, alter: (connection: Connection) => Partial<Connection>): Target => ({
  ...target,
  recipe: {
    ...target.recipe,
    connect: Effect.map(target.recipe.connect, (connection) => ({ ...connection, ...alter(connection) }))
  }
})

/** Whether the kernel has a way to reset the function alone. */
export const hasReset = (expected: boolean): Check => ({
  name: expected ? "can be reset as a function" : "cannot be reset as a function",
  body: ({ recipe }) =>
    Effect.sync(() => {
      const hasMethod = (() => {
        try {
          return readFileSync(`${recipe.path}/reset_method`, "utf8").includes("flr")
        } catch {
          return false
        }
      })()
      assert.equal(hasMethod, expected)
    })
})

/** VIRTIO_F_RING_PACKED */
const RING_PACKED = 1n << 34n

/** Whether a packed ring is negotiated. */
export const negotiates = (expected: boolean): Check => ({
  name: `negotiates a ${expected ? "packed" : "split"} ring`,
  body: Effect.fnUntraced(function*(target) {
    let negotiated = 0n
    const spied = altered(target, ({ negotiate }) => ({
      negotiate: (features) => {
        negotiated = features
        return negotiate(features)
      }
    }))
    yield* roundTrip(yield* open(spied), 1)
    assert.equal((negotiated & RING_PACKED) !== 0n, expected)
  })
})

/** Which interrupts the kernel counts for the function while it is open. */
export const interruptsBy = (kind: "vfio-msix" | "vfio-intx"): Check => ({
  name: `is told of completions by ${kind}`,
  body: Effect.fnUntraced(function*(target) {
    const disk = yield* open(target, { numQueues: target.facts.properties.maxQueues, waiting: "event" })
    yield* roundTrip(disk, 2)
    const lines = readFileSync("/proc/interrupts", "utf8").split("\n").filter((line) =>
      line.includes("vfio-") && line.includes(`(${basename(target.recipe.path)})`)
    )
    assert.ok(lines.length > 0)
    assert.deepEqual(lines.filter((line) => !line.includes(kind)), [])
    // One for each queue and one for the configuration, or one for all.
    assert.equal(lines.length, kind === "vfio-msix" ? target.facts.properties.maxQueues + 1 : 1)
  })
})

/** What the kernel has said until now. */
const kernelLog = (): string => {
  const fd = openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK)
  const record = Buffer.alloc(8 * KiB)
  let log = ""
  try {
    for (;;) log += record.toString("utf8", 0, readSync(fd, record))
  } catch {
    // There is no more.
    return log
  } finally {
    closeSync(fd)
  }
}

/** A region of this length is put where the device has no memory. */
const ASTRAY_BYTES = 12 * KiB
const ASTRAY = 2 ** 33

/**
 * Within a page, QEMU's disk answers that such a read went well: what counts is where the data went. Beyond a page it
 * gives the queue up and wants to be reset.
 */
export const isIsolated: Check = {
  name: "reaches no memory but what is mapped for it: the IOMMU faults",
  body: Effect.fnUntraced(function*(target) {
    const strayed = altered(target, ({ map }) => ({
      map: (region) => Effect.map(map(region), (address) => address + (region.length === ASTRAY_BYTES ? ASTRAY : 0))
    }))
    for (const length of [4 * KiB, ASTRAY_BYTES]) {
      const before = kernelLog()
      yield* Effect.scoped(Effect.gen(function*() {
        const disk = yield* open(strayed)
        const { bytes: sound } = yield* disk.allocate(16 * KiB)
        const { bytes: astray } = yield* disk.allocate(ASTRAY_BYTES)
        astray.fill(0xee)
        const read = disk.queue(0).read(foreign.offset, astray.subarray(0, length))
        if (length === ASTRAY_BYTES) assert.equal(yield* errnoOf(read), "ENOTCONN")
        else {
          yield* read
          yield* disk.queue(0).read(foreign.offset, sound)
          assert.equal(Buffer.compare(sound, foreignBytes().subarray(0, sound.length)), 0)
        }
        assert.ok(astray.every((byte) => byte === 0xee), "data came by an address that is not mapped")
      }))
      const address = basename(target.recipe.path).replace(/^0000:/, "")
      const faults = kernelLog().slice(before.length).split("\n").filter((line) =>
        line.includes("DMAR") && line.includes(`[${address}]`)
      )
      assert.ok(faults.length > 0, "the IOMMU has noticed nothing")
    }
    yield* roundTrip(yield* open(target), 5)
  })
}

export const outlivesItsOwner: Check = {
  name: "works for the next one after its owner was killed in the midst of reading",
  body: Effect.fnUntraced(function*(target) {
    yield* Owner.startAndKill(target)
    yield* roundTrip(yield* open(target), 3)
  })
}

export const takenAway: Check = {
  name: "fails what is in flight when it is taken away, says what is missing, and comes back",
  body: Effect.fnUntraced(function*(target) {
    const { path } = target.recipe
    const address = basename(path)
    let unbound: Promise<unknown> = Promise.resolve()
    yield* Effect.scoped(Effect.gen(function*() {
      const disk = yield* open(target)
      const { bytes } = yield* disk.allocate(64 * KiB)
      const reading = yield* Effect.forkScoped(
        disk.queue(0).process(Stream.forever(Stream.make({ _tag: "read", offset: 0, buffer: bytes } as const))).pipe(
          Stream.runDrain
        ),
        { startImmediately: true }
      )
      // The kernel waits with it until the device is let go of.
      const unbinding = spawn("sh", ["-c", `echo ${address} > ${path}/driver/unbind`], { stdio: "inherit" })
      unbound = once(unbinding, "exit")
      assert.equal(yield* errnoOf(Fiber.join(reading)), "ENODEV")
      assert.equal(yield* errnoOf(disk.queue(0).flush()), "ENODEV")
    }))
    yield* Effect.promise(() => unbound)
    const error = yield* Effect.flip(Effect.scoped(VirtioBlk.create(target.recipe).connect))
    assert.match(error.message, /vfio-pci/)
    writeFileSync(`${dirname(dirname(path))}/drivers_probe`, address)
    yield* roundTrip(yield* open(target), 4)
  })
}
