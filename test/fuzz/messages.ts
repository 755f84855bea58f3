/**
 * vhost-user messages that were damaged, against the decoders and against the socket.
 *
 * They begin as messages that a real backend sent or was sent (`test/Wire/golden`), and are cut, lengthened, have bits flipped and
 * fields set to anything. A decoder gives a value or a WireError, and a value that it gives encodes to the very bytes it was
 * decoded from. The socket brings the messages that a plain reading of the same bytes finds, each with the descriptors that came
 * with it, and ends for the reason at which that reading ends; no descriptor stays open.
 */
import { checkConfig } from "../../src/Driver/Configuration.ts"
import * as Libc from "../../src/Native/Libc.ts"
import { make, type SeededRandom } from "../../src/SeededRandom.ts"
import { MessageSocket } from "../../src/Transport/MessageSocket.ts"
import type { ConnectionError } from "../../src/Transport/Transport.ts"
import * as Message from "../../src/Wire/VhostUserMessage.ts"
import { WireError } from "../../src/Wire/WireError.ts"
import { names, received, sent } from "../Wire/golden/Recording.ts"
import { type Check, fail, type Tally, turn } from "./Check.ts"

/** Of so many episodes, one goes through a socket. */
const DECODED = 8
const MOST_MESSAGES = 24
const MAX_FDS = 2
/** Turns of the event loop in which the socket must have brought what it was sent. */
const PATIENCE = 2000

const corpus: ReadonlyArray<Uint8Array> = names.flatMap((name) => {
  const question = Uint8Array.from(Buffer.from(sent(name), "hex"))
  try {
    return [question, received(name)]
  } catch {
    return [question]
  }
})

export const messagesCheck = (): Check => ({
  name: "messages",
  unit: "mutated messages",
  share: 1 / 5,
  episode: (seed, tally) => {
    const next = make(seed)
    return next(DECODED) === 0 ? throughSocket(next, tally) : throughDecoders(next, tally)
  }
})

/** Damages a message. What it says of its own size stays right, in about half of them. */
const mutate = (next: SeededRandom, message: Uint8Array): Uint8Array => {
  let bytes = message.slice()
  for (let changes = 1 + next(3); changes > 0; changes--) {
    const view = new DataView(bytes.buffer)
    switch (next(8)) {
      case 0:
        bytes = bytes.slice(0, next(bytes.length + 1))
        break
      case 1: {
        const longer = new Uint8Array(bytes.length + 1 + next(300))
        longer.set(bytes)
        bytes = longer
        break
      }
      case 2:
        if (bytes.length >= 12) view.setUint32(4 * next(3), next(2) === 0 ? next(2 ** 32) : next(600), true)
        break
      case 3:
        if (bytes.length > 12) bytes = bytes.slice(0, 12 + next(bytes.length - 12))
        break
      case 4: {
        const at = next(Math.max(1, bytes.length - 8))
        if (bytes.length >= at + 8) view.setBigUint64(at, [0n, 2n ** 53n, 2n ** 64n - 1n, 1n][next(4)] ?? 0n, true)
        break
      }
      default: {
        const at = next(bytes.length)
        bytes[at] = (bytes[at] ?? 0) ^ 1 << next(8)
      }
    }
  }
  if (bytes.length >= 12 && next(2) === 0) new DataView(bytes.buffer).setUint32(8, bytes.length - 12, true)
  return bytes
}

const pick = (next: SeededRandom): Uint8Array => corpus[next(corpus.length)] ?? new Uint8Array(0)

interface Codec {
  readonly name: string
  /** Decodes, and encodes again; undefined where the encoding is not the only one. */
  readonly roundTrip: (payload: Uint8Array) => Uint8Array | undefined
}

const codecs: ReadonlyArray<Codec> = [
  { name: "u64", roundTrip: (payload) => Message.encodeU64(Message.decodeU64(payload)) },
  {
    name: "vring state",
    roundTrip: (payload) => {
      const { index, num } = Message.decodeVringState(payload)
      return Message.encodeVringState(index, num)
    }
  },
  { name: "vring address", roundTrip: (payload) => Message.encodeVringAddress(Message.decodeVringAddress(payload)) },
  {
    name: "vring descriptor",
    roundTrip: (payload) => {
      Message.decodeVringFd(payload)
      return undefined
    }
  },
  {
    name: "memory region",
    roundTrip: (payload) => {
      Message.decodeMemoryRegion(payload)
      return undefined
    }
  },
  {
    name: "memory table",
    roundTrip: (payload) => {
      Message.decodeMemoryTable(payload)
      return undefined
    }
  },
  {
    name: "configuration",
    roundTrip: (payload) => {
      const config = Message.decodeConfig(payload)
      // What the driver makes of it is a value, too.
      checkConfig(config.region, 2n ** 64n - 1n)
      return Message.encodeConfig(config)
    }
  },
  {
    name: "inflight",
    roundTrip: (payload) => {
      Message.decodeInflight(payload)
      return undefined
    }
  }
]

const throughDecoders = (next: SeededRandom, tally: Tally): number => {
  const count = 1 + next(MOST_MESSAGES)
  for (let i = 0; i < count; i++) {
    const bytes = mutate(next, pick(next))
    const header = attempt(() => Message.decodeHeader(bytes))
    tally.count(header === undefined ? "header refused" : "header decoded")
    const payload = bytes.subarray(Math.min(12, bytes.length))
    for (const { name, roundTrip } of codecs) {
      const again = attempt(() => ({ bytes: roundTrip(payload) }))
      tally.count(again === undefined ? "payload refused" : "payload decoded")
      if (again?.bytes !== undefined && Buffer.compare(again.bytes, payload) !== 0) {
        fail(`${name} ${hex(payload)} encodes to ${hex(again.bytes)}`)
      }
    }
  }
  return count
}

