/**
 * The log of QEMU's `blklogwrites`, whose format is that of Linux's dm-log-writes (Linux: drivers/md/dm-log-writes.c).
 *
 * A first sector says how many entries follow. An entry is a sector that tells a place, a length and flags; the data follow it,
 * except for those of a discard. Entries stand in the order in which the operations ended (QEMU: block/blklogwrites.c): a write
 * is in the log before it is acknowledged. All numbers are little-endian.
 */

const MAGIC = 0x6a736677736872n
const VERSION = 1n

const Flag = { FLUSH: 1, FUA: 2, DISCARD: 4, MARK: 8 } as const
const KNOWN_FLAGS = Flag.FLUSH | Flag.FUA | Flag.DISCARD | Flag.MARK

/** A write, or a flush, or both at once. */
export interface Entry {
  readonly isFlush: boolean
  /** In bytes. */
  readonly offset: number
  /** What was written; zeroes are there as such. */
  readonly data: Uint8Array
}

/** Reads a log, and throws where it is none, or is cut short. */
export const parse = (log: Buffer): ReadonlyArray<Entry> => {
  const [magic, version] = [log.readBigUInt64LE(0), log.readBigUInt64LE(8)]
  if (magic !== MAGIC || version !== VERSION) throw new Error(`no log of writes: magic ${magic}, version ${version}`)
  const count = Number(log.readBigUInt64LE(16))
  const sectorBytes = log.readUInt32LE(24)
  let at = sectorBytes
  return Array.from({ length: count }, (_, i): Entry => {
    const sector = Number(log.readBigUInt64LE(at))
    const length = Number(log.readBigUInt64LE(at + 8)) * sectorBytes
    const flags = Number(log.readBigUInt64LE(at + 16))
    if ((flags & ~KNOWN_FLAGS) !== 0) throw new Error(`entry ${i} of the log has the flags ${flags}`)
    if ((flags & (Flag.DISCARD | Flag.MARK)) !== 0) throw new Error(`entry ${i} is a discard or a mark`)
    at += sectorBytes
    // Copied, so that a block of it begins at a multiple of its words' size.
    const data = Uint8Array.from(log.subarray(at, at + length))
    if (data.length !== length) throw new Error(`entry ${i} of the log is cut short`)
    at += length
    return { isFlush: (flags & Flag.FLUSH) !== 0, offset: sector * sectorBytes, data }
  })
}
