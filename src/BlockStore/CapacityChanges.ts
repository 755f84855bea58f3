/**
 * How the capacity of a store that rests on others follows theirs.
 *
 * @since 0.1.0
 */
import * as Stream from "effect/Stream"

/** Emits `capacity()` whenever a change beneath makes it another than it was. */
export const follow = (capacity: () => number, beneath: Stream.Stream<number>): Stream.Stream<number> =>
  Stream.suspend(() => {
    let last = capacity()
    return beneath.pipe(
      Stream.map(capacity),
      Stream.filter((current) => {
        const isNew = current !== last
        last = current
        return isNew
      })
    )
  })
