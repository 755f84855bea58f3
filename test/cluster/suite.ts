/**
 * What an example's cluster does on a database, whichever it is: runners are programs, and some are killed or stopped in the
 * middle of images. All that they have begun and finished stands in the database, and is read there.
 */
import { afterAll, beforeAll, expect } from "@effect/vitest"
import { ConfigProvider, Effect, FileSystem, Layer, Schedule, type Scope } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { SqlClient } from "effect/sql"
import { createHash } from "node:crypto"
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { rolldown } from "rolldown"
import { Database } from "../../examples/cluster/Cluster.ts"
import { make as random } from "../../src/SeededRandom.ts"
import { DiskImage } from "../../src/testing/index.ts"
import { qsdIsHere } from "../integration/requirement.ts"
import { imagePath, KiB, MiB, onBackend } from "../support/daemon.ts"
import { freePort } from "../support/freePort.ts"
import { startProgram } from "../support/program.ts"

/**
 * The example in one file. A test starts it up to eight times, and from its sources each takes two seconds of a processor to
 * load; the tests of the examples start it from them.
 */
const folder = mkdtempSync(join(tmpdir(), "blkio-cluster-"))
const program = join(folder, "cluster_hash.mjs")

beforeAll(async () => {
  const bundle = await rolldown({
    input: "examples/12_cluster_hash.ts",
    platform: "node",
    external: ["koffi"],
    resolve: { conditionNames: ["@effect-blkio/source", "import", "node"] }
  })
  await bundle.write({ file: program, format: "esm", codeSplitting: false })
  await bundle.close()
  symlinkSync(join(process.cwd(), "node_modules"), join(folder, "node_modules"))
})
afterAll(() => rmSync(folder, { recursive: true }))

/** Small extents and a low rate: an image takes a second or two, and there is a middle in which to kill. */
const EXTENT_BYTES = MiB
const RATE_MIB = 4

/** None, less than an extent, some whole ones, and some with a rest. */
const SIZES = [0, 5632, MiB, 5 * MiB + 512, 6 * MiB, 7 * MiB + 64 * KiB, 7 * MiB, 8 * MiB, 8 * MiB, 9 * MiB - 512]

interface Images {
  readonly paths: ReadonlyArray<string>
  /** What the example is to print, line by line, in order of the lines. */
  readonly lines: ReadonlyArray<string>
}

/** As `split -b 1M --filter=sha256sum | cut -c1-64 | sha256sum`. */
const hashOf = (content: Buffer) => {
  const list = createHash("sha256")
  for (let at = 0; at < content.length; at += EXTENT_BYTES) {
    list.update(`${createHash("sha256").update(content.subarray(at, at + EXTENT_BYTES)).digest("hex")}\n`)
  }
  return list.digest("hex")
}

/** Images of noise; with a daemon here, one in qcow2 among them. */
const makeImages = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-images-" })
  const byte = random(8)
  const made = yield* Effect.forEach(SIZES, (size, index) => {
    // A period that no extent has.
    const content = Buffer.alloc(size, Buffer.from(Array.from({ length: 4099 }, () => byte(256))))
    const path = `${folder}/disk${index}.raw`
    return Effect.as(fs.writeFile(path, content), { path, hash: hashOf(content) })
  })
  const last = made.at(-1)
  if (qsdIsHere && last !== undefined) {
    const path = `${folder}/disk.qcow2`
    const convert = ["convert", "-f", "raw", "-O", "qcow2", last.path, path]
    expect(yield* spawner.exitCode(ChildProcess.make("qemu-img", convert))).toBe(0)
    made.push({ path, hash: last.hash })
  }
  return {
    paths: made.map(({ path }) => path),
    lines: made.map(({ hash, path }) => `${hash}  ${path}`).toSorted()
  } satisfies Images
})

const linesOf = (text: string) => text.split("\n").filter((line) => line !== "").toSorted()

