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
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Errno from "../Errno.ts"
import {
  camelCase,
  defaultSettings,
  definitions,
  type DeviceFacts,
  type Phase,
  type PropertyDefinition,
  type PropertyName,
  type PropertyType,
  type PropertyValue,
  type Readable,
  type RecipeFacts,
  type Settable,
  type Settings,
  typeSchemas,
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

const phases: ReadonlyArray<Phase> = ["created", "connected", "started"]

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

/** The properties of one device: what its transport is, what the user chose, what the device said. @internal */
export class PropertyState {
  readonly #recipe: RecipeFacts
  phase: Phase
  settings: Settings
  device: DeviceFacts | undefined

  constructor(recipe: RecipeFacts, phase: Phase, settings: Settings = defaultSettings, device?: DeviceFacts) {
    this.#recipe = recipe
    this.phase = phase
    this.settings = settings
    this.device = device
  }

  /** The value of a property that the phase allows to be read. */
  value<Name extends PropertyName>(name: Name): PropertyValue<Name> {
    // The table's row of this name gives values of this name's type.
    return definitions.get(name)?.value({
      recipe: this.#recipe,
      settings: this.settings,
      device: this.device
    }) as PropertyValue<Name>
  }

  /** Every property that can be read now. */
  get all(): ReadonlyMap<PropertyName, PropertyValue> {
    return new Map(
      describe.filter(({ readable }) => readable.includes(this.phase)).map(({ name }) => [name, this.value(name)])
    )
  }

  /** These properties as the surface of a phase. */
  in<P extends Phase>(_phase: P): DeviceProperties<P> {
    return {
      get: (name) => Effect.sync(() => this.value(name)),
      // The keys are those of the phase, camel-cased as the type says.
      getAll: Effect.sync(() =>
        Object.fromEntries(Array.from(this.all, ([name, value]) => [camelCase(name), value])) as Values<P>
      ),
      set: (values) => Effect.suspend(() => this.#set(values)),
      getUnknown: (name) => Effect.suspend(() => this.#get(name)),
      getString: (name) => Effect.map(Effect.suspend(() => this.#get(name)), toText),
      setUnknown: (name, value) => Effect.suspend(() => this.#setUnknown(name, value)),
      setString: (name, text) => Effect.suspend(() => this.#setString(name, text))
    }
  }

  #get(name: string): Effect.Effect<PropertyValue, Errno.ENOENT | Errno.ENODEV> {
    const key = name.replaceAll("_", "-")
    const definition = definitions.get(key)
    if (definition === undefined) return unknown("get property", name)
    if (definition.readableFrom === "connected" && this.device === undefined) {
      return new Errno.ENODEV({ operation: "get property", detail: `${key} can be read once the device is connected` })
    }
    return Effect.succeed(this.value(key as PropertyName))
  }

  #set(values: { readonly [key: string]: PropertyValue | undefined }): Effect.Effect<
    void,
    Errno.EINVAL | Errno.EBUSY
  > {
    const changes: Array<readonly [string, PropertyValue]> = []
    for (const { name } of describe) {
      const value = values[camelCase(name)]
      const definition = definitions.get(name)
      if (value === undefined || definition === undefined) continue
      if (definition.settableIn !== this.phase) return late(name, this.phase)
      const wrong = isOfType[definition.type](value) ? breaks(definition, value) : `must be of type ${definition.type}`
      if (wrong !== undefined) return invalid(name, value, wrong)
      changes.push([name, value])
    }
    this.#apply(changes)
    return Effect.void
  }

  #setUnknown(name: string, value: unknown): Effect.Effect<void, SetError> {
    const key = name.replaceAll("_", "-")
    const definition = definitions.get(key)
    if (definition === undefined) return unknown("set property", name)
    if (!isOfType[definition.type](value)) {
      const detail = `${key} = ${JSON.stringify(value)}: must be of type ${definition.type}`
      return new Errno.ENOTTY({ operation: "set property", detail })
    }
    return Effect.flatMap(this.#settable(key, definition), () => this.#checkAndApply(key, definition, value))
  }

  #setString(name: string, text: string): Effect.Effect<void, Exclude<SetError, Errno.ENOTTY>> {
    const key = name.replaceAll("_", "-")
    const definition = definitions.get(key)
    if (definition === undefined) return unknown("set property", name)
    return Effect.flatMap(this.#settable(key, definition), () => {
      const value = parse(definition.type, text)
      return value === undefined
        ? invalid(key, text, `must be ${typeRules[definition.type]}`)
        : this.#checkAndApply(key, definition, value)
    })
  }

  #settable(
    name: string,
    definition: PropertyDefinition
  ): Effect.Effect<void, Errno.EACCES | Errno.ENODEV | Errno.EBUSY> {
    if (definition.settableIn === undefined) {
      return new Errno.EACCES({ operation: "set property", detail: `${name} can only be read` })
    }
    const due = phases.indexOf(definition.settableIn) - phases.indexOf(this.phase)
    if (due > 0) {
      const detail = `${name} can be set once the device is ${definition.settableIn}`
      return new Errno.ENODEV({ operation: "set property", detail })
    }
    return due < 0 ? late(name, this.phase) : Effect.void
  }

  #checkAndApply(
    name: string,
    definition: PropertyDefinition,
    value: PropertyValue
  ): Effect.Effect<void, Errno.EINVAL> {
    const wrong = breaks(definition, value)
    if (wrong !== undefined) return invalid(name, value, wrong)
    this.#apply([[name, value]])
    return Effect.void
  }

  #apply(changes: ReadonlyArray<readonly [string, PropertyValue]>): void {
    this.settings = { ...this.settings, ...Object.fromEntries(changes) }
  }
}

const unknown = (operation: string, name: string): Errno.ENOENT =>
  new Errno.ENOENT({ operation, detail: `there is no property ${JSON.stringify(name)}` })

const late = (name: string, phase: Phase): Errno.EBUSY =>
  new Errno.EBUSY({ operation: "set property", detail: `${name} cannot be set any more: the device is ${phase}` })

const invalid = (name: string, value: PropertyValue, rule: string): Errno.EINVAL =>
  new Errno.EINVAL({ operation: "set property", detail: `${name} = ${value}: ${rule}` })

const typeRules: Record<PropertyType, string> = {
  string: "text",
  bool: "\"true\" or \"false\"",
  int: "a signed 32-bit integer",
  uint64: "an unsigned 64-bit integer of at most 2^53 - 1"
}

const isOfType: Record<PropertyType, (value: unknown) => value is PropertyValue> = {
  string: Schema.is(typeSchemas.string),
  bool: Schema.is(typeSchemas.bool),
  int: Schema.is(typeSchemas.int),
  uint64: Schema.is(typeSchemas.uint64)
}

/** The rule that a value of the right type breaks, if any. */
const breaks = ({ rule }: PropertyDefinition, value: PropertyValue): string | undefined => {
  if (rule === undefined) return undefined
  const decoded = Schema.decodeUnknownResult(rule)(value)
  return Result.isFailure(decoded) ? decoded.failure.message : undefined
}

const parse = (type: PropertyType, text: string): PropertyValue | undefined => {
  if (type === "string") return text
  if (type === "bool") return text === "true" ? true : text === "false" ? false : undefined
  const value = /^-?\d+$/u.test(text) ? Number(text) : undefined
  return isOfType[type](value) ? value : undefined
}
