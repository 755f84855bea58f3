/**
 * Notifies a device of what is new in its ring: where it asks for that, and, if it is a program, sometimes ahead or not yet.
 *
 * Such a device goes to sleep soon after it has answered its last request, and waking it takes longer than serving it does. But
 * first it looks at the ring once more, so that whoever is quick needs no notification: where a ring that has run empty is filled
 * again, the notification is put off for a moment. If the device did not come by itself, it is notified ahead from then on: before
 * owners hear of the completions, so that it is on its way when they submit. Now and then it is tried whether it comes by itself
 * again, less often each time that it does not.
 *
 * What was put off stays due: whoever looks at the ring asks again ({@link Notifier.reconsider}), and insists before it sleeps.
 *
 * @since 0.1.0
 */
import type { DriverRing } from "./DriverRing.ts"

/** How often in a row a device is notified ahead, at most, before it is tried whether it comes by itself. */
const MOST_AHEAD = 256

/** Notifies the device of one ring. */
export class Notifier {
  /** The errno of the last notification if it failed, else 0. */
  errno = 0
  /** Whether a notification is due that may turn out to be needless. */
  isPutOff = false
  readonly #ring: DriverRing
  readonly #notify: () => number
  /** Whether the ring has run empty since it was last left at rest. */
  #hasRunEmpty = false
  /** Whether it was filled again, the last time it ran empty, by those who heard of it. */
  #refills = false
  /** Whether the device is expected at the ring: it was notified ahead, or is to come by itself. */
  #isExpected = false
  /** Whether it is to come by itself. */
  #isTrial = false
  /** How often it is notified ahead before the next trial, and how often that was after the last one that failed. */
  #aheadLeft = 0
  #ahead = 1

  constructor(ring: DriverRing, notify: () => number) {
    this.#ring = ring
    this.#notify = notify
  }

  /** Hears that a request is about to go into an empty ring. */
  filling(): void {
    this.#refills = this.#hasRunEmpty
  }

  /** Hears that the ring has run empty; expects the device where `mayPay` and the ring was filled again the last time. */
  ranEmpty(mayPay: boolean): void {
    this.#hasRunEmpty = true
    const isExpected = mayPay && this.#refills
    this.#isTrial = isExpected && this.#aheadLeft === 0
    if (isExpected && !this.#isTrial) this.#aheadLeft--
    this.#isExpected = this.#isTrial || (isExpected && this.#notify() === 0)
  }

  /** Hears that nobody has filled the empty ring. */
  rested(): void {
    this.#hasRunEmpty = false
  }

  /** Shows the device what is new, and notifies it where it asks for that and will not find it by itself. */
  publish(): void {
    this.reconsider()
    this.#ring.publish()
    if (!this.#ring.notificationDue()) return
    this.isPutOff = this.#isExpected && !this.isPutOff
    this.#isExpected = false
    if (!this.isPutOff) this.#notifyNow()
  }

  /** Drops a notification that was put off, if the device has found the requests by itself. */
  reconsider(): void {
    if (!this.isPutOff) return
    this.isPutOff = this.#ring.notificationStillDue()
    if (this.isPutOff || !this.#isTrial) return
    this.#isTrial = false
    this.#ahead = Math.max(1, this.#ahead / 2)
  }

  /** Makes the notification that was put off. */
  insist(): void {
    if (!this.isPutOff) return
    this.isPutOff = false
    this.#notifyNow()
  }

  #notifyNow(): void {
    if (this.#isTrial) {
      this.#isTrial = false
      this.#ahead = Math.min(MOST_AHEAD, this.#ahead * 2)
      this.#aheadLeft = this.#ahead
    }
    this.errno = this.#notify()
    if (this.errno === 0) this.#ring.notified()
  }
}
