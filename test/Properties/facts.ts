/** Devices that exist only as what they say of themselves. */
import type { DeviceFacts } from "../../src/Properties/PropertyTable.ts"
import { type BlkConfig, FeatureBit, featureMask } from "../../src/Wire/VirtioBlk.ts"
import type { Feature } from "../../src/testing/FakeTransport.ts"

export const recipe = { driver: "virtio-blk-vhost-user", path: "/run/disk.sock", fd: -1 }

/** A configuration space in which every field has a value of its own. */
export const config: BlkConfig = {
  capacitySectors: 8192n,
  sizeMax: 65536,
  segMax: 126,
  blkSize: 4096,
  physicalBlockExp: 2,
  alignmentOffset: 3,
  minIoSize: 5,
  optIoSize: 7,
  writeback: 1,
  numQueues: 4,
  maxDiscardSectors: 32768,
  maxDiscardSeg: 1,
  discardSectorAlignment: 16,
  maxWriteZeroesSectors: 65536,
  maxWriteZeroesSeg: 1,
  writeZeroesMayUnmap: 1
}

/** A device with these features, and with this of its configuration changed. */
export const device = (features: ReadonlyArray<Feature>, changes: Partial<BlkConfig> = {}): DeviceFacts => ({
  features: featureMask(...features.map((name) => FeatureBit[name])),
  config: { ...config, ...changes },
  maxQueues: 4,
  maxQueueSize: 1024,
  maxRegions: 31,
  regionAlignment: 4096,
  needsRegionFd: true
})
