/**
 * A transport to a device that says of itself what `test/Properties/facts.ts` has, and answers requests only when a test tells it
 * to.
 */
import { type FakeTransport, make, type Options } from "../../src/testing/FakeTransport.ts"
import { config } from "../Properties/facts.ts"

export const fakeConnection = (options: Options = {}): FakeTransport =>
  make({ ...options, answers: false, config: { ...config, ...options.config } })
