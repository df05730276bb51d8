"""Where a run stands, read from its folder alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifact import ArtifactError, read_manifest
from pipeline.clock import read_progress
from pipeline.errors import RecipeError
from pipeline.lock import holder
from pipeline.run import PIPELINE_FILE
from training.checkpoint import CheckpointStore
from training.run_log import METRICS

_TAIL = 1 << 16  # bytes of metrics.jsonl that surely hold its last line


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    name: str
    kind: str
    state: str  # made | running | cut off | to make | damaged
    wall_time_s: float | None = None
    step: int | None = None
    total_steps: int | None = None
    resumes_from: int | None = None  # step of the newest checkpoint, of a stage that was cut off and has one
    metrics: dict[str, float] = field(default_factory=dict)  # last line of metrics.jsonl, or last progress event


def status(run: Path) -> list[StageStatus]:
    """The stages of a run folder, in order. Raises RecipeError when it is not one."""
    try:
        stages = json.loads((run / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(f"{run} is not a run folder: it has no readable {PIPELINE_FILE}") from None
    running = holder(run) is not None
    return [_stage_status(run / name, stage["kind"], running) for name, stage in stages.items()]


def _stage_status(folder: Path, kind: str, running: bool) -> StageStatus:
    progress = read_progress(folder)
    event, wall_time = progress.get("event", {}), progress.get("wall_time_s")
    logged = _last_row(folder / METRICS)
    steps = [step for step in (event.get("step"), logged.get("step")) if isinstance(step, int)]
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        manifest, state = None, "damaged"
    else:
        started = (folder / "plan.json").exists()
        state = "made" if manifest else ("running" if running else "cut off") if started else "to make"
    return StageStatus(
        name=folder.name,
        kind=kind,
        state=state,
        wall_time_s=manifest.wall_time_s if manifest else wall_time,
        step=max(steps, default=None),  # progress is saved every few seconds, the log at every step
        total_steps=event.get("total_steps"),
        resumes_from=CheckpointStore(folder / "checkpoints").newest_step() if state == "cut off" else None,
        metrics=_numbers(logged) or _numbers(event),
    )


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a log; {} when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a half-written last line
        return row if isinstance(row, dict) else {}
    return {}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("step", "total_steps")}
