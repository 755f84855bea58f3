/**
 * A DEVICE argument: `driver[,property=value…]`, for example `virtio-blk-vhost-user,path=/run/disk.sock,num-queues=4`; or an image
 * in place of the driver (see `ImageArgument`).
 *
 * A comma inside a value is written twice, as in QEMU's options. `path` and `fd` say how the device is reached; any other
 * property is set in the phase that allows it.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Errno from "../Errno.ts"
import { describe, type DeviceProperties, type Phase, type SetError } from "../Properties/Properties.ts"
import { PropertyState } from "../Properties/PropertyState.ts"
import type { CreateError, Requirements } from "../QemuStorageDaemon/QemuStorageDaemon.ts"
import type { DriverName, Recipe } from "../Transport/Transport.ts"
import * as VfioPci from "../Transport/VfioPci.ts"
import * as VhostUser from "../Transport/VhostUser.ts"
import * as VhostVdpa from "../Transport/VhostVdpa.ts"
import * as VirtioBlk from "../VirtioBlk.ts"
import type { ImageError } from "./ImageArgument.ts"
import * as ImageArgument from "./ImageArgument.ts"

/** How a DEVICE is written. */
export const FORMS = "driver[,property=value…], image:PATH, nbd:URI, rbd:POOL/IMAGE[@CONF]"

type Settings = ReadonlyArray<readonly [name: string, text: string]>

/** A parsed DEVICE. */
export interface Device {
  /** Where it is: a socket, a character device, a file, or a URI. */
  readonly path: string
  readonly settings: Settings
  /** Makes the transport, which for some devices depends on what is set. */
  readonly transport: (settings: Settings) => Effect.Effect<ImageArgument.DeviceRecipe, ImageError, Requirements>
  /** Makes a disk of so many bytes; for what can be made. */
  readonly create?: (size: number) => Effect.Effect<void, ImageError | CreateError, Requirements>
}

/** The command line says something that cannot be, whatever the device is. */
export class UsageError extends Data.TaggedError("UsageError")<{
  readonly reason: Exclude<SetError, Errno.ENOTTY> | Errno.EBADF | ImageError
}> {}

const wrongUsage = (reason: UsageError["reason"]): UsageError => new UsageError({ reason })

const TRANSPORT_PROPERTIES = ["path", "fd"]

type MakeTransport = (options: ReadonlyMap<string, string>) => Effect.Effect<Recipe, Errno.EINVAL | Errno.ENOENT>

const pathOrFd = (
  options: ReadonlyMap<string, string>
): Effect.Effect<{ readonly path?: string; readonly fd?: number }, Errno.EINVAL> => {
  const path = options.get("path")
  const fd = options.get("fd")
  if (fd !== undefined && !/^\d{1,10}$/u.test(fd)) {
    const detail = `fd = ${fd}: must be the number of an open descriptor`
    return new Errno.EINVAL({ operation: "device", detail })
  }
  return Effect.succeed({
    ...(path === undefined ? {} : { path }),
    ...(fd === undefined ? {} : { fd: Number(fd) })
  })
}

const drivers: ReadonlyMap<string, MakeTransport> = new Map<DriverName, MakeTransport>([
  ["virtio-blk-vhost-user", (options) => Effect.flatMap(pathOrFd(options), VhostUser.make)],
  ["virtio-blk-vhost-vdpa", (options) => Effect.flatMap(pathOrFd(options), VhostVdpa.make)],
  // There is no descriptor that stands for a PCI device; the transport says so.
  ["virtio-blk-vfio-pci", (options) => VfioPci.make({ path: "", ...Object.fromEntries(options) })]
])

const driverArgument = (name: string): ImageArgument.DeviceArgument | undefined => {
  const transport = drivers.get(name)
  return transport === undefined ? undefined : { options: TRANSPORT_PROPERTIES, transport }
}

/** Reads a DEVICE, and checks all of it that can be checked without the device. */
export const parse = (text: string): Effect.Effect<Device, UsageError, Requirements> =>
  read(text).pipe(
    Effect.flatMap(Effect.fnUntraced(function*(device) {
      const { settings } = device
      const recipe = yield* device.transport(settings)
      for (const [name, value] of settings) {
        yield* new PropertyState(recipe, phaseOf(name)).in("created").setString(name, value)
      }
      return { ...device, path: recipe.path }
    })),
    Effect.mapError(wrongUsage)
  )

/** The phase in which a property is set; what cannot be set at all is refused in the first. */
const phaseOf = (name: string): Phase =>
  describe.find((property) => property.name === nameOf(name))?.settable[0] ?? "created"

/** A property's name, in which an underscore stands for a dash. */
const nameOf = (name: string): string => name.replaceAll("_", "-")

/** Splits at commas; two of them, from the left, are one of the text. An argument of a program holds no zero byte. */
const split = (text: string): ReadonlyArray<string> =>
  text.replaceAll(",,", "\0").split(",").map((part) => part.replaceAll("\0", ","))

const read = (text: string): Effect.Effect<Omit<Device, "path">, Errno.ENOENT | Errno.EINVAL> =>
  Effect.suspend((): Effect.Effect<Omit<Device, "path">, Errno.ENOENT | Errno.EINVAL> => {
    const [first = "", ...assignments] = split(text)
    const argument = ImageArgument.read(first) ?? driverArgument(first)
    if (argument === undefined) {
      const known = [...drivers.keys(), "image:PATH", "nbd:URI", "rbd:POOL/IMAGE[@CONF]"].join(", ")
      return new Errno.ENOENT({
        operation: "device",
        detail: `there is no driver ${JSON.stringify(first)}; there is ${known}`
      })
    }
    const options = new Map<string, string>()
    const settings: Array<readonly [string, string]> = []
    for (const assignment of assignments) {
      const [, name, value] = /^(?<name>[^=]+)=(?<value>.*)$/su.exec(assignment) ?? []
      if (name === undefined || value === undefined) {
        const detail = `${JSON.stringify(assignment)} must be property=value`
        return new Errno.EINVAL({ operation: "device", detail })
      }
      if (argument.options.includes(name)) options.set(name, value)
      else settings.push([name, value])
    }
    const { create } = argument
    return Effect.succeed({
      settings,
      transport: (set) => argument.transport(options, new Map(set.map(([name, value]) => [nameOf(name), value]))),
      ...(create === undefined ? {} : { create: (size: number) => create(options, size) })
    })
  })

/** Connects a DEVICE, with the properties that its text sets. */
export const connect = (
  { settings: given, transport }: Device
): Effect.Effect<
  VirtioBlk.ConnectedDevice,
  VirtioBlk.ConnectDeviceError | UsageError,
  Scope.Scope | Requirements
> =>
  Effect.gen(function*() {
    const recipe = yield* Effect.mapError(transport(given), wrongUsage)
    // What cannot be written is read; what the user sets comes later, and counts.
    const settings: Settings = recipe.readOnly === true
      ? [["read-only", "true"], ...given]
      : given
    const apply = (properties: Pick<DeviceProperties<Phase>, "setString">, phase: Phase) =>
      Effect.forEach(
        settings.filter(([name]) => phaseOf(name) === phase),
        ([name, text]) => properties.setString(name, text),
        { discard: true }
      ).pipe(Effect.mapError(wrongUsage))
    const created = VirtioBlk.create(recipe)
    yield* apply(created.properties, "created")
    const connected = yield* created.connect
    yield* apply(connected.properties, "connected")
    return connected
  })
