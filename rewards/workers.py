"""A reward in a process of its own. A plain class: `ray.remote(RewardWorker)` makes it an actor where Ray is used."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.problems import Problem
from rewards.combine import build_reward
from rewards.config import RewardSpec
from rewards.reward import Score


class RewardWorker:
    """Holds one reward and scores batches with it."""

    def __init__(self, specs: Sequence[RewardSpec], inputs: Mapping[str, Any] | None = None):
        """`inputs`: see `build_reward`."""
        self._reward = build_reward(specs, inputs)

    def score(self, problems: Sequence[Problem], completions: Sequence[str], progress: float = 1.0) -> list[Score]:
        """One Score per pair; `progress` is the share of the stage's steps already taken, in [0, 1]."""
        return self._reward.score_batch(problems, completions, progress)

    def score_and_count(self, *args: Any) -> tuple[list[Score], dict[str, dict[str, int]]]:
        """`score`, with the counts of this batch: those of a worker that dies later are not lost with it."""
        return self.score(*args), self.take_counts()

    def take_counts(self) -> dict[str, dict[str, int]]:
        """Judgements since the last call: reward name -> {"pass": n, "fail": n, "error": n, "timeout": n of them,
        "unreadable": n of them}."""
        taken = {
            name: {kind: counts[kind] for kind in ("pass", "fail", "error", "timeout", "unreadable")}
            for name, counts in self._reward.counts.items()
        }
        for counts in self._reward.counts.values():
            counts.clear()
        return taken

    def close(self) -> None:
        """End the processes the reward holds."""
        self._reward.close()
