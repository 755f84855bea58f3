/** The image behind a device under test: what the other side writes before, and looks at afterwards. */
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs"
import { CAPACITY, foreign, foreignBytes, lasting, lastingBytes } from "./Target.ts"

/** Makes an image, sparse but for what the suite has to find. */
export const create = (path: string): void => {
  const fd = openSync(path, "wx")
  try {
    ftruncateSync(fd, CAPACITY)
    writeSync(fd, foreignBytes(), 0, foreign.length, foreign.offset)
  } finally {
    closeSync(fd)
  }
}

/** Tells what is wrong with what the suite should have left, if anything. */
export const differences = (path: string): ReadonlyArray<string> => {
  const fd = openSync(path, "r")
  try {
    return ([["foreign", foreign, foreignBytes()], ["lasting", lasting, lastingBytes()]] as const).flatMap(
      ([name, { length, offset }, expected]) => {
        const found = new Uint8Array(length)
        readSync(fd, found, 0, length, offset)
        const at = found.findIndex((byte, i) => byte !== expected[i])
        return at < 0 ? [] : [`${name} bytes differ at ${offset + at}`]
      }
    )
  } finally {
    closeSync(fd)
  }
}
