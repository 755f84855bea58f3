/**
 * A PCI device that VFIO has opened: its configuration space, its registers, its interrupts, and its reset.
 *
 * Registers are read and written by pread and pwrite, each by one call of exactly its width, which the kernel turns into one
 * access of that width. They are not mapped, though most could be: a device that is taken away, or that is being reset, makes
 * such a call fail, where the access to a mapping would end the process or read ones. What is hot is the doorbells alone, and
 * these are mapped where the device allows it ({@link VfioDevice.mapArea}).
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Errno from "../Errno.ts"
import { Kernel, type KernelCalls } from "../Native/Kernel.ts"
import type { Mapping } from "../Native/Libc.ts"
import { SyscallError } from "../Native/SyscallError.ts"
import { viewOf } from "../Wire/Bounds.ts"
import { COMMAND, CONFIG_SPACE_BYTES, type Location } from "../Wire/PciCapability.ts"
import * as Vfio from "../Wire/VfioIoctl.ts"
import { call, callPooled, decoded, OPERATION } from "./VfioCall.ts"

const { VfioRequest } = Vfio

/** A register: where it lies among its kind, and how wide it is in bytes. */
export interface Register {
  readonly at: number
  readonly width: 1 | 2 | 4
}

/** Registers that lie together. Both calls throw a SyscallError. */
export interface Registers {
  readonly read: (register: Register) => number
  readonly write: (register: Register, value: number) => void
}

/** A PCI device. */
export interface VfioDevice {
  /** The first 256 bytes of the configuration space. */
  readonly configSpace: Uint8Array
  /** How many interrupts of a kind can be told to an event counter. */
  readonly interrupts: (index: number) => Effect.Effect<number, Errno.EPROTO | Errno.EIO>
  /** Has interrupts of a kind signal event counters; answers 0, or how many there can be where these were too many. */
  readonly listen: (index: number, fds: ReadonlyArray<number>) => Effect.Effect<number, Errno.EIO>
  /** Ends {@link VfioDevice.listen}. */
  readonly unlisten: (index: number) => Effect.Effect<void, Errno.EIO>
  /** Lets an interrupt come again that was masked when it came. Throws a SyscallError. */
  readonly unmask: (index: number) => void
  /** Switches bits of the command register on, and others off. */
  readonly command: (on: number, off: number) => Effect.Effect<void, Errno.EIO>
  /** Whether the device can be reset as a whole. */
  readonly canReset: boolean
  readonly reset: Effect.Effect<void, Errno.EIO>
  /** Opens the registers of a structure in a BAR; EPROTO where the BAR is smaller than the structure says. */
  readonly registers: (name: string, location: Location) => Effect.Effect<Registers, Errno.EPROTO | Errno.EIO>
  /** Where a location lies in the device's descriptor, and the area of the BAR around it that can be mapped, if any. */
  readonly place: (name: string, location: Location) => Effect.Effect<Place, Errno.EPROTO | Errno.EIO>
  /** Maps an area of a BAR. Throws a SyscallError. */
  readonly mapArea: (area: Vfio.Area) => Mapping
  readonly unmapArea: (mapping: Mapping) => void
  /** Writes to a position of the device's descriptor. Throws a SyscallError. */
  readonly writeAt: (bytes: Uint8Array, position: number) => void
}

/** Where something lies in the device's descriptor. */
export interface Place {
  readonly position: number
  /** An area that holds all of it and may be mapped, by its position in the descriptor. */
  readonly mappable: Vfio.Area | undefined
}

const EINVAL = 22

