/**
 * A STORE argument, opened as a block store until the Scope closes: a DEVICE (see `Device`), `file:PATH`, `memory:SIZE` (zeroes at first), or `overlay:PATH` (a file that is never written to: what is written stays in memory).
 *
 * What is only read is opened read-only, so that a read-only export serves. A file that is a target is made, or grown, to
 * the size that is needed; a longer one keeps its size. An image that is a target is made, where there is none. What lies in memory is lost at the end, and so is no target.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Argument } from "effect/cli"
import { fromStarted } from "../BlockDevice.ts"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as Errno from "../Errno.ts"
import type { CreateError, Requirements } from "../QemuStorageDaemon/QemuStorageDaemon.ts"
import type * as VirtioBlk from "../VirtioBlk.ts"
import * as Device from "./Device.ts"
import { parseBytes } from "./format.ts"

/** A parsed STORE. */
export type Store =
  & {
    /** As it was given. */
    readonly text: string
    /** The file, or the socket at which the device is; empty for memory. */
    readonly path: string
  }
  & (
    | { readonly _tag: "device"; readonly device: Device.Device }
    | { readonly _tag: "file" | "overlay" }
    | { readonly _tag: "memory"; readonly capacity: number }
  )

/** What opening may fail with. */
export type OpenError =
  | BlockStore.FileError
  | VirtioBlk.ConnectDeviceError
  | VirtioBlk.StartError
  | CreateError
  | Device.UsageError

/** What a STORE begins with that is no DEVICE. */
const SCHEME = /^(?<scheme>file|memory|overlay):(?<rest>.*)$/su

const SECTOR_BYTES = 512

/** The argument of a command that reads, or serves. */
export const argument = (name: string): Argument.Argument<string> =>
  Argument.String(name).pipe(
    Argument.withDescription(`${Device.FORMS}, file:PATH, memory:SIZE or overlay:PATH`)
  )

/** The argument of a command that writes what is to stay. */
export const target = (name: string): Argument.Argument<string> =>
  Argument.String(name).pipe(Argument.withDescription(`${Device.FORMS} or file:PATH`))

/** Reads a STORE, and checks all of it that can be checked without opening it. */
export const parse = (text: string): Effect.Effect<Store, Device.UsageError, Requirements> => {
  const { rest = "", scheme } = SCHEME.exec(text)?.groups ?? {}
  switch (scheme) {
    case "file":
    case "overlay":
      return rest === ""
        ? wrongUsage(`${scheme}: needs a path`)
        : Effect.succeed({ _tag: scheme, text, path: rest })
    case "memory": {
      const capacity = parseBytes(rest)
      return capacity === undefined || capacity === 0 || capacity % SECTOR_BYTES !== 0
        ? wrongUsage(
          `${text}: the size must be a positive multiple of ${SECTOR_BYTES} bytes, such as 4096, 64M or 1G`
        )
        : Effect.succeed({ _tag: scheme, text, path: "", capacity })
    }
    default:
      return parseDevice(text)
  }
}

const parseDevice = (text: string): Effect.Effect<Store, Device.UsageError, Requirements> =>
  Device.parse(text).pipe(
    Effect.map((device): Store => ({ _tag: "device", text, path: device.path, device })),
    Effect.mapError((error) => {
      const { detail, operation } = error.reason
      return error.reason._tag === "ENOENT" && operation === "device"
        ? new Device.UsageError({ reason: new Errno.ENOENT({ operation, detail: `${detail}; a file is file:PATH` }) })
        : error
    })
  )

const wrongUsage = (detail: string) =>
  new Device.UsageError({ reason: new Errno.EINVAL({ operation: "store", detail }) })

/** What opening needs: the Scope that closes it, files, and programs. */
type Needs = Scope.Scope | Requirements

/** Opens a store to read from it. */
export const openSource = (store: Store): Effect.Effect<BlockStore.BlockStore, OpenError, Needs> => {
  switch (store._tag) {
    case "device":
      // What the user sets comes later, and counts.
      return openDevice(store, {
        ...store.device,
        settings: [["read-only", "true"], ...store.device.settings]
      })
    case "file":
      return openFile(store, true)
    case "memory":
      return Effect.map(BlockStore.memory({ capacity: store.capacity }), naming(store))
    case "overlay":
      return openOverlay(store)
  }
}

