/**
 * Plots as SVG: lines over a logarithmic axis, and bars beside a bound.
 *
 * A plot is legible without colour: every line has its own marker and dashes, and what missed its target is hatched. Colours
 * are variables that the page sets, for light and for dark.
 */
import type { Summary, Target, Verdict } from "./statistics.ts"

/** Makes text safe to stand in HTML, attributes included. */
export const escapeHtml = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("\"", "&quot;")

const element = (
  name: string,
  attributes: Readonly<Record<string, string | number>>,
  ...children: ReadonlyArray<string>
): string => {
  const written = Object.entries(attributes).map(([key, value]) =>
    ` ${key}="${typeof value === "number" ? Number(value.toFixed(1)) : escapeHtml(value)}"`
  )
  return `<${name}${written.join("")}>${children.join("")}</${name}>`
}

const label = (x: number, y: number, anchor: "start" | "middle" | "end", words: string, name = "label"): string =>
  element("text", { x, y, "text-anchor": anchor, class: name }, escapeHtml(words))

const line = (name: string, x1: number, y1: number, x2: number, y2: number): string =>
  element("line", { class: name, x1, y1, x2, y2 })

const plot = (title: string, width: number, height: number, ...children: ReadonlyArray<string>): string =>
  element(
    "svg",
    { class: "plot", role: "img", "aria-label": title, viewBox: `0 0 ${width} ${height}`, width, height },
    element("title", {}, escapeHtml(title)),
    ...children
  )

/** How a line looks. */
export interface Look {
  /** A colour of the page, by number. */
  readonly colour: number
  readonly marker: "circle" | "square" | "diamond" | "triangle" | "cross"
  /** Whether the line is dashed, and the marker hollow. */
  readonly dashed: boolean
}

const MARKERS: Readonly<Record<Look["marker"], string>> = {
  circle: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
  square: "M-3.5 -3.5h7v7h-7z",
  diamond: "M0 -5l5 5l-5 5l-5 -5z",
  triangle: "M0 -4.5l4.7 8h-9.4z",
  cross: "M-4 -4l8 8M-4 4l8 -8"
}

