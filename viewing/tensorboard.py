"""A stage's curves for TensorBoard, beside its logs: `tensorboard --logdir runs/tiny`.

Written from metrics.jsonl and timings.jsonl and not beside them: what a resumed stage takes back there is taken back
here, so that its curves are those of a stage that was never cut off.
"""

import time
from pathlib import Path
from typing import Any

from viewing.event_file import EventFile
from viewing.follow import Follower
from viewing.log_columns import is_number
from viewing.runs import METRICS, TIMINGS

EVENTS = "events.out.tfevents.r1"  # in the stage's folder; those of timings.jsonl in a folder of that name inside


class TensorBoard:
    """The event files of one stage. One per log and folder: of several in a folder, TensorBoard follows the last."""

    def __init__(self, stage: Path) -> None:
        self._logs = [_Log(stage / METRICS, stage / EVENTS), _Log(stage / TIMINGS, stage / "timings" / EVENTS)]

    def catch_up(self) -> None:
        for log in self._logs:
            log.catch_up()


class _Log:
    def __init__(self, log: Path, events: Path) -> None:
        self._follower, self._path = Follower(log), events
        self._events: EventFile | None = None  # made with the first row: most stages have no such log
        self._from_start = True  # the rows to come are the log from its start, which the file may have

    def catch_up(self) -> None:
        rows = self._rows()
        if not rows:
            return
        if self._events is None:
            self._path.parent.mkdir(exist_ok=True)
            self._events = EventFile(self._path)
        known, last = self._events.last_step, rows[-1]["step"]
        if self._from_start and last < known:
            self._events.restart(last + 1, time.time())
        for row in rows:
            numbers = {name: value for name, value in row.items() if name != "step" and is_number(value)}
            if numbers and not (self._from_start and row["step"] <= known):
                self._events.scalars(row["step"], numbers, time.time())
        self._from_start = False

    def _rows(self) -> list[dict[str, Any]]:
        """All that are new; all there are after the log was cut back."""
        rows: list[dict[str, Any]] = []
        while True:
            more, restarted = self._follower.new_rows()
            if restarted:
                rows, self._from_start = [], True
            if not more:
                return rows
            rows += more
