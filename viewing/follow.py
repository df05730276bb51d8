"""Logs of JSON lines that grow while they are read, and that a resumed stage cuts back."""

import json
import os
from pathlib import Path
from typing import Any

_CHUNK = 16 << 20  # bytes read at once; the rest comes with the next call


class Follower:
    """Rows of one log, each once. A log that was replaced or got shorter starts again, as does one that comes late."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._offset = 0

    def new_rows(self) -> tuple[list[dict[str, Any]], bool]:
        """(rows since the last call, whether they replace all rows so far). Torn and foreign lines are left out."""
        try:
            with self.path.open("rb") as file:
                return self._read(file)
        except OSError:  # not there yet, or not any more
            restarted, self._file, self._offset = self._offset > 0, None, 0
            return [], restarted

    def _read(self, file: Any) -> tuple[list[dict[str, Any]], bool]:
        stat = _stat(file)
        restarted = self._offset > 0 and (stat[:2] != self._file or stat[2] < self._offset)
        if restarted or self._file is None:
            self._offset = 0
        self._file = stat[:2]
        file.seek(self._offset)
        data = file.read(_CHUNK)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = (_row(line) for line in whole.split(b"\n") if line)
        return [row for row in rows if row is not None], restarted


def _stat(file: Any) -> tuple[int, int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
