"""Show a run as it goes: a live table on a terminal, a few plain lines anywhere else.

Events are those of StageContext.report: step, total_steps, reward, accuracy, loss, tokens_per_s, phase; all optional
but step.
"""

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from pipeline.config import Pipeline

if TYPE_CHECKING:
    from rich.table import Table

_QUANTITIES = ("reward", "accuracy", "loss", "tokens_per_s")


@dataclass(slots=True)
class _Row:
    state: str = ""
    event: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0  # monotonic seconds
    first_step: int | None = None  # first step seen in this attempt, the ETA counts from here
    wall_time_s: float | None = None


class Progress:
    """Keeps the last event of every stage and shows nothing; `open_progress` picks one that does."""

    def __init__(self, pipeline: Pipeline) -> None:
        names = [pipeline.only] if pipeline.only else list(pipeline.stages)
        self.rows = {name: _Row() for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def start(self, name: str, *, resumed: bool) -> None:
        self.rows[name] = _Row(state="resumed" if resumed else "running", started=time.monotonic())

    def event(self, name: str, event: dict[str, Any]) -> None:
        row = self.rows[name]
        row.event.update(event)
        if row.first_step is None:
            row.first_step = int(event.get("step", 0))

    def finish(self, name: str, wall_time_s: float) -> None:
        self.rows[name].state, self.rows[name].wall_time_s = "done", wall_time_s

    def skip(self, name: str, wall_time_s: float) -> None:
        self.rows[name].state, self.rows[name].wall_time_s = "made before", wall_time_s


class PlainProgress(Progress):
    """One line when a stage starts and ends, and at most one per tenth of its steps."""

    def __init__(self, pipeline: Pipeline, stream: TextIO | None = None) -> None:
        super().__init__(pipeline)
        self._stream = stream or sys.stdout
        self._tenth = -1

    def start(self, name: str, *, resumed: bool) -> None:
        super().start(name, resumed=resumed)
        self._tenth = 0
        self._say(f"{name}: {'resumes' if resumed else 'starts'}")

    def event(self, name: str, event: dict[str, Any]) -> None:
        super().event(name, event)
        seen = self.rows[name].event
        total = seen.get("total_steps")
        tenth = 10 * int(seen.get("step", 0)) // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            values = "  ".join(f"{key} {_number(seen[key])}" for key in _QUANTITIES if seen.get(key) is not None)
            self._say(f"{name}: step {seen['step']}/{total}  {values}".rstrip())

    def finish(self, name: str, wall_time_s: float) -> None:
        super().finish(name, wall_time_s)
        self._say(f"{name}: done in {duration(wall_time_s)}")

    def skip(self, name: str, wall_time_s: float) -> None:
        super().skip(name, wall_time_s)
        self._say(f"{name}: made before, skipped")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveProgress(Progress):
    """A table that redraws itself twice a second."""

    def __init__(self, pipeline: Pipeline) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(pipeline)
        self._live = Live(get_renderable=self.table, console=Console(), refresh_per_second=2)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def table(self) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("stage")
        table.add_column("")
        for heading in ("step", *(name.replace("_per_s", "/s") for name in _QUANTITIES), "elapsed", "left"):
            table.add_column(heading, justify="right")
        table.add_column("phase")
        for name, row in self.rows.items():
            event, running = row.event, row.wall_time_s is None and row.state
            total = f"/{event['total_steps']}" if event.get("total_steps") else ""
            elapsed = time.monotonic() - row.started if running else row.wall_time_s
            table.add_row(
                name,
                row.state,
                f"{event['step']}{total}" if "step" in event else "",
                *(_number(event.get(key)) for key in _QUANTITIES),
                duration(elapsed) if elapsed is not None else "",
                duration(left) if running and (left := seconds_left(row, time.monotonic())) is not None else "",
                escape(str(event.get("phase", ""))) if running else "",
                style="bold" if running else ("dim" if row.state == "made before" or not row.state else ""),
            )
        return table


def open_progress(pipeline: Pipeline) -> Progress:
    """The live table on a terminal, plain lines otherwise."""
    return LiveProgress(pipeline) if sys.stdout.isatty() else PlainProgress(pipeline)


def seconds_left(row: _Row, now: float) -> float | None:
    """Seconds until the last step at the pace of this attempt; None while there is no pace."""
    step, total = row.event.get("step"), row.event.get("total_steps")
    if step is None or not total or row.first_step is None or step <= row.first_step:
        return None
    return (now - row.started) / (step - row.first_step + 1) * max(total - step, 0)


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 13 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
