/**
 * Goal: the same calls have the same answers and the same effect on the disk as with libblkio 1.5, but for the differences
 * that are meant (differences.ts, docs/differences.md).
 * Method: scripts of calls go through libblkio (differential.c, compiled here, under the C library of its own root) and
 * through us, each against a fresh image of the same size on a daemon of its own; answers are compared line by line, and
 * the images byte by byte. Some scripts are written out, the others random (the seed is printed on failure). Where there is no
 * libblkio (EFFECT_BLKIO_PEERS names its root's folder) that is said, and nothing is compared.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Scope } from "effect"
import { execFile, execFileSync, spawn } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { homedir, tmpdir } from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { getSystemErrorName, promisify } from "node:util"
import { afterAll, beforeAll } from "vitest"
import type { StartedDevice } from "../../src/BlockDevice.ts"
import type { Any } from "../../src/Errno.ts"
import { type IoQueue, MemoryRegion, VhostUser, VirtioBlk } from "../../src/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { KiB, MiB, onBackend, serveRaw, withSeed } from "../support/daemon.ts"
import { differences, page } from "./differences.ts"

const SIZE = MiB
const REGION_BYTES = 4 * MiB
const ETIME = 62
const compiler = process.env["CC"] ?? "gcc"

const peers = process.env["EFFECT_BLKIO_PEERS"]
  ?? Path.join(process.env["XDG_CACHE_HOME"] ?? Path.join(homedir(), ".cache"), "effect-blkio-peers")
const root = Path.join(peers, "trixie")
const libraries = Path.join(root, "usr/lib/x86_64-linux-gnu")

const peerIsHere = (() => {
  const missing = [Path.join(libraries, "libblkio.so"), Path.join(root, "usr/include/blkio.h")].find((path) =>
    !existsSync(path)
  )
  let reason = missing === undefined ? undefined : `no ${missing}; EFFECT_BLKIO_PEERS may name another folder`
  if (reason === undefined) {
    try {
      execFileSync(compiler, ["--version"], { stdio: "ignore" })
    } catch {
      reason = `no ${compiler}; CC may name another compiler`
    }
  }
  if (reason !== undefined) console.warn(`\n*** SKIPPED: tests against libblkio: ${reason}. ***\n`)
  return reason === undefined
})()

let folder: string
let program: string
beforeAll(async () => {
  if (!peerIsHere) return
  folder = mkdtempSync(Path.join(tmpdir(), "blkio-differential-"))
  program = Path.join(folder, "differential")
  const source = fileURLToPath(new URL("differential.c", import.meta.url))
  const flags = [
    "-O1",
    "-D_GNU_SOURCE",
    `-I${root}/usr/include`,
    `-L${libraries}`,
    "-lblkio",
    "-Wl,--allow-shlib-undefined"
  ]
  await promisify(execFile)(compiler, ["-o", program, source, ...flags])
})
afterAll(() => {
  if (folder) rmSync(folder, { recursive: true })
})

const errnoName = (errno: number): string =>
  errno === ETIME ? "ETIME" : errno === 95 ? "ENOTSUP" : getSystemErrorName(-errno)

/** Carries a script out on libblkio. */
const onLibblkio = (socketPath: string, script: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>> =>
  Effect.promise(() =>
    new Promise<ReadonlyArray<string>>((resolve, reject) => {
      const child = spawn(
        Path.join(root, "lib64/ld-linux-x86-64.so.2"),
        ["--library-path", libraries, program, socketPath],
        { stdio: ["pipe", "pipe", "inherit"] }
      )
      let output = ""
      child.stdout.setEncoding("utf8").on("data", (text: string) => output += text)
      child.on("error", reject)
      child.on("close", () =>
        resolve(
          output.trimEnd().split("\n").map((line) => {
            const [ret = "", ...rest] = line.split(" ")
            return Number(ret) < 0 ? errnoName(-Number(ret)) : [ret, ...rest].join(" ")
          })
        ))
      child.stdin.end(`${script.join("\n")}\n`)
    })
  )

const fill = (bytes: Uint8Array, seed: number) => {
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.imul(i + seed, 2654435761) >>> 24
}
const checksum = (bytes: Uint8Array): number => {
  let sum = 2166136261
  for (const byte of bytes) sum = Math.imul(sum ^ byte, 16777619) >>> 0
  return sum
}

interface State {
  connected?: VirtioBlk.ConnectedDevice
  device?: StartedDevice
  region?: MemoryRegion.MemoryRegion
}

/** Carries a script out here. */
const onOurs = Effect.fnUntraced(function*(socketPath: string, script: ReadonlyArray<string>) {
  const scope = yield* Effect.scope
  const created = VirtioBlk.create(yield* VhostUser.make({ path: socketPath }))
  const state: State = {}
  const done = (effect: Effect.Effect<unknown, Any, Scope.Scope>, value: () => string = () => "0") =>
    effect.pipe(
      Scope.provide(scope),
      Effect.match({ onFailure: ({ _tag }) => _tag as string, onSuccess: value })
    )
  const properties = () => (state.device ?? state.connected ?? created).properties
  const queue = (): IoQueue.IoQueue => state.device!.queues[0] ?? state.device!.pollQueue(0)
  const bytes = (length: number) => state.region!.bytes.subarray(0, length)
  const cut = (lengths: ReadonlyArray<string>) => {
    let at = 0
    const buffers = lengths.map((length) => state.region!.bytes.subarray(at, at += Number(length)))
    return { buffers, total: at }
  }
  const carryOut = (line: string): Effect.Effect<string> => {
    const [call = "", ...words] = line.split(" ")
    const [name = "", text = ""] = words
    const [first, second, third, fourth] = words.map(Number) as [number, number, number, number]
    switch (call) {
      case "get": {
        let value = ""
        return done(
          Effect.tap(properties().getString(name), (found) => Effect.sync(() => value = found)),
          () => `0 ${value}`
        )
      }
      case "set":
        return done(properties().setString(name, text))
      case "set-int":
        return done(properties().setUnknown(name, second))
      case "set-bool":
        return done(properties().setUnknown(name, second !== 0))
      case "connect":
        return done(Effect.tap(created.connect, (connected) => Effect.sync(() => state.connected = connected)))
      case "start":
        if (state.connected === undefined) return Effect.succeed("ENODEV")
        return done(Effect.tap(state.connected.start(), (device) => Effect.sync(() => state.device = device)))
      case "alloc":
        return done(Effect.scoped(state.device!.allocate(first)))
      case "map":
        return done(
          Effect.tap(state.device!.allocate(REGION_BYTES), (region) => Effect.sync(() => state.region = region))
        )
      case "map-again":
        return done(state.device!.map(state.region!))
      case "map-overlap":
        return done(
          Effect.flatMap(
            MemoryRegion.fromFd({ fd: state.region!.fd, offset: 0, length: REGION_BYTES / 2 }),
            (region) => state.device!.map(region)
          )
        )
      case "unmap-again": {
        const { device, region } = state
        return done(
          device!.unmap(region!).pipe(
            Effect.andThen(device!.unmap(region!)),
            Effect.andThen(device!.map(region!))
          )
        )
      }
      case "read-unmapped":
        return done(queue().read(first, new Uint8Array(second)))
      case "read":
        bytes(second).fill(0xee)
        return done(queue().read(first, bytes(second), third), () => `0 ${checksum(bytes(second))}`)
      case "write":
        fill(bytes(second), third)
        return done(queue().write(first, bytes(second), fourth))
      case "readv": {
        const { buffers, total } = cut(words.slice(2))
        return done(queue().readv(first, buffers, second), () => `0 ${checksum(bytes(total))}`)
      }
      case "writev": {
        const { buffers, total } = cut(words.slice(3))
        fill(bytes(total), second)
        return done(queue().writev(first, buffers, third))
      }
      case "write-zeroes":
        return done(queue().writeZeroes(first, second, third))
      case "discard":
        return done(queue().discard(first, second, third))
      case "flush":
        return done(queue().flush(first))
      case "completions":
        return done(queue().completions({ min: first, max: second, timeout: 1 }))
      default:
        return Effect.die(new Error(`unknown: ${line}`))
    }
  }
  return yield* Effect.forEach(script, carryOut)
})

/** Carries a script out on both sides, and fails on what differs and is not meant to. Answers which differences showed. */
const compare = Effect.fnUntraced(function*(
  script: ReadonlyArray<string>,
  options: { readonly writable?: boolean; readonly logicalBlockSize?: number } = {}
) {
  const side = Effect.fnUntraced(function*(
    run: (socketPath: string) => Effect.Effect<ReadonlyArray<string>, unknown, Scope.Scope>
  ) {
    const { daemon, path } = yield* serveRaw(SIZE, { numQueues: 2, ...options })
    // The disk's content is not all zeroes at first.
    const before = Buffer.alloc(SIZE)
    fill(before.subarray(0, SIZE / 2), 99)
    writeFileSync(path, before)
    const answers = yield* Effect.scoped(run(daemon.socketPath))
    return { answers, content: readFileSync(path), path: daemon.socketPath }
  })
  const theirs = yield* side((path) => onLibblkio(path, script))
  const ours = yield* side((path) => onOurs(path, script))
  expect(theirs.answers.length).toBe(script.length)
  const shown = new Set<number>()
  const unexplained: Array<string> = []
  for (const [i, line] of script.entries()) {
    const answer = {
      line,
      libblkio: theirs.answers[i]!.replace(theirs.path, "PATH"),
      ours: ours.answers[i]!.replace(ours.path, "PATH")
    }
    if (answer.libblkio === answer.ours) continue
    const excuse = differences.findIndex(({ excuses }) => excuses?.(answer) === true)
    if (excuse < 0) unexplained.push(`${line.slice(0, 80)}: libblkio ${answer.libblkio}, ours ${answer.ours}`)
    else shown.add(excuse)
  }
  expect(unexplained).toStrictEqual([])
  expect(ours.content.equals(theirs.content), "the same content of the disks").toBe(true)
  return shown
})

const running = ["connect", "start", "map"]
const names = [
  "driver",
  "path",
  "fd",
  "read-only",
  "can-add-queues",
  "supports-poll-queues",
  "num-queues",
  "num-poll-queues",
  "max-queues",
  "max-queue-size",
  "queue-size",
  "capacity",
  "request-alignment",
  "optimal-io-alignment",
  "optimal-io-size",
  "discard-alignment",
  "discard-alignment-offset",
  "max-discard-len",
  "max-write-zeroes-len",
  "max-segment-len",
  "max-segments",
  "max-transfer",
  "buf-alignment",
  "optimal-buf-alignment",
  "supports-fua-natively",
  "can-grow",
  "flush-needed",
  "max-mem-regions",
  "mem-region-alignment",
  "needs-mem-regions",
  "needs-mem-region-fd",
  "may-pin-mem-regions",
  "device-read-only",
  "nothing",
  "num_queues"
]
const getAll = names.map((name) => `get ${name}`)
const setAll = [
  "set driver foo",
  "set fd 3",
  "set nothing 1",
  "set read-only maybe",
  "set read-only true",
  "set read-only false",
  "set num-queues x",
  "set num-queues -1",
  "set num-queues 99999999999",
  "set num-queues 2",
  "set num-poll-queues -1",
  "set num-poll-queues 0",
  "set queue-size 0",
  "set queue-size -1",
  "set queue-size 100",
  "set queue-size 65536",
  "set queue-size 128",
  "set capacity 1",
  "set capacity x",
  "set max-queues 1",
  "set can-grow true",
  "set num_queues 1",
  "set-int capacity 1",
  "set-int driver 1",
  "set-int read-only 1",
  "set-int num-queues 1",
  "set-int queue-size 100",
  "set-bool num-queues 1",
  "set-bool read-only 0",
  "set-bool nothing 0"
]
const segments = (count: number, length = 512) => Array.from({ length: count }, () => length).join(" ")

/** Scripts that are written out, by name. */
const scripts: ReadonlyArray<readonly [string, ReadonlyArray<string>, Parameters<typeof compare>[1]?]> = [
  [
    "properties in every phase, by name, type and value",
    [
      "start",
      ...getAll,
      ...setAll,
      "connect",
      ...getAll,
      ...setAll,
      "set path /elsewhere",
      "set num-queues 3",
      "start",
      "set num-queues 1",
      "set num-poll-queues 2",
      "start",
      "set num-queues 0",
      "set num-poll-queues 0",
      "start",
      "set num-queues 1",
      "set num-poll-queues 1",
      "start",
      ...getAll,
      ...setAll,
      "start"
    ]
  ],
  ["memory", [...running, "alloc 0", "alloc 1", "alloc 4096", "map-again", "unmap-again", "read 0 512 0", "flush 0"]],
  ["memory that overlaps", [...running, "map-overlap"]],
  [
    "flags of every request",
    [
      ...running,
      ...[0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 4294967295, 2147483648].flatMap((flags) => [
        `read 0 512 ${flags}`,
        `write 4096 512 7 ${flags}`,
        `readv 0 ${flags} 512 512`,
        `writev 8192 3 ${flags} 512 1024`,
        `write-zeroes 16384 4096 ${flags}`,
        `discard 32768 4096 ${flags}`,
        `flush ${flags}`,
        // The first thing that is wrong decides.
        `read 1 512 ${flags}`,
        `write-zeroes 1 100 ${flags}`,
        `discard 100 1 ${flags}`
      ])
    ]
  ],
  [
    "ranges at the edges",
    [
      ...running,
      ...["read", "write-zeroes", "discard"].flatMap((call) =>
        [
          [0, 512],
          [0, SIZE],
          [SIZE - 512, 512],
          [SIZE, 512],
          [SIZE - 512, 1024],
          [1, 512],
          [511, 1],
          [512, 511],
          [0, 513],
          [0, SIZE + 512],
          [SIZE * 4096, 512],
          [2 ** 53 - 512, 512],
          [0, 100]
        ].map(([offset, length]) => `${call} ${offset} ${length} 0`)
      ),
      `write ${SIZE} 512 5 0`,
      `write ${SIZE - 512} 512 5 1`,
      "write 100 512 5 0",
      "write 0 100 5 0",
      "write-zeroes 0 16777216 0",
      "discard 0 16777728 0",
      "write-zeroes 0 0 0",
      "discard 512 0 0",
      "completions 1 1",
      "completions 0 0",
      "completions 2 1",
      "completions 0 4"
    ]
  ],
  [
    "a device that is started read-only",
    [
      "set read-only true",
      ...running,
      "read 0 512 0",
      "flush 0",
      "write 0 512 1 0",
      "write 0 512 1 8",
      "write 100 512 1 0",
      "writev 0 1 0 512 512",
      "write-zeroes 0 512 0",
      "write-zeroes 1 512 0",
      "discard 0 512 0",
      "discard 0 100 0"
    ]
  ],
  [
    "a device that is read-only",
    [
      "connect",
      "set num-queues 3",
      "start",
      "set num-queues 1",
      "start",
      "get read-only",
      "set read-only true"
    ],
    { writable: false }
  ],
  [
    "a device with blocks of 4 KiB",
    [
      ...running,
      ...getAll,
      "read 4096 4096 0",
      "write 8192 8192 3 1",
      "readv 0 0 4096 8192",
      "write-zeroes 4096 4096 0",
      "discard 0 4096 0"
    ],
    { logicalBlockSize: 4 * KiB }
  ],
  ["segments up to the most", [...running, `readv 0 0 ${segments(126)}`, `writev 0 9 0 ${segments(126)}`, "flush 0"]],
  ["more segments than there may be", [...running, `readv 0 0 ${segments(300)}`, "flush 0"]],
  ["a buffer that is not mapped", [...running, "read-unmapped 0 512", "flush 0"]],
  ["a range of 2^32 sectors", [...running, `discard 0 ${2 ** 41} 0`, "flush 0"]],
  ["a read of no bytes", [...running, "read 0 0 0", "flush 0"]],
  ["a write of no bytes", [...running, "write 0 0 1 0", "flush 0"]]
]

describe.skipIf(!qsdIsHere || !peerIsHere)("as libblkio", () => {
  const shown = new Set<number>()
  for (const [name, script, options] of scripts) {
    onBackend(name, () =>
      Effect.map(compare(script, options), (excuses) => {
        for (const excuse of excuses) shown.add(excuse)
      }))
  }

  for (const kind of ["event", "poll"] as const) {
    onBackend(`random requests: ${kind} queue`, () =>
      withSeed((random) => {
        const sector = () => random(SIZE / 512 + 2) * 512 + (random(25) === 0 ? random(512) : 0)
        const length = () => (1 + random(random(5) === 0 ? 600 : 16)) * 512 + (random(25) === 0 ? random(512) : 0)
        const flags = () => random(6) === 0 ? 1 << random(4) : 0
        const request = (): string => {
          switch (random(7)) {
            case 0:
              return `read ${sector()} ${length()} ${flags()}`
            case 1:
              return `readv ${sector()} ${flags()} ${Array.from({ length: 1 + random(10) }, length).join(" ")}`
            case 2:
              return `write-zeroes ${sector()} ${length()} ${flags()}`
            case 3:
              return `discard ${sector()} ${length()} ${flags()}`
            case 4:
              return `flush ${flags()}`
            case 5:
              return `writev ${sector()} ${random(1000)} ${flags()} ${
                Array.from({ length: 1 + random(10) }, length).join(" ")
              }`
            default:
              return `write ${sector()} ${length()} ${random(1000)} ${flags()}`
          }
        }
        const start = kind === "poll"
          ? ["connect", "set num-queues 0", "set num-poll-queues 1", "start", "map"]
          : running
        return compare([...start, ...Array.from({ length: 1500 }, request), `read 0 ${SIZE} 0`])
      }))
  }

  it("every difference that a script can show was shown", () => {
    const silent = differences.flatMap(({ excuses, what }, i) => excuses === undefined || shown.has(i) ? [] : [what])
    expect(silent).toStrictEqual([])
  })
})

it("docs/differences.md says what the tests excuse", () => {
  const path = fileURLToPath(new URL("../../docs/differences.md", import.meta.url))
  if (process.env["UPDATE_DOCS"] === "1") writeFileSync(path, page())
  expect(readFileSync(path, "utf8"), "UPDATE_DOCS=1 writes it anew").toBe(page())
})
