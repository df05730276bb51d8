"""The memory of every actor, looked at now and then while a stage runs: memory.jsonl, and a limit that stops the stage.

One line per look and class of actor keeps the log small on a large cluster: how many there are, their sum, and the
largest, which is what a limit is about.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cluster.running import MEMORY, RunningStage
from cluster.stalls import look_at_nodes

_LOOK_S = 30.0  # a node that takes longer is left out of this look
_GIB = 1024.0  # MiB


def watch_memory(stage: RunningStage) -> None:
    """Start looking, until the stage ends. Once per stage."""
    if not any(thread.name == _name(stage) for thread in threading.enumerate()):
        ended = threading.Event()
        thread = threading.Thread(target=_watch, args=(stage, ended), name=_name(stage), daemon=True)
        stage.closing.callback(ended.set)
        thread.start()


def _name(stage: RunningStage) -> str:
    return f"memory of {stage.folder}"


def _watch(stage: RunningStage, ended: threading.Event) -> None:
    while not ended.wait(stage.config.memory_every_s):
        try:
            actors = _look(stage)
        except Exception:  # Ray has ended, a node has left: there is nothing to be said, and the stage goes on
            continue
        if ended.is_set() or not actors:
            continue
        with suppress(OSError):  # a full disk, of which others will speak
            _log(stage, actors)
        if sentence := beyond(actors, stage.config.memory_limit_gib):
            stage.stop = sentence
            return


def _look(stage: RunningStage) -> list[dict[str, Any]]:
    answers = look_at_nodes(False, str(stage.folder), _LOOK_S)
    return [actor | {"host": node["host"]} for _, node in answers if isinstance(node, dict) for actor in node["actors"]]


def beyond(actors: Sequence[Mapping[str, Any]], limit_gib: float | None) -> str:
    """The sentence with which a stage stops, "" while no actor is above the limit."""
    largest = max(actors, key=lambda actor: actor["pss_mib"])
    if limit_gib is None or largest["pss_mib"] <= limit_gib * _GIB:
        return ""
    return (
        f"{largest['name']} (process {largest['pid']} on {largest['host']}) holds {largest['pss_mib'] / _GIB:.2f} GiB, "
        f"more than cluster.memory_limit_gib {limit_gib:g}; raise that, or let the stage need less "
        f"({_LESS.get(largest['name'], _LESS_ANYWHERE)})"
    )


_LESS = {
    "TransformersGenerator": "generator.max_slots, rollout.max_new_tokens, generator.dtype",
    "VLLMGenerator": "generator.engine_args, generator.max_slots",
    "RewardWorker": "reward_workers.max_pending, the rewards' own limits",
}
_LESS_ANYWHERE = "trainer.row_tokens, trainer.recompute, optimizer.moments, trainer.mesh"


def _log(stage: RunningStage, actors: Sequence[Mapping[str, Any]]) -> None:
    event, classes = stage.last_event(), defaultdict(list)
    for actor in actors:
        classes[actor["name"]].append(actor)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": event.get("step"),
        "phase": event.get("phase"),
        "actors": {
            name: {
                "count": len(members),
                "pss_mib": round(sum(actor["pss_mib"] for actor in members), 1),
                "largest_pss_mib": max(actor["pss_mib"] for actor in members),
                "largest_rss_mib": max(actor["rss_mib"] for actor in members),
                "gpu_mib": round(sum(actor["gpu_mib"] for actor in members), 1),
            }
            for name, members in sorted(classes.items())
        },
    }
    with (stage.folder / MEMORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
