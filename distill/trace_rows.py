"""Rows on their way through the filters, and the batches in which they travel to the processes that filter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.schemas import SourceError
from data.sources import json_object, read_lines
from rewards.reward import Verdict
from sft.conversations import conversation_row

BATCH_ROWS, BATCH_BYTES = 1024, 4 << 20  # of a batch at most; a line may be longer


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One row of SFT_SCHEMA and what is known of its last answer. Plain data: it crosses process borders."""

    row: dict[str, Any]
    n_tokens: int | None = None  # of the answer, by the teacher
    verdict: Verdict | None = None  # None: not checked
    truncated: bool = False

    @property
    def question(self) -> str:
        return next(m["content"] for m in reversed(self.row["messages"]) if m["role"] == "user")

    @property
    def answer(self) -> str:
        return self.row["messages"][-1]["content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledBatch:
    number: int  # from 0, in the order of the set
    rows: Sequence[TraceRow]

    def read(self) -> list[TraceRow]:
        return list(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """A piece of a file of conversations; who filters it parses it too."""

    number: int
    file: Path
    lines: Sequence[tuple[int, bytes]] = ()  # of a JSONL file, with their numbers
    table: pa.RecordBatch | None = None  # of a parquet file
    first: int = 1  # number of its first row

    def read(self) -> list[TraceRow]:
        """Raises StageError or SourceError for a row that is no conversation."""
        source = self.file.name.split(".", 1)[0]
        return [
            TraceRow(row=conversation_row(row, place, f"{source}-{number}", source))
            for number, place, row in self._placed()
        ]

    def _placed(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for number, line in self.lines:
            place = f"{self.file} line {number}"
            yield number, place, json_object(line, place)
        for number, row in enumerate(self.table.to_pylist() if self.table is not None else (), start=self.first):
            yield number, f"{self.file} row {number}", row


def file_batches(files: Sequence[Path]) -> Iterator[FileBatch]:
    """The rows of all files, in their order; the same batches every time. Raises SourceError for a broken file."""
    number = 0
    for file in files:
        for piece in _parquet_pieces(file) if file.suffix == ".parquet" else _line_pieces(file):
            yield FileBatch(number=number, file=file, **piece)
            number += 1


def _line_pieces(file: Path) -> Iterator[dict[str, Any]]:
    lines: list[tuple[int, bytes]] = []
    size = 0
    for number, line in read_lines(file):
        lines.append((number, line))
        size += len(line)
        if len(lines) == BATCH_ROWS or size >= BATCH_BYTES:
            yield {"lines": lines}
            lines, size = [], 0
    if lines:
        yield {"lines": lines}


def _parquet_pieces(file: Path) -> Iterator[dict[str, Any]]:
    first = 1
    try:
        with pq.ParquetFile(file) as opened:
            for table in opened.iter_batches(batch_size=BATCH_ROWS):
                yield {"table": table, "first": first}
                first += len(table)
    except pa.ArrowException as error:
        raise SourceError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from None
