/**
 * Goal: what the monitor says is believed only as far as it is QMP, and every way in which a connection can fail ends
 * whoever waits, once, typed, in bounded time.
 * Method: a monitor of the test's own on a unix socket, that says what the test makes it say. The real one:
 * test/integration/QemuStorageDaemon.test.ts.
 */
import { describe, expect } from "@effect/vitest"
import { Effect, Exit, Fiber, FileSystem, Scope, Stream } from "effect"
import * as Qmp from "../../src/Qmp/Qmp.ts"
import { happened, live, monitor, returns, silent } from "./monitor.ts"

describe("Qmp", () => {
  live("greets, negotiates, sends arguments and gives what is returned", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ arguments: args, execute, id }) => returns(id, { execute, args }))
      const qmp = yield* Qmp.make({ path })
      expect(qmp.version).toBe("7.2.22")
      expect(yield* qmp.execute("a")).toStrictEqual({ execute: "a" })
      yield* qmp.blockResize("disk0", 4096)
      expect(yield* qmp.execute("b", { "node-name": "n", size: 1 })).toStrictEqual({
        execute: "b",
        args: { "node-name": "n", size: 1 }
      })
    }))

  live("sends one command at a time, in the order of the calls", () =>
    Effect.gen(function*() {
      let open = 0
      const seen: Array<string> = []
      const { path } = yield* monitor(({ execute, id }, connection) => {
        seen.push(`${execute} ${open++}`)
        setTimeout(() => {
          open--
          connection.write(returns(id, execute))
        }, 2)
        return undefined
      })
      const qmp = yield* Qmp.make({ path })
      const names = ["a", "b", "c", "d"]
      expect(yield* Effect.forEach(names, (name) => qmp.execute(name), { concurrency: "unbounded" })).toStrictEqual(
        names
      )
      expect(seen).toStrictEqual(["a 0", "b 0", "c 0", "d 0"])
    }))

  live("puts together a message that comes in pieces, in the middle of a character too", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ id }, connection) => {
        const bytes = Buffer.from(returns(id, "größer"))
        bytes.forEach((byte, index) => setTimeout(() => connection.write(Uint8Array.of(byte)), index))
        return undefined
      })
      const qmp = yield* Qmp.make({ path })
      expect(yield* qmp.execute("a")).toBe("größer")
    }))

  live("an error is a QmpError of that command, with an id or without", () =>
    Effect.gen(function*() {
      const error = { class: "GenericError", desc: "no" }
      const { path } = yield* monitor(({ execute, id }) =>
        `${JSON.stringify(execute === "a" ? { error, id } : { error })}\n`
      )
      const qmp = yield* Qmp.make({ path })
      const refused = yield* Effect.flip(qmp.execute("a"))
      expect(refused).toMatchObject({ _tag: "QmpError", command: "a", ...error })
      expect(refused.message).toBe("a: no (GenericError)")
      expect(yield* Effect.flip(qmp.execute("b"))).toMatchObject({ _tag: "QmpError", command: "b", ...error })
    }))

  live(
    "a command without an answer is ETIMEDOUT; the answer that comes late is nobody's",
    () =>
      Effect.gen(function*() {
        const late: Array<string> = []
        const { path } = yield* monitor(({ execute, id }) => {
          if (execute !== "slow") return late.join("") + returns(id, execute)
          late.push(returns(id, execute))
          return undefined
        })
        const qmp = yield* Qmp.make({ path, timeLimit: "1 second" })
        expect(yield* Effect.flip(qmp.execute("slow"))).toMatchObject({ _tag: "ETIMEDOUT", operation: "slow", path })
        const interrupted = yield* Effect.forkChild(qmp.execute("slow"), { startImmediately: true })
        yield* Fiber.interrupt(interrupted)
        expect(yield* qmp.execute("quick")).toBe("quick")
      })
  )

  live("answers to nobody, and to somebody else, come in between and are dropped", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ execute, id }) => {
        const error = JSON.stringify({ error: { class: "GenericError", desc: "no" }, id: String(Number(id) + 1) })
        return `${returns(String(Number(id) + 1), "next")}${error}\n{"return": 1}\n${returns(id, execute)}${
          returns(id, "again")
        }`
      })
      const qmp = yield* Qmp.make({ path })
      const names = ["a", "b", "c"]
      expect(yield* Effect.forEach(names, (name) => qmp.execute(name), { concurrency: "unbounded" })).toStrictEqual(
        names
      )
    }))

  live("events go to every subscriber, from when it subscribes until the scope closes", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ execute, id }) => happened(execute) + returns(id))
      const scope = yield* Scope.make()
      const qmp = yield* Qmp.make({ path }).pipe(Scope.provide(scope))
      yield* qmp.execute("EARLY")
      const names = Stream.runCollect(Stream.map(qmp.events, ({ event }) => event))
      const first = yield* Effect.forkChild(names, { startImmediately: true })
      yield* qmp.execute("ONE")
      const second = yield* Effect.forkChild(names, { startImmediately: true })
      yield* qmp.execute("TWO")
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(first)).toStrictEqual(["ONE", "TWO"])
      expect(yield* Fiber.join(second)).toStrictEqual(["TWO"])
      expect(yield* Effect.flip(qmp.execute("a"))).toMatchObject({ _tag: "ENOTCONN" })
    }))

  live("an event has its particulars, or none", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ id }) =>
        happened("FULL") + `{"event":"BARE","timestamp":{"seconds":-1,"microseconds":-1}}\n` + returns(id)
      )
      const qmp = yield* Qmp.make({ path })
      const two = yield* Effect.forkChild(Stream.runCollect(Stream.take(qmp.events, 2)), { startImmediately: true })
      yield* qmp.execute("a")
      expect(yield* Fiber.join(two)).toStrictEqual([
        { event: "FULL", data: { id: "disk0" }, timestamp: { seconds: 1, microseconds: 2 } },
        { event: "BARE", data: {}, timestamp: { seconds: -1, microseconds: -1 } }
      ])
    }))

  live(
    "a monitor that goes away ends what waits with ENOTCONN, and what was heard before is not lost",
    () =>
      Effect.gen(function*() {
        const { path } = yield* monitor((_, connection) => {
          connection.end(happened("LAST"))
          return undefined
        })
        const qmp = yield* Qmp.make({ path })
        const heard: Array<string> = []
        const events = yield* qmp.events.pipe(
          Stream.runForEach(({ event }) => Effect.sync(() => heard.push(event))),
          Effect.forkChild({ startImmediately: true })
        )
        const failures = yield* Effect.forEach(["a", "b"], (command) => Effect.flip(qmp.execute(command)), {
          concurrency: "unbounded"
        })
        expect(failures.map(({ _tag }) => _tag)).toStrictEqual(["ENOTCONN", "ENOTCONN"])
        expect(yield* Effect.flip(Fiber.join(events))).toMatchObject({ _tag: "ENOTCONN" })
        expect(heard).toStrictEqual(["LAST"])
        expect(yield* Effect.flip(Stream.runDrain(qmp.events))).toMatchObject({ _tag: "ENOTCONN" })
      })
  )

  live("a command that waits ends when the scope closes", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(silent)
      const scope = yield* Scope.make()
      const qmp = yield* Qmp.make({ path }).pipe(Scope.provide(scope))
      const waiting = yield* Effect.forkChild(qmp.execute("a"), { startImmediately: true })
      yield* Scope.close(scope, Exit.void)
      expect(yield* Effect.flip(Fiber.join(waiting))).toMatchObject({ _tag: "ENOTCONN" })
    }))

  for (
    const [what, text] of [
      ["is no JSON", "oops\n"],
      ["is no message", `{"hello": 1}\n`],
      ["is an error without a class", `{"error": {"desc": "x"}, "id": "2"}\n`],
      ["is longer than the limit", "x".repeat(Qmp.lineLimit + 1)]
    ] as const
  ) {
    live(`a line that ${what} ends the connection with EPROTO`, () =>
      Effect.gen(function*() {
        const { path } = yield* monitor(() => text)
        const qmp = yield* Qmp.make({ path })
        expect(yield* Effect.flip(qmp.execute("a"))).toMatchObject({ _tag: "EPROTO", path })
        expect(yield* Effect.flip(qmp.execute("b"))).toMatchObject({ _tag: "EPROTO", path })
      }))
  }

  live("exports that are none are EPROTO, and the connection goes on", () =>
    Effect.gen(function*() {
      const { path } = yield* monitor(({ id }) => returns(id, [{ id: "disk0" }]))
      const qmp = yield* Qmp.make({ path })
      expect(yield* Effect.flip(qmp.queryBlockExports)).toMatchObject({
        _tag: "EPROTO",
        operation: "query-block-exports"
      })
      expect(yield* qmp.execute("a")).toStrictEqual([{ id: "disk0" }])
    }))

  live(
    "connecting: no socket ENOENT, nobody there ECONNREFUSED, no greeting ETIMEDOUT, another protocol EPROTO",
    () =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const { connections, path } = yield* monitor(silent, "")
        expect(yield* Effect.flip(Qmp.make({ path: `${path}-not` }))).toMatchObject({ _tag: "ENOENT" })
        expect(yield* Effect.flip(Qmp.make({ path, timeLimit: 50 }))).toMatchObject({ _tag: "ETIMEDOUT" })
        while (connections.size > 0) yield* Effect.sleep(1)
        yield* fs.writeFileString(`${path}-file`, "")
        expect(yield* Effect.flip(Qmp.make({ path: `${path}-file` }))).toMatchObject({ _tag: "ECONNREFUSED" })
        const http = yield* monitor(silent, "HTTP/1.1 400 Bad Request\r\n\r\n")
        expect(yield* Effect.flip(Qmp.make({ path: http.path }))).toMatchObject({ _tag: "EPROTO" })
        expect(yield* Effect.flip(Qmp.make({ path: `/tmp/${"x".repeat(120)}` }))).toMatchObject({
          _tag: "ENAMETOOLONG"
        })
      })
  )

  live("leaves no connection when its scope closes, or when connecting fails", () =>
    Effect.gen(function*() {
      const { connections, path } = yield* monitor(({ id }) => returns(id))
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Qmp.make({ path })
        expect(connections.size).toBe(1)
      }))
      while (connections.size > 0) yield* Effect.sleep(1)
    }))
})
