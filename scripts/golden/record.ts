/**
 * Records a conversation with a real backend, as golden bytes for the tests of src/Wire.
 *
 *     node scripts/golden/record.ts
 *
 * Starts the installed `qemu-storage-daemon` on a 4 MiB file with 4 queues, sends it the messages below, and writes what was
 * sent and what came back to `test/Wire/golden/qsd-<version>.json`. Run it again for another version of the backend; the same
 * version gives the same file.
 *
 * The messages are put together here by hand, from the protocol's text, and share no code with src/Wire: a mistake there
 * cannot hide in its own golden bytes. Only messages that carry no file descriptor are recorded, since `node:net` cannot send
 * one. The daemon and the temporary directory go whatever happens, short of SIGKILL.
 */
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { createConnection, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"

const DISK_BYTES = 4 * 1024 * 1024
const QUEUES = 4
const TIME_LIMIT_MS = 5_000

const NEED_REPLY = 8

/** One message: `reply` says whether the backend answers, so that none is waited for in vain. */
interface Message {
  readonly name: string
  readonly request: number
  readonly flags?: number
  readonly payload?: Buffer
  readonly reply: boolean
}

const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16LE(value)
  return bytes
}

const u32 = (...values: ReadonlyArray<number>): Buffer => {
  const bytes = Buffer.alloc(4 * values.length)
  values.forEach((value, i) => bytes.writeUInt32LE(value, 4 * i))
  return bytes
}

const u64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(value)
  return bytes
}

const getConfig = (size: number): Buffer => Buffer.concat([u32(0, size, 0), Buffer.alloc(size)])

/** MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS. */
const PROTOCOL_FEATURES = 1n << 0n | 1n << 3n | 1n << 9n | 1n << 15n

/** Everything that the daemon offers but NOTIFY_ON_EMPTY (24) and LOG_ALL (26), which nobody should acknowledge. */
const FEATURES = 0x1_75_00_7e_46n & ~(1n << 24n) & ~(1n << 26n)

const conversation: ReadonlyArray<Message> = [
  { name: "SET_OWNER", request: 3, reply: false },
  { name: "GET_FEATURES", request: 1, reply: true },
  { name: "GET_PROTOCOL_FEATURES", request: 15, reply: true },
  { name: "SET_PROTOCOL_FEATURES", request: 16, payload: u64(PROTOCOL_FEATURES), reply: false },
  { name: "GET_QUEUE_NUM", request: 17, reply: true },
  { name: "GET_MAX_MEM_SLOTS", request: 36, reply: true },
  { name: "GET_CONFIG 96 bytes", request: 24, payload: getConfig(96), reply: true },
  { name: "GET_CONFIG 60 bytes", request: 24, payload: getConfig(60), reply: true },
  { name: "GET_CONFIG 8 bytes", request: 24, payload: getConfig(8), reply: true },
  { name: "SET_FEATURES", request: 2, flags: NEED_REPLY, payload: u64(FEATURES), reply: true },
  {
    name: "SET_CONFIG writeback on",
    request: 25,
    flags: NEED_REPLY,
    payload: Buffer.concat([u32(32, 1, 0), Buffer.from([1])]),
    reply: true
  },
  { name: "GET_CONFIG 60 bytes, writeback on", request: 24, payload: getConfig(60), reply: true },
  { name: "SET_VRING_NUM", request: 8, flags: NEED_REPLY, payload: u32(3, 256), reply: true },
  { name: "SET_VRING_BASE", request: 10, flags: NEED_REPLY, payload: u32(3, 0x1234), reply: true },
  { name: "GET_VRING_BASE", request: 11, payload: u32(3, 0), reply: true },
  { name: "SET_VRING_CALL without fd", request: 13, flags: NEED_REPLY, payload: u64(0x103n), reply: true },
  { name: "SET_MEM_TABLE without regions", request: 5, flags: NEED_REPLY, payload: u32(0, 0), reply: true },
  {
    name: "GET_INFLIGHT_FD",
    request: 31,
    payload: Buffer.concat([u64(0n), u64(0n), u16(1), u16(128), u32(0)]),
    reply: true
  }
]

