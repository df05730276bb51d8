"""Where two runs of a GRPO stage part: the first recorded thing that is not equal, in the order it came about."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rl.group_records import batch_file, recorded_steps
from training.run_log import METRICS, rows_by_step

# Columns of a recorded batch in the order in which they come about, and what to suspect of the first that differs.
_STAGES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("problem_id", "prompt_ids"), "the problems drawn: data, seed or template"),
    (("token_ids", "finish_reason"), "the tokens sampled: the generator, its weights or its settings"),
    (("sampling_logprobs", "policy_version"), "the generator's numerics, or the weights it held"),
    (("verdict", "reward", "parts"), "the rewards"),
    (("advantage",), "how rewards are compared: the objective"),
    (("old_logprobs",), "the trainer's numerics, or its weights"),
    (("reference_logprobs",), "the reference"),
)
_PER_TOKEN = ("prompt_ids", "token_ids", "sampling_logprobs", "policy_version", "old_logprobs", "reference_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    step: int
    what: str  # a column of the recorded groups, or a metric
    where: str  # the group and sample, or ""
    one: Any
    other: Any
    suspect: str


def first_difference(one: Path, other: Path) -> tuple[Parting | None, int]:
    """The first difference of two folders of stages, and the last step up to which both were compared (0: none)."""
    rows = [rows_by_step(folder / METRICS) for folder in (one, other)]
    batches = set(recorded_steps(one)) & set(recorded_steps(other))
    compared = 0
    for step in sorted(rows[0].keys() & rows[1].keys()):
        found = None
        if step in batches:
            found = next(_in_groups(step, batch_file(one, step), batch_file(other, step)), None)
        found = found or next(_in_metrics(step, rows[0][step], rows[1][step]), None)
        if found is not None:
            return found, step
        compared = step
    return None, compared


def _in_groups(step: int, one: Path, other: Path) -> Iterator[Parting]:
    names = [name for columns, _ in _STAGES for name in columns]
    mine, theirs = (pq.read_table(file, columns=[*names, "group", "sample"]).to_pylist() for file in (one, other))
    for columns, suspect in _STAGES:
        for a, b in zip(mine, theirs, strict=False):
            for name in columns:
                if not _equal(a[name], b[name]):
                    where = f"group {a['group']}, sample {a['sample']}"
                    at = _place(a[name], b[name]) if name in _PER_TOKEN else None
                    if at is not None:
                        yield Parting(
                            step=step, what=name, where=f"{where}, token {at}", one=_at(a[name], at),
                            other=_at(b[name], at), suspect=suspect,
                        )  # fmt: skip
                    yield Parting(step=step, what=name, where=where, one=a[name], other=b[name], suspect=suspect)
    if len(mine) != len(theirs):
        suspect = "how many are asked: the recipe"
        yield Parting(step=step, what="completions", where="", one=len(mine), other=len(theirs), suspect=suspect)


def _place(one: Any, other: Any) -> int | None:
    """Where two lists of one value per token differ first."""
    if not (isinstance(one, list) and isinstance(other, list)):
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if not _equal(a, b)), min(len(one), len(other)))


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else "ended before"


def _in_metrics(step: int, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Parting]:
    for name in (name for name in one if name in other):
        if not _equal(one[name], other[name]):
            suspect = "the optimizer step, or what it is made of" if "/" in name else "the stage"
            yield Parting(step=step, what=name, where="", one=one[name], other=other[name], suspect=suspect)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return one == other
