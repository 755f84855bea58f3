/**
 * Where this library means to answer otherwise than libblkio 1.5, and why: what the differential test excuses, and what
 * docs/differences.md tells people. Nothing else may differ.
 */

/** One line of a script, and what both sides said to it: `0`, `0` and a value, or the name of an errno. */
export interface Answer {
  readonly line: string
  readonly libblkio: string
  readonly ours: string
}

export interface Difference {
  readonly what: string
  readonly libblkio: string
  readonly ours: string
  readonly why: string
  /** Whether an answer that differs is an instance of this. Undefined: no script of calls shows it. */
  readonly excuses?: (answer: Answer) => boolean
}

const wordsOf = (line: string) => line.split(" ")
const isRequest = (line: string) => /^(read|write|readv|writev|write-zeroes|discard) /.test(line)

export const differences: ReadonlyArray<Difference> = [
  {
    what: "A range that ends beyond the capacity, and a length that is not a multiple of request-alignment",
    libblkio: "is sent; the device answers `EIO`",
    ours: "`EINVAL`, naming the rule; the device never sees it",
    why: "The driver knows both, and an I/O error says that the medium is at fault.",
    excuses: ({ libblkio, line, ours }) => isRequest(line) && libblkio === "EIO" && ours === "EINVAL"
  },
  {
    what: "Reads and writes of no bytes",
    libblkio: "are sent; qemu-storage-daemon gives the device up, and this request and all later ones hang",
    ours: "`EINVAL` on a queue; the convenience calls of `BlockDevice` succeed and do nothing",
    why: "A virtio descriptor of length 0 is not allowed.",
    excuses: ({ libblkio, line, ours }) =>
      /^(read|write) \d+ 0 /.test(line) && ours === "EINVAL" && libblkio === "ETIME"
  },
  {
    what: "Discards and zeroes of no bytes",
    libblkio: "are sent; the device succeeds",
    ours: "`EINVAL` on a queue; the convenience calls of `BlockDevice` succeed and do nothing",
    why: "One rule for all requests that carry a range.",
    excuses: ({ libblkio, line, ours }) =>
      /^(write-zeroes|discard) \d+ 0 /.test(line) && ours === "EINVAL" && libblkio === "0"
  },
  {
    what: "Ranges of 2^32 sectors and more",
    libblkio: "are cut to 32 bits and sent; this request and all later ones hang",
    ours: "`EINVAL`; the convenience calls of `BlockDevice` split them",
    why: "The number of sectors travels in 32 bits.",
    excuses: ({ libblkio, line, ours }) =>
      /^(write-zeroes|discard) /.test(line) && Number(wordsOf(line)[2]) >= 2 ** 41 && ours === "EINVAL"
      && libblkio === "ETIME"
  },
  {
    what: "More segments than max-segments",
    libblkio: "are never queued, or are refused by the device; this request and all later ones may hang",
    ours: "`EINVAL`; the next request works",
    why: "What can never be queued is answered at once.",
    excuses: ({ libblkio, line, ours }) =>
      /^(readv|writev) /.test(line) && wordsOf(line).length > 20 && ours === "EINVAL" && libblkio !== "EINVAL"
  },
  {
    what: "A buffer in no mapped memory region",
    libblkio: "is sent; the daemon gives the device up, and this request and all later ones hang",
    ours: "`EFAULT` on a queue; the convenience calls of `BlockDevice` take any memory",
    why: "Only the driver can notice it in time.",
    excuses: ({ libblkio, line, ours }) => line.startsWith("read-unmapped") && ours === "EFAULT" && libblkio === "ETIME"
  },
  {
    what: "Requests after one of those that libblkio hangs on",
    libblkio: "hang",
    ours: "work",
    why: "A wrong request harms nobody but itself.",
    excuses: ({ libblkio, line, ours }) => line === "flush 0" && ours === "0" && libblkio === "ETIME"
  },
  {
    what: "Mapping a region that overlaps another one",
    libblkio: "is left to the backend: qemu-storage-daemon 7.2 accepts it, 10 says that it does and goes away",
    ours: "`EEXIST`, before the backend is asked",
    why: "Backends acknowledge what they then refuse.",
    excuses: ({ line, ours }) => line === "map-overlap" && ours === "EEXIST"
  },
  {
    what: "max-mem-regions",
    libblkio: "counts the slot that holds the rings",
    ours: "is what can be mapped",
    why: "The last region that libblkio allows ends the connection.",
    excuses: ({ libblkio, line, ours }) =>
      line === "get max-mem-regions" && Number(libblkio.slice(2)) === Number(ours.slice(2)) + 1
  },
  {
    what: "Connecting twice",
    libblkio: "does nothing and succeeds while connected; `EBUSY` once started",
    ours: "a created device is a plan: each time it connects is a connection of its own",
    why: "Reconnecting needs it. A connected device has no `connect`, which the compiler checks."
  },
  {
    what: "Starting twice",
    libblkio: "does nothing and succeeds",
    ours: "`EBUSY`",
    why: "The second start would be believed to have taken its own options.",
    excuses: ({ libblkio, line, ours }) => line === "start" && libblkio === "0" && ours === "EBUSY"
  },
  {
    what: "path, fd and driver",
    libblkio: "path is set on the created device; fd exists for some drivers only (`ENOENT`)",
    ours: "are chosen with the transport, and read-only properties of the device (`EACCES`)",
    why: "A transport is a value that connects again and again; its place cannot change under it.",
    excuses: ({ libblkio, line, ours }) =>
      /^set (path|fd) /.test(line) && ours === "EACCES" && ["0", "EBUSY", "ENOENT"].includes(libblkio)
      || line === "get fd" && ours === "0 -1" && libblkio === "ENOENT"
  },
  {
    what: "A property that can not be set now, and a value that it can not have",
    libblkio: "text is parsed first: `EINVAL`",
    ours: "the phase is checked before the value: `EACCES`, `ENODEV` or `EBUSY`",
    why: "What cannot be set at all need not be spelled right first.",
    excuses: ({ libblkio, line, ours }) =>
      line.startsWith("set ") && libblkio === "EINVAL" && ["EACCES", "ENODEV", "EBUSY"].includes(ours)
  },
  {
    what: "The types int and uint64 of properties",
    libblkio: "are two: the wrong one is `ENOTTY`",
    ours: "are one, the number; `ENOTTY` is for a value that is none",
    why: "JavaScript has one kind of number.",
    excuses: ({ libblkio, line, ours }) => line.startsWith("set-int ") && libblkio === "ENOTTY" && ours === "EACCES"
  },
  {
    what: "`_` in the name of a property",
    libblkio: "is unknown (`ENOENT`)",
    ours: "stands for `-`",
    why: "Environment variables and JSON keys are written so.",
    excuses: ({ libblkio, line }) => /^(get|set) \w*_/.test(line) && libblkio === "ENOENT"
  },
  {
    what: "device-read-only, min-io-size, topology-alignment-offset",
    libblkio: "do not exist (`ENOENT`)",
    ours: "tell what the device says",
    why: "Otherwise that a device is read-only is learned from a failed start.",
    excuses: ({ libblkio, line }) =>
      /^get (device-read-only|min-io-size|topology-alignment-offset)$/.test(line) && libblkio === "ENOENT"
  },
  {
    what: "Properties of a device that is not connected",
    libblkio: "give a default, but capacity, max-queues and max-mem-regions, which are `ENODEV`",
    ours: "the same by name; in a program the three do not compile",
    why: "What is wrong is said where it is written."
  },
  {
    what: "Calls in the wrong phase (map before start, set num-queues after it, …)",
    libblkio: "`ENODEV` or `EBUSY`",
    ours: "do not compile; the same errno where the name of a property comes from outside",
    why: "Each phase is a value of its own type."
  },
  {
    what: "A backend that dies or says nothing",
    libblkio: "leaves requests in flight, and later ones, waiting for ever",
    ours: "`ENOTCONN` at once, or `ETIMEDOUT` after `deviceTimeout`, for all of them",
    why: "A front-end that watches its socket knows."
  },
  {
    what: "Requests that do not fit",
    libblkio: "are kept in a backlog without bound",
    ours: "suspend whoever submits them, first come first served",
    why: "Backpressure."
  }
]

/** The page that people read. */
export const page = (): string =>
  `# Differences from libblkio

This library answers as libblkio 1.5 does, errno for errno, but where that hangs, crashes the other side, or leaves
something to be guessed. This is all of it. \`test/conformance/differential.test.ts\` sends the same calls through both
and fails on any difference that is not in this list, from which this page is made
(\`test/conformance/differences.ts\`).

| what | libblkio 1.5 | here | why |
| --- | --- | --- | --- |
${differences.map(({ libblkio, ours, what, why }) => `| ${what} | ${libblkio} | ${ours} | ${why} |`).join("\n")}
`
