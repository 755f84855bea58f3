/**
 * Goal: whatever the daemon's monitor answers to the opening of an image, or does not, is one typed error in bounded time, and leaves
 * nothing.
 * Method: programs that stand for a daemon, each with a monitor of its own that goes wrong at one command.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect, FileSystem, Redacted } from "effect"
import { chmodSync, readdirSync, writeFileSync } from "node:fs"
import { inspect } from "node:util"
import type { Source } from "../../src/QemuStorageDaemon/Image.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { withVariable } from "../support/environment.ts"

interface Behaviour {
  readonly version?: readonly [number, number, number]
  /** JavaScript that a command runs with `execute`, `args`, `answer(value)` and `fail(desc)`. */
  readonly onCommand?: string
  readonly greeting?: string
}

/** A program that listens as a daemon does; all its commands succeed but for what `onCommand` does. */
const program = ({ greeting, onCommand = "answer({})", version: [major, minor, micro] = [7, 2, 22] }: Behaviour) =>
  `#!${process.execPath}
const socket = process.argv.join(" ").match(/path=(\\S+)/)[1]
require("node:net").createServer((client) => {
  const say = (message) => client.write(JSON.stringify(message) + "\\n")
  client.write(${
    JSON.stringify(
      greeting ?? JSON.stringify({ QMP: { version: { qemu: { major, minor, micro } }, capabilities: [] } })
    )
  } + "\\n")
  let rest = ""
  client.on("error", () => {})
  client.on("data", (data) => {
    const lines = (rest + data).split("\\n")
    rest = lines.pop()
    for (const line of lines) {
      const { execute, arguments: args, id } = JSON.parse(line)
      const answer = (value) => say({ return: value, id })
      const fail = (desc) => say({ error: { class: "GenericError", desc }, id })
      if (execute === "qmp_capabilities") answer({})
      else { ${onCommand} }
    }
  })
}).listen(socket)
process.on("SIGTERM", () => process.exit(0))
`

/** Opens an image by such a program, and gives what is wrong, when nothing of it is left. */
const refusal = Effect.fnUntraced(function*(
  behaviour: Behaviour,
  image: Source = { _tag: "null-co", size: 512 },
  options: QemuStorageDaemon.Options = {}
) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "qsd-test-" })
  const binary = `${folder}/daemon.cjs`
  writeFileSync(binary, program(behaviour))
  chmodSync(binary, 0o755)
  writeFileSync(`${folder}/disk`, "")
  const opened = typeof image === "object" && "file" in image ? { ...image, file: `${folder}/disk` } : image
  const error = yield* QemuStorageDaemon.make(opened, { binary, ...options }).pipe(
    Effect.scoped,
    Effect.flip,
    withVariable("TMPDIR", folder)
  )
  expect(readdirSync(folder).toSorted()).toStrictEqual(["daemon.cjs", "disk"])
  return error
}, Effect.scoped)

const at = (command: string, what: string) => `if (execute === "${command}") { ${what} } else answer({})`
const qcow2: Source = { _tag: "qcow2", file: "disk" }

describe("a monitor", () => {
  it.live.each<readonly [string, string, string, Behaviour, Source?]>([
    ["of a daemon without vhost-user", "ENOTSUP", "version 5.1.0: must be 5.2 or later", { version: [5, 1, 0] }],
    ["that greets with what is none", "EIO", "not a message of QMP", { greeting: "HTTP/1.1 400 Bad Request" }],
    ["that says something else", "EIO", "not a message of QMP", {
      onCommand: at("blockdev-add", "client.write('what?\\n')")
    }],
    ["that closes", "EIO", "the daemon closed its monitor", { onCommand: at("blockdev-add", "client.destroy()") }],
    ["whose daemon ends as it opens the image", "EIO", "exit code 7: bad day", {
      onCommand: at("blockdev-add", "require('fs').writeSync(2, 'bad day'); process.exit(7)")
    }],
    ["whose daemon crashes as it opens the image", "EIO", "exit code 134", {
      onCommand: at("blockdev-add", "process.abort()")
    }],
    ["that refuses for a reason of its own", "EIO", "the moon is full", {
      onCommand: at("blockdev-add", "fail('the moon is full')")
    }],
    ["that refuses the export", "EIO", "no more", { onCommand: at("block-export-add", "fail('no more')") }],
    ["that has no such driver", "ENOTSUP", "package qemu-block-extra", {
      onCommand: at("blockdev-add", "fail(\"Unknown driver 'rbd'\")")
    }, { _tag: "rbd", pool: "p", image: "i" }],
    ["that tells of nodes as nobody does", "EIO", "query-named-block-nodes", {
      onCommand: at(
        "blockdev-add",
        "args['data-file'] ? fail(\"'data-file' can only be set for images with an external data file\") : answer({})"
      ).replace("else", "else if (execute === 'query-named-block-nodes') answer([{ image: 7 }]); else")
    }, qcow2],
    ["that does not refuse another file for the data", "EINVAL", "data are in another file", {}, qcow2],
    ["that serves nothing", "ENOENT", "", {}]
  ])("%s is %s: %s", ([, tag, words, behaviour, image]) =>
    Effect.gen(function*() {
      const error = yield* refusal(behaviour, image)
      expect([error._tag, error.message]).toStrictEqual([tag, expect.stringContaining(words)])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("that does not answer is ETIMEDOUT, at one command or at many that each take their time", () =>
    Effect.gen(function*() {
      for (
        const onCommand of [
          at("blockdev-add", ""),
          // Each answer comes within the time that all have.
          "setTimeout(() => args?.['data-file'] ? fail(\"'data-file' can only be set\") : answer([]), 1000)"
        ]
      ) {
        const start = performance.now()
        const error = yield* refusal({ onCommand }, qcow2, { startTimeout: "2 seconds" })
        expect(error).toMatchObject({ _tag: "ETIMEDOUT", operation: "open" })
        expect(performance.now() - start).toBeLessThan(20_000)
      }
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("that repeats what it was told does not tell a secret", () =>
    Effect.gen(function*() {
      const passphrase = Redacted.make("hunter2")
      const onCommand = at("object-add", "fail('cannot ' + args.id); require('fs').writeSync(2, args['qom-type'])")
      const error = yield* refusal({ onCommand }, { _tag: "luks", file: "disk", passphrase })
      expect(error).toMatchObject({ _tag: "EIO", detail: "cannot disk0-secret0" })
      for (const text of [inspect(error, { depth: null }), JSON.stringify(error)]) {
        expect(text).not.toContain("hunter2")
        expect(text).not.toContain(Buffer.from("hunter2").toString("base64"))
      }
    }).pipe(Effect.provide(NodeServices.layer)))
})
