/**
 * Goal: Linux's own virtio-blk driver, behind QEMU's vhost-user-blk, gets from a backend the disk it expects, keeps a
 * file system on it, and finds it again.
 * Method: a guest makes, fills, trims and reads an ext4 file system through four queues at once. Then the image's file
 * is looked at past the backend: e2fsck finds nothing to repair, debugfs reads the bytes that were handed in. The same
 * on this library's `blkio serve` and on QEMU's storage daemon: what fails on the first only is the library's fault.
 */
import type * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect } from "@effect/vitest"
import { Effect, Schedule, type Scope } from "effect"
import { execFileSync, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { DiskImage } from "../../src/testing/index.ts"
import * as Cli from "../cli/blkio.ts"
import { noise } from "../cli/stores.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { imagePath, MiB, onBackend, serve } from "../support/daemon.ts"
import * as Guest from "./Guest.ts"
import { environment, guestIsHere } from "./requirement.ts"

interface Backend {
  readonly name: string
  readonly isHere: boolean
  /** What the guest has to see of the backend's own. */
  readonly facts: { readonly "serial": string; readonly "write-cache": "write back" | "write through" }
  /** Serves an image with {@link Guest.queues} queues, and gives the socket's path. */
  readonly serve: (
    image: string,
    access: "read-write" | "read-only"
  ) => Effect.Effect<string, never, Scope.Scope | NodeServices.NodeServices>
}

const daemon: Backend = {
  name: "qemu-storage-daemon",
  isHere: qsdIsHere,
  facts: { "serial": "vhost_user_blk", "write-cache": "write through" },
  serve: (path, access) =>
    serve({
      exports: [{ image: { _tag: "raw", file: path }, writable: access === "read-write", numQueues: Guest.queues }]
    })
      .pipe(Effect.map(({ socketPath }) => socketPath), Effect.orDie)
}

/** Whether someone listens at a socket's path, found out without a connection (Linux: `__SO_ACCEPTCON` is 1 << 16). */
const isListening = (path: string) =>
  Effect.sync(() =>
    readFileSync("/proc/net/unix", "utf8").split("\n").some((line) =>
      line.includes(" 00010000 ") && line.endsWith(` ${path}`)
    )
  )

const ours: Backend = {
  name: "blkio serve",
  isHere: true,
  facts: { "serial": "guest-test-0123", "write-cache": "write back" },
  serve: Effect.fnUntraced(function*(image, access) {
    const socket = `${image}.sock`
    const program = yield* Cli.start(
      "serve",
      `file:${image}`,
      "--socket",
      socket,
      "--queues",
      String(Guest.queues),
      "--serial",
      ours.facts.serial,
      ...access === "read-only" ? ["--read-only"] : []
    )
    yield* isListening(socket).pipe(
      Effect.repeat({ until: (listening) => listening, schedule: Schedule.spaced("20 millis") }),
      Effect.raceFirst(
        Effect.flatMap(
          program.outcome,
          ({ exit, stderr }) => Effect.die(new Error(`blkio serve ended with ${exit} before it listened: ${stderr}`))
        )
      ),
      Effect.timeout("30 seconds"),
      Effect.orDie
    )
    return socket
  })
}

/** Sizes beside the edges of blocks, and one file for each queue with enough for many requests. */
const content = {
  ...Object.fromEntries(
    Array.from({ length: Guest.queues }, (_, i) => [`large${i}`, noise(2 * MiB + i, i)])
  ),
  empty: new Uint8Array(),
  block: noise(4096, 11),
  more: noise(4097, 12)
}

/** What the guest has to tell of the content. */
const sums = Object.fromEntries(
  Object.entries(content).map(([name, bytes]) => [
    `sha256:${name}`,
    createHash("sha256").update(bytes).digest("hex")
  ])
)

const system = (program: string, ...args: ReadonlyArray<string>): Buffer =>
  execFileSync(program, args, { env: environment, stdio: ["ignore", "pipe", "pipe"], maxBuffer: 64 * MiB })

/** Fails, with what there is to repair, unless there is nothing; changes nothing. */
const expectSound = (image: string): void => {
  const { status, stdout } = spawnSync("e2fsck", ["-f", "-n", image], { env: environment, encoding: "utf8" })
  if (status !== 0) throw new Error(`e2fsck ended with ${status}:\n${stdout}`)
}

const contentIn = (image: string) =>
  Object.fromEntries(
    Object.keys(content).map((name) => [name, new Uint8Array(system("debugfs", "-R", `cat /${name}`, image))])
  )

/** More than three boots take on a busy machine. */
const testTimeoutMs = 300_000

for (const backend of [ours, daemon]) {
  describe.skipIf(!guestIsHere || !backend.isHere)(`a guest's disk, on ${backend.name}`, () => {
    const size = 64 * MiB

    onBackend("holds a file system that is sound, and found again by the next boot", () =>
      Effect.gen(function*() {
        const image = yield* imagePath("disk.raw")
        yield* DiskImage.createRaw(image, size)
        const disk = yield* backend.serve(image, "read-write")

        const jobs = ["describe-disk", "write-files", "read-files"]
        const facts = yield* Guest.run({ disk, jobs, content })
        expect(facts).toMatchObject({
          "capacity": String(size),
          "logical-block-size": "512",
          "read-only": "0",
          ...backend.facts,
          "queues": String(Guest.queues),
          "used-queues": String(Guest.queues),
          ...sums
        })
        expect(Number(facts["discard-max-bytes"])).toBeGreaterThan(0)
        // The backend goes on serving: what the guest has flushed does not wait for its end.
        expectSound(image)
        expect(contentIn(image)).toStrictEqual(content)

        expect(yield* Guest.run({ disk, jobs: ["describe-disk", "read-files"] })).toStrictEqual(facts)
        expectSound(image)
        expect(contentIn(image)).toStrictEqual(content)
      }), testTimeoutMs)

    onBackend("is read-only where it is served so, and stays as the host made it", () =>
      Effect.gen(function*() {
        const image = yield* imagePath("disk.raw")
        const folder = join(dirname(image), "content")
        mkdirSync(folder)
        for (const [name, bytes] of Object.entries(content)) writeFileSync(join(folder, name), bytes)
        yield* DiskImage.createRaw(image, size)
        system("mke2fs", "-q", "-t", "ext4", "-d", folder, image)
        const before = readFileSync(image)

        const disk = yield* backend.serve(image, "read-only")
        expect(yield* Guest.run({ disk, jobs: ["describe-disk", "read-files"] })).toMatchObject({
          "capacity": String(size),
          "read-only": "1",
          ...backend.facts,
          ...sums
        })
        expect(readFileSync(image).equals(before)).toBe(true)
      }), testTimeoutMs)
  })
}

describe.skipIf(!guestIsHere || !qsdIsHere)("a guest", () => {
  onBackend("that fails ends the test with what it said", () =>
    Effect.gen(function*() {
      const image = yield* imagePath("disk.raw")
      yield* DiskImage.createRaw(image, MiB)
      const disk = yield* daemon.serve(image, "read-write")
      const error = yield* Effect.flip(Guest.run({ disk, jobs: ["read-files"] }))
      expect(error).toBeInstanceOf(Guest.GuestFailed)
      expect(error.message).toContain("QEMU with exit code 3:\nmount: mounting /dev/vda on /mnt failed")
      expect(error.message).toContain("failed: read-files")
    }), testTimeoutMs)
})
