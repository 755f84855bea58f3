/**
 * Goal: calling too early or too late does not compile, and the type of each operation says exactly how it can fail.
 *
 * Method: the compiler is the test. `tsc` checks this file: each `@ts-expect-error` fails the type check where the line below
 * it compiles, and each `same<A, B>()` where the types differ. Nothing of it runs but the last lines, so that it counts.
 */
import { expect, it } from "@effect/vitest"
import type { Config, Effect, Layer, Scope, Stream } from "effect"
import type * as Errno from "../../src/Errno.ts"
import type { ConnectError, Recipe } from "../../src/Transport/Transport.ts"
import {
  BlockDevice,
  type IoQueue,
  type MemoryRegion,
  type Properties,
  type Transport,
  type VhostUser,
  VirtioBlk
} from "../../src/index.ts"

// Two functions are the same to the compiler only where what their conditions compare with is: `any` is caught, too.
// oxlint-disable-next-line typescript/no-unnecessary-type-parameters
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false

/** Compiles where both types are the same; unions in whatever order. */
const same = <A, B>(..._proof: Same<A, B> extends true ? [] : ["the types differ"]): void => {}

type ErrorOf<T> = T extends Effect.Effect<unknown, infer E, infer _R> ? E
  : T extends Stream.Stream<unknown, infer E, infer _R> ? E
  : T extends Layer.Layer<infer _A, infer E, infer _R> ? E
  : never
type FailureOf<F> = F extends (...args: Array<never>) => infer R ? ErrorOf<R> : ErrorOf<F>

declare const created: VirtioBlk.CreatedDevice
declare const connected: VirtioBlk.ConnectedDevice
declare const started: Effect.Success<ReturnType<VirtioBlk.ConnectedDevice["start"]>>

export const properties = () => {
  // What each phase allows.
  void created.properties.set({ readOnly: true })
  void connected.properties.set({ numQueues: 2, numPollQueues: 1, queueSize: 128 })
  void created.properties.get("read-only")
  void connected.properties.get("capacity")
  void started.properties.get("max-queues")
  void started.properties.set({})

  // Too early.
  // @ts-expect-error
  void created.properties.set({ numQueues: 2 })
  // @ts-expect-error
  void created.properties.set({ numPollQueues: 2 })
  // @ts-expect-error
  void created.properties.set({ queueSize: 2 })
  // @ts-expect-error
  void created.properties.get("capacity")
  // @ts-expect-error
  void created.properties.get("max-queues")
  // @ts-expect-error
  void created.properties.get("max-mem-regions")
  // @ts-expect-error
  type _Capacity = Effect.Success<typeof created.properties.getAll>["capacity"]

  // Too late.
  // @ts-expect-error
  void connected.properties.set({ readOnly: true })
  // @ts-expect-error
  void started.properties.set({ readOnly: true })
  // @ts-expect-error
  void started.properties.set({ numQueues: 2 })
  // @ts-expect-error
  void started.properties.set({ queueSize: 64 })

  // Never.
  // @ts-expect-error
  void created.properties.set({ capacity: 512 })
  // @ts-expect-error
  void connected.properties.set({ maxQueues: 2 })
  // @ts-expect-error
  void created.properties.set({ path: "/run/other.sock" })

  // Not in a variable either, where excess properties would pass.
  const settings = { readOnly: true, numQueues: 2 }
  // @ts-expect-error
  void created.properties.set(settings)
  // @ts-expect-error
  void connected.properties.set(settings)

  // Names and values of another type.
  // @ts-expect-error
  void connected.properties.get("capcity")
  // @ts-expect-error
  void connected.properties.set({ numQueue: 2 })
  // @ts-expect-error
  void connected.properties.set({ numQueues: "2" })
  // @ts-expect-error
  void created.properties.set({ readOnly: 1 })

  same<Effect.Success<typeof connected.properties.getAll>["capacity"], number>()
  same<Effect.Success<typeof connected.properties.getAll>["driver"], string>()
  same<Effect.Success<typeof created.properties.getAll>["readOnly"], boolean>()
  same<FailureOf<typeof created.properties.get>, never>()
  same<FailureOf<typeof created.properties.set>, Errno.EINVAL | Errno.EBUSY>()
  same<FailureOf<typeof created.properties.getUnknown>, Errno.ENOENT | Errno.ENODEV>()
  same<
    FailureOf<typeof created.properties.setUnknown>,
    Errno.ENOENT | Errno.ENOTTY | Errno.EACCES | Errno.ENODEV | Errno.EBUSY | Errno.EINVAL
  >()
  same<
    FailureOf<typeof created.properties.setString>,
    Errno.ENOENT | Errno.EACCES | Errno.ENODEV | Errno.EBUSY | Errno.EINVAL
  >()
}

export const lifecycle = () => {
  // @ts-expect-error a created device has no queues to start
  void created.start()
  // @ts-expect-error a connected device is connected
  void connected.connect
  // @ts-expect-error nor has it queues
  void connected.queue(0)
  // @ts-expect-error a started device is started
  void started.start()
  // @ts-expect-error an event queue does not poll
  void connected.start({ waiting: "poll" })
  // @ts-expect-error read-only is for connecting
  void VirtioBlk.layerStarted({ readOnly: true })
  // @ts-expect-error the number of queues is for starting
  void VirtioBlk.layerConnected({ numQueues: 2 })

  same<ErrorOf<VirtioBlk.CreatedDevice["connect"]>, ConnectError | Errno.ENODEV | Errno.EOVERFLOW>()
  same<
    FailureOf<typeof connected.start>,
    | Errno.EINVAL
    | Errno.EBADF
    | Errno.EACCES
    | Errno.ENODEV
    | Errno.ENOMEM
    | Errno.ENOSPC
    | Errno.EMFILE
    | Errno.ENFILE
    | Errno.EIO
    | Errno.ENOTCONN
    | Errno.ETIMEDOUT
    | Errno.EPROTO
    | Errno.EROFS
    | Errno.EBUSY
  >()
  same<Effect.Services<VirtioBlk.CreatedDevice["connect"]>, Scope.Scope>()
  same<Effect.Services<ReturnType<typeof connected.start>>, Scope.Scope>()
}

