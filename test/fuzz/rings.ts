/**
 * Both rings against a plain model, from any index on, with the device's side written from the specification at the other end.
 *
 * The model is what a ring is for: an array of requests the device has not seen, one of those it has, one of answers that were not
 * taken. A step is one call of the ring or one look of the device, chosen by chance; after each, the ring has to say what the
 * model says, and what the device finds has to be what was put.
 */
import { isDeepStrictEqual } from "node:util"
import { slotOf, statusOf } from "../../src/Queue/DriverRing.ts"
import { make, type SeededRandom } from "../../src/SeededRandom.ts"
import { RequestType } from "../../src/Wire/VirtioBlk.ts"
import type { Chain } from "../../src/testing/DeviceRing.ts"
import { type Check, fail, type Tally } from "./Check.ts"
import { choose, type Rings, rings } from "./ringAt.ts"

const MOST_STEPS = 400

interface Modelled {
  readonly slot: number
  readonly type: number
  readonly sector: number
  /** What lies between header and status. */
  readonly segments: ReadonlyArray<{ readonly address: number; readonly length: number; readonly isWritable: boolean }>
  /** The range of a discard. */
  readonly range: { readonly sectors: number; readonly flags: number } | undefined
  readonly descriptors: number
}

export const ringsCheck = (under: Rings = rings): Check => ({
  name: "rings",
  unit: "steps",
  share: 1,
  episode: (seed, tally) => episode(make(seed), tally, under)
})

