/**
 * Reads a file by `node:fs`, keeping a number of reads in flight, and prints what `blkio bench --json` would: the peer of
 * `bench:peers` that has no device in between.
 *
 * No Effect here, so that what is measured is Node's own. Latencies are those of each read, from its call to its callback.
 *
 *     node benchmark/nodeFs.ts FILE --api promises|callbacks --readwrite randread|read --blocksize BYTES --iodepth N
 *       --runtime SECONDS --ramptime SECONDS
 */
import { closeSync, fstatSync, openSync, read } from "node:fs"
import { type FileHandle, open } from "node:fs/promises"
import { parseArgs } from "node:util"
import { LatencyHistogram } from "../src/cli/LatencyHistogram.ts"

const GIB = 2 ** 30

const { positionals: [path = ""], values } = parseArgs({
  allowPositionals: true,
  options: {
    api: { type: "string", default: "promises" },
    readwrite: { type: "string", default: "randread" },
    blocksize: { type: "string", default: "4096" },
    iodepth: { type: "string", default: "1" },
    runtime: { type: "string", default: "1" },
    ramptime: { type: "string", default: "0" }
  }
})
const blockBytes = Number(values.blocksize)
const depth = Number(values.iodepth)
const seconds = Number(values.runtime)
const isRandom = values.readwrite === "randread"

const file = openSync(path, "r")
const blocks = Math.floor(fstatSync(file).size / blockBytes)
const histogram = new LatencyHistogram()
const buffers = Array.from({ length: depth }, () => Buffer.allocUnsafeSlow(blockBytes))

const measuredFrom = performance.now() + Number(values.ramptime) * 1000
const until = measuredFrom + seconds * 1000
let [next, requests, errors] = [0, 0, 0]
let began = measuredFrom
let cpu: NodeJS.CpuUsage | undefined

const nextOffset = () => (isRandom ? Math.floor(Math.random() * blocks) : next++ % blocks) * blockBytes

/** Counts a read that ended now, once the ramp is over. */
const count = (now: number, submittedAt: number, bytesRead: number) => {
  if (now < measuredFrom) return
  if (cpu === undefined) {
    cpu = process.cpuUsage()
    began = now
    return
  }
  requests++
  if (bytesRead !== blockBytes) errors++
  histogram.record(now - submittedAt)
}

const readByPromises = async (handle: FileHandle, buffer: Buffer) => {
  for (let now = performance.now(); now < until;) {
    const submittedAt = now
    const { bytesRead } = await handle.read(buffer, 0, blockBytes, nextOffset())
    now = performance.now()
    count(now, submittedAt, bytesRead)
  }
}

const readByCallbacks = (buffer: Buffer) =>
  new Promise<void>((resolve) => {
    let submittedAt = performance.now()
    const again = (error: Error | null, bytesRead: number) => {
      const now = performance.now()
      count(now, submittedAt, error === null ? bytesRead : -1)
      if (now >= until) return resolve()
      submittedAt = now
      read(file, buffer, 0, blockBytes, nextOffset(), again)
    }
    read(file, buffer, 0, blockBytes, nextOffset(), again)
  })

if (values.api === "promises") {
  const handle = await open(path, "r")
  await Promise.all(buffers.map((buffer) => readByPromises(handle, buffer)))
  await handle.close()
} else await Promise.all(buffers.map((buffer) => readByCallbacks(buffer)))

const elapsed = (performance.now() - began) / 1000
const { system, user } = process.cpuUsage(cpu)
closeSync(file)
const aggregate = {
  kiops: requests / elapsed / 1000,
  gibps: requests * blockBytes / elapsed / GIB,
  ...histogram.latencies,
  requests,
  errors,
  cpu_us_per_io: requests === 0 ? 0 : (user + system) / requests
}
console.log(JSON.stringify({ aggregate }, undefined, 2))
