/**
 * `blkio info DEVICE`: every property of a device, under libblkio's names. The device is connected and not started.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Argument, Command, Flag } from "effect/cli"
import { describe, type PropertyName, type PropertyValue, toJson, toText } from "../Properties/Properties.ts"
import * as Device from "./Device.ts"

/** The command. */
export const info = Command.make(
  "info",
  {
    device: Argument.String("DEVICE").pipe(Argument.withDescription(Device.FORMS)),
    json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("One JSON object, keyed by property"))
  },
  Effect.fnUntraced(function*({ device, json }) {
    const { properties } = yield* Device.connect(yield* Device.parse(device))
    const values = new Map<PropertyName, PropertyValue>()
    for (const { name } of describe) values.set(name, yield* properties.get(name))
    if (json) return yield* Console.log(JSON.stringify(toJson(values), undefined, 2))
    const width = Math.max(...describe.map(({ name }) => name.length))
    for (const { name, unit } of describe) {
      const value = toText(values.get(name) ?? "")
      yield* Console.log(`${name.padEnd(width)}  ${value}${unit === "bytes" ? ` ${unit}` : ""}`)
    }
  }, Effect.scoped)
).pipe(
  Command.withDescription("Print every property of a device"),
  Command.withExamples([{ command: "blkio info virtio-blk-vhost-user,path=/run/disk.sock" }])
)
