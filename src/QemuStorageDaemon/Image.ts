/**
 * What a disk is made of, written down: a file in some format, a disk of another server, or a filter over one of these.
 *
 * Descriptions nest as QEMU's block nodes do: `{ _tag: "qcow2", file: { _tag: "nbd", uri } }` is a qcow2 image that another
 * machine serves. A string stands for a file: as the image itself its format is told by its name (see
 * {@link QemuStorageDaemon.transport}); as the `file` of a description it is the bytes of that file, whatever they look like.
 *
 * Names and meanings are those of BlockdevOptions (QEMU: qapi/block-core.json).
 *
 * @since 0.1.0
 */
import type { ByteSize } from "effect/ByteSize"
import * as Predicate from "effect/Predicate"
import type { Redacted } from "effect/Redacted"
import * as Schema from "effect/Schema"

/**
 * A file's path, or the description of what lies there.
 *
 * @category models
 * @since 0.1.0
 */
export type Source = string | Image

/**
 * The bytes of a file or another image, or a part of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Raw {
  readonly _tag: "raw"
  readonly file: Source
  /** Where the disk begins, in bytes: a multiple of 512. Default 0. */
  readonly offset?: number
  /** How long it is, in bytes: a multiple of 512. Default: to the end. */
  readonly size?: number
}

/**
 * QEMU's own format.
 *
 * @category models
 * @since 0.1.0
 */
export interface Qcow2 {
  readonly _tag: "qcow2"
  readonly file: Source
  /**
   * What shows where this image has nothing; null for nothing. Default: the file that the image itself names, if it says in
   * which format that is, and so on down to the last; the files are opened read-only.
   */
  readonly backing?: Source | null
  /**
   * Notes the use of clusters late, and marks the image dirty until it is closed: faster where clusters are allocated, and
   * after a crash the next opening repairs what would otherwise leak. Needs version 3 (compat 1.1). Default: as the image says.
   */
  readonly lazyRefcounts?: boolean
  /** Opens one that is encrypted with LUKS. */
  readonly passphrase?: Redacted
}

/**
 * VMware's format: one file, or a descriptor that names others in its folder.
 *
 * @category models
 * @since 0.1.0
 */
export interface Vmdk {
  readonly _tag: "vmdk"
  readonly file: Source
  /** As of {@link Qcow2}. */
  readonly backing?: Source | null
}

/**
 * Hyper-V's format.
 *
 * @category models
 * @since 0.1.0
 */
export interface Vhdx {
  readonly _tag: "vhdx"
  readonly file: Source
}

/**
 * VirtualBox's format.
 *
 * @category models
 * @since 0.1.0
 */
export interface Vdi {
  readonly _tag: "vdi"
  readonly file: Source
}

/**
 * A volume that is encrypted as `cryptsetup` does it, version 1.
 *
 * @category models
 * @since 0.1.0
 */
export interface Luks {
  readonly _tag: "luks"
  readonly file: Source
  readonly passphrase: Redacted
}

/**
 * An export of an NBD server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Nbd {
  readonly _tag: "nbd"
  /** `nbd://HOST[:PORT][/EXPORT]` or `nbd+unix:///[EXPORT]?socket=PATH`. */
  readonly uri: string
  /**
   * How many seconds requests wait for a server that went away; then they fail with EIO, while it is still tried to reach it.
   * Default 0: they fail at once.
   */
  readonly reconnectDelay?: number
  /** For how many seconds opening is tried. Default 0: once. */
  readonly openTimeout?: number
}

/**
 * An image of Ceph's RADOS block device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rbd {
  readonly _tag: "rbd"
  readonly pool: string
  readonly image: string
  readonly namespace?: string
  /** Opens a snapshot, which is read-only. */
  readonly snapshot?: string
  /** Ceph's configuration file. Default: where librados looks for it, `/etc/ceph/ceph.conf`. */
  readonly conf?: string
  /** The user's name without `client.`. Default: the configuration's, or `admin`. */
  readonly user?: string
  /** The user's key as a keyring has it, in base64. Default: from the keyring that the configuration names. */
  readonly key?: Redacted
}

/**
 * A logical unit of an iSCSI target.
 *
 * @category models
 * @since 0.1.0
 */
export interface Iscsi {
  readonly _tag: "iscsi"
  /** `HOST[:PORT]`. */
  readonly portal: string
  /** The target's qualified name (IQN). */
  readonly target: string
  /** Default 0. */
  readonly lun?: number
  readonly user?: string
  readonly password?: Redacted
  /** This side's qualified name. */
  readonly initiatorName?: string
  /**
   * How many seconds a request may take of a target that is there; then the connection is made anew. Default 0: for ever. One
   * that is gone is waited for however long that takes: limit requests by `requestTimeout`.
   */
  readonly timeout?: number
}

