/**
 * `blkio serve STORE --socket PATH`: serves a store over vhost-user, to one front-end after another, until it is told to stop.
 *
 * stderr says when it listens, who comes and who goes; on a terminal a line below that is drawn again every second. Nothing
 * waits for what is shown.
 *
 * SIGINT and SIGTERM are how it ends, and no failure: the front-end is disconnected, its requests that are with the store are
 * waited for, the socket is removed, the store flushed, and the exit code is 0; only a flush that fails makes it 1. A second
 * signal ends the process at once.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import { Command, Flag } from "effect/cli"
import type { BlockStore, StoreError } from "../BlockStore/Interface.ts"
import * as Errno from "../Errno.ts"
import type { Event, Statistics } from "../Export/Export.ts"
import { MAX_QUEUES } from "../Export/Options.ts"
import { ID_BYTES } from "../Wire/VirtioBlk.ts"
import { UsageError } from "./Device.ts"
import { CLEAR_LINE, DEFAULT_COLUMNS } from "./ProgressBar.ts"
import { type Figures, figuresOf, JSON_FIELDS, lineOf, type Reason, reasonOf, type ServeEvent } from "./ServeEvent.ts"
import * as Store from "./Store.ts"
import { formatBytes } from "./format.ts"

const IO_FAILED = 1
const SIGNALS = ["SIGINT", "SIGTERM"] as const
const MS_PER_S = 1000
const LIVE_EVERY_MS = 1000
/** What a shell adds to a signal's number. */
const ENDED_BY_SIGNAL = 128
const MIN_BLOCK_BYTES = 512
const MAX_BLOCK_BYTES = 2 ** 30

const isBlockSize = (n: number) => n >= MIN_BLOCK_BYTES && n <= MAX_BLOCK_BYTES && Number.isInteger(Math.log2(n))

const refuse = (detail: string) => new UsageError({ reason: new Errno.EINVAL({ operation: "serve", detail }) })

const HELP = `Serve a disk over a vhost-user socket, until SIGINT or SIGTERM.

  STORE is
    driver[,property=value…]  what another backend serves
    image:PATH                an image of any format, by qemu-storage-daemon; nbd:URI and rbd:POOL/IMAGE[@CONF], too
    file:PATH                 a file or a block device
    memory:SIZE               zeroes at first, lost at the end; SIZE is 4096, 64M or 1G, for example
    overlay:PATH              a file that stays as it is: what is written is lost at the end

  An object of --json has the event as its "event", and with it
${JSON_FIELDS}`

/** The command. */
export const serve = Command.make(
  "serve",
  {
    store: Store.argument("STORE"),
    socket: Flag.String("socket").pipe(
      Flag.filter((path) => path !== "", () => "a path"),
      Flag.withMetavar("PATH"),
      Flag.withDescription("The Unix socket to make; one that a killed process left behind is replaced")
    ),
    readOnly: Flag.Boolean("read-only").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Open the store read-only, and refuse what would change it")
    ),
    queues: Flag.Int("queues").pipe(
      Flag.withDefault(1),
      Flag.filter((n) => n >= 1 && n <= MAX_QUEUES, () => `1 to ${MAX_QUEUES}`),
      Flag.withDescription(`Request queues, 1 to ${MAX_QUEUES}`)
    ),
    serial: Flag.String("serial").pipe(
      Flag.withDefault("effect-blkio"),
      Flag.filter((text) => Buffer.byteLength(text) <= ID_BYTES, () => `at most ${ID_BYTES} bytes`),
      Flag.withMetavar("TEXT"),
      Flag.withDescription(`What the disk calls itself, at most ${ID_BYTES} bytes`)
    ),
    blockSize: Flag.Int("block-size").pipe(
      Flag.filter(isBlockSize, () => `a power of two from ${MIN_BLOCK_BYTES} to ${MAX_BLOCK_BYTES}`),
      Flag.optional,
      Flag.withMetavar("BYTES"),
      Flag.withDescription("The disk's logical block (default: the store's)")
    ),
    noWriteCache: Flag.Boolean("no-write-cache").pipe(
      Flag.withDefault(false),
      Flag.withoutNegation,
      Flag.withDescription("Make each write stable before it is acknowledged")
    ),
    json: Flag.Boolean("json").pipe(
      Flag.withDefault(false),
      Flag.withDescription("One JSON object a line on stdout for each event, and none of them on stderr")
    )
  },
  Effect.fnUntraced(
    function*(options) {
      yield* endAtSecondSignal
      const parsed = yield* Store.parse(options.store)
      const store = yield* options.readOnly ? Store.openSource(parsed) : Store.openShared(parsed)
      const blockSize = options.blockSize._tag === "Some" ? options.blockSize.value : store.blockSize
      if (store.capacity % blockSize !== 0) {
        return yield* refuse(
          `${store.id} has ${store.capacity} bytes: must be a multiple of the block size ${blockSize}`
        )
      }
      // Only this command needs it.
      const { serve } = yield* Effect.promise(() => import("../Export/Export.ts"))
      const stdio = yield* Stdio.Stdio
      const isLive = !options.json && process.env["TERM"] !== "dumb" && (yield* stdio.stderrIsTerminal)
      const say = (event: ServeEvent) =>
        options.json
          ? Console.log(JSON.stringify(event))
          : Console.error((isLive ? CLEAR_LINE : "") + lineOf(event))

      const readOnly = options.readOnly || store.readOnly
      // A Scope of its own: a device that is opened begins to close with the Scope that it was opened in.
      return yield* Effect.scoped(Effect.gen(function*() {
        let frontends: Frontends | undefined
        // Before the export is made, and so run after it has ended.
        yield* Effect.addFinalizer(() =>
          frontends === undefined ? Effect.void : finish(store, readOnly, frontends, say)
        )
        const { capacity: bytes, events, path, statistics } = yield* serve(store, {
          path: options.socket,
          readOnly,
          numQueues: options.queues,
          serial: options.serial,
          blockSize,
          writeCache: !options.noWriteCache
        }).pipe(Effect.mapError((error) => error._tag === "EINVAL" ? new UsageError({ reason: error }) : error))
        const present = frontends = new Frontends(statistics)
        yield* events.pipe(
          Stream.runForEach((event) => say(present.take(event))),
          Effect.forkScoped({ startImmediately: true })
        )
        yield* say({ event: "serving", store: store.id, path, bytes, queues: options.queues, readOnly })
        const show = (text: string) => Effect.ignore(Stream.run(Stream.make(CLEAR_LINE + text), stdio.stderr()))
        return yield* isLive ? showLive(statistics, show) : Effect.never
      }))
    },
    Effect.scoped,
    // Whatever it was doing when it was told to stop.
    Effect.onInterrupt(() =>
      Effect.sync(() => {
        process.exitCode ??= 0
      })
    ),
    // stdout is for events.
    Effect.provideService(References.LogToStderr, true)
  )
).pipe(
  Command.withShortDescription("Serve a disk over a vhost-user socket"),
  Command.withDescription(HELP),
  Command.withExamples([
    {
      command: "blkio serve file:disk.raw --socket /run/disk.sock --queues 4",
      description: "For a virtual machine: connect QEMU's vhost-user-blk-pci to the socket"
    },
    {
      command: "blkio serve overlay:golden.raw --socket /run/scratch.sock",
      description: "Let somebody write to a disk that stays as it is"
    }
  ])
)

