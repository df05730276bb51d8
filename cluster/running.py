"""The stage that this process runs: where its reports go and how it uses the cluster. Free of Ray, as commands are.

A driver runs one stage at a time, so there is one place for it. Waits in `cluster.actors` happen in many rooms and
threads, of which none needs to know it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig

STALLS = "stalls"  # in a stage's folder: <time>.json, and the same to read in <time>.txt (cluster.stalls)
MEMORY = "memory.jsonl"  # in a stage's folder (cluster.gauges)


class StageStopped(Exception):
    """The stage cannot go on here: a limit of memory is passed, or the cluster is too small. One sentence."""

    retry = True  # with another limit, or on another cluster, the same command goes on


@dataclass(slots=True, kw_only=True)
class RunningStage:
    folder: Path  # of the stage; its run is the folder above
    config: ClusterConfig
    last_event: Callable[[], dict[str, Any]]  # its progress, see pipeline.progress
    closing: ExitStack = field(default_factory=ExitStack)  # what ends with the stage
    stop: str = ""  # why the stage must stop: the next wait raises StageStopped with it
    places: dict[str, Any] = field(default_factory=dict)  # role -> cluster.placement.Places, where any are reserved


_stage: RunningStage | None = None


def current() -> RunningStage | None:
    """None in actors, and in commands that run no stage."""
    return _stage


def places_of(role: str) -> Any:
    """The bundles of a role that this stage has reserved (cluster.placement.Places), if any."""
    return _stage.places.get(role) if _stage is not None else None


@contextmanager
def running(folder: Path, config: ClusterConfig, last_event: Callable[[], dict[str, Any]]) -> Iterator[RunningStage]:
    global _stage
    before = _stage
    _stage = stage = RunningStage(folder=folder, config=config, last_event=last_event)
    try:
        with stage.closing:
            yield stage
    finally:
        _stage = before
