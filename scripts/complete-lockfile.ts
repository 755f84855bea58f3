/**
 * Adds to package-lock.json the packages for other platforms that npm left out of it.
 *
 * Tools such as oxlint ship one optional package for each platform. When the registry in use cannot serve those of
 * the other platforms, `npm install` leaves them out of the lockfile without a word, and `npm ci` then refuses it on
 * every machine. An entry needs only the exact version, which its parent states, and the platform, which its name
 * states: npm skips it everywhere else. Run this after `npm install` when `npm ci` says "Missing: … from lock file".
 */
import { readFileSync, writeFileSync } from "node:fs"

interface Entry {
  readonly version?: string
  readonly dev?: boolean
  readonly optionalDependencies?: Record<string, string>
}

const path = new URL("../package-lock.json", import.meta.url)
const lock = JSON.parse(readFileSync(path, "utf8")) as { packages: Record<string, Entry> }

const oses: ReadonlyArray<string> = ["aix", "android", "darwin", "freebsd", "linux", "openharmony", "win32"]
const cpus: ReadonlyArray<string> = ["arm", "arm64", "ia32", "loong64", "ppc64", "riscv64", "s390x", "x64"]
const libcs: Readonly<Record<string, string>> = { glibc: "glibc", gnu: "glibc", musl: "musl" }

const platformOf = (name: string) => {
  const words = name.split(/[-/]/)
  const os = words.filter((word) => oses.includes(word))
  const cpu = words.filter((word) => cpus.includes(word))
  const libc = os[0] === "linux" ? words.flatMap((word) => libcs[word] ?? []) : []
  return { os, cpu, ...(libc.length > 0 ? { libc } : {}) }
}

const added: Array<string> = []
for (const parent of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(parent.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`
    const platform = platformOf(name)
    if (key in lock.packages || !/^\d+\.\d+\.\d+/.test(version) || platform.os.length === 0) continue
    lock.packages[key] = { version, ...platform, ...(parent.dev ? { dev: true } : {}), optional: true } as Entry
    added.push(name)
  }
}

lock.packages = Object.fromEntries(Object.entries(lock.packages).toSorted(([a], [b]) => a.localeCompare(b, "en")))
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`)
process.stdout.write(added.length === 0 ? "nothing was missing\n" : `added ${added.length}: ${added.join(", ")}\n`)
