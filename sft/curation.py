"""From problems to accepted completions, and from rows to a dataset artifact with its card.

What cold start and rejection sampling have in common: sample, verify, filter, keep held-out text out, count everything.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.chat import render_prompt
from data.decontaminate import decontaminate
from data.problem_pool import ProblemPool
from data.problems import Problem
from data.write import DataCard, count_by, write_dataset
from models.checkpoint import context_length, load_tokenizer
from rewards.config import RewardSpec
from rewards.problem_checks import check_problems
from rollouts.config import JudgeServiceConfig
from sft.config import CurationConfig
from sft.filters import Filters, Trace, normalize, script_consistency
from sft.grm_config import GRMDataConfig
from sft.held_out import NGRAM, read_held_out
from sft.sampling import Prompt, Sampled, sampled_chunks
from training.run_log import write_stats
from training.stage import StageContext, StageError

Row = dict[str, Any]
Item = TypeVar("Item")
Render = Callable[[Any, Problem, int], list[int]]  # (tokenizer, problem, its index) -> prompt ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Trace):
    """A completion and where it came from. `problem_id` is the question: problems that ask the same share a limit."""

    problem: Problem
    source: str


@dataclass(slots=True, kw_only=True)
class Curated:
    """Accepted candidates, in the order of the prompts, and the counts for the card."""

    kept: list[Candidate]
    filters: Filters
    prompts: int
    prompts_too_long: int
    sampled_by: dict[str, Counter[str]]  # domain | language -> value -> completions sampled
    notes: dict[str, Any] = field(default_factory=dict)  # more for the card


def curate(
    config: CurationConfig,
    rewards: Sequence[RewardSpec],
    context: StageContext,
    renderings: Mapping[str, Render] | None = None,
    judges: JudgeServiceConfig | None = None,
) -> Curated:
    """Sample completions for `config.prompts` problems, verify and filter them.

    renderings: source name -> how it puts a problem to the policy; one pass over the problems for each.
    judges: how the stage's inputs `judge` and `grm` are served, where its rewards ask them.
    Raises StageError, with the commonest reasons, when no completion passes.
    """
    policy = context.inputs["policy"]
    filters = Filters(config.filters, script_consistency, context.seed)
    problems = ProblemPool(config.problems, "train", context.seed)
    check_problems(rewards, problems)
    drawn = problems.draw(0, config.prompts)
    prompts, too_long = _prompts(drawn, policy, renderings or {"zero_shot": zero_shot(config)})
    sampled_by = {"domain": Counter[str](), "language": Counter[str]()}
    curated = Curated(kept=[], filters=filters, prompts=len(prompts), prompts_too_long=too_long, sampled_by=sampled_by)
    chunks = sampled_chunks(
        prompts,
        policy=policy,
        params=config.rollout.params(config.samples_per_prompt, context.seed),
        generator=config.generator,
        reward_workers=config.reward_workers,
        rewards=rewards,
        chunk_prompts=config.chunk_prompts,
        work=context.output / ".work",
        on_group=lambda done: context.report(_progress(done, len(prompts), filters)),
        inputs=context.inputs,
        judges=judges,
    )
    for chunk in chunks:
        for prompt, completions in chunk:
            sampled_by["domain"][prompt.problem.domain] += len(completions)
            sampled_by["language"][prompt.problem.language] += len(completions)
            candidates = (candidate_of(prompt.problem, c, prompt.source) for c in completions)
            curated.kept += [candidate for candidate in candidates if filters.accept(candidate)]
    if not curated.kept:
        raise StageError(_nothing_accepted(context.name, curated))
    return curated


def zero_shot(config: CurationConfig) -> Render:
    return lambda tokenizer, problem, _: render_prompt(tokenizer, problem.messages, config.rollout.template)


def _prompts(problems: Sequence[Problem], policy: Path, renderings: Mapping[str, Render]) -> tuple[list[Prompt], int]:
    """The prompts that leave the policy room to answer, and how many do not."""
    tokenizer = load_tokenizer(policy)
    room = context_length(policy)
    prompts = [
        Prompt(key=f"{source}:{i}:{p.id}", problem=p, prompt_ids=render(tokenizer, p, i), source=source)
        for source, render in renderings.items()
        for i, p in enumerate(problems)
    ]
    fitting = [prompt for prompt in prompts if len(prompt.prompt_ids) < room]
    return fitting, len(prompts) - len(fitting)


def candidate_of(problem: Problem, sampled: Sampled, source: str) -> Candidate:
    return Candidate(
        problem_id=normalize(problem.question),
        question=problem.question,
        language=problem.language,
        completion=sampled.text,
        n_tokens=sampled.n_tokens,
        verdict=sampled.verdict,
        truncated=sampled.truncated,
        problem=problem,
        source=source,
    )


def _progress(done: int, total: int, filters: Filters) -> dict[str, Any]:
    event: dict[str, Any] = {"step": done, "total_steps": total, "phase": "sampling"}
    return event | {"accuracy": filters.kept / filters.seen} if filters.seen else event


def _nothing_accepted(stage: str, curated: Curated) -> str:
    if not curated.filters.seen:
        return f"{stage}: all {curated.prompts_too_long} prompts are longer than the policy's context; use shorter ones"
    reasons = ", ".join(f"{reason} {count}" for reason, count in curated.filters.reasons.most_common(4))
    return (
        f"{stage}: none of {curated.filters.seen} completions passed the filters ({reasons}); "
        "sample from a better policy, with more prompts, or change `filters`"
    )


# --- rows and the dataset ----------------------------------------------------------------------------------------


def rows_of(candidates: Iterable[Candidate]) -> list[Row]:
    """SFT rows; ids are the problem's id and a count, so that they are unique and stay the same."""
    seen: Counter[str] = Counter()
    rows = []
    for candidate in candidates:
        problem = candidate.problem
        seen[problem.id] += 1
        rows.append(
            {
                "id": f"{problem.id}-{seen[problem.id]}",
                "messages": [*map(dict, problem.messages), {"role": "assistant", "content": candidate.completion}],
                "domain": problem.domain,
                "language": problem.language,
                "source": candidate.source,
            }
        )
    return rows


