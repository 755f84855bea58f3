/**
 * Tells test files, at import, whether tests on the real daemon can run: `describe.skipIf(!qsdIsHere)("…", …)`.
 *
 * Without qemu-storage-daemon it says so on stderr, and throws where EFFECT_BLKIO_REQUIRE_QSD=1 says that skipping is
 * not good enough.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect } from "effect"
import { requirement } from "../support/requirement.ts"
import { leavesNothing } from "../support/resources.ts"

// The program was asked by way of sockets, which no test may find open that counts its own.
export const qsdIsHere: boolean = await Effect.runPromise(
  leavesNothing(requirement).pipe(Effect.provide(NodeServices.layer))
)
