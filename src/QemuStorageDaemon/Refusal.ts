/**
 * Why the daemon refused to open an image, as a typed error.
 *
 * QEMU's monitor has one class for all of it, and words: most end in the system's own for an errno, and the others are
 * each of one place in its sources.
 *
 * @since 0.1.0
 */
import * as Errno from "../Errno.ts"
import type * as Qmp from "../Qmp/Qmp.ts"

/** What the daemon may refuse an image for. */
export type Refusal =
  | Errno.ENOENT
  | Errno.EACCES
  | Errno.EPERM
  | Errno.EBUSY
  | Errno.EISDIR
  | Errno.ENOTDIR
  | Errno.EINVAL
  | Errno.ENXIO
  | Errno.ENOMEM
  | Errno.ENOTSUP
  | Errno.ECONNREFUSED
  | Errno.ETIMEDOUT
  | Errno.EIO

type Make = (fields: Errno.ErrnoFields) => Refusal

/** The first that occurs counts. */
const phrases: ReadonlyArray<readonly [phrase: RegExp, make: Make]> = [
  // One that is locked says which lock it was, and no errno.
  [/^Failed to get (?:shared )?".*" lock/u, (fields) => new Errno.EBUSY(fields)],
  [/Invalid password|No keyslots? (?:can be|is) unlocked/u, (fields) => new Errno.EACCES(fields)],
  [/No such device or address/u, (fields) => new Errno.ENXIO(fields)],
  [/No such file or directory|No such device\b/u, (fields) => new Errno.ENOENT(fields)],
  [/Permission denied/u, (fields) => new Errno.EACCES(fields)],
  [/Operation not permitted/u, (fields) => new Errno.EPERM(fields)],
  [/Is a directory/u, (fields) => new Errno.EISDIR(fields)],
  [/Not a directory/u, (fields) => new Errno.ENOTDIR(fields)],
  [/Cannot allocate memory/u, (fields) => new Errno.ENOMEM(fields)],
  [/Connection refused|Couldn't connect to server/u, (fields) => new Errno.ECONNREFUSED(fields)],
  [/timed out|Timeout was reached/u, (fields) => new Errno.ETIMEDOUT(fields)],
  [
    /Operation not supported|does not support writes|[Nn]ot supported|^Unsupported |Server does not support|snapshots are read-only/u,
    (fields) => new Errno.ENOTSUP(fields)
  ],
  [/namespace '.*' does not exist|returned error: 404|Target not found/u, (fields) => new Errno.ENOENT(fields)],
  [
    /[Nn]ot in .+ format|invalid VMDK|Invalid argument|No encryption in image header|compatibility level|Parameter '.+' |[Nn]ot a .+ image|must be a (?:multiple|power of two)/u,
    (fields) => new Errno.EINVAL(fields)
  ]
]

/** Debian puts the drivers that reach other machines into a package of its own; the others belong to the program. */
const inBlockExtra = new Set(["rbd", "iscsi", "http", "https"])

/** Makes the error of a command that the daemon refused, or of a job that failed. */
export const from = (error: Qmp.QmpError | Qmp.JobError, path: string): Refusal => {
  const { desc } = error
  const fields = { operation: "open", path, detail: desc.trim(), cause: error }
  const missing = /^Unknown driver '(?<driver>[^']+)'/u.exec(desc)?.groups?.["driver"]
    ?? /^Parameter 'driver' does not accept value '(?<driver>[^']+)'/u.exec(desc)?.groups?.["driver"]
  if (missing !== undefined) {
    const where = inBlockExtra.has(missing)
      ? "Debian has it in the package qemu-block-extra, which must be of the program's own version"
      : "it was built without"
    return new Errno.ENOTSUP({ ...fields, detail: `this qemu-storage-daemon has no driver ${missing}: ${where}` })
  }
  return (phrases.find(([phrase]) => phrase.test(desc))?.[1] ?? ((all) => new Errno.EIO(all)))(fields)
}
