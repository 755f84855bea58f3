/**
 * Writes the pages of `docs` that are tables of what the code knows: every property, every error. `test/docs.test.ts` fails
 * while a committed page differs from what is written here.
 *
 *     node scripts/docs.ts
 */
import { writeFileSync } from "node:fs"
import * as Errno from "../src/Errno.ts"
import { describe, type Description, toText } from "../src/Properties/Properties.ts"
import { PropertyState } from "../src/Properties/PropertyState.ts"

interface Page {
  /** From the repository's root. */
  readonly path: string
  readonly text: string
}

const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string =>
  [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n")

/** What a property is before the device is connected. */
const defaultOf = ({ name, readable }: Description): string => {
  if (!readable.includes("created") || name === "driver" || name === "path") return "–"
  const unopened = new PropertyState({ driver: "", path: "", fd: -1 }, "created")
  return `\`${toText(unopened.value(name))}\``
}

const propertiesPage = `# Properties

A property is a named setting or fact of a device. Names and meanings are libblkio's; \`device-read-only\`,
\`min-io-size\` and \`topology-alignment-offset\` are additions.

A device is *created* first, then *connected*, then *started*. Some properties can be read only once the device is
connected; the others have a default until then. A few can be set, each in one phase: what concerns opening the device
while it is created, what concerns its queues while it is connected.

In a program names are camel-cased, and the compiler knows what each phase allows:

\`\`\`ts
import { Properties, VirtioBlk } from "effect-blkio"
import { Effect } from "effect"

const capacity = Properties.use(({ get }) => get("capacity"))

const start = Effect.fnUntraced(function*(device: VirtioBlk.ConnectedDevice) {
  yield* device.properties.set({ numQueues: 4, queueSize: 128 })
  return yield* device.start()
})
\`\`\`

On the command line, and wherever else a name comes from outside (\`getString\`, \`setString\`, \`setUnknown\`), the names
are those of the table; \`_\` may stand for \`-\`. As text a bool is \`true\` or \`false\` and a number is decimal. A uint64
that means "no limit" is \`Infinity\` in a program, and \`18446744073709551615\` as text and in JSON.

What is wrong is told by an errno, the first that applies:

${
  table(["what is wrong", "errno"], [
    ["there is no such property", "ENOENT"],
    ["the value is of another type (text is never: it is parsed)", "ENOTTY"],
    ["the property can only be read", "EACCES"],
    ["too early: the device is not connected yet", "ENODEV"],
    ["too late: the device is connected, or started, already", "EBUSY"],
    ["the value breaks a rule of the property, or the text cannot be parsed", "EINVAL"]
  ])
}

## The table

An int is a signed number of 32 bits. A length, size or alignment is in bytes whatever the device's block size is.

${
  table(
    ["name", "type", "unit", "can be read", "can be set", "default", "meaning"],
    describe.map((property) => [
      `\`${property.name}\``,
      property.type,
      property.unit === "" ? "–" : property.unit,
      property.readable.includes("created") ? "always" : `once ${property.readable[0]}`,
      property.settable.length === 0 ? "–" : `while ${property.settable.join(", ")}`,
      defaultOf(property),
      property.meaning
    ])
  )
}
`

interface Advice {
  readonly when: string
  readonly whatToDo: string
}

/** What people need to know of each errno that an operation declares; `test/errors` provokes each of them. */
const advice: Partial<Record<Errno.Tag, Advice>> = {
  EPERM: {
    when: "The system does not permit it, a security policy among others.",
    whatToDo: "Look at the policies that concern the process (SELinux, AppArmor, seccomp) and its capabilities."
  },
  ENOENT: {
    when: "There is no file, socket, program, driver or property of that name.",
    whatToDo: "Check the name. For a socket: start the backend first, or wait for its socket to appear."
  },
  EIO: {
    when: "The device reported that the request failed, or the system gave an errno that the operation does not name "
      + "(it is in `cause` then). Or a flush comes after the backend went away, and cannot make stable what may be lost.",
    whatToDo:
      "Look at the backend's log and at `cause`. The device goes on; other requests are not affected. After a loss, "
      + "write again what was written since the last flush that succeeded."
  },
  ENXIO: { when: "There is no such device or address.", whatToDo: "Check the path." },
  EBADF: {
    when: "A write to a device that was opened with `read-only`, or a descriptor that is not open.",
    whatToDo: "Open the device without `read-only`, or pass a descriptor that is open and not yet taken over."
  },
  ENOMEM: {
    when: "The system is out of memory, or the process is at its limit of locked memory.",
    whatToDo: "Allocate less, or raise the limit (`ulimit -l`, the memory limit of the container)."
  },
  EACCES: {
    when: "File permissions do not allow it, the passphrase of an image is wrong, or the property can only be read.",
    whatToDo: "Run as a user who may open the socket or device; connecting to a socket takes the right to write to it."
  },
  EFAULT: {
    when:
      "A buffer of a queue call does not lie in a memory region that is mapped for the device, the region is gone, or a "
      + "request that ran out of time (ETIME) still holds it.",
    whatToDo: "Take buffers from `disk.allocate(length)`, or `map` the region first; wait for `queue.released(buffer)`."
  },
  EBUSY: {
    when:
      "Too late in the device's life: the setting is for an earlier phase, or the device is started already. Or the "
      + "device has another user: vhost-vdpa and VFIO allow one, and so does an image that is written.",
    whatToDo: "Set it earlier, or connect again; end the other user."
  },
  EEXIST: {
    when: "A memory region overlaps one that is mapped, or an image is to be made where there is a file.",
    whatToDo: "Unmap the other one first, or map one region that covers both. Remove the file, or take another name."
  },
  ENODEV: {
    when:
      "Too early in the device's life, a queue that does not exist, a device of another kind, or a disk or device that was "
      + "removed.",
    whatToDo: "Connect first; count queues from 0; check the path; if disk or device was removed, close it."
  },
  ENOTDIR: { when: "A part of the path is not a directory.", whatToDo: "Check the path." },
  EISDIR: { when: "The path is a directory.", whatToDo: "Check the path." },
  EINVAL: {
    when: "A value breaks a rule; the message names the value and the rule.",
    whatToDo: "Correct the value. The device did not see the request, and the next one works."
  },
  ENFILE: { when: "The system is out of open files.", whatToDo: "Close some, or raise `fs.file-max`." },
  EMFILE: {
    when: "The process is out of file descriptors.",
    whatToDo: "Close devices and regions that are not needed, or raise the limit (`ulimit -n`)."
  },
  ENOTTY: {
    when: "A value for a property of another type.",
    whatToDo: "See [properties](properties.md) for its type."
  },
  EFBIG: { when: "Larger than the file may grow.", whatToDo: "Ask for less." },
  ENOSPC: {
    when: "No slot is left for another memory region (`max-mem-regions`), or no space.",
    whatToDo: "Map fewer, larger regions, and take buffers from them."
  },
  EROFS: {
    when: "The device is read-only, and was to be started for writing.",
    whatToDo: "Open it with `readOnly: true` (`read-only=true`)."
  },
  ENAMETOOLONG: {
    when: "The path is longer than the system takes: for a socket 107 bytes.",
    whatToDo: "Use a shorter path, for example a symbolic link in `/run`."
  },
  ELOOP: { when: "Too many symbolic links in a path.", whatToDo: "Check the links." },
  ETIME: {
    when:
      "Fewer completions than asked for came in time, or the device has not answered a request within `requestTimeout`.",
    whatToDo: "Ask again: no completion is lost. A request that is late may still be carried out, and holds its buffer "
      + "until `queue.released`."
  },
  EPROTO: {
    when: "The device or the backend broke the protocol. It is not believed any more: everything in flight fails.",
    whatToDo: "Close the device, report a bug of the backend, and keep the message, which says what it did."
  },
  EOVERFLOW: {
    when: "A value is too large to be counted: a disk of more than 2^53 - 1 bytes.",
    whatToDo: "Serve the disk in parts."
  },
  ENOTSOCK: { when: "The path or descriptor is not a socket.", whatToDo: "Check the path or `fd`." },
  EPROTOTYPE: { when: "The socket is not a stream socket.", whatToDo: "Check the path; another program may own it." },
  ENOTSUP: {
    when: "The device or the backend does not support it, or a storage daemon lacks the driver that an image needs.",
    whatToDo: "Do without: write zeroes instead of write-zeroes, for example, or use another backend. A driver is in "
      + "the package that the message names."
  },
  EADDRINUSE: { when: "Something else listens on that address.", whatToDo: "Use another one, or end the other." },
  ENOTCONN: {
    when:
      "The backend is gone: it ended, crashed or gave a queue up; or the device needs a reset. Everything in flight "
      + "fails. Where it is to reconnect: it did not come back, or too many wait for it.",
    whatToDo:
      "Connect again once it is back, or have it done (`reconnect`). Of writes that were in flight some may have "
      + "been done."
  },
  ESHUTDOWN: {
    when: "The device is closed or is closing: its Scope has ended.",
    whatToDo: "End requests before the Scope; a longer `closeTimeout` gives those in flight more time."
  },
  ETIMEDOUT: {
    when:
      "No answer in time: of a backend that is asked (it may serve another client), or of a device with requests in "
      + "flight (`deviceTimeout`).",
    whatToDo: "End the other client of the backend; give a slow device a longer `deviceTimeout`."
  },
  ECONNREFUSED: {
    when: "The socket is there, and nobody listens on it: its backend has ended.",
    whatToDo: "Start the backend, then try again."
  },
  ESTALE: {
    when:
      "The device that came back is not the one it was: it is smaller, calls itself otherwise, or has another block size, "
      + "fewer features or fewer queues; the message says which.",
    whatToDo: "Close it and open it anew."
  }
}

const classes = [...Errno.byNumber.values()]
const undeclared = classes.filter(({ identifier }) => advice[identifier as Errno.Tag] === undefined)

const errorsPage = `# Errors

