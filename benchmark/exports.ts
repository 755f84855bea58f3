/**
 * Serves disks that lie in memory to the same driver, measures each in turn, round by round, and prints medians and
 * ratios: a file in shared memory, by qemu-storage-daemon and by our export, and a memory store by our export.
 *
 *     npm run bench:exports [-- ROUNDS [SECONDS]]
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem } from "effect"
import { DiskImage, QemuStorageDaemon } from "effect-blkio/testing"
import { ChildProcess } from "effect/process"
import { existsSync } from "node:fs"
import { arch, cpus, release } from "node:os"
import { measure } from "./measure.ts"

const [, , rounds = "5", seconds = "1"] = process.argv
const DISK_BYTES = 2 ** 28
const DEPTHS = ["1", "8", "32", "128"]
const LISTEN_POLL_MS = 20

/** Starts `blkio serve` in a process of its own; it ends with the Scope. */
const serve = Effect.fnUntraced(function*(store: string, socketPath: string) {
  yield* ChildProcess.make("node", ["src/cli/main.ts", "serve", store, "--socket", socketPath], { stderr: "ignore" })
  while (!existsSync(socketPath)) yield* Effect.sleep(LISTEN_POLL_MS)
  return socketPath
})

const median = (values: ReadonlyArray<number>): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ directory: "/dev/shm", prefix: "blkio-bench-" })
  const image = `${folder}/disk.raw`
  yield* DiskImage.createRaw(image, DISK_BYTES)
  // Holes would be read faster than data.
  yield* fs.writeFile(image, new Uint8Array(DISK_BYTES).fill(0x5a))
  const daemon = yield* QemuStorageDaemon.make({ exports: [{ image: { _tag: "raw", path: image } }] })
  const servers = [
    { name: `qemu-storage-daemon ${daemon.version}, file`, path: daemon.socketPath },
    { name: "blkio serve, file", path: yield* serve(`file:${image}`, `${folder}/file.sock`) },
    { name: "blkio serve, memory", path: yield* serve(`memory:${DISK_BYTES}`, `${folder}/memory.sock`) }
  ]
  yield* Console.log(
    `4 KiB random reads, kIOPS, medians of ${rounds} rounds of ${seconds} s in turn, and medians of the ratios to the first; `
      + `${cpus().length} × ${cpus()[0]?.model.trim()}, ${arch()}, Linux ${release()}, Node ${process.version}`
  )
  for (const depth of DEPTHS) {
    const found = servers.map(({ name, path }) => ({ name, path, kiops: [] as Array<number> }))
    for (let round = 0; round < Number(rounds); round++) {
      for (const server of found) {
        const { kiops } = yield* measure(server.path, ["--runtime", seconds, "--iodepth", depth])
        server.kiops.push(kiops)
      }
    }
    const [base] = found
    for (const { kiops, name } of found) {
      const ratio = median(kiops.map((figure, round) => figure / (base?.kiops[round] ?? Number.NaN)))
      yield* Console.log(
        `depth ${depth.padStart(3)}  ${name.padEnd(32)} ${median(kiops).toFixed(1).padStart(8)}  ×${ratio.toFixed(2)}`
      )
    }
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
