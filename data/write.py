"""A dataset artifact's payload: data.parquet and data_card.json. Each appears whole or not at all.

One parquet file whatever its size: it is written and read row group by row group, so neither side holds it in memory.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SFT_SCHEMA = pa.schema(
    [("id", pa.string()), ("messages", _MESSAGES)] + [(name, pa.string()) for name in ("domain", "language", "source")]
)
ROWS_PER_GROUP = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCard:
    """What a reader of the dataset asks first: how much of what, how it was sampled, and what was dropped why."""

    n_rows: int
    by_domain: dict[str, int] = field(default_factory=dict)  # rows
    by_language: dict[str, int] = field(default_factory=dict)  # rows
    by_source: dict[str, int] = field(default_factory=dict)  # rows
    n_candidates: int = 0  # completions judged by the filters
    accept_rate: float | None = None  # kept / candidates, None without candidates
    accept_rate_by: dict[str, dict[str, float]] = field(default_factory=dict)  # domain | language -> value -> rate
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> completions, from sft.filters
    decontamination: dict[str, Any] = field(default_factory=dict)  # {"n": 10, "dropped": 3, "examples": [...]}
    tokens: dict[str, float] = field(default_factory=dict)  # of completions: total, mean, p50, p95, max
    sampling: dict[str, Any] = field(default_factory=dict)  # temperature, group_size, max_new_tokens, ...
    judging: dict[str, Any] = field(default_factory=dict)  # of preference data: position bias, agreement, lengths, ...


def write_dataset(
    folder: Path, rows: Iterable[Mapping[str, Any]], card: DataCard, schema: pa.Schema = SFT_SCHEMA
) -> None:
    """Fill `folder` with data.parquet and then data_card.json.

    Raises:
        ValueError: a row lacks a column of the schema, has another one, or the card counts other rows than there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "data.parquet.tmp"
    count = 0
    with pq.ParquetWriter(unfinished, schema) as writer:
        for group in _groups(rows, schema):
            count += len(group)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if count != card.n_rows:
        unfinished.unlink()
        raise ValueError(f"{folder}: the data card counts {card.n_rows} rows, but there are {count}")
    os.replace(unfinished, folder / "data.parquet")
    unfinished_card = folder / "data_card.json.tmp"
    unfinished_card.write_text(json.dumps(asdict(card), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished_card, folder / "data_card.json")


def count_by(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, int]:
    """Rows per value of a column, sorted by value, for the data card."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row[column]] = counts.get(row[column], 0) + 1
    return dict(sorted(counts.items()))


def _groups(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterable[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        if set(row) != set(schema.names):
            raise ValueError(f"row {number} has columns {sorted(row)}, the dataset has {sorted(schema.names)}")
        group.append(dict(row))
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group
