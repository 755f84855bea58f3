/**
 * Goal: an export's socket is there when it listens and gone when it does not; a path in use is left to its user, and one
 * that a killed process left is taken over; connections come in order, and none is lost or leaked.
 * Method: real sockets in a folder of the test's own, connected to by system calls; a killed process is one.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { spawnSync } from "node:child_process"
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync
} from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Listener from "../../src/Export/Listener.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { live } from "../support/resources.ts"

const { ECONNREFUSED, ENOENT } = Os.constants.errno

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(Path.join(Os.tmpdir(), "blkio-listener-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** Connects to a path; answers the errno. */
const knock = (path: string): number => {
  const fd = Libc.createUnixSocket()
  const errno = Libc.connectUnixSocket(fd, path)
  Libc.close(fd)
  return errno
}

/** A connection that lasts as long as the Scope. */
const connected = (path: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const fd = Libc.createUnixSocket()
      expect(Libc.connectUnixSocket(fd, path)).toBe(0)
      return fd
    }),
    (fd) => Effect.sync(() => Libc.close(fd))
  )

/** Listens, and takes no connection. */
const listening = (path: string) => Effect.asVoid(Listener.make(path))

const refused = (path: string) => Effect.flip(Effect.scoped(listening(path)))

describe("Listener", () => {
  live("makes a socket that takes connections, and removes it", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      yield* Effect.scoped(Effect.gen(function*() {
        yield* listening(path)
        expect(lstatSync(path).isSocket()).toBe(true)
        expect(knock(path)).toBe(0)
      }))
      expect(existsSync(path)).toBe(false)
      expect(knock(path)).toBe(ENOENT)
    }))

  live("hands connections over one after another, in the order they came", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const accept = yield* Listener.make(path)
      for (const byte of [1, 2, 3]) Libc.send(yield* connected(path), Uint8Array.of(byte), [])
      for (const byte of [1, 2, 3]) {
        const found = yield* Effect.scoped(Effect.map(accept, (fd) => Libc.receive(fd, 16)))
        expect(found).toStrictEqual({ _tag: "Data", bytes: Uint8Array.of(byte), fds: [] })
      }
    }))

  live("waits for a connection that comes later, and closes it with its Scope", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const accept = yield* Listener.make(path)
      const scope = yield* Scope.make()
      const waiting = yield* Effect.forkChild(Scope.provide(accept, scope), { startImmediately: true })
      yield* Effect.sleep(5)
      const peer = yield* connected(path)
      yield* Fiber.join(waiting)
      expect(Libc.receive(peer, 1)._tag).toBe("Empty")
      yield* Scope.close(scope, Exit.void)
      expect(Libc.receive(peer, 1)).toStrictEqual({ _tag: "Data", bytes: new Uint8Array(0), fds: [] })
    }))

  live("can be interrupted while it waits", () =>
    Effect.gen(function*() {
      const accept = yield* Listener.make(`${yield* folder}/socket`)
      for (let round = 0; round < 3; round++) {
        const waiting = yield* Effect.forkChild(Effect.scoped(accept), { startImmediately: true })
        yield* Effect.sleep(1)
        yield* Fiber.interrupt(waiting)
      }
    }))

  live("hands over one that was closed before it was taken, whose end then shows", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const accept = yield* Listener.make(path)
      expect(knock(path)).toBe(0)
      const found = yield* Effect.scoped(Effect.map(accept, (fd) => Libc.receive(fd, 16)))
      expect(found).toMatchObject({ _tag: "Data", bytes: new Uint8Array(0) })
    }))

  live("makes its connections close-on-exec and non-blocking", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const accept = yield* Listener.make(path)
      yield* connected(path)
      const fd = yield* accept
      const [, flags = ""] = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8")) ?? []
      expect(Number.parseInt(flags, 8) & 0o2004000).toBe(0o2004000)
    }))
})

describe("a path in use", () => {
  live("by somebody who listens is refused, and goes on", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      yield* listening(path)
      const error = yield* refused(path)
      expect(error).toMatchObject({ _tag: "EADDRINUSE", operation: "listen", path })
      expect(error.message).toContain("somebody listens there")
      expect(knock(path)).toBe(0)
    }))

  live("by one whose backlog is full is refused too", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      yield* listening(path)
      const EAGAIN = 11
      for (let errno = 0; errno !== EAGAIN;) {
        const fd = yield* Effect.acquireRelease(
          Effect.sync(Libc.createUnixSocket),
          (opened) => Effect.sync(() => Libc.close(opened))
        )
        errno = Libc.connectUnixSocket(fd, path)
      }
      expect(yield* refused(path)).toMatchObject({ _tag: "EADDRINUSE" })
      expect(lstatSync(path).isSocket()).toBe(true)
    }))

  live("by a file is refused, and the file is left alone", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      writeFileSync(path, "content")
      expect(yield* refused(path)).toMatchObject({ _tag: "EADDRINUSE", path })
      expect(readFileSync(path, "utf8")).toBe("content")
    }))

  live("by a folder, or by a link to nowhere or to a file, is refused", () =>
    Effect.gen(function*() {
      const parent = yield* folder
      mkdirSync(`${parent}/folder`)
      symlinkSync(`${parent}/nowhere`, `${parent}/link`)
      writeFileSync(`${parent}/file`, "content")
      symlinkSync(`${parent}/file`, `${parent}/tofile`)
      for (const name of ["folder", "link", "tofile"]) {
        expect(yield* refused(`${parent}/${name}`)).toMatchObject({ _tag: "EADDRINUSE" })
        expect(lstatSync(`${parent}/${name}`).isSocket()).toBe(false)
      }
      expect(existsSync(`${parent}/nowhere`)).toBe(false)
    }))

  live("by a socket that a killed process left behind is taken over", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const program = `
        require("node:net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))
      `
      expect(spawnSync(process.execPath, ["--eval", program]).signal).toBe("SIGKILL")
      expect(lstatSync(path).isSocket()).toBe(true)
      expect(knock(path)).toBe(ECONNREFUSED)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* listening(path)
        expect(knock(path)).toBe(0)
      }))
      expect(existsSync(path)).toBe(false)
    }))
})

