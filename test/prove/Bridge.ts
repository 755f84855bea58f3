/** An image behind a daemon of its own, past every cache on the way, so that what is read was fetched. */
import { Effect } from "effect"
import * as QemuStorageDaemon from "../../src/QemuStorageDaemon/QemuStorageDaemon.ts"
import { VirtioBlk } from "../../src/index.ts"

/** Opens an image as a device; `daemon` is the one that runs now. */
export const open = Effect.fnUntraced(function*(image: QemuStorageDaemon.Image, options: VirtioBlk.Options = {}) {
  const { daemon, ...transport } = yield* QemuStorageDaemon.transport(image, { cache: { direct: true } })
  const device = yield* VirtioBlk.make(transport, { ...options, readOnly: transport.readOnly })
  return { daemon, device }
})
