/**
 * A way to provoke each errno that the public API declares, by that API: on the real system where it can be had, else on a
 * backend that misbehaves, and on a simulated kernel for what cannot be asked of a machine.
 */
import { Effect, Exit, Schedule, Scope } from "effect"
import koffi from "koffi"
import * as fs from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import type * as Errno from "../../src/Errno.ts"
import { Kernel } from "../../src/Native/Kernel.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { FrontendRequest } from "../../src/Wire/VhostUserMessage.ts"
import { encodeConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import {
  BlockStore,
  Embedded,
  Export,
  MemoryRegion,
  type Transport,
  VhostUser,
  VhostVdpa,
  VirtioBlk
} from "../../src/index.ts"
import { FakeBackend } from "../../src/testing/index.ts"
import { config } from "../Properties/facts.ts"
import { SimulatedVdpa } from "../support/SimulatedVdpa.ts"
import type { DeclaredTag } from "./declared.ts"

const MiB = 2 ** 20

const directory = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(Path.join(tmpdir(), "blkio-errors-"))),
  (path) => Effect.sync(() => fs.rmSync(path, { recursive: true }))
)

const pathOf = (name: string) => Effect.map(directory, (folder) => Path.join(folder, name))

/** A plain file. */
const file = Effect.tap(pathOf("file"), (path) => Effect.sync(() => fs.writeFileSync(path, new Uint8Array(512))))

const owned = (open: () => number) =>
  Effect.acquireRelease(Effect.sync(open), (fd) => Effect.sync(() => Libc.close(fd)))

const connect = (path: string) => Effect.flatMap(VhostUser.make({ path }), (transport) => VirtioBlk.make(transport))

/** A disk in memory behind the whole stack. */
const disk = Embedded.memory({ capacity: MiB })

/** A disk on a backend of our own. */
const served = Effect.fnUntraced(function*(store: BlockStore.BlockStore) {
  const path = yield* pathOf("socket")
  yield* Export.serve(store, { path })
  return path
})

/** A backend that says what it is told to say. */
const backend = (script: Partial<FakeBackend.Script>, options: Omit<VhostUser.Options, "path" | "fd"> = {}) =>
  Effect.flatMap(FakeBackend.make(script), ({ fd }) => VhostUser.make({ ...options, fd }))

/** A configuration space as long as any front-end may ask for. */
const configOf = (changes: Partial<typeof config>) => {
  const bytes = new Uint8Array(256)
  bytes.set(encodeConfig({ ...config, ...changes }))
  return bytes
}

/** A disk that never answers a request. It offers neither discard nor more than two regions. */
const silentDisk = Effect.flatMap(
  backend({
    features: featureMask(FeatureBit.VERSION_1, FeatureBit.PROTOCOL_FEATURES),
    config: configOf({}),
    slots: 2n
  }),
  (transport) => VirtioBlk.make(transport, { closeTimeout: 10 })
)

/** What connecting to a backend does that goes wrong at its first answer. */
const goesWrong = (what: FakeBackend.Fault, options: Omit<VhostUser.Options, "path" | "fd"> = {}) =>
  Effect.flatMap(
    backend({ fault: { request: FrontendRequest.GET_FEATURES, what } }, options),
    (transport: Transport["Service"]) => VirtioBlk.make(transport)
  )

const libc = koffi.load(null)
const socket: (domain: number, type: number, protocol: number) => number = libc.func(
  "int socket(int domain, int type, int protocol)"
)
const prlimit: (pid: number, resource: number, limit: BigUint64Array | null, old: BigUint64Array | null) => number =
  libc.func("int prlimit(int pid, int resource, void *limit, _Out_ void *old)")
const AF_UNIX = 1
const SOCK_SEQPACKET = 5
const RLIMIT_NOFILE = 7

/** Runs what ends in the same turn while no further descriptor can be had: nothing else may want one meanwhile. */
const withoutDescriptors = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const limits = new BigUint64Array(2)
      prlimit(0, RLIMIT_NOFILE, null, limits)
      prlimit(0, RLIMIT_NOFILE, BigUint64Array.of(0n, limits[1] ?? 0n), null)
      return limits
    }),
    () => effect,
    (limits) => Effect.sync(() => prlimit(0, RLIMIT_NOFILE, limits, null))
  )

