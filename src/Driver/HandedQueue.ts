/**
 * The near end of a queue that another thread drives: tells it what becomes of the device, and ends it before the device
 * goes.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { MessageChannel, type MessagePort, receiveMessageOnPort } from "node:worker_threads"
import type { MemoryRegion } from "../Memory/MemoryRegion.ts"
import type { DeviceFailure } from "../Queue/QueueEngine.ts"
import type { DeviceRules } from "../Queue/Request.ts"
import { fromPlain, type Order, type Report, toPlain } from "./QueueHandle.ts"

/** A queue that another thread drives. */
export class HandedQueue {
  /** The other thread's end of the line. */
  readonly port: MessagePort
  readonly #line: MessagePort
  readonly #regions: ReadonlyArray<MemoryRegion>
  #isOpened = false
  #hasEnded = false
  readonly #listeners = new Set<() => void>()
  readonly #onFailure: (failure: DeviceFailure) => void

  constructor(regions: ReadonlyArray<MemoryRegion>, onFailure: (failure: DeviceFailure) => void) {
    const { port1, port2 } = new MessageChannel()
    this.#line = port1
    this.port = port2
    this.#regions = regions
    this.#onFailure = onFailure
    port1.on("message", (report: Report) => this.#hear(report))
    port1.once("close", () => this.#ended())
    // A queue in another thread is no reason for this one to stay.
    port1.unref()
  }

  /** Whether requests of the other thread may use a region. */
  uses(region: MemoryRegion): boolean {
    return !this.#hasEnded && this.#regions.includes(region)
  }

  tellRules(rules: DeviceRules): void {
    this.#tell({ _tag: "rules", rules })
  }

  tellFailure(failure: DeviceFailure): void {
    this.#tell({ _tag: "failed", failure: toPlain(failure) })
  }

  /** Has the other thread let go of the queue; waits for that as long as `limit` says. */
  end(limit: Duration.Duration): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.#hasEnded) return Effect.void
      this.#tell({ _tag: "end" })
      // The other thread says that it opens the queue, and then looks whether it is to end: one of the two hears of the other.
      for (let got = this.#next(); got !== undefined; got = this.#next()) this.#hear(got)
      if (!this.#isOpened) this.#ended()
      if (this.#hasEnded) return Effect.void
      this.#line.ref()
      const ended = Effect.callback<void>((resume) => {
        if (this.#hasEnded) return resume(Exit.void)
        const listener = () => resume(Exit.void)
        this.#listeners.add(listener)
        return Effect.sync(() => this.#listeners.delete(listener))
      })
      return Effect.andThen(
        Effect.timeoutOption(Effect.interruptible(ended), limit),
        Effect.sync(() => this.#ended())
      )
    })
  }

  #next(): Report | undefined {
    return receiveMessageOnPort(this.#line)?.message
  }

  #hear(report: Report): void {
    if (report._tag === "opened") this.#isOpened = true
    else if (report._tag === "ended") this.#ended()
    else this.#onFailure(fromPlain(report.failure))
  }

  #tell(order: Order): void {
    if (!this.#hasEnded) this.#line.postMessage(order)
  }

  #ended(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    this.#line.close()
    for (const listener of this.#listeners) listener()
  }
}
