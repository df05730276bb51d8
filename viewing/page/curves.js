// Curves of metrics.jsonl and timings.jsonl: one panel per quantity, one line per stage.

import { ask, label, running, stagesOf } from "./api.js";
import { el, number, plain } from "./dom.js";

const COLOURS = ["#1f4e79", "#b5651d", "#4f7942", "#7a4b7d", "#a3312b", "#2b7a78", "#8a6d1a", "#6b6b6b",
  "#5b8db8", "#d98880", "#7fb069", "#c27ba0"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const FIRST = [
  "reward/mean", "reward/pass_rate", "rollout/length_mean", "policy/entropy", "kl/reference_k3", "experience/no_signal",
  "rollout/truncated", "mismatch/abs_mean", "watch/reward", "watch/accuracy", "loss/nll", "loss/preference",
  "preference/accuracy", "loss/kl", "optimizer/grad_norm", "time/sample_s", "throughput/tokens_per_s",
];
const INK = "#1c1c1c", RULE = "#d9d6cf";

export class Curves {
  constructor(settings, remember) {
    this.remember = remember;
    this.stages = settings.getAll("of");
    this.names = settings.getAll("name");
    this.smooth = Number(settings.get("smooth") ?? 0);
    this.drawn = ""; // what the panels show, to draw only what changed
    this.panels = new Map(); // name -> element
    this.chips = el("div", { class: "chips" });
    this.known = el("datalist", { id: "names" });
    this.add = el("input", { list: "names", placeholder: "add a quantity", "aria-label": "Add a quantity", onchange: () => this.addName() });
    const slider = el("input", {
      type: "range", min: 0, max: 20, value: this.smooth,
      oninput: (event) => { this.smooth = Number(event.target.value); this.redraw(); },
    });
    this.grid = el("div", { class: "panels" });
    const bar = el("div", { class: "bar" }, this.add, this.known, el("label", {}, "smooth ", slider),
      el("button", { onclick: () => { this.names = []; this.redraw(); } }, "usual ones"));
    this.left = el("div", { role: "status" });
    this.root = el("section", {}, this.chips, bar, this.left, this.grid);
  }

  async update(runs) {
    this.runs = runs;
    const all = stagesOf(runs, (logs) => logs.names.length);
    this.stages = this.stages.filter((id) => all.some((stage) => stage.id === id));
    if (!this.stages.length && all.length) this.stages = first(all);
    this.drawChips(all);
    const chosen = all.filter((stage) => this.stages.includes(stage.id));
    const names = [...new Set(chosen.flatMap((stage) => stage.logs.names))].sort();
    this.known.replaceChildren(...names.map((name) => el("option", { value: name })));
    const wanted = this.names.length ? this.names : FIRST.filter((name) => names.includes(name)).slice(0, 12);
    const state = JSON.stringify([chosen.map((stage) => [stage.id, stage.logs.version]), wanted, this.smooth]);
    if (state === this.drawn) return;
    this.drawn = state;
    this.remember({ of: this.stages, name: this.names, smooth: this.smooth || "" });
    const found = chosen.length ? await ask("curves", { of: this.stages, name: wanted }) : { curves: {}, bands: {} };
    this.draw(wanted, all, found);
    this.left.replaceChildren(...chosen.flatMap((stage) => stage.logs.departures.map((sentence) =>
      el("p", { class: "bad" }, `${label(stage, runs)}: ${sentence}`))));
  }

  redraw() { this.drawn = ""; this.update(this.runs); }

  addName() {
    const name = this.add.value.trim();
    if (!name) return;
    const shown = [...this.panels.keys()];
    this.names = [name, ...(this.names.length ? this.names : shown).filter((other) => other !== name)];
    this.add.value = "";
    this.redraw();
  }

  drawChips(all) {
    this.chips.replaceChildren(...all.map((stage, i) => {
      const on = this.stages.includes(stage.id);
      const line = el("i", { style: { borderTop: `3px ${DASHES[runIndex(stage, this.runs)] === "solid" ? "solid" : "dashed"} ${colour(stage, all)}` } });
      return el("label", { class: on ? "chip on" : "chip" },
        el("input", { type: "checkbox", checked: on, onchange: () => this.toggle(stage.id) }), line,
        label(stage, this.runs), stage.state === "running" ? el("b", { class: "live" }, " live") : null);
    }));
  }

  toggle(id) {
    this.stages = this.stages.includes(id) ? this.stages.filter((other) => other !== id) : [...this.stages, id];
    this.redraw();
  }

  draw(names, all, found) {
    for (const [name, panel] of this.panels) {
      if (!names.includes(name)) { Plotly.purge(panel.lastChild); panel.remove(); this.panels.delete(name); }
    }
    for (const name of names) {
      if (!this.panels.has(name)) this.panels.set(name, this.panel(name));
      this.grid.append(this.panels.get(name)); // in the order of names
      this.drawPanel(this.panels.get(name), name, all, found);
    }
  }

  panel(name) {
    const remove = () => { this.names = [...this.panels.keys()].filter((other) => other !== name); this.redraw(); };
    return el("figure", { class: "panel" },
      el("figcaption", {}, el("b", {}, name), el("span", { class: "last" }),
        el("button", { class: "quiet", title: "remove", "aria-label": `Remove ${name}`, onclick: remove }, "×")),
      el("div", { class: "plot" }));
  }

  drawPanel(panel, name, all, { curves, bands }) {
    const traces = [], last = [];
    for (const stage of all) {
      const found = curves[stage.id]?.[name];
      if (!found) continue;
      const [x, y] = found;
      if (bands[stage.id]?.[name]) traces.push(...shaded(bands[stage.id][name], colour(stage, all)));
      const line = { color: colour(stage, all), dash: DASHES[runIndex(stage, this.runs) % DASHES.length] };
      if (this.smooth) traces.push({ x, y, mode: "lines", line: { ...line, width: 1 }, opacity: 0.25, hoverinfo: "skip" });
      traces.push({
        x, y: average(y, this.smooth), mode: y.length > 1 ? "lines" : "markers", line: { ...line, width: 2 }, marker: line,
        hovertemplate: `${plain(label(stage, this.runs))}, step %{x}: %{y:.4g}<extra></extra>`,
      });
      last.push(number(y.at(-1)));
    }
    panel.querySelector(".last").textContent = last.join(" · ");
    Plotly.react(panel.querySelector(".plot"), traces, layout(), { displayModeBar: false, responsive: true });
  }
}

// The expected curve: where another run of the same recipe should be.
function shaded({ steps, low, high }, colour) {
  const edge = { x: steps, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: `${colour}1c` }];
}

// The stage that runs; else the last RL stage; else the first with curves.
function first(all) {
  const rl = all.filter((stage) => stage.logs.names.includes("reward/mean"));
  return [(running(all) ?? rl.at(-1) ?? all[0]).id];
}

const runIndex = (stage, runs) => runs.findIndex((run) => run.run === stage.run);

// The same stage of two runs has the same colour, and another dash.
function colour(stage, all) {
  const names = [...new Set(all.map((other) => other.stage))];
  return COLOURS[names.indexOf(stage.stage) % COLOURS.length];
}

export function average(values, window) {
  if (!window) return values;
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - window), i + window + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

export function layout(more = {}) {
  const axis = { automargin: true, zeroline: false, showline: true, linecolor: RULE, gridcolor: RULE };
  return {
    template: "none", height: 190, margin: { l: 8, r: 8, t: 6, b: 8 }, showlegend: false, uirevision: "kept",
    font: { family: "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif", size: 12, color: INK },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: "zoom",
    hoverlabel: { bgcolor: "#ffffff", bordercolor: RULE, font: { color: INK } },
    xaxis: { ...axis, showgrid: false, nticks: 6 }, yaxis: { ...axis, nticks: 5, exponentformat: "e" }, ...more,
  };
}
