/**
 * Everything of the system that this process holds and a test may leave behind: descriptors, mappings of our memory, timers
 * and child processes. Timers are known from when this module is first imported. It imports nothing of the project, since every
 * test file pays for it.
 */
import { createHook } from "node:async_hooks"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"

export interface Holdings {
  readonly descriptors: ReadonlyMap<number, string>
  readonly mappings: ReadonlySet<string>
  readonly children: ReadonlySet<string>
  readonly timers: ReadonlyMap<number, NodeJS.Timeout>
  /** How many; they come and go too fast for more. */
  readonly immediates: number
}

/** Timers that are neither cleared nor done, by their asynchronous id: vitest's own cannot be told by number alone. */
const timers = new Map<number, NodeJS.Timeout>()

createHook({
  init: (id, type, _, timer) => {
    // Node's documentation: what is created is the Timeout itself.
    if (type === "Timeout") timers.set(id, timer as NodeJS.Timeout)
  },
  destroy: (id) => void timers.delete(id),
  trackPromises: false
}).enable()

/** Every open descriptor of this process, and what it links to. */
export const descriptors = (): ReadonlyMap<number, string> =>
  new Map(
    readdirSync("/proc/self/fd").flatMap((name) => {
      try {
        return [[Number(name), readlinkSync(`/proc/self/fd/${name}`)] as const]
      } catch {
        // The descriptor by which the directory was read is closed by now.
        return []
      }
    })
  )

/** Where our memory is mapped: a line of `/proc/self/maps` each. */
export const mappings = (): ReadonlyArray<string> =>
  readFileSync("/proc/self/maps", "utf8").match(/^.*\/memfd:effect-blkio.*$/gmu) ?? []

/** Reads a file of a thread or process that may end meanwhile. */
const readIfThere = (path: string): string => {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/** The processes that this one started and has not reaped. Each thread has those that it started itself. */
const children = (): ReadonlySet<string> =>
  new Set(
    readdirSync("/proc/self/task").flatMap((thread) =>
      readIfThere(`/proc/self/task/${thread}/children`).match(/\d+/gu) ?? []
    )
  )

/** How long it waits, and the beginning of what it then calls. */
const describe = (timer: NodeJS.Timeout): string =>
  `${Reflect.get(timer, "_idleTimeout")} ms, ${String(Reflect.get(timer, "_onTimeout")).slice(0, 100)}`

export const holdings = (): Holdings => ({
  descriptors: descriptors(),
  mappings: new Set(mappings()),
  children: children(),
  // What does not keep the process alive is nobody's concern.
  timers: new Map([...timers].filter(([, timer]) => timer.hasRef())),
  immediates: process.getActiveResourcesInfo().filter((kind) => kind === "Immediate").length
})

/** What is held now and was not held before, a line for each. */
export const leftSince = (before: Holdings): ReadonlyArray<string> => {
  const now = holdings()
  const immediates = now.immediates - before.immediates
  return [
    ...[...now.descriptors].filter(([fd, link]) => before.descriptors.get(fd) !== link)
      .map(([fd, link]) => `descriptor ${fd}: ${link}`),
    ...[...now.mappings].filter((line) => !before.mappings.has(line)).map((line) => `mapping ${line}`),
    ...[...now.children].filter((pid) => !before.children.has(pid)).map((pid) =>
      `process ${pid}: ${readIfThere(`/proc/${pid}/cmdline`).replaceAll("\0", " ").trimEnd()}`
    ),
    ...[...now.timers].filter(([id]) => !before.timers.has(id)).map(([, timer]) => `timer of ${describe(timer)}`),
    ...immediates > 0 ? [`immediates: ${immediates}`] : []
  ]
}
