/** What makes the runners, and those who ask them, a cluster: a database that all of them reach, and sockets between them. */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Option, Redacted } from "effect"
import { RunnerAddress, type ShardingConfig } from "effect/cluster"
import { createServer } from "node:net"
import * as NodeSqlite from "./NodeSqlite.ts"

/**
 * The database that CLUSTER_DATABASE names: `postgres://…` for PostgreSQL, else a file for SQLite, which serves the runners of one
 * machine. Nothing else has to change with it.
 */
export const Database = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.Redacted("CLUSTER_DATABASE")
  const text = Redacted.value(url)
  return /^postgres(?:ql)?:\/\//u.test(text) ? PgClient.layer({ url }) : NodeSqlite.layer({ filename: text })
}))

/**
 * A runner holds its images by locks that it refreshes. One that has not for `shardLockExpiration` is dead to the others, which
 * then take its images: that is how long a takeover takes, give or take a second or two, and for how long a runner may be
 * stopped without losing them. The defaults are 35 s and 10 s.
 */
const sharding: Partial<ShardingConfig.ShardingConfig["Service"]> = {
  shardLockExpiration: "6 seconds",
  shardLockRefreshInterval: "2 seconds",
  runnerHealthCheckInterval: "2 seconds",
  refreshAssignmentsInterval: "1 second",
  entityMessagePollInterval: "2 seconds",
  // Images are spread by a hash of their names over so many shards, and shards over runners.
  shardsPerGroup: 100
}

/** Takes part as a runner, which the others reach at this address. */
export const runner = (address: { readonly host: string; readonly port: number }) =>
  NodeClusterSocket.layer({
    shardingConfig: { ...sharding, runnerAddress: Option.some(new RunnerAddress.RunnerAddress(address)) }
  })

/** Only asks. */
export const client = NodeClusterSocket.layer({
  clientOnly: true,
  shardingConfig: { ...sharding, runnerAddress: Option.none() }
})

/** A port of this machine that nobody listens at. */
export const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})
