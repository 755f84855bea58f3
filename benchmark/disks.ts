/** Disks for benchmarks, in memory. */
import { Effect, FileSystem } from "effect"
import { DiskImage } from "effect-blkio/testing"

/** How large they are, in bytes. */
export const DISK_BYTES = 2 ** 28

/** Makes a folder in shared memory, which goes with the Scope. */
export const sharedMemoryFolder = FileSystem.FileSystem.use((fs) =>
  fs.makeTempDirectoryScoped({ directory: "/dev/shm", prefix: "blkio-bench-" })
)

/** Makes an image that is full of data: holes would be read faster. */
export const makeFullImage = Effect.fnUntraced(function*(path: string) {
  yield* DiskImage.createRaw(path, DISK_BYTES)
  yield* FileSystem.FileSystem.use((fs) => fs.writeFile(path, new Uint8Array(DISK_BYTES).fill(0x5a)))
})
