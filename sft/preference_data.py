"""The preference-data stage: prompts, responses of several checkpoints, a judge, and what it takes to trust the result.

DeepSeek-R1 (arXiv:2501.12948v2, section 3.1): 66,000 pairs judged four times each with the order randomised, kept when
the mean gap is above 1, chosen and rejected equally long over the set; 106,000 labels for safety.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from data.chat import parse_completion, render_prompt
from data.decontaminate import Decontaminated, decontaminate
from data.instructions import bad_answer, good_answer
from data.preference_sources import Tally, read_pairs, read_safety_labels
from data.preferences import SCHEMAS, Preference, PreferencePair, SafetyLabel, about, preference_row, record_texts
from data.problem_pool import ProblemPool
from data.problems import Problem
from data.safety_prompts import SAFETY, safe_answer, unsafe_answer
from data.sources import held_out_texts
from data.write import DataCard, count_by, write_dataset
from models.checkpoint import context_length, load_tokenizer
from rewards.config import RewardSpec
from rewards.reward import Verdict
from sft.borrowed import borrowed
from sft.judges import open_judge
from sft.judging import Judged, Question, judge_all
from sft.preference_config import PreferenceDataConfig
from sft.preference_stats import balanced, judging_stats, length_difference, truth_stats
from sft.refine import r1_layout
from sft.sampling import Prompt, sampled_chunks
from training.run_log import write_stats
from training.stage import StageContext, StageError

WORK = ".work"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The different responses to one problem, as they are judged, in the order they came."""

    key: str
    problem: Problem
    texts: tuple[str, ...]
    usable: int  # responses that may be judged, equal ones each
    borrowed: tuple[str, ...] = ()  # of other prompts, each to be compared with one of its own


def run(config: PreferenceDataConfig, context: StageContext) -> None:
    policies = _policies(context)
    if not policies and not config.sources:
        raise StageError(f"{context.name}: give checkpoints as inputs.policies, or files in `sources`")
    listed, tallies = _listed(config)
    found = _found(config, context, policies) if policies else Found([], {}, Counter())
    clean = decontaminate([*found.records, *listed], held_out_texts(config.held_out_sources), record_texts)
    if not clean.kept:
        contaminated = f" and {clean.dropped_count} records hold held-out text" if clean.dropped_count else ""
        raise StageError(
            f"{context.name}: nothing is left of {found.counts.get('judged', 0)} judgements: "
            f"{dict(found.reasons)}{contaminated}"
        )
    _write(clean, found, tallies, config, context)


@dataclass(slots=True)
class Found:
    """What sampling and judging gave."""

    records: list[Preference]
    judging: dict[str, Any]  # for the data card
    reasons: Counter[str]  # why questions gave no record
    held_out_problems: int = 0  # listed problems that were not asked

    @property
    def counts(self) -> dict[str, int]:
        return self.judging.get("counts", {})


def _found(config: PreferenceDataConfig, context: StageContext, policies: dict[str, Path]) -> Found:
    """Sample, judge, keep what is clear, balance."""
    reasons: Counter[str] = Counter()
    pool = ProblemPool(config.problems, "train", context.seed, config.held_out_sources)
    problems = pool.draw_distinct(config.prompts, config.problems.instruction_share)
    responses = list(_all_responses(problems, config, context, policies, reasons))
    questions = list(_questions(responses, config, context.seed, reasons))
    judge = open_judge(config.judge, context.inputs.get("judge"), context.seed)
    try:
        judged = judge_all(
            questions,
            judge,
            config.judge,
            queries=config.queries,
            seed=context.seed,
            journal=context.output / WORK / "judgements.jsonl",
            on_answer=lambda done, total: context.report({"step": done, "total_steps": total, "phase": "judging"}),
        )
    finally:
        judge.close()
    records = list(_records(questions, judged, config, reasons))
    kept, balance = _balanced(records, config)
    reasons["unbalanced"] += len(records) - len(kept)
    judging = {
        "judge": config.judge.shown_name,
        "counts": {"judged": len(questions), "queries": judged.queries, "answers": judged.answers},
        "tries_without_verdict": dict(judged.faults.most_common()),
        **judging_stats(judged, questions),
        **truth_stats(kept),
        "length_balance": balance,
    }
    return Found(kept, judging, reasons, pool.contaminated)


