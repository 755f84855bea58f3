/**
 * Goal: memory that is shared and mapped from a file is told apart from any other, to the byte; and what is locked is known.
 * Method: mappings of this process, its own program and its heap among them; locked memory against what the shell says.
 */
import { describe, expect, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import * as Libc from "../../src/Native/Libc.ts"
import { isSharedFileMemory, lockedMemory } from "../../src/Native/ProcessMemory.ts"

const PAGE = 4096

describe("shared file memory", () => {
  it("is what a memory file is mapped to, and nothing before or behind it", () => {
    const fd = Libc.createMemoryFile("effect-blkio", 4 * PAGE)
    const mapping = Libc.map(fd, 0, 4 * PAGE)
    const address = Number(mapping.address)
    expect(isSharedFileMemory(address, 4 * PAGE)).toBe(true)
    expect(isSharedFileMemory(address + PAGE, 1)).toBe(true)
    expect(isSharedFileMemory(address, 2 ** 40)).toBe(false)
    Libc.unmap(mapping)
    expect(isSharedFileMemory(address, 4 * PAGE)).toBe(false)
    Libc.close(fd)
  })

  it("may consist of several mappings side by side", () => {
    const fd = Libc.createMemoryFile("effect-blkio", 4 * PAGE)
    // The kernel puts mappings next to each other where it can, from the top down, and does not join what is not in order.
    const mappings = Array.from({ length: 8 }, () => Libc.map(fd, 0, 4 * PAGE))
    const addresses = mappings.map(({ address }) => Number(address)).toSorted((a, b) => a - b)
    const beside = addresses.find((address, i) => addresses[i + 1] === address + 4 * PAGE)
    expect(beside).toBeDefined()
    expect(isSharedFileMemory(beside ?? 0, 8 * PAGE)).toBe(true)
    mappings.forEach(Libc.unmap)
    Libc.close(fd)
  })

  it("is not this process's program, its heap or nothing at all", () => {
    const maps = readFileSync("/proc/self/maps", "utf8")
    const starts = [/^([0-9a-f]+).* r-xp .*$/mu, /^([0-9a-f]+).* rw-p .*$/mu].map((line) => line.exec(maps)?.[1] ?? "")
    for (const start of starts) expect(isSharedFileMemory(Number.parseInt(start, 16), 1)).toBe(false)
    expect(isSharedFileMemory(PAGE, PAGE)).toBe(false)
    expect(isSharedFileMemory(2 ** 53 - PAGE, PAGE)).toBe(false)
  })
})

describe("locked memory", () => {
  it("has the limit that programs started from here inherit", () => {
    const text = execFileSync("/bin/bash", ["-c", "ulimit -l"], { encoding: "utf8" }).trim()
    const { limit, pinned } = lockedMemory()
    expect(limit).toBe(text === "unlimited" ? Infinity : Number(text) * 1024)
    expect(Number.isSafeInteger(pinned) && pinned >= 0).toBe(true)
  })
})