const marker = ({ colour, dashed, marker }: Look, x: number, y: number, name: string, title = ""): string =>
  element(
    "path",
    {
      class: `${name} colour${colour}${dashed || marker === "cross" ? " hollow" : ""}`,
      d: MARKERS[marker],
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`
    },
    title === "" ? "" : element("title", {}, escapeHtml(title))
  )

const stroke = ({ colour, dashed }: Look): string => `line colour${colour}${dashed ? " dashed" : ""}`

/** A short piece of a line, for a legend. */
export const swatch = (look: Look): string =>
  element(
    "svg",
    { class: "swatch", "aria-hidden": "true", viewBox: "0 0 36 14", width: 36, height: 14 },
    line(stroke(look), 1, 7, 35, 7),
    marker(look, 18, 7, "mark")
  )

/** A line of a plot. */
export interface Series {
  readonly name: string
  readonly look: Look
  readonly points: ReadonlyArray<readonly [x: number, y: number]>
}

/** Ticks at 1, 2 and 5 times powers of ten, from below the least to above the greatest; powers alone where those are many. */
export const logTicks = (least: number, greatest: number): ReadonlyArray<number> => {
  const factors = greatest / least > 1000 ? [1] : [1, 2, 5]
  const all: Array<number> = []
  for (let power = Math.floor(Math.log10(least)) - 1; power <= Math.ceil(Math.log10(greatest)) + 1; power++) {
    all.push(...factors.map((factor) => Number(`${factor}e${power}`)))
  }
  const first = all.findLastIndex((tick) => tick <= least)
  const last = all.findIndex((tick) => tick >= greatest)
  // One value alone would leave the axis without a length.
  return all.slice(first, Math.max(last, first + 1) + 1)
}

const WIDTH = 360
const HEIGHT = 270
const LEFT = 52
const RIGHT = 14
const TOP = 30
const BOTTOM = 42

/** Where a value lies between the ends of a logarithmic axis: 0 to 1. */
const logShare = (value: number, from: number, to: number): number =>
  from === to ? 0.5 : Math.log(value / from) / Math.log(to / from)

/** Draws lines over queue depth; both axes are logarithmic. */
export const linePlot = (title: string, yLabel: string, series: ReadonlyArray<Series>): string => {
  const depths = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].toSorted((a, b) => a - b)
  const values = series.flatMap(({ points }) => points.map(([, y]) => y)).filter((value) => value > 0)
  const yTicks = values.length === 0 ? [1, 10] : logTicks(Math.min(...values), Math.max(...values))
  const [bottom = 1, top = 10] = [yTicks[0], yTicks.at(-1)]
  const [first = 1, last = 1] = [depths[0], depths.at(-1)]
  // The markers at both ends are not to lie on the frame.
  const inset = 16
  const x = (depth: number) => LEFT + inset + logShare(depth, first, last) * (WIDTH - LEFT - RIGHT - 2 * inset)
  const y = (value: number) => HEIGHT - BOTTOM - logShare(value, bottom, top) * (HEIGHT - BOTTOM - TOP)
  const floor = HEIGHT - BOTTOM
  return plot(
    title,
    WIDTH,
    HEIGHT,
    label(4, 16, "start", `${yLabel}, logarithmic`, "axis"),
    label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", "requests in flight, logarithmic", "axis"),
    ...yTicks.map((tick) =>
      line("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick))
      + label(LEFT - 6, y(tick) + 4, "end", tick.toLocaleString("en"))
    ),
    ...depths.map((depth) =>
      line("grid", x(depth), TOP, x(depth), floor) + label(x(depth), floor + 16, "middle", String(depth))
    ),
    ...series.map(({ look, name, points }) => {
      const seen = points.filter(([, value]) => value > 0)
      const path = seen.map(([depth, value]) => `${x(depth).toFixed(1)},${y(value).toFixed(1)}`).join(" ")
      return element("polyline", { class: stroke(look), points: path }) +
        seen.map(([depth, value]) =>
          marker(
            look,
            x(depth),
            y(value),
            "point",
            `${name}, depth ${depth}: ${Number(value.toPrecision(3))} ${yLabel}`
          )
        ).join("")
    })
  )
}

/** A bar of a plot: a ratio at a depth. */
export interface Bar {
  readonly depth: number
  readonly ratio: Summary
  readonly target: Target | undefined
  readonly verdict: Verdict
}

const ROW = 30
const BAR = 14
const BAR_LEFT = 66
const BAR_RIGHT = 96

/** A step of 1, 2 or 5 times a power of ten, of which four or so reach a length. */
const niceStep = (length: number): number => {
  const power = 10 ** Math.floor(Math.log10(length / 4))
  return power * ([1, 2, 5].find((factor) => power * factor * 5 >= length) ?? 10)
}

/** Draws ratios as bars, with the quartiles of the rounds, and the bound that each is held against. */
export const ratioBars = (title: string, bars: ReadonlyArray<Bar>): string => {
  const greatest = Math.max(1, ...bars.flatMap(({ ratio, target }) => [ratio.upper, target?.bound ?? 0])) * 1.08
  const height = TOP + bars.length * ROW + BOTTOM
  const floor = height - BOTTOM
  const x = (ratio: number) => BAR_LEFT + ratio / greatest * (WIDTH - BAR_LEFT - BAR_RIGHT)
  const step = niceStep(greatest)
  const ticks = Array.from({ length: Math.floor(greatest / step) + 1 }, (_, i) => Number((i * step).toFixed(3)))
  return plot(
    title,
    WIDTH,
    height,
    ...ticks.map((tick) =>
      line("grid", x(tick), TOP - 6, x(tick), floor) + label(x(tick), floor + 16, "middle", String(tick))
    ),
    label((BAR_LEFT + WIDTH - BAR_RIGHT) / 2, height - 6, "middle", "ratio", "axis"),
    line("even", x(1), TOP - 6, x(1), floor),
    ...bars.map(({ depth, ratio, target, verdict }, i) => {
      const middle = TOP + i * ROW + ROW / 2 - 3
      const bound = target === undefined
        ? ""
        : line("bound", x(target.bound), middle - 12, x(target.bound), middle + 12)
      return label(BAR_LEFT - 8, middle + 4, "end", `depth ${depth}`)
        + element("rect", {
          class: `bar ${verdict.replace(" ", "-")}`,
          x: x(0),
          y: middle - BAR / 2,
          width: x(ratio.median) - x(0),
          height: BAR
        })
        + line("spread", x(ratio.lower), middle, x(ratio.upper), middle)
        + bound
        + label(WIDTH - BAR_RIGHT + 8, middle + 4, "start", `${ratio.median.toFixed(2)} ${wordOf(verdict)}`)
    })
  )
}

const wordOf = (verdict: Verdict): string => verdict === "met" || verdict === "missed" ? verdict : ""

/** What bars of missed targets are filled with; once in a page. */
export const hatching =
  "<svg class=\"hidden\" aria-hidden=\"true\" width=\"0\" height=\"0\"><defs><pattern id=\"hatching\" width=\"6\" height=\"6\" "
  + "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" class=\"missed-ground\"/>"
  + "<rect width=\"2\" height=\"6\" class=\"missed-line\"/></pattern></defs></svg>"
