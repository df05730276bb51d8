"""A dataset artifact: parquet files (`data.dataset_files`) and data_card.json. Each appears whole or not at all.

Files are written and read row group by row group, so neither side holds them in memory.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset_files import WHOLE, shard_name

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
    deduplication: dict[str, Any] = field(
        default_factory=dict
    )  # near duplicates: threshold, shingles, how many dropped
    judging: dict[str, Any] = field(default_factory=dict)  # of preference data: position bias, agreement, lengths, ...


def write_dataset(
    folder: Path, rows: Iterable[Mapping[str, Any]], card: DataCard, schema: pa.Schema = SFT_SCHEMA
) -> None:
    """Fill `folder` with data.parquet and then data_card.json.

    Raises:
        ValueError: a row lacks a column of the schema, has another one, or the card counts other rows than there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{WHOLE}.tmp"
    count = 0
    with pq.ParquetWriter(unfinished, schema) as writer:
        for group in _groups(rows, schema):
            count += len(group)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if count != card.n_rows:
        unfinished.unlink()
        raise ValueError(f"{folder}: the data card counts {card.n_rows} rows, but there are {count}")
    os.replace(unfinished, folder / WHOLE)
    write_card(folder, card)


def write_card(folder: Path, card: DataCard) -> None:
    unfinished_card = folder / "data_card.json.tmp"
    unfinished_card.write_text(json.dumps(asdict(card), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished_card, folder / "data_card.json")


def write_shards(folder: Path, tables: Iterable[pa.Table], n_rows: int, rows_per_shard: int) -> list[Path]:
    """Fill `folder` with the `n_rows` rows of `tables`, at most `rows_per_shard` a file. Returns the files, in order.

    Names appear when all shards are written. `tables`: of one schema; one of them and a row group are held in memory.
    Raises ValueError when there are other than `n_rows` rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-n_rows // rows_per_shard))
    files = [folder / shard_name(number, count) for number in range(count)]
    unfinished = [path.with_name(f"{path.name}.tmp") for path in files]
    written, writer = 0, None
    try:
        for group in _row_groups(tables, rows_per_shard):
            if written % rows_per_shard == 0 and written < n_rows:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(unfinished[written // rows_per_shard], group.schema)
            if writer is not None:
                writer.write_table(group)
            written += len(group)
    finally:
        if writer is not None:
            writer.close()
    if written != n_rows:
        for temporary in unfinished:
            temporary.unlink(missing_ok=True)
        raise ValueError(f"{folder}: {n_rows} rows were to be written, but there are {written}")
    for temporary, path in zip(unfinished, files, strict=True):
        os.replace(temporary, path)
    return files


def _row_groups(tables: Iterable[pa.Table], rows_per_shard: int) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_PER_GROUP, and fewer at the end of each shard."""
    waiting: list[pa.Table] = []
    size, room = 0, rows_per_shard
    for table in tables:
        while len(table):
            wanted = min(ROWS_PER_GROUP, room) - size
            piece, table = table[:wanted], table[wanted:]
            waiting.append(piece)
            size += len(piece)
            if size == min(ROWS_PER_GROUP, room):
                yield pa.concat_tables(waiting)
                room = room - size or rows_per_shard
                waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


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
