/**
 * Goal: a store that a command opens is as the store beneath it is, its capacity of the moment included.
 * Method: real files, opened as commands open them, and resized.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect } from "@effect/vitest"
import { Effect, Fiber, Option, Stream } from "effect"
import * as Path from "node:path"
import type * as BlockStore from "../../src/BlockStore/BlockStore.ts"
import * as Store from "../../src/cli/Store.ts"
import { temporaryDirectory } from "../BlockStore/stores.ts"
import { live } from "../support/resources.ts"

const hasMoreThanTheInterface = (store: BlockStore.BlockStore): store is BlockStore.FileStore =>
  "resize" in store && "nextData" in store

describe("a file", () => {
  live("keeps its name, knows its holes, and tells the capacity it has now", () =>
    Effect.gen(function*() {
      const text = `file:${Path.join(yield* temporaryDirectory, "disk")}`
      const store = yield* Store.openTarget(yield* Store.parse(text), 8192)
      expect(store).toMatchObject({ id: text, capacity: 8192 })
      if (!hasMoreThanTheInterface(store)) throw new Error("the store has lost what a file has")
      expect(yield* store.nextData(0)).toStrictEqual(Option.none())
      const news = yield* Effect.forkChild(Stream.runHead(store.capacityChanges), { startImmediately: true })
      yield* Effect.yieldNow
      yield* store.resize(512)
      expect(store.capacity).toBe(512)
      expect((yield* Effect.flip(store.read(512, [new Uint8Array(512)]))).message).toMatch(/within capacity 512$/)
      expect(yield* Fiber.join(news)).toStrictEqual(Option.some(512))
    }).pipe(Effect.provide(NodeServices.layer)))
})
