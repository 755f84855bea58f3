/**
 * A connected vhost-user socket, at either end: whole messages in and out, with descriptors.
 *
 * Callbacks only, on Node's own loop. One always-on watch reads the socket, since its end is the only sign of some
 * failures: a backend may acknowledge a message and die of it (measured on qemu-storage-daemon). Whatever the peer does
 * wrong (a truncated message, a wrong version, a payload too large, more descriptors than it may send) ends the socket,
 * once, with the typed reason.
 *
 * Header and payload are read each to its exact length, so that descriptors are known to belong to the message they came
 * with, whatever follows it.
 *
 * @since 0.1.0
 */
import * as Errno from "../Errno.ts"
import * as Libc from "../Native/Libc.ts"
import * as Poll from "../Native/Poll.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import * as Message from "../Wire/VhostUserMessage.ts"
import { WireError } from "../Wire/WireError.ts"
import type { ConnectionError } from "./Transport.ts"

/** A message as it was received. */
export interface Received {
  readonly header: Message.Header
  readonly payload: Uint8Array
  /** What came along: open, close-on-exec, and the listener's from now on. */
  readonly fds: ReadonlyArray<number>
}

/** Which socket it is. */
export interface Names {
  /** The socket, in errors. */
  readonly socket: string
  /** Who is at its other end. */
  readonly peer: "backend" | "front-end"
  /** How many descriptors the peer may send with a message. */
  readonly maxFds: number
}

/** Who hears of what the socket brings. Called on a turn of the event loop of its own; must not throw. */
export interface Listener {
  readonly onMessage: (message: Received) => void
  /** Called once; the socket brings nothing afterwards. */
  readonly onEnd: (reason: ConnectionError) => void
}

interface Outgoing {
  readonly bytes: Uint8Array
  readonly fds: ReadonlyArray<number>
}

/** The most messages that wait for a peer which does not read: those of 256 queues' start, and room beside them. */
const MAX_OUTGOING = 4096

/** The most looks at the socket in one turn of the event loop, so that a backend which floods it starves nobody. */
const READS_PER_TURN = 64

/** A vhost-user socket. Its descriptor is the caller's, who closes it after the socket. */
export class MessageSocket {
  readonly #fd: number
  readonly #names: Names
  readonly #listener: Listener
  readonly #watch: Poll.Watch
  #header: Message.Header | undefined
  #received: Uint8Array = new Uint8Array(0)
  #fds: Array<number> = []
  #outgoing: Array<Outgoing> = []
  #immediate: NodeJS.Immediate | undefined
  #isOpen = true

  /** Throws a SyscallError where `fd` cannot be watched. */
  constructor(fd: number, names: Names, listener: Listener) {
    this.#fd = fd
    this.#names = names
    this.#listener = listener
    this.#watch = Poll.watch(fd, { readable: true }, () => {
      this.#immediate ??= setImmediate(this.#onReady)
    })
  }

  /** Sends a message; copies of `fds` go with it. Throws a SyscallError, and sends nothing, where they cannot be made. */
  send(bytes: Uint8Array, fds: ReadonlyArray<number>): void {
    if (!this.#isOpen) return
    if (this.#outgoing.length >= MAX_OUTGOING) {
      return this.#broken(`the ${this.#names.peer} left ${MAX_OUTGOING} messages unread`)
    }
    this.#outgoing.push({ bytes, fds: duplicates(fds) })
    this.#write()
  }

  /** Ends the watch. The listener hears nothing more. */
  close(): void {
    if (!this.#isOpen) return
    this.#isOpen = false
    clearImmediate(this.#immediate)
    for (const { fds } of this.#outgoing) fds.forEach(Libc.close)
    this.#outgoing = []
    this.#fds.forEach(Libc.close)
    this.#fds = []
    this.#watch.close()
  }

  readonly #onReady = (): void => {
    this.#immediate = undefined
    this.#write()
    this.#read()
  }

  #end(reason: ConnectionError): void {
    if (!this.#isOpen) return
    this.close()
    this.#listener.onEnd(reason)
  }

  #gone(detail: string, error?: SyscallError): void {
    this.#end(
      new Errno.ENOTCONN({
        operation: this.#names.socket,
        detail,
        ...(error === undefined ? {} : { syscall: error.syscall, cause: error })
      })
    )
  }

  #broken(detail: string): void {
    this.#end(new Errno.EPROTO({ operation: this.#names.socket, detail }))
  }

  #write(): void {
    while (this.#outgoing.length > 0 && this.#isOpen) {
      const [first] = this.#outgoing
      if (first === undefined) return
      let sent: number
      try {
        sent = Libc.send(this.#fd, first.bytes, first.fds)
      } catch (error) {
        return this.#gone(`the ${this.#names.peer} is gone`, error instanceof SyscallError ? error : undefined)
      }
      if (sent === 0) return this.#watch.change({ readable: true, writable: true })
      // Descriptors travel with the first byte: a rest is sent without them.
      first.fds.forEach(Libc.close)
      if (sent < first.bytes.length) this.#outgoing[0] = { bytes: first.bytes.subarray(sent), fds: [] }
      else if (this.#outgoing.length === 1) {
        this.#outgoing = []
        this.#watch.change({ readable: true })
      } else this.#outgoing.shift()
    }
  }

  #read(): void {
    for (let looks = 0; this.#isOpen; looks++) {
      if (looks === READS_PER_TURN) {
        this.#immediate ??= setImmediate(this.#onReady)
        return
      }
      const wanted = this.#header === undefined ? Message.HEADER_BYTES : this.#header.size
      if (this.#received.length === wanted) {
        this.#take()
        continue
      }
      let received: Libc.Received
      try {
        received = Libc.receive(this.#fd, wanted - this.#received.length)
      } catch (error) {
        return this.#gone(`the ${this.#names.peer} is gone`, error instanceof SyscallError ? error : undefined)
      }
      if (received._tag === "Empty") return
      this.#fds.push(...received.fds)
      if (this.#fds.length > this.#names.maxFds) {
        return this.#broken(
          `${this.#fds.length} descriptors with a message: there may be ${this.#names.maxFds}`
        )
      }
      if (received.bytes.length === 0) {
        // A peer that is killed may be so between a message's header and its payload.
        const isInside = this.#header !== undefined || this.#received.length > 0
        return this.#gone(`the ${this.#names.peer} closed the connection${isInside ? " inside a message" : ""}`)
      }
      this.#received = joined(this.#received, received.bytes)
    }
  }

  /** Takes the header or the payload that is complete. */
  #take(): void {
    const bytes = this.#received
    const header = this.#header
    this.#received = new Uint8Array(0)
    if (header === undefined) {
      try {
        this.#header = Message.decodeHeader(bytes)
      } catch (error) {
        if (error instanceof WireError) return this.#broken(error.message)
        throw error
      }
      return
    }
    const fds = this.#fds
    this.#header = undefined
    this.#fds = []
    this.#listener.onMessage({ header, payload: bytes, fds })
  }
}

const joined = (first: Uint8Array, second: Uint8Array): Uint8Array => {
  if (first.length === 0) return second
  const bytes = new Uint8Array(first.length + second.length)
  bytes.set(first)
  bytes.set(second, first.length)
  return bytes
}

const duplicates = (fds: ReadonlyArray<number>): ReadonlyArray<number> => {
  const copies: Array<number> = []
  try {
    for (const fd of fds) copies.push(Libc.duplicate(fd))
    return copies
  } catch (error) {
    copies.forEach(Libc.close)
    throw error
  }
}