export const requests = () => {
  type Dead = Errno.ENOTCONN | Errno.ETIMEDOUT | Errno.EPROTO | Errno.ENODEV | Errno.ESTALE | Errno.ESHUTDOWN
  same<IoQueue.DeviceFailure, Dead>()
  same<
    FailureOf<IoQueue.IoQueue["read"]>,
    Errno.EINVAL | Errno.EFAULT | Errno.ENOTSUP | Errno.EIO | Errno.ETIME | Dead
  >()
  same<FailureOf<IoQueue.IoQueue["readv"]>, FailureOf<IoQueue.IoQueue["read"]>>()
  same<
    FailureOf<IoQueue.IoQueue["write"]>,
    Errno.EINVAL | Errno.EFAULT | Errno.ENOTSUP | Errno.EIO | Errno.ETIME | Errno.EBADF | Dead
  >()
  same<FailureOf<IoQueue.IoQueue["writev"]>, FailureOf<IoQueue.IoQueue["write"]>>()
  same<
    FailureOf<IoQueue.IoQueue["discard"]>,
    Errno.EINVAL | Errno.ENOTSUP | Errno.EBADF | Errno.EIO | Errno.ETIME | Dead
  >()
  same<FailureOf<IoQueue.IoQueue["writeZeroes"]>, FailureOf<IoQueue.IoQueue["discard"]>>()
  same<FailureOf<IoQueue.IoQueue["flush"]>, Errno.EINVAL | Errno.ENOTSUP | Errno.EIO | Errno.ETIME | Dead>()
  same<FailureOf<IoQueue.IoQueue["submit"]>, Dead>()
  same<FailureOf<IoQueue.IoQueue["completions"]>, Errno.EINVAL | Errno.ETIME | Dead>()
  same<FailureOf<typeof started.unmap>, never>()
  same<FailureOf<typeof started.map>, Errno.EINVAL | Errno.EEXIST | Errno.ENOSPC | Errno.ENOMEM | Errno.EIO | Dead>()
  same<FailureOf<typeof started.allocate>, MemoryRegion.MemoryError | FailureOf<typeof started.map>>()

  // A completion holds the caller's own request, with the fields that are the caller's.
  interface Mine extends IoQueue.Read {
    readonly name: string
  }
  const process = (queue: IoQueue.IoQueue, stream: Stream.Stream<Mine, "up">) => queue.process(stream)
  type Completions = ReturnType<typeof process>
  same<Stream.Success<Completions>["request"], Mine>()
  same<ErrorOf<Completions>, "up" | Dead>()
  const processFrom = (queue: IoQueue.IoQueue, next: () => ReadonlyArray<Mine>) => queue.processFrom(next)
  same<Stream.Success<ReturnType<typeof processFrom>>["request"], Mine>()
  same<ErrorOf<ReturnType<typeof processFrom>>, Dead>()
  const loop = (queue: IoQueue.IoQueue, next: () => ReadonlyArray<Mine>) =>
    queue.loop<Mine>((completed) => (completed.map(({ request }) => request.name), next()))
  same<ErrorOf<ReturnType<typeof loop>>, Dead>()

  // A request lacks nothing and has nothing of another kind.
  // @ts-expect-error
  const _noBuffer: IoQueue.Request = { _tag: "read", offset: 0 }
  // @ts-expect-error
  const _noTag: IoQueue.Request = { offset: 0, buffer: new Uint8Array() }
  // @ts-expect-error
  const _bigint: IoQueue.Request = { _tag: "discard", offset: 0n, length: 512 }
}

export const layers = () => {
  type Started = ReturnType<typeof VirtioBlk.layer>
  same<
    Started extends Layer.Layer<infer A, infer _E, infer R> ? readonly [A, R] : never,
    readonly [
      BlockDevice,
      Transport
    ]
  >()
  same<ErrorOf<Started>, VirtioBlk.ConnectDeviceError | VirtioBlk.StartError>()
  same<
    ErrorOf<ReturnType<typeof VirtioBlk.layerConfig>>,
    Config.ConfigError | VirtioBlk.ConnectDeviceError | VirtioBlk.StartError
  >()
  same<
    ReturnType<typeof VirtioBlk.layerConnected> extends Layer.Layer<infer A, infer _E, infer R> ? readonly [A, R]
      : never,
    readonly [Properties | VirtioBlk.Connected, Transport]
  >()
  same<ReturnType<typeof VhostUser.make>, Effect.Effect<Recipe, Errno.EINVAL>>()

  class Source extends BlockDevice.Tag<Source>()("Source") {}
  class Target extends BlockDevice.Tag<Target>()("Target") {}
  same<Effect.Services<typeof Source>, Source>()
  // One disk does not stand for the other.
  same<Same<Source, Target>, false>()
}

it("compiles", () => {
  expect([properties, lifecycle, requests, layers].map((checked) => typeof checked)).toStrictEqual(
    ["function", "function", "function", "function"]
  )
})
