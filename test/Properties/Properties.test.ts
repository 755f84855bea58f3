/**
 * Goal: whatever is asked of a property by a name from outside is answered as libblkio's errnos say, in the order name, type,
 * access, phase, value; and values cross the border to text and JSON without loss.
 *
 * Method: the whole matrix of property x phase x question, with the expected errno computed here from a copy of the access
 * columns of the specification and not from the table under test.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import {
  describe as descriptions,
  type Phase,
  type PropertyName,
  type PropertyType,
  type PropertyValue,
  toJson,
  toText
} from "../../src/Properties/Properties.ts"
import { PropertyState } from "../../src/Properties/PropertyState.ts"
import { device, recipe } from "./facts.ts"

const phases: ReadonlyArray<Phase> = ["created", "connected", "started"]

const stateIn = (phase: Phase) =>
  new PropertyState(recipe, phase, undefined, phase === "created" ? undefined : device(["MQ", "VERSION_1"]))

const surfaceIn = (phase: Phase) => stateIn(phase).in(phase)

/** What libblkio's manual says: type, and the phase in which the property can be set. */
const documented: Record<PropertyName, readonly [PropertyType, Phase?]> = {
  "driver": ["string"],
  "path": ["string"],
  "fd": ["int"],
  "read-only": ["bool", "created"],
  "device-read-only": ["bool"],
  "num-queues": ["int", "connected"],
  "num-poll-queues": ["int", "connected"],
  "queue-size": ["int", "connected"],
  "max-queues": ["int"],
  "max-queue-size": ["int"],
  "can-add-queues": ["bool"],
  "supports-poll-queues": ["bool"],
  "capacity": ["uint64"],
  "can-grow": ["bool"],
  "request-alignment": ["int"],
  "optimal-io-alignment": ["int"],
  "optimal-io-size": ["int"],
  "min-io-size": ["int"],
  "topology-alignment-offset": ["int"],
  "discard-alignment": ["int"],
  "discard-alignment-offset": ["int"],
  "max-discard-len": ["uint64"],
  "max-write-zeroes-len": ["uint64"],
  "max-segment-len": ["int"],
  "max-segments": ["int"],
  "max-transfer": ["int"],
  "buf-alignment": ["int"],
  "optimal-buf-alignment": ["int"],
  "supports-fua-natively": ["bool"],
  "flush-needed": ["bool"],
  "needs-mem-regions": ["bool"],
  "needs-mem-region-fd": ["bool"],
  "may-pin-mem-regions": ["bool"],
  "mem-region-alignment": ["uint64"],
  "max-mem-regions": ["uint64"]
}
const names = Object.keys(documented) as Array<PropertyName>

/** These have no value before a connection; the others have defaults. */
const needsConnection: ReadonlyArray<string> = ["capacity", "max-queues", "max-mem-regions"]

const rightValue: Record<PropertyType, PropertyValue> = { string: "x", bool: true, int: 2, uint64: 4096 }
const wrongValues: Record<PropertyType, ReadonlyArray<unknown>> = {
  string: [1, true, null, undefined, ["x"]],
  bool: ["true", 1, 0, null, undefined],
  int: ["2", 1.5, NaN, Infinity, 2 ** 31, -(2 ** 31) - 1, 2n, null, undefined],
  uint64: ["2", -1, 0.5, NaN, -Infinity, 2 ** 53, 2n, undefined]
}
const badText: Record<PropertyType, ReadonlyArray<string>> = {
  string: [],
  bool: ["", "True", "yes", "1", " true"],
  int: ["", "x", "1.5", "1e3", "0x10", " 1", "1 ", "2147483648", "-2147483649", "∞", "Infinity"],
  uint64: []
}

const outcome = (effect: Effect.Effect<unknown, { readonly _tag: string }>) =>
  Effect.runSync(Effect.match(effect, { onFailure: ({ _tag }) => _tag, onSuccess: () => "set" }))

