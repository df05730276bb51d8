"""Many questions to a judge: asked several times each, again where no verdict came, and never again once answered.

Every answer is in a journal as soon as it is there, the useless ones too, so that a stage that was killed, or that
stopped because its judge was away, asks only what is missing.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.journal import Journal, read_journal
from data.problems import Problem
from rewards.verdicts import read_label, read_verdict
from sft.judges import Answer, Judge, Query
from sft.preference_config import JudgeConfig
from training.stage import StageError

SILENT_IN_A_ROW = (
    20  # queries without an answer, until a round is given up: a server that is down need not be asked all
)
HOPELESS_AFTER, HOPELESS_SHARE = 50, 0.9  # queries that were answered, and the share of them without a verdict
SILENCE = ("timeout", "unreachable")  # faults after which the query is as good as not asked
PAUSE_S = 2.0  # before the second round, doubled for each further one

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Two responses to compare, or one to label. `key` is unique in a stage."""

    key: str
    problem: Problem
    responses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The readable answers to one question."""

    values: tuple[int, ...]  # how much better responses[0] is, in {-2, ..., 2}; for one response 1 safe, 0 unsafe
    swapped: tuple[bool, ...]  # whether responses[1] was shown first; as long as `values`

    @property
    def by_order(self) -> list[float]:
        """The mean of each order that has a value, responses[0] shown first before the other."""
        orders = [[v for v, s in zip(self.values, self.swapped, strict=True) if s is order] for order in (False, True)]
        return [sum(values) / len(values) for values in orders if values]

    @property
    def mean(self) -> float:
        """The mean of the orders' means: a judge that likes a place cancels out, however many values each order has."""
        return sum(self.by_order) / len(self.by_order)


@dataclass(slots=True)
class _Standing:
    """What is known of one query."""

    value: int | None = None  # as shown
    unreadable: int = 0  # answers without a verdict
    refused: int = 0
    asked: int = 0

    @property
    def in_vain(self) -> bool:
        return self.value is None and self.unreadable > 0


@dataclass(slots=True)
class Judged:
    """All judgements, and what it took to get them."""

    judgements: dict[str, Judgement] = field(default_factory=dict)  # without questions that too few queries answered
    queries: int = 0
    answers: int = 0  # that came, readable or not
    faults: Counter[str] = field(default_factory=Counter)  # unreadable | timeout | unreachable | refused -> tries
    failed: int = 0  # queries without a verdict after all retries
    unjudged: int = 0  # questions without one


