/**
 * Goal: the declared commands and events are those that QEMU has, and do what they say.
 * Method: every declaration is compared, field by field, with what the daemon itself tells of its protocol; those that change
 * something are run, and the change is looked at with other commands and with QEMU's programs.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Fiber, Redacted, Schema, Stream } from "effect"
import { blockResize, commands } from "../../src/Qmp/Commands.ts"
import { eventData } from "../../src/Qmp/KnownEvent.ts"
import type { Qmp } from "../../src/Qmp/Qmp.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { imagePath, MiB, onBackend, serve } from "../support/daemon.ts"
import { qsdIsHere } from "./requirement.ts"

/** QEMU: qapi/introspect.json, SchemaInfo. */
const QemuType = Schema.Struct({
  "name": Schema.String,
  "meta-type": Schema.String,
  "json-type": Schema.optionalKey(Schema.String),
  "values": Schema.optionalKey(Schema.Array(Schema.String)),
  "element-type": Schema.optionalKey(Schema.String),
  "members": Schema.optionalKey(Schema.Array(Schema.Struct({
    name: Schema.optionalKey(Schema.String),
    type: Schema.optionalKey(Schema.String),
    default: Schema.optionalKey(Schema.Null)
  }))),
  "tag": Schema.optionalKey(Schema.String),
  "variants": Schema.optionalKey(Schema.Array(Schema.Struct({ case: Schema.String, type: Schema.String }))),
  "arg-type": Schema.optionalKey(Schema.String),
  "ret-type": Schema.optionalKey(Schema.String)
})
type QemuType = typeof QemuType.Type

/** What JSON Schema says of a value, as far as the declarations use it. */
interface JsonSchema {
  readonly type?: string
  readonly enum?: ReadonlyArray<string>
  readonly anyOf?: ReadonlyArray<JsonSchema>
  readonly items?: JsonSchema
  readonly properties?: Readonly<Record<string, JsonSchema>>
  readonly required?: ReadonlyArray<string>
}

const onTheWire = (schema: Schema.Codec<unknown, unknown>): JsonSchema =>
  Schema.toJsonSchemaDocument(Schema.toEncoded(schema)).schema

/**
 * Finds where a declaration and QEMU disagree: a field that QEMU does not know; in arguments one that QEMU asks for and the
 * declaration does not, or a word that QEMU does not know; in results one that QEMU may leave out, or a word that only QEMU knows.
 */
const compare = (types: ReadonlyMap<string, QemuType>, direction: "sent" | "received") => {
  const sent = direction === "sent"
  const differences = (at: string, ours: JsonSchema, name: string): ReadonlyArray<string> => {
    if (ours.anyOf !== undefined) {
      const rest = ours.anyOf.filter(({ type }) => type !== "null")
      return rest.flatMap((one) => differences(at, one, name))
    }
    const theirs = types.get(name)
    if (theirs === undefined) return [`${at}: no type ${name}`]
    const kind = theirs["meta-type"]
    if (kind === "alternate") {
      const tried = (theirs.members ?? []).map(({ type = "" }) => differences(at, ours, type))
      return tried.find((found) => found.length === 0) ?? tried.flat()
    }
    if (kind === "enum") {
      const words = theirs.values ?? (theirs.members ?? []).flatMap(({ name = "" }) => name)
      // Where words are not told, any is taken.
      const mine = ours.enum ?? (sent ? [] : words)
      const odd = sent ? mine.filter((word) => !words.includes(word)) : words.filter((word) => !mine.includes(word))
      return [
        ...(ours.type === "string" ? [] : [`${at}: ${ours.type} is no word`]),
        ...odd.map((word) => `${at}: ${word}`)
      ]
    }
    if (kind === "array") {
      return ours.items === undefined
        ? [`${at}: ${ours.type} is no list`]
        : differences(`${at}[]`, ours.items, theirs["element-type"] ?? "")
    }
    if (kind === "object") {
      if (ours.properties === undefined) {
        return ours.type === "string" || ours.type === "number"
          ? [`${at}: object`]
          : []
      }
      const tags = ours.properties[theirs.tag ?? ""]?.enum ?? []
      const variants = (theirs.variants ?? []).filter((variant) => tags.includes(variant.case))
      const common = theirs.members ?? []
      // With several words for the tag, what only some of them have is optional.
      const particular = variants.flatMap(({ type }) => types.get(type)?.members ?? [])
      const members = [...common, ...particular]
      const must = (tags.length > 1 ? common : members).filter((member) => !("default" in member))
      return [
        ...(sent ? must.map(({ name = "" }) => name).filter((name) => !(ours.required ?? []).includes(name)) : [])
          .map((name) => `${at}.${name}: asked for`),
        ...(sent ? [] : (ours.required ?? []).filter((name) => !must.some((member) => member.name === name)))
          .map((name) => `${at}.${name}: may be left out`),
        ...Object.entries(ours.properties).flatMap(([name, schema]) => {
          const member = members.find((member) => member.name === name)
          return member === undefined
            ? [`${at}.${name}: unknown`]
            : differences(`${at}.${name}`, schema, member.type ?? "")
        })
      ]
    }
    const jsonType = theirs["json-type"] === "int" ? "number" : theirs["json-type"]
    return jsonType === ours.type ? [] : [`${at}: ${ours.type} for ${jsonType}`]
  }
  return differences
}