def _balanced(records: list[Preference], config: PreferenceDataConfig) -> tuple[list[Preference], dict[str, Any]]:
    """What balancing leaves, and what the data card says of it; nothing where nothing is to be balanced."""
    before = length_difference(records)
    if config.balance_within is None or before is None:
        return records, {}
    kept = balanced(records, config.balance_within, config.balance_drop_limit)
    after = length_difference(kept) or 0.0
    is_reached = abs(after) <= config.balance_within
    if not is_reached:
        logger.warning(
            "chosen and rejected responses still differ in length by %.0f%% of their mean, more than balance_within "
            "%g: balancing stopped at %d of %d pairs dropped (balance_drop_limit %g)",
            100 * after, config.balance_within, len(records) - len(kept), len(records), config.balance_drop_limit,
        )  # fmt: skip
    return kept, {"unit": "characters", "before": before, "after": after, "is_reached": is_reached}


def _policies(context: StageContext) -> dict[str, Path]:
    """Label -> checkpoint."""
    return {
        role.partition(".")[2]: path for role, path in context.inputs.items() if role.partition(".")[0] == "policies"
    }


def _all_responses(
    problems: Sequence[Problem],
    config: PreferenceDataConfig,
    context: StageContext,
    policies: dict[str, Path],
    reasons: Counter[str],
) -> Iterator[Responses]:
    """Each problem with what all policies said to it, equal texts once."""
    texts: dict[str, Counter[str]] = {problem.id: Counter() for problem in problems}
    for number, (label, policy) in enumerate(policies.items()):
        for problem, text in _sampled(problems, label, policy, number, config, context, reasons):
            texts[problem.id][text] += 1
    sampled = {key: tuple(said) for key, said in texts.items()}
    for problem in problems:
        said = texts[problem.id]
        lent = borrowed(problem, problems, sampled, config.borrowed_responses, context.seed)
        if config.written_answers:
            said.update(_judged_part(text, config) for text in _written(problem, context.seed))
        lent = tuple(text for text in lent if text not in said)
        yield Responses(key=problem.id, problem=problem, texts=tuple(said), usable=said.total(), borrowed=lent)


def _sampled(
    problems: Sequence[Problem],
    label: str,
    policy: Path,
    number: int,
    config: PreferenceDataConfig,
    context: StageContext,
    reasons: Counter[str],
) -> Iterator[tuple[Problem, str]]:
    """(problem, the part that is judged) of every response that can be."""
    tokenizer, room = load_tokenizer(policy), context_length(policy)
    rendered = [(p, render_prompt(tokenizer, p.messages, config.rollout.template)) for p in problems]
    prompts = [
        Prompt(key=f"{label}:{p.id}", problem=p, prompt_ids=ids, source=label) for p, ids in rendered if len(ids) < room
    ]
    reasons["prompt_too_long"] += len(problems) - len(prompts)
    layout = config.layout or "summary"
    chunks = sampled_chunks(
        prompts,
        policy=policy,
        params=config.rollout.params(config.responses_per_prompt, context.seed + number),
        generator=config.generator,
        rewards=(RewardSpec(use="rewards.format:Format", options={"layout": layout}),),
        reward_workers=config.reward_workers,
        chunk_prompts=config.chunk_prompts,
        work=context.output / WORK / label,
        on_group=lambda done: context.report(
            {"step": done, "total_steps": len(prompts), "phase": f"sampling from {label}"}
        ),
    )
    for chunk in chunks:
        for prompt, completions in chunk:
            for completion in completions:
                text = _judged_part(completion.text, config)
                if completion.truncated:
                    reasons["truncated"] += 1
                elif config.layout is not None and completion.verdict is not Verdict.PASS:
                    reasons["ill_formed"] += 1
                elif not text.strip():
                    reasons["empty"] += 1
                else:
                    yield prompt.problem, text


def _judged_part(completion: str, config: PreferenceDataConfig) -> str:
    """Helpfulness is judged on the final part only, safety on everything (section 3.1)."""
    if config.objective == "safety":
        return completion
    parsed = parse_completion(completion)
    return parsed.final if parsed.answer is None else parsed.answer


