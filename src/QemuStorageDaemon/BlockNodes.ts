/**
 * What the daemon is told to make a disk of: QEMU's block nodes, and the objects that they refer to by name
 * (QEMU: qapi/block-core.json, BlockdevOptions; qapi/qom.json, ObjectOptions).
 *
 * A secret is an object, so that it goes to the daemon's monitor and is on no command line and in no file.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import type * as Schema from "effect/Schema"
import * as Errno from "../Errno.ts"
import { type Blkdebug, type Image, parseNbdUri, type Source } from "./Image.ts"
import * as ImageFile from "./ImageFile.ts"

/** A node of QEMU's graph, with those below it inside; without a name. */
export type Node = Readonly<Record<string, Schema.Json>>

/** An object of QEMU's. */
export type QemuObject = Redacted.Redacted<Schema.JsonObject>

/** How every node is opened. */
export interface Opening {
  readonly readOnly: boolean
  readonly discard: "ignore" | "unmap"
  readonly direct: boolean
  readonly noFlush: boolean
  readonly aio: "threads" | "native" | "io_uring" | undefined
}

/** A graph, and the objects that must be there before it. */
export interface BlockNodes {
  readonly node: Node
  readonly objects: ReadonlyArray<QemuObject>
}

/** What making a graph may fail with. */
export type NodesError = ImageFile.FileError

/** What making a graph needs. */
export type Needs = FileSystem.FileSystem | Path.Path

/** Tells an image's description; of a path by the file's name. */
export const describe = (source: Source): Effect.Effect<Image, ImageFile.FileError | Errno.EINVAL, Needs> =>
  typeof source === "string"
    ? Effect.flatMap(ImageFile.formatOf(source), (_tag) =>
      _tag === "luks"
        ? new Errno.EINVAL({
          operation: "open",
          path: source,
          detail: `needs its passphrase: describe it by { _tag: "luks", file, passphrase }`
        })
        : Effect.succeed<Image>({ _tag, file: source }))
    : Effect.succeed(source)

/** Tells whether an image can only be read. */
export const isReadOnly = (source: Source): boolean => {
  if (typeof source === "string") return false
  switch (source._tag) {
    case "http":
      return true
    case "rbd":
      return source.snapshot !== undefined
    case "nbd":
    case "iscsi":
    case "null-co":
      return false
    default:
      return isReadOnly(source.file)
  }
}

/**
 * Tells whether what the daemon has acknowledged is there although it crashes before a flush: it is where the daemon puts it at
 * once, in the host's page cache or with a server. Formats that allocate keep their tables in the daemon, and librbd has a
 * cache of its own.
 */
export const keepsCache = (source: Source, direct: boolean): boolean => {
  if (typeof source === "string") return (ImageFile.formatOfName(source) ?? "raw") === "raw"
  switch (source._tag) {
    case "raw":
    case "luks":
    case "throttle":
    case "blkdebug":
      return typeof source.file === "string" || keepsCache(source.file, direct)
    case "qcow2":
    case "vmdk":
    case "vhdx":
    case "vdi":
      return false
    case "rbd":
      return direct
    case "nbd":
    case "iscsi":
    case "http":
    case "null-co":
      return true
  }
}

/**
 * Tells whether an image is best asked for one thing at a time. Of several requests in flight, the curl driver of QEMU 7.2 now
 * and then leaves one unanswered until another one comes.
 */
export const takesOneAtATime = (source: Source): boolean =>
  typeof source !== "string" && (source._tag === "http" || ("file" in source && takesOneAtATime(source.file)))

/** Says what an image is, for errors: a path, or where it is. */
export const nameOf = (source: Source): string => {
  if (typeof source === "string") return source
  switch (source._tag) {
    case "nbd":
      return source.uri
    case "rbd":
      return `rbd:${source.pool}/${source.namespace === undefined ? "" : `${source.namespace}/`}${source.image}`
    case "iscsi":
      return `iscsi://${source.portal}/${source.target}/${source.lun ?? 0}`
    case "http":
      return source.url
    case "null-co":
      return "null-co"
    default:
      return nameOf(source.file)
  }
}

