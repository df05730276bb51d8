"""The frame and the style sheet of the report: one column of paper, one accent, light and dark."""

COLOURS = ("#1f4e79", "#b5651d", "#4f7942", "#7a4b7d", "#6b6b6b")  # one per stage of a chart, in order
INK, MUTED, RULE, ACCENT = "#1c1c1c", "#6b6b6b", "#d9d6cf", "#1f4e79"

# connect-src and the rest fall back to default-src: the page can ask for nothing, whatever a completion contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { --ink: #1c1c1c; --muted: #6b6b6b; --rule: #d9d6cf; --paper: #fffefb; --tint: #f5f3ec; --accent: #1f4e79;
  --good: #2f6b3a; --bad: #a3312b; --noise: #7a6a2f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, "Noto Serif", serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; font-weight: 600; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3.25rem 0 .75rem; padding-top: .75rem; font-weight: 600;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 1.75rem 0 .4rem; font-weight: 600; }
p { margin: .5rem 0 .9rem; max-width: 46rem; }
p.lead { font-size: 1.15rem; line-height: 1.5; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav, table, figcaption, summary, .chip, .facts, .meta, .legend, .claim, .paper, .missing, svg text, .panel b {
  font-family: "Helvetica Neue", Helvetica, Arial, "Liberation Sans", "Noto Sans", sans-serif; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.25rem 0 0; font-size: .85rem; }
.muted, .missing, .paper, .meta { color: var(--muted); }
.missing { font-size: .9rem; font-style: italic; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem 1.5rem;
  margin: 1.5rem 0 0; font-size: .88rem; }
.facts dt { color: var(--muted); font-size: .78rem; }
.facts .wide { grid-column: span 2; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.1rem 0; }
figcaption { font-size: .82rem; line-height: 1.45; color: var(--muted); margin-top: .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; min-width: 100%;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
th, td { padding: .3rem .65rem; text-align: right; vertical-align: top; white-space: nowrap; font-weight: 400; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tr.group th { padding-top: .8rem; font-style: italic; color: var(--muted); }
td b { font-weight: 700; } td small { display: block; color: var(--muted); font-size: .72rem; line-height: 1.2; }
table.card { min-width: 0; } table.card td { text-align: right; white-space: normal; max-width: 30rem; }
table.card td.words { text-align: left; white-space: normal; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.bar { display: inline-block; height: .55em; background: var(--accent); opacity: .55; vertical-align: baseline; }
table.card td.bars { text-align: left; width: 9rem; }
.chip { display: inline-block; font-size: .72rem; line-height: 1.5; padding: 0 .5em; border: 1px solid currentColor;
  border-radius: 2px; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .noise { color: var(--noise); } .none { color: var(--muted); }
ol.findings { list-style: none; margin: 0; padding: 0; }
ol.findings > li { display: grid; grid-template-columns: 7.5rem 1fr; gap: 0 1rem; padding: .8rem 0;
  border-bottom: 1px solid var(--rule); }
ol.findings h3 { margin: 0; } .claim { font-size: .86rem; margin: .25rem 0; max-width: none; display: flex;
  flex-wrap: wrap; justify-content: space-between; align-items: center; gap: .1rem .9rem; }
.paper { font-size: .8rem; margin: .25rem 0 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: 1rem 1.5rem; }
.panel b { font-size: .82rem; font-weight: 600; } .panel { min-width: 0; }
.legend { font-size: .84rem; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 1rem; }
.legend i { display: inline-block; width: 1.4em; height: 3px; vertical-align: middle; margin-right: .4em; }
details { border-bottom: 1px solid var(--rule); padding: .45rem 0; }
summary { cursor: pointer; font-size: .9rem; overflow-wrap: anywhere; }
summary::marker { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .9rem;
  margin: .8rem 0; }
.sample { min-width: 0; } .meta { font-size: .8rem; margin: 0 0 .25rem; } .meta b { color: var(--ink); }
pre { margin: 0; padding: .6rem .7rem; background: var(--tint); font: .78rem/1.45 ui-monospace, Menlo, Consolas,
  "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto;
  unicode-bidi: isolate; }
svg { max-width: 100%; height: auto; }
@media (max-width: 40rem) { body { padding-top: 1.5rem; } h1 { font-size: 1.55rem; } p.lead { font-size: 1.05rem; }
  ol.findings > li { grid-template-columns: 1fr; gap: .3rem; } ol.findings .chip { justify-self: start; }
  th, td { padding: .3rem .45rem; } .scroll svg { max-width: none; } }
@media print { body { max-width: none; } pre { max-height: none; } details { break-inside: avoid; } }
"""