const episode = (next: SeededRandom, tally: Tally, under: Rings): number => {
  const { device, memory, options, packed, ring, violations } = choose(next, under)
  const { indirect, maxSegments, queueSize } = options
  const unpublished: Array<Modelled> = []
  const available: Array<Modelled> = []
  const held: Array<{ readonly request: Modelled; readonly chain: Chain }> = []
  const answered: Array<{ readonly request: Modelled; readonly status: number }> = []
  let used = 0
  /** Answers that the driver cannot see yet. */
  let unshown = 0
  let isArmed = false
  const out = new Uint32Array(1 + next(queueSize))
  const outstanding = () => unpublished.length + available.length + held.length + answered.length
  const costOf = (segments: number) => indirect ? 1 : segments + 2

  const put = () => {
    const type = [RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.DISCARD][next(4)] ?? RequestType.IN
    const count = type === RequestType.FLUSH ? 0 : type === RequestType.DISCARD ? 1 : 1 + next(maxSegments)
    const doesFit = used + costOf(count) <= queueSize
    if (ring.fits(count) !== doesFit) fail(`fits(${count}) with ${used} of ${queueSize} descriptors in use`)
    if (!doesFit) return
    const sector = next(2 ** 20) * 2 ** 22 + next(2 ** 20)
    const isWritable = type === RequestType.IN
    const addresses = Array.from({ length: count }, () => next(2 ** 20) * 2 ** 32 + next(2 ** 32))
    const lengths = addresses.map(() => 1 + next(2 ** 30))
    const sectors = 1 + next(2 ** 31)
    const flags = next(2)
    const slot = type === RequestType.FLUSH
      ? ring.putFlush()
      : type === RequestType.DISCARD
      ? ring.putRange(type, sector, sectors, flags)
      : count === 1
      ? ring.put(type, sector, addresses[0] ?? 0, lengths[0] ?? 0)
      : ring.putSegments(type, sector, addresses, lengths, count)
    const isTaken = [
      ...unpublished,
      ...available,
      ...held.map(({ request }) => request),
      ...answered.map(({ request }) => request)
    ].some((other) => other.slot === slot)
    if (isTaken || slot >= queueSize) fail(`slot ${slot} is not free`)
    const isRange = type === RequestType.DISCARD
    unpublished.push({
      slot,
      type,
      sector,
      segments: isRange ? [] : addresses.map((address, i) => ({ address, length: lengths[i] ?? 0, isWritable })),
      range: isRange ? { sectors, flags } : undefined,
      descriptors: costOf(count)
    })
    used += costOf(count)
  }

  /** Compares what the device finds with what was put. */
  const take = () => {
    for (let most = 1 + next(4); most > 0; most--) {
      const chain = device.next()
      const request = available.shift()
      if (chain === undefined || request === undefined) {
        if (chain !== undefined) fail("the device found a request that was not published")
        if (request !== undefined) fail("the device did not find a request that was published")
        break
      }
      const [header, ...rest] = chain.elements
      const status = rest.pop()
      if (header === undefined || status === undefined) return fail("a chain without header and status")
      const { sector, type } = headerAt(header.address)
      const range = request.range === undefined ? undefined : rangeAt(rest[0]?.address ?? 0)
      const found = { id: chain.id, descriptors: chain.descriptors, type, sector: range?.sector ?? sector, range }
      const wanted = {
        id: request.slot,
        descriptors: request.descriptors,
        type: request.type,
        sector: request.type === RequestType.FLUSH ? 0 : request.sector,
        range: request.range === undefined ? undefined : { sector: request.sector, ...request.range }
      }
      if (!isDeepStrictEqual(found, wanted)) fail(`the device found ${show(found)} where ${show(wanted)} was put`)
      if (request.range === undefined && !isDeepStrictEqual(rest, request.segments)) {
        fail(`the device found ${show(rest)} where ${show(request.segments)} was put`)
      }
      held.push({ request, chain })
    }
  }
  const headerAt = (address: number) => {
    const view = memory.view(address, 16)
    return { type: view.getUint32(0, true), sector: Number(view.getBigUint64(8, true)) }
  }
  const rangeAt = (address: number) => {
    const view = memory.view(address, 16)
    return {
      sector: Number(view.getBigUint64(0, true)),
      sectors: view.getUint32(8, true),
      flags: view.getUint32(12, true)
    }
  }

  const answer = () => {
    const [found] = held.splice(next(held.length), 1)
    if (found === undefined) return
    const { chain, request } = found
    const status = next(256)
    const writable = chain.elements.reduce((sum, { isWritable, length }) => sum + (isWritable ? length : 0), 0)
    memory.view(chain.elements.at(-1)?.address ?? 0, 1).setUint8(0, status)
    device.use(chain.id, next(2) === 0 ? writable : next(Math.min(writable + 1, 2 ** 32)), chain.descriptors)
    answered.push({ request, status })
    unshown++
  }
  const reveal = () => {
    const isSignalled = device.publish()
    // Whoever asked for the next completion hears of it.
    if (isArmed && unshown > 0 && answered.length === unshown && !isSignalled) {
      fail("a completion that was asked for is not signalled")
    }
    if (unshown > 0) isArmed = false
    unshown = 0
  }
  const drain = () => {
    const visible = answered.length - unshown
    const count = ring.drain(out)
    const wanted = Math.min(visible, out.length)
    if (count !== wanted) fail(`drained ${count} of ${visible} answers: ${ring.fault}`)
    for (const [i, { request, status }] of answered.splice(0, count).entries()) {
      const completion = out[i] ?? 0
      if (slotOf(completion) !== request.slot || statusOf(completion) !== status) {
        fail(
          `completion of slot ${slotOf(completion)}, status ${statusOf(completion)}: must be ${request.slot}, ${status}`
        )
      }
      used -= request.descriptors
    }
    tally.count("completions", count)
  }
  const publish = () => {
    ring.publish()
    const isNew = unpublished.length > 0
    available.push(...unpublished.splice(0))
    // The device had seen everything, asked, and then looked once more.
    const isDue = ring.notificationDue()
    if (isNew && hasAsked && !isDue) fail("a notification that was asked for is not due")
    if (isDue) ring.notified()
    hasAsked &&= !isNew
  }
  let hasAsked = true
  const ask = () => {
    const { eventIdx } = options
    if (available.length > 0) return
    device.askNotifications(true)
    if (eventIdx && device.askForNext()) fail("the device found something new where nothing was published")
    hasAsked = true
  }
  const arm = () => {
    const isThere = ring.arm()
    if (isThere !== answered.length - unshown > 0) {
      fail(`arm() says ${isThere} with ${answered.length - unshown} answers`)
    }
    isArmed = !isThere
  }
  const disarm = () => {
    ring.disarm()
    isArmed = false
  }

  const steps = [put, put, put, publish, publish, take, take, answer, answer, reveal, drain, drain, ask, arm, disarm]
  const count = 1 + next(MOST_STEPS)
  for (let step = 0; step < count; step++) {
    steps[next(steps.length)]?.()
    if (ring.outstanding !== outstanding()) fail(`${ring.outstanding} outstanding: must be ${outstanding()}`)
    if (outstanding() > 0 && ring.pending !== answered.length - unshown > 0) {
      fail(`pending is ${ring.pending} with ${answered.length - unshown} answers`)
    }
    if (ring.fault !== undefined) fail(`fault: ${ring.fault}`)
    if (violations.length > 0) fail(`the driver broke a rule: ${violations[0]}`)
  }
  tally.count(packed ? "packed" : "split", count)
  return count
}

const show = (value: unknown): string => JSON.stringify(value)
