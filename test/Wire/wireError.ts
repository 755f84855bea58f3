/**
 * Runs what must throw a WireError, and gives its message.
 */
import { WireError } from "../../src/Wire/WireError.ts"

export const wireError = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    if (error instanceof WireError) return error.message
    throw error
  }
  throw new Error("expected a WireError, and nothing was thrown")
}
