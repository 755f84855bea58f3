/**
 * A slow store, for tests of what waits for one.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { before } from "./Around.ts"
import type { BlockStore } from "./Interface.ts"

/**
 * How long operations wait, by kind; what is left out does not wait. `write` is for write-zeroes and discards too.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delays {
  readonly read?: Duration.Input
  readonly write?: Duration.Input
  readonly flush?: Duration.Input
}

/**
 * Makes every operation wait, all alike or by kind, before the store does it. Operations wait side by side. One whose range
 * is wrong fails at once.
 *
 * @category combinators
 * @since 0.1.0
 */
export const delay: {
  (delays: Duration.Input | Delays): (self: BlockStore) => BlockStore
  (self: BlockStore, delays: Duration.Input | Delays): BlockStore
} = dual(2, (self: BlockStore, delays: Duration.Input | Delays): BlockStore => {
  const { flush, read, write } = isDelays(delays) ? delays : { read: delays, write: delays, flush: delays }
  const wait = (duration: Duration.Input | undefined) => duration === undefined ? Effect.void : Effect.sleep(duration)
  const waits = {
    read: wait(read),
    write: wait(write),
    writeZeroes: wait(write),
    discard: wait(write),
    flush: wait(flush)
  }
  return before(self, "delay", ({ name }) => waits[name])
})

const kinds = ["read", "write", "flush"]

/** A Duration may be written as an object, too; none has a key of {@link Delays}. */
const isDelays = (delays: Duration.Input | Delays): delays is Delays =>
  typeof delays === "object" && !Duration.isDuration(delays) && kinds.some((kind) => kind in delays)
