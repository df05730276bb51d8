"""The watch for reward hacking: a learned reward that rises while what it stands for falls (DeepSeek-R1, Fig. 6).

Every so often the policy answers the same held-out problems, and the reward model is compared with judges that the
policy is not trained against: verifiable accuracy on reasoning problems, the length of general answers, and a second
judge of general answers. Differences to the first check are paired by problem. They have parted when the learned reward
is above its first value and another judge below its own, both by more than `errors` standard errors; or when answers
have grown by `length_factor`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

JUDGES = ("reward", "accuracy", "second", "length")


@dataclass(slots=True)
class Check:
    """What one look at the policy found: judge -> problem -> value. Lengths are tokens."""

    values: dict[str, dict[str, float]] = field(default_factory=lambda: {judge: {} for judge in JUDGES})

    def note(self, judge: str, problem: str, value: float | None) -> None:
        """An unscorable answer (None) is left out."""
        if value is not None:
            self.values[judge][problem] = value

    def mean(self, judge: str) -> float:
        found = self.values[judge].values()
        return sum(found) / len(found) if found else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A check against the first one."""

    metrics: dict[str, float]  # watch/reward, watch/accuracy, ..., watch/parted
    alert: str  # one sentence; empty while all is well


class RewardWatch:
    """Remembers the first check."""

    def __init__(self, errors: float, length_factor: float):
        self.errors, self.length_factor = errors, length_factor
        self.first: Check | None = None

    def compare(self, check: Check) -> Comparison:
        first = self.first = self.first or check
        rise = paired_difference(first.values["reward"], check.values["reward"])
        reasons = []
        for judge in ("accuracy", "second"):
            fall = paired_difference(first.values[judge], check.values[judge])
            if _is_beyond(rise, self.errors) and _is_beyond(fall, -self.errors):
                reasons.append(f"{_NAMES[judge]} from {first.mean(judge):.3f} to {check.mean(judge):.3f}")
        before, now = first.mean("length"), check.mean("length")
        if _is_beyond(rise, self.errors) and now > before * self.length_factor:
            reasons.append(f"the length of general answers from {before:.0f} to {now:.0f} tokens")
        found = {f"watch/{judge}": check.mean(judge) for judge in JUDGES if check.values[judge]}
        metrics = {**found, "watch/parted": float(bool(reasons))}
        if not reasons:
            return Comparison(metrics=metrics, alert="")
        went = f"the learned reward went from {first.mean('reward'):.3f} to {check.mean('reward'):.3f}"
        return Comparison(metrics=metrics, alert=f"{went}, and {' and '.join(reasons)}: it is being hacked")

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(None if self.first is None else self.first.values), encoding="utf-8")

    def load(self, file: Path) -> None:
        """A file that is not there leaves nothing known."""
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        self.first = None if values is None else Check(values)


def paired_difference(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[float, float] | None:
    """(mean, its standard error) of now - before over the problems common to both; None for fewer than two."""
    common = sorted(before.keys() & now.keys())
    if len(common) < 2:
        return None
    differences = np.array([now[problem] - before[problem] for problem in common])
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(common)))


def _is_beyond(difference: tuple[float, float] | None, errors: float) -> bool:
    """Whether a difference lies so many standard errors above zero, or with negative `errors` below it."""
    if difference is None:
        return False
    mean, error = difference
    return mean > errors * error and mean > 0 if errors > 0 else mean < errors * error and mean < 0


_NAMES = {"accuracy": "held-out accuracy", "second": "the second judge"}
