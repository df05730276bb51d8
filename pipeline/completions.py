"""Scored completions: one row each, in a parquet file; and the score table made of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.problems import Problem
from data.safety_prompts import SAFETY
from pipeline.statistics import summarise
from rewards.canonical import canonical_answer
from rewards.ifeval import tally_completion
from rewards.reward import Score, Verdict
from rewards.utility import utility_of_completion
from rollouts.records import Completion

GENERAL = "general"  # domain of general instructions
OPEN_DOMAINS = (GENERAL, SAFETY)  # their prompts have no one answer: no part of pass@1
INSTRUCTION = "instruction"  # the checker of those whose true utility is known
IFEVAL = "ifeval"
_LONGEST_TRUTH = 10_000  # characters; the tests of a program can be megabytes, and stand in every row
COLUMNS = pa.schema(
    {
        "checkpoint": pa.string(),
        "problem_id": pa.string(),
        "domain": pa.string(),
        "language": pa.string(),
        "question": pa.string(),
        "ground_truth": pa.string(),
        "sample": pa.int32(),  # number within the problem, from 0
        "completion": pa.string(),
        "answer": pa.string(),  # final answer in one spelling; null: none
        "verdict": pa.string(),
        "correct": pa.bool_(),  # null, like the next two, when unscorable
        "format": pa.bool_(),
        "language_consistency": pa.float64(),
        "utility": pa.float64(),  # of an answer to an instruction (rewards.utility); null for other problems
        "instructions": pa.int32(),  # of an IFEval prompt (rewards.ifeval), like the next two; null for other problems
        "instructions_followed": pa.int32(),
        "instructions_followed_loosely": pa.int32(),
        "length": pa.int32(),  # tokens
        "truncated": pa.bool_(),  # cut off by the length limit
    }
)


def completion_row(checkpoint: str, problem: Problem, sample: int, completion: Completion, score: Score) -> dict:
    """One row of the table; `score` has the parts accuracy, format and language unless it is an error."""
    scorable = score.verdict is not Verdict.ERROR
    tally = tally_completion(problem, completion.text) if problem.checker == IFEVAL else None
    return {
        "checkpoint": checkpoint,
        "problem_id": problem.id,
        "domain": problem.domain,
        "language": problem.language,
        "question": problem.question,
        "ground_truth": _shortened(problem.ground_truth),
        "sample": sample,
        "completion": completion.text,
        "answer": canonical_answer(problem, completion.text),
        "verdict": score.verdict.value,
        "correct": score.verdict is Verdict.PASS if scorable else None,
        "format": score.parts["format"] == 1.0 if scorable else None,
        "language_consistency": score.parts["language"] if scorable else None,
        "utility": utility_of_completion(problem, completion.text) if problem.checker == INSTRUCTION else None,
        "instructions": tally.asked if tally else None,
        "instructions_followed": tally.strict if tally else None,
        "instructions_followed_loosely": tally.loose if tally else None,
        "length": len(completion.token_ids),
        "truncated": completion.finish_reason == "length",
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as parquet."""
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=COLUMNS), path)


def load_rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def score_checkpoint(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one checkpoint: overall, by domain, by language.

    General instructions and safety prompts have rows of their own among the domains and are left out of the rest:
    passing all checks of an instruction and getting a right answer are not one quantity.
    """
    reasoning = [row for row in rows if row["domain"] not in OPEN_DOMAINS]
    return {
        "overall": summarise(reasoning),
        "by_domain": {domain: summarise(part) for domain, part in _split(rows, "domain").items()},
        "by_language": {language: summarise(part) for language, part in _split(reasoning, "language").items()},
    }


def _shortened(truth: str) -> str:
    return truth if len(truth) <= _LONGEST_TRUTH else f"{truth[:_LONGEST_TRUTH]}... ({len(truth)} characters)"


def _split(rows: list[dict[str, Any]], column: str) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row[column], []).append(row)
    return dict(sorted(parts.items()))
