/**
 * A monitor of the tests' own on a unix socket, that says what a test makes it say.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { it } from "@effect/vitest"
import { Effect, FileSystem, Path, Schema, type Scope } from "effect"
import * as Net from "node:net"

const Request = Schema.fromJsonString(Schema.Struct({
  execute: Schema.String,
  arguments: Schema.optionalKey(Schema.JsonObject),
  id: Schema.String
}))
export type Request = typeof Request.Type
const decodeRequest = Schema.decodeUnknownSync(Request)

const greeting =
  `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"}, "capabilities": ["oob"]}}\r\n`
export const returns = (id: string, value: unknown = {}) => `${JSON.stringify({ return: value, id })}\r\n`
export const happened = (event: string, data: unknown = { id: "disk0" }) =>
  `${JSON.stringify({ event, timestamp: { seconds: 1, microseconds: 2 }, data })}\r\n`

export type Answer = (request: Request, connection: Net.Socket) => string | undefined

/** A monitor that greets, agrees to capabilities, and answers everything else with `answer`. */
export const monitor = Effect.fnUntraced(function*(answer: Answer, greets = greeting) {
  const fs = yield* FileSystem.FileSystem
  const path = (yield* Path.Path).join(yield* fs.makeTempDirectoryScoped({ prefix: "qmp-test-" }), "monitor")
  const connections = new Set<Net.Socket>()
  yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer((connection) => {
        connections.add(connection)
        connection.on("error", () => {}).on("close", () => connections.delete(connection))
        connection.write(greets)
        let text = ""
        connection.on("data", (bytes) => {
          text += bytes.toString()
          const lines = text.split("\n")
          text = lines.pop() ?? ""
          for (const line of lines) {
            const request = decodeRequest(line)
            const reply = request.execute === "qmp_capabilities" ? returns(request.id) : answer(request, connection)
            if (reply !== undefined) connection.write(reply)
          }
        })
      })
      server.listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.callback<void>((resume) => {
        for (const connection of connections) connection.destroy()
        server.close(() => resume(Effect.void))
      })
  )
  return { path, connections }
})

export const silent: Answer = () => undefined

export const live = (name: string, test: () => Effect.Effect<void, unknown, Scope.Scope | NodeServices.NodeServices>) =>
  it.live(name, () => test().pipe(Effect.provide(NodeServices.layer)))
