/** The ways in which a driver may break a virtqueue (virtio 1.2 §2.7), and what an export says of each. */
import { type FakeRing, INDIRECT, NEXT, WRITE } from "../support/FakeRing.ts"

export interface Broken {
  readonly name: string
  /** Whether INDIRECT_DESC is negotiated. Default true. */
  readonly indirect?: boolean
  /** Breaks a ring that is idle. */
  readonly breakRing: (ring: FakeRing) => void
  readonly fault: RegExp
}

/** Descriptors of every ring below. */
export const QUEUE_SIZE = 16

const start = ({ memory }: FakeRing) => memory.region.guestAddress
const end = (ring: FakeRing) => start(ring) + ring.memory.region.size

/** Shows the export one descriptor. */
const one =
  (describe: (ring: FakeRing) => { address: number | bigint; length: number; flags?: number; next?: number }) =>
  (ring: FakeRing): void => {
    ring.setDescriptor(0, describe(ring))
    ring.offer(0)
  }

/** Shows the export an indirect table of `length` bytes. */
const table = (
  length: number,
  entries: (ring: FakeRing) => ReadonlyArray<{ address: number; length: number; flags?: number; next?: number }>,
  flags = 0
) =>
(ring: FakeRing): void => {
  const address = ring.memory.allocate(16 * 1100, 16)
  ring.setTable(address, entries(ring))
  ring.setDescriptor(0, { address, length, flags: INDIRECT | flags, next: 1 })
  ring.setDescriptor(1, { address: start(ring), length: 1, flags: WRITE })
  ring.offer(0)
}

const unmapped = /^descriptor 0 of head 0: \d+ bytes at \d+ are not mapped$/

