/**
 * An event loop in which a seed decides what comes next.
 *
 * While {@link EventLoop.run} is on the stack, everything that would give the real loop a say goes through this one: Effect's
 * scheduler and clock, and, since the engine has no seam for them, the globals `setImmediate`, `queueMicrotask` and
 * `performance.now`, and koffi's `uv_poll`. A run is then one synchronous call without real time or real waiting, and two runs
 * of one seed take the same steps.
 *
 * The order is not Node's. Whatever is ready may come first, which includes every order that Node could take; a clock that is
 * read may jump, as under a garbage collection; a fiber may yield before any operation. Microtasks still follow the step that
 * asked for them. Time passes when nothing is ready, or nothing but looking again at rings that do not change.
 *
 * A device on another processor acts while the driver runs: {@link EventLoop.beside} has it act where the driver reads the clock.
 */
import { Clock, Context, Duration, Effect, Exit, Metric, Scheduler } from "effect"
import koffi from "koffi"

type Random = (limit: number) => number
type Step = () => void

/** Why a run did not end by itself: nothing is left to do that would end it, or a limit was reached. */
export type Stopped = "stuck" | "too many steps" | "too late"

export interface Limits {
  readonly steps: number
  readonly timeMs: number
}

interface Immediate {
  readonly step: Step
}

interface Timer {
  readonly at: number
  readonly step: Step
}

/** A watched descriptor. */
interface Watch {
  isReadable: boolean
  isWatching: boolean
  readonly onReady: Step
}

/** Rounds of nothing but immediates after which those who look are thought to look in vain. */
const VAIN_ROUNDS = 3
/** What reading the clock takes, mostly. */
const GLANCE_MS = 0.004
/** What a garbage collection takes: longer than any slice of the engine. */
const PAUSE_MS = 1

export class EventLoop {
  /** Simulated time. */
  now = 0
  steps = 0
  /** Fibers that were begun and have not ended. */
  fibers = 0
  /** How likely a clock that is read lets a device act, in percent. */
  beside = 0
  /** One in so many operations of a fiber is followed by a yield; 0: none. */
  yields = 0
  readonly #random: Random
  readonly #tasks: Array<Step> = []
  readonly #devices: Array<Step> = []
  #immediates: Array<Immediate> = []
  readonly #microtasks: Array<Step> = []
  readonly #timers: Array<Timer> = []
  readonly #watches = new Map<number, Watch>()
  #signalled = new Set<number>()
  #sleeps = 0
  #glances = 0
  #isBeside = false
  /** Immediates that ran since anything else did. */
  #vain = 0

  constructor(random: Random) {
    this.#random = random
  }

  /** What is left that would keep a process busy or alive. */
  get leftovers(): Record<string, number> {
    return {
      fibers: this.fibers,
      sleeps: this.#sleeps,
      immediates: this.#immediates.length,
      watches: this.#watches.size
    }
  }

  /** Where fibers of this loop find their clock and their scheduler. */
  get #context(): Context.Context<never> {
    return Context.make(Clock.Clock, this.#clock).pipe(
      Context.add(Scheduler.Scheduler, this.#scheduler),
      Context.add(Metric.FiberRuntimeMetrics, {
        recordFiberStart: () => {
          this.fibers++
        },
        recordFiberEnd: () => {
          this.fibers--
        }
      })
    )
  }

  /** Has a device act soon, on memory and counters alone: it may do so in the midst of what the driver does. */
  soon(step: Step): void {
    this.#devices.push(step)
  }

  /** Has the driver's side of a transport act soon. */
  deliver(step: Step): void {
    this.#tasks.push(step)
  }

  /** Has a device act when `delayMs` have passed. */
  later(delayMs: number, step: Step): void {
    if (delayMs <= 0) this.soon(step)
    else this.#at(delayMs, () => this.soon(step))
  }

  /** Tells that an event counter was signalled. */
  signal(fd: number): void {
    const watch = this.#watches.get(fd)
    if (watch === undefined) this.#signalled.add(fd)
    else watch.isReadable = true
  }

