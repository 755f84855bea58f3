/**
 * What the integration tests ask of a backend, so that one suite runs on each: this library's own export and QEMU's
 * storage daemon.
 *
 * A backend serves disks over vhost-user sockets until the test's Scope closes. In what two backends may rightly differ is
 * told by {@link Facts} and {@link Backend.formats}; whatever else differs is a fault of one of them. A disk that cannot be
 * served is a fault of the test, and dies.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import type { Effect, Scope } from "effect"
import type { DiskImage } from "../../src/testing/index.ts"
import { MiB } from "./daemon.ts"

/** An image file. */
export interface Image {
  readonly _tag: DiskImage.Format
  readonly path: string
}

/** A disk without contents: it reads as zeroes, and thanks for what is written. */
export interface Zeroes {
  readonly _tag: "zeroes"
  readonly size: number
  /** How long each request takes. Default: 0. */
  readonly latencyMs?: number
  /** Every operation of this kind that touches this byte fails with EIO. Not together with a latency. */
  readonly fault?: { readonly operation: "read" | "write"; readonly offset: number }
}

/** What is served. */
export type Disk = Image | Zeroes

/** A disk whose requests take some time: to have some in flight when something happens. */
export const slow = (latencyMs: number): Zeroes => ({ _tag: "zeroes", size: 64 * MiB, latencyMs })

/** How it is served. */
export interface ServeOptions {
  /** Default: false. */
  readonly readOnly?: boolean
  /** Default: 1. */
  readonly numQueues?: number
  /** Default: 512. */
  readonly blockSize?: number
}

/** What a backend says of itself and its disks. */
export interface Facts {
  /** Slots for memory, less the one of the rings. */
  readonly maxMemRegions: number
  readonly maxSegments: number
  /** In bytes. */
  readonly maxDiscardLength: number
  /** In bytes. */
  readonly maxWriteZeroesLength: number
  /** Whether a write may be lost until it is flushed, as long as nobody has set it otherwise. */
  readonly writeCache: boolean
  /** Whether it tells the front-end of a new size. Else it answers with the old one, too. */
  readonly tellsOfResize: boolean
}

/** A disk that is served. */
export interface Served {
  readonly socketPath: string
  /** The process that serves it, which may be this one. */
  readonly pid: number
  readonly facts: Facts
  /** How many flushes there have been, where the backend counts them. */
  readonly flushes?: () => number
  /** Changes the disk's size, to bytes. */
  readonly resize: (capacity: number) => Effect.Effect<void>
  /** Ends the export, while the process that served it goes on. */
  readonly withdraw: Effect.Effect<void>
}

/** A disk that a process of its own serves. */
export interface ServedApart extends Pick<Served, "socketPath" | "pid"> {
  /** Sends the process a signal. */
  readonly kill: (signal: "SIGKILL" | "SIGSTOP" | "SIGCONT") => Effect.Effect<void>
  /** Waits for its end. */
  readonly ended: Effect.Effect<void>
}

type Serving<A> = Effect.Effect<A, never, Scope.Scope | NodeServices.NodeServices>

/** `length` bytes of one value, from `offset` on. */
export type Pattern = readonly [offset: number, length: number, byte: number]

/** A kind of program that serves disks. */
export interface Backend {
  readonly name: string
  /** Whether it can run here. */
  readonly isHere: boolean
  /** The formats of images that it reads and writes, the simplest first. */
  readonly formats: readonly [DiskImage.Format, ...ReadonlyArray<DiskImage.Format>]
  readonly serve: (disk: Disk, options?: ServeOptions) => Serving<Served>
  /** Serves several disks from one process. */
  readonly serveTogether: (disks: ReadonlyArray<Disk>) => Serving<ReadonlyArray<Served>>
  /** Serves a disk from a process that can be killed. */
  readonly serveApart: (disk: Disk, options?: ServeOptions) => Serving<ServedApart>
  /** Writes patterns into an image that is not served, without the backend. */
  readonly fill: (image: Image, patterns: ReadonlyArray<Pattern>) => Serving<void>
  /** Fails the test unless an image, served or not, holds these patterns, for someone other than the backend. */
  readonly verify: (image: Image, patterns: ReadonlyArray<Pattern>) => Serving<void>
}
