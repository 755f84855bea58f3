/**
 * News of a capacity: of the store that is resized itself, to whoever wants to know, and of a store that rests on others,
 * which follows theirs.
 *
 * A subscriber hears of what changes after it came. One that falls far behind misses the oldest news, never the newest:
 * what counts is the capacity there is.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PubSub from "effect/PubSub"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"

/** Subscribers that fall behind by more than this miss the oldest, as they do of a device. */
const CHANGES_KEPT = 16

/** Where a store that is resized tells of it. Takes no Scope: what it holds, it holds for subscribers that are running. */
export interface CapacityNews {
  readonly tell: (capacity: number) => Effect.Effect<void>
  readonly changes: Stream.Stream<number>
  /** Ends the stream, of those who come later as well. */
  readonly end: Effect.Effect<void>
}

export const makeNews: Effect.Effect<CapacityNews> = Effect.map(
  PubSub.sliding<Take.Take<number>>(CHANGES_KEPT),
  (news) => ({
    tell: (capacity) => Effect.asVoid(PubSub.publish(news, [capacity])),
    changes: Stream.fromPubSubTake(news),
    end: Effect.asVoid(PubSub.end(news, Exit.void))
  })
)

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
