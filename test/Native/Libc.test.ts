/**
 * Goal: the C library's calls do what the modules above take for granted: counters count, descriptors travel, memory is
 * shared, sealed, and out of reach once unmapped; and no child process inherits any of it.
 * Method: every call against the real kernel; what it did is read back from /proc, from the other end of a socket pair, or
 * through a second mapping of the same file.
 */
import { afterEach, beforeEach, describe, expect, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { constants, fstatSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Libc from "../../src/Native/Libc.ts"
import { SyscallError } from "../../src/Native/SyscallError.ts"
import { count, descriptors, isCloseOnExec, type Resources } from "../support/resources.ts"

const { errno } = Os.constants

/** Runs what must throw a SyscallError, and gives it. */
const refused = (run: () => unknown): SyscallError => {
  try {
    run()
  } catch (error) {
    if (error instanceof SyscallError) return error
    throw error
  }
  throw new Error("expected a SyscallError, and nothing was thrown")
}

const toClose: Array<number> = []
const own = (fd: number): number => {
  toClose.push(fd)
  return fd
}
const pair = (): readonly [number, number] => {
  const [left, right] = Libc.createSocketPair()
  return [own(left), own(right)]
}

let before: Resources
beforeEach(() => {
  before = count()
})
afterEach(() => {
  toClose.splice(0).forEach(Libc.close)
  expect(count()).toStrictEqual(before)
})

const received = (fd: number, limit = 280): { bytes: ReadonlyArray<number>; fds: ReadonlyArray<number> } => {
  const found = Libc.receive(fd, limit)
  if (found._tag === "Empty") throw new Error("expected bytes, and there were none")
  found.fds.forEach(own)
  return { bytes: [...found.bytes], fds: found.fds }
}

/** Two descriptors of one open file, or of one file. */
const sameFile = (left: number, right: number): boolean => {
  const [a, b] = [fstatSync(left, { bigint: true }), fstatSync(right, { bigint: true })]
  return a.dev === b.dev && a.ino === b.ino
}

describe("eventfd", () => {
  const value = (fd: number): bigint | undefined => {
    const bytes = new BigUint64Array(1)
    try {
      readSync(fd, bytes)
      return bytes[0]
    } catch {
      return undefined
    }
  }

  it("counts signals, and a drain resets it", () => {
    const fd = own(Libc.createEventFd())
    expect(value(fd)).toBeUndefined()
    expect(Libc.signalEventFd(fd)).toBe(0)
    expect(Libc.signalEventFd(fd)).toBe(0)
    expect(value(fd)).toBe(2n)
    Libc.signalEventFd(fd)
    Libc.drainEventFd(fd)
    expect(value(fd)).toBeUndefined()
    Libc.drainEventFd(fd)
  })

  it("is non-blocking and close-on-exec", () => {
    const fd = own(Libc.createEventFd())
    expect(isCloseOnExec(fd)).toBe(true)
    expect(() => readSync(fd, new Uint8Array(8))).toThrow(/EAGAIN/)
  })

  it("a full counter is signalled already", () => {
    const fd = own(Libc.createEventFd())
    writeSync(fd, new BigUint64Array([2n ** 64n - 2n]))
    expect(Libc.signalEventFd(fd)).toBe(0)
  })

  it("a drain tells what can never be read from what is empty", () => {
    const [left, right] = pair()
    expect(Libc.drainEventFd(own(Libc.createEventFd()))).toBe(true)
    expect(Libc.drainEventFd(left)).toBe(true)
    Libc.send(right, Uint8Array.of(1), [])
    expect(Libc.drainEventFd(left)).toBe(true)
    toClose.splice(toClose.indexOf(right), 1)
    Libc.close(right)
    expect(Libc.drainEventFd(left)).toBe(false)
    expect(Libc.drainEventFd(own(openSync("/dev/null", "r")))).toBe(false)
    expect(Libc.drainEventFd(own(openSync("/dev/null", "w")))).toBe(false)
    expect(Libc.drainEventFd(-1)).toBe(false)
  })

  it("a signal to what is no counter answers with the errno", () => {
    expect(Libc.signalEventFd(-1)).toBe(errno.EBADF)
    const readOnly = own(openSync("/dev/null", "r"))
    expect(Libc.signalEventFd(readOnly)).toBe(errno.EBADF)
  })
})

describe("sockets", () => {
  it("carries bytes without descriptors", () => {
    const [left, right] = pair()
    expect(Libc.receive(right, 16)).toStrictEqual({ _tag: "Empty" })
    expect(Libc.send(left, Uint8Array.of(1, 2, 3), [])).toBe(3)
    expect(received(right)).toStrictEqual({ bytes: [1, 2, 3], fds: [] })
    expect(Libc.receive(right, 16)).toStrictEqual({ _tag: "Empty" })
  })

  it("carries a descriptor beside one byte", () => {
    const [left, right] = pair()
    const sent = own(Libc.createEventFd())
    expect(Libc.send(left, Uint8Array.of(0), [sent])).toBe(1)
    const { bytes, fds: [arrived = -1, ...more] } = received(right)
    expect(bytes).toStrictEqual([0])
    expect(more).toStrictEqual([])
    expect(arrived).not.toBe(sent)
    Libc.signalEventFd(sent)
    expect(readSync(arrived, new Uint8Array(8))).toBe(8)
  })

  it("carries a descriptor with bytes, at the first of them", () => {
    const [left, right] = pair()
    const sent = own(Libc.createMemoryFile("effect-blkio", 4096))
    const bytes = Uint8Array.from({ length: 280 }, (_, i) => i & 0xff)
    expect(Libc.send(left, bytes, [sent])).toBe(280)
    const head = received(right, 12)
    expect(head.bytes).toStrictEqual([...bytes.subarray(0, 12)])
    expect(head.fds.length).toBe(1)
    expect(sameFile(head.fds[0] ?? -1, sent)).toBe(true)
    expect(received(right)).toStrictEqual({ bytes: [...bytes.subarray(12)], fds: [] })
  })

  it.each([2, 8, 253])("carries %i descriptors in order", (many) => {
    const [left, right] = pair()
    const sent = Array.from({ length: many }, () => own(Libc.createMemoryFile("effect-blkio", 4096)))
    expect(Libc.send(left, Uint8Array.of(7), sent)).toBe(1)
    const { fds } = received(right)
    expect(fds.length).toBe(many)
    fds.forEach((fd, i) => expect(sameFile(fd, sent[i] ?? -1)).toBe(true))
  })

  it("receives descriptors close-on-exec, whatever they were", () => {
    const [left, right] = pair()
    const sent = own(openSync("/dev/null", "r"))
    Libc.send(left, Uint8Array.of(7), [sent, sent])
    for (const fd of received(right).fds) expect(isCloseOnExec(fd)).toBe(true)
  })

  it("refuses more descriptors than the kernel takes, and one that is not open", () => {
    const [left, right] = pair()
    const sent = own(Libc.createEventFd())
    expect(refused(() => Libc.send(left, Uint8Array.of(1), new Array<number>(254).fill(sent)))).toMatchObject({
      syscall: "sendmsg",
      errno: errno.EINVAL
    })
    expect(refused(() => Libc.send(left, Uint8Array.of(1), [-1]))).toMatchObject({ errno: errno.EBADF })
    expect(Libc.receive(right, 16)).toStrictEqual({ _tag: "Empty" })
  })

  it("takes a part where the socket is nearly full, then nothing; and the reader finds all of it", () => {
    const [left, right] = pair()
    const block = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7) & 0xff)
    const taken: Array<number> = []
    for (let last = -1; last !== 0;) taken.push(last = Libc.send(left, block, []))
    expect(taken.some((part) => part > 0 && part < block.length)).toBe(true)
    const all: Array<number> = []
    for (let found = Libc.receive(right, 65_536); found._tag === "Data"; found = Libc.receive(right, 65_536)) {
      for (const byte of found.bytes) all.push(byte)
    }
    const expected = taken.flatMap((part) => [...block.subarray(0, part)])
    expect(all.length).toBe(expected.length)
    expect(Buffer.from(all).equals(Buffer.from(expected))).toBe(true)
  })

  it("tells a closed peer: an empty read, and a write that fails without a signal", () => {
    const [left, right] = pair()
    Libc.send(right, Uint8Array.of(9), [])
    toClose.splice(toClose.indexOf(right), 1)
    Libc.close(right)
    expect(received(left).bytes).toStrictEqual([9])
    expect(Libc.receive(left, 16)).toStrictEqual({ _tag: "Data", bytes: new Uint8Array(0), fds: [] })
    expect(refused(() => Libc.send(left, Uint8Array.of(1), []))).toMatchObject({ errno: errno.EPIPE })
  })

  it("tells a peer that closed with bytes unread", () => {
    const [left, right] = pair()
    Libc.send(left, Uint8Array.of(9), [])
    toClose.splice(toClose.indexOf(right), 1)
    Libc.close(right)
    expect(refused(() => Libc.receive(left, 16))).toMatchObject({ syscall: "recvmsg", errno: errno.ECONNRESET })
  })

  it("connects nowhere where nobody listens", () => {
    const fd = own(Libc.createUnixSocket())
    expect(Libc.connectUnixSocket(fd, "/nonexistent/socket")).toBe(errno.ENOENT)
    expect(isCloseOnExec(fd)).toBe(true)
  })

  it("takes connections at a path, oldest first, each close-on-exec and non-blocking", () => {
    const folder = mkdtempSync(Path.join(Os.tmpdir(), "blkio-libc-"))
    try {
      const path = `${folder}/socket`
      const listening = own(Libc.createUnixSocket())
      const connecting = () => own(Libc.createUnixSocket())
      expect(Libc.bindUnixSocket(listening, path)).toBe(0)
      expect(Libc.bindUnixSocket(listening, `${path}2`)).toBe(errno.EINVAL)
      expect(Libc.bindUnixSocket(connecting(), path)).toBe(errno.EADDRINUSE)
      expect(Libc.connectUnixSocket(connecting(), path)).toBe(errno.ECONNREFUSED)
      expect(refused(() => Libc.accept(listening))).toMatchObject({ syscall: "accept4", errno: errno.EINVAL })
      Libc.listen(listening, 4)
      expect(Libc.accept(listening)).toBe(-1)
      for (const byte of [1, 2]) {
        const client = connecting()
        expect(Libc.connectUnixSocket(client, path)).toBe(0)
        Libc.send(client, Uint8Array.of(byte), [])
      }
      for (const byte of [1, 2]) {
        const connection = own(Libc.accept(listening))
        expect(received(connection).bytes).toStrictEqual([byte])
        expect(isCloseOnExec(connection)).toBe(true)
        expect(Libc.receive(connection, 1)).toStrictEqual({ _tag: "Empty" })
      }
      expect(Libc.accept(listening)).toBe(-1)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it("tells a listener whose backlog is full", () => {
    const folder = mkdtempSync(Path.join(Os.tmpdir(), "blkio-libc-"))
    try {
      const listening = own(Libc.createUnixSocket())
      Libc.bindUnixSocket(listening, `${folder}/socket`)
      Libc.listen(listening, 0)
      const knock = () => Libc.connectUnixSocket(own(Libc.createUnixSocket()), `${folder}/socket`)
      expect([knock(), knock()]).toStrictEqual([0, errno.EAGAIN])
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it("makes no socket where there is no folder, and listens at none and on what is none", () => {
    expect(Libc.bindUnixSocket(own(Libc.createUnixSocket()), "/nonexistent/socket")).toBe(errno.ENOENT)
    expect(refused(() => Libc.listen(own(Libc.createUnixSocket()), 1))).toMatchObject({ syscall: "listen" })
    expect(refused(() => Libc.listen(own(openSync("/dev/null", "r")), 1))).toMatchObject({ errno: errno.ENOTSOCK })
    expect(refused(() => Libc.accept(-1))).toMatchObject({ syscall: "accept4", errno: errno.EBADF })
  })

  it("ends a connection for everybody who has it", () => {
    const [left, right] = pair()
    const other = own(Libc.duplicate(left))
    Libc.shutdown(left)
    for (const fd of [left, right, other]) {
      expect(Libc.receive(fd, 1)).toStrictEqual({ _tag: "Data", bytes: new Uint8Array(0), fds: [] })
    }
    expect(refused(() => Libc.send(right, Uint8Array.of(1), []))).toMatchObject({ errno: errno.EPIPE })
    // Neither is an error: it is over in every case.
    Libc.shutdown(left)
    Libc.shutdown(-1)
  })

  it("adopts a socket, and nothing else", () => {
    const [left] = pair()
    Libc.adoptSocket(left)
    expect(isCloseOnExec(left)).toBe(true)
    for (const fd of [openSync("/dev/null", "r"), Libc.createEventFd(), Libc.createMemoryFile("effect-blkio", 1)]) {
      expect(refused(() => Libc.adoptSocket(own(fd)))).toMatchObject({ errno: errno.ENOTSOCK })
    }
    const closed = Libc.createUnixSocket()
    Libc.close(closed)
    for (const fd of [closed, -1]) expect(refused(() => Libc.adoptSocket(fd))).toMatchObject({ errno: errno.EBADF })
  })

  it("adopts a descriptor as non-blocking and close-on-exec", () => {
    const fd = own(openSync("/dev/null", "r"))
    Libc.adopt(fd)
    expect(isCloseOnExec(fd)).toBe(true)
    expect(refused(() => Libc.adopt(-1))).toMatchObject({ syscall: "fcntl", errno: errno.EBADF })
  })

  it.each([-1, 1.5, NaN, 2 ** 32 + 1, 2 ** 31, Infinity])("duplicates no descriptor %d", (fd) => {
    expect(refused(() => Libc.duplicate(fd))).toMatchObject({ syscall: "fcntl", errno: errno.EBADF })
  })
})

describe("memory", () => {
  it("is a file of the name and length asked for, of zeroes, close-on-exec", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 5000))
    expect(descriptors().get(fd)).toMatch(/^\/memfd:effect-blkio /)
    expect(fstatSync(fd).size).toBe(5000)
    expect(isCloseOnExec(fd)).toBe(true)
    const mapping = Libc.map(fd, 0, 5000)
    expect(new Uint8Array(mapping.buffer).every((byte) => byte === 0)).toBe(true)
    Libc.unmap(mapping)
  })

  it("cannot be shrunk", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 8192))
    expect(() => ftruncateSync(fd, 4096)).toThrow(/EPERM/)
    expect(() => openSync(`/proc/self/fd/${fd}`, constants.O_RDWR | constants.O_TRUNC)).toThrow(/EPERM/)
    ftruncateSync(fd, 16_384)
    expect(fstatSync(fd).size).toBe(16_384)
  })

  it("is known as sealed, and a file, a memfd without seals and what is no file are not", () => {
    expect(Libc.isSealedAgainstShrinking(own(Libc.createMemoryFile("effect-blkio", 1)))).toBe(true)
    const shm = `/dev/shm/effect-blkio-${process.pid}`
    const inShm = own(openSync(shm, "w+"))
    rmSync(shm)
    for (const fd of [inShm, own(openSync(import.meta.filename, "r")), own(Libc.createEventFd()), pair()[0], -1]) {
      expect(Libc.isSealedAgainstShrinking(fd)).toBe(false)
    }
  })

  it("is shared between two mappings of one file, from their offsets on", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 8192))
    const whole = Libc.map(fd, 0, 8192)
    const second = Libc.map(fd, 4096, 4096)
    expect(whole.address).not.toBe(second.address)
    new Uint8Array(whole.buffer)[4096] = 0xa5
    expect(new Uint8Array(second.buffer)[0]).toBe(0xa5)
    new Uint32Array(second.buffer)[1] = 0x0102_0304
    expect([...new Uint8Array(whole.buffer, 4100, 4)]).toStrictEqual([4, 3, 2, 1])
    Libc.unmap(second)
    Libc.unmap(whole)
  })

  it("is out of every view's reach after the unmap", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 4096))
    const mapping = Libc.map(fd, 0, 4096)
    const bytes = new Uint8Array(mapping.buffer, 16, 32)
    const words = new Uint32Array(mapping.buffer)
    const view = new DataView(mapping.buffer, 8)
    bytes[0] = 1
    expect(count().mappings).toBe(before.mappings + 1)
    Libc.unmap(mapping)
    expect(count().mappings).toBe(before.mappings)
    expect([mapping.buffer.byteLength, bytes.length, words.length]).toStrictEqual([0, 0, 0])
    expect(bytes[0]).toBeUndefined()
    bytes[0] = 2
    expect(() => bytes.fill(3)).toThrow(TypeError)
    expect(() => view.getUint8(0)).toThrow(TypeError)
    expect(() => bytes.set([1])).toThrow(TypeError)
    expect(mapping.buffer.detached).toBe(true)
  })

  it("is unmapped once, and left alone where the application has moved its buffer elsewhere", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 4096))
    const once = Libc.map(fd, 0, 4096)
    Libc.unmap(once)
    Libc.unmap(once)

    const mapping = Libc.map(fd, 0, 4096)
    const moved = mapping.buffer.transfer()
    Libc.unmap(mapping)
    expect(new Uint8Array(moved)[4095]).toBe(0)
    Libc.unmap({ ...mapping, buffer: moved })
  })

  it("maps 2^33 bytes, and bytes at the end of them", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 2 ** 33))
    const mapping = Libc.map(fd, 0, 2 ** 33)
    expect(mapping.buffer.byteLength).toBe(2 ** 33)
    new Uint8Array(mapping.buffer)[2 ** 33 - 1] = 0x5a
    const last = new Uint8Array(1)
    readSync(fd, last, 0, 1, 2 ** 33 - 1)
    expect(last[0]).toBe(0x5a)
    Libc.unmap(mapping)
  })

  it("refuses what the kernel refuses", () => {
    const fd = own(Libc.createMemoryFile("effect-blkio", 4096))
    expect(refused(() => Libc.map(fd, 1, 4096))).toMatchObject({ syscall: "mmap", errno: errno.EINVAL })
    expect(refused(() => Libc.map(fd, 0, 0))).toMatchObject({ syscall: "mmap", errno: errno.EINVAL })
    expect(refused(() => Libc.map(-1, 0, 4096))).toMatchObject({ syscall: "mmap", errno: errno.EBADF })
    expect(refused(() => Libc.createMemoryFile("x".repeat(300), 1)).syscall).toBe("memfd_create")
    expect(refused(() => Libc.createMemoryFile("effect-blkio", -1))).toMatchObject({ syscall: "ftruncate" })
  })
})

