/**
 * A STORE argument: a DEVICE (`driver[,property=value…]`) or `file:PATH`, opened as a block store until the Scope closes.
 *
 * What is only read is opened read-only, so that a read-only export serves. A file that is written to is made, or grown, to
 * the size that is needed; a longer one keeps its size.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Argument } from "effect/cli"
import { fromStarted } from "../BlockDevice.ts"
import * as BlockStore from "../BlockStore/BlockStore.ts"
import * as Errno from "../Errno.ts"
import type * as VirtioBlk from "../VirtioBlk.ts"
import * as Device from "./Device.ts"

/** A parsed STORE. */
export interface Store {
  /** As it was given. */
  readonly text: string
  /** The file, or the socket at which the device is. */
  readonly path: string
  readonly device: Device.Device | undefined
}

/** What opening may fail with. */
export type OpenError =
  | BlockStore.FileError
  | VirtioBlk.ConnectDeviceError
  | VirtioBlk.StartError
  | Device.UsageError

const FILE = "file:"

/** The argument of a command. */
export const argument = (name: string): Argument.Argument<string> =>
  Argument.String(name).pipe(Argument.withDescription("driver[,property=value…] or file:PATH"))

/** Reads a STORE, and checks all of it that can be checked without opening it. */
export const parse = (text: string): Effect.Effect<Store, Device.UsageError> => {
  if (text.startsWith(FILE)) {
    const path = text.slice(FILE.length)
    return path === ""
      ? wrongUsage("file: needs a path")
      : Effect.succeed({ text, path, device: undefined })
  }
  return Device.parse(text).pipe(
    Effect.map((device) => ({ text, path: device.transport.path, device })),
    Effect.mapError((error) => {
      const { detail, operation } = error.reason
      return error.reason._tag === "ENOENT" && operation === "device"
        ? new Device.UsageError({ reason: new Errno.ENOENT({ operation, detail: `${detail}; a file is file:PATH` }) })
        : error
    })
  )
}

const wrongUsage = (detail: string) =>
  new Device.UsageError({ reason: new Errno.EINVAL({ operation: "store", detail }) })

/** Opens a store to read from it. */
export const openSource = (
  store: Store
): Effect.Effect<BlockStore.BlockStore, OpenError, Scope.Scope | FileSystem.FileSystem> => {
  if (store.device === undefined) {
    return Effect.andThen(
      refuseHalfBlocks(store.path),
      Effect.map(BlockStore.file({ path: store.path, readOnly: true }), naming(store))
    )
  }
  // What the user sets comes later, and counts.
  return openDevice(store, {
    ...store.device,
    settings: [["read-only", "true"], ...store.device.settings]
  })
}

/** Opens a store to write `size` bytes to it. */
export const openTarget = Effect.fnUntraced(function*(
  store: Store,
  size: number
): Effect.fn.Return<BlockStore.BlockStore, OpenError, Scope.Scope | FileSystem.FileSystem> {
  const { device, path } = store
  if (device === undefined) {
    const existing = Option.getOrUndefined(yield* statOf(path))
    const isLongEnough = existing?.type === "File" && Number(existing.size) >= size
    const file = isLongEnough
      ? BlockStore.file({ path })
      : BlockStore.file({ path, create: existing === undefined, size })
    return naming(store)(yield* file)
  }
  const target = yield* openDevice(store, device)
  if (!target.readOnly) return target
  const detail = "a target cannot be read-only=true"
  return yield* new Device.UsageError({ reason: new Errno.EBADF({ operation: "store", path, detail }) })
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

const SECTOR_BYTES = 512

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
    run: (operation, effect) => Effect.mapError(effect, (error) => locate(error, path, operation))
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
