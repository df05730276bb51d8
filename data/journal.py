"""A JSONL file that grows line by line and survives kills and power cuts: a line is whole and on disk, or cut away."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal; [] without one. From the first line that is not whole on, the rest is cut away."""
    if not path.exists():
        return []
    rows, end = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # a power cut may leave zeros
            row = None
        if row is None:
            break
        rows.append(row)
        end += len(line)
    os.truncate(path, end)
    return rows


class Journal:
    """Appends rows; each is on disk when `add` returns. A context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
