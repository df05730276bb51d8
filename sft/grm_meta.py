"""What a meta RM learns from: judgements, each with whether it is right (DeepSeek-GRM, arXiv:2504.02495, section 4).

The paper's meta RM is a pointwise scalar model, trained with binary cross-entropy on whether a judgement agrees with
what is known of its item. That is the stage `reward_model` with objective judgement: its rows are those of safety
labels, `safe` being "right". Judgements that cannot be read are left out, for they are never counted.
"""

from collections import Counter
from typing import Any

from data.preferences import JUDGEMENT, SAFETY_SCHEMA, SafetyLabel, preference_row
from data.write import DataCard, count_by, write_dataset
from sft.curation import chosen
from sft.grm_config import GRMDataConfig
from sft.grm_data import OWN, fault_of, judged, judging_prompts
from training.run_log import write_stats
from training.stage import StageContext, StageError

SOURCE = "rule"  # what decided whether a judgement is right


def run(config: GRMDataConfig, context: StageContext) -> None:
    prompts, asked, too_long = judging_prompts(config, context, OWN)
    labels: list[SafetyLabel] = []
    faults: Counter[str] = Counter()
    for prompt, judgements in judged(prompts, OWN, config, context):
        problem = asked[prompt.key]
        for number, judgement in enumerate(judgements):
            fault = fault_of(problem, judgement)
            faults[fault or "right"] += 1
            if fault in ("", "wrong"):
                labels.append(
                    SafetyLabel(
                        id=f"{problem.id}-{len(labels)}-{number}",
                        prompt=problem.question,
                        response=judgement.text,
                        safe=not fault,
                        source=SOURCE,
                        language=problem.language,
                        metadata=dict(JUDGEMENT),
                    )
                )
    kept = chosen(_distinct(labels), config.max_rows, context.seed)
    if len({label.safe for label in kept}) < 2:
        counts = ", ".join(f"{name} {count}" for name, count in faults.most_common())
        raise StageError(
            f"{context.name}: there must be right and wrong judgements to learn from, and there are: {counts}; judge "
            "more or other items"
        )
    rows = [preference_row(label) for label in kept]
    write_dataset(context.output, rows, _card(rows, faults, too_long, config, context.seed), SAFETY_SCHEMA)
    write_stats(context.output, {"rows": len(rows), "samples": faults.total(), "items": config.items})


def _distinct(labels: list[SafetyLabel]) -> list[SafetyLabel]:
    """The first of equal judgements of one prompt."""
    return list({(label.prompt, label.response): label for label in reversed(labels)}.values())[::-1]


def _card(
    rows: list[dict[str, Any]], faults: Counter[str], too_long: int, config: GRMDataConfig, seed: int
) -> DataCard:
    return DataCard(
        n_rows=len(rows),
        by_language=count_by(rows, "language"),
        by_source=count_by(rows, "source"),
        n_candidates=faults.total(),
        accept_rate=len(rows) / max(1, faults.total()),
        rejected={name: count for name, count in sorted(faults.items()) if name not in ("right", "wrong")},
        sampling={
            "items": config.items,
            "prompts_too_long": too_long,
            "samples_per_item": config.samples_per_item,
            "right_share": sum(row["safe"] for row in rows) / len(rows),
            "seed": seed,
            **config.rollout.model_dump(),
        },
    )
