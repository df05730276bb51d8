"""Cold-start data: readable, correct samples of R1-Zero, laid out as reasoning and summary (R1, B.3.2).

Three sources: zero-shot samples, samples after worked examples (`few_shot`), conversations of your own (`dataset`).
"""

from dataclasses import replace

from rewards.config import RewardSpec
from sft.config import ColdStartConfig
from sft.conversations import read_conversations
from sft.curation import Candidate, Curated, chosen, curate, write, zero_shot
from sft.few_shot import few_shot_prompt
from sft.refine import RuleRefiner
from training.stage import StageContext, StageError

GRADER = (RewardSpec(use="rewards.accuracy:Accuracy"),)


def run(config: ColdStartConfig, context: StageContext) -> None:
    listed = list(read_conversations(config.dataset)) if config.dataset else []
    renderings = {"zero_shot": zero_shot(config)}
    if config.few_shot:
        renderings["few_shot"] = few_shot_prompt(config.few_shot, config.rollout.template, context.seed)
    curated = curate(config, GRADER, context, renderings)
    curated.kept = curated.filters.limit_per_problem(_refined(curated, context))
    listed = chosen(listed, config.max_rows, context.seed)
    room = None if config.max_rows is None else config.max_rows - len(listed)
    write(chosen(curated.kept, room, context.seed), listed, curated, config, context)


def _refined(curated: Curated, context: StageContext) -> list[Candidate]:
    """The accepted candidates in R1's layout. Those that do not fit into it are counted as not_refinable."""
    pairs = [(candidate.problem, candidate.completion) for candidate in curated.kept]
    texts = RuleRefiner(context.seed).refine(pairs)
    refined = [
        replace(candidate, completion=text)
        for candidate, text in zip(curated.kept, texts, strict=True)
        if text is not None
    ]
    lost = len(texts) - len(refined)
    if lost:
        curated.filters.reasons["not_refinable"] += lost
        curated.filters.kept -= lost
    if not refined:
        raise StageError(
            f"{context.name}: none of {lost} accepted completions has reasoning and a tagged answer to lay out as a "
            "summary; keep filters.layout at answer_tags",
        )
    return refined
