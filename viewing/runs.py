"""Run folders by name, each with its stages. Names from a request are looked up here, never joined to a path."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS, TIMINGS, TIMELINE, GROUPS = "metrics.jsonl", "timings.jsonl", "timeline.jsonl", "groups"
_SET_ASIDE = re.compile(r"^[._]|\.old-\d+$")  # hidden folders, and artifacts that were made again
_MARKS = ("plan.json", "manifest.json", METRICS, TIMELINE, GROUPS)


@dataclass(frozen=True, slots=True)
class Run:
    name: str  # unique among the runs of a page
    folder: Path

    def stages(self) -> dict[str, Path]:
        """Name -> folder of every stage that has begun, in the pipeline's order, then others by name."""
        try:
            found = sorted(path.name for path in self.folder.iterdir() if _is_stage(path))
        except OSError:  # the folder is gone
            return {}
        order = list(read_json(self.folder / "pipeline.json").get("stages") or ())
        names = [name for name in order if name in found] + [name for name in found if name not in order]
        return {name: self.folder / name for name in names}

    def stage(self, name: str) -> Path:
        """Raises KeyError for a name that is no stage of this run."""
        return self.stages()[name]


def name_runs(folders: Iterable[Path]) -> dict[str, Run]:
    """Runs by the last part of their path; the whole path where two have the same."""
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    last = [folder.name for folder in folders]
    names = [folder.name if last.count(folder.name) == 1 else str(folder) for folder in folders]
    return {name: Run(name, folder) for name, folder in zip(names, folders, strict=True)}


def has(stage: Path) -> dict[str, bool]:
    """Which of the things to look at a stage has."""
    return {
        "metrics": (stage / METRICS).exists(),
        "timings": (stage / TIMINGS).exists(),
        "timeline": (stage / TIMELINE).exists(),
        "groups": (stage / GROUPS).is_dir(),
    }


def description(stage: Path) -> dict[str, Any]:
    """The manifest of a finished stage, else its plan; {} when neither can be read."""
    return read_json(stage / "manifest.json") or read_json(stage / "plan.json")


def parents(stage: Path) -> list[Path]:
    """Folders of what a stage was made from, its policy first."""
    found: Mapping[str, Any] = description(stage).get("parents") or {}
    roles = sorted(found, key=lambda role: (role not in ("policy", "student", "base"), role))
    return [(stage / str(found[role].get("path", ""))).resolve() for role in roles if isinstance(found[role], dict)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} for a file that is not there, or is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_stage(path: Path) -> bool:
    return path.is_dir() and not _SET_ASIDE.search(path.name) and any((path / mark).exists() for mark in _MARKS)
