"""The curated set: verified and readable samples of the RL checkpoint, mixed with non-reasoning data (R1, B.3.3)."""

from rewards.accuracy import Accuracy
from sft.config import RejectionSamplingConfig
from sft.conversations import read_conversations
from sft.curation import Candidate, Row, candidate_of, chosen, curate, write
from sft.filters import Filters, script_consistency
from sft.general_data import general_answers
from sft.sampling import Sampled
from training.stage import StageContext

GENERAL = "general"  # the domain of non-reasoning problems


def run(config: RejectionSamplingConfig, context: StageContext) -> None:
    dataset = config.general_dataset
    given = list(read_conversations(dataset, GENERAL)) if dataset else []  # all of it, before anything is sampled
    curated = curate(config, config.rewards, context, judges=config.judges)
    curated.kept = curated.filters.limit_per_problem(curated.kept)
    reasoning = [candidate for candidate in curated.kept if candidate.problem.domain != GENERAL]
    general = [candidate for candidate in curated.kept if candidate.problem.domain == GENERAL]
    n_reasoning, n_general = mixture(len(reasoning), len(general), config.general_share, config.max_rows)
    missing = max(0, n_general - len(general))
    listed: list[Row] = []
    written: list[Candidate] = []
    if dataset:
        listed = chosen(given, missing, context.seed)
    else:
        written = written_candidates(missing, config, context.seed)
    curated.notes = {
        "general_rows_wanted": n_general,
        "general_rows_written": len(written),
        "general_rows_listed": len(listed),
    }
    rows = chosen(reasoning, n_reasoning, context.seed) + chosen(general, n_general, context.seed) + written
    write(rows, listed, curated, config, context)


def mixture(n_reasoning: int, n_general: int, general_share: float, max_rows: int | None) -> tuple[int, int]:
    """How many reasoning and how many non-reasoning rows the set gets, from what was accepted of each.

    All reasoning rows that fit, and as many others as make `general_share` of the whole. Without reasoning rows there
    is nothing to mix: the accepted others are the set.
    """
    if not n_reasoning:
        return 0, min(n_general, max_rows or n_general)
    if max_rows is not None:
        n_reasoning = min(n_reasoning, max(1, round(max_rows * (1 - general_share))))
    wanted = round(n_reasoning * general_share / (1 - general_share))
    return n_reasoning, wanted if max_rows is None else min(wanted, max_rows - n_reasoning)


def written_candidates(count: int, config: RejectionSamplingConfig, seed: int) -> list[Candidate]:
    """Up to `count` instructions with written answers; checked by rule and filtered like sampled ones."""
    settings = config.filters.model_copy(update={"layout": "summary"})  # the layout they are written in
    filters, accuracy = Filters(settings, script_consistency, seed), Accuracy()
    accepted: list[Candidate] = []
    answers = general_answers(config.problems.languages, seed)
    while len(accepted) < count and (answer := next(answers, None)):
        problem, completion = answer
        score = accuracy(problem, completion)
        answered = Sampled(text=completion, n_tokens=0, truncated=False, verdict=score.verdict, detail=score.detail)
        candidate = candidate_of(problem, answered, "instructions")
        if filters.accept(candidate):
            accepted.append(candidate)
    return accepted
