"""Which of the fit rows are the set: no row twice, none nearly twice, not too many of a problem, within the budgets.

This needs all rows at once, but little of each: about 170 bytes, and as much again for a moment. Decisions follow the
order of the rows or their ranks, a hash of seed and text, and so depend on neither workers nor timing.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.fingerprints import PLACES
from distill.near_duplicates import near_duplicates

_COLUMNS = ("tokens", "exact", "problem", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRows:
    """What is known of all fit rows, in their order."""

    tokens: np.ndarray  # [N] int32
    exact: np.ndarray  # [N] uint64, equal for equal rows
    problem: np.ndarray  # [N] uint64, equal for equal questions
    rank: np.ndarray  # [N] uint64
    signature: np.ndarray  # [N, PLACES] uint8


@dataclass(slots=True, kw_only=True)
class Selection:
    keep: np.ndarray  # [N] bool
    reasons: Counter[str] = field(default_factory=Counter)  # why the others are not kept

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """`rows`: their numbers."""
        self.keep[rows] = False
        if len(rows):
            self.reasons[reason] += len(rows)


def read_fit_rows(files: Iterable[Path]) -> FitRows:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    prints = [np.zeros((0, PLACES), np.uint8)]
    for file in files:
        with pq.ParquetFile(file) as opened:
            table = opened.read(columns=[*_COLUMNS, "signature"])
        for name in _COLUMNS:
            columns[name].append(table[name].to_numpy())
        prints.append(_bytes_of(table["signature"]))
    types = {"tokens": np.int32, "exact": np.uint64, "problem": np.uint64, "rank": np.uint64}
    joined = {name: np.concatenate([np.zeros(0, types[name]), *columns[name]]) for name in _COLUMNS}
    return FitRows(**joined, signature=np.concatenate(prints))


def select(
    rows: FitRows,
    *,
    threshold: float | None,
    max_per_problem: int | None,
    max_rows: int | None,
    max_tokens: int | None,
) -> Selection:
    """threshold: of near duplicates, None keeps them. Of equal and nearly equal rows the first is kept; a limit takes
    the rows of least rank, and max_tokens those before the first that does not fit."""
    chosen = Selection(keep=np.ones(len(rows.exact), dtype=bool))
    _, firsts = np.unique(rows.exact, return_index=True)
    chosen.drop(np.setdiff1d(np.arange(len(rows.exact)), firsts, assume_unique=True), "duplicate")
    if threshold is not None:
        left = np.flatnonzero(chosen.keep)
        chosen.drop(left[near_duplicates(rows.signature[left], threshold) >= 0], "near_duplicate")
    if max_per_problem is not None:
        left = np.flatnonzero(chosen.keep)
        chosen.drop(left[_beyond(rows.problem[left], rows.rank[left], max_per_problem)], "over_limit")
    left = np.flatnonzero(chosen.keep)
    ranked = left[np.lexsort((left, rows.rank[left]))]
    fitting = len(ranked) if max_rows is None else min(max_rows, len(ranked))
    if max_tokens is not None:
        sums = np.cumsum(rows.tokens[ranked], dtype=np.int64)
        fitting = min(fitting, int(np.searchsorted(sums, max_tokens, side="right")))
    chosen.drop(ranked[fitting:], "over_budget")
    return chosen


def _beyond(groups: np.ndarray, ranks: np.ndarray, limit: int) -> np.ndarray:
    """Places of what is not among the `limit` of least rank of its group."""
    order = np.lexsort((ranks, groups))
    begins = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] ^ np.uint64(1)))
    places = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return order[places >= limit]


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size binary column as [N, PLACES] uint8."""
    pieces = [np.zeros((0, PLACES), np.uint8)]
    for chunk in column.chunks:
        data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
        pieces.append(data[chunk.offset * PLACES : (chunk.offset + len(chunk)) * PLACES].reshape(-1, PLACES))
    return np.concatenate(pieces)
