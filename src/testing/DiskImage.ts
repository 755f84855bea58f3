/**
 * Disk images for tests: made with `qemu-img`, written and verified with `qemu-io`, the programs that know them best.
 *
 * What this library wrote through a daemon is read back here without it, and the other way round.
 *
 * @since 0.1.0
 */
import type * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as ChildProcess from "effect/process/ChildProcess"
import type * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import { EINVAL, EIO, ENOENT } from "../Errno.ts"
import * as ExitCode from "../QemuStorageDaemon/ExitCode.ts"
import { Size } from "../QemuStorageDaemon/Image.ts"

/**
 * The formats of images that can be created here.
 *
 * @category models
 * @since 0.1.0
 */
export type Format = "raw" | "qcow2"

/**
 * Creates a raw image of zeros that takes no room yet. What was at that path is replaced.
 *
 * Fails with EINVAL for a size that is none, ENOENT where the folder is missing, and EIO for whatever else the system
 * has against it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const createRaw: (
  path: string,
  size: number | ByteSize.ByteSize
) => Effect.Effect<void, EINVAL | ENOENT | EIO, FileSystem.FileSystem> = Effect.fnUntraced(function*(path, size) {
  const fs = yield* FileSystem.FileSystem
  const bytes = yield* wholeBytes(path, size)
  const failed = (error: PlatformError.PlatformError) => {
    const fields = { operation: "create image", path, detail: error.message, cause: error }
    return error.reason._tag === "NotFound" ? new ENOENT(fields) : new EIO(fields)
  }
  yield* fs.writeFile(path, new Uint8Array()).pipe(
    Effect.andThen(fs.truncate(path, bytes)),
    Effect.mapError(failed)
  )
})

/**
 * Creates a qcow2 image with `qemu-img`. What was at that path is replaced.
 *
 * Fails with EINVAL for a size that is none, ENOENT where there is no `qemu-img`, and EIO with its output where it
 * refuses.
 *
 * @category constructors
 * @since 0.1.0
 */
export const createQcow2: (
  path: string,
  size: number | ByteSize.ByteSize
) => Effect.Effect<void, EINVAL | ENOENT | EIO, ChildProcessSpawner.ChildProcessSpawner | Path.Path> = Effect
  .fnUntraced(function*(path, size) {
    const bytes = yield* wholeBytes(path, size)
    const absolute = (yield* Path.Path).resolve(path)
    yield* run("qemu-img", absolute, ["create", "-q", "-f", "qcow2", absolute, String(bytes)])
  })

/**
 * Runs commands of `qemu-io` on an image, in order, and gives what it printed: `write -P 0xa5 0 4096`,
 * `read -P 0xa5 0 4096`, `map`.
 *
 * Fails with EIO, its output in `detail`, as soon as one of them failed: a pattern that is not the one expected, an I/O
 * error, an unknown command, an image that cannot be opened. Fails with ENOENT where there is no `qemu-io`.
 *
 * With `inUse` the image is opened read-only and beside a daemon that serves it, which has locked it if it is a qcow2
 * image. Of a qcow2 image only what the daemon has flushed is sure to be seen.
 *
 * @category verification
 * @since 0.1.0
 */
export const qemuIo: (
  path: string,
  format: Format,
  commands: ReadonlyArray<string>,
  options?: { readonly inUse?: boolean | undefined }
) => Effect.Effect<string, ENOENT | EIO, ChildProcessSpawner.ChildProcessSpawner | Path.Path> = Effect.fnUntraced(
  function*(path, format, commands, options) {
    const absolute = (yield* Path.Path).resolve(path)
    return yield* run("qemu-io", absolute, [
      ...(options?.inUse === true ? ["--force-share", "--read-only"] : []),
      "-f",
      format,
      ...commands.flatMap((command) => ["-c", command]),
      absolute
    ])
  }
)

const decodeSize = Schema.decodeUnknownEffect(Size)

const wholeBytes = (path: string, size: number | ByteSize.ByteSize) =>
  decodeSize(size).pipe(
    Effect.mapError((error) => new EINVAL({ operation: "create image", path, detail: error.message, cause: error })),
    Effect.map(Number)
  )

// Paths are absolute: `name:rest` would be taken for a protocol, `-name` for an option.
const run = Effect.fnUntraced(function*(tool: "qemu-img" | "qemu-io", path: string, args: ReadonlyArray<string>) {
  const failed = (error: PlatformError.PlatformError) =>
    error.reason._tag === "NotFound"
      ? new ENOENT({
        operation: tool,
        path,
        detail: "there is no such program on PATH; Debian has it in the package qemu-utils",
        cause: error
      })
      : new EIO({ operation: tool, path, detail: error.message, cause: error })
  const process = yield* ChildProcess.make(tool, args, { stdin: "ignore", forceKillAfter: "1 second" }).pipe(
    Effect.mapError(failed)
  )
  const [output, exitCode] = yield* Effect.all([
    process.all.pipe(Stream.decodeText(), Stream.mkString, Effect.mapError(failed)),
    ExitCode.of(process)
  ], { concurrency: "unbounded" })
  if (exitCode !== 0 || output.includes("Pattern verification failed")) {
    return yield* new EIO({ operation: tool, path, detail: `exit code ${exitCode}: ${output.trim()}` })
  }
  return output
}, Effect.scoped)
