/**
 * What tests of programs on block devices need: a real daemon, its monitor, and images.
 *
 * @since 0.1.0
 */

/**
 * Disk images, made and verified with QEMU's own tools.
 *
 * @since 0.1.0
 */
export * as DiskImage from "./DiskImage.ts"

/**
 * A `qemu-storage-daemon` that lives as long as a Scope.
 *
 * @since 0.1.0
 */
export * as QemuStorageDaemon from "./QemuStorageDaemon.ts"

/**
 * A client of QEMU's monitor protocol.
 *
 * @since 0.1.0
 */
export * as Qmp from "./Qmp.ts"
