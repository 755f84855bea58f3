/**
 * Goal: a watch fires for what it is interested in, as long as it lasts, and never after its close; it survives garbage
 * collection; and what cannot be watched is refused, since the library beneath would end the process.
 * Method: real socket pairs and event counters on Node's own loop. That something does not fire is told by letting the loop
 * turn a few times after it would have.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { execFileSync } from "node:child_process"
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Worker } from "node:worker_threads"
import * as Libc from "../../src/Native/Libc.ts"
import * as Poll from "../../src/Native/Poll.ts"
import { live } from "../support/resources.ts"

const { EBADF, EEXIST, EPERM } = Os.constants.errno

const descriptor = (open: () => number): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(Effect.sync(open), (fd) => Effect.sync(() => Libc.close(fd)))

const socketPair = Effect.acquireRelease(
  Effect.sync(Libc.createSocketPair),
  (pair) => Effect.sync(() => pair.forEach(Libc.close))
)

const watched = (fd: number, interest: Poll.Interest, onReady: () => void) =>
  Effect.acquireRelease(
    Effect.sync(() => Poll.watch(fd, interest, onReady)),
    (watch) => Effect.sync(() => watch.close())
  )

/** Lets the loop turn until `condition` holds; the test's own time limit ends it where it never does. */
const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => condition() ? Effect.void : Effect.andThen(Effect.sleep(1), until(condition)))

/** Lets the loop turn so often that a watch would have fired. */
const turns = Effect.forEach(Array.from({ length: 10 }), () => Effect.sleep(1), { discard: true })

