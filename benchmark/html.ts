/**
 * A result as one page that needs nothing else: plots, and the tables that `tables.ts` prints, too.
 */
import { escapeHtml, hatching, linePlot, type Look, ratioBars, type Series, swatch } from "./plots.ts"
import { isLimited } from "./programs.ts"
import { type ComparisonTable, comparisonTables, type ProgramTable, programTables, type Results } from "./results.ts"
import { comparisonTable, facts, isNumeric, programTable, type Table, throughputOf } from "./tables.ts"

const look = (colour: number, marker: Look["marker"], dashed = false): Look => ({ colour, marker, dashed })

/** How programs look in all plots: each differs from those it is drawn with by its marker, and in grey by its lightness. */
const LOOKS: Readonly<Record<string, Look>> = {
  "stream, event": look(0, "circle"),
  "stream, adaptive": look(1, "square"),
  "stream, poll": look(2, "diamond"),
  "request, adaptive": look(3, "triangle"),
  "readBytes, adaptive": look(3, "triangle"),
  "blkio-bench": look(4, "circle", true),
  "blkio-bench --poll": look(5, "diamond", true),
  "node:fs promises": look(2, "triangle", true),
  "node:fs callbacks": look(3, "square", true),
  "fio io_uring": look(5, "cross"),
  "1 worker, event": look(4, "circle", true),
  "2 workers, event": look(0, "circle"),
  "1 worker, adaptive": look(5, "square", true),
  "2 workers, adaptive": look(1, "square")
}

/** For programs that nothing above names. */
const PLAIN = look(4, "cross")

const programsOf = ({ rows }: ProgramTable): ReadonlyArray<string> =>
  [...new Set(rows.map(({ program }) => program))].filter((program) => !isLimited(program))

/** The lines of a figure, of the programs that tell it. */
const seriesOf = (table: ProgramTable, figure: (row: ProgramTable["rows"][number]) => number | undefined) =>
  programsOf(table).flatMap((name): ReadonlyArray<Series> => {
    const points = table.rows.flatMap((row) => {
      const value = row.program === name ? figure(row) : undefined
      return value === undefined ? [] : [[row.depth, value] as const]
    })
    return points.length === 0 ? [] : [{ name, look: LOOKS[name] ?? PLAIN, points }]
  })

const figure = (caption: string, image: string): string =>
  `<figure>${image}<figcaption>${escapeHtml(caption)}</figcaption></figure>`

const tableHtml = (table: Table): string => {
  const { columns, rows, title } = table
  const isRight = columns.map((_, i) => isNumeric(table, i))
  const cell = (tag: "td" | "th", i: number, words: string, more = "") =>
    `<${tag}${isRight[i] === true ? " class=\"number\"" : ""}${more}>${escapeHtml(words)}</${tag}>`
  const body = rows.map((row) => {
    const verdict = row.at(-1) ?? ""
    const name = verdict === "met" || verdict === "missed" ? ` class="${verdict}"` : ""
    return `<tr${name}>${row.map((words, i) => cell("td", i, words)).join("")}</tr>`
  })
  return `<div class="scroll" tabindex="0" role="region" aria-label="${escapeHtml(title)}"><table>`
    + `<caption>${escapeHtml(title)}</caption>`
    + `<thead><tr>${columns.map((column, i) => cell("th", i, column, " scope=\"col\"")).join("")}</tr></thead>`
    + `<tbody>${body.join("\n")}</tbody></table></div>`
}

const workloadHtml = (table: ProgramTable): string => {
  const { name, unit } = table.workload
  const legend = programsOf(table).map((program) => `<li>${swatch(LOOKS[program] ?? PLAIN)}${escapeHtml(program)}</li>`)
  const throughput = seriesOf(table, ({ median }) => throughputOf(table.workload, median))
  const latencies = [
    ["median (p50)", "p50Us"],
    ["99th percentile (p99)", "p99Us"],
    ["99.9th percentile (p99.9)", "p999Us"],
    // Of libblkio's program there is nothing else.
    ["mean", "meanUs"]
  ] as const
  const plots = [
    figure(`Throughput, ${unit}`, linePlot(`Throughput: ${name}`, unit, throughput)),
    ...latencies.map(([what, of]) =>
      figure(
        `Latency: ${what}, µs`,
        linePlot(`Latency, ${what}: ${name}`, "µs", seriesOf(table, ({ median }) => median[of]))
      )
    )
  ]
  return `<section><h2>${escapeHtml(name)}</h2><ul class="legend">${legend.join("")}</ul>`
    + `<div class="plots">${plots.join("\n")}</div>${tableHtml(programTable(table))}</section>`
}