const encode = ({ flags = 0, payload = Buffer.alloc(0), request }: Message): Buffer =>
  Buffer.concat([u32(request, flags | 1, payload.length), payload])

const connect = async (path: string, deadline: number): Promise<Socket> => {
  for (;;) {
    try {
      return await new Promise<Socket>((resolve, reject) => {
        const socket = createConnection(path, () => resolve(socket))
        socket.once("error", reject)
      })
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`no connection to the daemon in ${TIME_LIMIT_MS} ms`, { cause: error })
      await sleep(20)
    }
  }
}

/** Reads exactly one message. Nothing is sent before the answer is complete, so that none can follow it. */
const receive = (socket: Socket, name: string): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    let received = Buffer.alloc(0)
    const finish = (settle: () => void): void => {
      clearTimeout(timer)
      socket.off("data", onData).off("end", onEnd).off("error", onEnd)
      settle()
    }
    const timer = setTimeout(
      () => finish(() => reject(new Error(`${name}: no answer in ${TIME_LIMIT_MS} ms`))),
      TIME_LIMIT_MS
    )
    const onEnd = (): void => finish(() => reject(new Error(`${name}: the daemon closed the connection`)))
    const onData = (chunk: Buffer): void => {
      received = Buffer.concat([received, chunk])
      const expected = received.length < 12 ? 12 : 12 + received.readUInt32LE(8)
      if (received.length > expected) finish(() => reject(new Error(`${name}: more than one message came back`)))
      if (received.length >= 12 && received.length === expected) finish(() => resolve(received))
    }
    socket.on("data", onData).on("end", onEnd).on("error", onEnd)
  })

const versionLine = execFileSync("qemu-storage-daemon", ["--version"], { encoding: "utf8" }).split("\n")[0]
const release = versionLine === undefined ? null : /version (\d+\.\d+)/.exec(versionLine)
if (versionLine === undefined || release === null) throw new Error(`cannot tell the version from: ${versionLine}`)

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(1))
const directory = mkdtempSync(join(tmpdir(), "golden-"))
process.once("exit", () => rmSync(directory, { recursive: true, force: true }))

const disk = join(directory, "disk.raw")
const socketPath = join(directory, "disk.sock")
writeFileSync(disk, "")
truncateSync(disk, DISK_BYTES)

const daemon = spawn("qemu-storage-daemon", [
  "--blockdev",
  `driver=file,node-name=file,filename=${disk}`,
  "--blockdev",
  "driver=raw,node-name=d,file=file",
  "--export",
  `type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=${socketPath},writable=on,num-queues=${QUEUES}`
], { stdio: ["ignore", "inherit", "inherit"] })
process.prependOnceListener("exit", () => daemon.kill("SIGKILL"))

const messages: Array<{ name: string; sent: string; received: string | null }> = []
try {
  const socket = await connect(socketPath, Date.now() + TIME_LIMIT_MS)
  for (const message of conversation) {
    const sent = encode(message)
    const answer = message.reply ? receive(socket, message.name) : null
    socket.write(sent)
    messages.push({
      name: message.name,
      sent: sent.toString("hex"),
      received: answer === null ? null : (await answer).toString("hex")
    })
  }
  socket.destroy()
} finally {
  const ended = once(daemon, "exit")
  daemon.kill("SIGKILL")
  await ended
}

const recording = {
  backend: versionLine,
  export: `vhost-user-blk, writable, raw file of ${DISK_BYTES} bytes, num-queues=${QUEUES}`,
  messages
}
const file = new URL(`../../test/Wire/golden/qsd-${release[1]}.json`, import.meta.url)
writeFileSync(file, `${JSON.stringify(recording, null, 2)}\n`)
process.stdout.write(`${messages.length} messages recorded in ${file.pathname.split("/").slice(-4).join("/")}\n`)
