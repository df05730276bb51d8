// The frame: which tab is shown, what it remembers in the address, and asking the server again.

import { ask } from "./api.js";
import { Curves } from "./curves.js";
import { el } from "./dom.js";
import { Groups } from "./groups.js";
import { State } from "./state.js";
import { Timeline } from "./timeline.js";

const EVERY_MS = 3000;
const TABS = { curves: ["Curves", Curves], groups: ["Groups", Groups], timeline: ["Timeline", Timeline], state: ["State", State] };
const view = document.getElementById("view");
const status = document.getElementById("status");
let shown = null; // {name, tab}
let runs = [];

// The address after # is TAB?key=value&key=value: what is looked at can be bookmarked and sent to others.
function place() {
  const [name, query] = location.hash.slice(1).split("?");
  return { name: name in TABS ? name : "curves", settings: new URLSearchParams(query ?? "") };
}

function remember(name, settings) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(settings)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(key, one);
    }
  }
  history.replaceState(null, "", `#${name}?${query}`);
}

function show() {
  const { name, settings } = place();
  const tab = new TABS[name][1](settings, (changed) => remember(name, changed));
  shown = { name, tab };
  view.replaceChildren(tab.root);
  drawTabs();
  if (runs.length) guarded(() => tab.update(runs));
}

function drawTabs() {
  const links = Object.entries(TABS).map(([name, [title]]) =>
    el("a", { href: `#${name}`, "aria-current": name === shown.name ? "page" : null }, title),
  );
  document.getElementById("tabs").replaceChildren(...links);
}

async function guarded(work) {
  try {
    await work();
    status.textContent = "";
  } catch (error) {
    status.textContent = error instanceof TypeError ? `r1 view does not answer (${error.message})` : error.message;
  }
}

async function refresh() {
  if (!document.hidden) {
    await guarded(async () => {
      runs = await ask("runs");
      const alive = runs.some((run) => run.process !== null);
      document.getElementById("runs").textContent = runs.map((run) => run.run).join(", ") + (alive ? " · running" : "");
      document.body.classList.toggle("alive", alive);
      await shown.tab.update(runs);
    });
  }
  setTimeout(refresh, EVERY_MS);
}

addEventListener("hashchange", show);
show();
refresh();
