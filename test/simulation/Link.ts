/**
 * One connection to a {@link Backend}, and the device behind it.
 *
 * Each request is taken, carried out and answered in steps of their own, so that anything may happen in between.
 */
import { Deferred, Effect, Exit, Queue, type Scope, Stream } from "effect"
import * as Errno from "../../src/Errno.ts"
import * as Libc from "../../src/Native/Libc.ts"
import type { Connection, ConnectionError, QueueAddresses, QueueChannel } from "../../src/Transport/Transport.ts"
import {
  encodeConfig,
  FeatureBit,
  featureMask,
  hasFeature,
  ID_BYTES,
  RequestType,
  SECTOR_BYTES,
  Status
} from "../../src/Wire/VirtioBlk.ts"
import { DeviceMemory, type Shared } from "../../src/testing/DeviceRing.ts"
import { type DeviceRequest, FakeDevice } from "../../src/testing/FakeDevice.ts"
import { FakeDisk } from "../../src/testing/FakeDisk.ts"
import { AWAY, type Backend, LATE, OPERATION } from "./Backend.ts"
import { type Device, DISK_BYTES, type Fault } from "./Plan.ts"

const ADDRESSES_APART = 2 ** 32
const MAX_REGIONS = 16
const EAGAIN = 11
const SERIAL = new TextEncoder().encode("simulated".padEnd(ID_BYTES))

/** One queue of the device. */
interface QueueSide {
  readonly index: number
  readonly device: FakeDevice
  readonly fd: number
  /** Requests that were carried out, and their status. */
  readonly carriedOut: Map<DeviceRequest, number>
  /** Requests that may be answered. */
  readonly ready: Set<DeviceRequest>
  seen: number
}

/** One connection, and the device behind it. */
export class Link {
  readonly connection: Connection
  /** What is mapped. */
  readonly memory: Array<Shared> = []
  /** Whether the device serves. */
  isAlive = false
  readonly #backend: Backend
  readonly #view: DeviceMemory
  readonly #changed: Queue.Queue<void>
  readonly #lost = Deferred.makeUnsafe<ConnectionError>()
  #queues: ReadonlyArray<QueueSide> = []
  #negotiated = 0n
  #nextAddress = ADDRESSES_APART

  constructor(backend: Backend, changed: Queue.Queue<void>) {
    this.#backend = backend
    this.#changed = changed
    this.#view = new DeviceMemory(this.memory)
    this.connection = this.#connection()
  }

  /** What the driver did wrong, as its device saw it. */
  get violations(): ReadonlyArray<string> {
    return this.#queues.flatMap(({ device }) => device.violations)
  }

