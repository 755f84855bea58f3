/**
 * A Linux guest under QEMU without KVM.
 *
 * A guest boots the kernel of the cache that `build` fills, with an initramfs packed here from the cache's base, from
 * the folder `initramfs` as it is now, and from the files that a test hands over. Its init runs jobs, the scripts in
 * `initramfs/jobs`, and powers off; what they print as `fact NAME VALUE` is what {@link boot} gives. There is no network.
 *
 * QEMU and the folder with the initramfs go with the Scope of the run, and also if this process is killed.
 */
import { Data, Duration, Effect, Fiber, FileSystem, Stream } from "effect"
import { ChildProcess } from "effect/process"
import { execFileSync } from "node:child_process"
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as ExitCode from "../../src/QemuStorageDaemon/ExitCode.ts"
import * as OrphanGuard from "../../src/QemuStorageDaemon/OrphanGuard.ts"
import { cache, environment } from "./requirement.ts"

/** A machine, in QEMU's own words where they are needed. */
export interface Machine {
  readonly processors: number
  readonly memoryMiB: number
  /** Properties of QEMU's q35 beside those that every guest has here. */
  readonly chipset?: string
  /** Devices and what they need, as QEMU takes them. */
  readonly devices: ReadonlyArray<string>
  /** What the kernel is told beside what every guest tells it. */
  readonly kernelOptions?: string
}

/** What to run in a guest. */
export interface Options {
  readonly machine: Machine
  /** What to run, in this order: names in `initramfs/jobs`. */
  readonly jobs: ReadonlyArray<string>
  /** Files for the guest's folder /content, by name. Default: none. */
  readonly content?: { readonly [name: string]: Uint8Array | string }
  /** How long it may take. Default: about ten times what a boot with jobs takes where nothing else runs. */
  readonly timeLimit?: Duration.Duration
}

/** A guest that did not come to its end, with all it said and QEMU's own words. */
export class GuestFailed extends Data.TaggedError("GuestFailed")<{ readonly how: string; readonly output: string }> {
  override get message(): string {
    return `the guest ${this.how}:\n${this.output}`
  }
}

const defaultTimeLimit = Duration.minutes(2)

/**
 * What the kernel says goes where init writes to, if it is an error. A panic reboots at once, which ends QEMU. The rest
 * saves time, and warnings of delays on a busy machine.
 */
const kernelOptions = "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests tsc=reliable nowatchdog"

/** Boots a guest, waits until it has powered off, and gives the facts that its jobs have told. */
export const boot = Effect.fnUntraced(function*(options: Options) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-guest-" })
  const qemu = yield* ChildProcess.make("qemu-system-x86_64", qemuArguments(options, packInitramfs(folder, options)), {
    env: environment,
    stdin: "ignore",
    killSignal: "SIGTERM",
    forceKillAfter: "1 second"
  })
  yield* OrphanGuard.make(qemu.pid, folder, Duration.seconds(1))

  let output = ""
  const reader = yield* Stream.runForEach(Stream.decodeText(qemu.all), (text) =>
    Effect.sync(() => {
      output += text
    })).pipe(Effect.forkScoped)
  const { timeLimit = defaultTimeLimit } = options
  const exitCode = yield* ExitCode.of(qemu).pipe(
    Effect.tap(Fiber.await(reader)),
    Effect.timeoutOrElse({
      duration: timeLimit,
      orElse: () => Effect.fail(new GuestFailed({ how: `took more than ${Duration.format(timeLimit)}`, output }))
    })
  )
  const lines = output.split("\n")
  // After a panic, too, QEMU ends with exit code 0.
  if (exitCode !== 0 || !lines.includes("done")) {
    return yield* new GuestFailed({ how: `ended early, QEMU with exit code ${exitCode}`, output })
  }
  const facts = lines.flatMap((line) => {
    const [, name, value] = /^fact (\S+) (.*)$/.exec(line) ?? []
    return name === undefined || value === undefined ? [] : [[name, value] as const]
  })
  return Object.fromEntries(facts)
}, Effect.scoped)

/** A value of QEMU's command line, in which a comma is written twice. */
export const escape = (value: string): string => value.replaceAll(",", ",,")

/** Packs what the guest begins with, and gives the archive's path: the kernel unpacks several, one after another. */
const packInitramfs = (folder: string, { content = {} }: Options): string => {
  const root = join(folder, "root")
  cpSync(fileURLToPath(new URL("initramfs", import.meta.url)), root, { recursive: true })
  mkdirSync(join(root, "content"))
  for (const [name, bytes] of Object.entries(content)) writeFileSync(join(root, "content", name), bytes)
  const own = execFileSync(cache.busybox, ["cpio", "-o", "-H", "newc"], {
    cwd: root,
    input: readdirSync(root, { recursive: true }).join("\n"),
    stdio: ["pipe", "pipe", "ignore"],
    maxBuffer: Infinity
  })
  const path = join(folder, "initramfs.cpio")
  writeFileSync(path, Buffer.concat([readFileSync(cache.base), own]))
  return path
}

const qemuArguments = ({ jobs, machine }: Options, initramfs: string): ReadonlyArray<string> => [
  "-nodefaults",
  "-no-user-config",
  "-no-reboot",
  ...Object.entries({
    display: "none",
    serial: "stdio",
    // Without what the guest would only look for.
    machine: `q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off${
      machine.chipset === undefined ? "" : `,${machine.chipset}`
    }`,
    m: String(machine.memoryMiB),
    accel: "tcg,thread=multi",
    // Five levels of page tables cost an emulated processor more than four.
    cpu: "max,la57=off",
    smp: String(machine.processors),
    kernel: cache.kernel,
    initrd: initramfs,
    // init finds it in its environment.
    append: `${kernelOptions} ${machine.kernelOptions ?? ""} jobs=${jobs.join(",")}`
  }).flatMap(([name, value]) => [`-${name}`, value]),
  ...machine.devices,
  // By this a job that fails ends QEMU with an exit code.
  "-device",
  "isa-debug-exit,iobase=0xf4,iosize=0x04"
]