/**
 * A file of a web server that answers ranges; always read-only. Its device has a `queueSize` of 1 unless somebody says otherwise:
 * of several requests at a time, QEMU's driver (7.2) may leave one unanswered.
 *
 * @category models
 * @since 0.1.0
 */
export interface Http {
  readonly _tag: "http"
  /** `http://` or `https://`, without user or password. */
  readonly url: string
  /** Bytes that are read ahead: a multiple of 512. Default: QEMU's, 256 KiB. */
  readonly readahead?: number
  /** How many seconds a transfer may take. Default: QEMU's, 5. */
  readonly timeout?: number
  /** Whether the server's certificate must be valid. Default true. */
  readonly verify?: boolean
  readonly user?: string
  readonly password?: Redacted
  /** The header's value. */
  readonly cookie?: Redacted
}

/**
 * A disk that drops what is written and answers reads at once, or after a while, with zeroes where `readZeroes` asks for them and
 * with nothing in particular else.
 *
 * @category models
 * @since 0.1.0
 */
export interface NullCo {
  readonly _tag: "null-co"
  /** In bytes. */
  readonly size: number | ByteSize
  /** Reads give zeroes. Default: the buffer stays as it was. */
  readonly readZeroes?: boolean
  /** How long each request takes. Default 0. */
  readonly latencyMs?: number
}

/**
 * A limit on what an image is asked for; 0, the default, is none. A burst may go above the average limit for a second.
 *
 * @category models
 * @since 0.1.0
 */
export interface Throttle {
  readonly _tag: "throttle"
  readonly file: Source
  readonly limits: {
    readonly iopsTotal?: number
    readonly iopsRead?: number
    readonly iopsWrite?: number
    /** Bytes a second. */
    readonly bpsTotal?: number
    readonly bpsRead?: number
    readonly bpsWrite?: number
    readonly iopsTotalMax?: number
    readonly iopsReadMax?: number
    readonly iopsWriteMax?: number
    readonly bpsTotalMax?: number
    readonly bpsReadMax?: number
    readonly bpsWriteMax?: number
  }
}

/**
 * Errors on purpose.
 *
 * @category models
 * @since 0.1.0
 */
export interface Blkdebug {
  readonly _tag: "blkdebug"
  readonly file: Source
  readonly errors: ReadonlyArray<{
    /** Default: any. */
    readonly operation?: "read" | "write" | "write-zeroes" | "discard" | "flush"
    /** A positive number of Linux's. Of these virtio-blk knows EIO alone. Default 5, EIO. */
    readonly errno?: number
    /** The sector of 512 bytes that must be part of it. Default: any. */
    readonly sector?: number
    /** Once only. Default false. */
    readonly once?: boolean
  }>
}

/**
 * What a disk is made of.
 *
 * @category models
 * @since 0.1.0
 */
export type Image =
  | Raw
  | Qcow2
  | Vmdk
  | Vhdx
  | Vdi
  | Luks
  | Nbd
  | Rbd
  | Iscsi
  | Http
  | NullCo
  | Throttle
  | Blkdebug

/** A size in bytes: a whole number, or Effect's ByteSize. */
export const Size = Schema.Union([Schema.Natural, Schema.ByteSize])

const optional = Schema.optionalKey
const Count = Schema.Natural
const Sectors = Schema.Natural.check(Schema.isMultipleOf(512))
const Secret = Schema.Redacted(Schema.NonEmptyString)
const Name = Schema.NonEmptyString

/**
 * A file's path, or the description of what lies there.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Source: Schema.Codec<Source> = Schema.Union([Name, Schema.suspend((): Schema.Codec<Image> => Image)])

/** Deeper nesting is a mistake, or a description that has itself inside. */
const deepest = 64

/** Where a description has others inside, and where options have descriptions. */
const inside = ["file", "backing", "image"] as const

/** Tells whether descriptions lie deeper in one another than decoding can follow; of an image, or of options with images. */
export const isTooDeep = (value: unknown): boolean => {
  let level = new Set([value])
  for (let depth = 0; level.size > 0; depth++) {
    if (depth > deepest) return true
    const below = new Set<unknown>()
    for (const one of level) {
      if (!Predicate.isObject(one)) continue
      for (const key of inside) if (key in one) below.add(one[key])
      const { exports } = one
      if (Array.isArray(exports)) { for (const disk of exports) below.add(disk) }
    }
    level = below
  }
  return false
}

