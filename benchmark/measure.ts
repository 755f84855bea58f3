/**
 * One run of `blkio bench` in a process of its own, and what it reports. A run without requests, or with one that failed,
 * measures nothing and is an error.
 */
import { Effect, Schema } from "effect"
import { Errno } from "effect-blkio"
import { ChildProcess, ChildProcessSpawner } from "effect/process"

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

/** Runs `blkio bench` on the disk at a socket. */
export const measure = Effect.fnUntraced(function*(socketPath: string, options: ReadonlyArray<string>) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const device = `virtio-blk-vhost-user,path=${socketPath}`
  const args = ["src/cli/main.ts", "bench", device, ...options, "--json"]
  const { aggregate } = yield* Schema.decodeEffect(Report)(
    yield* spawner.string(ChildProcess.make("node", args, { stderr: "inherit" }))
  )
  const { errors, requests } = aggregate
  if (requests > 0 && errors === 0) return aggregate
  return yield* new Errno.EIO({ operation: args.join(" "), detail: `${requests} requests, ${errors} errors` })
})
