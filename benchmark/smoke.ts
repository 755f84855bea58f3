/**
 * Runs `blkio bench` briefly in every way it can wait, at several depths and through both APIs, against
 * qemu-storage-daemon's `null-co`, and prints a line for each. It checks that requests were made and none failed; it asserts
 * no figure.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Schema } from "effect"
import { Errno } from "effect-blkio"
import { QemuStorageDaemon } from "effect-blkio/testing"
import { ChildProcess, ChildProcessSpawner } from "effect/process"

const SECONDS = "0.3"

const Report = Schema.fromJsonString(
  Schema.Struct({
    aggregate: Schema.Struct({
      kiops: Schema.Finite,
      requests: Schema.Int,
      errors: Schema.Int,
      cpu_us_per_io: Schema.Finite
    })
  })
)

const program = Effect.gen(function*() {
  const daemon = yield* QemuStorageDaemon.make({
    exports: [{ image: { _tag: "null-co", size: 2 ** 30 }, numQueues: 2 }]
  })
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const device = `virtio-blk-vhost-user,path=${daemon.socketPath}`
  for (const wait of ["event", "poll", "adaptive"]) {
    for (const depth of ["1", "32", "128"]) {
      for (const api of ["stream", "request"]) {
        const args = ["bench", device, "--runtime", SECONDS, "--wait", wait, "--iodepth", depth, "--api", api, "--json"]
        const command = ChildProcess.make("node", ["src/cli/main.ts", ...args], { stderr: "inherit" })
        const { aggregate } = yield* Schema.decodeEffect(Report)(yield* spawner.string(command))
        const { cpu_us_per_io, errors, kiops, requests } = aggregate
        yield* Console.log(
          `${wait.padEnd(9)} depth ${depth.padStart(3)}  ${api.padEnd(7)}  ${kiops.toFixed(1).padStart(7)} kIOPS  `
            + `${cpu_us_per_io.toFixed(2)} µs CPU a request`
        )
        if (requests === 0 || errors > 0) {
          return yield* new Errno.EIO({ operation: args.join(" "), detail: `${requests} requests, ${errors} errors` })
        }
      }
    }
  }
})

program.pipe(Effect.scoped, Effect.provide(NodeServices.layer), NodeRuntime.runMain)
