// Where the stages of each run stand, and the cluster that works for it.

import { ask } from "./api.js";
import { duration, el } from "./dom.js";

const CLUSTER_EVERY_MS = 15000;

export class State {
  constructor() {
    this.root = el("section");
    this.clusters = new Map(); // run -> {when, answer}
  }

  async update(runs) {
    this.root.replaceChildren(...runs.map((run) => this.run(run)));
    for (const run of runs) {
      const known = this.clusters.get(run.run);
      if (known && Date.now() - known.when < CLUSTER_EVERY_MS) continue;
      this.clusters.set(run.run, { when: Date.now(), answer: known?.answer });
      const answer = await ask("cluster", { run: run.run });
      this.clusters.set(run.run, { when: Date.now(), answer });
    }
    this.root.replaceChildren(...runs.map((run) => this.run(run)));
  }

  run(run) {
    const who = run.process === null ? "No process works on it." : `Process ${run.process} works on it.`;
    const rows = run.stages.map((stage) => [
      stage.stage, stage.kind, el("span", { class: `chip ${stage.state.replace(" ", "-")}` }, stage.state),
      stage.total_steps ? `${stage.step ?? 0} of ${stage.total_steps}` : (stage.step ?? "–"), duration(stage.wall_time_s)]);
    return el("div", {}, el("h2", {}, run.run), el("p", { class: "muted" }, run.folder, " · ", who),
      table(["stage", "kind", "state", "step", "time"], rows), el("h3", {}, "Cluster"), this.cluster(this.clusters.get(run.run)?.answer));
  }

  cluster(answer) {
    if (!answer) return el("p", { class: "muted" }, "asking ...");
    if (answer.reason) return el("p", { class: "muted" }, answer.reason);
    const nodes = answer.nodes.map((node) => [node.node, node.host, node.alive ? "alive" : "dead", resources(node.free, node.resources)]);
    const actors = answer.actors.map((actor) => [actor.name, actor.state, actor.pid ?? "–", actor.node]);
    return el("div", {}, el("p", { class: "muted" }, `Ray at ${answer.address}`),
      table(["node", "host", "state", "free of"], nodes), table(["actor", "state", "process", "node"], actors));
  }
}

function resources(free, all) {
  const size = (name, value) => (name.includes("memory") ? `${(value / 2 ** 30).toFixed(1)} GiB` : String(Number((value ?? 0).toFixed(2))));
  return Object.entries(all).map(([name, value]) => `${name} ${size(name, free[name] ?? 0)} of ${size(name, value)}`).join(", ");
}

function table(heads, rows) {
  const cells = (row) => row.map((cell, i) => el(i ? "td" : "th", {}, cell instanceof Node ? cell : String(cell)));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", {}, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, cells(row))))));
}
