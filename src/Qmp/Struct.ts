/**
 * Structs of QMP, whose fields have the names of TypeScript here and those of QMP on the wire: `nodeName` is `node-name`.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The Schema of a struct of QMP.
 *
 * @category models
 * @since 0.1.0
 */
export interface Struct<Fields extends Schema.Struct.Fields>
  extends Schema.Codec<Schema.Struct.Type<Fields>, Schema.JsonObject>
{}

/** Makes the Schema of a struct of QMP. */
export const struct = <const Fields extends Schema.Struct.Fields>(fields: Fields): Struct<Fields> => {
  const names = Object.fromEntries(
    Object.keys(fields).map((name) => [name, name.replaceAll(/[A-Z]/gu, (letter) => `-${letter.toLowerCase()}`)])
  )
  const plain: Schema.Struct<Schema.Struct.Fields> = Schema.Struct(fields)
  // Names on the wire are made when the program runs, so the compiler cannot know them.
  return plain.pipe(Schema.encodeKeys(names)) as unknown as Struct<Fields>
}