export const brokenRings: ReadonlyArray<Broken> = [
  {
    name: "a head one out of range",
    breakRing: (ring) => ring.offer(QUEUE_SIZE),
    fault: /^head 16 in a ring of 16$/
  },
  { name: "a head of 65535", breakRing: (ring) => ring.offer(0xffff), fault: /^head 65535 in a ring of 16$/ },
  {
    name: "an avail index one too far ahead",
    breakRing: (ring) => {
      ring.availIdx = ring.availIdx + QUEUE_SIZE + 1
    },
    fault: /^avail.idx runs 17 ahead in a ring of 16$/
  },
  {
    name: "an avail index that goes back",
    breakRing: (ring) => {
      ring.availIdx = ring.availIdx - 1
    },
    fault: /^avail.idx runs 65535 ahead in a ring of 16$/
  },
  {
    name: "a descriptor that is its own next",
    breakRing: one((ring) => ({ address: start(ring), length: 16, flags: NEXT, next: 0 })),
    fault: /^head 0: a chain that goes in circles$/
  },
  {
    name: "two descriptors that are each other's next",
    breakRing: (ring) => {
      ring.setDescriptor(3, { address: start(ring), length: 16, flags: NEXT, next: 7 })
      ring.setDescriptor(7, { address: start(ring), length: 16, flags: NEXT, next: 3 })
      ring.offer(3)
    },
    fault: /^head 3: a chain that goes in circles$/
  },
  {
    name: "a chain of all descriptors whose last leads to the first",
    breakRing: (ring) => {
      for (let i = 0; i < QUEUE_SIZE; i++) {
        ring.setDescriptor(i, { address: start(ring), length: 1, flags: NEXT, next: (i + 1) % QUEUE_SIZE })
      }
      ring.offer(0)
    },
    fault: /^head 0: a chain that goes in circles$/
  },
  {
    name: "a next out of range",
    breakRing: one((ring) => ({ address: start(ring), length: 16, flags: NEXT, next: QUEUE_SIZE })),
    fault: /^head 0: next 16 in a table of 16$/
  },
  {
    name: "a descriptor to read after one to write",
    breakRing: (ring) => {
      ring.setDescriptor(0, { address: start(ring), length: 16, flags: NEXT | WRITE, next: 1 })
      ring.setDescriptor(1, { address: start(ring), length: 16 })
      ring.offer(0)
    },
    fault: /^head 0: a descriptor to read after one to write$/
  },
  { name: "a descriptor at 0", breakRing: one(() => ({ address: 0, length: 16 })), fault: unmapped },
  {
    name: "a descriptor of length 0 outside of memory",
    breakRing: one(() => ({ address: 0, length: 0 })),
    fault: unmapped
  },
  {
    name: "a descriptor that begins one byte before the region",
    breakRing: one((ring) => ({ address: start(ring) - 1, length: 16 })),
    fault: unmapped
  },
  {
    name: "a descriptor that ends one byte after the region",
    breakRing: one((ring) => ({ address: end(ring) - 15, length: 16 })),
    fault: unmapped
  },
  {
    name: "a descriptor that begins where the region ends",
    breakRing: one((ring) => ({ address: end(ring), length: 1 })),
    fault: unmapped
  },
  {
    name: "a descriptor that holds the region and more",
    breakRing: one((ring) => ({ address: start(ring) - 1, length: ring.memory.region.size + 2 })),
    fault: unmapped
  },
  {
    name: "a descriptor of 2^32 - 1 bytes",
    breakRing: one((ring) => ({ address: start(ring), length: 0xffff_ffff })),
    fault: unmapped
  },
  {
    name: "a descriptor at the last byte there is",
    breakRing: one(() => ({ address: 2n ** 64n - 1n, length: 1 })),
    fault: unmapped
  },
  {
    name: "a descriptor that wraps around 2^64",
    breakRing: one(() => ({ address: 2n ** 64n - 8n, length: 16 })),
    fault: unmapped
  },
  {
    name: "an address whose low 53 bits are in the region",
    breakRing: one((ring) => ({ address: BigInt(start(ring)) + 2n ** 63n, length: 1 })),
    fault: unmapped
  },
  {
    name: "a user address where a guest address belongs",
    breakRing: one((ring) => ({ address: ring.memory.region.userAddress, length: 16 })),
    fault: unmapped
  },
  {
    name: "an unmapped descriptor at the end of a chain",
    breakRing: (ring) => {
      ring.setDescriptor(0, { address: start(ring), length: 16, flags: NEXT, next: 1 })
      ring.setDescriptor(1, { address: 64, length: 1, flags: WRITE })
      ring.offer(0)
    },
    fault: /^descriptor 1 of head 0: 1 bytes at 64 are not mapped$/
  },
  {
    name: "an indirect table that was not negotiated",
    indirect: false,
    breakRing: table(16, (ring) => [{ address: start(ring), length: 16 }]),
    fault: /^head 0: an indirect table, which was not negotiated$/
  },
  ...[0, 8, 15, 17, 24].map((length) => ({
    name: `an indirect table of ${length} bytes`,
    breakRing: table(length, (ring) => [{ address: start(ring), length: 16 }]),
    fault: new RegExp(`^head 0: an indirect table of ${length} bytes, no multiple of 16$`)
  })),
  {
    name: "an indirect table that has a next descriptor",
    breakRing: table(16, (ring) => [{ address: start(ring), length: 16 }], NEXT),
    fault: /^head 0: an indirect table that has a next descriptor$/
  },
  {
    name: "an indirect table inside an indirect table",
    breakRing: table(16, (ring) => [{ address: start(ring), length: 16, flags: INDIRECT }]),
    fault: /^head 0: an indirect table inside an indirect table$/
  },
  {
    name: "an indirect table that is not mapped",
    breakRing: one(() => ({ address: 4096, length: 32, flags: INDIRECT })),
    fault: unmapped
  },
  {
    name: "an indirect table that ends one byte after the region",
    breakRing: one((ring) => ({ address: end(ring) - 31, length: 32, flags: INDIRECT })),
    fault: unmapped
  },
  {
    name: "a next out of range in an indirect table",
    breakRing: table(32, (ring) => [{ address: start(ring), length: 16, flags: NEXT, next: 2 }]),
    fault: /^head 0: next 2 in a table of 2$/
  },
  {
    name: "an indirect table that goes in circles",
    breakRing: table(32, (ring) => [
      { address: start(ring), length: 16, flags: NEXT, next: 1 },
      { address: start(ring), length: 16, flags: NEXT, next: 0 }
    ]),
    fault: /^head 0: a chain that goes in circles$/
  },
  {
    name: "an unmapped descriptor in an indirect table",
    breakRing: table(32, (ring) => [
      { address: start(ring), length: 16, flags: NEXT, next: 1 },
      { address: end(ring), length: 1, flags: WRITE }
    ]),
    fault: /^descriptor 1 of head 0: 1 bytes at \d+ are not mapped$/
  },
  {
    name: "a chain of 1025 descriptors",
    breakRing: table(
      16 * 1025,
      (ring) =>
        Array.from(
          { length: 1025 },
          (_, i) => ({ address: start(ring), length: 1, flags: i < 1024 ? NEXT : 0, next: i + 1 })
        )
    ),
    fault: /^head 0: more than 1024 descriptors$/
  }
]

