/** What tests of commands on stores need: images whose content is known, and exports of them. */
import { Effect, FileSystem, Path } from "effect"
import { execFileSync } from "node:child_process"
import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from "node:fs"
import { make as random } from "../../src/SeededRandom.ts"
import type { DiskImage } from "../../src/testing/index.ts"
import type { Backend, Disk, Image, Served, ServeOptions } from "../support/Backend.ts"
import { MiB } from "../support/daemon.ts"

/** The DEVICE at a socket. */
export const deviceOn = (path: string): string => `virtio-blk-vhost-user,path=${path.replaceAll(",", ",,")}`

/** A folder that goes with the Scope; answers with the path of a name in it. */
export const folder = Effect.gen(function*() {
  const { join } = yield* Path.Path
  const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped({ prefix: "blkio-cli-" })
  return (name: string) => join(directory, name)
})

/** Bytes without a zero among them: a hole that is not there cannot hide. */
export const noise = (length: number, seed = 1): Uint8Array => {
  const below = random(seed)
  const block = Uint8Array.from({ length: 65_536 }, () => 1 + below(255))
  return new Uint8Array(length).map((_, i) => block[(i + (i >>> 16)) % block.length]!)
}

/** Makes a sparse image with bytes at some offsets. */
export const writeImage = (
  path: string,
  size: number,
  contents: ReadonlyArray<readonly [offset: number, bytes: Uint8Array]>
): void => {
  const fd = openSync(path, "w")
  ftruncateSync(fd, size)
  for (const [offset, bytes] of contents) writeSync(fd, bytes, 0, bytes.length, offset)
  closeSync(fd)
}

/** An image of 32 MiB: data at both ends, a hole, data across a chunk's edge, a lone block, and written zeroes. */
export const writeTypicalImage = (path: string): void =>
  writeImage(path, 32 * MiB, [
    [0, noise(MiB / 2, 1)],
    [5 * MiB - 4096, noise(2 * MiB, 2)],
    [12 * MiB + 512, noise(512, 3)],
    [20 * MiB, new Uint8Array(MiB)],
    [32 * MiB - 65_536, noise(65_536, 4)]
  ])

/** What a file takes on the disk, in bytes. */
export const allocatedBytes = (path: string): number => statSync(path).blocks * 512

/** Runs a program of the system; throws what it said where it fails. */
export const run = (program: string, ...args: ReadonlyArray<string>): string =>
  execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })

/** Whether two files are the same, byte for byte. */
export const sameFiles = (a: string, b: string): boolean => readFileSync(a).equals(readFileSync(b))

/** Makes an image of what a raw one holds. */
export const convert = (raw: string, path: string, format: DiskImage.Format): Image => {
  if (format === "raw") copyFileSync(raw, path)
  else run("qemu-img", "convert", "-f", "raw", "-O", format, raw, path)
  return { _tag: format, path }
}

/** Whether an image holds what a raw one holds. */
export const holds = ({ _tag, path }: Image, raw: string): boolean =>
  _tag === "raw"
    ? sameFiles(path, raw)
    : run("qemu-img", "compare", "-f", "raw", "-F", _tag, raw, path).includes("identical")

/** Serves a disk, and adds its DEVICE. */
export const serveDevice = (backend: Backend, disk: Disk, options?: ServeOptions) =>
  Effect.map(backend.serve(disk, options), (served) => ({ ...served, device: deviceOn(served.socketPath) }))

/** Serves a disk from a process that can be killed, and adds its DEVICE. */
export const serveDeviceApart = (backend: Backend, disk: Disk, options?: ServeOptions) =>
  Effect.map(backend.serveApart(disk, options), (served) => ({ ...served, device: deviceOn(served.socketPath) }))

/** Waits until a client's requests can be on their way: the backend has mapped its rings and its buffers. */
export const inUse = ({ pid }: Pick<Served, "pid">): Effect.Effect<void> =>
  Effect.sync(() => readFileSync(`/proc/${pid}/maps`, "utf8").match(/memfd:effect-blkio/gu)?.length ?? 0).pipe(
    Effect.tap(Effect.sleep("20 millis")),
    Effect.repeat({ until: (regions) => regions >= 2 }),
    Effect.asVoid
  )
