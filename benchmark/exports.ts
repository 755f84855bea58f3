/**
 * Serves disks that lie in memory to the same driver, measures each in turn, round by round, and prints medians and
 * ratios: a file in shared memory, by qemu-storage-daemon and by our export, and a memory store by our export.
 *
 *     npm run bench:exports [-- ROUNDS [SECONDS]]
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { ChildProcess } from "effect/process"
import { existsSync } from "node:fs"
import { DISK_BYTES, makeFullImage, sharedMemoryFolder } from "./disks.ts"
import { here } from "./machine.ts"
import { measure } from "./measure.ts"
import { ratios, summarize } from "./statistics.ts"
import { digits, ratioDigits } from "./tables.ts"

const [, , rounds = "5", seconds = "1"] = process.argv
const DEPTHS = ["1", "8", "32", "128"]
const LISTEN_POLL_MS = 20

/** Starts `blkio serve` in a process of its own; it ends with the Scope. */
const serve = Effect.fnUntraced(function*(store: string, socketPath: string) {
  yield* ChildProcess.make("node", ["src/cli/main.ts", "serve", store, "--socket", socketPath], { stderr: "ignore" })
  while (!existsSync(socketPath)) yield* Effect.sleep(LISTEN_POLL_MS)
  return socketPath
})

const program = Effect.gen(function*() {
  const folder = yield* sharedMemoryFolder
  const image = `${folder}/disk.raw`
  yield* makeFullImage(image)
  const daemon = yield* QemuStorageDaemon.start({ exports: [{ image: { _tag: "raw", file: image } }] })
  const servers = [
    { name: `qemu-storage-daemon ${daemon.version}, file`, path: daemon.socketPath },
    { name: "blkio serve, file", path: yield* serve(`file:${image}`, `${folder}/file.sock`) },
    { name: "blkio serve, memory", path: yield* serve(`memory:${DISK_BYTES}`, `${folder}/memory.sock`) }
  ]
  const { kernel, node, processor, processors } = here()
  yield* Console.log(
    `4 KiB random reads, kIOPS, medians of ${rounds} rounds of ${seconds} s in turn, and medians of the ratios to the first; `
      + `${processors} × ${processor}, ${kernel}, Node ${node}`
  )
  for (const depth of DEPTHS) {
    const found = servers.map(({ name, path }) => ({ name, path, kiops: new Map<number, number>() }))
    for (let round = 0; round < Number(rounds); round++) {
      for (const server of found) {
        const { kiops } = yield* measure(server.path, Number(seconds), ["--iodepth", depth])
        server.kiops.set(round, kiops)
      }
    }
    const [base] = found
    for (const { kiops, name } of found) {
      const ratio = summarize(ratios(kiops, base?.kiops ?? new Map()))
      yield* Console.log(
        `depth ${depth.padStart(3)}  ${name.padEnd(32)} ${
          digits(summarize([...kiops.values()])?.median).padStart(8)
        }  ×${ratioDigits(ratio?.median)}`
      )
    }
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