describe("the end", () => {
  live("does not remove a socket that somebody else has put in place of ours", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      const first = yield* Scope.make()
      yield* Scope.provide(listening(path), first)
      unlinkSync(path)
      yield* listening(path)
      yield* Scope.close(first, Exit.void)
      expect(knock(path)).toBe(0)
    }))

  live(
    "removes no file that somebody has put there, and takes it well that there is nothing",
    () =>
      Effect.gen(function*() {
        const path = `${yield* folder}/socket`
        yield* Effect.scoped(Effect.gen(function*() {
          yield* listening(path)
          unlinkSync(path)
          writeFileSync(path, "content")
        }))
        expect(readFileSync(path, "utf8")).toBe("content")
        unlinkSync(path)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* listening(path)
          unlinkSync(path)
        }))
        expect(existsSync(path)).toBe(false)
      })
  )

  live("leaves a socket alone that was moved", () =>
    Effect.gen(function*() {
      const path = `${yield* folder}/socket`
      yield* Effect.scoped(Effect.gen(function*() {
        yield* listening(path)
        renameSync(path, `${path}.moved`)
      }))
      expect(lstatSync(`${path}.moved`).isSocket()).toBe(true)
    }))

  live("takes it well that the folder is gone", () =>
    Effect.gen(function*() {
      const parent = `${yield* folder}/deeper`
      mkdirSync(parent)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* listening(`${parent}/socket`)
        rmSync(parent, { recursive: true })
      }))
    }))
})

describe("where no socket can be made", () => {
  live(
    "says ENOENT for a missing folder, ENOTDIR for a file in its place, ELOOP for links in circles",
    () =>
      Effect.gen(function*() {
        const parent = yield* folder
        writeFileSync(`${parent}/file`, "")
        symlinkSync(`${parent}/loop`, `${parent}/loop`)
        expect(yield* refused(`${parent}/missing/socket`)).toMatchObject({ _tag: "ENOENT", operation: "listen" })
        expect(yield* refused(`${parent}/file/socket`)).toMatchObject({ _tag: "ENOTDIR" })
        expect(yield* refused(`${parent}/loop/socket`)).toMatchObject({ _tag: "ELOOP" })
      })
  )

  live("says EACCES for a folder that may not be written", () =>
    Effect.gen(function*() {
      const parent = yield* folder
      chmodSync(parent, 0o555)
      // Root may write anywhere, so it is somebody else for the moment.
      const isRoot = process.geteuid?.() === 0
      const nobody = 65_534
      const error = yield* Effect.acquireUseRelease(
        Effect.sync(() => isRoot && process.seteuid?.(nobody)),
        () => refused(`${parent}/socket`),
        () => Effect.sync(() => isRoot && process.seteuid?.(0))
      )
      expect(error).toMatchObject({ _tag: "EACCES", path: `${parent}/socket` })
    }))

  live("takes a path that is relative to the current folder, and removes it from there", () =>
    Effect.gen(function*() {
      const parent = yield* folder
      const path = Path.relative(process.cwd(), `${parent}/socket`)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* listening(path)
        expect(knock(`${parent}/socket`)).toBe(0)
      }))
      expect(existsSync(`${parent}/socket`)).toBe(false)
    }))

  live("takes a path of 107 bytes", () =>
    Effect.gen(function*() {
      const parent = yield* folder
      const path = `${parent}/${"s".repeat(107 - parent.length - 1)}`
      yield* listening(path)
      expect(knock(path)).toBe(0)
    }))
})

it("leaves its sockets to no child process", () =>
  Effect.runPromise(Effect.scoped(Effect.gen(function*() {
    yield* listening(`${yield* folder}/socket`)
    const listed = spawnSync("ls", ["-l", "/proc/self/fd"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
    expect(listed.stdout.split("\n").filter((line) => !/ [01] -> /.test(line)).join("\n")).not.toContain("socket:")
  }))))