Whatever a device, a backend or a caller does wrong is a typed error, named after its errno: \`_tag\` is the name,
\`errno\` the number, \`message\` says the operation, the value and the rule. Each operation's type holds exactly the errors
it can fail with, so \`catchTag\` is checked by the compiler:

\`\`\`ts
import { Errno } from "effect-blkio"
import { Effect } from "effect"

const read: Effect.Effect<string, Errno.EIO | Errno.ENOTCONN> = Effect.fail(
  new Errno.EIO({ operation: "read", offset: 4096, length: 512, detail: "the device reported an I/O error" })
)
const answer = read.pipe(Effect.catchTag("EIO", (error) => Effect.succeed(error.message)))
console.log(await Effect.runPromise(answer)) // => "read at 4096 of 512 bytes: the device reported an I/O error"
\`\`\`

An errno of the system that an operation does not name arrives as EIO, with the original in \`cause\`. \`isRetryable\` is
true where the same call may succeed later although the caller changes nothing; for the others trying again is no use.

${
  table(
    ["tag", "number", "when", "what to do", "retryable"],
    classes.flatMap((errorClass) => {
      const { _tag, errno, isRetryable } = new errorClass({ operation: "", detail: "" })
      const known = advice[_tag]
      return known === undefined ? [] : [[_tag, String(errno), known.when, known.whatToDo, isRetryable ? "yes" : "no"]]
    })
  )
}

No operation of this library declares ${
  undeclared.map(({ identifier }) => `\`${identifier}\``).join(", ")
}: these have classes for \`Errno.fromNumber\` in
programs of your own.
`

/** The pages, as they should be. */
export const pages: ReadonlyArray<Page> = [
  { path: "docs/properties.md", text: propertiesPage },
  { path: "docs/errors.md", text: errorsPage }
]

if (import.meta.main) {
  for (const { path, text } of pages) {
    writeFileSync(new URL(`../${path}`, import.meta.url), text)
  }
}
