/** The export's side of a ring without a socket: memory in a file, mapped twice, with a driver's ring on the one side. */
import { type Chain, DeviceRing } from "../../src/Export/DeviceRing.ts"
import { GuestMemory } from "../../src/Export/GuestMemory.ts"
import { FakeRing, type MemoryOptions, SharedMemory } from "../support/FakeRing.ts"

export interface ExportRing {
  readonly memory: SharedMemory
  readonly guest: GuestMemory
  readonly driver: FakeRing
  readonly device: DeviceRing
}

export interface ExportRingOptions extends MemoryOptions {
  readonly queueSize?: number
  readonly indirect?: boolean
  readonly eventIdx?: boolean
  readonly base?: number
  /** Further regions. */
  readonly others?: ReadonlyArray<MemoryOptions>
}

/** Lays a ring out, lets it be used, and gives the memory back. */
export const withRing = <A>(
  options: ExportRingOptions,
  use: (ring: ExportRing, others: ReadonlyArray<SharedMemory>) => A
): A => {
  const { base = 0, eventIdx = true, indirect = true, queueSize = 16 } = options
  const memory = new SharedMemory(options)
  const others = (options.others ?? []).map((other) => new SharedMemory(other))
  const guest = new GuestMemory(false)
  try {
    for (const { fd, region } of [memory, ...others]) {
      const wrong = guest.add(region, fd)
      if (wrong !== undefined) throw new Error(wrong)
    }
    const driver = new FakeRing(memory, queueSize, base)
    const device = DeviceRing.make(guest, { ...driver.addresses, queueSize, indirect, eventIdx, availIdx: base })
    if (typeof device === "string") throw new Error(device)
    return use({ memory, guest, driver, device }, others)
  } finally {
    for (const region of guest.regions) guest.release(region)
    for (const each of [memory, ...others]) each.close()
  }
}

/** The parts of a chain, by guest address. */
export const partsOf = ({ count, lengths, positions, readable, regions }: Chain) =>
  Array.from({ length: count }, (_, i) => ({
    address: regions[i]!.guestAddress + positions[i]! - regions[i]!.start,
    length: lengths[i]!,
    write: i >= readable
  }))

/** The bytes of a part, as the export sees them. */
export const bytesOf = ({ lengths, positions, regions }: Chain, i: number): Uint8Array =>
  regions[i]!.bytes.subarray(positions[i], positions[i]! + lengths[i]!)