/** Makes events of an export into what is told: which front-end it is, and what it did while it was there. */
class Frontends {
  readonly #statistics: Statistics
  readonly #began = performance.now()
  #count = 0
  #here: { readonly at: number; readonly before: Figures } | undefined

  constructor(statistics: Statistics) {
    this.#statistics = statistics
  }

  /** One has come, or has gone for a reason. */
  take(event: Event): ServeEvent {
    if (event._tag === "disconnected") return this.#gone(reasonOf(event))
    this.#count++
    this.#here = { at: performance.now(), before: figuresOf(this.#statistics) }
    return { event: "connected", frontend: this.#count }
  }

  /** The export has ended; answers what that means for the one that was there, if any. */
  cutOff(): ServeEvent | undefined {
    return this.#here === undefined ? undefined : this.#gone({ errno: null, reason: "the server was stopped" })
  }

  /** What all of them did. */
  total(): ServeEvent {
    return {
      event: "stopped",
      connections: this.#count,
      seconds: secondsSince(this.#began),
      ...figuresOf(this.#statistics)
    }
  }

  #gone(reason: Reason): ServeEvent {
    const { at, before } = this.#here ?? { at: this.#began, before: undefined }
    this.#here = undefined
    return {
      event: "disconnected",
      frontend: this.#count,
      seconds: secondsSince(at),
      ...figuresOf(this.#statistics, before),
      ...reason
    }
  }
}

const secondsSince = (at: number): number => (performance.now() - at) / MS_PER_S

/** Makes stable what was acknowledged, after the last request, and says what was done. */
const finish = Effect.fnUntraced(function*(
  store: BlockStore,
  readOnly: boolean,
  frontends: Frontends,
  say: (event: ServeEvent) => Effect.Effect<void>
) {
  const last = frontends.cutOff()
  if (last !== undefined) yield* say(last)
  if (!readOnly) yield* Effect.catch(store.flush, reportFailure)
  yield* say(frontends.total())
})

const reportFailure = (error: StoreError) =>
  Effect.andThen(
    Console.error(`${error._tag}: ${error.message}`),
    Effect.sync(() => {
      process.exitCode = IO_FAILED
    })
  )

/** Shows what is done in each second, below what was said. */
const showLive = (statistics: Statistics, show: (line: string) => Effect.Effect<void>): Effect.Effect<never> => {
  let last = { at: performance.now(), ...figuresOf(statistics) }
  const once = Effect.suspend(() => {
    const now = { at: performance.now(), ...figuresOf(statistics) }
    const seconds = (now.at - last.at) / MS_PER_S
    const bytes = now.bytesRead + now.bytesWritten - last.bytesRead - last.bytesWritten
    const line = `${Math.round((now.requests - last.requests) / seconds)} IOPS  ${formatBytes(bytes / seconds)}/s  `
      + `${statistics.inFlight} in flight`
    last = now
    // The last column stays free, since terminals wrap there.
    return show(line.slice(0, Math.max(0, (process.stderr.columns || DEFAULT_COLUMNS) - 1)))
  })
  return Effect.forever(Effect.andThen(Effect.sleep(LIVE_EVERY_MS), once))
}

/** Ends the process at the second signal, however long what the first one began may take. */
const endAtSecondSignal: Effect.Effect<void, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    let isStopping = false
    const onSignal = (_signal: NodeJS.Signals, number: number) => {
      if (isStopping) process.exit(ENDED_BY_SIGNAL + number)
      isStopping = true
    }
    for (const signal of SIGNALS) process.on(signal, onSignal)
    return onSignal
  }),
  (onSignal) =>
    Effect.sync(() => {
      for (const signal of SIGNALS) process.removeListener(signal, onSignal)
    })
)
