"""A log as columns: one curve per quantity, thinned for a screen."""

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from viewing.follow import Follower

POINTS = 2000  # of a curve on a screen; more are as many as pixels


class LogColumns:
    """The numbers of one log, kept up to date by `refresh`. Steps and values are float64: 16 bytes a number."""

    def __init__(self, path: Path) -> None:
        self._follower, self._lock = Follower(path), Lock()
        self._columns: dict[str, tuple[array, array]] = {}
        self.version = 0  # another one after every change

    def refresh(self) -> int:
        """Read what is new; returns the version."""
        with self._lock:
            rows, restarted = self._follower.new_rows()
            if restarted:
                self._columns = {}
            for row in rows:
                self._take(row)
            self.version += bool(rows or restarted)
            return self.version

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._columns)

    def last_step(self) -> int | None:
        with self._lock:
            steps = [column[-1] for column, _ in self._columns.values()]
        return int(max(steps)) if steps else None

    def curve(self, name: str, points: int = POINTS) -> tuple[list[float], list[float]]:
        """(steps, values), of at most about `points` points; ([], []) for a name that was never logged."""
        with self._lock:
            steps, values = self._columns.get(name, (array("d"), array("d")))
            return thinned(steps, values, points)

    def _take(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and is_number(value):
                steps, values = self._columns.setdefault(name, (array("d"), array("d")))
                steps.append(row["step"])
                values.append(value)


def thinned(steps: array, values: array, points: int) -> tuple[list[float], list[float]]:
    """Least and greatest value of each of `points` / 2 stretches, so that no spike is lost; all of a short curve."""
    if len(values) <= points:
        return steps.tolist(), values.tolist()
    stretches = points // 2
    chosen: list[int] = []
    for i in range(stretches):
        stretch = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        chosen += sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)})
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
