/**
 * Latencies of many requests, by HdrHistogram: three significant digits from 1 ns to 1000 s.
 */
import { build, decodeFromCompressedBase64, encodeIntoCompressedBase64, type Histogram } from "hdr-histogram-js"

const NS_PER_MS = 1e6
const NS_PER_US = 1000
const MAX_NS = 1e12

/** The latencies of some requests, in µs. */
export interface Latencies {
  readonly min_lat_us: number
  readonly mean_lat_us: number
  readonly p50_lat_us: number
  readonly p99_lat_us: number
  readonly p999_lat_us: number
  readonly max_lat_us: number
}

/** What a histogram has collected, as plain data. */
export interface PlainHistogram {
  readonly counts: string
  readonly min: number
  readonly max: number
}

/** Collects latencies. */
export class LatencyHistogram {
  readonly #histogram: Histogram = build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: MAX_NS,
    numberOfSignificantValueDigits: 3
  })
  #min = Infinity
  #max = 0

  /** Records a latency in ms, as `performance.now()` measures it, that `count` requests had. */
  record(ms: number, count = 1): void {
    const ns = Math.min(Math.max(Math.round(ms * NS_PER_MS), 1), MAX_NS)
    if (ns < this.#min) this.#min = ns
    if (ns > this.#max) this.#max = ns
    this.#histogram.recordValueWithCount(ns, count)
  }

  /** Adds what another histogram has collected. */
  add(other: LatencyHistogram): void {
    this.#histogram.add(other.#histogram)
    this.#min = Math.min(this.#min, other.#min)
    this.#max = Math.max(this.#max, other.#max)
  }

  /** Adds what a histogram of another thread has collected. */
  addPlain({ counts, max, min }: PlainHistogram): void {
    this.#histogram.add(decodeFromCompressedBase64(counts))
    this.#min = Math.min(this.#min, min)
    this.#max = Math.max(this.#max, max)
  }

  /** What was collected, as plain data. */
  get plain(): PlainHistogram {
    return { counts: encodeIntoCompressedBase64(this.#histogram), min: this.#min, max: this.#max }
  }

  /** All zeroes where nothing was recorded. */
  get latencies(): Latencies {
    const us = (ns: number) => Math.round(ns) / NS_PER_US
    const isEmpty = this.#histogram.totalCount === 0
    const percentile = (percent: number) => isEmpty ? 0 : us(this.#histogram.getValueAtPercentile(percent))
    return {
      min_lat_us: isEmpty ? 0 : us(this.#min),
      mean_lat_us: isEmpty ? 0 : us(this.#histogram.mean),
      p50_lat_us: percentile(50),
      p99_lat_us: percentile(99),
      p999_lat_us: percentile(99.9),
      max_lat_us: us(this.#max)
    }
  }
}