/** Makes the graph of an image. The names of its objects begin with `prefix`. */
export const make: (
  image: Image,
  opening: Opening,
  prefix: string
) => Effect.Effect<BlockNodes, NodesError, Needs> = Effect.fnUntraced(function*(image, opening, prefix) {
  const path = yield* Path.Path
  const objects: Array<QemuObject> = []
  const object = (type: string, options: Node): string => {
    const id = `${prefix}-${type}${objects.length}`
    objects.push(Redacted.make({ "qom-type": type, id, ...options }))
    return id
  }
  const secret = (key: string, value: Redacted.Redacted | undefined): Node =>
    value === undefined ? {} : base64(key, Buffer.from(Redacted.value(value)).toString("base64"))
  const base64 = (key: string, data: string): Node => ({ [key]: object("secret", { format: "base64", data }) })

  const file = (name: string, how: Opening) =>
    Effect.map(ImageFile.look(name), ({ isDevice }): Node => ({
      ...general(how),
      driver: isDevice ? "host_device" : "file",
      filename: path.resolve(name),
      ...defined({ aio: how.aio })
    }))

  const child = (source: Source, how: Opening): Effect.Effect<Node, NodesError, Needs> =>
    typeof source === "string" ? file(source, how) : node(source, how)

  /** A backing file is only read. */
  const backing = Effect.fnUntraced(function*(source: Source | null | undefined, how: Opening) {
    if (source === undefined) return {}
    if (source === null) return { backing: null }
    const described = yield* describe(source)
    return { backing: yield* node(described, { ...how, readOnly: true }) }
  })

  const node = Effect.fnUntraced(
    function*(described: Image, how: Opening): Effect.fn.Return<Node, NodesError, Needs> {
      const all = { ...general(how), driver: described._tag }
      switch (described._tag) {
        case "raw":
          return {
            ...all,
            file: yield* child(described.file, how),
            ...defined({ offset: described.offset, size: described.size })
          }
        case "qcow2": {
          const encrypt = secret("key-secret", described.passphrase)
          return {
            ...all,
            file: yield* child(described.file, how),
            ...(yield* backing(described.backing, how)),
            ...defined({ "lazy-refcounts": described.lazyRefcounts }),
            ...(described.passphrase === undefined ? {} : { encrypt: { format: "luks", ...encrypt } })
          }
        }
        case "vmdk":
          return { ...all, file: yield* child(described.file, how), ...(yield* backing(described.backing, how)) }
        case "vhdx":
        case "vdi":
          return { ...all, file: yield* child(described.file, how) }
        case "luks":
          return { ...all, file: yield* child(described.file, how), ...secret("key-secret", described.passphrase) }
        case "nbd": {
          const server = parseNbdUri(described.uri)
          if (server === undefined) {
            return yield* new Errno.EINVAL({ operation: "open", path: described.uri, detail: "must be an NBD URI" })
          }
          const { exportName, ...address } = server
          return {
            ...all,
            server: address,
            export: exportName,
            ...defined({ "reconnect-delay": described.reconnectDelay, "open-timeout": described.openTimeout })
          }
        }
        case "rbd":
          return {
            ...all,
            pool: described.pool,
            image: described.image,
            ...defined({
              namespace: described.namespace,
              snapshot: described.snapshot,
              conf: described.conf === undefined ? undefined : path.resolve(described.conf),
              user: described.user
            }),
            // Ceph's keys are bytes, which librbd is given in base64 again (QEMU: block/rbd.c, qemu_rbd_set_auth).
            ...(described.key === undefined ? {} : base64("key-secret", Redacted.value(described.key)))
          }
        case "iscsi":
          return {
            ...all,
            transport: "tcp",
            portal: described.portal,
            target: described.target,
            ...defined({
              lun: described.lun,
              user: described.user,
              "initiator-name": described.initiatorName,
              timeout: described.timeout
            }),
            ...secret("password-secret", described.password)
          }
        case "http": {
          const isSecure = described.url.startsWith("https:")
          return {
            ...all,
            driver: isSecure ? "https" : "http",
            url: described.url,
            ...defined({
              readahead: described.readahead,
              timeout: described.timeout,
              username: described.user,
              sslverify: isSecure ? described.verify : undefined
            }),
            ...secret("password-secret", described.password),
            ...secret("cookie-secret", described.cookie)
          }
        }
        case "null-co":
          return {
            ...all,
            size: Number(described.size),
            "read-zeroes": described.readZeroes ?? false,
            "latency-ns": Math.round((described.latencyMs ?? 0) * 1e6)
          }
        case "throttle":
          return {
            ...all,
            "throttle-group": object("throttle-group", { limits: limitsOf(described.limits) }),
            file: yield* child(described.file, how)
          }
        case "blkdebug":
          return {
            ...all,
            image: yield* child(described.file, how),
            ...(described.errors.length === 0 ? {} : { "inject-error": described.errors.map(injected) })
          }
      }
    }
  )
  return { node: yield* node(image, opening), objects }
})

const general = ({ direct, discard, noFlush, readOnly }: Opening): Node => ({
  "read-only": readOnly,
  discard,
  cache: { direct, "no-flush": noFlush }
})

/** Leaves out what nobody has said. */
const defined = (options: Readonly<Record<string, Schema.Json | undefined>>): Node => {
  const said: Record<string, Schema.Json> = {}
  for (const [name, value] of Object.entries(options)) if (value !== undefined) said[name] = value
  return said
}

const injected = ({ errno = 5, once = false, operation, sector }: Blkdebug["errors"][number]): Node => ({
  event: "none",
  errno,
  once,
  ...defined({ iotype: operation, sector })
})

/** `iopsTotalMax` is `iops-total-max`. */
const limitsOf = (limits: Readonly<Record<string, number | undefined>>): Node =>
  defined(Object.fromEntries(
    Object.entries(limits).map(([name, value]) => [
      name.replaceAll(/[A-Z]/gu, (letter) => `-${letter.toLowerCase()}`),
      value
    ])
  ))
