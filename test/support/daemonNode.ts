/** Exports of block nodes that only a daemon's monitor can make: with errors, with a log, from another server. */
import { Effect, type Schema } from "effect"
import { join } from "node:path"
import type * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import type * as Qmp from "../../src/Qmp/Qmp.ts"

/** How a node is exported; see `QemuStorageDaemon.Export`. */
export interface NodeOptions {
  readonly writable?: boolean
  readonly numQueues?: number
  readonly logicalBlockSize?: number
}

/** Makes a node of QEMU's BlockdevOptions and exports it from a daemon that runs. */
export const exportNode: (
  daemon: QemuStorageDaemon.Daemon,
  name: string,
  node: Readonly<Record<string, Schema.Json>>,
  options?: NodeOptions
) => Effect.Effect<QemuStorageDaemon.RunningExport, Qmp.CommandError> = Effect.fnUntraced(function*(
  daemon,
  name,
  node,
  { logicalBlockSize = 512, numQueues = 1, writable = true } = {}
) {
  const socketPath = join(daemon.directory, `${name}.sock`)
  yield* daemon.qmp.execute("blockdev-add", { "node-name": name, ...node })
  yield* daemon.qmp.execute("block-export-add", {
    "type": "vhost-user-blk",
    "id": name,
    "node-name": name,
    writable,
    "num-queues": numQueues,
    "logical-block-size": logicalBlockSize,
    "addr": { type: "unix", path: socketPath }
  })
  return { id: name, nodeName: name, socketPath }
})
