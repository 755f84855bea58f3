/**
 * Goal: what the documentation says is so. Pages made from the code are those the code makes now, and every sample runs under
 * this Node and prints what it says.
 *
 * Method: samples (```ts blocks of README.md and docs, and of docstrings in src) are written to a folder outside the checkout,
 * where `effect-blkio` is this checkout's sources under the names that package.json exports, checked by the compiler and run as
 * programs. `console.log(…) // => a b` says what the line prints: its arguments, strings quoted. A comment
 * `<!-- sample: qsd -->` before a block in Markdown asks for a qemu-storage-daemon, whose socket stands for `/run/disk.sock`;
 * `<!-- sample: not run -->` has it checked by the compiler only.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { beforeAll, describe, expect, layer } from "@effect/vitest"
import { Effect } from "effect"
import { execFile } from "node:child_process"
import {
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, it } from "vitest"
import { pages } from "../scripts/docs.ts"
import * as QemuStorageDaemon from "../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { qsdIsHere } from "./integration/requirement.ts"

const repository = fileURLToPath(new URL("..", import.meta.url))
const read = (path: string) => readFileSync(Path.join(repository, path), "utf8")

interface Sample {
  /** Where it begins: `src/Errno.ts:470`. */
  readonly place: string
  readonly code: string
  readonly mode: "run" | "qsd" | "not run"
}

const lineOf = (text: string, at: number) => text.slice(0, at).split("\n").length

const markdownSamples = (path: string, text: string): ReadonlyArray<Sample> =>
  Array.from(
    text.matchAll(/(?:<!-- sample: (?<mode>[a-z ]+) -->\n+)?^```ts\n(?<code>.*?)^```$/gmsu),
    ({ groups: { code = "", mode = "run" } = {}, index }) => {
      if (mode !== "run" && mode !== "qsd" && mode !== "not run") throw new Error(`${path}: what is sample: ${mode}?`)
      return { place: `${path}:${lineOf(text, index)}`, code, mode }
    }
  )

const docstringSamples = (path: string, text: string): ReadonlyArray<Sample> =>
  Array.from(text.matchAll(/^ *\* ```ts\n(?<code>.*?)^ *\* ```$/gmsu), ({ groups: { code = "" } = {}, index }) => {
    const bare = code.replaceAll(/^ *\* ?/gmu, "")
    return {
      place: `${path}:${lineOf(text, index)}`,
      code: bare,
      mode: /\bQemuStorageDaemon\b/u.test(bare) ? "qsd" : "run"
    }
  })

const samples: ReadonlyArray<Sample> = [
  ...["README.md", ...globSync("docs/*.md", { cwd: repository })]
    .filter((path) => existsSync(Path.join(repository, path)))
    .flatMap((path) => markdownSamples(path, read(path))),
  ...globSync("src/**/*.ts", { cwd: repository }).toSorted().flatMap((path) => docstringSamples(path, read(path)))
]

/** What a sample's lines say they print. */
const expectations = (code: string): ReadonlyArray<string> =>
  Array.from(code.matchAll(/\/\/ => (?<printed>.*)$/gmu), ({ groups }) => groups?.["printed"] ?? "")

/** As console.log would print the values of an expectation: strings bare, and what is no JSON as it stands. */
const printed = (expectation: string): string =>
  expectation.replaceAll(/"(?:[^"\\]|\\.)*"/gu, (string) => String(JSON.parse(string)))

const fileOf = ({ place }: Sample) => `${place.replaceAll(/[^\w.]/gu, "_")}.ts`

let folder = ""

