/**
 * What tests of programs on block devices need: fakes that go wrong by a plan, and images.
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
 * A vhost-user backend in this process, whose messages go wrong.
 *
 * @since 0.1.0
 */
export * as FakeBackend from "./FakeBackend.ts"

/**
 * The device's side of a virtqueue, with a disk in memory behind it.
 *
 * @since 0.1.0
 */
export * as FakeDevice from "./FakeDevice.ts"

/**
 * What a fake device stores.
 *
 * @since 0.1.0
 */
export * as FakeDisk from "./FakeDisk.ts"

/**
 * A device in this process, and the transport to it.
 *
 * @since 0.1.0
 */
export * as FakeTransport from "./FakeTransport.ts"

/**
 * Plans of what goes wrong.
 *
 * @since 0.1.0
 */
export * as FaultPlan from "./FaultPlan.ts"

/**
 * Numbers by chance that come again with the same seed.
 *
 * @since 0.1.0
 */
export * as SeededRandom from "../SeededRandom.ts"
