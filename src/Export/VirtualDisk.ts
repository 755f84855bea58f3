/**
 * The virtio block device that a front-end sees (virtio 1.2 §5.2): features, configuration space, and what each request asks
 * of the store.
 *
 * What a request may ask is decided here, before the store hears of it: direction, length, range, flags. A bad request gets
 * IOERR, one that the device does not know UNSUPP; the ring goes on.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { section } from "../BlockStore/Buffers.ts"
import type { BlockStore, StoreError } from "../BlockStore/Interface.ts"
import { inParts } from "../BlockStore/Split.ts"
import {
  type BlkConfig,
  encodeConfig,
  FeatureBit,
  featureMask,
  hasFeature,
  ID_BYTES,
  RequestType,
  SECTOR_BYTES,
  SEGMENT_BYTES,
  Status,
  WRITE_ZEROES_UNMAP
} from "../Wire/VirtioBlk.ts"
import { type BlkRequest, segmentsOf } from "./BlkRequest.ts"
import type { Execution } from "./DeviceQueue.ts"
import type { Settings } from "./Options.ts"

/** Offset of `writeback`, the one field that a driver may set (§5.2.4). */
const WRITEBACK_AT = 32
/** A whole configuration space is as large as the largest that may be asked for; what we do not have reads as zero. */
const CONFIG_BYTES = 256

/** The device as one front-end sees it. */
export class VirtualDisk {
  /** What is offered, ring features included. */
  readonly features: bigint
  /** The size in bytes. Set by whoever resizes the disk. */
  capacity: number

  readonly #store: BlockStore
  readonly #settings: Settings
  readonly #id: Uint8Array
  #writeback: boolean
  #canFlush = false

  constructor(store: BlockStore, settings: Settings, capacity: number) {
    this.#store = store
    this.#settings = settings
    this.capacity = capacity
    this.#id = new TextEncoder().encode(settings.serial)
    this.#writeback = settings.writeCache
    this.features = featureMask(
      FeatureBit.SEG_MAX,
      FeatureBit.BLK_SIZE,
      FeatureBit.FLUSH,
      FeatureBit.TOPOLOGY,
      FeatureBit.CONFIG_WCE,
      FeatureBit.DISCARD,
      FeatureBit.WRITE_ZEROES,
      FeatureBit.INDIRECT_DESC,
      FeatureBit.EVENT_IDX,
      FeatureBit.PROTOCOL_FEATURES,
      FeatureBit.VERSION_1,
      ...settings.numQueues > 1 ? [FeatureBit.MQ] : [],
      ...settings.readOnly ? [FeatureBit.RO] : []
    )
  }

  /** Takes the features that the driver has chosen. */
  negotiate(features: bigint): void {
    this.#canFlush = hasFeature(features, FeatureBit.FLUSH)
  }

  /** Goes back to how the device was at first. */
  reset(): void {
    this.#canFlush = false
    this.#writeback = this.#settings.writeCache
  }

  /** The configuration space. */
  get config(): Uint8Array {
    const { blockSize, maxRangeLength, maxSegments, numQueues } = this.#settings
    const config: BlkConfig = {
      capacitySectors: BigInt(this.capacity / SECTOR_BYTES),
      sizeMax: 0,
      segMax: maxSegments,
      blkSize: blockSize,
      physicalBlockExp: 0,
      alignmentOffset: 0,
      minIoSize: 1,
      optIoSize: 1,
      writeback: this.#writeback ? 1 : 0,
      numQueues,
      maxDiscardSectors: maxRangeLength / SECTOR_BYTES,
      maxDiscardSeg: 1,
      discardSectorAlignment: blockSize / SECTOR_BYTES,
      maxWriteZeroesSectors: maxRangeLength / SECTOR_BYTES,
      maxWriteZeroesSeg: 1,
      writeZeroesMayUnmap: 1
    }
    const space = new Uint8Array(CONFIG_BYTES)
    space.set(encodeConfig(config))
    return space
  }

  /** Sets bytes of the configuration space; answers what is wrong with that, if anything. */
  configure(offset: number, bytes: Uint8Array): string | undefined {
    const [value] = bytes
    if (offset !== WRITEBACK_AT || bytes.length !== 1 || value === undefined) {
      return `${bytes.length} bytes at ${offset}: only writeback, 1 byte at ${WRITEBACK_AT}, can be set`
    }
    if (value > 1) return `writeback ${value}: must be 0 or 1`
    this.#writeback = value === 1
    return undefined
  }