/** What a decoder gives; undefined where it refuses, and nothing else may be thrown. */
const attempt = <A>(decode: () => A): A | undefined => {
  try {
    return decode()
  } catch (error) {
    if (error instanceof WireError) return undefined
    throw error
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")

interface Read {
  readonly bytes: Uint8Array
  readonly fds: number
}

interface Part extends Read {
  readonly isMutated: boolean
}

/** A plain reading of a stream of bytes, in which descriptors come with the bytes of a part. */
const readPlainly = (parts: ReadonlyArray<Read>): { readonly messages: ReadonlyArray<Read>; readonly tag: string } => {
  const messages: Array<Read> = []
  const stream = Buffer.concat(parts.map(({ bytes }) => bytes))
  /** The descriptors that come with the bytes of a range. */
  const fdsIn = (from: number, to: number) => {
    let start = 0
    let fds = 0
    for (const part of parts) {
      if (part.fds > 0 && start >= from && start < to) fds += part.fds
      start += part.bytes.length
    }
    return fds
  }
  for (let at = 0; at < stream.length;) {
    const most = Math.min(stream.length, at + 12)
    if (fdsIn(at, most) > MAX_FDS) return { messages, tag: "EPROTO" }
    if (most - at < 12) return { messages, tag: "ENOTCONN" }
    const [flags, size] = [stream.readUInt32LE(at + 4), stream.readUInt32LE(at + 8)]
    if ((flags & 3) !== 1 || size > Message.MAX_PAYLOAD_BYTES) return { messages, tag: "EPROTO" }
    const end = at + 12 + size
    const fds = fdsIn(at, Math.min(end, stream.length))
    if (fds > MAX_FDS) return { messages, tag: "EPROTO" }
    if (end > stream.length) return { messages, tag: "ENOTCONN" }
    messages.push({ bytes: stream.subarray(at, end), fds })
    at = end
  }
  return { messages, tag: "ENOTCONN" }
}

const throughSocket = async (next: SeededRandom, tally: Tally): Promise<number> => {
  const [ours, theirs] = Libc.createSocketPair()
  const spare = Libc.createEventFd()
  const brought: Array<Read> = []
  const ends: Array<ConnectionError> = []
  const socket = new MessageSocket(ours, { socket: "fuzz", peer: "backend", maxFds: MAX_FDS }, {
    onMessage: ({ fds, header, payload }) => {
      fds.forEach(Libc.close)
      brought.push({
        bytes: Buffer.concat([Message.encodeMessage(header.request, header.flags, payload)]),
        fds: fds.length
      })
    },
    onEnd: (reason) => {
      ends.push(reason)
    }
  })
  let isOpen = true
  try {
    const parts = Array.from({ length: 1 + next(MOST_MESSAGES) }, (): Part => {
      // Not all, since a stream ends at its first message that makes no sense.
      const isMutated = next(3) === 0
      const bytes = isMutated ? mutate(next, pick(next)) : pick(next)
      return { bytes, fds: next(16) === 0 ? 1 + next(3) : 0, isMutated }
    }).filter(({ bytes }) => bytes.length > 0)
    const splits = next(4) === 0
    for (const { bytes, fds } of parts) {
      // Descriptors travel with the first byte.
      const first = splits ? 1 + next(bytes.length) : bytes.length
      Libc.send(theirs, bytes.subarray(0, first), Array.from({ length: fds }, () => spare))
      if (first < bytes.length) {
        if (next(4) === 0) await turn()
        Libc.send(theirs, bytes.subarray(first), [])
      }
    }
    Libc.close(theirs)
    isOpen = false
    for (let turns = 0; ends.length === 0; turns++) {
      await turn()
      if (turns > PATIENCE) fail("the socket does not end")
    }
    await turn()
    const wanted = readPlainly(parts)
    const [ended] = ends
    if (ends.length !== 1) fail(`the socket ended ${ends.length} times`)
    if (ended?._tag !== wanted.tag) {
      fail(`the socket ended as ${ended?._tag}: must be ${wanted.tag} (${ended?.message})`)
    }
    if (brought.length !== wanted.messages.length) {
      fail(`the socket brought ${brought.length} messages: must be ${wanted.messages.length}`)
    }
    for (const [i, { bytes, fds }] of wanted.messages.entries()) {
      const found = brought[i]
      if (found === undefined || found.fds !== fds || Buffer.compare(found.bytes, bytes) !== 0) {
        fail(
          `message ${i} is ${hex(found?.bytes ?? new Uint8Array(0))}, ${found?.fds} descriptors: must be ${
            hex(bytes)
          }, ${fds}`
        )
      }
    }
    tally.count(wanted.tag)
    // Of those that were read, and the one at which it ended.
    const mutated = parts.slice(0, brought.length + 1).filter(({ isMutated }) => isMutated).length
    tally.count("through a socket", mutated)
    return mutated
  } finally {
    socket.close()
    Libc.close(ours)
    Libc.close(spare)
    if (isOpen) Libc.close(theirs)
  }
}
