/**
 * A device that runs in a thread of its own, beside the driver and not in turn with it: it looks at its ring, answers reads
 * with a pattern of their sector in an order of chance, and sleeps when it has nothing to do.
 *
 * Driver and device wake each other by counters in shared memory, each only where the other asked for it.
 */
import { isMainThread, workerData } from "node:worker_threads"
import { make as random } from "../../src/SeededRandom.ts"
import { type Chain, DeviceMemory, type DeviceRingOptions } from "../../src/testing/DeviceRing.ts"
import { PackedDeviceRing } from "../../src/testing/PackedDeviceRing.ts"
import { SplitDeviceRing } from "../../src/testing/SplitDeviceRing.ts"

/** Where the counters lie: notifications of the device, signals of the driver, and whether the device is to end. */
export const Counter = { BELL: 0, SIGNAL: 1, END: 2 } as const

export interface DeviceThreadOptions extends Omit<DeviceRingOptions, "memory" | "violation"> {
  readonly packed: boolean
  readonly buffer: SharedArrayBuffer
  readonly address: number
  readonly counters: Int32Array
  readonly seed: number
}

/** What a read of `sector` gives, over and over. */
export const patternOf = (sector: number): number => sector * 7 & 0xff

const run = ({ address, buffer, counters, packed, seed, ...options }: DeviceThreadOptions): void => {
  const memory = new DeviceMemory([{ buffer, address }])
  const violation = (text: string) => {
    throw new Error(text)
  }
  const ring = packed
    ? new PackedDeviceRing({ ...options, memory, violation })
    : new SplitDeviceRing({ ...options, memory, violation })
  const next = random(seed)
  const held: Array<Chain> = []
  while (Atomics.load(counters, Counter.END) === 0) {
    const bell = Atomics.load(counters, Counter.BELL)
    do {
      for (let chain = ring.next(); chain !== undefined; chain = ring.next()) held.push(chain)
    } while (ring.askForNext())
    if (held.length === 0) {
      Atomics.wait(counters, Counter.BELL, bell)
      continue
    }
    for (let left = 1 + next(held.length); left > 0; left--) {
      const [chain] = held.splice(next(held.length), 1)
      if (chain === undefined) break
      ring.use(chain.id, answer(memory, chain), chain.descriptors)
    }
    if (!ring.publish()) continue
    Atomics.add(counters, Counter.SIGNAL, 1)
    Atomics.notify(counters, Counter.SIGNAL)
  }
}

/** Executes a read, and answers how many bytes were written. */
const answer = (memory: DeviceMemory, { elements }: Chain): number => {
  const [header, ...rest] = elements
  if (header === undefined) return 0
  const sector = Number(memory.view(header.address, 16).getBigUint64(8, true))
  let written = 0
  for (const [i, { address, length }] of rest.entries()) {
    const { buffer, byteOffset } = memory.view(address, length)
    new Uint8Array(buffer, byteOffset, length).fill(i === rest.length - 1 ? 0 : patternOf(sector))
    written += length
  }
  return written
}

if (!isMainThread && workerData?.deviceThread !== undefined) run(workerData.deviceThread)
