/**
 * The state behind a device's properties, and the answers to reading and setting them in each phase.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import * as Errno from "../Errno.ts"
import { describe, type DeviceProperties, type SetError, toText } from "./Properties.ts"
import {
  camelCase,
  defaultSettings,
  definitions,
  type DeviceFacts,
  type Phase,
  phases,
  type PropertyDefinition,
  type PropertyName,
  type PropertyType,
  type PropertyValue,
  type RecipeFacts,
  type Settings,
  typeSchemas,
  type Values
} from "./PropertyTable.ts"

/** The properties of one device: what its transport is, what the user chose, what the device said. */
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
      const detail = `${key} = ${inspect(value)}: must be of type ${definition.type}`
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
