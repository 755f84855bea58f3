/**
 * Hashes an image in one line, and by a daemon that was started by hand before: `blkio hash image:PATH`, whose time has the start
 * of the daemon and the opening of the image in it, beside `blkio hash` on the socket of one that runs. Round by round, and the
 * median of the ratios.
 *
 *     npm run bench:images [-- ROUNDS [MEBIBYTES]]
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { sharedMemoryFolder } from "./disks.ts"
import { here } from "./machine.ts"
import { output } from "./measure.ts"
import { ratios, summarize } from "./statistics.ts"
import { digits, ratioDigits } from "./tables.ts"

const [, , rounds = "7", mebibytes = "1024"] = process.argv
const MEBIBYTE = 2 ** 20
/** A hash is given this much time at most. */
const LONGEST_SECONDS = 600

/** Makes a qcow2 image that is full of data. */
const makeImage = Effect.fnUntraced(function*(folder: string) {
  const fs = yield* FileSystem.FileSystem
  const raw = `${folder}/disk.raw`
  const image = `${folder}/disk.qcow2`
  const chunk = new Uint8Array(MEBIBYTE)
  yield* Effect.scoped(Effect.gen(function*() {
    const file = yield* fs.open(raw, { flag: "w" })
    for (let i = 0; i < Number(mebibytes); i++) yield* file.writeAll(chunk.fill(1 + i % 255))
  }))
  yield* output(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], LONGEST_SECONDS)
  yield* fs.remove(raw)
  return image
})

const program = Effect.gen(function*() {
  const image = yield* makeImage(yield* sharedMemoryFolder)
  const daemon = yield* QemuStorageDaemon.start({
    exports: [{ image: { _tag: "qcow2", file: image }, writable: false }]
  })
  const ways = [
    { name: "a daemon that runs", device: `virtio-blk-vhost-user,path=${daemon.socketPath}` },
    { name: "image:PATH", device: `image:${image}` }
  ].map((way) => ({ ...way, seconds: new Map<number, number>(), hash: "" }))
  const { kernel, node, processor, processors } = here()
  yield* Console.log(
    `blkio hash of ${mebibytes} MiB of qcow2 in shared memory, ${rounds} rounds in turn; `
      + `qemu-storage-daemon ${daemon.version}, ${processors} × ${processor}, ${kernel}, Node ${node}`
  )
  for (let round = 0; round < Number(rounds); round++) {
    for (const way of ways) {
      const began = performance.now()
      const { stdout } = yield* output(["node", "src/cli/main.ts", "hash", way.device], LONGEST_SECONDS)
      way.seconds.set(round, (performance.now() - began) / 1000)
      way.hash = stdout.slice(0, stdout.indexOf(" "))
    }
  }
  const [base, ours] = ways
  if (base?.hash !== ours?.hash) return yield* Effect.die(new Error("the hashes differ"))
  for (const { name, seconds } of ways) {
    const ratio = summarize(ratios(seconds, base?.seconds ?? new Map()))
    yield* Console.log(
      `${name.padEnd(20)} ${digits(summarize([...seconds.values()])?.median).padStart(6)} s  ×${
        ratioDigits(ratio?.median)
      }`
    )
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
