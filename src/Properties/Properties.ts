/**
 * The properties of a device: reading, setting and describing them.
 *
 * Programs use camel-cased keys that are checked by type for the device's phase. Names that come from outside, from a
 * command line or a file, are taken as text or as unknown values and answered with libblkio's errnos; the state is checked
 * before the value:
 *
 * | what is wrong | errno |
 * |---|---|
 * | no such property | ENOENT |
 * | a value of another type | ENOTTY |
 * | the property cannot be set | EACCES |
 * | too early in the device's life | ENODEV |
 * | too late in it | EBUSY |
 * | the value breaks a rule | EINVAL |
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Errno from "../Errno.ts"
import {
  definitions,
  type Phase,
  phases,
  type PropertyName,
  type PropertyType,
  type PropertyValue,
  type Readable,
  type Settable,
  type Values
} from "./PropertyTable.ts"

export type {
  CamelCase,
  Phase,
  PropertyName,
  PropertyType,
  PropertyValue,
  Readable,
  Settable,
  Values
} from "./PropertyTable.ts"

/**
 * One row of the property table, as {@link describe} gives it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Description {
  readonly name: PropertyName
  readonly type: PropertyType
  readonly unit: string
  /** The phases in which it can be read. */
  readonly readable: ReadonlyArray<Phase>
  /** The phases in which it can be set. */
  readonly settable: ReadonlyArray<Phase>
  readonly meaning: string
}

/**
 * The property table: name, type, unit, phases and meaning of each.
 *
 * @category models
 * @since 0.1.0
 */
export const describe: ReadonlyArray<Description> = Array.from(definitions, ([name, definition]) => ({
  // The table's keys are the property names.
  name: name as PropertyName,
  type: definition.type,
  unit: definition.unit,
  readable: phases.slice(phases.indexOf(definition.readableFrom)),
  settable: definition.settableIn === undefined ? [] : [definition.settableIn],
  meaning: definition.meaning
}))

/**
 * What setting a property by a name from outside may fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type SetError = Errno.ENOENT | Errno.ENOTTY | Errno.EACCES | Errno.ENODEV | Errno.EBUSY | Errno.EINVAL

/**
 * The properties of a device in a phase of its life.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceProperties<P extends Phase> {
  /** Reads one property. */
  readonly get: <Name extends Readable<P>>(name: Name) => Effect.Effect<PropertyValue<Name>>
  /** Reads all that can be read in this phase. */
  readonly getAll: Effect.Effect<Values<P>>
  /**
   * Sets properties that this phase allows; none of them where one value breaks its rule (EINVAL). EBUSY: the device has
   * been started meanwhile.
   */
  readonly set: (values: Settable<P>) => Effect.Effect<void, Errno.EINVAL | Errno.EBUSY>
  /** Reads a property by a name from outside. ENODEV: not readable before the device is connected. */
  readonly getUnknown: (name: string) => Effect.Effect<PropertyValue, Errno.ENOENT | Errno.ENODEV>
  /** Reads a property as text: `true`, `4096`, and 18446744073709551615 for no limit. */
  readonly getString: (name: string) => Effect.Effect<string, Errno.ENOENT | Errno.ENODEV>
  /** Sets a property by a name and a value from outside. `_` in a name stands for `-`. */
  readonly setUnknown: (name: string, value: unknown) => Effect.Effect<void, SetError>
  /** Sets a property from text (`num-queues`, `4`), as a command line has it. */
  readonly setString: (name: string, text: string) => Effect.Effect<void, Exclude<SetError, Errno.ENOTTY>>
}

/**
 * The properties of a connected device as a service: for programs that inspect a device and never start it.
 *
 * @category services
 * @since 0.1.0
 */
export class Properties
  extends Context.Service<Properties, DeviceProperties<"connected">>()("effect-blkio/Properties")
{}

/** The text of an unlimited uint64. */
const UNLIMITED = "18446744073709551615"

/**
 * A property's value as text, as libblkio writes it.
 *
 * @category converting
 * @since 0.1.0
 */
export const toText = (value: PropertyValue): string => value === Infinity ? UNLIMITED : String(value)

/**
 * Properties as a JSON object, keyed by libblkio's names. "No limit" is the string "18446744073709551615".
 *
 * @category converting
 * @since 0.1.0
 */
export const toJson = (properties: ReadonlyMap<PropertyName, PropertyValue>): Record<string, PropertyValue> =>
  Object.fromEntries(Array.from(properties, ([name, value]) => [name, value === Infinity ? UNLIMITED : value]))