  /** Runs an effect to its end, or until that is out of reach. */
  run<A, E>(effect: Effect.Effect<A, E>, limits: Limits): Exit.Exit<A, E> | Stopped {
    const restore = this.#takeOver()
    try {
      const fiber = Effect.runForkWith(this.#context)(effect)
      this.#drain()
      for (let exit = fiber.pollUnsafe();; exit = fiber.pollUnsafe()) {
        if (exit !== undefined) return exit
        if (this.steps++ >= limits.steps) return "too many steps"
        if (this.now > limits.timeMs) return "too late"
        if (!this.#step()) return "stuck"
      }
    } finally {
      restore()
    }
  }

  /** Takes whatever steps are left without letting time pass. */
  settle(limits: Limits): void {
    const restore = this.#takeOver()
    try {
      while (this.steps++ < limits.steps && this.#takeReady());
    } finally {
      restore()
    }
  }

  /** Takes a step, or lets time pass where there is none to take. Answers whether either was possible. */
  #step(): boolean {
    if (this.#takeReady()) return true
    const next = this.#timers[0]
    if (next === undefined) {
      if (this.#immediates.length === 0) return false
      this.#takeImmediate()
      return true
    }
    this.now = next.at
    this.#vain = 0
    while (this.#timers[0] !== undefined && this.#timers[0].at <= this.now) this.#timers.shift()?.step()
    this.#drain()
    return true
  }

  /** Takes one of the steps that are ready; answers whether there was one. */
  #takeReady(): boolean {
    const readable: Array<Watch> = []
    for (const watch of this.#watches.values()) if (watch.isReadable && watch.isWatching) readable.push(watch)
    const isVain = this.#vain > VAIN_ROUNDS * this.#immediates.length
    const tasks = this.#tasks.length
    const devices = this.#devices.length
    const count = tasks + devices + readable.length + (isVain ? 0 : this.#immediates.length)
    if (count === 0) return false
    const at = this.#random(count)
    const watch = readable[at - tasks - devices]
    if (at >= tasks + devices + readable.length) {
      this.#takeImmediate()
      return true
    }
    this.#vain = 0
    if (at < tasks) this.#pick(this.#tasks, at)()
    else if (watch === undefined) this.#pick(this.#devices, at - tasks)()
    else {
      watch.isReadable = false
      watch.onReady()
    }
    this.#drain()
    return true
  }

  #takeImmediate(): void {
    this.#vain++
    this.#pick(this.#immediates, this.#random(this.#immediates.length)).step()
    this.#drain()
  }

  #pick<A>(from: Array<A>, at: number): A {
    const [picked] = from.splice(at, 1)
    return picked!
  }

  #drain(): void {
    for (let step = this.#microtasks.shift(); step !== undefined; step = this.#microtasks.shift()) step()
  }

  #at(delayMs: number, step: Step): Timer {
    const timer = { at: this.now + delayMs, step }
    let place = this.#timers.length
    while (place > 0 && this.#timers[place - 1]!.at > timer.at) place--
    this.#timers.splice(place, 0, timer)
    return timer
  }

  readonly #scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    shouldYield: () => this.yields > 0 && this.#random(this.yields) === 0,
    makeDispatcher: () => ({
      scheduleTask: (task) => {
        this.#tasks.push(task)
      },
      flush: () => {}
    })
  }

  readonly #clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => this.now,
    currentTimeMillis: Effect.sync(() => this.now),
    currentTimeNanosUnsafe: () => BigInt(Math.round(this.now * 1e6)),
    currentTimeNanos: Effect.sync(() => BigInt(Math.round(this.now * 1e6))),
    monotonicTimeNanosUnsafe: () => BigInt(Math.round(this.now * 1e6)),
    monotonicTimeNanos: Effect.sync(() => BigInt(Math.round(this.now * 1e6))),
    sleep: (duration) =>
      Effect.callback<void>((resume) => {
        if (!Duration.isFinite(duration)) return
        this.#sleeps++
        const timer = this.#at(Duration.toMillis(duration), () => {
          this.#sleeps--
          resume(Exit.void)
        })
        return Effect.sync(() => {
          const place = this.#timers.indexOf(timer)
          if (place < 0) return
          this.#timers.splice(place, 1)
          this.#sleeps--
        })
      })
  }

  /** Reads the engine's clock, which never stands still. */
  readonly #glance = (): number => {
    this.#glances += this.#random(64) === 0 ? PAUSE_MS : GLANCE_MS
    if (this.#devices.length > 0 && !this.#isBeside && this.#random(100) < this.beside) {
      this.#isBeside = true
      this.#vain = 0
      this.#pick(this.#devices, this.#random(this.#devices.length))()
      this.#isBeside = false
    }
    return this.now + this.#glances
  }

  /** Puts this loop in the place of the real one; answers how to put that one back. */
  #takeOver(): () => void {
    const { clearImmediate, queueMicrotask, setImmediate } = globalThis
    const { poll } = koffi.node
    Object.assign(globalThis, {
      setImmediate: (step: Step) => {
        const immediate = { step }
        this.#immediates.push(immediate)
        return immediate
      },
      clearImmediate: (immediate: Immediate | undefined) => {
        this.#immediates = this.#immediates.filter((other) => other !== immediate)
      },
      queueMicrotask: (step: Step) => {
        this.#microtasks.push(step)
      }
    })
    Object.assign(performance, { now: this.#glance })
    Object.assign(koffi.node, {
      poll: (fd: number, interest: { readable?: boolean }, onReady: Step) => {
        const watch = { isReadable: this.#signalled.delete(fd), isWatching: interest.readable === true, onReady }
        this.#watches.set(fd, watch)
        return {
          start: () => {
            watch.isWatching = true
          },
          stop: () => {
            watch.isWatching = false
          },
          close: () => {
            this.#watches.delete(fd)
          }
        }
      }
    })
    return () => {
      Object.assign(globalThis, { clearImmediate, queueMicrotask, setImmediate })
      Reflect.deleteProperty(performance, "now")
      Object.assign(koffi.node, { poll })
    }
  }
}