const start = (database: string, ...args: ReadonlyArray<string>) =>
  startProgram([program, ...args], { CLUSTER_DATABASE: database })

const run = (database: string, ...args: ReadonlyArray<string>) =>
  Effect.flatMap(start(database, ...args), ({ outcome }) => outcome)

const hash = ["hash", "--extent-mib", String(EXTENT_BYTES / MiB)]

/** Starts a runner and waits until it is one. */
const startRunner = Effect.fnUntraced(function*(database: string) {
  const port = yield* freePort
  const program = yield* start(database, "runner", "--port", String(port), "--rate", String(RATE_MIB))
  while (!program.said.stderr.includes("runner at")) yield* program.stderr
  return { address: `127.0.0.1:${port}`, ...program }
})

/** One time that a runner began with an extent. */
interface Hashing {
  readonly image: string
  readonly runner: string
  readonly extent: number
  readonly attempt: number
  readonly digest: string | null
}

/** What the database says; it must have its tables by now. */
const reader = Effect.map(SqlClient.SqlClient, (sql) => ({
  hashings: sql<Hashing>`
    SELECT a.image, a.runner, h.extent, h.attempt, h.digest
    FROM extent_hashings h JOIN image_attempts a ON a.request = h.request AND a.attempt = h.attempt`
}))

const read = (database: string) =>
  Layer.build(
    Layer.provide(Database, ConfigProvider.layer(ConfigProvider.fromUnknown({ CLUSTER_DATABASE: database })))
  ).pipe(Effect.flatMap((context) => Effect.provideContext(reader, context)))

const keyOf = ({ extent, image }: Hashing) => `${image} ${extent}`

/** How often each extent was begun. */
const countOf = (hashings: ReadonlyArray<Hashing>) => {
  const counts = new Map<string, number>()
  for (const hashing of hashings) counts.set(keyOf(hashing), (counts.get(keyOf(hashing)) ?? 0) + 1)
  return counts
}

const isDone = ({ digest }: Hashing) => digest !== null

const extentsIn = (path: string) => Math.ceil(readFileSync(path).length / EXTENT_BYTES)

/** Images in the middle: of these raw files three extents and more are yet to be begun, and one and more are done. */
const inTheMiddle = (hashings: ReadonlyArray<Hashing>, { paths }: Images) =>
  paths.filter((path) => path.endsWith(".raw")).flatMap((image) => {
    const mine = hashings.filter((hashing) => hashing.image === image)
    const runner = mine.toSorted((a, b) => b.attempt - a.attempt)[0]?.runner
    return runner !== undefined && mine.some(isDone) && new Set(mine.map(keyOf)).size <= extentsIn(image) - 3
      ? [{ image, runner }]
      : []
  })

/** Pids of all programs that were started for this database, whoever has started them. */
const programsOf = (database: string) =>
  readdirSync("/proc").filter((name) => {
    if (!/^\d+$/u.test(name) || Number(name) === process.pid) return false
    try {
      return readFileSync(`/proc/${name}/environ`, "utf8").split("\0").includes(`CLUSTER_DATABASE=${database}`)
    } catch {
      // It has ended.
      return false
    }
  })

/** Waits until no program is left; a daemon whose owner was killed is ended by its guard. */
const untilNoneIsLeft = (database: string) =>
  Effect.suspend(() => {
    const left = programsOf(database)
    return left.length === 0 ? Effect.void : Effect.fail(`left: ${left.join(" ")}`)
  }).pipe(Effect.retry({ times: 100, schedule: Schedule.spaced("100 millis") }))

/** Runs a body with a database, and sees that no program is left that used it. */
const withDatabase = <A, E, R, E2, R2>(
  database: Effect.Effect<string, E2, R2>,
  body: (database: string) => Effect.Effect<A, E, R>
) => Effect.flatMap(database, (url) => Effect.tap(Effect.scoped(body(url)), () => untilNoneIsLeft(url)))

