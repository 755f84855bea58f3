/**
 * Lists of buffers, as scattered reads and gathered writes use them: one range of bytes that lies in several places.
 *
 * Nothing here copies except {@link gather} and {@link scatter}, whose purpose it is.
 *
 * @since 0.1.0
 */

/** The views that cover `length` bytes of the buffers from `start` on. */
export const section = (
  buffers: ReadonlyArray<Uint8Array>,
  start: number,
  length: number
): ReadonlyArray<Uint8Array> => {
  const parts: Array<Uint8Array> = []
  let at = 0
  for (const buffer of buffers) {
    const from = Math.max(0, start - at)
    const to = Math.min(buffer.length, start + length - at)
    if (from < to) parts.push(from === 0 && to === buffer.length ? buffer : buffer.subarray(from, to))
    at += buffer.length
  }
  return parts
}

/** Copies what lies in the buffers from `start` on into `target`, until that is full. */
export const gather = (buffers: ReadonlyArray<Uint8Array>, start: number, target: Uint8Array): void => {
  let at = 0
  for (const part of section(buffers, start, target.length)) {
    target.set(part, at)
    at += part.length
  }
}

/** Copies all of `source` into the buffers from `start` on. */
export const scatter = (buffers: ReadonlyArray<Uint8Array>, start: number, source: Uint8Array): void => {
  let at = 0
  for (const part of section(buffers, start, source.length)) {
    part.set(source.subarray(at, at + part.length))
    at += part.length
  }
}
