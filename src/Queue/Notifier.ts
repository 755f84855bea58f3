/**
 * Notifies a device of what is new in its ring: where it asks for that, and, if it is a program, sometimes ahead.
 *
 * Such a device goes to sleep soon after it has answered its last request, and waking it takes longer than serving it does. So
 * where the ring has run empty and was filled again the last time, the device is notified before owners hear of the
 * completions. The notification of what they submit then is put off, since the device is on its way back and mostly finds it.
 *
 * What was put off stays due: whoever looks at the ring asks again ({@link Notifier.reconsider}), and insists before it sleeps.
 *
 * @since 0.1.0
 */
import type { DriverRing } from "./DriverRing.ts"

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
  #isAhead = false

  constructor(ring: DriverRing, notify: () => number) {
    this.#ring = ring
    this.#notify = notify
  }

  /** Hears that a request is about to go into an empty ring. */
  filling(): void {
    this.#refills = this.#hasRunEmpty
  }

  /** Hears that the ring has run empty; notifies ahead where `mayPay` and the ring was filled again the last time. */
  ranEmpty(mayPay: boolean): void {
    this.#hasRunEmpty = true
    this.#isAhead = mayPay && this.#refills && this.#notify() === 0
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
    this.isPutOff = this.#isAhead && !this.isPutOff
    this.#isAhead = false
    if (!this.isPutOff) this.#notifyNow()
  }

  /** Drops a notification that was put off, if the device has found the requests by itself. */
  reconsider(): void {
    if (this.isPutOff) this.isPutOff = this.#ring.notificationStillDue()
  }

  /** Makes the notification that was put off. */
  insist(): void {
    if (!this.isPutOff) return
    this.isPutOff = false
    this.#notifyNow()
  }

  #notifyNow(): void {
    this.errno = this.#notify()
    if (this.errno === 0) this.#ring.notified()
  }
}
