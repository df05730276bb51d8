"""Rejective fine-tuning data for a generative reward model (DeepSeek-GRM, arXiv:2504.02495, section 3.1).

Sample judgements of every item; reject those that are wrong, and items whose judgements are all right: they are too
easy to teach anything. What is left, principles and critiques included, is what the judge is fine-tuned on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.chat import render_prompt
from data.judging_pool import JudgingPool
from data.problems import Problem
from data.write import DataCard, count_by, write_dataset
from models.checkpoint import context_length, load_tokenizer
from rewards.config import RewardSpec
from rewards.grm_text import Unreadable, read_scores
from rewards.reward import Verdict
from sft.curation import chosen, token_stats, without_held_out
from sft.grm_config import GRMDataConfig
from sft.sampling import Prompt, Sampled, sampled_chunks
from training.run_log import write_stats
from training.stage import StageContext, StageError

GRADER = (RewardSpec(use="rewards.grm_rule:GRMRule"),)
OWN, HINTED = "rft", "rft_hinted"  # where rows come from
Row = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Selection:
    """Rows kept so far, and what became of every judgement: kept, or rejected for a counted reason."""

    rows: list[Row] = field(default_factory=list)
    judged: int = 0  # judgements sampled
    readable: int = 0
    right: Counter[str] = field(default_factory=Counter)  # source -> judgements that were right
    sampled: Counter[str] = field(default_factory=Counter)  # source -> judgements
    rejected: Counter[str] = field(default_factory=Counter)  # wrong | too_easy | duplicate | unreadable_<reason>

    def add(self, problem: Problem, source: str, judgements: Sequence[Sampled]) -> None:
        """Sort the judgements of one item. `problem` is what the row asks, without a hint."""
        faults = [fault_of(problem, judgement) for judgement in judgements]
        self.judged += len(faults)
        self.sampled[source] += len(faults)
        self.readable += sum(not fault.startswith("unreadable") for fault in faults)
        self.right[source] += faults.count("")
        too_easy = source == OWN and not any(faults)
        kept: set[str] = set()
        for text, fault in zip((judgement.text for judgement in judgements), faults, strict=True):
            fate = "too_easy" if too_easy else fault or ("duplicate" if text in kept else "")
            if fate:
                self.rejected[fate] += 1
            else:
                kept.add(text)
                self.rows.append(_row(problem, source, text, len(self.rows)))


def run(config: GRMDataConfig, context: StageContext) -> None:
    selection, too_long = Selection(), 0
    for source in (OWN, HINTED) if config.hinted else (OWN,):
        prompts, asked, longer = judging_prompts(config, context, source)
        too_long += longer
        for prompt, judgements in judged(prompts, source, config, context):
            selection.add(asked[prompt.key], source, judgements)
    if not selection.rows:
        raise StageError(_nothing_kept(context.name, selection, too_long))
    _write(selection, too_long, config, context)


def fault_of(problem: Problem, judgement: Sampled) -> str:
    """Why a judgement is no example: "wrong", "unreadable_<reason>", "unscorable" (the grader failed), or ""."""
    scores = read_scores(judgement.text, problem.metadata["responses"], judgement.truncated)
    if isinstance(scores, Unreadable):
        return f"unreadable_{scores.reason}"
    if judgement.verdict is Verdict.ERROR:
        return "unscorable"
    return "" if judgement.verdict is Verdict.PASS else "wrong"


def judging_prompts(
    config: GRMDataConfig, context: StageContext, source: str
) -> tuple[list[Prompt], dict[str, Problem], int]:
    """Prompts that leave the policy room; the problem that each one's row will ask; how many prompts are too long."""
    policy, settings = context.inputs["policy"], config.problems
    if settings.judging is None:
        raise StageError(f"{context.name}: problems.judging is not set")
    tokenizer, room = load_tokenizer(policy), context_length(policy)
    pool = JudgingPool(settings.judging, "train", context.seed, settings.languages)
    prompts, asked = [], {}
    for index in range(config.items):
        problem = pool.problem(index, hinted=source == HINTED)
        ids = render_prompt(tokenizer, problem.messages, config.rollout.template)
        prompt = Prompt(key=f"{source}:{index}:{problem.id}", problem=problem, prompt_ids=ids, source=source)
        if len(ids) < room:
            prompts.append(prompt)
            asked[prompt.key] = replace(problem, messages=pool.problem(index).messages)
    return prompts, asked, config.items - len(prompts)


