"""What the evaluation asks, so that data sets can be kept free of it. Free of torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.config import ProblemSource
from data.instructions import instructions
from data.problem_pool import ProblemPool, ProblemsConfig
from data.sources import held_out_texts
from sft.filters import normalize

# The procedural problems that rows are compared with: the first of the evaluation's default `problems` and
# `problem_seed`, far more than its `num_problems`.
HELD_OUT_SEED, HELD_OUT_PROBLEMS = 0, 2000
NGRAM = 10  # words in a row (R1, D.1)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Benchmarks and held-out instructions, compared by 10-grams, and the evaluation's procedural problems, compared by
    their exact question, since all problems of one template share their words (their splits are disjoint besides)."""

    texts: list[str]
    questions: frozenset[str]  # normalized

    def report(self, rows: int, dropped: int, equal_question: int, examples: Sequence[str]) -> dict[str, Any]:
        """For the data card: what was looked for among how many rows, and found."""
        return {
            "n": NGRAM,
            "rows_compared": rows,
            "held_out_texts": len(self.texts),
            "dropped": dropped,
            "examples": list(examples),
            "held_out_problems": len(self.questions),
            "held_out_problem_seed": HELD_OUT_SEED,
            "dropped_equal_question": equal_question,
            "note": "first dropped by shared words with held_out_texts, then by a question equal to a "
            "held_out_problem; procedural train and held-out tasks are disjoint by content hash besides",
        }


def read_held_out(sources: Iterable[ProblemSource]) -> HeldOut:
    """`sources`: benchmarks. Raises SourceError for one that cannot be read."""
    texts = list(held_out_texts(sources))
    texts += [i.question for language in ("en", "zh") for i in instructions("held_out", language)]
    return HeldOut(texts, _procedural_questions())


@lru_cache(maxsize=1)
def _procedural_questions() -> frozenset[str]:
    pool = ProblemPool(ProblemsConfig(), "held_out", HELD_OUT_SEED)
    problems = pool.draw_distinct(HELD_OUT_PROBLEMS, instruction_share=0.0)
    return frozenset(normalize(problem.question) for problem in problems)
