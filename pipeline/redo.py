"""Stages that are to be made again, remembered in the run folder until they are.

A redo that was cut off goes on when the same stages are asked for again: what it has made or begun is kept, not moved
aside a second time. Anything else that is asked for is a new redo.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.durable import sync
from pipeline.artifact import next_old_name, write_json

_FILE = ".redo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """What the user asked to make again, in pipeline order, and which of it has not been moved aside yet."""

    asked: tuple[str, ...]
    waiting: tuple[str, ...]

    @property
    def begun(self) -> tuple[str, ...]:
        return tuple(name for name in self.asked if name not in self.waiting)


def read_redo(folder: Path, asked: Sequence[str]) -> Redo:
    """The redo of these stages: the one the run folder remembers, if it is the same, else a new one."""
    try:
        known = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        same, waiting = known["asked"] == list(asked), set(known["waiting"])
    except (OSError, ValueError, KeyError, TypeError):
        same, waiting = False, set()
    return Redo(asked=tuple(asked), waiting=tuple(name for name in asked if not same or name in waiting))


def move_aside(folder: Path, asked: Sequence[str], names: Sequence[str]) -> None:
    """Rename the artifacts of the stages `names` in the run folder. A kill between two of them loses nothing.

    Each name is struck off the record after its rename, and a folder that is gone already is not looked for.
    """
    for number, name in enumerate(names):
        write_json(folder / _FILE, {"asked": list(asked), "waiting": list(names[number:])})
        if (folder / name).exists():
            (folder / name).rename(next_old_name(folder / name))
            sync(folder)
    if names:
        write_json(folder / _FILE, {"asked": list(asked), "waiting": []})


def forget(folder: Path, made: Collection[str]) -> None:
    """Drop the record when all of its stages are made."""
    try:
        asked = json.loads((folder / _FILE).read_text(encoding="utf-8"))["asked"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        asked = []
    if set(asked) <= set(made):
        (folder / _FILE).unlink()
        sync(folder)
