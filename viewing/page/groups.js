// The group browser: groups of one batch, and all completions of a group side by side.

import { ask, label, running, stagesOf } from "./api.js";
import { el, number, select } from "./dom.js";
import { MODES, paint } from "./tokens.js";

export class Groups {
  constructor(settings, remember) {
    this.remember = remember;
    this.of = settings.get("of") ?? "";
    this.step = settings.get("step") ?? "";
    this.domain = settings.get("domain") ?? "";
    this.flags = settings.getAll("flag");
    this.page = Number(settings.get("page") ?? 0);
    this.group = settings.get("group"); // the one that is open, with the step it is of
    this.groupStep = settings.get("at");
    this.mode = settings.get("colour") ?? "logprob";
    this.bar = el("div", { class: "bar" });
    this.body = el("div");
    this.root = el("section", {}, this.bar, this.body);
    this.asked = "";
  }

  async update(runs) {
    this.runs = runs;
    const stages = stagesOf(runs, (logs) => logs.groups);
    if (!stages.length) {
      this.body.replaceChildren(el("p", { class: "muted" }, "No stage has recorded its groups: that is what RL stages leave in groups/."));
      return;
    }
    if (!stages.some((stage) => stage.id === this.of)) this.of = (running(stages) ?? stages.at(-1)).id;
    const current = stages.find((stage) => stage.id === this.of);
    const asked = JSON.stringify([this.of, this.step, this.domain, this.flags, this.page, this.group, this.groupStep, this.mode]);
    const state = asked + (this.group ? "" : current.logs.version.join());
    if (state === this.asked) return;
    this.asked = state;
    this.save();
    await (this.group ? this.showGroup(current) : this.showList(stages, current));
  }

  save() {
    this.remember({
      of: this.of, step: this.step, domain: this.domain, flag: this.flags, page: this.page || "",
      group: this.group, at: this.groupStep, colour: this.mode === "logprob" ? "" : this.mode,
    });
  }

  change(settings) {
    Object.assign(this, { page: 0 }, settings);
    return this.update(this.runs);
  }

  async showList(stages, current) {
    const found = await ask("groups", {
      run: current.run, stage: current.stage, step: this.step, domain: this.domain, flag: this.flags, page: this.page,
    });
    const steps = found.steps;
    const at = steps.indexOf(found.step);
    const go = (i) => this.change({ step: i === steps.length - 1 ? "" : String(steps[i]) });
    const toggle = (flag) => this.change({
      flags: this.flags.includes(flag) ? this.flags.filter((other) => other !== flag) : [...this.flags, flag],
    });
    this.bar.replaceChildren(
      select("stage", stages.map((stage) => [stage.id, label(stage, this.runs)]), this.of, (of) => this.change({ of, step: "", domain: "" })),
      select("step", [["", "last"], ["all", "all"], ...steps.map((step) => [step, step])], this.step, (step) => this.change({ step })),
      el("span", { class: "pair" },
        el("button", { disabled: at <= 0, "aria-label": "Earlier batch", onclick: () => go(at - 1) }, "‹"),
        el("button", { disabled: at < 0 || at === steps.length - 1, "aria-label": "Later batch", onclick: () => go(at + 1) }, "›")),
      select("domain", [["", "all"], ...found.domains], this.domain, (domain) => this.change({ domain })),
      el("div", { class: "chips" }, Object.entries(found.flags).map(([flag, meaning]) =>
        el("button", { class: this.flags.includes(flag) ? "chip on" : "chip", title: meaning, "aria-pressed": String(this.flags.includes(flag)), onclick: () => toggle(flag) }, flag))),
    );
    const what = found.step === null ? "in all batches, the last first" : `in the batch of step ${found.step}`;
    this.body.replaceChildren(
      ...found.unreadable.map((sentence) => el("p", { class: "bad" }, sentence)),
      el("p", { class: "muted" }, `${found.total} ${found.total === 1 ? "group" : "groups"} ${what}`),
      el("ul", { class: "groups" }, found.groups.map((group) => this.summary(group))),
      found.pages > 1 ? this.pager(found) : "",
    );
  }

  summary(group) {
    const open = () => this.change({ group: group.group, groupStep: String(group.step), page: this.page });
    const rewards = group.rewards.filter((reward) => reward !== null);
    const high = Math.max(...rewards, 1e-9), low = Math.min(...rewards, 0);
    const bars = group.rewards.map((reward) => el("i", {
      class: reward === null ? "none" : "", title: reward === null ? "unscorable" : number(reward),
      style: { height: reward === null ? "100%" : `${4 + 96 * (reward - low) / (high - low)}%` },
    }));
    return el("li", {}, el("button", { class: "group", onclick: open },
      el("span", { class: "question" }, group.question),
      el("span", { class: "bars", "aria-hidden": "true" }, bars),
      el("span", { class: "facts" }, `${group.domain} · ${group.language} · passed ${group.passed} of ${group.rewards.length} · reward ${number(mean(rewards))}`,
        this.step === "all" ? ` · step ${group.step}` : ""),
      el("span", { class: "flags" }, Object.entries(group.flags).map(([flag, count]) => el("span", { class: "flag" }, flag === "no signal" ? flag : `${flag} ${count}`)))));
  }

  pager(found) {
    const go = (page) => this.change({ page });
    return el("p", { class: "pair" },
      el("button", { disabled: found.page <= 0, onclick: () => go(found.page - 1) }, "‹ before"),
      el("span", {}, ` page ${found.page + 1} of ${found.pages} `),
      el("button", { disabled: found.page >= found.pages - 1, onclick: () => go(found.page + 1) }, "next ›"));
  }

  async showGroup(current) {
    const back = () => this.change({ group: null, groupStep: null, page: this.page });
    this.bar.replaceChildren(
      el("button", { onclick: back }, "‹ groups"),
      select("colour", Object.entries(MODES).map(([mode, { title }]) => [mode, title]), this.mode, (mode) => this.change({ mode, page: this.page })));
    const found = await ask("group", { run: current.run, stage: current.stage, step: this.groupStep, group: this.group });
    this.body.replaceChildren(
      el("h2", {}, found.question),
      el("p", { class: "muted" }, `${found.domain} · ${found.language} · step ${found.step} · answer ${found.ground_truth} · ${found.problem_id}`),
      el("details", {}, el("summary", {}, "prompt as the policy saw it"), el("pre", {}, found.prompt)),
      el("p", { class: "legend" }, MODES[this.mode].meaning, found.tokenizer ? "" : " There is no tokenizer to tell tokens apart, so the text is shown as it is."),
      el("div", { class: "completions" }, found.completions.map((completion) => this.completion(completion))),
    );
  }

  completion(completion) {
    const facts = [
      ["reward", completion.reward === null ? "none" : number(completion.reward)],
      ["advantage", completion.advantage === null ? "not trained on" : number(completion.advantage)],
      ["tokens", completion.length], ["ended by", completion.finish_reason],
      ...(completion.versions.length > 1 ? [["policy versions", completion.versions.join(", ")]] : []),
    ];
    const parts = Object.entries(completion.parts).map(([name, value]) => [name, number(value)]);
    return el("article", { class: "completion" },
      el("header", {}, el("b", {}, `${completion.sample + 1}`), el("span", { class: `chip ${completion.verdict}` }, completion.verdict),
        ...completion.flags.map((flag) => el("span", { class: "flag" }, flag))),
      pairs(facts), parts.length ? pairs(parts) : null,
      completion.detail ? el("p", { class: "detail" }, completion.detail) : null,
      paint(completion, this.mode));
  }
}

const pairs = (facts) => el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