def judge_all(
    questions: Sequence[Question],
    judge: Judge,
    config: JudgeConfig,
    *,
    queries: int,
    seed: int,
    journal: Path,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> Judged:
    """`queries` judgements of each question, the two orders equally often (one more of either, by seed).

    on_answer: told how many of all queries are settled. A question counts when at least half of its queries do, and one
    in each order that was asked. Raises StageError when the judge does not answer, or when more than `failed_limit` of
    the queries have no verdict.
    """
    plan = {
        f"{question.key}/{number}": (question, _is_swapped(question, number, seed))
        for question in questions
        for number in range(queries)
    }
    standings = {key: _Standing() for key in plan}
    result = Judged(queries=len(plan))
    for row in read_journal(journal):
        if row["key"] in standings:
            _take(row, standings, result)
    with Journal(journal) as lines:
        for turn in range(1 + config.retries):
            asked = [_query(key, *plan[key], standings[key]) for key in plan if _is_open(standings[key], config)]
            if not asked:
                break
            if turn and any(result.faults[fault] for fault in SILENCE):
                time.sleep(PAUSE_S * 2 ** (turn - 1))
            _ask(asked, judge, standings, result, lines, on_answer)
    _check(standings, config, result)
    _collect(questions, plan, standings, queries, result)
    return result


def _ask(
    asked: Sequence[Query],
    judge: Judge,
    standings: dict[str, _Standing],
    result: Judged,
    lines: Journal,
    on_answer: Callable[[int, int], None],
) -> None:
    """One round. It ends early when the judge is away, and with an error when it writes nothing readable.

    Whatever ends it, answers that were on their way are kept.
    """
    settled = sum(standing.value is not None for standing in standings.values())
    in_vain = sum(standing.in_vain for standing in standings.values())
    silent = 0

    def keep(query: Query, answer: Answer) -> dict[str, Any]:
        row = _row(query, answer)
        lines.add(row)
        _take(row, standings, result)
        return row

    try:
        with closing(judge.ask(asked)) as answers:
            for query, answer in answers:
                in_vain -= standings[query.key].in_vain
                row = keep(query, answer)
                in_vain += standings[query.key].in_vain
                settled += row["value"] is not None
                on_answer(settled, len(standings))
                silent = silent + 1 if row["fault"] in SILENCE else 0
                if silent == SILENT_IN_A_ROW:
                    logger.warning("the judge left %d queries in a row without an answer: %s", silent, answer.detail)
                    return
                if row["fault"] == "unreadable":
                    _refuse_nonsense(in_vain, settled, answer)
    finally:
        for query, answer in judge.late():
            keep(query, answer)


def _refuse_nonsense(in_vain: int, settled: int, answer: Answer) -> None:
    """Raise StageError when hardly any of the queries that were answered, ever, has a verdict. A later round asks only
    what failed before, so its answers alone say nothing about the judge."""
    answered = in_vain + settled
    if answered >= HOPELESS_AFTER and in_vain >= answered * HOPELESS_SHARE:
        shown = repr(answer.text[-120:]) if answer.text else answer.detail or "an empty text"
        raise StageError(
            f"judge: {in_vain} of its first {answered} answers hold no verdict, e.g. {shown}; a judge must end with "
            "[[A>B]] or the like: take a stronger one, or give it more tokens"
        )


def _is_swapped(question: Question, number: int, seed: int) -> bool:
    """Pairs of queries show both orders; which comes first is by seed, so that an odd number favours neither."""
    if len(question.responses) < 2:
        return False
    first = random.Random(f"{seed}/{question.key}").randrange(2)
    return (first + number) % 2 == 1


def _query(key: str, question: Question, is_swapped: bool, standing: _Standing) -> Query:
    shown = question.responses[::-1] if is_swapped else question.responses
    return Query(key=key, attempt=standing.asked, unreadable=standing.unreadable, problem=question.problem, shown=shown)


def _row(query: Query, answer: Answer) -> dict[str, Any]:
    read = read_verdict if len(query.shown) == 2 else read_label
    value = None if answer.fault else read(answer.text, answer.truncated)
    fault = answer.fault or ("unreadable" if value is None else "")
    detail = answer.detail or ("the answer was cut off" if answer.truncated else "")
    return {
        "key": query.key, "attempt": query.attempt, "value": value, "fault": fault, "text": answer.text,
        "detail": detail,
    }  # fmt: skip


def _take(row: dict[str, Any], standings: dict[str, _Standing], result: Judged) -> None:
    standing = standings[row["key"]]
    standing.asked = row["attempt"] + 1
    if row["fault"]:
        result.faults[row["fault"]] += 1
    if row["fault"] in ("", "unreadable"):
        result.answers += 1
    standing.unreadable += row["fault"] == "unreadable"
    standing.refused += row["fault"] == "refused"
    if row["value"] is not None:
        standing.value = row["value"]


def _is_open(standing: _Standing, config: JudgeConfig) -> bool:
    return standing.value is None and standing.unreadable + standing.refused <= config.retries


def _check(standings: dict[str, _Standing], config: JudgeConfig, result: Judged) -> None:
    silent = sum(_is_open(standing, config) for standing in standings.values())
    counted = ", ".join(f"{count} {fault}" for fault, count in result.faults.most_common())
    if silent:
        raise StageError(
            f"judge: {silent} of {result.queries} queries have no answer after {config.retries} retries ({counted}); "
            "the answers that came are kept",
            retry=True,
        )
    result.failed = sum(standing.value is None for standing in standings.values())
    if result.failed > config.failed_limit * result.queries:
        raise StageError(
            f"judge: {result.failed} of {result.queries} queries have no readable verdict after {config.retries} "
            f"retries ({counted}), more than failed_limit {config.failed_limit:g}; take a stronger judge, or raise "
            "judge.retries and run it again"
        )


def _collect(
    questions: Sequence[Question],
    plan: dict[str, tuple[Question, bool]],
    standings: dict[str, _Standing],
    queries: int,
    result: Judged,
) -> None:
    for question in questions:
        keys = [f"{question.key}/{number}" for number in range(queries)]
        found = [(standings[key].value, plan[key][1]) for key in keys]
        values = [(-value if is_swapped else value, is_swapped) for value, is_swapped in found if value is not None]
        one_sided = {is_swapped for _, is_swapped in values} != {is_swapped for _, is_swapped in found}
        if 2 * len(values) < queries or one_sided:
            result.unjudged += 1
            continue
        result.judgements[question.key] = Judgement(
            values=tuple(value for value, _ in values), swapped=tuple(is_swapped for _, is_swapped in values)
        )
