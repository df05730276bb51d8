"""When what happened: the stages of a run, and the phases of a stage by who worked."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from viewing.follow import Follower
from viewing.log_columns import is_number
from viewing.runs import TIMELINE, TIMINGS, Run, description, read_json

SPANS = 4000  # shown at once; the latest of those asked for


@dataclass(frozen=True, slots=True)
class Span:
    step: int
    phase: str  # sampling, ...
    who: str  # driver, or an actor's name
    start: float  # unix seconds
    seconds: float


class Timeline:
    """The spans of one stage, kept up to date."""

    def __init__(self, stage: Path) -> None:
        self.stage, self._lock = stage, Lock()
        self._measured, self._timed = Follower(stage / TIMELINE), Follower(stage / TIMINGS)
        self._spans: list[Span] = []
        self._timings: list[Mapping[str, Any]] = []

    def spans(self) -> tuple[list[Span], bool]:
        """(spans as they were written, whether they were measured).

        A stage of an earlier version has no timeline.jsonl: the phases of its timings.jsonl are then laid end to end
        from the stage's start, which is right about lengths and not about places.
        """
        with self._lock:
            _take(self._measured, self._spans, _span)
            if self._spans:
                return list(self._spans), True
            _take(self._timed, self._timings, dict)
            return laid_end_to_end(self._timings, _start(self.stage)), False


def read_spans(stage: Path) -> tuple[list[Span], bool]:
    return Timeline(stage).spans()


def stage_spans(run: Run) -> list[dict[str, Any]]:
    """Name, start and seconds of the stages of a run whose times are known. `made`: whether it is finished.

    A finished stage ends when its manifest was written and lasts the seconds that it worked; a pause between two
    attempts is not shown.
    """
    found = []
    for name, folder in run.stages().items():
        told = description(folder)
        seconds = told.get("wall_time_s", read_json(folder / ".progress.json").get("wall_time_s"))
        start = _start(folder)
        if start is not None and is_number(seconds):
            found.append({"stage": name, "start": start, "seconds": seconds, "made": "created" in told})
    return found


def window(spans: Iterable[Span], first_step: int | None, last_step: int | None) -> list[dict[str, Any]]:
    """Spans of steps in [first_step, last_step], the last SPANS of them, as JSON data."""
    low, high = first_step if first_step is not None else 0, last_step if last_step is not None else 1 << 62
    return [asdict(span) for span in spans if low <= span.step <= high][-SPANS:]


def laid_end_to_end(rows: Iterable[Mapping[str, Any]], start: float | None) -> list[Span]:
    """Spans of the phases of timings.jsonl (`time/<phase>_s`)."""
    spans, at = [], start or 0.0
    for row in rows:
        for name, seconds in row.items():
            if name.startswith("time/") and name.endswith("_s") and is_number(seconds):
                spans.append(Span(row["step"], name[5:-2], "driver", at, seconds))
                at += seconds
    return spans


def _take(follower: Follower, kept: list[Any], make: Any) -> None:
    rows, restarted = follower.new_rows()
    if restarted:
        kept.clear()
    kept += [made for row in rows if (made := make(row)) is not None]


def _span(row: Mapping[str, Any]) -> Span | None:
    start, seconds = row.get("start"), row.get("seconds")
    if not (is_number(start) and is_number(seconds)):
        return None
    return Span(row["step"], str(row.get("phase", "")), str(row.get("who", "driver")), start, seconds)  # type: ignore[arg-type]


def _start(stage: Path) -> float | None:
    """Unix seconds at which a stage began: its end less what it took, or, unfinished, the age of its plan."""
    told = description(stage)
    if "created" in told and is_number(told.get("wall_time_s")):
        return datetime.fromisoformat(told["created"]).timestamp() - told["wall_time_s"]
    try:
        return (stage / "plan.json").stat().st_mtime
    except OSError:
        return None