/** A folder in which `effect-blkio` is this checkout's sources, by the names that package.json exports. */
const makeFolder = () => {
  const made = mkdtempSync(Path.join(tmpdir(), "blkio-docs-"))
  const modules = Path.join(made, "node_modules")
  const ours = Path.join(modules, "effect-blkio")
  mkdirSync(ours, { recursive: true })
  for (const name of readdirSync(Path.join(repository, "node_modules"))) {
    if (!name.startsWith(".") && name !== "effect-blkio") {
      symlinkSync(Path.join(repository, "node_modules", name), Path.join(modules, name))
    }
  }
  const { exports }: { exports: Record<string, string | { default: string }> } = JSON.parse(read("package.json"))
  const sourceOf = (target: string) => target.replace(/^\.\/dist\//u, "./src/").replace(/\.js$/u, ".ts")
  symlinkSync(Path.join(repository, "src"), Path.join(ours, "src"))
  const ourExports = Object.entries(exports).map(([name, target]) =>
    [name, typeof target === "string" ? target : sourceOf(target.default)] as const
  )
  writeFileSync(
    Path.join(ours, "package.json"),
    JSON.stringify({ name: "effect-blkio", type: "module", exports: Object.fromEntries(ourExports) })
  )
  writeFileSync(Path.join(made, "package.json"), JSON.stringify({ type: "module" }))
  const { compilerOptions } = JSON.parse(read("tsconfig.json").replaceAll(/^\s*\/\/.*$/gmu, ""))
  writeFileSync(
    Path.join(made, "tsconfig.json"),
    // A sample may show a value without using it.
    JSON.stringify({
      compilerOptions: { ...compilerOptions, noUnusedLocals: false, outDir: "out", plugins: [] },
      include: ["*.ts"]
    })
  )
  return made
}

beforeAll(() => {
  folder = makeFolder()
  for (const sample of samples) writeFileSync(Path.join(folder, fileOf(sample)), sample.code)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const run = promisify(execFile)

/** Runs a sample, with another socket in place of the one it names. */
const runSample = async (sample: Sample, socketPath: string) => {
  const file = Path.join(folder, fileOf(sample))
  writeFileSync(file, sample.code.replaceAll("/run/disk.sock", socketPath))
  const { stdout } = await run(process.execPath, [file], { cwd: folder })
  const expected = expectations(sample.code).map(printed)
  if (expected.length > 0) expect(stdout.trimEnd().split("\n")).toStrictEqual(expected)
}

describe("pages made from the code", () => {
  it.each(pages.map((page) => [page.path, page] as const))("%s is up to date (node scripts/docs.ts)", (path, page) => {
    expect(read(path)).toBe(page.text)
  })

  it.each(pages.map((page) => [page.path, page] as const))("%s has tables that are whole", (_, { text }) => {
    const widths = text.split("\n\n").filter((block) => block.startsWith("|")).map((block) =>
      new Set(block.trimEnd().split("\n").map((row) => row.split(" | ").length)).size
    )
    expect(widths.length).toBeGreaterThan(0)
    expect(new Set(widths)).toStrictEqual(new Set([1]))
  })
})

describe("samples", () => {
  it.skipIf(!existsSync(Path.join(repository, "README.md")))("are in README.md", () => {
    expect(samples.filter(({ place }) => place.startsWith("README.md")), "README.md has no ```ts block").not
      .toStrictEqual([])
  })

  it("say what they print where they print", () => {
    const silent = samples.filter(({ code }) => code.includes("console.log") && expectations(code).length === 0)
    expect(silent.map(({ place }) => place)).toStrictEqual([])
  })

  it("compile", { timeout: 120_000 }, async () => {
    const tsc = Path.join(repository, "node_modules", "typescript", "bin", "tsc")
    const { stdout } = await run(process.execPath, [tsc, "-p", "."], { cwd: folder }).catch(
      (error: { stdout: string }) => error
    )
    // What is wrong with the sources themselves is told elsewhere.
    expect(stdout.split("\n").filter((line) => /^\w/u.test(line))).toStrictEqual([])
  })

  it.each(samples.filter(({ mode }) => mode === "run").map((sample) => [sample.place, sample] as const))(
    "%s prints what it says",
    async (_, sample) => {
      await runSample(sample, "/run/disk.sock")
    }
  )
})

describe.skipIf(!qsdIsHere)("samples that need a daemon", () => {
  layer(NodeServices.layer, { excludeTestServices: true })((it) => {
    it.effect.each(samples.filter(({ mode }) => mode === "qsd").map((sample) => [sample.place, sample] as const))(
      "%s prints what it says",
      ([, sample]) =>
        Effect.gen(function*() {
          const { socketPath } = yield* QemuStorageDaemon.start({
            exports: [{ image: { _tag: "null-co", size: 2 ** 30, readZeroes: true }, numQueues: 4 }]
          })
          yield* Effect.promise(() => runSample(sample, socketPath))
        })
    )
  })
})