type Platform = Scope.Scope | FileSystem.FileSystem | ChildProcessSpawner.ChildProcessSpawner

/** Three runners at work on the images, when one of them and another are in the middle of some. */
const threeAtWork = Effect.fnUntraced(function*(database: string, images: Images) {
  const runners = yield* Effect.replicateEffect(startRunner(database), 3)
  const asked = yield* start(database, ...hash, ...images.paths)
  const { hashings } = yield* read(database)
  const found = yield* Effect.gen(function*() {
    const now = yield* hashings
    const middle = inTheMiddle(now, images)
    const [first] = middle
    if (first === undefined || middle.every(({ runner }) => runner === first.runner)) {
      return yield* Effect.fail("not yet")
    }
    const victim = runners.find(({ address }) => address === first.runner)
    if (victim === undefined) return yield* Effect.die(`no runner is at ${first.runner}`)
    return {
      before: now,
      victim,
      taken: middle.filter(({ runner }) => runner === first.runner).map(({ image }) => image)
    }
  }).pipe(Effect.retry({ times: 600, schedule: Schedule.spaced("50 millis") }))
  return { asked, hashings, ...found }
})

/** That nothing done was done again, nothing was begun more than twice, and that others went on with a runner's images. */
const expectTakenOver = (
  after: ReadonlyArray<Hashing>,
  { before, taken, victim }: {
    readonly before: ReadonlyArray<Hashing>
    readonly taken: ReadonlyArray<string>
    readonly victim: { readonly address: string }
  }
) => {
  const counts = countOf(after)
  expect([...counts].filter(([, count]) => count > 2)).toStrictEqual([])
  expect(before.filter(isDone).filter((hashing) => counts.get(keyOf(hashing)) !== 1)).toStrictEqual([])
  expect(taken.length).toBeGreaterThan(0)
  for (const image of taken) {
    const of = after.filter((hashing) => hashing.image === image)
    expect(of.some(({ runner }) => runner === victim.address)).toBe(true)
    expect(of.some((hashing) => hashing.runner !== victim.address && isDone(hashing))).toBe(true)
  }
}

/** A database for one machine. */
export const sqliteFile = FileSystem.FileSystem.use((fs) =>
  Effect.map(fs.makeTempDirectoryScoped({ prefix: "blkio-sqlite-" }), (folder) => `${folder}/hashes.sqlite`)
)

export const killedRunner = <E>(database: Effect.Effect<string, E, Platform>): void =>
  onBackend(
    "a runner killed in the middle changes no hash, and has no extent hashed more than twice",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const images = yield* makeImages
          const work = yield* threeAtWork(url, images)
          work.victim.child.kill("SIGKILL")
          const { exit, stdout } = yield* work.asked.outcome
          expect(linesOf(stdout)).toStrictEqual(images.lines)
          expect(exit).toBe(0)
          expect((yield* work.victim.outcome).exit).toBe("SIGKILL")
          expectTakenOver(yield* work.hashings, work)
        }))
  )

export const stoppedRunner = <E>(database: Effect.Effect<string, E, Platform>): void =>
  onBackend(
    "a runner that was only stopped, and taken for dead, begins nothing that another has taken over",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const images = yield* makeImages
          const work = yield* threeAtWork(url, images)
          work.victim.child.kill("SIGSTOP")
          const { exit, stdout } = yield* work.asked.outcome
          expect(linesOf(stdout)).toStrictEqual(images.lines)
          expect(exit).toBe(0)
          const then = yield* work.hashings
          work.victim.child.kill("SIGCONT")
          // Longer than an extent takes at this rate.
          yield* Effect.sleep("2 seconds")
          const after = yield* work.hashings
          expect(after.map(keyOf).toSorted()).toStrictEqual(then.map(keyOf).toSorted())
          expectTakenOver(after, work)
        }))
  )

