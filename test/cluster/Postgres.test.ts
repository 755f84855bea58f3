/**
 * Goal: another database changes nothing of what a cluster does when a runner is killed.
 * Method: as with SQLite, with a PostgreSQL server of the test's own.
 */
import { describe } from "@effect/vitest"
import { postgresIsHere, start } from "./postgres.ts"
import { killedRunner } from "./suite.ts"

describe.skipIf(!postgresIsHere)("with PostgreSQL", () => {
  killedRunner(start)
})
