/**
 * A guest with devices that a program of ours drives itself: virtio disks behind an IOMMU, and vDPA.
 *
 * The program is bundled into one file, for to load many is slow in a guest. It runs on the host's own Node, which the
 * guest sees with the whole of the host's root, read-only, by 9p. What it prints is what {@link run} gives.
 *
 * Emulated processors are slow, and two of them wait for each other on a busy machine: the guest has one.
 */
import { Duration, Effect, FileSystem } from "effect"
import { realpathSync } from "node:fs"
import { createRequire } from "node:module"
import { join } from "node:path"
import { rolldown } from "rolldown"
import { boot, escape, GuestFailed, type Machine } from "./Machine.ts"
import { FIRST_SLOT, functionsOf, type PciDisk, QUEUES } from "./hardware.ts"

/** A disk of the guest, whose image is on the host. */
export interface Disk extends PciDisk {
  readonly image: string
}

/** What to run in a guest. */
export interface Options {
  /** The program's TypeScript, and what it is called with. */
  readonly program: string
  readonly argument: string
  /** Disks for VFIO, each with the PCI function it is found at. */
  readonly functions: { readonly [name: string]: Disk }
  /** The image of the disk that the guest serves to itself by vDPA, if it does. */
  readonly vdpa: string | undefined
}

const blk = (name: string, image: string, properties: string): ReadonlyArray<string> => [
  "-blockdev",
  `driver=file,node-name=${name},filename=${escape(image)},cache.no-flush=on,discard=unmap`,
  "-device",
  `virtio-blk-pci,drive=${name},serial=${name},disable-legacy=on,num-queues=${QUEUES},queue-size=256,${properties}`
]

const machine = (disks: ReadonlyArray<readonly [string, Disk]>, vdpa: string | undefined, report: string): Machine => ({
  processors: 1,
  memoryMiB: 1024,
  kernelOptions: "intel_iommu=on lsm= audit=0 random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1",
  devices: [
    "-device",
    "intel-iommu,intremap=on,device-iotlb=off",
    "-fsdev",
    "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
    "-device",
    "virtio-9p-pci,fsdev=host,mount_tag=host,disable-legacy=on,addr=2",
    "-device",
    "virtio-serial-pci,disable-legacy=on,addr=4",
    "-chardev",
    `file,id=report,path=${escape(report)}`,
    "-device",
    "virtserialport,chardev=report,name=report",
    "-object",
    "rng-builtin,id=random",
    "-device",
    "virtio-rng-pci,rng=random,disable-legacy=on,addr=5",
    ...disks.flatMap(([name, { image, placement, properties = "" }], i) => {
      const slot = (FIRST_SLOT + i).toString(16)
      const place = placement === "root" ? `bus=pcie.0,addr=${slot}` : `bus=port${i}`
      const port = ["-device", `pcie-root-port,id=port${i},bus=pcie.0,addr=${slot},chassis=${i + 1},slot=${i + 1}`]
      return [
        ...placement === "port" ? port : [],
        ...blk(name, image, ["iommu_platform=on", place, ...properties === "" ? [] : [properties]].join(","))
      ]
    }),
    ...vdpa === undefined ? [] : blk("vdpa", vdpa, "bus=pcie.0,addr=6")
  ]
})

/** Makes one file of a program. koffi is native code: the bundle finds it where it is on the host. */
const bundle = (program: string): Effect.Effect<string> =>
  Effect.promise(async () => {
    const require = createRequire(import.meta.url)
    const build = await rolldown({
      input: program,
      platform: "node",
      external: ["koffi"],
      resolve: { conditionNames: ["@effect-blkio/source", "node", "import", "default"] },
      logLevel: "warn"
    })
    const { output: [main] } = await build.generate({
      format: "esm",
      codeSplitting: false,
      paths: { koffi: realpathSync(require.resolve("koffi")) }
    })
    await build.close()
    return main.code
  })

/** What V8 compiles pays off later than a program lives here, since QEMU has to translate it again. */
const nodeOptions = "--no-opt --no-maglev --no-sparkplug"

/** About ten times what it takes where nothing else runs. */
const timeLimit = Duration.minutes(8)

/** Boots a guest, runs the program in it, and gives what it printed. */
export const run = Effect.fnUntraced(function*({ argument, functions, program, vdpa }: Options) {
  const fs = yield* FileSystem.FileSystem
  const report = join(yield* fs.makeTempDirectoryScoped({ prefix: "blkio-guest-report-" }), "report")
  const disks = Object.entries(functions)
  const content = {
    "program.mjs": yield* bundle(program),
    "functions": functionsOf(disks.map(([, disk]) => disk)).map((name) => `${name}\n`).join(""),
    "command": `${realpathSync(process.execPath)} ${nodeOptions} /run/content/program.mjs ${argument}`
  }
  yield* boot({
    machine: machine(disks, vdpa, report),
    jobs: ["bind-vfio", "enter-host", ...vdpa === undefined ? [] : ["serve-vdpa"], "run-program"],
    content,
    timeLimit
  }).pipe(
    Effect.catchTag(
      "GuestFailed",
      Effect.fnUntraced(function*({ how, output }) {
        const printed = yield* Effect.orElseSucceed(fs.readFileString(report), () => "")
        return yield* new GuestFailed({ how, output: `${output}\nIt had reported:\n${printed}` })
      })
    )
  )
  return yield* fs.readFileString(report)
}, Effect.scoped)
