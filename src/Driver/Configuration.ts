/**
 * From what a device says of itself to what the driver relies on: features to negotiate, a configuration that was checked,
 * and the rules its queues enforce.
 *
 * The device is not trusted: a configuration that makes no sense is refused before anything is computed from it.
 *
 * @since 0.1.0
 */
import * as Errno from "../Errno.ts"
import type { PropertyState } from "../Properties/PropertyState.ts"
import type { DeviceRules } from "../Queue/Request.ts"
import { type BlkConfig, decodeConfig, FeatureBit, featureMask, hasFeature, SECTOR_BYTES } from "../Wire/VirtioBlk.ts"

/** What the driver makes use of where it is offered; the transport adds its own bits. */
const WANTED_FEATURES = featureMask(
  FeatureBit.SIZE_MAX,
  FeatureBit.SEG_MAX,
  FeatureBit.RO,
  FeatureBit.BLK_SIZE,
  FeatureBit.FLUSH,
  FeatureBit.TOPOLOGY,
  FeatureBit.CONFIG_WCE,
  FeatureBit.MQ,
  FeatureBit.DISCARD,
  FeatureBit.WRITE_ZEROES,
  FeatureBit.INDIRECT_DESC,
  FeatureBit.EVENT_IDX,
  FeatureBit.VERSION_1,
  FeatureBit.RING_PACKED
)

/** The largest power of two that the property request-alignment can be. */
const MAX_BLOCK_BYTES = 2 ** 30

/** Chooses features; a device without VERSION_1 has another layout, which is not supported. */
export const chooseFeatures = (offered: bigint): bigint | Errno.ENOTSUP =>
  hasFeature(offered, FeatureBit.VERSION_1)
    ? offered & WANTED_FEATURES
    : new Errno.ENOTSUP({ operation: "connect", detail: "the device does not offer VERSION_1: it is a legacy device" })

/** Reads and checks a configuration space. */
export const checkConfig = (
  bytes: Uint8Array,
  features: bigint
): BlkConfig | Errno.EPROTO | Errno.ENODEV | Errno.EOVERFLOW => {
  const refuse = { operation: "read configuration" }
  if (bytes.length < 8) return new Errno.EPROTO({ ...refuse, detail: `${bytes.length} bytes hold no capacity` })
  const config = decodeConfig(bytes)
  const { blkSize, capacitySectors } = config
  if (blkSize === 0 && capacitySectors === 0n) {
    return new Errno.ENODEV({ ...refuse, detail: "capacity and block size are 0: the disk behind the device is gone" })
  }
  const isBlock = blkSize >= SECTOR_BYTES && blkSize <= MAX_BLOCK_BYTES && (blkSize & (blkSize - 1)) === 0
  if (hasFeature(features, FeatureBit.BLK_SIZE) && !isBlock) {
    return new Errno.EPROTO({
      ...refuse,
      detail: `block size ${blkSize} must be a power of two from ${SECTOR_BYTES} up`
    })
  }
  if (capacitySectors * BigInt(SECTOR_BYTES) > BigInt(Number.MAX_SAFE_INTEGER)) {
    return new Errno.EOVERFLOW({ ...refuse, detail: `capacity of ${capacitySectors} sectors exceeds 2^53 - 1 bytes` })
  }
  return config
}

/** What queues enforce, from the properties as they are now. */
export const rulesOf = (properties: PropertyState): DeviceRules => {
  const { config, features } = properties.device ?? { config: undefined, features: 0n }
  return {
    capacity: properties.value("capacity"),
    requestAlignment: properties.value("request-alignment"),
    readOnly: properties.value("read-only"),
    canFlush: hasFeature(features, FeatureBit.FLUSH),
    canDiscard: hasFeature(features, FeatureBit.DISCARD),
    canWriteZeroes: hasFeature(features, FeatureBit.WRITE_ZEROES),
    // QEMU's export says that it may not, and does it all the same; without it, zeroes fill the holes of a raw image. A device
    // that discards can deallocate, and as Linux and libblkio do, it is asked to.
    mayUnmap: config?.writeZeroesMayUnmap === 1 || hasFeature(features, FeatureBit.DISCARD),
    // Not what the device says of its cache: QEMU's export begins with `writeback` 0 and caches until it is told not to.
    writeCache: hasFeature(features, FeatureBit.FLUSH),
    maxTransfer: properties.value("max-transfer"),
    maxSegmentLength: properties.value("max-segment-len"),
    maxSegments: properties.value("max-segments"),
    maxDiscardLength: properties.value("max-discard-len"),
    maxWriteZeroesLength: properties.value("max-write-zeroes-len")
  }
}