interface Provocation {
  /** What is done wrong. */
  readonly by: string
  readonly attempt: Effect.Effect<unknown, Errno.Any, Scope.Scope>
}

export const provocations: Record<DeclaredTag, Provocation> = {
  EPERM: {
    by: "making a file shorter that is sealed",
    attempt: Effect.gen(function*() {
      const fd = yield* owned(() => Libc.createMemoryFile("effect-blkio-sealed", 2 * 4096))
      yield* BlockStore.file({ path: `/proc/self/fd/${fd}`, size: 4096 })
    })
  },
  ENOENT: {
    by: "connecting to a socket that is not there",
    attempt: Effect.flatMap(pathOf("socket"), connect)
  },
  EIO: {
    by: "reading from a disk whose store fails",
    attempt: Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: MiB })
      const path = yield* served(yield* BlockStore.failing(store, [{ operation: "read", errno: "EIO" }]))
      yield* (yield* connect(path)).readBytes(0, 512)
    })
  },
  ENXIO: {
    by: "opening a socket as a file",
    attempt: Effect.gen(function*() {
      const path = yield* served(yield* BlockStore.memory({ capacity: MiB }))
      yield* BlockStore.file({ path })
    })
  },
  EBADF: {
    by: "writing to a disk that was opened to be read",
    attempt: Effect.flatMap(
      Embedded.memory({ capacity: MiB, readOnly: true }),
      (disk) => disk.writeBytes(0, new Uint8Array(512))
    )
  },
  ENOMEM: {
    by: "allocating more huge pages than there are",
    attempt: MemoryRegion.allocate(2 ** 33, { hugePages: true })
  },
  EACCES: {
    by: "setting the capacity",
    attempt: Effect.flatMap(disk, ({ properties }) => properties.setString("capacity", "512"))
  },
  EFAULT: {
    by: "reading into memory that the device does not reach",
    attempt: Effect.flatMap(disk, (disk) => disk.queue(0).read(0, new Uint8Array(512)))
  },
  EBUSY: {
    by: "setting the size of a queue that runs",
    attempt: Effect.flatMap(disk, ({ properties }) => properties.setString("queue-size", "16"))
  },
  EEXIST: {
    by: "mapping a region that overlaps another",
    attempt: Effect.gen(function*() {
      const fd = yield* owned(() => Libc.createMemoryFile("effect-blkio-shared", 2 * 4096))
      const { map } = yield* disk
      yield* map(yield* MemoryRegion.fromFd({ fd, offset: 0, length: 4096 }))
      yield* map(yield* MemoryRegion.fromFd({ fd, offset: 0, length: 2 * 4096 }))
    })
  },
  ENODEV: {
    by: "using a queue that does not exist",
    attempt: Effect.flatMap(disk, (disk) => disk.queue(1).flush())
  },
  ENOTDIR: {
    by: "connecting to a path below a file",
    attempt: Effect.flatMap(file, (path) => connect(`${path}/socket`))
  },
  EISDIR: {
    by: "opening a directory as a file",
    attempt: Effect.flatMap(directory, (path) => BlockStore.file({ path }))
  },
  EINVAL: {
    by: "reading a part of a block",
    attempt: Effect.gen(function*() {
      const { allocate, queue } = yield* disk
      const region = yield* allocate(4096)
      yield* queue(0).read(0, region.bytes.subarray(0, 100))
    })
  },
  ENFILE: {
    by: "opening a device when the system is out of files",
    attempt: Effect.gen(function*() {
      const simulated = new SimulatedVdpa()
      simulated.faults.set("open", 23)
      const transport = yield* VhostVdpa.make({ path: "/dev/vhost-vdpa-0" })
      yield* Effect.provideService(VirtioBlk.make(transport), Kernel, simulated.kernel)
    })
  },
  EMFILE: {
    by: "allocating memory when no descriptor is left",
    attempt: withoutDescriptors(MemoryRegion.allocate(4096))
  },
  ENOTTY: {
    by: "setting a bool to a number",
    attempt: Effect.flatMap(
      pathOf("socket"),
      (path) =>
        Effect.flatMap(
          VhostUser.make({ path }),
          (transport) => VirtioBlk.create(transport).properties.setUnknown("read-only", 1)
        )
    )
  },
  EFBIG: {
    by: "making a file larger than a file may be",
    attempt: Effect.flatMap(pathOf("file"), (path) => BlockStore.file({ path, create: true, size: 2 ** 52 }))
  },
  ENOSPC: {
    by: "allocating more regions than the device takes",
    attempt: Effect.flatMap(silentDisk, ({ allocate }) => Effect.forEach([1, 2, 3], () => allocate(4096)))
  },
  EROFS: {
    by: "opening a read-only disk to write to it",
    attempt: Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: MiB })
      yield* connect(yield* served(BlockStore.readOnly(store)))
    })
  },
  ENAMETOOLONG: {
    by: "connecting to a path of 108 bytes",
    attempt: connect(`/${"x".repeat(107)}`)
  },
  ELOOP: {
    by: "connecting to a link to itself",
    attempt: Effect.flatMap(pathOf("link"), (path) => {
      fs.symlinkSync(path, path)
      return connect(path)
    })
  },
  ETIME: {
    by: "asking for a completion in no time",
    attempt: Effect.gen(function*() {
      const { allocate, queue } = yield* silentDisk
      const region = yield* allocate(4096)
      yield* queue(0).submit([{ _tag: "read", offset: 0, buffer: region.bytes }])
      yield* queue(0).completions({ min: 1, timeout: 0 })
    })
  },
  EPROTO: {
    by: "connecting to a backend that does not mark its reply as one",
    attempt: goesWrong("no reply flag")
  },
  EOVERFLOW: {
    by: "connecting to a disk of 2^64 sectors",
    attempt: Effect.flatMap(
      backend({ config: configOf({ capacitySectors: 2n ** 64n - 1n }) }),
      (transport) => VirtioBlk.make(transport)
    )
  },
  ENOTSOCK: {
    by: "connecting by a descriptor that is no socket",
    attempt: Effect.flatMap(
      owned(Libc.createEventFd),
      (fd) => Effect.flatMap(VhostUser.make({ fd }), (transport) => VirtioBlk.make(transport))
    )
  },
  EPROTOTYPE: {
    by: "connecting to a socket of packets",
    attempt: Effect.gen(function*() {
      const path = yield* pathOf("socket")
      const fd = yield* owned(() => socket(AF_UNIX, SOCK_SEQPACKET, 0))
      Libc.bindUnixSocket(fd, path)
      Libc.listen(fd, 1)
      yield* connect(path)
    })
  },
  ENOTSUP: {
    by: "discarding on a device that does not offer it",
    attempt: Effect.flatMap(silentDisk, ({ queue }) => queue(0).discard(0, 4096))
  },
  EADDRINUSE: {
    by: "serving where a file is",
    attempt: Effect.gen(function*() {
      const store = yield* BlockStore.memory({ capacity: MiB })
      yield* Export.serve(store, { path: yield* file })
    })
  },
  ENOTCONN: {
    by: "connecting to a backend that hangs up",
    attempt: goesWrong("close")
  },
  ESHUTDOWN: {
    by: "using a disk whose Scope has closed",
    attempt: Effect.flatMap(Effect.scoped(disk), ({ flush }) => flush)
  },
  ETIMEDOUT: {
    by: "connecting to a backend that does not answer",
    attempt: goesWrong("silence", { replyTimeout: 50 })
  },
  ESTALE: {
    by: "reconnecting to a disk that is smaller",
    attempt: Effect.gen(function*() {
      const path = yield* pathOf("socket")
      const scope = yield* Scope.fork(yield* Effect.scope)
      yield* Effect.flatMap(BlockStore.memory({ capacity: 2 * MiB }), (store) => Export.serve(store, { path })).pipe(
        Scope.provide(scope)
      )
      const transport = yield* VhostUser.make({ path, reconnect: Schedule.spaced(5) })
      const { readBytes } = yield* VirtioBlk.make(transport)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.flatMap(BlockStore.memory({ capacity: MiB }), (store) => Export.serve(store, { path }))
      yield* readBytes(0, 512)
    })
  },
  ECONNREFUSED: {
    by: "connecting to a file",
    attempt: Effect.flatMap(file, connect)
  }
}
