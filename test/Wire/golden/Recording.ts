/**
 * Reads what `scripts/golden/record.ts` recorded from a real qemu-storage-daemon.
 */
import { Schema } from "effect"
import { readFileSync } from "node:fs"

const Hex = Schema.String.check(Schema.isPattern(/^([0-9a-f]{2})*$/))

const decode = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  backend: Schema.String,
  export: Schema.String,
  messages: Schema.Array(Schema.Struct({ name: Schema.String, sent: Hex, received: Schema.NullOr(Hex) }))
})))

const recording = decode(readFileSync(new URL("./qsd-7.2.json", import.meta.url), "utf8"))

export const names: ReadonlyArray<string> = recording.messages.map(({ name }) => name)

const message = (name: string) => {
  const found = recording.messages.find((message) => message.name === name)
  if (found === undefined) throw new Error(`no message ${name} in the recording`)
  return found
}

/** The whole message as it was sent, in hex. */
export const sent = (name: string): string => message(name).sent

/** The whole message that came back. */
export const received = (name: string): Uint8Array => {
  const hex = message(name).received
  if (hex === null) throw new Error(`${name} has no answer in the recording`)
  return Uint8Array.from(Buffer.from(hex, "hex"))
}