/** Opens a device by its descriptor, which stays the caller's. */
export const make = Effect.fnUntraced(
  function*(fd: number, path: string): Effect.fn.Return<VfioDevice, Errno.ENODEV | Errno.EPROTO | Errno.EIO> {
    const kernel = yield* Kernel
    const ask = (request: number, argument: Uint8Array, detail: string) =>
      call(() => kernel.ioctl(fd, request, argument), { detail, path, tags: [] })

    const filled = Vfio.encodeDeviceInfo()
    yield* ask(VfioRequest.DEVICE_GET_INFO, filled, "the device does not tell what it is")
    const info = yield* decoded(() => Vfio.decodeDeviceInfo(filled))
    if (!info.isPci || info.regions <= Vfio.CONFIG_REGION) {
      return yield* new Errno.ENODEV({ operation: OPERATION, path, detail: "to VFIO this is no PCI device" })
    }

    const region = Effect.fnUntraced(function*(index: number) {
      const detail = `region ${index} cannot be had`
      const first = Vfio.encodeRegionInfo(index)
      yield* ask(VfioRequest.DEVICE_GET_REGION_INFO, first, detail)
      const needed = yield* decoded(() => Vfio.neededBytes(first))
      const bytes = needed === first.length ? first : Vfio.encodeRegionInfo(index, needed)
      if (bytes !== first) yield* ask(VfioRequest.DEVICE_GET_REGION_INFO, bytes, detail)
      return yield* decoded(() => Vfio.decodeRegionInfo(bytes))
    })
    const place = Effect.fnUntraced(function*(name: string, { bar, length, offset }: Location) {
      const { mappable, offset: start, size } = yield* region(bar)
      if (offset + length > size) {
        const detail = `${name} of ${length} bytes at ${offset}: must lie within the ${size} bytes of BAR ${bar}`
        return yield* new Errno.EPROTO({ operation: OPERATION, path, detail })
      }
      const area = mappable.find((area) => area.offset <= offset && offset + length <= area.offset + area.length)
      return {
        position: start + offset,
        mappable: area === undefined ? undefined : { offset: start + area.offset, length: area.length }
      }
    })

    const config = yield* region(Vfio.CONFIG_REGION)
    if (config.size < CONFIG_SPACE_BYTES) {
      const detail = `configuration space of ${config.size} bytes: must have at least ${CONFIG_SPACE_BYTES}`
      return yield* new Errno.EPROTO({ operation: OPERATION, path, detail })
    }
    const configSpace = new Uint8Array(CONFIG_SPACE_BYTES)
    const configRegisters = registersAt(kernel, fd, config.offset)
    yield* call(() => exactly(configSpace.length, kernel.readAt(fd, configSpace, config.offset), "pread"), {
      detail: "the configuration space cannot be read",
      path,
      tags: []
    })

    const listen = (index: number, fds: ReadonlyArray<number>) =>
      call(() => kernel.ioctl(fd, VfioRequest.DEVICE_SET_IRQS, Vfio.encodeIrqEvents(index, fds)), {
        detail: `${fds.length} interrupts of kind ${index} cannot be had`,
        path,
        tags: []
      })
    const command = { at: COMMAND, width: 2 } as const
    return {
      configSpace,
      interrupts: (index) => {
        if (index >= info.irqs) return Effect.succeed(0)
        const bytes = Vfio.encodeIrqInfo(index)
        return call(() => {
          try {
            kernel.ioctl(fd, VfioRequest.DEVICE_GET_IRQ_INFO, bytes)
            return true
          } catch (error) {
            // A kind that this device cannot have, as errors of PCI Express on plain PCI.
            if (error instanceof SyscallError && error.errno === EINVAL) return false
            throw error
          }
        }, { detail: `interrupts of kind ${index} cannot be had`, path, tags: [] }).pipe(
          Effect.flatMap((isThere) =>
            isThere ? Effect.map(decoded(() => Vfio.decodeIrqInfo(bytes)), ({ count }) => count) : Effect.succeed(0)
          )
        )
      },
      listen,
      unlisten: (index) =>
        Effect.asVoid(
          ask(VfioRequest.DEVICE_SET_IRQS, Vfio.encodeIrqDisable(index), `interrupts of kind ${index} stay`)
        ),
      unmask: (index) => {
        kernel.ioctl(fd, VfioRequest.DEVICE_SET_IRQS, Vfio.encodeIrqUnmask(index))
      },
      command: (on, off) =>
        call(() => {
          // Bit 0 enables I/O ports, which are not used; the others are kept as they are.
          configRegisters.write(command, (configRegisters.read(command) | on) & ~off)
        }, { detail: "the command register cannot be written", path, tags: [] }),
      canReset: info.canReset,
      reset: Effect.asVoid(callPooled(kernel, fd, VfioRequest.DEVICE_RESET, 0, {
        detail: "the device cannot be reset",
        path,
        tags: []
      })),
      registers: (name, location) =>
        Effect.map(place(name, location), ({ position }) => registersAt(kernel, fd, position)),
      place,
      mapArea: ({ length, offset }) => kernel.map(fd, offset, length),
      unmapArea: kernel.unmap,
      writeAt: (bytes, position) => {
        exactly(bytes.length, kernel.writeAt(fd, bytes, position), "pwrite")
      }
    }
  }
)

const EIO = 5

/** A part of a register is none. */
const exactly = (wanted: number, count: number, syscall: string): void => {
  if (count !== wanted) throw new SyscallError(syscall, EIO)
}

const registersAt = (kernel: KernelCalls, fd: number, position: number): Registers => ({
  read: ({ at, width }) => {
    const bytes = new Uint8Array(width)
    exactly(width, kernel.readAt(fd, bytes, position + at), "pread")
    const view = viewOf(bytes)
    return width === 1 ? view.getUint8(0) : width === 2 ? view.getUint16(0, true) : view.getUint32(0, true)
  },
  write: ({ at, width }, value) => {
    const bytes = new Uint8Array(width)
    const view = viewOf(bytes)
    if (width === 1) view.setUint8(0, value)
    else if (width === 2) view.setUint16(0, value, true)
    else view.setUint32(0, value, true)
    exactly(width, kernel.writeAt(fd, bytes, position + at), "pwrite")
  }
})
