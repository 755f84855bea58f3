/** The requests of an episode, and the check of how they end. */
import { failureOf, type Request } from "../../src/Queue/Request.ts"
import { SECTOR_BYTES, Status } from "../../src/Wire/VirtioBlk.ts"
import { fail, type Tally } from "./Check.ts"

/** How far apart requests lie on the disk, which tells them apart. */
export const APART = 2 ** 20

/** A request, and how it ended. */
export interface Tracked {
  readonly request: Request & { readonly index: number }
  /** The status that the device gave it, once it has. */
  status: number | undefined
  ended: string | undefined
}

/** What is known of an episode: which request the device has given which status, and how each ended. */
export class Ledger {
  readonly tracked: Array<Tracked> = []
  /** Whether the device did something after which EPROTO is right for any request. */
  isBroken = false
  /** Whether the device writes where it should not, so that a status may be anything. */
  isScribbling = false
  left = 0
  readonly #tally: Tally

  constructor(tally: Tally) {
    this.#tally = tally
  }

  add(request: Request): Request & { readonly index: number } {
    const made = { ...request, index: this.tracked.length }
    this.tracked.push({ request: made, status: undefined, ended: undefined })
    this.left++
    return made
  }

  /** Hears that a request has ended, and checks that it may. */
  end(request: Request, tag: string): void {
    const index = (request as { readonly index?: number }).index ?? -1
    const tracked = this.tracked[index]
    if (tracked?.request !== request) return fail(`${tag} for a request that was not submitted`)
    if (tracked.ended !== undefined) return fail(`request ${index} ended as ${tracked.ended}, and again as ${tag}`)
    tracked.ended = tag
    this.left--
    this.#tally.count(tag)
    if (this.isScribbling) {
      if (!["success", "EIO", "ENOTSUP", "EPROTO"].includes(tag)) fail(`request ${index} ended as ${tag}`)
      return
    }
    if (tag === this.#wanted(tracked) || (tag === "EPROTO" && this.isBroken)) return
    fail(`request ${index} ended as ${tag}: the device gave it status ${tracked.status}`)
  }

  #wanted({ request, status }: Tracked): string | undefined {
    if (status === undefined) return undefined
    return status === Status.OK ? "success" : failureOf(request, status, 0)._tag
  }

  /** The request at a sector. */
  at(sector: number): Tracked {
    return this.tracked[sector * SECTOR_BYTES / APART - 1] ??
      fail(`the driver put a request at sector ${sector} into the ring`)
  }
}
