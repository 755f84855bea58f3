/**
 * Writes the package's JavaScript to `dist`: one file for each entry point, and what they share in a few chunks. Importing the
 * package is finding and compiling files, mostly; as a file for each module it takes half as long again.
 *
 *     node scripts/bundle.ts
 */
import { isAbsolute } from "node:path"
import { rolldown } from "rolldown"
import manifest from "../package.json" with { type: "json" }

/** Started by their files' names, relative to the modules that start them. */
const WORKERS = ["src/Embedded/worker.ts", "src/cli/worker.ts"]

const nameOf = (path: string) => path.replace(/^(\.\/)?(dist|src)\//u, "").replace(/\.[jt]s$/u, "")

const input: Record<string, string> = {}
for (const target of Object.values(manifest.exports)) {
  if (typeof target !== "string") input[nameOf(target.default)] = target["@effect-blkio/source"]
}
for (const path of Object.values(manifest.bin)) input[nameOf(path)] = `src/${nameOf(path)}.ts`
for (const path of WORKERS) input[nameOf(path)] = path

const bundle = await rolldown({
  input,
  platform: "node",
  external: (id) => !id.startsWith(".") && !isAbsolute(id)
})
await bundle.write({
  dir: "dist",
  format: "esm",
  sourcemap: true,
  entryFileNames: "[name].js",
  // They lie where `src/Embedded.ts` lies in `src`, since that starts a thread by a path relative to itself.
  chunkFileNames: "[name]-[hash].js",
  // Who drives a disk needs most of the rooms below, and who needs errors alone none of them.
  codeSplitting: {
    groups: [
      { name: "errors", test: /\/src\/Errno\b/u, priority: 1 },
      {
        name: "driver",
        test: /\/src\/(?:Wire|Native|Memory|Properties|Transport|Queue|Driver|BlockStore|BlockDevice|VirtioBlk)\b/u
      }
    ]
  }
})
await bundle.close()
