/**
 * A virtio-blk request in a chain of descriptors (virtio 1.2 §5.2.6): header, data and status, wherever the driver has put
 * their edges (§2.7.4.1: a device makes no assumption about the framing).
 *
 * Data is not copied: it is views of the front-end's memory, which the front-end may change at any moment. Header and
 * segments, which decide what is done, are read once.
 *
 * @since 0.1.0
 */
import { gather } from "../BlockStore/Buffers.ts"
import { REQUEST_HEADER_BYTES, SEGMENT_BYTES, STATUS_BYTES } from "../Wire/VirtioBlk.ts"
import type { Chain } from "./DeviceRing.ts"
import type { Region } from "./GuestMemory.ts"

/** A request as the driver made it. */
export interface BlkRequest {
  /** The number of the chain, unique among those in flight. */
  readonly head: number
  /** What is asked for; undefined where the chain holds no whole header. */
  readonly type: number | undefined
  /** Where on the disk, in sectors; any number up to 2^64, above 2^53 not exactly. */
  readonly sector: number
  /** What the driver gives: views of its memory. */
  readonly given: ReadonlyArray<Uint8Array>
  readonly givenLength: number
  /** What the device is to fill: views of the driver's memory. */
  readonly wanted: ReadonlyArray<Uint8Array>
  readonly wantedLength: number
  /** Where the status goes; undefined where the chain has no byte to write. */
  readonly statusRegion: Region | undefined
  readonly statusPosition: number
}

/** A range of a discard or a write-zeroes. */
export interface Segment {
  readonly sector: number
  readonly sectors: number
  readonly flags: number
}

const split = new Uint8Array(REQUEST_HEADER_BYTES)
const splitView = new DataView(split.buffer)

/** Reads the request in a chain. */
export const decode = (chain: Chain): BlkRequest => {
  const { count, head, lengths, positions, readable, regions } = chain
  let type: number | undefined
  let sector = 0
  let skip = REQUEST_HEADER_BYTES
  const first = regions[0]
  if (first !== undefined && readable > 0 && (lengths[0] ?? 0) >= REQUEST_HEADER_BYTES) {
    const at = positions[0] ?? 0
    type = first.view.getUint32(at, true)
    sector = sectorAt(first.view, at + 8)
  } else if (copyHeader(chain)) {
    type = splitView.getUint32(0, true)
    sector = sectorAt(splitView, 8)
  }

  const given: Array<Uint8Array> = []
  let givenLength = 0
  for (let i = 0; i < readable; i++) {
    const length = lengths[i] ?? 0
    const skipped = Math.min(skip, length)
    skip -= skipped
    if (length > skipped) {
      const at = (positions[i] ?? 0) + skipped
      given.push(bytesOf(regions[i], at, length - skipped))
      givenLength += length - skipped
    }
  }

  let last = count - 1
  while (last >= readable && lengths[last] === 0) last--
  const hasStatus = last >= readable
  const wanted: Array<Uint8Array> = []
  let wantedLength = 0
  for (let i = readable; i <= last; i++) {
    const length = (lengths[i] ?? 0) - (i === last ? STATUS_BYTES : 0)
    if (length > 0) {
      wanted.push(bytesOf(regions[i], positions[i] ?? 0, length))
      wantedLength += length
    }
  }
  return {
    head,
    type,
    sector,
    given,
    givenLength,
    wanted,
    wantedLength,
    statusRegion: hasStatus ? regions[last] : undefined,
    statusPosition: hasStatus ? (positions[last] ?? 0) + (lengths[last] ?? 0) - STATUS_BYTES : 0
  }
}

/** Reads the segments of a discard or a write-zeroes; undefined where the data is not whole segments, at least one. */
export const segmentsOf = (request: BlkRequest): ReadonlyArray<Segment> | undefined => {
  if (request.givenLength === 0 || request.givenLength % SEGMENT_BYTES !== 0) return undefined
  const bytes = new Uint8Array(SEGMENT_BYTES)
  const view = new DataView(bytes.buffer)
  return Array.from({ length: request.givenLength / SEGMENT_BYTES }, (_, i) => {
    gather(request.given, i * SEGMENT_BYTES, bytes)
    return { sector: sectorAt(view, 0), sectors: view.getUint32(8, true), flags: view.getUint32(12, true) }
  })
}

/** Tells whether a request uses memory of a region. */
export const uses = (request: BlkRequest, region: Region): boolean =>
  request.statusRegion === region
  || request.given.some(({ buffer }) => buffer === region.bytes.buffer)
  || request.wanted.some(({ buffer }) => buffer === region.bytes.buffer)

const bytesOf = (region: Region | undefined, at: number, length: number): Uint8Array =>
  region === undefined ? new Uint8Array(0) : region.bytes.subarray(at, at + length)

/** A u64 without a bigint: what is rounded lies beyond every disk. */
const sectorAt = (view: DataView, at: number): number =>
  view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true)

/** Copies a header that lies in several descriptors; false where there are too few bytes. */
const copyHeader = ({ lengths, positions, readable, regions }: Chain): boolean => {
  let copied = 0
  for (let i = 0; i < readable && copied < REQUEST_HEADER_BYTES; i++) {
    const part = Math.min(lengths[i] ?? 0, REQUEST_HEADER_BYTES - copied)
    split.set(bytesOf(regions[i], positions[i] ?? 0, part), copied)
    copied += part
  }
  return copied === REQUEST_HEADER_BYTES
}