const comparisonHtml = (table: ComparisonTable): string => {
  const { comparison: { scenario, title, workload }, rows } = table
  const bars = rows.flatMap(({ depth, ratio, target, verdict }) =>
    ratio === undefined ? [] : [{ depth, ratio, target, verdict }]
  )
  const name = `${title} (${workload.name})`
  const image = bars.length === 0
    ? "<p>Nothing was measured.</p>"
    : figure("bar: median; thin line: quartiles; tall mark: bound", ratioBars(`Ratios: ${name}`, bars))
  return `<section><h3>${escapeHtml(`${scenario}: ${title}`)}</h3><p>${escapeHtml(workload.name)}</p>`
    + `<div class="pair">${image}${tableHtml(comparisonTable(table))}</div></section>`
}

/** How many targets were met, in words. */
const summaryHtml = (tables: ReadonlyArray<ComparisonTable>): string => {
  const verdicts = tables.flatMap(({ rows }) => rows.filter(({ target }) => target !== undefined))
  const count = (wanted: string) => verdicts.filter(({ verdict }) => verdict === wanted).length
  return `<p class="summary">Of ${verdicts.length} targets <strong>${count("met")} are met</strong>, `
    + `<strong>${count("missed")} missed</strong>, ${count("not measured")} not measured.</p>`
}

const STYLE = `
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --faint: #57606a; --rule: #d0d7de; --bar: #8fb3d9;
  --missed: #b3261e; --c0: #0b5cad; --c1: #1b7f5c; --c2: #7a3e9d; --c3: #b35900; --c4: #444c56; --c5: #111; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --text: #e6e9ed; --faint: #9aa4af; --rule: #39414b;
  --bar: #33557d; --missed: #ff8a80; --c0: #6cb2ff; --c1: #5fd3a5; --c2: #d3a1f5; --c3: #ffb066; --c4: #a9b3bd; --c5: #fff; } }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h2 { font-size: 1.2rem; } h3 { font-size: 1rem; margin: 2rem 0 0; } h3 + p { margin: 0 0 .5rem; color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--faint); } dd { margin: 0; }
.left-out { border-left: 4px solid var(--missed); padding: .3rem .8rem; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; padding: 0; }
.legend li { display: flex; align-items: center; gap: .5rem; }
.plots, .pair { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; } figcaption { color: var(--faint); font-size: .85rem; text-align: center; }
.plot { display: block; max-width: 100%; height: auto; } .hidden { position: absolute; }
.pair .scroll { flex: 1 1 44rem; min-width: 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
caption { text-align: left; color: var(--faint); padding-bottom: .3rem; } .pair caption { display: none; }
th, td { text-align: left; padding: .25rem .45rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 3.5em; } th.number { min-width: 4.6em; } .number { text-align: right; }
tr.missed td:last-child { color: var(--missed); font-weight: bold; } tr.met td:last-child { font-weight: bold; }
.label { font: 11px system-ui, sans-serif; fill: var(--text); } .axis { font: 11px system-ui, sans-serif; fill: var(--faint); }
.grid { stroke: var(--rule); stroke-width: 1; } .even { stroke: var(--faint); stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 1.8; } .dashed { stroke-dasharray: 6 4; }
.point, .mark { stroke-width: 1.6; } .hollow { fill: var(--ground); }
.bar { fill: var(--bar); stroke: var(--text); stroke-width: .7; } .bar.missed { fill: url(#hatching); }
.missed-ground { fill: var(--ground); } .missed-line { fill: var(--missed); }
.spread { stroke: var(--text); stroke-width: 1.6; } .bound { stroke: var(--missed); stroke-width: 3; }
${
  [0, 1, 2, 3, 4, 5].map((n) =>
    `.colour${n} { stroke: var(--c${n}); } .point.colour${n}:not(.hollow), .mark.colour${n}:not(.hollow) { fill: var(--c${n}); }`
  ).join("\n")
}`

/** The whole page. */
export const page = (results: Results): string => {
  const compared = comparisonTables(results)
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>effect-blkio beside its peers</title>
<style>${STYLE}</style>
</head>
<body>
${hatching}
<header>
<h1>effect-blkio beside its peers</h1>
${summaryHtml(compared)}
<dl>${
    facts(results).map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join("\n")
  }</dl>
${results.leftOut.map((reason) => `<p class="left-out">Left out: ${escapeHtml(reason)}</p>`).join("\n")}
</header>
<main>
<section>
<h2>What is compared</h2>
<p>A ratio is ours by the baseline’s, of runs that were neighbours in time; the median of the rounds is held against the
target. Hatched bars have missed theirs.</p>
${compared.map(comparisonHtml).join("\n")}
</section>
${programTables(results).map(workloadHtml).join("\n")}
</main>
</body>
</html>
`
}
