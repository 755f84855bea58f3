/**
 * What `blkio serve` tells of, and how it says it: a line for people, and one JSON object for programs.
 *
 * Figures are differences of an export's statistics, which count from its begin: what one front-end did is what was counted
 * between its coming and its going, since one is served at a time.
 */
import type { Event as ExportEvent, Statistics } from "../Export/Export.ts"
import { formatBytes } from "./format.ts"

/** What was done, by one front-end or by all. */
export interface Figures {
  readonly requests: number
  readonly reads: number
  readonly writes: number
  readonly flushes: number
  readonly others: number
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly errors: number
}

/** Why a front-end went. */
export interface Reason {
  /** Null where it only closed the connection, and where it was we who ended it. */
  readonly errno: string | null
  readonly reason: string
}

/** What is told. */
export type ServeEvent =
  | {
    readonly event: "serving"
    readonly store: string
    readonly path: string
    readonly bytes: number
    readonly queues: number
    readonly readOnly: boolean
  }
  | { readonly event: "connected"; readonly frontend: number }
  | Figures & Reason & {
    readonly event: "disconnected"
    readonly frontend: number
    readonly seconds: number
  }
  | Figures & { readonly event: "stopped"; readonly connections: number; readonly seconds: number }

/** The events as objects, for the help text. */
export const JSON_FIELDS = `    serving       store, path, bytes, queues, readOnly
    connected     frontend (a number: 1 is the first)
    disconnected  frontend, seconds, errno (null for a clean end), reason, and figures
    stopped       connections, seconds, and figures
  where figures are requests, reads, writes, flushes, others, bytesRead, bytesWritten and errors`

/** What was done until now, or since it was `before`. */
export const figuresOf = (now: Omit<Statistics, "connections" | "inFlight">, before?: Figures): Figures => {
  const since = (name: Exclude<keyof Figures, "requests">) => now[name] - (before?.[name] ?? 0)
  const [reads, writes, flushes, others] = [since("reads"), since("writes"), since("flushes"), since("others")]
  return {
    requests: reads + writes + flushes + others,
    reads,
    writes,
    flushes,
    others,
    bytesRead: since("bytesRead"),
    bytesWritten: since("bytesWritten"),
    errors: since("errors")
  }
}

/** Why a front-end went, in our terms: one that closes the connection has done nothing wrong. */
export const reasonOf = ({ reason }: Extract<ExportEvent, { readonly _tag: "disconnected" }>): Reason =>
  reason._tag === "ENOTCONN"
    ? { errno: null, reason: reason.detail }
    : { errno: reason._tag, reason: reason.message }

/** The line for people. */
export const lineOf = (event: ServeEvent): string => {
  switch (event.event) {
    case "serving":
      return `serving ${event.store} (${event.bytes} bytes, ${counted(event.queues, "queue")}) on ${event.path}`
    case "connected":
      return `front-end ${event.frontend} connected`
    case "disconnected": {
      const reason = event.errno === null ? event.reason : `${event.errno}: ${event.reason}`
      return `front-end ${event.frontend} disconnected after ${describe(event)}; ${reason}`
    }
    case "stopped":
      return `stopped after ${describe(event)}, ${counted(event.connections, "front-end")}`
  }
}

const describe = (
  { bytesRead, bytesWritten, errors, requests, seconds }: Figures & { readonly seconds: number }
): string =>
  `${seconds.toFixed(1)} s: ${counted(requests, "request")}, ${formatBytes(bytesRead)} read, `
  + `${formatBytes(bytesWritten)} written, ${counted(errors, "error")}`

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`