/**
 * Fills a ring and the memory around it with what a driver out of its mind might write: whole requests among descriptors whose
 * fields are near enough to right ones to get far. How many are wrong is by chance, too.
 */
export const garbage = (driver: FakeRing, next: (limit: number) => number): void => {
  const { queueSize } = driver
  const { bytes, region: { guestAddress, size }, view } = driver.memory
  const rarity = [3, 40, 1000, 100_000][next(4)]!
  const rarely = () => next(rarity) === 0
  const cells = bytes.length >> 4
  const cell = () => guestAddress + 16 * next(cells)
  const address = () =>
    rarely()
      ? [
        guestAddress + size - next(40),
        guestAddress - next(40),
        BigInt.asUintN(64, -BigInt(next(64))),
        next(2 ** 32) * next(2 ** 32)
      ][next(4)]!
      : cell()
  const length = () => rarely() ? [next(size), next(2 ** 32)][next(2)]! : [0, 1, 16, 32, 512, 1024][next(6)]!
  const flags = () =>
    rarely() ? [next(2 ** 16), INDIRECT | NEXT, WRITE | NEXT][next(3)]! : [0, NEXT, WRITE, INDIRECT][next(4)]!
  const descriptor = () => ({
    address: address(),
    length: length(),
    flags: flags(),
    next: rarely() ? next(2 ** 16) : next(Math.min(queueSize, 16))
  })
  for (let i = 0; i < cells; i++) {
    if (next(3) === 0) driver.setTable(guestAddress + 16 * i, [descriptor()])
    else {
      view.setUint32(16 * i, [0, 1, 4, 8, 11, 13][next(6)]!, true)
      view.setUint32(16 * i + 4, next(2 ** 32), true)
      view.setBigUint64(16 * i + 8, rarely() ? 2n ** 64n - BigInt(next(99)) : BigInt(next(4)), true)
    }
  }
  for (let i = 0; i < queueSize; i += 4) {
    const data = next(2) * WRITE
    const request = [
      { address: cell(), length: 16, flags: NEXT, next: (i + 1) % queueSize },
      { address: guestAddress + next(size - 512), length: 512, flags: NEXT | data, next: (i + 2) % queueSize },
      { address: cell(), length: 1, flags: WRITE }
    ]
    request.forEach((right, j) => {
      if (i + j < queueSize) driver.setDescriptor(i + j, rarely() ? descriptor() : right)
    })
  }
  for (let i = 0; i < queueSize; i++) driver.setAvail(i, rarely() ? next(2 ** 16) : 4 * i % queueSize)
  driver.availFlags = next(2 ** 16)
  driver.usedEvent = next(2 ** 16)
}
