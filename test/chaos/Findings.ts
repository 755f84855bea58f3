/** What a run has seen: how much of everything, and whatever is wrong. */

/** One kind of thing that must not be. */
export type Fault =
  /** A block holds what the rule forbids. */
  | "wrong"
  /** A request has not ended although the backend has been up for long enough. */
  | "hung"
  /** A failure that nobody declared, or that nothing explains. */
  | "unexpected"
  /** Something was left behind. */
  | "leaked"

/** Enough to see what went wrong. */
const MOST_FAULTS = 20

export class Findings {
  readonly faults: Array<{ readonly fault: Fault; readonly text: string }> = []
  /** Failures that are within the declared ones, by operation and tag. */
  readonly failures = new Map<string, number>()
  reads = 0
  writes = 0
  flushes = 0
  /** Blocks read and found right. */
  blocks = 0
  /** Connections made, reconnections among them. */
  connections = 0

  report(fault: Fault, text: string): void {
    if (this.faults.length < MOST_FAULTS) this.faults.push({ fault, text })
  }

  failed(operation: string, tag: string): void {
    const name = `${operation} ${tag}`
    this.failures.set(name, (this.failures.get(name) ?? 0) + 1)
  }

  get isClean(): boolean {
    return this.faults.length === 0
  }
}