const ofFile = { file: Source }
const overAnother = { ...ofFile, backing: optional(Schema.NullOr(Source)) }

/** An NBD export's address, as QEMU wants it. */
export type NbdServer =
  & ({ readonly type: "unix"; readonly path: string } | {
    readonly type: "inet"
    readonly host: string
    readonly port: string
  })
  & { readonly exportName: string }

const DEFAULT_NBD_PORT = "10809"

/** Reads an NBD URI (NBD: doc/uri.md), without TLS. */
export const parseNbdUri = (text: string): NbdServer | undefined => {
  const uri = URL.parse(text)
  if (uri === null || uri.hash !== "" || uri.username !== "" || uri.password !== "") return undefined
  let exportName: string
  try {
    exportName = decodeURIComponent(uri.pathname.replace(/^\//u, ""))
  } catch {
    return undefined
  }
  if (uri.protocol === "nbd+unix:") {
    const path = uri.searchParams.get("socket")
    return path === null || path === "" || uri.host !== "" ? undefined : { type: "unix", path, exportName }
  }
  if (uri.protocol !== "nbd:" || uri.hostname === "" || uri.search !== "") return undefined
  const host = uri.hostname.replaceAll(/^\[|\]$/gu, "")
  return { type: "inet", host, port: uri.port === "" ? DEFAULT_NBD_PORT : uri.port, exportName }
}

const NbdUri = Schema.String.check(
  Schema.makeFilter((text) =>
    parseNbdUri(text) !== undefined || "must be nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH"
  )
)

const HttpUrl = Schema.String.check(
  Schema.makeFilter((text) => {
    const uri = URL.parse(text)
    if (uri === null || !/^https?:$/u.test(uri.protocol)) return "must be an http or https URL"
    // It is in errors, and in what the daemon tells of itself.
    return (uri.username === "" && uri.password === "") || "must name neither user nor password: say them beside it"
  })
)

const Limits = Schema.Struct({
  iopsTotal: optional(Count),
  iopsRead: optional(Count),
  iopsWrite: optional(Count),
  bpsTotal: optional(Count),
  bpsRead: optional(Count),
  bpsWrite: optional(Count),
  iopsTotalMax: optional(Count),
  iopsReadMax: optional(Count),
  iopsWriteMax: optional(Count),
  bpsTotalMax: optional(Count),
  bpsReadMax: optional(Count),
  bpsWriteMax: optional(Count)
})

const InjectedError = Schema.Struct({
  operation: optional(Schema.Literals(["read", "write", "write-zeroes", "discard", "flush"])),
  errno: optional(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4095 }))),
  sector: optional(Count),
  once: optional(Schema.Boolean)
})

/**
 * What a disk is made of.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Image: Schema.Codec<Image> = Schema.Union([
  Schema.TaggedStruct("raw", { ...ofFile, offset: optional(Sectors), size: optional(Sectors) }),
  Schema.TaggedStruct("qcow2", {
    ...overAnother,
    lazyRefcounts: optional(Schema.Boolean),
    passphrase: optional(Secret)
  }),
  Schema.TaggedStruct("vmdk", overAnother),
  Schema.TaggedStruct("vhdx", ofFile),
  Schema.TaggedStruct("vdi", ofFile),
  Schema.TaggedStruct("luks", { ...ofFile, passphrase: Secret }),
  Schema.TaggedStruct("nbd", { uri: NbdUri, reconnectDelay: optional(Count), openTimeout: optional(Count) }),
  Schema.TaggedStruct("rbd", {
    pool: Name,
    image: Name,
    namespace: optional(Name),
    snapshot: optional(Name),
    conf: optional(Name),
    user: optional(Name),
    key: optional(Secret)
  }),
  Schema.TaggedStruct("iscsi", {
    portal: Name,
    target: Name,
    lun: optional(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))),
    user: optional(Name),
    password: optional(Secret),
    initiatorName: optional(Name),
    timeout: optional(Count)
  }),
  Schema.TaggedStruct("http", {
    url: HttpUrl,
    readahead: optional(Sectors),
    timeout: optional(Count),
    verify: optional(Schema.Boolean),
    user: optional(Name),
    password: optional(Secret),
    cookie: optional(Secret)
  }),
  Schema.TaggedStruct("null-co", {
    size: Size,
    readZeroes: optional(Schema.Boolean),
    latencyMs: optional(Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0)))
  }),
  Schema.TaggedStruct("throttle", { ...ofFile, limits: Limits }),
  Schema.TaggedStruct("blkdebug", { ...ofFile, errors: Schema.Array(InjectedError) })
])
