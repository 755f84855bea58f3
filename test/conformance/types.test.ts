/**
 * Goal: what libblkio answers with an errno, and our types exclude, does not compile.
 * Method: the compiler is the test, as in test/types: `tsc` fails where a line below a `@ts-expect-error` compiles. The names
 * are those of libblkio's tests.
 */
import { expect, it } from "@effect/vitest"
import type { Effect, Option } from "effect"
import { type BlockDevice, type MemoryRegion, VhostUser, VirtioBlk } from "../../src/index.ts"

declare const created: VirtioBlk.CreatedDevice
declare const connected: VirtioBlk.ConnectedDevice
declare const started: Effect.Success<ReturnType<VirtioBlk.ConnectedDevice["start"]>>
declare const disk: typeof BlockDevice.Service
declare const region: MemoryRegion.MemoryRegion

const tests = {
  "driver-not-found": () => {
    // @ts-expect-error a driver is a module and not a name (libblkio: ENOENT)
    void VirtioBlk.create("foo")
    // @ts-expect-error nor has a transport a driver's name to choose
    void VhostUser.make({ path: "/run/disk.sock", driver: "foo" })
  },
  "driver-name": () => {
    // @ts-expect-error libblkio: EACCES
    void created.properties.set({ driver: "foo" })
    // @ts-expect-error
    void connected.properties.set({ driver: "foo" })
  },
  started: () => {
    // @ts-expect-error started before it is connected (libblkio: ENODEV)
    void created.start()
    // @ts-expect-error connected after it is started (libblkio: EBUSY)
    void started.connect
    // @ts-expect-error there is nothing to destroy: a Scope does
    void started.destroy()
  },
  capacity: () => {
    // @ts-expect-error libblkio: ENODEV
    void created.properties.get("capacity")
    void connected.properties.get("capacity")
    void started.properties.get("capacity")
    // @ts-expect-error libblkio: EACCES
    void connected.properties.set({ capacity: 1 })
  },
  "get-queue": () => {
    // @ts-expect-error no queue before the start (libblkio: NULL)
    void connected.queue(0)
    // @ts-expect-error
    void connected.pollQueue(0)
    // @ts-expect-error
    void started.queue("0")
  },
  "poll-queues": () => {
    // @ts-expect-error libblkio: ENODEV
    void created.properties.set({ numPollQueues: 1 })
    // @ts-expect-error libblkio: EBUSY
    void started.properties.set({ numPollQueues: 1 })
    const fd: Option.Option<number> = started.pollQueue(0).completionFd
    // @ts-expect-error a poll queue has none (libblkio: -1)
    const _number: number = fd
  },
  "add-remove-queues": () => {
    // @ts-expect-error libblkio: ENOTSUP
    void started.addQueue()
    // @ts-expect-error libblkio: ENOTSUP
    void started.addPollQueue()
    // @ts-expect-error libblkio: ENOENT
    void started.removeQueue(0)
  },
  "map-mem-region": () => {
    // @ts-expect-error libblkio: EBUSY before the start
    void connected.map(region)
    // @ts-expect-error
    void created.map(region)
    void started.map(region)
  },
  "alloc-mem-region": () => {
    // @ts-expect-error libblkio: ENODEV before the device is connected
    void created.allocate(4096)
    // @ts-expect-error a length is a number of bytes
    void started.allocate("4096")
  },
  "map-mem-region-invalid": () => {
    // @ts-expect-error a region knows its own address; `iova` and `flags` do not exist
    void started.map({ ...region, iova: 1 } satisfies MemoryRegion.MemoryRegion)
    // @ts-expect-error a region is more than bytes
    void started.map({ bytes: new Uint8Array(4096) })
  },
  "read-only": () => {
    // @ts-expect-error libblkio: EBUSY
    void connected.properties.set({ readOnly: true })
    // @ts-expect-error
    void started.properties.set({ readOnly: true })
  },
  "user-data": () => {
    // @ts-expect-error a read has no length besides its buffer's
    void disk.queue(0).read(0, new Uint8Array(512), 512, "user data")
  }
}

it.each(Object.keys(tests))("%s", (name) => {
  expect(Object.hasOwn(tests, name)).toBe(true)
})
