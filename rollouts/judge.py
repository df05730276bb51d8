"""A generative reward model in a process of its own, asked by reward workers through its handle.

Rewards may not import generators. A stage starts this actor from its input, hands the handle to its reward workers, and
`rewards.judges.RemoteJudge` asks it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.actors import kill, spawn
from cluster.placement import Places
from cluster.running import places_of
from data.chat import render_prompt
from data.config import JUDGE_ROLES
from rollouts.config import JudgeServiceConfig
from rollouts.pool import GeneratorPool
from rollouts.records import Request

Turns = Sequence[Mapping[str, str]]


class ServedJudge:
    """Answers conversations one batch after the other; its generators are processes of their own and end with it."""

    def __init__(self, checkpoint: str, config: JudgeServiceConfig, places: Places | None):
        from models.checkpoint import load_tokenizer  # imports torch, which the driver that starts this has no need of

        self._config = config
        self._tokenizer = load_tokenizer(checkpoint)
        self._pool = GeneratorPool(checkpoint, config.generator, places=places)

    def answers(self, prompts: Sequence[Turns], seed: int) -> list[tuple[str, bool] | None]:
        """Per prompt (text, whether the length limit ended it); None where it leaves the judge no room to answer.

        Deterministic in (weights, prompts, seed), whatever else is asked.
        """
        room = self._pool.context()
        rendered = [render_prompt(self._tokenizer, turns, self._config.rollout.template) for turns in prompts]
        requests = [Request(key=str(place), prompt_ids=ids) for place, ids in enumerate(rendered) if len(ids) < room]
        found: dict[str, tuple[str, bool]] = {}
        for group in self._pool.stream(requests, self._config.rollout.params(1, seed)) if requests else ():
            completion = group.completions[0]
            found[group.key] = completion.text, completion.finish_reason == "length"
        return [found.get(str(place)) for place in range(len(prompts))]


def start_judges(inputs: Mapping[str, Path], config: JudgeServiceConfig) -> dict[str, Any]:
    """Role -> handle of a ServedJudge that is starting, for every input of a stage that is a judge."""
    return {
        role: spawn("rollouts.judge:ServedJudge", str(inputs[role]), config, places_of(role))
        for role in JUDGE_ROLES
        if role in inputs
    }


def stop_judges(handles: Mapping[str, Any]) -> None:
    for handle in handles.values():
        kill(handle)
