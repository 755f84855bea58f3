/**
 * The block device as a service: what applications ask for.
 *
 * A driver makes one (`VirtioBlk.layer`); a program reads and writes it through its queues, with buffers in memory regions
 * that the device may access.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type { StartedDevice } from "./Driver/StartedDevice.ts"

export type { ConfigChange, ConfigError, MapError, StartedDevice } from "./Driver/StartedDevice.ts"

/**
 * The block device of a program. A program with several keeps their values (`VirtioBlk.make`), or makes a key for each:
 *
 * @example
 * ```ts
 * import { BlockDevice } from "effect-blkio"
 *
 * class Source extends BlockDevice.Tag<Source>()("Source") {}
 * class Target extends BlockDevice.Tag<Target>()("Target") {}
 * console.log(Source.key, Target.key) // => "effect-blkio/BlockDevice/Source" "effect-blkio/BlockDevice/Target"
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class BlockDevice extends Context.Service<BlockDevice, StartedDevice>()("effect-blkio/BlockDevice") {
  /** Makes a further key for a block device. */
  static readonly Tag =
    <Self>() =>
    <const Id extends string>(id: Id): Context.ServiceClass<Self, `effect-blkio/BlockDevice/${Id}`, StartedDevice> =>
      Context.Service<Self, StartedDevice>()(`effect-blkio/BlockDevice/${id}`)
}