  /** Whether a write may be stable only after a flush (§5.2.6.2): where there are flushes, and nobody asked otherwise. */
  get #cachesWrites(): boolean {
    return this.#canFlush && this.#writeback
  }

  /** Does what a request asks for, or answers its status. */
  readonly execute = (request: BlkRequest): Execution => {
    const { given, givenLength, sector, type, wanted, wantedLength } = request
    switch (type) {
      case RequestType.IN:
        if (givenLength > 0 || !this.#isRange(sector, wantedLength)) return Status.IOERR
        return wantedLength === 0 ? Status.OK : this.#read(sector * SECTOR_BYTES, wanted, wantedLength)
      case RequestType.OUT:
        if (this.#settings.readOnly || wantedLength > 0 || !this.#isRange(sector, givenLength)) return Status.IOERR
        return givenLength === 0 ? Status.OK : this.#write(sector * SECTOR_BYTES, given, givenLength)
      case RequestType.FLUSH:
        return givenLength > 0 || wantedLength > 0 ? Status.IOERR : this.#store.flush
      case RequestType.GET_ID:
        return this.#tellId(request)
      case RequestType.DISCARD:
      case RequestType.WRITE_ZEROES:
        return this.#changeRange(request, type)
      // No whole header: there is nothing that it could ask for.
      case undefined:
        return Status.IOERR
      default:
        return Status.UNSUPP
    }
  }

  /** Whether bytes from a sector on are whole blocks of the disk. */
  #isRange(sector: number, length: number): boolean {
    const { blockSize } = this.#settings
    const offset = sector * SECTOR_BYTES
    return offset % blockSize === 0 && length % blockSize === 0 && length <= this.capacity - offset
  }

  #read(offset: number, buffers: ReadonlyArray<Uint8Array>, length: number): Effect.Effect<void, StoreError> {
    const { limits: { maxTransfer } } = this.#store
    if (length <= maxTransfer) return this.#store.read(offset, buffers)
    return inParts(
      offset,
      offset + length,
      maxTransfer,
      (from, to) => this.#store.read(from, section(buffers, from - offset, to - from)),
      this.#settings.blockSize
    )
  }

  #write(offset: number, buffers: ReadonlyArray<Uint8Array>, length: number): Effect.Effect<void, StoreError> {
    const { limits: { maxTransfer } } = this.#store
    const options = this.#cachesWrites ? cached : stable
    if (length <= maxTransfer) return this.#store.write(offset, buffers, options)
    return inParts(
      offset,
      offset + length,
      maxTransfer,
      (from, to) => this.#store.write(from, section(buffers, from - offset, to - from), options),
      this.#settings.blockSize
    )
  }

  #tellId({ givenLength, wanted, wantedLength }: BlkRequest): number {
    if (givenLength > 0 || wantedLength === 0) return Status.IOERR
    let at = 0
    for (const buffer of wanted) {
      const part = buffer.subarray(0, ID_BYTES - at)
      part.fill(0)
      part.set(this.#id.subarray(at, at + part.length))
      at += part.length
    }
    return Status.OK
  }

  #changeRange(request: BlkRequest, type: number): Execution {
    const { givenLength, wantedLength } = request
    const { maxRangeLength, readOnly } = this.#settings
    if (readOnly || wantedLength > 0 || givenLength % SEGMENT_BYTES !== 0) return Status.IOERR
    // One segment is what the configuration space allows.
    if (givenLength > SEGMENT_BYTES) return Status.UNSUPP
    const [segment] = segmentsOf(request) ?? []
    if (segment === undefined) return Status.IOERR
    const { flags, sector, sectors } = segment
    // §5.2.6.2: UNSUPP for a discard that asks to unmap, and for flags that are not known.
    if ((flags & ~(type === RequestType.DISCARD ? 0 : WRITE_ZEROES_UNMAP)) !== 0) return Status.UNSUPP
    const length = sectors * SECTOR_BYTES
    if (length > maxRangeLength || !this.#isRange(sector, length)) return Status.IOERR
    if (length === 0) return Status.OK
    const offset = sector * SECTOR_BYTES
    const { limits: { maxDiscard, maxWriteZeroes } } = this.#store
    if (type === RequestType.DISCARD) {
      return inParts(
        offset,
        offset + length,
        maxDiscard,
        (from, to) => this.#store.discard(from, to - from),
        this.#settings.blockSize
      )
    }
    const how = { fua: !this.#cachesWrites, noUnmap: (flags & WRITE_ZEROES_UNMAP) === 0 }
    return inParts(
      offset,
      offset + length,
      maxWriteZeroes,
      (from, to) => this.#store.writeZeroes(from, to - from, how),
      this.#settings.blockSize
    )
  }
}

const cached = { fua: false } as const
const stable = { fua: true } as const