export const joiningRunner = <E>(database: Effect.Effect<string, E, Platform>): void =>
  onBackend(
    "a runner that joins takes some of the work, and nothing is hashed twice",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const images = yield* makeImages
          yield* startRunner(url)
          const asked = yield* start(url, ...hash, ...images.paths)
          const { hashings } = yield* read(url)
          yield* Effect.map(hashings, (now) => inTheMiddle(now, images)).pipe(
            Effect.flatMap((middle) => middle.length > 0 ? Effect.void : Effect.fail("not yet")),
            Effect.retry({ times: 600, schedule: Schedule.spaced("50 millis") })
          )
          const joined = yield* startRunner(url)
          const { exit, stdout } = yield* asked.outcome
          expect(linesOf(stdout)).toStrictEqual(images.lines)
          expect(exit).toBe(0)
          const after = yield* hashings
          expect(after.some(({ runner }) => runner === joined.address)).toBe(true)
          expect([...countOf(after)].filter(([, count]) => count > 1)).toStrictEqual([])
        }))
  )

export const asking = <E>(database: Effect.Effect<string, E, Platform>): void => {
  onBackend(
    "three runners print what one prints, and an image that is missing stops none of the others",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const images = yield* makeImages
          const missing = "/nonexistent/disk.raw"
          const asks = (runners: number) => run(url, ...hash, "--runners", String(runners), missing, ...images.paths)
          for (const runners of [1, 3]) {
            const { exit, stderr, stdout } = yield* asks(runners)
            expect(linesOf(stdout)).toStrictEqual(images.lines)
            expect(linesOf(stderr)).toContain(`${missing}: ENOENT: open ${missing}: the system refused (open)`)
            expect(exit).toBe(1)
          }
        }))
  )

  onBackend(
    "whoever asks does not wait for runners that it has started and that are gone",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const path = yield* imagePath("disk.raw")
          // Nobody hashes as much in the meantime.
          yield* DiskImage.createRaw(path, 2 ** 40)
          const asked = yield* start(url, ...hash, "--runners", "1", path)
          while (!asked.said.stderr.includes("runner at")) yield* asked.stderr
          const [runner] = programsOf(url).filter((pid) => pid !== String(asked.child.pid))
          process.kill(Number(runner), "SIGKILL")
          const { exit, stderr } = yield* asked.outcome
          expect(linesOf(stderr)).toContain("none of the runners that were started here is left")
          expect(exit).toBe(1)
        }))
  )

  onBackend(
    "runners end with who has started them, and who asks by the same name has them go on, or the answer",
    () =>
      withDatabase(database, (url) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          const images = yield* makeImages
          const named = [...hash, "--run", "nightly", ...images.paths]
          const first = yield* start(url, ...named, "--runners", "2")
          while (linesOf(first.said.stderr).length < 2) yield* first.stderr
          first.child.kill("SIGKILL")
          yield* untilNoneIsLeft(url)
          expect(linesOf((yield* run(url, ...named, "--runners", "2")).stdout)).toStrictEqual(images.lines)
          const { hashings } = yield* read(url)
          const begun = countOf(yield* hashings)
          expect([...begun].filter(([, count]) => count > 2)).toStrictEqual([])
          // Nobody is there now who could hash.
          expect(linesOf((yield* run(url, ...named)).stdout)).toStrictEqual(images.lines)
          expect(countOf(yield* hashings)).toStrictEqual(begun)

          const [changed = "", ...same] = images.lines
          const list = `${yield* fs.makeTempDirectoryScoped({ prefix: "blkio-hashes-" })}/HASHES`
          yield* fs.writeFileString(list, [`${"0".repeat(64)}${changed.slice(64)}`, ...same, ""].join("\n"))
          const { exit, stdout } = yield* run(url, "verify", "--extent-mib", "1", "--runners", "1", list)
          expect(linesOf(stdout)).toStrictEqual(
            [`${changed.slice(66)}: FAILED`, ...same.map((line) => `${line.slice(66)}: OK`)].toSorted()
          )
          expect(exit).toBe(1)
        }))
  )
}
