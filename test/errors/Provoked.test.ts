/**
 * Goal: every errno that the public API declares can be had from it, as docs/errors.md says; and no other is promised there.
 * Method: each row of the page is provoked by one wrong step (`provocations.ts`), whose keys the compiler compares with the
 * types of the API (`declared.ts`): a new tag fails the type check until it has a provocation, and its row this test.
 */
import { describe, expect } from "@effect/vitest"
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { it } from "vitest"
import * as Errno from "../../src/Errno.ts"
import { live } from "../support/resources.ts"
import { provocations } from "./provocations.ts"

const page = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8")

/** The rows of the table: `| EPERM | 1 | … | … | no |`. */
const rows = Array.from(
  page.matchAll(/^\| (?<tag>E[A-Z0-9]+) \| (?<errno>\d+) \| .* \| (?<retryable>yes|no) \|$/gmu),
  ({ groups: { errno = "", retryable = "", tag = "" } = {} }) => ({
    tag,
    errno: Number(errno),
    isRetryable: retryable === "yes"
  })
)

const ways: ReadonlyMap<string, typeof provocations[keyof typeof provocations]> = new Map(Object.entries(provocations))

describe("docs/errors.md", () => {
  it("has a row for each errno that can be provoked, and for no other", () => {
    expect(rows.map(({ tag }) => tag).toSorted()).toStrictEqual([...ways.keys()].toSorted())
  })

  it("names the others apart", () => {
    const others = [...Errno.byNumber.values()].map(({ identifier }) => identifier).filter((tag) => !ways.has(tag))
    const [named = ""] =
      /^No operation .*$/mu.exec(page.replaceAll("\n", " ").replaceAll(" No operation", "\nNo operation")) ?? []
    expect([...named.matchAll(/`(E[A-Z0-9]+)`/gu)].map(([, tag]) => tag)).toStrictEqual(others)
  })
})

describe("errno", () => {
  for (const { tag, ...facts } of rows) {
    const way = ways.get(tag)
    live(`${tag}: ${way?.by}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(way?.attempt ?? Effect.die(new Error(`nothing provokes ${tag}`)))
        expect(error).toBeInstanceOf(Errno.byNumber.get(facts.errno))
        expect(error).toMatchObject({ _tag: tag, ...facts })
        // The message says the operation, and what is wrong with which value.
        expect(error.message.startsWith(error.operation)).toBe(true)
        expect(error.detail).toMatch(/\w+ \w+/u)
      }))
  }
})
