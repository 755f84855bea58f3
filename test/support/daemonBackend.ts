/** QEMU's storage daemon as a backend: the judge from outside, where it is installed. */
import { Effect } from "effect"
import type * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import type { Backend, Disk, Facts, Pattern, Served, ServeOptions, Zeroes } from "./Backend.ts"
import { majorOf, MiB, serve } from "./daemon.ts"
import { exportNode } from "./daemonNode.ts"

const exportOf = (
  disk: Disk,
  { blockSize = 512, numQueues = 1, readOnly = false }: ServeOptions = {}
): QemuStorageDaemon.Export => ({
  image: disk._tag === "zeroes"
    ? { _tag: "null-co", size: disk.size, readZeroes: true, latencyMs: disk.latencyMs ?? 0 }
    : { _tag: disk._tag, file: disk.path },
  writable: !readOnly,
  numQueues,
  logicalBlockSize: blockSize
})

/** What 7.2 and 10 do differently, and the limits of their vhost-user-blk export (QEMU: block/export/virtio-blk-handler.c). */
const factsOf = (daemon: QemuStorageDaemon.Daemon): Facts => ({
  maxMemRegions: majorOf(daemon) < 10 ? 31 : 508,
  maxSegments: 126,
  maxDiscardLength: 16 * MiB,
  maxWriteZeroesLength: 16 * MiB,
  // The export opens its disk without one (QEMU: BlockExportOptions, writethrough), and answers so.
  writeCache: false,
  tellsOfResize: majorOf(daemon) >= 10
})

const servedBy = (
  daemon: QemuStorageDaemon.Daemon,
  { id, nodeName, socketPath }: QemuStorageDaemon.RunningExport
): Served => ({
  socketPath,
  pid: daemon.pid,
  facts: factsOf(daemon),
  resize: (capacity) => Effect.orDie(daemon.qmp.blockResize(nodeName, capacity)),
  withdraw: daemon.qmp.execute("block-export-del", { id, mode: "hard" }).pipe(Effect.orDie, Effect.asVoid)
})

/** Serves a disk with a bad block, which only the monitor can make. */
const serveFault = Effect.fnUntraced(function*(
  { size }: Zeroes,
  { offset, operation }: NonNullable<Zeroes["fault"]>,
  { blockSize = 512, numQueues = 1, readOnly = false }: ServeOptions
) {
  const daemon = yield* serve({ exports: [exportOf({ _tag: "zeroes", size })] })
  const failing = yield* exportNode(daemon, "failing", {
    "driver": "blkdebug",
    "image": { "driver": "null-co", size, "read-zeroes": true },
    "inject-error": [{ event: "none", iotype: operation, errno: 5, sector: Math.floor(offset / 512) }]
  }, { writable: !readOnly, numQueues, logicalBlockSize: blockSize })
  return servedBy(daemon, failing)
}, Effect.orDie)

const commands = (verb: "read" | "write", patterns: ReadonlyArray<Pattern>) =>
  patterns.map(([offset, length, byte]) => `${verb} -P ${byte} ${offset} ${length}`)

export const daemonBackend: Backend = {
  name: "qemu-storage-daemon",
  isHere: qsdIsHere,
  formats: ["raw", "qcow2"],
  serve: (disk, options = {}) =>
    disk._tag === "zeroes" && disk.fault !== undefined
      ? serveFault(disk, disk.fault, options)
      : serve({ exports: [exportOf(disk, options)] }).pipe(
        Effect.map((daemon) => servedBy(daemon, daemon.exports[0])),
        Effect.orDie
      ),
  serveTogether: ([first, ...others]) =>
    first === undefined
      ? Effect.succeed([])
      : serve({ exports: [exportOf(first), ...others.map((disk) => exportOf(disk))] }).pipe(
        Effect.map((daemon) => daemon.exports.map((running) => servedBy(daemon, running))),
        Effect.orDie
      ),
  serveApart: (disk, options) =>
    serve({ exports: [exportOf(disk, options)] }).pipe(
      Effect.map(({ exitCode, kill, pid, socketPath }) => ({ socketPath, pid, kill, ended: Effect.asVoid(exitCode) })),
      Effect.orDie
    ),
  fill: ({ _tag, path }, patterns) => Effect.orDie(DiskImage.qemuIo(path, _tag, commands("write", patterns))),
  verify: ({ _tag, path }, patterns) =>
    Effect.orDie(DiskImage.qemuIo(path, _tag, commands("read", patterns), { inUse: true }))
}
