/**
 * Measures how long a bundled program takes from its start to its first completed request, and what importing the package's
 * root costs beside importing the modules of `effect` that it uses. Needs `dist`, which the npm script builds.
 *
 *     npm run bench:startup [-- RUNS]
 *
 * README.md in this folder says how to read it.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Schema } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { realpathSync } from "node:fs"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"
import { rolldown } from "rolldown"
import { type Command, decode, output } from "./measure.ts"
import { judge, ratios, summarize, type Target } from "./statistics.ts"
import { digits, ratioDigits, targetText } from "./tables.ts"

const [, , runs = "15"] = process.argv

const FIRST_REQUEST: Target = { kind: "at most", bound: 150 }
const IMPORT: Target = { kind: "at most", bound: 1.2 }

/** Bundles the program into a file. koffi stays outside, since it is native. */
const bundle = (file: string) =>
  Effect.promise(async () => {
    const build = await rolldown({
      input: fileURLToPath(new URL("firstRequest.ts", import.meta.url)),
      platform: "node",
      external: ["koffi"],
      resolve: { conditionNames: ["@effect-blkio/source", "node", "import", "default"] }
    })
    const koffi = realpathSync(createRequire(import.meta.url).resolve("koffi"))
    await build.write({ file, format: "esm", codeSplitting: false, minify: true, paths: { koffi } })
    await build.close()
  })

/** Milliseconds from starting a program to the first byte that it says. */
const untilItSpeaks = (args: ReadonlyArray<string>) =>
  Effect.promise(async () => {
    const began = performance.now()
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
    const exited = once(child, "exit")
    await Promise.race([once(child.stdout, "data"), exited])
    const elapsed = performance.now() - began
    const [code] = await exited
    if (code !== 0) throw new Error(`${args.join(" ")} ended with ${code}`)
    return elapsed
  })

/** Every module of other packages, and of Node, that a module imports with all it imports of its own package. */
const foreignImports = (entry: string): Effect.Effect<ReadonlyArray<string>> =>
  Effect.promise(async () => {
    const build = await rolldown({ input: entry, platform: "node", external: /^[^./]/u, treeshake: false })
    const { output: [{ imports }] } = await build.generate({ format: "esm", codeSplitting: false })
    await build.close()
    return imports.toSorted()
  })

/** Milliseconds that a process of its own takes to import modules, one after another. */
const importing = Effect.fnUntraced(function*(specifiers: ReadonlyArray<string>) {
  const script = `const began = performance.now()
${specifiers.map((specifier) => `await import(${JSON.stringify(specifier)})`).join("\n")}
console.log(performance.now() - began)`
  const command: Command = [process.execPath, "--input-type=module", "--eval", script]
  return yield* decode(Schema.FiniteFromString, command, (yield* output(command, 0)).stdout)
})

/** Runs each in turn, round by round, and gives its figures by round. */
const inTurn = Effect.fnUntraced(function*<E, R>(each: ReadonlyArray<Effect.Effect<number, E, R>>) {
  const found = each.map(() => new Map<number, number>())
  for (let round = 0; round < Number(runs); round++) {
    for (const [i, measure] of each.entries()) found[i]?.set(round, yield* measure)
  }
  return found
})

const line = (name: string, figures: ReadonlyMap<number, number> = new Map()) => {
  const { lower, max, median, min, upper } = summarize([...figures.values()]) ?? {}
  return `  ${name.padEnd(44)} ${digits(median).padStart(6)} ms  (${digits(min)} … ${digits(max)}, quartiles `
    + `${digits(lower)} … ${digits(upper)})`
}

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-startup-" })
  const { socketPath, version } = yield* QemuStorageDaemon.start({
    exports: [{ image: { _tag: "null-co", size: 2 ** 30 } }]
  })
  const file = `${folder}/program.mjs`
  yield* bundle(file)
  const idle = `${folder}/idle.mjs`
  yield* fs.writeFileString(idle, "process.stdout.write(\"idle\\n\")\n")
  const cached = `${folder}/cached.mjs`
  yield* fs.writeFileString(
    cached,
    `import { enableCompileCache } from "node:module"
enableCompileCache(${JSON.stringify(`${folder}/cache`)})
await import("./program.mjs")
`
  )
  // It fills the cache when it ends.
  yield* untilItSpeaks([cached, socketPath])
  const [firstRequest, withCache, node] = yield* inTurn([
    untilItSpeaks([file, socketPath]),
    untilItSpeaks([cached, socketPath]),
    untilItSpeaks([idle])
  ])
  const verdict = (figures: ReadonlyMap<number, number> = new Map()) =>
    `  target ${targetText(FIRST_REQUEST)} ms: ${judge(summarize([...figures.values()]), FIRST_REQUEST)}`
  yield* Console.log([
    `Node ${process.version}, qemu-storage-daemon ${version}, medians of ${runs} runs in turn`,
    "from the start to the first completed request, of a bundled program:",
    line("the program", firstRequest),
    verdict(firstRequest),
    line("the same with Node's compile cache, filled", withCache),
    verdict(withCache),
    line("a program that only says something", node)
  ].join("\n"))

  const root = new URL("../dist/index.js", import.meta.url)
  const foreign = yield* foreignImports(fileURLToPath(root))
  const effect = foreign.filter((specifier) => /^effect(?:\/|$)/u.test(specifier))
  const others = foreign.filter((specifier) => !effect.includes(specifier))
  const [whole, baseline, all] = yield* inTurn([
    importing([root.href]),
    importing(effect),
    importing([...effect, ...others])
  ])
  const ratio = summarize(ratios(whole ?? new Map(), baseline ?? new Map()))
  yield* Console.log([
    "importing:",
    line("the package's root", whole),
    line(`the ${effect.length} modules of effect that it uses`, baseline),
    line("the same, and what else it imports", all),
    `  what else it imports: ${others.join(", ")}`,
    `  root ÷ modules of effect: ${ratioDigits(ratio?.median)}, target ${targetText(IMPORT)}: ${judge(ratio, IMPORT)}`
  ].join("\n"))
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
