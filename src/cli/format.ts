/** Sizes and times, as people read them. */

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB"]
const STEP = 1024
const SECONDS_PER_MINUTE = 60
const SECONDS_PER_HOUR = 3600

/** `512 B`, `1.5 KiB`, `3.0 GiB`. */
export const formatBytes = (bytes: number): string => {
  if (bytes < STEP) return `${Math.round(bytes)} B`
  let value = bytes / STEP
  let unit = 0
  while (value >= STEP && unit < UNITS.length - 1) {
    value /= STEP
    unit++
  }
  return `${value.toFixed(1)} ${UNITS[unit] ?? ""}`
}

const SIZE = /^(?<digits>\d+)(?:(?<unit>[KMGTP])(?:iB)?)?$/u

/** Reads `4096`, `64M` or `64MiB`, in bytes: units are powers of 1024. Undefined for what is no size, or too large to count. */
export const parseBytes = (text: string): number | undefined => {
  const { digits, unit = "" } = SIZE.exec(text)?.groups ?? {}
  const bytes = Number(digits) * STEP ** (unit === "" ? 0 : UNITS.indexOf(`${unit}iB`) + 1)
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** `0:07`, `12:34`, `1:02:03`. */
export const formatTime = (seconds: number): string => {
  const whole = Math.ceil(seconds)
  const two = (n: number) => String(n).padStart(2, "0")
  const hours = Math.floor(whole / SECONDS_PER_HOUR)
  const minutes = Math.floor(whole % SECONDS_PER_HOUR / SECONDS_PER_MINUTE)
  const rest = two(whole % SECONDS_PER_MINUTE)
  return hours === 0 ? `${minutes}:${rest}` : `${hours}:${two(minutes)}:${rest}`
}
