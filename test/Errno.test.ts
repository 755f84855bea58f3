/**
 * Goal: the errno errors are one consistent table: number, name, class, tag and Schema of each agree with each other and
 * with Linux, whose numbers `node:os` knows.
 * Method: every claim is checked for every class in the table; only the set of retryable errors is written out by hand.
 */
import { describe, expect, it } from "@effect/vitest"
import { Effect, Exit, Schema } from "effect"
import { constants } from "node:os"
import * as Errno from "../src/Errno.ts"

const classes = [...Errno.byNumber.values()]
const numberOf: ReadonlyMap<string, number> = new Map(Object.entries(constants.errno))
const fields = { operation: "read", detail: "the device said no" }
const full: Errno.ErrnoFields = {
  ...fields,
  offset: 512,
  length: 4096,
  queue: 1,
  syscall: "readv",
  path: "/run/disk.sock"
}

const retryable = ["ENOTCONN", "ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIME", "ETIMEDOUT", "EAGAIN", "EINTR"]

describe("Errno", () => {
  describe("the table", () => {
    it("holds every class of the module, under its own number, once", () => {
      const exported = Object.entries(Errno).filter(([name]) => /^E[A-Z0-9]+$/.test(name))
      expect(exported.length).toBe(Errno.byNumber.size)
      for (const [name, errorClass] of exported) {
        expect(classes).toContain(errorClass)
        expect(errorClass).toHaveProperty("identifier", name)
      }
      for (const [number, errorClass] of Errno.byNumber) expect(errorClass.errno).toBe(number)
    })

    it.each(classes.map((errorClass) => [errorClass.identifier, errorClass] as const))("%s is Linux's", (name, one) => {
      // Node knows them all but one.
      const number = numberOf.get(name)
      if (number === undefined) expect([["ESHUTDOWN", 108]]).toContainEqual([name, one.errno])
      else expect(one.errno).toBe(number)
    })

    it("gives number 95 the one tag ENOTSUP", () => {
      expect(constants.errno.EOPNOTSUPP).toBe(95)
      expect(Errno.byNumber.get(95)).toBe(Errno.ENOTSUP)
    })
  })

  describe.each(classes.map((errorClass) => [errorClass.identifier, errorClass] as const))("%s", (name, errorClass) => {
    it("is an Error that says what it is", () => {
      const error = new errorClass(fields)
      expect(error).toBeInstanceOf(Error)
      expect(error).toBeInstanceOf(errorClass)
      expect(error._tag).toBe(name)
      expect(error.name).toBe(name)
      expect(error.errno).toBe(errorClass.errno)
      expect(error.isRetryable).toBe(retryable.includes(name))
      expect(Object.keys(error)).not.toContain("offset")
    })

    it.effect("is yielded, and caught by its tag", () =>
      Effect.gen(function*() {
        const error: Errno.Any = new errorClass(full)
        const failing: Effect.Effect<never, Errno.Any> = Effect.gen(function*() {
          return yield* error
        })
        expect(yield* Effect.exit(failing)).toStrictEqual(Exit.fail(error))
        const caught = yield* failing.pipe(Effect.catchTag(error._tag, (found) => Effect.succeed(found)))
        expect(caught).toBe(error)
      }))

    it.effect("is its own Schema, there and back", () =>
      Effect.gen(function*() {
        // One class at a time: a union of all their types is beyond what Schema's types take.
        const schema: Schema.Codec<Errno.Any, unknown> = errorClass
        const json = Schema.toCodecJson(schema)
        const error: Errno.Any = new errorClass({ ...full, cause: new Error("below") })
        const encoded = yield* Schema.encodeEffect(json)(error)
        const decoded = yield* Schema.decodeUnknownEffect(json)(JSON.parse(JSON.stringify(encoded)))
        expect(decoded).toBeInstanceOf(errorClass)
        expect(decoded.message).toBe(error.message)
        expect(decoded.errno).toBe(error.errno)
        expect(decoded).toMatchObject(full)
        expect(decoded.cause).toBeInstanceOf(Error)
        expect(decoded.cause).toHaveProperty("message", "below")

        const bare = yield* Schema.encodeEffect(json)(new errorClass(fields))
        expect(bare).toStrictEqual({ _tag: name, ...fields })
        const wrongTag = yield* Effect.exit(Schema.decodeUnknownEffect(json)({ ...fields, _tag: "EWRONG" }))
        expect(Exit.isFailure(wrongTag)).toBe(true)
      }))
  })

  describe("the message", () => {
    it.each<[Partial<Errno.ErrnoFields>, string]>([
      [{}, "read: the device said no"],
      [{ path: "/run/disk.sock" }, "read /run/disk.sock: the device said no"],
      [{ offset: 0 }, "read at 0: the device said no"],
      [{ length: 0 }, "read of 0 bytes: the device said no"],
      [{ queue: 0 }, "read on queue 0: the device said no"],
      [{ syscall: "readv" }, "read: the device said no (readv)"],
      [full, "read /run/disk.sock at 512 of 4096 bytes on queue 1: the device said no (readv)"]
    ])("of %o", (some, message) => {
      const error = new Errno.EIO({ ...fields, ...some })
      expect(error.message).toBe(message)
      expect(String(error)).toBe(`EIO: ${message}`)
      expect(error.stack).toContain(message)
    })
  })

  it("is retryable for these and no others", () => {
    const found = classes.filter((errorClass) => new errorClass(fields).isRetryable)
    expect(found.map((errorClass) => errorClass.identifier).toSorted()).toStrictEqual(retryable.toSorted())
  })

  describe("fromNumber", () => {
    it("gives each class of the set for its number", () => {
      for (const [number, errorClass] of Errno.byNumber) {
        const error = Errno.fromNumber(number, [errorClass.identifier as Errno.Tag], full)
        expect(error).toBeInstanceOf(errorClass)
        expect(error).toMatchObject(full)
        expect(error.cause).toBeUndefined()
      }
    })

    it("keeps the cause it was given", () => {
      const cause = new Error("below")
      expect(Errno.fromNumber(2, ["ENOENT"], { ...fields, cause }).cause).toBe(cause)
    })

    it.each([
      [111, "ECONNREFUSED (errno 111)"],
      [37, "ENOLCK (errno 37)"],
      [0, "unknown errno (errno 0)"],
      [-2, "unknown errno (errno -2)"],
      [9999, "unknown errno (errno 9999)"]
    ])("gives EIO for %i, which is outside the set, and names it in the cause", (number, named) => {
      const below = new Error("below")
      const error = Errno.fromNumber(number, ["ENOENT"], { ...full, cause: below })
      expect(error).toBeInstanceOf(Errno.EIO)
      expect(error).toMatchObject(full)
      expect(error.cause).toBeInstanceOf(Error)
      expect(error.cause).toHaveProperty("message", named)
      expect((error.cause as Error).cause).toBe(below)
    })

    it("knows EIO by itself only where it is in the set", () => {
      expect(Errno.fromNumber(5, ["EIO"], fields).cause).toBeUndefined()
      expect(Errno.fromNumber(5, ["ENOENT"], fields).cause).toHaveProperty("message", "EIO (errno 5)")
    })
  })
})
