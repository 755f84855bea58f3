/**
 * `blkio properties`: the table of all properties. No device is needed for it.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Command, Flag } from "effect/cli"
import { describe, type Description } from "../Properties/Properties.ts"

const HEAD = ["NAME", "TYPE", "CAN BE READ", "CAN BE SET", "UNIT", "MEANING"]

const rowOf = ({ meaning, name, readable, settable, type, unit }: Description): ReadonlyArray<string> => [
  name,
  type,
  readable.includes("created") ? "always" : `once ${readable[0] ?? ""}`,
  settable.length === 0 ? "-" : `while ${settable.join(", ")}`,
  unit === "" ? "-" : unit,
  meaning
]

const GAP = 2
/** Below this the last column is not worth folding. */
const MIN_MEANING_COLUMNS = 20

/** Folds words into lines of at most `columns`. */
const fold = (text: string, columns: number): ReadonlyArray<string> => {
  const lines: Array<string> = []
  for (const word of text.split(" ")) {
    const last = lines.at(-1)
    if (last === undefined || last.length + 1 + word.length > columns) lines.push(word)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines
}

/** Aligns the columns; on a terminal the last one is folded, so that the others stay readable. */
const table = (rows: ReadonlyArray<ReadonlyArray<string>>, columns: number): string => {
  const widths = HEAD.slice(0, -1).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  const indent = widths.reduce((sum, width) => sum + width + GAP, 0)
  const room = columns - indent < MIN_MEANING_COLUMNS ? Infinity : columns - indent
  return rows.map((row) =>
    widths.map((width, column) => (row[column] ?? "").padEnd(width + GAP)).join("")
    + fold(row.at(-1) ?? "", room).join(`\n${" ".repeat(indent)}`)
  ).join("\n")
}

/** The command. */
export const properties = Command.make(
  "properties",
  { json: Flag.Boolean("json").pipe(Flag.withDefault(false), Flag.withDescription("One JSON array")) },
  ({ json }) =>
    Effect.suspend(() =>
      Console.log(
        json
          ? JSON.stringify(describe, undefined, 2)
          : table([HEAD, ...describe.map(rowOf)], process.stdout.isTTY ? process.stdout.columns : Infinity)
      )
    )
).pipe(
  Command.withDescription("Print the table of properties: name, type, phases, unit and meaning"),
  Command.withExamples([{ command: "blkio properties --json" }])
)
