/**
 * Goal: a command's declaration is what goes over the wire and what comes back: names, secrets, and what does not match.
 * Method: a monitor of the tests' own. That QEMU agrees with the declarations: test/integration/QmpCommands.test.ts.
 */
import { describe, expect } from "@effect/vitest"
import { Cause, Effect, Fiber, Redacted, type Schema, Stream, Tracer } from "effect"
import { readFileSync } from "node:fs"
import { inspect } from "node:util"
import { commands } from "../../src/Qmp/Commands.ts"
import * as Qmp from "../../src/Qmp/Qmp.ts"
import { happened, live, monitor, type Request, returns } from "./monitor.ts"

/** A client, and the commands that it sent; each is answered with `value`. */
const recorded = Effect.fnUntraced(function*(value: unknown = {}) {
  const sent: Array<Pick<Request, "execute" | "arguments">> = []
  const { path } = yield* monitor(({ id, ...request }) => {
    sent.push(request)
    return returns(id, value)
  })
  return { qmp: yield* Qmp.make({ path }), sent, path }
})

const secret = "correct horse battery staple"

describe("commands", () => {
  live("have QMP's names on the wire, and ours in the program", () =>
    Effect.gen(function*() {
      const { qmp, sent } = yield* recorded()
      yield* qmp.objectAdd({ qomType: "iothread", id: "thread", pollMaxNs: 32_768 })
      yield* qmp.blockdevAdd({ "node-name": "a", driver: "null-co" })
      yield* qmp.blockExportAdd({
        type: "vhost-user-blk",
        id: "a",
        nodeName: "a",
        addr: { type: "unix", path: "/run/a.sock" },
        numQueues: 2,
        writable: undefined
      })
      yield* qmp.blockDirtyBitmapMerge({ node: "a", target: "all", bitmaps: ["one", { node: "b", name: "two" }] })
      yield* qmp.transaction({
        actions: [
          { type: "block-dirty-bitmap-add", data: { node: "a", name: "day", persistent: true } },
          {
            type: "blockdev-backup",
            data: { jobId: "full", autoDismiss: false, device: "a", target: "b", sync: "full", onTargetError: "report" }
          }
        ],
        properties: { completionMode: "grouped" }
      })
      yield* qmp.nbdServerStop
      expect(sent).toStrictEqual([
        { execute: "object-add", arguments: { "qom-type": "iothread", id: "thread", "poll-max-ns": 32_768 } },
        { execute: "blockdev-add", arguments: { "node-name": "a", driver: "null-co" } },
        {
          execute: "block-export-add",
          arguments: {
            "type": "vhost-user-blk",
            "id": "a",
            "node-name": "a",
            "addr": { type: "unix", path: "/run/a.sock" },
            "num-queues": 2
          }
        },
        {
          execute: "block-dirty-bitmap-merge",
          arguments: { node: "a", target: "all", bitmaps: ["one", { node: "b", name: "two" }] }
        },
        {
          execute: "transaction",
          arguments: {
            actions: [
              { type: "block-dirty-bitmap-add", data: { node: "a", name: "day", persistent: true } },
              {
                type: "blockdev-backup",
                data: {
                  "job-id": "full",
                  "auto-dismiss": false,
                  "device": "a",
                  "target": "b",
                  "sync": "full",
                  "on-target-error": "report"
                }
              }
            ],
            properties: { "completion-mode": "grouped" }
          }
        },
        { execute: "nbd-server-stop" }
      ])
    }))

  live("each is a method, and docs/qmp.md names it", () =>
    Effect.gen(function*() {
      const { qmp } = yield* recorded()
      const page = readFileSync(new URL("../../docs/qmp.md", import.meta.url), "utf8")
      const methods = [...Object.keys(commands), "blockResize"].toSorted()
      expect(Object.keys(qmp)).toStrictEqual(expect.arrayContaining(methods))
      const rows = [...page.matchAll(/^\| [\w, ]+ \| (`.*) \|$/gmu)].map(([, names]) => names).join("")
      const named = [...rows.matchAll(/`(\w+)`/gu)].map(([, name = ""]) => name)
      expect(named.toSorted()).toStrictEqual(methods)
    }))

  live("what is returned is decoded, and what nobody knows is left out", () =>
    Effect.gen(function*() {
      const { qmp } = yield* recorded([{
        "node-name": "a",
        "drv": "qcow2",
        "ro": false,
        "iops": 0,
        "image": { "virtual-size": 2 ** 20, "filename": "a.qcow2", "format": "qcow2", "dirty-flag": false },
        "dirty-bitmaps": [
          { name: "day", count: 65_536, granularity: 65_536, recording: true, busy: false, persistent: true }
        ]
      }])
      expect(yield* qmp.queryNamedBlockNodes({ flat: true })).toStrictEqual([{
        nodeName: "a",
        drv: "qcow2",
        ro: false,
        image: { virtualSize: 2 ** 20, filename: "a.qcow2", format: "qcow2" },
        dirtyBitmaps: [
          { name: "day", count: 65_536, granularity: 65_536, recording: true, busy: false, persistent: true }
        ]
      }])
    }))

  live(
    "what is not what the command returns is EPROTO that names it, and the connection goes on",
    () =>
      Effect.gen(function*() {
        const { path, qmp } = yield* recorded([{ id: "j", type: "backup", status: "asleep" }])
        const wrong = yield* Effect.flip(qmp.queryJobs)
        expect(wrong).toMatchObject({ _tag: "EPROTO", operation: "query-jobs", path })
        expect(wrong.message).toContain("status")
        expect(yield* Effect.flip(qmp.queryBlockExports)).toMatchObject({
          _tag: "EPROTO",
          operation: "query-block-exports"
        })
        yield* qmp.objectDel({ id: "j" })
      })
  )

  live("arguments that are none are EINVAL, and are not sent", () =>
    Effect.gen(function*() {
      const { qmp, sent } = yield* recorded()
      const loop: Record<string, Schema.Json> = {}
      loop["loop"] = loop
      expect(yield* Effect.flip(qmp.blockResize("a", Number.NaN))).toMatchObject({
        _tag: "EINVAL",
        operation: "block_resize",
        detail: expect.stringContaining("size")
      })
      expect(yield* Effect.flip(qmp.execute("a", loop))).toMatchObject({ _tag: "EINVAL", operation: "a" })
      expect(sent).toStrictEqual([])
    }))

  live("a secret is on the wire and nowhere else", () =>
    Effect.gen(function*() {
      const spans: Array<Tracer.Span> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const { path } = yield* monitor(({ arguments: args, execute, id }, connection) => {
        if (execute === "query-jobs") return returns(id, args)
        if (args?.["id"] === "lost") {
          connection.destroy()
          return undefined
        }
        return `${
          JSON.stringify({ id, error: { class: "GenericError", desc: `of ${JSON.stringify(args?.["data"]).length}` } })
        }\n`
      })
      const failures = yield* Effect.gen(function*() {
        const qmp = yield* Qmp.make({ path })
        const add = (id: string, data: unknown) =>
          Effect.exit(qmp.objectAdd({ qomType: "secret", id, data: data as Redacted.Redacted }))
        // The second was never made a secret; that the types forbid it is no reason to tell it.
        return [
          yield* add("refused", Redacted.make(secret)),
          yield* add("bare", secret),
          yield* add("lost", Redacted.make(secret))
        ]
      }).pipe(Effect.withSpan("test"), Effect.withTracer(tracer))
      const said = failures.map((exit) => exit._tag === "Failure" ? Cause.pretty(exit.cause) : "")
      expect(said[0]).toContain(`of ${secret.length + 2}`)
      expect(said[1]).toContain("EINVAL: object-add")
      expect(said[2]).toContain("ENOTCONN")
      expect(spans.length).toBeGreaterThan(0)
      const everything = said.join() + JSON.stringify(failures)
        + inspect([failures, spans], { depth: 20, showHidden: true })
      expect(everything).toContain("object-add")
      expect(everything).not.toContain(secret)
    }))
})

describe("known events", () => {
  live("are decoded by name, the others are not seen", () =>
    Effect.gen(function*() {
      const failure = { "device": "", "node-name": "a", "operation": "write", "action": "report", "reason": "no" }
      const { path } = yield* monitor(({ id }) =>
        happened("OTHER") + happened("BLOCK_IO_ERROR", { ...failure, "qom-path": "/" }) + returns(id)
      )
      const qmp = yield* Qmp.make({ path })
      const one = yield* Effect.forkChild(Stream.runCollect(Stream.take(qmp.on("BLOCK_IO_ERROR"), 1)), {
        startImmediately: true
      })
      yield* qmp.execute("a")
      expect(yield* Fiber.join(one)).toStrictEqual([{
        event: "BLOCK_IO_ERROR",
        data: { device: "", nodeName: "a", operation: "write", action: "report", reason: "no" },
        timestamp: { seconds: 1, microseconds: 2 }
      }])
    }))

  live(
    "one that is not as QEMU describes it is EPROTO for whoever asked for it, and for nobody else",
    () =>
      Effect.gen(function*() {
        const { path } = yield* monitor(({ id }) => happened("BLOCK_EXPORT_DELETED", { id: 7 }) + returns(id, 1))
        const qmp = yield* Qmp.make({ path })
        const [known, raw] = yield* Effect.all([
          Effect.forkChild(Stream.runDrain(qmp.on("BLOCK_EXPORT_DELETED")), { startImmediately: true }),
          Effect.forkChild(Stream.runCollect(Stream.take(qmp.events, 1)), { startImmediately: true })
        ])
        expect(yield* qmp.execute("a")).toBe(1)
        expect(yield* Effect.flip(Fiber.join(known))).toMatchObject({
          _tag: "EPROTO",
          operation: "BLOCK_EXPORT_DELETED"
        })
        expect(yield* Fiber.join(raw)).toMatchObject([{ data: { id: 7 } }])
      })
  )
})
