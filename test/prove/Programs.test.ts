/**
 * Goal: a proof that cannot be run says so, and says what it needs.
 * Method: both programs, where no package is installed and none can be: the package manager is a script that fails.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { expect, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { fileURLToPath } from "node:url"
import { startProgram } from "../support/program.ts"

const withoutPackages = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-path-" })
  for (const name of ["dpkg-query", "apt-get", "sudo"]) {
    yield* fs.writeFileString(`${folder}/${name}`, "#!/bin/sh\necho \"no mirror\" >&2\nexit 100\n", { mode: 0o755 })
  }
  return folder
})

it.live.each([["ceph", "ceph-mon ceph-osd ceph-common"], ["iscsi", "tgt"]])(
  "the proof of %s fails where its packages cannot be had",
  ([name, packages]) =>
    Effect.gen(function*() {
      const program = fileURLToPath(new URL(`${name}/main.ts`, import.meta.url))
      const { outcome } = yield* startProgram(["--conditions=@effect-blkio/source", program], {
        PATH: yield* withoutPackages
      })
      const { exit, stderr, stdout } = yield* outcome
      expect(stdout + stderr).toContain(`this needs Debian's packages ${packages}`)
      expect(stdout + stderr).toContain("no mirror")
      expect(exit).toBe(1)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
)
