/** All checks, in the order in which they are run. */
import type { Check } from "./Check.ts"
import { completionsCheck } from "./completions.ts"
import { devicesCheck, handshakesCheck } from "./connections.ts"
import { messagesCheck } from "./messages.ts"
import { ringsCheck } from "./rings.ts"

export const checks: ReadonlyArray<Check> = [
  ringsCheck(),
  completionsCheck(),
  messagesCheck(),
  handshakesCheck(),
  devicesCheck()
]
