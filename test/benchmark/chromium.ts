/**
 * Pages in a real browser: Debian's `chromium`, without a window and without the network.
 *
 * Without it {@link chromiumIsHere} says so on stderr at import, and throws where EFFECT_BLKIO_REQUIRE_CHROMIUM=1 says that
 * skipping is not good enough.
 */
import { Effect, FileSystem, Schema } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { execFileSync } from "node:child_process"

const runs = (): boolean => {
  try {
    execFileSync("chromium", ["--version"], { stdio: "ignore" })
    return true
  } catch {
    return false
  }
}

export const chromiumIsHere: boolean = runs()

if (!chromiumIsHere) {
  const missing =
    "tests that need chromium: no such program on PATH, or it does not run; Debian has it in the package chromium"
  if (process.env["EFFECT_BLKIO_REQUIRE_CHROMIUM"] === "1") throw new Error(missing)
  console.warn(`\n*** SKIPPED: ${missing}. EFFECT_BLKIO_REQUIRE_CHROMIUM=1 makes this a failure. ***\n`)
}

/** What is found on a page. */
const Findings = Schema.Struct({
  width: Schema.Int,
  plots: Schema.Int,
  points: Schema.Int,
  bars: Schema.Int,
  tables: Schema.Int,
  rows: Schema.Int,
  labels: Schema.Int,
  /** Labels that leave their plot. */
  outside: Schema.Array(Schema.String),
  /** Pairs of labels of one plot that overlap. */
  overlapping: Schema.Array(Schema.String),
  /** By how much the page is wider than the window. */
  overflow: Schema.Int,
  errors: Schema.Array(Schema.String)
})

const OPTIONS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--enable-logging=stderr"
]

/** Runs in the page, and tells the frame around it what it finds. */
const look = `
const errors = []
addEventListener("error", (event) => errors.push(String(event.message || event.target.outerHTML)), true)
addEventListener("load", () => {
  const found = (selector) => [...document.querySelectorAll(selector)]
  const outside = [], overlapping = []
  // Two labels may touch, and a box is rounded.
  const slack = 0.5
  for (const plot of found("svg.plot")) {
    const frame = plot.getBoundingClientRect()
    const labels = [...plot.querySelectorAll("text")].map((text) => ({ text: text.textContent, box: text.getBoundingClientRect() }))
    for (const [i, { box, text }] of labels.entries()) {
      if (box.left < frame.left - slack || box.right > frame.right + slack ||
        box.top < frame.top - slack || box.bottom > frame.bottom + slack) outside.push(text)
      for (const other of labels.slice(i + 1)) {
        if (box.left < other.box.right - slack && other.box.left < box.right - slack &&
          box.top < other.box.bottom - slack && other.box.top < box.bottom - slack) overlapping.push(text + " / " + other.text)
      }
    }
  }
  const count = (selector) => found(selector).length
  parent.postMessage(JSON.stringify({
    width: innerWidth, plots: count("svg.plot"), points: count(".point"), bars: count("rect.bar"), tables: count("table"),
    rows: count("tbody tr"), labels: count("svg.plot text"), outside, overlapping,
    overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth), errors
  }), "*")
})`

/** A frame of a width, since a window is 500 pixels wide at least; leaves what it hears in an attribute. */
const frameOf = (width: number): string =>
  `<!doctype html><script>addEventListener("message", ({ data }) => {
  document.documentElement.dataset.found = encodeURIComponent(data)
})</script><iframe src="page.html" style="border: 0; width: ${width}px; height: 800px"></iframe>`

/** Shows a page that is so many pixels wide, and tells what is on it. */
export const inspect = Effect.fnUntraced(function*(html: string, width: number) {
  const fs = yield* FileSystem.FileSystem
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const folder = yield* fs.makeTempDirectoryScoped({ prefix: "blkio-page-" })
  yield* fs.writeFileString(`${folder}/page.html`, html.replace("<head>", () => `<head><script>${look}</script>`))
  yield* fs.writeFileString(`${folder}/frame.html`, frameOf(width))
  const shown = yield* spawner.string(
    ChildProcess.make("chromium", [
      ...OPTIONS,
      `--user-data-dir=${folder}/profile`,
      "--dump-dom",
      `file://${folder}/frame.html`
    ], { stdin: "ignore", forceKillAfter: "1 second" }),
    { includeStderr: true }
  )
  const found = /data-found="([^"]*)"/u.exec(shown)?.[1] ?? ""
  const findings = yield* Schema.decodeUnknownEffect(Schema.fromJsonString(Findings))(decodeURIComponent(found))
  const said = shown.split("\n").filter((line) => /:CONSOLE[:(]/u.test(line))
  return { ...findings, errors: [...findings.errors, ...said] }
}, Effect.scoped)
