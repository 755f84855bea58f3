#!/usr/bin/env node
/**
 * The `blkio` command. Exit codes: 0 for success, 1 where I/O or the device failed, 2 for wrong usage, 130 where a signal cut
 * it short.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import { CliError, CliOutput, Command } from "effect/cli"
import { readFileSync } from "node:fs"
import { bench } from "./bench.ts"
import { compare } from "./compare.ts"
import { copy } from "./copy.ts"
import { hash } from "./hash.ts"
import { info } from "./info.ts"
import { properties } from "./properties.ts"
import { serve } from "./serve.ts"

const IO_FAILED = 1
const WRONG_USAGE = 2

/** Ends the process with a code, after everything was said. */
class Failed extends Data.TaggedError("Failed")<{ readonly code: number }> {
  override readonly [Runtime.errorExitCode] = this.code
  override readonly [Runtime.errorReported] = false
}

const { version }: { readonly version: string } = JSON.parse(
  readFileSync(new URL("../../package.json", import.meta.url), "utf8")
)

const blkio = Command.make("blkio").pipe(
  Command.withDescription("Block I/O from user space"),
  Command.withSubcommands([info, properties, copy, compare, hash, bench, serve])
)

/** What is wrong goes to stderr in one paragraph; stdout is for results. */
const presenter: CliOutput.Presenter = {
  present: (event) => {
    if (event._tag !== "InvalidInvocation") return CliOutput.defaultPresenter.present(event)
    const reasons = event.errors.map((error) => error.message.replaceAll(/\s+/gu, " "))
    return Console.error(`EINVAL: ${reasons.join("; ")} (see ${event.commandPath.join(" ")} --help)`)
  }
}

// Whoever read the output has seen enough (`blkio info … | head`); the exit code may still matter to another.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") return
  process.stderr.write(`${error.code ?? "EIO"}: output: ${error.message}\n`)
  process.exit(IO_FAILED)
})
// There is nobody left to tell.
process.stderr.on("error", () => {})

/** Some commands end by being interrupted; how that went, they have said by `process.exitCode`. */
const teardown: Runtime.Teardown = (exit, onExit) =>
  Runtime.defaultTeardown(exit, (code) => {
    const own = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? process.exitCode : undefined
    onExit(typeof own === "number" ? own : code)
  })

Command.runWith(blkio, { version })(process.argv.slice(2)).pipe(
  Effect.catch((error) => {
    if (CliError.isCliError(error)) {
      return error._tag === "ShowHelp" && error.errors.length === 0
        ? Effect.void
        : Effect.fail(new Failed({ code: WRONG_USAGE }))
    }
    // It has said so itself.
    if (error._tag === "Different") return Effect.fail(new Failed({ code: IO_FAILED }))
    const [code, reason] = error._tag === "UsageError" ? [WRONG_USAGE, error.reason] : [IO_FAILED, error]
    return Effect.andThen(Console.error(`${reason._tag}: ${reason.message}`), Effect.fail(new Failed({ code })))
  }),
  Effect.provide([NodeServices.layer, CliOutput.layerPresenter(presenter)]),
  NodeRuntime.runMain({ teardown })
)
