/**
 * A store whose operations show as spans.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Errno from "../Errno.ts"
import { around } from "./Around.ts"
import type { BlockStore } from "./Interface.ts"

/**
 * Makes spans of a sample of a store's operations: `BlockStore.read` and so on, with the attributes `store`, `offset` and
 * `length`. A span costs microseconds, as much as a fast disk takes for a request. `sample` is the share that gets one, from
 * 0 to 1, else EINVAL: evenly spread, not by chance, so that 0.01 is every hundredth.
 *
 * @category combinators
 * @since 0.1.0
 */
export const traced: {
  (options: { readonly sample: number }): (self: BlockStore) => Effect.Effect<BlockStore, Errno.EINVAL>
  (self: BlockStore, options: { readonly sample: number }): Effect.Effect<BlockStore, Errno.EINVAL>
} = dual(
  2,
  (self: BlockStore, { sample }: { readonly sample: number }): Effect.Effect<BlockStore, Errno.EINVAL> =>
    Effect.suspend(() => {
      if (!(sample >= 0 && sample <= 1)) {
        return new Errno.EINVAL({ operation: "traced", detail: `sample ${sample} must be from 0 to 1` })
      }
      let seen = 0
      let traced = 0
      return Effect.succeed(around(self, {
        name: "traced",
        run: ({ length, name, offset }, effect) =>
          Effect.suspend(() => {
            seen++
            // Counted rather than added up: a sum of many small shares drifts.
            if (Math.floor(seen * sample) === traced) return effect
            traced++
            return Effect.withSpan(effect, `BlockStore.${name}`, { attributes: { store: self.id, offset, length } })
          })
      }))
    })
)
