"""What a stage is given: its inputs, the folder to fill, and where to report. Every stage is `run(config, context)`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import StageError as StageError  # its users run stages


def _silent(event: dict[str, Any]) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    name: str  # name of the stage in the pipeline, e.g. "zero"
    inputs: dict[str, Path]  # role -> artifact folder, e.g. {"policy": runs/tiny/base}; several: "checkpoints.base"
    output: Path  # folder to fill; survives kills, so a stage finds its own checkpoints here
    seed: int  # every random number of the stage derives from it
    report: Callable[[dict[str, Any]], None] = field(default=_silent)  # live progress; see pipeline.progress