  #connection(): Connection {
    const backend = this.#backend
    const { complain, device } = backend.options
    const ioError = new Errno.EIO({ operation: OPERATION, detail: "as planned" })
    return {
      features: this.#features(device),
      maxQueues: 4,
      maxQueueSize: 1024,
      maxRegions: MAX_REGIONS,
      regionAlignment: 1,
      needsRegionFd: true,
      readConfig: this.#whileThere(Effect.suspend(() => {
        if (!backend.isConfigReadable) return ioError
        return Effect.as(backend.mayFail("read config", ioError), encodeConfig(backend.config))
      })),
      negotiate: (features) =>
        this.#whileThere(Effect.map(backend.mayFail("negotiate", ioError), () => {
          this.#negotiated = features
        })),
      map: ({ bytes }, wanted) =>
        this.#whileThere(Effect.map(backend.mayFail("map", ioError), () => {
          const address = wanted ?? this.#nextAddress
          this.#nextAddress = Math.max(this.#nextAddress, address + ADDRESSES_APART)
          this.memory.push({ buffer: bytes.buffer, address })
          return address
        })),
      unmap: ({ bytes }) =>
        Effect.sync(() => {
          // A link that is lost takes nothing back.
          if (Deferred.isDoneUnsafe(this.#lost)) return
          const at = this.memory.findIndex(({ buffer }) => buffer === bytes.buffer)
          if (at >= 0) this.memory.splice(at, 1)
          else complain("a region was unmapped that is not mapped")
        }),
      start: (queues, before) =>
        this.#whileThere(backend.mayFail("start", new Errno.EMFILE({ operation: OPERATION, detail: "as planned" })))
          .pipe(
            Effect.andThen(before === undefined ? Effect.forEach(queues, this.#openChannel) : Effect.succeed(before)),
            Effect.map((channels) => {
              this.isAlive = true
              this.#queues = queues.map((ring, index) => this.#queue(ring, channels[index]!.completionFd, index))
              return channels
            })
          ),
      stop: Effect.sync(() => this.end("stopped")),
      configChanged: Stream.fromQueue(this.#changed),
      lost: this.#lost,
      released: Effect.sync(() => this.end("released"))
    }
  }

  /** Fails what is asked of a link that is lost. */
  #whileThere<A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E | ConnectionError> {
    return Effect.suspend((): Effect.Effect<A, E | ConnectionError> =>
      Deferred.isDoneUnsafe(this.#lost)
        ? Effect.flatMap(Deferred.await(this.#lost), (reason) => Effect.fail(reason))
        : effect
    )
  }

  /** Opens what outlives the link: notifications go to the device there is then. */
  readonly #openChannel = (_: QueueAddresses, index: number): Effect.Effect<QueueChannel, never, Scope.Scope> =>
    Effect.map(openCounter, (completionFd) => ({
      completionFd,
      kickFd: -1,
      signalsInTurn: this.#backend.options.device.signalsInTurn,
      notify: () => this.#backend.link?.notified(index) ?? 0
    }))

  /** Hears a notification, and answers what it answers. */
  notified(index: number): number {
    const queue = this.#queues[index]
    return queue === undefined ? 0 : this.#notified(queue)
  }

  #features({ canDiscard, canFlush, canWriteZeroes, eventIdx, indirect, packed, segMax, sizeMax }: Device): bigint {
    const {
      BLK_SIZE,
      DISCARD,
      EVENT_IDX,
      FLUSH,
      INDIRECT_DESC,
      MQ,
      RING_PACKED,
      SEG_MAX,
      SIZE_MAX,
      VERSION_1,
      WRITE_ZEROES
    } = FeatureBit
    const offered: ReadonlyArray<readonly [boolean, number]> = [
      [canDiscard, DISCARD],
      [canFlush, FLUSH],
      [canWriteZeroes, WRITE_ZEROES],
      [eventIdx, EVENT_IDX],
      [indirect, INDIRECT_DESC],
      [packed, RING_PACKED],
      [segMax > 0, SEG_MAX],
      [sizeMax > 0, SIZE_MAX]
    ]
    return featureMask(BLK_SIZE, MQ, VERSION_1, ...offered.flatMap(([isOffered, bit]) => isOffered ? [bit] : []))
  }

  #queue(ring: QueueAddresses, fd: number, index: number): QueueSide {
    const { disk, device: shape } = this.#backend.options
    const queue: QueueSide = {
      index,
      fd,
      carriedOut: new Map(),
      ready: new Set(),
      seen: 0,
      device: new FakeDevice({
        ring,
        packed: hasFeature(this.#negotiated, FeatureBit.RING_PACKED),
        memory: this.memory,
        indirect: shape.indirect,
        eventIdx: shape.eventIdx,
        maxSegments: Math.max(1, shape.segMax),
        // Not used, since every request is carried out here.
        disk: new FakeDisk(disk.bytes),
        signal: () => this.#signal(queue)
      })
    }
    queue.device.status = (request) => queue.carriedOut.get(request) ?? this.#carryOut(request)
    return queue
  }

  /** Answers what the driver's notification answers. */
  #notified(queue: QueueSide): number {
    const { log, loop, pace } = this.#backend.options
    if (!this.isAlive) return 0
    if (this.#backend.pending.failedKicks > 0) {
      this.#backend.pending.failedKicks--
      log(`kick ${queue.index} fails`)
      return EAGAIN
    }
    if (this.#backend.pending.droppedKicks > 0) {
      this.#backend.pending.droppedKicks--
      log(`kick ${queue.index} dropped`)
      if (this.#backend.healMs < Infinity) loop.later(this.#backend.healMs, () => this.#look(queue))
      return 0
    }
    if (pace.atOnce) this.#look(queue)
    else loop.soon(() => this.#look(queue))
    return 0
  }

  #signal(queue: QueueSide): void {
    const { log, loop } = this.#backend.options
    const signal = () => {
      // Where the device was stopped meanwhile, the counter is closed.
      if (!this.isAlive) return
      Libc.signalEventFd(queue.fd)
      loop.signal(queue.fd)
    }
    if (this.#backend.pending.droppedSignals === 0) return signal()
    this.#backend.pending.droppedSignals--
    log(`signal ${queue.index} dropped`)
    if (this.#backend.healMs < Infinity) loop.later(this.#backend.healMs, signal)
  }

  /** Has the device act, unless it is gone; while it is stalled, after that. */
  #acting(step: () => void): () => void {
    return () => {
      const { loop } = this.#backend.options
      if (!this.isAlive) return
      if (loop.now < this.#backend.stalledUntil) {
        if (this.#backend.stalledUntil < Infinity) loop.later(this.#backend.stalledUntil - loop.now, this.#acting(step))
      } else step()
    }
  }

  #look(queue: QueueSide): void {
    this.#acting(() => {
      const { log, loop } = this.#backend.options
      this.#reaching(() => queue.device.take())
      for (const request of queue.device.taken.slice(queue.seen)) {
        queue.seen++
        log(`queue ${queue.index} takes ${describe(request)}`)
        this.#atRequest()
        loop.later(this.#pause(), this.#acting(() => this.#work(queue, request)))
      }
    })()
  }

  /** Uses the driver's memory, which may be gone only where the driver gave the device up. */
  #reaching<A>(use: () => A): A | undefined {
    try {
      return use()
    } catch (error) {
      if (!this.#backend.options.isGivenUp()) {
        this.#backend.options.complain(`the device lacks memory: ${String(error)}`)
      }
      return undefined
    }
  }

  /** How long the next step of a request takes. */
  #pause(): number {
    const { pace, random } = this.#backend.options
    if (this.#backend.pending.delays > 0) {
      this.#backend.pending.delays--
      return this.#backend.delayMs
    }
    return pace.slow > 0 && random.below(pace.slow) === 0 ? random.below(1000) / 1000 * pace.delayMs : 0
  }

  #work(queue: QueueSide, request: DeviceRequest): void {
    const { log, loop } = this.#backend.options
    // It may have been answered, by a device that answers everything at once.
    if (!queue.device.held.includes(request)) return
    const status = this.#carryOut(request)
    log(`queue ${queue.index} did ${describe(request)}: ${status}`)
    queue.carriedOut.set(request, status)
    loop.later(this.#pause(), this.#acting(() => this.#answer(queue, request)))
  }

  #answer(queue: QueueSide, request: DeviceRequest): void {
    const { log, loop, pace } = this.#backend.options
    const { device, ready } = queue
    if (!device.held.includes(request)) return
    ready.add(request)
    if (!pace.inOrder) {
      device.held.splice(device.held.indexOf(request), 1)
      device.held.unshift(request)
    }
    let count = 0
    while (count < device.held.length && ready.has(device.held[count]!)) count++
    if (count === 0) return
    log(`queue ${queue.index} answers ${device.held.slice(0, count).map(describe).join(", ")}`)
    device.answer(count)
    if (pace.keepsLooking) loop.soon(() => this.#look(queue))
  }

  /** Does what a request asks for, and gives its status. */
  #carryOut(request: DeviceRequest): number {
    const { disk, random } = this.#backend.options
    const { range, sector, segments, type } = request
    const at = (range?.sector ?? sector) * SECTOR_BYTES
    const parts = this.#reaching(() => segments.map(({ address, length }) => this.#view.view(address, length)))
    if (parts === undefined) return Status.IOERR
    const length = range === undefined
      ? parts.reduce((sum, { byteLength }) => sum + byteLength, 0)
      : range.sectors * SECTOR_BYTES
    if (this.#backend.pending.unsupported > 0 && range !== undefined) {
      this.#backend.pending.unsupported--
      return Status.UNSUPP
    }
    if (type !== RequestType.FLUSH && at + length > this.#backend.capacity) return Status.IOERR
    const fails = this.#backend.pending.errors > 0
    if (fails) this.#backend.pending.errors--
    // What fails may be done in part.
    const done = fails ? random.below(length / SECTOR_BYTES + 1) * SECTOR_BYTES : length
    switch (type) {
      case RequestType.IN:
        if (!fails) scatter(this.#lieReading(at, length) ?? disk.bytes.subarray(at, at + length), parts)
        break
      case RequestType.OUT: {
        const data = gather(parts, length)
        if (fails || !this.#lieWriting(at, data)) disk.write(at, data.subarray(0, done))
        break
      }
      case RequestType.DISCARD:
        if (random.chance(50)) disk.write(at, new Uint8Array(done))
        break
      case RequestType.WRITE_ZEROES:
        disk.write(at, new Uint8Array(done))
        break
      case RequestType.FLUSH:
        if (!fails) disk.flush()
        break
      case RequestType.GET_ID:
        scatter(SERIAL, parts)
        break
      default:
        return Status.UNSUPP
    }
    // A device that does not offer to flush has no cache.
    if (!hasFeature(this.#negotiated, FeatureBit.FLUSH)) disk.flush()
    return fails ? Status.IOERR : Status.OK
  }

  #lie(): (Fault & { readonly kind: "lie" }) | undefined {
    const { disk } = this.#backend.options
    if (disk.hasLied) return undefined
    const due = this.#backend.planned.find(({ at, fault }) => fault.kind === "lie" && at <= this.#backend.requests)
    return due?.fault.kind === "lie" ? due.fault : undefined
  }

  #lieWriting(at: number, data: Uint8Array): boolean {
    const lie = this.#lie()
    if (lie === undefined || lie.how === "misdirected read") return false
    const hasLied = this.#backend.options.disk.lieWriting(lie.how, at, data)
    if (hasLied) this.#backend.happened(lie)
    return hasLied
  }

  #lieReading(at: number, length: number): Uint8Array | undefined {
    const lie = this.#lie()
    const found = lie?.how === "misdirected read" ? this.#backend.options.disk.lieReading(at, length) : undefined
    if (found !== undefined && lie !== undefined) this.#backend.happened(lie)
    return found
  }

  /** Has go wrong what is planned for the next request. */
  #atRequest(): void {
    const number = this.#backend.requests++
    for (const planned of this.#backend.planned.filter(({ at, fault }) => at <= number && fault.kind !== "lie")) {
      if (planned.fault.kind === "failed connect") continue
      this.#backend.planned.splice(this.#backend.planned.indexOf(planned), 1)
      this.#goWrong(planned.fault)
    }
  }

  #goWrong(fault: Fault): void {
    const { loop } = this.#backend.options
    const change = () => {
      loop.deliver(() => Queue.offerUnsafe(this.#changed, undefined))
    }
    switch (fault.kind) {
      case "dropped kick":
        this.#backend.happened(fault, ...LATE)
        this.#backend.pending.droppedKicks += fault.count
        this.#backend.healMs = fault.healMs
        return
      case "dropped signal":
        this.#backend.happened(fault, ...LATE)
        this.#backend.pending.droppedSignals += fault.count
        this.#backend.healMs = fault.healMs
        return
      case "failed kick":
        this.#backend.happened(fault, ...LATE)
        this.#backend.pending.failedKicks += fault.count
        return
      case "delay":
        this.#backend.happened(fault, "ETIME")
        this.#backend.pending.delays += fault.count
        this.#backend.delayMs = fault.delayMs
        return
      case "stall":
        this.#backend.happened(fault, ...LATE)
        this.#backend.stalledUntil = loop.now + fault.stallMs
        return
      case "disconnect":
        this.#backend.happened(fault, fault.reason, ...AWAY)
        this.#backend.awayUntil = loop.now + fault.awayMs
        if (fault.crashes) this.#backend.options.crash()
        return this.#lose(new reasons[fault.reason]({ operation: OPERATION, detail: "the backend went away" }))
      case "needs reset":
        this.#backend.happened(fault, ...AWAY)
        return this.#lose(new Errno.ENOTCONN({ operation: OPERATION, detail: "the device wants to be reset" }))
      case "EIO burst":
        this.#backend.happened(fault, "EIO")
        this.#backend.pending.errors += fault.count
        return
      case "unsupported":
        this.#backend.happened(fault, "ENOTSUP")
        this.#backend.pending.unsupported += fault.count
        return
      case "protocol violation": {
        // In a ring of one descriptor the second answer hides the first.
        this.#backend.happened(fault, "EPROTO", ...LATE)
        const queue = this.#queues.find(({ device }) => device.held.length > 0)
        if (queue !== undefined) queue.device.mischief = fault.how
        return
      }
      case "resize":
        this.#backend.happened(fault, "EINVAL", "EIO", "ESTALE")
        // A disk of some size without blocks makes no sense.
        if (this.#backend.config.blkSize === 0) this.#backend.happened(fault, "EPROTO")
        this.#backend.capacity = Math.min(fault.bytes, DISK_BYTES)
        this.#backend.config = { ...this.#backend.config, capacitySectors: BigInt(fault.bytes / SECTOR_BYTES) }
        return change()
      case "config change":
        this.#backend.happened(fault)
        return change()
      case "spurious signal":
        this.#backend.happened(fault)
        for (const queue of this.#queues) this.#signal(queue)
        return
      case "bad config":
        this.#backend.happened(fault, { "block size": "EPROTO", "no disk": "ENODEV", unreadable: "EIO" }[fault.how])
        if (fault.how === "unreadable") this.#backend.isConfigReadable = false
        else if (fault.how === "block size") this.#backend.config = { ...this.#backend.config, blkSize: 1000 }
        else this.#backend.config = { ...this.#backend.config, blkSize: 0, capacitySectors: 0n }
        return change()
      case "lie":
      case "failed connect":
        return
    }
  }

  #lose(reason: ConnectionError): void {
    this.end("lost")
    this.#backend.options.loop.deliver(() => Deferred.doneUnsafe(this.#lost, Exit.succeed(reason)))
  }

  /** Ends the device's work; what it has begun it may carry out first. */
  end(why: string): void {
    if (!this.isAlive) return
    const { log, random } = this.#backend.options
    log(why)
    for (const { carriedOut, device } of this.#queues) {
      for (const request of device.held) {
        if (!carriedOut.has(request) && random.chance(30)) this.#carryOut(request)
      }
    }
    this.isAlive = false
    this.#backend.options.ended()
  }
}

const reasons = {
  ENOTCONN: Errno.ENOTCONN,
  ENODEV: Errno.ENODEV,
  EPROTO: Errno.EPROTO,
  ETIMEDOUT: Errno.ETIMEDOUT
}

const openCounter: Effect.Effect<number, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(Libc.createEventFd),
  (fd) => Effect.sync(() => Libc.close(fd))
)

const bytesOf = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength)

const gather = (parts: ReadonlyArray<DataView>, length: number): Uint8Array => {
  const data = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    data.set(bytesOf(part), at)
    at += part.byteLength
  }
  return data
}

const scatter = (data: Uint8Array, parts: ReadonlyArray<DataView>): void => {
  let at = 0
  for (const part of parts) {
    bytesOf(part).set(data.subarray(at, at + part.byteLength))
    at += part.byteLength
  }
}

const names = new Map<number, string>(Object.entries(RequestType).map(([name, type]) => [type, name]))

const describe = ({ head, range, sector, type }: DeviceRequest): string =>
  `${names.get(type) ?? type} at ${range?.sector ?? sector} (${head})`