describe("checkWatchable", () => {
  it("answers 0 for what the kernel can watch, and leaves nothing behind", () => {
    const [left] = pair()
    for (const fd of [left, own(Libc.createEventFd()), own(Libc.createUnixSocket())]) {
      expect(Libc.checkWatchable(fd)).toBe(0)
      // Again, and while it is watched for nobody.
      expect(Libc.checkWatchable(fd)).toBe(0)
    }
  })

  it("answers EPERM for files, folders and /dev/null, and EBADF for what is closed", () => {
    for (const path of [import.meta.filename, import.meta.dirname, "/dev/null"]) {
      expect(Libc.checkWatchable(own(openSync(path, "r")))).toBe(errno.EPERM)
    }
    expect(Libc.checkWatchable(own(Libc.createMemoryFile("effect-blkio", 1)))).toBe(errno.EPERM)
    for (const fd of [-1, 1_000_000]) expect(Libc.checkWatchable(fd)).toBe(errno.EBADF)
  })
})

describe("devices", () => {
  it("are opened, written to and asked on the thread pool, with the errno of each call", async () => {
    const answer = (call: (done: (result: number, errno: number) => void) => void) =>
      new Promise<readonly [number, number]>((resolve) => call((result, errno) => resolve([result, errno])))
    const [fd] = await answer((done) => Libc.openDevicePooled("/dev/null", done))
    own(fd)
    expect(isCloseOnExec(fd)).toBe(true)
    const bytes = new Uint8Array(100_000).fill(7)
    expect(await answer((done) => Libc.writePooled(fd, bytes, done))).toStrictEqual([100_000, 0])
    expect(await answer((done) => Libc.ioctlPooled(fd, 0xaf01, 0, done))).toStrictEqual([-1, errno.ENOTTY])
    expect(await answer((done) => Libc.openDevicePooled("/dev/none", done))).toStrictEqual([-1, errno.ENOENT])
    expect(await answer((done) => Libc.writePooled(-1, bytes, done))).toStrictEqual([-1, errno.EBADF])
    // What is written comes from a copy that is held until it is done; where each lands is not said, a file has one position.
    const file = own(Libc.createMemoryFile("effect-blkio", 4096))
    const page = Uint8Array.from({ length: 4096 }, (_, i) => i * 7)
    await Promise.all(Array.from({ length: 200 }, () => answer((done) => Libc.writePooled(file, page.slice(), done))))
    const written = new Uint8Array(fstatSync(file).size)
    readSync(file, written, 0, written.length, 0)
    for (let at = 0; at < written.length; at += 4096) expect(written.subarray(at, at + 4096)).toStrictEqual(page)
  })

  it("that are there are not taken for removed, and neither is what is no device", () => {
    const device = own(openSync("/dev/null", "r+"))
    expect(Libc.isDeviceRemoved(device)).toBe(false)
    expect(Libc.isDeviceRemoved(-1)).toBe(false)
  })
})

it("a child process inherits nothing", () => {
  const [left, right] = pair()
  own(Libc.createEventFd())
  own(Libc.createUnixSocket())
  const memory = own(Libc.createMemoryFile("effect-blkio", 4096))
  own(Libc.duplicate(memory))
  Libc.send(left, Uint8Array.of(1), [memory])
  received(right)
  // The first three are how Node speaks with the child; other programs' own are none of ours.
  const inherited = (stderr: "ignore" | number) =>
    execFileSync("ls", ["-l", "/proc/self/fd"], { encoding: "utf8", stdio: ["ignore", "pipe", stderr] })
      .split("\n")
      .filter((line) => !/ [01] -> /.test(line))
      .join("\n")
  expect(inherited("ignore")).toContain("/dev/null")
  expect(inherited("ignore")).not.toMatch(/memfd|eventfd|socket:/)
  // The same look does see what is handed over.
  expect(inherited(memory)).toContain("/memfd:effect-blkio")
})
