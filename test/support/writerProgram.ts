/**
 * Writes numbered blocks to a disk until it is killed, and prints the number of each that was acknowledged. Takes a socket's
 * path, the first block of its part of the disk, and the first number.
 *
 * Each of its writers has blocks of its own, and numbers that only grow: a block holds the last number that was acknowledged
 * for it, or one that was under way.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import { writeSync } from "node:fs"
import * as VhostUser from "../../src/Transport/VhostUser.ts"
import * as VirtioBlk from "../../src/VirtioBlk.ts"
import { BLOCK_BYTES, BLOCKS, WRITERS } from "./writtenBlocks.ts"

const [path = "", firstBlock = "0", firstNumber = "0"] = process.argv.slice(2)

Effect.scoped(Effect.gen(function*() {
  const disk = yield* VirtioBlk.make(yield* VhostUser.make({ path, replyTimeout: 20_000 }))
  const region = yield* disk.allocate(WRITERS * BLOCK_BYTES)
  const writer = (index: number) => {
    const buffer = region.bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)
    const numbers = new Float64Array(buffer.buffer, buffer.byteOffset, BLOCK_BYTES / 8)
    let step = index
    return Effect.forever(Effect.suspend(() => {
      const number = Number(firstNumber) + step
      const block = Number(firstBlock) + step % BLOCKS
      step += WRITERS
      numbers.fill(number)
      return Effect.map(
        disk.queue(0).write(block * BLOCK_BYTES, buffer),
        () => writeSync(1, `${number}\n`)
      )
    }))
  }
  yield* Effect.all(Array.from({ length: WRITERS }, (_, index) => writer(index)), { concurrency: "unbounded" })
})).pipe(NodeRuntime.runMain)