def judged(
    prompts: Sequence[Prompt], source: str, config: GRMDataConfig, context: StageContext
) -> Iterator[tuple[Prompt, list[Sampled]]]:
    """Every prompt with its judgements. Raises StageError when none of the first chunk can be read."""
    samples = config.samples_per_item if source == OWN else 1
    chunks = sampled_chunks(
        prompts,
        policy=context.inputs["policy"],
        params=config.rollout.params(samples, context.seed),
        generator=config.generator,
        rewards=GRADER,
        reward_workers=config.reward_workers,
        chunk_prompts=config.chunk_prompts,
        work=context.output / f".work_{source}",
        on_group=lambda done: context.report(
            {"step": done, "total_steps": len(prompts), "phase": f"judging ({source})"}
        ),
    )
    readable = source == HINTED  # whoever judges without a hint may stumble over one: these are only rejected
    for chunk in chunks:
        faults = Counter(fault_of(prompt.problem, judgement) for prompt, found in chunk for judgement in found)
        readable = readable or not all(fault.startswith("unreadable") for fault in faults)
        if not readable:
            raise StageError(
                f"{context.name}: none of {faults.total()} judgements can be read ({_reasons(faults)}), so this policy "
                "is no judge yet: teach it the layout first (grm_cold_start_data and sft), use a stronger one, or let "
                "judgements be longer (rollout.max_new_tokens)"
            )
        yield from chunk


def _nothing_kept(stage: str, selection: Selection, too_long: int) -> str:
    if not selection.judged:
        return f"{stage}: all {too_long} prompts are longer than the policy's context; judge shorter responses"
    return (
        f"{stage}: none of {selection.judged} judgements is both right and of an item that is not too easy "
        f"({_reasons(selection.rejected)}); judge more or other items, or sample at a higher temperature"
    )


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common(4))


def _row(problem: Problem, source: str, judgement: str, number: int) -> Row:
    return {
        "id": f"{problem.id}-{source}-{number}",
        "messages": [*map(dict, problem.messages), {"role": "assistant", "content": judgement}],
        "domain": problem.domain,
        "language": problem.language,
        "source": source,
    }


def _write(selection: Selection, too_long: int, config: GRMDataConfig, context: StageContext) -> None:
    rows, decontamination = without_held_out(chosen(selection.rows, config.max_rows, context.seed), config)
    if not rows:
        raise StageError(f"{context.name}: all {len(selection.rows)} rows hold held-out text; judge other items")
    card = DataCard(
        n_rows=len(rows),
        by_domain=count_by(rows, "domain"),
        by_language=count_by(rows, "language"),
        by_source=count_by(rows, "source"),
        n_candidates=selection.judged,
        accept_rate=len(selection.rows) / selection.judged,
        rejected=dict(sorted(selection.rejected.items())),
        decontamination=decontamination,
        tokens=token_stats(load_tokenizer(context.inputs["policy"]), rows),
        sampling={
            "items": config.items,
            "prompts_too_long": too_long,
            "samples_per_item": config.samples_per_item,
            "hinted": config.hinted,
            "seed": context.seed,
            "accuracy": {source: selection.right[source] / n for source, n in sorted(selection.sampled.items())},
            "readable": selection.readable / selection.judged,
            **config.rollout.model_dump(),
        },
    )
    write_dataset(context.output, rows, card)
    counts = {"rows": len(rows), "samples": selection.judged, "tokens": round(card.tokens["total"])}
    write_stats(context.output, counts | {"items": config.items})
