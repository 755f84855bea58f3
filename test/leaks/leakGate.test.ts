/**
 * Goal: no test of the suite ends with more of the system than it began with, unnoticed.
 * Method: vitest runs files that leak on purpose, under the gate that every test here runs under, too. Each leak must fail
 * its test and be named, and what only looks like one must not.
 */
import { Effect } from "effect"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { beforeAll, describe, expect, it } from "vitest"
import config from "../../vitest.config.ts"
import { startProgram } from "../support/program.ts"

/** What vitest's JSON report says, of that what is looked at here. */
interface Report {
  readonly testResults: ReadonlyArray<{
    readonly name: string
    readonly message: string
    readonly status: string
    readonly assertionResults: ReadonlyArray<{
      readonly title: string
      readonly status: string
      readonly failureMessages: ReadonlyArray<string>
    }>
  }>
}

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url))

let report: Report

beforeAll(async () => {
  const folder = mkdtempSync(join(tmpdir(), "blkio-leaks-"))
  const file = join(folder, "report.json")
  await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
    const { outcome } = yield* startProgram([
      path("../../node_modules/vitest/vitest.mjs"),
      "run",
      "--config",
      path("fixture/vitest.config.ts"),
      "--reporter=json",
      `--outputFile=${file}`
    ])
    expect((yield* outcome).exit).toBe(1)
  })))
  report = JSON.parse(readFileSync(file, "utf8"))
  rmSync(folder, { recursive: true })
}, 120_000)

const fileOf = (name: string) => report.testResults.find((file) => file.name.endsWith(`/${name}`))!

const testOf = (title: string) =>
  report.testResults.flatMap(({ assertionResults }) => assertionResults).find((test) => test.title === title)!

it("the whole suite runs under the gate", () => {
  expect(config.test?.setupFiles).toStrictEqual(["test/setup.ts"])
  expect(
    config.test?.projects?.every((project) => typeof project === "object" && "extends" in project && project.extends)
  )
    .toBe(true)
})

describe("fails a test that leaves", () => {
  it.each([
    ["a descriptor", /descriptor \d+: \/dev\/zero$/mu],
    ["the same again", /descriptor \d+: \/dev\/zero$/mu],
    ["a socket", /descriptor \d+: socket:\[\d+\]$/mu],
    ["a mapping", /mapping [0-9a-f]+-[0-9a-f]+ .*\/memfd:effect-blkio/mu],
    ["a timer", /timer of 60000 ms, \(\) => \{/mu],
    ["an interval", /timer of 10 ms, \(\) => \{/mu],
    ["an immediate that is always followed by another", /immediates: 1$/mu],
    ["a process", /process \d+: sleep 5$/mu]
  ])("%s", (title, said) => {
    const { failureMessages, status } = testOf(title)
    expect(status).toBe("failed")
    expect(failureMessages).toHaveLength(1)
    expect(failureMessages[0]).toContain("the test left behind:")
    expect(failureMessages[0]).toMatch(said)
  })

  it("something while others run: the last of them answers", () => {
    expect(testOf("early").status).toBe("passed")
    const { failureMessages, status } = testOf("late")
    expect(status).toBe("failed")
    expect(failureMessages.join("")).toMatch(
      /one of the tests "early", "late" left behind:\n +descriptor \d+: \/dev\/zero/u
    )
  })
})

describe("does not fail a test for", () => {
  it.each([
    "what is excused once",
    "excuses what it leaves",
    "what its suite keeps",
    "what it found",
    "what ends a little later",
    "what ends when it has finished",
    "first",
    "second"
  ])("%s", (title) => {
    expect(testOf(title)).toMatchObject({ status: "passed", failureMessages: [] })
  })

  it("a leak that says less than its failure", () => {
    const { failureMessages, status } = testOf("what says less than its failure")
    expect(status).toBe("failed")
    expect(failureMessages.join("")).not.toContain("left behind")
  })
})

describe("fails a file", () => {
  it.each(["file.fixture.ts", "import.fixture.ts"])("that keeps something: %s", (name) => {
    const { assertionResults, message, status } = fileOf(name)
    expect(status).toBe("failed")
    expect(assertionResults).toMatchObject([{ status: "passed" }])
    expect(message).toMatch(/the file left behind:\n +descriptor \d+: \/dev\/zero/u)
  })

  it("not when it closes what it opened, and what it leaves is excused", () => {
    expect(fileOf("clean.fixture.ts")).toMatchObject({ status: "passed", message: "" })
  })
})
