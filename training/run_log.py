"""The logs of a training stage: metrics.jsonl and samples.jsonl are deterministic, timings.jsonl and timeline.jsonl
hold the wall clock.

One JSON object per line, each with its "step". A stage that resumes from step s calls `truncate_after(s)`; its files
then equal those of a run that was never cut off, byte for byte.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.durable import sync, write_bytes

METRICS, TIMINGS, SAMPLES = "metrics.jsonl", "timings.jsonl", "samples.jsonl"
TIMELINE = "timeline.jsonl"
_ALL = (METRICS, TIMINGS, SAMPLES, TIMELINE)
STATS = "stats.json"  # what a stage did in numbers; the manifest takes them over


class RunLog:
    """Appends to the logs in one folder. Lines reach the operating system at once, so a kill loses at most one.

    What a power cut loses is limited by `sync`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ALL:
            _drop_torn_end(folder / name)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of one step that a second run would reproduce. NaN and infinities are written as null."""
        self._append(METRICS, [{"step": step, **metrics}])

    def log_timing(self, step: int, timings: Mapping[str, Any]) -> None:
        """Quantities of one step that depend on the machine: seconds, tokens/s, bytes."""
        self._append(TIMINGS, [{"step": step, **timings}])

    def log_span(self, step: int, phase: str, who: str, start: float, seconds: float) -> None:
        """What `who` did on the way to `step`: from `start` (Unix time) on, for so many seconds."""
        span = {"phase": phase, "who": who, "start": round(start, 3), "seconds": round(seconds, 3)}
        self._append(TIMELINE, [{"step": step, **span}])

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Completions worth reading, each a mapping with its "step"."""
        rows = list(rows)
        for row in rows:
            if "step" not in row:
                raise ValueError(f"a sample needs its step, got the keys {sorted(row)}")
        self._append(SAMPLES, rows)

    def truncate_after(self, step: int) -> None:
        """Drop every line of a later step, before these steps are taken again."""
        for name in _ALL:
            path = self.folder / name
            kept = _until(path, step)
            if path.exists() and len(kept) < path.stat().st_size:
                write_bytes(path, kept)

    def sync(self) -> None:
        """Bring every line so far to disk, before a checkpoint that counts on them."""
        for path in (*(self.folder / name for name in _ALL), self.folder):
            if path.exists():
                sync(path)

    def sizes(self, step: int) -> dict[str, int]:
        """Bytes that each deterministic log has of the steps up to `step`."""
        return {name: len(_until(self.folder / name, step)) for name in (METRICS, SAMPLES)}

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with (self.folder / name).open("ab") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; [] when there is none. A half-written last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines() if _step(line) is not None]


def rows_by_step(path: Path) -> dict[int, dict[str, Any]]:
    """The quantities of each step, of all its rows: the watch for reward hacking may have one of its own."""
    rows: dict[int, dict[str, Any]] = {}
    for row in read_log(path):
        rows[row["step"]] = rows.get(row["step"], {}) | row
    return rows


def write_stats(folder: Path, counts: Mapping[str, Any]) -> None:
    """Leave the counts of a stage (samples, tokens, steps). They must not depend on how often it was cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATS).write_text(json.dumps(_plain(counts), indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON's own types: numpy and torch scalars become numbers, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if not isinstance(value, float) and hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"a log holds numbers, text, lists and mappings, got {type(value).__name__}")


def _until(path: Path, step: int) -> bytes:
    """The whole lines of a log up to `step`."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return b"".join(line for line in lines if (at := _step(line)) is not None and at <= step)


def _step(line: bytes) -> int | None:
    """Step of a whole line; None for a torn one."""
    if not line.strip().endswith(b"}"):
        return None
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def _drop_torn_end(path: Path) -> None:
    """Remove a last line that a kill cut off, so that the next one does not continue it."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_bytes(path, whole)
