/**
 * What the kernel tells of this process's memory (`man 5 proc`), for devices that reach it by address.
 *
 * Read anew each time: it is asked for when memory is handed to a device, and when that was refused.
 *
 * @since 0.1.0
 */
import { readFileSync } from "node:fs"

/**
 * Tells whether all of `length` bytes from `address` on are mapped from a file and shared with whoever else maps it. Some
 * devices of the kernel reach such memory only, and pass over any other without an error.
 */
export const isSharedFileMemory = (address: number, length: number): boolean => {
  const end = address + length
  let covered = address
  // In order of address: start-end, rwxs or rwxp, offset, device, inode, name.
  for (const line of readFileSync("/proc/self/maps", "utf8").split("\n")) {
    const [, from = "", to = "", mode = "", inode = "0"] =
      /^([0-9a-f]+)-([0-9a-f]+) ([-rwxsp]{4}) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ (\d+)/u.exec(line) ?? []
    const beyond = Number.parseInt(to, 16)
    if (!(beyond > covered)) continue
    if (Number.parseInt(from, 16) > covered || !mode.endsWith("s") || inode === "0") return false
    covered = beyond
    if (covered >= end) return true
  }
  return false
}

/** How much memory this process may pin for devices, and how much it does, in bytes. */
export interface LockedMemory {
  /** RLIMIT_MEMLOCK; Infinity where there is none. */
  readonly limit: number
  /** What is pinned (VmPin), as vhost-vdpa counts it. */
  readonly pinned: number
}

/** Tells how much memory is pinned, and how much may be. */
export const lockedMemory = (): LockedMemory => {
  const [, limit = "unlimited"] = /^Max locked memory +(\S+)/mu.exec(readFileSync("/proc/self/limits", "utf8")) ?? []
  const [, kibibytes = "0"] = /^VmPin:\s+(\d+) kB/mu.exec(readFileSync("/proc/self/status", "utf8")) ?? []
  return { limit: limit === "unlimited" ? Infinity : Number(limit), pinned: Number(kibibytes) * 1024 }
}
