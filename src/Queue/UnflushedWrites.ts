/**
 * Counts the writes that a device has acknowledged and that no flush has made stable: what it may lose when it crashes.
 *
 * The queues of a device share one count, since a flush on one makes stable what was acknowledged on any.
 *
 * @since 0.1.0
 */
export class UnflushedWrites {
  #acknowledged = 0
  #stable = 0

  /** Counts a write that was acknowledged. */
  acknowledge(): void {
    this.#acknowledged++
  }

  /** What a flush that is submitted now makes stable. */
  get mark(): number {
    return this.#acknowledged
  }

  /** Hears that the flush of a mark has succeeded. */
  flushed(mark: number): void {
    if (mark > this.#stable) this.#stable = mark
  }

  /** Hears that the device has crashed; answers whether it may have lost anything. */
  lose(): boolean {
    const mayBeLost = this.#acknowledged > this.#stable
    this.#stable = this.#acknowledged
    return mayBeLost
  }
}