describe("Poll", () => {
  live("fires when a counter is signalled, again and again until it is drained", () =>
    Effect.gen(function*() {
      const fd = yield* descriptor(Libc.createEventFd)
      let fired = 0
      yield* watched(fd, { readable: true }, () => {
        fired++
      })
      yield* turns
      expect(fired).toBe(0)
      Libc.signalEventFd(fd)
      yield* until(() => fired >= 5)
      Libc.drainEventFd(fd)
      const settled = fired
      yield* turns
      // One look may have been under way.
      expect(fired - settled).toBeLessThanOrEqual(1)
    }))

  live("fires at the end of a stream", () =>
    Effect.gen(function*() {
      const [left] = yield* Effect.acquireRelease(
        Effect.sync(() => {
          const [left, right] = Libc.createSocketPair()
          Libc.close(right)
          return [left] as const
        }),
        ([left]) => Effect.sync(() => Libc.close(left))
      )
      let ended = false
      yield* watched(left, { readable: true }, () => {
        const found = Libc.receive(left, 16)
        ended = found._tag === "Data" && found.bytes.length === 0
      })
      yield* until(() => ended)
    }))

  live("fires for what it is changed to, and for nothing while paused", () =>
    Effect.gen(function*() {
      const [left, right] = yield* socketPair
      let fired = 0
      const watch = yield* watched(left, { readable: true }, () => {
        fired++
      })
      watch.change({ writable: true })
      yield* until(() => fired > 0)
      watch.change({})
      fired = 0
      Libc.send(right, Uint8Array.of(1), [])
      yield* turns
      expect(fired).toBe(0)
      watch.change({ readable: true, writable: true })
      yield* until(() => fired > 0)
    }))

  live("is silent after its close, which may come twice, and takes no change any more", () =>
    Effect.gen(function*() {
      const fd = yield* descriptor(Libc.createEventFd)
      let fired = 0
      const watch = Poll.watch(fd, { readable: true }, () => {
        fired++
      })
      Libc.signalEventFd(fd)
      watch.close()
      watch.close()
      watch.change({ readable: true })
      yield* turns
      expect(fired).toBe(0)
    }))

  live("may be closed by its own callback, and its descriptor watched anew", () =>
    Effect.gen(function*() {
      const fd = yield* descriptor(Libc.createEventFd)
      let fired = 0
      const first = Poll.watch(fd, { readable: true }, () => {
        fired++
        first.close()
      })
      Libc.signalEventFd(fd)
      yield* until(() => fired > 0)
      yield* turns
      expect(fired).toBe(1)
      yield* watched(fd, { readable: true }, () => {
        fired++
      })
      yield* until(() => fired > 1)
    }))

  live("fires for each of many connections at a listening socket, until they are taken", () =>
    Effect.gen(function*() {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(Path.join(Os.tmpdir(), "blkio-poll-"))),
        (path) => Effect.sync(() => rmSync(path, { recursive: true }))
      )
      const listening = yield* descriptor(Libc.createUnixSocket)
      expect(Libc.bindUnixSocket(listening, `${folder}/socket`)).toBe(0)
      Libc.listen(listening, 16)
      const taken: Array<number> = []
      yield* watched(listening, { readable: true }, () => taken.push(Libc.accept(listening)))
      for (let i = 0; i < 10; i++) {
        expect(Libc.connectUnixSocket(yield* descriptor(Libc.createUnixSocket), `${folder}/socket`)).toBe(0)
      }
      yield* until(() => taken.length === 10)
      yield* turns
      taken.forEach(Libc.close)
      expect(taken).toHaveLength(10)
      expect(taken).not.toContain(-1)
    }))

  live("takes a descriptor's number again after its close, for another file", () =>
    Effect.gen(function*() {
      const first = Libc.createEventFd()
      Poll.watch(first, { readable: true }, () => {}).close()
      Libc.close(first)
      const second = yield* descriptor(Libc.createEventFd)
      expect(second).toBe(first)
      let fired = 0
      yield* watched(second, { readable: true }, () => {
        fired++
      })
      yield* turns
      expect(fired).toBe(0)
      Libc.signalEventFd(second)
      yield* until(() => fired > 0)
    }))

  it("survives garbage collection though nobody keeps it", () => {
    // In a process of its own, since a watch that nobody keeps can be closed by nobody.
    const program = `
      import * as Libc from "../../src/Native/Libc.ts"
      import * as Poll from "../../src/Native/Poll.ts"
      const fd = Libc.createEventFd()
      let fired = 0
      Poll.watch(fd, { readable: true }, () => {
        fired++
        Libc.drainEventFd(fd)
      })
      for (let round = 0; round < 20; round++) {
        gc()
        await new Promise((resume) => setTimeout(resume, 1))
        gc()
        Libc.signalEventFd(fd)
        while (fired <= round) await new Promise((resume) => setTimeout(resume, 1))
      }
      console.log(fired)
      process.exit(0)
    `
    const printed = execFileSync(process.execPath, ["--expose-gc", "--input-type=module", "--eval", program], {
      cwd: import.meta.dirname,
      encoding: "utf8",
      timeout: 20_000
    })
    expect(printed).toBe("20\n")
  })

  live("lets a thread exit whose watch fires all the time", () =>
    Effect.gen(function*() {
      const fd = yield* descriptor(Libc.createEventFd)
      Libc.signalEventFd(fd)
      const module = new URL("../../src/Native/Poll.ts", import.meta.url).href
      const program = (delayMs: number) => `
        import(${JSON.stringify(module)}).then(({ watch }) => {
          watch(${fd}, { readable: true }, () => {})
          setTimeout(() => process.exit(3), ${delayMs})
        })`
      for (let i = 0; i < 20; i++) {
        const worker = new Worker(program(i % 5), { eval: true, execArgv: [] })
        const exit = Effect.callback<number>((resume) => {
          worker.once("exit", (code) => resume(Effect.succeed(code)))
        })
        expect(yield* exit).toBe(3)
      }
    }))

  it("refuses what cannot be watched", () => {
    const refused = (fd: number) => {
      try {
        Poll.watch(fd, { readable: true }, () => {}).close()
      } catch (error) {
        return error
      }
      return undefined
    }
    const file = openSync(import.meta.filename, "r")
    const directory = openSync(import.meta.dirname, "r")
    const [left, right] = Libc.createSocketPair()
    const watch = Poll.watch(left, { readable: true }, () => {})
    try {
      expect(refused(-1)).toMatchObject({ errno: EBADF })
      expect(refused(1_000_000)).toMatchObject({ errno: EBADF })
      expect(refused(file)).toMatchObject({ errno: EPERM })
      expect(refused(directory)).toMatchObject({ errno: EPERM })
      expect(refused(left)).toMatchObject({ errno: EEXIST })
      expect(refused(right)).toBeUndefined()
    } finally {
      watch.close()
      closeSync(file)
      closeSync(directory)
      Libc.close(left)
      Libc.close(right)
    }
  })
})