/** What setting answers as far as access and phase decide. */
const access = (name: PropertyName, phase: Phase): "EACCES" | "ENODEV" | "EBUSY" | "set" => {
  const [, settable] = documented[name]
  if (settable === undefined) return "EACCES"
  const due = phases.indexOf(settable) - phases.indexOf(phase)
  return due > 0 ? "ENODEV" : due < 0 ? "EBUSY" : "set"
}

/** What setting a bad value answers. */
const refusal = (name: PropertyName, phase: Phase): string => {
  const allowed = access(name, phase)
  return allowed === "set" ? "EINVAL" : allowed
}

describe("the matrix", () => {
  it("has every property", () => {
    expect(descriptions.map(({ name }) => name).toSorted()).toStrictEqual(names.toSorted())
  })

  describe.each(phases)("%s", (phase) => {
    it.each(names)("get %s", (name) => {
      const properties = surfaceIn(phase)
      if (phase === "created" && needsConnection.includes(name)) {
        expect(outcome(properties.getUnknown(name))).toBe("ENODEV")
        expect(outcome(properties.getString(name))).toBe("ENODEV")
      } else {
        const value = Effect.runSync(properties.getUnknown(name))
        expect(typeof value).toBe(
          { string: "string", bool: "boolean", int: "number", uint64: "number" }[
            documented[name][0]
          ]
        )
        expect(Effect.runSync(properties.getString(name))).toBe(String(value))
      }
    })

    it.each(names)("set %s to a value of its type", (name) => {
      expect(outcome(surfaceIn(phase).setUnknown(name, rightValue[documented[name][0]]))).toBe(access(name, phase))
    })

    it.each(names)("set %s to a value of another type: ENOTTY before all else", (name) => {
      const properties = surfaceIn(phase)
      const values = wrongValues[documented[name][0]]
      expect(values.map((value) => outcome(properties.setUnknown(name, value)))).toStrictEqual(
        values.map(() => "ENOTTY")
      )
    })

    it.each(names)("set %s from text", (name) => {
      const [type] = documented[name]
      const text = toText(rightValue[type])
      expect(outcome(surfaceIn(phase).setString(name, text))).toBe(access(name, phase))
    })

    it.each(names)("set %s from text that is none of its type: phase first, then EINVAL", (name) => {
      const texts = badText[documented[name][0]]
      expect(texts.map((text) => outcome(surfaceIn(phase).setString(name, text)))).toStrictEqual(
        texts.map(() => refusal(name, phase))
      )
    })

    it.each(names)("set %s to what breaks its rule: phase first, then EINVAL, and nothing changes", (name) => {
      const state = stateIn(phase)
      const before = state.settings
      const values = name === "queue-size" ? [0, -1, 3, 255, 65536, 2 ** 30] : name.startsWith("num-") ? [-1] : []
      const expected = values.map(() => refusal(name, phase))
      const properties = state.in(phase)
      expect(values.map((value) => outcome(properties.setUnknown(name, value)))).toStrictEqual(expected)
      expect(values.map((value) => outcome(properties.setString(name, String(value))))).toStrictEqual(expected)
      expect(state.settings).toBe(before)
    })
  })

  it.each(["", "foo", "Capacity", "num queues", "numQueues", "__proto__", "constructor", "toString", "queue-size "])(
    "%j is no property",
    (name) => {
      for (const phase of phases) {
        const properties = surfaceIn(phase)
        expect(outcome(properties.getUnknown(name))).toBe("ENOENT")
        expect(outcome(properties.getString(name))).toBe("ENOENT")
        expect(outcome(properties.setUnknown(name, Symbol("any")))).toBe("ENOENT")
        expect(outcome(properties.setString(name, ""))).toBe("ENOENT")
      }
    }
  )

  it("messages name the property, the value and the rule", () => {
    const connected = surfaceIn("connected")
    const message = (effect: Effect.Effect<unknown, Error>) => Effect.runSync(Effect.flip(effect)).message
    expect(message(connected.setString("queue-size", "100"))).toBe(
      "set property: queue-size = 100: must be a power of two"
    )
    expect(message(connected.setUnknown("queue-size", 65536))).toBe(
      "set property: queue-size = 65536: must be at most 32768"
    )
    expect(message(connected.setUnknown("num-queues", "4"))).toBe(
      "set property: num-queues = '4': must be of type int"
    )
    expect(message(connected.setString("capacity", "1"))).toBe("set property: capacity can only be read")
    expect(message(connected.setString("read-only", "true"))).toBe(
      "set property: read-only cannot be set any more: the device is connected"
    )
  })
})

