/** Images of every format with one content, made by `qemu-img` and opened by the daemon's layer. */
import { Effect, FileSystem, Redacted, Stream } from "effect"
import { ChildProcess } from "effect/process"
import { createHash } from "node:crypto"
import { writeFileSync } from "node:fs"
import type { Device } from "../../src/BlockDevice.ts"
import { EIO } from "../../src/Errno.ts"
import * as ExitCode from "../../src/QemuStorageDaemon/ExitCode.ts"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { make as seeded } from "../../src/SeededRandom.ts"
import { VirtioBlk } from "../../src/index.ts"
import { MiB, mustEnd } from "./daemon.ts"

export const SIZE = 8 * MiB

const attempt = Effect.fnUntraced(function*(program: string, args: ReadonlyArray<string>) {
  const started = yield* ChildProcess.make(program, args, { stdin: "ignore", forceKillAfter: "1 second" })
  const [output, code] = yield* Effect.all([
    started.all.pipe(Stream.decodeText(), Stream.mkString),
    ExitCode.of(started)
  ], { concurrency: 2 })
  if (code !== 0) {
    return yield* new EIO({ operation: program, detail: `${args.join(" ")}: exit code ${code}: ${output}` })
  }
  return output
}, Effect.scoped)

/** Runs a program, gives what it says, and fails the test where it fails. */
export const run = (program: string, ...args: ReadonlyArray<string>) =>
  attempt(program, args).pipe(
    // Measured for what a passphrase may cost, and given up where the clock has not moved.
    Effect.retry({ times: 20, while: ({ message }) => message.includes("Unable to get accurate CPU usage") }),
    Effect.orDie
  )

/** A folder that goes with the Scope. */
export const makeFolder = FileSystem.FileSystem.use((fs) =>
  Effect.orDie(fs.makeTempDirectoryScoped({ prefix: "blkio-images-" }))
)

/** A disk's content: half of it zeroes, in pieces of different lengths. */
export const makeContent = (seed: number): Buffer => {
  const below = seeded(seed)
  const content = Buffer.alloc(SIZE)
  for (let at = 0; at < SIZE;) {
    const length = Math.min(512 * (1 + below(512)), SIZE - at)
    if (below(2) === 0) { for (let i = at; i < at + length; i += 4) content.writeUInt32LE(below(2 ** 32), i) }
    at += length
  }
  return content
}

export const sha256 = (content: Uint8Array): string => createHash("sha256").update(content).digest("hex")

/** Reads the whole disk. */
export const hash = (disk: Device) =>
  Effect.map(
    Stream.runFold(disk.stream(), () => createHash("sha256"), (sum, bytes) => sum.update(bytes)),
    (sum) => sum.digest("hex")
  )

/** A transport to an image, of which the device is told of and each daemon must be gone when its test ends. */
export const openTransport = Effect.fnUntraced(function*(
  image: QemuStorageDaemon.Source,
  { device = {}, ...options }: QemuStorageDaemon.TransportOptions & { readonly device?: VirtioBlk.Options } = {}
) {
  const transport = yield* QemuStorageDaemon.transport(image, options)
  const disk = yield* VirtioBlk.make(transport, { readOnly: transport.readOnly, ...device })
  const daemon = Effect.tap(transport.daemon, ({ pid }) => Effect.sync(() => mustEnd(pid)))
  return { disk, daemon, pid: (yield* daemon).pid }
})

/** The hash of what is read through an image. */
export const hashThrough = (image: QemuStorageDaemon.Source, options: QemuStorageDaemon.Options = { readOnly: true }) =>
  Effect.scoped(Effect.flatMap(QemuStorageDaemon.make(image, options), hash))

/** Why an image is not opened. */
export const refusal = (image: QemuStorageDaemon.Source, options: QemuStorageDaemon.Options = { readOnly: true }) =>
  QemuStorageDaemon.make(image, options).pipe(Effect.scoped, Effect.flip)

export const PASSPHRASE = "correct horse, battery"
export const passphrase = Redacted.make(PASSPHRASE)

/** Options of `qemu-img` for one that is encrypted; `how` is `key-secret` or what an inner format calls it. */
export const encrypted = (prefix: "" | "encrypt.") => [
  "--object",
  `secret,id=s,data=${PASSPHRASE.replaceAll(",", ",,")}`,
  "-o",
  `${prefix === "" ? "" : "encrypt.format=luks,"}${prefix}key-secret=s,${prefix}iter-time=10`
]

/** A raw file with a content of its own, in a folder of its own. */
export const makeRaw = Effect.fnUntraced(function*(seed = 1) {
  const folder = yield* makeFolder
  const content = makeContent(seed)
  const raw = `${folder}/disk.raw`
  yield* Effect.sync(() => writeFileSync(raw, content))
  return { folder, content, raw, expected: sha256(content) }
})

/** Makes an image of a raw one. */
export const convert = (raw: string, format: string, path: string, ...options: ReadonlyArray<string>) =>
  run("qemu-img", "convert", "-f", "raw", "-O", format, ...options, raw, path)

/** Makes an empty qcow2 image, by options of `qemu-img create` and its size. */
export const createQcow2 = (...args: ReadonlyArray<string>) => run("qemu-img", "create", "-q", "-f", "qcow2", ...args)