def _written(problem: Problem, seed: int) -> Iterator[str]:
    """A good and a bad answer to one of the tiny chain's own prompts, in R1's layout."""
    rng = random.Random(f"{seed}-written-{problem.id}")
    if problem.domain == SAFETY:
        yield r1_layout(*safe_answer(problem, rng))
        yield r1_layout(*unsafe_answer(problem, rng))
    elif problem.checker == "instruction":
        yield r1_layout("", good_answer(problem, rng))
        yield r1_layout("", bad_answer(problem, rng))


def _questions(
    responses: Sequence[Responses], config: PreferenceDataConfig, seed: int, reasons: Counter[str]
) -> Iterator[Question]:
    for each in responses:
        if config.objective == "safety":
            for number, text in enumerate(each.texts):
                yield Question(key=f"{each.key}/{number}", problem=each.problem, responses=(text,))
            continue
        pairs = [*combinations(each.texts, 2), *product(each.texts, each.borrowed)]
        if not pairs:
            reasons["identical" if each.usable > 1 else "too_few"] += 1
        random.Random(f"{seed}-pairs-{each.key}").shuffle(pairs)
        for number, pair in enumerate(pairs[: config.pairs_per_prompt]):
            yield Question(key=f"{each.key}/{number}", problem=each.problem, responses=pair)


def _records(
    questions: Sequence[Question], judged: Judged, config: PreferenceDataConfig, reasons: Counter[str]
) -> Iterator[Preference]:
    source = f"judge:{config.judge.shown_name}"
    for question in questions:
        judgement = judged.judgements.get(question.key)
        made = {"id": question.key, "source": source, **about(question.problem)}
        if judgement is None:
            reasons["unjudged"] += 1
        elif config.objective == "safety":
            if max(judgement.mean, 1 - judgement.mean) < config.label_agreement:
                reasons["disputed"] += 1
            else:
                yield SafetyLabel(response=question.responses[0], safe=judgement.mean > 0.5, **made)
        elif abs(judgement.mean) <= config.min_gap:
            reasons["gap_too_small"] += 1
        else:
            better, worse = question.responses if judgement.mean > 0 else question.responses[::-1]
            yield PreferencePair(chosen=better, rejected=worse, gap=abs(judgement.mean), **made)


def _listed(config: PreferenceDataConfig) -> tuple[list[Preference], list[Tally]]:
    """What people have labelled, and what was left out of it, source by source."""
    records: list[Preference] = []
    tallies = [Tally() for _ in config.sources]
    for source, tally in zip(config.sources, tallies, strict=True):
        read = read_safety_labels if config.objective == "safety" else read_pairs
        records += read(source, tally)
    return records, tallies


def _write(
    clean: Decontaminated[Preference],
    found: Found,
    tallies: Sequence[Tally],
    config: PreferenceDataConfig,
    context: StageContext,
) -> None:
    kind, records = SafetyLabel if config.objective == "safety" else PreferencePair, clean.kept
    rows = [preference_row(record) for record in records]
    for tally in tallies:
        found.reasons.update(tally.refused)
    found.reasons["contaminated"] += clean.dropped_count
    judged = found.counts.get("judged", 0)
    card = DataCard(
        n_rows=len(rows),
        by_domain=dict(sorted(Counter(r.problem.domain if r.problem else "listed" for r in records).items())),
        by_language=count_by(rows, "language"),
        by_source=count_by(rows, "source"),
        n_candidates=judged,
        accept_rate=len(found.records) / judged if judged else None,
        rejected={reason: count for reason, count in sorted(found.reasons.items()) if count},
        decontamination={
            "n": 10,
            "sources": [source.path for source in config.held_out_sources],
            "problems_dropped": found.held_out_problems,
            "dropped": clean.dropped_count,
            "examples": clean.examples,
        },
        sampling={"prompts": config.prompts, "seed": context.seed, **config.rollout.model_dump()},
        judging={
            **found.judging,
            "files": [
                {
                    "path": source.path,
                    "subset": source.subset,
                    "split": source.split,
                    "kept": tally.kept,
                    "refused": dict(tally.refused),
                    "first": tally.examples,
                }
                for source, tally in zip(config.sources, tallies, strict=True)
            ],
        },
    )
    write_dataset(context.output, rows, card, SCHEMAS[kind])
    write_stats(context.output, {"rows": len(rows), "judged": judged, "queries": found.counts.get("queries", 0)})
