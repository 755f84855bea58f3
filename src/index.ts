/**
 * Block I/O from user space for Effect.
 *
 * Services are exported as themselves, so that `yield* BlockDevice` works; every other module is a namespace.
 *
 * @since 0.1.0
 */
export { BlockDevice } from "./BlockDevice.ts"
export * as BlockStore from "./BlockStore/BlockStore.ts"
export * as Embedded from "./Embedded.ts"
export * as Errno from "./Errno.ts"
export * as Export from "./Export/Export.ts"
export * as MemoryRegion from "./Memory/MemoryRegion.ts"
export { Properties } from "./Properties/Properties.ts"
export * as IoQueue from "./Queue/IoQueue.ts"
export { Transport } from "./Transport/Transport.ts"
export * as VfioPci from "./Transport/VfioPci.ts"
export * as VhostUser from "./Transport/VhostUser.ts"
export * as VhostVdpa from "./Transport/VhostVdpa.ts"
export * as VirtioBlk from "./VirtioBlk.ts"
export * as WorkerQueue from "./Driver/WorkerQueue.ts"
