/**
 * Runs `blkio bench` briefly in every way it can wait, at several depths and through each API of a queue, against
 * qemu-storage-daemon's `null-co`, and prints a line for each. It checks that requests were made and none failed; it asserts
 * no figure.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect } from "effect"
import * as QemuStorageDaemon from "effect-blkio/QemuStorageDaemon"
import { measure } from "./measure.ts"

const SECONDS = 0.3

const program = Effect.gen(function*() {
  const { socketPath } = yield* QemuStorageDaemon.start({
    exports: [{ image: { _tag: "null-co", size: 2 ** 30 }, numQueues: 2 }]
  })
  for (const wait of ["event", "poll", "adaptive"]) {
    for (const depth of ["1", "32", "128"]) {
      for (const api of ["stream", "loop", "request"]) {
        const options = ["--wait", wait, "--iodepth", depth, "--api", api]
        const { cpuUs, kiops } = yield* measure(socketPath, SECONDS, options)
        yield* Console.log(
          `${wait.padEnd(9)} depth ${depth.padStart(3)}  ${api.padEnd(7)}  ${kiops.toFixed(1).padStart(7)} kIOPS  `
            + `${cpuUs.toFixed(2)} µs CPU a request`
        )
      }
    }
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
