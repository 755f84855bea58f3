/**
 * Goal: the report of `bench:peers` shows all that was found, and can be read: in a wide window and on a telephone.
 * Method: a fixed result is rendered and loaded by a real browser, which counts plots, points, bars and rows, and looks for
 * labels that overlap or leave their plot. A page made to be wrong shows that it would find those.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { Effect } from "effect"
import { COMPARISONS } from "../../benchmark/comparisons.ts"
import { page } from "../../benchmark/html.ts"
import { isLimited } from "../../benchmark/programs.ts"
import { comparisonTables, programTables } from "../../benchmark/results.ts"
import { text } from "../../benchmark/tables.ts"
import { chromiumIsHere, inspect } from "./chromium.ts"
import { fixedResults } from "./fixedResults.ts"

const FIGURES = ["kiops", "p50Us", "p99Us", "p999Us", "meanUs"] as const

describe.skipIf(!chromiumIsHere)("the report in a browser", () => {
  it.live.each([1280, 360])("shows everything on %i pixels", (width) =>
    Effect.gen(function*() {
      const results = fixedResults()
      const compared = comparisonTables(results).flatMap(({ rows }) => rows)
      const programs = programTables(results)
      const plotted = programs.flatMap(({ rows }) => rows.filter(({ program }) => !isLimited(program)))
      const measured = comparisonTables(results).filter(({ rows }) => rows.some(({ ratio }) => ratio !== undefined))
      expect(yield* inspect(page(results), width)).toStrictEqual({
        width,
        plots: measured.length + programs.length * FIGURES.length,
        points: plotted.flatMap(({ median }) => FIGURES.filter((figure) => median[figure] !== undefined)).length,
        bars: compared.filter(({ ratio }) => ratio !== undefined).length,
        tables: COMPARISONS.length + programs.length,
        rows: compared.length + programs.flatMap(({ rows }) => rows).length,
        labels: expect.any(Number),
        outside: [],
        overlapping: [],
        overflow: 0,
        errors: []
      })
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("can be seen to be wrong", () =>
    Effect.gen(function*() {
      const wrong = `<!doctype html><html><head></head><body style="margin:0"><div style="width:3000px">wide</div>
        <svg class="plot" width="100" height="50"><text x="10" y="20">one</text><text x="12" y="22">two</text>
        <text x="95" y="40">outside</text></svg><script>missing()</script></body></html>`
      const { errors, outside, overflow, overlapping } = yield* inspect(wrong, 800)
      expect(outside).toStrictEqual(["outside"])
      expect(overlapping).toStrictEqual(["one / two"])
      expect(overflow).toBe(2200)
      expect(errors.join("\n")).toContain("missing is not defined")
    }).pipe(Effect.provide(NodeServices.layer)))
})

describe("the report", () => {
  it("needs nothing but itself", () => {
    const html = page(fixedResults())
    expect(html.match(/(?:src|href)="(?!data:)[^"]*"/gu)).toBeNull()
    expect(html.match(/url\((?!#hatching\))/gu)).toBeNull()
    expect(html).not.toContain("<script")
    expect(html).toContain("it is &lt;not&gt; here &amp; cannot be")
  })

  it("says the same on a terminal", () => {
    const said = text(fixedResults())
    expect(said).toContain("machine              2 processors, A Processor of Some Length @ 2.00GHz, x64\n")
    expect(said).toContain("LEFT OUT: fio: it is <not> here & cannot be\n")
    for (const { scenario, title } of COMPARISONS) expect(said).toContain(`${scenario}: ${title}`)
    expect(said.match(/ not measured$/gmu)).toHaveLength(4)
  })

  it("shows what was left out, where that is everything", () => {
    const html = page({ ...fixedResults(), runs: [] })
    expect(html.match(/Nothing was measured/gu)).toHaveLength(COMPARISONS.length)
    expect(html).not.toContain("NaN")
  })
})
