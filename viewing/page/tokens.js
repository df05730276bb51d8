// Tokens of a completion, each on a ground that shows one of its numbers.

import { el, number } from "./dom.js";

const clamp = (value) => Math.min(1, Math.max(0, value));

// colour: (completion, index of a token) -> CSS colour
export const MODES = {
  logprob: {
    title: "sampling logprob",
    meaning: "The darker a token, the less likely it was when it was sampled: white is certain, full colour is e^-5 and below.",
    colour: (completion, i) => `rgba(204, 102, 0, ${(0.85 * clamp(-completion.logprobs[i] / 5)).toFixed(3)})`,
  },
  advantage: {
    title: "advantage",
    meaning: "Green completions are made more likely by training, red ones less; their tokens share one advantage. Full colour is 2 and beyond.",
    colour: ({ advantage }) => `rgba(${advantage > 0 ? "47, 125, 60" : "178, 45, 38"}, ${(0.6 * clamp(Math.abs(advantage ?? 0) / 2)).toFixed(3)})`,
  },
  mismatch: {
    title: "mismatch",
    meaning: "Difference of the trainer's and the generator's logprob of each token, at the same weights, on a logarithmic scale: white is 1e-6 nats, full colour 1.",
    colour: ({ mismatch }, i) => `rgba(110, 60, 150, ${mismatch ? (0.85 * clamp((Math.log10(mismatch[i] + 1e-12) + 6) / 6)).toFixed(3) : 0})`,
  },
  none: { title: "none", meaning: "", colour: () => "transparent" },
};

export function paint(completion, mode) {
  if (!completion.tokens) return el("pre", { class: "tokens" }, completion.text);
  const spans = completion.tokens.map((text, i) => {
    const told = [`p ${number(Math.exp(completion.logprobs[i]))}, logprob ${number(completion.logprobs[i])}`];
    if (completion.mismatch) told.push(`mismatch ${number(completion.mismatch[i])}`);
    const shown = text === "" ? "⋯" : text; // a part of a character that a later token completes
    return el("span", { title: told.join("\n"), class: text === "" ? "partial" : null, style: { backgroundColor: MODES[mode].colour(completion, i) } }, shown);
  });
  return el("pre", { class: "tokens" }, spans);
}
