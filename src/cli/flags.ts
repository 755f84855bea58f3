/** Flags that several commands have. */
import { Flag } from "effect/cli"

const isPositive = (n: number) => Number.isSafeInteger(n) && n > 0

/** One JSON object on stdout, and no progress. */
export const json: Flag.Flag<boolean> = Flag.Boolean("json").pipe(
  Flag.withDefault(false),
  Flag.withDescription("One JSON object, and no progress")
)

/** Chunks in flight. */
export const depth: Flag.Flag<number> = Flag.Int("depth").pipe(
  Flag.withDefault(8),
  Flag.filter(isPositive, () => "a positive whole number"),
  Flag.withDescription("Chunks in flight at once")
)

/** Bytes of each chunk. */
export const blocksize: Flag.Flag<number> = Flag.Int("blocksize").pipe(
  Flag.withDefault(2 ** 20),
  Flag.filter(isPositive, () => "a positive number of bytes"),
  Flag.withMetavar("BYTES"),
  Flag.withDescription("Bytes of each chunk")
)
