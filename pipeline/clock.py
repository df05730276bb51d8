"""How long a stage has worked, how often it was started, and how it stands; survives a kill."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.artifact import write_json
from training.stage import StageError

PROGRESS_FILE = ".progress.json"  # in a stage's folder
_SAVE_EVERY_S = 2.0


class StageClock:
    """Seconds over all attempts, their number, the last event, and what ended the last attempt."""

    def __init__(self, folder: Path, show: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._show = folder / PROGRESS_FILE, show
        before = read_progress(folder)
        self._before, self._starts = float(before.get("wall_time_s", 0.0)), int(before.get("starts", 0)) + 1
        self._event: dict[str, Any] = {}
        self._error: dict[str, Any] = {}
        self._started = self._saved = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def report(self, event: dict[str, Any]) -> None:
        self._event.update(event)
        self._show(event)
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()

    def last_event(self) -> dict[str, Any]:
        return dict(self._event)

    def failed(self, error: StageError) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._error = {"said": str(error), "at": at, "retry": error.retry}

    def save(self) -> None:
        self._saved = time.monotonic()
        state = {"wall_time_s": self.seconds(), "starts": self._starts, "event": self._event, "error": self._error}
        write_json(self._path, state)


def read_progress(folder: Path) -> dict[str, Any]:
    """What a stage has saved last: "wall_time_s", "starts", "event", "error" ("said", "at", "retry"). {}: nothing."""
    try:
        data = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
