"""Reward models in a GRPO stage: its inputs name them, and one process per model scores for all reward workers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.combine import check_rewards
from rewards.config import RewardSpec
from rewards.preference import start_scorer


def with_models(specs: Sequence[RewardSpec], inputs: Mapping[str, Path]) -> list[RewardSpec]:
    """The rewards of a recipe; those that need a model get that of the stage's input, unless they name one."""
    filled = []
    for spec, (reward, _) in zip(specs, check_rewards(specs), strict=True):
        role: Any = getattr(reward, "input_role", None)
        if role in inputs and not spec.options.get("model"):
            spec = spec.model_copy(update={"options": {**spec.options, "model": str(inputs[role])}})
        filled.append(spec)
    return filled


def start_scorers(specs: Sequence[RewardSpec]) -> dict[str, Any]:
    """Role -> handle of the process that scores with its model; with the options of the first reward that reads it."""
    handles: dict[str, Any] = {}
    reward: Any
    options: Any
    for reward, options in check_rewards(specs):
        role = getattr(reward, "input_role", None)
        if role is not None and role not in handles:
            handles[role] = start_scorer(options, role)
    return handles
