/** A disk that only QEMU's storage daemon can reach, opened as a device. */
import { Effect, type Schema } from "effect"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { VhostUser, VirtioBlk } from "../../src/index.ts"
import { exportNode } from "../support/daemonNode.ts"

/** Opens a node of QEMU's BlockdevOptions by a daemon of its own. */
export const open = Effect.fnUntraced(function*(
  node: Readonly<Record<string, Schema.Json>>,
  options: VirtioBlk.Options = {}
) {
  const daemon = yield* QemuStorageDaemon.make({ exports: [{ image: { _tag: "null-co", size: 2 ** 20 } }] })
  const readOnly = node["read-only"] === true
  const { nodeName, socketPath } = yield* exportNode(daemon, "disk", node, { writable: !readOnly })
  const transport = yield* VhostUser.make({ path: socketPath })
  const device = yield* VirtioBlk.make(transport, { ...options, readOnly })
  return { daemon, nodeName, device }
})
