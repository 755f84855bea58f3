/**
 * What a program and the thread that serves its disk say to each other.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type { FileOptions } from "../BlockStore/FileStore.ts"
import type * as Export from "../Export/Export.ts"

/** The disk that a thread is to make and serve. */
export type Disk =
  | { readonly _tag: "memory"; readonly capacity: number; readonly blockSize: number }
  | ({ readonly _tag: "file" } & FileOptions)

/** What a thread is started with. */
export interface Order {
  readonly disk: Disk
  readonly export: Export.Options
}

/** What the thread reports: once that it serves or why it cannot, and at the end that it has closed what it had. */
export const Report = Schema.Union([
  Schema.TaggedStruct("serving", {}),
  Schema.TaggedStruct("failed", {
    errno: Schema.Int,
    operation: Schema.String,
    detail: Schema.String,
    path: Schema.optionalKey(Schema.String)
  }),
  Schema.TaggedStruct("closed", {})
])

/** What a thread reports. */
export type Report = typeof Report.Type