const protocolOf = Effect.fnUntraced(function*(qmp: Qmp) {
  const listed = yield* Schema.decodeUnknownEffect(Schema.Array(QemuType))(yield* qmp.execute("query-qmp-schema"))
  return new Map(listed.map((type) => [type.name, type]))
})

/** A daemon with a qcow2 image of 16 MiB, the node `disk0`. */
const qcow2Daemon = Effect.fnUntraced(function*() {
  const path = yield* imagePath("disk.qcow2")
  yield* DiskImage.createQcow2(path, 16 * MiB)
  const daemon = yield* serve({ exports: [{ image: { _tag: "qcow2", file: path } }] })
  const bitmaps = daemon.qmp.queryNamedBlockNodes({ flat: true }).pipe(
    Effect.map((nodes) => nodes.find(({ nodeName }) => nodeName === "disk0")?.dirtyBitmaps ?? []),
    Effect.map((bitmaps) => Object.fromEntries(bitmaps.map(({ name = "", ...bitmap }) => [name, bitmap])))
  )
  return { ...daemon, path, bitmaps }
})

describe.skipIf(!qsdIsHere)("QMP commands", () => {
  onBackend("are declared as the daemon describes them", () =>
    Effect.gen(function*() {
      const { qmp } = yield* serve({ exports: [{ image: { _tag: "null-co", size: MiB } }] })
      const types = yield* protocolOf(qmp)
      const sent = compare(types, "sent")
      const received = compare(types, "received")
      const found = Object.values({ ...commands, blockResize }).flatMap((command) => {
        const theirs = types.get(command.name)
        if (theirs?.["meta-type"] !== "command") return [`no command ${command.name}`]
        const args = onTheWire(command.args)
        const returns = command.startsJob ? {} : onTheWire(command.returns)
        return [
          ...(args.type === "null" ? [] : sent(command.name, args, theirs["arg-type"] ?? "")),
          ...(returns.type === "array" || returns.type === "object"
            ? received(command.name, returns, theirs["ret-type"] ?? "")
            : [])
        ]
      })
      expect(found).toStrictEqual([])
      const events = Object.entries(eventData).flatMap(([name, schema]) => {
        const theirs = types.get(name)
        return theirs?.["meta-type"] === "event"
          ? received(name, onTheWire(schema), theirs["arg-type"] ?? "")
          : [`no event ${name}`]
      })
      expect(events).toStrictEqual([])
      // It would find what is wrong.
      const theirs = types.get("query-jobs")?.["ret-type"] ?? ""
      const wrong = Schema.Array(Schema.Struct({ id: Schema.Number, colour: Schema.String, error: Schema.String }))
      expect(received("j", onTheWire(wrong), theirs)).toStrictEqual([
        "j[].colour: may be left out",
        "j[].error: may be left out",
        "j[].id: number for string",
        "j[].colour: unknown"
      ])
      const mirror = types.get("blockdev-mirror")?.["arg-type"] ?? ""
      const lacking = Schema.Struct({ device: Schema.String, sync: Schema.Literals(["full", "half"]) })
      expect(sent("m", onTheWire(lacking), mirror)).toStrictEqual(["m.target: asked for", "m.sync: half"])
    }))

  onBackend("bitmaps: add, note, disable, merge, clear, remove", () =>
    Effect.gen(function*() {
      const { bitmaps, qmp } = yield* qcow2Daemon()
      const node = "disk0"
      yield* qmp.blockDirtyBitmapAdd({ node, name: "a", granularity: 65_536, persistent: true })
      yield* qmp.blockDirtyBitmapAdd({ node, name: "b", granularity: 65_536 })
      yield* qmp.blockDirtyBitmapDisable({ node, name: "b" })
      // A backup onto the node writes to it.
      yield* qmp.blockdevAdd({ "node-name": "source", driver: "null-co", size: 16 * MiB })
      yield* Stream.runDrain(qmp.blockdevBackup({ device: "source", target: node, sync: "full" }))
      expect(yield* bitmaps).toMatchObject({
        a: { count: 16 * MiB, granularity: 65_536, recording: true, persistent: true },
        b: { count: 0, recording: false, persistent: false }
      })
      yield* qmp.blockDirtyBitmapEnable({ node, name: "b" })
      yield* qmp.blockDirtyBitmapMerge({ node, target: "b", bitmaps: ["a"] })
      yield* qmp.blockDirtyBitmapClear({ node, name: "a" })
      expect(yield* bitmaps).toMatchObject({ a: { count: 0 }, b: { count: 16 * MiB, recording: true } })
      yield* qmp.blockDirtyBitmapRemove({ node, name: "a" })
      expect(Object.keys(yield* bitmaps)).toStrictEqual(["b"])
      expect(yield* Effect.flip(qmp.blockDirtyBitmapClear({ node, name: "a" }))).toMatchObject({
        _tag: "QmpError",
        command: "block-dirty-bitmap-clear"
      })
    }))

  onBackend("a transaction does all or nothing", () =>
    Effect.gen(function*() {
      const { bitmaps, qmp } = yield* qcow2Daemon()
      const add = (name: string) => ({ type: "block-dirty-bitmap-add", data: { node: "disk0", name } } as const)
      const refused = yield* Effect.flip(qmp.transaction({ actions: [add("a"), { type: "abort", data: {} }] }))
      expect(refused).toMatchObject({ _tag: "QmpError", command: "transaction" })
      expect(yield* bitmaps).toStrictEqual({})
      yield* qmp.transaction({ actions: [add("a"), add("b")] })
      expect(Object.keys(yield* bitmaps).toSorted()).toStrictEqual(["a", "b"])
    }))

  onBackend("snapshots: inside the image, over a file, over a node", () =>
    Effect.gen(function*() {
      const { path, qmp } = yield* qcow2Daemon()
      yield* qmp.blockdevSnapshotInternalSync({ device: "disk0", name: "before" })
      const nodes = yield* qmp.queryNamedBlockNodes({ flat: true })
      expect(nodes.find(({ nodeName }) => nodeName === "disk0")?.image.snapshots).toMatchObject([{ name: "before" }])
      expect(yield* qmp.blockdevSnapshotDeleteInternalSync({ device: "disk0", name: "before" })).toMatchObject({
        name: "before"
      })
      const overlay = `${path}.overlay`
      yield* qmp.blockdevSnapshotSync({
        nodeName: "disk0",
        snapshotFile: overlay,
        snapshotNodeName: "overlay",
        format: "qcow2"
      })
      const second = `${path}.second`
      yield* DiskImage.createQcow2(second, 16 * MiB)
      yield* qmp.blockdevAdd({
        "node-name": "second",
        "driver": "qcow2",
        "file": { driver: "file", filename: second },
        "backing": null
      })
      yield* qmp.blockdevSnapshot({ node: "overlay", overlay: "second" })
      const top = qmp.queryNamedBlockNodes({ flat: true }).pipe(
        Effect.map((nodes) => nodes.find(({ nodeName }) => nodeName === "second"))
      )
      expect(yield* top).toMatchObject({ backing_file: overlay, image: { virtualSize: 16 * MiB } })
      // The chain becomes one image again.
      yield* Stream.runDrain(qmp.blockCommit({ device: "second", topNode: "overlay", baseNode: "disk0" }))
      expect((yield* top)?.backing_file).toBe(path)
      yield* Stream.runDrain(qmp.blockStream({ device: "second" }))
      expect((yield* top)?.backing_file).toBeUndefined()
    }))

  onBackend("exports: add, list, delete, over vhost-user and NBD", () =>
    Effect.gen(function*() {
      const { directory, path, qmp } = yield* qcow2Daemon()
      yield* qmp.blockdevAdd({ "node-name": "other", driver: "null-co", size: MiB })
      yield* qmp.objectAdd({ qomType: "iothread", id: "thread" })
      yield* qmp.blockExportAdd({
        type: "vhost-user-blk",
        id: "other",
        nodeName: "other",
        addr: { type: "unix", path: `${directory}/other.sock` },
        iothread: "thread",
        numQueues: 2
      })
      yield* qmp.blockDirtyBitmapAdd({ node: "disk0", name: "day", disabled: true })
      yield* qmp.nbdServerStart({ addr: { type: "unix", data: { path: `${path}.nbd` } } })
      yield* qmp.blockExportAdd({ type: "nbd", id: "nbd", nodeName: "disk0", name: "disk", bitmaps: ["day"] })
      const ids = Effect.map(qmp.queryBlockExports, (exports) => exports.map(({ id }) => id).toSorted())
      expect(yield* ids).toStrictEqual(["disk0", "nbd", "other"])
      expect((yield* Effect.flip(qmp.blockdevDel({ nodeName: "other" }))).message).toContain("in use")
      const gone = yield* Effect.forkChild(
        Stream.runCollect(Stream.take(qmp.on("BLOCK_EXPORT_DELETED"), 2)),
        { startImmediately: true }
      )
      yield* qmp.blockExportDel({ id: "other", mode: "hard" })
      yield* qmp.nbdServerStop
      expect((yield* Fiber.join(gone)).map(({ data }) => data.id).toSorted()).toStrictEqual(["nbd", "other"])
      yield* qmp.blockdevDel({ nodeName: "other" })
      yield* qmp.objectDel({ id: "thread" })
      expect(yield* ids).toStrictEqual(["disk0"])
    }))

  onBackend(
    "a LUKS image is made and opened with a secret, which a refusal does not tell",
    () =>
      Effect.gen(function*() {
        const { directory, qmp } = yield* serve({ exports: [{ image: { _tag: "null-co", size: MiB } }] })
        const filename = `${directory}/disk.luks`
        const passphrase = "correct horse battery staple"
        yield* qmp.objectAdd({ qomType: "secret", id: "right", data: Redacted.make(passphrase) })
        yield* qmp.objectAdd({ qomType: "secret", id: "wrong", data: Redacted.make(`${passphrase}!`) })
        yield* Stream.runDrain(qmp.blockdevCreate({ options: { driver: "file", filename, size: 0 } }))
        yield* qmp.blockdevAdd({ "node-name": "file", driver: "file", filename })
        yield* Stream.runDrain(qmp.blockdevCreate({
          options: { "driver": "luks", "file": "file", "size": MiB, "key-secret": "right", "iter-time": 10 }
        }))
        const open = (secret: string) =>
          qmp.blockdevAdd({ "node-name": "luks", "driver": "luks", "file": "file", "key-secret": secret })
        const refused = yield* Effect.flip(open("wrong"))
        expect(refused).toMatchObject({ _tag: "QmpError", command: "blockdev-add" })
        const bad = yield* Effect.flip(
          qmp.objectAdd({ qomType: "secret", id: "right", format: "base64", data: Redacted.make(passphrase) })
        )
        expect(JSON.stringify([refused, bad]) + refused.message + bad.message).not.toContain("horse")
        yield* open("right")
        const nodes = yield* qmp.queryNamedBlockNodes({ flat: true })
        expect(nodes.find(({ nodeName }) => nodeName === "luks")?.image.virtualSize).toBe(MiB)
      })
  )
})
