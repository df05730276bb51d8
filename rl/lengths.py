"""How long completions will be, guessed from those before: generators begin the long ones first.

A batch is done when its last completion is. One that will take long and starts late runs alone at the end.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from data.problems import Problem

_KEPT = 0.5  # share of the old mean that a new batch leaves: lengths grow as RL goes on


class LengthHistory:
    """A running mean of completion lengths, tokens, per domain and language."""

    def __init__(self) -> None:
        self.means: dict[str, float] = {}

    def expected(self, problem: Problem) -> float:
        """Tokens; of all problems seen when its kind is new, and 0 before there are any."""
        known = self.means.get(_kind(problem))
        if known is None:
            known = sum(self.means.values()) / len(self.means) if self.means else 0.0
        return known

    def learn(self, lengths: Iterable[tuple[Problem, float]]) -> None:
        """`lengths`: of one batch, a mean per group."""
        seen: dict[str, list[float]] = {}
        for problem, length in lengths:
            seen.setdefault(_kind(problem), []).append(length)
        for kind, values in seen.items():
            mean = sum(values) / len(values)
            self.means[kind] = _KEPT * self.means[kind] + (1 - _KEPT) * mean if kind in self.means else mean

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(self.means, sort_keys=True), encoding="utf-8")

    def load(self, file: Path) -> None:
        """A file that is not there leaves nothing known: an older checkpoint."""
        self.means = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _kind(problem: Problem) -> str:
    return f"{problem.domain}/{problem.language}"
