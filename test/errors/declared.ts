/**
 * The tags that the public API declares, read from its types: of every Effect, Stream and Layer that an export of the package
 * is, gives or succeeds with.
 */
import type { Effect, Layer, Stream } from "effect"
import type * as Errno from "../../src/Errno.ts"
import type * as Api from "../../src/index.ts"

type Plain = string | number | bigint | boolean | symbol | null | undefined | ArrayBufferView | ArrayBufferLike

/** A step into each part; `Steps` is as many as lie between an export and the last error below it. */
type TagsOf<T, Steps extends ReadonlyArray<unknown>> = Steps extends readonly [unknown, ...infer Rest]
  ? 0 extends 1 & T ? never // any
  : T extends Plain ? never
  : T extends Errno.Any ? T["_tag"]
  : T extends Effect.Effect<infer A, infer E, infer _R> ? TagsOf<A | E, Rest>
  : T extends Stream.Stream<infer A, infer E, infer _R> ? TagsOf<A | E, Rest>
  : T extends Layer.Layer<infer _A, infer E, infer _R> ? TagsOf<E, Rest>
  : T extends { readonly Service: infer Service } ? TagsOf<Service, Rest>
  : T extends (...args: Array<never>) => infer Result ? TagsOf<Result, Rest>
  : T extends ReadonlyArray<infer Item> ? TagsOf<Item, Rest>
  : T extends object ? { [K in keyof T]-?: TagsOf<T[K], Rest> }[keyof T]
  : never
  : never

/** Every tag that a caller of the API may have to handle. */
export type DeclaredTag = TagsOf<Omit<typeof Api, "Errno">, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]>