describe("names", () => {
  it("may have _ for -", () => {
    const connected = surfaceIn("connected")
    expect(Effect.runSync(connected.getUnknown("request_alignment"))).toBe(512)
    Effect.runSync(connected.setString("num_poll_queues", "3"))
    Effect.runSync(connected.setUnknown("queue_size", 64))
    expect(Effect.runSync(connected.getAll)).toMatchObject({ numPollQueues: 3, queueSize: 64 })
  })
})

describe("camel-cased access", () => {
  it("reads one and all", () => {
    expect(Effect.runSync(surfaceIn("connected").get("max-queues"))).toBe(4)
    expect(Object.keys(Effect.runSync(surfaceIn("started").getAll))).toHaveLength(names.length)
    expect(Object.keys(Effect.runSync(surfaceIn("created").getAll))).toHaveLength(names.length - needsConnection.length)
  })

  it("sets several or none", () => {
    const connected = surfaceIn("connected")
    Effect.runSync(connected.set({ numQueues: 2, queueSize: 128 }))
    expect(Effect.runSync(connected.getAll)).toMatchObject({ numQueues: 2, queueSize: 128 })
    expect(Effect.runSync(Effect.flip(connected.set({ numQueues: 3, queueSize: 100 })))._tag).toBe("EINVAL")
    expect(Effect.runSync(Effect.flip(connected.set({ numQueues: 1.5 })))._tag).toBe("EINVAL")
    expect(Effect.runSync(connected.getAll)).toMatchObject({ numQueues: 2, queueSize: 128 })
  })

  it("through the surface of a connected device is EBUSY once it was started", () => {
    const state = stateIn("connected")
    const connected = state.in("connected")
    state.phase = "started"
    expect(outcome(connected.set({ numQueues: 2 }))).toBe("EBUSY")
    expect(outcome(connected.set({}))).toBe("set")
  })
})

describe("text and JSON", () => {
  it.each<[PropertyValue, string]>([
    [true, "true"],
    [false, "false"],
    [0, "0"],
    [-1, "-1"],
    [2 ** 53 - 1, "9007199254740991"],
    ["/run/a disk.sock", "/run/a disk.sock"],
    [Infinity, "18446744073709551615"]
  ])("%o is %s", (value, text) => {
    expect(toText(value)).toBe(text)
  })

  it("JSON is keyed by libblkio's names, and has a string for no limit", () => {
    const state = new PropertyState(recipe, "connected", undefined, { ...device([]), maxRegions: Infinity })
    const json = toJson(state.all)
    expect(Object.keys(json)).toStrictEqual(descriptions.map(({ name }) => name))
    expect(JSON.parse(JSON.stringify(json))).toMatchObject({
      "driver": "virtio-blk-vhost-user",
      "fd": -1,
      "read-only": false,
      "capacity": 4194304,
      "max-mem-regions": "18446744073709551615"
    })
    expect(Effect.runSync(state.in("connected").getString("max-mem-regions"))).toBe("18446744073709551615")
  })

  it("what was read as text can be set as text", () => {
    const state = stateIn("connected")
    for (const name of ["num-queues", "num-poll-queues", "queue-size"]) {
      Effect.runSync(
        Effect.flatMap(state.in("connected").getString(name), (text) => state.in("connected").setString(name, text))
      )
    }
    expect(state.settings).toStrictEqual(stateIn("connected").settings)
  })
})

describe("each description", () => {
  it.each(descriptions.map((description) => [description.name, description] as const))("%s", (name, description) => {
    const [type, settable] = documented[name]
    expect(description).toMatchObject({
      type,
      settable: settable === undefined ? [] : [settable],
      readable: needsConnection.includes(name) ? ["connected", "started"] : phases
    })
    expect(description.meaning).toMatch(/^[A-Z].*\.$/u)
  })
})
