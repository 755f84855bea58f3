/**
 * Goal: `blkio properties` prints the property table, for people and as JSON, without a device.
 * Method: the command itself, run as a program, against the table it is made from.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { describe as table } from "../../src/Properties/Properties.ts"
import { blkio, start } from "./blkio.ts"

describe("blkio properties", () => {
  it.live("has a row of six columns for each property", () =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("properties")
      expect([exit, stderr]).toStrictEqual([0, ""])
      const [head, ...rows] = stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/u))
      expect(head).toStrictEqual(["NAME", "TYPE", "CAN BE READ", "CAN BE SET", "UNIT", "MEANING"])
      expect(rows.map(([name, type, , , , meaning]) => [name, type, meaning])).toStrictEqual(
        table.map(({ meaning, name, type }) => [name, type, meaning])
      )
      const byName = new Map(rows.map(([name = "", ...rest]) => [name, rest]))
      expect(byName.get("capacity")?.slice(0, 4)).toStrictEqual(["uint64", "once connected", "-", "bytes"])
      expect(byName.get("read-only")?.slice(0, 4)).toStrictEqual(["bool", "always", "while created", "-"])
      expect(byName.get("num-queues")?.slice(0, 4)).toStrictEqual(["int", "always", "while connected", "queues"])
    }))

  it.live("--json is the table itself", () =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("properties", "--json")
      expect([exit, stderr]).toStrictEqual([0, ""])
      expect(JSON.parse(stdout)).toStrictEqual(table)
    }))

  it.live("has nothing to say where its reader has gone", () =>
    Effect.gen(function*() {
      const { child, outcome } = yield* start("properties")
      child.stdout.destroy()
      expect(yield* outcome).toStrictEqual({ exit: 0, stdout: "", stderr: "" })
    }))

  it.live("takes no argument: exit code 2", () =>
    Effect.gen(function*() {
      const { exit, stderr, stdout } = yield* blkio("properties", "capacity")
      expect(stderr).toMatch(/^EINVAL: [^\n]+\n$/u)
      expect([exit, stdout]).toStrictEqual([2, ""])
    }))

  it.live("--help has an example", () =>
    Effect.gen(function*() {
      expect((yield* blkio("properties", "--help")).stdout).toContain("blkio properties --json")
    }))
})