def chosen(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items, chosen by seed, in their order; all of them when there are no more, or for None."""
    if count is None or len(items) <= count:
        return list(items)
    places = np.random.default_rng(seed).choice(len(items), size=count, replace=False)
    return [items[place] for place in sorted(places)]


def without_held_out(rows: Sequence[Row], config: CurationConfig | GRMDataConfig) -> tuple[list[Row], dict[str, Any]]:
    """Rows free of held-out text, and what was looked for and found (`sft.held_out`)."""
    held_out = read_held_out(config.held_out_sources)
    clean = decontaminate(rows, held_out.texts, lambda row: [message["content"] for message in row["messages"]], NGRAM)
    kept = [row for row in clean.kept if not any(question in held_out.questions for question in _questions(row))]
    equal = len(clean.kept) - len(kept)
    return kept, held_out.report(len(rows), clean.dropped_count, equal, clean.examples)


def _questions(row: Row) -> list[str]:
    return [normalize(message["content"]) for message in row["messages"] if message["role"] == "user"]


def write(
    candidates: Sequence[Candidate],
    listed: Sequence[Row],
    curated: Curated,
    config: CurationConfig,
    context: StageContext,
) -> None:
    """The dataset artifact: the chosen candidates and listed rows that hold no held-out text, and the data card."""
    rows, decontamination = without_held_out([*rows_of(candidates), *listed], config)
    if not rows:
        compared = decontamination["rows_compared"]
        raise StageError(f"{context.name}: all {compared} rows hold held-out text; use other prompts")
    card = DataCard(
        n_rows=len(rows),
        by_domain=count_by(rows, "domain"),
        by_language=count_by(rows, "language"),
        by_source=count_by(rows, "source"),
        n_candidates=curated.filters.seen,
        accept_rate=len(curated.kept) / curated.filters.seen,
        accept_rate_by={
            "domain": _rates(curated.sampled_by["domain"], (c.problem.domain for c in curated.kept)),
            "language": _rates(curated.sampled_by["language"], (c.language for c in curated.kept)),
        },
        rejected=dict(sorted(curated.filters.reasons.items())),
        decontamination=decontamination,
        tokens=token_stats(load_tokenizer(context.inputs["policy"]), rows),
        sampling={
            "prompts": curated.prompts,
            "prompts_too_long": curated.prompts_too_long,
            "samples_per_prompt": config.samples_per_prompt,
            "seed": context.seed,
            **config.rollout.model_dump(),
            **curated.notes,
        },
    )
    write_dataset(context.output, rows, card)
    counts = {"rows": len(rows), "samples": curated.filters.seen, "tokens": round(card.tokens["total"])}
    write_stats(context.output, counts | {"prompts": curated.prompts})


def _rates(sampled: Counter[str], accepted: Iterable[str]) -> dict[str, float]:
    counts = Counter(accepted)
    return {name: counts[name] / total for name, total in sorted(sampled.items())}


def token_stats(tokenizer: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Lengths of the assistant's turns in the policy's tokens, EOS not counted."""
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    lengths = np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    return {
        "total": float(lengths.sum()),
        "mean": float(lengths.mean()),
        "p50": float(np.percentile(lengths, 50)),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(lengths.max()),
    }
