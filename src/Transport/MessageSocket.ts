/**
 * A connected vhost-user socket: whole messages in and out, with descriptors.
 *
 * Callbacks only, on Node's own loop. One always-on watch reads the socket, since its end is the only sign of some
 * failures: a backend may acknowledge a message and die of it (measured on qemu-storage-daemon). Whatever the peer does
 * wrong (a truncated message, a wrong version, a payload too large, descriptors nobody asked for) ends the socket, once,
 * with the typed reason.
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

/** The most messages that wait for a backend which does not read: those of 256 queues' start, and room beside them. */
const MAX_OUTGOING = 4096

/** The most looks at the socket in one turn of the event loop, so that a backend which floods it starves nobody. */
const READS_PER_TURN = 64

/** A vhost-user socket. Its descriptor is the caller's, who closes it after the socket. */
export class MessageSocket {
  readonly #fd: number
  readonly #name: string
  readonly #listener: Listener
  readonly #watch: Poll.Watch
  #received: Uint8Array = new Uint8Array(0)
  #outgoing: Array<Outgoing> = []
  #immediate: NodeJS.Immediate | undefined
  #isOpen = true

  /** `name` says in errors which socket it is. Throws a SyscallError where `fd` cannot be watched. */
  constructor(fd: number, name: string, listener: Listener) {
    this.#fd = fd
    this.#name = name
    this.#listener = listener
    this.#watch = Poll.watch(fd, { readable: true }, () => {
      this.#immediate ??= setImmediate(this.#onReady)
    })
  }

  /** Sends a message; copies of `fds` go with it. Throws a SyscallError, and sends nothing, where they cannot be made. */
  send(bytes: Uint8Array, fds: ReadonlyArray<number>): void {
    if (!this.#isOpen) return
    if (this.#outgoing.length >= MAX_OUTGOING) return this.#broken(`the backend left ${MAX_OUTGOING} messages unread`)
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
        operation: this.#name,
        detail,
        ...(error === undefined ? {} : { syscall: error.syscall, cause: error })
      })
    )
  }

  #broken(detail: string): void {
    this.#end(new Errno.EPROTO({ operation: this.#name, detail }))
  }

  #write(): void {
    while (this.#outgoing.length > 0 && this.#isOpen) {
      const [first] = this.#outgoing
      if (first === undefined) return
      let sent: number
      try {
        sent = Libc.send(this.#fd, first.bytes, first.fds)
      } catch (error) {
        return this.#gone("the backend is gone", error instanceof SyscallError ? error : undefined)
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
      let received: Libc.Received
      try {
        received = Libc.receive(this.#fd, Message.HEADER_BYTES + Message.MAX_PAYLOAD_BYTES)
      } catch (error) {
        return this.#gone("the backend is gone", error instanceof SyscallError ? error : undefined)
      }
      if (received._tag === "Empty") return
      received.fds.forEach(Libc.close)
      if (received.fds.length > 0) return this.#broken(`${received.fds.length} descriptors that were not asked for`)
      if (received.bytes.length === 0) {
        // A backend that is killed may be so between a message's header and its payload.
        const where = this.#received.length === 0 ? "" : " inside a message"
        return this.#gone(`the backend closed the connection${where}`)
      }
      this.#received = joined(this.#received, received.bytes)
      this.#deliver()
    }
  }

  #deliver(): void {
    while (this.#isOpen && this.#received.length >= Message.HEADER_BYTES) {
      let header: Message.Header
      try {
        header = Message.decodeHeader(this.#received)
      } catch (error) {
        if (error instanceof WireError) return this.#broken(error.message)
        throw error
      }
      const end = Message.HEADER_BYTES + header.size
      if (this.#received.length < end) return
      const payload = this.#received.slice(Message.HEADER_BYTES, end)
      this.#received = this.#received.subarray(end)
      this.#listener.onMessage({ header, payload })
    }
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
