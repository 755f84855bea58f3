/**
 * Goal: the shape of the source tree stays what CONTRIBUTING.md says it is.
 *
 * Method: the import specifiers of every file under src are read from its text, then five rules are checked over them
 * (and over the text of the repository). Each rule is a function from modules to violations, and each is also given a
 * made-up tree that breaks it, so that a rule which can no longer fail is noticed.
 */
import { describe, expect, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { existsSync, globSync, readFileSync } from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const repository = fileURLToPath(new URL("..", import.meta.url))

/** The rooms of src, lowest first: a module may import its own room and every room of an earlier rank. */
const ranks: ReadonlyArray<ReadonlyArray<string>> = [
  ["Wire", "Errno", "SeededRandom"],
  ["Native", "Qmp"],
  ["Memory"],
  ["Queue", "Transport", "Properties"],
  ["BlockStore", "Driver"],
  ["BlockDevice"],
  ["VirtioBlk"],
  ["Export"],
  ["Embedded", "QemuStorageDaemon"],
  ["index"],
  ["cli", "testing"]
]

interface Module {
  /** From the repository's root: `src/Queue/IoQueue.ts`. */
  readonly path: string
  readonly imports: ReadonlyArray<string>
}

/** Finds `import … from "x"`, `import "x"`, `export … from "x"` and `import("x")`. */
const importsOf = (path: string, text: string): Module => {
  const statements = [...text.matchAll(/^import\s+(?:[\w$*{},\s]+?\s+from\s+)?"([^"]+)"/gm)]
  const reexports = text.matchAll(/^export\s+(?:type\s+)?(?:\*(?:\s+as\s+\w+)?|\{[^}]*\})\s+from\s+"([^"]+)"/gm)
  const dynamic = text.matchAll(/\bimport\(\s*["'`]([^"'`]+)["'`]/g)
  const expected = text.match(/^import\b(?!\()/gm)?.length ?? 0
  if (statements.length !== expected) {
    throw new Error(`${path}: ${expected} lines begin with "import", ${statements.length} were understood`)
  }
  return { path, imports: [...statements, ...reexports, ...dynamic].flatMap((match) => match[1] ?? []) }
}

const isRelative = (specifier: string) => specifier.startsWith(".")

const resolve = (from: string, specifier: string) => Path.posix.join(Path.posix.dirname(from), specifier)

const roomOf = (path: string) => /^src\/([^/]+?)(?:\.ts)?(?:\/|$)/.exec(path)?.[1]

const rankOf = (room: string | undefined) => ranks.findIndex((rooms) => room !== undefined && rooms.includes(room))

/** Applies a rule to every import of every module. */
const eachImport =
  (rule: (path: string, specifier: string) => string | undefined) => (modules: ReadonlyArray<Module>) =>
    modules.flatMap(({ path, imports }) =>
      imports.flatMap((specifier) => {
        const violation = rule(path, specifier)
        return violation === undefined ? [] : [`${path} imports ${specifier}: ${violation}`]
      })
    )

const koffiOutsideNative = eachImport((path, specifier) =>
  /^koffi(?:\/|$)/.test(specifier) && roomOf(path) !== "Native" ? "only src/Native may use koffi" : undefined
)

const withoutTsEnding = eachImport((_, specifier) =>
  isRelative(specifier) && !specifier.endsWith(".ts") ? "a relative import must end in .ts" : undefined
)

const againstTheOrder = eachImport((path, specifier) => {
  const from = roomOf(path)
  if (!isRelative(specifier)) return from === "Wire" ? "src/Wire imports nothing outside itself" : undefined
  const to = roomOf(resolve(path, specifier))
  if (rankOf(from) < 0) return `${from} has no place among the rooms`
  if (rankOf(to) < 0) return `it leads to no room of src`
  if (from === to || rankOf(to) < rankOf(from)) return undefined
  return `${from} may not use ${to}`
})

/** Finds one cycle for each module that closes one; type imports count. */
const cycles = (modules: ReadonlyArray<Module>): ReadonlyArray<string> => {
  const targets = new Map(
    modules.map(({ path, imports }) => [
      path,
      new Set(imports.filter(isRelative).map((specifier) => resolve(path, specifier)))
    ])
  )
  const found: Array<string> = []
  const finished = new Set<string>()
  const visit = (path: string, trail: ReadonlyArray<string>): void => {
    if (trail.includes(path)) {
      found.push([...trail.slice(trail.indexOf(path)), path].join(" -> "))
      return
    }
    if (finished.has(path)) return
    for (const target of targets.get(path) ?? []) visit(target, [...trail, path])
    finished.add(path)
  }
  for (const path of targets.keys()) visit(path, [])
  return found
}

/** Paths that exist on one machine only. Written in pieces, so that this file does not break its own rule. */
const machinePath = new RegExp(`(?<![\\w.~-])/(?:${["work", "root", "tmp/bash_jobs"].join("|")})\\b[/.]`)

const machinePaths = (path: string, text: string): ReadonlyArray<string> =>
  text.split("\n").flatMap((line, index) => machinePath.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : [])

/** What git tracks, and what it would track after `git add --all`; not what was just deleted. */
const repositoryFiles = () =>
  execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "-z"], { cwd: repository })
    .toString()
    .split("\0")
    .filter((path) => path !== "" && existsSync(Path.join(repository, path)))

const readText = (path: string) => readFileSync(Path.join(repository, path), "utf8")

describe("tidy", () => {
  const modules = globSync("src/**/*.ts", { cwd: repository }).map((path) => importsOf(path, readText(path)))
  const one = (path: string, specifier: string): ReadonlyArray<Module> => [{ path, imports: [specifier] }]

  it("finds the sources and their imports", () => {
    expect(modules.length).toBeGreaterThan(0)
    expect(modules.flatMap(({ imports }) => imports).length).toBeGreaterThan(0)
  })

  it("understands every form of import", () => {
    const text = [
      "/**",
      " * import { inAComment } from \"./comment.ts\"",
      " */",
      "import \"./effect.ts\"",
      "import * as A from \"./a.ts\"",
      "import b, { type B } from \"./b.ts\"",
      "import type {",
      "  C",
      "} from \"./c.ts\"",
      "export * as D from \"./d.ts\"",
      "export type { E } from \"./e.ts\"",
      "export const from = \"./not-an-import.ts\"",
      "const f = await import(\"./f.ts\")"
    ].join("\n")
    const expected = ["effect", "a", "b", "c", "d", "e", "f"].map((name) => `./${name}.ts`)
    expect(importsOf("src/x.ts", text).imports).toStrictEqual(expected)
    expect(() => importsOf("src/x.ts", "import a from './single-quotes.ts'")).toThrow("0 were understood")
  })

  it("only src/Native imports koffi", () => {
    expect(koffiOutsideNative(modules)).toStrictEqual([])
    expect(koffiOutsideNative(one("src/Native/Libc.ts", "koffi"))).toStrictEqual([])
    expect(koffiOutsideNative(one("src/Memory/MemoryRegion.ts", "koffi"))).toHaveLength(1)
    expect(koffiOutsideNative(one("src/cli/main.ts", "koffi/indirect"))).toHaveLength(1)
  })

  it("no module imports upward or sideways", () => {
    expect(againstTheOrder(modules)).toStrictEqual([])
    expect(againstTheOrder(one("src/Queue/IoQueue.ts", "../Native/Libc.ts"))).toStrictEqual([])
    expect(againstTheOrder(one("src/Queue/IoQueue.ts", "./SplitRing.ts"))).toStrictEqual([])
    expect(againstTheOrder(one("src/cli/main.ts", "../index.ts"))).toStrictEqual([])
    // Upward, sideways, from the root to what stands above it, out of Wire, out of src, and from an unknown room.
    expect(againstTheOrder(one("src/Memory/MemoryRegion.ts", "../Queue/IoQueue.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/Queue/IoQueue.ts", "../Transport/Transport.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/index.ts", "./testing/index.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/index.ts", "./cli/main.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/Wire/SplitRing.ts", "../Errno.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/Wire/SplitRing.ts", "effect"))).toHaveLength(1)
    expect(againstTheOrder(one("src/cli/main.ts", "../../test/tidy.test.ts"))).toHaveLength(1)
    expect(againstTheOrder(one("src/misc/thing.ts", "../Errno.ts"))).toHaveLength(1)
  })

  it("no import cycles", () => {
    expect(cycles(modules)).toStrictEqual([])
    const straight = [...one("src/Queue/a.ts", "./b.ts"), ...one("src/Queue/b.ts", "../Errno.ts")]
    expect(cycles(straight)).toStrictEqual([])
    const loop = [...one("src/Queue/a.ts", "./b.ts"), ...one("src/Queue/b.ts", "./a.ts")]
    expect(cycles(loop)).toStrictEqual(["src/Queue/a.ts -> src/Queue/b.ts -> src/Queue/a.ts"])
  })

  it("every relative import ends in .ts", () => {
    expect(withoutTsEnding(modules)).toStrictEqual([])
    expect(withoutTsEnding(one("src/Queue/IoQueue.ts", "./SplitRing"))).toHaveLength(1)
    expect(withoutTsEnding(one("src/Queue/IoQueue.ts", "./SplitRing.js"))).toHaveLength(1)
  })

  it("no text in the repository names a path of one machine", () => {
    const files = repositoryFiles()
    expect(files).toContain("package.json")
    expect(files.flatMap((path) => machinePaths(path, readText(path)))).toStrictEqual([])
    const machine = ["", "work", "main"].join("/")
    expect(machinePaths("README.md", `first\ncd ${machine}/src`)).toStrictEqual([`README.md:2: cd ${machine}/src`])
    expect(machinePaths("README.md", `a network${machine}, and /workspace`)).toStrictEqual([])
  })
})
