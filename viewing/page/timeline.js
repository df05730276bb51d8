// Gantt charts: the stages of each run, and the phases of one stage by who worked.

import { ask, label, running, stagesOf } from "./api.js";
import { layout } from "./curves.js";
import { duration, el, plain, select } from "./dom.js";

const COLOURS = ["#1f4e79", "#b5651d", "#4f7942", "#7a4b7d", "#a3312b", "#2b7a78", "#8a6d1a", "#6b6b6b", "#c27ba0", "#5b8db8"];
const LATEST = 40; // steps shown at first

export class Timeline {
  constructor(settings, remember) {
    this.remember = remember;
    this.of = settings.get("of") ?? "";
    this.first = settings.get("first") ?? "";
    this.last = settings.get("last") ?? "";
    this.asked = "";
    this.bar = el("div", { class: "bar" });
    this.stages = el("div", { class: "plot" });
    this.note = el("p", { class: "muted" });
    this.legend = el("p", { class: "legend" });
    this.phases = el("div", { class: "plot" });
    this.table = el("div", { class: "scroll" });
    this.root = el("section", {}, el("div", {}, el("h2", {}, "Stages"), this.stages), el("h2", {}, "Phases of a stage"), this.bar, this.note, this.legend, this.phases, this.table);
  }

  async update(runs) {
    this.runs = runs;
    const stages = stagesOf(runs, (logs) => logs.timeline || logs.timings);
    if (stages.length && !stages.some((stage) => stage.id === this.of)) this.of = (running(stages) ?? stages.at(-1)).id;
    const current = stages.find((stage) => stage.id === this.of);
    const state = JSON.stringify([this.of, this.first, this.last, current?.logs.version, runs.map((run) => run.spans.length)]);
    if (state === this.asked) return;
    this.asked = state;
    this.remember({ of: this.of, first: this.first, last: this.last });
    this.drawStages(runs);
    if (current) await this.drawPhases(stages, current);
    else this.note.textContent = "No stage has written its timings yet.";
  }

  drawStages(runs) {
    this.stages.parentNode.classList.toggle("without-stages", runs.every((run) => !run.spans.length));
    const bars = runs.flatMap((run) => run.spans.map((span) => ({ ...span, run: run.run })));
    const zero = Math.min(...bars.map((bar) => bar.start));
    const rows = bars.map((bar) => ({
      row: plain(runs.length > 1 ? `${bar.run}/${bar.stage}` : bar.stage), start: bar.start, seconds: bar.seconds,
      colour: bar.made ? COLOURS[0] : COLOURS[1], text: `${plain(bar.stage)}: ${duration(bar.seconds)}${bar.made ? "" : ", not finished"}`,
    }));
    gantt(this.stages, rows, zero);
  }

  async drawPhases(stages, current) {
    const steps = current.logs.last_step ?? 0;
    const first = this.first || Math.max(0, steps - LATEST);
    const found = await ask("timeline", { run: current.run, stage: current.stage, first, last: this.last });
    const change = (settings) => { Object.assign(this, settings); this.update(this.runs); };
    const field = (name, value) => el("input", { type: "number", min: 0, value, "aria-label": `${name} step`, onchange: (event) => change({ [name]: event.target.value }) });
    this.bar.replaceChildren(
      select("stage", stages.map((stage) => [stage.id, label(stage, this.runs)]), this.of, (of) => change({ of, first: "", last: "" })),
      el("label", {}, "steps ", field("first", first), " to ", field("last", this.last || (found.steps[1] ?? ""))));
    this.note.textContent = found.measured ? "" : "This stage has no timeline.jsonl: the phases of timings.jsonl are laid end to end, so lengths are right and places are not.";
    const phases = [...new Set(found.spans.map((span) => span.phase))];
    const colour = (phase) => COLOURS[phases.indexOf(phase) % COLOURS.length];
    const zero = Math.min(...found.spans.map((span) => span.start));
    gantt(this.phases, found.spans.map((span) => ({
      row: plain(span.who), start: span.start, seconds: span.seconds, colour: colour(span.phase),
      text: `${plain(span.phase)}, step ${span.step}: ${duration(span.seconds)}`,
    })), zero);
    this.legend.replaceChildren(...phases.map((phase) => el("span", {}, el("i", { style: { background: colour(phase) } }), phase)));
    this.drawTable(found.spans, phases);
  }

  drawTable(spans, phases) {
    const sums = phases.map((phase) => spans.filter((span) => span.phase === phase).reduce((sum, span) => sum + span.seconds, 0));
    const total = sums.reduce((sum, seconds) => sum + seconds, 0);
    const rows = phases.map((phase, i) => [phase, sums[i]]).sort((a, b) => b[1] - a[1]).map(([phase, seconds]) =>
      el("tr", {}, el("th", {}, phase), el("td", {}, duration(seconds)), el("td", {}, `${(100 * seconds / total).toFixed(1)} %`)));
    this.table.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "phase"), el("th", {}, "time"), el("th", {}, "share"))), el("tbody", {}, rows)));
  }
}

function gantt(node, rows, zero) {
  const end = Math.max(...rows.map((row) => row.start + row.seconds)) - zero;
  const [unit, size] = end < 600 ? ["s", 1] : end < 36000 ? ["min", 60] : ["h", 3600];
  const names = [...new Set(rows.map((row) => row.row))];
  const trace = {
    type: "bar", orientation: "h", y: rows.map((row) => row.row), base: rows.map((row) => (row.start - zero) / size),
    x: rows.map((row) => row.seconds / size), marker: { color: rows.map((row) => row.colour), line: { width: 0 } },
    hovertext: rows.map((row) => row.text), hovertemplate: "%{hovertext}<extra></extra>", width: 0.7,
  };
  const more = layout({ height: 60 + 24 * Math.max(1, names.length), barmode: "overlay", bargap: 0.2 });
  more.yaxis = { ...more.yaxis, nticks: undefined, autorange: "reversed", showgrid: false, type: "category", fixedrange: true, dtick: 1 };
  more.xaxis = { ...more.xaxis, showgrid: true, ticksuffix: ` ${unit}` };
  Plotly.react(node, rows.length ? [trace] : [], more, { displayModeBar: false, responsive: true });
}