/** Opens a store to read from it and write to it, in the size that it has. */
export const openShared = (store: Store): Effect.Effect<BlockStore.BlockStore, OpenError, Needs> => {
  switch (store._tag) {
    case "device":
      return openDevice(store, store.device)
    case "file":
      return openFile(store, false)
    case "memory":
    case "overlay":
      return openSource(store)
  }
}

/** Opens a store to write `size` bytes to it. */
export const openTarget = Effect.fnUntraced(function*(
  store: Store,
  size: number
): Effect.fn.Return<BlockStore.BlockStore, OpenError, Needs> {
  const { path } = store
  switch (store._tag) {
    case "device": {
      const { create } = store.device
      if (create !== undefined && Option.isNone(yield* statOf(path))) yield* create(size)
      const target = yield* openDevice(store, store.device)
      if (!target.readOnly) return target
      const detail = "a target cannot be read-only=true"
      return yield* new Device.UsageError({ reason: new Errno.EBADF({ operation: "store", path, detail }) })
    }
    case "file": {
      const existing = Option.getOrUndefined(yield* statOf(path))
      const isLongEnough = existing?.type === "File" && Number(existing.size) >= size
      const file = isLongEnough
        ? BlockStore.file({ path })
        : BlockStore.file({ path, create: existing === undefined, size })
      return naming(store)(yield* file)
    }
    case "memory":
    case "overlay":
      return yield* wrongUsage(`${store.text}: a target is a device or a file; what is written to this would be lost`)
  }
})

const openFile = (store: Store, readOnly: boolean) =>
  Effect.andThen(
    refuseHalfBlocks(store.path),
    Effect.map(BlockStore.file({ path: store.path, readOnly }), naming(store))
  )

const openOverlay = Effect.fnUntraced(function*(store: Store) {
  const base = yield* openFile(store, true)
  const top = yield* BlockStore.memory({ capacity: base.capacity, blockSize: base.blockSize })
  return naming(store)(yield* BlockStore.overlay(base, top))
})

/** Tells whether two stores are one file, or one socket. */
export const isSame = Effect.fnUntraced(function*(
  a: Store,
  b: Store
): Effect.fn.Return<boolean, never, FileSystem.FileSystem> {
  const [one, other] = yield* Effect.all([statOf(a.path), statOf(b.path)])
  if (Option.isNone(one) || Option.isNone(other) || Option.isNone(one.value.ino)) return false
  return one.value.dev === other.value.dev && one.value.ino.value === Option.getOrUndefined(other.value.ino)
})

const statOf = (path: string): Effect.Effect<Option.Option<FileSystem.File.Info>, never, FileSystem.FileSystem> =>
  FileSystem.FileSystem.use((fs) => Effect.option(fs.stat(path)))

/** A store is whole blocks: what a file has beyond them would be left out without a word. */
const refuseHalfBlocks = Effect.fnUntraced(function*(path: string) {
  const stat = Option.getOrUndefined(yield* statOf(path))
  if (stat?.type !== "File" || Number(stat.size) % SECTOR_BYTES === 0) return
  const detail = `${stat.size} bytes: the size of a disk image is a multiple of ${SECTOR_BYTES}`
  return yield* new Errno.EINVAL({ operation: "open", path, detail })
})

const openDevice = Effect.fnUntraced(function*(store: Store, device: Device.Device) {
  const connected = yield* Device.connect(device)
  return naming(store)(yield* fromStarted(yield* connected.start()))
})

/** Makes the errors of a store say which store it was, and where in it. */
const naming = ({ path, text }: Store) => (store: BlockStore.BlockStore): BlockStore.BlockStore => ({
  // What the store has beyond the interface (where its holes are) stays.
  ...store,
  ...BlockStore.around(store, {
    name: "",
    run: (operation, effect) => Effect.mapError(effect, (error) => locate(error, path === "" ? text : path, operation))
  }),
  id: text,
  // Spreading has read it once; it changes.
  get capacity() {
    return store.capacity
  }
})

const locate = (error: BlockStore.StoreError, path: string, operation: BlockStore.Operation): BlockStore.StoreError => {
  const { length, name, offset } = operation
  const range = name === "flush" ? {} : { offset, length }
  return Errno.fromNumber(error.errno, BlockStore.storeErrors, { ...range, path, ...fieldsOf(error), operation: name })
}

/** What an error is made of, to make another of it. */
export const fieldsOf = (error: BlockStore.StoreError): Errno.ErrnoFields => {
  const { _tag, ...fields }: Errno.ErrnoFields & { readonly _tag: string } = error
  return fields
}
