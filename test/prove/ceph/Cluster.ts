/**
 * A Ceph cluster on the loopback interface, for as long as a Scope: one monitor and two object stores (OSDs) that each hold
 * a copy of everything, in a private folder. No manager, no keys, no service of the system.
 *
 * The settings fall into four groups: everything inside the folder; copies on OSDs, since there is one host; quick to come up
 * and to see a loss, where a cluster of hosts would wait for a second opinion; small, since it holds little.
 */
import { Console, Duration, Effect, FileSystem } from "effect"
import { randomUUID } from "node:crypto"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as OrphanGuard from "../../../src/QemuStorageDaemon/OrphanGuard.ts"
import { freePort } from "../../support/freePort.ts"
import { directoryForData, output, server } from "../Programs.ts"

/** What the cluster needs of Debian: 54 packages with all that these need. */
export const packages = ["ceph-mon", "ceph-osd", "ceph-common"]

/** The one pool. */
export const POOL = "rbd"
const OSDS = 2
/** Few groups find together quickly. */
const GROUPS = 8
/** For each wait. */
const LIMIT = Duration.seconds(60)
/** The size of each store, a sparse file. */
const STORE_BYTES = 4 * 2 ** 30
/** After how many seconds without a sign of life an OSD that hangs counts as lost. One that died is noticed at once. */
const GRACE_S = 4

const monitorScript = fileURLToPath(new URL("monitor.py", import.meta.url))
/** Debian's: the bindings of its packages belong to no other. */
const PYTHON = "/usr/bin/python3"

const configuration = (folder: string, id: string, port: number) =>
  `[global]
fsid = ${id}
mon_host = [v2:127.0.0.1:${port}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none

run_dir = ${folder}/run
mon_data = ${folder}/mon
osd_data = ${folder}/osd.$id
log_file = ${folder}/log/$name.log
admin_socket = ${folder}/run/$name.asok
crash_dir = ${folder}/log
log_to_stderr = false
err_to_stderr = false

osd_pool_default_size = ${OSDS}
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
crush_location = root=default host=local
mon_osd_down_out_interval = 0

paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_tick_interval = 1
mon_osd_min_down_reporters = 1
mon_osd_reporter_subtree_level = osd
mon_osd_adjust_heartbeat_grace = false
osd_heartbeat_interval = 1
# For how long a client that died keeps the lock of its image: 30 s by default.
osd_client_watch_timeout = 10
osd_heartbeat_grace = ${GRACE_S}
osd_mon_report_interval = 1
# A virtual disk says that it rotates, and then each step of a recovery is followed by a pause; a plain osd_recovery_sleep of
# 0 means that none is given.
osd_recovery_sleep_hdd = 0
osd_recovery_sleep_hybrid = 0
osd_max_backfills = 8
bluestore_debug_enforce_settings = ssd
# Opening and closing a store wait for several of these, of 250 ms by default.
bdev_aio_poll_ms = 10
# After a kill an OSD replays its log before it serves: seconds of it by default.
bluestore_rocksdb_options = compression=kNoCompression,write_buffer_size=8388608,max_write_buffer_number=4,max_total_wal_size=33554432

osd_memory_target = ${768 * 2 ** 20}
bluestore_block_size = ${STORE_BYTES}
mon_data_avail_crit = 1
mon_data_avail_warn = 2

[client]
admin_socket =
log_file =
`

/** What the daemons have said last, for a cluster that did not come up. */
const lastWords = (folder: string): string => {
  const logs = `${folder}/log`
  if (!existsSync(logs)) return ""
  return readdirSync(logs).filter((name) => name.endsWith(".log")).map((name) =>
    [`--- ${name}`, ...readFileSync(`${logs}/${name}`, "utf8").trimEnd().split("\n").slice(-8)].join("\n")
  ).join("\n")
}

/** Starts a cluster that is ready for writes. */
export const make = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ directory: directoryForData(), prefix: "blkio-ceph-" })
  // Before there is any daemon that has a guard of its own.
  yield* OrphanGuard.make(process.pid, folder, Duration.zero)
  return yield* bringUp(folder).pipe(Effect.tapError(() => Console.error(lastWords(folder))))
})

const bringUp = Effect.fnUntraced(function*(folder: string) {
  const fs = yield* FileSystem.FileSystem
  const conf = `${folder}/ceph.conf`
  const id = randomUUID()
  const port = yield* freePort
  for (const name of ["run", "log", "mon"]) yield* fs.makeDirectory(`${folder}/${name}`)
  yield* fs.writeFileString(conf, configuration(folder, id, port))

  const map = `${folder}/monmap`
  yield* output("monmaptool", ["--create", "--fsid", id, "--addv", "a", `[v2:127.0.0.1:${port}/0]`, map])
  yield* output("ceph-mon", ["-c", conf, "--mkfs", "-i", "a", "--monmap", map])
  const monitor = yield* server(folder, "ceph-mon", ["-c", conf, "-i", "a", "-f"])
  yield* monitor.start

  // The monitor knows each store by its UUID: one with another waits for ever, and says nothing.
  const makeStore = Effect.fnUntraced(function*(index: number) {
    const uuid = randomUUID()
    yield* fs.makeDirectory(`${folder}/osd.${index}`)
    yield* output("ceph-osd", ["-c", conf, "-i", String(index), "--mkfs", "--osd-uuid", uuid])
    return uuid
  })
  const uuids = yield* Effect.all([makeStore(0), makeStore(1)], { concurrency: OSDS })

  const ask = (...command: ReadonlyArray<string>) =>
    output(PYTHON, [monitorScript, conf, String(Duration.toSeconds(LIMIT)), ...command], {
      limit: Duration.sum(LIMIT, Duration.seconds(5))
    })
  yield* ask("announce", ...uuids)
  const osd = (index: number) => server(folder, "ceph-osd", ["-c", conf, "-i", String(index), "-f"])
  const osds = yield* Effect.all([osd(0), osd(1)])
  const pids = () => osds.flatMap(({ pid }) => pid() ?? []).map(String)
  for (const { start } of osds) yield* start
  yield* ask("pool", POOL, String(GROUPS), String(OSDS))

  return {
    folder,
    /** The configuration of its clients. */
    conf,
    osds,
    /** Waits until the monitor knows which OSDs are up. */
    noticed: Effect.suspend(() => ask("up", ...pids())),
    /** Waits until each OSD that runs is up and has everything. */
    clean: Effect.suspend(() => ask("clean", POOL, ...pids())),
    /** Runs `rbd`, which never ends while what it asks for is away: bounded like any program here. */
    rbd: (...args: ReadonlyArray<string>) => output("rbd", ["-c", conf, ...args]),
    /** Makes another configuration of clients, with more settings. */
    confWith: Effect.fnUntraced(function*(name: string, settings: Readonly<Record<string, string | number>>) {
      const path = `${folder}/${name}.conf`
      const lines = Object.entries(settings).map(([key, value]) => `${key} = ${value}\n`)
      // The last section is that of clients.
      yield* fs.writeFileString(path, (yield* fs.readFileString(conf)) + lines.join(""))
      return path
    })
  }
})

/** A running cluster. */
export type Cluster = Effect.Success<typeof make>
